//! Callbacks of the user, in order, on a thread of their own: they may block or call back in without stopping
//! what the library itself must do in time.

use std::collections::VecDeque;

use crate::sync::{Guarded, thread};
use crate::sys::fork::PerProcess;

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    running: bool,
}

static QUEUE: PerProcess<Guarded<Queue>> = PerProcess::new();

/// Runs `job` soon, after those that came before. If no thread can be started it runs here: late is worse than near.
pub(crate) fn run(job: Job) {
    let queue = QUEUE.get_or_init(Guarded::default);
    let mut state = queue.lock();
    state.jobs.push_back(job);
    if state.running {
        return;
    }
    state.running = true;
    drop(state);
    if thread::spawn("ipcmutex-call", thread::FULL_STACK, drain).is_err() {
        drain();
    }
}

fn drain() {
    let Some(queue) = QUEUE.get() else { return };
    loop {
        let mut state = queue.lock();
        let Some(job) = state.jobs.pop_front() else {
            state.running = false;
            return;
        };
        drop(state);
        // A panic of one callback must not end the others.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    }
}
