//! Programs that end while something of theirs is on its way to the server: another thread's take, wait or release.

use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ipcmutex::ErrorKind;
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::asking::{open, until, waiters};
use ipcmutex_tests::cluster::Cluster;
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::place::Place;
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::{Redis, Reply};

use super::built;

#[test]
fn an_exit_does_not_hand_the_lock_to_the_thread_that_ends_with_it() {
    needs_redis!();
    let redis = Redis::start();
    for round in 0..20 {
        let id = format!("exit-{round}");
        let mutex = open(&redis.url(&id));
        let agent = Agent::start_with(Language::Rust, &[talkative()]);
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
    let redis = Redis::start();
    assert_eq!(left_behind(|key| exists(&redis, key), |id| redis.url(id), 30), 0);
}

#[test]
fn an_exit_leaves_nothing_on_independent_servers_either() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let hosts: Vec<String> = servers.iter().map(Redis::address).collect();
    let hosts = servers[0].login() + &hosts.join(",");
    let there = |key: &str| servers.iter().map(|redis| exists(redis, key)).sum();
    assert_eq!(left_behind(there, |id| format!("rpm+redlock://{hosts}/{id}"), 20), 0);
}

/// A majority hung, and goes on just before: what it was asked for is released behind, for which nobody waited.
#[test]
fn an_exit_leaves_nothing_of_a_try_that_came_to_nothing() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let hosts: Vec<String> = servers.iter().map(Redis::address).collect();
    let agent = Agent::start_with(Language::Rust, &[talkative()]);
    agent.open(1, &format!("rpm+redlock://{}{}/hung?ttl=60s", servers[0].login(), hosts.join(","))).ok();
    servers[..2].iter().for_each(Redis::freeze);
    agent.call("hold 1 1 0").err(ErrorKind::Unavailable);
    servers[..2].iter().for_each(Redis::thaw);
    assert_eq!(agent.leave(), 0);
    until("nothing is left", || servers.iter().all(|redis| exists(redis, "ipcmutex:hung") == 0));
}

#[test]
fn an_exit_leaves_nothing_in_a_cluster_either() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let there = |key: &str| exists(&cluster.nodes[cluster.home(key)], key);
    assert_eq!(left_behind(there, |id| cluster.url(id), 20), 0);
}

fn exists(redis: &Redis, key: &str) -> i64 {
    redis.command(&["EXISTS", key]).number()
}

/// How many keys `programs` leave behind that end while six threads of each take and release, each a lock of its own.
fn left_behind(there: impl Fn(&str) -> i64, url: impl Fn(&str) -> String, programs: u32) -> i64 {
    const THREADS: u32 = 6;
    let folder = tempfile::tempdir().expect("a folder");
    let cell = folder.path().join("cell");
    std::fs::write(&cell, [0; 4096]).expect("written");
    let mut left = 0;
    for program in 0..programs {
        let agent = Agent::start_with(Language::Rust, &[talkative()]);
        let mut under_way = Vec::new();
        for lock in 1..=THREADS {
            agent.open(lock, &url(&format!("left-{program}-{lock}"))).ok();
            let records = folder.path().join(format!("{program}-{lock}"));
            under_way.push(agent.begin(&hammer(lock, &cell, &records)));
        }
        let seen = |lock| there(&format!("{{ipcmutex:left-{program}-{lock}}}:state")) > 0;
        until("each of them takes and releases", || (1..=THREADS).all(seen));
        assert_eq!(agent.leave(), 0);
        left += (1..=THREADS).map(|lock| there(&format!("ipcmutex:left-{program}-{lock}"))).sum::<i64>();
    }
    left
}

