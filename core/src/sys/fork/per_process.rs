//! Values of one process, which a child does not take over.

use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

use super::epoch;

/// Whether something was done that does no harm if it is done twice. Nobody waits for who is at it, as `std`'s `Once` does: a child
/// does not have that thread, and would wait for ever.
pub(crate) struct Done(AtomicBool);

impl Done {
    pub(crate) const fn new() -> Done {
        Done(AtomicBool::new(false))
    }

    /// Does it, unless somebody, perhaps a parent, has.
    pub(crate) fn or(&self, work: impl FnOnce()) {
        if !self.0.load(Ordering::Acquire) {
            work();
            self.0.store(true, Ordering::Release);
        }
    }
}

struct Node<T> {
    epoch: u32,
    value: T,
}

/// A value made on first use in each process. A child makes its own and never looks into its parent's.
pub(crate) struct PerProcess<T> {
    node: AtomicPtr<Node<T>>,
    /// epoch << 1 | 1 while a thread of that epoch makes the value.
    making: AtomicU64,
}

// SAFETY: the cell hands out `&T` to any thread and drops `T` on the thread that drops the cell.
unsafe impl<T: Send + Sync> Send for PerProcess<T> {}
// SAFETY: as above; `node` and `making` are atomics.
unsafe impl<T: Send + Sync> Sync for PerProcess<T> {}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess { node: AtomicPtr::new(std::ptr::null_mut()), making: AtomicU64::new(0) }
    }

    /// The value, if this process has made one.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: a node stays allocated until the cell is dropped (in its own process) or for ever (in others).
        let node = unsafe { node.as_ref()? };
        (node.epoch == epoch()).then_some(&node.value)
    }

    /// What the parent had, in a child that has not made its own: only what is atomic in it may be read.
    pub(crate) fn of_parent(&self) -> Option<&T> {
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: as in `get`.
        let node = unsafe { node.as_ref()? };
        (node.epoch != epoch()).then_some(&node.value)
    }

    /// The value. `make` sees what the parent had: only what is atomic in it may be read.
    #[inline]
    pub(crate) fn get_or_try_init<E>(&self, make: impl FnOnce(Option<&T>) -> Result<T, E>) -> Result<&T, E> {
        match self.get() {
            Some(value) => Ok(value),
            None => self.init(make),
        }
    }

    /// [`PerProcess::get_or_try_init`] for what cannot fail.
    #[inline]
    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        match self.get_or_try_init(|_| Ok::<T, std::convert::Infallible>(make())) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    #[cold]
    fn init<E>(&self, make: impl FnOnce(Option<&T>) -> Result<T, E>) -> Result<&T, E> {
        let epoch = epoch();
        let mine = u64::from(epoch) << 1 | 1;
        loop {
            let seen = self.making.load(Ordering::Acquire);
            // A mark of another epoch is of a thread that this process does not have.
            if seen != mine && self.making.compare_exchange(seen, mine, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                break;
            }
            std::thread::yield_now();
        }
        struct Unmark<'a>(&'a AtomicU64);
        impl Drop for Unmark<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::Release);
            }
        }
        let _unmark = Unmark(&self.making);
        let old = self.node.load(Ordering::Acquire);
        // SAFETY: as in `get`.
        let old = unsafe { old.as_ref() };
        if let Some(node) = old
            && node.epoch == epoch
        {
            return Ok(&node.value); // Another thread was first.
        }
        let value = make(old.map(|node| &node.value))?;
        let node = Box::into_raw(Box::new(Node { epoch, value }));
        self.node.store(node, Ordering::Release);
        // The parent's node is not dropped: dropping would touch what belongs to the parent.
        // SAFETY: `node` was just leaked from a Box.
        Ok(unsafe { &(*node).value })
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> PerProcess<T> {
        PerProcess::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let node = *self.node.get_mut();
        if node.is_null() {
            return;
        }
        // SAFETY: `&mut self`: nobody else looks; the node came from Box::into_raw and was not dropped before.
        unsafe {
            if (*node).epoch == epoch() {
                drop(Box::from_raw(node));
            }
        }
    }
}
