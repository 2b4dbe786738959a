//! `Mutex`: an open lock. It sees only the backend trait.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::backend::contract::{Backend, Grant, State, Status};
use crate::backend::open::{self, Origin};
use crate::biased::Biased;
use crate::error::{Error, ErrorKind, Result, ended, forked};
use crate::event_loop::EventLoop;
use crate::hold::Hold;
use crate::service::offload::{Job, Lane, offload};
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::fork::PerProcess;
use crate::sys::pinned;
use crate::timeout::Timeout;
use crate::url::LockUrl;
use crate::wait::{self, FutureWait, Notify, Pending, Waiting};

/// An open lock, named by a URL. Cheap to clone; clones are one handle. Any thread may use it.
///
/// Two `Mutex`es of one URL exclude each other, and so do two acquisitions through one `Mutex`: the second waits.
///
/// # Fork
/// In a forked child it works, opened anew, and holds nothing.
#[derive(Clone)]
pub struct Mutex(pub(crate) Arc<Inner>);

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

impl Mutex {
    /// Opens the lock that `url` names; it is not acquired.
    ///
    /// ```
    /// let jobs = ipcmutex::Mutex::open("spm:jobs")?; // or mpm:jobs, file:/srv/app/lock, rpm+redis://host/jobs
    /// assert!(ipcmutex::Mutex::open("smb:jobs").is_err_and(|error| error.to_string().contains("mpm")));
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// INVALID for a bad URL; for a lock file PERMISSION, UNSAFE, NO_SPACE, RESOURCE, IO or PROTOCOL; for Redis
    /// UNAVAILABLE, AUTH, CONFIG or PROTOCOL; UNSUPPORTED for an engine that is not built in.
    pub fn open(url: &str) -> Result<Mutex> {
        Mutex::open_url(LockUrl::parse(url)?)
    }

    /// [`Mutex::open`] with a URL that is parsed already.
    ///
    /// # Errors
    /// As [`Mutex::open`], without INVALID.
    pub fn open_url(url: LockUrl) -> Result<Mutex> {
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
        Ok(Mutex(Arc::new(inner)))
    }

    /// The lock's URL, its paths absolute. Shown, it hides its secret.
    #[must_use]
    pub fn url(&self) -> &LockUrl {
        &self.0.url
    }

    /// Acquires, as long as it takes.
    ///
    /// # Blocking
    /// The calling thread sleeps. First come, first served, as far as `fair=` says.
    ///
    /// # Errors
    /// CLOSED if the mutex is closed, also meanwhile; FORKED in a child that a signal's handler forks meanwhile; UNAVAILABLE if
    /// a server has not served for 5 s, or for `connect_timeout=` if that is longer; else what the engine meets.
    pub fn acquire(&self) -> Result<Hold> {
        self.acquire_with(Waiting::default())
    }

