//! Who wants to hear of a loss: the list that the engines of files and of Redis keep.

use std::collections::HashMap;

use crate::backend::contract::OnLost;
use crate::error::Error;
use crate::service::call;
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Callbacks by token. Costs one load while nobody listens.
#[derive(Default)]
pub(crate) struct Losses {
    listening: AtomicUsize,
    by_token: Guarded<HashMap<u64, Vec<(u64, OnLost)>>>,
    /// Numbers them.
    last: AtomicU64,
}

impl Losses {
    /// Its number.
    pub(crate) fn listen(&self, token: u64, notify: OnLost) -> u64 {
        let number = self.last.fetch_add(1, Ordering::Relaxed);
        let mut by_token = self.by_token.lock();
        by_token.entry(token).or_default().push((number, notify));
        self.listening.store(by_token.len(), Ordering::Release);
        number
    }

    /// This one listens no more; false if it has been told, or is to be.
    pub(crate) fn unlisten(&self, token: u64, number: u64) -> bool {
        let mut by_token = self.by_token.lock();
        let Some(listeners) = by_token.get_mut(&token) else { return false };
        let before = listeners.len();
        listeners.retain(|(other, _)| *other != number);
        let found = listeners.len() < before;
        if listeners.is_empty() {
            by_token.remove(&token);
        }
        self.listening.store(by_token.len(), Ordering::Release);
        found
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
        listeners.into_values().for_each(|listeners| tell(unnumbered(listeners), error));
    }

    #[inline]
    pub(crate) fn is_anyone_listening(&self) -> bool {
        // In one order with the end of the hold that comes before: a load that is just Acquire could go before a store.
        self.listening.load(Ordering::SeqCst) != 0
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
        unnumbered(listeners)
    }
}

fn unnumbered(listeners: Vec<(u64, OnLost)>) -> Vec<OnLost> {
    listeners.into_iter().map(|(_, notify)| notify).collect()
}

/// Tells each of them, once, on the callback thread.
pub(crate) fn tell(listeners: Vec<OnLost>, error: &Error) {
    for notify in listeners {
        let error = error.clone();
        call::run(Box::new(move || notify(error)));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn who_listens_no_more_is_not_told_and_the_others_are() {
        let (losses, (tell, told)) = (Losses::default(), channel());
        let [first, second] = ["first", "second"].map(|name| {
            let tell = tell.clone();
            losses.listen(7, Box::new(move |_| tell.send(name).expect("the test waits")))
        });
        assert!(losses.unlisten(7, first) && !losses.unlisten(7, first) && !losses.unlisten(8, second));
        losses.tell(7, &Error::new(crate::error::ErrorKind::Lost, "check", "it is gone"));
        drop(tell);
        assert_eq!(told.iter().collect::<Vec<_>>(), ["second"]);
        assert!(!losses.unlisten(7, second) && !losses.is_anyone_listening());
        losses.listen(7, Box::new(|_| {}));
        assert!(losses.is_listening(7));
    }
}
