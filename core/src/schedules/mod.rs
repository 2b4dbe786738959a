//! Races, played by the crate shuttle: at each step on what threads share, it decides who runs next, some thousand times
//! over and otherwise each time. Who is never woken is a deadlock, which it reports with the schedule that led there.
//!
//! It knows no weak memory: each step is seen by all at once. And it knows no time: nothing here has a timeout, and what
//! `end` does for a deadline it does for a cancellation.
//!
//!   cargo test -p ipcmutex --features schedules schedules

pub(crate) mod barrier;
mod biased;
mod close;
pub(crate) mod futex;
mod spm;
pub(crate) mod thread;
mod waits;

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Wake};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner};

use crate::{ErrorKind, Hold, Mutex, Result, State};

/// How often each race is played by each way to choose: by chance at each step, and with few changes of turn, which finds
/// what needs one thread to stand still for long.
const ROUNDS: usize = 800;

pub(crate) fn play(race: impl Fn() + Clone + Send + Sync + 'static) {
    // What all locks of a process share is nobody's but this schedule's.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock();
    let mut config = Config::new();
    config.stack_size = 256 << 10; // opening reads the surroundings
    Runner::new(RandomScheduler::new(ROUNDS), config.clone()).run(race.clone());
    Runner::new(PctScheduler::new(3, ROUNDS), config).run(race);
}

/// Who is inside. What it is told is not a step of the schedule: it only looks on.
#[derive(Clone, Default)]
struct Inside(Arc<(AtomicU64, AtomicU64)>);

impl Inside {
    /// Enters and leaves, and is never met by another one who does; tokens rise.
    fn visit(&self, hold: Hold) {
        let (inside, last) = &*self.0;
        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside at once");
        let before = last.swap(hold.token(), Ordering::SeqCst);
        assert!(before < hold.token(), "token {} came after {before}", hold.token());
        assert!(!hold.abandoned());
        shuttle::thread::yield_now();
        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
        hold.release().expect("it was held");
    }

    /// What an acquisition came to: visited, or ended with `kind`.
    fn visit_unless(&self, kind: ErrorKind, outcome: Result<Hold>) {
        match outcome {
            Ok(hold) => self.visit(hold),
            Err(error) => assert_eq!(error.kind(), kind, "{error}"),
        }
    }
}

/// Wakes a thread.
struct Waker(shuttle::thread::Thread);

impl Wake for Waker {
    fn wake(self: Arc<Waker>) {
        self.0.unpark();
    }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let waker = Arc::new(Waker(shuttle::thread::current())).into();
    let mut future = pin!(future);
    loop {
        if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
            return outcome;
        }
        shuttle::thread::park();
    }
}

/// Nobody holds, nobody waits, and it can be had.
fn must_be_free(url: &str) {
    let mutex = Mutex::open(url).expect("it opens");
    let status = mutex.status().expect("it is told");
    assert_eq!((status.state, status.waiters), (State::Free, 0));
    mutex.try_acquire().expect("it answers").expect("it is free").release().expect("it was held");
}
