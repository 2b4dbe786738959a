//! The library's own threads. Each is started by the first that needs it and ends with the last: a program in
//! which nobody waits has none of them. They take no signals.

pub(crate) mod call;
pub(crate) mod clock;
pub(crate) mod offload;
