//! A lock file of a test's own, and what can be done to the processes that use it.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ipcmutex::Mutex;
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

/// What stands in the first block of a lock file (`core/src/backend/mpm/layout.rs` and `word.rs`).
pub struct Page(fs::File);

impl Page {
    /// Of the lock file that is there now.
    ///
    /// # Panics
    /// If there is none.
    pub fn of(place: &Place) -> Page {
        Page(fs::File::open(place.path()).expect("it is there"))
    }

    fn u64(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at).expect("a block is there");
        u64::from_ne_bytes(bytes)
    }

    /// The word that decides who owns.
    pub fn word(&self) -> u64 {
        self.u64(64)
    }

    /// Whether nobody owns the lock, but its word says that somebody waits for it.
    pub fn is_waited_for_while_free(&self) -> bool {
        self.word() & 0b111 == 0b100
    }

    /// Who owns the lock, or for whom it is kept; 0 if it is free.
    pub fn slot(&self) -> u64 {
        self.word() >> 5 & 0xfff
    }

    /// The cell of a slot: its process's first waiter, 0 if there is none.
    pub fn cell(&self, slot: u64) -> u64 {
        self.u64(256 + 8 * (slot - 1))
    }

    /// Whether the waiter of `slot` has marked its cell for the ring that wakes it, and is not late.
    pub fn is_in_line(&self, slot: u64) -> bool {
        self.cell(slot) & 1 != 0 && self.cell(slot) >> 63 == 0
    }
}

/// The URL of the lock file at `path`.
pub fn url_of(path: &Path) -> String {
    format!("mpm:{}", path.display())
}

/// Plays a scene, each time at a new lock file, until nobody in it had to find by himself what he should have been told: the looks
/// every 250 ms make up for a wake-up that is lost, and count what they find. On a busy machine one may come first, but not each time.
#[track_caller]
pub fn all_is_told(mut scene: impl FnMut(&Place)) {
    const TRIES: u32 = 8;
    let told = (0..TRIES).any(|_| {
        let place = Place::new();
        scene(&place);
        let seen = Mutex::open(&place.url()).and_then(|mutex| mutex.status());
        seen.expect("the lock file is there").numbers.rechecks == 0
    });
    assert!(told, "in each of {TRIES} scenes a slow look found a lock that was free: nobody had told");
}

/// Waits until an agent's wait is no short one any more, and looks at the lock only when it is told to, or every 250 ms.
#[track_caller]
pub fn asleep(waiter: &Agent) {
    until("it is watched", || !waiter.threads().1.is_empty());
    // It looks when the watch begins and 10 ms later, as after an event: who does not wait for that finds nothing by himself.
    std::thread::sleep(std::time::Duration::from_millis(40));
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
