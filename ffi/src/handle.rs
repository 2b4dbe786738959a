//! Numbers for C in place of Rust values.
//!
//! A handle is kind (2 bits), generation (38), slot (24). It finds its slot by number, never by address, and
//! the slot's state word decides whether it is still the one that was handed out. So no number, however old or made up,
//! reaches a value that is not live.
//!
//! The state word of a slot is generation (38 bits), LIVE, pins (25):
//!
//! | from -> to | who |
//! |---|---|
//! | g, not LIVE, 0 pins -> g+1, LIVE | `insert`, which got the slot from the free list |
//! | g, LIVE, n pins -> n+1 | `pin` of a handle of generation g |
//! | g, LIVE, n pins -> not LIVE, n+1 | `remove`: one caller, ever |
//! | n pins -> n-1 | a pin that is dropped; the last one of a slot that is not LIVE drops the value and frees the slot |
//!
//! Nothing here locks, so a fork at any moment leaves a table that the child can use. What other threads of the
//! parent had pinned just then stays pinned in the child: its value is never dropped there, and harms nobody.

use std::cell::UnsafeCell;
use std::mem::MaybeUninit;
use std::ops::Deref;
use std::sync::OnceLock;
#[cfg(not(all(test, feature = "schedules")))]
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

#[cfg(all(test, feature = "schedules"))]
use shuttle::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use ipcmutex_core::{Hold, Mutex, Wait};

/// Open mutexes.
pub(crate) static MUTEXES: Table<Mutex> = Table::new(1, "mutex");
/// Holds that were not released through their handle.
pub(crate) static HOLDS: Table<Hold> = Table::new(2, "hold");
/// Waits whose callback has not run. The wait is put in once it has begun.
pub(crate) static WAITS: Table<OnceLock<Wait>> = Table::new(3, "wait");

const SLOT_BITS: u32 = 24;
const GENERATION_BITS: u32 = 38;
const LAST_GENERATION: u64 = (1 << GENERATION_BITS) - 1;

const PINS: u64 = (1 << 25) - 1;
const LIVE: u64 = 1 << 25;
const GENERATION_SHIFT: u32 = 26;

/// Slots come in blocks, each twice as large as the one before, and never move.
const FIRST_BLOCK: u32 = 64;
const BLOCKS: usize = 18;
const CAPACITY: u32 = FIRST_BLOCK * ((1 << BLOCKS) - 1);
const _: () = assert!(CAPACITY <= 1 << SLOT_BITS);

pub(crate) struct Table<T: 'static> {
    kind: u64,
    /// What a handle of it is called in messages.
    pub(crate) name: &'static str,
    blocks: [AtomicPtr<Slot<T>>; BLOCKS],
    /// Slots that were ever used.
    used: AtomicU32,
    /// The free list: a count that rises with each change (so that a stale view never wins), and slot number + 1.
    free: AtomicU64,
}

/// A cache line each: two handles in use on two processors do not slow each other down.
#[repr(align(64))]
struct Slot<T> {
    state: AtomicU64,
    next_free: AtomicU32,
    value: UnsafeCell<MaybeUninit<T>>,
}

// SAFETY: a value is moved in by one thread, shared by reference between those that have it pinned, and dropped by one.
unsafe impl<T: Send + Sync> Sync for Table<T> {}

impl<T: Send + Sync> Table<T> {
    const fn new(kind: u64, name: &'static str) -> Table<T> {
        Table {
            kind,
            name,
            blocks: [const { AtomicPtr::new(std::ptr::null_mut()) }; BLOCKS],
            used: AtomicU32::new(0),
            free: AtomicU64::new(0),
        }
    }

    /// A handle for `value`; the value back if 16 million of them are live.
    pub(crate) fn insert(&'static self, value: T) -> Result<u64, T> {
        let Some((number, slot)) = self.unused() else { return Err(value) };
        let generation = (slot.state.load(Ordering::Relaxed) >> GENERATION_SHIFT) + 1;
        // SAFETY: the slot came off the free list, or was never used: no other thread has it, and it holds no value.
        unsafe { (*slot.value.get()).write(value) };
        slot.state.store(generation << GENERATION_SHIFT | LIVE, Ordering::Release);
        Ok(self.kind << (GENERATION_BITS + SLOT_BITS) | generation << SLOT_BITS | u64::from(number))
    }

    /// The value behind `handle`, which stays until the pin is dropped, also if somebody removes it meanwhile.
    #[inline]
    pub(crate) fn pin(&'static self, handle: u64) -> Option<Pin<T>> {
        self.change(handle, |state| state + 1)
    }

    /// Whether `handle`, by which `pin` was made, has not been ended since. What is still live when this looks may be ended
    /// the moment after, as for any pin.
    #[inline]
    pub(crate) fn is_live(&'static self, pin: &Pin<T>, handle: u64) -> bool {
        let generation = handle >> SLOT_BITS & LAST_GENERATION;
        pin.slot.state.load(Ordering::Acquire) & !PINS == (generation << GENERATION_SHIFT | LIVE)
    }

