//! Waiting, written once for all engines: a thread that blocks, a callback, or a future.
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

#[cfg(feature = "redis")]
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Weak};
use std::task::Waker;
use std::time::Instant;

use crate::backend::contract::{Backend, Grant};
use crate::error::{Error, ErrorKind, Result};
use crate::event_loop::EventLoop;
use crate::service::offload::Job;
use crate::service::{call, clock};
use crate::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use crate::sync::{Guarded, MutexGuard, futex};
use crate::sys::fork::{self, PerProcess};
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
    timer: AtomicU64,
    blocking: bool,
    /// Whether a sleeper may be moved to a word of other processes.
    moves: bool,
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server asks"))]
    limited: bool,
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server asks"))]
    deadline: Option<Instant>,
    /// When the wait began.
    pub(crate) created: Instant,
}

enum State {
    Waiting(Audience),
    Ending(Audience),
    Settled(Result<Grant>),
    Taken,
}

enum Audience {
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
    fn new(audience: Audience, timeout: Timeout, deadline: Option<Instant>, ticket: u64, moves: bool) -> Arc<Waiter> {
        Arc::new(Waiter {
            bell: AtomicU32::new(0),
            waiting: AtomicBool::new(true),
            ticket: AtomicU64::new(ticket),
            timer: AtomicU64::new(0),
            blocking: matches!(audience, Audience::Thread),
            moves,
            limited: timeout.limit().is_some(),
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
        self.limited
    }

    /// When that is: what [`Backend::wait`] is told may be but a part of the wait.
    #[cfg(feature = "redis")]
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.deadline
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
    fn end(&self, error: Error, leave: impl FnOnce()) -> bool {
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

    fn take(&self) -> Option<Result<Grant>> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut *state, State::Taken) {
            State::Settled(outcome) => Some(outcome),
            other => {
                *state = other;
                None
            }
        }
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

    fn attach(&self, wait: Pending) {
        let mut waits = self.0.waits();
        waits.retain(|wait| !wait.is_over());
        waits.push(wait.clone());
        drop(waits);
        if self.is_canceled() {
            wait.end(canceled());
        }
    }
}

fn canceled() -> Error {
    Error::new(ErrorKind::Canceled, "acquire", "the wait was cancelled")
}

/// Before it waits: the grant, or the ticket to wait with. A server that is away may come back within the time there
/// is: the line waits for it.
fn first_try(
    backend: &dyn Backend,
    timeout: Timeout,
    deadline: Option<Instant>,
    sleeps: bool,
) -> Result<Result<Grant, u64>> {
    let outcome = if timeout.is_try() {
        backend.try_take().map(|grant| grant.ok_or(0))
    } else {
        backend.take_or_line_up(deadline, sleeps)
    };
    tried(backend, timeout, outcome)
}

/// What such an outcome comes to.
fn tried(backend: &dyn Backend, timeout: Timeout, outcome: Result<Result<Grant, u64>>) -> Result<Result<Grant, u64>> {
    match outcome {
        Ok(Err(_)) if timeout.is_try() => Err(timed_out(backend, timeout)),
        Err(error) if !timeout.is_try() && error.kind() == ErrorKind::Unavailable => Ok(Err(0)),
        outcome => outcome,
    }
}

/// This is a child, perhaps of a signal's handler: what was asked, its answer and the place in the line are its parent's.
pub(crate) fn forked() -> Error {
    Error::new(ErrorKind::Forked, "acquire", "the wait belongs to the parent process")
        .with_help("acquire in this process")
}

/// Why nobody answers.
#[cfg(feature = "redis")]
pub(crate) enum Unanswered {
    /// A signal's handler has forked, and this is the child: what was answered is its parent's.
    Forked,
    /// The thread that was to answer has ended by a bug.
    Ended,
}

/// So often who waits for another thread's answer looks whether it is a child.
#[cfg(feature = "redis")]
const LOOK: std::time::Duration = std::time::Duration::from_millis(250);

/// What another thread of the library answers, which a forked child does not have.
#[cfg(feature = "redis")]
pub(crate) fn answer<T>(from: &Receiver<T>, is_ours: impl Fn() -> bool) -> Result<T, Unanswered> {
    loop {
        let answer = from.recv_timeout(LOOK);
        if !is_ours() {
            return Err(Unanswered::Forked);
        }
        match answer {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Unanswered::Ended),
        }
    }
}

fn timed_out(backend: &dyn Backend, limit: Timeout) -> Error {
    if let Some(reason) = backend.unserved() {
        return reason;
    }
    let owner = backend.describe_owner().map(|owner| format!(": {owner}")).unwrap_or_default();
    match limit.limit() {
        Some(limit) if !limit.is_zero() => Error::new(
            ErrorKind::Timeout,
            "acquire",
            format!("not acquired within {:.3} s{owner}", limit.as_secs_f64()),
        ),
        _ => Error::new(ErrorKind::Timeout, "acquire", format!("not free{owner}")),
    }
}

/// A wait under way, as those see it who may end it: not a child, whose parent waits.
#[derive(Clone)]
pub(crate) struct Pending {
    waiter: Weak<Waiter>,
    backend: Weak<dyn Backend>,
    epoch: u32,
}

impl Pending {
    fn of(waiter: &Arc<Waiter>, backend: &Arc<dyn Backend>) -> Pending {
        Pending { waiter: Arc::downgrade(waiter), backend: Arc::downgrade(backend), epoch: fork::epoch() }
    }

