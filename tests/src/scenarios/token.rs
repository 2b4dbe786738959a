use ipcmutex::ErrorKind::NotOwner;

use super::{Scenario, alone};
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[alone("token::rises", 2, rises), alone("token::of_the_handle", 2, of_the_handle)];

fn rises(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let mut last = 0;
    // Programs and handles that come and go: what counts is the name.
    for _ in 0..2 {
        let agent = cell.agent();
        for round in 0..5 {
            agent.open(round, &url).ok();
            let held = agent.begin(&format!("hold {round} {round} forever")).reply().ok();
            assert!(held.token() > last, "{} after {last}", held.token());
            last = held.token();
            agent.call(&format!("end {round}")).ok();
        }
    }
}

fn of_the_handle(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.call("token 1").err(NotOwner);
    let held = agent.begin("hold 1 1 forever").reply().ok();
    assert_eq!(agent.call("token 1").ok().token(), held.token());
    assert_eq!(agent.call("status 1").ok().token(), held.token());
    agent.call("end 1").ok();
    agent.call("token 1").err(NotOwner);
}
