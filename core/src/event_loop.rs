//! Event loops that read a server's answers themselves: then no thread of the library stands between the two.
//!
//! For each server one event loop of the process has a connection of its own, once it has asked a few times. What it asks is
//! written by the thread that asks, and the answer is read by that thread if it comes at once, else by the loop. Whatever is
//! unusual goes the other way, over [`offload`](crate::offload), and so does an answer that the loop does not come to read
//! for a while.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Weak};

use crate::sync::Guarded;
use crate::sys::fork::Unshared;

/// A connection on which one thing at a time is asked, and the answer is read by whoever watches it.
pub(crate) trait Exchange: Send + Sync {
    /// The descriptor, doubled.
    fn descriptor(&self) -> io::Result<OwnedFd>;
    /// It is watched from now on.
    fn start(&self);
    /// What was read; nothing for the end.
    fn feed(&self, bytes: &[u8]);
    /// Reads what has come; whether more can.
    fn read(&self) -> bool;
    /// Nobody watches any more: what is under way goes on elsewhere.
    fn give_up(&self);
}

/// What core knows of an event loop.
#[derive(Clone)]
pub struct EventLoop(Arc<Inner>);

type Watch = Box<dyn Fn(Watched) + Send + Sync>;

struct Inner {
    /// None, if it watches nothing.
    watch: Option<Watch>,
    watched: Guarded<Vec<Weak<dyn Exchange>>>,
}

impl EventLoop {
    /// `watch` is called with each connection that the loop is to watch, on any thread. It is short and calls nothing of this
    /// crate.
    pub fn new(watch: impl Fn(Watched) + Send + Sync + 'static) -> EventLoop {
        EventLoop(Arc::new(Inner { watch: Some(Box::new(watch)), watched: Guarded::default() }))
    }

    /// One that watches nothing: threads of the library do it all.
    #[must_use]
    pub fn blind() -> EventLoop {
        EventLoop(Arc::new(Inner { watch: None, watched: Guarded::default() }))
    }

    /// The loop ends: what it still waits for goes on without it. So it does when the last clone is dropped.
    pub fn close(&self) {
        self.0.close();
    }

    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server has connections"))]
    pub(crate) fn is_blind(&self) -> bool {
        self.0.watch.is_none()
    }

    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server has connections"))]
    pub(crate) fn watch(&self, exchange: Arc<dyn Exchange>) {
        let Some(watch) = &self.0.watch else { return };
        let mut watched = self.0.watched.lock();
        watched.retain(|one| one.strong_count() > 0);
        watched.push(Arc::downgrade(&exchange));
        drop(watched);
        watch(Watched(exchange));
    }

    /// What it is known by to those that must not keep it alive.
    #[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server has connections"))]
    pub(crate) fn mark(&self) -> Mark {
        Mark(Arc::downgrade(&self.0))
    }
}

impl Inner {
    fn close(&self) {
        let watched = std::mem::take(&mut *self.watched.lock());
        for exchange in watched.iter().filter_map(Weak::upgrade) {
            exchange.give_up();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Tells one event loop from another.
#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server has connections"))]
pub(crate) struct Mark(Weak<Inner>);

#[cfg_attr(not(feature = "redis"), allow(dead_code, reason = "only an engine with a server has connections"))]
impl Mark {
    pub(crate) fn is_of(&self, event_loop: &EventLoop) -> bool {
        std::ptr::eq(self.0.as_ptr(), Arc::as_ptr(&event_loop.0))
    }
}

/// A connection that an event loop is to watch until it ends: [`Watched::start`] once it does, then
/// [`Watched::read`] whenever there is something to read, or [`Watched::feed`] with what was read. All of it on the loop's thread;
/// what was waited for is told from within.
#[derive(Clone)]
pub struct Watched(Arc<dyn Exchange>);

impl Watched {
    /// The descriptor to watch, doubled: whoever has it closes it. It does not block. Who may fork makes it [`Unforked`].
    ///
    /// # Errors
    /// Those of dup(2).
    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        self.0.descriptor()
    }

    /// It is watched from now on.
    pub fn start(&self) {
        self.0.start();
    }

    /// What was read of the descriptor; nothing for its end.
    pub fn feed(&self, bytes: &[u8]) {
        self.0.feed(bytes);
    }

    /// Reads what has come; false at the end, after which it needs not be watched.
    pub fn read(&self) -> bool {
        self.0.read()
    }
}

/// A descriptor that forked children do not have. It is closed when this is dropped.
pub struct Unforked(Unshared<OwnedFd>);

impl Unforked {
    /// Its number; `None` in a forked child.
    #[must_use]
    pub fn number(&self) -> Option<RawFd> {
        self.0.get().ok().map(AsRawFd::as_raw_fd)
    }
}

impl From<OwnedFd> for Unforked {
    fn from(descriptor: OwnedFd) -> Unforked {
        Unforked(Unshared::new(descriptor))
    }
}
