//! The lock of one process.

use std::sync::Arc;

use shuttle::sync::mpsc::channel;
use shuttle::thread;

use super::{Inside, must_be_free, play};
use crate::{ErrorKind, Mutex};

#[test]
fn one_at_a_time_and_everybody_gets_there() {
    play(|| {
        let inside = Inside::default();
        let threads = ["", "?fair=strict", ""].map(|query| {
            let inside = inside.clone();
            thread::spawn(move || {
                let mutex = Mutex::open(&format!("spm:schedules{query}")).expect("it opens");
                inside.visit(mutex.acquire().expect("it is served"));
                if let Some(hold) = mutex.try_acquire().expect("it answers") {
                    inside.visit(hold);
                }
                inside.visit(mutex.acquire().expect("it is served"));
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("it went well"));
        must_be_free("spm:schedules");
    });
}

/// A hold that is broken is lost for its owner, by whom it is released all the same, and the next one hears of it.
#[test]
fn a_break_against_a_release() {
    play(|| {
        let mutex = Mutex::open("spm:schedules-break").expect("it opens");
        let hold = mutex.acquire().expect("it is free");
        let breaker =
            thread::spawn(|| Mutex::open("spm:schedules-break").expect("it opens").break_lock().expect("it answers"));
        let waiter = thread::spawn(|| {
            let mutex = Mutex::open("spm:schedules-break").expect("it opens");
            let hold = mutex.acquire().expect("it is served");
            let abandoned = hold.abandoned();
            // It may be this hold that is broken.
            (abandoned, hold.release().map_err(|error| error.kind()))
        });
        let released = hold.release().map_err(|error| error.kind());
        let broken = breaker.join().expect("it went well");
        let (abandoned, waited) = waiter.join().expect("it went well");
        let lost = [released, waited].iter().filter(|outcome| **outcome == Err(ErrorKind::Lost)).count();
        assert!(lost <= usize::from(broken), "{lost} were lost, and broken: {broken}");
        assert_eq!(abandoned, released.is_err(), "the second hears what became of the first");
        // Whoever was robbed leaves the lock abandoned for the next one.
        let next = mutex.try_acquire().expect("it answers").expect("it is free");
        assert_eq!(next.abandoned(), waited.is_err());
        next.release().expect("it was held");
        drop(mutex);
        must_be_free("spm:schedules-break");
    });
}

/// Who listens hears that the hold has ended, or nothing: that it was lost is not so.
#[test]
fn a_release_against_one_who_begins_to_listen() {
    play(|| {
        let mutex = Mutex::open("spm:schedules-listen").expect("it opens");
        let hold = Arc::new(mutex.acquire().expect("it is free"));
        let (tell, told) = channel();
        let listens = thread::spawn({
            let hold = hold.clone();
            move || hold.on_lost(move |error| tell.send(error.kind()).expect("the test waits"))
        });
        mutex.release().expect("it was held");
        if let Err(error) = listens.join().expect("it went well") {
            assert_eq!(error.kind(), ErrorKind::NotOwner, "{error}");
        }
        told.recv().expect_err("it is let go of, and not told");
        must_be_free("spm:schedules-listen");
    });
}

/// A break is told to who listened before or begins to.
#[test]
fn a_break_against_one_who_begins_to_listen() {
    play(|| {
        let mutex = Mutex::open("spm:schedules-heard").expect("it opens");
        let hold = mutex.acquire().expect("it is free");
        let breaker =
            thread::spawn(|| Mutex::open("spm:schedules-heard").expect("it opens").break_lock().expect("it answers"));
        let (tell, told) = channel();
        hold.on_lost(move |error| tell.send(error.kind()).expect("the test waits")).expect("it was not released");
        assert!(breaker.join().expect("it went well"));
        assert_eq!(told.recv().expect("it is told"), ErrorKind::Lost);
        assert_eq!(hold.release().expect_err("it is lost").kind(), ErrorKind::Lost);
        mutex.acquire().expect("it is free").release().expect("it was held");
        must_be_free("spm:schedules-heard");
    });
}

/// Who is told by its release that the hold was lost is told so by the callback, too.
#[test]
fn a_break_against_the_release_of_one_who_listens() {
    play(|| {
        let mutex = Mutex::open("spm:schedules-told").expect("it opens");
        let hold = mutex.acquire().expect("it is free");
        let (tell, told) = channel();
        hold.on_lost(move |error| tell.send(error.kind()).expect("the test waits")).expect("it was not released");
        let breaker =
            thread::spawn(|| Mutex::open("spm:schedules-told").expect("it opens").break_lock().expect("it answers"));
        let released = hold.release().map_err(|error| error.kind());
        breaker.join().expect("it went well");
        match released {
            Ok(()) => assert!(told.recv().is_err(), "it is let go of, and not told"),
            Err(kind) => assert_eq!((kind, told.recv()), (ErrorKind::Lost, Ok(ErrorKind::Lost))),
        }
        drop(mutex.try_acquire().expect("it answers").expect("it is free"));
        must_be_free("spm:schedules-told");
    });
}
