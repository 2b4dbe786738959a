//! All the locks that can be seen in one place: what `ipcmutex ps` shows.

use crate::backend::contract::Status;
use crate::error::{Error, ErrorKind, Result};
use crate::url::{LockUrl, Target};

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
    #[cfg(target_os = "linux")]
    return Ok(crate::backend::mpm::list()?.into_iter().map(|(url, status)| Listed { url, status }).collect());
    #[cfg(not(target_os = "linux"))]
    Err(crate::backend::open::without_files("ps"))
}

/// Whether the lock that `url` names has been made yet: a lock file comes into being when a mutex is opened, and who
/// only looks should not make one. Until then nobody holds it. Locks that are no files need no making.
///
/// # Errors
/// UNSAFE or IO if the default directory cannot be trusted or read.
pub fn is_made(url: &LockUrl) -> Result<bool> {
    match url.target() {
        #[cfg(target_os = "linux")]
        Target::Mpm(target) => {
            let unmade =
                crate::backend::mpm::is_unmade(target).map_err(|error| error.with_url(url.redacted().clone()))?;
            Ok(!unmade)
        }
        _ => Ok(true),
    }
}

/// The locks of the server that `url` names, under its `prefix`; the URL's id does not matter.
///
/// # Errors
/// As [`crate::Mutex::open`]; INVALID if it names no server.
pub fn on_server(url: &LockUrl) -> Result<Vec<Listed>> {
    let Target::Redis(target) = url.target() else {
        return Err(Error::new(ErrorKind::Invalid, "ps", "only the locks of a Redis server can be listed by URL")
            .with_url(url.redacted().clone()));
    };
    #[cfg(feature = "redis")]
    {
        let found = crate::backend::redis::list(target).map_err(|error| error.with_url(url.redacted().clone()))?;
        Ok(found.into_iter().map(|(id, status)| Listed { url: sibling(url, &id), status }).collect())
    }
    #[cfg(not(feature = "redis"))]
    {
        let _ = target;
        Err(crate::backend::open::without_redis("ps"))
    }
}

/// `url` as it is shown, with another id.
#[cfg(feature = "redis")]
fn sibling(url: &LockUrl, id: &str) -> String {
    use crate::url::Topology;
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

    const ID: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-').remove(b'/').remove(b':');
    let id = utf8_percent_encode(id, ID).to_string();
    let (body, query) = url.redacted().split_once('?').unwrap_or((url.redacted(), ""));
    let mut query: Vec<String> = query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.starts_with("id=") && !pair.starts_with("redis_key="))
        .map(str::to_owned)
        .collect();
    let authority = body.find("//").map_or(0, |slashes| slashes + 2);
    let (server, path) = match body[authority..].find('/') {
        Some(slash) => body.split_at(authority + slash),
        None => (body, ""),
    };
    let body = match url.target() {
        Target::Redis(target) if matches!(target.topology, Topology::Unix(_)) => {
            query.push(format!("id={id}"));
            body.to_owned()
        }
        Target::Redis(target) if matches!(target.topology, Topology::Sentinel { .. }) => {
            let master = path.trim_start_matches('/').split('/').next().unwrap_or("");
            format!("{server}/{master}/{id}")
        }
        _ => format!("{server}/{id}"),
    };
    if query.is_empty() { body } else { format!("{body}?{}", query.join("&")) }
}

#[cfg(all(test, feature = "redis"))]
mod tests {
    use super::*;

    #[test]
    fn a_listed_lock_has_a_url_that_opens_it() {
        for (given, shown) in [
            ("rpm+redis://u:s@h:1/x?db=2", "rpm+redis://u:***@h:1/jobs/1?db=2"),
            ("rpm+redis://h", "rpm+redis://h/jobs/1"),
            ("rpm+redis+unix:///r.sock?id=x&ttl=1s", "rpm+redis+unix:///r.sock?ttl=1s&id=jobs/1"),
            ("rpm+redis+sentinel://h/m/x", "rpm+redis+sentinel://h/m/jobs/1"),
        ] {
            let url = LockUrl::parse(given).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(sibling(&url, "jobs/1"), shown);
        }
    }
}
