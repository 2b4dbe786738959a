//! `rpm+redlock:`, a lock on the majority of independent servers: one that dies, or two of five, is not noticed.
//!
//! | part | file |
//! |---|---|
//! | the servers, the thread and its connections | `quorum` |
//! | a question to all, and what the answers come to | `round`, `raise.lua` |
//! | renewals, and the end of leases | `keep` |
//! | what stands on them when the process ends | `owed` |
//! | the backend; who waits and what is held in this process | here |
//!
//! A hold is one when a majority has taken it and a majority of those has written the token back, both within the lease.
//! There is no line: who waits tries again after a while, at random; within a process in the order of arrival. A server
//! that comes back without its data must have stayed away for longer than the lease.

mod keep;
mod owed;
mod quorum;
mod round;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use self::keep::Renewal;
use self::owed::Owed;
pub(super) use self::owed::farewell;
use self::quorum::{Dial, Quorum, Voters};
use self::round::{Rounds, Took, Won, gather};
use super::engine::bug;
use super::hold::{Hold, Holds, Loss};
use super::keys::Keys;
use super::lease::{self, AGAIN, jitter};
use super::lock::describe_seen;
use super::server::{ANSWER, PATIENT, Server};
use super::token::{Token, new_token};
use super::wire::{self, Ending, Script};
use crate::backend::contract::{Backend, Grant, OnLost, Released, Status, TookOrLinedUp};
use crate::error::{Error, ErrorKind, Result};
use crate::event_loop::EventLoop;
use crate::loss::Losses;
use crate::numbers::{Tally, count};
use crate::service::call;
use crate::service::offload::offload;
use crate::sync::Guarded;
use crate::url::RedisTarget;
use crate::waiter::{self, Waiter};

/// How long an acquisition without a timeout waits for a majority that is not there.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a lock is on each server.
struct Shape {
    keys: Keys,
    ttl: Duration,
    beside_others: bool,
    info: String,
}

struct Held {
    hold: Hold,
    lock: Weak<Lock>,
    owed: Owed,
    /// Whose turn it is to renew it.
    renewing: Arc<tokio::sync::Mutex<()>>,
    /// Its renewal was refused: it goes by itself the next time.
    alone: AtomicBool,
}

impl AsRef<Hold> for Held {
    fn as_ref(&self) -> &Hold {
        &self.hold
    }
}

struct Queue {
    waiters: VecDeque<(u64, Arc<Waiter>)>,
    /// Somebody of the thread looks after them.
    served: bool,
}

struct Lock {
    quorum: Arc<Quorum>,
    rounds: Arc<Rounds>,
    renew: bool,
    serial: AtomicU64,
    floor: AtomicU64,
    losses: Losses,
    tally: Tally,
    holds: Holds<Held>,
    queue: Guarded<Queue>,
    /// A hold of this process has ended: it is worth a try.
    freed: Notify,
    seen: Guarded<Option<(Instant, Status)>>,
    trouble: Guarded<Option<(Instant, Error)>>,
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
    let lock = Arc::new(Lock {
        quorum,
        rounds: Arc::new(rounds),
        renew: target.renew,
        serial: AtomicU64::new(0),
        floor: AtomicU64::new(0),
        losses: Losses::default(),
        tally: Tally::default(),
        holds: Holds::default(),
        queue: Guarded::new(Queue { waiters: VecDeque::new(), served: false }),
        freed: Notify::new(),
        seen: Guarded::default(),
        trouble: Guarded::default(),
    });
    Ok(Arc::new(Redlock(lock)))
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

impl Lock {
    /// Asks the majority once.
    async fn attempt(self: &Arc<Lock>, voters: &Arc<Voters>, dial: Dial) -> Result<Option<Grant>> {
        let token = new_token()?;
        let owe = || Owed::new(&self.quorum, &self.rounds, &token);
        let mut owed = owe();
        // Looked at when it is owed: the end of the process sees either this take, or that it has not gone out.
        if let Some(pause) = super::lock::pause() {
            drop(owed);
            tokio::time::sleep(pause).await;
            owed = owe();
        }
        let begun = lease::now();
        let took = self.rounds.take(voters, dial, &token, self.floor.load(Ordering::Relaxed)).await;
        match &took {
            Ok(_) => *self.trouble.lock() = None,
            Err(error) if error.kind() == ErrorKind::Unavailable => self.not_served(error),
            Err(_) => {}
        }
        let refused = match took {
            Ok(Took::Won(won)) => return self.adopt(token, &won, owed),
            Ok(Took::Refused(refusal)) => Ok(refusal),
            Err(error) => Err(error),
        };
        // Who was asked and has not answered is told, too. Nobody waits for that: it is owed until then.
        let _ = self.undo(token, Ending::Undone, Dial::Undo(begun), owed);
        if let Some(refusal) = refused? {
            *self.seen.lock() = Some((Instant::now(), refusal.sight));
        }
        Ok(None)
    }

