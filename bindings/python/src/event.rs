//! What `AsyncMutex` is made of: acquisitions and other work that tell their outcome to a callable.

use ipcmutex::{EventLoop, EventWait, Timeout};
use pyo3::prelude::*;

use crate::error::raise;
use crate::guest;
use crate::hold::Hold;

/// An acquisition under way.
#[pyclass(frozen, module = "ipcmutex._ipcmutex")]
pub(crate) struct Wait(EventWait);

#[pymethods]
impl Wait {
    /// Ends it; False if it has an outcome already, and nothing changes.
    fn cancel(&self, py: Python<'_>) -> bool {
        guest::detached(py, || self.0.cancel())
    }
}

pub(crate) fn start(py: Python<'_>, handle: &ipcmutex::Mutex, timeout: Timeout, done: Py<PyAny>) -> Wait {
    let remote = handle.is_remote();
    Wait(guest::detached(py, || {
        handle.acquire_on(&EventLoop::blind(), timeout, move |outcome| {
            // Whoever releases must not wait for the interpreter here.
            ipcmutex::deliver(move || {
                // Once the interpreter is on its way out nobody is told, and a hold is released by being dropped.
                guest::attached(move |py| {
                    let outcome = match outcome {
                        Ok(hold) => Bound::new(py, Hold::new(hold, remote)).map(Bound::into_any),
                        Err(error) => Err(raise(py, &error)),
                    };
                    tell(done.bind(py), outcome);
                });
            });
        })
    }))
}

/// Runs job() on a short-lived thread of the library, then done(result, error) there. No executor is involved.
#[pyfunction]
pub(crate) fn offload(py: Python<'_>, job: Py<PyAny>, done: Py<PyAny>) {
    guest::detached(py, || {
        ipcmutex::offload(move || {
            guest::attached(move |py| {
                let outcome = guest::call0(job.bind(py));
                tell(done.bind(py), outcome);
            });
        });
    });
}

/// done(result, error): one of them is None.
fn tell<'py>(done: &Bound<'py, PyAny>, outcome: PyResult<Bound<'py, PyAny>>) {
    let py = done.py();
    let none = py.None().into_bound(py);
    match outcome {
        Ok(result) => guest::tell(done, &[result, none]),
        Err(error) => guest::tell(done, &[none, error.into_value(py).into_bound(py).into_any()]),
    }
}
