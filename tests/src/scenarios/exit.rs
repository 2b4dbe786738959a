use super::{Scenario, alone, pairs};
use crate::cell::{Cell, Engine};

pub(super) const ALL: &[Scenario] =
    &[pairs("exit::while_holding", 17, while_holding), alone("exit::with_an_open_mutex", 17, with_an_open_mutex)];

fn while_holding(cell: &Cell<'_>) {
    // A lease longer than the watchdog: it is released, not run out.
    let url = cell.url("lock", if cell.engine == Engine::Redis { "ttl=10m" } else { "" });
    let (holder, waiter) = (cell.opened(&url), cell.agent_of(cell.other));
    waiter.open(1, &url).ok();
    holder.begin("hold 1 1 forever").reply().ok();
    let waiting = waiter.begin("hold 1 1 forever");
    waiter.until_waiters(1, 1);
    assert_eq!(holder.leave(), 0, "{}", holder.errors());
    waiting.reply().ok();
}

fn with_an_open_mutex(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("end 1").ok();
    assert_eq!(agent.leave(), 0, "{}", agent.errors());
}
