//! Waiters of this process that do not stand in the server's line yet: on their way, nobody may pass them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sync::Guarded;

/// How many, by lock.
#[derive(Default)]
pub(crate) struct Placings {
    total: AtomicUsize,
    by_lock: Guarded<HashMap<Box<str>, usize>>,
}

impl Placings {
    /// One more for `lock`, until what is returned is dropped.
    pub(crate) fn begin(self: &Arc<Placings>, lock: &str) -> Placing {
        self.total.fetch_add(1, Ordering::AcqRel);
        *self.by_lock.lock().entry(lock.into()).or_default() += 1;
        Placing { placings: self.clone(), lock: lock.into() }
    }

    /// Whether anybody is on the way to the line of `lock`. A load, as long as nobody is on the way to any.
    pub(crate) fn any(&self, lock: &str) -> bool {
        self.total.load(Ordering::Acquire) != 0 && self.by_lock.lock().contains_key(lock)
    }
}

/// A waiter on its way.
pub(crate) struct Placing {
    placings: Arc<Placings>,
    lock: Box<str>,
}

impl Drop for Placing {
    fn drop(&mut self) {
        let mut by_lock = self.placings.by_lock.lock();
        if let Some(count) = by_lock.get_mut(&self.lock) {
            *count -= 1;
            if *count == 0 {
                by_lock.remove(&self.lock);
            }
        }
        self.placings.total.fetch_sub(1, Ordering::AcqRel);
    }
}
