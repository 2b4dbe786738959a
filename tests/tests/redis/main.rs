//! Faults of the Redis engine: holders and servers that die, freeze, forget or refuse, and connections that break.
//!
//! Each test has a server of its own. Where a fault has a number it stands in the name. `matrix.rs` runs the promises in
//! every language.

mod lease;
mod line;
mod process;
mod reach;
mod refusing;
mod state;
mod stopped;

use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{Error, ErrorKind};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::asking::{LONG, kind_of, until};
use ipcmutex_tests::servers::{Redis, Reply};

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
