//! A number that belongs to one thread, and is taken away from it.

use std::sync::Arc;

use shuttle::thread;

use super::play;
use crate::biased::Biased;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Each number that was put in comes out once, whoever takes it.
#[test]
fn what_is_put_in_comes_out_once() {
    play(|| {
        let place = Arc::new(Biased::new(0));
        let (put, out) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let threads: Vec<_> = (0..3u64)
            .map(|thread| {
                let (place, put, out) = (place.clone(), put.clone(), out.clone());
                thread::spawn(move || {
                    for turn in 1..=2 {
                        let mine = 1 << (8 * thread + turn);
                        if place.compare_exchange(0, mine).is_ok() {
                            put.fetch_add(mine, Ordering::SeqCst);
                        }
                        out.fetch_add(place.swap(0), Ordering::SeqCst);
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().expect("it went well"));
        assert_eq!((place.load(), out.load(Ordering::SeqCst)), (0, put.load(Ordering::SeqCst)));
    });
}

/// Who puts something in and then looks whether it was closed, and who closes and then takes out: one of them sees the other.
#[test]
fn a_last_look_sees_it_or_is_seen() {
    play(|| {
        let (place, closed) = (Arc::new(Biased::new(0)), Arc::new(AtomicBool::new(false)));
        let owner = thread::spawn({
            let (place, closed) = (place.clone(), closed.clone());
            move || {
                let mut seen = false;
                for _ in 0..2 {
                    place.swap(0);
                    place.compare_exchange(0, 7).expect("nobody else puts anything in");
                    seen |= closed.load(Ordering::SeqCst);
                }
                seen
            }
        });
        closed.store(true, Ordering::SeqCst);
        let taken = place.swap(0);
        let seen = owner.join().expect("it went well");
        assert!(seen || taken == 7 && place.load() == 0, "left behind: {}", place.load());
    });
}