/// Its own handlers run after ours: the lock is released by then, which the hold knows, and to release it once more is no error.
#[test]
fn what_an_exit_has_released_is_not_believed_by_who_runs_after_it() {
    needs_redis!();
    const PROGRAM: &str = r#"
#include <ipcmutex.h>
#include <stdlib.h>
#include <unistd.h>
static ipcmutex_hold_t hold;
static void handler(void) {
    if (ipcmutex_hold_check(hold) != IPCMUTEX_LOST) _exit(3);
    if (ipcmutex_hold_release(hold) != IPCMUTEX_OK) _exit(4);
}
int main(int count, char **words) {
    ipcmutex_t mutex;
    atexit(handler);
    return count == 2 && ipcmutex_open(words[1], &mutex) == IPCMUTEX_OK && ipcmutex_hold(mutex, -1, &hold) == IPCMUTEX_OK ? 0 : 2;
}
"#;
    let redis = Redis::start();
    let place = Place::new();
    let program = built(&place, PROGRAM);
    let majority = format!("rpm+redlock://{}{}/majority?ttl=60s", redis.login(), redis.address());
    for url in [redis.url("exits?ttl=60s"), majority] {
        let ended = Command::new(&program).arg(&url).stdin(Stdio::null()).status().expect("it runs");
        assert_eq!(ended.code(), Some(0), "{}", redis.address());
        let next = open(&url).try_acquire().expect("no error").expect("it is free");
        assert!(!next.abandoned());
        next.release().expect("released");
    }
}

/// Acquires in a thread, and ends when it is told so; a handler that runs after ours looks whether that thread believes that it
/// holds the lock.
const ENDS: &str = r#"
#include <ipcmutex.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>
static ipcmutex_t mutex;
static ipcmutex_hold_t hold;
static volatile int acquired;
static void *waits(void *unused) {
    /* Who has waited before, and not for a moment alone, may wait by itself. */
    for (int i = 0; i < 2; i++) if (ipcmutex_acquire_timeout(mutex, 500) != IPCMUTEX_TIMEOUT) _exit(5);
    if (write(1, "w", 1) == 1 && ipcmutex_hold(mutex, -1, &hold) == IPCMUTEX_OK) acquired = 1;
    return unused;
}
static char told(void) { char word = 0; return read(0, &word, 1) == 1 ? word : 0; }
static void handler(void) {
    if (told() != 'c') _exit(4);
    usleep(100000);
    if (acquired && ipcmutex_hold_check(hold) == IPCMUTEX_OK) _exit(3);
}
int main(int count, char **words) {
    pthread_t thread;
    atexit(handler);
    if (count != 2 || ipcmutex_open(words[1], &mutex) != IPCMUTEX_OK) return 2;
    if (pthread_create(&thread, NULL, waits, NULL) != 0) return 2;
    exit(told() == 'e' ? 0 : 2);
}
"#;

/// It stands behind another one, and begins to end when it has said `last` of what makes it the owner, on a slow line.
fn ends_as_it_becomes_the_owner(redis: &Redis, url: impl Fn(&str) -> String, stands: impl Fn() -> bool, last: &str) {
    let (proxy, place) = (Proxy::before(&redis.address()), Place::new());
    let next = open(&url(&redis.address()));
    let hold = next.acquire().expect("acquired");
    let mut ends = Command::new(built(&place, ENDS))
        .arg(url(proxy.address()))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut tell = ends.stdin.take().expect("a pipe");
    ends.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it waits for ever");
    until("it stands in line", stands);
    proxy.delay(Duration::from_millis(150));
    drop(proxy.said());
    hold.release().expect("released");
    let mut said = String::new();
    until("it has said it", || {
        said += &String::from_utf8_lossy(&proxy.said());
        said.contains(last)
    });
    tell.write_all(b"e").expect("it listens");
    let mut held = None;
    until("it has been released", || {
        held = next.try_acquire().expect("no error");
        held.is_some()
    });
    tell.write_all(b"c").expect("it listens");
    assert_eq!(ends.wait().expect("it ends").code(), Some(0), "two hold it");
    held.expect("acquired").release().expect("released");
}

/// Its take was under way when the process began to end, and is undone behind itself: what is answered to it is no hold.
#[test]
fn what_a_majority_grants_while_the_process_ends_is_not_believed() {
    needs_redis!();
    let redis = Redis::start();
    let url = |address: &str| format!("rpm+redlock://{}{address}/grants?ttl=60s", redis.login());
    // The second round of a take: two keys, and two words more.
    ends_as_it_becomes_the_owner(&redis, url, || true, "*7\r\n$7\r\nEVALSHA");
}

/// The same of one that waits by itself, on a connection of its own.
#[test]
fn what_is_confirmed_while_the_process_ends_is_not_believed() {
    needs_redis!();
    let redis = Redis::start();
    let line = || redis.command(&["ZRANGE", "{ipcmutex:confirms}:line", "0", "-1"]);
    // Its process has a longer name there.
    let by_itself =
        |reply| matches!(reply, Reply::List(list) if list.iter().any(|one| one.text().find('.') == Some(17)));
    let url = |address: &str| redis.url_at(address, "confirms?ttl=60s");
    ends_as_it_becomes_the_owner(&redis, url, || by_itself(line()), "*13\r\n$7\r\nEVALSHA");
}

