//! What is learned of a server, and shared by all who have to do with it.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::super::keys::slot;
use super::dial::Address;
use super::slots::Slots;
use crate::sync::Guarded;

/// What was learned of a server since its engine was made.
#[derive(Default)]
pub(crate) struct Learned {
    /// It takes the secret without the user.
    pub(super) alone: AtomicBool,
    /// It does not know RESP3.
    pub(super) resp2: AtomicBool,
    /// It forbids scripts.
    plain: AtomicBool,
    /// Where it was last found.
    master: Guarded<Option<Address>>,
    /// What is known not to be the master, or not any more: a Sentinel that names it is not the last one asked.
    doubted: Guarded<Option<Address>>,
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
        *self.doubted.lock() = Some(address.clone());
    }

    pub(super) fn is_doubted(&self, address: &Address) -> bool {
        self.doubted.lock().as_ref() == Some(address)
    }

    /// It says that it is, and nothing has changed since `seen`.
    pub(super) fn trusts(&self, address: &Address, seen: u64) {
        let mut doubted = self.doubted.lock();
        if self.changes() == seen {
            doubted.take_if(|doubted| doubted == address);
        }
    }

    /// A Sentinel says that another one has become the master in its place.
    pub(super) fn replaced(&self, address: Option<Address>) {
        let mut doubted = self.doubted.lock();
        *doubted = address.or(doubted.take());
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
