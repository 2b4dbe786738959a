//! Who notices a death while everybody sleeps: one thread per process, while somebody waits for longer than a moment.
//!
//! inotify tells of IN_CLOSE_WRITE when a process that has the file mapped ends, however it ends, and of a file that is
//! moved or removed. That is a hint, and may come just before the kernel drops the byte locks: the verdict is asked for at
//! once, after 1 and after 10 ms. And every 250 ms, in case all hints were lost.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::inotify;
use rustix::io::Errno;

use super::site::Site;
use crate::sync::Guarded;
use crate::sys::fork::{MarkedFile, PerProcess};
use crate::sys::thread;

const RECHECK: Duration = Duration::from_millis(250);
const SECOND_LOOKS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(10)];

const WATCHED: inotify::WatchFlags = inotify::WatchFlags::CLOSE_WRITE
    .union(inotify::WatchFlags::DELETE_SELF)
    .union(inotify::WatchFlags::MOVE_SELF)
    .union(inotify::WatchFlags::ATTRIB);

#[derive(Default)]
struct Pulse {
    sites: Vec<Watched>,
    files: Option<Arc<Files>>,
}

struct Watched {
    site: Arc<Site>,
    watch: Option<i32>,
    /// Nobody has looked at it yet: what happened before the watch was there tells no event.
    fresh: bool,
    /// When to look next, event or not.
    next: Instant,
    second_looks: Vec<Instant>,
}

struct Files {
    events: MarkedFile,
    changed: MarkedFile,
}

impl Files {
    fn new() -> Result<Files, Errno> {
        let events =
            MarkedFile::opened(|| inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK))?;
        let changed = MarkedFile::opened(|| eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK))?;
        Ok(Files { events, changed })
    }
    fn mark(&self) {
        self.events.mark();
        self.changed.mark();
    }
    /// What happens at `path` is told from now on. Without a watch (their number is limited) the looks every 250 ms remain.
    fn watch(&self, path: &Path) -> Option<i32> {
        inotify::add_watch(self.events.get()?, path, WATCHED).ok()
    }
    fn ring(&self) {
        // Full is as good as rung. If the program has closed it, the thread looks within 250 ms.
        let _ = self.changed.get().map(|changed| rustix::io::write(changed, &1u64.to_ne_bytes()));
    }
}

static PULSE: PerProcess<Guarded<Pulse>> = PerProcess::new();

/// A moment off 250 ms, so that processes that began to wait together do not look together.
fn soon() -> Instant {
    let now = Instant::now();
    let jitter =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().subsec_nanos() % 50;
    now + RECHECK - Duration::from_millis(jitter.into())
}

/// Watches `site` until it is forgotten. `false` if neither a descriptor nor a thread can be had: then who waits looks itself.
pub(super) fn watch(site: Arc<Site>) -> bool {
    let mut pulse = PULSE.get_or_init(Guarded::default).lock();
    let files = match &pulse.files {
        Some(files) => files.clone(),
        None => {
            let Ok(files) = Files::new().map(Arc::new) else { return false };
            let for_thread = files.clone();
            if thread::spawn("ipcmutex-pulse", thread::SMALL_STACK, move || run(for_thread)).is_err() {
                return false;
            }
            pulse.files = Some(files.clone());
            files
        }
    };
    let watch = files.watch(&site.path);
    pulse.sites.push(Watched { site, watch, fresh: true, next: soon(), second_looks: Vec::new() });
    files.ring();
    true
}

/// Ends what `watch` began.
pub(super) fn forget(site: &Site) {
    let Some(pulse) = PULSE.get() else { return };
    let mut pulse = pulse.lock();
    let Some(at) = pulse.sites.iter().position(|watched| std::ptr::eq(&*watched.site, site)) else { return };
    let gone = pulse.sites.swap_remove(at);
    if let Some(files) = &pulse.files {
        if let (Some(watch), Some(events)) = (gone.watch, files.events.get()) {
            // It fails if the file, and its watch with it, is gone.
            let _ = inotify::remove_watch(events, watch);
        }
        if pulse.sites.is_empty() {
            files.ring();
        }
    }
    drop(pulse);
    drop(gone);
}