    fn not_served(&self, error: &Error) {
        let mut trouble = self.trouble.lock();
        let since = trouble.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *trouble = Some((since, error.clone()));
    }

    fn unserved(&self) -> Option<Error> {
        self.trouble.lock().clone().map(|(_, error)| error)
    }

    /// Whether others of this process were first.
    fn are_before(&self) -> bool {
        !self.queue.lock().waiters.is_empty()
    }

    /// Tries it for one who waits if that comes to nothing, or takes longer than an answer may.
    fn take_or_line_up(self: &Arc<Lock>, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
        if self.are_before() {
            return self.unserved().map_or(Ok(Err(0)), Err);
        }
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()).max(PATIENT));
        let lock = self.clone();
        // It is handed over, or nobody is there for it: it never lies in between.
        let (tell, told) = sync_channel(0);
        self.quorum.spawn(move |voters| {
            Box::pin(async move {
                if let Err(SendError(Ok(Some(late)))) = tell.send(lock.attempt(&voters, Dial::SOON).await) {
                    lock.give_back(late);
                }
            })
        })?;
        let told = told.recv_timeout(left.map_or(ANSWER, |left| left.min(ANSWER)));
        if !self.quorum.is_ours() {
            return Err(waiter::forked());
        }
        match told {
            Ok(outcome) => Ok(outcome?.ok_or(0)),
            Err(RecvTimeoutError::Timeout) => {
                let text = "no majority of the servers answers in time";
                self.not_served(&Error::new(ErrorKind::Unavailable, "acquire", text));
                Ok(Err(0))
            }
            Err(RecvTimeoutError::Disconnected) => Err(bug()),
        }
    }

    fn try_take(self: &Arc<Lock>) -> Result<Option<Grant>> {
        if self.are_before() {
            return self.unserved().map_or(Ok(None), Err);
        }
        let lock = self.clone();
        self.quorum.run(move |voters| Box::pin(async move { lock.attempt(&voters, Dial::SOON).await }))?
    }

    /// `None`, if the process ends and has begun to release it.
    fn adopt(self: &Arc<Lock>, token: Token, won: &Won, owed: Owed) -> Result<Option<Grant>> {
        self.floor.fetch_max(won.fence, Ordering::Relaxed);
        let shape = &self.rounds.shape;
        let (serial, keys) = (owed.number(), shape.keys.clone());
        let hold = Hold::alone(serial, token, won.fence, keys, self.renew, won.sent, shape.ttl);
        let held = Arc::new(Held {
            hold,
            lock: Arc::downgrade(self),
            owed,
            renewing: Arc::default(),
            alone: AtomicBool::new(false),
        });
        if !held.owed.is_held(&held) {
            return Ok(None);
        }
        self.quorum.keep(&held)?;
        self.holds.add(held);
        count(&self.tally.acquisitions);
        Ok(Some(Grant { token: won.fence, abandoned: won.abandoned }))
    }

    fn lose(&self, held: &Held, loss: Loss) {
        if held.hold.lose(loss) {
            held.owed.ends(Ending::Lost);
            count(&self.tally.losses);
            self.quorum.forget(held);
            self.losses.tell(held.hold.fence, &loss.error("check"));
        }
    }

    fn relied_on(&self, operation: &'static str, fence: u64) -> Result<Arc<Held>> {
        let held = self.holds.find(fence).ok_or_else(|| Loss::Gone.error(operation))?;
        if held.hold.is_live() && held.hold.left().is_none() {
            self.lose(&held, Loss::Expired);
        }
        match held.hold.loss() {
            Some(loss) => Err(loss.error(operation)),
            // The end of the process has released it.
            None if !held.hold.is_live() => Err(Loss::Gone.error(operation)),
            None => Ok(held),
        }
    }

    /// Ends the hold on this side: what is to be released, unless the end of the process has.
    fn ended(&self, token: u64) -> Result<Option<Arc<Held>>> {
        let Some(held) = self.holds.remove(token) else { return Err(Loss::Gone.error("release")) };
        if held.hold.left().is_none() {
            self.lose(&held, Loss::Expired);
        }
        if !held.hold.end() {
            let Some(loss) = held.hold.loss() else { return Ok(None) };
            self.let_go(held, Ending::Lost);
            return Err(loss.error("release"));
        }
        self.quorum.forget(&held);
        Ok(Some(held))
    }

    /// Releases on all servers what has ended here.
    fn release(&self, held: &Held) -> Result<()> {
        let (rounds, owner) = (self.rounds.clone(), held.hold.token.clone());
        let told = self.quorum.run(move |voters| {
            Box::pin(async move { rounds.release(&voters, Dial::SURELY, &owner, Ending::Released).await })
        });
        self.freed.notify_one();
        match told? {
            Ok(true) => {
                self.losses.forget(held.hold.fence);
                Ok(())
            }
            Ok(false) => {
                let error = Loss::Gone.error("release");
                count(&self.tally.losses);
                self.losses.tell(held.hold.fence, &error);
                Err(error)
            }
            Err(error) => {
                self.losses.forget(held.hold.fence);
                Err(error)
            }
        }
    }

    /// Releases `token` on all servers in the background; `kept` until then.
    fn undo(&self, token: Token, ending: Ending, dial: Dial, kept: impl Send + 'static) -> Result<()> {
        let rounds = self.rounds.clone();
        self.quorum.spawn(move |voters| {
            Box::pin(async move {
                // Where it cannot be told it ends with its lease.
                let _ = rounds.release(&voters, dial, &token, ending).await;
                drop(kept);
            })
        })
    }

    /// The same of a hold.
    fn let_go(&self, held: Arc<Held>, ending: Ending) {
        self.quorum.forget(&held);
        if self.undo(held.hold.token.clone(), ending, Dial::OWED, held).is_ok() {
            self.freed.notify_one();
        }
    }

    fn give_back(&self, grant: Grant) {
        if let Some(held) = self.holds.remove(grant.token)
            && held.hold.end()
        {
            self.losses.forget(grant.token);
            self.let_go(held, Ending::Undone);
        }
    }

    /// The first that still waits.
    fn front(&self) -> Option<Arc<Waiter>> {
        let mut queue = self.queue.lock();
        while queue.waiters.front().is_some_and(|(_, waiter)| !waiter.is_waiting()) {
            queue.waiters.pop_front();
        }
        let front = queue.waiters.front().map(|(_, waiter)| waiter.clone());
        queue.served = front.is_some();
        front
    }

    /// Ends the waits that nobody else ends.
    fn give_up(&self, error: &Error) {
        let waiters: Vec<_> = self.queue.lock().waiters.iter().map(|(_, waiter)| waiter.clone()).collect();
        // Who has come just now has not waited yet.
        let over = |waiter: &&Arc<Waiter>| !waiter.is_limited() && waiter.created.elapsed() > PATIENCE;
        for waiter in waiters.iter().filter(over) {
            self.settle(waiter, Err(error.clone()));
        }
    }

    fn settle(&self, waiter: &Arc<Waiter>, outcome: Result<Grant>) {
        self.queue.lock().waiters.retain(|(_, other)| !Arc::ptr_eq(other, waiter));
        if let Err(Ok(late)) = waiter.settle(outcome) {
            self.give_back(late);
        }
    }
}

