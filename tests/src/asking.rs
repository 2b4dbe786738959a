//! How the tests of Redis ask: open, wait until, and what kind of refusal it was.

use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Hold, Mutex, Waiting};

use crate::secrets;

/// A watchdog, not a stop-watch.
pub const LONG: Duration = Duration::from_secs(30);

/// Leaves the test, and says so, if there is no server to be had, or none of that release or later: `needs_redis!(7, 0)`.
#[macro_export]
macro_rules! needs_redis {
    () => {
        $crate::needs_redis!(0, 0)
    };
    ($major:literal, $minor:literal) => {
        if $crate::servers::skipped_before(std::thread::current().name().unwrap_or("a test"), ($major, $minor)) {
            return;
        }
    };
}

/// The lock, which must open.
#[track_caller]
pub fn open(url: &str) -> Mutex {
    let mutex = Mutex::open(url).unwrap_or_else(|error| panic!("{error}"));
    secrets::search(&format!("{mutex:?}"));
    mutex
}

/// Of what kind a refusal is; it must be one, and show no secret.
#[track_caller]
pub fn kind_of<T: std::fmt::Debug>(outcome: ipcmutex::Result<T>) -> ErrorKind {
    let error = outcome.expect_err("it must be refused");
    secrets::search(&format!("{error} {error:?}"));
    error.kind()
}

/// A wait that ends.
pub fn within(limit: Duration) -> Waiting<'static> {
    Waiting { timeout: limit.into(), ..Waiting::default() }
}

/// Waits until it is so, on the server's word and not on a clock's.
#[track_caller]
pub fn until(what: &str, mut is_it: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_it() {
        assert!(begun.elapsed() < LONG, "not so after {LONG:?}: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How many wait, as the lock's status says.
pub fn waiters(mutex: &Mutex) -> u32 {
    mutex.status().map_or(0, |status| status.waiters)
}

/// Waits until a hold has been renewed.
#[track_caller]
pub fn until_renewed(hold: &Hold) {
    let mut last = hold.valid_for();
    until("it is renewed", || std::mem::replace(&mut last, hold.valid_for()) < last);
}
