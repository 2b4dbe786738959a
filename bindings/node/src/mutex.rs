//! What is asked of an open lock, and of the URL of one.

use ipcmutex::url::{LockUrl, rooted};
use ipcmutex::{Timeout, Waiting};
use napi::bindgen_prelude::Function;
use napi_derive::napi;

use crate::error::{Result, raise};
use crate::hold::{Taken, taken};
use crate::opened::{get, keep, with};
use crate::status::Status;

#[napi(object, object_from_js = false)]
pub struct Described {
    /// The URL, its paths no longer relative: it may be opened after a `chdir`.
    pub url: String,
    /// The same, its secret hidden.
    pub shown: String,
    /// Whether it names a server.
    pub remote: bool,
}

/// Checks a URL and opens nothing.
#[napi]
pub fn describe(url: String) -> Result<Described> {
    let url = rooted(&url);
    let parsed = LockUrl::parse(&url).map_err(raise)?;
    let (shown, remote) = (parsed.redacted().to_string(), parsed.is_remote());
    Ok(Described { url, shown, remote })
}

/// Opens a lock, wherever it is.
pub fn open(url: &str) -> ipcmutex::Result<ipcmutex::Mutex> {
    ipcmutex::logging::from_environment();
    ipcmutex::Mutex::open(url)
}

/// Checks a timeout.
#[napi]
pub fn check_timeout(ms: f64) -> Result<()> {
    Timeout::from_js_ms(ms).map(drop).map_err(raise)
}

/// Opens the lock here and now.
#[napi]
pub fn open_sync(url: String) -> Result<u32> {
    open(&url).map(keep).map_err(raise)
}

/// A hold, if that is possible now.
#[napi]
pub fn try_acquire(mutex: u32) -> Result<Option<Taken>> {
    Ok(with(mutex, |mutex| mutex.try_acquire().map_err(raise))?.map(taken))
}

/// Blocks this thread. `tick` is called now and then: it fails when the worker is being terminated.
#[napi]
pub fn acquire_sync(mutex: u32, timeout: f64, tick: Function<'_, (), ()>) -> Result<Taken> {
    let timeout = Timeout::from_js_ms(timeout).map_err(raise)?;
    let mut go_on = || tick.call(()).is_ok();
    let hold = get(mutex)?.acquire_with(Waiting { timeout, cancel: None, interrupt: Some(&mut go_on) });
    hold.map(taken).map_err(raise)
}

#[napi]
pub fn release(mutex: u32) -> Result<()> {
    with(mutex, |mutex| mutex.release().map_err(raise))
}

/// Whether a hold of it is this environment's.
#[napi]
pub fn is_held(mutex: u32) -> Result<bool> {
    with(mutex, |mutex| Ok(mutex.is_held_here()))
}

#[napi]
pub fn close(mutex: u32) -> Result<()> {
    get(mutex)?.close().map_err(raise)
}

#[napi]
pub fn status(mutex: u32) -> Result<Status> {
    with(mutex, |mutex| mutex.status().map(Status::from).map_err(raise))
}

#[napi]
pub fn break_lock(mutex: u32) -> Result<bool> {
    get(mutex)?.break_lock().map_err(raise)
}
