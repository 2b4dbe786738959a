//! A thread that waits for its turn by itself: it hears of it, and confirms it, on a connection that nobody else uses meanwhile.
//!
//! By way of the background thread two threads are woken one after the other, twice. There is one such connection per engine, so one
//! thread of a process waits in this way; it is made when a lock was found taken twice within a moment. All that is unusual the background
//! thread does: the waiter moves there, with a new token and its old place.
//!
//! | place | |
//! |---|---|
//! | Empty | nobody needed one yet, or it broke, or none came in time |
//! | Idle | made, and unused |
//! | Away | a thread asks or sleeps on it |
//! | Waiting | its thread is between two sleeps |
//! | Refused | the server does not speak RESP3, or forbids the channel |

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use redis::{RedisError, RedisResult, Value};

use super::ear::Ear;
use super::engine::{Debt, Engine};
use super::lease::{self, jitter};
use super::lock::{Lock, pause};
use super::server::{Connection, PATIENT};
use super::token::{Token, new_token};
use super::wire::{self, Ending, Message, Refusal, Taken};
use super::worker::Event;
use crate::backend::contract::Grant;
use crate::error::{ErrorKind, Result};
use crate::numbers::count;
use crate::sync::Guarded;
use crate::sys::futex::Woken;
use crate::sys::thread;
use crate::waiter::{self, Waiter};

/// For how long a lock that was found taken is expected to be taken again, in ns.
const CONTENDED: u64 = 1_000_000_000;
/// For how long no such connection is tried where one did not come in time or was refused, in ns: each try holds a thread up.
const SPARED: u64 = 60_000_000_000;

#[derive(Default)]
pub(super) struct Direct {
    place: Guarded<Place>,
    /// A thread has waited twice within a moment.
    wanted: AtomicBool,
    /// Until when none is tried.
    spared: AtomicU64,
    /// What is written here wakes who listens there.
    bell: OnceLock<(UnixStream, UnixStream)>,
}

#[derive(Default)]
enum Place {
    #[default]
    Empty,
    Idle(Ear),
    Away,
    Waiting(Wait),
    Refused,
}

/// One that stands in the line.
struct Wait {
    serial: u64,
    ear: Ear,
    token: Token,
    ticket: u64,
    /// When it looks by itself.
    look_at: Instant,
}

enum Next {
    /// As its caller is to be told; the wait goes on.
    Woken(Woken),
    /// It has an outcome.
    Over,
    /// It goes on in the background.
    Move,
    /// And the connection is of no use.
    Broken,
}

impl Direct {
    fn put(&self, place: Place) {
        // What was there ends outside the lock.
        let before = std::mem::replace(&mut *self.place.lock(), place);
        drop(before);
    }

    /// The wait under this number, if its thread is not away with it.
    fn waiting(&self, serial: u64) -> Option<Wait> {
        let mut place = self.place.lock();
        match std::mem::replace(&mut *place, Place::Away) {
            Place::Waiting(wait) if wait.serial == serial => Some(wait),
            other => {
                *place = other;
                None
            }
        }
    }

    /// Wakes who listens.
    pub(super) fn ring(&self) {
        if let Some((near, _)) = self.bell.get() {
            let mut bell: &UnixStream = near;
            // It is full only if it rings already.
            let _ = bell.write(&[1]);
        }
    }

    /// Ends what nobody uses; false if somebody does.
    pub(super) fn make_way(&self) -> bool {
        let mut place = self.place.lock();
        match std::mem::take(&mut *place) {
            Place::Empty | Place::Idle(_) => true,
            other => {
                *place = other;
                matches!(*place, Place::Refused)
            }
        }
    }

    /// In a forked child: the parent's socket.
    pub(super) fn forget(&mut self) {
        std::mem::forget(std::mem::take(self.place.get_mut()));
    }
}

impl Engine {
    /// The connection, if there is one and it is free.
    fn ear(&self) -> Option<Ear> {
        let mut place = self.direct.place.lock();
        match std::mem::replace(&mut *place, Place::Away) {
            Place::Idle(ear) if ear.changes == self.changes() => return Some(ear),
            Place::Idle(_) => *place = Place::Empty,
            other => *place = other,
        }
        None
    }

