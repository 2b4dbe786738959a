//! All the locks that can be seen in one place: what `ipcmutex ps` shows.

use crate::backend::contract::Status;
use crate::error::{Error, ErrorKind, Result};
use crate::url::LockUrl;

/// One lock that was found.
#[derive(Clone, Debug)]
pub struct Listed {
    /// Its URL, the secret hidden.
    pub url: String,
    /// Who holds it, and how many wait; or why that cannot be told.
    pub status: Result<Status>,
}

/// The `mpm:<id>` locks of this user on this host.
///
/// # Errors
/// UNSAFE or IO if the default directory cannot be read; no locks at all is an empty list.
pub fn local() -> Result<Vec<Listed>> {
    crate::backend::mpm::list()
}

/// The locks of the server that `url` names, under its `prefix`; the URL's id does not matter.
///
/// # Errors
/// As [`crate::Mutex::open`].
pub fn on_server(url: &LockUrl) -> Result<Vec<Listed>> {
    let _ = url;
    Err(Error::new(ErrorKind::Unsupported, "ps", "not built in"))
}
