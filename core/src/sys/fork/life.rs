//! The page that a child finds empty, and the handlers of `fork`.
//!
//! | the gate | by | then |
//! |---|---|---|
//! | free | a thread that opens (`ForkGate`), its signals blocked; or that forks | its thread's |
//! | its thread's | the same thread again: a handler of the program, or a signal's handler, that opens or forks | its thread's, one deeper |
//! | its thread's | another one | waits, its signals as they were |
//! | its thread's, deeper | leaves | one less deep |
//! | its thread's | leaves | free; one of those who wait is woken |
//! | any | a child, by whatever call | free: it has none of these threads |

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU32, Ordering};

use super::places;
use crate::sys::futex;
use crate::sys::thread::Undisturbed;

/// What a child finds empty.
#[repr(C)]
struct Life {
    /// See [`epoch`]; 0 until it is asked for, and [`BEGINNING`] while a thread makes the process fit.
    stamp: AtomicU32,
    /// The thread that has the gate, and whether another one waits; 0 if it is free.
    gate: AtomicU32,
    /// How often it has entered again.
    depth: AtomicU32,
}

static LIFE: AtomicPtr<Life> = AtomicPtr::new(std::ptr::null_mut());
/// Stands in for the page where there is no memory for one.
static FALLBACK: Life = Life { stamp: AtomicU32::new(0), gate: AtomicU32::new(0), depth: AtomicU32::new(0) };
static NEXT: AtomicU32 = AtomicU32::new(BEGINNING + 1);
const BEGINNING: u32 = 1;
/// How many forks are under way. A child that finds one is a child of `fork`.
static FORKS: AtomicU32 = AtomicU32::new(0);
/// The number of the process, while it forks. A child that has it still has a page that nobody has wiped, whatever was answered to
/// `madvise`: emulators say yes, and do nothing.
static FORKED: AtomicU32 = AtomicU32::new(0);
/// Beside a thread's number, which is less.
const WAITED_FOR: u32 = 1 << 31;

fn life() -> Option<&'static Life> {
    // SAFETY: null, or a mapped page (or the static) that is never unmapped and is inherited by children, where it is zero.
    unsafe { LIFE.load(Ordering::Acquire).as_ref() }
}

/// A number that stands for this process: never 0, and another one after each fork.
#[inline]
pub(crate) fn epoch() -> u32 {
    match life().map_or(0, |life| life.stamp.load(Ordering::Relaxed)) {
        0 | BEGINNING => begin(),
        now => now,
    }
}

/// In a process that has no number yet.
#[cold]
fn begin() -> u32 {
    // A handler that forked here would wait for its own thread.
    let _undisturbed = Undisturbed::enter();
    let life = life().unwrap_or_else(first_life);
    loop {
        match life.stamp.compare_exchange(0, BEGINNING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                if FORKS.swap(0, Ordering::Relaxed) > 0 {
                    places::close_all();
                }
                let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
                life.stamp.store(fresh, Ordering::Release);
                return fresh;
            }
            Err(BEGINNING) => std::thread::yield_now(),
            Err(now) => return now,
        }
    }
}

/// Of a process that has its number.
fn begun() -> &'static Life {
    epoch();
    life().unwrap_or(&FALLBACK)
}

/// When the library is loaded; and by the first use where nothing is run then.
pub(crate) fn put_handlers_in_place() {
    // Only once they are there, or a child that is forked meanwhile would never have them. Two threads may both put them in place: the second
    // pair enters and leaves again what the first has.
    static THERE: AtomicBool = AtomicBool::new(false);
    if THERE.load(Ordering::Acquire) {
        return;
    }
    // SAFETY: the three handlers are `extern "C"`, take nothing, and touch only statics.
    if unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) } == 0 {
        THERE.store(true, Ordering::Release);
    }
}

#[cold]
fn first_life() -> &'static Life {
    put_handlers_in_place();
    let fresh = wiped_page();
    // A page lost to a race at the very first use stays mapped: 4 KiB, once.
    let lost = LIFE.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).err();
    // SAFETY: as in `life`.
    unsafe { &*lost.unwrap_or(fresh) }
}

