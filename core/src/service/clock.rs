//! Timers for waits that have no thread to time them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use super::{Job, run};
use crate::error::Result;
use crate::sync::Guarded;
use crate::sys::fork::PerProcess;
use crate::sys::{futex, thread};

#[derive(Default)]
struct Clock {
    state: Guarded<Timers>,
    /// Counts the changes of the earliest timer; the thread sleeps on it.
    changed: AtomicU32,
}

#[derive(Default)]
struct Timers {
    by_time: BTreeMap<(Instant, u64), Job>,
    times: std::collections::HashMap<u64, Instant>,
    last_id: u64,
    running: bool,
}

static CLOCK: PerProcess<Clock> = PerProcess::new();

/// Runs `job` at `when`, on the clock's thread: it must be short. The number cancels it.
///
/// # Errors
/// RESOURCE if the thread cannot be started; then `job` never runs.
pub(crate) fn at(when: Instant, job: Job) -> Result<u64> {
    let clock = CLOCK.get_or_init(Clock::default);
    let mut timers = clock.state.lock();
    timers.last_id += 1;
    let id = timers.last_id;
    timers.by_time.insert((when, id), job);
    timers.times.insert(id, when);
    let first = timers.by_time.first_key_value().is_some_and(|((_, first), _)| *first == id);
    if !timers.running {
        // Under the lock: nobody adds a timer to a thread that does not come.
        if let Err(error) = thread::spawn("ipcmutex-clock", thread::SMALL_STACK, tick) {
            timers.times.remove(&id);
            let job = timers.by_time.remove(&(when, id));
            drop(timers);
            drop(job); // outside the lock: it may own what cancels another timer
            return Err(error);
        }
        timers.running = true;
    } else if first {
        drop(timers);
        ring(clock);
    }
    Ok(id)
}

/// Forgets a timer. 0, one that has run and one of a parent process are nothing to it.
pub(crate) fn cancel(id: u64) {
    if id == 0 {
        return;
    }
    let Some(clock) = CLOCK.get() else { return };
    let mut timers = clock.state.lock();
    let job = timers.times.remove(&id).and_then(|when| timers.by_time.remove(&(when, id)));
    let empty = timers.by_time.is_empty();
    drop(timers);
    drop(job); // outside the lock: it may own what cancels another timer
    if empty {
        ring(clock);
    }
}

fn ring(clock: &Clock) {
    clock.changed.fetch_add(1, Ordering::Release);
    futex::wake(&clock.changed, 1, futex::ANY, false);
}

fn tick() {
    let Some(clock) = CLOCK.get() else { return };
    loop {
        let seen = clock.changed.load(Ordering::Acquire);
        let mut timers = clock.state.lock();
        let Some((&(when, id), _)) = timers.by_time.first_key_value() else {
            timers.running = false;
            return;
        };
        if when > Instant::now() {
            drop(timers);
            futex::wait(&clock.changed, seen, futex::ANY, Some(when), false);
            continue;
        }
        timers.times.remove(&id);
        let job = timers.by_time.remove(&(when, id));
        drop(timers);
        if let Some(job) = job {
            run(job);
        }
    }
}
