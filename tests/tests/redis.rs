//! Faults of the Redis engine: holders and servers that die, freeze, forget or refuse, and connections that break.
//!
//! Each test has a server of its own. Where a fault has a number it stands in the name. `matrix.rs` runs the promises in
//! every language.

use std::collections::{HashMap, HashSet};
use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Guard, mpsc};
use std::time::{Duration, Instant};

use ipcmutex::{Cancel, Error, ErrorKind, Mutex, State, Timeout, Waiting};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::artifacts::programs;
use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::occupancy::now;
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Client, Redis, Reply};

fn rust() -> Agent {
    Agent::start_with(Language::Rust, &[talkative()])
}

fn kill(agent: &Agent) {
    agent.kill(u64::from(agent.pid()));
}

fn signal(agent: &Agent, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(agent.pid() as i32).expect("a pid is not 0");
    rustix::process::kill_process(pid, signal).expect("it runs");
}

/// Stops it, all its threads.
fn freeze(agent: &Agent) {
    signal(agent, rustix::process::Signal::STOP);
    let tasks = format!("/proc/{}/task", agent.pid());
    until("it has stopped", || {
        let mut tasks = std::fs::read_dir(&tasks).expect("it runs");
        tasks.all(|task| {
            let stat = task.ok().and_then(|task| std::fs::read_to_string(task.path().join("stat")).ok());
            stat.is_some_and(|stat| stat.contains(") T "))
        })
    });
}

/// The lock's keys that are there.
fn keys(redis: &Redis) -> Vec<String> {
    match redis.command(&["KEYS", "*"]) {
        Reply::List(keys) => keys.iter().map(|key| key.text().to_owned()).collect(),
        other => panic!("{other:?}"),
    }
}

/// How a loss is told, each way: at once and once.
#[track_caller]
fn told_of_loss(hold: ipcmutex::Hold, told: &mpsc::Receiver<Error>) -> Instant {
    assert_eq!(told.recv_timeout(LONG).expect("on_lost is called").kind(), ErrorKind::Lost);
    let at = Instant::now();
    assert_eq!(kind_of(hold.check()), ErrorKind::Lost);
    assert_eq!(kind_of(hold.extend(None)), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    assert!(told.recv_timeout(Duration::from_millis(50)).is_err(), "told once");
    at
}

fn listen(hold: &ipcmutex::Hold) -> mpsc::Receiver<Error> {
    let (tell, told) = mpsc::channel();
    hold.on_lost(move |error| drop(tell.send(error))).expect("a live hold");
    told
}

#[test]
fn one_holds_at_a_time_over_processes_and_threads() {
    needs_redis!();
    let redis = Redis::start();
    let inside = Arc::new(AtomicU64::new(0));
    let last = Arc::new(AtomicU64::new(0));
    let url = redis.url("job");
    let other = rust();
    other.open(1, &url).ok();
    let stop = Instant::now() + Duration::from_secs(2);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            // Two handles of one URL, and two threads on each.
            let mutex = open(&url);
            for _ in 0..2 {
                let (mutex, inside, last) = (mutex.clone(), inside.clone(), last.clone());
                scope.spawn(move || {
                    while Instant::now() < stop {
                        let hold = mutex.acquire().expect("acquired");
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                        assert!(last.swap(hold.token(), Ordering::SeqCst) < hold.token(), "the token rises");
                        assert!(!hold.abandoned());
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        hold.release().expect("released");
                    }
                });
            }
        }
        let mut turns = 0;
        while Instant::now() < stop {
            let theirs = other.call("hold 1 1 forever").ok();
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
            assert!(last.swap(theirs.token(), Ordering::SeqCst) < theirs.token());
            inside.fetch_sub(1, Ordering::SeqCst);
            other.call("end 1").ok();
            turns += 1;
        }
        assert!(turns > 10, "the other process had {turns} turns");
    });
    assert_eq!(open(&url).status().expect("status").state, State::Free);
}

#[test]
fn served_in_order_of_arrival() {
    needs_redis!();
    let redis = Redis::start();
    for query in ["", "?protocol=2"] {
        let url = redis.url(&format!("line{query}"));
        let mutex = open(&url);
        let hold = mutex.acquire().expect("acquired");
        let agents: Vec<Agent> = (0..3).map(|_| rust()).collect();
        let order = Arc::new(Guard::new(Vec::new()));
        for agent in &agents {
            agent.open(1, &url).ok();
        }
        std::thread::scope(|scope| {
            for place in 0..9_usize {
                let (mutex, order) = (&mutex, order.clone());
                let agent = (place % 3 != 2).then(|| &agents[place % 3]);
                let own = (place % 3 == 2).then(|| open(&url));
                scope.spawn(move || match (agent, own) {
                    (Some(agent), _) => {
                        let got = agent.begin(&format!("hold 1 {place} forever")).reply().ok();
                        order.lock().unwrap().push((place, got.token()));
                        agent.call(&format!("end {place}")).ok();
                    }
                    (None, Some(own)) => {
                        let got = own.acquire().expect("acquired");
                        order.lock().unwrap().push((place, got.token()));
                        got.release().expect("released");
                    }
                    (None, None) => unreachable!(),
                });
                until("it stands in line", || waiters(mutex) == place as u32 + 1);
            }
            hold.release().expect("released");
        });
        let mut order = order.lock().unwrap().clone();
        order.sort_by_key(|(_, token)| *token);
        assert_eq!(order.iter().map(|(place, _)| *place).collect::<Vec<_>>(), (0..9).collect::<Vec<_>>());
    }
}

#[test]
fn a_release_wakes_the_next_without_polling() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("quiet"));
    let holder = rust();
    holder.open(1, &redis.url("quiet")).ok();
    holder.call("hold 1 1 forever").ok();
    let own = mutex.clone();
    let thread = std::thread::spawn(move || (own.acquire().expect("acquired"), now()));
    until("it waits", || waiters(&mutex) == 1);
    // Not what a link begins with, as the holder's does at its first renewal.
    let asked = || {
        let stats = redis.command(&["INFO", "commandstats"]);
        let line = stats.text().lines().find(|line| line.starts_with("cmdstat_evalsha:")).map(str::to_owned);
        let calls = line.and_then(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok());
        calls.expect("scripts have run")
    };
    let before = asked();
    // The holder renews at a third of its 10 s, which is one or two; the waiter has nothing to say, or looks once.
    std::thread::sleep(Duration::from_secs(5));
    let said = asked() - before;
    assert!(said <= 5, "{said} scripts in 5 s: a look in each second would be as many");
    let released = now();
    holder.call("end 1").ok();
    let (hold, at) = thread.join().expect("no panic");
    assert!(at - released < 1_000_000_000, "woken after {} ms", (at - released) / 1_000_000);
    hold.release().expect("released");
}

