//! Faults of Redis and of the way to it that need more than a server: a proxy that cuts, clocks that jump, other
//! libraries on the same key, and numbers. The simpler ones are in `../redis.rs`. A fault that has a number has it in its name.

mod beside;
mod refusals;
mod replies;

use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex, Waiting};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::Redis;

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

fn waiters(mutex: &Mutex) -> u32 {
    mutex.status().map_or(0, |status| status.waiters)
}

/// The lock `id` through the proxy, and straight.
fn both_ways(redis: &Redis, proxy: &Proxy, id: &str) -> (Mutex, Mutex) {
    (open(&format!("rpm+redis://{}/{id}", proxy.address())), open(&redis.unix_url(&id.replace('?', "&"))))
}
