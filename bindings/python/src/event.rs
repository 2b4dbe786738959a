//! What `AsyncMutex` is made of: acquisitions and other work that tell their outcome to a callable.

use ipcmutex::{EventWait, Timeout};
use pyo3::prelude::*;

use crate::error::raise;
use crate::hold::Hold;

/// An acquisition under way.
#[pyclass(frozen, module = "ipcmutex._ipcmutex")]
pub(crate) struct Wait(EventWait);

#[pymethods]
impl Wait {
    /// Ends it; False if it has an outcome already, and nothing changes.
    fn cancel(&self, py: Python<'_>) -> bool {
        py.detach(|| self.0.cancel())
    }
}

pub(crate) fn start(py: Python<'_>, handle: &ipcmutex::Mutex, timeout: Timeout, done: Py<PyAny>) -> Wait {
    let remote = handle.is_remote();
    // Not inline: whoever releases must not wait for the interpreter here.
    Wait(py.detach(|| {
        handle.acquire_event(timeout, false, move |outcome| {
            // Once the interpreter is on its way out nobody is told, and a hold is released by being dropped.
            Python::try_attach(move |py| match outcome {
                Ok(hold) => call(py, &done, (Hold::new(hold, remote), py.None())),
                Err(error) => call(py, &done, (py.None(), raise(py, &error))),
            });
        })
    }))
}

/// Runs job() on a short-lived thread of the library, then done(result, error) there. No executor is involved.
#[pyfunction]
pub(crate) fn offload(py: Python<'_>, job: Py<PyAny>, done: Py<PyAny>) {
    py.detach(|| {
        ipcmutex::offload(move || {
            Python::try_attach(move |py| match job.call0(py) {
                Ok(result) => call(py, &done, (result, py.None())),
                Err(error) => call(py, &done, (py.None(), error)),
            });
        });
    });
}

fn call<'py>(py: Python<'py>, done: &Py<PyAny>, arguments: impl pyo3::call::PyCallArgs<'py>) {
    if let Err(failed) = done.call1(py, arguments) {
        failed.write_unraisable(py, Some(done.bind(py)));
    }
}