#[test]
fn r1_a_killed_holder_frees_the_lock_when_its_lease_ends() {
    needs_redis!();
    const LOCKS: u32 = 8;
    let redis = Redis::start();
    let holder = rust();
    let mutexes: Vec<_> = (0..LOCKS)
        .map(|lock| {
            let url = redis.url(&format!("r1-{lock}?ttl=1s"));
            holder.open(lock, &url).ok();
            open(&url)
        })
        .collect();
    let tokens: Vec<_> =
        (0..LOCKS).map(|lock| holder.call(&format!("hold {lock} {lock} forever")).ok().token()).collect();
    let waits: Vec<_> = mutexes
        .iter()
        .map(|mutex| {
            let own = mutex.clone();
            std::thread::spawn(move || (own.acquire().expect("acquired"), now()))
        })
        .collect();
    until("all wait", || mutexes.iter().all(|mutex| waiters(mutex) == 1));
    kill(&holder);
    let left: Vec<_> =
        (0..LOCKS).map(|lock| (now(), redis.command(&["PTTL", &format!("ipcmutex:r1-{lock}")]).number())).collect();
    let mut late = Vec::new();
    for ((thread, (asked, left)), token) in waits.into_iter().zip(left).zip(tokens) {
        assert!((1..=1000).contains(&left));
        let (hold, at) = thread.join().expect("no panic");
        let waited = (at - asked) as i64 / 1_000_000;
        assert!(waited >= left - 2, "{waited} ms, but the lease had {left} ms");
        assert!(waited <= left + 2000, "{waited} ms, and the lease had {left} ms");
        late.push((waited - left).max(0));
        assert!(hold.abandoned() && hold.token() > token);
        hold.release().expect("released");
    }
    late.sort_unstable();
    // What a busy machine delays is not the lock's.
    assert!(late[0] <= 100, "{late:?} ms after the lease");
    figure(
        "R1",
        format!("the next owner {} ms after the end of the lease, the median of {LOCKS}", late[late.len() / 2]),
    );
    let next = mutexes[0].acquire().expect("acquired");
    assert!(!next.abandoned(), "told once");
    next.release().expect("released");
}

/// Of a waiter that has lined up by itself the background thread hears when it next wakes, maybe late in the lease.
#[test]
fn r1_a_lease_ends_when_it_ends_also_for_who_came_while_the_background_thread_rested() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("rested?ttl=3s"));
    // Of the same engine: its thread rests until it is to be renewed, in 2.2 to 3 s.
    let kept = open(&redis.url("kept?ttl=9s")).acquire().expect("acquired");
    kept.extend(None).expect("the link is up");
    std::thread::sleep(Duration::from_millis(600));
    // As if its process had died: nobody renews it.
    let dying = open(&redis.unix_url("rested&ttl=3s&renew=off")).acquire().expect("acquired");
    let begun = Instant::now();
    let (tell, told) = mpsc::channel();
    mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
    let next = told.recv_timeout(LONG).expect("told").expect("served");
    let waited = begun.elapsed();
    assert!(next.abandoned(), "its lease ended");
    assert!(waited < Duration::from_secs(4), "it owns {waited:?} after a lease of 3 s began");
    drop(dying);
    next.release().expect("released");
    kept.release().expect("released");
}

/// Scripts count in floating point, which ends at 2^53.
#[test]
fn r29_the_token_rises_beyond_what_a_script_can_count() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("beyond"));
    redis.command(&["HSET", "{ipcmutex:beyond}:state", "f", "9007199254740993"]);
    for token in 9_007_199_254_740_994..9_007_199_254_740_999 {
        let hold = mutex.acquire().expect("acquired");
        assert_eq!(hold.token(), token);
        hold.release().expect("released");
    }
}

/// A server that lost the state of a lock that is held gets back what the release writes, and not for ever.
#[test]
fn what_a_release_writes_ends_also_if_the_rest_was_lost() {
    needs_redis!();
    let redis = Redis::start();
    let (mutex, state) = (open(&redis.url("lost")), "{ipcmutex:lost}:state");
    let hold = mutex.acquire().expect("acquired");
    redis.command(&["DEL", state]);
    hold.release().expect("released");
    let lives = redis.command(&["PTTL", state]).number();
    assert!((1..=604_800_000).contains(&lives), "{lives}");
}

#[test]
fn a_lock_that_nobody_waits_for_is_abandoned_too() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("left?ttl=300ms");
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    let mutex = open(&url);
    let status = mutex.status().expect("status");
    assert_eq!(status.state, State::Held);
    assert_eq!(status.owner.as_ref().map(|owner| owner.pid), Some(holder.pid()));
    kill(&holder);
    until("it is abandoned", || mutex.status().is_ok_and(|status| status.state == State::Abandoned));
    assert_eq!(mutex.status().expect("status").owner.map(|owner| owner.pid), Some(holder.pid()));
    let hold = mutex.acquire().expect("acquired");
    assert!(hold.abandoned());
    hold.release().expect("released");
}

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

#[test]
fn r5_a_server_that_stops_answering_costs_the_hold_in_time() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r5?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    let told = listen(&hold);
    until_renewed(&hold);
    redis.freeze();
    let frozen = Instant::now();
    let valid = hold.valid_for().expect("a lease");
    assert!(valid <= Duration::from_millis(1976));
    let error = told.recv_timeout(LONG).expect("told while the server is silent");
    assert_eq!(error.kind(), ErrorKind::Lost);
    let after = frozen.elapsed();
    assert!(
        after >= valid.saturating_sub(Duration::from_millis(50)) && after < valid + Duration::from_millis(310),
        "{after:?}"
    );
    figure("R5", format!("told {after:.0?} after the server froze, valid for {valid:.0?} then"));
    assert_eq!(kind_of(hold.check()), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    redis.thaw();
    // What the server still had of it goes, by the release or by its lease.
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

#[test]
fn the_loss_of_the_key_is_told() {
    needs_redis!();
    let redis = Redis::start();
    for (id, command) in [
        ("del", &["DEL", "ipcmutex:del"] as &[&str]),
        ("flush", &["FLUSHALL"]),
        ("set", &["SET", "ipcmutex:set", "mine"]),
    ] {
        let mutex = open(&redis.url(&format!("{id}?ttl=300ms")));
        let hold = mutex.acquire().expect("acquired");
        let told = listen(&hold);
        redis.command(command);
        told_of_loss(hold, &told);
        if id == "set" {
            assert_eq!(redis.command(&["GET", "ipcmutex:set"]).text(), "mine", "never touched");
        }
    }
    // And by the release itself, without waiting for a renewal.
    let mutex = open(&redis.url("quick"));
    let hold = mutex.acquire().expect("acquired");
    redis.command(&["DEL", "ipcmutex:quick"]);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    assert!(mutex.acquire().expect("acquired").abandoned(), "that release was none");
}

/// By hand, of which nobody is told: its holder finds out, and then who waits need not look by itself.
#[test]
fn who_waits_is_told_by_the_holder_whose_key_was_deleted() {
    needs_redis!();
    let redis = Redis::start();
    let (holder, mutex) = (open(&redis.url("by-hand?ttl=3s")), open(&redis.unix_url("by-hand")));
    let hold = holder.acquire().expect("acquired");
    let told = listen(&hold);
    // Until the next renewal, so that who waits means to look in 20 s.
    until_renewed(&hold);
    assert_eq!(redis.command(&["PEXPIRE", "ipcmutex:by-hand", "60000"]).number(), 1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&holder) == 1);
        let begun = Instant::now();
        assert_eq!(redis.command(&["DEL", "ipcmutex:by-hand"]).number(), 1);
        let next = waits.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
        assert!(next.abandoned());
        told_of_loss(hold, &told);
        next.release().expect("released");
    });
}

