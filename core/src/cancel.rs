//! What ends a wait from elsewhere: a token of the caller's, a close.

use std::sync::{Arc, Weak};

use crate::backend::contract::Backend;
use crate::error::{Error, canceled};
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Guarded, MutexGuard};
use crate::sys::fork::{self, PerProcess};
use crate::waiter::Waiter;

/// A wait under way, as those see it who may end it: not a child, whose parent waits.
#[derive(Clone)]
pub(crate) struct Pending {
    waiter: Weak<Waiter>,
    backend: Weak<dyn Backend>,
    epoch: u32,
}

impl Pending {
    pub(crate) fn of(waiter: &Arc<Waiter>, backend: &Arc<dyn Backend>) -> Pending {
        Pending { waiter: Arc::downgrade(waiter), backend: Arc::downgrade(backend), epoch: fork::epoch() }
    }

    /// Ends the wait with `error`, unless it has an outcome; whether it was ended here.
    pub(crate) fn end(&self, error: Error) -> bool {
        self.end_with(|_| error)
    }

    /// `end`, with what the engine says.
    pub(crate) fn end_with(&self, error: impl FnOnce(&dyn Backend) -> Error) -> bool {
        if self.epoch != fork::epoch() {
            return false;
        }
        let (Some(waiter), Some(backend)) = (self.waiter.upgrade(), self.backend.upgrade()) else { return false };
        if !waiter.is_waiting() {
            return false;
        }
        let ended = waiter.end(error(&*backend), || backend.leave(&waiter));
        if ended {
            backend.nudge(&waiter);
        }
        ended
    }

    /// Whether there is nothing left to end.
    pub(crate) fn is_over(&self) -> bool {
        self.epoch != fork::epoch() || !self.waiter.upgrade().is_some_and(|waiter| waiter.is_waiting())
    }
}

/// Ends any wait that was started with it, from any thread.
#[derive(Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Default)]
struct CancelState {
    fired: AtomicBool,
    /// A child has none of its parent's.
    waits: PerProcess<Guarded<Vec<Pending>>>,
}

impl CancelState {
    fn waits(&self) -> MutexGuard<'_, Vec<Pending>> {
        self.waits.get_or_init(Guarded::default).lock()
    }
}

impl Cancel {
    /// A token that has not fired.
    #[must_use]
    pub fn new() -> Cancel {
        Cancel::default()
    }

    /// Ends the waits with CANCELED, those under way and those to come. A hold already acquired stays. In a forked child the waits of its
    /// parent go on.
    pub fn cancel(&self) {
        self.0.fired.store(true, Ordering::SeqCst);
        let waits = std::mem::take(&mut *self.0.waits());
        for wait in waits {
            wait.end(canceled());
        }
    }

    /// Whether [`Cancel::cancel`] was called.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.0.fired.load(Ordering::SeqCst)
    }

    pub(crate) fn attach(&self, wait: Pending) {
        let mut waits = self.0.waits();
        waits.retain(|wait| !wait.is_over());
        waits.push(wait.clone());
        drop(waits);
        if self.is_canceled() {
            wait.end(canceled());
        }
    }
}
