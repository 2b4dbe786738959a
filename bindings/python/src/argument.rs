//! Python's texts and numbers to core's.

use std::time::Duration;

use ipcmutex::{Error, ErrorKind, Timeout};
use pyo3::exceptions::{PyOverflowError, PyTypeError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyString;

use crate::error::{OrRaise, overflow, raise};

static TIMEOUT_MAX: PyOnceLock<f64> = PyOnceLock::new();

fn timeout_max(py: Python<'_>) -> PyResult<f64> {
    TIMEOUT_MAX.get_or_try_init(py, || py.import("threading")?.getattr("TIMEOUT_MAX")?.extract()).copied()
}

/// A URL. Text that UTF-8 cannot write, a lone surrogate, is INVALID as in every language.
pub(crate) fn url<'a>(url: &'a Bound<'_, PyString>) -> PyResult<&'a str> {
    url.to_str().map_err(|cause| {
        let error = Error::new(ErrorKind::Invalid, "open", "the URL is not valid UTF-8");
        let raised = raise(url.py(), &error);
        raised.set_cause(url.py(), Some(cause));
        raised
    })
}

/// `blocking` as `threading.Lock.acquire` takes it, but of the numbers 0 and 1 alone: another one is a timeout in its place, and
/// to wait for ever is not what was meant.
pub(crate) fn blocking(value: &Bound<'_, PyAny>) -> PyResult<bool> {
    if let Ok(blocking) = value.extract() {
        return Ok(blocking);
    }
    match value.extract::<i64>() {
        Ok(0) => return Ok(false),
        Ok(1) => return Ok(true),
        _ => {}
    }
    let meant = value.extract::<f64>().map_or("SECONDS".to_owned(), |seconds| seconds.to_string());
    let text = format!("acquire: blocking is True or False; to wait for a time, write timeout={meant}");
    Err(PyTypeError::new_err(text))
}

/// A number; one that is too large for a float is infinite.
fn seconds(value: &Bound<'_, PyAny>) -> PyResult<f64> {
    match value.extract::<f64>() {
        Err(error) if error.is_instance_of::<PyOverflowError>(value.py()) => {
            Ok(if value.lt(0)? { f64::NEG_INFINITY } else { f64::INFINITY })
        }
        seconds => Ok(seconds?),
    }
}

/// `blocking` and `timeout` as `threading.Lock.acquire` takes them; `None` and -1 are for ever.
pub(crate) fn timeout(py: Python<'_>, blocking: bool, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Timeout> {
    let forever = if blocking { Timeout::FOREVER } else { Timeout::TRY };
    let Some(timeout) = timeout else { return Ok(forever) };
    let seconds = seconds(timeout)?;
    if seconds == -1.0 {
        return Ok(forever);
    }
    if !blocking {
        let error = Error::new(ErrorKind::Invalid, "acquire", "a timeout for an acquire that does not block")
            .with_help("give one of blocking=False and timeout=");
        return Err(raise(py, &error));
    }
    let max = timeout_max(py)?;
    if seconds > max {
        return Err(overflow(py, format!("acquire: a timeout of {seconds} seconds; threading.TIMEOUT_MAX is {max}")));
    }
    Timeout::from_secs(seconds).or_raise(py)
}

/// A lease in seconds.
pub(crate) fn ttl(py: Python<'_>, ttl: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Duration>> {
    let Some(ttl) = ttl else { return Ok(None) };
    let seconds = seconds(ttl)?;
    match Duration::try_from_secs_f64(seconds) {
        Ok(ttl) => Ok(Some(ttl)),
        Err(_) => {
            Err(raise(py, &Error::new(ErrorKind::Invalid, "extend", format!("a lease of {seconds} seconds is none"))))
        }
    }
}
