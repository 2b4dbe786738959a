//! What may stand on the servers for this process, from before a take goes out until its release was answered: the normal
//! end of the process releases it, whatever other threads were doing.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Instant;

use super::lock::Held;
use super::quorum::Quorum;
use super::round::Rounds;
use crate::backend::redis::token::Token;
use crate::backend::redis::wire::Ending;
use crate::sync::Guarded;
use crate::sys::exit;
use crate::sys::fork::PerProcess;

struct Debt {
    quorum: Arc<Quorum>,
    rounds: Arc<Rounds>,
    token: Token,
    ending: Ending,
    /// Who relies on it.
    held: Weak<Held>,
}

static DEBTS: PerProcess<Guarded<BTreeMap<u64, Debt>>> = PerProcess::new();
/// Goes on in a forked child, where no number of its parent's is one of its own.
static NEXT: AtomicU64 = AtomicU64::new(0);

/// One token that is owed until this is dropped.
pub(super) struct Owed(u64);

impl Owed {
    pub(super) fn new(quorum: &Arc<Quorum>, rounds: &Arc<Rounds>, token: &Token) -> Owed {
        exit::at_exit(super::super::farewell);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // Until it is a hold it has reached nobody.
        let (quorum, rounds, token) = (quorum.clone(), rounds.clone(), token.clone());
        let debt = Debt { quorum, rounds, token, ending: Ending::Undone, held: Weak::new() };
        DEBTS.get_or_init(Guarded::default).lock().insert(number, debt);
        Owed(number)
    }

    /// No other one of this process has it.
    pub(super) fn number(&self) -> u64 {
        self.0
    }

    /// It is a hold; false if the end of the process has come first, and releases it.
    pub(super) fn is_held(&self, held: &Arc<Held>) -> bool {
        self.is_now(|debt| (debt.ending, debt.held) = (Ending::Released, Arc::downgrade(held)))
    }

    /// What the next one hears if the process ends now.
    pub(super) fn ends(&self, ending: Ending) {
        self.is_now(|debt| debt.ending = ending);
    }

    /// Whether it is owed still.
    fn is_now(&self, change: impl FnOnce(&mut Debt)) -> bool {
        DEBTS.get().is_some_and(|debts| debts.lock().get_mut(&self.0).map(change).is_some())
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        let debt = DEBTS.get().and_then(|debts| debts.lock().remove(&self.0));
        // Not under the lock: it may be the last to know its quorum.
        drop(debt);
    }
}

/// At a normal end of the process: what is owed is released, as far as that goes by `end`.
pub(in super::super) fn farewell(end: Instant) {
    let Some(debts) = DEBTS.get() else { return };
    let debts = std::mem::take(&mut *debts.lock());
    let (tell, told) = std::sync::mpsc::channel::<()>();
    for debt in debts.into_values() {
        let (Debt { quorum, rounds, token, ending, held }, tell) = (debt, tell.clone());
        if let Some(held) = held.upgrade() {
            // Nobody relies on it from here on.
            held.hold.end();
        }
        // On its thread, which a take that is under way has left by then to its servers: this goes out behind it. Best
        // effort: what cannot be told ends with its lease.
        let _ = quorum.spawn(move |voters| {
            Box::pin(async move {
                rounds.release_everywhere(&voters, &token, ending).await;
                drop(tell);
            })
        });
    }
    drop(tell);
    // Until all have been told, which ends the channel.
    let _ = told.recv_timeout(end.saturating_duration_since(Instant::now()));
}
