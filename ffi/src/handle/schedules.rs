//! The table under the scheduler of shuttle; core's `schedules` says what that is.
//!
//!   cargo test -p ipcmutex-ffi --features schedules --lib schedules

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, Runner, thread};

use super::Table;

const ROUNDS: usize = 800;

fn play(rounds: usize, race: impl Fn() + Clone + Send + Sync + 'static) {
    Runner::new(RandomScheduler::new(rounds), Config::new()).run(race.clone());
    Runner::new(PctScheduler::new(3, rounds), Config::new()).run(race);
}

/// Knows which one it is, and whether it was dropped.
struct Value {
    number: u64,
    dropped: Arc<AtomicBool>,
    alive: Arc<AtomicU32>,
}

impl Value {
    fn new(number: u64, alive: &Arc<AtomicU32>) -> Value {
        alive.fetch_add(1, Ordering::SeqCst);
        Value { number, dropped: Arc::default(), alive: alive.clone() }
    }

    fn must_be(&self, number: u64) {
        assert_eq!(self.number, number, "another value");
        assert!(!self.dropped.load(Ordering::SeqCst), "it was dropped");
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        let number = self.number;
        if !std::thread::panicking() {
            thread::yield_now();
        }
        assert_eq!(self.number, number, "its place was given to another one before it was dropped");
        assert!(!self.dropped.swap(true, Ordering::SeqCst), "it was dropped twice");
        self.alive.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A table of its own for each schedule, so that each finds it empty. It is never given back: tables are for ever.
fn table() -> &'static Table<Value> {
    Box::leak(Box::new(Table::new(1, "test")))
}

/// FAULTS: C2
#[test]
fn pins_against_the_end_of_a_handle_and_the_next_one_in_its_slot() {
    play(ROUNDS, || {
        let (table, alive) = (table(), Arc::default());
        let handle = table.insert(Value::new(1, &alive)).ok().expect("there is room");
        let user = thread::spawn(move || {
            for _ in 0..2 {
                if let Some(pin) = table.pin(handle) {
                    pin.must_be(1);
                    thread::yield_now();
                    pin.must_be(1);
                    assert!(table.is_live(&pin, handle) || table.pin(handle).is_none());
                }
            }
        });
        let enders = [2, 3].map(|number| {
            let alive = alive.clone();
            thread::spawn(move || {
                let ended = table.remove(handle).map(|pin| pin.must_be(1)).is_some();
                // Into the same slot, if it is free by now.
                let next = table.insert(Value::new(number, &alive)).ok().expect("there is room");
                table.pin(next).expect("it is live").must_be(number);
                assert!(table.pin(handle).is_none(), "an ended handle is none");
                drop(table.remove(next).expect("it is live"));
                ended
            })
        });
        user.join().expect("it went well");
        let ended = enders.map(|ender| ender.join().expect("it went well"));
        assert_eq!(ended.iter().filter(|ended| **ended).count(), 1, "one of them ended it");
        assert_eq!(alive.load(Ordering::SeqCst), 0, "each value was dropped, once");
    });
}

#[test]
fn slots_are_given_to_one_at_a_time() {
    play(ROUNDS, || {
        let (table, alive) = (table(), Arc::default());
        let threads = [1, 2, 3].map(|thread| {
            let alive = Arc::clone(&alive);
            thread::spawn(move || {
                for round in 0..2 {
                    let number = thread << 8 | round;
                    let handles = [number, number | 128]
                        .map(|number| (number, table.insert(Value::new(number, &alive)).ok().expect("there is room")));
                    for (number, handle) in handles {
                        table.remove(handle).expect("it is live").must_be(number);
                    }
                }
            })
        });
        threads.into_iter().for_each(|thread| thread.join().expect("it went well"));
        assert_eq!(alive.load(Ordering::SeqCst), 0, "each value was dropped, once");
        assert!(table.used.load(Ordering::SeqCst) <= 6, "slots are used again");
    });
}

/// One is about to take the first free slot, and knows the one behind it, while another one takes both and gives back the first: the
/// list begins as it did, and goes on otherwise.
#[test]
fn a_free_list_that_looks_as_it_did() {
    play(8 * ROUNDS, || {
        let (table, alive) = (table(), Arc::default());
        let insert = |number| table.insert(Value::new(number, &alive)).ok().expect("there is room");
        let both = [insert(1), insert(2)];
        both.into_iter().for_each(|handle| drop(table.remove(handle)));
        let others = Arc::clone(&alive);
        let other = thread::spawn(move || {
            [10, 11].map(|number| table.insert(Value::new(number, &others)).ok().expect("there is room"))
        });
        let (first, second) = (insert(20), insert(21));
        table.remove(first).expect("it is live").must_be(20);
        let theirs = other.join().expect("it went well");
        for (number, handle) in [(21, second), (10, theirs[0]), (11, theirs[1])] {
            table.remove(handle).expect("it is live").must_be(number);
        }
        assert_eq!(alive.load(Ordering::SeqCst), 0, "each value was dropped, once");
    });
}
