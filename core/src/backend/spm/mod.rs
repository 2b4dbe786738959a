//! `spm:`, threads of one process: the backend over the process's one lock table.

mod lock;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backend::contract::{Backend, Grant, OnLost, Owner, State, Status};
use crate::error::{Result, broken};
use crate::identity::identity;
use crate::sync::Guarded;
use crate::sys::copies::{Guest, Guesting, Remote};
use crate::sys::futex::Woken;
use crate::url::{Fairness, LockUrl};
use crate::waiter::Waiter;

pub(crate) fn open(id: &str, url: &LockUrl) -> Result<Arc<dyn Backend>> {
    let lock = Arc::new(Remote::open::<lock::Lock>(id));
    let identity = identity(url);
    let label = lock.label(&identity.label);
    Ok(Arc::new(Spm { lock, strict: url.fairness() == Fairness::Strict, label, host: identity.host }))
}

struct Spm {
    lock: Arc<Remote>,
    strict: bool,
    label: u32,
    host: String,
}

impl Guesting for Waiter {
    fn offer(&self, token: u64, abandoned: bool) -> bool {
        self.settle(Ok(Grant { token, abandoned })).is_ok()
    }
    fn nudge(&self) {
        self.unpark();
    }
    fn lost(&self) {}
    fn is_blocking(&self) -> bool {
        Waiter::is_blocking(self)
    }
}

/// Hears of the loss of one hold.
struct Listener(Guarded<Option<OnLost>>);

impl Guesting for Listener {
    fn offer(&self, _token: u64, _abandoned: bool) -> bool {
        false
    }
    fn nudge(&self) {}
    fn lost(&self) {
        if let Some(notify) = self.0.lock().take() {
            crate::service::call::run(Box::new(move || notify(broken("on_lost"))));
        }
    }
    fn is_blocking(&self) -> bool {
        false
    }
}

fn id_of(waiter: &Arc<Waiter>) -> usize {
    Arc::as_ptr(waiter) as usize
}

impl Backend for Spm {
    fn try_take(&self) -> Result<Option<Grant>> {
        Ok(self.lock.take(self.strict, self.label).map(|(token, abandoned)| Grant { token, abandoned }))
    }

    fn take_free(&self) -> Option<Grant> {
        self.lock.take(self.strict, self.label).map(|(token, abandoned)| Grant { token, abandoned })
    }

    fn join(&self, waiter: &Arc<Waiter>) -> Result<()> {
        self.lock.join(Guest::new(waiter.clone()), self.strict, self.label);
        Ok(())
    }

    fn wait(&self, waiter: &Arc<Waiter>, until: Option<Instant>) -> Woken {
        self.lock.claim(id_of(waiter));
        if !waiter.is_waiting() {
            return Woken::Changed;
        }
        waiter.park(until)
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        self.lock.leave(id_of(waiter));
    }

    fn release(&self, token: u64) -> Result<()> {
        if self.lock.release(token) { Ok(()) } else { Err(broken("release")) }
    }

    fn give_back(&self, grant: Grant) {
        self.lock.give_back(grant.token, grant.abandoned);
    }

    fn check(&self, token: u64) -> Result<()> {
        if self.lock.holds(token) { Ok(()) } else { Err(broken("check")) }
    }

    fn on_lost(&self, token: u64, notify: OnLost) -> Result<()> {
        let listener = Arc::new(Listener(Guarded::new(Some(notify))));
        if !self.lock.watch(token, Guest::new(listener.clone())) {
            listener.lost();
        }
        Ok(())
    }

    fn status(&self) -> Result<Status> {
        let raw = self.lock.status();
        let state = match raw.state {
            0 => State::Free,
            1 => State::Held,
            _ => State::Abandoned,
        };
        let label = raw.label.get(..raw.label_len as usize).unwrap_or_default();
        let owner = (state != State::Free).then(|| Owner {
            host: self.host.clone(),
            pid: std::process::id(),
            label: String::from_utf8_lossy(label).into_owned(),
        });
        let held = (state == State::Held).then(|| Duration::from_millis(raw.held_ms.max(0) as u64));
        Ok(Status { state, token: raw.token, waiters: raw.waiters, owner, held, numbers: self.lock.numbers() })
    }

    fn break_lock(&self) -> Result<bool> {
        Ok(self.lock.break_lock())
    }
}
