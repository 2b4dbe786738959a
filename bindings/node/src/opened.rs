//! Open locks, each a number in JavaScript.
//!
//! An object of a native class costs a microsecond for each of its calls and more for being made: its type tag is
//! looked up, its borrows are counted, its finalizer is kept. `index.js` has objects of its own anyway, which tell when
//! they are collected.

use std::cell::RefCell;

use ipcmutex::{Error, ErrorKind, offload};
use napi_derive::napi;
use slab::Slab;

use crate::error::{Result, raise};

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
