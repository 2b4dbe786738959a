use std::time::{Duration, Instant};

use super::{Scenario, alone};
use crate::agent::{Agent, WATCHDOG};
use crate::cell::{Cell, Engine};

pub(super) const ALL: &[Scenario] = &[alone("idle::nothing_stays", 11, nothing_stays)];

fn descriptors(agent: &Agent) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", agent.pid())).expect("it runs").count()
}

fn nothing_stays(cell: &Cell<'_>) {
    let agent = cell.agent();
    let (url, warm) = (cell.url("lock", ""), cell.url("warm", ""));
    // The first use of a language's own machinery (its event loop, its thread pool) is not the library's.
    agent.open(9, &warm).ok();
    agent.begin("hold 9 9 forever").reply().ok();
    agent.call("end 9").ok();
    agent.call("close 9").ok();
    let before = descriptors(&agent);
    agent.open(1, &url).ok();
    agent.begin("hold 1 1 forever").reply().ok();
    if cell.engine != Engine::Redis {
        assert_eq!(agent.threads().1, Vec::<String>::new(), "a hold needs no thread here");
    }
    let waiting = agent.begin("async 1 2 forever 1");
    agent.until_waiters(1, 1);
    agent.call("end 1").ok();
    waiting.reply().ok();
    agent.call("end 2").ok();
    let begun = Instant::now();
    loop {
        let (threads, open) = (agent.threads().1, descriptors(&agent));
        if threads.is_empty() && open <= before {
            return;
        }
        assert!(begun.elapsed() < WATCHDOG, "still there: threads {threads:?}, {open} descriptors after {before}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
