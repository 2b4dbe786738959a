//! One process at one lock file: its slot, its mapping, its waiters. The handles of the process share it.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::*};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::fs::{self, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;

use super::layout::{self, BLOCK, Cell, MAX_BLOCKS, MAX_LEN};
use super::place::{self, Identity};
use super::word::{self, ABANDONED, HAND_OVER, LINE, State, Word};
use super::{Mpm, bells, pulse};
use crate::backend::contract::{Grant, Owner};
use crate::error::{Error, ErrorKind, Result};
use crate::hold::lost;
use crate::loss::{self, Losses};
use crate::numbers;
use crate::sync::Guarded;
use crate::sys::coarse_ms;
use crate::sys::file::{is_byte_locked, lock_byte};
use crate::sys::fork::{ForkGate, PerProcess};
use crate::sys::futex::{self, Woken};
use crate::sys::page::Mapping;
use crate::url::FileTarget;
use crate::wait::Waiter;

/// How long newcomers may take a free lock in passing while somebody waits.
const PATIENCE: Duration = Duration::from_millis(1);
/// How long a lock is kept for a waiter that does not come for it.
const CLAIM_MS: u64 = 250;
/// How many looks at the path each tick of the coarse clock is worth: enough for every hold of a program that is not
/// hammering, and next to nothing for one that is.
const LOOKS_PER_TICK: u64 = 32;
/// The bell's bit of waiters without a thread.
const ASYNC_BIT: u32 = 31;
const SPINS: u32 = 40;

pub(super) struct Site {
    pub(super) path: PathBuf,
    identity: Identity,
    root: Option<Identity>,
    page: Mapping,
    pub(super) slot: u16,
    /// The token base of this process's latest hold.
    base: AtomicU64,
    /// Set once the path leads elsewhere: nobody takes the lock here any more.
    vanished: AtomicBool,
    /// Coarse ms << 8 | looks at the path in it.
    looks: AtomicU64,
    /// The number of the label that stands in the slot's record.
    label: AtomicU64,
    local: Guarded<Local>,
    /// The ticket of the first of `local`; 0 if there is none.
    front: AtomicU64,
    pub(super) losses: Losses,
    me: Weak<Site>,
}

#[derive(Default)]
struct Local {
    line: VecDeque<Entry>,
    /// Whether the pulse watches this site, and whether a bell ringer does.
    pulse: bool,
    bells: bool,
}

/// How closely a waiter looks at the word.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    /// As it is.
    Brief,
    /// And asks whether the owner lives.
    Thorough,
    /// And takes what the one before it has left lying for too long.
    Late,
}

/// A waiter of this process, in the order of tickets.
pub(super) struct Entry {
    pub(super) waiter: Arc<Waiter>,
    pub(super) handle: Weak<Mpm>,
    pub(super) strict: bool,
    ticket: u64,
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

type Sites = Guarded<std::collections::HashMap<Identity, Weak<Site>>>;
static SITES: PerProcess<Sites> = PerProcess::new();

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// A number for this boot of the host; 0 if it cannot be told.
fn boot_id() -> u64 {
    static BOOT_ID: PerProcess<u64> = PerProcess::new();
    *BOOT_ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // FNV-1a: it only has to differ from the last one.
        text.bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    })
}

