//! The library's own threads. Each is started by the first that needs it and ends with the last: a program in
//! which nobody waits has none of them. They take no signals.

#[cfg(feature = "redis")]
pub(crate) mod answer;
pub(crate) mod call;
pub(crate) mod clock;
pub(crate) mod lane;
pub(crate) mod offload;

/// Something to be done elsewhere.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// Does it. A panic of one job must not end the others.
fn run(job: Job) {
    let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(job));
}
