//! `Hold`: one acquisition.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, MutexGuard, PoisonError};

use ipcmutex::ErrorKind;
use pyo3::PyTraverseError;
use pyo3::exceptions::{PyResourceWarning, PyTypeError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::PyWeakrefMethods;
use pyo3::types::{PyList, PyWeakrefReference};

use crate::argument;
use crate::error::{OrRaise, raise};
use crate::event::{self, EventLoop};
use crate::guest;

/// One acquisition, and the proof of holding. It belongs to whoever has it, not to a thread.
///
/// A context manager: leaving the block releases. A hold that is garbage-collected is released, with a ResourceWarning.
#[pyclass(frozen, weakref, module = "ipcmutex")]
pub(crate) struct Hold {
    core: ipcmutex::Hold,
    remote: bool,
    /// An event loop's.
    looped: bool,
    /// Its release said so.
    lost: AtomicBool,
    /// Kept here and not in core, so that the garbage collector sees them: they often refer to the hold.
    callbacks: StdMutex<Vec<Py<PyAny>>>,
}

impl Hold {
    #[inline]
    pub(crate) fn new(core: ipcmutex::Hold, remote: bool) -> Hold {
        Hold { core, remote, looped: false, lost: AtomicBool::new(false), callbacks: StdMutex::new(Vec::new()) }
    }

    /// One that an event loop took: its thread waits for no server, not to release what it has lost sight of either.
    pub(crate) fn looped(core: ipcmutex::Hold, remote: bool) -> Hold {
        let mut hold = Hold::new(core, remote);
        hold.looped = true;
        hold
    }

    pub(crate) fn core(&self) -> &ipcmutex::Hold {
        &self.core
    }

    fn callbacks(&self) -> MutexGuard<'_, Vec<Py<PyAny>>> {
        self.callbacks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Not under their lock: what goes with them may run Python code, which may ask for it.
    fn forget_callbacks(&self) {
        let gone = std::mem::take(&mut *self.callbacks());
        drop(gone);
    }

    pub(crate) fn end(&self, py: Python<'_>) -> PyResult<()> {
        let ended = if self.remote { guest::detached(py, || self.core.end()) } else { self.core.end() };
        self.note_loss(&ended);
        ended.or_raise(py)?;
        self.forget_callbacks();
        Ok(())
    }

    fn note_loss(&self, ended: &ipcmutex::Result<()>) {
        if ended.as_ref().is_err_and(|error| error.kind() == ErrorKind::Lost) {
            self.lost.store(true, Ordering::Relaxed);
        }
    }

    /// Releases at the end of a `with` block. What the block raised goes first: a failed release is noted on it.
    pub(crate) fn exit(&self, py: Python<'_>, raised: &Bound<'_, PyAny>) -> PyResult<()> {
        match self.end(py) {
            Err(failed) if !raised.is_none() => note(raised, &failed.value(py).str()?.to_string()),
            ended => ended,
        }
    }

    fn tell(slf: &Bound<'_, Hold>, error: &ipcmutex::Error) {
        let py = slf.py();
        let callbacks = std::mem::take(&mut *slf.get().callbacks());
        let error = raise(py, error).into_value(py).into_bound(py).into_any();
        for callback in callbacks {
            guest::tell(callback.bind(py), std::slice::from_ref(&error));
        }
    }
}

/// `BaseException.add_note`, which Python 3.10 does not have.
fn note(raised: &Bound<'_, PyAny>, text: &str) -> PyResult<()> {
    match raised.getattr_opt("__notes__")? {
        Some(notes) => notes.call_method1("append", (text,)).map(drop),
        None => raised.setattr("__notes__", PyList::new(raised.py(), [text])?),
    }
}

#[pymethods]
impl Hold {
    /// The fencing token: larger than that of every earlier hold of the name.
    #[getter]
    fn token(&self) -> u64 {
        self.core.token()
    }

    /// Whether the previous hold ended without a release.
    #[getter]
    fn abandoned(&self) -> bool {
        self.core.abandoned()
    }

    /// How many milliseconds it lasts for certain without a renewal; None if it has no lease. No I/O.
    #[getter]
    fn valid_ms(&self) -> Option<u64> {
        self.core.valid_for().map(|left| left.as_millis().try_into().unwrap_or(u64::MAX))
    }

    /// Whether it was lost. No I/O.
    #[getter]
    fn lost(&self) -> bool {
        self.lost.load(Ordering::Relaxed) || self.core.check().is_err_and(|error| error.kind() == ErrorKind::Lost)
    }

    /// Raises LockLost if it was lost, NotOwner if it was released. No I/O.
    fn check(&self, py: Python<'_>) -> PyResult<()> {
        self.core.check().or_raise(py)
    }

    /// Renews the lease to ttl seconds, or to the URL's. Unsupported where there is no lease.
    #[pyo3(signature = (ttl=None))]
    fn extend(&self, py: Python<'_>, ttl: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        let ttl = argument::ttl(py, ttl)?;
        guest::detached(py, || self.core.extend(ttl)).or_raise(py)
    }

    /// Calls callback(error) once, on a library thread, if the hold is lost; never if it is released.
    fn on_lost(slf: &Bound<'_, Hold>, callback: Bound<'_, PyAny>) -> PyResult<()> {
        let py = slf.py();
        if !callback.is_callable() {
            return Err(PyTypeError::new_err("on_lost takes a callable"));
        }
        let hold = PyWeakrefReference::new(slf)?.unbind();
        slf.get().callbacks().push(callback.clone().unbind());
        let listening = slf.get().core.on_lost(move |error| {
            // Nobody is told once the interpreter is on its way out.
            guest::attached(|py| {
                if let Ok(Some(hold)) = hold.bind(py).upgrade_as::<Hold>() {
                    Hold::tell(&hold, &error);
                }
            });
        });
        if listening.is_err() {
            slf.get().callbacks().retain(|known| !known.is(&callback)); // `callback` outlives them
        }
        listening.or_raise(py)
    }

    /// Ends this hold, and no other. NotOwner if it has ended already, LockLost if it was lost.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.end(py)
    }

    /// For AsyncHold: release() begins, and done(None, error) is called once.
    #[pyo3(name = "_release_on")]
    fn release_on(slf: &Bound<'_, Hold>, on: &EventLoop, done: Py<PyAny>) -> PyResult<()> {
        let (hold, told) = (slf.clone().unbind(), event::released(done));
        let ended = move |outcome| {
            hold.get().note_loss(&outcome);
            told(outcome);
        };
        let core = &slf.get().core;
        event::told_here(slf.py(), || core.release_on(on.core(), ended)).1
    }

    fn __enter__(slf: Bound<'_, Hold>) -> Bound<'_, Hold> {
        slf
    }

    fn __exit__(
        &self,
        _type: &Bound<'_, PyAny>,
        raised: &Bound<'_, PyAny>,
        _traceback: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.exit(raised.py(), raised)
    }

    fn __repr__(&self) -> String {
        let state = match self.core.check() {
            Ok(()) => "held",
            Err(_) if self.lost() => "lost",
            Err(_) => "ended",
        };
        format!("<{state} ipcmutex.Hold of {}, token {}>", self.core.mutex().url().redacted(), self.core.token())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // Busy means that another thread is in a section of a few instructions: then it is seen the next time.
        if let Ok(callbacks) = self.callbacks.try_lock() {
            for callback in &*callbacks {
                visit.call(callback)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        self.forget_callbacks();
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if self.core.is_live() {
            collected(&format!("unreleased hold of {}", self.core.mutex().url().redacted()), || {
                // Best effort: a loss was told by `check` and `on_lost`, and nobody is left to hear of it here.
                if self.looped && self.remote {
                    self.core.release_on(&ipcmutex::EventLoop::blind(), drop);
                } else {
                    let _ = self.core.end();
                }
            });
        }
    }
}

/// Warns of what the garbage collector found, and ends it without holding up other threads.
pub(crate) fn collected(what: &str, end: impl FnOnce() + Send) {
    let mut end = Some(end);
    Python::try_attach(|py| {
        // It may be collected while an exception is on its way.
        let pending = PyErr::take(py);
        let text = std::ffi::CString::new(format!("{what}; it is released now")).unwrap_or_default();
        if let Err(raised) = PyErr::warn(py, &py.get_type::<PyResourceWarning>(), &text, 1) {
            raised.write_unraisable(py, None);
        }
        if let Some(end) = end.take() {
            guest::detached(py, end);
        }
        if let Some(pending) = pending {
            pending.restore(py);
        }
    });
    if let Some(end) = end {
        end();
    }
}
