//! URL text to a plain value. Nothing is opened, read or looked up here.
//!
//! The grammar is RFC 3986's with two liberties that a general URL crate refuses or rewrites: several hosts
//! in one authority (`h1:26379,h2`), and paths that are kept to the byte (`mpm:/a/../b` names what the
//! kernel finds there). So the split is done here; percent-decoding is the `percent-encoding` crate's.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use crate::error::{Error, ErrorKind, Result};

/// The longest URL that is looked at.
pub const MAX_URL_BYTES: usize = 8192;
const MAX_ID_BYTES: usize = 200;

/// The schemes, as error messages list them.
pub const SCHEMES: &[&str] = &[
    "spm",
    "mpm",
    "file",
    "rpm+redis",
    "rpm+rediss",
    "rpm+redis+unix",
    "rpm+redis+sentinel",
    "rpm+redis+cluster",
    "rpm+redlock",
];
const COMMON_KEYS: &[&str] = &["fair", "label"];
const FILE_KEYS: &[&str] = &["mode", "remotefs"];
const REDIS_KEYS: &[&str] = &[
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
/// No lease and no connecting takes longer.
const DAY: Duration = Duration::from_secs(86_400);
/// The one secret that stands in a query.
const SENTINEL_SECRET: &str = "sentinel_password";

/// A parsed lock URL.
#[derive(Clone, Debug)]
pub struct LockUrl {
    target: Target,
    fair: Fairness,
    label: Option<String>,
    redacted: Arc<str>,
}

/// Where the lock lives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// Threads of this process.
    Spm {
        /// The name.
        id: String,
    },
    /// Processes of this host.
    Mpm(FileTarget),
    /// Hosts, through Redis.
    Redis(Box<RedisTarget>),
}

/// A lock file.
#[derive(Clone, Debug, PartialEq)]
pub struct FileTarget {
    /// Which file.
    pub place: FilePlace,
    /// `mode=`: the permissions of a file that is created; `None` is 0600.
    pub mode: Option<u32>,
    /// `remotefs=1`: accept a network file system.
    pub remote_fs: bool,
}

/// How a lock file was named.
#[derive(Clone, Debug, PartialEq)]
pub enum FilePlace {
    /// A name in the default directory.
    Id(String),
    /// A path; a relative one counts from the working directory at open.
    Path(PathBuf),
}

/// A lock in Redis.
#[derive(Clone, Debug, PartialEq)]
pub struct RedisTarget {
    /// What the hosts are.
    pub topology: Topology,
    /// The servers; empty when `$REDIS_URL` is to say, or for a unix socket.
    pub hosts: Vec<(String, u16)>,
    /// TLS.
    pub tls: bool,
    /// The ACL user.
    pub user: Option<String>,
    /// The password.
    pub secret: Option<Secret>,
    /// The Sentinels' own user and password; `None`: if they want a login they get the servers'.
    pub sentinel_login: Option<(Option<String>, Secret)>,
    /// The lock's name; `default` if the URL names none.
    pub id: String,
    /// The lease.
    pub ttl: Duration,
    /// Whether a lease is renewed in the background.
    pub renew: bool,
    /// The database number; `None` is 0, or what `$REDIS_URL` says.
    pub db: Option<i64>,
    /// What stands before the id in the key.
    pub prefix: String,
    /// The exact key, shared with other libraries; wins over id and prefix.
    pub redis_key: Option<String>,
    /// How many replicas must have acknowledged a take.
    pub replicas: u32,
    /// How long to try to connect; `None` is the engine's default.
    pub connect_timeout: Option<Duration>,
    /// Accept a server that may evict keys.
    pub any_policy: bool,
    /// The protocol version asked for; `None` lets the engine choose.
    pub protocol: Option<u8>,
    /// PEM files: the authority to trust, our certificate, its key.
    pub ca: Option<PathBuf>,
    /// Our certificate.
    pub crt: Option<PathBuf>,
    /// The key of our certificate.
    pub key: Option<PathBuf>,
}