#[test]
fn a_broken_hold_is_lost_and_the_next_one_hears_abandoned() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("broken?ttl=30s");
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    // It waits for another lock, so it listens: the break is told at once and not at the next renewal, in 10 s.
    let mutex = open(&url);
    let busy = open(&redis.url("busy"));
    let kept = busy.acquire().expect("acquired");
    holder.open(2, &redis.url("busy")).ok();
    let waits = holder.begin("hold 2 2 forever");
    until("it waits", || waiters(&busy) == 1);
    let told = holder.begin("lost 1");
    assert!(mutex.break_lock().expect("broken"));
    told.reply().err(ErrorKind::Lost);
    assert_eq!(mutex.status().expect("status").state, State::Abandoned);
    assert!(!mutex.break_lock().expect("nothing to break"));
    let hold = mutex.acquire().expect("acquired");
    assert!(hold.abandoned());
    holder.call("end 1").err(ErrorKind::Lost);
    hold.check().expect("it holds");
    hold.release().expect("released");
    kept.release().expect("released");
    waits.reply().ok();
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

/// Whoever finds it free lets those go first who came before.
#[test]
fn a_try_that_finds_the_lock_free_does_not_pass_who_waits() {
    needs_redis!();
    let redis = Redis::start();
    // Nobody looks for a while by himself.
    let url = redis.url("free?ttl=60s&renew=off");
    let (mutex, other) = (open(&url), open(&url));
    let hold = mutex.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        redis.command(&["DEL", "ipcmutex:free"]);
        assert!(other.try_acquire().expect("no error").is_none(), "it passed who waits");
        let next = waits.join().expect("no panic").expect("acquired");
        assert!(next.abandoned());
        next.release().expect("released");
    });
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
}

#[test]
fn r29_the_token_rises_whatever_becomes_of_the_server() {
    needs_redis!();
    let mut redis = Redis::start();
    let mutex = open(&redis.url("r29"));
    let mut last = 0;
    for round in 0..6 {
        let hold = mutex.acquire().expect("acquired");
        assert!(hold.token() > last, "{} after {last}", hold.token());
        last = hold.token();
        hold.release().expect("released");
        match round {
            1 => drop(redis.command(&["FLUSHALL"])),
            3 => redis.restart(),
            // As if the server's clock had been ahead when the last token was given.
            4 => {
                last += 3_600_000_000;
                redis.command(&["HSET", "{ipcmutex:r29}:state", "f", &last.to_string()]);
            }
            _ => {}
        }
    }
    assert!(last > 1_600_000_000_000_000, "in the magnitude of microseconds: {last}");
}

#[test]
fn r8_a_wait_that_ended_leaves_nothing_behind() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r8"));
    let hold = mutex.acquire().expect("acquired");
    assert!(mutex.acquire_timeout(Duration::from_millis(50)).expect("no error").is_none());
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() }));
        until("it waits", || waiters(&mutex) == 1);
        let lives = redis.command(&["PTTL", "{ipcmutex:r8}:line"]).number();
        assert!((1..=60_000).contains(&lives), "a line that nobody comes back to ends: {lives}");
        cancel.cancel();
        assert_eq!(kind_of(waits.join().expect("no panic")), ErrorKind::Canceled);
    });
    drop(mutex.acquire_async());
    until("the line is empty", || waiters(&mutex) == 0);
    hold.release().expect("released");
    // Waits that end at any moment of a hand-over: the lock is free when all is over.
    let other = open(&redis.url("r8"));
    for round in 0..200_u64 {
        let hold = other.acquire().expect("acquired");
        let (tell, told) = mpsc::channel();
        let wait = mutex
            .acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome.map(drop))))
            .expect("it begins");
        std::thread::sleep(Duration::from_micros(round * 7 % 900));
        std::thread::scope(|scope| {
            scope.spawn(|| hold.release().expect("released"));
            scope.spawn(|| wait.cancel());
        });
        match told.recv_timeout(LONG).expect("an outcome") {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Canceled),
        }
    }
    until("it is free", || mutex.status().is_ok_and(|status| status.state == State::Free && status.waiters == 0));
    let mut left = keys(&redis);
    left.sort();
    assert_eq!(left, ["{ipcmutex:r8}:state"], "neither the lock nor a line");
}

/// What a lock leaves in the server goes by itself, when `docs/REDIS.md` says; also where its state was lost meanwhile and began anew.
#[test]
fn every_key_lives_as_long_as_is_said() {
    needs_redis!();
    const WEEK: i64 = 604_800_000;
    let redis = Redis::start();
    let look = |at: &str, there: &[&str]| {
        let found = keys(&redis);
        for end in there {
            assert!(found.iter().any(|key| key.ends_with(end)), "{at}: no {end} in {found:?}");
        }
        for key in &found {
            let most = match key.rsplit(':').next() {
                Some("line") => 60_000,
                Some("state") => WEEK,
                Some("next") => 500,
                _ => 3_000,
            };
            // -2: it has ended just now.
            let left = redis.command(&["PTTL", key]).number();
            assert!(left == -2 || (0..=most).contains(&left), "{at}: {key} lives {left} ms");
        }
    };
    for (id, key) in [("lives?ttl=3s", "ipcmutex:lives"), ("?redis_key=beside&ttl=3s", "beside")] {
        let state = format!("{{{key}}}:state");
        let mutex = open(&redis.url(id));
        let hold = mutex.acquire().expect("acquired");
        look("held", &[key, "state"]);
        let (tell, told) = mpsc::channel();
        for place in 1..=2 {
            redis.command(&["DEL", &state]);
            let tell = tell.clone();
            mutex
                .acquire_callback(Timeout::FOREVER, move |hold| tell.send(hold).expect("the test waits"))
                .expect("it begins");
            until("it waits", || waiters(&mutex) == place);
            look("waited for", &[key, "line", "state"]);
        }
        redis.command(&["DEL", &state]);
        hold.release().expect("released");
        look("handed over", &["state"]);
        for _ in 0..2 {
            let hold = told.recv_timeout(LONG).expect("told").expect("acquired");
            look("taken over", &[key, "state"]);
            redis.command(&["DEL", &state]);
            hold.release().expect("released");
        }
        look("free", &["state"]);
        // Who finds it free with no state, and breaks it.
        let _broken = mutex.acquire().expect("acquired");
        redis.command(&["DEL", &state]);
        assert!(mutex.break_lock().expect("broken"));
        look("broken", &[]);
    }
}

