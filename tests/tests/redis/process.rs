//! What a process has: threads, connections, an end.

use std::io::Write;
use std::time::{Duration, Instant};

use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::artifacts::programs;
use ipcmutex_tests::asking::{open, until, waiters};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::servers::{Redis, Reply};

use super::rust;

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
        let theirs = list.lines().filter(|line| line.contains(" addr=127")).count();
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

/// Forking needs an agent that is not Rust. Where there must be a server, there must be that one, too.
fn without_python(test: &str) -> bool {
    let there = programs().join("../venv/bin/python").exists();
    assert!(there || std::env::var_os("IPCMUTEX_REQUIRE_REDIS").is_none(), "the Python package is missing: make build");
    if !there {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: the Python package is missing: make build");
    }
    !there
}

/// Nothing is renewed meanwhile: what the parent's connections say is said by the child.
#[test]
fn k5_a_forked_child_says_nothing_on_its_parents_connections() {
    needs_redis!();
    if without_python("k5_a_forked_child_says_nothing_on_its_parents_connections") {
        return;
    }
    let redis = Redis::start();
    let agent = Agent::start_with(Language::Python, &[talkative()]);
    agent.open(1, &redis.url("fork?ttl=1h")).ok();
    agent.call("hold 1 1 forever").ok();
    let list = redis.command(&["CLIENT", "LIST"]);
    let parents: Vec<String> = list
        .text()
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("addr="))
        .filter(|address| address.starts_with("127"))
        .map(|address| format!(" {address}] "))
        .collect();
    assert!(!parents.is_empty(), "{list:?}");
    let mut monitor = redis.client();
    assert_eq!(monitor.command(&["MONITOR"]).text(), "OK");
    agent.call("fork 1 1").ok();
    redis.command(&["ECHO", "the end"]);
    let mut said = Vec::new();
    loop {
        let Reply::Text(line) = monitor.reply() else { panic!("MONITOR") };
        if line.contains("the end") {
            break;
        }
        said.push(line);
    }
    assert!(!said.is_empty(), "it tried on connections of its own");
    let theirs: Vec<_> = said.iter().filter(|line| parents.iter().any(|parent| line.contains(parent))).collect();
    assert!(theirs.is_empty(), "{theirs:#?}");
    agent.call("end 1").ok();
}

#[test]
fn k5_a_forked_child_touches_nothing_of_its_parents() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("fork?ttl=1s");
    if without_python("k5_a_forked_child_touches_nothing_of_its_parents") {
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