/// What the hosts of a Redis URL are.
#[derive(Clone, Debug, PartialEq)]
pub enum Topology {
    /// One server, over TCP.
    Standalone,
    /// One server, over a unix socket.
    Unix(PathBuf),
    /// Sentinels that know the master of this name.
    Sentinel {
        /// The master's name.
        master: String,
    },
    /// Nodes of a cluster.
    Cluster,
    /// Independent servers, of which a majority must agree.
    Redlock,
}

/// Who goes first when a lock comes free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fairness {
    /// First come, first served, but a newcomer may take a free lock in passing for up to a millisecond.
    #[default]
    Eventual,
    /// First come, first served, always.
    Strict,
}

/// A password. It never shows itself.
#[derive(Clone, PartialEq)]
pub struct Secret(String);

impl Secret {
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

impl LockUrl {
    /// Parses `text`.
    ///
    /// # Errors
    /// INVALID with a sentence that says what is wrong and what is possible. It never repeats a secret.
    pub fn parse(text: &str) -> Result<LockUrl> {
        let shown: Arc<str> = redact(text).into();
        Parser { text }.parse(shown.clone()).map_err(|error| match redact_torn(text) {
            // What is wrong may be in the secret, and must not be repeated then.
            Some(torn) => invalid("an `@` stands behind a `/`, `?` or `#`")
                .with_help("in a secret write %2F, %3F and %23 for them; elsewhere %40 for the `@`")
                .with_url(torn),
            None => error.with_url(shown),
        })
    }

    /// Where the lock lives.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Who goes first.
    pub fn fairness(&self) -> Fairness {
        self.fair
    }

    /// The label of this participant, if the URL gives one.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// With this label, unless the URL gives one. What is shown of the URL stays.
    #[must_use]
    pub fn or_label(mut self, label: impl Into<String>) -> LockUrl {
        self.label.get_or_insert_with(|| label.into());
        self
    }

    /// The URL with the secret hidden.
    pub fn redacted(&self) -> &Arc<str> {
        &self.redacted
    }
}

impl fmt::Display for LockUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl std::str::FromStr for LockUrl {
    type Err = Error;
    fn from_str(text: &str) -> Result<LockUrl> {
        LockUrl::parse(text)
    }
}

/// A URL that is wrong anyway, and in which a secret may have been torn apart by a `/`, `?` or `#` of its own: all up to the
/// last `@` is hidden.
fn redact_torn(text: &str) -> Option<String> {
    let (scheme, rest) = text.split_once(':')?;
    let rest = rest.strip_prefix("//").unwrap_or(rest);
    let (end, at) = (rest.find(['/', '?', '#'])?, rest.rfind('@')?);
    let has_secret = !["spm", "mpm", "file"].contains(&scheme);
    // A secret in the query may go on behind the `@`.
    let shown = if scheme == "rpm+redis+sentinel" { "" } else { &rest[at + 1..] };
    (has_secret && end < at).then(|| redact(&format!("{scheme}://:@{shown}")))
}

/// Hides what stands between `//` (or a first `:`) and the last `@` of the authority, escapes what a terminal
/// would obey, and cuts what is too long to show. Works on any text, so that also a bad URL is shown safely.
pub fn redact(text: &str) -> String {
    let end = text.find(['?', '#']).unwrap_or(text.len());
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
    let hidden = redact_query(hidden);
    let mut shown = String::new();
    for c in hidden.chars() {
        if shown.len() > 256 {
            shown.push('…');
            break;
        }
        if c.is_control() { shown.extend(c.escape_default()) } else { shown.push(c) }
    }
    shown
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

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "parse", message)
}

fn decode(part: &str, what: &str) -> Result<String> {
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

struct Parser<'a> {
    text: &'a str,
}

