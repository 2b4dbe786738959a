//! Where things stand in a lock file. Pure, but for reading through a [`View`].
//!
//! The file is blocks of 4096 bytes. Each has 19 slots; the first also has the header. A file of one block serves 19
//! processes; it grows as more come, up to 4095 slots. All numbers are little-endian as the machine has them.
//!
//! | bytes of a block | what |
//! |---|---|
//! | 0..256 | block 0: the header; else unused |
//! | 256..408 | 19 line cells, u64: the first waiter of the slot's process, 0 = none |
//! | 448..4096 | 19 records of 192 bytes, written by the slot's occupant alone |
//!
//! | bytes of the header | what |
//! |---|---|
//! | 0 | magic and version, u64; 0 while the file is new |
//! | 8, 16 | token bases of the two halves of the generations, u64, ns since 1970; they only rise |
//! | 24, 32 | boot id and inode when the bases were last raised, u64 |
//! | 64 | the word, u64 |
//! | 72 | when the lock was last passed on, CLOCK_MONOTONIC ms, u64 |
//! | 128 | the last ticket, u64 |
//! | 136 | how many blocks there are, u32; 0 = 1 |
//!
//! | bytes of a record | what |
//! |---|---|
//! | 0 | bell, u32: the futex that the first of the process's waiters sleeps on |
//! | 4 | pid, u32, for display; 0 = nobody |
//! | 8 | since when it holds, CLOCK_MONOTONIC ms, u64 |
//! | 16 | how many of its acquisitions wait, u32 |
//! | 20 | since when the first of them waits, CLOCK_MONOTONIC µs, the low half, u32; 0 once the lock was handed over to it for that |
//! | 24, 88 | host and label, 64 bytes each, NUL-terminated |
//! | 152, 156, 160 | waits that gave up, losses found, slow looks that found something, u32; of all who ever had the slot |
//! | 164 | waits by their length, 7 of u32, likewise |

use crate::backend::contract::Owner;
use crate::numbers::Numbers;
use crate::sys::page::Mapping;

pub(super) const BLOCK: usize = 4096;
pub(super) const SLOTS_PER_BLOCK: u16 = 19;
pub(super) const MAX_SLOT: u16 = 4095;
pub(super) const MAX_BLOCKS: usize = (MAX_SLOT as usize).div_ceil(SLOTS_PER_BLOCK as usize);
pub(super) const MAX_LEN: usize = MAX_BLOCKS * BLOCK;

/// "ipcmutx" and version 1.
pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"ipcmutx\x01");
pub(super) const MAGIC_MASK: u64 = u64::MAX >> 8;

pub(super) const HEADER: usize = 0;
pub(super) const BASES: [usize; 2] = [8, 16];
pub(super) const BOOT: usize = 24;
pub(super) const INODE: usize = 32;
pub(super) const WORD: usize = 64;
pub(super) const PASSED_AT: usize = 72;
pub(super) const TICKETS: usize = 128;
pub(super) const BLOCKS: usize = 136;

const CELLS: usize = 256;
const RECORDS: usize = 448;
const RECORD: usize = 192;
const TEXT: usize = 64;
const COUNTS: usize = 24 + 2 * TEXT;

/// Bytes far beyond the file that stand for a slot: CLAIM is taken by who moves in, LIFE says that it lives.
pub(super) fn claim_byte(slot: u16) -> u64 {
    (1 << 32) + 2 * u64::from(slot)
}
pub(super) fn life_byte(slot: u16) -> u64 {
    claim_byte(slot) + 1
}