    /// Ends the wait with `error`, unless it has an outcome; whether it was ended here.
    pub(crate) fn end(&self, error: Error) -> bool {
        self.end_with(|_| error)
    }

    fn end_with(&self, error: impl FnOnce(&dyn Backend) -> Error) -> bool {
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

    pub(crate) fn is_over(&self) -> bool {
        self.epoch != fork::epoch() || !self.waiter.upgrade().is_some_and(|waiter| waiter.is_waiting())
    }
}

/// How an acquisition waits.
#[derive(Default)]
pub struct Waiting<'a> {
    /// How long; for ever by default.
    pub timeout: Timeout,
    /// A token that ends the wait.
    pub cancel: Option<&'a Cancel>,
    /// Asked after each signal and at least five times a second: whether to go on waiting. For languages whose
    /// signal handlers run on the waiting thread itself.
    pub interrupt: Option<&'a mut dyn FnMut() -> bool>,
}

impl Default for Timeout {
    fn default() -> Timeout {
        Timeout::FOREVER
    }
}

const INTERRUPT_SLICE: std::time::Duration = std::time::Duration::from_millis(200);

/// Waits on the caller's thread. `register` makes the wait known to whoever may close the mutex.
#[inline]
pub(crate) fn block(backend: &Arc<dyn Backend>, waiting: Waiting<'_>, register: impl FnOnce(Pending)) -> Result<Grant> {
    if waiting.cancel.is_some_and(Cancel::is_canceled) {
        return Err(canceled());
    }
    match backend.take_free() {
        Some(grant) => Ok(grant),
        None => block_slowly(backend, waiting, register),
    }
}

#[cold]
fn block_slowly(backend: &Arc<dyn Backend>, waiting: Waiting<'_>, register: impl FnOnce(Pending)) -> Result<Grant> {
    let Waiting { timeout, cancel, mut interrupt } = waiting;
    let epoch = fork::epoch();
    let deadline = if backend.is_remote() { timeout.deadline() } else { None };
    let tried = first_try(&**backend, timeout, deadline, true)?;
    if epoch != fork::epoch() {
        return Err(forked());
    }
    let ticket = match tried {
        Ok(grant) => return Ok(grant),
        Err(ticket) => ticket,
    };
    let deadline = deadline.or_else(|| timeout.deadline());
    let waiter = Waiter::new(Audience::Thread, timeout, deadline, ticket, backend.moves_sleepers());
    backend.join(&waiter)?;
    let pending = Pending::of(&waiter, backend);
    if let Some(cancel) = cancel {
        cancel.attach(pending.clone());
    }
    register(pending);
    loop {
        if let Some(outcome) = waiter.take() {
            return outcome;
        }
        if !waiter.is_waiting() {
            // Somebody ends it, and tells when it has left the line: not in a child that a signal's handler has forked. Where there is no
            // time, in a schedule, to look for that would be to spin.
            let look =
                if cfg!(all(test, feature = "schedules")) { None } else { Some(Instant::now() + INTERRUPT_SLICE) };
            waiter.park(look);
            if epoch != fork::epoch() {
                return Err(forked());
            }
            continue;
        }
        let slice = interrupt.as_ref().map(|_| Instant::now() + INTERRUPT_SLICE);
        let until = match (deadline, slice) {
            (Some(deadline), Some(slice)) => Some(deadline.min(slice)),
            (deadline, slice) => deadline.or(slice),
        };
        let woken = backend.wait(&waiter, until);
        let interrupted = woken != Woken::Changed
            && interrupt.as_mut().is_some_and(|go_on| {
                // It is the program's own code, and may panic.
                let leaves = Leaves { backend, waiter: &waiter, epoch };
                let ended = !go_on();
                std::mem::forget(leaves);
                ended
            });
        if epoch != fork::epoch() {
            return Err(forked());
        }
        if woken == Woken::Changed {
            continue;
        }
        let reason = if interrupted {
            canceled()
        } else if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
            timed_out(&**backend, timeout)
        } else {
            continue;
        };
        waiter.end(reason, || backend.leave(&waiter));
    }
}

