//! Threads of the library whose turns shuttle gives.

use crate::error::Result;
pub(crate) use crate::sys::thread::FULL_STACK;

pub(crate) fn spawn(_name: &str, _stack: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
    drop(shuttle::thread::spawn(body));
    Ok(())
}
