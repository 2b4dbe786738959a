//! `redis_key=`: one key with redis-py's Lock, with node-redlock, and with whoever writes SET NX PX. They exclude us and we
//! them, and their releases, which tell nobody, wake our waiters.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex, State, Timeout};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::artifacts;
use ipcmutex_tests::place::{freeze, signal};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::{Client, Redis, Reply};

use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::needs_redis;

const KEY: &str = "shared";

/// A program with another library.
struct Program {
    process: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

impl Program {
    fn start(mut command: Command, redis: &Redis) -> Program {
        command.arg(redis.url("").replace("rpm+redis", "redis")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("it starts");
        let says = BufReader::new(process.stdout.take().expect("a pipe"));
        let hears = process.stdin.take().expect("a pipe");
        Program { process, says, hears }
    }

    fn send(&mut self, words: &str) {
        writeln!(self.hears, "{words}").expect("it listens");
    }

    fn answer(&mut self) -> bool {
        let mut line = String::new();
        self.says.read_line(&mut line).expect("it answers");
        match line.trim() {
            "yes" => true,
            "no" => false,
            other => panic!("it says {other:?}"),
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Another library's lock on the key.
enum Neighbour {
    Program(Program),
    Plain(Client),
}

impl Neighbour {
    fn all(redis: &Redis) -> Vec<(&'static str, Neighbour)> {
        let mut found = vec![("SET NX PX", Neighbour::Plain(redis.client()))];
        let modules = artifacts::programs().join("../neighbours/node_modules");
        let mut python = Command::new(artifacts::python());
        let has_redis = python.args(["-c", "import redis"]).stderr(Stdio::null()).status().is_ok_and(|is| is.success());
        if has_redis {
            let mut command = Command::new(artifacts::python());
            command.arg(artifacts::source("agents/neighbour.py"));
            found.push(("redis-py", Neighbour::Program(Program::start(command, redis))));
        }
        if has(&modules) {
            let mut command = Command::new(artifacts::node());
            command.arg(artifacts::source("agents/neighbour.cjs")).env("NODE_PATH", &modules);
            found.push(("node-redlock", Neighbour::Program(Program::start(command, redis))));
        }
        if found.len() < 3 {
            assert!(std::env::var_os("IPCMUTEX_REQUIRE_REDIS").is_none(), "missing libraries: make neighbours");
            let _ = writeln!(std::io::stderr(), "SKIPPED some neighbours: make neighbours");
        }
        found
    }

    /// Takes it for half a minute if it is free.
    fn tries(&mut self) -> bool {
        match self {
            Neighbour::Program(program) => {
                program.send(&format!("try {KEY} 30"));
                program.answer()
            }
            Neighbour::Plain(client) => client.command(&["SET", KEY, "theirs", "NX", "PX", "30000"]) != Reply::Nil,
        }
    }

    /// Waits for it while `meanwhile` runs.
    fn takes(&mut self, meanwhile: impl FnOnce()) -> bool {
        match self {
            Neighbour::Program(program) => {
                program.send(&format!("take {KEY} 30"));
                meanwhile();
                program.answer()
            }
            Neighbour::Plain(_) => {
                meanwhile();
                until("it is free for them", || self.tries());
                true
            }
        }
    }

    fn releases(&mut self) -> bool {
        match self {
            Neighbour::Program(program) => {
                program.send("release");
                program.answer()
            }
            Neighbour::Plain(client) => client.command(&["DEL", KEY]).number() == 1,
        }
    }
}

fn has(modules: &Path) -> bool {
    modules.join("redlock").exists() && modules.join("ioredis").exists()
}

fn shared(redis: &Redis, query: &str) -> Mutex {
    open(&redis.url(&format!("x?redis_key={KEY}{query}")))
}

#[test]
fn other_libraries_exclude_us_and_we_them() {
    needs_redis!();
    let redis = Redis::start();
    for (name, mut them) in Neighbour::all(&redis) {
        let mutex = shared(&redis, "");
        assert!(them.tries(), "{name}");
        assert!(mutex.try_acquire().expect("no error").is_none(), "{name} holds it");
        let status = mutex.status().expect("status");
        assert_eq!((status.state, status.owner), (State::Held, None), "{name}");
        assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(100)))), ErrorKind::Timeout, "{name}");
        // Its leaving is on its way; until it is there, a try does not pass it.
        until("the one that gave up has left", || waiters(&mutex) == 0);
        assert!(them.releases(), "{name}");
        let hold = mutex.try_acquire().expect("no error").expect("it is free");
        assert!(!them.tries(), "{name} took what we hold");
        assert!(them.takes(|| hold.release().expect("released")), "{name} gets it after us");
        assert!(mutex.try_acquire().expect("no error").is_none(), "{name} holds it");
        assert!(them.releases(), "{name}");
    }
}

#[test]
fn their_release_wakes_our_waiter_at_once_and_without_polling() {
    needs_redis!();
    let redis = Redis::start();
    for (name, mut them) in Neighbour::all(&redis) {
        let mutex = shared(&redis, "");
        assert!(them.tries(), "{name}");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("it waits", || waiters(&mutex) == 1);
            tracked(&redis, 1);
            let before = asked(&redis);
            std::thread::sleep(Duration::from_millis(2500));
            assert!(asked(&redis) - before <= 2, "{name}: polled {} times", asked(&redis) - before);
            let begun = Instant::now();
            assert!(them.releases(), "{name}");
            let hold = waits.join().expect("no panic").expect("acquired");
            // By itself it would have looked when their lease ends.
            assert!(begun.elapsed() < Duration::from_secs(8), "{name}: {:?}", begun.elapsed());
            hold.release().expect("released");
        });
    }
}

