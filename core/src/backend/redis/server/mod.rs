//! Which server, who we are to it, and the ways to it. This file alone knows the credentials.
//!
//! | part | file |
//! |---|---|
//! | the server that a URL names | here |
//! | what is learned of it | `learned` |
//! | a host's addresses, in bounded time | `names` |
//! | a stream to it, and a safe one | `dial`, `tls`, `prompt` |
//! | who the master is | `sentinel` |
//! | a thread's connection to one server | `single` |
//! | a thread's connections to the nodes of a cluster, and which has what | `nodes`, `slots` |
//! | a thread's connection to either, with scripts and without | `connection`, `plain` |
//! | an event loop's connection to one server | `multiplex` |
//! | an event loop's connections to the nodes of a cluster | `net` |
//! | the background thread's connection to either; what it runs on | `link`, `runtime` |

mod connection;
mod dial;
mod learned;
mod link;
mod multiplex;
mod names;
mod net;
mod nodes;
mod plain;
mod prompt;
mod runtime;
mod sentinel;
mod single;
mod slots;
mod tls;

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::{ConnectionAddr, IntoConnectionInfo, RedisError};

pub(super) use self::connection::Connection;
pub(super) use self::dial::{Address, Stream};
pub(super) use self::learned::Learned;
pub(super) use self::link::{Link, Road};
pub(super) use self::multiplex::{Heard, Task};
#[cfg(test)]
pub(super) use self::prompt::Prompt;
pub(super) use self::runtime::{elsewhere, event_loop};
pub(super) use self::sentinel::watch;
use self::tls::Tls;
use super::wire::{self, forbids_scripts};
use crate::error::{Error, ErrorKind, Result};
use crate::url::{RedisTarget, Topology};

/// The schemes of `$REDIS_URL` that mean TLS.
const TLS_SCHEMES: [&str; 2] = ["rediss", "valkeys"];
/// How long to try to connect unless the URL says (`connect_timeout=`).
const CONNECT: Duration = Duration::from_secs(2);
/// No answer is given up sooner than this, whatever was asked for: else a short wait on a slow line would cut it.
pub(super) const PATIENT: Duration = Duration::from_millis(200);
/// How long to wait for an answer. A connection that does not answer is given up: TCP would hold on to it for minutes.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Place {
    One(Address),
    Sentinel {
        sentinels: Vec<Address>,
        master: String,
    },
    /// By some of its nodes.
    Cluster(Vec<Address>),
}

/// All that tells one server and one login from another. It has no `Debug`, since it knows the secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Server {
    place: Place,
    tls: Option<Tls>,
    user: Option<String>,
    secret: Option<String>,
    /// The Sentinels' own user and secret.
    sentinel_login: Option<(Option<String>, String)>,
    db: i64,
    /// Asked for by the URL.
    protocol: Option<u8>,
    pub(super) connect_timeout: Duration,
}

/// Who we are to a server. It has no `Debug`, since it knows the secret.
pub(super) struct Login<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) secret: Option<&'a str>,
    pub(super) db: i64,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::One(address) => address.fmt(f),
            Place::Sentinel { sentinels, master } => {
                write!(f, "{master} of the Sentinels")?;
                sentinels.iter().try_for_each(|sentinel| write!(f, " {sentinel}"))
            }
            Place::Cluster(nodes) => {
                f.write_str("cluster")?;
                nodes.iter().try_for_each(|node| write!(f, " {node}"))
            }
        }
    }
}

