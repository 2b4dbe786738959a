use std::time::Duration;

use super::{Scenario, alone};
use crate::agent::Language;
use crate::cell::{Cell, Engine};

pub(super) const ALL: &[Scenario] = &[
    alone("line::first_come_first_served", 4, first_come_first_served),
    alone("line::across_processes_and_languages", 4, across_processes_and_languages),
    alone("line::sleeps", 5, sleeps),
];

fn first_come_first_served(cell: &Cell<'_>) {
    let url = cell.url("lock", "fair=strict");
    let agent = cell.opened(&url);
    agent.begin("hold 1 0 forever").reply().ok();
    let mut waiting = Vec::new();
    for number in 2..6 {
        agent.open(number, &url).ok();
        waiting.push(agent.begin(&format!("hold {number} {number} forever")));
        agent.until_waiters(1, waiting.len() as u64);
    }
    let mut held = 0;
    for number in 2..6 {
        agent.call(&format!("end {held}")).ok();
        waiting.remove(0).reply().ok();
        assert!(waiting.iter().all(|pending| pending.is_waiting()), "{number} was not alone");
        held = number;
    }
}

fn across_processes_and_languages(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let holder = cell.opened(&url);
    holder.begin("hold 1 1 forever").reply().ok();
    let mut languages = Language::ALL.to_vec();
    let turn = languages.iter().position(|language| *language == cell.language).unwrap_or(0);
    languages.rotate_left(turn);
    let agents: Vec<_> = languages.iter().map(|language| cell.agent_of(*language)).collect();
    let mut waiting = Vec::new();
    for agent in &agents {
        agent.open(1, &url).ok();
        waiting.push(agent.begin("hold 1 1 forever"));
        holder.until_waiters(1, waiting.len() as u64);
    }
    let mut waiting = waiting.into_iter();
    let mut before = &holder;
    for agent in &agents {
        before.call("end 1").ok();
        waiting.next().expect("one for each agent").reply().ok();
        assert!(waiting.as_slice().iter().all(|pending| pending.is_waiting()), "{} was not alone", agent.language);
        before = agent;
    }
}

fn sleeps(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    // The holder is another program where there can be one, so that its renewals are not counted.
    let other = (cell.engine != Engine::Spm).then(|| cell.opened(&url));
    let holder = other.as_ref().unwrap_or(&agent);
    holder.begin("hold 1 1 forever").reply().ok();
    let waiting = agent.begin("hold 1 2 forever");
    holder.until_waiters(1, 1);
    // The start of a wait may spin and settle; what it costs to go on waiting is measured.
    let window = Duration::from_millis(1000);
    let quietest = (0..4)
        .filter_map(|_| {
            let (threads, before) = (agent.threads().0, agent.switches());
            std::thread::sleep(window);
            // A thread that has ended took its count with it.
            (agent.threads().0 == threads).then(|| agent.switches().saturating_sub(before))
        })
        .min()
        .expect("a second in which no thread ended");
    assert!(quietest <= 40, "{quietest} wake-ups in each second of waiting");
    assert!(waiting.is_waiting());
    holder.call("end 1").ok();
    waiting.reply().ok();
}
