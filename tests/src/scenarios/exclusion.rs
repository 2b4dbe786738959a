use ipcmutex::ErrorKind::Timeout;

use super::{Scenario, alone, pairs};
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[
    alone("exclusion::two_handles", 1, two_handles),
    alone("exclusion::one_handle_queues", 1, one_handle_queues),
    alone("exclusion::ten_at_once", 1, ten_at_once),
    alone("exclusion::other_names_are_other_locks", 1, other_names_are_other_locks),
    pairs("exclusion::two_processes", 1, two_processes),
];

fn two_handles(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    agent.begin("hold 1 1 forever").reply().ok();
    agent.begin("hold 2 2 0").reply().err(Timeout);
    agent.call("end 1").ok();
    agent.begin("hold 2 2 0").reply().ok();
    agent.begin("hold 1 1 0").reply().err(Timeout);
    agent.call("end 2").ok();
}

fn one_handle_queues(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("acquire 1 forever").reply().ok();
    agent.begin("acquire 1 0").reply().err(Timeout);
    agent.begin("acquire 1 30").reply().err(Timeout);
    let second = agent.begin("acquire 1 forever");
    agent.until_waiters(1, 1);
    assert!(second.is_waiting());
    agent.call("release 1").ok();
    second.reply().ok();
    agent.call("release 1").ok();
}

fn ten_at_once(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    let first = agent.begin("hold 1 0 forever").reply().ok();
    let mut waiting: Vec<_> = (1..10)
        .map(|hold| {
            let pending = agent.begin(&format!("hold 1 {hold} forever"));
            agent.until_waiters(1, hold);
            pending
        })
        .collect();
    let mut token = first.token();
    for held in 0..10 {
        assert!(waiting.iter().all(|pending| pending.is_waiting()), "two inside while hold {held} stands");
        agent.call(&format!("end {held}")).ok();
        if !waiting.is_empty() {
            let next = waiting.remove(0).reply().ok();
            assert!(next.token() > token);
            token = next.token();
        }
    }
    agent.status_until(1, "free", |status| status.text_of("state") == "free");
}

fn other_names_are_other_locks(cell: &Cell<'_>) {
    let agent = cell.agent();
    for (number, name) in ["lock", "Lock", "lock.1", "lock_1", "lock-1"].into_iter().enumerate() {
        agent.open(number as u32, &cell.url(name, "")).ok();
        agent.begin(&format!("hold {number} {number} 0")).reply().ok();
    }
}

fn two_processes(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let (holder, waiter) = (cell.opened(&url), cell.agent_of(cell.other));
    waiter.open(1, &url).ok();
    let held = holder.begin("hold 1 1 forever").reply().ok();
    waiter.begin("hold 1 1 0").reply().err(Timeout);
    let waiting = waiter.begin("hold 1 2 forever");
    holder.until_waiters(1, 1);
    assert!(waiting.is_waiting());
    holder.call("end 1").ok();
    let next = waiting.reply().ok();
    assert!(next.token() > held.token());
    assert!(!next.abandoned(), "it was released, not abandoned");
    holder.begin("hold 1 3 0").reply().err(Timeout);
    waiter.call("end 2").ok();
    holder.begin("hold 1 4 0").reply().ok();
}
