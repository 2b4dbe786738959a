use ipcmutex::ErrorKind::{Forked, Timeout};

use super::{Scenario, alone};
use crate::cell::{Cell, Engine};

pub(super) const ALL: &[Scenario] = &[alone("fork::child_holds_nothing", 13, child_holds_nothing)];

fn child_holds_nothing(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.call("hold 1 1 forever").ok();
    let child = agent.call("fork 1 1").ok();
    assert_eq!(child.text_of("release"), Forked.name());
    assert_eq!(child.text_of("end"), Forked.name());
    // A process is the whole scope of spm: the child has a lock of its own.
    assert_eq!(child.text_of("try"), if cell.engine == Engine::Spm { "OK" } else { Timeout.name() });
    agent.call("check 1").ok();
    assert_eq!(agent.call("status 1").ok().text_of("state"), "held");
    agent.call("end 1").ok();
    agent.call("hold 1 2 0").ok();
}