/// Waits without a thread: `notify` is called once, on the callback thread, or for `inline` on any thread. What asks a
/// server is done `away` from here.
pub(crate) fn start(
    backend: &Arc<dyn Backend>,
    timeout: Timeout,
    inline: bool,
    notify: Notify,
    register: impl FnOnce(Pending),
    away: impl FnOnce(Job),
) -> Pending {
    let audience = if inline { Audience::Inline(notify) } else { Audience::Callback(notify) };
    let deadline = timeout.deadline();
    let waiter = Waiter::new(audience, timeout, deadline, 0, false);
    let pending = Pending::of(&waiter, backend);
    register(pending.clone());
    set_out(backend, &waiter, timeout, deadline, away);
    pending
}

/// Has the first try made: here, or, if it asks a server, `away`.
fn set_out(
    backend: &Arc<dyn Backend>,
    waiter: &Arc<Waiter>,
    timeout: Timeout,
    deadline: Option<Instant>,
    away: impl FnOnce(Job),
) {
    if !backend.is_remote() {
        let outcome = first_try(&**backend, timeout, deadline, false);
        return go_on(backend, waiter, timeout, deadline, outcome);
    }
    // Those ahead may be kept by their server for longer than this one waits.
    if let Some(deadline) = deadline.filter(|_| !timeout.is_try()) {
        end_at(backend, waiter, timeout, deadline);
    }
    let (backend, waiter) = (backend.clone(), waiter.clone());
    away(Box::new(move || {
        // From here on the try knows when to end, and why it came to nothing.
        clock::cancel(waiter.timer.swap(0, Ordering::AcqRel));
        if waiter.is_waiting() {
            let outcome = first_try(&*backend, timeout, deadline, false);
            go_on(&backend, &waiter, timeout, deadline, outcome);
        }
    }));
}

fn timer(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, timeout: Timeout, at: Instant) -> Result<u64> {
    let pending = Pending::of(waiter, backend);
    clock::at(
        at,
        Box::new(move || {
            pending.end_with(|backend| timed_out(backend, timeout));
        }),
    )
}