/// Reads what a server does until somebody says "the end": of a lock of which `ECHO released <key>` was said nothing is prolonged until
/// it is taken anew, and no token that was released is written again. What was.
fn written_after_release(mut monitor: Client) -> Vec<String> {
    let (mut holders, mut released) = (HashMap::<String, String>::new(), HashSet::new());
    let mut wrong = Vec::new();
    loop {
        let line = monitor.reply();
        let words: Vec<&str> = line.text().split('"').skip(1).step_by(2).collect();
        match words[..] {
            ["ECHO", "the end"] => return wrong,
            ["ECHO", word] => released.extend(word.strip_prefix("released ").and_then(|key| holders.remove(key))),
            ["SET", key, token, ..] if released.contains(token) => wrong.push(format!("{key} is set again")),
            ["SET", key, token, ..] => _ = holders.insert(key.to_owned(), token.to_owned()),
            ["PEXPIRE", key, ..] if key.starts_with("ipcmutex:") && !holders.contains_key(key) => {
                wrong.push(format!("{key} is prolonged"));
            }
            _ => {}
        }
    }
}

#[test]
fn r9_nothing_is_renewed_after_a_release() {
    needs_redis!();
    let rounds: u64 = std::env::var("IPCMUTEX_RELEASES").ok().and_then(|many| many.parse().ok()).unwrap_or(64);
    let redis = Redis::start();
    let mut monitor = redis.client();
    assert_eq!(monitor.command(&["MONITOR"]).text(), "OK");
    let written = std::thread::spawn(|| written_after_release(monitor));
    let released = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let mutex = open(&redis.url(&format!("r9-{thread}?ttl=300ms")));
            let (redis, released) = (&redis, &released);
            scope.spawn(move || {
                let mut round = thread;
                while released.load(Ordering::SeqCst) < rounds {
                    let hold =
                        mutex.acquire_with(within(LONG)).expect("acquired: none that was released is there for ever");
                    // Around the moment of the first renewal.
                    round += 7;
                    std::thread::sleep(Duration::from_millis(80 + round % 20));
                    // On a machine that is too busy the lease may run out: then there is nothing to see.
                    if hold.release().is_ok() {
                        redis.command(&["ECHO", &format!("released ipcmutex:r9-{thread}")]);
                        assert_eq!(redis.command(&["EXISTS", &format!("ipcmutex:r9-{thread}")]).number(), 0);
                        released.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    // A renewal that is still to come would have come by now.
    std::thread::sleep(Duration::from_millis(150));
    redis.command(&["ECHO", "the end"]);
    assert_eq!(written.join().expect("no panic"), Vec::<String>::new());
    figure("R9", format!("{} releases around a renewal: nothing is prolonged or set after one", released.into_inner()));
}

#[test]
fn many_holds_are_renewed_by_few_calls() {
    needs_redis!();
    const HOLDS: u64 = 300;
    let redis = Redis::start();
    let mutexes: Vec<_> = (0..HOLDS).map(|lock| open(&redis.url(&format!("many-{lock}?ttl=3s")))).collect();
    let holds: Vec<_> = mutexes
        .iter()
        .map(|mutex| {
            // One after another, over the period.
            std::thread::sleep(Duration::from_millis(3));
            mutex.acquire().expect("acquired")
        })
        .collect();
    // Each has been renewed once; then come three periods, and some.
    std::thread::sleep(Duration::from_millis(1500));
    let before = redis.commands();
    std::thread::sleep(Duration::from_secs(3));
    let renewals = redis.commands() - before;
    assert!((9..=HOLDS / 4).contains(&renewals), "{renewals} calls for {HOLDS} holds in three periods");
    for hold in holds {
        hold.release().expect("it was renewed");
    }
}

#[test]
fn r11_a_waiter_whose_connection_is_cut_is_served_all_the_same() {
    needs_redis!();
    let redis = Redis::start();
    for query in ["", "?protocol=2"] {
        let mutex = open(&redis.url(&format!("r11{query}")));
        let holder = open(&redis.unix_url("r11"));
        let hold = holder.acquire().expect("acquired");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("it waits", || waiters(&holder) == 1);
            assert!(redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).number() >= 1);
            // It is heard of again, and takes its place.
            until(
                "it listens again",
                || matches!(redis.command(&["PUBSUB", "CHANNELS", "ipcmutex:w:*"]), Reply::List(list) if !list.is_empty()),
            );
            let begun = Instant::now();
            hold.release().expect("released");
            waits.join().expect("no panic").expect("acquired").release().expect("released");
            assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
            figure("R11", format!("woken after a cut: {:.1?}", begun.elapsed()));
        });
        // Cut in the very moment of the release: the wake-up is lost, the lock is not.
        let hold = holder.acquire().expect("acquired");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("it waits", || waiters(&holder) == 1);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            hold.release().expect("released");
            waits.join().expect("no panic").expect("acquired").release().expect("released");
        });
    }
}

#[test]
fn r12_a_process_has_at_most_three_connections() {
    needs_redis!();
    let redis = Redis::start();
    for query in ["", "?protocol=2"] {
        let agent = rust();
        for lock in 0..40 {
            agent.open(lock, &redis.url(&format!("r12-{lock}{query}"))).ok();
            agent.call(&format!("hold {lock} {lock} forever")).ok();
        }
        let waits: Vec<_> = (0..10).map(|lock| agent.begin(&format!("hold {lock} {} forever", 100 + lock))).collect();
        let first = open(&redis.unix_url("r12-0"));
        until("it waits", || waiters(&first) == 1);
        let Reply::Text(list) = redis.command(&["CLIENT", "LIST"]) else { panic!("CLIENT LIST") };
        let theirs =
            list.lines().filter(|line| line.contains("lib-name=ipcmutex") || line.contains(" addr=127")).count();
        assert!((1..=3).contains(&theirs), "{theirs} connections:\n{list}");
        figure("R12", format!("{theirs} connections of a process with 40 holds and 10 waiters"));
        for lock in 0..10 {
            agent.call(&format!("end {lock}")).ok();
        }
        for wait in waits {
            wait.reply().ok();
        }
    }
}

