//! The holds on some servers, of all locks: at a third of its lease each is renewed, those that are due at about the same time in
//! one call to each server; and whose lease runs out is told.
//!
//! The servers vote on each hold by itself, and what they say is told as soon as it is decided: one hold that some do not
//! know, or a server that hangs, keeps no other waiting. Where a call is refused it may be for one hold that is not allowed: then each
//! goes by itself.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, OwnedMutexGuard};

use super::super::hold::Loss;
use super::super::lease::{self, AGAIN, BATCH, TOGETHER};
use super::super::wire;
use super::lock::Held;
use super::quorum::{Dial, Quorum, Vote, Voters};
use super::round::Poll;
use crate::error::{Error, Result};

/// So small a part of what is left of a lease may pass before a renewal dials a server that others could not reach: a short one
/// must not end of a pause that they have made long.
const PART: u32 = 10;

/// The holds, by when each is next looked at, and its serial.
#[derive(Default)]
pub(super) struct Board {
    holds: BTreeMap<(u64, u64), Arc<Held>>,
    /// Wakes who looks after them, while somebody does.
    bell: Weak<Notify>,
    /// When that one looks by itself.
    wake_at: u64,
}

/// A hold that is to be renewed by `ttl`.
pub(super) struct Renewal {
    pub(super) held: Arc<Held>,
    pub(super) ttl: Duration,
    pub(super) extends: bool,
    /// One renewal after the other: else a shorter one could undo another unseen.
    pub(super) turn: OwnedMutexGuard<()>,
}

/// What there is to do.
struct Due {
    batch: Vec<Renewal>,
    over: Vec<Arc<Held>>,
    /// When there is more.
    next: Option<u64>,
}

impl Board {
    fn put(&mut self, held: Arc<Held>, due: u64) {
        held.hold.due.store(due, Ordering::Relaxed);
        self.holds.insert((due, held.hold.serial), held);
    }

    fn take(&mut self, held: &Held) -> Option<Arc<Held>> {
        self.holds.remove(&(held.hold.due.load(Ordering::Relaxed), held.hold.serial))
    }

    fn ring(&self) {
        if let Some(bell) = self.bell.upgrade() {
            bell.notify_one();
        }
    }

    /// What is due, and up to a whole batch what would be soon; the rest at the next look, so that others get through.
    fn due(&mut self) -> Due {
        let now = lease::now();
        let (mut batch, mut over) = (Vec::new(), Vec::new());
        while batch.len() < BATCH
            && let Some(first) = self.holds.first_entry()
        {
            let (due, alone) = (first.key().0, first.get().alone.load(Ordering::Relaxed));
            let is_due = due <= now;
            let goes = if batch.is_empty() { is_due } else { !alone && (is_due || first.get().goes_along(due - now)) };
            if !goes {
                break;
            }
            let held = first.remove();
            if !held.hold.is_live() || held.hold.deadline() <= now {
                over.push(held);
                continue;
            }
            // If no answer comes, the deadline does.
            self.put(held.clone(), held.hold.deadline());
            // Who is renewing it just now says when it is due next.
            if held.hold.renew
                && let Ok(turn) = held.renewing.clone().try_lock_owned()
            {
                let ttl = held.hold.ttl();
                batch.push(Renewal { held, ttl, extends: false, turn });
                if alone {
                    break;
                }
            }
        }
        let next = self.holds.first_key_value().map(|((due, _), _)| *due);
        match next {
            Some(next) => self.wake_at = next,
            None => self.bell = Weak::new(),
        }
        Due { batch, over, next }
    }
}

impl Held {
    /// When to renew it, if it is renewed, or else to tell that it is over.
    fn due(&self) -> u64 {
        let hold = &self.hold;
        if !hold.renew {
            return hold.deadline();
        }
        // There is less left than its lease, if a shorter one was asked for and no answer came.
        let lasts = hold.ttl().min(hold.left().unwrap_or_default());
        lease::renewal(lease::now(), lasts, hold.spread())
    }

    /// Whether it is renewed with those that are due, though it is not yet.
    fn goes_along(&self, early: u64) -> bool {
        let hold = &self.hold;
        hold.renew && early <= lease::nanos(hold.ttl() / TOGETHER) && self.renewing.try_lock().is_ok()
    }

    fn lose(&self, loss: Loss) {
        if let Some(lock) = self.lock.upgrade() {
            lock.lose(self, loss);
        }
    }
}

