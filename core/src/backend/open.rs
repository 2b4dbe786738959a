//! From a parsed URL to an open engine: adding one adds a line here, and one in `crate::list` if its locks can be listed.

use std::path::PathBuf;
use std::sync::Arc;

use crate::backend::contract::Backend;
use crate::error::Result;
use crate::url::{LockUrl, Target};

/// What a mutex was opened in. A forked child, in which it opens anew, may be of another user by then and have another
/// environment; it means the same lock.
#[derive(Default)]
pub(crate) struct Origin {
    /// The default directory, and the user for whom it is that; only of a lock file that has a name and no path.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only the engine for lock files asks"))]
    pub(crate) folder: Option<(PathBuf, u32)>,
}

impl Origin {
    pub(crate) fn of(url: &LockUrl) -> Result<Origin> {
        match url.target() {
            #[cfg(target_os = "linux")]
            Target::Mpm(file) => super::mpm::origin(file),
            _ => Ok(Origin::default()),
        }
    }
}

pub(crate) fn open(url: &LockUrl, origin: &Origin) -> Result<Arc<dyn Backend>> {
    #[cfg(not(target_os = "linux"))]
    let _ = origin;
    match url.target() {
        Target::Spm { id } => super::spm::open(id, url),
        #[cfg(target_os = "linux")]
        Target::Mpm(file) => super::mpm::open(file, url, origin),
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
