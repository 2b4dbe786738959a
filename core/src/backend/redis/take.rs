//! Taking the lock, and letting it go: one script each, asked on the caller's connection or on an event loop's own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::engine::exchange::{Question, Unheard};
use super::engine::{self, Debt, Failed};
use super::hold::{Hold, Loss};
use super::lease;
use super::lock::{Lock, pause};
use super::server::{Connection, PATIENT};
use super::token::{Token, new_token};
use super::wire::{self, Ending, Taken};
use crate::backend::contract::{Grant, Released, TookOrLinedUp};
use crate::error::{Error, ErrorKind, Result, forked};
use crate::event_loop::EventLoop;
use crate::numbers::count;
use crate::service::offload::offload;
use crate::waiter;

/// A take that may be sent.
struct Attempt {
    token: Token,
    /// Under which it lines up, if it does.
    serial: Option<u64>,
}

/// A hold that has ended on this side.
struct Ended {
    fence: u64,
    hold: Arc<Hold>,
    debt: Debt,
}

impl Lock {
    /// Takes the lock on the caller's connection; else, if this process hears of its turn, lines up there when
    /// `waits`, and says under which number.
    pub(super) fn take(self: &Arc<Lock>, waits: bool, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
        let Some(attempt) = self.attempt(waits)? else { return self.behind_our_own() };
        let outcome = self.take_as(&attempt, deadline, false);
        self.attempted(&attempt, outcome)
    }

    /// Somebody of this process was first, and is on the way to the line, as far as the server lets it.
    fn behind_our_own(&self) -> Result<Result<Grant, u64>> {
        self.trouble().map_or(Ok(Err(0)), Err)
    }

    /// `None` if somebody of this process goes first.
    fn attempt(self: &Arc<Lock>, waits: bool) -> Result<Option<Attempt>> {
        if self.engine.placings.any(self.keys.lock()) {
            return Ok(None);
        }
        let token = new_token()?;
        let serial = self.engine.next_serial();
        let lines_up = waits && self.engine.board().arrivals.announce(serial, &token, self);
        Ok(Some(Attempt { token, serial: lines_up.then_some(serial) }))
    }

    fn attempted(&self, attempt: &Attempt, outcome: Result<Result<Grant, u64>>) -> Result<Result<Grant, u64>> {
        if let (Some(serial), Ok(Ok(_)) | Err(_)) = (attempt.serial, &outcome)
            && self.engine.is_ours()
        {
            self.engine.board().arrivals.take(serial);
        }
        outcome
    }

    /// `again`: it was sent before, and no answer came.
    fn take_as(
        self: &Arc<Lock>,
        attempt: &Attempt,
        deadline: Option<Instant>,
        again: bool,
    ) -> Result<Result<Grant, u64>> {
        let engine = &self.engine;
        let mut sent = 0;
        let mut taking = None;
        let mut call = |connection: &mut Connection| {
            // The end of the process sees that this goes out, or this sees that it has begun.
            if taking.is_none() {
                let begun = engine.begin_taking();
                if pause().is_some() {
                    return Ok(None);
                }
                taking = Some(begun);
            }
            // Before the send, and again before a second one: that is where the lease begins at the latest.
            sent = lease::now();
            let patience = engine.server.patience();
            let left = self.limit(deadline);
            if left < patience {
                connection.set_limit(left);
            }
            let reply = engine::run(connection, |by_text| self.take_command(by_text, attempt));
            if left < patience {
                connection.set_limit(patience);
            }
            wire::taken(&reply?, &attempt.token).map(Some).map_err(wire::unasked)
        };
        let answer = loop {
            match engine.call_on(&engine.caller, deadline, "acquire", &mut call) {
                // The process ends, most probably in this sleep: there is one, not one after another.
                Ok(None) => std::thread::sleep(pause().unwrap_or_default()),
                Ok(Some(taken)) => break Ok(taken),
                Err(failed) => break Err(failed),
            }
        };
        if !engine.is_ours() {
            // Signals were kept back while it was asked: a handler has forked just now.
            return Err(waiter::forked());
        }
        match answer {
            Ok(taken) => self.taken(attempt, taken, sent, deadline),
            Err(Failed { error, in_doubt }) => {
                engine.connect_ahead();
                Err(self.not_taken(attempt, error, in_doubt || again))
            }
        }
    }

