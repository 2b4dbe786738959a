//! Blocking work for those who must not block: event loops. A few threads, started when there is work, gone soon after it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Condvar;
use std::time::{Duration, Instant};

use super::{Job, run};
use crate::sync::{Guarded, thread, wait_for};
use crate::sys::fork::PerProcess;

/// How many jobs run at once: enough that one dead server does not stop the others at once.
const THREADS: usize = 8;
/// How long a thread stays with nothing to do: one acquisition after the other shares it, since to start one takes about as
/// long as a round trip.
const LINGER: Duration = Duration::from_millis(250);

#[derive(Default)]
struct Pool {
    queue: Guarded<Queue>,
    /// There is a job for one that lingers.
    come: Condvar,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    lingering: usize,
}

static POOL: PerProcess<Pool> = PerProcess::new();

thread_local! {
    /// Since when what this thread does was wanted, until somebody has asked that.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Since when the caller has been about what it does: a job, since it was [`wanted`], if this is the first thing it does. What befell
/// another one since then befalls it, too, of a server that does not answer.
#[cfg(feature = "redis")]
pub(crate) fn asked() -> Instant {
    SINCE.take().unwrap_or_else(Instant::now)
}

/// `job`, which knows that it is wanted from now on.
pub(crate) fn wanted(job: Job) -> Job {
    let since = Instant::now();
    Box::new(move || {
        SINCE.set(Some(since));
        run(job);
        SINCE.set(None);
    })
}

/// Runs `job` soon, on a thread of the library's own that takes no signals. If no thread can be started it runs
/// here: late is worse than near.
///
/// # Fork
/// A child does not run what its parent has offloaded.
pub fn offload(job: impl FnOnce() + Send + 'static) {
    let pool = POOL.get_or_init(Pool::default);
    let mut queue = pool.queue.lock();
    queue.jobs.push_back(wanted(Box::new(job)));
    if queue.lingering >= queue.jobs.len() {
        drop(queue);
        return pool.come.notify_one();
    }
    if queue.threads == THREADS {
        return;
    }
    queue.threads += 1;
    drop(queue);
    if thread::spawn("ipcmutex-io", thread::FULL_STACK, || drain(LINGER)).is_err() {
        drain(Duration::ZERO);
    }
}

fn drain(linger: Duration) {
    let Some(pool) = POOL.get() else { return };
    let mut queue = pool.queue.lock();
    loop {
        while let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            run(job);
            queue = pool.queue.lock();
        }
        queue.lingering += 1;
        let (back, over) = wait_for(&pool.come, queue, linger);
        queue = back;
        queue.lingering -= 1;
        if over && queue.jobs.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}
