use super::{Scenario, alone, pairs};
use crate::cell::{Cell, Engine};

pub(super) const ALL: &[Scenario] = &[
    pairs("death::of_the_holder", 8, of_the_holder),
    pairs("death::of_a_waiter", 8, of_a_waiter),
    alone("death::of_a_holder_nobody_waits_for", 8, of_a_holder_nobody_waits_for),
];

/// A lease short enough to be waited for, where there is one.
fn query(cell: &Cell<'_>) -> &'static str {
    if cell.engine == Engine::Redis { "ttl=1s" } else { "" }
}

fn of_the_holder(cell: &Cell<'_>) {
    let url = cell.url("lock", query(cell));
    let (holder, waiter) = (cell.opened(&url), cell.agent_of(cell.other));
    waiter.open(1, &url).ok();
    let held = holder.begin("hold 1 1 forever").reply().ok();
    let waiting = waiter.begin("hold 1 1 forever");
    waiter.until_waiters(1, 1);
    assert!(waiting.is_waiting());
    holder.kill(cell.owner_pid(&holder, &held));
    let next = waiting.reply().ok();
    assert!(next.token() > held.token());
    assert!(next.abandoned(), "the holder was killed");
    waiter.call("end 1").ok();
    let after = waiter.begin("hold 1 2 forever").reply().ok();
    assert!(!after.abandoned(), "it is told once");
}

fn of_a_waiter(cell: &Cell<'_>) {
    let url = cell.url("lock", query(cell));
    let (holder, first, second) = (cell.opened(&url), cell.opened(&url), cell.agent_of(cell.other));
    second.open(1, &url).ok();
    holder.begin("hold 1 1 forever").reply().ok();
    let doomed = first.begin("hold 1 1 forever");
    holder.until_waiters(1, 1);
    let waiting = second.begin("hold 1 1 forever");
    holder.until_waiters(1, 2);
    assert!(doomed.is_waiting());
    let pid = if first.language == crate::agent::Language::Shell {
        first.call("waiter 1").ok().number("pid")
    } else {
        u64::from(first.pid())
    };
    first.kill(pid);
    holder.call("end 1").ok();
    let next = waiting.reply().ok();
    assert!(!next.abandoned(), "nobody died holding");
}

fn of_a_holder_nobody_waits_for(cell: &Cell<'_>) {
    let url = cell.url("lock", query(cell));
    let (holder, witness) = (cell.opened(&url), cell.agent_of(crate::agent::Language::Rust));
    witness.open(1, &url).ok();
    let held = holder.begin("hold 1 1 forever").reply().ok();
    assert_eq!(witness.call("status 1").ok().text_of("state"), "held");
    holder.kill(cell.owner_pid(&holder, &held));
    witness.status_until(1, "abandoned", |status| status.text_of("state") == "abandoned");
    let next = cell.opened(&url).begin("hold 1 1 0").reply().ok();
    assert!(next.token() > held.token());
    assert!(next.abandoned());
}
