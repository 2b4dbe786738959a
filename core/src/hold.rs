//! `Hold`: one acquisition, and the proof of holding.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::backend::contract::Grant;
use crate::error::{Error, Result, ended, forked};
use crate::service::call;
use crate::session::{Inner, Session};
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sys::fork;

/// One acquisition. It belongs to whoever has it, not to a thread. Dropping it releases, as well as that can be done
/// without telling of an error: [`Hold::release`] tells.
#[must_use = "a hold that is dropped at once is released at once"]
pub struct Hold {
    pub(crate) mutex: Arc<Inner>,
    token: u64,
    abandoned: bool,
    epoch: u32,
    ended: AtomicBool,
    /// Its drop does not release.
    left: bool,
}

impl Hold {
    #[inline]
    pub(crate) fn new(mutex: Arc<Inner>, grant: Grant) -> Hold {
        Hold {
            mutex,
            token: grant.token,
            abandoned: grant.abandoned,
            epoch: fork::epoch(),
            ended: AtomicBool::new(false),
            left: false,
        }
    }

    pub(crate) fn left(mutex: Arc<Inner>, token: u64) -> Hold {
        let mut hold = Hold::new(mutex, Grant { token, abandoned: false });
        hold.left = true;
        hold
    }

    /// The fencing token: larger than that of every earlier hold of the name. Hand it to what the lock protects,
    /// and let that refuse a smaller one than it has seen.
    ///
    /// ```
    /// let jobs = ipcmutex::Mutex::open("spm:token")?;
    /// let first = jobs.acquire()?.token(); // released at once
    /// assert!(jobs.acquire()?.token() > first);
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Whether the previous hold ended without a release: what it was doing may be half done.
    #[must_use]
    pub fn abandoned(&self) -> bool {
        self.abandoned
    }

    /// Whether it still stands. No I/O.
    ///
    /// # Errors
    /// LOST; NOT_OWNER if it was released; FORKED in a child.
    pub fn check(&self) -> Result<()> {
        let session = self.live("check")?;
        session.backend.check(self.token).map_err(|error| self.mutex.named(error))
    }

    /// Renews the lease to `ttl`, or to the URL's.
    ///
    /// # Errors
    /// UNSUPPORTED where there is no lease; INVALID for a lease that the URL could not name; LOST, NOT_OWNER,
    /// FORKED; UNAVAILABLE if the server does not answer.
    pub fn extend(&self, ttl: Option<Duration>) -> Result<()> {
        let session = self.live("extend")?;
        session.backend.extend(self.token, ttl).map_err(|error| self.mutex.named(error))
    }

    /// How long the hold lasts for certain without a renewal; `None` if it has no lease.
    #[must_use]
    pub fn valid_for(&self) -> Option<Duration> {
        self.live("check").ok()?.backend.valid_for(self.token)
    }

    /// Calls `callback` once, on a library thread, if the hold is lost; never if it is released. Of an `mpm:` hold it is told up to a
    /// second late: for as long as the hold lasts that thread looks once a second.
    ///
    /// ```
    /// use std::sync::mpsc;
    ///
    /// let jobs = ipcmutex::Mutex::open("spm:lost")?;
    /// let hold = jobs.acquire()?;
    /// let (tell, told) = mpsc::channel();
    /// hold.on_lost(move |error| tell.send(error).expect("it is awaited"))?;
    /// jobs.break_lock()?;
    /// assert_eq!(told.recv().expect("it is told").kind(), ipcmutex::ErrorKind::Lost);
    /// # Ok::<(), ipcmutex::Error>(())
    /// ```
    ///
    /// # Errors
    /// NOT_OWNER if it was released; FORKED in a child.
    pub fn on_lost(&self, callback: impl FnOnce(Error) + Send + 'static) -> Result<()> {
        let session = self.live("on_lost")?;
        let mutex = Arc::downgrade(&self.mutex);
        let told = Arc::new(Told::by(move |error: Error| {
            callback(match mutex.upgrade() {
                Some(mutex) => mutex.named(error),
                None => error,
            });
        }));
        let heard = told.clone();
        session.backend.on_lost(self.token, Box::new(move |error| heard.tell(error))).map_err(|error| {
            told.settle(false);
            self.mutex.named(error)
        })?;
        // The engine has it on its list before this is asked: a release sees it there, or is seen here.
        session.fence();
        let stands = self.stands(session);
        told.settle(stands);
        if stands { Ok(()) } else { Err(self.mutex.named(ended("on_lost"))) }
    }

    /// Ends this hold, and no other.
    ///
    /// # Errors
    /// LOST if it was gone; NOT_OWNER if it was released already, through the handle; FORKED in a child;
    /// UNAVAILABLE if a server does not answer: then it ends with its lease.
    pub fn release(mut self) -> Result<()> {
        let before = std::mem::replace(self.ended.get_mut(), true);
        self.end_first(before)
    }

    /// [`Hold::release`] for who shares the hold: a second call is NOT_OWNER.
    ///
    /// # Errors
    /// As [`Hold::release`].
    pub fn end(&self) -> Result<()> {
        self.end_first(self.ended.swap(true, Ordering::AcqRel))
    }