/// Its timeout ends the wait at `deadline`.
fn end_at(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, timeout: Timeout, deadline: Instant) {
    match timer(backend, waiter, timeout, deadline) {
        Ok(timer) => clock::cancel(waiter.timer.swap(timer, Ordering::AcqRel)),
        Err(error) => {
            waiter.end(error, || backend.leave(waiter));
            return;
        }
    }
    if !waiter.is_waiting() {
        clock::cancel(waiter.timer.load(Ordering::Acquire));
    }
}

/// How long after its deadline a wait that is asked for elsewhere is ended, if nobody comes to ask for it: one that was begun in time
/// mostly ends by then, and knows why it came to nothing.
const UNBEGUN: std::time::Duration = std::time::Duration::from_millis(700);

/// Ends the wait not long after `deadline` if it has not come so far as to be ended at it.
fn end_unbegun(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, timeout: Timeout, deadline: Instant) {
    if waiter.timer.load(Ordering::Acquire) != 0 {
        return;
    }
    let at = deadline.checked_add(UNBEGUN).unwrap_or(deadline);
    // Without a thread for it the engine alone ends it.
    let Ok(timer) = timer(backend, waiter, timeout, at) else { return };
    let is_first = waiter.timer.compare_exchange(0, timer, Ordering::AcqRel, Ordering::Acquire).is_ok();
    if !is_first || !waiter.is_waiting() {
        clock::cancel(timer);
    }
}

/// [`start`] for an event loop, which waits for no server; `notify` may be called on any thread. `place` is dropped
/// when the first try is over: whoever is behind may go.
pub(crate) fn start_on(
    backend: &Arc<dyn Backend>,
    on: &EventLoop,
    timeout: Timeout,
    notify: Notify,
    register: impl FnOnce(Pending),
    place: impl Send + 'static,
) -> Pending {
    let (deadline, waits) = (timeout.deadline(), !timeout.is_try());
    let waiter = Waiter::new(Audience::Inline(notify), timeout, deadline, 0, false);
    let pending = Pending::of(&waiter, backend);
    register(pending.clone());
    let (engine, asked) = (backend.clone(), waiter.clone());
    let then = Box::new(move |outcome: Result<Result<Grant, u64>>| {
        go_on(&engine, &asked, timeout, deadline, tried(&*engine, timeout, outcome));
        drop(place);
    });
    let late = backend.ask_take(on, waits, deadline.filter(|_| waits), then);
    // Threads may be kept by other servers for longer than this one waits.
    if let Some(deadline) = deadline.filter(|_| late && waits && waiter.is_waiting()) {
        end_unbegun(backend, &waiter, timeout, deadline);
    }
    pending
}

/// After its first try.
fn go_on(
    backend: &Arc<dyn Backend>,
    waiter: &Arc<Waiter>,
    timeout: Timeout,
    deadline: Option<Instant>,
    outcome: Result<Result<Grant, u64>>,
) {
    let outcome = match outcome {
        Ok(Ok(grant)) => Ok(grant),
        Err(error) => Err(error),
        Ok(Err(ticket)) => match begin(backend, waiter, ticket, timeout, deadline) {
            Ok(()) => return,
            Err(error) => Err(error),
        },
    };
    if let Err(Ok(late)) = waiter.settle(outcome) {
        backend.give_back(late);
    }
}

fn begin(
    backend: &Arc<dyn Backend>,
    waiter: &Arc<Waiter>,
    ticket: u64,
    timeout: Timeout,
    deadline: Option<Instant>,
) -> Result<()> {
    waiter.ticket.store(ticket, Ordering::Release);
    backend.join(waiter)?;
    if let Some(deadline) = deadline {
        end_at(backend, waiter, timeout, deadline);
    }
    // It may have ended between its registration and its joining.
    if !waiter.is_waiting() {
        backend.leave(waiter);
    }
    Ok(())
}

/// A wait that is polled by an executor.
pub(crate) struct FutureWait {
    backend: Arc<dyn Backend>,
    waiter: Arc<Waiter>,
    epoch: u32,
}