/// Looks after who waits for the lock, until nobody does.
async fn serve(lock: Weak<Lock>, voters: Arc<Voters>) {
    let mut begun = Instant::now();
    loop {
        let Some(lock) = lock.upgrade() else { return };
        let Some(waiter) = lock.front() else { return };
        let pause = match lock.attempt(&voters, Dial::PACED).await {
            Ok(Some(grant)) => {
                lock.settle(&waiter, Ok(grant));
                begun = Instant::now();
                Duration::ZERO
            }
            // At random, so that those who take each other's votes do not do so again.
            Ok(None) => {
                begun = Instant::now();
                Duration::from_millis(25 + u64::from(jitter()) / 2)
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => {
                if begun.elapsed() > PATIENCE {
                    lock.give_up(&error);
                }
                AGAIN / 2 + Duration::from_millis(u64::from(jitter()))
            }
            Err(error) => {
                lock.settle(&waiter, Err(error));
                Duration::ZERO
            }
        };
        // Sooner if a hold of this process ends; either way it is looked at next.
        let _ = tokio::time::timeout(pause, lock.freed.notified()).await;
    }
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
        let serial = self.0.serial.fetch_add(1, Ordering::Relaxed) + 1;
        waiter.ticket.store(serial, Ordering::Release);
        let mut queue = self.0.queue.lock();
        queue.waiters.push_back((serial, waiter.clone()));
        if !queue.served {
            // Under the lock: nobody lines up for a thread that does not come.
            let lock = Arc::downgrade(&self.0);
            if let Err(error) = self.0.quorum.spawn(move |voters| Box::pin(serve(lock, voters))) {
                queue.waiters.pop_back();
                return Err(error);
            }
            queue.served = true;
        }
        Ok(())
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        if self.0.quorum.is_ours() {
            count(&self.0.tally.gave_up);
            self.0.queue.lock().waiters.retain(|(_, other)| !Arc::ptr_eq(other, waiter));
            self.0.freed.notify_one();
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
        let waiters = self.0.queue.lock().waiters.iter().filter(|(_, waiter)| waiter.is_waiting()).count();
        Ok(Status { waiters: u32::try_from(waiters).unwrap_or(u32::MAX), numbers: self.0.tally.numbers(), ..status })
    }

    fn describe_owner(&self) -> Option<String> {
        self.0.seen.lock().clone().map(|(at, status)| describe_seen(at, status))
    }

    fn unserved(&self) -> Option<Error> {
        self.0.unserved()
    }

    fn break_lock(&self) -> Result<bool> {
        let rounds = self.0.rounds.clone();
        let broken = self.0.quorum.run(move |voters| {
            Box::pin(async move { rounds.each(&voters, "break", |scripts| &scripts.break_lock, wire::broken).await })
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
