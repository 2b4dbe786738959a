//! Python on threads of the library.
//!
//! Before 3.14, Python ends a thread that asks for the interpreter while it shuts down by `pthread_exit`, which unwinds
//! through our frames: destructors would touch objects without the interpreter, and the runtime aborts where the
//! unwinding meets `catch_unwind`. So such a thread is parked at the first frame of ours that is reached. The process is about to end.

use pyo3::marker::Ungil;
use pyo3::prelude::*;
use pyo3::types::PyTuple;

struct Park;

impl Drop for Park {
    fn drop(&mut self) {
        // A panic of ours passes; it is told at the border.
        while !std::thread::panicking() {
            std::thread::park();
        }
    }
}

/// Runs `body` with the interpreter, unless that is on its way out.
pub(crate) fn attached<R>(body: impl FnOnce(Python<'_>) -> R) -> Option<R> {
    let park = Park;
    let result = Python::try_attach(body);
    std::mem::forget(park);
    result
}

/// Runs `body` without the interpreter. For threads of Python's, which daemons may be.
pub(crate) fn detached<R: Ungil>(py: Python<'_>, body: impl FnOnce() -> R + Ungil) -> R {
    let park = Park;
    let result = py.detach(body);
    std::mem::forget(park);
    result
}

/// Calls what may run Python code. Nothing between here and the interpreter owns an object.
pub(crate) fn call0<'py>(callable: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let park = Park;
    let result = callable.call0();
    std::mem::forget(park);
    result
}

/// Calls `callable` with `arguments`.
pub(crate) fn call<'py>(callable: &Bound<'py, PyAny>, arguments: &[Bound<'py, PyAny>]) -> PyResult<()> {
    let py = callable.py();
    let parts: Vec<_> = std::iter::once(callable).chain(arguments).collect();
    let bound = py.import("functools")?.getattr("partial")?.call1(PyTuple::new(py, parts)?)?;
    call0(&bound).map(drop)
}

/// Calls `callable` with `arguments`; what it raises is told to `sys.unraisablehook`.
pub(crate) fn tell<'py>(callable: &Bound<'py, PyAny>, arguments: &[Bound<'py, PyAny>]) {
    if let Err(failed) = call(callable, arguments) {
        failed.write_unraisable(callable.py(), Some(callable));
    }
}
