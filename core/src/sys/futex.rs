//! Sleeping on a word: futex(2), with absolute deadlines, so that signals never lengthen a wait.

use std::sync::atomic::AtomicU32;
use std::time::{Duration, Instant};

/// Why a sleep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Woken {
    /// By a waker, or the word was another one already, or for no reason.
    Changed,
    /// The deadline passed.
    TimedOut,
    /// A signal handler ran.
    Interrupted,
}

/// Sleeps while `word` is `expected`, until one of `bits` is woken or `until`. `shared` reaches across processes.
#[cfg(target_os = "linux")]
pub(crate) fn wait(word: &AtomicU32, expected: u32, bits: u32, until: Option<Instant>, shared: bool) -> Woken {
    // Never is far: a call without a deadline would be begun anew when a signal's handler has run, also in the child that it forks.
    let never = libc::timespec { tv_sec: i32::MAX.into(), tv_nsec: 0 };
    let deadline = until.map_or(never, |until| {
        let left = until.saturating_duration_since(Instant::now());
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec to write to.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut now) };
        let at = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(left);
        // Beyond what the kernel's clock can count is the same as never.
        let seconds = at.as_secs().min(i32::MAX as u64);
        libc::timespec { tv_sec: seconds as libc::time_t, tv_nsec: at.subsec_nanos() as _ }
    });
    let op = libc::FUTEX_WAIT_BITSET | if shared { 0 } else { libc::FUTEX_PRIVATE_FLAG };
    // SAFETY: `word` is a live aligned u32; the deadline points to a timespec that outlives the call;
    // FUTEX_WAIT_BITSET ignores the fifth argument and takes an absolute CLOCK_MONOTONIC time.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op,
            expected,
            std::ptr::from_ref(&deadline),
            std::ptr::null::<u32>(),
            bits,
        )
    };
    if answer == 0 {
        return Woken::Changed;
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => Woken::TimedOut,
        Some(libc::EINTR) => Woken::Interrupted,
        _ => Woken::Changed,
    }
}

/// Wakes up to `count` sleepers of `word` that wait for one of `bits`; how many there were.
#[cfg(target_os = "linux")]
pub(crate) fn wake(word: &AtomicU32, count: u32, bits: u32, shared: bool) -> u32 {
    let op = libc::FUTEX_WAKE_BITSET | if shared { 0 } else { libc::FUTEX_PRIVATE_FLAG };
    // SAFETY: `word` is a live aligned u32; FUTEX_WAKE_BITSET reads only the address and the two numbers.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op,
            count.min(i32::MAX as u32),
            std::ptr::null::<libc::timespec>(),
            std::ptr::null::<u32>(),
            bits,
        )
    };
    u32::try_from(answer).unwrap_or(0)
}

/// Moves the sleeper of `from`, if that is `expected` still, to `to`, and does not wake it: it sleeps on, until its own deadline, for whoever
/// wakes `to`. Both words are slept on as shared. Where it cannot be moved, it is woken.
#[cfg(all(target_os = "linux", not(all(test, feature = "schedules"))))]
pub(crate) fn move_sleeper(from: &AtomicU32, expected: u32, to: &AtomicU32) {
    let (woken, moved) = (0u32, 1usize);
    // SAFETY: both words are live and aligned; FUTEX_CMP_REQUEUE takes the number to move where others take a deadline.
    let answer = unsafe {
        libc::syscall(libc::SYS_futex, from.as_ptr(), libc::FUTEX_CMP_REQUEUE, woken, moved, to.as_ptr(), expected)
    };
    if answer < 0 {
        wake(from, 1, ANY, true);
    }
}

/// Whether a word of a shared mapping could be touched. Where its file ends before it, a touch is a SIGBUS; the kernel says EFAULT.
#[cfg(target_os = "linux")]
pub(crate) fn is_there(word: std::ptr::NonNull<u32>) -> bool {
    let past = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel checks the address; the deadline, long past, outlives the call, so that it never sleeps.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT_BITSET,
            0u32,
            &past,
            std::ptr::null::<u32>(),
            ANY,
        )
    };
    answer == 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::EFAULT)
}

