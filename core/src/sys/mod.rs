//! System calls and shared memory: the only unsafe code of this crate, each block with its reason.
#![allow(unsafe_code, reason = "the one door of this crate to the operating system")]

#[cfg(not(all(test, feature = "schedules")))]
pub(crate) mod barrier;
pub(crate) mod copies;
#[cfg(feature = "redis")]
pub(crate) mod exit;
#[cfg(target_os = "linux")]
pub(crate) mod file;
pub(crate) mod fork;
pub(crate) mod futex;
#[cfg(target_os = "linux")]
pub(crate) mod page;
pub(crate) mod pinned;
pub(crate) mod thread;

use std::sync::atomic::{AtomicU64, Ordering};

/// Before the program does anything: handlers for a fork come before the program's own, also before those that its constructors put in
/// place (but for the very first of them), and the loader is asked before any fork, and while nobody who opens a mutex can be waited for by who has the loader.
#[cfg(target_os = "linux")]
extern "C" fn at_load() {
    fork::put_handlers_in_place();
    copies::what_was_loaded();
    pinned::stay();
    #[cfg(not(all(test, feature = "schedules")))]
    barrier::find_word();
}

#[cfg(target_os = "linux")]
#[used]
// SAFETY: the loader, or the program's start, calls what is listed there, once; libc may be used by then.
#[unsafe(link_section = ".init_array.00101")]
static AT_LOAD: extern "C" fn() = at_load;

/// CLOCK_MONOTONIC in ms, as exact as the kernel's tick (1 to 10 ms), for the price of a load.
#[inline]
pub(crate) fn coarse_ms() -> u64 {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000
}

/// The wall clock in ns as it was when this process first asked, and steady from then on: it rises, however the clock is set.
pub(crate) fn rising_ns() -> u64 {
    /// By how much that is more than CLOCK_MONOTONIC.
    static AHEAD: AtomicU64 = AtomicU64::new(0);
    let ns = |clock| {
        let now = rustix::time::clock_gettime(clock);
        now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
    };
    let steady = ns(rustix::time::ClockId::Monotonic);
    let ahead = ns(rustix::time::ClockId::Realtime).saturating_sub(steady).max(1);
    steady + AHEAD.compare_exchange(0, ahead, Ordering::Relaxed, Ordering::Relaxed).err().unwrap_or(ahead)
}
