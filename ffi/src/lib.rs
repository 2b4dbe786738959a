//! The C interface: C in, core out, no policy. `include/ipcmutex.h` is its manual.
//!
//! - `boundary`: what stands between C and Rust: panics, NULL, text, the text of the last failure
//! - `handle`: numbers for C in place of Rust values, safe against any misuse
//! - `types`: the types of the header
//! - `mutex`, `hold`, `library`: the exported functions, in the order of the header
#![allow(unsafe_code, reason = "C passes raw pointers; each use names its precondition")]
#![allow(unreachable_pub, reason = "the exported functions are reached from C, by their names")]

mod boundary;
mod handle;
mod hold;
mod library;
mod mutex;
mod recent;
mod types;
