use ipcmutex::ErrorKind::Lost;

use super::{Scenario, alone};
use crate::agent::Language;
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[
    alone("loss::broken", 9, broken),
    alone("loss::lease_runs_out", 9, lease_runs_out),
    alone("loss::file_removed", 9, file_removed),
];

fn broken(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    let held = agent.begin("hold 1 1 forever").reply().ok();
    let told = agent.begin("lost 1");
    agent.call("break 2").ok();
    told.reply().err(Lost);
    let next = agent.begin("hold 2 2 forever").reply().ok();
    assert!(next.token() > held.token());
    assert!(next.abandoned(), "it was not released");
    if agent.language != Language::Shell {
        agent.call("check 1").err(Lost);
    }
    agent.call("end 1").err(Lost);
    // The stale hold released nobody else's.
    let status = agent.call("status 1").ok();
    assert_eq!((status.text_of("state").as_str(), status.token()), ("held", next.token()));
    agent.call("end 2").ok();
}

fn lease_runs_out(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", "ttl=300ms&renew=off"));
    agent.open(2, &cell.url("lock", "")).ok();
    let held = agent.begin("hold 1 1 forever").reply().ok();
    agent.begin("lost 1").reply().err(Lost);
    let next = agent.begin("hold 2 2 forever").reply().ok();
    assert!(next.token() > held.token());
    assert!(next.abandoned(), "the lease ran out");
    if agent.language != Language::Shell {
        agent.call("check 1").err(Lost);
    }
    agent.call("end 1").err(Lost);
    assert_eq!(agent.call("status 1").ok().token(), next.token());
    agent.call("end 2").ok();
}

fn file_removed(cell: &Cell<'_>) {
    let path = cell.folder("removed").join("lock");
    let url = format!("mpm:{}", path.display());
    let agent = cell.opened(&url);
    let held = agent.begin("hold 1 1 forever").reply().ok();
    std::fs::remove_file(&path).expect("the lock file is there");
    agent.open(2, &url).ok();
    let next = agent.begin("hold 2 2 forever").reply().ok();
    assert!(next.token() > held.token(), "the token rises although the file is new");
    agent.call("end 1").err(Lost);
    agent.call("end 2").ok();
}
