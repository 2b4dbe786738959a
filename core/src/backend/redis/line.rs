//! This process's part of the lines: who waits for which lock, with which token and ticket.
//!
//! | a waiter | is sent | on |
//! |---|---|---|
//! | unsent | a take that joins | its arrival, unless that was sent by the caller itself; the link coming up |
//! | in the line | nothing | |
//! | in the line, first of this process | a take, by its old ticket | one timer per lock: when the lease should end; the link coming up |
//! | asked for, and told no place | the same | the same |
//! | granted | a take that confirms | the grant's message |
//! | owner | – | the answer of any of these |
//! | gone | a release, which takes it out of the line and refuses a grant | its leaving |

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use redis::{RedisResult, Value};

use super::arrival::Word;
use super::engine::{self, Debt, Ending, jitter};
use super::hold::Token;
use super::keys::Keys;
use super::lease;
use super::lock::{ASIDE, Lock};
use super::nodes::Road;
use super::placing::Placing;
use super::tracking;
use super::wire::{self, Refusal, Taken};
use super::worker::{AGAIN, Event, Worker, bug, elsewhere};
use crate::backend::contract::Grant;
use crate::error::{Error, ErrorKind, Result};
use crate::numbers::count;
use crate::wait::Waiter;

/// One waiter of this process.
pub(super) struct Entry {
    pub(super) waiter: Arc<Waiter>,
    pub(super) lock: Arc<Lock>,
    token: Token,
    /// Its place in the line; 0 before it has one.
    ticket: u64,
    /// Until the server has given it one.
    placing: Option<Placing>,
    /// A take of it is to be sent, or was and told no place: the server may not know its token.
    due: bool,
    /// The take that is under way.
    call: Option<u64>,
    /// When the first take was sent of which no answer came: the server may know the token since then.
    doubt: Option<u64>,
    /// It was granted while a take was under way.
    again: bool,
    /// The take that is under way is a timer's: nothing that was told is the reason for it.
    looking: bool,
    pub(super) joined: Instant,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Nothing, for one that was settled. If a panic takes the thread, nobody may wait for ever.
        let _ = self.waiter.settle(Err(bug()));
    }
}

/// Where in its process's part of a line a waiter stands: by its ticket, and behind all of them without one.
fn place(ticket: u64, serial: u64) -> (u64, u64) {
    (ticket.wrapping_sub(1), serial)
}

/// A take that was granted.
pub(super) struct Owned {
    fence: u64,
    abandoned: bool,
    unlined: bool,
    sent: u64,
}

/// The waiters of one lock.
#[derive(Default)]
pub(super) struct Line {
    /// By [`place`], for the server passes over the first of a process first. Arrival is another order: who is asked
    /// for first may be heard later.
    pub(super) members: BTreeSet<(u64, u64)>,
    timer: Option<Instant>,
    /// In a cluster, where each lock has a channel.
    ear: Ear,
    /// The server will tell when the key changes, or is being asked to.
    pub(super) tracked: bool,
}

/// Whether this process hears on a lock's channel.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Ear {
    #[default]
    Shut,
    Opening,
    Open,
    /// The server does not know such channels, or this user has no right to them.
    Refused,
}

/// On so many channels for which nobody waits this process hears.
const STALE: usize = 1_000;

fn name(lock: &Lock) -> &str {
    lock.keys.lock()
}

impl Worker {
    pub(super) fn join(&mut self, serial: u64, waiter: Arc<Waiter>, lock: Arc<Lock>, placing: Placing) {
        if !waiter.is_waiting() {
            return;
        }
        let token = match engine::new_token() {
            Ok(token) => token,
            Err(error) => {
                let _ = waiter.settle(Err(error));
                return;
            }
        };
        self.enter(serial, waiter, lock, token, 0, Some(placing));
        self.take(serial);
    }