/// Slots count from 1.
fn place(slot: u16) -> (usize, usize) {
    let index = usize::from(slot.clamp(1, MAX_SLOT)) - 1;
    (index / usize::from(SLOTS_PER_BLOCK) * BLOCK, index % usize::from(SLOTS_PER_BLOCK))
}
pub(super) fn block_of(slot: u16) -> usize {
    place(slot).0 / BLOCK
}
pub(super) fn cell(slot: u16) -> usize {
    let (block, index) = place(slot);
    block + CELLS + index * 8
}
/// The cells of a block: which slot the first is of, where it is, and how many there are.
pub(super) fn cells(block: usize) -> (u16, usize, usize) {
    let before = block * usize::from(SLOTS_PER_BLOCK);
    let count = usize::from(SLOTS_PER_BLOCK).min(usize::from(MAX_SLOT).saturating_sub(before));
    (before as u16 + 1, block * BLOCK + CELLS, count)
}
fn record(slot: u16) -> usize {
    let (block, index) = place(slot);
    block + RECORDS + index * RECORD
}
pub(super) fn bell(slot: u16) -> usize {
    record(slot)
}
pub(super) fn pid(slot: u16) -> usize {
    record(slot) + 4
}
pub(super) fn since(slot: u16) -> usize {
    record(slot) + 8
}
pub(super) fn waiters(slot: u16) -> usize {
    record(slot) + 16
}
pub(super) fn waiting_since(slot: u16) -> usize {
    record(slot) + 20
}
pub(super) fn host(slot: u16) -> usize {
    record(slot) + 24
}
pub(super) fn label(slot: u16) -> usize {
    record(slot) + 24 + TEXT
}

/// What the occupants of a slot have counted. On a cache line that nothing else is on, and only ever added to.
pub(super) fn gave_up(slot: u16) -> usize {
    record(slot) + COUNTS
}
pub(super) fn losses(slot: u16) -> usize {
    record(slot) + COUNTS + 4
}
pub(super) fn rechecks(slot: u16) -> usize {
    record(slot) + COUNTS + 8
}
pub(super) fn waits(slot: u16, bucket: usize) -> usize {
    record(slot) + COUNTS + 12 + bucket * 4
}

/// What all processes have counted together.
pub(super) fn numbers(view: &(impl View + ?Sized), acquisitions: u64) -> Numbers {
    let mut all = Numbers { acquisitions, ..Numbers::default() };
    for slot in slots(blocks(view)) {
        all.gave_up += u64::from(view.u32(gave_up(slot)));
        all.losses += u64::from(view.u32(losses(slot)));
        all.rechecks += u64::from(view.u32(rechecks(slot)));
        for (bucket, waits_so_long) in all.waits.iter_mut().enumerate() {
            *waits_so_long += u64::from(view.u32(waits(slot, bucket)));
        }
    }
    all
}

/// The slots that a file of so many blocks has.
pub(super) fn slots(blocks: usize) -> std::ops::RangeInclusive<u16> {
    1..=((blocks.clamp(1, MAX_BLOCKS) * usize::from(SLOTS_PER_BLOCK)) as u16).min(MAX_SLOT)
}

/// A lock file's bytes: mapped, or read.
pub(super) trait View {
    fn u64(&self, offset: usize) -> u64;
    fn u32(&self, offset: usize) -> u32;
    fn u8(&self, offset: usize) -> u8;
}

impl View for Mapping {
    fn u64(&self, offset: usize) -> u64 {
        Mapping::u64(self, offset).load(std::sync::atomic::Ordering::Acquire)
    }
    fn u32(&self, offset: usize) -> u32 {
        Mapping::u32(self, offset).load(std::sync::atomic::Ordering::Acquire)
    }
    fn u8(&self, offset: usize) -> u8 {
        Mapping::u8(self, offset).load(std::sync::atomic::Ordering::Relaxed)
    }
}

/// Bytes that were read; beyond their end is zero.
impl View for [u8] {
    fn u64(&self, offset: usize) -> u64 {
        self.get(offset..offset + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_ne_bytes)
    }
    fn u32(&self, offset: usize) -> u32 {
        self.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }
    fn u8(&self, offset: usize) -> u8 {
        self.get(offset).copied().unwrap_or(0)
    }
}

pub(super) fn blocks(view: &(impl View + ?Sized)) -> usize {
    (view.u32(BLOCKS) as usize).clamp(1, MAX_BLOCKS)
}

/// Whoever may write to the file may have written it: what would drive a terminal is not passed on.
fn text(view: &(impl View + ?Sized), offset: usize) -> String {
    let bytes: Vec<u8> = (0..TEXT - 1).map(|at| view.u8(offset + at)).take_while(|byte| *byte != 0).collect();
    String::from_utf8_lossy(&bytes).replace(char::is_control, "\u{fffd}")
}

