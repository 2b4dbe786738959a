//! `rpm+redlock:`, a lock on the majority of independent servers: one that dies, or two of five, is not noticed.
//!
//! | part | file |
//! |---|---|
//! | the servers, the thread and its connections | `quorum` |
//! | a question to all, and what the answers come to | `round`, `raise.lua` |
//! | renewals, and the end of leases | `keep` |
//! | what stands on them when the process ends | `owed` |
//! | what is held, and who waits in this process | `lock` |
//! | the backend | here |
//!
//! A hold is one when a majority has taken it and a majority of those has written the token back, both within the lease.
//! There is no line: who waits tries again after a while, at random; within a process in the order of arrival. A server
//! that comes back without its data must have stayed away for longer than the lease.

mod keep;
mod lock;
mod owed;
mod quorum;
mod round;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use self::keep::Renewal;
use self::lock::Lock;
pub(super) use self::owed::farewell;
use self::quorum::{Quorum, Voters};
use self::round::{Rounds, gather};
use super::hold::Loss;
use super::keys::Keys;
use super::lease;
use super::lock::describe_seen;
use super::server::Server;
use super::token::new_token;
use super::wire::{self, Ending, Script};
use crate::backend::contract::{Backend, Grant, OnLost, Released, Status, TookOrLinedUp};
use crate::error::{Error, ErrorKind, Result};
use crate::event_loop::EventLoop;
use crate::service::call;
use crate::service::offload::offload;
use crate::url::RedisTarget;
use crate::waiter::Waiter;

/// What a lock is on each server.
struct Shape {
    keys: Keys,
    ttl: Duration,
    beside_others: bool,
    info: String,
}

pub(super) fn open(target: &RedisTarget, key: &str, info: String) -> Result<Arc<dyn Backend>> {
    if target.replicas > 0 {
        return Err(Error::new(ErrorKind::Invalid, "open", "independent servers have no replicas to wait for")
            .with_help("leave out ?replicas="));
    }
    let quorum = Quorum::of(Server::each(target)?);
    let shape = Shape { keys: Keys::of(key), ttl: target.ttl, beside_others: target.redis_key.is_some(), info };
    let rounds = Rounds {
        shape: Arc::new(shape),
        scripts: quorum.scripts.clone(),
        raise: Arc::new(Script::new(include_str!("raise.lua"))),
        servers: quorum.count(),
        limit: quorum.limit(),
    };
    check(&quorum, target.any_policy)?;
    Ok(Arc::new(Redlock(Arc::new(Lock::new(quorum, rounds, target.renew)))))
}

/// Whether it is for INFO that the server refused, and not for what went before it on the connection.
fn has_no_info(error: &Error) -> bool {
    let text = error.message().to_ascii_lowercase();
    error.kind() == ErrorKind::Config && ["'info", "`info"].iter().any(|name| text.contains(name))
}

/// A majority is there, and none of it may evict.
fn check(quorum: &Arc<Quorum>, any_policy: bool) -> Result<()> {
    let (servers, limit) = (quorum.count(), quorum.limit());
    let told = quorum.run(move |voters| {
        Box::pin(async move {
            let info = move |_: bool| {
                let mut info = redis::cmd(if any_policy { "PING" } else { "INFO" });
                if !any_policy {
                    info.arg("memory");
                }
                info
            };
            let read = |vote: Result<redis::Value>| match vote {
                // Managed servers forbid INFO, or do not know it; they are taken at their word.
                Err(error) if error.kind() == ErrorKind::Permission || has_no_info(&error) => Ok(String::new()),
                vote => Ok(redis::from_redis_value(vote?).unwrap_or_default()),
            };
            gather(&voters, "open", (servers, limit), info, read).await
        })
    })?;
    for info in told? {
        if let Some(policy) = wire::eviction_policy(&info).filter(|policy| *policy != "noeviction") {
            let text = format!("one of the servers may evict keys (maxmemory-policy is {policy})");
            return Err(Error::new(ErrorKind::Config, "open", text)
                .with_help("set maxmemory-policy noeviction, or accept it with ?policy=any"));
        }
    }
    Ok(())
}

/// The backend.
struct Redlock(Arc<Lock>);

impl Backend for Redlock {
    fn try_take(&self) -> Result<Option<Grant>> {
        self.0.try_take()
    }