#[derive(Default)]
struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    fn parse(text: Option<&str>) -> Result<Query> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in text.into_iter().flat_map(|text| text.split('&')).filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let key = decode(key, "query")?;
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(invalid(format!("`{}` is given twice", shown(&key))));
            }
            pairs.push((key, decode(value, "query")?));
        }
        Ok(Query { pairs })
    }

    fn only(&self, engine: &[&str]) -> Result<()> {
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

    fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().find(|(known, _)| known == key).map(|(_, value)| value.as_str())
    }

    /// The value of `key` through `read`, which answers `None` to what it cannot read; `form` says what is possible.
    fn read<T>(&self, key: &str, form: &str, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => {
                Err(invalid(format!("`{key}={}` is not possible", shown(value))).with_help(format!("possible: {form}")))
            }
        }
    }
}

fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(60).flat_map(char::escape_default).collect();
    if text.chars().nth(60).is_some() {
        short.push('…');
    }
    short
}

impl Parser<'_> {
    fn parse(&self, redacted: Arc<str>) -> Result<LockUrl> {
        if self.text.is_empty() {
            return Err(invalid("the URL is empty").with_help(format!("known schemes: {}", SCHEMES.join(", "))));
        }
        if self.text.len() > MAX_URL_BYTES {
            return Err(invalid(format!("the URL is {} bytes long; {MAX_URL_BYTES} is the most", self.text.len())));
        }
        if self.text.contains('#') {
            return Err(invalid("a `#` must be written %23"));
        }
        if self.text.contains(|c: char| c.is_control()) {
            return Err(invalid("the URL contains a control character").with_help("write it percent-encoded"));
        }
        let unknown = |name: &str| {
            invalid(format!("unknown scheme `{}`", shown(name)))
                .with_help(format!("known schemes: {}", SCHEMES.join(", ")))
        };
        let (scheme, rest) = self
            .text
            .split_once(':')
            .ok_or_else(|| invalid("there is no scheme").with_help(format!("known schemes: {}", SCHEMES.join(", "))))?;
        let (body, query) = match rest.split_once('?') {
            Some((body, query)) => (body, Some(query)),
            None => (rest, None),
        };
        if !SCHEMES.contains(&scheme) {
            return Err(unknown(scheme));
        }
        let query = Query::parse(query)?;
        let target = match scheme {
            "spm" => {
                query.only(&[])?;
                Target::Spm { id: plain_id(&decode(body, "id")?)? }
            }
            "mpm" | "file" => {
                query.only(FILE_KEYS)?;
                Target::Mpm(file(scheme, body, &query)?)
            }
            _ => {
                query.only(REDIS_KEYS)?;
                Target::Redis(Box::new(redis(scheme, body, &query)?))
            }
        };
        let fair = query
            .read("fair", "strict, eventual", |value| match value {
                "strict" => Some(Fairness::Strict),
                "eventual" => Some(Fairness::Eventual),
                _ => None,
            })?
            .unwrap_or_default();
        let label = query.get("label").map(str::to_owned);
        Ok(LockUrl { target, fair, label, redacted })
    }
}

fn check_id(id: &str, extra: &[char]) -> Result<()> {
    let wrong = if id.is_empty() {
        Some("it is empty".to_owned())
    } else if id.len() > MAX_ID_BYTES {
        Some(format!("it is {} bytes long", id.len()))
    } else if id.contains("..") || id == "." {
        Some("`..` is refused".to_owned())
    } else {
        id.chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') || extra.contains(c)))
            .map(|c| format!("it has a `{}`", c.escape_default()))
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let also = if extra.is_empty() { "" } else { " / :" };
            Err(invalid(format!("bad id: {wrong}"))
                .with_help(format!("an id is 1 to {MAX_ID_BYTES} bytes of A-Z a-z 0-9 . _ -{also} without `..`")))
        }
    }
}

fn plain_id(id: &str) -> Result<String> {
    check_id(id, &[])?;
    Ok(id.to_owned())
}

