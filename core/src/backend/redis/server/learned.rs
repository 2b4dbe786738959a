//! What is learned of a server, and shared by all who have to do with it.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::super::keys::slot;
use super::dial::Address;
use super::slots::Slots;
use crate::sync::Guarded;

/// Of how many servers it is remembered that another one has taken their place: more than take turns at it anywhere.
const REPLACED: usize = 16;

/// What is known not to be the master, or not any more.
#[derive(Default)]
struct Doubted {
    /// The last one that said so itself.
    by_itself: Option<Address>,
    /// Those that a Sentinel said have been replaced, the last one last. They may not know it themselves.
    replaced: Vec<Address>,
}

/// What was learned of a server since its engine was made.
#[derive(Default)]
pub(crate) struct Learned {
    /// It takes the secret without the user.
    pub(super) alone: AtomicBool,
    /// It does not know RESP3.
    pub(super) resp2: AtomicBool,
    /// It forbids scripts.
    plain: AtomicBool,
    /// Which login its Sentinels took last.
    pub(super) sentinel_login: AtomicUsize,
    /// Where it was last found.
    master: Guarded<Option<Address>>,
    /// A Sentinel that names one of these is not the last one asked.
    doubted: Guarded<Doubted>,
    /// Counts the changes of the server behind the name: who has a connection to an earlier one must not use it any more.
    changes: AtomicU64,
    /// A node of a cluster has told of another one since what is held was last looked for.
    moved: AtomicBool,
    /// The nodes of a cluster, as it last told them.
    nodes: Guarded<Vec<Address>>,
    /// Which of them has what, with what they have corrected since. All share it: who finds out that a slot has left a node
    /// spares the others to ask that one, which may hang.
    pub(super) slots: Guarded<Slots>,
}

impl Doubted {
    fn forget(&mut self, address: &Address) {
        self.by_itself.take_if(|doubted| doubted == address);
        self.replaced.retain(|doubted| doubted != address);
    }
}

impl Learned {
    pub(crate) fn forbids_scripts(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    pub(crate) fn found_plain(&self) {
        self.plain.store(true, Ordering::Relaxed);
    }

    pub(crate) fn found(&self, address: &Address) {
        let before = self.master.lock().replace(address.clone());
        if before.is_some_and(|before| before != *address) {
            self.changed();
        }
    }

    /// It says that it is not the master.
    pub(super) fn doubts(&self, address: &Address) {
        self.doubted.lock().by_itself = Some(address.clone());
    }

    pub(super) fn is_doubted(&self, address: &Address) -> bool {
        let doubted = self.doubted.lock();
        doubted.by_itself.as_ref() == Some(address) || doubted.replaced.contains(address)
    }

    /// Whether a Sentinel has told that another one has taken its place.
    pub(super) fn is_replaced(&self, address: &Address) -> bool {
        self.doubted.lock().replaced.contains(address)
    }

    /// It says that it is, and nothing has changed since `seen`.
    pub(super) fn trusts(&self, address: &Address, seen: u64) {
        let mut doubted = self.doubted.lock();
        if self.changes() == seen {
            doubted.forget(address);
        }
    }

    /// A Sentinel says that `to` has become the master in the place of `from`.
    pub(super) fn replaced(&self, from: Option<Address>, to: Option<&Address>) {
        let mut doubted = self.doubted.lock();
        if let Some(from) = from {
            doubted.replaced.retain(|other| *other != from);
            if doubted.replaced.len() == REPLACED {
                doubted.replaced.remove(0);
            }
            doubted.replaced.push(from);
        }
        if let Some(to) = to {
            doubted.forget(to);
        }
        self.changed();
    }

    /// Another server may have taken this one's place.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub(crate) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// What a node has told of all.
    pub(super) fn found_slots(&self, slots: Slots) {
        let mut known = self.slots.lock();
        if slots.has_moved_since(&known) {
            self.moved.store(true, Ordering::Relaxed);
        }
        *known = slots;
    }

    /// `slot` is another node's now; whether so many have moved that all should be asked for.
    pub(super) fn corrected(&self, slot: u16, node: Address) -> bool {
        self.moved.store(true, Ordering::Relaxed);
        self.slots.lock().correct(slot, node)
    }

    /// Whether a slot has moved, which may be news of a failover.
    pub(crate) fn has_moved(&self) -> bool {
        self.moved.load(Ordering::Relaxed)
    }

    /// What is held is about to be looked for.
    pub(crate) fn follows(&self) {
        self.moved.store(false, Ordering::Relaxed);
    }

    pub(super) fn found_nodes(&self, nodes: Vec<Address>) {
        *self.nodes.lock() = nodes;
    }

    /// The node of a cluster that has `key`, as far as is known.
    pub(crate) fn node_of(&self, key: &str) -> Option<Address> {
        self.slots.lock().node(slot(key.as_bytes())).cloned()
    }

    pub(super) fn nodes(&self) -> Vec<Address> {
        self.nodes.lock().clone()
    }
}
