//! `Status`: what can be seen of a lock from outside.

use pyo3::prelude::*;

/// What can be seen of a lock from outside, at one moment. Read-only.
#[pyclass(frozen, get_all, module = "ipcmutex")]
pub(crate) struct Status {
    /// "free", "held" or "abandoned".
    state: &'static str,
    /// The token of the hold, or of the last one; 0 if that is not known.
    token: u64,
    /// How many acquisitions wait.
    waiters: u32,
    /// The process that holds it, as that one sees itself; for display only. None if nobody does.
    owner_pid: Option<u32>,
    /// The host of the one that holds it.
    owner_host: Option<String>,
    /// The label of the one that holds it: the URL's `label=`, or the program.
    owner_label: Option<String>,
    /// Since how many milliseconds it is held; None if it is not.
    held_ms: Option<u64>,
    /// Acquisitions, with or without a wait; of a Redis lock through this object, as all numbers that follow.
    acquisitions: u64,
    /// Those that had to wait.
    contended: u64,
    /// Waits that ended without the lock.
    gave_up: u64,
    /// Holds that ended without a release.
    losses: u64,
    /// Slow looks that found what nobody had told.
    rechecks: u64,
    /// Acquisitions that had to wait, by how long: up to 0.1 ms, 1 ms, 10 ms, 100 ms, 1 s, 10 s, and longer.
    waits: Vec<u64>,
}

impl From<ipcmutex::Status> for Status {
    fn from(status: ipcmutex::Status) -> Status {
        let (owner_pid, owner_host, owner_label) = match status.owner {
            Some(owner) => (Some(owner.pid), Some(owner.host), Some(owner.label)),
            None => (None, None, None),
        };
        Status {
            state: status.state.name(),
            token: status.token,
            waiters: status.waiters,
            owner_pid,
            owner_host,
            owner_label,
            held_ms: status.held.map(|held| held.as_millis().try_into().unwrap_or(u64::MAX)),
            acquisitions: status.numbers.acquisitions,
            contended: status.numbers.contended(),
            gave_up: status.numbers.gave_up,
            losses: status.numbers.losses,
            rechecks: status.numbers.rechecks,
            waits: status.numbers.waits.into(),
        }
    }
}

#[pymethods]
impl Status {
    fn __repr__(&self) -> String {
        format!("<ipcmutex.Status {}, token {}, {} waiting>", self.state, self.token, self.waiters)
    }
}
