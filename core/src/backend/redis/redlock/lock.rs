//! What is held on the servers, and who waits for it in this process.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, SendError, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::super::engine::bug;
use super::super::hold::{Hold, Holds, Loss};
use super::super::lease::{self, AGAIN, jitter};
use super::super::lock::pause;
use super::super::server::{ANSWER, PATIENT};
use super::super::token::{Token, new_token};
use super::super::wire::Ending;
use super::owed::Owed;
use super::quorum::{Dial, Quorum, Voters};
use super::round::{Rounds, Took, Won};
use crate::backend::contract::{Grant, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::loss::Losses;
use crate::numbers::{Tally, count};
use crate::sync::Guarded;
use crate::waiter::{self, Waiter};

/// How long an acquisition without a timeout waits for a majority that is not there.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) struct Held {
    pub(super) hold: Hold,
    pub(super) lock: Weak<Lock>,
    pub(super) owed: Owed,
    /// Whose turn it is to renew it.
    pub(super) renewing: Arc<tokio::sync::Mutex<()>>,
    /// Its renewal was refused: it goes by itself the next time.
    pub(super) alone: AtomicBool,
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

pub(super) struct Lock {
    pub(super) quorum: Arc<Quorum>,
    pub(super) rounds: Arc<Rounds>,
    renew: bool,
    serial: AtomicU64,
    pub(super) floor: AtomicU64,
    pub(super) losses: Losses,
    pub(super) tally: Tally,
    pub(super) holds: Holds<Held>,
    queue: Guarded<Queue>,
    /// A hold of this process has ended: it is worth a try.
    pub(super) freed: Notify,
    pub(super) seen: Guarded<Option<(Instant, Status)>>,
    trouble: Guarded<Option<(Instant, Error)>>,
}

impl Lock {
    pub(super) fn new(quorum: Arc<Quorum>, rounds: Rounds, renew: bool) -> Lock {
        Lock {
            quorum,
            rounds: Arc::new(rounds),
            renew,
            serial: AtomicU64::new(0),
            floor: AtomicU64::new(0),
            losses: Losses::default(),
            tally: Tally::default(),
            holds: Holds::default(),
            queue: Guarded::new(Queue { waiters: VecDeque::new(), served: false }),
            freed: Notify::new(),
            seen: Guarded::default(),
            trouble: Guarded::default(),
        }
    }

    /// Asks the majority once.
    async fn attempt(self: &Arc<Lock>, voters: &Arc<Voters>, dial: Dial) -> Result<Option<Grant>> {
        let token = new_token()?;
        let owe = || Owed::new(&self.quorum, &self.rounds, &token);
        let mut owed = owe();
        // Looked at when it is owed: the end of the process sees either this take, or that it has not gone out.
        if let Some(pause) = pause() {
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

    pub(super) fn unserved(&self) -> Option<Error> {
        self.trouble.lock().clone().map(|(_, error)| error)
    }

    /// Whether others of this process were first.
    fn are_before(&self) -> bool {
        !self.queue.lock().waiters.is_empty()
    }

    /// Tries it for one who waits if that comes to nothing, or takes longer than an answer may.
    pub(super) fn take_or_line_up(self: &Arc<Lock>, deadline: Option<Instant>) -> Result<Result<Grant, u64>> {
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

    pub(super) fn try_take(self: &Arc<Lock>) -> Result<Option<Grant>> {
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

    pub(super) fn lose(&self, held: &Held, loss: Loss) {
        if held.hold.lose(loss) {
            held.owed.ends(Ending::Lost);
            count(&self.tally.losses);
            self.quorum.forget(held);
            self.losses.tell(held.hold.fence, &loss.error("check"));
        }
    }

    pub(super) fn relied_on(&self, operation: &'static str, fence: u64) -> Result<Arc<Held>> {
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
    pub(super) fn ended(&self, token: u64) -> Result<Option<Arc<Held>>> {
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
    pub(super) fn release(&self, held: &Held) -> Result<()> {
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
    pub(super) fn let_go(&self, held: Arc<Held>, ending: Ending) {
        self.quorum.forget(&held);
        if self.undo(held.hold.token.clone(), ending, Dial::OWED, held).is_ok() {
            self.freed.notify_one();
        }
    }

    pub(super) fn give_back(&self, grant: Grant) {
        if let Some(held) = self.holds.remove(grant.token)
            && held.hold.end()
        {
            self.losses.forget(grant.token);
            self.let_go(held, Ending::Undone);
        }
    }

    pub(super) fn join(self: &Arc<Lock>, waiter: &Arc<Waiter>) -> Result<()> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
        waiter.ticket.store(serial, Ordering::Release);
        let mut queue = self.queue.lock();
        queue.waiters.push_back((serial, waiter.clone()));
        if !queue.served {
            // Under the lock: nobody lines up for a thread that does not come.
            let lock = Arc::downgrade(self);
            if let Err(error) = self.quorum.spawn(move |voters| Box::pin(serve(lock, voters))) {
                queue.waiters.pop_back();
                return Err(error);
            }
            queue.served = true;
        }
        Ok(())
    }

    pub(super) fn leave(&self, waiter: &Arc<Waiter>) {
        count(&self.tally.gave_up);
        self.queue.lock().waiters.retain(|(_, other)| !Arc::ptr_eq(other, waiter));
        self.freed.notify_one();
    }

    pub(super) fn waiters(&self) -> u32 {
        let waiting = self.queue.lock().waiters.iter().filter(|(_, waiter)| waiter.is_waiting()).count();
        u32::try_from(waiting).unwrap_or(u32::MAX)
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
