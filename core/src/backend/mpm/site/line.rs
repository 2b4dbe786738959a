//! This process's line: who waits, who drives the first of it, who is woken.

use std::sync::atomic::{AtomicU32, Ordering::*};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use super::super::layout::{self, Cell};
use super::super::word::{ABANDONED, HAND_OVER, LINE, State};
use super::super::{Mpm, bells, pulse};
use super::open::damaged;
use super::{CLAIM_MS, Entry, Local, Look, PATIENCE, Site, now_us};
use crate::backend::contract::Grant;
use crate::error::{Error, ErrorKind, Result};
use crate::numbers;
use crate::sys::futex::{self, Woken};
use crate::timeout::earlier;
use crate::waiter::Waiter;

impl Site {
    /// Wakes the first of this process's line, if it sleeps.
    pub(super) fn ring_own(&self) {
        self.bell().fetch_add(1, SeqCst);
        futex::wake(self.bell(), u32::MAX, futex::ANY, true);
    }

    /// Puts a waiter into the line. `false` if the file has gone meanwhile.
    pub(in crate::backend::mpm) fn join(&self, waiter: &Arc<Waiter>, handle: Weak<Mpm>, strict: bool) -> Result<bool> {
        let mut local = self.local.lock();
        if self.vanished.load(SeqCst) {
            return Ok(false);
        }
        let ticket = self.page.u64(layout::TICKETS).fetch_add(1, SeqCst) + 1;
        waiter.ticket.store(ticket, Release);
        let entry = Entry { waiter: waiter.clone(), handle, strict, ticket, since: now_us() };
        local.line.push_back(entry);
        if local.line.len() == 1 {
            self.promote(&mut local);
        } else {
            self.count_waiters(&local);
        }
        let served = waiter.is_blocking() || self.watch(&mut local) || self.ring_for(&mut local);
        drop(local);
        if !served {
            self.leave(waiter);
            return Err(Error::new(ErrorKind::Resource, "acquire", "no thread can be started that would wait"));
        }
        if waiter.is_blocking() {
            self.raise_flags(strict);
        } else {
            self.drive(Look::Thorough, None);
        }
        Ok(true)
    }

    /// Someone waits: who holds the lock, or it is kept for, must know.
    pub(super) fn raise_flags(&self, hand_over: bool) {
        let want = if hand_over { LINE | HAND_OVER } else { LINE };
        loop {
            let word = self.word();
            if word.state() == State::Free || word.0 & want == want || self.swap(word, word.with(want)).is_ok() {
                return;
            }
        }
    }

    /// The first of the process's line stands for it in the file.
    pub(super) fn promote(&self, local: &mut Local) {
        let cell = self.page.u64(layout::cell(self.slot));
        match local.line.front() {
            Some(entry) => {
                self.page.u32(layout::waiting_since(self.slot)).store(entry.since, Relaxed);
                cell.store(Cell::new(entry.ticket, entry.waiter.is_blocking()).0, SeqCst);
                self.front.store(entry.ticket, SeqCst);
                if !entry.waiter.is_blocking() {
                    self.ring_for(local);
                }
            }
            None => {
                cell.store(0, SeqCst);
                self.front.store(0, SeqCst);
                if self.watched.swap(false, SeqCst) {
                    pulse::forget(self);
                }
                if std::mem::take(&mut local.bells) {
                    bells::forget(self);
                }
            }
        }
        self.count_waiters(local);
    }

    /// A ringer sleeps on the bell from now on, until the line is empty; whether it does.
    fn ring_for(&self, local: &mut Local) -> bool {
        local.bells = local.bells || self.me.upgrade().is_some_and(bells::watch);
        local.bells
    }

    /// [`Site::promote`] when the first has gone: the next may be asleep on its own word, and is moved to the bell. It was rung in vain before
    /// that, so who calls this looks at the word afterwards.
    fn advance(&self, local: &mut Local) {
        self.promote(local);
        if let Some(entry) = local.line.front().filter(|entry| entry.waiter.is_blocking()) {
            entry.waiter.move_to(self.bell());
        }
    }

    /// The first leaves the line.
    fn take_out(&self, local: &mut Local) -> Option<Entry> {
        let gone = local.line.pop_front();
        self.advance(local);
        gone
    }

    pub(super) fn count_waiters(&self, local: &Local) {
        self.page.u32(layout::waiters(self.slot)).store(local.line.len() as u32, Relaxed);
    }

    /// The pulse looks after this site from now on, until its line is empty; whether it does, or need not: nobody would end what is begun
    /// for a line that is empty already.
    pub(super) fn watch(&self, local: &mut Local) -> bool {
        if local.line.is_empty() {
            return true;
        }
        let watched = self.watched.load(SeqCst) || self.me.upgrade().is_some_and(pulse::watch);
        self.watched.store(watched, SeqCst);
        watched
    }