fn run(mut files: Arc<Files>) {
    let Some(pulse) = PULSE.get() else { return };
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    {
        // Whoever began it may have ended, or closed them, by then: under the lock nobody else reads or writes them.
        let _state = pulse.lock();
        files.mark();
    }
    loop {
        let due = {
            let mut state = pulse.lock();
            if state.sites.is_empty() {
                state.files = None;
                return;
            }
            let now = Instant::now();
            let mut due: Vec<(Arc<Site>, bool)> = Vec::new();
            for watched in &mut state.sites {
                let looks = watched.second_looks.len();
                watched.second_looks.retain(|at| *at > now);
                if watched.second_looks.len() < looks {
                    due.push((watched.site.clone(), true));
                } else if watched.next <= now {
                    due.push((watched.site.clone(), false));
                    watched.next = soon();
                }
            }
            due
        };
        for (site, event) in due {
            site.recheck(event);
        }
        let fresh: Vec<Arc<Site>> = {
            let mut state = pulse.lock();
            let fresh = state
                .sites
                .iter_mut()
                .filter_map(|watched| std::mem::take(&mut watched.fresh).then(|| watched.site.clone()));
            fresh.collect()
        };
        for site in fresh {
            look(pulse, &site);
        }
        let until = {
            let state = pulse.lock();
            state.sites.iter().flat_map(|watched| watched.second_looks.iter().chain([&watched.next])).min().copied()
        };
        let left = until.map_or(Duration::ZERO, |until| until.saturating_duration_since(Instant::now()));
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        let mut ready = [
            PollFd::from_borrowed_fd(files.events.unproved(), PollFlags::IN),
            PollFd::from_borrowed_fd(files.changed.unproved(), PollFlags::IN),
        ];
        // An interrupted poll is a look too many, no more.
        let _ = poll(&mut ready, Some(&timeout));
        let (Some(events), Some(changed)) = (files.events.get(), files.changed.get()) else {
            files.events.disown();
            files.changed.disown();
            match renew(pulse) {
                Some(fresh) => files = fresh,
                // The looks every 250 ms remain.
                None => std::thread::sleep(left.min(RECHECK)),
            }
            continue;
        };
        let mut count = [0; 8];
        let _ = rustix::io::read(changed, &mut count);
        let mut events = inotify::Reader::new(events, &mut buffer);
        let mut heard = Vec::new();
        while let Ok(event) = events.next() {
            heard.push(event.wd());
        }
        if heard.is_empty() {
            continue;
        }
        let sites: Vec<Arc<Site>> = {
            let state = pulse.lock();
            let watched =
                state.sites.iter().filter(|watched| watched.watch.is_some_and(|watch| heard.contains(&watch)));
            watched.map(|watched| watched.site.clone()).collect()
        };
        for site in sites {
            look(pulse, &site);
        }
    }
}

/// New descriptors for those that the program has closed, as some programs close whatever they do not know.
fn renew(pulse: &Guarded<Pulse>) -> Option<Arc<Files>> {
    let fresh = Arc::new(Files::new().ok()?);
    fresh.mark();
    let mut state = pulse.lock();
    state.files = Some(fresh.clone());
    for watched in &mut state.sites {
        watched.watch = fresh.watch(&watched.site.path);
        // What happened meanwhile told no event.
        watched.next = Instant::now();
    }
    Some(fresh)
}

/// A look because of an event, and if that may have been too early, or it is somebody else's turn, two more.
fn look(pulse: &Guarded<Pulse>, site: &Arc<Site>) {
    if site.recheck(true) {
        let now = Instant::now();
        let mut state = pulse.lock();
        if let Some(watched) = state.sites.iter_mut().find(|watched| Arc::ptr_eq(&watched.site, site)) {
            watched.second_looks = SECOND_LOOKS.iter().map(|after| now + *after).collect();
        }
    }
}
