//! `?replicas=n`: a hold is one when so many replicas have it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, State, Timeout};
use ipcmutex_tests::servers::Redis;

use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::proxy::Proxy;

use super::carries_a_lock;

/// A server and its replica, which has caught up.
fn pair() -> (Redis, Redis) {
    let master = Redis::with(None, &["repl-diskless-sync-delay 0"]);
    let (_, port) =
        master.address().split_once(':').map(|(host, port)| (host.to_owned(), port.to_owned())).expect("it");
    let replica = Redis::with(None, &[&format!("replicaof 127.0.0.1 {port}")]);
    until("the replica has caught up", || master.info("replication", "slave0").contains("state=online"));
    (master, replica)
}

fn blocked(redis: &Redis) -> bool {
    redis.info("clients", "blocked_clients") != "0"
}

#[test]
fn r16_a_hold_is_on_the_replica_when_acquire_returns() {
    needs_redis!();
    let (master, replica) = pair();
    carries_a_lock(&master.url("r16?replicas=1"));
    carries_a_lock(&master.url("r16?replicas=1&protocol=2"));
    let mutex = open(&master.url("copied?replicas=1"));
    for _ in 0..20 {
        let hold = mutex.acquire().expect("acquired");
        assert_eq!(replica.command(&["EXISTS", "ipcmutex:copied"]).number(), 1);
        hold.release().expect("released");
    }
}

#[test]
fn r16_without_the_replicas_there_is_no_hold() {
    needs_redis!();
    let (master, replica) = pair();
    let mutex = open(&master.url("r16?replicas=1"));
    mutex.acquire().expect("acquired").release().expect("released");
    replica.freeze();
    let seen = open(&master.url("r16"));
    for timeout in [Duration::ZERO, LONG] {
        let error = mutex.acquire_with(within(timeout)).expect_err("nobody acknowledges it");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("of 1 replicas that must have it 0 acknowledged"), "{error}");
        until("it was released", || seen.status().is_ok_and(|status| status.state == State::Free));
    }
    // Another lock of the same process and server is not held up.
    let other = open(&master.url("other"));
    let meanwhile = (0..20).any(|_| {
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.try_acquire());
            until("it waits for the replica", || blocked(&master) || waits.is_finished());
            other.acquire_with(within(LONG)).expect("acquired").release().expect("released");
            let meanwhile = blocked(&master);
            drop(waits.join().expect("no panic"));
            meanwhile
        })
    });
    assert!(meanwhile, "a wait for replicas holds up the others");
    // One that stands in line gets it, and then hears that the replicas do not.
    let hold = seen.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it stands in line", || seen.status().is_ok_and(|status| status.waiters == 1));
        hold.release().expect("released");
        let error = waits.join().expect("no panic").expect_err("nobody acknowledges it");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    });
    until("it was released", || seen.status().is_ok_and(|status| status.state == State::Free));
    replica.thaw();
    until("it is served again", || mutex.try_acquire().is_ok_and(|hold| hold.is_some_and(|hold| !hold.abandoned())));
}

/// They have their second, however soon a server must answer.
#[test]
fn replicas_are_waited_for_beyond_a_short_connect_timeout() {
    needs_redis!();
    let (master, replica) = pair();
    let mutex = open(&master.url("r16?replicas=1&connect_timeout=300ms"));
    mutex.acquire().expect("acquired").release().expect("released");
    replica.freeze();
    let error = mutex.try_acquire().expect_err("nobody acknowledges it");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains("of 1 replicas that must have it 0 acknowledged"), "{error}");
    replica.thaw();
    until("it is served again", || mutex.try_acquire().is_ok_and(|hold| hold.is_some()));
}

/// One more than without.
#[test]
fn with_replicas_a_process_has_four_connections() {
    needs_redis!();
    let (master, _replica) = pair();
    let ours = || {
        let list = master.command(&["CLIENT", "LIST"]);
        // The tests' own come by the unix socket.
        list.text().lines().filter(|line| line.contains("addr=127.0.0.1") && !line.contains("flags=S")).count()
    };
    open(&master.url("copied?replicas=1")).acquire().expect("acquired").release().expect("released");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            let mutex = open(&master.url("contended"));
            let done = &done;
            scope.spawn(move || {
                while !done.load(Ordering::Relaxed) {
                    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
                    std::thread::sleep(Duration::from_millis(2));
                    hold.release().expect("released");
                }
            });
        }
        let (begun, mut most) = (Instant::now(), 0);
        while most < 4 && begun.elapsed() < LONG {
            most = most.max(ours());
        }
        for _ in 0..100 {
            most = most.max(ours());
        }
        done.store(true, Ordering::Relaxed);
        assert_eq!(most, 4);
    });
}

