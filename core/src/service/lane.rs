//! Jobs that run one after another, in the order in which they came.

use std::collections::VecDeque;

use super::{Job, run};
use crate::sync::Guarded;
use crate::sys::fork::PerProcess;

/// A child of `fork` has none of its parent's jobs.
pub(crate) struct Lane(PerProcess<Guarded<Lined>>);

#[derive(Default)]
struct Lined {
    jobs: VecDeque<Job>,
    moving: bool,
}

impl Lane {
    pub(crate) const fn new() -> Lane {
        Lane(PerProcess::new())
    }

    /// Adds `job`; whether the caller must have [`Lane::drain`] run on some thread.
    pub(crate) fn push(&self, job: Job) -> bool {
        let mut lined = self.0.get_or_init(Guarded::default).lock();
        lined.jobs.push_back(job);
        !std::mem::replace(&mut lined.moving, true)
    }

    /// Goes first, if nobody is on the way: jobs that come meanwhile wait until the caller has [`Lane::drain`] run.
    pub(crate) fn enter(&self) -> bool {
        !std::mem::replace(&mut self.0.get_or_init(Guarded::default).lock().moving, true)
    }

    /// After [`Lane::enter`]; whether the caller must have [`Lane::drain`] run on some thread.
    pub(crate) fn leave(&self) -> bool {
        let mut lined = self.0.get_or_init(Guarded::default).lock();
        lined.moving = !lined.jobs.is_empty();
        lined.moving
    }

    /// Runs them until there is none.
    pub(crate) fn drain(&self) {
        let Some(lined) = self.0.get() else { return };
        loop {
            let mut state = lined.lock();
            let Some(job) = state.jobs.pop_front() else {
                state.moving = false;
                return;
            };
            drop(state);
            run(job);
        }
    }
}