    fn take_or_line_up(&self, deadline: Option<Instant>, _: bool) -> Result<Result<Grant, u64>> {
        self.0.take_or_line_up(deadline)
    }

    /// The rounds take as long as a network does, and no event loop reads them: a thread waits for what they come to.
    fn ask_take(&self, _: &EventLoop, waits: bool, deadline: Option<Instant>, then: TookOrLinedUp) -> bool {
        let lock = self.0.clone();
        offload(move || {
            then(if waits { lock.take_or_line_up(deadline) } else { lock.try_take().map(|grant| grant.ok_or(0)) });
        });
        true
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn join(&self, waiter: &Arc<Waiter>) -> Result<()> {
        self.0.join(waiter)
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        if self.0.quorum.is_ours() {
            self.0.leave(waiter);
        }
    }

    fn release(&self, token: u64) -> Result<()> {
        self.0.ended(token)?.map_or(Ok(()), |held| self.0.release(&held))
    }

    fn ask_release(&self, _on: &EventLoop, token: u64, then: Released) {
        let lock = self.0.clone();
        match lock.ended(token) {
            Ok(Some(held)) => offload(move || then(lock.release(&held))),
            Ok(None) => then(Ok(())),
            Err(error) => then(Err(error)),
        }
    }

    fn give_back(&self, grant: Grant) {
        if self.0.quorum.is_ours() {
            self.0.give_back(grant);
        }
    }

    fn check(&self, token: u64) -> Result<()> {
        self.0.relied_on("check", token).map(|_| ())
    }

    fn extend(&self, token: u64, ttl: Option<Duration>) -> Result<()> {
        let ttl = lease::possible(ttl.unwrap_or(self.0.rounds.shape.ttl))?;
        let held = self.0.relied_on("extend", token)?;
        let (quorum, asked) = (self.0.quorum.clone(), held.clone());
        let renew = move |voters: Arc<Voters>| async move {
            let turn = asked.renewing.clone().lock_owned().await;
            quorum.renew(&voters, vec![Renewal { held: asked, ttl, extends: true, turn }]).await
        };
        let told = self.0.quorum.run(move |voters| Box::pin(renew(voters)))?;
        for stood in told {
            if !stood? {
                return Err(Loss::Gone.error("extend"));
            }
        }
        // The answer may have come after the end of the lease, which was told.
        held.hold.loss().map_or(Ok(()), |loss| Err(loss.error("extend")))
    }

    fn valid_for(&self, token: u64) -> Option<Duration> {
        Some(self.0.holds.find(token).and_then(|held| held.hold.left()).unwrap_or_default())
    }

    fn on_lost(&self, token: u64, notify: OnLost) -> Result<()> {
        let Some(held) = self.0.holds.find(token) else {
            call::run(Box::new(move || notify(Loss::Gone.error("on_lost"))));
            return Ok(());
        };
        self.0.losses.listen(token, notify);
        if let Some(loss) = held.hold.loss() {
            self.0.losses.tell(token, &loss.error("on_lost"));
        }
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let rounds = self.0.rounds.clone();
        let status = self.0.quorum.run(move |voters| Box::pin(async move { rounds.status(&voters).await }))??;
        self.0.floor.fetch_max(status.token, Ordering::Relaxed);
        // Without a line nobody knows of other processes' waiters.
        Ok(Status { waiters: self.0.waiters(), numbers: self.0.tally.numbers(), ..status })
    }

    fn describe_owner(&self) -> Option<String> {
        self.0.seen.lock().clone().map(|(at, status)| describe_seen(at, status))
    }

    fn unserved(&self) -> Option<Error> {
        self.0.unserved()
    }

    fn break_lock(&self) -> Result<bool> {
        let (rounds, name) = (self.0.rounds.clone(), new_token()?);
        let broken = self.0.quorum.run(move |voters| {
            Box::pin(async move {
                rounds.each(&voters, "break", |scripts| &scripts.break_lock, &[&name], wire::broken).await
            })
        })??;
        self.0.freed.notify_one();
        Ok(broken.contains(&true))
    }
}

impl Drop for Redlock {
    fn drop(&mut self) {
        if !self.0.quorum.is_ours() {
            return;
        }
        for held in self.0.holds.take() {
            if held.hold.end() {
                self.0.let_go(held, Ending::Released);
            }
        }
    }
}
