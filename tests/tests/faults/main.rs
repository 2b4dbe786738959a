//! Faults of the file engine that need more than an agent: programs of their own, namespaces, and calls that fail.
//! The simpler ones are in `../mpm.rs`; `../../faults.toml` has them all.

mod containers;
mod damage;
mod errno;
mod limits;
mod namespaces;
mod order;
mod pairs;
mod paths;
mod processes;
mod registers;
mod scale;
mod steps;
mod table;