fn file(scheme: &str, body: &str, query: &Query) -> Result<FileTarget> {
    let path = if scheme == "file" { strip_file_authority(body)? } else { body };
    let place = if path.starts_with('/') || path.starts_with("./") {
        let path = decode(path, "path")?;
        if path.ends_with('/') {
            return Err(invalid("the path ends in `/`").with_help("name the lock file itself"));
        }
        FilePlace::Path(PathBuf::from(path))
    } else if scheme == "file" {
        return Err(invalid("`file:` needs a path").with_help("write file:/path/to/lock, or mpm:<id> for a name"));
    } else {
        FilePlace::Id(plain_id(&decode(path, "id")?)?)
    };
    let mode = query.read("mode", "an octal mode such as 0660, without a right for others", |value| {
        u32::from_str_radix(value, 8).ok().filter(|mode| mode & !0o660 == 0 && mode & 0o600 == 0o600)
    })?;
    let remote_fs = query.read("remotefs", "1, 0", flag)?.unwrap_or(false);
    Ok(FileTarget { place, mode, remote_fs })
}

fn strip_file_authority(body: &str) -> Result<&str> {
    let Some(rest) = body.strip_prefix("//") else { return Ok(body) };
    let path = rest.find('/').map(|at| rest.split_at(at));
    match path {
        Some(("" | "localhost", path)) => Ok(path),
        _ => Err(invalid("`file:` names a file of this host").with_help("write file:/path or file:///path")),
    }
}

fn flag(value: &str) -> Option<bool> {
    match value {
        "1" | "on" | "true" => Some(true),
        "0" | "off" | "false" => Some(false),
        _ => None,
    }
}