    /// Acquires if that is possible at once; `None` if it is held.
    ///
    /// ```
    /// let jobs = ipcmutex::Mutex::open("spm:try")?;
    /// let hold = jobs.try_acquire()?.expect("nobody holds it");
    /// assert!(jobs.try_acquire()?.is_none());
    /// hold.release()?;
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Mutex::acquire`].
    pub fn try_acquire(&self) -> Result<Option<Hold>> {
        let session = self.0.open_session()?;
        match session.backend.try_take() {
            Ok(Some(grant)) => Ok(Some(self.0.hold(session, grant)?)),
            Ok(None) => Ok(None),
            Err(error) => Err(self.0.named(error)),
        }
    }

    /// [`Mutex::try_acquire`] without a `Hold`, as [`Mutex::lock_with`]; `false` if it is held.
    ///
    /// # Errors
    /// As [`Mutex::acquire`].
    pub fn try_lock(&self) -> Result<bool> {
        let session = self.0.open_session()?;
        match session.backend.try_take() {
            Ok(Some(grant)) => self.0.adopt(session, grant).map(|()| true),
            Ok(None) => Ok(false),
            Err(error) => Err(self.0.named(error)),
        }
    }

    /// Acquires within `limit`; `None` if that was not possible in time.
    ///
    /// ```
    /// use std::time::Duration;
    ///
    /// let jobs = ipcmutex::Mutex::open("spm:timeout")?;
    /// let hold = jobs.acquire_timeout(Duration::from_secs(5))?.expect("it is free");
    /// assert!(jobs.acquire_timeout(Duration::from_millis(10))?.is_none());
    /// drop(hold); // releases
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Mutex::acquire`].
    pub fn acquire_timeout(&self, limit: Duration) -> Result<Option<Hold>> {
        match self.acquire_with(Waiting { timeout: limit.into(), ..Waiting::default() }) {
            Ok(hold) => Ok(Some(hold)),
            Err(error) if error.kind() == ErrorKind::Timeout => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Acquires, with everything that may end the wait.
    ///
    /// ```
    /// use ipcmutex::{Cancel, ErrorKind, Mutex, Waiting};
    ///
    /// let jobs = Mutex::open("spm:cancel")?;
    /// let _hold = jobs.acquire()?;
    /// let cancel = Cancel::new();
    /// let ended = std::thread::scope(|scope| {
    ///     let wait = scope.spawn(|| jobs.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() }));
    ///     cancel.cancel(); // before the wait begins or meanwhile
    ///     wait.join().expect("no panic")
    /// });
    /// assert_eq!(ended.unwrap_err().kind(), ErrorKind::Canceled);
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Mutex::acquire`], and TIMEOUT (its text names the owner) and CANCELED.
    pub fn acquire_with(&self, waiting: Waiting<'_>) -> Result<Hold> {
        let session = self.0.open_session()?;
        let grant = self.0.wait(session, waiting)?;
        self.0.hold(session, grant)
    }

    /// [`Mutex::acquire_with`] without a `Hold`: the hold is the handle's, and [`Mutex::release`] ends it.
    ///
    /// # Errors
    /// As [`Mutex::acquire_with`].
    #[inline]
    pub fn lock_with(&self, waiting: Waiting<'_>) -> Result<()> {
        let session = self.0.open_session()?;
        let grant = self.0.wait(session, waiting)?;
        self.0.adopt(session, grant)
    }

    /// Acquires without a thread that waits; needs no runtime. Dropping the future cancels: it leaves the line, and never takes
    /// the lock afterwards. In a forked child, where the parent waits, dropping does nothing, and a poll says FORKED.
    ///
    /// # Blocking
    /// A poll waits for nobody: a server is asked by a thread of the library. In a forked child the first one opens the lock anew.
    ///
    /// ```
    /// async fn work(jobs: &ipcmutex::Mutex) -> ipcmutex::Result<u64> {
    ///     let hold = jobs.acquire_async().await?;
    ///     let token = hold.token();
    ///     hold.release()?;
    ///     Ok(token)
    /// }
    /// ```
    pub fn acquire_async(&self) -> Acquire {
        Acquire { mutex: self.clone(), wait: None }
    }

    /// Acquires without a thread that waits. `done` is called exactly once, on a library thread, perhaps before this returns.
    ///
    /// # Blocking
    /// The call waits for nobody: a server is asked by a thread of the library. In a forked child the first one opens the lock
    /// anew.
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// let jobs = ipcmutex::Mutex::open("spm:callback")?;
    /// let (tell, told) = mpsc::channel();
    /// jobs.acquire_callback(ipcmutex::Timeout::FOREVER, move |hold| tell.send(hold).expect("it is awaited"))?;
    /// told.recv().expect("it is called")?.release()?;
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// CLOSED and what opening anew after a fork meets; then `done` is not called.
    pub fn acquire_callback(&self, timeout: Timeout, done: impl FnOnce(Result<Hold>) + Send + 'static) -> Result<Wait> {
        self.start(timeout, false, done)
    }

    /// [`Mutex::acquire_callback`] for a `done` that is short and calls nothing of this crate: it may run on any
    /// thread, which spares a thread hop.
    ///
    /// # Errors
    /// As [`Mutex::acquire_callback`].
    pub(crate) fn acquire_inline(
        &self,
        timeout: Timeout,
        done: impl FnOnce(Result<Hold>) + Send + 'static,
    ) -> Result<Wait> {
        self.start(timeout, true, done)
    }

