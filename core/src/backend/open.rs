//! From a parsed URL to an open engine: adding one adds a line here.

use std::sync::Arc;

use crate::backend::contract::Backend;
use crate::error::Result;
use crate::url::{LockUrl, Target};

pub(crate) fn open(url: &LockUrl) -> Result<Arc<dyn Backend>> {
    match url.target() {
        Target::Spm { id } => super::spm::open(id, url),
        #[cfg(target_os = "linux")]
        Target::Mpm(file) => super::mpm::open(file, url),
        #[cfg(not(target_os = "linux"))]
        Target::Mpm(_) => Err(without_files("open")),
        #[cfg(feature = "redis")]
        Target::Redis(target) => super::redis::open(target, url),
        #[cfg(not(feature = "redis"))]
        Target::Redis(_) => Err(without_redis("open")),
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn without_files(operation: &'static str) -> crate::error::Error {
    crate::error::Error::new(
        crate::error::ErrorKind::Unsupported,
        operation,
        "the engine for lock files is for Linux alone",
    )
    .with_help("use rpm+redis:, also for processes of one host")
}

#[cfg(not(feature = "redis"))]
pub(crate) fn without_redis(operation: &'static str) -> crate::error::Error {
    crate::error::Error::new(crate::error::ErrorKind::Unsupported, operation, "this build has no engine for Redis")
        .with_help("build it with the feature `redis`")
}