#[test]
fn r13_script_flush() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r13?ttl=3s"));
    let hold = mutex.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        for _ in 0..2 {
            redis.command(&["SCRIPT", "FLUSH"]);
            until_renewed(&hold);
        }
        hold.check().expect("renewed by text");
        redis.command(&["SCRIPT", "FLUSH"]);
        hold.release().expect("released by text");
        redis.command(&["SCRIPT", "FLUSH"]);
        let hold = waits.join().expect("no panic").expect("acquired");
        redis.command(&["SCRIPT", "FLUSH"]);
        hold.release().expect("released");
        redis.command(&["SCRIPT", "FLUSH"]);
        assert_eq!(mutex.status().expect("status").state, State::Free);
        redis.command(&["SCRIPT", "FLUSH"]);
        assert!(!mutex.break_lock().expect("nothing to break"));
    });
}

#[test]
fn r14_a_busy_server_is_waited_for() {
    needs_redis!();
    let redis = Redis::with(None, &["lua-time-limit 50"]);
    let mutex = open(&redis.url("r14"));
    let mut busy = redis.client();
    busy.send(&["EVAL", "while true do end", "0"]);
    until("it is busy", || redis.command(&["PING"]).text().starts_with("BUSY"));
    assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(700)))), ErrorKind::Unavailable);
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        std::thread::sleep(Duration::from_millis(300));
        redis.command(&["SCRIPT", "KILL"]);
        let over = Instant::now();
        waits.join().expect("no panic").expect("acquired").release().expect("released");
        figure("R14", format!("served {:.1?} after the busy script's end", over.elapsed()));
    });
}

#[test]
fn r15_a_replica_refuses_and_a_promoted_one_serves() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r15"));
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(300)))), ErrorKind::Unavailable);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        std::thread::sleep(Duration::from_millis(300));
        redis.command(&["REPLICAOF", "NO", "ONE"]);
        let promoted = Instant::now();
        waits.join().expect("no panic").expect("acquired").release().expect("released");
        figure("R15", format!("served {:.1?} after the replica was promoted", promoted.elapsed()));
    });
}

/// It takes each connection, and refuses what is asked there.
#[test]
fn r15_a_server_that_stays_a_replica_is_given_up() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r15-stays"));
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let before: u64 = redis.info("stats", "total_connections_received").parse().expect("a number");
    let (tell, told) = mpsc::channel();
    mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
    assert_eq!(kind_of(told.recv_timeout(LONG).expect("nobody waits for ever")), ErrorKind::Unavailable);
    let after: u64 = redis.info("stats", "total_connections_received").parse().expect("a number");
    assert!(after - before < 40, "{} connections in 5 s", after - before);
}

#[test]
fn r17_a_restarted_server_keeps_no_hold_and_no_waiter_waits_in_vain() {
    needs_redis!();
    let mut redis = Redis::start();
    let mutex = open(&redis.url("r17?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    let told = listen(&hold);
    let other = open(&redis.url("r17-other"));
    let kept = other.acquire().expect("acquired");
    let (first, second) = (other.clone(), other.clone());
    let one = std::thread::spawn(move || first.acquire_with(within(LONG)).map(|hold| hold.release()));
    until("it waits", || waiters(&other) == 1);
    let two = std::thread::spawn(move || second.acquire_with(within(LONG)).map(|hold| hold.release()));
    until("they wait", || waiters(&other) == 2);
    redis.restart();
    let back = Instant::now();
    let lost = told_of_loss(hold, &told) - back;
    figure("R17", format!("with a lease of 2 s, told {lost:.0?} after the server was back without its data"));
    for waits in [one, two] {
        waits.join().expect("no panic").expect("acquired").expect("released");
    }
    assert_eq!(kind_of(kept.release()), ErrorKind::Lost);
    // The caller's own connection is a new one, too.
    mutex.acquire().expect("acquired").release().expect("released");
}

#[test]
fn r18_a_server_that_may_evict_is_refused() {
    needs_redis!();
    let redis = Redis::with(None, &["maxmemory-policy allkeys-lru"]);
    let error = Mutex::open(&redis.url("r18")).expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("allkeys-lru") && error.to_string().contains("policy=any"), "{error}");
    open(&redis.url("r18?policy=any")).acquire().expect("acquired").release().expect("released");
}

#[test]
fn r19_out_of_memory_refuses_takes_and_nothing_else() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r19?ttl=3s"));
    let hold = mutex.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        until_renewed(&hold);
        hold.check().expect("renewed");
        let other = open(&redis.url("r19-other"));
        assert_eq!(kind_of(other.try_acquire()), ErrorKind::Unavailable);
        let error = other.acquire_with(within(Duration::from_millis(300))).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("OOM"), "{error}");
        hold.release().expect("released");
        // Handed over, confirmed and released without a byte to spare.
        waits.join().expect("no panic").expect("acquired").release().expect("released");
    });
    redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
    assert_eq!(mutex.status().expect("status").state, State::Free);
}

#[test]
fn r21_a_key_of_another_type() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r21"));
    redis.command(&["RPUSH", "ipcmutex:r21", "a"]);
    let error = mutex.acquire().expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Config);
    assert_eq!(kind_of(mutex.break_lock()), ErrorKind::Config);
    redis.command(&["DEL", "ipcmutex:r21"]);
    let hold = mutex.acquire().expect("acquired");
    redis.command(&["DEL", "ipcmutex:r21"]);
    redis.command(&["RPUSH", "ipcmutex:r21", "a"]);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    assert_eq!(redis.command(&["LLEN", "ipcmutex:r21"]).number(), 1);
}

