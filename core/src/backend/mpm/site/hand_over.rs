//! Between the processes of a file: who is first, whom the lock is handed over to, who is rung.

use std::sync::atomic::Ordering::*;

use super::super::layout::{self, Cell};
use super::super::word::{ABANDONED, HAND_OVER, LINE, State, Word};
use super::{Look, PATIENCE, Site, now_us};
use crate::sys::coarse_ms;
use crate::sys::futex;

impl Site {
    /// The slow half of a release in this tick of the clock: somebody waits, or the hold is gone (`false`).
    #[cold]
    pub(super) fn pass_on(&self, hold: Word, abandoned: bool, tick: u64) -> bool {
        loop {
            let word = self.word();
            if !word.is_hold(hold) {
                return false;
            }
            self.note_passing(tick);
            if (word.has(HAND_OVER) || word.has(LINE) && self.is_overdue(tick))
                && let Some((slot, cell)) = self.first_in_line().filter(|(_, cell)| !cell.is_late())
            {
                // Once for each waiter: one that is stopped would hold up everybody each time anew.
                self.page.u32(layout::waiting_since(slot)).store(0, Relaxed);
                let reserved = word.reserved(slot, abandoned);
                if self.swap(word, reserved).is_ok() {
                    let now = coarse_ms();
                    if now != tick {
                        // It may have been stopped since: the claim would have run out before it began.
                        self.note_passing(now);
                    }
                    if !self.ring(slot, cell) {
                        self.pass_reservation(reserved);
                    }
                    return true;
                }
            } else if self.swap(word, word.freed(abandoned)).is_ok() {
                if word.has(LINE) {
                    self.serve_line();
                }
                return true;
            }
        }
    }

    /// Whether the first in line has waited for so long that the lock is to be handed over. A waiter that sleeps cannot say so
    /// itself, and one that was woken may be long in getting a processor. Looked at once in each tick of the coarse clock: with
    /// every release, it would cost more than the rest of it.
    fn is_overdue(&self, tick: u64) -> bool {
        if self.looked.load(Relaxed) == tick {
            return false;
        }
        self.looked.store(tick, Relaxed);
        // A time that is not of this clock (another time namespace) counts as over: that costs speed, and nothing else.
        self.first_in_line().is_some_and(|(slot, _)| {
            let since = self.page.u32(layout::waiting_since(slot)).load(Relaxed);
            since != 0 && u128::from(now_us().wrapping_sub(since)) >= PATIENCE.as_micros()
        })
    }

    /// A reservation whose waiter will not come: on to the next, or free.
    pub(super) fn pass_reservation(&self, mut reserved: Word) {
        loop {
            self.note_passing(coarse_ms());
            let abandoned = reserved.has(ABANDONED);
            let first = self.first_in_line().filter(|(_, cell)| !cell.is_late());
            let next = first.map_or(reserved.freed(abandoned), |(slot, _)| reserved.reserved(slot, abandoned));
            if next != reserved
                && let Err(now) = self.swap(reserved, next)
            {
                if now.without(LINE | HAND_OVER) != reserved.without(LINE | HAND_OVER) {
                    return; // Somebody took it.
                }
                // Another waiter is about to sleep, and trusts whoever has the lock.
                reserved = now;
                continue;
            }
            let Some((slot, cell)) = first else { return self.serve_line() };
            if self.ring(slot, cell) {
                return;
            }
            reserved = next;
        }
    }

    /// A lock that nobody will come for: of an owner that has died, or kept for one who is gone or late. It goes to the first in line, who is woken;
    /// if that is this process, the word from which it is to be entered. `None`: look again. Under `local`, so this process is not rung.
    pub(super) fn give_to_first(&self, mut word: Word) -> Option<Word> {
        loop {
            let first = self.first_in_line().filter(|(slot, cell)| *slot != self.slot && !cell.is_late());
            let Some((slot, cell)) = first else { return Some(word) };
            self.note_passing(coarse_ms());
            let given = word.reserved(slot, word.state() == State::Held || word.has(ABANDONED));
            if given != word && self.swap(word, given).is_err() {
                return None;
            }
            if word.state() == State::Held {
                self.note_loss(word);
            }
            if self.ring(slot, cell) {
                return None;
            }
            word = given;
        }
    }