#[test]
fn a_holder_without_an_expiry_is_waited_for_until_its_del() {
    needs_redis!();
    let redis = Redis::start();
    // Without RESP3 nobody tells: it looks a few times a second.
    for query in ["", "&protocol=2"] {
        let mutex = shared(&redis, query);
        redis.command(&["SET", KEY, "theirs"]);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("it waits", || waiters(&mutex) == 1);
            if query.is_empty() {
                tracked(&redis, 1);
            }
            // Overwritten, and told of: it listens again.
            redis.command(&["SET", KEY, "another"]);
            std::thread::sleep(Duration::from_millis(50));
            assert!(!waits.is_finished(), "it is still held");
            let begun = Instant::now();
            redis.command(&["DEL", KEY]);
            waits.join().expect("no panic").expect("acquired").release().expect("released");
            assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        });
    }
}

/// How long the key still lives, a waiter is told while its process is stopped: it looks when that is over all the
/// same.
#[test]
fn what_lay_unread_of_anothers_lease_puts_no_look_off() {
    needs_redis!(7, 0);
    let redis = Redis::with(None, &["enable-debug-command yes"]);
    // As on a server with many keys that expire: of the end of one it tells late.
    assert_eq!(redis.command(&["DEBUG", "SET-ACTIVE-EXPIRE", "0"]).text(), "OK");
    let proxy = Proxy::before(&redis.address());
    redis.command(&["SET", KEY, "theirs"]);
    let stopped = Agent::start_with(Language::Rust, &[talkative()]);
    stopped.open(1, &redis.url_at(proxy.address(), &format!("x?redis_key={KEY}"))).ok();
    let wait = stopped.begin("hold 1 1 forever");
    tracked(&redis, 1);
    proxy.delay(Duration::from_millis(150));
    let before = calls(&redis, "cmdstat_client|caching:");
    let lease = Duration::from_millis(1900);
    let begun = Instant::now();
    redis.command(&["SET", KEY, "theirs", "PX", "1900"]);
    until("it asks how long", || calls(&redis, "cmdstat_client|caching:") > before);
    freeze(&stopped);
    proxy.delay(Duration::ZERO);
    // Whoever asked for the key would have it removed, and told of.
    std::thread::sleep((lease + Duration::from_millis(20)).saturating_sub(begun.elapsed()));
    let begun = Instant::now();
    signal(&stopped, rustix::process::Signal::CONT);
    wait.reply().ok();
    // Counted from when it read the answer it would be 1.6 s.
    assert!(begun.elapsed() < Duration::from_millis(1200), "{:?}", begun.elapsed());
    stopped.call("end 1").ok();
}

