//! Blocking work for those who must not block: event loops. A few threads, started when there is work, gone soon after it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::Condvar;
use std::time::{Duration, Instant};

use crate::sync::{Guarded, thread, wait_for};
use crate::sys::fork::PerProcess;

/// Something to be done elsewhere.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

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

/// And since when it has been wanted.
type Wanted = (Instant, Job);

thread_local! {
    /// Since when what this thread does was wanted, until somebody has asked that.
    static SINCE: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Since when the caller has been about what it does: a job, since it was given here, if this is the first thing it does. What befell
/// another one since then befalls it, too, of a server that does not answer.
#[cfg(feature = "redis")]
pub(crate) fn asked() -> Instant {
    SINCE.take().unwrap_or_else(Instant::now)
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Wanted>,
    threads: usize,
    lingering: usize,
}

static POOL: PerProcess<Pool> = PerProcess::new();

/// Runs `job` soon, on a thread of the library's own that takes no signals. If no thread can be started it runs
/// here: late is worse than near.
///
/// # Fork
/// A child does not run what its parent has offloaded.
pub fn offload(job: impl FnOnce() + Send + 'static) {
    let pool = POOL.get_or_init(Pool::default);
    let mut queue = pool.queue.lock();
    queue.jobs.push_back((Instant::now(), Box::new(job)));
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

static DELIVERIES: Lane = Lane::new();

/// Runs `job` soon, after those that were given here before, on a thread of the library's own that takes no signals:
/// for telling an event loop of outcomes, which must wait neither for a server nor for a callback of the user's. If no
/// thread can be started it runs here.
pub fn deliver(job: impl FnOnce() + Send + 'static) {
    let drain = || DELIVERIES.drain();
    if DELIVERIES.push(job) && thread::spawn("ipcmutex-tell", thread::FULL_STACK, drain).is_err() {
        drain();
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

fn run((since, job): Wanted) {
    SINCE.set(Some(since));
    // A panic of one job must not end the others.
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
    SINCE.set(None);
}

/// Jobs that run one after another, in the order in which they came.
pub(crate) struct Lane(PerProcess<Guarded<Lined>>);

#[derive(Default)]
struct Lined {
    jobs: VecDeque<Wanted>,
    moving: bool,
}

impl Lane {
    pub(crate) const fn new() -> Lane {
        Lane(PerProcess::new())
    }

    /// Adds `job`; whether the caller must have [`Lane::drain`] run on some thread.
    pub(crate) fn push(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut lined = self.0.get_or_init(Guarded::default).lock();
        lined.jobs.push_back((Instant::now(), Box::new(job)));
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
