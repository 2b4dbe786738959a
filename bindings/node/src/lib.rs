//! The Node addon: JavaScript in, core out. `index.js` is the face; this is what it cannot do itself.
//!
//! Nothing waits on libuv's threads. An engine of this host is asked on the spot; a server on a connection that the event loop
//! itself reads, or from the library's own threads. Outcomes go into an inbox per environment (the main thread, each worker);
//! a threadsafe function rings for what comes from another thread.
#![allow(unsafe_code, unreachable_pub, reason = "#[napi] writes the one and asks for the other")]

mod error;
mod events;
mod hold;
mod mutex;
mod opened;
mod status;
