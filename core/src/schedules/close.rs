//! A handle that is closed while others use it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shuttle::thread;

use super::{Inside, block_on, must_be_free, play};
use crate::{ErrorKind, Mutex};

const URL: &str = "spm:schedules-close";

/// Who waits through it hears CLOSED, or held before; who holds through it is released; another handle's waiter is served.
///
/// FAULTS: C4
#[test]
fn against_waits_and_holds() {
    play(|| {
        let inside = Inside::default();
        let other = Mutex::open(URL).expect("it opens");
        let hold = other.acquire().expect("it is free");
        let mutex = Mutex::open(URL).expect("it opens");
        let closed = Arc::new(AtomicBool::new(false));
        let waits = [false, true].map(|awaits| {
            let mutex = mutex.clone();
            let acquire = move || if awaits { block_on(mutex.acquire_async()) } else { mutex.acquire() };
            let closed = closed.clone();
            // What it acquired may be released by `close` at any moment: it is no place to be inside.
            thread::spawn(move || {
                let outcome = acquire().and_then(|hold| {
                    assert!(!closed.load(Ordering::SeqCst) || hold.check().is_err(), "held through a closed handle");
                    hold.release()
                });
                if let Err(error) = outcome {
                    assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::NotOwner), "{error}");
                }
            })
        });
        let closer = thread::spawn({
            let mutex = mutex.clone();
            move || {
                mutex.close().expect("it is closed once");
                closed.store(true, Ordering::SeqCst);
            }
        });
        let elsewhere = thread::spawn({
            let (other, inside) = (other.clone(), inside.clone());
            move || inside.visit(other.acquire().expect("it is served"))
        });
        inside.visit(hold);
        waits.into_iter().for_each(|thread| thread.join().expect("it went well"));
        closer.join().expect("it went well");
        elsewhere.join().expect("it went well");
        assert_eq!(mutex.acquire().expect_err("it is closed").kind(), ErrorKind::Closed);
        must_be_free(URL);
    });
}

/// Nobody releases before they have ended: `close` alone can end them, whenever it comes.
#[test]
fn against_waits_that_nothing_else_ends() {
    play(|| {
        let other = Mutex::open(URL).expect("it opens");
        let hold = other.acquire().expect("it is free");
        let mutex = Mutex::open(URL).expect("it opens");
        let waits = [false, true].map(|awaits| {
            let mutex = mutex.clone();
            let acquire = move || if awaits { block_on(mutex.acquire_async()) } else { mutex.acquire() };
            thread::spawn(move || acquire().map(drop).expect_err("it is held").kind())
        });
        mutex.close().expect("it is closed once");
        for wait in waits {
            assert_eq!(wait.join().expect("it went well"), ErrorKind::Closed);
        }
        hold.release().expect("it was held");
        must_be_free(URL);
    });
}
