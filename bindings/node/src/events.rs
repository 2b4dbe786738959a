//! Outcomes on their way from any thread to one JavaScript environment.

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::IntoRawFd;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use ipcmutex::{EventLoop, EventWait, Timeout, Watched, offload};
use napi::bindgen_prelude::{BigInt, Either4, Env, Function};
use napi::threadsafe_function::{ThreadsafeFunction, ThreadsafeFunctionCallMode};
use napi_derive::napi;
use slab::Slab;

use crate::error::{Result, raise};
use crate::hold::{self, Taken, taken};
use crate::status::Status;
use crate::{mutex, opened};

type Bell = ThreadsafeFunction<(), (), (), napi::Status, false, true>;

/// What came of something.
enum Outcome {
    Done,
    Hold(ipcmutex::Hold),
    Mutex(ipcmutex::Mutex),
    Status(ipcmutex::Status),
    Flag(bool),
    /// A connection to watch.
    Watched(Watched),
}

thread_local! {
    /// What is told now is taken by JavaScript when this thread returns to it.
    static TAKEN_SOON: Cell<bool> = const { Cell::new(false) };
}

/// Who is told what came of one call: before that has returned it is given at once, and posted after that.
struct Tell {
    id: i64,
    shared: Arc<Shared>,
    call: Arc<Mutex<Call>>,
}

enum Call {
    Starting,
    Came(ipcmutex::Result<Outcome>),
    Returned,
}

impl Tell {
    fn tell(self, outcome: ipcmutex::Result<Outcome>) {
        let mut call = lock(&self.call);
        if matches!(*call, Call::Starting) {
            *call = Call::Came(outcome);
        } else {
            drop(call);
            self.shared.post(self.id, outcome);
        }
    }
}

/// One outcome, as JavaScript sees it. With a negative id: a descriptor to watch, its number turned round.
#[napi(object, object_from_js = false)]
pub struct Told {
    pub id: i64,
    /// The error's, if it failed.
    pub code: Option<String>,
    pub message: Option<String>,
    pub value: Option<Either4<Taken, u32, Status, bool>>,
}

#[derive(Default)]
struct Inbox {
    letters: Vec<(i64, ipcmutex::Result<Outcome>)>,
    /// The environment is gone, or going.
    closed: bool,
}

/// What other threads know of an environment.
#[derive(Default)]
pub struct Shared {
    inbox: Mutex<Inbox>,
    bell: OnceLock<Mutex<Bell>>,
    event_loop: OnceLock<EventLoop>,
    /// Touched by the environment's thread alone, as is what follows.
    waits: Mutex<HashMap<i64, EventWait>>,
    /// Connections that JavaScript reads.
    watched: Mutex<Slab<Watched>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Tells the environment. Short, and it calls nothing of core: engines call it from within.
    fn post(&self, id: i64, outcome: ipcmutex::Result<Outcome>) {
        let mut inbox = lock(&self.inbox);
        if inbox.closed {
            drop(inbox);
            if let Ok(unwanted) = outcome {
                offload(move || drop(unwanted)); // a hold among them is released
            }
            return;
        }
        inbox.letters.push((id, outcome));
        let first = inbox.letters.len() == 1;
        drop(inbox);
        if first
            && !TAKEN_SOON.get()
            && let Some(bell) = self.bell.get()
        {
            // It can only fail because the environment is closing: then `close` finds the letter.
            lock(bell).call((), ThreadsafeFunctionCallMode::NonBlocking);
        }
    }

    /// The environment goes: its waits end, and what was on its way to it is released.
    fn close(&self) {
        for (_, wait) in lock(&self.waits).drain() {
            wait.cancel();
        }
        if let Some(event_loop) = self.event_loop.get() {
            event_loop.close();
        }
        lock(&self.watched).clear();
        let letters = {
            let mut inbox = lock(&self.inbox);
            inbox.closed = true;
            std::mem::take(&mut inbox.letters)
        };
        drop(letters);
        opened::forget_all();
    }
}

/// The operations that take time, for one environment. Each ends in one [`Told`] with its id, unless it returns what came of it.
#[napi]
pub struct Events {
    shared: Arc<Shared>,
    on: EventLoop,
}