#[test]
fn many_who_miss_a_replica_are_told_together() {
    needs_redis!();
    let (master, replica) = pair();
    let mutexes: Vec<_> = (0..12).map(|at| open(&master.url(&format!("missed-{at}?replicas=1&ttl=6s")))).collect();
    replica.freeze();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let asks: Vec<_> = mutexes.iter().map(|mutex| scope.spawn(|| mutex.try_acquire().map(drop))).collect();
        for asks in asks {
            assert_eq!(kind_of(asks.join().expect("no panic")), ErrorKind::Unavailable);
        }
    });
    // One after the other they would take twice a lease.
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
}

/// What the server grants meanwhile is given back, and the wait goes on.
#[test]
fn a_wait_in_the_line_outlasts_a_time_in_which_the_replicas_cannot_be_asked() {
    needs_redis!();
    let (master, _replica) = pair();
    let proxy = Proxy::before(&master.address());
    let (seen, mutex) = (open(&master.url("unheard")), open(&master.url_at(proxy.address(), "unheard?replicas=1")));
    let hold = seen.acquire().expect("acquired");
    let before = hold.token();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it stands in line", || waiters(&seen) == 1);
        // All connections there are go on; the one for the replicas is yet to be made.
        proxy.close(true);
        let made = proxy.connections().len();
        hold.release().expect("released");
        // One that is closed at once is made once more.
        until("it was tried again", || proxy.connections().len() > made + 4 || waits.is_finished());
        proxy.close(false);
        let hold = waits.join().expect("no panic").expect("acquired");
        assert!(!hold.abandoned() && hold.token() > before);
        hold.check().expect("it is held");
        assert_eq!(seen.status().expect("status").state, State::Held);
        hold.release().expect("released");
    });
    until("nothing is left", || seen.status().is_ok_and(|status| (status.state, status.waiters) == (State::Free, 0)));
}

#[test]
fn a_wait_without_a_timeout_gives_up_where_the_replicas_cannot_be_asked_for_long() {
    needs_redis!();
    let (master, _replica) = pair();
    let proxy = Proxy::before(&master.address());
    let (seen, mutex) = (open(&master.url("unheard")), open(&master.url_at(proxy.address(), "unheard?replicas=1")));
    let hold = seen.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    // Each is granted it while the other is in doubt, and refused by what is not given back yet.
    for _ in 0..2 {
        let tell = tell.clone();
        mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome.map(drop)))).expect("it begins");
    }
    until("they stand in line", || waiters(&seen) == 2);
    proxy.close(true);
    let begun = Instant::now();
    hold.release().expect("released");
    for _ in 0..2 {
        assert_eq!(kind_of(told.recv_timeout(LONG).expect("nobody waits for ever")), ErrorKind::Unavailable);
    }
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
    until("nothing is left", || seen.status().is_ok_and(|status| (status.state, status.waiters) == (State::Free, 0)));
}

/// The connection on which replicas are waited for is another one, and must be made first.
#[test]
fn a_short_timeout_is_enough_on_a_server_that_is_far() {
    needs_redis!();
    let (master, _replica) = pair();
    let proxy = Proxy::before(&master.address());
    let mutex = open(&master.url_at(proxy.address(), "far?replicas=1&connect_timeout=20s"));
    proxy.delay(Duration::from_millis(150));
    until("it is served", || mutex.acquire_with(within(Duration::from_millis(400))).is_ok());
}

/// Nobody was given what is broken then: there is nothing to lose.
#[test]
fn a_take_that_is_broken_before_the_replicas_have_it_is_no_loss() {
    needs_redis!();
    let (master, _replica) = pair();
    let (ahead, mutex) = (open(&master.url("ahead?replicas=2")), open(&master.url("broken?replicas=1")));
    let seen = open(&master.url("broken"));
    let error = (0..20).find_map(|_| {
        std::thread::scope(|scope| {
            // There is one replica: all that time nobody else can ask for copies.
            let ahead = scope.spawn(|| ahead.try_acquire());
            until("it waits for the replicas", || blocked(&master) || ahead.is_finished());
            let asks = scope.spawn(|| mutex.try_acquire().map(drop));
            until("it has taken it", || seen.break_lock().expect("no error") || asks.is_finished());
            drop(ahead.join().expect("no panic"));
            asks.join().expect("no panic").err()
        })
    });
    assert_eq!(error.expect("it was broken in time").kind(), ErrorKind::Unavailable);
}
