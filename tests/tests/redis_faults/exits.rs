//! Programs that end while something of theirs is on its way to the server: another thread's take, wait or release.

use std::path::Path;

use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::asking::{open, until, waiters};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::servers::Redis;

#[test]
fn an_exit_does_not_hand_the_lock_to_the_thread_that_ends_with_it() {
    needs_redis!();
    let redis = Redis::start();
    for round in 0..20 {
        let id = format!("exit-{round}");
        let mutex = open(&redis.url(&id));
        let agent = Agent::start(Language::Rust);
        agent.open(1, &redis.url(&id)).ok();
        agent.call("hold 1 1 forever").ok();
        let _waits = agent.begin("hold 1 2 forever");
        until("its other thread waits", || waiters(&mutex) == 1);
        assert_eq!(agent.leave(), 0);
        let next = mutex.try_acquire().expect("no error").expect("the program released it, and nobody else is there");
        assert!(!next.abandoned());
        next.release().expect("released");
    }
}

#[test]
fn an_exit_leaves_nothing_of_what_other_threads_were_doing() {
    needs_redis!();
    const THREADS: u32 = 6;
    let redis = Redis::start();
    let folder = tempfile::tempdir().expect("a folder");
    let cell = folder.path().join("cell");
    std::fs::write(&cell, [0; 4096]).expect("written");
    let mut left = 0;
    let rounds = 30;
    for round in 0..rounds {
        let agent = Agent::start(Language::Rust);
        let mut under_way = Vec::new();
        for lock in 1..=THREADS {
            agent.open(lock, &redis.url(&format!("left-{round}-{lock}"))).ok();
            let records = folder.path().join(format!("{round}-{lock}"));
            under_way.push(agent.begin(&hammer(lock, &cell, &records)));
        }
        let seen = |lock| redis.command(&["EXISTS", &format!("{{ipcmutex:left-{round}-{lock}}}:state")]).number() == 1;
        until("each of them takes and releases", || (1..=THREADS).all(seen));
        assert_eq!(agent.leave(), 0);
        for lock in 1..=THREADS {
            left += redis.command(&["EXISTS", &format!("ipcmutex:left-{round}-{lock}")]).number();
        }
    }
    assert_eq!(left, 0, "of {rounds} programs of {THREADS} threads each");
}

fn hammer(lock: u32, cell: &Path, records: &Path) -> String {
    format!("hammer {lock} {} {} 60000 lock", cell.display(), records.display())
}
