//! Locks that are broken in ways that have been built before, kept so that the checker can be seen to go red. Each is cut into the
//! steps between which its race lies, so that a test walks into it every time and needs no luck.

mod file;
mod redis;
mod socket;
mod words;

pub use file::UnlinkOnRelease;
pub use redis::{ForgetfulFence, PlainDel};
pub use socket::NaiveTakeover;
pub use words::{GrantWithoutTheWord, ImpatientReset};
