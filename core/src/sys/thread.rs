//! Threads of the library: named, and blind to signals, so that a host's handlers run on the host's own threads.

use std::thread::JoinHandle;

use crate::error::{Error, ErrorKind, Result};

/// For threads that run the library's own short jobs.
pub(crate) const SMALL_STACK: usize = 256 << 10;
/// For threads that run code of the user.
pub(crate) const FULL_STACK: usize = 2 << 20;

/// Starts a thread that blocks all signals, and that nobody waits for.
///
/// # Errors
/// RESOURCE if the operating system has no thread to give.
pub(crate) fn spawn(name: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<()> {
    start(name, stack, body).map(drop)
}

/// The same, for who may wait for its end.
///
/// # Errors
/// RESOURCE if the operating system has no thread to give.
pub(crate) fn start(name: &str, stack: usize, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    // SAFETY: both sets are valid for the calls; the mask of the caller is put back below, so the new thread
    // inherits a full mask and the caller's own does not change.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        before
    };
    let started = std::thread::Builder::new().name(name.to_owned()).stack_size(stack).spawn(body);
    // SAFETY: `before` was filled by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut()) };
    started.map_err(|error| {
        Error::new(ErrorKind::Resource, "acquire", format!("no thread can be started: {error}")).with_source(error)
    })
}

/// A name that no other living thread of this process has: an address.
#[cfg(not(all(test, feature = "schedules")))]
#[inline]
pub(crate) fn me() -> usize {
    // SAFETY: it asks nothing of its caller.
    unsafe { libc::pthread_self() as usize }
}

/// Leaves the processor to others for `time`.
#[cfg(not(all(test, feature = "schedules")))]
pub(crate) fn nap(time: std::time::Duration) {
    std::thread::sleep(time);
}

/// While it lives, signals wait that would interrupt this thread's system calls. For calls that cannot be resumed
/// where they were interrupted, and that end in bounded time.
pub(crate) struct Undisturbed {
    before: libc::sigset_t,
    /// It belongs to its thread.
    _thread: std::marker::PhantomData<*const ()>,
}

impl Undisturbed {
    pub(crate) fn enter() -> Undisturbed {
        // SAFETY: both sets are valid for the calls, and `sigset_t` is plain data for which zeros are a value. Signals
        // that report a fault of the running code stay open: blocked, they would be undefined behaviour.
        let before = unsafe {
            let mut quiet: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut quiet);
            for fault in
                [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGSYS]
            {
                libc::sigdelset(&mut quiet, fault);
            }
            libc::pthread_sigmask(libc::SIG_SETMASK, &quiet, &mut before);
            before
        };
        Undisturbed { before, _thread: std::marker::PhantomData }
    }
}

impl Drop for Undisturbed {
    fn drop(&mut self) {
        // SAFETY: `before` was filled by `enter`, on this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, std::ptr::null_mut()) };
    }
}
