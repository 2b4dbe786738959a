//! An in-process lock: a word and a line.
//!
//! The word, 64 bits: bit 0 HELD, bit 1 LINE (somebody waits), bit 2 ABANDONED (for the next hold), bits 3.. the generation, +1 on
//! each entry into HELD. Token = the lock's base + generation, so a CAS that names a generation names one hold for ever.
//!
//! | from -> to | who | where |
//! |---|---|---|
//! | FREE(g) -> HELD(g+1), LINE kept | a newcomer (not if strict and LINE) | no lock |
//! | HELD(g) -> FREE(g) | the hold, if not LINE | no lock |
//! | HELD(g) -> FREE(g), LINE kept; the head is nudged | the hold; the head is a thread and has been the head for less than 1 ms | line lock |
//! | HELD(g) -> HELD(g+1), offered to the head | the hold; the head is strict, has no thread, or has waited 1 ms | line lock |
//! | FREE(g) -> HELD(g+1) | the head, nudged | line lock |
//! | HELD(g) -> FREE(g), ABANDONED, then as a release | break | line lock, but if not LINE |
//! | LINE set, LINE cleared | who joins; who finds the line empty | line lock |
//!
//! LINE changes only under the line lock, and a waiter looks at the word after it has set LINE under that lock: a
//! release either sees LINE, and then the waiter in the line, or came before, and then the waiter sees FREE. Offers are
//! made outside the lock: the word is HELD for the one who is asked; if it refuses, the asker releases again.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::numbers::{Numbers, Tally, count};
use crate::sync::Guarded;
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sys::copies::{Guest, RawStatus, SharedLock};
use crate::sys::fork::PerProcess;
use crate::sys::{coarse_ms, rising_ns};

const HELD: u64 = 1;
const LINE: u64 = 2;
const ABANDONED: u64 = 4;
const GENERATION: u64 = 8;

/// How long a newcomer may take the lock in passing while the same waiter stands first in line.
const PATIENCE: Duration = Duration::from_millis(1);

pub(super) struct Lock {
    name: String,
    word: AtomicU64,
    /// Token = base + generation: ns of a clock that is not set back, so that tokens also rise over reopened locks.
    base: u64,
    /// Label number << 48 | ms since `opened`, of the last hold.
    owner: AtomicU64,
    /// ms of the coarse clock.
    opened: u64,
    line: Guarded<Line>,
    tally: Tally,
}

#[derive(Default)]
struct Line {
    members: VecDeque<Member>,
    labels: Vec<String>,
    watchers: Vec<(u64, Guest)>,
}

impl Line {
    /// Those who watch the hold with `token`, which has ended. What they have is let go of outside the lock.
    fn let_go(&mut self, token: u64) -> Vec<(u64, Guest)> {
        let gone: Vec<_> = self.watchers.extract_if(.., |(watched, _)| *watched == token).collect();
        WATCHED.fetch_sub(gone.len() as u64, Ordering::AcqRel);
        gone
    }
}

struct Member {
    guest: Guest,
    strict: bool,
    label: u32,
    joined: Instant,
    /// When it became the first in line.
    first_since: Option<Instant>,
}

static LOCKS: PerProcess<Guarded<HashMap<String, Weak<Lock>>>> = PerProcess::new();

impl Lock {
    fn token(&self, word: u64) -> u64 {
        self.base + word / GENERATION
    }

    /// The word's (state-free) generation bits that this token stands for.
    fn generation(&self, token: u64) -> u64 {
        token.wrapping_sub(self.base).wrapping_mul(GENERATION)
    }

    fn note_owner(&self, label: u32) {
        let since = coarse_ms().wrapping_sub(self.opened) & ((1 << 48) - 1);
        self.owner.store(u64::from(label) << 48 | since, Ordering::Relaxed);
    }

