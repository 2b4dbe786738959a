//! `rpm+redis:`, hosts: a lease in Redis, with a line that needs no polling.
//!
//! | part | file |
//! |---|---|
//! | which server, and the ways to it | `server` |
//! | the keys of a lock, names that nobody has | `keys`, `token` |
//! | what is said and answered; the scripts | `wire`, `lua` |
//! | how long a lease can be relied on | `lease`, `hold` |
//! | one engine per server and process: the callers' side, the end of the process | `engine` |
//! | the background thread: the line, the renewals, beside other libraries | `worker` |
//! | a thread that waits by itself, and what it listens to | `direct`, `ear` |
//! | waiting for replicas | `witness` |
//! | the backend; taking and letting go | `lock`, `take` |
//! | many independent servers, another backend | `redlock` |
//!
//! # States of a lock in the server
//!
//! | key | owner field `o` | meaning |
//! |---|---|---|
//! | none | none | free |
//! | none | a token | free, and the last hold ended without a release: the next one hears "abandoned" |
//! | a token | the same | held |
//! | a token | another, or none; `g` is the token | granted, to be confirmed within 400 ms |
//! | anything else | any | held by a program that is not one of ours |
//!
//! `g` is the last grant's token, and says nothing of a key with another one. Beside other libraries nothing is
//! granted: the key stays free, and `g` is the token of who was told of its turn and has not come, not even to find
//! it taken.
//!
//! A grant is no hold until its confirm was answered: the claim cannot be dated by who is told of it late. A hold
//! is relied on only until its deadline on this machine's own clock, counted from before the request was sent.
//!
//! # Bounds
//! A server that has not answered to the last byte within 2 s, or let us in within `connect_timeout`, or either within what a wait has
//! left counts as unreachable, but never within 200 ms; to where replicas are waited for, connecting has its whole time. A host that is gone is noticed by TCP's keepalive after 5 s, also by who only
//! waits. An acquisition without a timeout gives up with UNAVAILABLE when the server stayed unreachable for `connect_timeout`, at least
//! 5 s; one with a timeout waits for it as long as that.

mod direct;
mod ear;
mod engine;
mod hold;
mod keys;
mod lease;
mod lock;
mod redlock;
mod server;
mod take;
mod token;
mod wire;
mod witness;
mod worker;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use self::engine::{Engine, FAREWELL};
use self::keys::Keys;
use self::lock::{Lock, Redis};
use self::server::Server;
use crate::backend::contract::{Backend, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::identity;
use crate::sys::exit;
use crate::url::{LockUrl, RedisTarget, Topology};

pub(crate) fn open(target: &RedisTarget, url: &LockUrl) -> Result<Arc<dyn Backend>> {
    let key = match &target.redis_key {
        Some(key) => key.clone(),
        None => format!("{}{}", target.prefix, target.id),
    };
    if matches!(target.topology, Topology::Redlock) {
        return redlock::open(target, &key, wire::info(&identity(url)));
    }
    let engine = reach(target, Some(&key))?;
    if matches!(target.topology, Topology::Cluster) && !Keys::of(&key).fit_a_cluster() {
        return Err(Error::new(ErrorKind::Invalid, "open", format!("a cluster would scatter the keys of `{key}`"))
            .with_help("in a cluster a key has no braces, or a hash tag such as {app}:jobs"));
    }
    let info = wire::info(&identity(url));
    Ok(Arc::new(Redis(Arc::new(Lock::new(engine, &key, target, info)))))
}

/// The engine of the server, which answers and may carry the lock `key`, or any.
fn reach(target: &RedisTarget, key: Option<&str>) -> Result<Arc<Engine>> {
    let engine = Engine::of(Server::of(target)?)?;
    if target.any_policy {
        engine
            .call("open", |connection| connection.ask_each(key, &redis::cmd("PING"), &|_| false))
            .map_err(|failed| failed.error)?;
    } else {
        engine.check_policy(key)?;
    }
    Ok(engine)
}

/// The locks under the prefix of `target`: those that are held, and those that were in the last seven days.
pub(crate) fn list(target: &RedisTarget) -> Result<Vec<(String, Result<Status>)>> {
    if matches!(target.topology, Topology::Redlock) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "ps",
            "the locks of independent servers cannot be listed at once",
        )
        .with_help("list those of each server, with rpm+redis://server/"));
    }
    let engine = reach(target, None)?;
    let pattern: String =
        target.prefix.chars().flat_map(|c| if "*?[]\\".contains(c) { vec!['\\', c] } else { vec![c] }).collect();
    let pattern = format!("*{pattern}*");
    let mut locks = BTreeSet::new();
    // A slot on its way from one master to another may be seen on both.
    for part in engine.call("ps", |connection| Ok(connection.parts())).map_err(|failed| failed.error)? {
        let mut cursor = 0_u64;
        loop {
            let mut scan = redis::cmd("SCAN");
            scan.arg(cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(1000);
            let page = engine.call("ps", |connection| {
                let page = connection.ask_part(part.as_ref(), &scan)?;
                Ok(redis::from_redis_value::<(u64, Vec<Vec<u8>>)>(page)?)
            });
            let (next, found) = page.map_err(|failed| failed.error)?;
            let found = found.iter().filter_map(|key| std::str::from_utf8(key).ok());
            locks.extend(found.filter_map(|key| keys::lock_under(&target.prefix, key)));
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
    }
    let status = |key: &str| engine.run("ps", &engine.scripts.status, Keys::of(key).all(false), &[], wire::status);
    Ok(locks
        .into_iter()
        .map(|key| {
            let status = status(&key);
            (key.strip_prefix(&target.prefix).unwrap_or(&key).to_owned(), status)
        })
        .collect())
}

/// At a normal end of the process: holds are released, so that nobody waits for their leases.
extern "C" fn farewell() {
    exit::begins_here();
    redlock::farewell(Instant::now() + FAREWELL);
    engine::farewell();
}
