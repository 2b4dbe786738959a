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

use pyo3::prelude::*;

/// Native part of `ipcmutex`; import that.
#[pymodule(gil_used = false)]
mod _ipcmutex {
    use super::*;

    #[pymodule_export]
    use super::event::{Wait, offload};
    #[pymodule_export]
    use super::hold::Hold;
    #[pymodule_export]
    use super::mutex::{Mutex, describe};
    #[pymodule_export]
    use super::status::Status;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        error::export(module)
    }
}
