//! Servers and users without scripts: the same lock by WATCH and MULTI, without a line.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Hold, State, Timeout};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::{Redis, Reply};

use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::needs_redis;

use super::carries_a_lock;

/// A server with a user who may do everything but run scripts.
fn without_scripts() -> Redis {
    let redis = Redis::start();
    let rules = ["ACL", "SETUSER", "plain", "on", ">c4nary", "~*", "&*", "+@all", "-@scripting"];
    assert_eq!(redis.command(&rules).text(), "OK");
    redis
}

fn plain(redis: &Redis, id: &str) -> String {
    redis.url_with_user("plain", "c4nary", id)
}

#[test]
fn a_lock_without_scripts() {
    needs_redis!();
    let redis = without_scripts();
    carries_a_lock(&plain(&redis, "x"));
    carries_a_lock(&plain(&redis, "x?protocol=2"));
    carries_a_lock(&plain(&redis, "x?redis_key=shared"));
    let stats = redis.command(&["INFO", "commandstats"]);
    let line = stats.text().lines().find(|line| line.starts_with("cmdstat_evalsha:")).expect("it was tried");
    let count = |name: &str| {
        line.split(&format!("{name}=")).nth(1).and_then(|rest| rest.split([',', '\r']).next()?.parse::<u64>().ok())
    };
    assert_eq!(count("calls"), Some(0), "no script has run: {line}");
    // A server that does not even know the words.
    let old =
        Redis::with(None, &["rename-command EVAL \"\"", "rename-command EVALSHA \"\"", "rename-command SCRIPT \"\""]);
    carries_a_lock(&old.url("x"));
}

#[test]
fn with_and_without_scripts_exclude_each_other() {
    needs_redis!();
    let redis = without_scripts();
    let (scripted, bare) = (open(&redis.url("both")), open(&plain(&redis, "both")));
    let mut last = 0;
    for (one, other) in [(&scripted, &bare), (&bare, &scripted)] {
        let hold = one.acquire().expect("acquired");
        assert!(hold.token() > last && !hold.abandoned());
        last = hold.token();
        assert!(other.try_acquire().expect("an answer").is_none());
        let status = other.status().expect("status");
        assert_eq!((status.state, status.token), (State::Held, hold.token()));
        assert_eq!(status.owner.expect("an owner").pid, std::process::id());
        assert_eq!(kind_of(other.acquire_with(within(Duration::from_millis(50)))), ErrorKind::Timeout);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| other.acquire_with(within(LONG)));
            std::thread::sleep(Duration::from_millis(50));
            hold.release().expect("released");
            let next = waits.join().expect("no panic").expect("acquired");
            assert!(next.token() > last && !next.abandoned());
            last = next.token();
            next.release().expect("released");
        });
    }
    // Broken, and abandoned, both ways.
    for (one, other) in [(&scripted, &bare), (&bare, &scripted)] {
        let hold = one.acquire_with(within(LONG)).expect("acquired");
        let (tell, told) = mpsc::channel();
        hold.on_lost(move |error| _ = tell.send(error.kind())).expect("a live hold");
        assert!(other.break_lock().expect("broken"));
        assert!(!other.break_lock().expect("nothing to break"));
        assert_eq!(told.recv_timeout(LONG).expect("the loss is told"), ErrorKind::Lost);
        assert_eq!(one.status().expect("status").state, State::Abandoned);
        let next = other.acquire().expect("acquired");
        assert!(next.abandoned());
        next.release().expect("released");
    }
}

