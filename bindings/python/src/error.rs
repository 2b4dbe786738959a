//! The exception classes, made from core's table of kinds.

use ipcmutex::{Error, ErrorKind};
use pyo3::exceptions::{
    PyConnectionError, PyException, PyOverflowError, PyPermissionError, PyRuntimeError, PyTimeoutError, PyValueError,
};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

struct Classes {
    /// By `ErrorKind as usize - 1`.
    by_code: Vec<Py<PyType>>,
    base: Py<PyType>,
    overflow: Py<PyType>,
}

static CLASSES: PyOnceLock<Classes> = PyOnceLock::new();

impl Classes {
    fn make(py: Python<'_>) -> PyResult<Classes> {
        let base = class(py, "IpcMutexError", "Any failure of ipcmutex.", 0, &[py.get_type::<PyException>()])?;
        let mut by_code: Vec<Bound<'_, PyType>> = Vec::new();
        for kind in ErrorKind::ALL {
            // Two kinds share a class where Python users cannot meet the first of them.
            let known = ErrorKind::ALL[..by_code.len()].iter().position(|k| k.python_class() == kind.python_class());
            let made = match known {
                Some(at) => by_code[at].clone(),
                None => {
                    let mut bases = vec![base.clone()];
                    bases.extend(builtin(py, *kind));
                    class(py, kind.python_class(), kind.text(), *kind as i32, &bases)?
                }
            };
            made.setattr("code", *kind as i32)?;
            by_code.push(made);
        }
        let invalid = by_code[ErrorKind::Invalid as usize - 1].clone();
        let overflow = class(
            py,
            "TimeoutOverflow",
            "A timeout beyond threading.TIMEOUT_MAX.",
            ErrorKind::Invalid as i32,
            &[invalid, py.get_type::<PyOverflowError>()],
        )?;
        Ok(Classes {
            by_code: by_code.into_iter().map(Bound::unbind).collect(),
            base: base.unbind(),
            overflow: overflow.unbind(),
        })
    }

    fn get(py: Python<'_>) -> PyResult<&Classes> {
        CLASSES.get_or_try_init(py, || Classes::make(py))
    }
}

/// What Python programs catch already.
fn builtin(py: Python<'_>, kind: ErrorKind) -> Option<Bound<'_, PyType>> {
    match kind {
        ErrorKind::Timeout => Some(py.get_type::<PyTimeoutError>()),
        ErrorKind::NotOwner => Some(py.get_type::<PyRuntimeError>()),
        ErrorKind::Invalid => Some(py.get_type::<PyValueError>()),
        ErrorKind::Permission => Some(py.get_type::<PyPermissionError>()),
        ErrorKind::Unavailable => Some(py.get_type::<PyConnectionError>()),
        _ => None,
    }
}

fn class<'py>(
    py: Python<'py>,
    name: &str,
    doc: &str,
    code: i32,
    bases: &[Bound<'py, PyType>],
) -> PyResult<Bound<'py, PyType>> {
    let body = PyDict::new(py);
    body.set_item("__module__", "ipcmutex")?;
    body.set_item("__doc__", doc)?;
    body.set_item("code", code)?;
    let class = py.get_type::<PyType>().call1((name, PyTuple::new(py, bases)?, body))?;
    Ok(class.cast_into::<PyType>()?)
}

/// Puts the classes into the module.
pub(crate) fn export(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    let classes = Classes::get(py)?;
    module.add("IpcMutexError", classes.base.bind(py))?;
    module.add("TimeoutOverflow", classes.overflow.bind(py))?;
    for kind in ErrorKind::ALL {
        module.add(kind.python_class(), classes.by_code[*kind as usize - 1].bind(py))?;
    }
    Ok(())
}

/// The exception for `error`.
#[cold]
pub(crate) fn raise(py: Python<'_>, error: &Error) -> PyErr {
    match Classes::get(py) {
        Ok(classes) => {
            let class = classes.by_code[error.kind() as usize - 1].bind(py);
            PyErr::from_type(class.clone(), error.to_string())
        }
        Err(failed) => failed,
    }
}

/// A timeout that is too long to be one.
#[cold]
pub(crate) fn overflow(py: Python<'_>, text: String) -> PyErr {
    match Classes::get(py) {
        Ok(classes) => PyErr::from_type(classes.overflow.bind(py).clone(), text),
        Err(failed) => failed,
    }
}

/// `raise` for results.
pub(crate) trait OrRaise<T> {
    fn or_raise(self, py: Python<'_>) -> PyResult<T>;
}

impl<T> OrRaise<T> for ipcmutex::Result<T> {
    #[inline]
    fn or_raise(self, py: Python<'_>) -> PyResult<T> {
        self.map_err(|error| raise(py, &error))
    }
}
