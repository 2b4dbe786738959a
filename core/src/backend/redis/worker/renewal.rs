//! Renewals: at a third of the lease, up to a hundred in one call, one call at a time so that others get through.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};

use super::{Event, Worker};
use crate::backend::redis::engine::Board;
use crate::backend::redis::hold::{Hold, Loss};
use crate::backend::redis::keys::slot;
use crate::backend::redis::lease::{self, AGAIN, BATCH, TOGETHER};
use crate::backend::redis::wire::{self, Ending};
use crate::error::{Error, ErrorKind, Result};

/// Holds, each with its new lease. Zero: it is looked for, and keeps what it has.
pub(super) type Batch = Vec<(Arc<Hold>, Duration)>;

/// When to look again at a hold whose time is over: it waits to be taken off.
pub(super) const NEVER: u64 = u64::MAX;
/// When to look again at a renewal for which the batch had no place, in ns.
const TURN: u64 = 5_000_000;
/// So often what is held is looked for while one slot after the other moves.
const FOLLOWS: Duration = Duration::from_secs(1);

/// When the hold is next looked at, if it is still there.
fn schedule(board: &mut Board, hold: &Hold, due: u64) {
    if let Some(hold) = board.holds.remove(&(hold.due.load(Ordering::Relaxed), hold.serial)) {
        hold.due.store(due, Ordering::Relaxed);
        board.holds.insert((due, hold.serial), hold);
    }
}

impl Worker {
    /// Renews the holds whose time has come, and tells those whose lease ran out.
    pub(super) fn renew_due(&mut self) {
        let (batch, lost) = self.due(self.link().is_some());
        for hold in lost {
            self.engine.lose(&hold, Loss::Expired);
        }
        if self.engine.server.is_cluster() {
            // One call is for one slot.
            let mut by_slot = HashMap::<u16, Vec<_>>::new();
            for renewal in batch {
                by_slot.entry(slot(renewal.0.keys.lock().as_bytes())).or_default().push(renewal);
            }
            for batch in by_slot.into_values() {
                batch.chunks(BATCH).for_each(|batch| self.renew(batch.to_vec(), None));
            }
        } else if !batch.is_empty() {
            self.renew(batch, None);
        }
    }

    /// The holds to renew, if the link is `up`, each with its lease; and those whose lease ran out.
    pub(super) fn due(&mut self, up: bool) -> (Batch, Vec<Arc<Hold>>) {
        let now = lease::now();
        let mut lost = Vec::new();
        let mut batch = Vec::new();
        let mut board = self.engine.board();
        while let Some(first) = board.holds.first_entry() {
            let (due, serial) = *first.key();
            if due > now && (batch.is_empty() || !self.goes_along(first.get(), due - now)) {
                break;
            }
            let hold = first.remove();
            let over = hold.deadline() <= now;
            let asked = hold.renew || hold.sought.load(Ordering::Relaxed);
            let renews = asked && hold.is_live() && !self.renewing.contains(&serial);
            let full = up && self.is_full();
            let next = if over {
                NEVER
            } else if renews && full {
                hold.deadline().min(now + TURN)
            } else {
                // If no answer comes, the deadline does.
                hold.deadline()
            };
            hold.due.store(next, Ordering::Relaxed);
            board.holds.insert((next, serial), hold.clone());
            if over {
                lost.push(hold);
                continue;
            }
            if !renews || full {
                continue;
            }
            if up {
                // At once: it may stand first again.
                self.renewing.insert(serial);
                let ttl = if hold.renew { hold.ttl() } else { Duration::ZERO };
                batch.push((hold, ttl));
            } else {
                self.overdue = true;
            }
        }
        (batch, lost)
    }

    /// Whether enough is under way. In a cluster each slot is a call of its own, and those to a node that hangs must not keep
    /// others from theirs.
    fn is_full(&self) -> bool {
        !self.engine.server.is_cluster() && self.renewing.len() >= BATCH
    }

