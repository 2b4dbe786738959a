//! Two of the three that a hand-over is between, the owner, the first in line and the second, are killed or stopped at the same moment:
//! every pair, both of each. Whoever is left is served, one at a time; whoever was stopped is served when it runs again.

use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use ipcmutex::ErrorKind;
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::place::{Place, freeze, kill, signal};
use rustix::process::Signal;

const OWNER: usize = 0;
/// The owner, three waiters, and one that only looks.
const AGENTS: usize = 5;
const WITNESS: usize = AGENTS - 1;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Lives,
    Killed,
    Stopped,
}

/// What a waiter was served with.
struct Served {
    who: usize,
    token: u64,
    abandoned: bool,
}

fn meets_its_fate(fair: &str, fates: [Fate; AGENTS]) {
    let told = format!("{fair}, {fates:?}");
    let place = Place::new();
    let url = format!("{}?fair={fair}", place.url());
    let agents: [Agent; AGENTS] = std::array::from_fn(|_| Agent::start(Language::C));
    for agent in &agents {
        agent.open(1, &url).ok();
    }
    let held = agents[OWNER].call("hold 1 1 0").ok().token();
    let mut waits: Vec<_> = (1..WITNESS)
        .map(|who| {
            let wait = agents[who].begin("hold 1 1 forever");
            agents[WITNESS].until_waiters(1, who as u64);
            Some((who, wait))
        })
        .collect();
    // First the stops: a waiter that took over from the dead, and was stopped then, would be an owner that is waited for.
    let meeting = |fate| agents.iter().zip(fates).filter(move |(_, its)| *its == fate).map(|(agent, _)| agent);
    meeting(Fate::Stopped).for_each(|agent| signal(agent, Signal::STOP));
    meeting(Fate::Stopped).for_each(freeze);
    meeting(Fate::Killed).for_each(kill);
    match fates[OWNER] {
        Fate::Killed => {}
        Fate::Lives => drop(agents[OWNER].call("end 1").ok()),
        Fate::Stopped => {
            agents[WITNESS].call("acquire 1 50").err(ErrorKind::Timeout);
            let mut living = waits.iter().flatten().filter(|(who, _)| fates[*who] == Fate::Lives);
            assert!(living.all(|(_, wait)| wait.is_waiting()), "a stopped owner was robbed: {told}");
            signal(&agents[OWNER], Signal::CONT);
            agents[OWNER].call("end 1").ok();
        }
    }
    let (inside, served) = (AtomicBool::new(false), StdMutex::new(Vec::new()));
    let mut serve = |fate: Fate| {
        std::thread::scope(|scope| {
            for (who, wait) in waits.iter_mut().filter_map(|wait| wait.take_if(|(who, _)| fates[*who] == fate)) {
                let (agent, inside, served, told) = (&agents[who], &inside, &served, &told);
                scope.spawn(move || {
                    let reply = wait.reply().ok();
                    assert!(!inside.swap(true, SeqCst), "two at once: {told}");
                    let (token, abandoned) = (reply.token(), reply.abandoned());
                    served.lock().expect("no panic").push(Served { who, token, abandoned });
                    inside.store(false, SeqCst);
                    agent.call("end 1").ok();
                });
            }
        });
    };
    serve(Fate::Lives);
    (1..WITNESS).filter(|who| fates[*who] == Fate::Stopped).for_each(|who| signal(&agents[who], Signal::CONT));
    serve(Fate::Stopped);
    let served = served.into_inner().expect("no panic");
    let mut last = held;
    for (at, one) in served.iter().enumerate() {
        assert!(one.token > last, "{told}");
        last = one.token;
        assert_eq!(one.abandoned, at == 0 && fates[OWNER] == Fate::Killed, "{} in {told}", one.who);
    }
    if fair == "strict" {
        let mut living = served.iter().map(|one| one.who).filter(|who| fates[*who] == Fate::Lives);
        assert!(living.by_ref().is_sorted(), "in the order of arrival: {told}");
    }
    let after = agents[WITNESS].call("hold 1 1 forever").ok();
    // A death that nobody had to wait for is told to whoever comes next.
    assert!(after.token() > last && after.abandoned() == (served.is_empty() && fates[OWNER] == Fate::Killed), "{told}");
    agents[WITNESS].until_waiters(1, 0);
}

/// All of one fairness, those of one pair side by side.
fn every_pair(fair: &str) {
    for (one, other) in [(OWNER, 1), (OWNER, 2), (1, 2)] {
        std::thread::scope(|scope| {
            for its in [Fate::Killed, Fate::Stopped] {
                for others in [Fate::Killed, Fate::Stopped] {
                    let mut fates = [Fate::Lives; AGENTS];
                    (fates[one], fates[other]) = (its, others);
                    scope.spawn(move || meets_its_fate(fair, fates));
                }
            }
        });
    }
}

#[test]
fn s3_every_pair_is_killed_and_stopped_strict() {
    every_pair("strict");
}

#[test]
fn s3_every_pair_is_killed_and_stopped_eventual() {
    every_pair("eventual");
}
