//! What of a URL may be shown, on any text: also a bad URL is shown safely.

use std::fmt;

use percent_encoding::percent_decode_str;

use super::query::{COMMON_KEYS, REDIS_KEYS, SENTINEL_SECRET};
use crate::text::printable;

/// A password. It never shows itself.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
    pub(super) fn new(text: String) -> Secret {
        Secret(text)
    }

    /// The text itself, for the server alone.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A URL that is wrong anyway, and in which a secret may have been torn apart by a `/`, `?` or `#` of its own: all up to the
/// last `@` is hidden.
pub(super) fn redact_torn(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (end, at) = (rest.find(['/', '?', '#'])?, rest.rfind('@')?);
    let has_secret = !["spm", "mpm", "file"].contains(&scheme);
    // A secret in the query may go on behind the `@`.
    let shown = if scheme == "rpm+redis+sentinel" { "" } else { &rest[at + 1..] };
    (has_secret && end < at).then(|| redact(&format!("{scheme}://:@{shown}")))
}

/// Hides the secret in it, escapes what a terminal would obey, and cuts what is too long to show. Works on any text, so that also a bad
/// URL is shown safely.
pub fn redact(text: &str) -> String {
    let mut shown = hide_before(text.find(['?', '#']).unwrap_or(text.len()), text);
    if let Some((end, _)) = shown.char_indices().find(|(at, _)| *at > 256) {
        shown.truncate(end);
        shown.push('…');
    }
    shown
}

/// Hides the secret of a good URL, and changes nothing else: whoever is shown it may open it. Its path may be long, and have an `@`.
pub(super) fn hide(text: &str) -> String {
    let end = match text.split_once(':') {
        Some(("spm" | "mpm" | "file", _)) => 0,
        Some(("rpm+redis+unix", rest)) => {
            let authority = rest.strip_prefix("//").unwrap_or(rest);
            text.len() - authority.len() + authority.find('/').unwrap_or(0)
        }
        // The name that Sentinels know a master by may have one, too, but so may a secret with a `/` that was not written %2F.
        _ => text.find('?').unwrap_or(text.len()),
    };
    hide_before(end, text)
}

/// Hides what stands between `//` (or a first `:`) and the last `@` before `end`, and what is secret in the query; escapes what a
/// terminal would obey.
fn hide_before(end: usize, text: &str) -> String {
    let hidden = match (text[..end].find("//"), text[..end].rfind('@')) {
        (Some(slashes), Some(at)) if at >= slashes + 2 => {
            let credentials = &text[slashes + 2..at];
            let user = credentials.split_once(':').map_or("", |(user, _)| user);
            format!("{}{}{}***{}", &text[..slashes + 2], user, if user.is_empty() { "" } else { ":" }, &text[at..])
        }
        // An authority without slashes, or an @ in the query: a slip of the pen must not show a password either.
        (None, Some(at)) => format!("{}:***{}", text[..at].split(':').next().unwrap_or(""), &text[at..]),
        _ => text.to_owned(),
    };
    printable(&redact_query(hidden))
}

/// Hides the secret in the query: up to the next key that is known, for an `&` in it tears it apart.
fn redact_query(text: String) -> String {
    let Some((body, query)) = text.split_once('?') else { return text };
    let key = |pair: &str| percent_decode_str(pair.split('=').next().unwrap_or("")).decode_utf8_lossy().into_owned();
    if !query.split('&').any(|pair| key(pair) == SENTINEL_SECRET) {
        return text;
    }
    let mut shown: Vec<&str> = Vec::new();
    let mut secret = false;
    for pair in query.split('&') {
        let key = key(pair);
        let known = COMMON_KEYS.contains(&key.as_str()) || REDIS_KEYS.contains(&key.as_str());
        if key == SENTINEL_SECRET {
            shown.push("sentinel_password=***");
            secret = true;
        } else if !secret || known {
            shown.push(pair);
            secret = false;
        }
    }
    format!("{body}?{}", shown.join("&"))
}
