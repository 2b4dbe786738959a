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

use super::{Worker, tracking};
use crate::backend::contract::Grant;
use crate::backend::redis::engine::arrival::Word;
use crate::backend::redis::engine::bug;
use crate::backend::redis::engine::placing::Placing;
use crate::backend::redis::lease::{self, AGAIN, jitter};
use crate::backend::redis::lock::{ASIDE, Lock};
use crate::backend::redis::token::{Token, new_token};
use crate::backend::redis::wire::Ending;
use crate::error::{Error, ErrorKind, Result};
use crate::numbers::count;
use crate::waiter::Waiter;

/// One waiter of this process.
pub(super) struct Entry {
    pub(super) waiter: Arc<Waiter>,
    pub(super) lock: Arc<Lock>,
    pub(super) token: Token,
    /// Its place in the line; 0 before it has one.
    pub(super) ticket: u64,
    /// Until the server has given it one.
    pub(super) placing: Option<Placing>,
    /// A take of it is to be sent, or was and told no place: the server may not know its token.
    pub(super) due: bool,
    /// The take that is under way.
    pub(super) call: Option<u64>,
    /// When the first take was sent of which no answer came: the server may know the token since then.
    pub(super) doubt: Option<u64>,
    /// It was granted while a take was under way.
    pub(super) again: bool,
    /// When it is to look, as it was told while a take was under way.
    pub(super) told: Option<Instant>,
    /// The take that is under way is a timer's: nothing that was told is the reason for it.
    pub(super) looking: bool,
    /// Since when it is granted the lock and its replicas are not heard.
    pub(super) unheard: Option<Instant>,
    pub(super) joined: Instant,
}

impl Drop for Entry {
    fn drop(&mut self) {
        // Nothing, for one that was settled. If a panic takes the thread, nobody may wait for ever.
        let _ = self.waiter.settle(Err(bug()));
    }
}

/// Where in its process's part of a line a waiter stands: by its ticket, and behind all of them without one.
pub(super) fn place(ticket: u64, serial: u64) -> (u64, u64) {
    (ticket.wrapping_sub(1), serial)
}

/// The waiters of one lock.
#[derive(Default)]
pub(super) struct Line {
    /// By [`place`], for the server passes over the first of a process first. Arrival is another order: who is asked
    /// for first may be heard later.
    pub(super) members: BTreeSet<(u64, u64)>,
    timer: Option<Instant>,
    /// In a cluster, where each lock has a channel.
    pub(super) ear: Ear,
    /// The server will tell when the key changes, or is being asked to.
    pub(super) tracked: bool,
    /// Since when none of its takes has been answered.
    pub(super) unserved: Option<Instant>,
}

/// Whether this process hears on a lock's channel.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Ear {
    #[default]
    Shut,
    Opening,
    Open,
    /// The server does not know such channels, or this user has no right to them.
    Refused,
}

/// On so many channels for which nobody waits this process hears.
const STALE: usize = 1_000;

pub(super) fn name(lock: &Lock) -> &str {
    lock.keys.lock()
}

impl Worker {
    pub(super) fn join(&mut self, serial: u64, waiter: Arc<Waiter>, lock: Arc<Lock>, placing: Placing) {
        if !waiter.is_waiting() {
            return count(&lock.tally.gave_up);
        }
        let token = match new_token() {
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
            count(&lock.tally.gave_up);
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
    pub(super) fn rename(&mut self, serial: u64) -> Option<Token> {
        let entry = self.entries.get_mut(&serial)?;
        let fresh = new_token().ok()?;
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
            told: None,
            looking: false,
            unheard: None,
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

    pub(super) fn is_first(&self, serial: u64, lock: &Lock) -> bool {
        self.lines.get(name(lock)).is_some_and(|line| line.members.first().is_some_and(|(_, first)| *first == serial))
    }

    pub(super) fn has_no_timer(&self, lock: &Lock) -> bool {
        self.lines.get(name(lock)).is_some_and(|line| line.timer.is_none())
    }

    /// Whether this process is told when its turn comes.
    pub(super) fn hears(&self, lock: &Lock) -> bool {
        let scripts = !self.engine.learned.forbids_scripts();
        self.link().is_some_and(|link| link.listens && scripts)
            || self.lines.get(name(lock)).is_some_and(|line| line.ear == Ear::Open)
    }

    /// Whether the first waiter of this process, at `rank` in the line, hears of what other libraries do.
    pub(super) fn hears_others(&mut self, lock: &Lock, rank: u32) -> bool {
        lock.beside_others && rank <= tracking::NEAR && self.track(lock)
    }

    pub(super) fn members(&self, lock: &str) -> Vec<u64> {
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
            line.unserved.get_or_insert_with(Instant::now);
        }
        self.timers.clear();
    }

    /// Hears no more where nobody waits, by way of a new link: the client library takes the server's word for the end of one
    /// channel for something else (`core/DESIGN.md`).
    pub(super) fn shed_channels(&mut self) {
        if self.channels.len() > self.lines.len() + STALE {
            let error = Error::new(ErrorKind::Unavailable, "acquire", "the connection is made anew");
            self.unlink(self.number(), &error);
        }
    }

    /// Looks at `wake` at the latest.
    pub(super) fn look_by(&mut self, lock: &Lock, wake: Instant) {
        let timer = self.lines.get(name(lock)).and_then(|line| line.timer);
        if timer.is_none_or(|timer| wake < timer) {
            self.set_timer(name(lock), Some(wake));
        }
    }
}