    /// One that the caller's own connection has put into the line.
    pub(super) fn arrived(&mut self, serial: u64, waiter: Arc<Waiter>, lock: Arc<Lock>) {
        let Some(arrival) = self.engine.board().arrivals.take(serial) else {
            // What it stood for was given up with the thread that should have heard of it.
            let _ = waiter.settle(Err(bug()));
            return;
        };
        if !waiter.is_waiting() {
            self.engine.owe(&arrival.token, lock.debt(Ending::Undone));
            return;
        }
        let token = arrival.token.clone();
        self.enter(serial, waiter, lock.clone(), arrival.token, arrival.ticket, None);
        if self.aside.is_some_and(|until| until > Instant::now()) {
            self.leave_for_now(serial);
            return self.set_timer(name(&lock), self.aside);
        }
        match arrival.heard {
            Some(Word::Turn) => self.take(serial),
            // What was published while nobody heard is lost: it looks for itself. While the link is down, later.
            _ if arrival.link != self.number() => self.take(serial),
            // It has no place, for scripts are forbidden since the link came up: nobody will tell it.
            _ if arrival.ticket == 0 => self.take(serial),
            heard => {
                let first = self.is_first(serial, &lock);
                let looks = first || self.has_no_timer(&lock);
                let told = first && self.hears_others(&lock, arrival.rank);
                let blind = looks && arrival.foreign && !told;
                let wait = lease::recheck(arrival.left, arrival.rank, blind, jitter());
                let wake = lease::counted_from(arrival.sent, wait);
                if looks {
                    self.set_timer(name(&lock), Some(wake));
                } else {
                    self.look_by(&lock, wake);
                }
                if let Some(Word::First(left)) = heard {
                    self.first(&token, left);
                }
            }
        }
    }

    /// The process ends, and with it whoever would be granted a lock now. All leave their lines; if the process is still there
    /// after a while, they come back to their places.
    pub(super) fn step_aside(&mut self) {
        self.aside = Some(Instant::now() + ASIDE);
        for serial in self.entries.keys().copied().collect::<Vec<_>>() {
            self.leave_for_now(serial);
        }
        for lock in self.lines.keys().cloned().collect::<Vec<_>>() {
            self.set_timer(&lock, self.aside);
        }
    }

    fn leave_for_now(&mut self, serial: u64) {
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        (entry.call, entry.again) = (None, false);
        let doubt = entry.doubt.take();
        if (entry.ticket != 0 || doubt.is_some())
            && let Some(old) = self.rename(serial)
            && let Some(entry) = self.entries.get(&serial)
        {
            self.engine.owe(&old, entry.lock.debt(Ending::Undone));
        }
    }

    /// A new token for the waiter; the old one.
    fn rename(&mut self, serial: u64) -> Option<Token> {
        let entry = self.entries.get_mut(&serial)?;
        let fresh = engine::new_token().ok()?;
        let old = std::mem::replace(&mut entry.token, fresh.clone());
        entry.due = true;
        self.by_token.remove(&old);
        self.by_token.insert(fresh, serial);
        Some(old)
    }

    fn enter(
        &mut self,
        serial: u64,
        waiter: Arc<Waiter>,
        lock: Arc<Lock>,
        token: Token,
        ticket: u64,
        placing: Option<Placing>,
    ) {
        let line = match self.lines.get_mut(name(&lock)) {
            Some(line) => line,
            None => self.lines.entry(name(&lock).into()).or_default(),
        };
        line.members.insert(place(ticket, serial));
        self.by_token.insert(token.clone(), serial);
        let joined = waiter.created;
        let entry = Entry {
            waiter,
            lock,
            token,
            ticket,
            placing,
            due: false,
            call: None,
            doubt: None,
            again: false,
            looking: false,
            joined,
        };
        self.entries.insert(serial, entry);
    }

    pub(super) fn leave(&mut self, serial: u64) {
        let Some(entry) = self.forget(serial) else { return };
        count(&entry.lock.tally.gave_up);
        if entry.ticket != 0 || entry.doubt.is_some() {
            self.engine.owe(&entry.token, entry.lock.debt(Ending::Undone));
        }
        if self.has_no_timer(&entry.lock) {
            // With it may have gone the look that was under way: nobody reads its answer.
            self.set_timer(name(&entry.lock), Some(Instant::now() + AGAIN));
        }
    }

    /// Takes a waiter off the books.
    fn forget(&mut self, serial: u64) -> Option<Entry> {
        let entry = self.entries.remove(&serial)?;
        self.by_token.remove(&entry.token);
        if let Some(line) = self.lines.get_mut(name(&entry.lock)) {
            line.members.remove(&place(entry.ticket, serial));
            if line.members.is_empty() {
                self.set_timer(name(&entry.lock), None);
                self.lines.remove(name(&entry.lock));
            }
        }
        Some(entry)
    }

