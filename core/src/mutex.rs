//! `Mutex`: an open lock. It sees only the backend trait.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use crate::backend::contract::{Grant, State, Status};
use crate::cancel::Pending;
use crate::error::{ErrorKind, Result, canceled};
use crate::event_loop::EventLoop;
use crate::hold::Hold;
use crate::service::offload::offload;
use crate::session::{Inner, Session};
use crate::timeout::Timeout;
use crate::url::LockUrl;
use crate::wait::{self, FutureWait, Waiting};
use crate::waiter::Notify;

/// An open lock, named by a URL. Cheap to clone; clones are one handle. Any thread may use it.
///
/// Two `Mutex`es of one URL exclude each other, and so do two acquisitions through one `Mutex`: the second waits.
///
/// # Fork
/// In a forked child it works, opened anew, and holds nothing.
#[derive(Clone)]
pub struct Mutex(pub(crate) Arc<Inner>);

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
        Ok(Mutex(Arc::new(Inner::open(url)?)))
    }

    /// The lock's URL, its paths absolute. Shown, it hides its secret.
    #[must_use]
    pub fn url(&self) -> &LockUrl {
        self.0.url()
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
            Ok(Some(grant)) => Ok(Some(hold(&self.0, session, grant)?)),
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
        hold(&self.0, session, grant)
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
        let pending = wait::start(&session.backend, timeout, inline, telling(&self.0, done), register, away);
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
        let pending = wait::start_on(&session.backend, on, timeout, telling(&self.0, done), register, place);
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
        self.0.token()
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
        self.0.is_held()
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
        self.0.close()
    }
}

impl Hold {
    /// The mutex that it was taken through.
    #[must_use]
    pub fn mutex(&self) -> Mutex {
        Mutex(self.mutex.clone())
    }
}

impl fmt::Debug for Mutex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Mutex({}, {})", self.url(), if self.is_held_here() { "locked" } else { "unlocked" })
    }
}

/// Tells `done` of a grant as a hold.
fn telling(inner: &Arc<Inner>, done: impl FnOnce(Result<Hold>) + Send + 'static) -> Notify {
    let inner = inner.clone();
    Box::new(move |outcome| {
        done(match outcome {
            Ok(grant) => inner.session().and_then(|session| hold(&inner, session, grant)),
            Err(error) => Err(inner.named(error)),
        });
    })
}

#[inline]
fn hold(inner: &Arc<Inner>, session: &Session, grant: Grant) -> Result<Hold> {
    inner.adopt(session, grant)?;
    Ok(Hold::new(inner.clone(), grant))
}

/// A pending acquisition that has no thread.
#[derive(Clone)]
pub struct Wait(Pending);

impl Wait {
    /// Ends the wait: its callback is told CANCELED. `false` if it has an outcome already, and nothing changes.
    pub fn cancel(&self) -> bool {
        self.0.end(canceled())
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
            Some(Ok(grant)) => Poll::Ready(hold(inner, session, grant)),
            Some(Err(error)) => Poll::Ready(Err(inner.named(error))),
        }
    }
}
