//! What a lock has been through is counted, and the same on every engine.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{Mutex, Numbers};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::servers::{Redis, skipped};

/// A watchdog, not a stop-watch.
const LONG: Duration = Duration::from_secs(30);

fn numbers(mutex: &Mutex) -> Numbers {
    mutex.status().expect("it tells").numbers
}

fn until(mutex: &Mutex, what: impl Fn(&ipcmutex::Status) -> bool) {
    let start = Instant::now();
    while !what(&mutex.status().expect("it tells")) {
        assert!(start.elapsed() < LONG, "never: {:?}", mutex.status());
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Three acquisitions, one of them after a wait; a wait that gives up; a hold that is broken.
fn counted(url: &str) {
    let mutex = Mutex::open(url).expect("it opens");
    assert_eq!(numbers(&mutex), Numbers::default(), "{url}");
    mutex.acquire().expect("free").release().expect("held");
    let hold = mutex.acquire().expect("free");
    assert!(mutex.acquire_timeout(Duration::from_millis(20)).expect("no error").is_none());
    assert!(mutex.try_acquire().expect("no error").is_none());
    let (told, outcome) = mpsc::channel();
    let _wait = mutex
        .acquire_callback(LONG.into(), move |hold| told.send(hold).expect("the test listens"))
        .expect("it is queued");
    until(&mutex, |status| status.waiters == 1);
    hold.release().expect("held");
    let second = outcome.recv_timeout(LONG).expect("in time").expect("granted");
    let now = numbers(&mutex);
    assert_eq!((now.acquisitions, now.contended(), now.gave_up, now.losses), (3, 1, 1, 0), "{url}: {now:?}");
    assert!(mutex.break_lock().expect("broken"));
    second.release().expect_err("it was broken");
    assert_eq!(numbers(&mutex).losses, 1, "{url}");
}

#[test]
fn of_a_lock_of_threads() {
    counted("spm:numbers");
}

#[test]
fn of_a_lock_of_processes_over_all_of_them() {
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("mpm:{}", folder.path().join("lock").display());
    counted(&url);
    let agent = Agent::start(Language::Rust);
    agent.open(1, &url).ok();
    agent.call("acquire 1 forever").ok();
    agent.kill(u64::from(agent.pid()));
    let mutex = Mutex::open(&url).expect("it opens");
    let hold = mutex.acquire().expect("the owner is dead");
    assert!(hold.abandoned());
    let now = numbers(&mutex);
    // Three, the break, the agent's, ours; the break and the death.
    assert_eq!((now.acquisitions, now.gave_up, now.losses), (6, 1, 2), "{now:?}");
}

#[test]
fn of_a_redis_lock_through_one_handle() {
    if skipped("of_a_redis_lock_through_one_handle") {
        return;
    }
    let server = Redis::start();
    counted(&server.url("numbers"));
    assert_eq!(numbers(&Mutex::open(&server.url("numbers")).expect("it opens")), Numbers::default());
}