/// Off Linux only the private waits of one process exist; a short sleep stands in for the futex.
#[cfg(not(target_os = "linux"))]
pub(crate) fn wait(word: &AtomicU32, expected: u32, _bits: u32, until: Option<Instant>, _shared: bool) -> Woken {
    let slice = Duration::from_millis(1);
    if word.load(std::sync::atomic::Ordering::Acquire) != expected {
        return Woken::Changed;
    }
    let left = until.map_or(slice, |until| until.saturating_duration_since(Instant::now()));
    if left.is_zero() {
        return Woken::TimedOut;
    }
    std::thread::park_timeout(left.min(slice));
    Woken::Changed
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn wake(_word: &AtomicU32, _count: u32, _bits: u32, _shared: bool) -> u32 {
    0
}

#[cfg(all(not(target_os = "linux"), not(all(test, feature = "schedules"))))]
pub(crate) fn move_sleeper(_from: &AtomicU32, _expected: u32, _to: &AtomicU32) {}

pub(crate) const ANY: u32 = u32::MAX;

/// How long to wait for memory.
#[cfg(target_os = "linux")]
const MOMENT: Duration = Duration::from_millis(5);

/// How many words [`wait_any`] can watch.
pub(crate) const MAX_WORDS: usize = 128;

/// Sleeps while each word is what is expected of it; `None` if the kernel cannot do that (before Linux 5.16).
/// The first word is private to this process, the others are shared.
#[cfg(target_os = "linux")]
pub(crate) fn wait_any(words: &[(&AtomicU32, u32)], until: Option<Instant>) -> Option<Woken> {
    #[repr(C)]
    struct Futex {
        value: u64,
        address: u64,
        flags: u32,
        reserved: u32,
    }
    const FUTEX2_SIZE_U32: u32 = 2;
    const FUTEX2_PRIVATE: u32 = 128;
    let watched: Vec<Futex> = words
        .iter()
        .enumerate()
        .map(|(at, (word, expected))| Futex {
            value: u64::from(*expected),
            address: word.as_ptr() as u64,
            flags: FUTEX2_SIZE_U32 | if at == 0 { FUTEX2_PRIVATE } else { 0 },
            reserved: 0,
        })
        .collect();
    let deadline = until.map(|until| {
        let left = until.saturating_duration_since(Instant::now());
        let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let at = Duration::new(now.tv_sec as u64, now.tv_nsec as u32).saturating_add(left);
        libc::timespec { tv_sec: at.as_secs().min(i32::MAX as u64) as libc::time_t, tv_nsec: at.subsec_nanos() as _ }
    });
    // SAFETY: `watched` is an array of `struct futex_waitv` (linux/futex.h) with live aligned words; the deadline is
    // null or points to a timespec that outlives the call, absolute on CLOCK_MONOTONIC.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex_waitv,
            watched.as_ptr(),
            watched.len() as u32,
            0u32,
            deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
            libc::CLOCK_MONOTONIC,
        )
    };
    if answer >= 0 {
        return Some(Woken::Changed);
    }
    match std::io::Error::last_os_error().raw_os_error() {
        Some(libc::ETIMEDOUT) => Some(Woken::TimedOut),
        Some(libc::EINTR) => Some(Woken::Interrupted),
        Some(libc::EAGAIN) => Some(Woken::Changed),
        // No memory for so many just now, or a word whose file was cut off, which whoever looks next finds out: that says nothing
        // about the kernel.
        Some(libc::ENOMEM | libc::EFAULT) => {
            std::thread::sleep(MOMENT);
            Some(Woken::Changed)
        }
        // It does not know the call; or a sandbox does not let it through, by whatever error that likes best.
        _ => None,
    }
}

#[cfg(all(test, target_os = "linux", not(feature = "schedules")))]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;
    use crate::sys::page::Mapping;

    #[test]
    fn a_word_that_cannot_be_watched_does_not_mean_that_none_can() {
        let (own, shared) = (AtomicU32::new(0), AtomicU32::new(0));
        let past = Some(Instant::now());
        if wait_any(&[(&own, 0), (&shared, 0)], past).is_none() {
            return; // Before Linux 5.16.
        }
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let page = Mapping::new(file.as_fd(), 4096, 4096).unwrap();
        file.set_len(0).unwrap();
        assert_eq!(wait_any(&[(&own, 0), (page.u32(0), 0)], past), Some(Woken::Changed));
    }
}
