//! What is fed with bytes that nobody meant: each target must return, and finds by its own checks what is wrong.
//!
//! `tests/tests/fuzz.rs` replays the kept bytes of `tests/fuzz/corpus` in every test run, and makes up more of their
//! kind for `make fuzz`.

pub mod bytes;
pub mod page;
pub mod resp;
pub mod url;
