//! A number whose changes cost the thread that makes them most no atomic operation.
//!
//! It belongs to the first thread that changes it, until another one wants to change it too; from then on it is everybody's, and
//! an atomic like any other. This is the biased locking of Kawachiya, Koseki and Onodera, "Lock Reservation" (OOPSLA 2002), for
//! a word, with `membarrier(2)` in place of the signals.
//!
//! | owner | who changes the number | how |
//! |---|---|---|
//! | 0 | nobody did so far; the first who will takes the ownership by a swap | |
//! | a thread | that thread | busy; owner still it? then plain loads and stores; not busy |
//! | TAKING | nobody: a thread takes the ownership away, the others wait for it | barrier on all processors; waits until not busy |
//! | SHARED | anyone | atomic operations |
//!
//! After the barrier the owner either sees TAKING when it looks, or its `busy` is seen by who takes. What it stored before it was
//! not busy any more is seen likewise. So each change has its place in one order, as with atomic operations; and who takes may count
//! on it that what the owner reads after its change, it reads after what the taker had stored before the barrier.
//!
//! Where the operating system has no such barrier, the number is everybody's from the start.

use std::time::Duration;

use crate::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, compiler_fence, fence};
use crate::sync::{barrier, thread};

/// No thread has these names: they are addresses.
const NOBODY: usize = 0;
const TAKING: usize = 1;
const SHARED: usize = 2;

pub(crate) struct Biased {
    value: AtomicU64,
    owner: AtomicUsize,
    busy: AtomicBool,
}

impl Biased {
    pub(crate) fn new(value: u64) -> Biased {
        let owner = if barrier::is_there() { NOBODY } else { SHARED };
        Biased { value: AtomicU64::new(value), owner: AtomicUsize::new(owner), busy: AtomicBool::new(false) }
    }

    #[inline]
    pub(crate) fn load(&self) -> u64 {
        self.value.load(Ordering::SeqCst)
    }

    /// Who changes the number and does not see, after that, what this thread stored before, is seen to have changed it.
    pub(crate) fn fence(&self) {
        fence(Ordering::SeqCst);
        if self.owner.load(Ordering::Acquire) != SHARED {
            // The owner's stores may still be on their way, and it has no fence of its own.
            barrier::on_all_processors();
        }
    }

    /// What it was.
    #[inline]
    pub(crate) fn swap(&self, to: u64) -> u64 {
        let before = self.as_owner(|value| {
            let before = value.load(Ordering::Relaxed);
            value.store(to, Ordering::Relaxed);
            before
        });
        before.unwrap_or_else(|| self.value.swap(to, Ordering::SeqCst))
    }

    /// Puts `to` where `from` is; what is there instead, if it is not.
    #[inline]
    pub(crate) fn compare_exchange(&self, from: u64, to: u64) -> Result<(), u64> {
        let seen = self.as_owner(|value| {
            let seen = value.load(Ordering::Relaxed);
            if seen == from {
                value.store(to, Ordering::Relaxed);
            }
            seen
        });
        let seen = match seen {
            Some(seen) => seen,
            None => match self.value.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst) {
                Ok(seen) | Err(seen) => seen,
            },
        };
        if seen == from { Ok(()) } else { Err(seen) }
    }

    /// Runs `change` if the number is this thread's; else it is everybody's when this returns.
    #[inline]
    fn as_owner(&self, change: impl FnOnce(&AtomicU64) -> u64) -> Option<u64> {
        if self.owner.load(Ordering::Acquire) == SHARED {
            return None;
        }
        let me = thread::me();
        if self.owner.load(Ordering::Relaxed) == me || self.is_first(me) {
            self.busy.store(true, Ordering::Relaxed);
            // On this processor the store comes first by the barrier, if there is one; the compiler must not turn them round.
            compiler_fence(Ordering::SeqCst);
            let mine = self.owner.load(Ordering::Relaxed) == me;
            let outcome = mine.then(|| change(&self.value));
            self.busy.store(false, Ordering::Release);
            // What is read after the change stays after it.
            compiler_fence(Ordering::SeqCst);
            if mine {
                return outcome;
            }
        }
        self.share();
        None
    }

    #[cold]
    fn is_first(&self, me: usize) -> bool {
        self.owner.compare_exchange(NOBODY, me, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Takes the ownership away, for good.
    #[cold]
    fn share(&self) {
        loop {
            let owner = self.owner.load(Ordering::Acquire);
            match owner {
                SHARED => return,
                // Another thread is about to. It may have less of the processor than this one, so it is not spun for.
                TAKING => thread::nap(NAP),
                _ if self.owner.compare_exchange(owner, TAKING, Ordering::SeqCst, Ordering::SeqCst).is_ok() => {
                    barrier::on_all_processors();
                    while self.busy.load(Ordering::Acquire) {
                        thread::nap(NAP); // A few instructions; but their thread may not have a processor just now.
                    }
                    self.owner.store(SHARED, Ordering::Release);
                }
                _ => {}
            }
        }
    }
}

const NAP: Duration = Duration::from_micros(20);