#[test]
fn r22_users_and_rights() {
    needs_redis!();
    let redis = Redis::start();
    let (secret, other) = (redis.password(), secrets::password("a-user"));
    let word = format!(">{other}");
    let acl = |user: &str, rules: &[&str]| {
        let mut words = vec!["ACL", "SETUSER", user, "on", &word, "resetchannels"];
        words.extend(rules);
        assert_eq!(redis.command(&words).text(), "OK");
    };
    let needed = [
        "~ipcmutex:*",
        "~{ipcmutex:*",
        "+@string",
        "+@hash",
        "+@sortedset",
        "+@scripting",
        "+@pubsub",
        "+@keyspace",
        "+@connection",
        "+time",
    ];
    acl("full", &[&needed[..], &["&ipcmutex:w:*"]].concat());
    acl("deaf", &needed);
    acl("nothing", &["+ping"]);
    // The password, a user, and a user that the server does not know.
    for url in [
        redis.url("a"),
        redis.url_with_user("default", secret, "a"),
        redis.url_with_user("xxx", secret, "a"),
        redis.url_with_user("xxx", secret, "a?protocol=2"),
    ] {
        open(&url).acquire().expect("acquired").release().expect("released");
    }
    for user in ["full", "deaf"] {
        let mutex = open(&redis.url_with_user(user, &other, "b?ttl=1s"));
        let hold = mutex.acquire().unwrap_or_else(|error| panic!("{user}: {error}"));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            std::thread::sleep(Duration::from_millis(200));
            hold.release().expect("released");
            waits.join().expect("no panic").expect("acquired").release().expect("released");
        });
    }
    let denied = Mutex::open(&redis.url_with_user("nothing", &other, "b")).and_then(|mutex| mutex.acquire().map(drop));
    assert_eq!(denied.expect_err("refused").kind(), ErrorKind::Permission);
    for url in [
        redis.url_with_password(&secrets::password("nobody"), "a"),
        redis.url_with_user("full", &secrets::password("nobody"), "a"),
        redis.url_with_user("full", &secrets::password("nobody"), "a?protocol=2"),
        redis.url("a").replace(&format!(":{secret}@"), ""),
        redis.url("a?protocol=2").replace(&format!(":{secret}@"), ""),
    ] {
        assert_eq!(kind_of(Mutex::open(&url)), ErrorKind::Auth);
    }
}

#[test]
fn r25_a_new_connection_is_set_up_in_full() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r25?db=5&ttl=3s"));
    let hold = mutex.acquire().expect("acquired");
    let keep = mutex.clone();
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || keep.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        for _ in 0..3 {
            redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            until_renewed(&hold);
        }
        hold.check().expect("renewed on the new connection");
        assert_eq!(keys(&redis), Vec::<String>::new(), "nothing in database 0");
        hold.release().expect("released");
        waits.join().expect("no panic").expect("acquired").release().expect("released");
    });
}

/// A process whose `$REDIS_URL` is `server`.
fn told_of(server: &str) -> Agent {
    Agent::start_with(Language::Rust, &[("REDIS_URL", server.as_ref()), talkative()])
}

#[test]
fn a_database_that_the_locks_url_names_is_not_the_environments() {
    needs_redis!();
    let redis = Redis::with(None, &[]);
    let is_in = |db: &str| {
        let mut client = redis.client();
        assert_eq!(client.command(&["SELECT", db]).text(), "OK");
        client.command(&["EXISTS", "ipcmutex:env"]).number() == 1
    };
    let agent = told_of(&format!("redis://{}/5", redis.address()));
    for (query, db, other) in [("?db=0", "0", "5"), ("?db=7", "7", "5"), ("", "5", "0")] {
        agent.open(1, &format!("rpm+redis:///env{query}")).ok();
        agent.call("acquire 1 forever").ok();
        assert!(is_in(db) && !is_in(other), "{query}");
        agent.call("release 1").ok();
        agent.call("close 1").ok();
    }
}

#[test]
fn tls_is_not_forgotten_where_the_environment_names_a_unix_socket() {
    needs_redis!();
    let redis = Redis::with(None, &[]);
    let agent = told_of(&format!("unix://{}", redis.socket().display()));
    agent.open(1, "rpm+redis:///env").ok();
    for query in ["tls=on", "ca=/nowhere.pem", "crt=/nowhere.pem&key=/nowhere.pem"] {
        let refused = agent.open(2, &format!("rpm+redis:///env?{query}")).err(ErrorKind::Invalid);
        assert!(refused.text.contains("a unix socket has no TLS"), "{query}: {}", refused.text);
    }
}

#[test]
fn an_unreachable_server() {
    let begun = Instant::now();
    let error = Mutex::open("rpm+redis://:c4nary@127.0.0.1:1/x").expect_err("nobody listens");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("127.0.0.1:1") && !error.to_string().contains(secrets::CANARY), "{error}");
    assert!(begun.elapsed() < Duration::from_secs(5));
    needs_redis!();
    let mut redis = Redis::start();
    let mutex = open(&redis.url("gone?connect_timeout=1s"));
    let hold = mutex.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    let waits =
        mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome.map(drop)))).expect("it begins");
    until("it waits", || waiters(&mutex) == 1);
    redis.kill();
    // As long as nobody has noticed, the one that waits is before it.
    let mut tried = mutex.try_acquire();
    until("its end is noticed", || std::mem::replace(&mut tried, mutex.try_acquire()).is_err());
    assert_eq!(kind_of(tried), ErrorKind::Unavailable);
    assert_eq!(kind_of(mutex.status()), ErrorKind::Unavailable);
    assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(300)))), ErrorKind::Unavailable);
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    // Who set no timeout hears of it after a while.
    assert_eq!(kind_of(told.recv_timeout(LONG).expect("an outcome")), ErrorKind::Unavailable);
    assert!(waits.is_over());
    redis.restart();
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

#[test]
fn a_lock_that_other_libraries_hold_and_want() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("x?redis_key=shared&ttl=2s"));
    // They hold: it is waited for, until their release, which tells nobody, or until their lease ends.
    for release in [true, false] {
        assert_eq!(redis.command(&["SET", "shared", "theirs", "NX", "PX", "1000"]).text(), "OK");
        assert!(mutex.try_acquire().expect("no error").is_none());
        let status = mutex.status().expect("status");
        assert_eq!((status.state, status.owner), (State::Held, None));
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("it waits", || waiters(&mutex) == 1);
            if release {
                redis.command(&["DEL", "shared"]);
            }
            let hold = waits.join().expect("no panic").expect("acquired");
            assert!(begun.elapsed() < Duration::from_millis(2000));
            assert_eq!(redis.command(&["SET", "shared", "theirs", "NX", "PX", "1000"]), Reply::Nil, "we exclude them");
            hold.release().expect("released");
        });
        assert_eq!(redis.command(&["EXISTS", "shared"]).number(), 0, "a release really frees it");
    }
    // A holder without an expiry, until its DEL.
    redis.command(&["SET", "shared", "theirs"]);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        redis.command(&["DEL", "shared"]);
        waits.join().expect("no panic").expect("acquired").release().expect("released");
    });
    // Among our own the order holds: a newcomer does not pass who waits.
    let hold = mutex.acquire().expect("acquired");
    let order = Arc::new(Guard::new(Vec::new()));
    std::thread::scope(|scope| {
        for place in 0..5 {
            let (mutex, order) = (&mutex, order.clone());
            scope.spawn(move || {
                let hold = mutex.acquire().expect("acquired");
                order.lock().unwrap().push((hold.token(), place));
                hold.release().expect("released");
            });
            until("it waits", || waiters(mutex) == place + 1);
        }
        hold.release().expect("released");
    });
    let order: Vec<u32> = order.lock().unwrap().iter().map(|(_, place)| *place).collect();
    assert_eq!(order, [0, 1, 2, 3, 4]);
    // Their theft is our loss.
    let hold = mutex.acquire().expect("acquired");
    redis.command(&["SET", "shared", "theirs"]);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    assert_eq!(redis.command(&["GET", "shared"]).text(), "theirs");
}