    /// FREE -> HELD, if it is free; the word after.
    fn enter(&self, label: u32, unless: u64) -> Option<(u64, bool)> {
        let mut word = self.word.load(Ordering::Relaxed);
        loop {
            if word & (HELD | unless) != 0 {
                return None;
            }
            let held = ((word & !ABANDONED) | HELD) + GENERATION;
            match self.word.compare_exchange_weak(word, held, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    self.note_owner(label);
                    return Some((self.token(held), word & ABANDONED != 0));
                }
                Err(now) => word = now,
            }
        }
    }

    /// Ends the hold with `token`; the next one hears `abandoned`. False if the hold is not current.
    fn leave_hold(&self, token: u64, abandoned: bool) -> bool {
        let held = self.generation(token) | HELD;
        let mark = if abandoned { ABANDONED } else { 0 };
        // In one order with the look for watchers that follows it, see `watch`.
        if self.word.compare_exchange(held, (held & !HELD) | mark, Ordering::SeqCst, Ordering::Relaxed).is_ok() {
            return true;
        }
        self.pass_on(token, abandoned)
    }

    /// The slow half of a release: somebody waits, or this is not the current hold.
    #[cold]
    fn pass_on(&self, mut token: u64, abandoned: bool) -> bool {
        let mut first = true;
        loop {
            let mut line = self.line.lock();
            let word = self.word.load(Ordering::Acquire);
            if word & HELD == 0 || self.token(word) != token {
                // Not ours (any more): lost if it is the caller's token, broken meanwhile if it is one we made up.
                return !first;
            }
            let mark = if abandoned { ABANDONED } else { 0 };
            let Some(head) = line.members.front_mut() else {
                // Without LINE it may be broken meanwhile, and taken by a newcomer: neither needs the line lock.
                let free = (word & !(HELD | LINE)) | mark;
                if self.word.compare_exchange(word, free, Ordering::Release, Ordering::Relaxed).is_ok() {
                    return true;
                }
                continue;
            };
            let since = *head.first_since.get_or_insert_with(Instant::now);
            if head.guest.is_blocking() && !head.strict && since.elapsed() < PATIENCE {
                self.word.store((word & !HELD) | mark, Ordering::Release);
                let head = head.guest.clone();
                drop(line);
                head.nudge();
                return true;
            }
            let Some(head) = line.members.pop_front() else { return true };
            let line_left = self.promote(&mut line);
            let next = (word & !LINE) + GENERATION;
            self.word.store(next | line_left, Ordering::Release);
            drop(line);
            self.note_owner(head.label);
            token = self.token(next);
            first = false;
            if self.offer(&head, token, abandoned) {
                return true;
            }
            // It had ended: what we entered for it is ours to pass on, as it was.
        }
    }

    fn offer(&self, head: &Member, token: u64, abandoned: bool) -> bool {
        let taken = head.guest.offer(token, abandoned);
        if taken {
            self.tally.waited(head.joined.elapsed());
        }
        taken
    }

    /// The new head's patience begins; LINE if there is one.
    fn promote(&self, line: &mut Line) -> u64 {
        match line.members.front_mut() {
            None => 0,
            Some(head) => {
                head.first_since.get_or_insert_with(Instant::now);
                LINE
            }
        }
    }

    /// If the lock is free and somebody stands first in line: takes it for those without a thread, nudges the others.
    fn serve(&self) {
        loop {
            let mut line = self.line.lock();
            let Some(head) = line.members.front() else {
                self.word.fetch_and(!LINE, Ordering::AcqRel);
                return;
            };
            if head.guest.is_blocking() {
                let head = head.guest.clone();
                drop(line);
                if self.word.load(Ordering::Acquire) & HELD == 0 {
                    head.nudge();
                }
                return;
            }
            let Some((token, abandoned)) = self.enter(head.label, 0) else { return };
            let Some(head) = line.members.pop_front() else { return };
            if self.promote(&mut line) == 0 {
                self.word.fetch_and(!LINE, Ordering::AcqRel);
            }
            drop(line);
            if self.offer(&head, token, abandoned) || !self.leave_hold(token, abandoned) {
                return;
            }
        }
    }
}

impl SharedLock for Lock {
    fn open(name: &str) -> Arc<Lock> {
        let mut locks = LOCKS.get_or_init(Guarded::default).lock();
        if let Some(lock) = locks.get(name).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::new(Lock {
            name: name.to_owned(),
            word: AtomicU64::new(0),
            base: rising_ns(),
            owner: AtomicU64::new(0),
            opened: coarse_ms(),
            line: Guarded::default(),
            tally: Tally::default(),
        });
        locks.insert(name.to_owned(), Arc::downgrade(&lock));
        lock
    }

    fn label(&self, label: &str) -> u32 {
        let mut line = self.line.lock();
        let known = line.labels.iter().position(|known| known == label);
        let at = known.unwrap_or_else(|| {
            // The number has 16 bits; who opens with more labels than that shares the last.
            if line.labels.len() < usize::from(u16::MAX) {
                line.labels.push(label.to_owned());
            }
            line.labels.len() - 1
        });
        at as u32
    }

