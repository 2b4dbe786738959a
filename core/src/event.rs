//! Acquiring from an event loop: the calling thread does not sleep.

use std::sync::Arc;

use crate::error::{Result, canceled};
use crate::event_loop::EventLoop;
use crate::hold::Hold;
use crate::mutex::{Mutex, Wait};
use crate::service::offload::offload;
use crate::session::{Inner, Session};
use crate::sync::Guarded;
use crate::sys::fork;
use crate::timeout::Timeout;

type Done = Box<dyn FnOnce(Result<Hold>) + Send>;

/// An acquisition that was started with [`Mutex::acquire_on`].
#[derive(Clone)]
pub struct EventWait(Arc<Pending>);

struct Pending {
    /// Who is told. Whoever takes it decides the outcome.
    done: Guarded<Option<Done>>,
    /// Set once it waits in line.
    wait: Guarded<Option<Wait>>,
    epoch: u32,
}

impl Pending {
    fn settle(&self, outcome: Result<Hold>) -> bool {
        let done = self.done.lock().take();
        match done {
            Some(done) => {
                done(outcome);
                true
            }
            None => {
                // Cancelled meanwhile. Giving back may talk to a server, which this thread may not be free to do.
                if let Ok(late) = outcome {
                    offload(move || drop(late));
                }
                false
            }
        }
    }

    fn started(self: &Arc<Pending>, started: Result<Wait>) {
        match started {
            Ok(wait) => {
                *self.wait.lock() = Some(wait.clone());
                // It may have been cancelled before it could be seen to wait.
                if self.done.lock().is_none() {
                    wait.cancel();
                }
            }
            Err(error) => {
                self.settle(Err(error));
            }
        }
    }
}

/// Of the one who is first on the way to the server.
struct Place(Mutex);

impl Drop for Place {
    fn drop(&mut self) {
        if self.0.0.starts.leave() {
            self.0.0.drain_starts();
        }
    }
}

impl EventWait {
    /// Ends the wait: `done` is told CANCELED, perhaps before this returns. `false` if it has an outcome already, and
    /// nothing changes; so also in a forked child, whose parent waits.
    pub fn cancel(&self) -> bool {
        if self.0.epoch != fork::epoch() {
            return false;
        }
        let wait = self.0.wait.lock().clone();
        match wait {
            Some(wait) => wait.cancel(),
            // It is on the way to the line still, or over.
            None => self.0.settle(Err(canceled())),
        }
    }
}

impl Mutex {
    /// Whether opening, acquiring and releasing talk to a server, and may take as long as a network does.
    pub fn is_remote(&self) -> bool {
        self.url().is_remote()
    }

    /// Acquires for an event loop, on whose thread this is called. `done` is called exactly once, on any thread, perhaps
    /// before this returns: it must be short and call nothing of this crate but [`offload`] and
    /// [`deliver`](crate::deliver). The calling thread does not wait for a server, but looks for the answer of a near one
    /// for about a tenth of a millisecond: what is asked is asked on the loop's own connection, or offloaded.
    pub fn acquire_on(
        &self,
        on: &EventLoop,
        timeout: Timeout,
        done: impl FnOnce(Result<Hold>) + Send + 'static,
    ) -> EventWait {
        let done: Done = Box::new(done);
        let pending =
            Arc::new(Pending { done: Guarded::new(Some(done)), wait: Guarded::new(None), epoch: fork::epoch() });
        let told = pending.clone();
        let notify = move |outcome| {
            told.settle(outcome);
        };
        pending.started(if self.is_remote() && self.0.starts.enter() {
            self.start_on(on, timeout, notify, Place(self.clone()))
        } else {
            self.acquire_inline(timeout, notify)
        });
        EventWait(pending)
    }

    /// [`Mutex::release`] for an event loop: `done` is called exactly once, as that of [`Mutex::acquire_on`]. The hold has ended when this
    /// returns; `done` tells how.
    pub fn release_on(&self, on: &EventLoop, done: impl FnOnce(Result<()>) + Send + 'static) {
        let inner = self.0.clone();
        let ended = inner.used_session("release").and_then(|session| Ok((session, inner.let_go(session)?)));
        release(&inner, on, ended, done);
    }
}

impl Hold {
    /// [`Hold::release`] for an event loop, as [`Mutex::release_on`].
    pub fn release_on(&self, on: &EventLoop, done: impl FnOnce(Result<()>) + Send + 'static) {
        let token = self.token();
        let mutex = self.mutex();
        let inner = &mutex.0;
        let ended = self.ending().and_then(|_| {
            let session = inner.session()?;
            inner.let_go_of(session, token)?;
            Ok((session, token))
        });
        release(inner, on, ended, done);
    }
}

fn release(
    inner: &Arc<Inner>,
    on: &EventLoop,
    ended: Result<(&Session, u64)>,
    done: impl FnOnce(Result<()>) + Send + 'static,
) {
    match ended {
        Err(error) => done(Err(error)),
        Ok((session, token)) => {
            let named = inner.clone();
            let then = move |outcome: Result<()>| done(outcome.map_err(|error| named.named(error)));
            session.backend.ask_release(on, token, Box::new(then));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn an_event_is_told_once_and_a_canceled_one_never_takes_the_lock() {
        let mutex = Mutex::open("spm:event-test").unwrap();
        let on = EventLoop::new(|_| {});
        let (tell, told) = mpsc::channel();
        let first = tell.clone();
        mutex.acquire_on(&on, Timeout::FOREVER, move |outcome| first.send(outcome).unwrap());
        let hold = told.recv().unwrap().unwrap();

        let second = tell.clone();
        let wait = mutex.acquire_on(&on, Timeout::FOREVER, move |outcome| second.send(outcome).unwrap());
        assert!(wait.cancel());
        assert_eq!(told.recv().unwrap().unwrap_err().kind(), ErrorKind::Canceled);
        assert!(!wait.cancel());

        hold.release().unwrap();
        mutex.try_acquire().unwrap().expect("the cancelled wait did not take it").release().unwrap();

        mutex.close().unwrap();
        mutex.acquire_on(&on, Timeout::FOREVER, move |outcome| tell.send(outcome).unwrap());
        assert_eq!(told.recv().unwrap().unwrap_err().kind(), ErrorKind::Closed);
    }
}
