//! What ends a wait, against the grant.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use shuttle::sync::mpsc::{Receiver, channel};
use shuttle::thread;

use super::{Inside, Waker, block_on, must_be_free, play};
use crate::{Cancel, ErrorKind, EventLoop, Hold, Mutex, Result, Timeout, Waiting};

const URL: &str = "spm:schedules-wait";

/// One waits and is cancelled, the owner releases, another one waits behind: whatever becomes of the first, the second
/// is served, and nothing is left behind.
fn against_a_grant(wait_and_cancel: impl Fn(Mutex, Inside) + Copy + Send + Sync + 'static) {
    play(move || {
        let inside = Inside::default();
        let mutex = Mutex::open(URL).expect("it opens");
        let hold = mutex.acquire().expect("it is free");
        let owner = thread::spawn({
            let inside = inside.clone();
            move || inside.visit(hold)
        });
        let behind = thread::spawn({
            let (mutex, inside) = (mutex.clone(), inside.clone());
            move || inside.visit(mutex.acquire().expect("it is served"))
        });
        wait_and_cancel(mutex, inside);
        owner.join().expect("it went well");
        behind.join().expect("it went well");
        must_be_free(URL);
    });
}

/// FAULTS: S11
#[test]
fn a_thread_that_is_cancelled() {
    against_a_grant(|mutex, inside| {
        let cancel = Cancel::new();
        let canceller = thread::spawn({
            let cancel = cancel.clone();
            move || cancel.cancel()
        });
        let outcome = mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() });
        inside.visit_unless(ErrorKind::Canceled, outcome);
        canceller.join().expect("it went well");
    });
}

/// Who waits hears of a grant or of the cancellation, and who cancels knows which.
fn is_told_what_became_of_it(
    inside: &Inside,
    hear: &Receiver<Result<Hold>>,
    cancel: impl FnOnce() -> bool + Send + 'static,
) {
    let canceller = thread::spawn(cancel);
    let outcome = hear.recv().expect("it is told");
    let ended = outcome.is_err();
    inside.visit_unless(ErrorKind::Canceled, outcome);
    assert_eq!(canceller.join().expect("it went well"), ended, "who cancels knows whether it did");
}

/// FAULTS: S11
#[test]
fn a_callback_that_is_cancelled() {
    against_a_grant(|mutex, inside| {
        let (tell, hear) = channel::<Result<Hold>>();
        let done = move |outcome| tell.send(outcome).expect("it is awaited");
        let wait = mutex.acquire_callback(Timeout::FOREVER, done).expect("it begins");
        is_told_what_became_of_it(&inside, &hear, move || wait.cancel());
    });
}

/// As Python and Node wait, in an event loop.
#[test]
fn an_event_that_is_cancelled() {
    against_a_grant(|mutex, inside| {
        let (tell, hear) = channel::<Result<Hold>>();
        let on = EventLoop::new(|_| {});
        let wait = mutex.acquire_on(&on, Timeout::FOREVER, move |outcome| tell.send(outcome).expect("it is awaited"));
        is_told_what_became_of_it(&inside, &hear, move || wait.cancel());
    });
}

#[test]
fn a_future_that_is_dropped() {
    against_a_grant(|mutex, inside| {
        let waker = Arc::new(Waker(thread::current())).into();
        let mut acquire = pin!(mutex.acquire_async());
        for _ in 0..2 {
            if let Poll::Ready(outcome) = acquire.as_mut().poll(&mut Context::from_waker(&waker)) {
                return inside.visit(outcome.expect("it is served"));
            }
            thread::yield_now();
        }
    });
}

#[test]
fn a_future_that_is_awaited() {
    against_a_grant(|mutex, inside| inside.visit(block_on(mutex.acquire_async()).expect("it is served")));
}

/// Nobody releases before the wait has ended: the cancellation alone can end it, whenever it comes.
#[test]
fn a_cancellation_that_nothing_else_stands_in_for() {
    play(|| {
        let mutex = Mutex::open(URL).expect("it opens");
        let hold = mutex.acquire().expect("it is free");
        let cancel = Cancel::new();
        let waits = thread::spawn({
            let (mutex, cancel) = (mutex.clone(), cancel.clone());
            move || mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() }).map(drop)
        });
        cancel.cancel();
        let ended = waits.join().expect("it went well").expect_err("it is held");
        assert_eq!(ended.kind(), ErrorKind::Canceled);
        hold.release().expect("it was held");
        must_be_free(URL);
    });
}
