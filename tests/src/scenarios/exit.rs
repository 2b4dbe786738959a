use std::time::{Duration, Instant};

use super::{Scenario, alone, pairs};
use crate::agent::Agent;
use crate::cell::{Cell, Engine};

pub(super) const ALL: &[Scenario] = &[
    pairs("exit::while_holding", 17, while_holding),
    alone("exit::while_holding_and_waiting", 17, while_holding_and_waiting),
    alone("exit::with_an_open_mutex", 17, with_an_open_mutex),
];

const SOON: Duration = Duration::from_secs(1);

fn url(cell: &Cell<'_>) -> String {
    // A lease longer than the watchdog: it is released, not run out.
    cell.url("lock", if cell.engine == Engine::Redis { "ttl=10m" } else { "" })
}

/// The agent ends as a program does. How long that took.
#[track_caller]
fn leaves(agent: &Agent) -> Duration {
    let since = Instant::now();
    assert_eq!(agent.leave(), 0, "{}", agent.errors());
    since.elapsed()
}

/// A busy machine may take longer than a second, but not each time.
#[track_caller]
fn at_best_soon(mut run: impl FnMut() -> Duration) {
    let quickest = (0..10).map(|_| run()).find(|took| *took <= SOON);
    assert!(quickest.is_some(), "each of ten ends took more than {SOON:?}");
}

fn while_holding(cell: &Cell<'_>) {
    let url = url(cell);
    at_best_soon(|| {
        let (holder, waiter) = (cell.opened(&url), cell.agent_of(cell.other));
        waiter.open(1, &url).ok();
        holder.begin("hold 1 1 forever").reply().ok();
        let waiting = waiter.begin("hold 1 1 forever");
        waiter.until_waiters(1, 1);
        let took = leaves(&holder);
        waiting.reply().ok();
        waiter.call("end 1").ok();
        took
    });
}

/// Its own waiters do not get what it leaves.
fn while_holding_and_waiting(cell: &Cell<'_>) {
    let url = url(cell);
    let next = cell.opened(&url);
    at_best_soon(|| {
        let holder = cell.opened(&url);
        holder.call("hold 1 1 forever").ok();
        let _waits = (holder.begin("hold 1 2 forever"), holder.begin("async 1 3 forever 1"));
        next.until_waiters(1, 2);
        let took = leaves(&holder);
        next.call("hold 1 1 0").ok();
        next.call("end 1").ok();
        took
    });
}

fn with_an_open_mutex(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("end 1").ok();
    assert_eq!(agent.leave(), 0, "{}", agent.errors());
}
