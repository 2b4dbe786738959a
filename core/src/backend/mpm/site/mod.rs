//! One process at one lock file: its slot, its mapping, its waiters. The handles of the process share it.

mod hand_over;
mod line;
mod open;

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::*};
use std::sync::{Arc, Weak};
use std::time::Duration;

use rustix::fs::{self, Mode, OFlags};

use self::open::damaged;
use super::Mpm;
use super::layout::{self, BLOCK};
use super::place::{self, Identity};
use super::word::{self, ABANDONED, HAND_OVER, LINE, State, Word};
use crate::backend::contract::Grant;
use crate::error::{Error, Result, broken, lost};
use crate::loss::{self, Losses};
use crate::sync::Guarded;
use crate::sys::coarse_ms;
use crate::sys::file::is_byte_locked;
use crate::sys::fork::OwnFile;
use crate::sys::page::Mapping;
use crate::waiter::Waiter;

/// How long newcomers may take a free lock in passing while somebody waits.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long a lock is kept for a waiter that does not come for it.
const CLAIM_MS: u64 = 250;
/// How many looks at the path each tick of the coarse clock is worth: enough for every hold of a program that is not
/// hammering, and next to nothing for one that is.
const LOOKS_PER_TICK: u64 = 32;
/// How often a file that is in use is asked for its age.
const TOUCH_MS: u64 = 3_600_000;
const SPINS: u32 = 40;

pub(super) struct Site {
    pub(super) path: PathBuf,
    identity: Identity,
    root: Option<Identity>,
    page: Mapping,
    /// Where the mapping does not keep the description.
    file: Option<Arc<OwnFile>>,
    pub(super) slot: u16,
    /// Where since when it holds stands: a number that is written on each entry is not to be worked out on each.
    since: usize,
    /// The token base of this process's latest hold.
    base: AtomicU64,
    /// Set once the path leads elsewhere: nobody takes the lock here any more.
    vanished: AtomicBool,
    /// Coarse ms << 8 | looks at the path in it.
    looks: AtomicU64,
    /// When, in coarse ms, the age of the file is looked at again.
    next_touch: AtomicU64,
    /// The number of the label that stands in the slot's record.
    label: AtomicU64,
    /// The tick of the coarse clock in which a release last looked how long the first in line has waited.
    looked: AtomicU64,
    /// Why it could not be asked, when it last was to be, whether somebody lives: an errno; 0 if it could.
    blind: AtomicI32,
    local: Guarded<Local>,
    /// The ticket of the first of `local`; 0 if there is none.
    front: AtomicU64,
    /// Whether the pulse watches this site; changed under `local`. It does for as long as anybody is in the line.
    watched: AtomicBool,
    pub(super) losses: Losses,
    me: Weak<Site>,
}

#[derive(Default)]
struct Local {
    line: VecDeque<Entry>,
    /// Whether a bell ringer watches this site.
    bells: bool,
}

/// CLOCK_MONOTONIC in µs, the low half, and never 0.
fn now_us() -> u32 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    (now.tv_sec as u64).wrapping_mul(1_000_000).wrapping_add(now.tv_nsec as u64 / 1000) as u32 | 1
}

/// How closely a waiter looks at the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// As it is.
    Brief,
    /// And asks whether the owner lives.
    Thorough,
    /// And passes over who has left a free lock lying for too long.
    Late,
}

/// A waiter of this process, in the order of tickets.
pub(super) struct Entry {
    pub(super) waiter: Arc<Waiter>,
    pub(super) handle: Weak<Mpm>,
    pub(super) strict: bool,
    ticket: u64,
    /// [`now_us`] when it came.
    since: u32,
}

/// A handle's label, with a number that no other label of this process has.
pub(super) struct Label {
    number: u64,
    text: String,
}

impl Label {
    pub(super) fn new(text: &str) -> Label {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Label { number: LAST.fetch_add(1, Relaxed) + 1, text: text.to_owned() }
    }
}

impl Site {
    #[inline]
    fn word(&self) -> Word {
        Word(self.page.u64(layout::WORD).load(SeqCst))
    }

    #[inline]
    fn swap(&self, from: Word, to: Word) -> Result<(), Word> {
        match self.page.u64(layout::WORD).compare_exchange(from.0, to.0, SeqCst, SeqCst) {
            Ok(_) => Ok(()),
            Err(now) => Err(Word(now)),
        }
    }

    /// The state that `word` says. A slot that the file has no room for is no process's.
    #[inline]
    fn state(&self, word: Word) -> State {
        match word.state() {
            State::Held | State::Reserved if self.has_room(word.slot()) == Some(false) => State::Bad,
            state => state,
        }
    }