/// Who waits with scripts looks when the lease ends, unless it is told.
#[test]
fn what_is_done_without_scripts_is_told_to_who_waits_with_them() {
    needs_redis!();
    let redis = without_scripts();
    let rules = ["ACL", "SETUSER", "mute", "on", ">c4nary", "~*", "+@all", "-@scripting", "-publish"];
    assert_eq!(redis.command(&rules).text(), "OK");
    let (scripted, bare) = (open(&redis.url("told?ttl=60s")), open(&plain(&redis, "told?ttl=60s&renew=off")));
    let mute = open(&redis.url_with_user("mute", "c4nary", "told?ttl=60s"));
    let second = Duration::from_secs(1);
    let steps: [(&str, &dyn Fn(Hold)); 3] = [
        ("released", &|hold| hold.release().expect("released")),
        ("broken", &|_hold| assert!(bare.break_lock().expect("broken"))),
        ("shortened", &|hold| {
            hold.extend(Some(second)).expect("extended");
            // As if it died: nobody releases it.
            std::mem::forget(hold);
        }),
    ];
    for (what, step) in steps {
        let hold = bare.acquire_with(within(LONG)).expect("acquired");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| scripted.acquire_with(within(LONG)));
            until("it waits", || waiters(&scripted) == 1);
            // Before it stands what is no waiter, and not even text.
            let mut stray = redis.client();
            stray.say(b"*4\r\n$4\r\nZADD\r\n$20\r\n{ipcmutex:told}:line\r\n$1\r\n0\r\n$2\r\n\xff.\r\n");
            assert_eq!(stray.reply().number(), 1);
            let begun = Instant::now();
            step(hold);
            let next = waits.join().expect("no panic").expect("acquired");
            assert!(begun.elapsed() < Duration::from_secs(5), "{what}: {:?}", begun.elapsed());
            next.release().expect("released");
        });
    }
    // Who may not publish tells nobody, and releases all the same.
    let hold = mute.acquire().expect("acquired");
    let given_up = scripted.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("it waits", || waiters(&scripted) == 1);
    hold.release().expect("released");
    given_up.cancel();
    until("it has left", || waiters(&scripted) == 0);
}

/// How often the server was asked to `EXEC`.
fn steps(redis: &Redis) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]);
    let line = stats.text().lines().find(|line| line.starts_with("cmdstat_exec:")).map(str::to_owned);
    line.and_then(|line| line.split("calls=").nth(1)?.split(',').next()?.parse().ok()).unwrap_or(0)
}

#[test]
fn without_scripts_many_holds_are_renewed_in_few_steps() {
    needs_redis!();
    const HOLDS: u64 = 60;
    let redis = without_scripts();
    let mutexes: Vec<_> = (0..HOLDS).map(|lock| open(&plain(&redis, &format!("few-{lock}?ttl=3s")))).collect();
    let holds: Vec<_> = mutexes.iter().map(|mutex| mutex.acquire().expect("acquired")).collect();
    let renewed_all = || {
        let mut last: Vec<_> = holds.iter().map(Hold::valid_for).collect();
        let mut renewed = vec![false; holds.len()];
        until("all are renewed", || {
            for ((hold, last), renewed) in holds.iter().zip(&mut last).zip(&mut renewed) {
                let left = hold.valid_for();
                *renewed |= std::mem::replace(last, left) < left;
            }
            renewed.iter().all(|renewed| *renewed)
        });
    };
    renewed_all();
    let before = steps(&redis);
    renewed_all();
    let taken = steps(&redis) - before;
    assert!((1..=HOLDS / 3).contains(&taken), "{taken} steps for {HOLDS} holds");
    // One that is gone, and one whose key is of another type, are lost alone.
    redis.command(&["DEL", "ipcmutex:few-1", "ipcmutex:few-2"]);
    redis.command(&["RPUSH", "ipcmutex:few-2", "a list"]);
    until("they are told", || holds[1].check().is_err() && holds[2].check().is_err());
    for (place, hold) in holds.into_iter().enumerate() {
        let outcome = hold.release();
        assert_eq!(outcome.is_err(), [1, 2].contains(&place), "{place}: {outcome:?}");
    }
}

/// So that no renewal that was sent before undoes it; also of one who is told only then that scripts are forbidden.
#[test]
fn with_and_without_scripts_an_extension_is_noted() {
    needs_redis!();
    let redis = without_scripts();
    for url in [redis.url("noted"), plain(&redis, "noted")] {
        let hold = open(&url).acquire().expect("acquired");
        hold.extend(Some(Duration::from_secs(20))).expect("extended");
        let token = redis.command(&["GET", "ipcmutex:noted"]);
        let noted = redis.command(&["HGET", "{ipcmutex:noted}:state", "n"]);
        assert_eq!(noted.text(), format!("{} 1", token.text()));
        hold.release().expect("released");
    }
}