#[napi]
impl Events {
    /// `ring` is called when there is something to `take`.
    #[napi(constructor)]
    pub fn new(env: Env, ring: Function<'_, (), ()>) -> napi::Result<Events> {
        let shared = Arc::new(Shared::default());
        let bell = ring.build_threadsafe_function::<()>().weak::<true>().build()?;
        shared.bell.get_or_init(|| Mutex::new(bell));
        let told = Arc::downgrade(&shared);
        let on = EventLoop::new(move |watched| {
            if let Some(shared) = told.upgrade() {
                shared.post(0, Ok(Outcome::Watched(watched)));
            }
        });
        shared.event_loop.get_or_init(|| on.clone());
        // Hooks run in reverse: this one before the bell's own.
        env.add_env_cleanup_hook(shared.clone(), |shared| shared.close())?;
        Ok(Events { shared, on })
    }

    /// Whether the bell keeps the event loop alive.
    #[napi]
    #[allow(deprecated, reason = "nothing else refs and unrefs a threadsafe function that lives on")]
    pub fn keep_alive(&self, env: Env, alive: bool) -> napi::Result<()> {
        let Some(bell) = self.shared.bell.get() else { return Ok(()) };
        if alive { lock(bell).refer(&env) } else { lock(bell).unref(&env) }
    }

    /// What has come.
    #[napi]
    pub fn take(&self) -> Vec<Told> {
        let letters = std::mem::take(&mut lock(&self.shared.inbox).letters);
        let mut waits = lock(&self.shared.waits);
        let tell = |(mut id, outcome): (i64, ipcmutex::Result<Outcome>)| {
            waits.remove(&id);
            match outcome {
                Ok(outcome) => {
                    let value = match outcome {
                        Outcome::Watched(watched) => {
                            // Without one to spare it is not watched, and what is asked goes the other way.
                            let descriptor = watched.descriptor().ok()?;
                            id = -1 - lock(&self.shared.watched).insert(watched) as i64;
                            Some(Either4::B(descriptor.into_raw_fd() as u32))
                        }
                        Outcome::Done => None,
                        Outcome::Hold(hold) => Some(Either4::A(taken(hold))),
                        Outcome::Mutex(mutex) => Some(Either4::B(opened::keep(mutex))),
                        Outcome::Status(status) => Some(Either4::C(status.into())),
                        Outcome::Flag(flag) => Some(Either4::D(flag)),
                    };
                    Some(Told { id, code: None, message: None, value })
                }
                Err(error) => Some(Told {
                    id,
                    code: Some(error.kind().node_code().to_owned()),
                    message: Some(error.to_string()),
                    value: None,
                }),
            }
        };
        letters.into_iter().filter_map(tell).collect()
    }

    /// The descriptor with this number is watched.
    #[napi]
    pub fn watching(&self, number: u32) {
        if let Some(watched) = self.watched(number) {
            watched.start();
        }
    }

    /// What was read of it: the first `length` bytes, 0 for its end. What comes of it is to be taken then.
    #[napi]
    pub fn heard(&self, number: u32, bytes: &[u8], length: u32) {
        let Some(watched) = self.watched(number) else { return };
        let bytes = bytes.get(..length as usize).unwrap_or_default();
        if bytes.is_empty() {
            lock(&self.shared.watched).try_remove(number as usize);
        }
        TAKEN_SOON.set(true);
        watched.feed(bytes);
        TAKEN_SOON.set(false);
    }

    fn watched(&self, number: u32) -> Option<Watched> {
        lock(&self.shared.watched).get(number as usize).cloned()
    }

    /// The hold, if it is there at once; else it is told.
    #[napi]
    pub fn acquire(&self, id: i64, mutex: u32, timeout: f64) -> Result<Option<Taken>> {
        let timeout = Timeout::from_js_ms(timeout).map_err(raise)?;
        let mutex = opened::get(mutex)?;
        let start = |tell: Tell| mutex.acquire_on(&self.on, timeout, |outcome| tell.tell(outcome.map(Outcome::Hold)));
        match self.at_once(id, start) {
            (_, Some(Ok(Outcome::Hold(hold)))) => Ok(Some(taken(hold))),
            (_, Some(Err(error))) => Err(raise(error)),
            (wait, _) => {
                lock(&self.shared.waits).insert(id, wait);
                Ok(None)
            }
        }
    }

