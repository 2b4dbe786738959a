//! Many waiters, many open locks, and nothing while nobody waits. The figures that are printed are those of a debug build; what
//! is asserted is only that nothing grows which must not.

use std::fs;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{Mutex, Timeout};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::place::{Place, url_of};

const SOON: Duration = Duration::from_secs(60);

fn status_of(agent: &Agent, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).expect("it runs");
    let line = status.lines().find(|line| line.starts_with(field)).expect("the kernel tells it");
    line.split_whitespace().nth(1).expect("a value").parse().expect("a number")
}

#[test]
fn s12_a_thousand_waiters_in_twenty_processes() {
    const EACH: usize = 50;
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let here = Mutex::open(&url).unwrap();
    let agents: Vec<Agent> = (0..20).map(|_| Agent::start(Language::C)).collect();
    let hold = here.acquire().unwrap();
    let mut waits = Vec::new();
    for agent in &agents {
        agent.open(1, &url).ok();
    }
    // One after another, so that the order is known.
    for at in 0..EACH {
        for agent in &agents {
            waits.push((agent, at, agent.begin_alone(&format!("async 1 {at} forever {at}"))));
            agent.call("show 1").ok();
        }
    }
    assert_eq!(here.status().unwrap().waiters as usize, 20 * EACH);
    let mut last = hold.token();
    let begun = Instant::now();
    hold.release().unwrap();
    for (agent, at, wait) in waits {
        let served = wait.reply().ok();
        assert!(served.token() > last && !served.abandoned());
        last = served.token();
        agent.call(&format!("end {at}")).ok();
    }
    figure("S12", format!("1,000 waiters in 20 processes: in order, in {:.0?}", begun.elapsed()));
    assert!(here.acquire_timeout(SOON).unwrap().is_some());
}

/// The cheapest of several measurements of `each`, per piece.
fn cheapest(pieces: u32, mut each: impl FnMut()) -> Duration {
    (0..7)
        .map(|_| {
            let begun = Instant::now();
            (0..pieces).for_each(|_| each());
            begun.elapsed() / pieces
        })
        .min()
        .expect("seven of them")
}

#[test]
fn a_grant_costs_the_same_with_ten_thousand_waiters() {
    let place = Place::new();
    let mutex = Mutex::open(&place.url()).unwrap();
    let serve = |count: usize| {
        let hold = mutex.acquire().unwrap();
        let (done, outcomes) = mpsc::channel();
        for _ in 0..count {
            let done = done.clone();
            let granted = move |outcome: ipcmutex::Result<ipcmutex::Hold>| {
                outcome.and_then(ipcmutex::Hold::release).expect("it is its turn");
                done.send(()).expect("it is waited for");
            };
            mutex.acquire_callback(Timeout::FOREVER, granted).unwrap();
        }
        let begun = Instant::now();
        hold.release().unwrap();
        (0..count).for_each(|_| outcomes.recv_timeout(SOON).expect("each has its turn"));
        begun.elapsed() / count as u32
    };
    let costs: Vec<Duration> =
        [1, 10, 100, 1000, 10_000].map(|count| (0..3).map(|_| serve(count)).min().expect("three")).into();
    println!("a grant with 1, 10, 100, 1,000, 10,000 waiters: {costs:.1?}");
    assert!(costs[4] < 3 * costs[2].max(Duration::from_micros(10)), "{costs:?}");
}

#[test]
fn a_pair_costs_the_same_with_ten_thousand_open_locks() {
    let place = Place::new();
    let mut open: Vec<Mutex> = Vec::new();
    let mut costs = Vec::new();
    for count in [1, 10, 100, 1000, 10_000] {
        while open.len() < count {
            open.push(Mutex::open(&url_of(&place.dir.path().join(open.len().to_string()))).unwrap());
        }
        let first = &open[0];
        costs.push(cheapest(500, || first.acquire().unwrap().release().unwrap()));
    }
    println!("a pair with 1, 10, 100, 1,000, 10,000 open locks: {costs:.1?}");
    assert!(costs[4] < 3 * costs[0], "{costs:?}");
    // Each of them is a lock of its own.
    assert!(open[1].acquire().is_ok() && open[9_999].acquire().is_ok());
}

#[test]
fn what_an_open_lock_and_a_waiter_cost_in_memory() {
    const MANY: u64 = 2000;
    let place = Place::new();
    let agent = Agent::start(Language::C);
    let maps = |agent: &Agent| {
        fs::read_to_string(format!("/proc/{}/maps", agent.pid())).expect("it runs").lines().count() as u64
    };
    agent.open(0, &place.url()).ok();
    let (before, before_maps) = (status_of(&agent, "VmRSS:"), maps(&agent));
    for at in 1..=MANY {
        agent.open(at as u32, &url_of(&place.dir.path().join(at.to_string()))).ok();
    }
    let per_lock = (status_of(&agent, "VmRSS:") - before) as f64 / MANY as f64;
    let per_map = (maps(&agent) - before_maps) as f64 / MANY as f64;
    println!("an open lock: {per_lock:.1} KiB in memory (4 of them the page that all share), {per_map:.2} memory maps");
    assert!(per_lock < 8.0 && per_map < 1.1);

    let here = Mutex::open(&place.url()).unwrap();
    let _held = here.acquire().unwrap();
    let waiter = Agent::start(Language::C);
    waiter.open(0, &place.url()).ok();
    drop(waiter.begin_alone("async 0 0 forever 0"));
    waiter.call("show 0").ok();
    let before = status_of(&waiter, "VmRSS:");
    for at in 1..MANY {
        drop(waiter.begin_alone(&format!("async 0 {at} forever {at}")));
    }
    waiter.call("show 0").ok();
    assert_eq!(u64::from(here.status().unwrap().waiters), MANY);
    let per_waiter = (status_of(&waiter, "VmRSS:") - before) as f64 / MANY as f64;
    figure("S12", format!("a waiter: {per_waiter:.2} KiB; threads of the process: {}", waiter.threads().0));
    assert!(per_waiter < 4.0);
}

/// Nothing of the library runs in a process that has locks open, or holds one, while nobody waits.
#[test]
fn nothing_wakes_up_while_nobody_waits() {
    let place = Place::new();
    let agent = Agent::start(Language::C);
    let has = || (agent.threads().0, fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it runs").count());
    agent.call("show 1").ok();
    let before = has();
    agent.open(1, &place.url()).ok();
    agent.open(2, &url_of(&place.dir.path().join("other"))).ok();
    // It has waited for longer than a moment, with all that the library starts for that.
    let here = Mutex::open(&place.url()).unwrap();
    let hold = here.acquire().unwrap();
    let wait = agent.begin_alone("async 1 1 forever 1");
    ipcmutex_tests::place::until("it is watched", || agent.threads().1.len() >= 2);
    hold.release().unwrap();
    wait.reply().ok();
    ipcmutex_tests::place::until("its threads end", || has() == before);
    // Until it stands in its read again.
    let mut before = agent.switches();
    ipcmutex_tests::place::until("it rests", || {
        std::thread::sleep(Duration::from_millis(20));
        std::mem::replace(&mut before, agent.switches()) == agent.switches()
    });
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!(agent.switches(), before, "something woke up");
}
