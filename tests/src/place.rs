//! A lock file of a test's own, and what can be done to the processes that use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use crate::agent::{Agent, WATCHDOG};

/// A folder of its own, and a lock file's URL in it.
pub struct Place {
    /// The folder.
    pub dir: tempfile::TempDir,
}

impl Place {
    /// An empty folder, in which there is no lock file yet.
    #[expect(clippy::new_without_default, reason = "it makes a folder, which a default should not")]
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The lock file's path.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("lock")
    }

    /// The lock file's URL.
    pub fn url(&self) -> String {
        url_of(&self.path())
    }
}

/// The URL of the lock file at `path`.
pub fn url_of(path: &Path) -> String {
    format!("mpm:{}", path.display())
}

/// Sends a signal to an agent's process.
pub fn signal(agent: &Agent, signal: Signal) {
    let pid = Pid::from_raw(agent.pid() as i32).expect("a pid is not 0");
    kill_process(pid, signal).expect("it runs");
}

/// kill -9 of an agent's process.
pub fn kill(agent: &Agent) {
    agent.kill(u64::from(agent.pid()));
}

/// Stops an agent's process, and returns when it stands still.
pub fn freeze(agent: &Agent) {
    signal(agent, Signal::STOP);
    let stat = format!("/proc/{}/stat", agent.pid());
    until("it stands still", || fs::read_to_string(&stat).expect("it runs").contains(") T "));
}

/// Waits until `is_so`: the handshake where nobody tells.
#[track_caller]
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < WATCHDOG, "it never came about: {what}");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
