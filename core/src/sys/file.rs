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

/// `struct f_owner_ex` (linux/fcntl.h).
#[repr(C)]
struct Recipient {
    kind: libc::c_int,
    thread: libc::pid_t,
}
const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;
const F_OWNER_TID: libc::c_int = 0;

/// Makes the calling thread the one that would have the signals of this description, of which there are none: a mark that no other
/// description has. The thread's number.
pub(crate) fn mark(file: BorrowedFd<'_>) -> Result<i32, Errno> {
    let thread = rustix::thread::gettid().as_raw_pid();
    let me = Recipient { kind: F_OWNER_TID, thread };
    // SAFETY: a live descriptor and a valid struct that outlives the call.
    if unsafe { libc::fcntl(file.as_raw_fd(), F_SETOWN_EX, &me) } == 0 { Ok(thread) } else { Err(last()) }
}

/// Whether it is a description that `thread`, which still runs, has marked. Not so if it is not open.
pub(crate) fn is_marked(file: BorrowedFd<'_>, thread: i32) -> bool {
    let mut who = Recipient { kind: -1, thread: 0 };
    // SAFETY: a valid struct that outlives the call and may be written to; a number that is not open is refused.
    let answered = unsafe { libc::fcntl(file.as_raw_fd(), F_GETOWN_EX, &mut who) } == 0;
    answered && who.kind == F_OWNER_TID && who.thread == thread
}

/// Btrfs writes elsewhere what is written again, unless it is told not to while the file is empty. Where there is no such flag, there is
/// nothing to be told. What is compressed, as the folder may ask for, cannot have it.
pub(crate) fn write_in_place(file: BorrowedFd<'_>) {
    // linux/fs.h
    const FS_COMPR_FL: u32 = 0x0000_0004;
    const FS_NOCOW_FL: u32 = 0x0080_0000;
    // The kernel means an int, and says long.
    let mut flags = [0_u32; 2];
    // SAFETY: a live descriptor, and room for a long, which outlives both calls.
    unsafe {
        if libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) == 0 {
            flags[0] = flags[0] & !FS_COMPR_FL | FS_NOCOW_FL;
            libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &flags);
        }
    }
}

/// Whether this program runs with rights that its caller does not have: then the environment is not to be trusted.
pub(crate) fn is_set_id() -> bool {
    // SAFETY: getauxval takes a number and reads what the kernel gave this process.
    unsafe { libc::getauxval(libc::AT_SECURE) != 0 }
}
