//! Telling others: each kind in order, on a thread of its own, which may block without stopping what the library itself must do in time.

use super::Job;
use super::lane::Lane;
use crate::sync::thread;

static CALLBACKS: Lane = Lane::new();
static DELIVERIES: Lane = Lane::new();

/// Runs a callback of the user's soon, after those that came before: it may block, or call back in. If no thread can be started it runs
/// here: late is worse than near.
pub(crate) fn run(job: Job) {
    tell(&CALLBACKS, "ipcmutex-call", job);
}

/// Runs `job` soon, after those that were given here before, on a thread of the library's own that takes no signals:
/// for telling an event loop of outcomes, which must wait neither for a server nor for a callback of the user's. If no
/// thread can be started it runs here.
pub fn deliver(job: impl FnOnce() + Send + 'static) {
    tell(&DELIVERIES, "ipcmutex-tell", Box::new(job));
}

fn tell(lane: &'static Lane, thread: &'static str, job: Job) {
    if lane.push(job) && thread::spawn(thread, thread::FULL_STACK, || lane.drain()).is_err() {
        lane.drain();
    }
}
