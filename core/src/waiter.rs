//! One wait, and its outcome: of a thread that blocks, a callback, or a future.
//!
//! | state | by | to |
//! |---|---|---|
//! | WAITING | the engine, with a grant or an error | SETTLED |
//! | WAITING | deadline, cancel, close | ENDING: the engine is told (`leave`), nobody else yet |
//! | ENDING | the same, with that error | SETTLED |
//! | SETTLED | the thread or future that takes the outcome; a callback gets it at once | TAKEN |
//!
//! Whoever moves a waiter out of WAITING decides its outcome; everybody else is refused. So a wait that has ended
//! never takes the lock, and a grant that comes too late goes back to the engine. Who is told that its wait has ended may
//! end the process with its next step: by then it has left the line.

use std::sync::Arc;
use std::task::Waker;
use std::time::Instant;

use crate::backend::contract::Grant;
use crate::error::{Error, ErrorKind, Result};
use crate::service::{call, clock};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Guarded, MutexGuard, futex};
use crate::sys::futex::Woken;
use crate::timeout::Timeout;

/// What a callback is given.
pub(crate) type Notify = Box<dyn FnOnce(Result<Grant>) + Send>;

/// One pending acquisition.
pub(crate) struct Waiter {
    /// Counts the reasons to look again; a parked thread sleeps on it.
    bell: AtomicU32,
    waiting: AtomicBool,
    state: Guarded<State>,
    /// The engine's: where in the line.
    pub(crate) ticket: AtomicU64,
    /// The clock's number of what ends it at its deadline; 0 is none.
    pub(crate) timer: AtomicU64,
    blocking: bool,
    /// Whether a sleeper may be moved to a word of other processes.
    moves: bool,
    /// How long it was to be.
    pub(crate) timeout: Timeout,
    /// When that ends it: what [`Backend::wait`] is told may be but a part of the wait.
    ///
    /// [`Backend::wait`]: crate::backend::contract::Backend::wait
    pub(crate) deadline: Option<Instant>,
    /// When the wait began.
    pub(crate) created: Instant,
}

/// Where it is in the table.
enum State {
    Waiting(Audience),
    Ending(Audience),
    Settled(Result<Grant>),
    Taken,
}

/// Who is told.
pub(crate) enum Audience {
    /// A thread that is parked, or will be.
    Thread,
    /// A future; the waker of its last poll.
    Future(Option<Waker>),
    /// A callback, run on the callback thread.
    Callback(Notify),
    /// A callback that may run on whatever thread settles: short, and it calls nothing of the engine.
    Inline(Notify),
}

impl Waiter {
    /// `ticket`: the engine's, 0 if it gave none. `moves`: see [`Waiter::move_to`].
    pub(crate) fn new(
        audience: Audience,
        timeout: Timeout,
        deadline: Option<Instant>,
        ticket: u64,
        moves: bool,
    ) -> Arc<Waiter> {
        Arc::new(Waiter {
            bell: AtomicU32::new(0),
            waiting: AtomicBool::new(true),
            ticket: AtomicU64::new(ticket),
            timer: AtomicU64::new(0),
            blocking: matches!(audience, Audience::Thread),
            moves,
            timeout,
            deadline,
            created: Instant::now(),
            state: Guarded::new(State::Waiting(audience)),
        })
    }

    /// Without a thread behind it.
    #[cfg(test)]
    pub(crate) fn of_a_thread() -> Arc<Waiter> {
        Waiter::new(Audience::Thread, Timeout::FOREVER, None, 0, false)
    }

    /// Whether a thread sleeps for it in [`Backend::wait`]; else the engine must take the lock for it.
    pub(crate) fn is_blocking(&self) -> bool {
        self.blocking
    }

    /// Whether a timeout ends it; else an engine whose server stays away must.
    #[cfg(feature = "redis")]
    pub(crate) fn is_limited(&self) -> bool {
        self.timeout.limit().is_some()
    }