impl Server {
    /// The server that the URL, or for it `$REDIS_URL`, names.
    ///
    /// # Errors
    /// UNSUPPORTED for what is not built in; INVALID if `$REDIS_URL` cannot be read.
    pub(super) fn of(target: &RedisTarget) -> Result<Server> {
        let mut server = Server {
            place: Place::One(Address::Tcp("127.0.0.1".to_owned(), 6379)),
            tls: tls_of(target)?,
            user: target.user.clone(),
            secret: target.secret.as_ref().map(|secret| secret.expose().to_owned()),
            sentinel_login: target
                .sentinel_login
                .as_ref()
                .map(|(user, secret)| (user.clone(), secret.expose().to_owned())),
            db: target.db.unwrap_or(0),
            protocol: target.protocol,
            connect_timeout: target.connect_timeout.unwrap_or(CONNECT),
        };
        match (&target.topology, target.hosts.first()) {
            (Topology::Unix(path), _) => server.place = Place::One(Address::Unix(path.clone())),
            (Topology::Standalone, Some((host, port))) => {
                server.place = Place::One(Address::Tcp(host.clone(), *port));
            }
            (Topology::Standalone, None) => {
                if let Some(url) = std::env::var_os("REDIS_URL").filter(|url| !url.is_empty()) {
                    server.read_environment(&url.to_string_lossy(), target.db)?;
                }
            }
            (Topology::Sentinel { master }, _) => {
                let sentinels = target.hosts.iter().map(|(host, port)| Address::Tcp(host.clone(), *port)).collect();
                server.place = Place::Sentinel { sentinels, master: master.clone() };
            }
            (Topology::Cluster, _) => {
                let misfit = match (target.db, target.protocol) {
                    (Some(1..), _) => Some(("a cluster has the database 0 alone", "leave out ?db=")),
                    (_, Some(2)) => Some(("a cluster's wake-ups come over RESP3", "leave out ?protocol=2")),
                    _ => None,
                };
                if let Some((found, help)) = misfit {
                    return Err(Error::new(ErrorKind::Invalid, "open", found).with_help(help));
                }
                let nodes = target.hosts.iter().map(|(host, port)| Address::Tcp(host.clone(), *port)).collect();
                server.place = Place::Cluster(nodes);
            }
            (Topology::Redlock, _) if target.protocol == Some(3) => {
                return Err(Error::new(ErrorKind::Invalid, "open", "independent servers are asked over RESP2")
                    .with_help("leave out ?protocol=3"));
            }
            // The first of them; `each` makes one for each host.
            (Topology::Redlock, Some((host, port))) => server.place = Place::One(Address::Tcp(host.clone(), *port)),
            (Topology::Redlock, None) => return Err(Error::new(ErrorKind::Invalid, "open", "the host is missing")),
        }
        if server.user.is_some() {
            // One without a password (`nopass`) is asked for as well: without a login it would be the default user.
            server.secret.get_or_insert_default();
        }
        if let Some(tls) = &server.tls {
            // A file that cannot be used is told now, in its own words.
            tls.config()?;
        }
        Ok(server)
    }

    /// The servers of the URL, each for itself.
    pub(super) fn each(target: &RedisTarget) -> Result<Vec<Server>> {
        let first = Server::of(target)?;
        let at = |(host, port): &(String, u16)| Place::One(Address::Tcp(host.clone(), *port));
        Ok(target.hosts.iter().map(|host| Server { place: at(host), ..first.clone() }).collect())
    }