    /// Ends `handle`: from now on it is no handle. Of several callers one gets the value.
    pub(crate) fn remove(&'static self, handle: u64) -> Option<Pin<T>> {
        self.change(handle, |state| (state & !LIVE) + 1)
    }

    #[inline]
    fn change(&'static self, handle: u64, to: impl Fn(u64) -> u64) -> Option<Pin<T>> {
        if handle >> (GENERATION_BITS + SLOT_BITS) != self.kind {
            return None;
        }
        let number = (handle & ((1 << SLOT_BITS) - 1)) as u32;
        let generation = handle >> SLOT_BITS & LAST_GENERATION;
        let slot = self.slot(number)?;
        let mut state = slot.state.load(Ordering::Relaxed);
        loop {
            if state & !PINS != (generation << GENERATION_SHIFT | LIVE) {
                return None;
            }
            match slot.state.compare_exchange_weak(state, to(state), Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(Pin { table: self, slot, number }),
                Err(now) => state = now,
            }
        }
    }

    /// Which block a slot is in, and where.
    #[inline]
    fn place(number: u32) -> (usize, usize) {
        let block = (number + FIRST_BLOCK).ilog2() - FIRST_BLOCK.ilog2();
        (block as usize, (number + FIRST_BLOCK - (FIRST_BLOCK << block)) as usize)
    }

    /// The slot, if its block exists.
    #[inline]
    fn slot(&'static self, number: u32) -> Option<&'static Slot<T>> {
        if number >= CAPACITY {
            return None;
        }
        let (block, at) = Self::place(number);
        let first = self.blocks[block].load(Ordering::Acquire);
        if first.is_null() {
            return None;
        }
        // SAFETY: a non-null block is a leaked slice of FIRST_BLOCK << block slots, and `place` stays below that.
        Some(unsafe { &*first.add(at) })
    }

    /// A slot that nobody uses: one that was given back, or a new one.
    fn unused(&'static self) -> Option<(u32, &'static Slot<T>)> {
        let mut free = self.free.load(Ordering::Acquire);
        while let Some(number) = (free as u32).checked_sub(1) {
            let slot = self.slot(number)?;
            let next = u64::from(slot.next_free.load(Ordering::Relaxed));
            match self.free.compare_exchange_weak(
                free,
                ((free >> 32) + 1) << 32 | next,
                Ordering::Acquire,
                Ordering::Acquire,
            ) {
                Ok(_) => return Some((number, slot)),
                Err(now) => free = now,
            }
        }
        let number = self
            .used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| (used < CAPACITY).then_some(used + 1))
            .ok()?;
        let (block, _) = Self::place(number);
        if self.blocks[block].load(Ordering::Acquire).is_null() {
            self.add_block(block);
        }
        Some((number, self.slot(number)?))
    }

    #[cold]
    fn add_block(&'static self, block: usize) {
        let slots: Box<[Slot<T>]> = (0..FIRST_BLOCK << block)
            .map(|_| Slot {
                state: AtomicU64::new(0),
                next_free: AtomicU32::new(0),
                value: UnsafeCell::new(MaybeUninit::uninit()),
            })
            .collect();
        let slots = Box::into_raw(slots);
        if self.blocks[block]
            .compare_exchange(std::ptr::null_mut(), slots.cast(), Ordering::AcqRel, Ordering::Acquire)
            .is_err()
        {
            // SAFETY: another thread was first; this slice came from Box::into_raw above and was shown to nobody.
            drop(unsafe { Box::from_raw(slots) });
        }
    }

    fn give_back(&'static self, number: u32, slot: &'static Slot<T>) {
        if slot.state.load(Ordering::Relaxed) >> GENERATION_SHIFT == LAST_GENERATION {
            return; // All its numbers were used; to begin again would bring old handles back to life.
        }
        let mut free = self.free.load(Ordering::Relaxed);
        loop {
            slot.next_free.store(free as u32, Ordering::Relaxed);
            let first = ((free >> 32) + 1) << 32 | u64::from(number + 1);
            match self.free.compare_exchange_weak(free, first, Ordering::Release, Ordering::Relaxed) {
                Ok(_) => return,
                Err(now) => free = now,
            }
        }
    }
}

/// A value that is kept for the time of a call.
pub(crate) struct Pin<T: Send + Sync + 'static> {
    table: &'static Table<T>,
    slot: &'static Slot<T>,
    number: u32,
}

#[cfg(test)]
impl<T: Send + Sync> Pin<T> {
    /// How many pins the value has.
    pub(crate) fn pins(&self) -> u64 {
        self.slot.state.load(Ordering::Relaxed) & PINS
    }
}

impl<T: Send + Sync> Deref for Pin<T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the slot was LIVE when it was pinned, so it holds a value; that is dropped only at 0 pins.
        unsafe { (*self.slot.value.get()).assume_init_ref() }
    }
}

