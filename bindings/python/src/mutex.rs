//! `Mutex`: an open lock, with the manners of `threading.Lock`.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError};
use std::thread::ThreadId;

use ipcmutex::url::{LockUrl, rooted};
use ipcmutex::{Error, ErrorKind, State, Timeout, Waiting};
use pyo3::PyTraverseError;
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyString, PyType};

use crate::argument;
use crate::error::{OrRaise, raise};
use crate::event::{self, EventLoop, Wait};
use crate::guest;
use crate::hold::{Hold, collected};
use crate::status::Status;

/// A lock, named by a URL, that excludes threads, processes or hosts. The constructor opens it.
///
/// acquire, release and locked work as threading.Lock's; `with mutex as hold:` acquires and releases, and what its thread releases
/// and acquires anew by hand in the block, as a threading.Condition does, it releases too; `@mutex` decorates a function that then
/// runs holding the lock.
#[pyclass(frozen, weakref, subclass, module = "ipcmutex")]
pub(crate) struct Mutex {
    /// With its secret, its paths absolute: for pickling and for opening anew.
    url: String,
    /// The same without its secret.
    shown: Arc<str>,
    handle: StdMutex<Option<ipcmutex::Mutex>>,
    /// The token of the last hold that `acquire` took: nothing but this object owns it.
    own: AtomicU64,
    /// The `with` blocks that are open.
    entered: StdMutex<Vec<Block>>,
    /// How many: a thread always sees its own.
    blocks: AtomicUsize,
}

struct Block {
    /// That is in it.
    thread: ThreadId,
    hold: Py<Hold>,
    /// What its `acquire` took in the block after `hold` was released by hand: a `threading.Condition` does that. Boxed, for it is
    /// seldom there.
    anew: Option<Box<ipcmutex::Hold>>,
}

impl Block {
    /// Whether what it would end was released: what was lost is still to be told.
    fn is_over(&self) -> bool {
        !self.anew.as_deref().unwrap_or(self.hold.get().core()).is_live()
    }
}

/// The URL with its paths absolute, the same without its secret, and whether it names a server. Opens nothing.
#[pyfunction]
pub(crate) fn describe(py: Python<'_>, url: &Bound<'_, PyString>) -> PyResult<(String, String, bool)> {
    let url = rooted(argument::url(url)?);
    let parsed = LockUrl::parse(&url).or_raise(py)?;
    Ok((url, parsed.redacted().to_string(), parsed.is_remote()))
}

fn open(py: Python<'_>, url: &str) -> PyResult<ipcmutex::Mutex> {
    ipcmutex::logging::from_environment();
    guest::detached(py, || ipcmutex::Mutex::open(url)).or_raise(py)
}

impl Mutex {
    fn slot(&self) -> MutexGuard<'_, Option<ipcmutex::Mutex>> {
        self.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn entered(&self) -> MutexGuard<'_, Vec<Block>> {
        self.entered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[inline]
    fn handle(&self, py: Python<'_>, operation: &'static str) -> PyResult<ipcmutex::Mutex> {
        match &*self.slot() {
            Some(handle) => Ok(handle.clone()),
            None => Err(self.not_opened(py, operation)),
        }
    }

    #[cold]
    fn not_opened(&self, py: Python<'_>, operation: &'static str) -> PyErr {
        let error = Error::new(ErrorKind::Closed, operation, "still not opened: the mutex is closed")
            .with_url(self.shown.clone());
        raise(py, &error)
    }

    fn take(&self, py: Python<'_>, timeout: Timeout) -> PyResult<Hold> {
        let handle = self.handle(py, "acquire")?;
        let remote = handle.is_remote();
        if !remote && let Some(hold) = handle.try_acquire().or_raise(py)? {
            return Ok(Hold::new(hold, remote));
        }
        // A hold that is dropped on the way out is released.
        Ok(Hold::new(wait(py, |waiting| handle.acquire_with(waiting), timeout, drop)?, remote))
    }

