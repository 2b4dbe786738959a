//! What another thread of the library answers.

use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

/// Why nobody answers.
pub(crate) enum Unanswered {
    /// A signal's handler has forked, and this is the child: what was answered is its parent's.
    Forked,
    /// The thread that was to answer has ended by a bug.
    Ended,
}

/// So often who waits for another thread's answer looks whether it is a child.
const LOOK: Duration = Duration::from_millis(250);

/// What another thread of the library answers, which a forked child does not have.
pub(crate) fn of<T>(from: &Receiver<T>, is_ours: impl Fn() -> bool) -> Result<T, Unanswered> {
    loop {
        let answer = from.recv_timeout(LOOK);
        if !is_ours() {
            return Err(Unanswered::Forked);
        }
        match answer {
            Ok(answer) => return Ok(answer),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Unanswered::Ended),
        }
    }
}
