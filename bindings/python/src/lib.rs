//! The Python extension module: Python in, core out.
//!
//! What waits leaves the interpreter first. What cannot wait does not: an uncontended acquire of a thread's or a
//! process's lock is shorter than leaving and coming back.

mod argument;
mod error;
mod event;
mod guest;
mod hold;
mod mutex;
mod status;

use std::sync::OnceLock;

use pyo3::exceptions::PyImportError;
use pyo3::prelude::*;

/// Native part of `ipcmutex`; import that.
#[pymodule(gil_used = false)]
mod _ipcmutex {
    use super::*;

    #[pymodule_export]
    use super::event::{EventLoop, Wait, Watched, offload};
    #[pymodule_export]
    use super::hold::Hold;
    #[pymodule_export]
    use super::mutex::{Mutex, describe};
    #[pymodule_export]
    use super::status::Status;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        only_interpreter(module.py())?;
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        error::export(module)
    }
}

/// Classes and callbacks belong to the interpreter that imported the module first. To another one of the same process
/// they would be foreign objects, so it is refused; pyo3 refuses it only where the module is initialized in one phase.
fn only_interpreter(py: Python<'_>) -> PyResult<()> {
    static FIRST: OnceLock<usize> = OnceLock::new();
    let own = py.import("sys")?.as_ptr() as usize; // each has its own, for as long as it lives
    if *FIRST.get_or_init(|| own) == own {
        return Ok(());
    }
    Err(PyImportError::new_err("ipcmutex works in one interpreter of a process, and another one has it already"))
}
