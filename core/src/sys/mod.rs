//! System calls and shared memory: the only unsafe code of this crate, each block with its reason.
#![allow(unsafe_code, reason = "the one door of this crate to the operating system")]

pub(crate) mod copies;
pub(crate) mod file;
pub(crate) mod fork;
pub(crate) mod futex;
pub(crate) mod page;
pub(crate) mod thread;