impl Site {
    /// The site at `path`, with a slot of its own in the file; shared with the other handles of this process.
    pub(super) fn open(path: PathBuf, target: &FileTarget, owner: &Owner, label: &Label) -> Result<Arc<Site>> {
        let sites = SITES.get_or_init(Guarded::default);
        // Sites that turn out not to be the one; dropped after `known` is unlocked, since their end locks it.
        let mut others: Vec<Arc<Site>> = Vec::new();
        let mut known = sites.lock();
        // The checks of `place::open` were made when the site was opened; the inode says that it is the same file.
        if let Ok(Some((identity, _))) = place::identity(&path)
            && let Some(site) = known.get(&identity).and_then(Weak::upgrade)
        {
            if !site.has_vanished() && site.path == path {
                return Ok(site);
            }
            others.push(site);
        }
        // Until the descriptor is closed, a child would share the description, and its parent would seem to live on.
        let gate = ForkGate::enter();
        loop {
            let (file, stat) = place::open(&path, target)?;
            let identity = Identity::of(&stat);
            if let Some(site) = known.get(&identity).and_then(Weak::upgrade) {
                if !site.has_vanished() {
                    return Ok(site); // Another spelling of the same path.
                }
                others.push(site);
            }
            let io = |what: &'static str| {
                let path = path.clone();
                move |error: Errno| Error::from_errno("open", format_args!("{}: {what}", path.display()), error)
            };
            if (stat.st_size as usize) < BLOCK {
                allocate(&file, 0).map_err(io("allocating"))?;
            }
            let page = Mapping::new(file.as_fd(), MAX_LEN).map_err(io("mapping"))?;
            begin_page(&page, identity, &path)?;
            let slot = claim_slot(&file, &page).map_err(io("taking a slot"))?.ok_or_else(|| {
                Error::new(
                    ErrorKind::Resource,
                    "open",
                    format!("{} has all of its {} slots taken", path.display(), layout::MAX_SLOT),
                )
                .with_help("close the lock in some of the processes that have it open")
            })?;
            // The file may have been unlinked since it was opened: then this is nobody's lock.
            if !matches!(place::identity(&path), Ok(Some((now, _))) if now == identity) {
                continue;
            }
            let root = fs::stat("/").ok().map(|stat| Identity::of(&stat));
            let site = Arc::new_cyclic(|me| Site {
                path: path.clone(),
                identity,
                root,
                page,
                slot,
                base: AtomicU64::new(0),
                vanished: AtomicBool::new(false),
                looks: AtomicU64::new(0),
                label: AtomicU64::new(0),
                local: Guarded::default(),
                front: AtomicU64::new(0),
                losses: Losses::default(),
                me: me.clone(),
            });
            layout::write_text(&site.page, layout::host(slot), &owner.host);
            site.write_label(label);
            site.page.u32(layout::pid(slot)).store(owner.pid, Release);
            site.move_in();
            let alive = lock_byte(file.as_fd(), layout::life_byte(slot)).map_err(io("taking a slot"));
            if !matches!(alive, Ok(true)) {
                others.push(site);
                alive?;
                // Nobody else takes LIFE without CLAIM: a program that knows nothing of ours has a lock there.
                return Err(Error::new(
                    ErrorKind::Unsafe,
                    "open",
                    format!("{} has foreign byte locks", path.display()),
                ));
            }
            drop(file);
            drop(gate);
            known.insert(identity, Arc::downgrade(&site));
            return Ok(site);
        }
    }

    /// After CLAIM, before LIFE: what the slot's last occupant left. If it died as the owner, nobody else may have seen it.
    fn move_in(&self) {
        self.page.u64(layout::cell(self.slot)).store(0, SeqCst);
        self.page.u32(layout::waiters(self.slot)).store(0, Relaxed);
        loop {
            let word = self.word();
            let owned = matches!(word.state(), State::Held | State::Reserved) && word.slot() == self.slot;
            if owned {
                let abandoned = word.state() == State::Held || word.has(ABANDONED);
                self.note_passing();
                if self.swap(word, word.freed(abandoned)).is_err() {
                    continue;
                }
                if word.state() == State::Held {
                    self.count(layout::losses(self.slot));
                }
            }
            break;
        }
        // Also if nothing was cleared: the last occupant may have died between its release and its wake.
        self.serve_line();
    }

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

    fn note_passing(&self) {
        self.page.u64(layout::PASSED_AT).store(coarse_ms(), Relaxed);
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
        let before = layout::owner(&self.page, word.slot());
        let grant = self.enter(word, true, strict)?;
        self.count(layout::losses(self.slot));
        log::warn!(
            "{}: pid {} on {} ({}) died holding, or was robbed: the next one hears abandoned",
            self.path.display(),
            before.pid,
            before.host,
            before.label
        );
        Some(grant)
    }

    fn count(&self, number: usize) {
        self.page.u32(number).fetch_add(1, Relaxed);
    }

    /// On entry: whoever still listens, to a hold that was broken without having noticed; a release would have ended the listening.
    #[cold]
    fn tell_broken(&self) {
        self.losses.tell_all(&lost("on_lost", "somebody broke the lock"));
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
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let Ok(file) = fs::open(&self.path, flags, Mode::empty()) else { return false };
        // On another file every byte is free: that says nothing about this one.
        let same = fs::fstat(&file).is_ok_and(|stat| Identity::of(&stat) == self.identity);
        same && is_byte_locked(file.as_fd(), layout::life_byte(slot)) == Ok(false)
    }

    /// Whether nobody will come for a reservation: nobody of that process waits any more, or its claim is over.
    fn is_unclaimed(&self, slot: u16) -> bool {
        self.page.u64(layout::cell(slot)).load(SeqCst) == 0 || self.is_stale()
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
            let entered = match word.state() {
                State::Free if strict && word.has(LINE) && self.first_alive().is_some() => return Ok(None),
                State::Free => self.enter(word, word.has(ABANDONED), strict),
                State::Bad => return Err(self.damaged()),
                State::Held | State::Reserved if word.slot() == self.slot => return Ok(None),
                state => {
                    // Somebody else. If the lock moves on while we look, its owner lives and need not be asked after.
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
                        State::Reserved if self.is_unclaimed(word.slot()) => {
                            self.enter(word, word.has(ABANDONED), strict)
                        }
                        State::Reserved if self.is_dead(word.slot()) => self.enter(word, word.has(ABANDONED), strict),
                        State::Held if self.is_dead(word.slot()) => self.succeed(word, strict),
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
        self.page.u64(layout::since(self.slot)).store(tick, Relaxed);
        self.is_here_at(tick)
    }

    fn damaged(&self) -> Error {
        Error::new(ErrorKind::Protocol, "acquire", format!("the lock file {} is damaged", self.path.display()))
            .with_help("stop the programs that use it and remove it")
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
        let here = match place::identity(&self.path) {
            Ok(Some((identity, len))) => identity == self.identity && len >= BLOCK as u64,
            // Nothing there; but seen from another root (chroot, another mount namespace) that says nothing.
            Ok(None) => fs::stat("/").ok().map(|stat| Identity::of(&stat)) != self.root,
            Err(_) => true,
        };
        if !here && !self.vanished.swap(true, SeqCst) {
            log::warn!("{}: the lock file was removed or replaced", self.path.display());
            self.losses.tell_all(&self.gone("on_lost"));
            self.evacuate();
        }
    }

    fn gone(&self, operation: &'static str) -> Error {
        lost(operation, format!("the lock file {} was removed or replaced", self.path.display()))
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
        }
        self.ring_own(u32::MAX);
    }

    /// Ends the hold with `token`, which began as `hold`; the next one hears `abandoned`.
    #[inline]
    pub(super) fn release(&self, hold: Word, token: u64, abandoned: bool) -> Result<()> {
        // First: once the word is free, the next one here tells whoever still listens.
        let listeners = self.losses.take(token);
        let quick = !abandoned && !hold.has(LINE) && self.swap(hold, hold.freed(false)).is_ok();
        let outcome = if !quick && !self.pass_on(hold, abandoned) {
            Err(lost("release", "somebody broke the lock"))
        } else if !self.is_here() {
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

    /// The slow half of a release: somebody waits, or the hold is gone (`false`).
    #[cold]
    fn pass_on(&self, hold: Word, abandoned: bool) -> bool {
        loop {
            let word = self.word();
            if !word.is_hold(hold) {
                return false;
            }
            self.note_passing();
            if word.has(HAND_OVER)
                && let Some((slot, cell)) = self.first_in_line()
            {
                let reserved = word.reserved(slot, abandoned);
                if self.swap(word, reserved).is_ok() {
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

    /// A reservation whose waiter will not come: on to the next, or free.
    fn pass_reservation(&self, mut reserved: Word) {
        loop {
            self.note_passing();
            let abandoned = reserved.has(ABANDONED);
            let Some((slot, cell)) = self.first_in_line() else {
                if self.swap(reserved, reserved.freed(abandoned)).is_ok() {
                    self.serve_line();
                }
                return;
            };
            let next = reserved.reserved(slot, abandoned);
            if next != reserved && self.swap(reserved, next).is_err() {
                return; // Somebody took it.
            }
            if self.ring(slot, cell) {
                return;
            }
            reserved = next;
        }
    }

    /// If the lock is free and somebody waits, wakes the first. If nobody does, LINE goes.
    fn serve_line(&self) {
        loop {
            let word = self.word();
            if word.state() != State::Free || !word.has(LINE) {
                return;
            }
            match self.first_in_line() {
                // Exactly this word: an entry in between has another generation, and then its release looks.
                None => {
                    let _ = self.swap(word, word.without(LINE));
                    return;
                }
                Some((slot, cell)) => {
                    if self.ring(slot, cell) {
                        return;
                    }
                }
            }
        }
    }

    /// The lowest ticket in the file. It may be of a process that has died.
    fn first_in_line(&self) -> Option<(u16, Cell)> {
        let mut first: Option<(u16, Cell)> = None;
        for slot in layout::slots(layout::blocks(&self.page)) {
            let cell = Cell(self.page.u64(layout::cell(slot)).load(SeqCst));
            if cell != Cell::EMPTY && first.is_none_or(|(_, best)| cell.ticket() < best.ticket()) {
                first = Some((slot, cell));
            }
        }
        first
    }

    /// The lowest ticket of a process that lives. The cells of the dead are cleared.
    fn first_alive(&self) -> Option<(u16, Cell)> {
        loop {
            let (slot, cell) = self.first_in_line()?;
            if !self.is_dead(slot) {
                return Some((slot, cell));
            }
            // A change of the cell means that somebody new has moved in.
            let _ = self.page.u64(layout::cell(slot)).compare_exchange(cell.0, 0, SeqCst, SeqCst);
        }
    }

    /// Wakes the waiter that `cell` names. `false` if it is gone: it left, or its process has died, and its cell is cleared.
    fn ring(&self, slot: u16, cell: Cell) -> bool {
        if slot == self.slot {
            if self.is_front_async(cell) {
                self.drive(Look::Brief, None);
            } else {
                self.ring_own(cell.bits());
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
        if futex::wake(bell, u32::MAX, cell.bits(), true) > 0 || !self.is_dead(slot) {
            return true;
        }
        // A change of the cell means that somebody new has moved in.
        let _ = place.compare_exchange(awake, 0, SeqCst, SeqCst);
        false
    }

    fn ring_own(&self, bits: u32) {
        let bell = self.page.u32(layout::bell(self.slot));
        bell.fetch_add(1, SeqCst);
        futex::wake(bell, u32::MAX, bits, true);
    }

    fn is_front_async(&self, cell: Cell) -> bool {
        cell.bits() == 1 << ASYNC_BIT
    }

    fn bit(waiter: &Waiter, ticket: u64) -> u32 {
        if waiter.is_blocking() { (ticket % u64::from(ASYNC_BIT)) as u32 } else { ASYNC_BIT }
    }

    /// Puts a waiter into the line. `false` if the file has gone meanwhile.
    pub(super) fn join(&self, waiter: &Arc<Waiter>, handle: Weak<Mpm>, strict: bool) -> bool {
        let mut local = self.local.lock();
        if self.vanished.load(SeqCst) {
            return false;
        }
        let ticket = self.page.u64(layout::TICKETS).fetch_add(1, SeqCst) + 1;
        waiter.ticket.store(ticket, Release);
        let entry = Entry { waiter: waiter.clone(), handle, strict, ticket };
        local.line.push_back(entry);
        if local.line.len() == 1 {
            self.promote(&mut local);
        } else {
            self.count_waiters(&local);
        }
        if !waiter.is_blocking() {
            self.watch(&mut local);
        }
        drop(local);
        if waiter.is_blocking() {
            self.raise_flags(strict);
        } else {
            self.drive(Look::Thorough, None);
        }
        true
    }

    /// Someone waits: who holds the lock, or it is kept for, must know.
    fn raise_flags(&self, hand_over: bool) {
        let want = if hand_over { LINE | HAND_OVER } else { LINE };
        loop {
            let word = self.word();
            if word.state() == State::Free || word.0 & want == want || self.swap(word, word.with(want)).is_ok() {
                return;
            }
        }
    }

    /// The first of the process's line stands for it in the file.
    fn promote(&self, local: &mut Local) {
        let cell = self.page.u64(layout::cell(self.slot));
        match local.line.front() {
            Some(entry) => {
                cell.store(Cell::new(entry.ticket, Self::bit(&entry.waiter, entry.ticket)).0, SeqCst);
                self.front.store(entry.ticket, SeqCst);
                if !entry.waiter.is_blocking() && !local.bells {
                    local.bells = self.me.upgrade().is_some_and(bells::watch);
                }
            }
            None => {
                cell.store(0, SeqCst);
                self.front.store(0, SeqCst);
                if std::mem::take(&mut local.pulse) {
                    pulse::forget(self);
                }
                if std::mem::take(&mut local.bells) {
                    bells::forget(self);
                }
            }
        }
        self.count_waiters(local);
    }

    fn count_waiters(&self, local: &Local) {
        self.page.u32(layout::waiters(self.slot)).store(local.line.len() as u32, Relaxed);
    }

    /// The pulse looks after this site from now on, until its line is empty; whether it does.
    fn watch(&self, local: &mut Local) -> bool {
        if !local.pulse {
            local.pulse = self.me.upgrade().is_some_and(pulse::watch);
        }
        local.pulse
    }

    /// Takes a waiter that has ended out of the line, and passes on what was meant for it.
    pub(super) fn leave(&self, waiter: &Arc<Waiter>) {
        let mut local = self.local.lock();
        let Some(at) = local.line.iter().position(|entry| Arc::ptr_eq(&entry.waiter, waiter)) else { return };
        let gone = local.line.remove(at);
        self.count(layout::gave_up(self.slot));
        if at == 0 {
            self.promote(&mut local);
        } else {
            self.count_waiters(&local);
        }
        let first = self.front.load(SeqCst) != 0;
        drop(local);
        drop(gone);
        let word = self.word();
        if word.state() == State::Reserved && word.slot() == self.slot {
            if !first {
                self.pass_reservation(word);
            }
        } else {
            self.serve_line();
        }
        if first && at == 0 {
            // The new first may be asleep, trusting the one that left to look at the word.
            self.ring(self.slot, Cell(self.page.u64(layout::cell(self.slot)).load(SeqCst)));
        }
    }

    /// Takes the lock for the first of this process's line, if it may have it now. `own` is the waiter whose thread
    /// calls; any other thread is woken. Whether somebody got it.
    pub(super) fn drive(&self, look: Look, own: Option<&Arc<Waiter>>) -> bool {
        loop {
            let mut local = self.local.lock();
            let Some(front) = local.line.front() else { return false };
            if !front.waiter.is_waiting() {
                // It has ended and is about to leave; it must not stand in the way of the next.
                let gone = local.line.pop_front();
                self.promote(&mut local);
                drop(local);
                drop(gone);
                continue;
            }
            self.page.u64(layout::cell(self.slot)).fetch_or(Cell::ASLEEP, SeqCst);
            let strict = front.strict;
            let hand_over = strict || front.waiter.created.elapsed() >= PATIENCE;
            let Some(grant) = self.attempt(look, strict, hand_over) else { return false };
            let Some(front) = local.line.pop_front() else { return false };
            self.promote(&mut local);
            if let Some(next) = local.line.front() {
                // It may be asleep already, behind a first that found the lock free and never had to say that anybody waits.
                self.raise_flags(next.strict);
            }
            drop(local);
            if let Some(handle) = front.handle.upgrade() {
                self.write_label(&handle.label);
            }
            // A file that is gone takes its waiters to the new one; this hold is lost, and its release will say so.
            self.note_hold();
            let elsewhere = own.is_none_or(|own| !Arc::ptr_eq(own, &front.waiter));
            let bits = 1 << Self::bit(&front.waiter, front.ticket);
            let blocking = front.waiter.is_blocking();
            let taken = front.waiter.settle(Ok(grant)).is_ok();
            if blocking && elsewhere {
                self.ring_own(bits);
            }
            if taken {
                let waited = front.waiter.created.elapsed();
                self.count(layout::waits(self.slot, numbers::bucket(waited)));
                log::debug!("{}: acquired after {waited:.1?}", self.path.display());
                return true;
            }
            // It had ended; what it was given goes on, and the next one here may be the one to have it.
            self.give_back(grant);
        }
    }

    /// One look at the word for the first of this process's line.
    fn attempt(&self, look: Look, strict: bool, hand_over: bool) -> Option<Grant> {
        let asked = look != Look::Brief;
        loop {
            let word = self.word();
            let free = |site: &Site| site.enter(word, word.has(ABANDONED), strict);
            let entered = match word.state() {
                State::Free => match self.first_in_line() {
                    // Only newcomers pass, in `take`; among those in line whoever is first is woken instead.
                    Some((slot, cell)) if slot != self.slot && !(look == Look::Late && self.is_stale()) => {
                        // It must find LINE when it enters, or its release would not know of us.
                        if !word.has(LINE) && self.swap(word, word.with(LINE)).is_err() {
                            continue;
                        }
                        if self.ring(slot, cell) {
                            return None;
                        }
                        continue;
                    }
                    _ => free(self),
                },
                State::Reserved if word.slot() == self.slot || self.is_unclaimed(word.slot()) => free(self),
                State::Reserved if asked && self.is_dead(word.slot()) => free(self),
                State::Held if asked && self.is_dead(word.slot()) => self.succeed(word, strict),
                State::Bad => return None,
                _ => {
                    let want = if hand_over { LINE | HAND_OVER } else { LINE };
                    if word.0 & want == want || self.swap(word, word.with(want)).is_ok() {
                        return None;
                    }
                    continue;
                }
            };
            if entered.is_some() {
                return entered;
            }
        }
    }

    /// Sleeps on the caller's thread; the first in line takes the lock in here.
    pub(super) fn wait(&self, waiter: &Arc<Waiter>, until: Option<Instant>) -> Woken {
        let ticket = waiter.ticket.load(Acquire);
        let bell = self.page.u32(layout::bell(self.slot));
        let heard = bell.load(SeqCst);
        if !waiter.is_waiting() {
            return Woken::Changed;
        }
        if self.vanished.load(SeqCst) {
            return Woken::Changed;
        }
        // A short wait needs no watching; from then on a death must be noticed while everybody sleeps.
        let patience = waiter.created + PATIENCE;
        let now = Instant::now();
        let (slice, look) = if now < patience {
            (Some(patience), Look::Brief)
        } else if self.watch(&mut self.local.lock()) {
            (None, Look::Brief)
        } else {
            (Some(now + Duration::from_millis(CLAIM_MS)), Look::Late)
        };
        if self.front.load(SeqCst) == ticket {
            self.drive(look, Some(waiter));
            if !waiter.is_waiting() {
                return Woken::Changed;
            }
        }
        let sleep_until = match (until, slice) {
            (Some(until), Some(slice)) => Some(until.min(slice)),
            (until, slice) => until.or(slice),
        };
        let woken = futex::wait(bell, heard, 1 << Self::bit(waiter, ticket), sleep_until, true);
        match woken {
            Woken::TimedOut if until.is_none_or(|until| Instant::now() < until) => Woken::Changed,
            woken => woken,
        }
    }

    /// Makes `wait` of this waiter return.
    pub(super) fn nudge(&self, waiter: &Waiter) {
        self.ring_own(1 << Self::bit(waiter, waiter.ticket.load(Acquire)));
    }

    /// What the pulse does: after an event at the file, and every 250 ms. Whether the owner still lives and is waited for.
    pub(super) fn recheck(&self, event: bool) -> bool {
        self.look();
        if self.vanished.load(SeqCst) {
            return false;
        }
        // The cells of the dead go first, then the word is read: see `ring`.
        let ours = match self.first_alive() {
            None => return false,
            Some((slot, _)) => slot == self.slot,
        };
        let word = self.word();
        match word.state() {
            State::Held if word.slot() == self.slot => return false,
            State::Held if !self.is_dead(word.slot()) => return true,
            // The others have their own pulse, and the first of them is to have it; who stays away for too long is passed.
            State::Held if !ours && event => return true,
            State::Free | State::Reserved if !ours && !self.is_stale() => return true,
            _ => {}
        }
        if self.drive(if ours { Look::Thorough } else { Look::Late }, None) && !event {
            self.count(layout::rechecks(self.slot));
            log::info!("{}: free, and nobody had told", self.path.display());
        }
        false
    }

    /// The bell that a ringer watches, and what it last heard.
    pub(super) fn bell(&self) -> &std::sync::atomic::AtomicU32 {
        self.page.u32(layout::bell(self.slot))
    }

    /// When an asynchronous first waiter loses its patience; `None` if that is over or there is none.
    pub(super) fn patience(&self) -> Option<Instant> {
        let local = self.local.lock();
        let at = local.line.front().filter(|front| !front.waiter.is_blocking())?.waiter.created + PATIENCE;
        (at > Instant::now()).then_some(at)
    }

    /// Whether the hold with `token` still stands.
    pub(super) fn check(&self, token: u64) -> Result<()> {
        if self.vanished.load(Acquire) {
            return Err(self.gone("check"));
        }
        self.hold(token).map(drop).ok_or_else(|| lost("check", "somebody broke the lock"))
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

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(sites) = SITES.get() {
            let mut sites = sites.lock();
            if sites.get(&self.identity).is_some_and(|site| site.strong_count() == 0) {
                sites.remove(&self.identity);
            }
        }
        self.page.u32(layout::pid(self.slot)).store(0, Release);
    }
}

/// Gives the file room for a block. An allocated block never fails to be written, however full the disk is.
fn allocate(file: &OwnedFd, block: usize) -> Result<(), Errno> {
    loop {
        match fs::fallocate(file, FallocateFlags::empty(), (block * BLOCK) as u64, BLOCK as u64) {
            Err(Errno::INTR) => {}
            // A file system that cannot reserve: the length alone must do.
            Err(Errno::OPNOTSUPP) => {
                let len = fs::fstat(file)?.st_size as u64;
                return fs::ftruncate(file, len.max(((block + 1) * BLOCK) as u64));
            }
            other => return other,
        }
    }
}

/// Makes a new page ours, or checks that it is. An all-zero page is a valid one: nothing here is half done, whoever dies.
fn begin_page(page: &Mapping, identity: Identity, path: &std::path::Path) -> Result<()> {
    let header = page.u64(layout::HEADER).load(Acquire);
    if header != 0 && header != layout::MAGIC {
        return Err(if header & layout::MAGIC_MASK == layout::MAGIC & layout::MAGIC_MASK {
            Error::new(
                ErrorKind::Protocol,
                "open",
                format!("{} is a lock file of version {}; this library knows version 1", path.display(), header >> 56),
            )
            .with_help("use the same version of the library everywhere on this host")
        } else {
            Error::new(ErrorKind::Unsafe, "open", format!("{} has content that is not a lock's", path.display()))
                .with_help("name a path that is free, or remove the file if it is not needed")
        });
    }
    let boot = boot_id();
    let known = page.u64(layout::BOOT).load(Acquire) == boot && page.u64(layout::INODE).load(Acquire) == identity.inode;
    if header == 0 || !known {
        // A new page, or one from before a restart or a restore: tokens go on from the wall clock, which no count has reached.
        let now = wall_ns();
        page.u64(layout::BASES[0]).fetch_max(now, AcqRel);
        page.u64(layout::BASES[1]).fetch_max(now.wrapping_add(word::HALF), AcqRel);
        page.u64(layout::BOOT).store(boot, Release);
        page.u64(layout::INODE).store(identity.inode, Release);
        // Last: whoever finds the magic finds the bases. If somebody else was first, so much the better.
        let _ = page.u64(layout::HEADER).compare_exchange(0, layout::MAGIC, AcqRel, Acquire);
    }
    Ok(())
}

/// Takes CLAIM of a slot that nobody has, growing the file if need be.
fn claim_slot(file: &OwnedFd, page: &Mapping) -> Result<Option<u16>, Errno> {
    let len = (fs::fstat(file)?.st_size as usize / BLOCK).clamp(1, MAX_BLOCKS);
    let mut blocks = layout::blocks(page).min(len);
    // First the slots that say they are empty, then those that say they are not: their occupants may have died.
    for say_empty in [true, false] {
        for slot in layout::slots(blocks) {
            let empty = page.u32(layout::pid(slot)).load(Relaxed) == 0;
            if empty == say_empty && lock_byte(file.as_fd(), layout::claim_byte(slot))? {
                return Ok(Some(slot));
            }
        }
    }
    while blocks < MAX_BLOCKS {
        allocate(file, blocks)?;
        blocks += 1;
        page.u32(layout::BLOCKS).fetch_max(blocks as u32, AcqRel);
        for slot in layout::slots(blocks) {
            if layout::block_of(slot) == blocks - 1 && lock_byte(file.as_fd(), layout::claim_byte(slot))? {
                return Ok(Some(slot));
            }
        }
    }
    Ok(None)
}