    fn take(&self, strict: bool, label: u32) -> Option<(u64, bool)> {
        self.enter(label, if strict { LINE } else { 0 })
    }

    fn join(&self, guest: Guest, strict: bool, label: u32) {
        let mut line = self.line.lock();
        let first_since = line.members.is_empty().then(Instant::now);
        line.members.push_back(Member { guest, strict, label, joined: Instant::now(), first_since });
        self.word.fetch_or(LINE, Ordering::AcqRel);
        drop(line);
        self.serve();
    }

    fn claim(&self, guest: usize) {
        let mut line = self.line.lock();
        let Some(head) = line.members.front().filter(|head| head.guest.id() == guest) else { return };
        let Some((token, abandoned)) = self.enter(head.label, 0) else { return };
        let Some(head) = line.members.pop_front() else { return };
        if self.promote(&mut line) == 0 {
            self.word.fetch_and(!LINE, Ordering::AcqRel);
        }
        drop(line);
        if !self.offer(&head, token, abandoned) {
            self.leave_hold(token, abandoned);
        }
    }

    fn leave(&self, guest: usize) {
        let mut line = self.line.lock();
        let Some(at) = line.members.iter().position(|member| member.guest.id() == guest) else { return };
        let gone = line.members.remove(at);
        count(&self.tally.gave_up);
        if at == 0 {
            self.promote(&mut line);
        }
        drop(line);
        drop(gone);
        // It may have been nudged to take a free lock that now is the next one's.
        self.serve();
    }

    fn release(&self, token: u64) -> bool {
        let released = self.leave_hold(token, false);
        // Who begins to watch meanwhile is counted before it looks whether the hold still stands: it is seen here, or sees. Of a hold
        // that was broken it is told by who broke it.
        if released && WATCHED.load(Ordering::SeqCst) != 0 {
            let gone = self.line.lock().let_go(token);
            drop(gone);
        }
        released
    }

    fn give_back(&self, token: u64, abandoned: bool) {
        self.leave_hold(token, abandoned);
    }

    fn holds(&self, token: u64) -> bool {
        let word = self.word.load(Ordering::SeqCst);
        word & HELD != 0 && self.token(word) == token
    }

    fn watch(&self, token: u64, guest: Guest) -> bool {
        let mut line = self.line.lock();
        // A release needs no line lock. It stores the word and then loads the count, this stores the count and then loads the word:
        // all four are SeqCst, or each could miss the other.
        WATCHED.fetch_add(1, Ordering::SeqCst);
        let holds = self.holds(token);
        if holds {
            line.watchers.push((token, guest));
        } else {
            WATCHED.fetch_sub(1, Ordering::AcqRel);
        }
        holds
    }

    fn break_lock(&self) -> bool {
        let word = self.word.load(Ordering::Acquire);
        if word & HELD == 0 {
            return false;
        }
        let token = self.token(word);
        if !self.leave_hold(token, true) {
            return true; // It ended by itself meanwhile; there was somebody.
        }
        count(&self.tally.losses);
        let told = self.line.lock().let_go(token);
        for (_, guest) in told {
            guest.lost();
        }
        true
    }

    fn numbers(&self) -> Numbers {
        Numbers { acquisitions: self.word.load(Ordering::Acquire) / GENERATION, ..self.tally.numbers() }
    }

    fn status(&self) -> RawStatus {
        let line = self.line.lock();
        let word = self.word.load(Ordering::Acquire);
        let owner = self.owner.load(Ordering::Relaxed);
        let label = line.labels.get((owner >> 48) as usize).map_or("", String::as_str);
        let since = owner & ((1 << 48) - 1);
        let mut raw = RawStatus {
            state: if word & HELD != 0 {
                1
            } else if word & ABANDONED != 0 {
                2
            } else {
                0
            },
            waiters: line.members.len() as u32,
            token: if word / GENERATION == 0 { 0 } else { self.token(word) },
            held_ms: coarse_ms().wrapping_sub(self.opened).saturating_sub(since) as i64,
            ..RawStatus::default()
        };
        let len = label.len().min(raw.label.len());
        raw.label[..len].copy_from_slice(&label.as_bytes()[..len]);
        raw.label_len = len as u32;
        raw
    }
}

