//! For how long the server has left unanswered what callers ask: who stands behind them could not ask, and knows nothing of the lock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Engine;
use crate::backend::redis::lease;
use crate::backend::redis::server::PATIENT;
use crate::error::Error;

/// Since when somebody asks; 0 if nobody does. Of several who do the first alone counts.
pub(super) type Since = Arc<AtomicU64>;

/// Of the one who counts, for as long as it asks.
pub(crate) struct Asking(Since);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

impl Engine {
    /// Somebody asks from now on, until this is dropped. `None` if another does already.
    pub(crate) fn asking(&self) -> Option<Asking> {
        let free = self.asked.load(Ordering::Relaxed) == 0
            && self.asked.compare_exchange(0, lease::now().max(1), Ordering::Relaxed, Ordering::Relaxed).is_ok();
        free.then(|| Asking(self.asked.clone()))
    }

    /// Why one that came to ask nothing within `waited` could not, if the server's silence is the reason: for most of that time (who is
    /// in front may come to ask a moment later than this one came), and for so long that nobody would call it merely slow.
    pub(crate) fn silent_before(&self, operation: &'static str, waited: Duration) -> Option<Error> {
        let since = self.asked.load(Ordering::Relaxed);
        let silent = Duration::from_nanos(if since == 0 { 0 } else { lease::now().saturating_sub(since) });
        (silent >= PATIENT.max(waited / 2)).then(|| self.silent(operation))
    }

    /// For a question that got no answer in time.
    pub(crate) fn silent(&self, operation: &'static str) -> Error {
        self.server.failed(operation, &std::io::Error::from(std::io::ErrorKind::TimedOut).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::redis::server::Server;
    use crate::url::{LockUrl, Target};

    #[test]
    fn a_short_silence_says_nothing_and_one_in_most_of_a_wait_does() {
        let url = LockUrl::parse("rpm+redis://nowhere/silence").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let is_silent = |waited| engine.silent_before("acquire", waited).is_some();
        assert!(!is_silent(Duration::ZERO), "nobody asks");
        let asking = engine.asking();
        assert!(asking.is_some() && engine.asking().is_none());
        engine.asked.store(lease::now() - lease::nanos(PATIENT / 4), Ordering::Relaxed);
        assert!(!is_silent(Duration::from_millis(1)));
        engine.asked.store(lease::now() - lease::nanos(Duration::from_secs(60)), Ordering::Relaxed);
        assert!(is_silent(Duration::from_millis(1)) && is_silent(Duration::from_secs(61)));
        assert!(!is_silent(Duration::from_secs(3600)), "it answered for long");
        drop(asking);
        assert!(!is_silent(Duration::ZERO));
    }
}
