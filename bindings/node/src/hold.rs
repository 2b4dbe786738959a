//! One acquisition.

use std::sync::Arc;

use napi::bindgen_prelude::BigInt;
use napi_derive::napi;

use crate::error::{Result, raise};
use crate::events::Shared;

/// One acquisition. Its finalizer releases.
#[napi]
pub struct Hold {
    core: Option<Arc<ipcmutex::Hold>>,
    shared: Arc<Shared>,
}

impl Hold {
    pub fn new(core: ipcmutex::Hold, shared: Arc<Shared>) -> Hold {
        Hold { core: Some(Arc::new(core)), shared }
    }

    pub fn core(&self) -> Result<&Arc<ipcmutex::Hold>> {
        // It is taken out only when the object is finalized.
        self.core.as_ref().ok_or_else(|| {
            raise(ipcmutex::Error::new(ipcmutex::ErrorKind::NotOwner, "release", "the hold has ended already"))
        })
    }
}

#[napi]
impl Hold {
    #[napi(getter)]
    pub fn token(&self) -> Result<BigInt> {
        Ok(self.core()?.token().into())
    }

    #[napi(getter)]
    pub fn abandoned(&self) -> Result<bool> {
        Ok(self.core()?.abandoned())
    }

    #[napi(getter)]
    pub fn valid_ms(&self) -> Result<Option<f64>> {
        Ok(self.core()?.valid_for().map(|left| left.as_millis() as f64))
    }

    #[napi(getter)]
    pub fn is_live(&self) -> Result<bool> {
        Ok(self.core()?.is_live())
    }

    #[napi]
    pub fn check(&self) -> Result<()> {
        self.core()?.check().map_err(raise)
    }

    /// Ends it here and now: for engines of this host, and at exit.
    #[napi]
    pub fn release(&self) -> Result<()> {
        self.core()?.end().map_err(raise)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some(core) = self.core.take() {
            self.shared.part_with(core);
        }
    }
}
