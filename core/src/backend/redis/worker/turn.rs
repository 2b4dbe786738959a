//! The takes of who waits (`line`), and what is answered and told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};

use super::line::{Ear, name, place};
use super::{Event, Worker};
use crate::backend::redis::engine::Debt;
use crate::backend::redis::engine::arrival::Word;
use crate::backend::redis::keys::Keys;
use crate::backend::redis::lease::{self, AGAIN, jitter};
use crate::backend::redis::lock::Lock;
use crate::backend::redis::server::{Road, elsewhere};
use crate::backend::redis::token::Token;
use crate::backend::redis::wire::{self, Ending, Refusal, Taken};
use crate::backend::redis::witness::Unwitnessed;
use crate::error::{Error, ErrorKind, Result};

/// A take that was granted.
pub(crate) struct Owned {
    fence: u64,
    abandoned: bool,
    unlined: bool,
    sent: u64,
}

impl Worker {
    /// Sends a take for the waiter: to join, to look again, or to confirm.
    pub(super) fn take(&mut self, serial: u64) {
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
        self.serials += 1;
        entry.call = Some(self.serials);
        (entry.again, entry.told) = (false, None);
        entry.looking = false;
        let (call, lock, token, ticket) = (self.serials, entry.lock.clone(), entry.token.clone(), entry.ticket);
        let (asking, asked) = (lock.clone(), token.clone());
        let keys = lock.keys.clone();
        self.send(
            keys.lock(),
            // Who has left meanwhile leaves nothing behind.
            move |worker| match worker.entries.get_mut(&serial).filter(|entry| entry.call == Some(call)) {
                Some(entry) => {
                    entry.doubt.get_or_insert(lease::now());
                    true
                }
                None => false,
            },
            move |by_text| {
                let ask = asking.ask(&asked, listens.then_some(ticket));
                asking.engine.scripts.take(by_text, &asking.keys, &ask)
            },
            move |sent, reply| Event::Taken { lock, token, serial, call, sent, number, reply },
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
                let owned = Owned { fence, abandoned, unlined, sent };
                if lock.replicas > 0 {
                    // It is not served before the replicas were heard.
                    self.serves();
                    self.bring_witnesses(serial, owned);
                } else {
                    self.served(&lock);
                    self.owned(serial, &owned);
                }
            }
            Ok(Taken::Refused(refusal)) => {
                self.served(&lock);
                self.refused(serial, &lock, refusal, sent);
            }
            Ok(Taken::Spent) => self.renamed(serial),
            Err(error) if error.kind() == ErrorKind::Unavailable => self.unserved(serial, &error),
            Err(error) => self.settle(serial, Err(error)),
        }
    }

    /// The server answered a take.
    fn served(&mut self, lock: &Lock) {
        lock.served();
        if let Some(line) = self.lines.get_mut(name(lock)) {
            line.unserved = None;
        }
        self.serves();
    }

    /// The server does not serve it now: it is tried again, until patience ends.
    fn unserved(&mut self, serial: u64, error: &Error) {
        let Some(entry) = self.entries.get(&serial) else { return };
        let lock = entry.lock.clone();
        lock.not_served(error);
        let Some(line) = self.lines.get_mut(name(&lock)) else { return };
        let since = (*line.unserved.get_or_insert_with(Instant::now)).max(entry.joined);
        if !entry.waiter.is_limited() && since.elapsed() > self.patience() {
            self.settle(serial, Err(error.clone()));
        } else {
            self.set_timer(name(&lock), Some(Instant::now() + AGAIN));
        }
    }

    /// It is a hold when the replicas have it; whoever ends the wait meanwhile gives the token back.
    fn bring_witnesses(&mut self, serial: u64, owned: Owned) {
        let Some(entry) = self.entries.get_mut(&serial) else { return };
        self.serials += 1;
        entry.call = Some(self.serials);
        let (call, lock, token, begun) = (self.serials, entry.lock.clone(), entry.token.clone(), Instant::now());
        self.report(async move {
            let (asking, asked) = (lock.clone(), token);
            let told = elsewhere(move || asking.engine.witness(&asking, &asked, begun, None)).await;
            let outcome = told.unwrap_or_else(|error| Err(lock.engine.server.failed("acquire", &error).into()));
            Event::Witnessed { serial, call, owned, outcome }
        });
    }

    /// What the replicas said.
    pub(super) fn witnessed(&mut self, serial: u64, call: u64, owned: &Owned, outcome: Result<(), Unwitnessed>) {
        let Some(entry) = self.entries.get_mut(&serial).filter(|entry| entry.call == Some(call)) else { return };
        entry.call = None;
        let (lock, token) = (entry.lock.clone(), entry.token.clone());
        let Unwitnessed { error, short } = match outcome {
            Ok(()) => {
                entry.doubt = None;
                self.served(&lock);
                return self.owned(serial, owned);
            }
            Err(unwitnessed) => unwitnessed,
        };
        // They were not heard, which may pass. What was granted is given back and never believed: it goes on with another token.
        // Not by the line's clock: the server serves the line, and others of it are refused meanwhile.
        let since = *entry.unheard.get_or_insert_with(Instant::now);
        let over = !entry.waiter.is_limited() && since.elapsed() > self.patience();
        if !over && !short && error.kind() == ErrorKind::Unavailable && self.rename(serial).is_some() {
            if let Some(entry) = self.entries.get_mut(&serial) {
                entry.doubt = None;
            }
            self.unserved(serial, &error);
        } else {
            self.served(&lock);
            self.settle(serial, Err(error));
        }
        // Nobody died holding it: what it heard the next one hears, and no more.
        self.engine.owe(&token, lock.debt(Ending::Undone));
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
        let (again, told_at) = (entry.again, entry.told);
        if let Some(line) = self.lines.get_mut(name(lock)) {
            line.members.remove(&place(had, serial));
            line.members.insert(place(refusal.ticket, serial));
        }
        let first = self.is_first(serial, lock);
        let looks = first || self.has_no_timer(lock);
        // While a turn is out no key is there to listen for: it would be found gone, and taken in vain, over and over. What the
        // turn has left says when to look.
        let told = first && !refusal.handed && self.hears_others(lock, refusal.rank);
        let blind = looks && (!self.hears(lock) || (refusal.foreign && !told));
        let wake = lease::counted_from(sent, lease::recheck(refusal.left, refusal.rank, blind, jitter()));
        let wake = told_at.map_or(wake, |at| at.min(wake));
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

    pub(super) fn granted(&mut self, token: &str, key: &str) {
        if let Some(serial) = self.by_token.get(token) {
            return self.take(*serial);
        }
        // On its way here, or confirmed by another take before this message came?
        if !self.engine.board().arrivals.hear(token, Word::Turn) && self.engine.hold_with(token).is_none() {
            let until = lease::now() + lease::nanos(Duration::from_secs(1));
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
        let wake = Instant::now() + lease::recheck(left, 0, false, jitter());
        if entry.call.is_some() {
            // What that call will answer may be older than this message. To ask at once would have those who look at the same time
            // keep each other at it: each look tells the others.
            entry.told = Some(entry.told.map_or(wake, |told| told.min(wake)));
            return;
        }
        let lock = entry.lock.clone();
        // It may have lain unread for long: it puts no look off. Of a lease that became longer a refused look tells.
        self.look_by(&lock, wake);
    }
}