/// So many line up one after another; `order` is that in which they come in.
fn line_up<'scope>(
    scope: &'scope std::thread::Scope<'scope, '_>,
    mutex: &'scope Mutex,
    order: &'scope std::sync::Mutex<Vec<u32>>,
    count: u32,
) {
    for place in 0..count {
        scope.spawn(move || {
            let hold = mutex.acquire_with(within(LONG)).expect("acquired");
            order.lock().unwrap().push(place);
            hold.release().expect("released");
        });
        until("it waits", || waiters(mutex) == place + 1);
    }
}

#[test]
fn among_our_own_the_order_holds_and_one_alone_listens() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = shared(&redis, "");
    redis.command(&["SET", KEY, "theirs"]);
    let order = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        line_up(scope, &mutex, &order, 6);
        tracked(&redis, 1);
        redis.command(&["DEL", KEY]);
    });
    assert_eq!(*order.lock().unwrap(), [0, 1, 2, 3, 4, 5]);
}

#[test]
fn who_polls_is_served_while_our_own_take_turns() {
    needs_redis!();
    let redis = Redis::start();
    for (name, mut them) in Neighbour::all(&redis) {
        let (over, turns) = (AtomicBool::new(false), AtomicU32::new(0));
        std::thread::scope(|scope| {
            let _end = Ended(&over);
            for _ in 0..3 {
                let (mutex, over, turns) = (shared(&redis, ""), &over, &turns);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        // Each wants it again at once: there is always a line.
                        let hold = mutex.acquire_with(within(LONG)).expect("acquired");
                        turns.fetch_add(1, Ordering::Relaxed);
                        std::thread::sleep(Duration::from_millis(1));
                        // Theirs may come in between alone.
                        hold.release().expect("released");
                    }
                });
            }
            let take_turns = |so_many| {
                let before = turns.load(Ordering::Relaxed);
                until("ours take turns", || turns.load(Ordering::Relaxed) >= before + so_many);
            };
            take_turns(10);
            let begun = Instant::now();
            let mut served = 0;
            while served < 3 && begun.elapsed() < LONG {
                served += u32::from(them.takes(|| {}));
                them.releases();
            }
            take_turns(3);
            assert_eq!(served, 3, "{name} was served so often");
        });
    }
}

/// Nothing takes the key of the head, so it keeps its place: but not for longer than one turn, if it does not come.
#[test]
fn a_head_that_is_stopped_delays_and_does_not_block() {
    needs_redis!();
    let redis = Redis::start();
    // Without RESP3 nobody hears of a release but who is told.
    for query in ["", "&protocol=2"] {
        let mutex = shared(&redis, query);
        let hold = mutex.acquire().expect("acquired");
        let stopped = Agent::start_with(Language::Rust, &[talkative()]);
        stopped.open(1, &redis.url(&format!("x?redis_key={KEY}{query}"))).ok();
        let wait = stopped.begin("hold 1 1 forever");
        until("it waits", || waiters(&mutex) == 1);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| mutex.acquire_with(within(LONG)));
            until("both wait", || waiters(&mutex) == 2);
            if query.is_empty() {
                tracked(&redis, 2);
            }
            freeze(&stopped);
            let before = calls(&redis, "cmdstat_evalsha:");
            let begun = Instant::now();
            hold.release().expect("released");
            let hold = next.join().expect("no panic").expect("acquired");
            assert!(begun.elapsed() < Duration::from_secs(3), "{query}: {:?}", begun.elapsed());
            let asked = calls(&redis, "cmdstat_evalsha:") - before;
            assert!(asked <= 10, "{query}: while the turn was out {asked} calls were made");
            signal(&stopped, rustix::process::Signal::CONT);
            until("it is back", || waiters(&mutex) == 1);
            hold.release().expect("released");
        });
        wait.reply().ok();
        stopped.call("end 1").ok();
    }
}

