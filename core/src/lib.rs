//! One lock, named by a URL: across threads (`spm:`), processes of a host (`mpm:`) and hosts (`rpm+redis:`).
//!
//! ```
//! let mutex = ipcmutex::Mutex::open("spm:jobs")?;
//! let hold = mutex.acquire()?;
//! assert!(hold.token() > 0);
//! hold.release()?;
//! # Ok::<(), ipcmutex::Error>(())
//! ```

mod backend;
mod error;
mod event;
mod hold;
mod identity;
pub mod list;
pub mod logging;
mod loss;
mod mutex;
mod numbers;
mod service;
mod sync;
mod sys;
mod timeout;
pub mod url;
mod wait;

pub use backend::contract::{Owner, State, Status};
pub use error::{Error, ErrorKind, Result};
pub use event::EventWait;
pub use hold::Hold;
pub use mutex::{Acquire, Mutex, Wait};
pub use numbers::{Numbers, WAIT_BOUNDS};
pub use service::offload::{deliver, offload};
pub use timeout::Timeout;
pub use wait::{Cancel, Waiting};