#[test]
fn without_scripts_and_over_resp2_a_process_has_four_connections() {
    needs_redis!();
    let redis = without_scripts();
    let mutexes = ["one", "two"].map(|id| open(&plain(&redis, &format!("{id}?ttl=1s&protocol=2"))));
    let hold = mutexes[0].acquire().expect("acquired");
    let wait = mutexes[0].acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until_renewed(&hold);
    mutexes[1].acquire().expect("acquired").release().expect("released");
    let list = redis.command(&["CLIENT", "LIST"]);
    let theirs = list.text().lines().filter(|line| line.contains(" user=plain ")).count();
    assert!((1..=4).contains(&theirs), "{theirs} connections:\n{}", list.text());
    wait.cancel();
    hold.release().expect("released");
}

/// By hand, of which nobody is told: its holder finds out, or who breaks it, and tells who waits.
#[test]
fn without_scripts_who_finds_that_a_key_was_deleted_tells_who_waits() {
    needs_redis!();
    let redis = without_scripts();
    let (scripted, bare) = (open(&redis.url("by-hand?ttl=60s")), open(&plain(&redis, "by-hand?ttl=60s")));
    for (query, broken) in [("ttl=3s", false), ("ttl=3s&renew=off", true)] {
        let holder = open(&plain(&redis, &format!("by-hand?{query}")));
        let hold = holder.acquire_with(within(LONG)).expect("acquired");
        // So that who waits means to look in 20 s.
        if !broken {
            until_renewed(&hold);
        }
        assert_eq!(redis.command(&["PEXPIRE", "ipcmutex:by-hand", "60000"]).number(), 1);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| scripted.acquire_with(within(LONG)));
            until("it waits", || waiters(&scripted) == 1);
            let begun = Instant::now();
            assert_eq!(redis.command(&["DEL", "ipcmutex:by-hand"]).number(), 1);
            assert!(!broken || !bare.break_lock().expect("nothing to break"));
            let next = waits.join().expect("no panic").expect("acquired");
            assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
            next.release().expect("released");
        });
        assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    }
}

/// A thread that waits by itself has a name of its own in the line, and stops with its process all the same.
#[test]
fn without_scripts_a_release_is_told_beyond_two_processes_that_have_stopped() {
    needs_redis!();
    let redis = without_scripts();
    let (scripted, bare) = (open(&redis.url("stopped?ttl=60s")), open(&plain(&redis, "stopped?ttl=60s")));
    let hold = bare.acquire().expect("acquired");
    let stopped = ["aaaaaaaaaaaaaaaae", "aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbbe", "bbbbbbbbbbbbbbbb"];
    let _stopped = redis.stopped_waiters("stopped", &stopped);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| scripted.acquire_with(within(LONG)));
        until("it waits", || waiters(&scripted) == 5);
        let begun = Instant::now();
        hold.release().expect("released");
        let next = waits.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
        next.release().expect("released");
    });
}

/// Another library's value may be any bytes, as are those of one that draws them at random.
#[test]
fn without_scripts_a_value_that_is_no_text_is_waited_for_and_broken() {
    needs_redis!();
    let redis = without_scripts();
    let mut other = redis.client();
    let mut take = || {
        other.say(b"*3\r\n$3\r\nSET\r\n$6\r\nshared\r\n$4\r\n\xff\xfe\x80\x81\r\n");
        assert_eq!(other.reply().text(), "OK");
    };
    let mutex = open(&plain(&redis, "?redis_key=shared"));
    let hold = mutex.acquire().expect("acquired");
    take();
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    assert!(mutex.try_acquire().expect("an answer").is_none());
    let status = mutex.status().expect("status");
    assert_eq!((status.state, status.owner), (State::Held, None));
    assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(50)))), ErrorKind::Timeout);
    assert!(mutex.break_lock().expect("broken"));
    mutex.acquire().expect("acquired").release().expect("released");
}

