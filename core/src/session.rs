//! What an open handle is in one process: its engine, the hold that is current through it, its waits.

use std::sync::Arc;

use crate::backend::contract::{Backend, Grant};
use crate::backend::open::{self, Origin};
use crate::biased::Biased;
use crate::cancel::Pending;
use crate::error::{Error, ErrorKind, Result, ended, forked};
use crate::service::Job;
use crate::service::lane::Lane;
use crate::service::offload::{offload, wanted};
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::fork::PerProcess;
use crate::sys::pinned;
use crate::url::LockUrl;
use crate::wait::{self, Waiting};

/// A handle, over all processes that a fork has given it to.
pub(crate) struct Inner {
    url: LockUrl,
    origin: Origin,
    session: PerProcess<Session>,
    closed: AtomicBool,
    /// Acquisitions without a thread of their own, on their way to a server.
    pub(crate) starts: Lane,
}

/// What one process has of the handle.
pub(crate) struct Session {
    pub(crate) backend: Arc<dyn Backend>,
    /// The token of the hold that is current through this handle; 0 is none.
    current: Biased,
    /// Tokens that were current and had to make way: their holds are lost, and not yet told so by a release.
    superseded: Guarded<Vec<u64>>,
    /// The parent held through this handle when it forked, and this process has not acquired since.
    inherited: AtomicBool,
    waits: Guarded<Vec<Pending>>,
}

/// Tokens of lost holds that are remembered for a late release.
const REMEMBERED: usize = 64;

impl Inner {
    /// Opened in this process.
    pub(crate) fn open(url: LockUrl) -> Result<Inner> {
        pinned::stay();
        // A forked child opens it anew, and a server's PEM files are read again: from wherever the process is by then.
        let url = url.into_rooted();
        let mut inner = Inner {
            url,
            origin: Origin::default(),
            session: PerProcess::new(),
            closed: AtomicBool::new(false),
            starts: Lane::new(),
        };
        inner.origin = Origin::of(&inner.url).map_err(|error| inner.named(error))?;
        inner.session()?;
        log::debug!("open {}", inner.url.redacted());
        Ok(inner)
    }

    pub(crate) fn url(&self) -> &LockUrl {
        &self.url
    }

    pub(crate) fn session(&self) -> Result<&Session> {
        self.session.get_or_try_init(|parent| {
            // Before the engine, which may start threads.
            let current = Biased::new(0);
            let backend = open::open(&self.url, &self.origin).map_err(|error| self.named(error))?;
            let inherited = parent.is_some_and(Session::leaves_a_hold);
            Ok(Session {
                backend,
                current,
                superseded: Guarded::default(),
                inherited: AtomicBool::new(inherited),
                waits: Guarded::default(),
            })
        })
    }

    /// The session, for what needs a hold of it: a child that has not used the mutex has none, and opens nothing to say so.
    #[inline]
    pub(crate) fn used_session(&self, operation: &'static str) -> Result<&Session> {
        match self.session.get() {
            Some(session) => Ok(session),
            None => Err(self.unused(operation)),
        }
    }

    #[cold]
    fn unused(&self, operation: &'static str) -> Error {
        let inherited = self.session.of_parent().is_some_and(Session::leaves_a_hold);
        self.named(self.nothing_held(inherited, operation))
    }

    #[inline]
    pub(crate) fn open_session(&self) -> Result<&Session> {
        if self.closed.load(Ordering::Relaxed) {
            return Err(self.named(closed("acquire")));
        }
        self.session()
    }

    #[cold]
    pub(crate) fn named(&self, error: Error) -> Error {
        let error = error.with_url(self.url.redacted().clone());
        let level = match error.kind() {
            ErrorKind::Timeout | ErrorKind::Canceled | ErrorKind::Closed => log::Level::Debug,
            _ => log::Level::Warn,
        };
        log::log!(level, "{error}");
        error
    }

    /// Has a library thread do what asks a server for the lock, behind what came before: they line up as they were asked for.
    pub(crate) fn ask_later(self: &Arc<Inner>, job: Job) {
        if self.starts.push(wanted(job)) {
            self.drain_starts();
        }
    }

    pub(crate) fn drain_starts(self: &Arc<Inner>) {
        let inner = self.clone();
        offload(move || inner.starts.drain());
    }

    pub(crate) fn register(&self, session: &Session, pending: Pending) {
        log::debug!("acquire {}: waiting", self.url.redacted());
        let mut waits = session.waits.lock();
        if waits.len() == waits.capacity() {
            waits.retain(|wait| !wait.is_over());
        }
        waits.push(pending.clone());
        drop(waits);
        if self.closed.load(Ordering::SeqCst) {
            pending.end(self.named(closed("acquire")));
        }
    }

    #[inline]
    pub(crate) fn wait(&self, session: &Session, waiting: Waiting<'_>) -> Result<Grant> {
        wait::block(&session.backend, waiting, |pending| self.register(session, pending))
            .map_err(|error| self.named(error))
    }

