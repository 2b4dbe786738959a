use super::{Scenario, pairs};
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[pairs("status::tells_everyone", 12, tells_everyone)];

fn tells_everyone(cell: &Cell<'_>) {
    let (url, seen) = (cell.url("lock", "label=night-shift"), cell.url("lock", ""));
    let (holder, witness) = (cell.opened(&url), cell.agent_of(cell.other));
    witness.open(1, &seen).ok();
    assert_eq!(witness.call("status 1").ok().text_of("state"), "free");
    let held = holder.begin("hold 1 1 forever").reply().ok();
    let status = witness.call("status 1").ok();
    assert_eq!(status.text_of("state"), "held");
    assert_eq!(status.token(), held.token());
    assert_eq!(status.number("owner_pid"), cell.owner_pid(&holder, &held));
    assert_eq!(status.text_of("owner_label"), "night-shift");
    assert_eq!(status.text_of("owner_host"), rustix::system::uname().nodename().to_string_lossy());
    assert_eq!(status.number("waiters"), 0);
    let first = witness.status_until(1, "aging", |status| status.number("held_ms") > 0).number("held_ms");
    assert!(witness.call("status 1").ok().number("held_ms") >= first);
    let waiting = holder.begin("hold 1 2 forever");
    witness.until_waiters(1, 1);
    holder.call("end 1").ok();
    waiting.reply().ok();
    holder.call("end 2").ok();
    assert_eq!(witness.call("status 1").ok().text_of("state"), "free");
}