/// Nobody held what was given up unheard, so nobody hears that it was abandoned.
#[test]
fn without_scripts_a_take_that_was_answered_after_its_lease_was_no_hold() {
    needs_redis!();
    let redis = without_scripts();
    let proxy = Proxy::before(&redis.address());
    let through = |id| open(&plain(&redis, id).replace(&redis.address(), proxy.address()));
    let (mutex, straight) = (through("stale?ttl=800ms&renew=off"), open(&redis.url("stale")));
    // The link is up, and stays: else what is owed would come when nobody needs it any more.
    let kept = through("kept?ttl=60s").acquire().expect("acquired");
    kept.extend(None).expect("the link is up");
    let owner = || redis.command(&["HGET", "{ipcmutex:stale}:state", "o"]);
    assert_eq!(owner(), Reply::Nil);
    proxy.delay(Duration::from_millis(500));
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    until("it was taken, and is given up", || owner() == Reply::Text(String::new()));
    proxy.delay(Duration::ZERO);
    assert_eq!(redis.command(&["EXISTS", "ipcmutex:stale"]).number(), 0);
    let next = straight.acquire_with(within(LONG)).expect("acquired");
    assert!(!next.abandoned());
    next.release().expect("released");
    kept.release().expect("released");
}

/// What a look is refused with is about its lock, and not about the way to the server.
#[test]
fn without_scripts_what_becomes_of_one_lock_ends_no_wait_for_another() {
    needs_redis!();
    let redis = without_scripts();
    let waits = ["one", "other"].map(|id| {
        let hold = open(&redis.url(id)).acquire().expect("acquired");
        let (tell, told) = mpsc::channel();
        let done = move |outcome| drop(tell.send(outcome));
        open(&plain(&redis, id)).acquire_callback(Timeout::FOREVER, done).expect("it begins");
        (hold, told)
    });
    let [(_lost, one), (hold, other)] = waits;
    // Another program's, in its place.
    assert_eq!(redis.command(&["RPUSH", "list", "a"]).number(), 1);
    assert_eq!(redis.command(&["RENAME", "list", "ipcmutex:one"]).text(), "OK");
    assert_eq!(kind_of(one.recv_timeout(LONG).expect("it is told")), ErrorKind::Config);
    assert!(other.try_recv().is_err(), "it waits for something else");
    hold.release().expect("released");
    other.recv_timeout(LONG).expect("told").expect("served").release().expect("released");
}

#[test]
fn without_scripts_a_hold_lives_by_its_renewals() {
    needs_redis!();
    let redis = without_scripts();
    let mutex = open(&plain(&redis, "renewed?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    until_renewed(&hold);
    until_renewed(&hold);
    hold.check().expect("renewed");
    hold.release().expect("released");
    let hold = mutex.acquire().expect("acquired");
    redis.command(&["DEL", "ipcmutex:renewed"]);
    until("the loss is seen", || hold.check().is_err());
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    redis.command(&["RPUSH", "ipcmutex:renewed", "a"]);
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Config);
}

/// The link, over which it would be told, was there before.
#[test]
fn a_user_who_loses_the_right_to_scripts_looks_for_itself() {
    needs_redis!();
    let redis = Redis::start();
    let rules = ["ACL", "SETUSER", "plain", "on", ">c4nary", "~*", "&*", "+@all"];
    assert_eq!(redis.command(&rules).text(), "OK");
    let (mutex, kept) = (open(&plain(&redis, "later?ttl=60s")), open(&plain(&redis, "kept?ttl=60s")));
    let kept = kept.acquire().expect("acquired");
    kept.extend(None).expect("the link is up");
    let hold = open(&redis.url("later?ttl=60s")).acquire().expect("acquired");
    assert_eq!(redis.command(&["ACL", "SETUSER", "plain", "-@scripting"]).text(), "OK");
    let (tell, told) = mpsc::channel();
    mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
    hold.release().expect("released");
    let next = told.recv_timeout(Duration::from_secs(10)).expect("long before its look at a lease");
    next.expect("acquired").release().expect("released");
    kept.release().expect("released");
}

/// It stood in the line before.
#[test]
fn who_leaves_without_scripts_leaves_the_line() {
    needs_redis!();
    let redis = Redis::start();
    let rules = ["ACL", "SETUSER", "plain", "on", ">c4nary", "~*", "&*", "+@all"];
    assert_eq!(redis.command(&rules).text(), "OK");
    let (mutex, other) = (open(&plain(&redis, "leaves?ttl=60s")), open(&redis.url("leaves?ttl=60s")));
    let hold = other.acquire().expect("acquired");
    let wait = mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("it waits", || waiters(&other) == 1);
    let behind = open(&redis.url("leaves?ttl=60s&connect_timeout=2100ms"));
    behind.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("another one waits", || waiters(&other) == 2);
    assert_eq!(redis.command(&["ACL", "SETUSER", "plain", "-@scripting"]).text(), "OK");
    let told = || redis.info("commandstats", "cmdstat_publish");
    let before = told();
    wait.cancel();
    until("it has left", || waiters(&other) == 1);
    until("who stands first now knows when the lease ends", || told() != before);
    hold.release().expect("released");
}

/// Each time it looks, others have changed the lock before it can take it.
#[test]
fn without_scripts_a_lock_that_others_take_all_the_time_is_not_free() {
    needs_redis!();
    let redis = without_scripts();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&plain(&redis, "busy").replace(&redis.address(), proxy.address()));
    mutex.acquire().expect("acquired").release().expect("released");
    proxy.delay(Duration::from_millis(3));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut others = redis.client();
            for turn in (0_u64..).take_while(|_| !over.load(Ordering::SeqCst)) {
                others.command(&["HSET", "{ipcmutex:busy}:state", "q", &turn.to_string()]);
            }
        });
        let tried = mutex.try_acquire().map(|hold| hold.is_some());
        over.store(true, Ordering::SeqCst);
        assert_eq!(tried.map_err(|error| error.kind()), Ok(false));
    });
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

