//! Who wants to hear of a loss: the list that each engine keeps.

use std::collections::HashMap;

use crate::backend::contract::OnLost;
use crate::error::Error;
use crate::service::call;
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// Callbacks by token. Costs one relaxed load while nobody listens.
#[derive(Default)]
pub(crate) struct Losses {
    listening: AtomicUsize,
    by_token: Guarded<HashMap<u64, Vec<OnLost>>>,
}

impl Losses {
    pub(crate) fn listen(&self, token: u64, notify: OnLost) {
        let mut by_token = self.by_token.lock();
        by_token.entry(token).or_default().push(notify);
        self.listening.store(by_token.len(), Ordering::Release);
    }

    /// The hold ended as it should: nobody is told.
    #[cfg(feature = "redis")]
    pub(crate) fn forget(&self, token: u64) {
        drop(self.take(token));
    }

    /// The hold is lost: each listener is told, once, on the callback thread.
    pub(crate) fn tell(&self, token: u64, error: &Error) {
        tell(self.take(token), error);
    }

    /// Every hold is lost.
    pub(crate) fn tell_all(&self, error: &Error) {
        let mut by_token = self.by_token.lock();
        let listeners = std::mem::take(&mut *by_token);
        self.listening.store(0, Ordering::Release);
        drop(by_token);
        listeners.into_values().for_each(|listeners| tell(listeners, error));
    }

    #[inline]
    pub(crate) fn is_anyone_listening(&self) -> bool {
        self.listening.load(Ordering::Acquire) != 0
    }

    pub(crate) fn is_listening(&self, token: u64) -> bool {
        self.is_anyone_listening() && self.by_token.lock().contains_key(&token)
    }

    /// Those who listen for this hold, who are then to be told, or not.
    #[inline]
    pub(crate) fn take(&self, token: u64) -> Vec<OnLost> {
        if self.is_anyone_listening() { self.take_out(token) } else { Vec::new() }
    }

    #[cold]
    fn take_out(&self, token: u64) -> Vec<OnLost> {
        let mut by_token = self.by_token.lock();
        let listeners = by_token.remove(&token).unwrap_or_default();
        self.listening.store(by_token.len(), Ordering::Release);
        listeners
    }
}

/// Tells each of them, once, on the callback thread.
pub(crate) fn tell(listeners: Vec<OnLost>, error: &Error) {
    for notify in listeners {
        let error = error.clone();
        call::run(Box::new(move || notify(error)));
    }
}
