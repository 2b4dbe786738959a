//! One open lock: the backend over its server's engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use super::connect::PATIENT;
use super::engine::{self, Debt, Ending, Engine, Failed};
use super::hold::{Hold, Loss, Token};
use super::keys::Keys;
use super::lease;
use super::talk::Connection;
use super::wire::{self, Ask, Refusal, Taken};
use super::worker::Event;
use crate::backend::contract::{Backend, Grant, OnLost, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::loss::Losses;
use crate::numbers::{Tally, count};
use crate::service::call;
use crate::sync::Guarded;
use crate::sys::exit;
use crate::url::RedisTarget;
use crate::wait::Waiter;

/// Holds that were lost and not yet released, remembered for the release.
const REMEMBERED: usize = 64;
/// How long, from when the process begins to end, its other threads take nothing: by then most processes are gone.
pub(super) const ASIDE: Duration = Duration::from_secs(1);

/// How long it must wait with a take that would be for a thread that ends with the process.
pub(super) fn pause() -> Option<Duration> {
    exit::begun_elsewhere().and_then(|since| ASIDE.checked_sub(since.elapsed()))
}

pub(super) struct Lock {
    pub(super) engine: Arc<Engine>,
    pub(super) keys: Keys,
    pub(super) ttl: Duration,
    pub(super) renew: bool,
    /// `redis_key=`: the key is shared with other libraries.
    pub(super) beside_others: bool,
    /// How many replicas must have acknowledged a take.
    pub(super) replicas: u32,
    pub(super) info: String,
    pub(super) losses: Losses,
    pub(super) tally: Tally,
    /// The highest fencing token seen here; the next is higher whatever became of the server's data.
    floor: AtomicU64,
    holds: Guarded<Vec<Arc<Hold>>>,
    /// What the last refused take said, and when.
    seen: Guarded<Option<(Instant, Status)>>,
    /// Since when and why waits cannot be served.
    trouble: Guarded<Option<(Instant, Error)>>,
}

impl Lock {
    pub(super) fn new(engine: Arc<Engine>, key: &str, target: &RedisTarget, info: String) -> Lock {
        Lock {
            engine,
            keys: Keys::of(key),
            ttl: target.ttl,
            renew: target.renew,
            beside_others: target.redis_key.is_some(),
            replicas: target.replicas,
            info,
            losses: Losses::default(),
            tally: Tally::default(),
            floor: AtomicU64::new(0),
            holds: Guarded::default(),
            seen: Guarded::default(),
            trouble: Guarded::default(),
        }
    }

    pub(super) fn ask<'a>(&'a self, token: &'a str, ticket: Option<u64>) -> Ask<'a> {
        Ask {
            token,
            ttl: self.ttl,
            info: &self.info,
            ticket,
            floor: self.floor.load(Ordering::Relaxed),
            beside_others: self.beside_others,
            process: &self.engine.process,
        }
    }

    pub(super) fn debt(&self, ending: Ending) -> Debt {
        Debt {
            keys: self.keys.clone(),
            beside_others: self.beside_others,
            ending,
            until: lease::now() + lease::nanos(self.ttl),
        }
    }

    /// Makes what the server granted a hold. `sent`: when it was asked for, the start of the lease.
    pub(super) fn adopt(self: &Arc<Lock>, token: &Token, fence: u64, abandoned: bool, sent: u64) -> Result<Grant> {
        self.floor.fetch_max(fence, Ordering::Relaxed);
        let hold = Arc::new(Hold::new(self.engine.next_serial(), token.clone(), fence, self, sent, self.ttl));
        let due = if self.renew { lease::renewal(sent, self.ttl, hold.spread()) } else { hold.deadline() };
        let watched = if hold.left().is_some() {
            exit::at_exit(engine::farewell);
            self.engine.watch(&hold, due)
        } else {
            Err(Error::new(
                ErrorKind::Unavailable,
                "acquire",
                format!("the server {} took longer to answer than the lease lasts", self.engine.server),
            ))
        };
        if let Err(error) = watched {
            self.engine.owe(token, self.debt(Ending::Undone));
            return Err(error);
        }
        let mut holds = self.holds.lock();
        if holds.len() >= REMEMBERED
            && let Some(at) = holds.iter().position(|hold| hold.loss().is_some())
        {
            holds.remove(at);
        }
        holds.push(hold);
        count(&self.tally.acquisitions);
        Ok(Grant { token: fence, abandoned })
    }

    fn find(&self, fence: u64) -> Option<Arc<Hold>> {
        self.holds.lock().iter().find(|hold| hold.fence == fence).cloned()
    }

    fn remove(&self, fence: u64) -> Option<Arc<Hold>> {
        let mut holds = self.holds.lock();
        let at = holds.iter().position(|hold| hold.fence == fence)?;
        Some(holds.swap_remove(at))
    }

    /// The hold if it can still be relied on; else LOST. No I/O.
    fn relied_on(&self, operation: &'static str, fence: u64) -> Result<Arc<Hold>> {
        let hold = self.find(fence).ok_or_else(|| Loss::Gone.error(operation))?;
        if hold.is_live() && hold.left().is_none() {
            self.engine.lose(&hold, Loss::Expired);
        }
        match hold.loss() {
            Some(loss) => Err(loss.error(operation)),
            None => Ok(hold),
        }
    }

    /// Ends the hold on this side of the wire: nothing renews it from here on. Else how it was lost. It stays on the board
    /// until the server has let it go: so the end of the process finds it.
    pub(super) fn end(&self, hold: &Hold) -> Result<(), Loss> {
        if hold.left().is_none() {
            self.engine.lose(hold, Loss::Expired);
        }
        if !hold.end() {
            return Err(hold.loss().unwrap_or(Loss::Gone));
        }
        Ok(())
    }

    /// Undoes a grant that reached nobody.
    pub(super) fn give_back(&self, grant: Grant) {
        let Some(hold) = self.remove(grant.token) else { return };
        hold.end();
        self.losses.forget(grant.token);
        self.engine.owe(&hold.token, self.debt(Ending::Undone));
        self.engine.unwatch(&hold);
    }

    /// Notes what a refused take saw.
    pub(super) fn saw(&self, refusal: Refusal) {
        *self.seen.lock() = Some((Instant::now(), refusal.sight));
    }

    /// The server serves this lock.
    pub(super) fn served(&self) {
        let mut trouble = self.trouble.lock();
        if trouble.is_some() {
            log::info!("{}: the server serves it again", self.keys.lock());
            *trouble = None;
        }
    }

    /// It does not. The first time counts, the last error is told.
    pub(super) fn not_served(&self, error: &Error) {
        let mut trouble = self.trouble.lock();
        let since = trouble.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        if trouble.is_none() {
            log::warn!("{}: waits cannot be served: {error}", self.keys.lock());
        }
        *trouble = Some((since, error.clone()));
    }

    pub(super) fn trouble(&self) -> Option<(Instant, Error)> {
        self.trouble.lock().clone()
    }

    fn run<T>(&self, operation: &'static str, script: &wire::Script, read: fn(&Value) -> Result<T>) -> Result<T> {
        self.engine.run(operation, script, self.keys.all(self.beside_others), read)
    }
}

/// The backend: what a `Mutex` has of the lock. Dropped, it lets go of what is left.
pub(super) struct Redis(pub(super) Arc<Lock>);

impl Redis {
    /// Takes the lock on the caller's connection; else, if this process hears of its turn, lines up there when
    /// `waits`, and says under which number.
    fn take(&self, waits: bool, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
        let lock = &self.0;
        let engine = &lock.engine;
        if engine.placings.any(lock.keys.lock()) {
            // Somebody of this process was first, and is on the way to the line, as far as the server lets it.
            return self.unserved().map_or(Ok(Err(0)), Err);
        }
        let token = engine::new_token()?;
        let serial = engine.next_serial();
        let lines_up = waits && engine.board().arrivals.announce(serial, &token, lock);
        let outcome = self.take_as(&token, lines_up.then_some(serial), deadline);
        if lines_up && !matches!(outcome, Ok(Err(_))) {
            engine.board().arrivals.take(serial);
        }
        outcome
    }

    fn take_as(&self, token: &Token, serial: Option<u64>, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
        let lock = &self.0;
        let engine = &lock.engine;
        let mut sent = 0;
        let mut taking = None;
        let mut call = |connection: &mut Connection| {
            // Here, where the end of the process cannot come between this and the send.
            if taking.is_none() && pause().is_some() {
                return Ok(None);
            }
            taking.get_or_insert_with(|| engine.begin_taking());
            // Before the send, and again before a second one: that is where the lease begins at the latest.
            sent = lease::now();
            let ask = lock.ask(token, serial.map(|_| 0));
            let patience = engine.server.patience();
            let left = deadline.map(|end| end.saturating_duration_since(Instant::now()).max(PATIENT));
            let left = left.filter(|left| *left < patience);
            if let Some(left) = left {
                connection.set_limit(left)?;
            }
            let reply = engine::run(connection, |by_text| engine.scripts.take(by_text, &lock.keys, &ask));
            if left.is_some() {
                connection.set_limit(patience)?;
            }
            wire::taken(&reply?, token).map(Some).map_err(wire::unasked)
        };
        let answer = loop {
            match engine.call("acquire", &mut call) {
                // The process ends, most probably in this sleep: there is one, not one after another.
                Ok(None) => std::thread::sleep(pause().unwrap_or_default()),
                Ok(Some(taken)) => break Ok(taken),
                Err(failed) => break Err(failed),
            }
        };
        let taken = match answer {
            Ok(taken) => taken,
            Err(Failed { error, in_doubt }) => {
                if in_doubt {
                    engine.owe(token, lock.debt(Ending::Undone));
                }
                if error.kind() == ErrorKind::Unavailable {
                    // Who waits for the server to come back must hear of this if it does not.
                    lock.not_served(&error);
                }
                return Err(error);
            }
        };
        lock.served();
        match taken {
            Taken::Owned { fence, abandoned, .. } => {
                if lock.replicas > 0
                    && let Err(error) = engine.witness(lock, token)
                {
                    engine.owe(token, lock.debt(Ending::Undone));
                    return Err(error);
                }
                lock.adopt(token, fence, abandoned, sent).map(Ok)
            }
            Taken::Refused(refusal) => {
                if let Some(serial) = serial
                    && let Some(arrival) = engine.board().arrivals.of(serial)
                {
                    arrival.ticket = refusal.ticket;
                    (arrival.left, arrival.rank, arrival.foreign) = (refusal.left, refusal.rank, refusal.foreign);
                }
                lock.saw(refusal);
                Ok(Err(serial.unwrap_or(0)))
            }
            Taken::Spent => {
                Err(Error::new(ErrorKind::Protocol, "acquire", "the server knows a token that was never used"))
            }
        }
    }
}

impl Backend for Redis {
    fn try_take(&self) -> Result<Option<Grant>> {
        Ok(self.take(false, None)?.ok())
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn take_or_line_up(&self, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
        self.take(true, deadline)
    }

    fn join(&self, waiter: &Arc<Waiter>) -> Result<()> {
        let engine = &self.0.engine;
        // A place in the line is also left behind by a process that ends.
        exit::at_exit(engine::farewell);
        let arrived = waiter.ticket.load(Ordering::Acquire);
        if arrived != 0 {
            return engine.arrive(arrived, waiter.clone(), self.0.clone());
        }
        let serial = engine.next_serial();
        waiter.ticket.store(serial, Ordering::Release);
        let placing = engine.placings.begin(self.0.keys.lock());
        engine.post(Event::Join { serial, waiter: waiter.clone(), lock: self.0.clone(), placing })
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        let serial = waiter.ticket.load(Ordering::Acquire);
        if serial != 0 && self.0.engine.is_ours() {
            // Without a thread nobody of this process stands in line.
            let _ = self.0.engine.post(Event::Leave(serial));
        }
    }

    fn release(&self, token: u64) -> Result<()> {
        let lock = &self.0;
        let engine = &lock.engine;
        let Some(hold) = lock.remove(token) else { return Err(Loss::Gone.error("release")) };
        if let Err(loss) = lock.end(&hold) {
            if loss == Loss::Expired {
                // By the server's clock it may stand a little longer: nobody needs to wait for that.
                engine.owe(&hold.token, lock.debt(Ending::Lost));
            }
            return Err(loss.error("release"));
        }
        let debt = lock.debt(Ending::Released);
        let mut sends = 0;
        let answer = engine.call("release", |connection| {
            sends += 1;
            let reply = engine::run(connection, |by_text| engine.release_command(by_text, &hold.token, &debt))?;
            wire::released(&reply).map_err(wire::unasked)
        });
        if answer.is_err() {
            engine.owe(&hold.token, debt);
        }
        engine.unwatch(&hold);
        let stood = match answer {
            // Sent twice, the first may have released it and somebody else may have held it since: the server remembers only
            // the last release. By our own clock the lease stood, so that is what a "not yours" to the second means.
            Ok(stood) => stood || sends > 1,
            Err(Failed { error, .. }) => {
                lock.losses.forget(token);
                return Err(error);
            }
        };
        if stood {
            lock.losses.forget(token);
            Ok(())
        } else {
            let error = Loss::Gone.error("release");
            count(&lock.tally.losses);
            lock.losses.tell(token, &error);
            Err(error)
        }
    }

    fn give_back(&self, grant: Grant) {
        if self.0.engine.is_ours() {
            self.0.give_back(grant);
        }
    }

    fn check(&self, token: u64) -> Result<()> {
        self.0.relied_on("check", token).map(|_| ())
    }

    fn extend(&self, token: u64, ttl: Option<Duration>) -> Result<()> {
        let ttl = lease::possible(ttl.unwrap_or(self.0.ttl))?;
        let hold = self.0.relied_on("extend", token)?;
        // All renewals of a hold go one way, one after the other: else a shorter one could undo this unseen.
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        self.0.engine.post(Event::Extend { hold, ttl, answer })?;
        answered.recv().unwrap_or_else(|_| Err(Error::new(ErrorKind::Panic, "extend", "the background thread ended")))
    }

    fn valid_for(&self, token: u64) -> Option<Duration> {
        Some(self.0.find(token).and_then(|hold| hold.left()).unwrap_or_default())
    }

    fn on_lost(&self, token: u64, notify: OnLost) -> Result<()> {
        let lock = &self.0;
        let Some(hold) = lock.find(token) else {
            call::run(Box::new(move || notify(Loss::Gone.error("on_lost"))));
            return Ok(());
        };
        lock.losses.listen(token, notify);
        // It may have been lost just before the listener came; each listener is told once, whoever tells.
        if let Some(loss) = hold.loss() {
            lock.losses.tell(token, &loss.error("on_lost"));
        }
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let status = self.0.run("status", &self.0.engine.scripts.status, wire::status)?;
        self.0.floor.fetch_max(status.token, Ordering::Relaxed);
        Ok(Status { numbers: self.0.tally.numbers(), ..status })
    }

    fn describe_owner(&self) -> Option<String> {
        let (at, mut status) = self.0.seen.lock().clone()?;
        status.held = status.held.map(|held| held + at.elapsed());
        Some(status.describe())
    }

    fn unserved(&self) -> Option<Error> {
        self.0.trouble().map(|(_, error)| error)
    }

    fn break_lock(&self) -> Result<bool> {
        self.0.run("break", &self.0.engine.scripts.break_lock, wire::broken)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if !self.0.engine.is_ours() {
            return;
        }
        let holds = std::mem::take(&mut *self.0.holds.lock());
        for hold in holds {
            if hold.end() {
                self.0.engine.owe(&hold.token, self.0.debt(Ending::Released));
                self.0.engine.unwatch(&hold);
            }
        }
    }
}
