//! Byte locks of an open file description (F_OFD_*): the kernel drops them when the description goes, however its
//! process ends.

use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

fn request(kind: libc::c_int, byte: u64) -> libc::flock {
    // SAFETY: all-zero is a valid flock (OFD commands require l_pid 0).
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind as _;
    request.l_whence = libc::SEEK_SET as _;
    request.l_start = byte as _;
    request.l_len = 1;
    request
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// Locks `byte`; `false` if another description has it. Never waits.
pub(crate) fn lock_byte(file: BorrowedFd<'_>, byte: u64) -> Result<bool, Errno> {
    let request = request(libc::F_WRLCK, byte);
    loop {
        // SAFETY: a live descriptor and a valid flock that outlives the call.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &request) } == 0 {
            return Ok(true);
        }
        match last() {
            Errno::INTR => {}
            Errno::AGAIN | Errno::ACCESS => return Ok(false),
            error => return Err(error),
        }
    }
}

/// Whether another description has `byte` locked.
pub(crate) fn is_byte_locked(file: BorrowedFd<'_>, byte: u64) -> Result<bool, Errno> {
    let mut request = request(libc::F_WRLCK, byte);
    loop {
        // SAFETY: a live descriptor and a valid flock that outlives the call and may be written to.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut request) } == 0 {
            return Ok(i32::from(request.l_type) != libc::F_UNLCK);
        }
        match last() {
            Errno::INTR => {}
            error => return Err(error),
        }
    }
}

/// Whether this program runs with rights that its caller does not have: then the environment is not to be trusted.
pub(crate) fn is_set_id() -> bool {
    // SAFETY: getauxval takes a number and reads what the kernel gave this process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
