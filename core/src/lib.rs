//! One lock, named by a URL: across threads (`spm:`), processes of a host (`mpm:`) and hosts (`rpm+redis:`).
//!
//! ```
//! let mutex = ipcmutex::Mutex::open("spm:jobs")?;
//! let hold = mutex.acquire()?;
//! assert!(hold.token() > 0);
//! hold.release()?;
//! # Ok::<(), ipcmutex::Error>(())
//! ```
//!
//! # URLs
//! ```text
//! spm:<id>                                        mpm:<id>  mpm:/path  mpm:./path  file:/path
//! rpm+redis://[user:secret@]host[:port][/<id>]    rpm+rediss://... (TLS)
//! rpm+redis+unix:///path/redis.sock?id=<id>       rpm+redis+sentinel://h1,h2/<master>/<id>
//! rpm+redis+cluster://h1,h2/<id>                  rpm+redlock://h1,h2,h3/<id>
//!
//! All: ?fair=strict|eventual, label=<text>. mpm: mode=0660, remotefs=1. Redis: ttl=10s, renew=off, db=,
//! prefix=, redis_key=, replicas=, connect_timeout=, policy=any, protocol=2|3, tls=on, ca= crt= key=; of
//! Sentinels sentinel_user= sentinel_password=. An id is 1 to 200 bytes of A-Z a-z 0-9 . _ - (Redis: also
//! / and :), but no .. and not . alone. Everything may be percent-encoded.
//! ```
//!
//! # Waiting
//! [`Mutex::acquire`] waits for ever, [`Mutex::acquire_timeout`] up to a limit, [`Mutex::try_acquire`] not at all,
//! [`Mutex::acquire_async`] without a thread and under any executor, [`Mutex::acquire_callback`] without an executor. First come,
//! first served; see the URL's `fair=`. [`Mutex::acquire_with`] takes everything that may end a wait.
//!
//! # Holding
//! A [`Hold`] belongs to whoever has it, not to a thread; dropping it releases, and [`Hold::release`] also tells of a loss. Its
//! [`token`](Hold::token) rises with each hold of the name: let what the lock protects refuse an older one.
//! [`abandoned`](Hold::abandoned) says that the one before died holding.
//!
//! # Failing
//! [`Error::kind`] is for programs, its text for people: what was tried, on which lock (the secret hidden), what was found, what to do.
//!
//! # Fork, threads, signals
//! A forked child has the mutexes and none of the holds. Everything is `Send + Sync`. A signal neither ends nor lengthens a wait.
//!
//! # Features
//! `redis` (default): the engine for hosts. `tls` (default): `rpm+rediss:`. Without them those URLs are UNSUPPORTED.

mod backend;
mod biased;
mod cancel;
mod error;
mod event;
mod event_loop;
mod hold;
mod identity;
pub mod list;
pub mod logging;
mod loss;
mod mutex;
mod numbers;
#[cfg(all(test, feature = "schedules"))]
mod schedules;
mod service;
mod session;
mod sync;
mod sys;
pub mod text;
mod timeout;
pub mod url;
mod wait;
mod waiter;

pub use backend::contract::{Owner, State, Status};
pub use cancel::Cancel;
pub use error::{Error, ErrorKind, Result};
pub use event::EventWait;
pub use event_loop::{EventLoop, Unforked, Watched};
pub use hold::Hold;
pub use mutex::{Acquire, Mutex, Wait};
pub use numbers::{Numbers, WAIT_BOUNDS};
pub use service::call::deliver;
pub use service::offload::offload;
pub use timeout::Timeout;
pub use wait::Waiting;
