//! A handle that is closed while others use it.

use shuttle::thread;

use super::{Inside, must_be_free, play};
use crate::{ErrorKind, Hold, Mutex};

const URL: &str = "spm:schedules-close";

/// Who waits through it hears CLOSED, or held before; who holds through it is released; another handle's waiter is served.
#[test]
fn against_waits_and_holds() {
    play(|| {
        let inside = Inside::default();
        let other = Mutex::open(URL).expect("it opens");
        let hold = other.acquire().expect("it is free");
        let mutex = Mutex::open(URL).expect("it opens");
        let waits = [0, 1].map(|_| {
            let mutex = mutex.clone();
            // What it acquired may be released by `close` at any moment: it is no place to be inside.
            thread::spawn(move || match mutex.acquire().and_then(Hold::release) {
                Ok(()) => {}
                Err(error) => assert!(matches!(error.kind(), ErrorKind::Closed | ErrorKind::NotOwner), "{error}"),
            })
        });
        let closer = thread::spawn({
            let mutex = mutex.clone();
            move || mutex.close().expect("it is closed once")
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
