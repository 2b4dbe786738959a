//! What a lock has been through, in numbers. Counted where somebody waits or has lost, never on the free path: how often
//! it was acquired follows from what the engine keeps anyway.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// The upper bounds of [`Numbers::waits`], but of its last, which has none.
pub const WAIT_BOUNDS: [Duration; BUCKETS - 1] = [
    Duration::from_micros(100),
    Duration::from_millis(1),
    Duration::from_millis(10),
    Duration::from_millis(100),
    Duration::from_secs(1),
    Duration::from_secs(10),
];

pub(crate) const BUCKETS: usize = 7;

/// What a lock has been through. For `spm:` since it is open in this process, for `mpm:` since its file was made and over
/// all processes, for Redis through this handle alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Numbers {
    /// Acquisitions, those that did not have to wait included. A break counts as one.
    pub acquisitions: u64,
    /// Waits that ended without the lock: timed out, cancelled, closed.
    pub gave_up: u64,
    /// Holds that ended without a release: their process died, their lease ran out, they were broken.
    pub losses: u64,
    /// Slow looks that found what nobody had told: 0, or nearly, when all is well.
    pub rechecks: u64,
    /// Acquisitions that had to wait, by how long: shorter than each of [`WAIT_BOUNDS`], and longer than all.
    pub waits: [u64; BUCKETS],
}

impl Numbers {
    /// Acquisitions that had to wait.
    pub fn contended(&self) -> u64 {
        self.waits.iter().sum()
    }
}

/// Which of [`Numbers::waits`] counts a wait this long.
pub(crate) fn bucket(waited: Duration) -> usize {
    WAIT_BOUNDS.iter().position(|bound| waited < *bound).unwrap_or(BUCKETS - 1)
}

/// The numbers of one process, where they are not in a shared page.
#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) acquisitions: AtomicU64,
    pub(crate) gave_up: AtomicU64,
    pub(crate) losses: AtomicU64,
    pub(crate) rechecks: AtomicU64,
    waits: [AtomicU64; BUCKETS],
}

impl Tally {
    pub(crate) fn waited(&self, waited: Duration) {
        count(&self.waits[bucket(waited)]);
    }

    pub(crate) fn numbers(&self) -> Numbers {
        Numbers {
            acquisitions: self.acquisitions.load(Relaxed),
            gave_up: self.gave_up.load(Relaxed),
            losses: self.losses.load(Relaxed),
            rechecks: self.rechecks.load(Relaxed),
            waits: std::array::from_fn(|at| self.waits[at].load(Relaxed)),
        }
    }
}

pub(crate) fn count(number: &AtomicU64) {
    number.fetch_add(1, Relaxed);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_in_the_bucket_that_it_is_shorter_than() {
        let found = [0, 99, 100, 9_999, 10_000, 9_999_999, 10_000_000, u64::MAX].map(Duration::from_micros).map(bucket);
        assert_eq!(found, [0, 0, 1, 2, 3, 5, 6, 6]);
    }
}