impl FutureWait {
    /// What asks a server is done `away` from here.
    pub(crate) fn start(
        backend: &Arc<dyn Backend>,
        register: impl FnOnce(Pending),
        away: impl FnOnce(Job),
    ) -> FutureWait {
        let waiter = Waiter::new(Audience::Future(None), Timeout::FOREVER, None, 0, false);
        let wait = FutureWait { backend: backend.clone(), waiter, epoch: fork::epoch() };
        register(Pending::of(&wait.waiter, backend));
        set_out(backend, &wait.waiter, Timeout::FOREVER, None, away);
        wait
    }

    pub(crate) fn poll(&self, waker: &Waker) -> Option<Result<Grant>> {
        if self.epoch != fork::epoch() {
            return Some(Err(forked()));
        }
        let mut state = self.waiter.state.lock();
        if let State::Waiting(Audience::Future(known)) | State::Ending(Audience::Future(known)) = &mut *state {
            if !known.as_ref().is_some_and(|known| known.will_wake(waker)) {
                *known = Some(waker.clone());
            }
            return None;
        }
        drop(state);
        self.waiter.take()
    }
}

impl Drop for FutureWait {
    fn drop(&mut self) {
        drop(Leaves { backend: &self.backend, waiter: &self.waiter, epoch: self.epoch });
    }
}

/// When it is dropped, nobody waits for the outcome any more.
struct Leaves<'a> {
    backend: &'a Arc<dyn Backend>,
    waiter: &'a Arc<Waiter>,
    epoch: u32,
}

impl Drop for Leaves<'_> {
    fn drop(&mut self) {
        if self.epoch != fork::epoch() {
            return; // The parent waits on, or has what it was granted.
        }
        if self.waiter.end(canceled(), || self.backend.leave(self.waiter)) {
            return;
        }
        if let Some(Ok(grant)) = self.waiter.take() {
            self.backend.give_back(grant);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;
    use crate::Mutex;

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

    #[test]
    fn a_future_that_moves_while_its_wait_ends_is_woken_where_it_is() {
        let (old, new) = (Arc::new(Flag::default()), Arc::new(Flag::default()));
        let url = "spm:moves-while-it-ends".parse().expect("a URL");
        let backend = crate::backend::open::open(&url, &Default::default()).expect("it opens");
        let waiter = Waiter::new(Audience::Future(Some(old.clone().into())), Timeout::FOREVER, None, 0, false);
        let wait = FutureWait { backend, waiter: waiter.clone(), epoch: fork::epoch() };
        let waker = new.clone().into();
        waiter.end(canceled(), || assert!(wait.poll(&waker).is_none()));
        assert!(new.is_up() && !old.is_up());
        assert!(wait.poll(&waker).is_some());
    }

    #[derive(Default)]
    struct Flag(AtomicBool);

    impl Flag {
        fn is_up(&self) -> bool {
            self.0.load(Ordering::Acquire)
        }
    }

    impl std::task::Wake for Flag {
        fn wake(self: Arc<Flag>) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// What the program is asked while it waits may panic, also when the lock has been given to the wait already.
    #[test]
    fn a_wait_in_which_the_program_panics_is_in_no_line_and_holds_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        for url in ["spm:panics?fair=strict".to_owned(), format!("mpm:{}?fair=strict", path.display())] {
            for releases in [false, true] {
                let mutex = Mutex::open(&url).unwrap();
                let hold = mutex.acquire().unwrap();
                let mut interrupt = || {
                    if releases {
                        hold.end().unwrap();
                    }
                    panic!("the program's own");
                };
                let waiting = Waiting { interrupt: Some(&mut interrupt), ..Waiting::default() };
                let waits = std::panic::AssertUnwindSafe(|| mutex.acquire_with(waiting).map(drop));
                assert!(std::panic::catch_unwind(waits).is_err());
                assert_eq!(mutex.status().unwrap().waiters, 0, "{url}");
                drop(hold);
                assert!(mutex.try_acquire().unwrap().is_some(), "{url}");
            }
        }
    }
}
