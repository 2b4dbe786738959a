//! The mutex that guards this crate's own short critical sections.
//!
//! `std`'s, not `parking_lot`'s: it is one futex word and nothing else. parking_lot parks in a table shared by the
//! whole process; a fork in the moment a thread has one of its buckets locked leaves that bucket locked
//! for ever in the child, for every lock that hashes to it.
//!
//! In the tests of `schedules` it is the crate shuttle's, and so are the atomics, the sleep and the threads of those modules that take them
//! from here: shuttle then decides at each of their steps who runs next.

#[cfg(feature = "redis")]
use std::sync::TryLockError;
use std::sync::{Condvar, PoisonError};
use std::time::Duration;
#[cfg(feature = "redis")]
use std::time::Instant;

#[cfg(feature = "redis")]
use crate::sys::fork;

#[cfg(all(test, feature = "schedules"))]
pub(crate) use crate::schedules::{barrier, futex, thread};
#[cfg(not(all(test, feature = "schedules")))]
pub(crate) use crate::sys::{barrier, futex, thread};
#[cfg(all(test, feature = "schedules"))]
pub(crate) use shuttle::sync::{Mutex, MutexGuard, atomic};
#[cfg(not(all(test, feature = "schedules")))]
pub(crate) use std::sync::{Mutex, MutexGuard, atomic};

/// Waits until `condvar` is notified, or for `limit`; whether that ran out.
#[cfg(not(all(test, feature = "schedules")))]
pub(crate) fn wait_for<'a, T>(
    condvar: &Condvar,
    guard: MutexGuard<'a, T>,
    limit: Duration,
) -> (MutexGuard<'a, T>, bool) {
    let (guard, waited) = condvar.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner);
    (guard, waited.timed_out())
}

/// A schedule has no time: it runs out at once.
#[cfg(all(test, feature = "schedules"))]
pub(crate) fn wait_for<'a, T>(_: &Condvar, guard: MutexGuard<'a, T>, _: Duration) -> (MutexGuard<'a, T>, bool) {
    (guard, true)
}

#[derive(Default)]
pub(crate) struct Guarded<T>(Mutex<T>);

impl<T> Guarded<T> {
    pub(crate) const fn new(value: T) -> Guarded<T> {
        Guarded(Mutex::new(value))
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.0.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lock if it is free.
    #[cfg(feature = "redis")]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        match self.0.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// A panic elsewhere does not make the state unusable: each section leaves it whole at every step.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// So often who waits for its turn looks whether it is a child.
#[cfg(feature = "redis")]
const LOOK: Duration = Duration::from_millis(250);

/// A [`Guarded`] for what is held over an answer of a server: who waits for its turn may do so for a while only.
#[cfg(feature = "redis")]
#[derive(Default)]
pub(crate) struct Turns<T> {
    queue: Guarded<Queue>,
    free: Condvar,
    value: Guarded<T>,
}

#[cfg(feature = "redis")]
#[derive(Default)]
struct Queue {
    taken: bool,
    /// Without one there is nobody to wake, which would be a call of the system.
    waiting: usize,
}

#[cfg(feature = "redis")]
impl<T> Turns<T> {
    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// For who cannot be forked meanwhile.
    pub(crate) fn lock(&self) -> Turn<'_, T> {
        loop {
            if let Some(turn) = self.lock_by(None) {
                return turn;
            }
        }
    }

    /// The turn if it comes by `end`. Not in a child that a signal's handler has forked meanwhile: whose turn it is does not live there.
    pub(crate) fn lock_by(&self, end: Option<Instant>) -> Option<Turn<'_, T>> {
        let epoch = fork::epoch();
        let mut queue = self.queue.lock();
        while queue.taken {
            let left = end.map_or(LOOK, |end| end.saturating_duration_since(Instant::now()));
            if left.is_zero() || epoch != fork::epoch() {
                return None;
            }
            queue.waiting += 1;
            queue = wait_for(&self.free, queue, left.min(LOOK)).0;
            queue.waiting -= 1;
        }
        queue.taken = true;
        drop(queue);
        Some(Turn { value: self.value.lock(), _leaves: Leaves { queue: &self.queue, free: &self.free } })
    }
}

/// Whose turn it is has this.
#[cfg(feature = "redis")]
pub(crate) struct Turn<'a, T> {
    value: MutexGuard<'a, T>,
    /// Dropped behind it.
    _leaves: Leaves<'a>,
}

#[cfg(feature = "redis")]
struct Leaves<'a> {
    queue: &'a Guarded<Queue>,
    free: &'a Condvar,
}

#[cfg(feature = "redis")]
impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        let mut queue = self.queue.lock();
        queue.taken = false;
        if queue.waiting > 0 {
            drop(queue);
            self.free.notify_one();
        }
    }
}

#[cfg(feature = "redis")]
impl<T> std::ops::Deref for Turn<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

#[cfg(feature = "redis")]
impl<T> std::ops::DerefMut for Turn<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.value
    }
}

#[cfg(all(test, feature = "redis", not(feature = "schedules")))]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::thread;

    use super::*;

    #[test]
    fn one_at_a_time_and_who_has_waited_long_enough_leaves() {
        let turns = Turns::<u32>::default();
        let mut first = turns.lock();
        *first = 7;
        assert!(turns.lock_by(Some(Instant::now() + Duration::from_millis(5))).is_none());
        thread::scope(|scope| {
            let next = scope.spawn(|| turns.lock_by(Some(Instant::now() + Duration::from_secs(30))).map(|turn| *turn));
            drop(first);
            assert_eq!(next.join().expect("no panic"), Some(7));
        });
    }

    /// Nor is the one behind it left asleep.
    #[test]
    fn some_leave_as_their_turn_comes_and_everybody_gets_there() {
        let (turns, inside) = (Turns::<u32>::default(), AtomicU32::new(0));
        let visit = |mut turn: Turn<'_, u32>| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
            *turn += 1;
            inside.fetch_sub(1, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| (0..2000).for_each(|_| visit(turns.lock())));
                scope.spawn(|| {
                    for micros in 0..2000 {
                        let _ = turns.lock_by(Some(Instant::now() + Duration::from_micros(micros % 50))).map(visit);
                    }
                });
            }
        });
        assert!(*turns.lock() >= 6000);
    }
}
