//! What a forked child may still believe.
//!
//! A child inherits memory but neither threads nor, of what is marked so, mappings. Any lock of this crate may
//! be held by a thread that the child does not have. So nothing of a parent's state is used in a child: every
//! piece of per-process state sits in a [`PerProcess`] cell, which gives the child a fresh value. The cell knows
//! by [`epoch`], a number in a page that the kernel wipes at fork (`MADV_WIPEONFORK`, also for raw `clone`), so
//! no handler needs to run. Where the kernel is too old for that, a `pthread_atfork` handler wipes the page.
//!
//! What the handlers are needed for: a child of `fork` closes the descriptors that no child may have. Each is written down when it is
//! opened, and so that no fork comes in between, both are done behind a gate, through which a fork must go, too.
//!
//! The handlers are in place when the library is loaded. So those of the program, which come later, are outside of the gate, before and after,
//! and may use the library, which may hold locks of its own while it waits for the gate. An allocator's or a collector's may be among them:
//! whoever forks then has their locks when it comes to the gate, so who has the gate takes no locks and allocates nothing.
//! For a library that is loaded late (a plugin's) some handlers of the program are within the gate: so whoever forks may enter it again, and a
//! child is made fit by the handler or by the first use of it, whichever comes first.

mod files;
mod life;
mod per_process;
mod places;
#[cfg(test)]
mod tests;

pub(crate) use files::Unshared;
#[cfg(target_os = "linux")]
pub(crate) use files::{MarkedFile, OwnFile};
pub(crate) use life::{ForkGate, epoch, put_handlers_in_place};
pub(crate) use per_process::{Done, PerProcess};
