//! Who wants to hear of a loss: the list that each engine keeps.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::backend::contract::OnLost;
use crate::error::Error;
use crate::service::call;
use crate::sync::Guarded;

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
    pub(crate) fn forget(&self, token: u64) {
        drop(self.take(token));
    }

    /// The hold is lost: each listener is told, once, on the callback thread.
    pub(crate) fn tell(&self, token: u64, error: &Error) {
        for notify in self.take(token) {
            let error = error.clone();
            call::run(Box::new(move || notify(error)));
        }
    }

    pub(crate) fn is_listening(&self, token: u64) -> bool {
        self.listening.load(Ordering::Acquire) != 0 && self.by_token.lock().contains_key(&token)
    }

    fn take(&self, token: u64) -> Vec<OnLost> {
        if self.listening.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut by_token = self.by_token.lock();
        let listeners = by_token.remove(&token).unwrap_or_default();
        self.listening.store(by_token.len(), Ordering::Release);
        listeners
    }
}
