//! Sleeping on a word: futex(2), with absolute deadlines, so that signals never lengthen a wait.

use std::sync::atomic::{AtomicU32, Ordering};
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
    let deadline = until.map(|until| {
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
    // SAFETY: `word` is a live aligned u32; the deadline is null or points to a timespec that outlives the call;
    // FUTEX_WAIT_BITSET ignores the fifth argument and takes an absolute CLOCK_MONOTONIC time.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            op,
            expected,
            deadline.as_ref().map_or(std::ptr::null(), std::ptr::from_ref),
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

/// Off Linux only the private waits of one process exist; a short sleep stands in for the futex.
#[cfg(not(target_os = "linux"))]
pub(crate) fn wait(word: &AtomicU32, expected: u32, _bits: u32, until: Option<Instant>, _shared: bool) -> Woken {
    let slice = Duration::from_millis(1);
    if word.load(Ordering::Acquire) != expected {
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

pub(crate) const ANY: u32 = u32::MAX;

/// A lock of one word, for the fork handlers: it can be reset in a child, which a `std` or `parking_lot` mutex cannot.
/// 0 free, 1 held, 2 held and somebody sleeps (U. Drepper, "Futexes Are Tricky", mutex2).
pub(crate) fn lock(word: &AtomicU32) {
    if word.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok() {
        return;
    }
    while word.swap(2, Ordering::Acquire) != 0 {
        wait(word, 2, ANY, None, false);
    }
}

pub(crate) fn unlock(word: &AtomicU32) {
    if word.swap(0, Ordering::Release) == 2 {
        wake(word, 1, ANY, false);
    }
}