    /// Whether the file has room for `slot`. `None`: this process cannot see so far.
    fn has_room(&self, slot: u16) -> Option<bool> {
        match slot {
            0 => Some(false),
            slot if slot == self.slot => Some(true),
            slot => self.page.reaches((layout::block_of(slot) + 1) * BLOCK),
        }
    }

    /// How many blocks there are, as far as can be seen. Others may have added some.
    fn blocks(&self) -> usize {
        let said = layout::blocks(&self.page);
        if self.page.reaches(said * BLOCK) == Some(true) { said } else { self.page.reach() / BLOCK }
    }

    fn note_passing(&self, tick: u64) {
        self.page.u64(layout::PASSED_AT).store(tick, Relaxed);
    }

    /// Enters from exactly `word`.
    #[inline]
    fn enter(&self, word: Word, abandoned: bool, strict: bool) -> Option<Grant> {
        let mut entered = word.entered(self.slot);
        if strict && entered.has(LINE) {
            entered = entered.with(HAND_OVER);
        }
        self.swap(word, entered).ok()?;
        let generation = entered.generation();
        let half = word::half_of(generation);
        let base = self.page.u64(layout::BASES[half]).load(Acquire);
        if word::past_the_middle(generation) {
            self.page.u64(layout::BASES[1 - half]).fetch_max(base.wrapping_add(word::HALF), AcqRel);
        }
        if self.base.load(Relaxed) != base {
            self.base.store(base, Release);
        }
        let token = word::token(base, generation);
        if self.losses.is_anyone_listening() {
            self.tell_broken();
        }
        Some(Grant { token, abandoned })
    }

    /// Enters in the place of an owner that died or is to be robbed.
    #[cold]
    fn succeed(&self, word: Word, strict: bool) -> Option<Grant> {
        let grant = self.enter(word, true, strict)?;
        self.note_loss(word);
        Some(grant)
    }

    /// The owner that `word` named died, or was robbed.
    fn note_loss(&self, word: Word) {
        let before = layout::owner(&self.page, word.slot());
        self.count(layout::losses(self.slot));
        log::warn!(
            "{}: pid {} on {} ({}) died holding, or was robbed: the next one hears abandoned",
            self.path.display(),
            before.pid,
            before.host,
            before.label
        );
    }

    fn count(&self, number: usize) {
        self.page.u32(number).fetch_add(1, Relaxed);
    }

    /// On entry: whoever still listens, to a hold that was broken without having noticed; a release would have ended the listening.
    #[cold]
    fn tell_broken(&self) {
        self.losses.tell_all(&broken("on_lost"));
    }

    /// The word, if it says that this process has the hold with `token`. Nothing but the word says so: what a thread noted
    /// beside it could be late, and overwrite what its successor noted.
    #[inline]
    pub(super) fn hold(&self, token: u64) -> Option<Word> {
        let word = self.word();
        let mine = word.state() == State::Held && word.slot() == self.slot;
        (mine && word::token(self.base.load(Acquire), word.generation()) == token).then_some(word)
    }

    /// Whether the process in `slot` has died. What cannot be told is a no. This process's own slot is never asked about.
    fn is_dead(&self, slot: u16) -> bool {
        if slot == self.slot || slot == 0 {
            return false;
        }
        let file = match fs::open(&self.path, place::CAREFULLY | OFlags::RDONLY, Mode::empty()) {
            Ok(file) => file,
            Err(error) => {
                self.blind.store(error.raw_os_error(), Relaxed);
                return false;
            }
        };
        self.blind.store(0, Relaxed);
        // On another file every byte is free: that says nothing about this one.
        let same = fs::fstat(&file).is_ok_and(|stat| Identity::of(&stat) == self.identity);
        same && is_byte_locked(file.as_fd(), layout::life_byte(slot)) == Ok(false)
    }

    /// Why a death may go unnoticed here.
    pub(super) fn blindness(&self) -> Option<String> {
        let errno = self.blind.load(Relaxed);
        (errno != 0 && self.word().slot() != self.slot)
            .then(|| format!("; whether it lives cannot be told: {}", std::io::Error::from_raw_os_error(errno)))
    }

    /// Whether nobody will come for a reservation: nobody of that process waits any more, or its claim is over.
    fn is_unclaimed(&self, slot: u16) -> bool {
        self.has_room(slot) == Some(true) && self.page.u64(layout::cell(slot)).load(SeqCst) == 0 || self.is_stale()
    }