    /// `$REDIS_URL` as other Redis programs read it. It may hold a secret, so it is never repeated.
    /// What the lock's URL says itself comes first.
    fn read_environment(&mut self, url: &str, db: Option<i64>) -> Result<()> {
        // The library that reads it knows no TLS: that is ours.
        let tls =
            url.split_once("://").filter(|(scheme, _)| TLS_SCHEMES.iter().any(|tls| scheme.eq_ignore_ascii_case(tls)));
        if tls.is_some_and(|(_, rest)| rest.ends_with("#insecure")) {
            return Err(Error::new(ErrorKind::Invalid, "open", "$REDIS_URL asks not to verify the server")
                .with_help("certificates are always verified; name your authority with ?ca="));
        }
        let read = tls
            .map_or_else(|| url.into_connection_info(), |(_, rest)| format!("redis://{rest}").into_connection_info());
        let info = read.map_err(|_| {
            Error::new(ErrorKind::Invalid, "open", "$REDIS_URL is not a Redis URL")
                .with_help("write redis://[user:secret@]host[:port][/db], rediss:// for TLS, or unix:///path")
        })?;
        if tls.is_some() {
            self.tls.get_or_insert(Tls { ca: None, identity: None });
        }
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(_) if self.tls.is_some() => return Err(no_tls()),
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(Error::new(ErrorKind::Invalid, "open", "$REDIS_URL names no address")),
        };
        self.place = Place::One(address);
        let login = info.redis_settings();
        self.user = login.username().map(str::to_owned);
        self.secret = login.password().map(str::to_owned);
        self.db = db.unwrap_or(login.db());
        Ok(())
    }

    /// The address that the URL names first.
    fn seed(&self) -> &Address {
        match &self.place {
            Place::One(address) => address,
            Place::Sentinel { sentinels, .. } => &sentinels[0],
            Place::Cluster(nodes) => &nodes[0],
        }
    }

    pub(super) fn login(&self, alone: bool) -> Login<'_> {
        let user = self.user.as_deref().filter(|_| !alone);
        Login { user, secret: self.secret.as_deref(), db: self.db }
    }

    /// Whether nothing but answers can come on a connection, as far as is known.
    pub(super) fn is_resp2(&self, learned: &Learned) -> bool {
        self.protocol == Some(2) || learned.resp2.load(Ordering::Relaxed)
    }

    /// For Sentinels, with their numbers: mostly they have no password; if they have one, and the URL does not say it, it is
    /// the servers', and they too may know no users. What worked last comes first.
    pub(super) fn logins_of_sentinels(&self, learned: &Learned) -> impl Iterator<Item = (usize, Login<'_>)> + use<'_> {
        let nobody = Login { user: None, secret: None, db: 0 };
        let logins = match &self.sentinel_login {
            // Who needs none may be somebody who may do nothing.
            Some((user, secret)) => vec![Login { user: user.as_deref(), secret: Some(secret), db: 0 }, nobody],
            None if self.user.is_some() && self.secret.is_some() => {
                let [user, alone] = [false, true].map(|alone| Login { db: 0, ..self.login(alone) });
                vec![nobody, user, alone]
            }
            None if self.secret.is_some() => vec![nobody, Login { db: 0, ..self.login(false) }],
            None => vec![nobody],
        };
        let last = learned.sentinel_login.load(Ordering::Relaxed);
        let mut logins: Vec<_> = logins.into_iter().enumerate().collect();
        logins.sort_by_key(|(number, _)| *number != last);
        logins.into_iter()
    }

    /// How long a caller waits for an answer: who gives up on connecting sooner gives up on this sooner, too.
    pub(super) fn patience(&self) -> Duration {
        ANSWER.min(self.connect_timeout.max(PATIENT))
    }

    /// The logins to try, as `alone`: with the user and then, since a password-only server knows no users, with the
    /// secret alone. What worked last comes first.
    fn logins(&self, learned: &Learned) -> impl Iterator<Item = bool> + use<> {
        let first = self.user.is_none() || learned.alone.load(Ordering::Relaxed);
        let second =
            (self.user.is_some() && self.secret.as_ref().is_some_and(|secret| !secret.is_empty())).then_some(!first);
        std::iter::once(first).chain(second)
    }

    pub(super) fn failed(&self, operation: &'static str, error: &RedisError) -> Error {
        let server = self.to_string();
        // One server does without (`plain`).
        if forbids_scripts(error) {
            let message = format!("the server {server} forbids scripts, and a lock on several servers needs them");
            return Error::new(ErrorKind::Config, operation, message)
                .with_help("allow EVAL, EVALSHA and SCRIPT LOAD, to its user as well");
        }
        tls::cause(operation, &server, error).unwrap_or_else(|| {
            let sentinels = self.sentinel_login.as_ref().map(|(_, secret)| secret.as_str());
            let secrets: Vec<&str> = self.secret.as_deref().into_iter().chain(sentinels).collect();
            wire::failed(operation, &server, &secrets, error)
        })
    }
}

fn tls_of(target: &RedisTarget) -> Result<Option<Tls>> {
    let identity = match (&target.crt, &target.key) {
        (Some(crt), Some(key)) => Some((crt.clone(), key.clone())),
        (None, None) => None,
        _ => {
            return Err(Error::new(ErrorKind::Invalid, "open", "a certificate and its key come together")
                .with_help("give both ?crt= and ?key="));
        }
    };
    // Who names an authority or a certificate must not be served in plain text.
    let asked = target.tls || target.ca.is_some() || identity.is_some();
    if asked && matches!(target.topology, Topology::Unix(_)) {
        return Err(no_tls());
    }
    Ok(asked.then(|| Tls { ca: target.ca.clone(), identity }))
}

fn no_tls() -> Error {
    Error::new(ErrorKind::Invalid, "open", "a unix socket has no TLS")
}
