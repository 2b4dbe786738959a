//! The URLs of locks in Redis.

use std::path::PathBuf;
use std::time::Duration;

use super::query::{Query, REDIS_KEYS, SENTINEL_SECRET, decode, duration, flag, shown};
use super::secret::Secret;
use super::{check_id, invalid};
use crate::error::Result;

/// No lease and no connecting takes longer.
const DAY: Duration = Duration::from_secs(86_400);

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
    /// PEM file: the authority to trust.
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

pub(super) fn target(scheme: &str, body: &str, query: &Query) -> Result<RedisTarget> {
    query.only(REDIS_KEYS)?;
    let rest = body.strip_prefix("//").ok_or_else(|| {
        invalid("the server is missing").with_help(format!("write {scheme}://host:port/<id>, with both slashes"))
    })?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (credentials, hosts) = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => (Some(credentials), hosts),
        None => (None, authority),
    };
    let (user, secret) = credentials.map(login).transpose()?.unwrap_or_default();
    let (topology, id) = topology(scheme, path)?;
    let default_port = if matches!(topology, Topology::Sentinel { .. }) { 26379 } else { 6379 };
    let named = hosts.split(',').filter(|_| !hosts.is_empty());
    let hosts = named.map(|host| host_port(host, default_port)).collect::<Result<Vec<_>>>()?;
    check_hosts(&topology, &hosts)?;
    if hosts.is_empty() && matches!(topology, Topology::Standalone) && (scheme == "rpm+rediss" || credentials.is_some())
    {
        return Err(invalid("the host is missing").with_help("only rpm+redis:///<id> takes the server from $REDIS_URL"));
    }
    let id = match query.get("id") {
        Some(_) if !id.is_empty() => return Err(invalid("the id is given twice")),
        Some(named) if !named.is_empty() => named.to_owned(),
        _ if id.is_empty() => "default".to_owned(),
        _ => id,
    };
    check_id(&id, &['/', ':'])?;
    let ttl_form = "100ms to 24h, as 500ms, 10s, 2m, 1h";
    let ttl = query
        .read("ttl", ttl_form, |value| duration(value).filter(|ttl| (Duration::from_millis(100)..=DAY).contains(ttl)))?
        .unwrap_or(Duration::from_secs(10));
    Ok(RedisTarget {
        sentinel_login: sentinel_login(&topology, query)?,
        topology,
        hosts,
        // `tls=on` is how the npm package ipc-mutex spells it.
        tls: query.read("tls", "on, off", flag)?.unwrap_or(false) || scheme == "rpm+rediss",
        user,
        secret,
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

/// User and secret, of which either may be missing.
fn login(credentials: &str) -> Result<(Option<String>, Option<Secret>)> {
    let (user, secret) = credentials.split_once(':').ok_or_else(|| {
        invalid("there is no `:` in what stands before the `@`")
            .with_help("write user:secret@host, or :secret@host for a secret alone")
    })?;
    let (user, secret) = (decode(user, "user")?, decode(secret, "secret")?);
    Ok(((!user.is_empty()).then_some(user), (!secret.is_empty()).then(|| Secret::new(secret))))
}

/// What the hosts are, and the id that stands in the path.
fn topology(scheme: &str, path: &str) -> Result<(Topology, String)> {
    let topology = match scheme {
        "rpm+redis+sentinel" => {
            let (master, id) = path.split_once('/').unwrap_or((path, ""));
            let master = decode(master, "master's name")?;
            if master.is_empty() {
                return Err(invalid("the master's name is missing").with_help("write …://host/<master>/<id>"));
            }
            return Ok((Topology::Sentinel { master }, decode(id, "id")?));
        }
        "rpm+redis+unix" => {
            if path.is_empty() {
                return Err(invalid("the socket's path is missing")
                    .with_help(format!("write {scheme}:///path/redis.sock?id=<id>")));
            }
            let path = PathBuf::from(format!("/{}", decode(path, "path")?));
            return Ok((Topology::Unix(path), String::new()));
        }
        "rpm+redis+cluster" => Topology::Cluster,
        "rpm+redlock" => Topology::Redlock,
        _ => Topology::Standalone,
    };
    Ok((topology, decode(path, "id")?))
}

fn check_hosts(topology: &Topology, hosts: &[(String, u16)]) -> Result<()> {
    let twice = |(at, named): &(usize, &(String, u16))| {
        hosts[..*at].iter().any(|(host, port)| host.eq_ignore_ascii_case(&named.0) && *port == named.1)
    };
    match (topology, hosts.len()) {
        (Topology::Unix(_), 1..) => Err(invalid("a unix socket has no host").with_help("write …+unix:///path")),
        (Topology::Standalone, 2..) => Err(invalid("several hosts need a scheme that says what they are")
            .with_help("use rpm+redis+sentinel, rpm+redis+cluster or rpm+redlock")),
        (Topology::Unix(_) | Topology::Standalone, _) => Ok(()),
        (_, 0) => Err(invalid("the host is missing")),
        (Topology::Redlock, _) => match hosts.iter().enumerate().find(twice) {
            // It would vote twice.
            Some((_, (host, port))) => Err(invalid(format!("the server `{}:{port}` is named twice", shown(host)))),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

fn sentinel_login(topology: &Topology, query: &Query) -> Result<Option<(Option<String>, Secret)>> {
    match (query.get("sentinel_user"), query.get(SENTINEL_SECRET)) {
        (None, None) => Ok(None),
        _ if !matches!(topology, Topology::Sentinel { .. }) => {
            Err(invalid("only rpm+redis+sentinel: has Sentinels, and a login of theirs"))
        }
        (user, Some(secret)) if !secret.is_empty() => {
            let user = user.filter(|user| !user.is_empty()).map(str::to_owned);
            Ok(Some((user, Secret::new(secret.to_owned()))))
        }
        _ => Err(invalid(format!("`{SENTINEL_SECRET}` is missing"))),
    }
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
