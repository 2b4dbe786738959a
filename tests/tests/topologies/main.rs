//! The ways to a lock in Redis: TLS, users with few rights, replicas, Sentinel, Cluster, independent servers. Each test
//! starts the real servers that it needs.

mod cluster;
mod plain;
mod redlock;
mod replicas;
mod rights;
mod sentinel;
mod tls;

use std::time::Duration;

use ipcmutex::Mutex;
use ipcmutex_tests::asking::{LONG, open, until, within};

/// Taken, seen to exclude, waited for and handed over: what a lock does, over `url`.
#[track_caller]
fn carries_a_lock(url: &str) {
    let (one, other) = (open(url), open(url));
    let hold = one.acquire_with(within(LONG)).unwrap_or_else(|error| panic!("{error}"));
    assert!(other.try_acquire().unwrap_or_else(|error| panic!("{error}")).is_none(), "two hold it");
    let first = hold.token();
    std::thread::scope(|scope| {
        let next = scope.spawn(|| other.acquire_with(within(LONG)));
        std::thread::sleep(Duration::from_millis(20));
        hold.extend(None).expect("renewed");
        hold.release().expect("released");
        let hold = next.join().expect("no panic").unwrap_or_else(|error| panic!("{error}"));
        assert!(hold.token() > first && !hold.abandoned());
        hold.release().expect("released");
    });
    assert_eq!(one.status().expect("status").state, ipcmutex::State::Free);
}

/// A hold whose user loses the right to its key, among others that are renewed with it: `at` opens a lock, `set` sets the rights.
fn takes_no_other_with_it(at: impl Fn(&str) -> Mutex, set: impl Fn(&[&str])) {
    let mutexes: Vec<Mutex> = (0..10).map(|lock| at(&format!("kept-{lock}"))).collect();
    let forbidden = at("forbidden");
    let holds: Vec<_> = mutexes.iter().map(|mutex| mutex.acquire().expect("acquired")).collect();
    let lost = forbidden.acquire().expect("acquired");
    set(&["resetkeys", "~ipcmutex:kept-*", "~{ipcmutex:kept-*"]);
    until("it has ended", || lost.check().is_err());
    for hold in holds {
        hold.check().expect("it is allowed");
        hold.release().expect("released");
    }
}