/// How many holds of this process are watched for their loss: while none is, a release looks no further.
static WATCHED: AtomicU64 = AtomicU64::new(0);

impl Drop for Lock {
    fn drop(&mut self) {
        // Of holds that nobody has ended.
        WATCHED.fetch_sub(self.line.get_mut().watchers.len() as u64, Ordering::AcqRel);
        let Some(locks) = LOCKS.get() else { return };
        let mut locks = locks.lock();
        // Another lock of the name may have been opened since the last reference went.
        if locks.get(&self.name).is_some_and(|lock| lock.strong_count() == 0) {
            locks.remove(&self.name);
        }
    }
}

#[cfg(all(test, feature = "schedules"))]
mod schedules {
    use super::*;
    use crate::schedules::play;
    use crate::sys::copies::Guesting;

    /// Who has left already when it is asked.
    struct Gone;

    impl Guesting for Gone {
        fn offer(&self, _: u64, _: bool) -> bool {
            false
        }
        fn nudge(&self) {}
        fn lost(&self) {}
        fn is_blocking(&self) -> bool {
            true
        }
    }

    /// The release finds the line and is on its slow way when the last waiter leaves: from then on a break needs no line lock.
    fn a_break_during_the_slow_way_of_a_release(strict: bool) {
        play(move || {
            let lock = Lock::open("slow");
            lock.label("");
            let take = |lock: &Lock| lock.take(false, 0).map(|(token, _)| token);
            let first = take(&lock).expect("it is free");
            let guest = Arc::new(Gone);
            let id = Arc::as_ptr(&guest) as usize;
            lock.join(Guest::new(guest), strict, 0);
            let breaks = shuttle::thread::spawn({
                let lock = lock.clone();
                move || {
                    lock.leave(id);
                    lock.break_lock()
                }
            });
            let takes = shuttle::thread::spawn({
                let lock = lock.clone();
                move || (0..4).find_map(|_| take(&lock))
            });
            let released = lock.release(first);
            let broken = breaks.join().expect("it went well");
            let second = takes.join().expect("it went well");
            assert!(released || broken, "nobody took it away");
            // That one may have been broken, too.
            let third = take(&lock);
            assert!(third.is_some() || second.is_some_and(|second| lock.holds(second)), "it cannot be had");
            assert!(third.is_none() || second < third, "two hold it as {second:?}");
        });
    }

    #[test]
    fn a_break_when_the_release_finds_nobody() {
        a_break_during_the_slow_way_of_a_release(false);
    }

    #[test]
    fn a_break_when_who_was_offered_the_lock_refuses() {
        a_break_during_the_slow_way_of_a_release(true);
    }

    /// Woken to take the lock, it leaves before it is given it.
    #[test]
    fn a_claim_for_one_who_has_left_leaves_the_lock_free() {
        play(|| {
            let lock = Lock::open("claimed");
            lock.label("");
            let (token, _) = lock.take(false, 0).expect("it is free");
            let guest = Arc::new(Gone);
            let id = Arc::as_ptr(&guest) as usize;
            lock.join(Guest::new(guest), false, 0);
            assert!(lock.release(token));
            let claims = shuttle::thread::spawn({
                let lock = lock.clone();
                move || lock.claim(id)
            });
            if let Some((token, _)) = lock.take(false, 0) {
                assert!(lock.release(token));
            }
            claims.join().expect("it went well");
            assert!(lock.take(false, 0).is_some(), "nobody holds it, and it cannot be had");
        });
    }

    #[test]
    fn who_lets_go_of_the_last_lock_of_a_name_leaves_a_newer_one() {
        play(|| {
            let old = Lock::open("again");
            let opens = shuttle::thread::spawn(|| Lock::open("again"));
            drop(old);
            let new = opens.join().expect("it went well");
            assert!(Arc::ptr_eq(&new, &Lock::open("again")), "two locks of one name");
        });
    }

    #[test]
    fn a_release_against_one_who_begins_to_watch_leaves_no_watcher() {
        play(|| {
            let lock = Lock::open("watched");
            lock.label("");
            let (token, _) = lock.take(false, 0).expect("it is free");
            let watches = shuttle::thread::spawn({
                let lock = lock.clone();
                move || lock.watch(token, Guest::new(Arc::new(Gone)))
            });
            assert!(lock.release(token));
            watches.join().expect("it went well");
            assert!(lock.line.lock().watchers.is_empty(), "it watches a hold that has ended");
        });
    }
}