#[test]
fn a_thousand_waiters_in_one_process_are_all_served() {
    needs_redis!();
    const MANY: u64 = 1000;
    let redis = Redis::start();
    let mutex = open(&redis.url("many"));
    let hold = mutex.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    for place in 0..MANY {
        let tell = tell.clone();
        mutex
            .acquire_callback(Timeout::FOREVER, move |outcome| {
                let hold = outcome.expect("acquired");
                tell.send((place, hold.token())).expect("heard");
                hold.release().expect("released");
            })
            .expect("it begins");
    }
    until("they wait", || u64::from(waiters(&mutex)) == MANY);
    hold.release().expect("released");
    let served: Vec<(u64, u64)> = (0..MANY).map(|_| told.recv_timeout(LONG).expect("served")).collect();
    assert!(served.is_sorted_by_key(|(_, token)| *token));
    let passed: Vec<_> = served.windows(2).filter(|two| two[0].0 > two[1].0).collect();
    assert!(passed.is_empty(), "not in order of arrival: {passed:?}");
    until("the last has released", || mutex.status().is_ok_and(|status| status.state == State::Free));
}

#[test]
fn dead_waiters_are_passed_over() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("dead");
    let mutex = open(&url);
    let hold = mutex.acquire().expect("acquired");
    let dead = rust();
    dead.open(1, &url).ok();
    let waits: Vec<_> = (0..20).map(|hold| dead.begin(&format!("hold 1 {hold} forever"))).collect();
    until("they wait", || waiters(&mutex) == 20);
    std::thread::scope(|scope| {
        let alive = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 21);
        kill(&dead);
        // The server sees the end of the connection a moment after the kill.
        until(
            "nobody listens there",
            || matches!(redis.command(&["PUBSUB", "CHANNELS", "ipcmutex:w:*"]), Reply::List(list) if list.len() == 1),
        );
        let begun = Instant::now();
        hold.release().expect("released");
        let hold = alive.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(2), "20 dead took {:?}", begun.elapsed());
        assert!(!hold.abandoned(), "they waited, they did not hold");
        hold.release().expect("released");
    });
    drop(waits);
}

/// While a script runs the server serves nobody else.
#[test]
fn the_many_waiters_of_one_that_died_are_passed_over_at_once() {
    needs_redis!();
    const MANY: u64 = 2_000;
    let redis = Redis::start();
    let mutex = open(&redis.url("crowd"));
    let published = || {
        let stats = redis.command(&["INFO", "commandstats"]);
        let line = stats.text().lines().find(|line| line.starts_with("cmdstat_publish:")).map(str::to_owned);
        line.and_then(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    // In front; and behind one that is granted it, where the second is looked for.
    for before in [&[][..], &["aaaaaaaaaaaaaaaa"]] {
        let hold = mutex.acquire().expect("acquired");
        let _stopped = redis.stopped_waiters("crowd", before);
        let members: Vec<String> = (1..=MANY).map(|place| format!("dddddddddddddddd.{place:032x}")).collect();
        let mut words = vec!["ZADD", "{ipcmutex:crowd}:line"];
        for member in &members {
            words.extend(["100", member]);
        }
        assert_eq!(redis.command(&words).number(), MANY as i64);
        let until_now = published();
        hold.release().expect("released");
        let asked = published() - until_now;
        assert!(asked < 10, "{asked} questions whether one listens");
        assert!(!keys(&redis).iter().any(|key| key.ends_with(":line")), "they are gone");
        until("it is free", || !keys(&redis).iter().any(|key| key == "ipcmutex:crowd"));
    }
}

/// Or it would grow for as long as one holds and others are killed that wait: nobody's turn comes.
#[test]
fn who_died_in_the_line_is_thrown_out_while_the_lock_is_held() {
    needs_redis!();
    let redis = Redis::start();
    let (holder, mutex) = (open(&redis.unix_url("tidy&ttl=1s")), open(&redis.url("tidy?ttl=1s")));
    let hold = holder.acquire().expect("acquired");
    let time = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("a time of day");
    let die_in_line = |from: u128| {
        for place in from..from + 10 {
            let member = format!("{place:016x}.{place:032x}");
            redis.command(&["ZADD", "{ipcmutex:tidy}:line", &place.to_string(), &member]);
        }
    };
    die_in_line(1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&holder) == 11);
        // Behind it.
        die_in_line(time.as_micros() + 3_600_000_000);
        until("it waits alone", || waiters(&holder) == 1);
        hold.release().expect("released");
        waits.join().expect("no panic").expect("acquired").release().expect("released");
    });
}

#[test]
fn who_was_thrown_out_while_it_was_cut_off_comes_back_to_its_places() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let holder = open(&redis.unix_url("back&ttl=1s"));
    let hold = holder.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    let mut line = 0;
    let mut wait = |url: &str, name: &'static str| {
        let tell = tell.clone();
        let done = move |hold: ipcmutex::Result<ipcmutex::Hold>| {
            tell.send(name).expect("the test waits");
            hold.expect("acquired").release().expect("released");
        };
        open(url).acquire_callback(Timeout::FOREVER, done).expect("it begins");
        line += 1;
        until("it waits", || waiters(&holder) == line);
    };
    let (theirs, ours) = (redis.url_at(proxy.address(), "back?ttl=1s&connect_timeout=20s"), redis.url("back?ttl=1s"));
    for _ in 0..3 {
        wait(&theirs, "theirs");
    }
    wait(&ours, "ours");
    proxy.close(true);
    proxy.cut_all();
    until("the others are taken for dead", || waiters(&holder) == 1);
    proxy.close(false);
    until("they are back", || waiters(&holder) == 4);
    hold.release().expect("released");
    let served: Vec<_> = (0..4).map(|_| told.recv_timeout(LONG).expect("served")).collect();
    assert_eq!(served, ["theirs", "theirs", "theirs", "ours"]);
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
fn a_normal_exit_releases() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("exit");
    let agent = rust();
    for (lock, id) in [(1, "exit"), (2, "exit-2")] {
        agent.open(lock, &redis.url(id)).ok();
        agent.call(&format!("hold {lock} {lock} forever")).ok();
    }
    let mutex = open(&url);
    assert!(mutex.try_acquire().expect("no error").is_none());
    let begun = Instant::now();
    assert_eq!(agent.leave(), 0);
    let hold = mutex.try_acquire().expect("no error").expect("released at the exit");
    assert!(!hold.abandoned());
    assert!(begun.elapsed() < Duration::from_secs(5));
    hold.release().expect("released");
    // A server that does not answer does not keep a program from ending.
    let agent = rust();
    agent.open(1, &url).ok();
    agent.call("hold 1 1 forever").ok();
    redis.freeze();
    let begun = Instant::now();
    assert_eq!(agent.leave(), 0);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    redis.thaw();
}