    /// Decides a waiter's outcome. If it has another, a grant goes back.
    pub(super) fn settle(&mut self, serial: u64, outcome: Result<Grant>) {
        let Some(entry) = self.forget(serial) else { return };
        if outcome.is_err() && (entry.ticket != 0 || entry.doubt.is_some()) {
            self.engine.owe(&entry.token, entry.lock.debt(Ending::Undone));
        }
        let granted = outcome.is_ok();
        if !granted && self.has_no_timer(&entry.lock) {
            // The look that was refused was that of all: the next one asks for itself.
            self.set_timer(name(&entry.lock), Some(Instant::now()));
        }
        match entry.waiter.settle(outcome) {
            Ok(()) if granted => {
                let waited = entry.joined.elapsed();
                entry.lock.tally.waited(waited);
                log::debug!("{}: acquired after {waited:.1?}", entry.lock.keys.lock());
                if entry.looking {
                    count(&entry.lock.tally.rechecks);
                }
            }
            Ok(()) | Err(Err(_)) => {}
            Err(Ok(late)) => entry.lock.give_back(late),
        }
    }

    pub(super) fn set_timer(&mut self, lock: &str, at: Option<Instant>) {
        let Some((name, _)) = self.lines.get_key_value(lock) else { return };
        let name = name.clone();
        let Some(line) = self.lines.get_mut(lock) else { return };
        if let Some(old) = std::mem::replace(&mut line.timer, at) {
            self.timers.remove(&(old, name.clone()));
        }
        if let Some(at) = at {
            self.timers.insert((at, name));
        }
    }

    fn is_first(&self, serial: u64, lock: &Lock) -> bool {
        self.lines.get(name(lock)).is_some_and(|line| line.members.first().is_some_and(|(_, first)| *first == serial))
    }

    fn has_no_timer(&self, lock: &Lock) -> bool {
        self.lines.get(name(lock)).is_some_and(|line| line.timer.is_none())
    }

    /// Whether this process is told when its turn comes.
    fn hears(&self, lock: &Lock) -> bool {
        let scripts = !self.engine.learned.forbids_scripts();
        self.link().is_some_and(|link| link.listens && scripts)
            || self.lines.get(name(lock)).is_some_and(|line| line.ear == Ear::Open)
    }

    /// Whether the first waiter of this process, at `rank` in the line, hears of what other libraries do.
    fn hears_others(&mut self, lock: &Lock, rank: u32) -> bool {
        lock.beside_others && rank <= tracking::NEAR && self.track(lock)
    }

    /// Sends a take for the waiter: to join, to look again, or to confirm.
    fn take(&mut self, serial: u64) {
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        entry.due = true;
        if let Some(until) = self.aside.filter(|until| *until > Instant::now()) {
            let lock = entry.lock.clone();
            return self.set_timer(name(&lock), Some(until));
        }
        let Some(link) = self.link() else { return };
        let hears = link.listens && !self.engine.learned.forbids_scripts();
        let (road, mut listens, number) = (link.road.clone(), hears, self.number());
        let now = lease::now();
        let Some(entry) = self.entries.get(&serial) else { return };
        if let Road::Cluster(_) = road {
            let lock = entry.lock.clone();
            let Some(line) = self.lines.get_mut(name(&lock)) else { return };
            if line.ear == Ear::Shut && self.channels.contains(name(&lock)) {
                line.ear = Ear::Open;
            }
            match line.ear {
                Ear::Open => listens = true,
                Ear::Refused => {}
                Ear::Opening => return,
                Ear::Shut => return self.subscribe(&lock, road),
            }
        }
        // Who cannot be told of a grant must not stand in the line; the first of this process looks for itself.
        if !listens && !self.is_first(serial, &entry.lock) {
            return;
        }
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        if entry.call.is_some() {
            entry.again = true;
            return;
        }
        if entry.doubt.is_some_and(|since| now.saturating_sub(since) > lease::nanos(entry.lock.ttl)) {
            // What the server may have given it has lapsed: a copy of that take, late, must not meet this one.
            entry.doubt = None;
            let debt = entry.lock.debt(Ending::Undone);
            let Some(old) = self.rename(serial) else { return };
            self.engine.owe(&old, debt);
        }
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        self.calls += 1;
        entry.call = Some(self.calls);
        entry.again = false;
        entry.looking = false;
        entry.doubt.get_or_insert(now);
        let (call, lock, token, ticket) = (self.calls, entry.lock.clone(), entry.token.clone(), entry.ticket);
        let (asking, asked) = (lock.clone(), token.clone());
        self.send(
            road,
            move |by_text| {
                let ask = asking.ask(&asked, listens.then_some(ticket));
                asking.engine.scripts.take(by_text, &asking.keys, &ask)
            },
            move |reply| Event::Taken { lock, token, serial, call, sent: now, number, reply },
        );
    }

