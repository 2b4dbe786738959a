//! The normal end of a process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use super::fork::PerProcess;

static REGISTERED: AtomicBool = AtomicBool::new(false);
/// The mark of the thread that ends the process, and since when.
static ENDING: PerProcess<(usize, Instant)> = PerProcess::new();

/// Tells a thread from the others, also when its destructors have run.
fn mark() -> usize {
    thread_local!(static MARK: u8 = const { 0 });
    MARK.with(|mark| std::ptr::from_ref(mark).addr())
}

/// The calling thread ends the process: its exit functions run.
pub(crate) fn begins_here() {
    ENDING.get_or_init(|| (mark(), Instant::now()));
}

/// Since when another thread than the calling one has been ending the process.
pub(crate) fn begun_elsewhere() -> Option<Instant> {
    ENDING.get().filter(|(ending, _)| *ending != mark()).map(|(_, since)| *since)
}

/// Has `job` run once when the process exits normally (`exit`, or the end of `main`), not when it is killed. Only
/// the first call counts. `job` is also run by the exit of a forked child.
pub(crate) fn at_exit(job: extern "C" fn()) {
    if !REGISTERED.swap(true, Ordering::AcqRel) {
        // SAFETY: `job` is an `extern "C"` function without arguments that stays loaded as long as this code: an
        // object that is unloaded runs its exit functions before. A failure (no memory) means that it does not run.
        unsafe { libc::atexit(job) };
    }
}
