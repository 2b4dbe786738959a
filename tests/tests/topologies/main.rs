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

use ipcmutex_tests::asking::{LONG, open, within};

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
