//! The query of a URL, and how the values in it are read.

use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::invalid;
use crate::error::Result;

/// What each engine knows.
pub(super) const COMMON_KEYS: &[&str] = &["fair", "label"];
/// What the engine with a server knows besides.
pub(super) const REDIS_KEYS: &[&str] = &[
    "ttl",
    "renew",
    "db",
    "prefix",
    "redis_key",
    "replicas",
    "connect_timeout",
    "policy",
    "protocol",
    "tls",
    "ca",
    "crt",
    "key",
    "id",
    "sentinel_user",
    SENTINEL_SECRET,
];
/// The one secret that stands in a query.
pub(super) const SENTINEL_SECRET: &str = "sentinel_password";

pub(super) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Result<Query> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key, "query")?;
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(invalid(format!("`{}` is given twice", shown(&key))));
            }
            pairs.push((key, decode(value, "query")?));
        }
        Ok(Query { pairs })
    }

    pub(super) fn only(&self, engine: &[&str]) -> Result<()> {
        for (at, (key, _)) in self.pairs.iter().enumerate() {
            if !COMMON_KEYS.contains(&key.as_str()) && !engine.contains(&key.as_str()) {
                if self.pairs[..at].iter().any(|(before, _)| before == SENTINEL_SECRET) {
                    // It may be the end of the secret.
                    return Err(invalid(format!("there is an unknown query key behind `{SENTINEL_SECRET}`"))
                        .with_help("in a secret write %26 for `&`"));
                }
                let known: Vec<&str> = COMMON_KEYS.iter().chain(engine).copied().collect();
                return Err(invalid(format!("unknown query key `{}`", shown(key)))
                    .with_help(format!("known for this scheme: {}", known.join(", "))));
            }
        }
        Ok(())
    }

    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key` through `read`, which answers `None` to what it cannot read; `form` says what is possible.
    pub(super) fn read<T>(&self, key: &str, form: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => {
                Err(invalid(format!("`{key}={}` is not possible", shown(value))).with_help(format!("possible: {form}")))
            }
        }
    }
}

pub(super) fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "on" | "true" => Some(true),
        "0" | "off" | "false" => Some(false),
        _ => None,
    }
}

/// `10s`, `500ms`, `2m`, `1h`; fractions are possible.
pub(super) fn duration(value: &str) -> Option<Duration> {
    let (number, unit) = value.split_at(value.find(|c: char| c.is_ascii_alphabetic())?);
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    if number.is_empty() || !number.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return None;
    }
    Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()
}

pub(super) fn decode(part: &str, what: &str) -> Result<String> {
    let bad = || invalid(format!("the {what} has a `%` that is no percent-encoding of UTF-8"));
    let bytes = part.as_bytes();
    for (at, _) in part.match_indices('%') {
        if !bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(bad());
        }
    }
    let text = percent_decode_str(part).decode_utf8().map_err(|_| bad())?;
    if text.contains('\0') {
        return Err(invalid(format!("the {what} contains a NUL")));
    }
    Ok(text.into_owned())
}

pub(super) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_default).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}
