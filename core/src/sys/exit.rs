//! The normal end of a process.

use std::sync::atomic::{AtomicBool, Ordering};

static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Has `job` run once when the process exits normally (`exit`, or the end of `main`), not when it is killed. Only
/// the first call counts. `job` is also run by the exit of a forked child.
pub(crate) fn at_exit(job: extern "C" fn()) {
    if !REGISTERED.swap(true, Ordering::AcqRel) {
        // SAFETY: `job` is an `extern "C"` function without arguments that stays loaded as long as this code: an
        // object that is unloaded runs its exit functions before. A failure (no memory) means that it does not run.
        unsafe { libc::atexit(job) };
    }
}