    /// Whether the lock was passed on for longer ago than a claim lasts. A time that is not of this clock (another time namespace) counts as old.
    fn is_stale(&self) -> bool {
        let passed = self.page.u64(layout::PASSED_AT).load(Relaxed);
        !(0..=CLAIM_MS).contains(&coarse_ms().wrapping_sub(passed))
    }

    /// [`Site::take`], if the word is free and stays so.
    #[inline]
    pub(super) fn take_free(&self, strict: bool, label: &Label) -> Option<Grant> {
        let word = self.word();
        if self.has_vanished() || word.state() != State::Free || strict && word.has(LINE) {
            return None;
        }
        let grant = self.enter(word, word.has(ABANDONED), strict)?;
        self.write_label(label);
        Some(grant)
    }

    /// Takes the lock in passing, if that is allowed now.
    pub(super) fn take(&self, strict: bool, label: &Label) -> Result<Option<Grant>> {
        let mut spins = 0;
        let mut first = None;
        let grant = loop {
            let word = self.word();
            let entered = match self.state(word) {
                State::Free if strict && word.has(LINE) && self.is_anyone_before() => return Ok(None),
                State::Free => self.enter(word, word.has(ABANDONED), strict),
                State::Bad => return Err(damaged("acquire", &self.path)),
                State::Held if word.slot() == self.slot => return Ok(None),
                State::Reserved if word.slot() == self.slot && !self.is_unclaimed(word.slot()) => return Ok(None),
                state => {
                    // Somebody else, or nobody. If the lock moves on while we look, its owner lives and need not be asked after.
                    let before = *first.get_or_insert(word);
                    if word.generation() != before.generation() {
                        return Ok(None);
                    }
                    if spins < SPINS {
                        spins += 1;
                        std::hint::spin_loop();
                        continue;
                    }
                    match state {
                        State::Reserved | State::Held
                            if state == State::Reserved && self.is_unclaimed(word.slot())
                                || self.is_dead(word.slot()) =>
                        {
                            if state == State::Reserved {
                                self.pass_over(word.slot());
                            }
                            if strict && self.is_anyone_before() {
                                if state == State::Reserved {
                                    self.pass_reservation(word);
                                }
                                // The others have heard of a death as well, and are served in their order.
                                return Ok(None);
                            }
                            if state == State::Held {
                                self.succeed(word, strict)
                            } else {
                                self.enter(word, word.has(ABANDONED), strict)
                            }
                        }
                        _ => return Ok(None),
                    }
                }
            };
            if let Some(grant) = entered {
                break grant;
            }
        };
        self.write_label(label);
        Ok(Some(grant))
    }

    /// Notes since when this process holds; whether the path still leads here.
    #[inline]
    pub(super) fn note_hold(&self) -> bool {
        let tick = coarse_ms();
        // The look comes first: where the file was cut off, nothing is to be noted.
        let here = self.is_here_at(tick);
        self.page.u64(self.since).store(tick, Relaxed);
        here
    }

    #[inline]
    fn write_label(&self, label: &Label) {
        if self.label.load(Relaxed) != label.number {
            self.rewrite_label(label);
        }
    }

    #[cold]
    fn rewrite_label(&self, label: &Label) {
        self.label.store(label.number, Relaxed);
        layout::write_text(&self.page, layout::label(self.slot), &label.text);
    }

    /// Whether the path still leads here. Looked up at most [`LOOKS_PER_TICK`] times per tick of the coarse clock.
    #[inline]
    pub(super) fn is_here(&self) -> bool {
        self.is_here_at(coarse_ms())
    }

    #[inline]
    fn is_here_at(&self, tick: u64) -> bool {
        let looks = self.looks.load(Relaxed);
        let done = if looks >> 8 == tick { looks & 0xff } else { 0 };
        if done < LOOKS_PER_TICK {
            self.looks.store(tick << 8 | (done + 1), Relaxed);
            self.look();
        }
        !self.vanished.load(Acquire)
    }

    pub(super) fn has_vanished(&self) -> bool {
        self.vanished.load(Relaxed)
    }