/// `10s`, `500ms`, `2m`, `1h`; fractions are possible.
fn duration(value: &str) -> Option<Duration> {
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

fn redis(scheme: &str, body: &str, query: &Query) -> Result<RedisTarget> {
    let rest = body.strip_prefix("//").ok_or_else(|| {
        invalid("the server is missing").with_help(format!("write {scheme}://host:port/<id>, with both slashes"))
    })?;
    let (authority, path) = match rest.find('/') {
        Some(at) => (&rest[..at], &rest[at + 1..]),
        None => (rest, ""),
    };
    let (credentials, hosts) = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, authority),
    };
    let (user, secret) = match credentials {
        None => (None, None),
        Some(credentials) => {
            let (user, secret) = match credentials.split_once(':') {
                Some((user, secret)) => (decode(user, "user")?, decode(secret, "secret")?),
                None => {
                    return Err(invalid("there is no `:` in what stands before the `@`")
                        .with_help("write user:secret@host, or :secret@host for a secret alone"));
                }
            };
            ((!user.is_empty()).then_some(user), (!secret.is_empty()).then_some(Secret(secret)))
        }
    };
    let default_port = if scheme == "rpm+redis+sentinel" { 26379 } else { 6379 };
    let hosts = if hosts.is_empty() {
        Vec::new()
    } else {
        hosts.split(',').map(|host| host_port(host, default_port)).collect::<Result<Vec<_>>>()?
    };
    let mut id = decode(path, "id")?;
    let topology = match scheme {
        "rpm+redis" | "rpm+rediss" => Topology::Standalone,
        "rpm+redis+cluster" => Topology::Cluster,
        "rpm+redlock" => Topology::Redlock,
        "rpm+redis+sentinel" => {
            let (master, name) = path.split_once('/').unwrap_or((path, ""));
            id = decode(name, "id")?;
            let master = decode(master, "master's name")?;
            if master.is_empty() {
                return Err(invalid("the master's name is missing").with_help("write …://host/<master>/<id>"));
            }
            Topology::Sentinel { master }
        }
        _ => {
            if path.is_empty() {
                return Err(invalid("the socket's path is missing")
                    .with_help(format!("write {scheme}:///path/redis.sock?id=<id>")));
            }
            id = String::new();
            Topology::Unix(PathBuf::from(format!("/{}", decode(path, "path")?)))
        }
    };
    match (&topology, hosts.len()) {
        (Topology::Unix(_), 0) | (Topology::Sentinel { .. } | Topology::Cluster | Topology::Redlock, 1..) => {}
        (Topology::Standalone, 0 | 1) => {}
        (Topology::Unix(_), _) => return Err(invalid("a unix socket has no host").with_help("write …+unix:///path")),
        (Topology::Standalone, _) => {
            return Err(invalid("several hosts need a scheme that says what they are")
                .with_help("use rpm+redis+sentinel, rpm+redis+cluster or rpm+redlock"));
        }
        _ => return Err(invalid("the host is missing")),
    }
    // It would vote twice.
    if let (Topology::Redlock, Some((host, port))) = (&topology, named_twice(&hosts)) {
        return Err(invalid(format!("the server `{}:{port}` is named twice", shown(host))));
    }
    if hosts.is_empty() && matches!(topology, Topology::Standalone) && (scheme == "rpm+rediss" || credentials.is_some())
    {
        return Err(invalid("the host is missing").with_help("only rpm+redis:///<id> takes the server from $REDIS_URL"));
    }
    if let Some(named) = query.get("id") {
        if !id.is_empty() {
            return Err(invalid("the id is given twice"));
        }
        id = named.to_owned();
    }
    if id.is_empty() {
        id = "default".to_owned();
    }
    check_id(&id, &['/', ':'])?;
    let sentinel_login = match (query.get("sentinel_user"), query.get(SENTINEL_SECRET)) {
        (None, None) => None,
        _ if !matches!(topology, Topology::Sentinel { .. }) => {
            return Err(invalid("only rpm+redis+sentinel: has Sentinels, and a login of theirs"));
        }
        (user, Some(secret)) if !secret.is_empty() => {
            Some((user.filter(|user| !user.is_empty()).map(str::to_owned), Secret(secret.to_owned())))
        }
        _ => return Err(invalid(format!("`{SENTINEL_SECRET}` is missing"))),
    };
    let ttl_form = "100ms to 24h, as 500ms, 10s, 2m, 1h";
    let ttl = query
        .read("ttl", ttl_form, |value| duration(value).filter(|ttl| (Duration::from_millis(100)..=DAY).contains(ttl)))?
        .unwrap_or(Duration::from_secs(10));
    Ok(RedisTarget {
        topology,
        hosts,
        // ipc-mutex wrote it so.
        tls: query.read("tls", "on, off", flag)?.unwrap_or(false) || scheme == "rpm+rediss",
        user,
        secret,
        sentinel_login,
        id,
        ttl,
        renew: query.read("renew", "on, off", flag)?.unwrap_or(true),
        db: query.read("db", "a database number", |value| value.parse().ok().filter(|db| (0..=65535).contains(db)))?,
        prefix: query.get("prefix").unwrap_or("ipcmutex:").to_owned(),
        redis_key: query.read("redis_key", "a key", |value| (!value.is_empty()).then(|| value.to_owned()))?,
        replicas: query.read("replicas", "a number", |value| value.parse().ok())?.unwrap_or(0),
        connect_timeout: query.read("connect_timeout", "a time up to 24h, as 500ms, 2s", |value| {
            duration(value).filter(|limit| !limit.is_zero() && *limit <= DAY)
        })?,
        any_policy: query.read("policy", "any", |value| (value == "any").then_some(true))?.unwrap_or(false),
        protocol: query.read("protocol", "2, 3", |value| match value {
            "2" => Some(2),
            "3" => Some(3),
            _ => None,
        })?,
        ca: query.get("ca").map(PathBuf::from),
        crt: query.get("crt").map(PathBuf::from),
        key: query.get("key").map(PathBuf::from),
    })
}

fn named_twice(hosts: &[(String, u16)]) -> Option<&(String, u16)> {
    let like =
        |(host, port): &(String, u16), other: &(String, u16)| host.eq_ignore_ascii_case(&other.0) && *port == other.1;
    hosts.iter().enumerate().find(|(at, host)| hosts[..*at].iter().any(|other| like(host, other))).map(|(_, host)| host)
}

