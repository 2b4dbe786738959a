//! An open lock.

use std::sync::Arc;

use ipcmutex::url::{LockUrl, Target};
use ipcmutex::{Timeout, Waiting};
use napi::bindgen_prelude::{Function, Reference};
use napi_derive::napi;

use crate::error::{Result, raise};
use crate::events::{Events, Shared};
use crate::hold::Hold;
use crate::status::Status;

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

/// An open lock. Its methods talk to engines of this host; `Events` has those that may talk to a server.
#[napi]
pub struct Mutex {
    core: Option<ipcmutex::Mutex>,
    shared: Arc<Shared>,
}

impl Mutex {
    pub fn new(core: ipcmutex::Mutex, shared: Arc<Shared>) -> Mutex {
        Mutex { core: Some(core), shared }
    }

    pub fn core(&self) -> Result<&ipcmutex::Mutex> {
        // It is taken out only when the object is finalized.
        self.core.as_ref().ok_or_else(|| {
            raise(ipcmutex::Error::new(ipcmutex::ErrorKind::Closed, "acquire", "still not opened: the mutex is closed"))
        })
    }
}

#[napi]
impl Mutex {
    /// Opens the lock here and now.
    #[napi(factory)]
    pub fn open(url: String, events: Reference<Events>) -> Result<Mutex> {
        let core = open(&url).map_err(raise)?;
        Ok(Mutex::new(core, events.shared.clone()))
    }

    /// A hold, if that is possible now.
    #[napi]
    pub fn try_acquire(&self) -> Result<Option<Hold>> {
        let hold = self.core()?.try_acquire().map_err(raise)?;
        Ok(hold.map(|hold| Hold::new(hold, self.shared.clone())))
    }

    /// Blocks this thread. `tick` is called now and then: it fails when the worker is being terminated.
    #[napi]
    pub fn acquire_sync(&self, timeout: f64, tick: Function<'_, (), ()>) -> Result<Hold> {
        let timeout = Timeout::from_js_ms(timeout).map_err(raise)?;
        let mut go_on = || tick.call(()).is_ok();
        let hold =
            self.core()?.acquire_with(Waiting { timeout, cancel: None, interrupt: Some(&mut go_on) }).map_err(raise)?;
        Ok(Hold::new(hold, self.shared.clone()))
    }

    #[napi]
    pub fn release(&self) -> Result<()> {
        self.core()?.release().map_err(raise)
    }

    #[napi]
    pub fn close(&self) -> Result<()> {
        self.core()?.close().map_err(raise)
    }

    #[napi]
    pub fn status(&self) -> Result<Status> {
        self.core()?.status().map(Status::from).map_err(raise)
    }

    #[napi]
    pub fn break_lock(&self) -> Result<bool> {
        self.core()?.break_lock().map_err(raise)
    }
}

impl Drop for Mutex {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            self.shared.part_with(core);
        }
    }
}
