//! What the background threads run on.

use std::panic::{AssertUnwindSafe, catch_unwind};

use redis::RedisResult;
use tokio::runtime::{Builder, Runtime};

use super::super::wire::refusal;
use crate::error::{Error, ErrorKind, Result};

/// What a background thread of this engine runs on.
pub(crate) fn event_loop() -> Result<Runtime> {
    let built = Builder::new_current_thread().enable_io().enable_time().max_blocking_threads(4).build();
    built.map_err(|error| {
        Error::new(ErrorKind::Resource, "acquire", format!("no event loop can be set up: {error}")).with_source(error)
    })
}

/// Has `work`, which blocks, done on one of the few threads that the event loop has for that.
///
/// # Errors
/// RESOURCE if there is none to be had: at that the runtime panics, and whoever waits for what it was to tell would wait for ever.
pub(crate) async fn elsewhere<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> RedisResult<T> {
    let none = |text: &str| refusal(ErrorKind::Resource, text.to_owned(), "look after the limits of threads");
    let begun = catch_unwind(AssertUnwindSafe(|| tokio::task::spawn_blocking(work)));
    begun.map_err(|_| none("no thread can be started"))?.await.map_err(|_| none("a thread ended by a bug"))
}
