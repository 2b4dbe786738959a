//! What is fed with bytes that nobody meant: each target must return, and finds by its own checks what is wrong.
//!
//! `make fuzz` makes the bytes up (`tests/fuzz`, libFuzzer), led by what they reach. `tests/tests/fuzz.rs` replays the kept ones of
//! `tests/fuzz/corpus` in every test run: what has found something, and what reaches far.

pub mod page;
pub mod resp;
pub mod url;