    /// If the lock is free and somebody waits, wakes the first. If nobody does, LINE goes.
    pub(super) fn serve_line(&self) {
        loop {
            let word = self.word();
            if word.state() != State::Free || !word.has(LINE) {
                return;
            }
            match self.first_in_line() {
                // Exactly this word: an entry in between has another generation, and then its release looks.
                None => {
                    // Who came while the cells were read saw LINE, and may have left the word to another who came with it.
                    if self.swap(word, word.without(LINE)).is_err() || self.first_in_line().is_none() {
                        return;
                    }
                    self.restore_line();
                }
                Some((slot, cell)) => {
                    if self.ring(slot, cell) {
                        return;
                    }
                }
            }
        }
    }

    #[cold]
    fn restore_line(&self) {
        loop {
            let word = self.word();
            if word.has(LINE) || self.swap(word, word.with(LINE)).is_ok() {
                return;
            }
        }
    }

    /// The lowest ticket in the file, but for those who are late. It may be of a process that has died.
    pub(super) fn first_in_line(&self) -> Option<(u16, Cell)> {
        let mut first: Option<(u16, Cell)> = None;
        for block in 0..self.blocks() {
            let (slot, at, count) = layout::cells(block);
            for (cell, slot) in self.page.u64s(at, count).iter().zip(slot..) {
                let cell = Cell(cell.load(SeqCst));
                if cell != Cell::EMPTY && first.is_none_or(|(_, best)| cell.precedes(best)) {
                    first = Some((slot, cell));
                }
            }
        }
        first
    }

    /// The lowest ticket of a process that lives. The cells of the dead are cleared.
    pub(super) fn first_alive(&self) -> Option<(u16, Cell)> {
        loop {
            let (slot, cell) = self.first_in_line()?;
            if !self.is_dead(slot) {
                return Some((slot, cell));
            }
            // A change of the cell means that somebody new has moved in.
            let _ = self.page.u64(layout::cell(slot)).compare_exchange(cell.0, 0, SeqCst, SeqCst);
        }
    }

    /// Whether anybody waits who is not late.
    pub(super) fn is_anyone_before(&self) -> bool {
        self.first_alive().is_some_and(|(_, cell)| !cell.is_late())
    }

    /// The claim of the first of `slot` was over: it is late, until it is seen again. One that is stopped would cost everybody its claim
    /// with each release.
    pub(super) fn pass_over(&self, slot: u16) {
        let place = self.page.u64(layout::cell(slot));
        let cell = Cell(place.load(SeqCst));
        // Asleep means that it was seen after it was woken, or has not been woken.
        if slot == self.slot || cell == Cell::EMPTY || cell.is_asleep() || cell.is_late() {
            return;
        }
        if place.compare_exchange(cell.0, cell.late().0, SeqCst, SeqCst).is_ok() {
            // Who marked it as woken may have been stopped before it woke it.
            let bell = self.page.u32(layout::bell(slot));
            bell.fetch_add(1, SeqCst);
            futex::wake(bell, u32::MAX, futex::ANY, true);
        }
    }

    /// Wakes the waiter that `cell` names. `false` if it is gone: it left, or its process has died, and its cell is cleared.
    pub(super) fn ring(&self, slot: u16, cell: Cell) -> bool {
        if slot == self.slot {
            if self.page.u64(layout::cell(slot)).load(SeqCst) == 0 {
                // It left before the word was changed for it, and so has passed nothing on.
                return false;
            }
            if cell.has_thread() {
                self.ring_own();
            } else {
                self.drive(Look::Brief, None);
            }
            return true;
        }
        // The cell as it is now, after the change of the word: when it was read to choose this waiter, it may have been awake
        // and have gone to sleep since, having seen the word as it was.
        let place = self.page.u64(layout::cell(slot));
        let awake = loop {
            let now = Cell(place.load(SeqCst));
            if now.ticket() != cell.ticket() {
                return false;
            }
            if !now.is_asleep() {
                // It looks at the word before it sleeps. If it dies first, whoever clears its cell looks after that.
                return true;
            }
            let awake = now.0 & !Cell::ASLEEP;
            if place.compare_exchange(now.0, awake, SeqCst, SeqCst).is_ok() {
                break awake;
            }
        };
        let bell = self.page.u32(layout::bell(slot));
        bell.fetch_add(1, SeqCst);
        if futex::wake(bell, u32::MAX, futex::ANY, true) > 0 || !self.is_dead(slot) {
            return true;
        }
        // A change of the cell means that somebody new has moved in.
        let _ = place.compare_exchange(awake, 0, SeqCst, SeqCst);
        false
    }
}
