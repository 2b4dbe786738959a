//! The Node addon: JavaScript in, core out. `index.js` is the face; this is what it cannot do itself.
//!
//! Nothing waits on libuv's threads. An engine of this host is asked on the spot; what talks to a server is offloaded
//! to the library's own threads. Outcomes go into an inbox per environment (the main thread, each worker), and a
//! threadsafe function rings for it.
#![allow(unsafe_code, unreachable_pub, reason = "#[napi] writes the one and asks for the other")]

mod error;
mod events;
mod hold;
mod mutex;
mod status;