    fn take_command(&self, by_text: bool, attempt: &Attempt) -> redis::Cmd {
        let ask = self.ask(&attempt.token, attempt.serial.map(|_| 0));
        self.engine.scripts.take(by_text, &self.keys, &ask)
    }

    /// How long an answer may take.
    pub(super) fn limit(&self, deadline: Option<Instant>) -> Duration {
        let patience = self.engine.server.patience();
        let left = deadline.map(|end| end.saturating_duration_since(Instant::now()).max(PATIENT));
        left.map_or(patience, |left| left.min(patience))
    }

    fn not_taken(self: &Arc<Lock>, attempt: &Attempt, error: Error, in_doubt: bool) -> Error {
        if in_doubt {
            self.engine.owe(&attempt.token, self.debt(Ending::Undone));
        }
        if error.kind() == ErrorKind::Unavailable {
            // Who waits for the server to come back must hear of this if it does not.
            self.not_served(&error);
        }
        error
    }

    /// What the server said to a take that was sent at `sent`.
    fn taken(
        self: &Arc<Lock>,
        attempt: &Attempt,
        taken: Taken,
        sent: u64,
        deadline: Option<Instant>,
    ) -> Result<Result<Grant, u64>> {
        let (engine, token) = (&self.engine, &attempt.token);
        self.served();
        match taken {
            Taken::Owned { fence, abandoned, .. } => {
                if self.replicas > 0 {
                    let witnessed = engine.witness(self, token, Instant::now(), deadline);
                    if !engine.is_ours() {
                        // As in `take_as`: it is the parent's hold.
                        return Err(waiter::forked());
                    }
                    if let Err(unwitnessed) = witnessed {
                        engine.owe(token, self.debt(Ending::Undone));
                        return Err(unwitnessed.error);
                    }
                }
                self.adopt(token, fence, abandoned, sent).map(Ok)
            }
            Taken::Refused(refusal) => {
                if let Some(serial) = attempt.serial
                    && let Some(arrival) = engine.board().arrivals.of(serial)
                {
                    (arrival.ticket, arrival.sent) = (refusal.ticket, sent);
                    (arrival.left, arrival.rank, arrival.foreign) = (refusal.left, refusal.rank, refusal.foreign);
                }
                self.saw(refusal);
                Ok(Err(attempt.serial.unwrap_or(0)))
            }
            Taken::Spent => {
                Err(Error::new(ErrorKind::Protocol, "acquire", "the server knows a token that was never used"))
            }
        }
    }

    /// [`Lock::take`] for an event loop: asked on its own connection, or by a thread of the library.
    pub(super) fn ask_take(
        self: &Arc<Lock>,
        on: &EventLoop,
        waits: bool,
        deadline: Option<Instant>,
        then: TookOrLinedUp,
    ) -> bool {
        let attempt = match self.attempt(waits) {
            Ok(Some(attempt)) => attempt,
            Ok(None) => {
                then(self.behind_our_own());
                return false;
            }
            Err(error) => {
                then(Err(error));
                return false;
            }
        };
        let lock = self.clone();
        let exchange = self.engine.exchange_of(on).filter(|_| self.replicas == 0 && pause().is_none());
        let Some(exchange) = exchange else {
            let on = on.clone();
            offload(move || {
                let outcome = lock.take_as(&attempt, deadline, false);
                then(lock.attempted(&attempt, outcome));
                lock.engine.lay_exchange(&on);
            });
            return true;
        };
        let sent = lease::now();
        let words = self.take_command(false, &attempt).get_packed_command();
        let leaves = Some((attempt.token.clone(), self.debt(Ending::Undone)));
        let asking = self.engine.asking();
        let told = move |answer: Result<Value, Unheard>| {
            drop(asking);
            let taken = answer.map(|reply| wire::taken(&reply, &attempt.token));
            let late = lease::now() >= lease::deadline(sent, lock.ttl);
            match taken {
                Ok(Ok(taken)) if !late => {
                    let outcome = lock.taken(&attempt, taken, sent, deadline);
                    then(lock.attempted(&attempt, outcome));
                }
                Err(Unheard::Silent) => {
                    let error = lock.not_taken(&attempt, lock.engine.silent("acquire"), true);
                    then(lock.attempted(&attempt, Err(error)));
                }
                // With the same token, where everything that a server may say is understood.
                other => offload(move || {
                    let again = !matches!(other, Err(Unheard::Unasked));
                    let outcome = lock.take_as(&attempt, deadline, again);
                    then(lock.attempted(&attempt, outcome));
                }),
            }
        };
        let question = Question { words, limit: self.limit(deadline), leaves, then: Box::new(told) };
        exchange.ask(question);
        // Where that is cut, a thread goes on.
        true
    }