/// What keeps others off until it comes is gone when it has come: once it is released the lock is anybody's.
#[test]
fn a_turn_that_was_taken_keeps_nobody_off() {
    needs_redis!();
    let redis = Redis::start();
    let (mutex, other) = (shared(&redis, ""), shared(&redis, ""));
    let hold = mutex.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        hold.release().expect("released");
        let hold = next.join().expect("no panic").expect("acquired");
        assert_eq!(redis.command(&["EXISTS", &format!("{{{KEY}}}:next")]).number(), 0);
        hold.release().expect("released");
    });
    other.try_acquire().expect("no error").expect("it is free").release().expect("released");
}

/// Whoever would have noticed that the head does not come has left: the next one must.
#[test]
fn a_head_that_is_stopped_blocks_nobody_when_the_second_leaves() {
    needs_redis!();
    let redis = Redis::start();
    let query = format!("x?redis_key={KEY}&ttl=60s");
    let (mutex, last) = (shared(&redis, "&ttl=60s"), open(&redis.unix_url(&query.replace('?', "&"))));
    let hold = mutex.acquire().expect("acquired");
    let stopped = Agent::start_with(Language::Rust, &[talkative()]);
    stopped.open(1, &redis.url(&query)).ok();
    let wait = stopped.begin("hold 1 1 forever");
    until("it waits", || waiters(&mutex) == 1);
    let second = mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("two wait", || waiters(&mutex) == 2);
    std::thread::scope(|scope| {
        let next = scope.spawn(|| last.acquire_with(within(LONG)));
        until("three wait", || waiters(&mutex) == 3);
        freeze(&stopped);
        let begun = Instant::now();
        hold.release().expect("released");
        second.cancel();
        let hold = next.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        signal(&stopped, rustix::process::Signal::CONT);
        until("it is back", || waiters(&mutex) == 1);
        hold.release().expect("released");
    });
    wait.reply().ok();
    stopped.call("end 1").ok();
}

/// Its turn came and a foreigner went first: it has answered, so its place stays its own.
#[test]
fn a_head_that_a_foreigner_forestalls_keeps_its_place() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = shared(&redis, "");
    let order = std::sync::Mutex::new(Vec::new());
    let (next, line) = (format!("{{{KEY}}}:next"), format!("{{{KEY}}}:line"));
    redis.command(&["SET", KEY, "theirs"]);
    std::thread::scope(|scope| {
        line_up(scope, &mutex, &order, 2);
        let Reply::List(members) = redis.command(&["ZRANGE", &line, "0", "0"]) else { panic!("a line") };
        let (process, token) = members[0].text().split_once('.').expect("a member");
        let (channel, turn) = (format!("ipcmutex:w:{process}"), format!("N {token}"));
        for _ in 0..3 {
            // What a release does, with a foreigner right behind it.
            redis.command(&["SET", &next, token, "PX", "500"]);
            redis.command(&["HSET", &format!("{{{KEY}}}:state"), "g", token]);
            assert_eq!(redis.command(&["PUBLISH", &channel, &turn]).number(), 1);
            until("it came, and found it taken", || {
                redis.command(&["HGET", &format!("{{{KEY}}}:state"), "g"]).text().is_empty()
            });
            until("its turn is over", || redis.command(&["EXISTS", &next]).number() == 0);
        }
        redis.command(&["DEL", KEY]);
    });
    assert_eq!(*order.lock().unwrap(), [0, 1]);
}

/// Says that it is over, also if the test fails.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Waits until so many connections have asked to be told of changes.
fn tracked(redis: &Redis, connections: usize) {
    until("the head listens", || {
        let keys: usize = redis.info("stats", "tracking_total_keys").parse().unwrap_or(0);
        let clients: usize = redis.info("clients", "tracking_clients").parse().unwrap_or(0);
        keys >= 1 && clients >= connections
    });
}

/// How often the server has done this.
fn calls(redis: &Redis, name: &str) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]);
    let line = stats.text().lines().find_map(|line| line.strip_prefix(name).map(str::to_owned));
    line.and_then(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok()).unwrap_or(0)
}

/// How often a lock's key was looked at.
fn asked(redis: &Redis) -> u64 {
    ["cmdstat_evalsha:", "cmdstat_eval:", "cmdstat_client|caching:"].iter().map(|name| calls(redis, name)).sum()
}