    fn start(&self, timeout: Timeout, inline: bool, done: impl FnOnce(Result<Hold>) + Send + 'static) -> Result<Wait> {
        let session = self.0.open_session()?;
        let register = |pending| self.0.register(session, pending);
        // Who does not line up waits for nobody's place.
        let away = |job| if timeout.is_try() { offload(job) } else { self.0.ask_later(job) };
        let pending = wait::start(&session.backend, timeout, inline, self.0.telling(done), register, away);
        Ok(Wait(pending))
    }

    /// [`Mutex::acquire_inline`] for an event loop. `place` is dropped when the first try is over.
    pub(crate) fn start_on(
        &self,
        on: &EventLoop,
        timeout: Timeout,
        done: impl FnOnce(Result<Hold>) + Send + 'static,
        place: impl Send + 'static,
    ) -> Result<Wait> {
        let session = self.0.open_session()?;
        let register = |pending| self.0.register(session, pending);
        let pending = wait::start_on(&session.backend, on, timeout, self.0.telling(done), register, place);
        Ok(Wait(pending))
    }

    /// Waits until nobody holds the lock, without keeping it: it stands in line like any waiter, and what it is granted
    /// it gives back at once, `abandoned` included.
    ///
    /// # Errors
    /// As [`Mutex::acquire_with`].
    pub fn wait_until_free(&self, waiting: Waiting<'_>) -> Result<()> {
        if self.status()?.state != State::Held {
            return Ok(());
        }
        let session = self.0.open_session()?;
        let grant = self.0.wait(session, waiting)?;
        session.backend.give_back(grant);
        Ok(())
    }

    /// Ends the hold that is current through this handle, however it was taken. Any thread may do so.
    ///
    /// # Errors
    /// NOT_OWNER if there is none; LOST if it was gone; FORKED in a child whose parent holds; UNAVAILABLE if a
    /// server does not answer (the hold then ends with its lease).
    #[inline]
    pub fn release(&self) -> Result<()> {
        let session = self.0.used_session("release")?;
        let token = self.0.let_go(session)?;
        session.backend.release(token).map_err(|error| self.0.named(error))
    }

    /// The token of the hold that is current through this handle.
    ///
    /// # Errors
    /// NOT_OWNER if there is none; FORKED in a child whose parent holds.
    pub fn token(&self) -> Result<u64> {
        let session = self.0.used_session("token")?;
        match session.current.load() {
            0 => Err(self.0.named(self.0.nothing_held(session.inherited.load(Ordering::Acquire), "token"))),
            token => Ok(token),
        }
    }

    /// The hold that was left to this mutex with [`Hold::leave`]; dropping this one does not release it. A token that is
    /// no hold's of this mutex is NOT_OWNER, told when it is used.
    ///
    /// ```
    /// let jobs = ipcmutex::Mutex::open("spm:left")?;
    /// let token = jobs.acquire()?.leave();
    /// jobs.left(token).check()?;
    /// assert!(jobs.try_acquire()?.is_none(), "it is still held");
    /// jobs.left(token).release()?;
    /// assert_eq!(jobs.left(token).release().unwrap_err().kind(), ipcmutex::ErrorKind::NotOwner);
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    pub fn left(&self, token: u64) -> Hold {
        Hold::left(self.0.clone(), token)
    }

    /// Whether a hold is current through this handle. No I/O; it may have been lost without this handle knowing.
    #[must_use]
    pub fn is_held_here(&self) -> bool {
        self.0.session.get().is_some_and(|session| session.current.load() != 0)
    }

    /// Who holds the lock, how many wait, and what it has been through.
    ///
    /// ```
    /// let jobs = ipcmutex::Mutex::open("spm:status")?;
    /// let _hold = jobs.acquire()?;
    /// let status = jobs.status()?;
    /// assert_eq!(status.state, ipcmutex::State::Held);
    /// assert_eq!(status.owner.expect("it is held").pid, std::process::id());
    /// assert_eq!(status.numbers.acquisitions, 1);
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// CLOSED, or what the engine meets.
    pub fn status(&self) -> Result<Status> {
        let session = self.0.open_session()?;
        session.backend.status().map_err(|error| self.0.named(error))
    }