    // ---- letting go

    pub(super) fn release(self: &Arc<Lock>, fence: u64) -> Result<()> {
        let ended = self.ended(fence)?;
        self.let_go(&ended, 0)
    }

    /// [`Lock::release`] for an event loop.
    pub(super) fn ask_release(self: &Arc<Lock>, on: &EventLoop, fence: u64, then: Released) {
        let ended = match self.ended(fence) {
            Ok(ended) => ended,
            Err(error) => return then(Err(error)),
        };
        let lock = self.clone();
        let Some(exchange) = self.engine.exchange_of(on) else {
            let on = on.clone();
            return offload(move || {
                then(lock.let_go(&ended, 0));
                lock.engine.lay_exchange(&on);
            });
        };
        let words = self.engine.release_command(false, &ended.hold.token, &ended.debt).get_packed_command();
        let asking = self.engine.asking();
        let told = move |answer: Result<Value, Unheard>| {
            drop(asking);
            let refused = answer.as_ref().is_ok_and(wire::is_refusal);
            match answer.map(|reply| wire::released(&reply)) {
                Ok(Ok(stood)) => then(lock.released(&ended, Ok(stood))),
                Err(Unheard::Silent) => {
                    let error = lock.engine.silent("release");
                    then(lock.released(&ended, Err(Failed { error, in_doubt: true })));
                }
                Err(Unheard::Unasked) => offload(move || then(lock.let_go(&ended, 0))),
                _ if refused => offload(move || then(lock.let_go(&ended, 0))),
                _ => offload(move || then(lock.let_go(&ended, 1))),
            }
        };
        let limit = self.engine.server.patience();
        exchange.ask(Question { words, limit, leaves: None, then: Box::new(told) });
    }

    /// Ends the hold on this side.
    fn ended(self: &Arc<Lock>, fence: u64) -> Result<Ended> {
        let Some(hold) = self.holds.remove(fence) else { return Err(Loss::Gone.error("release")) };
        if let Err(loss) = self.end(&hold) {
            if loss == Loss::Expired {
                // By the server's clock it may stand a little longer: nobody needs to wait for that.
                self.engine.owe(&hold.token, self.debt_of(&hold, Ending::Lost));
            }
            return Err(loss.error("release"));
        }
        let debt = self.debt_of(&hold, Ending::Released);
        Ok(Ended { fence, hold, debt })
    }

    /// On the caller's connection, where it was said `before` so often.
    fn let_go(self: &Arc<Lock>, ended: &Ended, before: u32) -> Result<()> {
        let engine = &self.engine;
        let mut sends = before;
        let answer = engine.call("release", |connection| {
            // What nobody hears is not said: it would leave it in doubt whose a lock is that the server has forgotten.
            if connection.has_ended() {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
            }
            sends += 1;
            let reply =
                engine::run(connection, |by_text| engine.release_command(by_text, &ended.hold.token, &ended.debt));
            if reply.as_ref().is_err_and(wire::did_nothing) {
                sends -= 1;
            }
            wire::released(&reply?).map_err(wire::unasked)
        });
        if !engine.is_ours() {
            // As in `take_as`: it is the parent's to tell.
            return Err(forked("release"));
        }
        // Sent twice, the first may have released it and somebody else may have held it since: the server remembers only
        // the last release. By our own clock the lease stood, so that is what a "not yours" to the second means.
        self.released(ended, answer.map(|stood| stood || sends > 1))
    }

    fn released(self: &Arc<Lock>, ended: &Ended, answer: Result<bool, Failed>) -> Result<()> {
        if answer.is_err() {
            self.engine.owe(&ended.hold.token, ended.debt.clone());
        }
        self.engine.unwatch(&ended.hold);
        match answer {
            Ok(true) => {
                self.losses.forget(ended.fence);
                Ok(())
            }
            Ok(false) => {
                let error = Loss::Gone.error("release");
                count(&self.tally.losses);
                self.losses.tell(ended.fence, &error);
                Err(error)
            }
            Err(Failed { error, .. }) => {
                self.losses.forget(ended.fence);
                Err(error)
            }
        }
    }
}