    /// Takes a waiter that has ended out of the line, and passes on what was meant for it.
    pub(in crate::backend::mpm) fn leave(&self, waiter: &Arc<Waiter>) {
        let mut local = self.local.lock();
        let Some(at) = local.line.iter().position(|entry| Arc::ptr_eq(&entry.waiter, waiter)) else { return };
        let gone = local.line.remove(at);
        self.count(layout::gave_up(self.slot));
        if at == 0 {
            self.advance(&mut local);
        } else {
            self.count_waiters(&local);
        }
        let first = self.front.load(SeqCst) != 0;
        drop(local);
        drop(gone);
        self.hand_on(first);
        if first && at == 0 {
            // The new first may be asleep, trusting the one that left to look at the word.
            self.ring(self.slot, Cell(self.page.u64(layout::cell(self.slot)).load(SeqCst)));
        }
    }

    /// Somebody of this process has left the line: what was meant for it goes on, unless there is a `first` of this process to take it.
    fn hand_on(&self, first: bool) {
        let word = self.word();
        if word.state() == State::Reserved && word.slot() == self.slot {
            if !first {
                self.pass_reservation(word);
            }
        } else {
            self.serve_line();
        }
    }

    /// Takes the lock for the first of this process's line, if it may have it now. `own` is the waiter whose thread
    /// calls; any other thread is woken. Whether somebody got it.
    pub(in crate::backend::mpm) fn drive(&self, look: Look, own: Option<&Arc<Waiter>>) -> bool {
        let mut ended = false;
        loop {
            let mut local = self.local.lock();
            let Some(front) = local.line.front() else {
                drop(local);
                if ended {
                    self.hand_on(false);
                }
                return false;
            };
            if !front.waiter.is_waiting() {
                // It has ended and is about to leave; it must not stand in the way of the next. It will find no place to give up.
                let gone = self.take_out(&mut local);
                self.count(layout::gave_up(self.slot));
                drop(local);
                drop(gone);
                ended = true;
                continue;
            }
            // As it is from the start: who was late has its place again.
            self.page.u64(layout::cell(self.slot)).store(Cell::new(front.ticket, front.waiter.is_blocking()).0, SeqCst);
            let strict = front.strict;
            let hand_over = strict || front.waiter.created.elapsed() >= PATIENCE;
            let Some(grant) = self.attempt(look, strict, hand_over) else {
                if self.state(self.word()) != State::Bad {
                    return false;
                }
                let gone = self.take_out(&mut local);
                drop(local);
                if let Some(Entry { waiter, .. }) = gone {
                    // A refusal means that it has ended; it stands in no line any more.
                    let _ = waiter.settle(Err(damaged("acquire", &self.path)));
                    self.ring_own();
                }
                continue;
            };
            let Some(front) = self.take_out(&mut local) else { return false };
            let next = local.line.front().map(|next| next.strict);
            if let Some(strict) = next {
                // It may be asleep already, behind a first that found the lock free and never had to say that anybody waits.
                self.raise_flags(strict);
            }
            drop(local);
            if next.is_some() && self.word().state() != State::Held {
                // Broken already, and passed on to the one that now holds nothing.
                self.ring(self.slot, Cell(self.page.u64(layout::cell(self.slot)).load(SeqCst)));
            }
            if let Some(handle) = front.handle.upgrade() {
                self.write_label(&handle.label);
            }
            // A file that is gone takes its waiters to the new one; this hold is lost, and its release will say so.
            self.note_hold();
            let elsewhere = own.is_none_or(|own| !Arc::ptr_eq(own, &front.waiter));
            let blocking = front.waiter.is_blocking();
            if !elsewhere {
                front.waiter.runs();
            }
            let taken = front.waiter.settle(Ok(grant)).is_ok();
            if blocking && elsewhere {
                self.ring_own();
            }
            if taken {
                let waited = front.waiter.created.elapsed();
                self.count(layout::waits(self.slot, numbers::bucket(waited)));
                log::debug!("{}: acquired after {waited:.1?}", self.path.display());
                return true;
            }
            // It had ended; what it was given goes on, and the next one here may be the one to have it.
            self.count(layout::gave_up(self.slot));
            self.give_back(grant);
        }
    }

