//! From LOCK on the command line to a URL.

use std::ffi::OsStr;
use std::time::Duration;

use ipcmutex::url::LockUrl;
use ipcmutex::{Error, ErrorKind, Result};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What a path may have as it is; everything else is encoded, so that paths are taken literally.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-').remove(b'~');

/// LOCK as a URL, with `--ttl` if that was given.
///
/// # Errors
/// INVALID.
pub(crate) fn parse(lock: &OsStr, ttl: Option<Duration>) -> Result<LockUrl> {
    let text = lock.to_str().ok_or_else(|| {
        // It may have a secret in it, so it is not repeated.
        Error::new(ErrorKind::Invalid, "parse", "LOCK is not UTF-8")
    })?;
    let mut url = url(text);
    if let Some(ttl) = ttl {
        url.push_str(&format!("{}ttl={}s", if url.contains('?') { '&' } else { '?' }, ttl.as_secs_f64()));
    }
    LockUrl::parse(&url)
}

/// A URL begins with a scheme; else a path has a `/`; else it is a name.
fn url(lock: &str) -> String {
    let scheme = lock.split_once(':').map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))) {
        return lock.to_owned();
    }
    // In a URL a path begins with `/` or `./`.
    let is_told_apart = !lock.contains('/') || lock.starts_with('/') || lock.starts_with("./");
    format!("mpm:{}{}", if is_told_apart { "" } else { "./" }, utf8_percent_encode(lock, PATH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_paths_and_urls() {
        for (lock, expected) in [
            ("jobs", "mpm:jobs"),
            ("spm:a?label=x", "spm:a?label=x"),
            ("rpm+redis://h/x", "rpm+redis://h/x"),
            ("nonsense:x", "nonsense:x"),
            ("/var/x", "mpm:/var/x"),
            ("./x", "mpm:./x"),
            ("../x", "mpm:./../x"),
            ("dir/x", "mpm:./dir/x"),
            (".hidden/x", "mpm:./.hidden/x"),
            ("./a b?c#d%41:e", "mpm:./a%20b%3Fc%23d%2541%3Ae"),
            ("/ä", "mpm:/%C3%A4"),
            ("a%41", "mpm:a%2541"),
            ("a b:c", "mpm:a%20b%3Ac"),
        ] {
            assert_eq!(url(lock), expected, "{lock}");
        }
    }
}