fn host_port(text: &str, default_port: u16) -> Result<(String, u16)> {
    let bad = || invalid(format!("`{}` is not host:port", shown(text)));
    let (host, port) = if let Some(rest) = text.strip_prefix('[') {
        let (host, port) = rest.split_once(']').ok_or_else(bad)?;
        (host, if port.is_empty() { None } else { Some(port.strip_prefix(':').ok_or_else(bad)?) })
    } else {
        match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        }
    };
    let host = decode(host, "host")?;
    if host.is_empty() || host.contains(|c: char| c.is_whitespace()) {
        return Err(bad());
    }
    let port = match port {
        None => default_port,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or_else(bad)?,
    };
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redis_of(text: &str) -> RedisTarget {
        match LockUrl::parse(text).unwrap().target {
            Target::Redis(target) => *target,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        let error = LockUrl::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        error.to_string()
    }

    #[test]
    fn names_and_paths() {
        let place = |text: &str| match LockUrl::parse(text).unwrap().target {
            Target::Mpm(file) => file.place,
            other => panic!("{other:?}"),
        };
        assert_eq!(LockUrl::parse("spm:jobs").unwrap().target, Target::Spm { id: "jobs".into() });
        assert_eq!(LockUrl::parse("spm:j%6Fbs").unwrap().target, Target::Spm { id: "jobs".into() });
        assert_eq!(place("mpm:jobs"), FilePlace::Id("jobs".into()));
        for (text, path) in [
            ("mpm:/var/x", "/var/x"),
            ("mpm:./x%20y", "./x y"),
            ("file:/a", "/a"),
            ("file:///a", "/a"),
            ("file://localhost/a", "/a"),
        ] {
            assert_eq!(place(text), FilePlace::Path(path.into()), "{text}");
        }
    }

    #[test]
    fn a_label_of_the_url_wins() {
        let label = |text: &str| LockUrl::parse(text).unwrap().or_label("mine");
        assert_eq!((label("spm:a").label(), label("spm:a?label=x").label()), (Some("mine"), Some("x")));
        assert_eq!(label("spm:a").to_string(), "spm:a");
    }

    #[test]
    fn redis_urls() {
        let url = redis_of("rpm+redis://me:s%40cret@db.example:7000/a/b:c?ttl=500ms&renew=off&db=5&protocol=3");
        assert_eq!(url.hosts, [("db.example".to_owned(), 7000)]);
        assert_eq!((url.user.as_deref(), url.secret.as_ref().map(Secret::expose)), (Some("me"), Some("s@cret")));
        assert_eq!(
            (url.id.as_str(), url.ttl, url.renew, url.db),
            ("a/b:c", Duration::from_millis(500), false, Some(5))
        );
        assert_eq!(redis_of("rpm+redis:///x").hosts, []);
        assert_eq!(redis_of("rpm+redis://h").id, "default");
        assert_eq!(redis_of("rpm+redis://[::1]:6380/x").hosts, [("::1".to_owned(), 6380)]);
        let unix = redis_of("rpm+redis+unix://:pw@/run/redis.sock?id=x");
        assert_eq!((unix.topology, unix.id.as_str()), (Topology::Unix("/run/redis.sock".into()), "x"));
        let sentinel = redis_of("rpm+redis+sentinel://h1,h2:5000/main/x");
        assert_eq!(sentinel.hosts, [("h1".to_owned(), 26379), ("h2".to_owned(), 5000)]);
        assert_eq!((sentinel.topology, sentinel.id.as_str()), (Topology::Sentinel { master: "main".into() }, "x"));
        assert_eq!(sentinel.sentinel_login, None);
        let own = redis_of("rpm+redis+sentinel://:a@h/main/x?sentinel_user=u&sentinel_password=p%26q").sentinel_login;
        assert_eq!(own, Some((Some("u".to_owned()), Secret("p&q".to_owned()))));
        assert_eq!(redis_of("rpm+redlock://a,b,c/x").hosts.len(), 3);
        assert!(redis_of("rpm+rediss://h/x?ca=/c.pem").tls);
        assert!(redis_of("rpm+redis://h/x?tls=on").tls && !redis_of("rpm+redis://h/x?tls=off").tls);
    }

    #[test]
    fn what_is_refused_says_what_is_possible() {
        assert!(refused("").contains("rpm+redlock"));
        assert!(refused("jobs").contains("known schemes: spm, mpm"));
        assert!(refused("redis://h/x").contains("unknown scheme `redis`; known schemes"));
        assert!(refused("spm:a?tll=1").contains("unknown query key `tll`; known for this scheme: fair, label"));
        assert!(refused("spm:a?ttl=1s").contains("unknown query key"));
        assert!(refused("rpm+redis://h/x?ttl=50ms").contains("100ms to 24h"));
        assert!(refused("rpm+redis://h/x?ttl=25h").contains("100ms to 24h"));
        assert!(refused("spm:a?fair=no").contains("strict, eventual"));
        for text in [
            "spm:",
            "spm:a/b",
            "spm:..",
            "mpm:../x",
            "mpm:a..b",
            "mpm:%2e%2e",
            "spm:\u{e4}",
            "spm:a%00",
            "spm:a%zz",
            "spm:a%",
            "spm:a#b",
            "mpm:/a/",
            "file:a",
            "file://host/a",
            "rpm+redis:x",
            "rpm+redis://a,b/x",
            "rpm+redis://h:0/x",
            "rpm+redis://h:70000/x",
            "rpm+redis://u@h/x",
            "rpm+redis+cluster:///x",
            "rpm+redis+sentinel://h",
            "rpm+redis+unix://",
            "rpm+redis://h/a b",
            "spm:a?fair=strict&fair=strict",
            "mpm:a?mode=0666",
            "mpm:a?mode=x",
            "rpm+redis://h/x?protocol=4",
            "rpm+redis+unix:///s?id=a..b",
            "rpm+redis://h/x?sentinel_password=p",
            "rpm+redis+sentinel://h/m/x?sentinel_user=u",
            "rpm+redis+sentinel://h/m/x?sentinel_password=",
            "spm:a\nb",
        ] {
            refused(text);
        }
        refused(&format!("spm:{}", "a".repeat(201)));
        LockUrl::parse(&format!("spm:{}", "a".repeat(200))).unwrap();
        refused(&"x".repeat(1 << 20));
    }

    #[test]
    fn a_secret_is_never_shown() {
        for text in [
            "rpm+redis://u:canary@h/x",
            "rpm+redis://:canary@h/x",
            "rpm+redis://u:can:canary@h/x?ttl=1",
            "rpm+redis://u:p@canary@h",
            "rpm+redis:u:canary@h",
            "redis://u:canary@h/x",
            "u:canary@h",
            "rpm+redis://u:canary@h:bad/x",
            "rpm+redis://u:canary%zz@h/x",
            "rpm+redis://u:a/canary@h/x",
            "rpm+redis://u:canary/a@h/x",
            "rpm+redis://u:canary?a@h/x",
            "rpm+redis://u:a?canary@h/x",
            "rpm+redis://u:a?canary=a@h/x",
            "rpm+redis://u:canary#a@h/x",
            "rpm+redis://:a#canary@h",
            "redis:u:canary?a@h",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary&ttl=1",
            "rpm+redis+sentinel://h/m/x?ttl=1s&sentinel_password=a&canary",
            "rpm+redis+sentinel://h/m/x?sentinel_password=a&canary=b&ttl=1s",
            "rpm+redis+sentinel://h/m/x?sentinel%5fpassword=canary",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary@a",
            "rpm+redis+sentinel://h/m/x?sentinel_password=a@canary&x",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary?a",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary#a",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary&sentinel_password=b",
            "rpm+redis://h/m/x?sentinel_password=canary",
            "redis://u:can?ary/canary@h",
        ] {
            let seen = match LockUrl::parse(text) {
                Ok(url) => format!("{url} {url:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!seen.contains("canary"), "{text}: {seen}");
        }
        assert_eq!(redact("rpm+redis://u:p@h/x"), "rpm+redis://u:***@h/x");
        assert_eq!(redact("rpm+redis://:p@h/x"), "rpm+redis://***@h/x");
        let (given, shown) = ("?sentinel_password=p&ttl=1s", "?sentinel_password=***&ttl=1s");
        assert_eq!(redact(&format!("rpm+redis+sentinel://h/m/x{given}")), format!("rpm+redis+sentinel://h/m/x{shown}"));
    }
}
