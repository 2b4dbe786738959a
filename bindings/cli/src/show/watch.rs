//! `status --watch`: the same two lines, kept up to date.

use std::io::IsTerminal as _;
use std::time::{Duration, Instant};

use ipcmutex::Result;
use ipcmutex::list::Listed;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BROKEN_PIPE, Sight, as_json, print, table};

/// How often it is looked. A look disturbs nobody: a read of the file, or one round trip.
const PERIOD: Duration = Duration::from_millis(500);
/// Lines are cut at the terminal's edge and not broken, so that two stay two.
const CUT: &str = "\x1b[?7l";
const BREAK: &str = "\x1b[?7h";
/// To the first line of the table before, and all below gone.
const AGAIN: &str = "\x1b[2F\x1b[J";

/// Until Ctrl-C, or until nobody reads any more. What cannot be told at the moment is shown too, and looked at again.
pub(super) fn watch(mut sight: Sight, json: bool) -> Result<i32> {
    let live = !json && std::io::stdout().is_terminal();
    let mut before: Option<Listed> = None;
    loop {
        let now = Listed { url: sight.url.to_string(), status: sight.look() };
        // A terminal also shows the time go by.
        if live || !before.as_ref().is_some_and(|before| says_the_same(before, &now)) {
            let text = if json { format!("{}\n", as_json(&now)) } else { table(std::slice::from_ref(&now)) };
            let text = match (live, &before) {
                (true, None) => format!("{CUT}{text}{BREAK}"),
                (true, Some(_)) => format!("{CUT}{AGAIN}{text}{BREAK}"),
                // The head of the columns once.
                (false, Some(_)) if !json => text.split_inclusive('\n').skip(1).collect(),
                (false, _) => text,
            };
            match print(&text)? {
                0 => {}
                code => return Ok(code),
            }
        }
        before = Some(now);
        if is_unread_within(PERIOD) {
            return Ok(BROKEN_PIPE);
        }
    }
}

/// Whether whoever reads a pipe, or a socket of this host, is gone: while there is no news, no write tells, and of a TCP connection nothing
/// else does. Else it lasts the whole period.
fn is_unread_within(period: Duration) -> bool {
    let out = std::io::stdout();
    let mut seen = [PollFd::new(&out, PollFlags::empty())];
    let (begun, limit) = (Instant::now(), Timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() });
    let is_seen = poll(&mut seen, Some(&limit)).is_ok();
    if is_seen && seen[0].revents().intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
        return true;
    }
    std::thread::sleep(period.saturating_sub(begun.elapsed()));
    false
}

/// The age of a hold, and the numbers of a lock, are no news.
fn says_the_same(a: &Listed, b: &Listed) -> bool {
    match (&a.status, &b.status) {
        (Ok(a), Ok(b)) => (a.state, a.token, a.waiters, &a.owner) == (b.state, b.token, b.waiters, &b.owner),
        (Err(a), Err(b)) => a.kind() == b.kind(),
        _ => false,
    }
}
