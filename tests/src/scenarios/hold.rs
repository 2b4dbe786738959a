use ipcmutex::ErrorKind::NotOwner;

use super::{Scenario, alone};
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[
    alone("hold::released_by_another_thread", 3, released_by_another_thread),
    alone("hold::release_of_the_handle_ends_it", 3, release_of_the_handle_ends_it),
    alone("hold::ends_only_itself", 3, ends_only_itself),
];

fn released_by_another_thread(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    agent.begin("end 1").reply().ok();
    agent.begin("acquire 1 0").reply().ok();
    agent.begin("release 1").reply().ok();
    agent.begin("hold 1 2 0").reply().ok();
}

fn release_of_the_handle_ends_it(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("check 1").ok();
    agent.call("release 1").ok();
    agent.call("check 1").err(NotOwner);
    agent.begin("hold 1 2 0").reply().ok();
}

fn ends_only_itself(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("release 1").ok();
    let second = agent.begin("hold 2 2 0").reply().ok();
    agent.call("end 1").err(NotOwner);
    agent.call("check 2").ok();
    let status = agent.call("status 1").ok();
    assert_eq!((status.text_of("state").as_str(), status.token()), ("held", second.token()));
    agent.call("end 2").ok();
}