    /// Ends an acquire. `false` if it has an outcome already, which then comes.
    #[napi]
    pub fn cancel(&self, id: i64) -> bool {
        let wait = lock(&self.shared.waits).get(&id).cloned();
        wait.is_some_and(|wait| wait.cancel())
    }

    /// Tells when the hold is lost.
    #[napi]
    pub fn on_lost(&self, id: i64, mutex: u32, token: BigInt) -> Result<()> {
        let shared = self.shared.clone();
        hold::left(mutex, &token)?.on_lost(move |error| shared.post(id, Err(error))).map_err(raise)
    }

    #[napi]
    pub fn open(&self, id: i64, url: String) {
        self.offload(id, move || mutex::open(&url).map(Outcome::Mutex));
    }

    #[napi]
    pub fn close(&self, id: i64, mutex: u32) -> Result<()> {
        let core = opened::get(mutex)?;
        self.offload(id, move || core.close().map(|()| Outcome::Done));
        Ok(())
    }

    /// Whether it is done at once; else it is told.
    #[napi]
    pub fn release(&self, id: i64, mutex: u32) -> Result<Option<bool>> {
        let mutex = opened::get(mutex)?;
        self.done_at_once(id, |tell| mutex.release_on(&self.on, |outcome| tell.tell(outcome.map(|()| Outcome::Done))))
    }

    #[napi]
    pub fn status(&self, id: i64, mutex: u32) -> Result<()> {
        let core = opened::get(mutex)?;
        self.offload(id, move || core.status().map(Outcome::Status));
        Ok(())
    }

    #[napi]
    pub fn break_lock(&self, id: i64, mutex: u32) -> Result<()> {
        let core = opened::get(mutex)?;
        self.offload(id, move || core.break_lock().map(Outcome::Flag));
        Ok(())
    }

    #[napi]
    pub fn release_hold(&self, id: i64, mutex: u32, token: BigInt) -> Result<Option<bool>> {
        let hold = hold::left(mutex, &token)?;
        self.done_at_once(id, |tell| hold.release_on(&self.on, |outcome| tell.tell(outcome.map(|()| Outcome::Done))))
    }

    /// Renews the lease to `ttl` milliseconds, or to the URL's.
    #[napi]
    pub fn extend(&self, id: i64, mutex: u32, token: BigInt, ttl: Option<f64>) -> Result<()> {
        let hold = hold::left(mutex, &token)?;
        let ttl = match ttl.map(|ms| Duration::try_from_secs_f64(ms / 1000.0)) {
            None => None,
            Some(Ok(ttl)) => Some(ttl),
            Some(Err(error)) => {
                return Err(raise(ipcmutex::Error::new(
                    ipcmutex::ErrorKind::Invalid,
                    "extend",
                    format!("the lease: {error}"),
                )));
            }
        };
        self.offload(id, move || hold.extend(ttl).map(|()| Outcome::Done));
        Ok(())
    }

    /// What `start` returns, and what came of it if that is there already.
    fn at_once<T>(&self, id: i64, start: impl FnOnce(Tell) -> T) -> (T, Option<ipcmutex::Result<Outcome>>) {
        let call = Arc::new(Mutex::new(Call::Starting));
        let started = start(Tell { id, shared: self.shared.clone(), call: call.clone() });
        let came = match std::mem::replace(&mut *lock(&call), Call::Returned) {
            Call::Came(outcome) => Some(outcome),
            Call::Starting | Call::Returned => None,
        };
        (started, came)
    }

    fn done_at_once(&self, id: i64, start: impl FnOnce(Tell)) -> Result<Option<bool>> {
        let ((), came) = self.at_once(id, start);
        came.map(|outcome| outcome.map(|_| true).map_err(raise)).transpose()
    }

    fn offload(&self, id: i64, job: impl FnOnce() -> ipcmutex::Result<Outcome> + Send + 'static) {
        let shared = self.shared.clone();
        offload(move || shared.post(id, job()));
    }
}
