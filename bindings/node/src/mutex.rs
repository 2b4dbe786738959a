//! Open locks, each a number in JavaScript.
//!
//! An object of a native class costs a microsecond for each of its calls and more for being made: its type tag is
//! looked up, its borrows are counted, its finalizer is kept. `index.js` has objects of its own anyway, which tell when
//! they are collected.

use std::cell::RefCell;

use ipcmutex::url::{LockUrl, Target};
use ipcmutex::{Error, ErrorKind, Timeout, Waiting, offload};
use napi::bindgen_prelude::Function;
use napi_derive::napi;
use slab::Slab;

use crate::error::{Result, raise};
use crate::hold::{Taken, taken};
use crate::status::Status;

thread_local! {
    /// The open locks of this thread's environment.
    static OPEN: RefCell<Slab<ipcmutex::Mutex>> = const { RefCell::new(Slab::new()) };
}

/// Uses an open lock. `work` calls nothing of JavaScript.
pub fn with<T>(mutex: u32, work: impl FnOnce(&ipcmutex::Mutex) -> Result<T>) -> Result<T> {
    OPEN.with_borrow(|open| match open.get(mutex as usize) {
        Some(mutex) => work(mutex),
        None => Err(raise(Error::new(ErrorKind::Closed, "use", "still not opened: the mutex is gone"))),
    })
}

/// An open lock, for other threads and for what calls JavaScript.
pub fn get(mutex: u32) -> Result<ipcmutex::Mutex> {
    with(mutex, |mutex| Ok(mutex.clone()))
}

pub fn keep(mutex: ipcmutex::Mutex) -> u32 {
    OPEN.with_borrow_mut(|open| open.insert(mutex)) as u32
}

/// The environment goes, and its locks with it: their holds are released.
pub fn forget_all() {
    let all = OPEN.take();
    drop(all);
}

/// JavaScript has no object of it any more. Its drop may talk to a server.
#[napi]
pub fn forget(mutex: u32) {
    let gone = OPEN.with_borrow_mut(|open| open.try_remove(mutex as usize));
    if let Some(gone) = gone
        && gone.is_remote()
    {
        offload(move || drop(gone));
    }
}

#[napi(object, object_from_js = false)]
pub struct Described {
    /// The URL, its secret hidden.
    pub shown: String,
    /// Whether it names a server.
    pub remote: bool,
}

/// Checks a URL and opens nothing.
#[napi]
pub fn describe(url: String) -> Result<Described> {
    let url = LockUrl::parse(&url).map_err(raise)?;
    Ok(Described { shown: url.redacted().to_string(), remote: matches!(url.target(), Target::Redis(_)) })
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