    /// Before the first take of a lock in a cluster: who is in the line must hear of it.
    fn subscribe(&mut self, lock: &Arc<Lock>, mut road: Road) {
        let Some((name, _)) = self.lines.get_key_value(name(lock)) else { return };
        let (name, number) = (name.clone(), self.number());
        let Some(line) = self.lines.get_mut(&name) else { return };
        line.ear = Ear::Opening;
        let mut subscribe = redis::cmd("SSUBSCRIBE");
        subscribe.arg(lock.keys.channel(&self.engine.process));
        self.report(async move {
            let reply = road.ask(&subscribe).await;
            Event::Subscribed { lock: name, number, reply }
        });
    }

    pub(super) fn subscribed(&mut self, lock: &str, reply: RedisResult<Value>) {
        if reply.is_ok() {
            self.channels.insert(lock.into());
        }
        let Some(line) = self.lines.get_mut(lock) else { return };
        match reply {
            Ok(_) => line.ear = Ear::Open,
            Err(error) if wire::is_answer(&error) => {
                let error = self.engine.server.failed("acquire", &error);
                if error.kind() == ErrorKind::Unavailable {
                    line.ear = Ear::Shut;
                    for serial in self.members(lock) {
                        self.unserved(serial, &error);
                    }
                    return;
                }
                line.ear = Ear::Refused;
            }
            Err(error) => return self.broke(self.number(), &error),
        }
        self.retake(lock);
    }

    /// The answer to a take of one that has left, or has another token since. Asked again and again, as in a cluster
    /// while a slot is open, the server may have heard of it after what was to undo it.
    pub(super) fn taken_in_vain(&self, lock: &Lock, token: &Token, reply: &RedisResult<Value>) {
        let owned = reply.as_ref().is_ok_and(|reply| matches!(wire::taken(reply, token), Ok(Taken::Owned { .. })));
        // It is no hold, unless another answer to the same has made it one.
        if owned && self.engine.hold_with(token).is_none() {
            self.engine.owe(token, lock.debt(Ending::Undone));
        }
    }

    /// The answer to a take.
    pub(super) fn taken(&mut self, serial: u64, call: u64, sent: u64, number: u64, reply: RedisResult<Value>) {
        let Some(entry) = self.entries.get_mut(&serial).filter(|entry| entry.call == Some(call)) else { return };
        entry.call = None;
        let lock = entry.lock.clone();
        let token = entry.token.clone();
        let taken = match reply {
            Ok(reply) => match wire::taken(&reply, &token) {
                // As if the connection had been cut before it: the take is sent again, on a new one.
                Err(error) => return self.broke(number, &wire::unasked(error)),
                taken => taken,
            },
            Err(error) if wire::is_answer(&error) => Err(self.engine.server.failed("acquire", &error)),
            Err(error) => return self.broke(number, &error),
        };
        if lock.replicas == 0 || !matches!(taken, Ok(Taken::Owned { .. })) {
            entry.doubt = None;
        }
        match taken {
            Ok(Taken::Owned { fence, abandoned, unlined }) => {
                lock.served();
                self.serves();
                let owned = Owned { fence, abandoned, unlined, sent };
                if lock.replicas > 0 { self.bring_witnesses(serial, owned) } else { self.owned(serial, &owned) }
            }
            Ok(Taken::Refused(refusal)) => {
                lock.served();
                self.serves();
                self.refused(serial, &lock, refusal, sent);
            }
            Ok(Taken::Spent) => self.renamed(serial),
            Err(error) if error.kind() == ErrorKind::Unavailable => self.unserved(serial, &error),
            Err(error) => self.settle(serial, Err(error)),
        }
    }

