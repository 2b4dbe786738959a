//! Waiting, written once for all engines: a thread that blocks, a callback, or a future.

use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use crate::backend::contract::{Backend, Grant};
use crate::cancel::{Cancel, Pending};
use crate::error::{Error, ErrorKind, Result, canceled};
use crate::event_loop::EventLoop;
use crate::service::Job;
use crate::service::clock;
use crate::sync::atomic::Ordering;
use crate::sys::fork;
use crate::sys::futex::Woken;
use crate::timeout::{Timeout, earlier};
use crate::waiter::{Audience, Notify, Waiter, forked};

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

const INTERRUPT_SLICE: Duration = Duration::from_millis(200);

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
        let woken = backend.wait(&waiter, earlier(deadline, slice));
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
        // It could not even ask in time.
        Err(error) if error.kind() == ErrorKind::Timeout => Err(backend.unserved().unwrap_or(error)),
        outcome => outcome,
    }
}

/// TIMEOUT, or why nobody could be served.
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
    let waiter = Waiter::new(audience, timeout, timeout.deadline(), 0, false);
    let pending = Pending::of(&waiter, backend);
    register(pending.clone());
    set_out(backend, &waiter, away);
    pending
}

/// Has the first try made: here, or, if it asks a server, `away`.
fn set_out(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, away: impl FnOnce(Job)) {
    if !backend.is_remote() {
        let outcome = first_try(&**backend, waiter.timeout, waiter.deadline, false);
        return go_on(backend, waiter, outcome);
    }
    // Those ahead may be kept by their server for longer than this one waits.
    if !waiter.timeout.is_try() {
        end_in_time(backend, waiter);
    }
    let (backend, waiter) = (backend.clone(), waiter.clone());
    away(Box::new(move || {
        // From here on the try knows when to end, and why it came to nothing.
        clock::cancel(waiter.timer.swap(0, Ordering::AcqRel));
        if waiter.is_waiting() {
            let outcome = first_try(&*backend, waiter.timeout, waiter.deadline, false);
            go_on(&backend, &waiter, outcome);
        }
    }));
}

/// The clock's number of what ends the wait `at` then.
fn timer(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, at: Instant) -> Result<u64> {
    let (pending, timeout, ended) = (Pending::of(waiter, backend), waiter.timeout, Arc::downgrade(waiter));
    clock::at(
        at,
        Box::new(move || {
            pending.end_with(|backend| {
                // Before it has a ticket it was told nothing of the lock.
                let unasked = ended.upgrade().filter(|waiter| waiter.ticket.load(Ordering::Acquire) == 0);
                let silent = unasked.and_then(|waiter| backend.silent(waiter.created.elapsed()));
                silent.unwrap_or_else(|| timed_out(backend, timeout))
            });
        }),
    )
}

/// Its timeout, if it has one, ends the wait.
fn end_in_time(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>) {
    let Some(deadline) = waiter.deadline else { return };
    match timer(backend, waiter, deadline) {
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
const UNBEGUN: Duration = Duration::from_millis(700);

/// Ends the wait not long after `deadline` if it has not come so far as to be ended at it.
fn end_unbegun(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, deadline: Instant) {
    if waiter.timer.load(Ordering::Acquire) != 0 {
        return;
    }
    let at = deadline.checked_add(UNBEGUN).unwrap_or(deadline);
    // Without a thread for it the engine alone ends it.
    let Ok(timer) = timer(backend, waiter, at) else { return };
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
        go_on(&engine, &asked, tried(&*engine, timeout, outcome));
        drop(place);
    });
    let late = backend.ask_take(on, waits, deadline.filter(|_| waits), then);
    // Threads may be kept by other servers for longer than this one waits.
    if let Some(deadline) = deadline.filter(|_| late && waits && waiter.is_waiting()) {
        end_unbegun(backend, &waiter, deadline);
    }
    pending
}

/// After its first try.
fn go_on(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, outcome: Result<Result<Grant, u64>>) {
    let outcome = match outcome {
        Ok(Ok(grant)) => Ok(grant),
        Err(error) => Err(error),
        Ok(Err(ticket)) => match begin(backend, waiter, ticket) {
            Ok(()) => return,
            Err(error) => Err(error),
        },
    };
    if let Err(Ok(late)) = waiter.settle(outcome) {
        backend.give_back(late);
    }
}

fn begin(backend: &Arc<dyn Backend>, waiter: &Arc<Waiter>, ticket: u64) -> Result<()> {
    waiter.ticket.store(ticket, Ordering::Release);
    backend.join(waiter)?;
    end_in_time(backend, waiter);
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
        set_out(backend, &wait.waiter, away);
        wait
    }

    pub(crate) fn poll(&self, waker: &Waker) -> Option<Result<Grant>> {
        if self.epoch != fork::epoch() {
            return Some(Err(forked()));
        }
        self.waiter.poll(waker)
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
    use super::*;
    use crate::Mutex;
    use crate::sync::atomic::AtomicBool;

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