    /// One look at the word for the first of this process's line.
    pub(super) fn attempt(&self, look: Look, strict: bool, hand_over: bool) -> Option<Grant> {
        let asked = look != Look::Brief;
        loop {
            let word = self.word();
            let free = |site: &Site| site.enter(word, word.has(ABANDONED), strict);
            let entered = match self.state(word) {
                State::Free => {
                    if look == Look::Late && self.is_stale() {
                        self.first_in_line().iter().for_each(|(slot, _)| self.pass_over(*slot));
                    }
                    match self.first_in_line() {
                        // Only newcomers pass, in `take`; among those in line whoever is first is woken instead.
                        Some((slot, cell)) if slot != self.slot => {
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
                    }
                }
                State::Reserved if word.slot() == self.slot => free(self),
                State::Reserved if self.is_unclaimed(word.slot()) || asked && self.is_dead(word.slot()) => {
                    self.pass_over(word.slot());
                    let Some(word) = self.give_to_first(word) else { continue };
                    self.enter(word, word.has(ABANDONED), strict)
                }
                State::Held if asked && self.is_dead(word.slot()) => match self.give_to_first(word) {
                    Some(word) if word.state() == State::Held => self.succeed(word, strict),
                    Some(word) => self.enter(word, true, strict),
                    None => continue,
                },
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
                if word.state() == State::Reserved {
                    // Handed over: so the next in line may have waited for as long.
                    self.looked.store(0, Relaxed);
                }
                return entered;
            }
        }
    }

    /// Sleeps on the caller's thread; the first in line takes the lock in here.
    pub(in crate::backend::mpm) fn wait(&self, waiter: &Arc<Waiter>, until: Option<Instant>, strict: bool) -> Woken {
        let heard = self.bell().load(SeqCst);
        if !waiter.is_waiting() || self.vanished.load(SeqCst) {
            return Woken::Changed;
        }
        let first = self.front.load(SeqCst) == waiter.ticket.load(Acquire);
        // A short wait needs no watching; from then on a death must be noticed while everybody sleeps.
        let patience = waiter.created + PATIENCE;
        let now = Instant::now();
        let watched = self.watched.load(SeqCst);
        let (slice, look) = if now < patience && !(watched && strict && !first) {
            (Some(patience), Look::Brief)
        } else if watched || self.watch(&mut self.local.lock()) {
            (None, Look::Brief)
        } else {
            self.look();
            if self.vanished.load(SeqCst) {
                return Woken::Changed;
            }
            (Some(now + Duration::from_millis(CLAIM_MS)), Look::Late)
        };
        if first {
            self.drive(look, Some(waiter));
            if !waiter.is_waiting() {
                return Woken::Changed;
            }
        }
        let sleep_until = earlier(until, slice);
        let woken = if first {
            futex::wait(self.bell(), heard, futex::ANY, sleep_until, true)
        } else {
            waiter.park(sleep_until)
        };
        match woken {
            Woken::TimedOut if until.is_none_or(|until| Instant::now() < until) => Woken::Changed,
            woken => woken,
        }
    }

    /// Makes `wait` of this waiter return.
    pub(in crate::backend::mpm) fn nudge(&self, waiter: &Waiter) {
        waiter.unpark();
        self.ring_own();
    }

    /// What the pulse does: after an event at the file, and every 250 ms. Whether the owner still lives and is waited for.
    pub(in crate::backend::mpm) fn recheck(&self, event: bool) -> bool {
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
        match self.state(word) {
            State::Held if word.slot() == self.slot => return false,
            State::Held if !self.is_dead(word.slot()) => return true,
            State::Free | State::Reserved if !ours && !self.is_stale() => return true,
            _ => {}
        }
        if self.drive(if ours { Look::Thorough } else { Look::Late }, None) && !event {
            self.count(layout::rechecks(self.slot));
            log::info!("{}: free, and nobody had told", self.path.display());
        }
        false
    }

    /// What a ringer does each time that it is awake; when it must be the next time, rung or not.
    pub(in crate::backend::mpm) fn attend(&self) -> Option<Instant> {
        if self.watched.load(SeqCst) || self.watch(&mut self.local.lock()) {
            self.drive(Look::Brief, None);
            return self.patience();
        }
        // Nobody else asks where the path leads, and whether the owner lives.
        self.look();
        if !self.vanished.load(SeqCst) {
            self.drive(Look::Late, None);
        }
        earlier(self.patience(), Some(Instant::now() + Duration::from_millis(CLAIM_MS)))
    }

    /// When an asynchronous first waiter loses its patience; `None` if that is over or there is none.
    fn patience(&self) -> Option<Instant> {
        let local = self.local.lock();
        let at = local.line.front().filter(|front| !front.waiter.is_blocking())?.waiter.created + PATIENCE;
        (at > Instant::now()).then_some(at)
    }

    /// The bell that a ringer watches, and what it last heard.
    pub(in crate::backend::mpm) fn bell(&self) -> &AtomicU32 {
        self.page.u32(layout::bell(self.slot))
    }
}

#[cfg(test)]
mod tests {
    use super::super::Label;
    use super::*;
    use crate::identity::identity;
    use crate::sys::coarse_ms;
    use crate::url::{LockUrl, Target};