    /// `acquire` took the hold with `token`.
    fn own(&self, handle: &ipcmutex::Mutex, token: u64) {
        self.own.store(token, Ordering::Release);
        if self.in_blocks() {
            self.anew(handle, token);
        }
    }

    /// Whether any thread is in a `with` block of it.
    #[inline]
    fn in_blocks(&self) -> bool {
        self.blocks.load(Ordering::Relaxed) != 0
    }

    /// If this thread is in a block whose hold was released, the block ends this one.
    #[cold]
    fn anew(&self, handle: &ipcmutex::Mutex, token: u64) {
        let thread = std::thread::current().id();
        let mut entered = self.entered();
        let block = entered.iter_mut().rfind(|block| block.thread == thread);
        if let Some(block) = block.filter(|block| block.is_over()) {
            block.anew = Some(Box::new(handle.left(token)));
        }
    }
}

/// Waits without the interpreter. On the main thread signal handlers run meanwhile: one that raises ends the wait, any
/// other does not change its deadline. `undo` takes a hold back that came while a handler raised.
fn wait<T: Send>(
    py: Python<'_>,
    acquire: impl FnOnce(Waiting<'_>) -> ipcmutex::Result<T> + Send,
    timeout: Timeout,
    undo: impl FnOnce(T) + Send,
) -> PyResult<T> {
    let main = on_main_thread();
    let mut raised: Option<PyErr> = None;
    let outcome = guest::detached(py, || {
        let mut go_on = || {
            Python::attach(|py| match py.check_signals() {
                Ok(()) => true,
                Err(error) => {
                    raised = Some(error);
                    false
                }
            })
        };
        acquire(Waiting { timeout, cancel: None, interrupt: if main { Some(&mut go_on) } else { None } })
    });
    // A signal may have come since the wait ended: coming back to the interpreter takes as long as others keep it.
    if raised.is_none() && main {
        raised = py.check_signals().err();
    }
    match (raised, outcome) {
        (None, outcome) => outcome.or_raise(py),
        (Some(raised), outcome) => {
            if let Ok(taken) = outcome {
                guest::detached(py, || undo(taken));
            }
            Err(raised)
        }
    }
}

/// Whether signal handlers run on this thread: Python's main thread is the process's, unless a program embeds Python
/// in another one. Asking Python would run Python code, which a daemon thread must not at exit (see `guest`).
fn on_main_thread() -> bool {
    rustix::thread::gettid() == rustix::process::getpid()
}

#[pymethods]
impl Mutex {
    #[new]
    fn new(py: Python<'_>, url: &Bound<'_, PyString>) -> PyResult<Mutex> {
        let url = rooted(argument::url(url)?);
        let handle = open(py, &url)?;
        Ok(Mutex {
            url,
            shown: handle.url().redacted().clone(),
            handle: StdMutex::new(Some(handle)),
            own: AtomicU64::new(0),
            entered: StdMutex::new(Vec::new()),
            blocks: AtomicUsize::new(0),
        })
    }

    /// Opens it anew after close(). The constructor has opened it already.
    fn open(&self, py: Python<'_>) -> PyResult<()> {
        let already = || {
            let error = Error::new(ErrorKind::Invalid, "open", "already opened")
                .with_url(self.shown.clone())
                .with_help("close it first");
            raise(py, &error)
        };
        if self.slot().is_some() {
            return Err(already());
        }
        let handle = open(py, &self.url)?;
        let mut slot = self.slot();
        if slot.is_some() {
            drop(slot);
            return Err(already()); // by another thread meanwhile
        }
        *slot = Some(handle);
        Ok(())
    }

    /// Closes it: releases a hold taken through it and ends its waits with Closed.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.slot().take();
        match handle {
            Some(handle) => guest::detached(py, || handle.close()).or_raise(py),
            None => Err(self.not_opened(py, "close")),
        }
    }

    /// As threading.Lock.acquire: whether it was acquired. timeout is in seconds; None and -1 are for ever.
    #[pyo3(signature = (blocking=true, timeout=None), text_signature = "(self, blocking=True, timeout=-1)")]
    fn acquire(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::blocking)] blocking: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let timeout = argument::timeout(py, blocking, timeout)?;
        let handle = self.handle(py, "acquire")?;
        if !handle.is_remote() {
            // Without a hold it costs less; but a block must not end another one that came meanwhile.
            let taken = if self.in_blocks() {
                handle.try_acquire().or_raise(py)?.map(ipcmutex::Hold::leave)
            } else {
                handle.try_lock().or_raise(py)?.then(|| handle.token().unwrap_or(0))
            };
            if let Some(token) = taken {
                self.own(&handle, token);
                return Ok(true);
            }
            if timeout.is_try() {
                return Ok(false);
            }
        }
        let acquire = |waiting: Waiting<'_>| match handle.acquire_with(waiting) {
            Ok(hold) => Ok(Some(hold)),
            Err(error) if error.kind() == ErrorKind::Timeout => Ok(None),
            Err(error) => Err(error),
        };
        // A hold that is dropped on the way out is released.
        let taken = wait(py, acquire, timeout, drop)?.map(ipcmutex::Hold::leave);
        if let Some(token) = taken {
            self.own(&handle, token);
        }
        Ok(taken.is_some())
    }

    /// Ends the hold that is current through this object, however it was taken, in whichever thread.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let handle = self.handle(py, "release")?;
        let released = if handle.is_remote() { guest::detached(py, || handle.release()) } else { handle.release() };
        released.or_raise(py)
    }

    /// Whether somebody holds the name.
    fn locked(&self, py: Python<'_>) -> PyResult<bool> {
        let handle = self.handle(py, "status")?;
        Ok(guest::detached(py, || handle.status()).or_raise(py)?.state == State::Held)
    }

    /// Acquires within timeout seconds (None: for ever) and returns the Hold. Raises AcquireTimeout.
    #[pyo3(signature = (timeout=None))]
    fn hold(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Hold> {
        self.take(py, argument::timeout(py, true, timeout)?)
    }

    /// Who holds the lock, and how many wait.
    fn status(&self, py: Python<'_>) -> PyResult<Status> {
        let handle = self.handle(py, "status")?;
        Ok(guest::detached(py, || handle.status()).or_raise(py)?.into())
    }

    /// Takes the lock from whoever holds it; whether somebody did. That hold is lost, its token stale.
    fn break_lock(&self, py: Python<'_>) -> PyResult<bool> {
        let handle = self.handle(py, "break")?;
        guest::detached(py, || handle.break_lock()).or_raise(py)
    }

    /// The fencing token of the hold that is current through this object.
    #[getter]
    fn token(&self, py: Python<'_>) -> PyResult<u64> {
        self.handle(py, "token")?.token().or_raise(py)
    }

    /// The URL, its secret shown as ***.
    #[getter]
    fn url(&self) -> &str {
        &self.shown
    }

    fn __enter__(slf: &Bound<'_, Mutex>) -> PyResult<Py<Hold>> {
        let py = slf.py();
        let thread = std::thread::current().id();
        let hold = Py::new(py, slf.get().take(py, Timeout::FOREVER)?)?;
        let mut entered = slf.get().entered();
        entered.push(Block { thread, hold: hold.clone_ref(py), anew: None });
        slf.get().blocks.store(entered.len(), Ordering::Relaxed);
        drop(entered);
        Ok(hold)
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        raised: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let py = raised.py();
        let thread = std::thread::current().id();
        let block = {
            let mut entered = self.entered();
            // A generator may leave its block in another thread than it entered it in.
            let at = entered.iter().rposition(|block| block.thread == thread).or(entered.len().checked_sub(1));
            let block = at.map(|at| entered.remove(at));
            self.blocks.store(entered.len(), Ordering::Relaxed);
            block
        };
        match block {
            Some(Block { anew: Some(anew), .. }) => {
                let remote = anew.mutex().is_remote();
                Hold::new(*anew, remote).exit(py, raised)
            }
            Some(block) => block.hold.get().exit(py, raised),
            None => Err(raise(
                py,
                &Error::new(ErrorKind::NotOwner, "release", "still not acquired: no `with` block is open"),
            )),
        }
    }

    /// As a decorator: the function runs holding the lock.
    fn __call__(slf: Bound<'_, Mutex>, function: Bound<'_, PyAny>) -> PyResult<Py<PyAny>> {
        let py = slf.py();
        Ok(py.import("ipcmutex._decorate")?.call_method1("guarded", (slf, function))?.unbind())
    }

    fn __repr__(slf: &Bound<'_, Mutex>) -> PyResult<String> {
        let held = slf.get().slot().as_ref().is_some_and(ipcmutex::Mutex::is_held_here);
        let state = if held { "locked" } else { "unlocked" };
        Ok(format!("<{state} {} object at {:p}>", slf.get_type().fully_qualified_name()?, slf.as_ptr()))
    }

    /// Another process opens the same URL, secret included.
    fn __reduce__<'py>(slf: &Bound<'py, Mutex>) -> (Bound<'py, PyType>, (String,)) {
        (slf.get_type(), (slf.get().url.clone(),))
    }

    /// For AsyncMutex: release() begins, and done(None, error) is called once.
    #[pyo3(name = "_release_on")]
    fn release_on(&self, py: Python<'_>, on: &EventLoop, done: Py<PyAny>) -> PyResult<()> {
        let handle = self.handle(py, "release")?;
        event::told_here(py, || handle.release_on(on.core(), event::released(done))).1
    }

    /// For AsyncMutex: a Hold if that is possible on the spot, else a Wait; then done(hold, error) is called once: on this
    /// thread, now or when it reads a connection that it watches, or on a library thread.
    #[pyo3(name = "_start")]
    fn start(
        &self,
        py: Python<'_>,
        #[pyo3(from_py_with = argument::blocking)] blocking: bool,
        timeout: Option<&Bound<'_, PyAny>>,
        on: &EventLoop,
        done: Py<PyAny>,
    ) -> PyResult<StartedAs> {
        let timeout = argument::timeout(py, blocking, timeout)?;
        let handle = self.handle(py, "acquire")?;
        let remote = handle.is_remote();
        if !remote && let Some(hold) = handle.try_acquire().or_raise(py)? {
            return Ok(StartedAs::Hold(Hold::new(hold, remote)));
        }
        Ok(StartedAs::Wait(event::start(py, &handle, on, timeout, done)?))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Busy means that another thread is in a section of a few instructions: then it is seen the next time.
        if let Ok(entered) = self.entered.try_lock() {
            for block in &*entered {
                visit.call(&block.hold)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let gone = std::mem::take(&mut *self.entered()); // not under its lock: what goes with them may run Python code
        drop(gone);
    }
}

/// What `_start` returns.
#[derive(IntoPyObject)]
pub(crate) enum StartedAs {
    Hold(Hold),
    Wait(Wait),
}

impl Drop for Mutex {
    fn drop(&mut self) {
        let Some(handle) = self.slot().take() else { return };
        let own = self.own.load(Ordering::Acquire);
        // `is_held_here` first: in a forked child `token` would open the lock only to find that nothing is held.
        if own != 0 && handle.is_held_here() && handle.token().is_ok_and(|token| token == own) {
            collected(&format!("unreleased lock {}", handle.url().redacted()), || {
                // Best effort, as in `Hold`'s.
                let _ = handle.release();
            });
        } else if handle.is_remote() {
            // The last one of a server's connections may take a moment to close.
            Python::try_attach(|py| guest::detached(py, || drop(handle)));
        }
    }
}
