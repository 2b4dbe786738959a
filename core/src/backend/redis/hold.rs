//! One hold on this side of the wire: until when it can be relied on, and how it was lost.

use std::sync::{Arc, Weak};
use std::time::Duration;

use super::keys::Keys;
use super::lease;
use super::lock::Lock;
use super::token::Token;
use crate::error::{Error, broken, lost};
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};

/// Why a hold is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Loss {
    Expired = 2,
    Gone = 3,
    Broken = 4,
}

impl Loss {
    fn of(state: u8) -> Option<Loss> {
        [Loss::Expired, Loss::Gone, Loss::Broken].into_iter().find(|loss| *loss as u8 == state)
    }

    pub(super) fn error(self, operation: &'static str) -> Error {
        match self {
            Loss::Expired => lost(operation, "the lease ran out without a renewal"),
            Loss::Gone => lost(operation, "the key was deleted, or somebody else has it"),
            Loss::Broken => broken(operation),
        }
    }
}

const LIVE: u8 = 0;
const ENDED: u8 = 1;

pub(super) struct Hold {
    /// Names it within this process.
    pub(super) serial: u64,
    pub(super) token: Token,
    pub(super) fence: u64,
    pub(super) lock: Weak<Lock>,
    pub(super) keys: Keys,
    pub(super) renew: bool,
    /// When it is next looked at; guarded by the engine's board.
    pub(super) due: AtomicU64,
    /// It is not renewed, and is to be looked for all the same: the server may have forgotten it.
    pub(super) sought: AtomicBool,
    /// Somebody is to be told when it is lost; guarded by the engine's board, which counts these.
    pub(super) listened: AtomicBool,
    deadline: AtomicU64,
    ttl_ms: AtomicU64,
    /// The longest lease, in ms, that was asked for and of which nobody knows whether the server gave it.
    doubted_ms: AtomicU64,
    /// Of the last renewal since it was extended.
    number: AtomicU64,
    /// LIVE, ENDED or the loss.
    state: AtomicU8,
}

impl Hold {
    pub(super) fn new(serial: u64, token: Token, fence: u64, lock: &Arc<Lock>, sent: u64, ttl: Duration) -> Hold {
        let (keys, renew) = (lock.keys.clone(), lock.renew);
        Hold { lock: Arc::downgrade(lock), ..Hold::alone(serial, token, fence, keys, renew, sent, ttl) }
    }

    /// One that no engine looks after.
    pub(super) fn alone(
        serial: u64,
        token: Token,
        fence: u64,
        keys: Keys,
        renew: bool,
        sent: u64,
        ttl: Duration,
    ) -> Hold {
        let hold = Hold {
            serial,
            token,
            fence,
            lock: Weak::new(),
            keys,
            renew,
            due: AtomicU64::new(0),
            sought: AtomicBool::new(false),
            listened: AtomicBool::new(false),
            deadline: AtomicU64::new(0),
            ttl_ms: AtomicU64::new(0),
            doubted_ms: AtomicU64::new(0),
            number: AtomicU64::new(0),
            state: AtomicU8::new(LIVE),
        };
        hold.renewed(sent, ttl);
        hold
    }

    /// The server has confirmed a lease of `ttl` that was asked for at `sent`.
    pub(super) fn renewed(&self, sent: u64, ttl: Duration) {
        self.ttl_ms.store(ttl.as_millis() as u64, Ordering::Relaxed);
        // What was asked before comes too late to count.
        self.doubted_ms.store(0, Ordering::Relaxed);
        self.deadline.store(lease::deadline(sent, ttl), Ordering::Release);
    }

    /// A lease of `ttl` is about to be asked for. The answer may get lost, so a shorter one counts from here on; whether it is
    /// shorter.
    pub(super) fn asks(&self, sent: u64, ttl: Duration) -> bool {
        self.doubted_ms.fetch_max(ttl.as_millis() as u64, Ordering::Relaxed);
        let deadline = lease::deadline(sent, ttl);
        self.deadline.fetch_min(deadline, Ordering::AcqRel) > deadline
    }

    /// The number of the next renewal. What was sent on a connection that was given up may still come, and must not undo a later one:
    /// from the first extension on each has its own, and until then there is nothing to undo, and it is 0.
    pub(super) fn numbered(&self, extends: bool) -> u64 {
        let more = u64::from(extends || self.number.load(Ordering::Relaxed) != 0);
        self.number.fetch_add(more, Ordering::Relaxed) + more
    }

    pub(super) fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::Acquire)
    }

    pub(super) fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.load(Ordering::Relaxed))
    }

    /// Whether the server may have given it a lease of which nobody has heard.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted_ms.load(Ordering::Relaxed) != 0
    }

    /// The longest lease that it may have in the server.
    pub(super) fn longest(&self) -> Duration {
        self.ttl().max(Duration::from_millis(self.doubted_ms.load(Ordering::Relaxed)))
    }

    pub(super) fn left(&self) -> Option<Duration> {
        let left = self.deadline().saturating_sub(lease::now());
        (left > 0 && self.loss().is_none()).then(|| Duration::from_nanos(left))
    }

    pub(super) fn is_live(&self) -> bool {
        self.state.load(Ordering::Acquire) == LIVE
    }

    pub(super) fn loss(&self) -> Option<Loss> {
        Loss::of(self.state.load(Ordering::Acquire))
    }

    /// It ends as it should; false if it was over.
    pub(super) fn end(&self) -> bool {
        self.state.compare_exchange(LIVE, ENDED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// It is lost; false if it was over.
    pub(super) fn lose(&self, loss: Loss) -> bool {
        self.state.compare_exchange(LIVE, loss as u8, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// A random byte of its own, for spreading timers.
    pub(super) fn spread(&self) -> u8 {
        self.token.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok()).unwrap_or(0)
    }
}

impl AsRef<Hold> for Hold {
    fn as_ref(&self) -> &Hold {
        self
    }
}

/// Holds that were lost and not yet released, remembered for the release.
const REMEMBERED: usize = 64;

/// The holds of an open lock that were not released yet.
pub(super) struct Holds<T>(Guarded<Vec<Arc<T>>>);

impl<T> Default for Holds<T> {
    fn default() -> Holds<T> {
        Holds(Guarded::default())
    }
}

impl<T: AsRef<Hold>> Holds<T> {
    pub(super) fn add(&self, hold: Arc<T>) {
        let mut holds = self.0.lock();
        if holds.len() >= REMEMBERED
            && let Some(at) = holds.iter().position(|hold| T::as_ref(hold).loss().is_some())
        {
            holds.remove(at);
        }
        holds.push(hold);
    }

    pub(super) fn find(&self, fence: u64) -> Option<Arc<T>> {
        self.0.lock().iter().find(|hold| T::as_ref(hold).fence == fence).cloned()
    }

    pub(super) fn remove(&self, fence: u64) -> Option<Arc<T>> {
        let mut holds = self.0.lock();
        let at = holds.iter().position(|hold| T::as_ref(hold).fence == fence)?;
        Some(holds.swap_remove(at))
    }

    pub(super) fn take(&self) -> Vec<Arc<T>> {
        std::mem::take(&mut *self.0.lock())
    }
}