    /// Whether a hold that is not due yet is renewed with those that are: holds that were taken one after another come
    /// together, and a call renews many.
    fn goes_along(&self, hold: &Hold, early: u64) -> bool {
        hold.renew
            && hold.is_live()
            && early <= lease::nanos(hold.ttl() / TOGETHER)
            && !self.is_full()
            && !self.renewing.contains(&hold.serial)
    }

    /// The link is new: all holds are looked at at once, since the server may be, too.
    pub(super) fn renew_all(&mut self) {
        self.engine.learned.follows();
        let now = lease::now();
        let mut board = self.engine.board();
        let holds: Vec<Arc<Hold>> = board.holds.values().cloned().collect();
        for hold in holds {
            hold.sought.store(!hold.renew, Ordering::Relaxed);
            if self.renewing.contains(&hold.serial) {
                self.anew.insert(hold.serial);
            }
            schedule(&mut board, &hold, now);
        }
        drop(board);
        self.extend_waiting();
    }

    /// Where a slot has moved another node may have taken over from one that is still there, and not have all that was held on it.
    /// Looks for that, at most once a [`FOLLOWS`]; when to do so.
    pub(super) fn follow(&mut self) -> Option<Instant> {
        if !self.engine.learned.has_moved() || self.link().is_none() {
            // A new link looks for all by itself.
            return None;
        }
        let now = Instant::now();
        if let Some(next) = self.followed.map(|last| last + FOLLOWS).filter(|next| *next > now) {
            return Some(next);
        }
        self.followed = Some(now);
        self.renew_all();
        None
    }

    pub(super) fn extend(&mut self, hold: Arc<Hold>, ttl: Duration, answer: SyncSender<Result<()>>) {
        if let Some(loss) = hold.loss() {
            // Lost while it waited to be sent. Whoever asked has gone if this fails.
            let _ = answer.send(Err(loss.error("extend")));
        } else if self.link().is_none() || self.renewing.contains(&hold.serial) {
            self.extensions.push((hold, ttl, answer));
        } else {
            self.renewing.insert(hold.serial);
            self.renew(vec![(hold, ttl)], Some(answer));
        }
    }

    fn extend_waiting(&mut self) {
        for (hold, ttl, answer) in std::mem::take(&mut self.extensions) {
            self.extend(hold, ttl, answer);
        }
    }

    /// Those of `batch` are in `renewing` already.
    fn renew(&mut self, batch: Batch, answer: Option<SyncSender<Result<()>>>) {
        if self.link().is_none() {
            return;
        }
        let number = self.number();
        let (engine, batch) = (self.engine.clone(), Arc::new(batch));
        let holds = batch.clone();
        let sent = lease::now();
        let numbers: Vec<u64> = batch.iter().map(|(hold, _)| hold.numbered(answer.is_some())).collect();
        for (hold, ttl) in &*batch {
            if !ttl.is_zero() && hold.asks(sent, *ttl) {
                schedule(&mut self.engine.board(), hold, hold.deadline());
            }
        }
        self.send_now(
            move |by_text| {
                let numbered = holds.iter().zip(&numbers);
                let each = numbered.map(|((hold, ttl), number)| (&hold.keys, &*hold.token, *ttl, *number));
                engine.scripts.renew(by_text, each)
            },
            move |reply| Event::Renewed { batch, answer, sent, number, reply },
        );
    }

    /// The server lets go of a hold that is lost. Who deletes a key tells nobody: what leaves the line for this hold then finds
    /// the lock free, and tells who is next.
    fn pass_on(&mut self, hold: &Hold) {
        let Some(lock) = hold.lock.upgrade() else { return };
        self.engine.board().debts.insert(hold.token.clone(), lock.debt_of(hold, Ending::Lost));
        self.pay(&hold.token);
    }