impl<T: Send + Sync> Drop for Pin<T> {
    #[inline]
    fn drop(&mut self) {
        let before = self.slot.state.fetch_sub(1, Ordering::AcqRel);
        if before & (LIVE | PINS) == 1 {
            // SAFETY: the last pin of a slot that is not LIVE: no pin can be added, so nobody else sees the value.
            unsafe { (*self.slot.value.get()).assume_init_drop() };
            self.table.give_back(self.number, self.slot);
        }
    }
}

#[cfg(all(test, feature = "schedules"))]
mod schedules;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn table<T: Send + Sync>() -> &'static Table<T> {
        Box::leak(Box::new(Table::new(1, "test")))
    }

    #[test]
    fn a_handle_is_good_once() {
        let table = table::<u32>();
        let first = table.insert(7).unwrap();
        assert_eq!(table.pin(first).as_deref(), Some(&7));
        assert_eq!(table.remove(first).as_deref(), Some(&7));
        assert!(table.remove(first).is_none() && table.pin(first).is_none());
        let second = table.insert(8).unwrap();
        assert_eq!(first & ((1 << SLOT_BITS) - 1), second & ((1 << SLOT_BITS) - 1), "the slot is used again");
        assert!(table.pin(first).is_none(), "and the old number stays dead");
        assert_eq!(table.pin(second).as_deref(), Some(&8));
    }

    #[test]
    fn no_made_up_number_is_a_handle() {
        let table = table::<u32>();
        let handle = table.insert(1).unwrap();
        for bit in 0..64 {
            assert!(table.pin(handle ^ 1 << bit).is_none(), "bit {bit}");
        }
        assert!([0, 1, u64::MAX, 1 << 62, handle + 1].iter().all(|forged| table.pin(*forged).is_none()));
        assert!(self::table::<u32>().pin(handle).is_none());
    }

    #[test]
    fn kinds_do_not_mix() {
        let mutex = MUTEXES.insert(Mutex::open("spm:kinds").unwrap()).unwrap();
        assert!(HOLDS.pin(mutex).is_none() && WAITS.pin(mutex).is_none() && MUTEXES.pin(mutex).is_some());
    }

    #[test]
    fn a_pinned_value_outlives_its_handle_and_is_dropped_once() {
        let table = table::<Arc<()>>();
        let value = Arc::new(());
        let handle = table.insert(value.clone()).unwrap();
        let pin = table.pin(handle).unwrap();
        drop(table.remove(handle));
        assert_eq!(Arc::strong_count(&value), 2);
        assert!(table.pin(handle).is_none());
        drop(pin);
        assert_eq!(Arc::strong_count(&value), 1);
    }

    #[test]
    fn slots_are_found_in_their_blocks() {
        let mut expected = (0, 0);
        for number in 0..10_000 {
            assert_eq!(Table::<u8>::place(number), expected, "{number}");
            expected.1 += 1;
            if expected.1 == (FIRST_BLOCK as usize) << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
        assert_eq!(Table::<u8>::place(CAPACITY - 1), (BLOCKS - 1, ((FIRST_BLOCK as usize) << (BLOCKS - 1)) - 1));
    }

    #[test]
    fn a_slot_without_numbers_is_given_up() {
        let table = table::<u32>();
        let first = table.insert(1).unwrap();
        let slot = table.slot(0).unwrap();
        drop(table.remove(first));
        slot.state.store((LAST_GENERATION - 1) << GENERATION_SHIFT, Ordering::Relaxed);
        let last = table.insert(2).unwrap();
        assert_eq!(table.pin(last).as_deref(), Some(&2));
        drop(table.remove(last));
        let other = table.insert(3).unwrap();
        assert_eq!(other & ((1 << SLOT_BITS) - 1), 1);
    }

    #[test]
    fn threads_that_insert_pin_and_remove_at_random_never_see_a_wrong_value() {
        let table = table::<(u64, Arc<()>)>();
        let alive = Arc::new(());
        let shared: [AtomicU64; 8] = [const { AtomicU64::new(0) }; 8];
        std::thread::scope(|scope| {
            for thread in 0..4u64 {
                let (alive, shared) = (&alive, &shared);
                scope.spawn(move || {
                    let mut random = thread + 1;
                    for round in 0..50_000u64 {
                        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                        let cell = &shared[(random >> 33) as usize % shared.len()];
                        match random >> 40 & 3 {
                            0 => {
                                let handle = table.insert((thread << 32 | round, alive.clone())).ok().unwrap();
                                assert_eq!(table.pin(handle).unwrap().0, thread << 32 | round);
                                drop(table.remove(cell.swap(handle, Ordering::AcqRel)));
                            }
                            1 => drop(table.remove(cell.load(Ordering::Acquire))),
                            _ => {
                                if let Some(pin) = table.pin(cell.load(Ordering::Acquire)) {
                                    assert!(pin.0 >> 32 < 4 && Arc::strong_count(&pin.1) > 1);
                                }
                            }
                        }
                    }
                });
            }
        });
        for cell in &shared {
            drop(table.remove(cell.load(Ordering::Acquire)));
        }
        assert_eq!(Arc::strong_count(&alive), 1, "each value was dropped once");
        assert!(table.used.load(Ordering::Relaxed) < 100, "slots are used again");
    }
}
