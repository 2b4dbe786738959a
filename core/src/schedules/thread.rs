//! Threads of the library whose turns shuttle gives.

use crate::error::Result;
pub(crate) use crate::sys::thread::FULL_STACK;

pub(crate) fn spawn(_name: &str, _stack: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
    drop(shuttle::thread::spawn(body));
    Ok(())
}

/// As many names as there were threads, from one that stands for something else on.
pub(crate) fn me() -> usize {
    4096 + usize::from(shuttle::thread::current().id())
}

pub(crate) fn nap(_: std::time::Duration) {
    shuttle::thread::yield_now();
}
