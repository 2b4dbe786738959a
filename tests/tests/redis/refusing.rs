//! Servers that refuse.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex, State, Timeout};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Client, Redis};

#[test]
fn r14_a_busy_server_is_waited_for() {
    needs_redis!();
    let redis = Redis::with(None, &["lua-time-limit 50"]);
    let mutex = open(&redis.url("r14"));
    let _busy = busy(&redis);
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

/// Runs a script without end from now on, until `SCRIPT KILL`.
fn busy(redis: &Redis) -> Client {
    let mut busy = redis.client();
    busy.send(&["EVAL", "while true do end", "0"]);
    until("it is busy", || redis.command(&["PING"]).text().starts_with("BUSY"));
    busy
}

#[test]
fn r14_what_a_busy_server_refuses_to_undo_is_undone_later() {
    needs_redis!();
    let redis = Redis::with(None, &["lua-time-limit 50"]);
    let (released, waited_for) = (open(&redis.url("released?ttl=1h")), open(&redis.url("waited-for?ttl=1h")));
    let hold = released.acquire().expect("acquired");
    let kept = waited_for.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    let wait = waited_for
        .acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome.map(drop))))
        .expect("it begins");
    until("it waits", || waiters(&waited_for) == 1);
    let _busy = busy(&redis);
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    wait.cancel();
    assert_eq!(kind_of(told.recv_timeout(LONG).expect("told")), ErrorKind::Canceled);
    // What both owe has been refused by then.
    std::thread::sleep(Duration::from_millis(500));
    redis.command(&["SCRIPT", "KILL"]);
    until("the release was sent again", || redis.command(&["EXISTS", "ipcmutex:released"]).number() == 0);
    until("nobody stands in line", || waiters(&waited_for) == 0);
    kept.release().expect("released");
}

/// Renewed at 2 s of 6, it has 4 s left when the next renewal is refused.
#[test]
fn r14_a_renewal_that_a_busy_server_refuses_is_sent_again() {
    needs_redis!();
    let redis = Redis::with(None, &["lua-time-limit 50"]);
    let mutex = open(&redis.url("renewed?ttl=6s"));
    let hold = mutex.acquire().expect("acquired");
    // From then on there is a connection for renewals; the server takes a new one only when it is busy no more.
    until_renewed(&hold);
    let _busy = busy(&redis);
    until("the renewal is overdue", || hold.valid_for() < Some(Duration::from_millis(3500)));
    hold.check().expect("it has a lease still");
    redis.command(&["SCRIPT", "KILL"]);
    until("it is renewed", || hold.valid_for() > Some(Duration::from_millis(4500)));
    hold.release().expect("released");
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

/// The address of a server that says this to whoever comes, and closes.
fn closes_with(words: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("bound").to_string();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            // Who has hung up has heard it.
            let _ = client.write_all(words.as_bytes()).and_then(|()| client.shutdown(Shutdown::Write));
            let _ = client.read_to_end(&mut Vec::new());
        }
    });
    address
}

#[test]
fn what_a_server_says_before_it_closes_is_told() {
    let full = "max number of clients reached";
    let cases = [
        ("-DENIED Redis is running in protected mode because no password is set.\r\n", ErrorKind::Permission),
        ("-ERR max number of clients reached\r\n", ErrorKind::Unavailable),
        ("-WRONGPASS invalid username-password pair or user is disabled.\r\n", ErrorKind::Auth),
    ];
    for (says, kind) in cases {
        let address = closes_with(says);
        for login in ["", ":c4nary@", "me:c4nary@"] {
            // Without a password nobody is told that it is wrong.
            if kind == ErrorKind::Auth && login.is_empty() {
                continue;
            }
            let error = Mutex::open(&format!("rpm+redis://{login}{address}/x")).expect_err("it closes");
            let said = says[1..].trim_end().trim_start_matches("ERR ");
            assert!(error.kind() == kind && error.to_string().contains(said), "{login:?}: {:?}: {error}", error.kind());
            assert!(!error.to_string().contains("~<prefix>*"), "no right is missing: {error}");
        }
    }
    needs_redis!();
    let redis = Redis::start();
    let mut one = redis.client();
    assert_eq!(one.command(&["CONFIG", "SET", "maxclients", "1"]).text(), "OK");
    let error = Mutex::open(&redis.url("x")).expect_err("it is full");
    assert!(error.kind() == ErrorKind::Unavailable && error.to_string().contains(full), "{error}");
}