    /// The server does not serve it now: it is tried again, until patience ends.
    fn unserved(&mut self, serial: u64, error: &Error) {
        let Some(entry) = self.entries.get(&serial) else { return };
        let lock = entry.lock.clone();
        lock.not_served(error);
        let since = lock.trouble().map(|(since, _)| since);
        if !entry.waiter.is_limited() && since.is_some_and(|since| since.elapsed() > self.patience()) {
            self.settle(serial, Err(error.clone()));
        } else {
            self.set_timer(name(&lock), Some(Instant::now() + AGAIN));
        }
    }

    /// It is a hold when the replicas have it; whoever ends the wait meanwhile gives the token back.
    fn bring_witnesses(&mut self, serial: u64, owned: Owned) {
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        self.calls += 1;
        entry.call = Some(self.calls);
        let (call, lock, token) = (self.calls, entry.lock.clone(), entry.token.clone());
        self.report(async move {
            let (asking, asked) = (lock.clone(), token);
            let told = elsewhere(move || asking.engine.witness(&asking, &asked)).await;
            let outcome = told.unwrap_or_else(|error| Err(lock.engine.server.failed("acquire", &error)));
            Event::Witnessed { serial, call, owned, outcome }
        });
    }

    /// What the replicas said.
    pub(super) fn witnessed(&mut self, serial: u64, call: u64, owned: &Owned, outcome: Result<()>) {
        let Some(entry) = self.entries.get_mut(&serial).filter(|entry| entry.call == Some(call)) else { return };
        entry.call = None;
        match outcome {
            Ok(()) => {
                entry.doubt = None;
                self.owned(serial, owned);
            }
            Err(error) => {
                let (token, debt) = (entry.token.clone(), entry.lock.debt(Ending::Undone));
                self.settle(serial, Err(error));
                // Nobody died holding it: what it heard the next one hears, and no more.
                self.engine.owe(&token, debt);
            }
        }
    }

    fn owned(&mut self, serial: u64, owned: &Owned) {
        let Some(entry) = self.entries.get(&serial) else { return };
        let lock = entry.lock.clone();
        let wiped = owned.unlined && entry.ticket != 0;
        match lock.adopt(&entry.token, owned.fence, owned.abandoned, owned.sent) {
            Ok(grant) => {
                self.settle(serial, Ok(grant));
                if wiped {
                    self.rejoin(name(&lock), serial);
                }
                // The next one's turn comes with a message; should this hold be lost, nobody sends it.
                if self.has_no_timer(&lock) {
                    let (lease, blind) = (lock.ttl.as_millis() as i64, !self.hears(&lock));
                    self.set_timer(name(&lock), Some(Instant::now() + lease::recheck(lease, 0, blind, jitter())));
                }
            }
            Err(error) if error.kind() == ErrorKind::Unavailable => self.renamed(serial),
            Err(error) => self.settle(serial, Err(error)),
        }
    }

    /// Its token is used up, its turn is not: it goes on with a new one and its old ticket.
    fn renamed(&mut self, serial: u64) {
        if self.rename(serial).is_some() {
            self.take(serial);
        }
    }

    fn refused(&mut self, serial: u64, lock: &Arc<Lock>, refusal: Refusal, sent: u64) {
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        let had = std::mem::replace(&mut entry.ticket, refusal.ticket);
        entry.due = false;
        if entry.ticket != 0 {
            entry.placing = None;
        }
        let again = entry.again;
        if let Some(line) = self.lines.get_mut(name(lock)) {
            line.members.remove(&place(had, serial));
            line.members.insert(place(refusal.ticket, serial));
        }
        let first = self.is_first(serial, lock);
        let looks = first || self.has_no_timer(lock);
        let told = first && self.hears_others(lock, refusal.rank);
        let blind = looks && (!self.hears(lock) || (refusal.foreign && !told));
        let wake = lease::counted_from(sent, lease::recheck(refusal.left, refusal.rank, blind, jitter()));
        let wiped = refusal.fresh && had != 0 && first;
        lock.saw(refusal);
        if wiped {
            self.rejoin(name(lock), serial);
        }
        if again {
            self.take(serial);
        } else if looks {
            self.set_timer(name(lock), Some(wake));
        } else {
            // The first may not know what this one saw: that it is being handed over, maybe to one that has stopped.
            self.look_by(lock, wake);
        }
    }

