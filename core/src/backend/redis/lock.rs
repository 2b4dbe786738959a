//! One open lock: the backend over its server's engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redis::Value;

use super::engine::{Debt, Engine};
use super::hold::{Hold, Holds, Loss};
use super::keys::Keys;
use super::lease;
use super::token::{Token, new_token};
use super::wire::{self, Ask, Ending, Refusal};
use super::worker::Event;
use crate::backend::contract::{Backend, Grant, OnLost, Released, Status, TookOrLinedUp};
use crate::error::{Error, ErrorKind, Result, forked};
use crate::event_loop::EventLoop;
use crate::loss::Losses;
use crate::numbers::{Tally, count};
use crate::service::answer::{self, Unanswered};
use crate::service::call;
use crate::sync::Guarded;
use crate::sys::exit;
use crate::sys::futex::Woken;
use crate::url::RedisTarget;
use crate::waiter::Waiter;

/// What was seen longer ago than this is told as what it was then.
const FRESH: Duration = Duration::from_secs(1);
/// How long, from when the process begins to end, its other threads take nothing: by then most processes are gone.
pub(super) const ASIDE: Duration = Duration::from_secs(1);

/// How long it must wait with a take that would be for a thread that ends with the process.
pub(super) fn pause() -> Option<Duration> {
    exit::begun_elsewhere().and_then(|since| ASIDE.checked_sub(since.elapsed()))
}

/// For a TIMEOUT text: what was seen at `at`. Who held it then may have released it since.
pub(super) fn describe_seen(at: Instant, mut status: Status) -> String {
    let ago = at.elapsed();
    if ago > FRESH {
        return format!("{:.1} s ago it was {}", ago.as_secs_f64(), status.describe());
    }
    status.held = status.held.map(|held| held + ago);
    status.describe()
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
    /// When it was last found taken by a thread that then waited.
    pub(super) contended: AtomicU64,
    pub(super) holds: Holds<Hold>,
    /// What the last refused take said, and when.
    seen: Guarded<Option<(Instant, Status)>>,
    /// What the last take of this process that was not answered failed with, whichever handle's it was.
    trouble: Arc<Trouble>,
}

/// Why a lock cannot be served, if it cannot.
pub(super) type Trouble = Guarded<Option<Error>>;

