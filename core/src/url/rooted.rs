//! Relative paths, made absolute in the text of a URL.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::query::decode;

/// What the path of a working directory may have as it is.
const PATH: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'.').remove(b'_').remove(b'-').remove(b'~');

/// The URL `text` with its relative paths, also those of PEM files, counted from the working directory of this moment: whoever
/// opens it later, or elsewhere, opens the same. As it is if there are none, or the directory cannot be told in a URL.
#[must_use]
pub fn rooted(text: &str) -> String {
    try_root(text).unwrap_or_else(|| text.to_owned())
}

fn try_root(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    if matches!(scheme, "mpm" | "file") {
        let path = rest.strip_prefix("./")?;
        return Some(format!("{scheme}:{}{path}", here()?));
    }
    let (body, query) = rest.split_once('?').filter(|_| scheme.starts_with("rpm+"))?;
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) if is_relative(key, value) => Some(format!("{key}={}{value}", here()?)),
        _ => Some(pair.to_owned()),
    };
    let query: Vec<String> = query.split('&').map(pair).collect::<Option<_>>()?;
    Some(format!("{scheme}:{body}?{}", query.join("&")))
}

/// Whether this pair of a query names a PEM file by a relative path.
fn is_relative(key: &str, value: &str) -> bool {
    let is_file = decode(key, "query").is_ok_and(|key| matches!(key.as_str(), "ca" | "crt" | "key"));
    is_file && decode(value, "query").is_ok_and(|path| !path.is_empty() && !path.starts_with('/'))
}

/// The working directory, as a URL has it, with a `/` at its end.
fn here() -> Option<String> {
    let here = std::env::current_dir().ok()?;
    Some(format!("{}/", utf8_percent_encode(here.to_str()?.trim_end_matches('/'), PATH)))
}