    /// Makes `grant` the handle's current hold.
    #[inline]
    pub(crate) fn adopt(&self, session: &Session, grant: Grant) -> Result<()> {
        if let Err(before) = session.current.compare_exchange(0, grant.token) {
            session.displace(before, grant.token);
        }
        if session.inherited.load(Ordering::Relaxed) {
            session.inherited.store(false, Ordering::Relaxed);
        }
        if self.closed.load(Ordering::SeqCst) && session.current.compare_exchange(grant.token, 0).is_ok() {
            session.backend.give_back(grant);
            return Err(self.named(closed("acquire")));
        }
        Ok(())
    }

    /// The token of the hold that is current.
    pub(crate) fn token(&self) -> Result<u64> {
        let session = self.used_session("token")?;
        match session.current.load() {
            0 => Err(self.named(self.nothing_held(session.inherited.load(Ordering::Acquire), "token"))),
            token => Ok(token),
        }
    }

    pub(crate) fn is_held(&self) -> bool {
        self.session.get().is_some_and(|session| session.current.load() != 0)
    }

    fn nothing_held(&self, inherited: bool, operation: &'static str) -> Error {
        if inherited {
            forked(operation)
        } else if self.closed.load(Ordering::SeqCst) {
            closed(operation)
        } else {
            Error::new(ErrorKind::NotOwner, operation, "still not acquired: nothing is held through this handle")
                .with_help("acquire it first")
        }
    }

    /// The current hold is nobody's from here on, and must be released: its token.
    #[inline]
    pub(crate) fn let_go(&self, session: &Session) -> Result<u64> {
        match session.current.swap(0) {
            0 => Err(self.named(self.nothing_held(session.inherited.load(Ordering::Acquire), "release"))),
            token => Ok(token),
        }
    }

    /// Ends the hold with `token`, and no other.
    pub(crate) fn end(&self, token: u64) -> Result<()> {
        let session = self.session()?;
        self.let_go_of(session, token)?;
        session.backend.release(token).map_err(|error| self.named(error))
    }

    /// The hold with `token` is nobody's from here on, and must be released.
    pub(crate) fn let_go_of(&self, session: &Session, token: u64) -> Result<()> {
        let current = || session.current.compare_exchange(token, 0).is_ok();
        let superseded = || {
            let mut superseded = session.superseded.lock();
            let at = superseded.iter().position(|lost| *lost == token);
            at.map(|at| superseded.remove(at)).is_some()
        };
        // 0 is current where none is.
        let mine = token != 0 && (current() || superseded());
        if mine { Ok(()) } else { Err(self.named(ended("release"))) }
    }

    /// Whether the hold with `token` was not ended yet: it may still be lost.
    pub(crate) fn not_ended(&self, session: &Session, token: u64) -> bool {
        token != 0 && (session.current.load() == token || session.superseded.lock().contains(&token))
    }

    pub(crate) fn close(&self) -> Result<()> {
        if self.closed.swap(true, Ordering::SeqCst) {
            return Err(self.named(closed("close")));
        }
        let Some(session) = self.session.get() else { return Ok(()) };
        let waits = std::mem::take(&mut *session.waits.lock());
        for wait in waits {
            wait.end(self.named(closed("acquire")));
        }
        match session.current.swap(0) {
            0 => Ok(()),
            token => session.backend.release(token).map_err(|error| self.named(error)),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(session) = self.session.get() {
            let token = session.current.swap(0);
            if token != 0 {
                // Best effort: nobody is left to hear of an error, and a lost hold is nobody's.
                let _ = session.backend.release(token);
            }
        }
    }
}

impl Session {
    /// Who ends a hold and does not see, after that, what this thread stored before, is seen to have ended it.
    pub(crate) fn fence(&self) {
        self.current.fence();
    }

    /// Of a parent: whether it held, or its own parent did and it has not acquired since.
    fn leaves_a_hold(&self) -> bool {
        self.current.load() != 0 || self.inherited.load(Ordering::Acquire)
    }

    /// Makes `token` the current hold in place of `before`. Two grants of one name cannot live at once: one is lost, and
    /// remembered for its release.
    #[cold]
    fn displace(&self, mut before: u64, token: u64) {
        loop {
            // This is the lost one if it was told late: broken on its way here, while another thread took the lock anew.
            if before > token && self.backend.check(before).is_ok() {
                return self.supersede(token);
            }
            match self.current.compare_exchange(before, token) {
                Ok(()) if before == 0 => return,
                Ok(()) => return self.supersede(before),
                Err(now) => before = now,
            }
        }
    }

    fn supersede(&self, token: u64) {
        let mut superseded = self.superseded.lock();
        if superseded.len() == REMEMBERED {
            superseded.remove(0);
        }
        superseded.push(token);
    }
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "still not opened: the mutex is closed")
}