pub(super) fn owner(view: &(impl View + ?Sized), slot: u16) -> Owner {
    Owner { host: text(view, host(slot)), pid: view.u32(pid(slot)), label: text(view, label(slot)) }
}

pub(super) fn write_text(page: &Mapping, offset: usize, text: &str) {
    let bytes = text.bytes().take(TEXT - 1).chain(std::iter::repeat(0));
    for (at, byte) in bytes.take(TEXT).enumerate() {
        page.u8(offset + at).store(byte, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A line cell: bit 0 asleep, bit 1 without a thread, bits 8.. the ticket (never 0), bit 63 late: it was woken for a free lock, has not come
/// for it in time, and was not seen since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cell(pub(super) u64);

impl Cell {
    pub(super) const EMPTY: Cell = Cell(0);
    pub(super) const ASLEEP: u64 = 1;
    const THREADLESS: u64 = 2;
    const LATE: u64 = 1 << 63;

    pub(super) fn new(ticket: u64, has_thread: bool) -> Cell {
        Cell(ticket << 8 | if has_thread { 0 } else { Cell::THREADLESS } | Cell::ASLEEP)
    }
    pub(super) fn ticket(self) -> u64 {
        (self.0 & !Cell::LATE) >> 8
    }
    /// Whether it is served before `other`: who came first, but for those who are late.
    pub(super) fn precedes(self, other: Cell) -> bool {
        self.0 >> 8 < other.0 >> 8
    }
    pub(super) fn late(self) -> Cell {
        Cell(self.0 | Cell::LATE)
    }
    pub(super) fn is_late(self) -> bool {
        self.0 & Cell::LATE != 0
    }
    pub(super) fn has_thread(self) -> bool {
        self.0 & Cell::THREADLESS == 0
    }
    pub(super) fn is_asleep(self) -> bool {
        self.0 & Cell::ASLEEP != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::numbers::BUCKETS;

    #[test]
    fn nothing_overlaps_and_everything_fits() {
        let mut taken = std::collections::BTreeSet::new();
        let mut take = |at: usize, len: usize| {
            assert!(at + len <= MAX_LEN);
            assert_eq!(at / BLOCK, (at + len - 1) / BLOCK);
            for byte in at..at + len {
                assert!(taken.insert(byte), "{byte}");
            }
        };
        for (at, len) in [
            (HEADER, 8),
            (BASES[0], 8),
            (BASES[1], 8),
            (BOOT, 8),
            (INODE, 8),
            (WORD, 8),
            (PASSED_AT, 8),
            (TICKETS, 8),
            (BLOCKS, 4),
        ] {
            take(at, len);
        }
        for slot in slots(MAX_BLOCKS) {
            take(cell(slot), 8);
            for (at, len) in [
                (bell(slot), 4),
                (pid(slot), 4),
                (since(slot), 8),
                (waiters(slot), 4),
                (waiting_since(slot), 4),
                (host(slot), TEXT),
                (label(slot), TEXT),
                (gave_up(slot), 4),
                (losses(slot), 4),
                (rechecks(slot), 4),
                (waits(slot, 0), 4 * BUCKETS),
            ] {
                take(at, len);
            }
        }
        for block in 0..MAX_BLOCKS {
            let (first, at, count) = cells(block);
            let last = first + count as u16 - 1;
            assert_eq!((at, at + 8 * (count - 1)), (cell(first), cell(last)));
            assert_eq!(last, *slots(block + 1).end());
        }
        assert_eq!((block_of(19), block_of(20), *slots(1).end(), *slots(MAX_BLOCKS).end()), (0, 1, 19, MAX_SLOT));
    }

    #[test]
    fn a_cell_keeps_its_parts() {
        for has_thread in [true, false] {
            let cell = Cell::new(123_456, has_thread);
            for cell in [cell, cell.late()] {
                assert_eq!((cell.ticket(), cell.has_thread(), cell.is_asleep()), (123_456, has_thread, true));
            }
            let next = Cell::new(123_457, has_thread);
            assert!(cell.precedes(next) && next.precedes(cell.late()) && cell.late().is_late() && !cell.is_late());
        }
    }
}