#[test]
fn a_storm_with_and_without_scripts_lets_nobody_in_twice() {
    needs_redis!();
    let redis = without_scripts();
    let (inside, last, turns) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..6 {
            // Connections of their own, and locks that do not know of each other.
            let id = format!("storm?connect_timeout={}ms", 2000 + thread);
            let mutex = open(&if thread % 3 == 0 { redis.url(&id) } else { plain(&redis, &id) });
            let (inside, last, turns) = (&inside, &last, &turns);
            scope.spawn(move || {
                for _ in 0..60 {
                    if let Some(hold) = mutex.try_acquire().unwrap_or_else(|error| panic!("{error}")) {
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                        assert!(last.swap(hold.token(), Ordering::SeqCst) < hold.token(), "the token rises");
                        turns.fetch_add(1, Ordering::SeqCst);
                        inside.fetch_sub(1, Ordering::SeqCst);
                        hold.release().expect("released");
                    }
                }
            });
        }
    });
    assert!(turns.load(Ordering::SeqCst) > 10);
}

#[test]
fn r19_without_scripts_and_out_of_memory_holds_are_renewed_also_beside_one_that_was_extended() {
    // Redis 7.0 then refuses all between MULTI and EXEC.
    needs_redis!(7, 2);
    let redis = without_scripts();
    let [extended, other] = ["extended", "other"].map(|id| open(&plain(&redis, &format!("{id}?ttl=3s"))));
    let (extended, other) = (extended.acquire().expect("acquired"), other.acquire().expect("acquired"));
    extended.extend(None).expect("extended");
    redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
    for hold in [&extended, &other] {
        until_renewed(hold);
        hold.check().expect("renewed");
    }
    extended.release().expect("released");
    other.release().expect("released");
}

#[test]
fn a_lock_is_broken_out_of_memory_with_and_without_scripts() {
    // As above.
    needs_redis!(7, 2);
    let redis = without_scripts();
    for url in [redis.url("full"), plain(&redis, "full")] {
        let mutex = open(&url);
        let hold = mutex.acquire().expect("acquired");
        redis.command(&["HDEL", "{ipcmutex:full}:state", "b"]);
        redis.command(&["CONFIG", "SET", "maxmemory", "1"]);
        assert!(mutex.break_lock().expect("to break takes no room"));
        redis.command(&["CONFIG", "SET", "maxmemory", "0"]);
        assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    }
}