#[test]
fn k5_a_program_that_is_started_inherits_no_connection() {
    needs_redis!();
    let redis = Redis::start();
    let other = open(&redis.url("started"));
    let held = other.acquire().expect("acquired");
    let agent = Agent::start_with(Language::C, &[talkative()]);
    for (lock, id) in [(1, "started"), (2, "mine"), (3, "resp2?protocol=2")] {
        agent.open(lock, &redis.url(id)).ok();
    }
    agent.call("hold 2 2 forever").ok();
    agent.call("hold 3 3 forever").ok();
    agent.call("extend 2 10000").ok();
    agent.call("extend 3 10000").ok();
    let waits = agent.begin("hold 1 1 forever");
    until("it waits", || waiters(&other) == 1);
    for how in ["fork", "vfork", "posix_spawn", "system"] {
        let started = agent.call(&format!("started {how} socket:")).ok();
        assert_eq!(started.number("files"), 0, "{how}");
    }
    held.release().expect("released");
    waits.reply().ok();
}

#[test]
fn p11_no_token_is_drawn_twice_across_forks() {
    needs_redis!();
    let wanted = |name, otherwise| std::env::var(name).ok().and_then(|many| many.parse().ok()).unwrap_or(otherwise);
    let (children, tokens): (usize, usize) = (wanted("IPCMUTEX_FORKS", 100), wanted("IPCMUTEX_TOKENS", 2000));
    let redis = Redis::start();
    let mut monitor = redis.client();
    assert_eq!(monitor.command(&["MONITOR"]).text(), "OK");
    let counter = std::thread::spawn(move || {
        let (mut drawn, mut fences, mut last) = (HashMap::<u128, u64>::new(), 0_usize, HashMap::new());
        let hex = |word: &str, digits| u128::from_str_radix(word, 16).ok().filter(|_| word.len() == digits);
        loop {
            let line = monitor.reply();
            let words: Vec<&str> = line.text().split('"').skip(1).step_by(2).collect();
            if words.get(1) == Some(&"the end") {
                return (drawn, fences);
            }
            if line.text().contains(" lua] ") {
                // Each hold, where the server notes its fencing token.
                if let ["HSET", key, "o", _, "f", fence, ..] = words[..] {
                    let fence: u64 = fence.parse().expect("a number");
                    let last = last.insert(key.to_owned(), fence).unwrap_or(0);
                    assert!(fence > last, "{fence} after {last}");
                    fences += 1;
                }
                continue;
            }
            // A take says the token, the lease and who asks, a release the token and who asks; a renewal says tokens alone.
            let Some((at, token)) = words.iter().enumerate().find_map(|(at, word)| Some((at, hex(word, 32)?))) else {
                continue;
            };
            if let Some(process) = words[at + 1..].iter().take(2).find_map(|word| hex(word, 16)) {
                let process = process as u64;
                assert_eq!(*drawn.entry(token).or_insert(process), process, "two processes drew {token:x}");
            }
        }
    });
    let agent = Agent::start(Language::C);
    let begun = Instant::now();
    let forks = format!("forks {children} {} {}", redis.url("forks"), tokens.div_ceil(children));
    let forked = agent.begin_alone(&forks).reply_after(Duration::from_millis(50) * (children + tokens) as u32);
    assert_eq!(forked.ok().number("bad"), 0);
    redis.command(&["ECHO", "the end"]);
    let (drawn, fences) = counter.join().expect("no panic");
    let processes = drawn.values().collect::<HashSet<_>>().len();
    assert!(processes > children, "{processes} processes");
    assert!(drawn.len() >= tokens && fences >= tokens, "{} tokens, {fences} holds", drawn.len());
    figure(
        "P11",
        format!(
            "{} tokens of {processes} processes, none drawn twice; the fencing tokens of {fences} holds rise; in {:.0?}",
            drawn.len(),
            begun.elapsed()
        ),
    );
}

fn hammer(lock: u32, cell: &Path, records: &Path) -> String {
    format!("hammer {lock} {} {} 60000 lock", cell.display(), records.display())
}
