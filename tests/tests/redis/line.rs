//! Who waits: the order, and the dead among them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex as Guard, mpsc};
use std::time::{Duration, Instant};

use ipcmutex::{Cancel, ErrorKind, State, Timeout, Waiting};
use ipcmutex_tests::agent::Agent;
use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::occupancy::now;
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::{Redis, Reply};

use super::{keys, kill, rust};

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
                        let hold = mutex.acquire_with(within(LONG)).expect("acquired");
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
                        let got = own.acquire_with(within(LONG)).expect("acquired");
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
    let thread = std::thread::spawn(move || (own.acquire_with(within(LONG)).expect("acquired"), now()));
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
fn r8_a_wait_that_ended_leaves_nothing_behind() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r8"));
    let hold = mutex.acquire().expect("acquired");
    assert!(mutex.acquire_timeout(Duration::from_millis(50)).expect("no error").is_none());
    // It leaves the line a moment after its wait has ended, and must not be taken for the next one.
    until("it has left the line", || waiters(&mutex) == 0);
    let cancel = Cancel::new();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| {
            mutex.acquire_with(Waiting { cancel: Some(&cancel), timeout: LONG.into(), ..Waiting::default() })
        });
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
        let hold = other.acquire_with(within(LONG)).expect("acquired");
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
    // A grant that came too late is given back within a moment.
    until("neither the lock nor a line is left", || keys(&redis) == ["{ipcmutex:r8}:state"]);
}

/// It would be kept for half a second, until the next one looks for itself.
#[test]
fn r8_a_grant_for_one_who_has_left_goes_back_at_once() {
    needs_redis!();
    let redis = Redis::start();
    let holder = open(&redis.unix_url("left&ttl=60s"));
    // On a busy machine it may take longer all the same, but not each time.
    let gave_back = (0..8).any(|round| {
        let mutex = open(&redis.url("left?ttl=60s"));
        let hold = holder.acquire_with(within(LONG)).expect("acquired");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| {
                let (tell, told) = mpsc::channel();
                let done = move |outcome| drop(tell.send(outcome));
                mutex.acquire_callback(Timeout::FOREVER, done).expect("it begins");
                told.recv_timeout(LONG).expect("told")
            });
            until("it waits", || waiters(&holder) == 1);
            // Before it in the line stands one of the same process that its background thread knows nothing of.
            let Reply::List(line) = redis.command(&["ZRANGE", "{ipcmutex:left}:line", "0", "-1"]) else {
                panic!("a line")
            };
            let (process, _) = line[0].text().split_once('.').expect("a process and a token");
            let gone = format!("{process}.{round:032x}");
            redis.command(&["ZADD", "{ipcmutex:left}:line", "1", &gone]);
            let before = mutex.status().expect("status").numbers.rechecks;
            let released = Instant::now();
            hold.release().expect("released");
            waits.join().expect("no panic").expect("acquired").release().expect("released");
            let looked = mutex.status().expect("status").numbers.rechecks - before;
            looked == 0 && released.elapsed() < Duration::from_millis(400)
        })
    });
    assert!(gave_back, "the lock was kept for who had left, each time");
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
                let hold = mutex.acquire_with(within(LONG)).expect("acquired");
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
fn every_wait_that_ends_in_vain_is_counted() {
    needs_redis!();
    let redis = Redis::start();
    let (mutex, other) = (open(&redis.url("in-vain")), open(&redis.unix_url("in-vain")));
    let hold = other.acquire().expect("acquired");
    for _ in 0..10 {
        let (tell, told) = mpsc::channel();
        let limit = Timeout::from_c_ms(60);
        mutex.acquire_callback(limit, move |outcome| drop(tell.send(outcome.map(drop)))).expect("it begins");
        assert_eq!(kind_of(told.recv_timeout(LONG).expect("told")), ErrorKind::Timeout);
    }
    let gave_up = || mutex.status().expect("status").numbers.gave_up;
    until("they have left", || waiters(&other) == 0);
    until("all are counted", || gave_up() >= 10);
    assert_eq!(gave_up(), 10);
    hold.release().expect("released");
}

/// Whom one that waits behind others saw holding it, when it came.
#[test]
fn a_timeout_says_when_the_owner_was_seen_that_it_names() {
    needs_redis!();
    let redis = Redis::start();
    let address = redis.address().replace("127.0.0.1", "localhost");
    let (first, second) = (open(&redis.url("seen?label=the-first")), open(&redis.unix_url("seen&label=the-second")));
    let third = open(&redis.url_at(&address, "seen?label=the-third"));
    let hold = first.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| second.acquire_with(within(LONG)).expect("acquired"));
        until("one waits", || waiters(&first) == 1);
        let last = scope.spawn(|| third.acquire_with(within(Duration::from_secs(3))));
        until("two wait", || waiters(&first) == 2);
        hold.release().expect("released");
        let held = next.join().expect("no panic");
        let told = last.join().expect("no panic").expect_err("it is held").to_string();
        assert!(told.contains(" s ago it was held by pid "), "{told}");
        held.release().expect("released");
    });
    // One that was seen just now is told as it is.
    let hold = first.acquire().expect("acquired");
    let told = third.acquire_with(within(Duration::from_millis(50))).expect_err("it is held").to_string();
    assert!(told.contains(": held by pid ") && !told.contains(" ago "), "{told}");
    hold.release().expect("released");
}