fn wiped_page() -> *mut Life {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice; length is one page.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return std::ptr::from_ref(&FALLBACK).cast_mut();
    }
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the page just mapped.
    unsafe {
        libc::madvise(page, 4096, libc::MADV_WIPEONFORK);
    }
    page.cast()
}

/// A number that no other living thread of this process has, and that is not 0.
fn me() -> u32 {
    // `gettid` is a function only since glibc 2.30. It may be refused.
    #[cfg(target_os = "linux")]
    // SAFETY: it asks nothing of its caller.
    if let Ok(me @ 1..) = u32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }) {
        return me;
    }
    // The stacks of two threads are more than 16 bytes apart.
    // SAFETY: as above.
    (unsafe { libc::pthread_self() } as usize >> 4) as u32 & !WAITED_FOR | 1
}

impl Life {
    /// The gate, also again; else what is to be waited for. `waited` has whoever leaves wake the next one.
    fn enter(&self, me: u32, waited: bool) -> Result<(), u32> {
        let mine = if waited { me | WAITED_FOR } else { me };
        match self.gate.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(now) if now & !WAITED_FOR == me => {
                self.depth.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(now) => Err(now),
        }
    }

    fn wait(&self, seen: u32) {
        let now = seen | WAITED_FOR;
        if seen == now || self.gate.compare_exchange(seen, now, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            futex::wait(&self.gate, now, futex::ANY, None, false);
        }
    }

    /// Whether `me` had it. Not so in a child, and where the handlers came in place while this thread forked.
    fn leave(&self, me: u32) -> bool {
        if self.gate.load(Ordering::Relaxed) & !WAITED_FOR != me {
            return false;
        }
        if self.depth.load(Ordering::Relaxed) > 0 {
            self.depth.fetch_sub(1, Ordering::Relaxed);
        } else if self.gate.swap(0, Ordering::Release) & WAITED_FOR != 0 {
            futex::wake(&self.gate, 1, futex::ANY, false);
        }
        true
    }
}

/// Keeps this process from forking (by `fork`; a raw `clone` runs no handlers) until it is dropped, unless this thread is just forking: then
/// a handler of the program is at work, before or after the fork itself. For a few system calls, which take no lock and allocate
/// nothing: whoever forks may have any lock. So long signals wait, too: one whose handler forks would give its child what is open here.
pub(crate) struct ForkGate {
    /// Whose it is: to ask again costs a call.
    me: u32,
    _undisturbed: Undisturbed,
}

impl ForkGate {
    pub(crate) fn enter() -> ForkGate {
        let (life, me) = (begun(), me());
        let mut waited = false;
        loop {
            let undisturbed = Undisturbed::enter();
            match life.enter(me, waited) {
                Ok(()) => return ForkGate { me, _undisturbed: undisturbed },
                Err(now) => {
                    // Who has it may wait for a handler of this thread.
                    drop(undisturbed);
                    life.wait(now);
                    waited = true;
                }
            }
        }
    }
}

impl Drop for ForkGate {
    fn drop(&mut self) {
        if let Some(life) = life() {
            life.leave(self.me);
        }
    }
}

extern "C" fn before_fork() {
    let (life, me) = (begun(), me());
    // First: a handler's child that goes on here, and is no child of this fork, has counted nothing.
    FORKS.fetch_add(1, Ordering::Relaxed);
    let mut waited = false;
    while let Err(now) = life.enter(me, waited) {
        life.wait(now);
        waited = true;
    }
    FORKED.store(epoch(), Ordering::Relaxed);
}

extern "C" fn after_fork_parent() {
    // The count first: once it has left, another one may fork.
    if let Some(life) = life()
        && life.gate.load(Ordering::Relaxed) & !WAITED_FOR == me()
    {
        let _ = FORKS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |forks| forks.checked_sub(1));
        if life.depth.load(Ordering::Relaxed) == 0 {
            // A child whose handler forks has its own number, and its page is its own.
            FORKED.store(0, Ordering::Relaxed);
        }
        life.leave(me());
    }
}

extern "C" fn after_fork_child() {
    if let Some(life) = life()
        && life.stamp.load(Ordering::Relaxed) == FORKED.load(Ordering::Relaxed)
    {
        for word in [&life.gate, &life.depth, &life.stamp] {
            word.store(0, Ordering::Release);
        }
    }
    epoch();
}