    /// A site of its own.
    fn site() -> (tempfile::TempDir, Arc<Site>) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let url = LockUrl::parse(&format!("mpm:{}", path.display())).unwrap();
        let Target::Mpm(target) = url.target() else { unreachable!("it is a file's") };
        let site = Site::open(path, target, &identity(&url), &Label::new("")).unwrap();
        (folder, site)
    }

    #[test]
    fn who_stops_watching_before_the_thread_has_begun_keeps_nothing_open() {
        for _ in 0..100 {
            let (_folder, site) = site();
            let watched = Arc::downgrade(&site);
            assert!(pulse::watch(site.clone()));
            pulse::forget(&site);
            drop(site);
            let end = Instant::now() + Duration::from_secs(20);
            // The thread may be looking at it.
            while watched.strong_count() != 0 {
                assert!(Instant::now() < end, "it is kept");
                std::thread::yield_now();
            }
        }
    }

    /// Who has ended its wait may have left the line when its thread finds that the wait was no short one.
    #[test]
    fn an_empty_line_is_not_watched() {
        let (_folder, site) = site();
        site.watch(&mut site.local.lock());
        assert!(!site.watched.load(SeqCst), "nobody will end it");
    }

    /// FAULTS: S11
    #[test]
    fn what_was_kept_for_who_is_taken_out_of_the_line_goes_on() {
        let (_folder, site) = site();
        let waiter = Waiter::of_a_thread();
        let entry = Entry { waiter: waiter.clone(), handle: Weak::new(), strict: false, ticket: 1, since: now_us() };
        let mut local = site.local.lock();
        local.line.push_back(entry);
        site.promote(&mut local);
        drop(local);
        site.swap(site.word(), site.word().reserved(site.slot, false)).unwrap();
        // It has ended, and another thread looks before it has left.
        waiter.settle(Err(damaged("acquire", &site.path))).unwrap();
        assert!(!site.drive(Look::Brief, None));
        assert_eq!(site.word().state(), State::Free);
        assert_eq!(site.page.u32(layout::gave_up(site.slot)).load(Relaxed), 1);
        site.leave(&waiter);
        assert_eq!(site.page.u32(layout::gave_up(site.slot)).load(Relaxed), 1);
    }

    /// FAULTS: S11
    #[test]
    fn what_is_kept_for_a_process_in_which_nobody_waits_is_taken_by_its_own_newcomers() {
        for strict in [false, true] {
            let (_folder, site) = site();
            site.swap(site.word(), site.word().reserved(site.slot, false)).unwrap();
            assert!(site.take(strict, &Label::new("")).unwrap().is_some(), "{:?}", site.word());
        }
    }

    #[test]
    fn what_is_kept_for_a_waiter_of_this_process_that_is_coming_is_not_taken_by_its_newcomers() {
        let (_folder, site) = site();
        site.page.u64(layout::cell(site.slot)).store(Cell::new(1, true).0, SeqCst);
        site.note_passing(coarse_ms());
        site.swap(site.word(), site.word().reserved(site.slot, false)).unwrap();
        assert!(site.take(false, &Label::new("")).unwrap().is_none());
        // Its claim is over.
        site.note_passing(coarse_ms().wrapping_sub(2 * CLAIM_MS));
        assert!(site.take(false, &Label::new("")).unwrap().is_some(), "{:?}", site.word());
    }

    /// FAULTS: S11
    #[test]
    fn a_waiter_of_this_process_that_has_left_is_not_taken_to_be_rung() {
        let (_folder, site) = site();
        // As a release finds it that chose a waiter which has left since.
        assert!(!site.ring(site.slot, Cell::new(1, true)));
        assert!(!site.ring(site.slot, Cell::new(1, false)));
    }

    #[test]
    fn the_claim_begins_with_the_reservation_however_long_that_took() {
        let (_folder, site) = site();
        site.page.u64(layout::cell(site.slot)).store(Cell::new(1, true).0, SeqCst);
        let free = site.word();
        site.swap(free, free.with(LINE)).unwrap();
        site.enter(free.with(LINE), false, true).unwrap();
        // Stopped since it read the clock.
        assert!(site.pass_on(site.word(), false, coarse_ms().wrapping_sub(2 * CLAIM_MS)));
        assert!(site.word().state() == State::Reserved && !site.is_stale(), "{:?}", site.word());
    }

    /// A waiter that raises its flags while a reservation is passed on has not taken it.
    #[test]
    fn a_reservation_that_nobody_takes_goes_on_whatever_is_flagged_meanwhile() {
        let (_folder, site) = site();
        let reserved = site.word().reserved(site.slot, false);
        site.swap(site.word(), reserved).unwrap();
        site.raise_flags(true);
        site.pass_reservation(reserved);
        assert_eq!(site.word().state(), State::Free, "{:?}", site.word());
    }
}
