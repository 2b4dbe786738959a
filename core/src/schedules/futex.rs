//! futex(2) for threads whose turns shuttle gives.

use std::cell::RefCell;
use std::time::Instant;

use shuttle::thread::{self, Thread};

use crate::sync::atomic::{AtomicU32, Ordering};
pub(crate) use crate::sys::futex::ANY;
use crate::sys::futex::Woken;

thread_local! {
    /// Who sleeps, and on which word. All threads of a schedule are one thread of the system.
    static SLEEPERS: RefCell<Vec<(usize, Thread)>> = const { RefCell::new(Vec::new()) };
}

fn address(word: &AtomicU32) -> usize {
    std::ptr::from_ref(word) as usize
}

pub(crate) fn wait(word: &AtomicU32, expected: u32, _bits: u32, until: Option<Instant>, _shared: bool) -> Woken {
    assert!(until.is_none(), "a schedule has no time");
    let me = thread::current();
    SLEEPERS.with_borrow_mut(|sleepers| sleepers.push((address(word), me.clone())));
    // Who is woken between here and the sleep has that kept for it, so to look and to sleep are one step as in the kernel.
    if word.load(Ordering::SeqCst) == expected {
        thread::park();
    }
    SLEEPERS.with_borrow_mut(|sleepers| sleepers.retain(|(_, sleeper)| sleeper.id() != me.id()));
    Woken::Changed
}

pub(crate) fn wake(word: &AtomicU32, count: u32, _bits: u32, _shared: bool) {
    for _ in 0..count {
        let sleeper = SLEEPERS.with_borrow_mut(|sleepers| {
            let at = sleepers.iter().position(|(slept_on, _)| *slept_on == address(word))?;
            Some(sleepers.remove(at).1)
        });
        let Some(sleeper) = sleeper else { return };
        sleeper.unpark();
    }
}

/// No engine of a schedule moves its sleepers.
pub(crate) fn move_sleeper(_from: &AtomicU32, _expected: u32, _to: &std::sync::atomic::AtomicU32) {
    unreachable!("the file engine has no schedule")
}