    fn end_first(&self, before: bool) -> Result<()> {
        self.may_end(before)?.end(self.token)
    }

    /// It may be released, once.
    pub(crate) fn ending(&self) -> Result<&Arc<Inner>> {
        self.may_end(self.ended.swap(true, Ordering::AcqRel))
    }

    fn may_end(&self, before: bool) -> Result<&Arc<Inner>> {
        if self.epoch != fork::epoch() {
            return Err(self.mutex.named(forked("release")));
        }
        if before {
            return Err(self.mutex.named(ended("release")));
        }
        Ok(&self.mutex)
    }

    /// Leaves the hold to its mutex, which knows it by its token: [`Mutex::left`](crate::Mutex::left). For a binding
    /// whose own objects are the holds. The mutex releases it when it is closed or dropped, if nobody did before.
    pub fn leave(mut self) -> u64 {
        self.left = true;
        self.token
    }

    /// Whether it was neither released nor inherited. It may be lost all the same.
    #[must_use]
    pub fn is_live(&self) -> bool {
        self.epoch == fork::epoch() && self.mutex.session().is_ok_and(|session| self.stands(session))
    }

    fn live(&self, operation: &'static str) -> Result<&Session> {
        if self.epoch != fork::epoch() {
            return Err(self.mutex.named(forked(operation)));
        }
        let session = self.mutex.session()?;
        if self.stands(session) { Ok(session) } else { Err(self.mutex.named(ended(operation))) }
    }

    fn stands(&self, session: &Session) -> bool {
        !self.ended.load(Ordering::Acquire) && self.mutex.not_ended(session, self.token)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        if !self.left && !*self.ended.get_mut() && self.epoch == fork::epoch() {
            // Best effort: a loss was told by `check` and `on_lost`, and nobody is left to hear of it here.
            let _ = self.mutex.end(self.token);
        }
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold").field("token", &self.token).field("abandoned", &self.abandoned).finish_non_exhaustive()
    }
}

/// Who is to hear of a loss, once. To an engine a hold that another thread releases as somebody begins to listen looks like one
/// that is lost: so nothing is told before it is known that it was not released.
struct Told<F>(Guarded<Listener<F>>);

enum Listener<F> {
    Begins(F),
    /// And was to be told meanwhile.
    Early(F, Error),
    Listens(F),
    /// It was told, or is not to be.
    Over,
}

impl<F: FnOnce(Error) + Send + 'static> Told<F> {
    fn by(callback: F) -> Told<F> {
        Told(Guarded::new(Listener::Begins(callback)))
    }

    /// On the callback thread.
    fn tell(&self, error: Error) {
        let mut listener = self.0.lock();
        match std::mem::replace(&mut *listener, Listener::Over) {
            Listener::Begins(callback) => *listener = Listener::Early(callback, error),
            Listener::Listens(callback) => {
                drop(listener);
                callback(error);
            }
            Listener::Early(..) | Listener::Over => {}
        }
    }

    /// It listens from now on, unless the hold was released.
    fn settle(&self, stands: bool) {
        let mut listener = self.0.lock();
        let before = std::mem::replace(&mut *listener, Listener::Over);
        match before {
            Listener::Begins(callback) if stands => *listener = Listener::Listens(callback),
            Listener::Early(callback, error) if stands => {
                drop(listener);
                call::run(Box::new(move || callback(error)));
            }
            // What the callback has is let go of outside the lock.
            released => {
                drop(listener);
                drop(released);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Mutex;
    use crate::error::ErrorKind;

    #[test]
    fn no_hold_has_the_token_zero() {
        let mutex = Mutex::open("spm:token-zero").unwrap();
        assert!(!mutex.left(0).is_live());
        assert_eq!(mutex.left(0).check().unwrap_err().kind(), ErrorKind::NotOwner);
        assert_eq!(mutex.left(0).release().unwrap_err().kind(), ErrorKind::NotOwner);
    }

    struct Asks(Mutex, std::sync::mpsc::Sender<()>);

    impl Drop for Asks {
        fn drop(&mut self) {
            self.0.status().expect("it answers");
            self.1.send(()).expect("it is waited for");
        }
    }

    #[test]
    fn what_a_listener_has_may_ask_the_lock_when_it_is_let_go_of() {
        let folder = tempfile::tempdir().unwrap();
        for url in ["spm:listener-asks".to_owned(), format!("mpm:{}", folder.path().join("lock").display())] {
            let mutex = Mutex::open(&url).unwrap();
            let (asked, told) = std::sync::mpsc::channel();
            let asks = Asks(mutex.clone(), asked);
            let hold = mutex.acquire().unwrap();
            hold.on_lost(move |_| drop(asks)).unwrap();
            let releases = std::thread::spawn(move || hold.release());
            told.recv_timeout(std::time::Duration::from_secs(20))
                .unwrap_or_else(|_| panic!("{url}: it waits for itself"));
            releases.join().unwrap().unwrap();
        }
    }
}
