use ipcmutex::ErrorKind::{BadHandle, Closed, NotOwner};

use super::{Scenario, alone};
use crate::agent::Language;
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[
    alone("misuse::release_without_a_hold", 10, release_without_a_hold),
    alone("misuse::released_twice", 10, released_twice),
    alone("misuse::close_releases_and_is_final", 10, close_releases_and_is_final),
    alone("misuse::opened_twice", 10, opened_twice),
    alone("misuse::extend_without_a_lease", 10, extend_without_a_lease),
];

fn release_without_a_hold(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    agent.call("release 1").err(NotOwner);
    // Somebody else's hold is not touched.
    agent.begin("hold 2 2 forever").reply().ok();
    agent.call("release 1").err(NotOwner);
    agent.call("check 2").ok();
    agent.call("end 2").ok();
    agent.call("release 2").err(NotOwner);
}

fn released_twice(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("end 1").ok();
    let second = agent.call("end 1");
    match agent.language {
        Language::C => drop(second.err(BadHandle)),
        // As its resource management asks for.
        Language::Node => drop(second.ok()),
        _ => drop(second.err(NotOwner)),
    }
    agent.begin("hold 1 2 0").reply().ok();
}

fn close_releases_and_is_final(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("close 1").ok();
    agent.begin("hold 2 2 0").reply().ok();
    let gone = if agent.language == Language::C { BadHandle } else { Closed };
    agent.call("close 1").err(gone);
    agent.begin("hold 1 3 0").reply().err(gone);
    agent.begin("acquire 1 forever").reply().err(gone);
    agent.call("status 1").err(gone);
    agent.call("break 1").err(gone);
    agent.call("check 2").ok();
}

fn opened_twice(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    let again = agent.call("reopen 1");
    assert!(!again.is_ok() && again.text.contains("already opened"), "{again:?}");
    agent.begin("hold 1 1 0").reply().ok();
    agent.call("close 1").ok();
    let after = agent.begin("hold 1 1 0").reply().err(Closed);
    assert!(after.text.contains("not opened"), "{after:?}");
    agent.call("reopen 1").ok();
    agent.begin("hold 1 2 0").reply().ok();
}

fn extend_without_a_lease(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    let extended = agent.call("extend 1 5000");
    match cell.engine {
        crate::cell::Engine::Redis => drop(extended.ok()),
        _ => drop(extended.err(ipcmutex::ErrorKind::Unsupported)),
    }
    agent.call("check 1").ok();
}
