//! The word: 64 bits that decide who owns the lock. Pure.
//!
//! bits 0-1 state · 2 LINE (somebody may sleep) · 3 ABANDONED (the next hold is told) · 4 HAND_OVER (the next release
//! reserves) · 5-16 slot (owner or reserved waiter; 0 while free) · 17-63 generation (+1 on each entry into HELD).

use std::fmt;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Word(pub(super) u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Free,
    Held,
    Reserved,
    /// No protocol state: the page is damaged.
    Bad,
}

const STATE: u64 = 3;
const HELD: u64 = 1;
const RESERVED: u64 = 2;
pub(super) const LINE: u64 = 1 << 2;
pub(super) const ABANDONED: u64 = 1 << 3;
pub(super) const HAND_OVER: u64 = 1 << 4;
const SLOT_SHIFT: u32 = 5;
const SLOT: u64 = 0xfff << SLOT_SHIFT;
const GENERATION_SHIFT: u32 = 17;
const GENERATION: u64 = u64::MAX << GENERATION_SHIFT;

impl Word {
    pub(super) fn state(self) -> State {
        match self.0 & STATE {
            0 => State::Free,
            HELD => State::Held,
            RESERVED => State::Reserved,
            _ => State::Bad,
        }
    }
    pub(super) fn slot(self) -> u16 {
        ((self.0 & SLOT) >> SLOT_SHIFT) as u16
    }
    pub(super) fn generation(self) -> u64 {
        self.0 >> GENERATION_SHIFT
    }
    pub(super) fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }
    pub(super) fn with(self, flag: u64) -> Word {
        Word(self.0 | flag)
    }
    pub(super) fn without(self, flag: u64) -> Word {
        Word(self.0 & !flag)
    }

    /// Owned by `slot`, one generation on. LINE stays; HAND_OVER and ABANDONED have had their effect.
    pub(super) fn entered(self, slot: u16) -> Word {
        let generation = (self.0 & GENERATION).wrapping_add(1 << GENERATION_SHIFT);
        Word(generation | u64::from(slot) << SLOT_SHIFT | (self.0 & LINE) | HELD)
    }
    /// Free, told as abandoned or not. LINE stays.
    pub(super) fn freed(self, abandoned: bool) -> Word {
        Word((self.0 & (GENERATION | LINE)) | if abandoned { ABANDONED } else { 0 })
    }
    /// Kept for `slot`, told as abandoned or not. LINE stays.
    pub(super) fn reserved(self, slot: u16, abandoned: bool) -> Word {
        let mark = if abandoned { ABANDONED } else { 0 };
        Word((self.0 & (GENERATION | LINE)) | mark | u64::from(slot) << SLOT_SHIFT | RESERVED)
    }
    /// Whether this is the hold that `hold` began as: same owner, same generation, whatever was flagged since.
    pub(super) fn is_hold(self, hold: Word) -> bool {
        (self.0 ^ hold.0) & (STATE | SLOT | GENERATION) == 0
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}(slot {}, generation {}", self.state(), self.slot(), self.generation())?;
        for (flag, name) in [(LINE, ", line"), (ABANDONED, ", abandoned"), (HAND_OVER, ", hand over")] {
            if self.has(flag) {
                f.write_str(name)?;
            }
        }
        f.write_str(")")
    }
}

/// Tokens: two bases, one for each half of the generations, so that the counter may wrap. A token is the base of its half
/// plus the generation within the half.
pub(super) const HALF: u64 = 1 << 46;

pub(super) fn half_of(generation: u64) -> usize {
    usize::from(generation & HALF != 0)
}

#[inline]
pub(super) fn token(base: u64, generation: u64) -> u64 {
    base.wrapping_add(generation & (HALF - 1))
}

/// Whether a holder of this generation must raise the other half's base, for when the counter gets there.
pub(super) fn past_the_middle(generation: u64) -> bool {
    generation & (HALF >> 1) != 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_new_generation_and_keeps_only_the_line() {
        let word = Word(0).with(LINE | ABANDONED | HAND_OVER).entered(4095);
        assert_eq!((word.state(), word.slot(), word.generation()), (State::Held, 4095, 1));
        assert!(word.has(LINE) && !word.has(ABANDONED) && !word.has(HAND_OVER));
        assert!(
            word.with(HAND_OVER).is_hold(word) && !word.entered(4095).is_hold(word) && !word.freed(false).is_hold(word)
        );
        assert_eq!(word.reserved(7, true).slot(), 7);
        assert_eq!(word.freed(true).slot(), 0);
        assert!(word.freed(true).has(ABANDONED) && word.freed(true).has(LINE));
    }

    #[test]
    fn the_generation_wraps_without_touching_its_neighbours() {
        let last = Word(GENERATION | LINE);
        let word = last.entered(1);
        assert_eq!((word.generation(), word.slot(), word.state()), (0, 1, State::Held));
        assert_eq!((half_of(HALF - 1), half_of(HALF), half_of(0)), (0, 1, 0));
        assert!(
            !past_the_middle(1) && past_the_middle(HALF - 1) && !past_the_middle(HALF) && past_the_middle(2 * HALF - 1)
        );
    }
}
