//! Processes that are stopped: holders, and those who wait.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Timeout};
use ipcmutex_tests::asking::{LONG, open, until, waiters, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::servers::Redis;

use super::{freeze, kill, rust, signal};

#[test]
fn r2_a_holder_that_was_stopped_longer_than_its_lease_has_lost() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("r2?ttl=2s");
    let holder = rust();
    holder.open(1, &url).ok();
    let theirs = holder.call("hold 1 1 forever").ok();
    let told = holder.begin("lost 1");
    freeze(&holder);
    let mutex = open(&url);
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    assert!(hold.abandoned() && hold.token() > theirs.token());
    let value = redis.command(&["GET", "ipcmutex:r2"]);
    signal(&holder, rustix::process::Signal::CONT);
    holder.call("check 1").err(ErrorKind::Lost);
    told.reply().err(ErrorKind::Lost);
    holder.call("end 1").err(ErrorKind::Lost);
    assert_eq!(redis.command(&["GET", "ipcmutex:r2"]), value, "the successor's key is untouched");
    hold.check().expect("and it still holds");
    hold.release().expect("released");
}

/// Who broke it tells who waits: the holder, who would pass it on, does not answer.
#[test]
fn a_broken_hold_of_a_stopped_process_goes_to_who_waits_at_once() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("stopped?ttl=60s");
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    freeze(&holder);
    let mutex = open(&url);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        assert!(mutex.break_lock().expect("broken"));
        let hold = waits.join().expect("no panic").expect("acquired");
        assert!(hold.abandoned());
        hold.release().expect("released");
    });
    signal(&holder, rustix::process::Signal::CONT);
    holder.call("end 1").err(ErrorKind::Lost);
}

#[test]
fn a_frozen_waiter_delays_and_does_not_block() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("frozen");
    let mutex = open(&url);
    let hold = mutex.acquire().expect("acquired");
    let frozen = rust();
    frozen.open(1, &url).ok();
    let waits = frozen.begin("hold 1 1 forever");
    until("it waits", || waiters(&mutex) == 1);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 2);
        freeze(&frozen);
        let begun = Instant::now();
        hold.release().expect("released");
        let hold = next.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_millis(1500), "{:?}", begun.elapsed());
        assert!(!hold.abandoned(), "a grant that was not taken up was no hold");
        signal(&frozen, rustix::process::Signal::CONT);
        // Thawed, it finds its claim lapsed and waits on.
        until("it waits again", || waiters(&mutex) == 1);
        hold.release().expect("released");
        waits.reply().ok();
    });
}

/// The first in line is granted it and the second is told of that. If neither lives on, somebody else must know.
#[test]
fn some_frozen_waiters_in_a_row_delay_and_do_not_block() {
    needs_redis!();
    let redis = Redis::start();
    for (id, processes, each) in [("one-process", 1, 2), ("three-processes", 3, 1)] {
        let url = redis.url(&format!("{id}?ttl=60s"));
        let mutex = open(&url);
        let hold = mutex.acquire().expect("acquired");
        let frozen: Vec<_> = (0..processes).map(|_| rust()).collect();
        let mut waits = Vec::new();
        for agent in &frozen {
            agent.open(1, &url).ok();
            for hold in 1..=each {
                waits.push(agent.begin(&format!("hold 1 {hold} forever")));
                until("it waits", || waiters(&mutex) as usize == waits.len());
            }
        }
        // Who has just come is taken to be there.
        std::thread::sleep(Duration::from_millis(300));
        std::thread::scope(|scope| {
            let next = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("it waits", || waiters(&mutex) as usize == waits.len() + 1);
            frozen.iter().for_each(freeze);
            let begun = Instant::now();
            hold.release().expect("released");
            let hold = next.join().expect("no panic").expect("acquired");
            assert!(begun.elapsed() < Duration::from_secs(5), "{id}: {:?}", begun.elapsed());
            frozen.iter().for_each(|agent| signal(agent, rustix::process::Signal::CONT));
            until("they wait again", || waiters(&mutex) as usize == waits.len());
            hold.release().expect("released");
        });
        // What is handed over to it is let go at its end.
        drop(waits);
    }
}

/// A thread that waits by itself has a name of its own in the line, and stops with its process all the same.
#[test]
fn two_frozen_processes_whose_threads_wait_in_either_way_delay_and_do_not_block() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("either-way?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    let stopped = ["aaaaaaaaaaaaaaaae", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbe", "bbbbbbbbbbbbbbbb"];
    let _stopped = redis.stopped_waiters("either-way", &stopped);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 5);
        let begun = Instant::now();
        hold.release().expect("released");
        let hold = next.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
        hold.release().expect("released");
    });
}

/// Two of one process that have just come are taken to be there. Who lines up behind them sees that the lock is being
/// handed over, and that it may not be taken up.
#[test]
fn who_comes_while_it_is_handed_over_to_a_frozen_one_looks_for_all_of_its_process() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("just-come?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    let mut frozen = redis.client();
    frozen.send(&["SUBSCRIBE", "ipcmutex:w:aaaaaaaaaaaaaaaa"]);
    frozen.reply();
    // By their tickets they come in a while: so they have just come, however slow this machine is.
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time of day");
    let ticket = time.as_micros() + 3_600_000_000;
    redis.command(&["HSET", "{ipcmutex:just-come}:state", "q", &ticket.to_string()]);
    for place in 1..=2 {
        let member = format!("aaaaaaaaaaaaaaaa.{place:032x}");
        let place = (ticket - 10 + place).to_string();
        assert_eq!(redis.command(&["ZADD", "{ipcmutex:just-come}:line", &place, &member]).number(), 1);
    }
    let (tell, told) = mpsc::channel();
    let wait = || {
        let tell = tell.clone();
        let done =
            move |outcome: ipcmutex::Result<ipcmutex::Hold>| drop(tell.send(outcome.and_then(|hold| hold.release())));
        mutex.acquire_callback(Timeout::FOREVER, done).expect("it begins")
    };
    wait();
    until("it waits", || waiters(&mutex) == 3);
    hold.release().expect("released");
    wait();
    for _ in 0..2 {
        // By itself the first would look in 20 s.
        told.recv_timeout(Duration::from_secs(10)).expect("served soon").expect("acquired and released");
    }
}

#[test]
fn a_lease_that_was_made_shorter_ends_behind_two_who_have_stopped_too() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("shorter-stopped?ttl=60s");
    let mutex = open(&url);
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    let _stopped = redis.stopped_waiters("shorter-stopped", &["aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb"]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 3);
        holder.call("extend 1 1000").ok();
        kill(&holder);
        let begun = Instant::now();
        let hold = waits.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
        assert!(hold.abandoned());
        hold.release().expect("released");
    });
}
