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

    #[cfg(feature = "redis")]
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

    /// The lock if it is free by `end`. A mutex has no wait that ends, so it is looked at again each millisecond: for the end of
    /// the process alone, which another thread that waits for a server must not hold up.
    #[cfg(feature = "redis")]
    pub(crate) fn lock_by(&self, end: Instant) -> Option<MutexGuard<'_, T>> {
        loop {
            match self.try_lock() {
                None if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                turn => return turn,
            }
        }
    }

    /// A panic elsewhere does not make the state unusable: each section leaves it whole at every step.
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