    /// Whether it still has no outcome.
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Acquire)
    }

    /// Decides the outcome. Refused, with what was offered, if it is decided already.
    pub(crate) fn settle(&self, outcome: Result<Grant>) -> Result<(), Result<Grant>> {
        let state = self.state.lock();
        let State::Waiting(_) = *state else { return Err(outcome) };
        self.waiting.store(false, Ordering::Release);
        self.tell(state, outcome);
        Ok(())
    }

    /// Ends the wait with `error`, which is told when `leave` has returned. False if its outcome is decided already.
    pub(crate) fn end(&self, error: Error, leave: impl FnOnce()) -> bool {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Waiting(audience) => *state = State::Ending(audience),
            decided => {
                *state = decided;
                return false;
            }
        }
        self.waiting.store(false, Ordering::Release);
        drop(state);
        leave();
        self.tell(self.state.lock(), Err(error));
        true
    }

    /// Tells the audience, which is still in `state`.
    fn tell(&self, mut state: MutexGuard<'_, State>, outcome: Result<Grant>) {
        let (State::Waiting(audience) | State::Ending(audience)) = std::mem::replace(&mut *state, State::Taken) else {
            return;
        };
        match audience {
            Audience::Thread => {
                *state = State::Settled(outcome);
                drop(state);
                self.unpark();
            }
            Audience::Future(waker) => {
                *state = State::Settled(outcome);
                drop(state);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
            Audience::Callback(notify) => {
                drop(state);
                call::run(Box::new(move || notify(outcome)));
            }
            Audience::Inline(notify) => {
                drop(state);
                notify(outcome);
            }
        }
        clock::cancel(self.timer.load(Ordering::Acquire));
    }

    /// The outcome, once; not a callback's, which has been told.
    pub(crate) fn take(&self) -> Option<Result<Grant>> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Settled(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
    }

    /// [`Waiter::take`] for a future; while there is no outcome `waker` is who is woken.
    pub(crate) fn poll(&self, waker: &Waker) -> Option<Result<Grant>> {
        let mut state = self.state.lock();
        if let State::Waiting(Audience::Future(known)) | State::Ending(Audience::Future(known)) = &mut *state {
            if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
                *known = Some(waker.clone());
            }
            return None;
        }
        drop(state);
        self.take()
    }

    /// Sleeps until `unpark`, `until` or a signal. An `unpark` before the call ends it at once.
    pub(crate) fn park(&self, until: Option<Instant>) -> Woken {
        if self.bell.swap(0, Ordering::Acquire) != 0 {
            return Woken::Changed;
        }
        let woken = futex::wait(&self.bell, 0, futex::ANY, until, self.moves);
        // A swap: what was changed by who rang before it is seen after it. A store could still be on its way when that is looked at.
        self.bell.swap(0, Ordering::Acquire);
        woken
    }

    pub(crate) fn unpark(&self) {
        if self.bell.swap(1, Ordering::AcqRel) == 0 {
            futex::wake(&self.bell, 1, futex::ANY, self.moves);
        }
    }

    /// Lets a parked thread sleep on, but for whoever wakes `word`; one that is not parked will not park before it has returned from `park`
    /// once. `unpark` does not reach it then. For engines of which [`Backend::moves_sleepers`] says so.
    pub(crate) fn move_to(&self, word: &std::sync::atomic::AtomicU32) {
        if self.bell.swap(1, Ordering::AcqRel) == 0 {
            futex::move_sleeper(&self.bell, 1, word);
        }
    }

    /// Its thread is running: to unpark it costs no call then.
    pub(crate) fn runs(&self) {
        self.bell.store(1, Ordering::Release);
    }
}

/// This is a child, perhaps of a signal's handler: what was asked, its answer and the place in the line are its parent's.
pub(crate) fn forked() -> Error {
    Error::new(ErrorKind::Forked, "acquire", "the wait belongs to the parent process")
        .with_help("acquire in this process")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::error::canceled;

    /// Who hears that its wait has ended may end the process: a place in a server's line would stay behind.
    #[test]
    fn who_waited_hears_of_the_end_after_the_engine() {
        let (told, heard) = channel();
        let audiences = [
            Audience::Thread,
            Audience::Future(None),
            Audience::Callback(Box::new(move |_| told.send(()).expect("the test waits"))),
        ];
        for audience in audiences {
            let is_callback = matches!(audience, Audience::Callback(_));
            let waiter = Waiter::new(audience, Timeout::FOREVER, None, 0, false);
            let ended = waiter.end(canceled(), || {
                assert!(!waiter.is_waiting() && waiter.take().is_none() && heard.try_recv().is_err());
                assert!(waiter.settle(Ok(Grant { token: 1, abandoned: false })).is_err(), "a late grant goes back");
                assert!(!waiter.end(canceled(), || panic!("it leaves once")));
            });
            assert!(ended && !waiter.end(canceled(), || panic!("it is over")));
            if is_callback {
                heard.recv().expect("it is told");
            } else {
                assert!(waiter.take().is_some_and(|outcome| outcome.is_err()));
            }
        }
    }
}