    pub(super) fn renewed(
        &mut self,
        batch: &Batch,
        answer: Option<SyncSender<Result<()>>>,
        sent: u64,
        number: u64,
        reply: RedisResult<Value>,
    ) {
        let stale = number != self.number();
        let mut anew = Vec::new();
        if !stale {
            for (hold, _) in batch {
                self.renewing.remove(&hold.serial);
                anew.extend(self.anew.take(&hold.serial));
            }
        }
        let outcome = match &reply {
            _ if stale => Err(Error::new(ErrorKind::Unavailable, "extend", "the connection to the server was lost")),
            Ok(reply) => wire::renewed(reply, batch.len()),
            Err(error) => Err(self.engine.server.failed("extend", error)),
        };
        let told = match &outcome {
            // The answer may have come after the end of the lease, which was told.
            Ok(renewed) if renewed.iter().all(|renewed| *renewed) => {
                batch.iter().find_map(|(hold, _)| hold.loss()).map_or(Ok(()), |loss| Err(loss.error("extend")))
            }
            Ok(_) => Err(Loss::Gone.error("extend")),
            Err(error) => Err(error.clone()),
        };
        match outcome {
            Ok(renewed) => {
                self.serves();
                for ((hold, ttl), renewed) in batch.iter().zip(renewed) {
                    let anew = anew.contains(&hold.serial);
                    if renewed {
                        hold.sought.store(anew && !hold.renew, Ordering::Relaxed);
                        if !ttl.is_zero() {
                            hold.renewed(sent, *ttl);
                        }
                        let due = if anew {
                            lease::now()
                        } else if hold.renew {
                            lease::renewal(sent, *ttl, hold.spread())
                        } else {
                            hold.deadline()
                        };
                        schedule(&mut self.engine.board(), hold, due);
                        if hold.loss() == Some(Loss::Expired) {
                            // It came too late, and was told to be lost: what the server gave it stands for nobody.
                            self.pass_on(hold);
                        }
                    } else {
                        if hold.is_live() {
                            self.pass_on(hold);
                        }
                        self.engine.lose(hold, Loss::Gone);
                    }
                }
            }
            Err(_) if stale => {}
            // It may be for one of them that the call is refused.
            Err(error) if error.kind() == ErrorKind::Permission && batch.len() > 1 => {
                self.anew.extend(anew);
                for renewal in batch {
                    self.renewing.insert(renewal.0.serial);
                    self.renew(vec![renewal.clone()], None);
                }
            }
            Err(_) => {
                let again = lease::now() + lease::nanos(AGAIN);
                for (hold, _) in batch {
                    let due = again.min(hold.deadline());
                    schedule(&mut self.engine.board(), hold, due);
                }
            }
        }
        if let Some(answer) = answer {
            // Whoever asked has gone if this fails.
            let _ = answer.send(told);
        }
        match reply {
            Err(error) if !wire::is_answer(&error) => self.broke(number, &error),
            _ => self.extend_waiting(),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::backend::redis::engine::Engine;
    use crate::backend::redis::keys::Keys;
    use crate::backend::redis::server::Server;
    use crate::url::{LockUrl, Target};

    /// The node that was asked may have been replaced when it answers.
    #[test]
    fn what_is_looked_for_with_its_renewal_under_way_is_looked_for_again() {
        let url = LockUrl::parse("rpm+redis+cluster://renewed-nowhere/anew").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let mut worker = Worker::new(engine.clone(), unbounded_channel().0);
        let ttl = Duration::from_secs(60);
        for (serial, renew, moves) in [(1, true, true), (2, false, true), (3, true, false), (4, false, false)] {
            let hold = Hold::alone(serial, "token".into(), serial, Keys::of("anew"), renew, lease::now(), ttl);
            let hold = Arc::new(hold);
            // Without a thread that would look at it.
            hold.due.store(hold.deadline(), Ordering::Relaxed);
            engine.board().holds.insert((hold.deadline(), serial), hold.clone());
            worker.renewing.insert(serial);
            if moves {
                worker.renew_all();
            }
            let asked = vec![(hold.clone(), if renew { ttl } else { Duration::ZERO })];
            worker.renewed(&asked, None, lease::now(), worker.number(), Ok(Value::Array(vec![Value::Int(1)])));
            assert_eq!(hold.due.load(Ordering::Relaxed) <= lease::now(), moves);
            assert_eq!(hold.sought.load(Ordering::Relaxed), moves && !renew);
            engine.board().holds.clear();
        }
        assert!(worker.anew.is_empty());
    }
}
