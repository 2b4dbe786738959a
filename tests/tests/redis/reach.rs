//! Connections that break, servers that go and come, and where to find them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, EventLoop, Mutex, State, Timeout};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Redis, Reply};

use super::{keys, listen, told_of_loss};

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

/// Only one of a process asks at a time. Those behind it ask nobody, and must not take the lock for held.
#[test]
fn a_frozen_server_is_told_to_all_who_wait_for_it() {
    needs_redis!();
    let redis = Redis::start();
    let (mutex, another) = (open(&redis.url("frozen")), open(&redis.url("frozen-too")));
    mutex.acquire().expect("acquired").release().expect("released");
    redis.freeze();
    let mutex = &mutex;
    std::thread::scope(|scope| {
        let waits: Vec<_> = [5000, 1000, 1000, 500]
            .map(|limit| scope.spawn(move || kind_of(mutex.acquire_with(within(Duration::from_millis(limit))))))
            .into();
        for waits in waits {
            assert_eq!(waits.join().expect("no panic"), ErrorKind::Unavailable);
        }
    });
    let on = EventLoop::blind();
    let (tell, told) = mpsc::channel();
    for limit in [5000, 1500, 1500, 1000] {
        let tell = tell.clone();
        let timeout = Timeout::from(Duration::from_millis(limit));
        another.acquire_on(&on, timeout, move |outcome| drop(tell.send(outcome.map(drop))));
    }
    for _ in 0..4 {
        assert_eq!(kind_of(told.recv_timeout(LONG).expect("told")), ErrorKind::Unavailable);
    }
    redis.thaw();
    until("it is free", || mutex.status().is_ok_and(|status| (status.state, status.waiters) == (State::Free, 0)));
}
