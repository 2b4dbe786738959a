//! From a parsed URL to an open engine: adding one adds a line here.

use std::sync::Arc;

use crate::backend::contract::Backend;
use crate::error::Result;
use crate::url::{LockUrl, Target};

pub(crate) fn open(url: &LockUrl) -> Result<Arc<dyn Backend>> {
    match url.target() {
        Target::Spm { id } => super::spm::open(id, url),
        Target::Mpm(file) => super::mpm::open(file, url),
        Target::Redis(_) => Err(crate::error::Error::new(crate::error::ErrorKind::Unsupported, "open", "not built in")),
    }
}