    /// Takes the lock away from whoever holds it; whether somebody did. That hold is LOST and its token stale; the
    /// next hold is told that the lock was abandoned.
    ///
    /// ```
    /// let jobs = ipcmutex::Mutex::open("spm:break")?;
    /// let robbed = jobs.acquire()?;
    /// assert!(jobs.break_lock()?);
    /// assert!(jobs.acquire()?.abandoned());
    /// assert_eq!(robbed.release().unwrap_err().kind(), ipcmutex::ErrorKind::Lost);
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// CLOSED, or what the engine meets.
    pub fn break_lock(&self) -> Result<bool> {
        let session = self.0.open_session()?;
        session.backend.break_lock().map_err(|error| self.0.named(error))
    }

    /// Closes the handle: releases a hold taken through it and ends its waits with CLOSED.
    ///
    /// # Errors
    /// CLOSED if it was closed before; else as [`Mutex::release`], and then it is closed all the same.
    pub fn close(&self) -> Result<()> {
        if self.0.closed.swap(true, Ordering::SeqCst) {
            return Err(self.0.named(closed("close")));
        }
        let Some(session) = self.0.session.get() else { return Ok(()) };
        let waits = std::mem::take(&mut *session.waits.lock());
        for wait in waits {
            wait.end(self.0.named(closed("acquire")));
        }
        match session.current.swap(0) {
            0 => Ok(()),
            token => session.backend.release(token).map_err(|error| self.0.named(error)),
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

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mutex({}, {})", self.0.url, if self.is_held_here() { "locked" } else { "unlocked" })
    }
}

fn closed(operation: &'static str) -> Error {
    Error::new(ErrorKind::Closed, operation, "still not opened: the mutex is closed")
}

impl Inner {
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
    fn open_session(&self) -> Result<&Session> {
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
        if self.starts.push(job) {
            self.drain_starts();
        }
    }

    pub(crate) fn drain_starts(self: &Arc<Inner>) {
        let inner = self.clone();
        offload(move || inner.starts.drain());
    }

    fn register(&self, session: &Session, pending: Pending) {
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
    fn wait(&self, session: &Session, waiting: Waiting<'_>) -> Result<Grant> {
        wait::block(&session.backend, waiting, |pending| self.register(session, pending))
            .map_err(|error| self.named(error))
    }

    /// Makes `grant` the handle's current hold.
    #[inline]
    fn adopt(&self, session: &Session, grant: Grant) -> Result<()> {
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

    /// Tells `done` of a grant as a hold.
    fn telling(self: &Arc<Inner>, done: impl FnOnce(Result<Hold>) + Send + 'static) -> Notify {
        let inner = self.clone();
        Box::new(move |outcome| {
            done(match outcome {
                Ok(grant) => inner.session().and_then(|session| inner.hold(session, grant)),
                Err(error) => Err(inner.named(error)),
            });
        })
    }

    #[inline]
    fn hold(self: &Arc<Inner>, session: &Session, grant: Grant) -> Result<Hold> {
        self.adopt(session, grant)?;
        Ok(Hold::new(self.clone(), grant))
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

/// A pending acquisition that has no thread.
#[derive(Clone)]
pub struct Wait(Pending);

impl Wait {
    /// Ends the wait: its callback is told CANCELED. `false` if it has an outcome already, and nothing changes.
    pub fn cancel(&self) -> bool {
        self.0.end(Error::new(ErrorKind::Canceled, "acquire", "the wait was cancelled"))
    }

    /// Whether it has an outcome.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.0.is_over()
    }
}

/// The future of [`Mutex::acquire_async`]. It is on its way to the line from its first poll on.
#[must_use = "a future does nothing until it is awaited"]
pub struct Acquire {
    mutex: Mutex,
    wait: Option<FutureWait>,
}

impl Future for Acquire {
    type Output = Result<Hold>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<Hold>> {
        let this = &mut *self;
        let inner = &this.mutex.0;
        let session = match inner.open_session() {
            Ok(session) => session,
            Err(error) => {
                this.wait = None;
                return Poll::Ready(Err(error));
            }
        };
        let wait = this.wait.get_or_insert_with(|| {
            let register = |pending| inner.register(session, pending);
            FutureWait::start(&session.backend, register, |job| inner.ask_later(job))
        });
        match wait.poll(context.waker()) {
            None => Poll::Pending,
            Some(Ok(grant)) => Poll::Ready(inner.hold(session, grant)),
            Some(Err(error)) => Poll::Ready(Err(inner.named(error))),
        }
    }
}
