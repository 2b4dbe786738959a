//! The ways to a lock in Redis: TLS, users with few rights, replicas, Sentinel, Cluster, independent servers. Each test
//! starts the real servers that it needs.

mod cluster;
mod plain;
mod redlock;
mod replicas;
mod rights;
mod sentinel;
mod tls;

use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex, Waiting};

/// A watchdog, not a stop-watch.
const LONG: Duration = Duration::from_secs(30);

macro_rules! needs_redis {
    () => {
        if ipcmutex_tests::servers::skipped(std::thread::current().name().unwrap_or("a test")) {
            return;
        }
    };
}
use needs_redis;

#[track_caller]
fn open(url: &str) -> Mutex {
    Mutex::open(url).unwrap_or_else(|error| panic!("{error}"))
}

#[track_caller]
fn kind_of<T: std::fmt::Debug>(outcome: ipcmutex::Result<T>) -> ErrorKind {
    outcome.expect_err("it must be refused").kind()
}

fn within(limit: Duration) -> Waiting<'static> {
    Waiting { timeout: limit.into(), ..Waiting::default() }
}

/// Waits until it is so, on the server's word and not on a clock's.
#[track_caller]
fn until(what: &str, mut is_it: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_it() {
        assert!(begun.elapsed() < LONG, "not so after {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

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