    /// Makes it, for the next time. Where an event loop has a connection there is none: three are enough.
    fn prepare_ear(&self) {
        let begins = || {
            let mut place = self.direct.place.lock();
            let empty = matches!(*place, Place::Empty);
            if empty {
                *place = Place::Away;
            }
            empty
        };
        if !self.takes_place_of_exchange(begins) {
            return;
        }
        let refused = |error: &RedisError| wire::is_without_resp3(error) || error.code() == Some("NOPERM");
        let made = self.make_ear();
        if !self.is_ours() {
            // Signals were kept back meanwhile: a handler has forked just now.
            return;
        }
        self.direct.put(match made {
            Ok(Some(ear)) => Place::Idle(ear),
            Ok(None) => Place::Refused,
            Err(error) if refused(&error) => Place::Refused,
            Err(error) => {
                if error.is_timeout() || wire::is_answer(&error) {
                    // Far away, or full: the next one would do no better.
                    self.direct.spared.store(lease::now() + SPARED, Ordering::Relaxed);
                }
                Place::Empty
            }
        });
    }

    /// `None` if such a connection cannot be listened to in this way.
    fn make_ear(&self) -> RedisResult<Option<Ear>> {
        if self.direct.bell.get().is_none() {
            let (near, far) = UnixStream::pair()?;
            near.set_nonblocking(true)?;
            far.set_nonblocking(true)?;
            let _ = self.direct.bell.set((near, far));
        }
        let changes = self.changes();
        let _undisturbed = thread::Undisturbed::enter();
        // The server has just answered; a wait may end while this goes on.
        match self.server.connect(&self.learned, self.server.connect_timeout.min(PATIENT))? {
            Connection::One(single, _) if single.can_be_watched() => {
                let channel = format!("ipcmutex:w:{}", self.ear_process);
                Ear::open(single.into_stream(), changes, &channel, PATIENT).map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl Lock {
    /// [`Lock::take`] for a thread that sleeps if it comes to nothing.
    pub(super) fn take_or_listen(self: &Arc<Lock>, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
        if let Some(outcome) = self.take_directly(deadline) {
            return outcome;
        }
        let outcome = self.take(true, deadline);
        if matches!(outcome, Ok(Err(_))) {
            let now = lease::now();
            let before = self.contended.swap(now, Ordering::Relaxed);
            let direct = &self.engine.direct;
            if now.saturating_sub(before) < CONTENDED
                && now >= direct.spared.load(Ordering::Relaxed)
                && self.may_listen()
            {
                direct.wanted.store(true, Ordering::Relaxed);
            }
        }
        outcome
    }

    fn may_listen(&self) -> bool {
        let (server, learned) = (&self.engine.server, &self.engine.learned);
        let alone = !self.beside_others && self.replicas == 0;
        alone && !server.is_cluster() && !server.is_resp2(learned) && !learned.forbids_scripts()
    }

    /// `None`: not in this way.
    fn take_directly(self: &Arc<Lock>, deadline: Option<Instant>) -> Option<Result<Result<Grant, u64>>> {
        let engine = &self.engine;
        let contended = lease::now().saturating_sub(self.contended.load(Ordering::Relaxed)) < CONTENDED;
        if !contended || !self.may_listen() || engine.placings.any(self.keys.lock()) {
            return None;
        }
        let mut ear = engine.ear()?;
        let attempt = new_token().map(|token| (token, engine.next_serial()));
        let (token, serial) = match attempt {
            Ok(attempt) if pause().is_none() => attempt,
            _ => {
                engine.direct.put(Place::Idle(ear));
                return None;
            }
        };
        engine.board().arrivals.announce_direct(serial, &token, self);
        let (answer, sent) = self.ask_by_ear(&mut ear, &token, 0, self.limit(deadline));
        if !engine.is_ours() {
            // As in `take_as`.
            return Some(Err(waiter::forked()));
        }
        match answer {
            Ok(Taken::Refused(refusal)) => {
                self.served();
                self.contended.store(lease::now(), Ordering::Relaxed);
                let ticket = refusal.ticket;
                let look_at = self.look_at(&refusal, sent);
                self.saw(refusal);
                engine.direct.put(Place::Waiting(Wait { serial, ear, token, ticket, look_at }));
                Some(Ok(Err(serial)))
            }
            Ok(Taken::Owned { fence, abandoned, .. }) => {
                engine.direct.put(Place::Idle(ear));
                self.served();
                let outcome = self.adopt(&token, fence, abandoned, sent).map(Ok);
                engine.board().arrivals.take(serial);
                Some(outcome)
            }
            Ok(Taken::Spent) | Err(_) => {
                drop(ear);
                engine.direct.put(Place::Empty);
                engine.owe(&token, self.debt_by_ear());
                engine.board().arrivals.take(serial);
                None
            }
        }
    }

    /// Asks, and says when. Not, if the process ends.
    fn ask_by_ear(
        self: &Arc<Lock>,
        ear: &mut Ear,
        token: &Token,
        ticket: u64,
        limit: Duration,
    ) -> (RedisResult<Taken>, u64) {
        let engine = &self.engine;
        let mut ask = self.ask(token, Some(ticket));
        (ask.process, ask.home) = (&engine.ear_process, Some(engine.process.as_str()));
        let command = |by_text| engine.scripts.take(by_text, &self.keys, &ask);
        // A signal would cut an answer in two.
        let _undisturbed = thread::Undisturbed::enter();
        let _taking = engine.begin_taking();
        if pause().is_some() {
            // The end of the process did not see that this is under way, and it is not.
            return (Err(wire::misplaced()), 0);
        }
        let sent = lease::now();
        let mut talk = || -> RedisResult<Value> {
            ear.set_limit(limit)?;
            match ear.ask(&command(false)) {
                Err(error) if wire::is_unknown_script(&error) => ear.ask(&command(true)),
                answer => answer,
            }
        };
        (talk().and_then(|reply| wire::taken(&reply, token).map_err(wire::unasked)), sent)
    }

    fn look_at(&self, refusal: &Refusal, sent: u64) -> Instant {
        lease::counted_from(sent, lease::recheck(refusal.left, refusal.rank, refusal.foreign, jitter()))
    }

    fn debt_by_ear(&self) -> Debt {
        Debt { by_ear: true, ..self.debt(Ending::Undone) }
    }

    /// Whether the waiter under this number is one that listens by itself.
    pub(super) fn is_direct(&self, serial: u64) -> bool {
        self.engine.board().arrivals.of(serial).is_some_and(|arrival| arrival.direct)
    }

    /// Sleeps as [`Waiter::park`] does, and takes the lock when its turn comes.
    pub(super) fn listen(self: &Arc<Lock>, waiter: &Arc<Waiter>, until: Option<Instant>) -> Woken {
        let direct = &self.engine.direct;
        let Some(mut wait) = direct.waiting(waiter.ticket.load(Ordering::Acquire)) else {
            // To connect may take PATIENT twice: who waits no longer than that leaves it to the next one.
            let has_time = waiter.deadline.is_none_or(|end| end > Instant::now() + 2 * PATIENT);
            if has_time && direct.wanted.swap(false, Ordering::Relaxed) {
                self.engine.prepare_ear();
                if !self.engine.is_ours() {
                    // Nobody of this process would wake it.
                    return Woken::Interrupted;
                }
            }
            return waiter.park(until);
        };
        match self.listen_for(&mut wait, waiter, until) {
            Next::Woken(woken) => {
                let serial = wait.serial;
                direct.put(Place::Waiting(wait));
                // Who has ended it may have looked for it here before.
                if !waiter.is_waiting()
                    && let Some(wait) = direct.waiting(serial)
                {
                    direct.put(Place::Idle(wait.ear));
                }
                return woken;
            }
            Next::Over => direct.put(Place::Idle(wait.ear)),
            Next::Move => {
                let Wait { serial, ear, token, ticket, .. } = wait;
                direct.put(Place::Idle(ear));
                self.move_on(waiter, serial, &token, ticket);
            }
            Next::Broken => {
                let Wait { serial, ear, token, ticket, .. } = wait;
                drop(ear);
                direct.put(Place::Empty);
                self.move_on(waiter, serial, &token, ticket);
            }
        }
        Woken::Changed
    }

    fn listen_for(self: &Arc<Lock>, wait: &mut Wait, waiter: &Waiter, until: Option<Instant>) -> Next {
        let Some((_, bell)) = self.engine.direct.bell.get() else { return Next::Move };
        loop {
            let mut mine = false;
            for text in wait.ear.told() {
                // What is for another token is for one that has left.
                match wire::message(&text) {
                    // A turn is told by one of ours that shares the key with other libraries.
                    Some(Message::Granted { token, .. } | Message::Turn { token }) => mine |= *token == *wait.token,
                    Some(Message::First { token, left }) if *token == *wait.token => {
                        // It may have lain unread for long: it puts no look off.
                        let look_at = Instant::now() + lease::recheck(left, 0, false, jitter());
                        wait.look_at = wait.look_at.min(look_at);
                    }
                    _ => {}
                }
            }
            if !waiter.is_waiting() {
                return Next::Over;
            }
            if wait.ear.changes != self.engine.changes() || pause().is_some() {
                return Next::Move;
            }
            if mine || wait.look_at <= Instant::now() {
                if let Some(next) = self.confirm(wait, waiter, !mine) {
                    return next;
                }
                continue;
            }
            let end = until.map_or(wait.look_at, |until| until.min(wait.look_at));
            match wait.ear.listen(bell, end) {
                Ok(None) => {}
                Ok(Some(Woken::TimedOut)) if until.is_none_or(|until| until > Instant::now()) => {}
                // Nudged: it has ended, most probably.
                Ok(Some(Woken::Changed)) if !waiter.is_waiting() => {}
                Ok(Some(woken)) => return Next::Woken(woken),
                Err(_) => return Next::Broken,
            }
        }
    }

    /// Takes what was granted, or looks whether it is free; `None` if it is to be waited for still.
    fn confirm(self: &Arc<Lock>, wait: &mut Wait, waiter: &Waiter, looking: bool) -> Option<Next> {
        let limit = self.limit(waiter.deadline);
        let (answer, sent) = self.ask_by_ear(&mut wait.ear, &wait.token, wait.ticket, limit);
        if !self.engine.is_ours() {
            return Some(Next::Woken(Woken::Interrupted));
        }
        let outcome = match answer {
            Ok(Taken::Refused(refusal)) => {
                self.served();
                wait.ticket = refusal.ticket;
                wait.look_at = self.look_at(&refusal, sent);
                self.saw(refusal);
                if !waiter.is_waiting() {
                    // The server may have heard of its leaving before this, which put it back.
                    self.engine.owe(&wait.token, self.debt_by_ear());
                }
                return None;
            }
            Ok(Taken::Owned { fence, abandoned, .. }) => self.adopt(&wait.token, fence, abandoned, sent),
            Ok(Taken::Spent) => return Some(Next::Move),
            Err(error) => return Some(if wire::is_answer(&error) { Next::Move } else { Next::Broken }),
        };
        self.served();
        if outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable) {
            // The answer took longer than the lease lasts.
            return Some(Next::Move);
        }
        self.engine.board().arrivals.take(wait.serial);
        let granted = outcome.is_ok();
        match waiter.settle(outcome) {
            Ok(()) if granted => {
                let waited = waiter.created.elapsed();
                self.tally.waited(waited);
                log::debug!("{}: acquired after {waited:.1?}", self.keys.lock());
                if looking {
                    count(&self.tally.rechecks);
                }
            }
            Ok(()) | Err(Err(_)) => {}
            Err(Ok(late)) => self.give_back(late),
        }
        Some(Next::Over)
    }

    /// The background thread goes on with a new token, at its old place.
    fn move_on(self: &Arc<Lock>, waiter: &Arc<Waiter>, serial: u64, old: &Token, ticket: u64) {
        let moved = new_token().and_then(|fresh| {
            let moves = self.engine.board().arrivals.moves(serial, fresh, ticket);
            // It lines up before the old token is given up: if that was granted the lock, nobody behind is to get it.
            let posted = if moves {
                self.engine.post(Event::Arrived { serial, waiter: waiter.clone(), lock: self.clone() })
            } else {
                Ok(())
            };
            // Also for one that has left: maybe before what it asked last, which put it back.
            self.engine.owe(old, self.debt_by_ear());
            posted
        });
        if let Err(error) = moved {
            let _ = waiter.settle(Err(error));
        }
    }

    /// The waiter has ended; whether it was one of these.
    pub(super) fn leave_directly(self: &Arc<Lock>, serial: u64) -> bool {
        let Some(token) = self.engine.board().arrivals.take_direct(serial) else { return false };
        count(&self.tally.gave_up);
        self.engine.owe(&token, self.debt_by_ear());
        if let Some(wait) = self.engine.direct.waiting(serial) {
            self.engine.direct.put(Place::Idle(wait.ear));
        }
        true
    }
}