    /// Looks where the path leads; if elsewhere, everybody here moves on.
    #[cold]
    fn look(&self) {
        // Before the file's length: both only grow, and another thread may see a longer file meanwhile.
        let reach = self.page.reach() as u64;
        let here = match place::found(&self.path) {
            Ok(Some(stat)) if Identity::of(&stat) == self.identity && self.has_its_file() => {
                let (tick, len) = (coarse_ms(), stat.st_size as u64);
                if tick >= self.next_touch.load(Relaxed) {
                    self.next_touch.store(tick + TOUCH_MS, Relaxed);
                    place::keep_from_cleaners(&self.path, &stat);
                }
                // Cut off by somebody: what is gone may not be touched any more.
                let whole = len >= reach;
                if !whole {
                    self.page.shrink(len as usize / BLOCK * BLOCK);
                }
                whole
            }
            Ok(Some(_)) => false,
            // Nothing there; but seen from another root (chroot, another mount namespace) that says nothing.
            Ok(None) => fs::stat("/").ok().map(|stat| Identity::of(&stat)) != self.root,
            Err(_) => true,
        };
        if !here && !self.vanished.swap(true, SeqCst) {
            log::warn!("{}: the lock file {}", self.path.display(), self.what_became_of_it());
            self.losses.tell_all(&self.gone("on_lost"));
            self.evacuate();
        }
    }

    #[cold]
    fn gone(&self, operation: &'static str) -> Error {
        lost(operation, format!("the lock file {} {}", self.path.display(), self.what_became_of_it()))
    }

    fn what_became_of_it(&self) -> &'static str {
        if self.has_its_file() {
            "was removed or replaced"
        } else {
            "was closed by this program, which owns it no more"
        }
    }

    /// Whether the descriptor that is kept, if one is, is still open.
    fn has_its_file(&self) -> bool {
        self.file.as_ref().is_none_or(|file| file.is_there())
    }

    /// Sends the waiters of a file that is gone to the one that is there now.
    fn evacuate(&self) {
        let entries = {
            let mut local = self.local.lock();
            let entries = std::mem::take(&mut local.line);
            self.promote(&mut local);
            entries
        };
        for entry in entries {
            if let Some(handle) = entry.handle.upgrade()
                && let Err(error) = handle.rejoin(&entry.waiter)
            {
                // A refusal means that it has ended; it stands in no line any more.
                let _ = entry.waiter.settle(Err(error));
            }
            entry.waiter.unpark();
        }
        self.ring_own();
    }

    /// Ends the hold with `token`, which began as `hold`; the next one hears `abandoned`.
    #[inline]
    pub(super) fn release(&self, hold: Word, token: u64, abandoned: bool) -> Result<()> {
        let quiet = !abandoned && !hold.has(LINE) && !self.losses.is_anyone_listening();
        if quiet && self.swap(hold, hold.freed(false)).is_ok() {
            return if self.is_here() { Ok(()) } else { Err(self.gone("release")) };
        }
        self.release_with_care(hold, token, abandoned)
    }

    #[cold]
    fn release_with_care(&self, hold: Word, token: u64, abandoned: bool) -> Result<()> {
        // First: once the word is free, the next one here tells whoever still listens.
        let listeners = self.losses.take(token);
        let tick = coarse_ms();
        let outcome = if !self.pass_on(hold, abandoned, tick) {
            Err(broken("release"))
        } else if !self.is_here_at(tick) {
            Err(self.gone("release"))
        } else {
            return Ok(());
        };
        outcome.inspect_err(|error| loss::tell(listeners, error))
    }

    /// [`Site::release`] of what nobody was given, or nobody will end.
    pub(super) fn give_back(&self, grant: Grant) {
        if let Some(hold) = self.hold(grant.token) {
            // Nobody had it, so nobody has lost it.
            let _ = self.release(hold, grant.token, grant.abandoned);
        }
    }

    /// Whether the hold with `token` still stands.
    pub(super) fn check(&self, token: u64) -> Result<()> {
        if self.vanished.load(Acquire) {
            return Err(self.gone("check"));
        }
        self.hold(token).map(drop).ok_or_else(|| broken("check"))
    }

    /// [`Site::check`], and a look at the path: for who is to be told of a loss without asking.
    pub(super) fn check_path(&self, token: u64) -> Result<()> {
        self.look();
        self.check(token)
    }

    /// Takes the lock from its owner and passes it on, abandoned.
    pub(super) fn break_lock(&self) -> bool {
        loop {
            let word = self.word();
            if word.state() != State::Held {
                return false;
            }
            // As in any entry of ours, the old token is told of its loss; another process finds out by its word.
            let Some(grant) = self.succeed(word, false) else { continue };
            if word.has(LINE) {
                self.raise_flags(word.has(HAND_OVER));
            }
            self.give_back(Grant { abandoned: true, ..grant });
            return true;
        }
    }

    pub(super) fn view(&self) -> &Mapping {
        &self.page
    }
}