    /// The line was lost with the server's data, or this process was passed over while it could not be told: when one
    /// of it had no place any more, the others have none either.
    fn rejoin(&mut self, lock: &str, but: u64) {
        for other in self.members(lock) {
            if other != but {
                self.take(other);
            }
        }
    }

    fn members(&self, lock: &str) -> Vec<u64> {
        self.lines.get(lock).map(|line| line.members.iter().map(|(_, serial)| *serial).collect()).unwrap_or_default()
    }

    /// Whose timer has come looks again: the first of this process, and who never got an answer.
    pub(super) fn recheck_due(&mut self) {
        let now = Instant::now();
        while let Some((_, lock)) = self.timers.first().filter(|(at, _)| *at <= now).cloned() {
            self.set_timer(&lock, None);
            self.retake(&lock);
            for serial in self.members(&lock) {
                if let Some(entry) = self.entries.get_mut(&serial).filter(|entry| entry.call.is_some()) {
                    entry.looking = true;
                }
            }
        }
    }

    pub(super) fn retake(&mut self, lock: &str) {
        for (at, serial) in self.members(lock).into_iter().enumerate() {
            let asks = |entry: &Entry| entry.call.is_none() && (at == 0 || entry.ticket == 0 || entry.due);
            if self.entries.get(&serial).is_some_and(asks) {
                self.take(serial);
            }
        }
    }

    /// The link is up.
    pub(super) fn retake_all(&mut self) {
        for lock in self.lines.keys().cloned().collect::<Vec<_>>() {
            self.retake(&lock);
        }
    }

    /// The link is down: nothing that was sent on it will be answered.
    pub(super) fn suspend_lines(&mut self, error: &Error) {
        for entry in self.entries.values_mut() {
            entry.call = None;
            entry.again = false;
            entry.lock.not_served(error);
        }
        for line in self.lines.values_mut() {
            line.timer = None;
            line.ear = Ear::Shut;
            line.tracked = false;
        }
        self.tracking = None;
        self.timers.clear();
        self.channels.clear();
    }

    /// Hears no more where nobody waits, by way of a new link: the client library takes the server's word for the end of one
    /// channel for something else (`core/DESIGN.md`).
    pub(super) fn shed_channels(&mut self) {
        if self.channels.len() > self.lines.len() + STALE {
            let error = Error::new(ErrorKind::Unavailable, "acquire", "the connection is made anew");
            self.unlink(self.number(), &error);
        }
    }

    pub(super) fn granted(&mut self, token: &str, key: &str) {
        if let Some(serial) = self.by_token.get(token) {
            return self.take(*serial);
        }
        // On its way here, or confirmed by another take before this message came?
        if !self.engine.board().arrivals.hear(token, Word::Turn) && self.engine.hold_with(token).is_none() {
            let until = lease::now() + lease::nanos(std::time::Duration::from_secs(1));
            let debt = Debt { keys: Keys::of(key), beside_others: false, by_ear: false, ending: Ending::Undone, until };
            self.engine.owe(&token.into(), debt);
        }
    }

    pub(super) fn turn(&mut self, token: &str) {
        match self.by_token.get(token) {
            Some(serial) => self.take(*serial),
            None => drop(self.engine.board().arrivals.hear(token, Word::Turn)),
        }
    }

    pub(super) fn first(&mut self, token: &str, left: i64) {
        let Some(entry) = self.by_token.get(token).and_then(|serial| self.entries.get_mut(serial)) else {
            self.engine.board().arrivals.hear(token, Word::First(left));
            return;
        };
        if entry.call.is_some() {
            // What that call will answer may be older than this message.
            entry.again = true;
            return;
        }
        let lock = entry.lock.clone();
        let wake = Instant::now() + lease::recheck(left, 0, false, jitter());
        // It may have lain unread for long: it puts no look off. Of a lease that became longer a refused look tells.
        self.look_by(&lock, wake);
    }

    /// Looks at `wake` at the latest.
    fn look_by(&mut self, lock: &Lock, wake: Instant) {
        let timer = self.lines.get(name(lock)).and_then(|line| line.timer);
        if timer.is_none_or(|timer| wake < timer) {
            self.set_timer(name(lock), Some(wake));
        }
    }
}