impl Lock {
    pub(super) fn new(engine: Arc<Engine>, key: &str, target: &RedisTarget, info: String) -> Lock {
        let trouble = engine.trouble_of(key);
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
            contended: AtomicU64::new(0),
            holds: Holds::default(),
            seen: Guarded::default(),
            trouble,
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
            home: None,
        }
    }

    pub(super) fn debt(&self, ending: Ending) -> Debt {
        Debt {
            keys: self.keys.clone(),
            beside_others: self.beside_others,
            by_ear: false,
            ending,
            until: lease::owed(self.ttl),
        }
    }

    /// What is owed for a hold, which may have been extended beyond the lock's own lease.
    pub(super) fn debt_of(&self, hold: &Hold, ending: Ending) -> Debt {
        let until = lease::owed(self.ttl.max(hold.longest()));
        Debt { until, ..self.debt(ending) }
    }

    /// Makes what the server granted a hold. `sent`: when it was asked for, the start of the lease.
    pub(super) fn adopt(self: &Arc<Lock>, token: &Token, fence: u64, abandoned: bool, sent: u64) -> Result<Grant> {
        self.floor.fetch_max(fence, Ordering::Relaxed);
        let hold = Arc::new(Hold::new(self.engine.next_serial(), token.clone(), fence, self, sent, self.ttl));
        let due = if self.renew { lease::renewal(sent, self.ttl, hold.spread()) } else { hold.deadline() };
        let watched = if hold.left().is_some() {
            exit::at_exit(super::farewell);
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
        self.holds.add(hold);
        count(&self.tally.acquisitions);
        Ok(Grant { token: fence, abandoned })
    }

    /// The hold if it can still be relied on; else LOST. No I/O.
    fn relied_on(&self, operation: &'static str, fence: u64) -> Result<Arc<Hold>> {
        let hold = self.holds.find(fence).ok_or_else(|| Loss::Gone.error(operation))?;
        if hold.is_live() && hold.left().is_none() {
            self.engine.lose(&hold, Loss::Expired);
        }
        match hold.loss() {
            Some(loss) => Err(loss.error(operation)),
            // The end of the process has released it.
            None if !hold.is_live() => Err(Loss::Gone.error(operation)),
            None => Ok(hold),
        }
    }

    /// Ends the hold on this side of the wire: nothing renews it from here on. Else how it was lost. It stays on the board
    /// until the server has let it go: so the end of the process finds it.
    pub(super) fn end(&self, hold: &Hold) -> Result<(), Loss> {
        if hold.left().is_none() {
            self.engine.lose(hold, Loss::Expired);
        }
        // If it is not lost, the end of the process has let it go before: the server knows that.
        if !hold.end()
            && let Some(loss) = hold.loss()
        {
            return Err(loss);
        }
        Ok(())
    }

    /// Undoes a grant that reached nobody.
    pub(super) fn give_back(&self, grant: Grant) {
        let Some(hold) = self.holds.remove(grant.token) else { return };
        hold.end();
        self.losses.forget(grant.token);
        self.engine.owe(&hold.token, self.debt_of(&hold, Ending::Undone));
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

    /// It does not. The last error is told.
    pub(super) fn not_served(&self, error: &Error) {
        if self.trouble.lock().replace(error.clone()).is_none() {
            log::warn!("{}: waits cannot be served: {error}", self.keys.lock());
        }
    }

    pub(super) fn trouble(&self) -> Option<Error> {
        self.trouble.lock().clone()
    }

    /// Tells who waits that the lease ends sooner than they know.
    fn forewarn(&self) {
        let told = self.run("extend", &self.engine.scripts.forewarn, &[], wire::forewarned);
        if let Err(error) = told {
            // It is shorter all the same; they look when the old one should end.
            log::debug!("{}: who waits was not told of the shorter lease: {error}", self.keys.lock());
        }
    }

    fn run<T>(
        &self,
        operation: &'static str,
        script: &wire::Script,
        args: &[&str],
        read: fn(&Value) -> Result<T>,
    ) -> Result<T> {
        self.engine.run(operation, script, self.keys.all(self.beside_others), args, read)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        if self.engine.is_ours() {
            self.engine.forget_trouble(self.keys.lock(), std::mem::take(&mut self.trouble));
        }
    }
}

/// The backend: what a `Mutex` has of the lock. Dropped, it lets go of what is left.
pub(super) struct Redis(pub(super) Arc<Lock>);

impl Backend for Redis {
    fn try_take(&self) -> Result<Option<Grant>> {
        Ok(self.0.take(false, None)?.ok())
    }

    fn is_remote(&self) -> bool {
        true
    }

    fn take_or_line_up(&self, deadline: Option<Instant>, sleeps: bool) -> Result<Result<Grant, u64>> {
        if sleeps { self.0.take_or_listen(deadline) } else { self.0.take(true, deadline) }
    }

    fn join(&self, waiter: &Arc<Waiter>) -> Result<()> {
        let engine = &self.0.engine;
        // A place in the line is also left behind by a process that ends.
        exit::at_exit(super::farewell);
        let arrived = waiter.ticket.load(Ordering::Acquire);
        if self.0.is_direct(arrived) {
            return Ok(());
        }
        if arrived != 0 {
            return engine.arrive(arrived, waiter.clone(), self.0.clone());
        }
        let serial = engine.next_serial();
        waiter.ticket.store(serial, Ordering::Release);
        let placing = engine.placings.begin(self.0.keys.lock());
        engine.post(Event::Join { serial, waiter: waiter.clone(), lock: self.0.clone(), placing })
    }

    fn wait(&self, waiter: &Arc<Waiter>, until: Option<Instant>) -> Woken {
        self.0.listen(waiter, until)
    }

    fn nudge(&self, waiter: &Arc<Waiter>) {
        waiter.unpark();
        if waiter.is_blocking() && self.0.engine.is_ours() {
            self.0.engine.direct.ring();
        }
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        let serial = waiter.ticket.load(Ordering::Acquire);
        if serial != 0 && self.0.engine.is_ours() && !self.0.leave_directly(serial) {
            // Without a thread nobody of this process stands in line.
            let _ = self.0.engine.post(Event::Leave(serial));
        }
    }

    fn release(&self, token: u64) -> Result<()> {
        self.0.release(token)
    }

    fn ask_take(&self, on: &EventLoop, waits: bool, deadline: Option<Instant>, then: TookOrLinedUp) -> bool {
        self.0.ask_take(on, waits, deadline, then)
    }

    fn ask_release(&self, on: &EventLoop, token: u64, then: Released) {
        self.0.ask_release(on, token, then);
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
        let shortens = hold.left().is_some_and(|left| ttl < left);
        // All renewals of a hold go one way, one after the other: else a shorter one could undo this unseen.
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        let engine = &self.0.engine;
        engine.post(Event::Extend { hold, ttl, answer })?;
        match answer::of(&answered, || engine.is_ours()) {
            Ok(told) => told?,
            Err(Unanswered::Forked) => return Err(forked("extend")),
            Err(Unanswered::Ended) => {
                return Err(Error::new(ErrorKind::Panic, "extend", "the background thread ended"));
            }
        }
        if shortens {
            self.0.forewarn();
        }
        Ok(())
    }

    fn valid_for(&self, token: u64) -> Option<Duration> {
        Some(self.0.holds.find(token).and_then(|hold| hold.left()).unwrap_or_default())
    }

    fn on_lost(&self, token: u64, notify: OnLost) -> Result<()> {
        let lock = &self.0;
        let Some(hold) = lock.holds.find(token) else {
            call::run(Box::new(move || notify(Loss::Gone.error("on_lost"))));
            return Ok(());
        };
        lock.losses.listen(token, notify);
        lock.engine.listen(&hold);
        // It may have been lost just before the listener came; each listener is told once, whoever tells.
        if let Some(loss) = hold.loss() {
            lock.losses.tell(token, &loss.error("on_lost"));
        }
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let status = self.0.run("status", &self.0.engine.scripts.status, &[], wire::status)?;
        self.0.floor.fetch_max(status.token, Ordering::Relaxed);
        Ok(Status { numbers: self.0.tally.numbers(), ..status })
    }

    fn describe_owner(&self) -> Option<String> {
        self.0.seen.lock().clone().map(|(at, status)| describe_seen(at, status))
    }

    fn unserved(&self) -> Option<Error> {
        self.0.trouble()
    }

    fn silent(&self, waited: Duration) -> Option<Error> {
        self.0.engine.silent_before("acquire", waited)
    }

    fn break_lock(&self) -> Result<bool> {
        self.0.run("break", &self.0.engine.scripts.break_lock, &[&new_token()?], wire::broken)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if !self.0.engine.is_ours() {
            return;
        }
        for hold in self.0.holds.take() {
            if hold.end() {
                self.0.engine.owe(&hold.token, self.0.debt_of(&hold, Ending::Released));
                self.0.engine.unwatch(&hold);
            }
        }
    }
}