#[test]
fn a_hold_without_renewal_ends_with_its_lease_unless_it_is_extended() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("once?ttl=3s&renew=off"));
    let hold = mutex.acquire().expect("acquired");
    let told = listen(&hold);
    let short = Some(Duration::from_millis(1800));
    until("it runs down", || hold.valid_for() < short);
    hold.extend(None).expect("extended");
    assert!(hold.valid_for() > short);
    hold.extend(Some(Duration::from_secs(2))).expect("extended");
    let left = hold.valid_for().expect("a lease");
    assert!(left > Duration::from_millis(1500) && left < Duration::from_millis(1980), "{left:?}");
    assert_eq!(kind_of(hold.extend(Some(Duration::from_millis(1)))), ErrorKind::Invalid);
    assert_eq!(kind_of(hold.extend(Some(Duration::from_secs(90_000)))), ErrorKind::Invalid);
    hold.extend(Some(Duration::from_millis(300))).expect("extended");
    told_of_loss(hold, &told);
    // An extension for longer is kept up by the renewals.
    let mutex = open(&redis.url("long?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    hold.extend(Some(Duration::from_secs(60))).expect("extended");
    // Two periods of what it was before.
    std::thread::sleep(Duration::from_millis(1400));
    assert!(redis.command(&["PTTL", "ipcmutex:long"]).number() > 50_000);
    hold.release().expect("released");
}

/// Who waits looks when the lease ends that it knows of: that there is a shorter one now it must be told.
#[test]
fn a_lease_that_was_made_shorter_ends_for_who_waits_too() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("shorter?ttl=60s");
    let mutex = open(&url);
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        holder.call("extend 1 1000").ok();
        kill(&holder);
        let begun = Instant::now();
        let hold = waits.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(hold.abandoned());
        hold.release().expect("released");
    });
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

#[test]
fn an_idle_process_has_no_thread_of_the_library() {
    needs_redis!();
    let redis = Redis::start();
    let agent = rust();
    agent.open(1, &redis.url("idle")).ok();
    let threads = || agent.threads().1.iter().any(|name| name.starts_with("ipcmutex"));
    assert!(!threads(), "opening starts none");
    agent.call("hold 1 1 forever").ok();
    until("a hold is renewed by one", threads);
    agent.call("end 1").ok();
    until("it has gone", || !threads());
    agent.call("hold 1 1 forever").ok();
    agent.call("end 1").ok();
}

#[test]
fn k5_a_forked_child_touches_nothing_of_its_parents() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("fork?ttl=1s");
    // Forking needs an agent that is not Rust.
    if !programs().join("../venv/bin/python").exists() {
        let _ = writeln!(std::io::stderr(), "SKIPPED k5: the Python package is missing: make build");
        return;
    }
    let agent = Agent::start_with(Language::Python, &[talkative()]);
    agent.open(1, &url).ok();
    agent.call("hold 1 1 forever").ok();
    let reply = agent.call("fork 1 1").ok();
    assert_eq!(reply.text_of("release"), "FORKED");
    assert_eq!(reply.text_of("end"), "FORKED");
    assert_eq!(reply.text_of("try"), "TIMEOUT");
    // The parent's hold lives on, renewed on its own connections.
    std::thread::sleep(Duration::from_millis(1500));
    agent.call("check 1").ok();
    agent.call("end 1").ok();
}

#[test]
fn the_locks_of_a_server_are_listed() {
    needs_redis!();
    let redis = Redis::start();
    let held = open(&redis.url("team/held?label=nightly"));
    let hold = held.acquire().expect("acquired");
    open(&redis.url("free")).acquire().expect("acquired").release().expect("released");
    let elsewhere = open(&redis.url("x?prefix=other:"));
    let other = elsewhere.acquire().expect("acquired");
    let url = ipcmutex::url::LockUrl::parse(&redis.url("")).expect("a URL");
    let found = ipcmutex::list::on_server(&url).expect("listed");
    let shown: Vec<(String, State)> =
        found.iter().map(|one| (one.url.clone(), one.status.as_ref().expect("status").state)).collect();
    let prefix = format!("rpm+redis://***@{}", redis.address());
    assert_eq!(shown, [(format!("{prefix}/free"), State::Free), (format!("{prefix}/team/held"), State::Held)]);
    let owner = found[1].status.as_ref().expect("status").owner.clone().expect("an owner");
    assert_eq!((owner.pid, owner.label.as_str()), (std::process::id(), "nightly"));
    hold.release().expect("released");
    other.release().expect("released");
}

#[test]
fn cut_connections_and_short_waits_never_let_two_in_or_leave_a_lock_held() {
    needs_redis!();
    let redis = Redis::start();
    let inside = AtomicU64::new(0);
    let turns = AtomicU64::new(0);
    let last = AtomicU64::new(0);
    let stop = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for thread in 0..6_u64 {
            let mutex = open(&redis.url(if thread % 2 == 0 { "storm" } else { "storm?protocol=2" }));
            let (inside, turns, last) = (&inside, &turns, &last);
            scope.spawn(move || {
                let mut round = thread;
                while Instant::now() < stop {
                    round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    match mutex.acquire_with(within(Duration::from_millis(1 + (round >> 33) % 60))) {
                        Ok(hold) => {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                            assert!(last.swap(hold.token(), Ordering::SeqCst) < hold.token(), "the token rises");
                            turns.fetch_add(1, Ordering::SeqCst);
                            if round >> 60 == 0 {
                                std::thread::sleep(Duration::from_millis(5));
                            }
                            inside.fetch_sub(1, Ordering::SeqCst);
                            match hold.release() {
                                Ok(()) => {}
                                // The new connection was cut, too: it is released in the background.
                                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
                            }
                        }
                        Err(error) => {
                            assert!(matches!(error.kind(), ErrorKind::Timeout | ErrorKind::Unavailable), "{error}");
                        }
                    }
                }
            });
        }
        while Instant::now() < stop {
            std::thread::sleep(Duration::from_millis(70));
            redis.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            redis.command(&["SCRIPT", "FLUSH"]);
        }
    });
    assert!(turns.load(Ordering::SeqCst) > 50, "{} turns", turns.load(Ordering::SeqCst));
    let mutex = open(&redis.url("storm"));
    // A lock that nobody here knows of would stay held for the rest of its lease of 10 s.
    let begun = Instant::now();
    until("it is free", || mutex.status().is_ok_and(|status| status.state != State::Held && status.waiters == 0));
    assert!(begun.elapsed() < Duration::from_secs(8), "a lock was left held");
}