impl Quorum {
    /// Has it looked after until it ends.
    pub(super) fn keep(self: &Arc<Quorum>, held: &Arc<Held>) -> Result<()> {
        let due = held.due();
        let mut board = self.board.lock();
        if board.bell.strong_count() == 0 {
            let (quorum, bell) = (self.clone(), Arc::new(Notify::new()));
            board.bell = Arc::downgrade(&bell);
            board.wake_at = 0;
            // Under the lock: it finds this one.
            self.spawn(move |voters| Box::pin(look_after(quorum, voters, bell)))?;
        }
        board.put(held.clone(), due);
        if due < board.wake_at {
            board.ring();
        }
        Ok(())
    }

    /// It has ended.
    pub(super) fn forget(&self, held: &Held) {
        let mut board = self.board.lock();
        board.take(held);
        if board.holds.is_empty() {
            board.ring();
        }
    }

    /// It is looked at then, if it has not ended.
    fn look_at(&self, held: &Held, due: u64) {
        let mut board = self.board.lock();
        if let Some(held) = board.take(held) {
            board.put(held, due);
            if due < board.wake_at {
                board.ring();
            }
        }
    }

    /// Renews each of them on a majority; whether it still stood.
    pub(super) async fn renew(&self, voters: &Voters, batch: Vec<Renewal>) -> Vec<Result<bool>> {
        let sent = lease::now();
        for Renewal { held, ttl, .. } in &batch {
            if held.hold.asks(sent, *ttl) {
                self.look_at(held, held.due());
            }
        }
        let is_asked = batch.iter().any(|one| one.extends);
        let left = batch.iter().filter_map(|one| one.held.hold.left()).min().unwrap_or_default();
        let numbered = |one: Renewal| {
            let number = one.held.hold.numbered(one.extends);
            ((one.held, one.ttl, number), Some(one.turn))
        };
        let (holds, mut turns): (Vec<_>, Vec<_>) = batch.into_iter().map(numbered).unzip();
        let holds = Arc::new(holds);
        let mut polls: Vec<Poll> = holds.iter().map(|_| Poll::new(self.count())).collect();
        let (scripts, asked) = (self.scripts.clone(), holds.clone());
        let call = move |by_text: bool| {
            let each = asked.iter().map(|(held, ttl, number)| (&held.hold.keys, &*held.hold.token, *ttl, *number));
            scripts.renew(by_text, each)
        };
        let mut settle = |at: usize, poll: &Poll| {
            // Dropped first: who looks at the hold next finds it free.
            if turns[at].take().is_some() {
                let (held, ttl, _) = &holds[at];
                let outcome = poll.outcome("extend");
                held.alone.store(outcome.is_err() && poll.misfits() > 0, Ordering::Relaxed);
                self.renewed(held, *ttl, sent, &outcome);
            }
        };
        let enough = |vote: Vote| {
            let votes = vote.reply.and_then(|reply| wire::renewed(&reply, holds.len()));
            for (at, poll) in polls.iter_mut().enumerate() {
                poll.count(votes.as_ref().map(|stood| stood[at]).map_err(Error::clone));
                if poll.is_over() {
                    settle(at, poll);
                }
            }
            polls.iter().all(Poll::is_over)
        };
        let dial = if is_asked { Dial::SURELY } else { Dial::After(left / PART) };
        voters.ask("extend", (self.limit(), self.limit()), dial, call, enough).await;
        polls.iter().enumerate().for_each(|(at, poll)| settle(at, poll));
        polls.iter().map(|poll| poll.outcome("extend")).collect()
    }

    fn renewed(&self, held: &Held, ttl: Duration, sent: u64, outcome: &Result<bool>) {
        match outcome {
            Ok(true) => {
                held.hold.renewed(sent, ttl);
                self.look_at(held, held.due());
            }
            Ok(false) => held.lose(Loss::Gone),
            Err(_) => self.look_at(held, held.hold.deadline().min(lease::now() + lease::nanos(AGAIN))),
        }
    }
}

/// Looks after the holds until there is none.
async fn look_after(quorum: Arc<Quorum>, voters: Arc<Voters>, bell: Arc<Notify>) {
    loop {
        let Due { batch, over, next } = quorum.board.lock().due();
        for held in over {
            held.lose(Loss::Expired);
        }
        if !batch.is_empty() {
            let (quorum, voters) = (quorum.clone(), voters.clone());
            tokio::spawn(async move { quorum.renew(&voters, batch).await });
        }
        let Some(next) = next else { return };
        let pause = Duration::from_nanos(next.saturating_sub(lease::now())).min(lease::LOOK);
        let _ = tokio::time::timeout(pause, bell.notified()).await;
    }
}
