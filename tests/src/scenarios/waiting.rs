use ipcmutex::ErrorKind::{BadHandle, Canceled, Closed, Timeout};

use super::{Scenario, alone};
use crate::agent::Language;
use crate::cell::Cell;

pub(super) const ALL: &[Scenario] = &[
    alone("waiting::times_out", 6, times_out),
    alone("waiting::is_canceled", 6, is_canceled),
    alone("waiting::ends_with_close", 6, ends_with_close),
    alone("waiting::asynchronous", 6, asynchronous),
    alone("waiting::a_thousand_without_threads", 7, a_thousand_without_threads),
];

fn times_out(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    let held = agent.begin("hold 1 1 forever").reply().ok();
    for limit in ["0", "30"] {
        let late = agent.begin(&format!("hold 2 2 {limit}")).reply().err(Timeout);
        // Rust answers a try with a plain none; the texts are those of the others, and of a wait.
        if limit != "0" {
            let pid = cell.owner_pid(&agent, &held);
            assert!(late.text.contains(&pid.to_string()), "the text does not name pid {pid}: {}", late.text);
        }
    }
    agent.until_waiters(1, 0);
    agent.call("end 1").ok();
    // Nobody took it afterwards.
    assert_eq!(agent.call("status 1").ok().text_of("state"), "free");
    agent.begin("hold 2 2 0").reply().ok();
}

fn is_canceled(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("hold 1 1 forever").reply().ok();
    let waiting = agent.begin("async 1 2 forever 1");
    agent.until_waiters(1, 1);
    agent.call("cancel 1").ok();
    let ended = waiting.reply();
    if agent.language == Language::Shell {
        assert_eq!(ended.code, "EXIT143", "{ended:?}");
    } else {
        ended.err(Canceled);
    }
    if agent.language == Language::C {
        agent.call("cancel 1").err(BadHandle);
    }
    agent.until_waiters(1, 0);
    agent.call("end 1").ok();
    assert_eq!(agent.call("status 1").ok().text_of("state"), "free");
    agent.begin("hold 1 3 0").reply().ok();
}

fn ends_with_close(cell: &Cell<'_>) {
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    agent.begin("hold 1 1 forever").reply().ok();
    let waiting = agent.begin("hold 2 2 forever");
    agent.until_waiters(1, 1);
    let without_thread = agent.begin("async 2 3 forever 1");
    agent.until_waiters(1, 2);
    agent.call("close 2").ok();
    waiting.reply().err(Closed);
    without_thread.reply().err(Closed);
    agent.until_waiters(1, 0);
    agent.call("check 1").ok();
    agent.call("end 1").ok();
    assert_eq!(agent.call("status 1").ok().text_of("state"), "free");
}

fn asynchronous(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    agent.begin("async 1 1 forever 1").reply().ok();
    agent.begin("async 1 2 0 2").reply().err(Timeout);
    agent.begin("async 1 2 30 2").reply().err(Timeout);
    let waiting = agent.begin("async 1 2 forever 2");
    agent.until_waiters(1, 1);
    agent.call("end 1").ok();
    waiting.reply().ok();
    agent.call("end 2").ok();
    agent.begin("async 1 3 0 3").reply().ok();
    agent.call("end 3").ok();
}

fn a_thousand_without_threads(cell: &Cell<'_>) {
    const WAITERS: u64 = 1000;
    let url = cell.url("lock", "");
    let agent = cell.opened(&url);
    agent.open(2, &url).ok();
    // One that waits shows what waiting takes once.
    agent.begin("hold 1 0 forever").reply().ok();
    let first = agent.begin("async 2 1 forever 1");
    agent.until_waiters(1, 1);
    let (before, _) = agent.threads();
    let waiting: Vec<_> =
        (2..=WAITERS).map(|number| agent.begin(&format!("async 2 {number} forever {number}"))).collect();
    agent.until_waiters(1, WAITERS);
    agent.status_until(1, "settled", |_| agent.threads().0 <= before + 4);
    agent.call("end 0").ok();
    first.reply().ok();
    agent.call("close 2").ok();
    for pending in waiting {
        pending.reply().err(Closed);
    }
    agent.until_waiters(1, 0);
    agent.begin("hold 1 0 0").reply().ok();
}
