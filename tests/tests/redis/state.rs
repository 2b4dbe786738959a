//! What stands in the server: tokens, and how long what is left lives.

use std::sync::mpsc;

use ipcmutex::{State, Timeout};
use ipcmutex_tests::asking::{LONG, open, until, waiters};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::servers::Redis;

use super::keys;

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
