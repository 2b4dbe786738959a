//! Who sleeps for waiters that have no thread: one thread for up to 127 locks, on all of their bells at once
//! (futex_waitv). On kernels before 5.16, one thread for each lock in whose line such a waiter stands first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use super::site::Site;
use crate::sync::Guarded;
use crate::sys::fork::PerProcess;
use crate::sys::{futex, thread};
use crate::timeout::earlier;

struct Ringer {
    sites: Guarded<Vec<Arc<Site>>>,
    /// Counts the changes of `sites`; the thread sleeps on it too.
    changed: AtomicU32,
}

type Ringers = Guarded<Vec<Arc<Ringer>>>;
static RINGERS: PerProcess<Ringers> = PerProcess::new();
/// Set when the kernel has been found not to know futex_waitv.
static ONE_EACH: AtomicBool = AtomicBool::new(false);

impl Ringer {
    fn ring(&self) {
        self.changed.fetch_add(1, Ordering::SeqCst);
        futex::wake(&self.changed, 1, futex::ANY, false);
    }
}

/// Sleeps for the first waiter of `site` until it is forgotten. `false` if no thread can be had; the pulse then looks. Where there is no
/// pulse, the ringer does what it would.
pub(super) fn watch(site: Arc<Site>) -> bool {
    let capacity = if ONE_EACH.load(Ordering::Relaxed) { 1 } else { futex::MAX_WORDS - 1 };
    let mut ringers = RINGERS.get_or_init(Guarded::default).lock();
    for ringer in ringers.iter() {
        let mut sites = ringer.sites.lock();
        if sites.len() < capacity {
            sites.push(site);
            drop(sites);
            ringer.ring();
            return true;
        }
    }
    let ringer = Arc::new(Ringer { sites: Guarded::new(vec![site]), changed: AtomicU32::new(0) });
    let for_thread = ringer.clone();
    let started = thread::spawn("ipcmutex-bells", thread::SMALL_STACK, move || run(&for_thread)).is_ok();
    if started {
        ringers.push(ringer);
    }
    started
}

/// Ends what `watch` began.
pub(super) fn forget(site: &Site) {
    let Some(ringers) = RINGERS.get() else { return };
    let ringers = ringers.lock().clone();
    for ringer in ringers {
        let mut sites = ringer.sites.lock();
        let gone = sites.iter().position(|other| std::ptr::eq(&**other, site)).map(|at| sites.swap_remove(at));
        drop(sites);
        if gone.is_some() {
            ringer.ring();
            return;
        }
    }
}

fn run(ringer: &Arc<Ringer>) {
    loop {
        let changed = ringer.changed.load(Ordering::SeqCst);
        let sites = ringer.sites.lock().clone();
        if sites.is_empty() {
            let Some(ringers) = RINGERS.get() else { return };
            let mut ringers = ringers.lock();
            // Under this lock nobody adds a site.
            if ringer.sites.lock().is_empty() {
                ringers.retain(|other| !Arc::ptr_eq(other, ringer));
                return;
            }
            continue;
        }
        // What is heard before the look at the words cannot be missed after it.
        let heard: Vec<u32> = sites.iter().map(|site| site.bell().load(Ordering::SeqCst)).collect();
        // All of them, each in its turn.
        let until = sites.iter().map(|site| site.attend()).fold(None, earlier);
        let bells = sites.iter().map(|site| site.bell()).zip(heard.iter().copied());
        if !ONE_EACH.load(Ordering::Relaxed) && sites.len() < futex::MAX_WORDS {
            let words: Vec<(&AtomicU32, u32)> = std::iter::once((&ringer.changed, changed)).chain(bells).collect();
            if futex::wait_any(&words, until).is_some() {
                continue;
            }
            ONE_EACH.store(true, Ordering::Relaxed);
        }
        // Each lock from here on gets its own thread; those that this one has already, it looks at in turn.
        let slice = Instant::now() + Duration::from_millis(if sites.len() == 1 { 100 } else { 5 });
        futex::wait(sites[0].bell(), heard[0], futex::ANY, Some(until.map_or(slice, |until| until.min(slice))), true);
    }
}
