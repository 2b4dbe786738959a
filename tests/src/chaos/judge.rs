//! The history checker: reads the records of all participants and says what cannot be of a lock.
//!
//! A visit lasts from `entered` to `left`, or to when its killer set out to kill it: in between it held for certain. So does
//! what it believes, from `entered` to its last check that was answered OK.
//!
//! | rule | of a lock | of a lease |
//! |---|---|---|
//! | two are never inside at once | always | of two at once the older one was told LOST, and at most one believed |
//! | a later visit has a larger token | always | of those that believed |
//! | the cell is empty, or shows one that was killed there | always | where nothing overlapped |
//! | the counter goes on where the one before left it | always | where nothing overlapped |
//! | who follows a killed holder is told `abandoned`, who follows a release is not | always | unless the server forgot |
//! | checks and releases are answered OK | always | or LOST or UNAVAILABLE, with a fault of stop, server or network |
//! | a free lock that somebody waits for is taken soon | always | but for the time of leases and of the server's absence |
//! | while no server or no majority can answer | | nobody who asks comes in, and who is inside believes for a lease at most |
//!
//! Judging runs behind the records by a horizon, so that what a stopped participant tells late still comes in time; what
//! is later than that is itself a violation.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::fence::Written;
use super::record::{CHILD, Deed, Event, Told};
use super::visit::{Desk, End, Visit, code_name};
use crate::agent::Language;

/// What is promised.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Law {
    /// A hold lasts until it is released or its process dies.
    Lock,
    /// A hold lasts as long as its lease, of so many ns, is renewed.
    Lease(u64),
}

/// Why a lease can have ended; of several the first one is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// The server was killed and started again without its data.
    ServerForgot,
    /// Another server took its place, which may not have known all that it had; for a while both may have served.
    FailedOver,
    /// The holder itself was stopped.
    HolderStopped,
    /// The server was stopped and went on.
    ServerStopped,
    /// The server was killed and started again, with its data.
    ServerRestarted,
    /// Connections were cut, or carried nothing.
    NetworkCut,
    /// The lock's slot was on its way from one server to another.
    SlotMoved,
    /// Something was done to servers without which the lock can be had: it excuses nobody for leaving the lock free.
    Minority,
    /// None of these: the machine gave it no time.
    Starved,
}

impl Cause {
    /// Whether a server may know nothing of a hold that stands.
    fn forgets(self) -> bool {
        matches!(self, Cause::ServerForgot | Cause::FailedOver)
    }
}

/// A span of time.
#[derive(Clone, Copy, Debug)]
struct Span {
    from: u64,
    until: u64,
}

impl Span {
    fn meets(&self, from: u64, until: u64) -> bool {
        self.from <= until && from <= self.until
    }
}

/// What one visit wrote to the resource behind the fence.
#[derive(Clone, Copy, Debug, Default)]
struct Writes {
    first: Option<u64>,
    last: u64,
    refused: Option<u64>,
}

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// What cannot be, each with the history around it.
    pub violations: Vec<String>,
    /// How many holds each language had.
    pub holds: BTreeMap<Language, u64>,
    /// The longest time that a free lock was waited for, in ns.
    pub longest_idle: u64,
    /// The visits before and after it.
    pub around_longest_idle: String,
    /// How many holds were told `abandoned`.
    pub abandoned: u64,
    /// How many holds ended with the death of their process.
    pub killed_inside: u64,
    /// How many holds were told that they were lost, by what had been done to them.
    pub lost: BTreeMap<Cause, u64>,
    /// How many writes the fence took, and how many it refused.
    pub taken: u64,
    /// See `taken`.
    pub refused: u64,
    /// How often two were inside at once because the lease of one had ended, by what had been done to it.
    pub overlaps: BTreeMap<Cause, u64>,
    /// Some of those that nothing explains which was done to the holder or to what the lock needs.
    pub odd: Vec<String>,
    /// Failed acquisitions, by code.
    pub gave_up: BTreeMap<&'static str, u64>,
    /// What participants did by their own choice.
    pub deeds: BTreeMap<Deed, u64>,
}

impl Verdict {
    /// All holds.
    pub fn all_holds(&self) -> u64 {
        self.holds.values().sum()
    }
}

const NS: u64 = 1_000_000_000;
/// How far judging runs behind.
const HORIZON: u64 = 30 * NS;
/// How long after a grant its owner may come in, if nobody stops it.
const SLOW: u64 = NS / 10;
/// How many violations are told in full.
const TOLD: usize = 5;

/// The checker.
pub struct Judge {
    law: Law,
    /// From where on a lock that lies idle is a violation.
    idle_limit: u64,
    desk: Desk,
    languages: HashMap<u64, Language>,
    deaths: VecDeque<(u64, Span)>,
    stops: VecDeque<(u64, Span)>,
    causes: VecDeque<(Cause, Span)>,
    /// When nobody could be let in.
    absences: VecDeque<Span>,
    /// Visits judged already, the latest last.
    before: VecDeque<Visit>,
    /// Writes to the resource behind the fence, by who and token: their numbers, and when one was refused.
    writes: HashMap<(u64, u64), Writes>,
    largest: Option<Visit>,
    judged_to: u64,
    /// Violations that still want to show what came next: index and how many lines.
    open: Vec<(usize, u32)>,
    found: u64,
    verdict: Verdict,
}

impl Judge {
    /// A checker that has seen nothing.
    pub fn new(law: Law, idle_limit: std::time::Duration) -> Judge {
        Judge {
            law,
            idle_limit: idle_limit.as_nanos() as u64,
            desk: Desk::default(),
            languages: HashMap::new(),
            deaths: VecDeque::new(),
            stops: VecDeque::new(),
            causes: VecDeque::new(),
            absences: VecDeque::new(),
            before: VecDeque::new(),
            writes: HashMap::new(),
            largest: None,
            judged_to: 0,
            open: Vec::new(),
            found: 0,
            verdict: Verdict::default(),
        }
    }

    /// A participant begins.
    pub fn born(&mut self, instance: u64, language: Language) {
        self.languages.insert(instance, language);
    }

    /// A record; those of one entrant come in order.
    pub fn event(&mut self, event: Event) {
        match event.told {
            Told::Entered { .. } => {
                let language = self.languages.get(&(event.who >> 16)).copied().unwrap_or(Language::Rust);
                *self.verdict.holds.entry(language).or_default() += 1;
                if event.at < self.judged_to {
                    self.violation(format!("{}: a record came too late to be judged", self.name(event.who)));
                }
            }
            Told::Did(deed) => *self.verdict.deeds.entry(deed).or_default() += 1,
            _ => {}
        }
        self.desk.take(event);
        while let Some(nonsense) = self.desk.nonsense.pop() {
            self.violation(nonsense);
        }
    }

    /// A participant died by a signal sent not before `from`, and had died at `until`; all its records came before this call.
    pub fn killed(&mut self, instance: u64, from: u64, until: u64) {
        self.deaths.push_back((instance, Span { from, until }));
        self.desk.killed(instance, from);
    }

    /// A participant was stopped for a time.
    pub fn stopped(&mut self, instance: u64, from: u64, until: u64) {
        self.stops.push_back((instance, Span { from, until }));
    }

    /// The server or the network was disturbed for a time.
    pub fn disturbed(&mut self, cause: Cause, from: u64, until: u64) {
        self.causes.push_back((cause, Span { from, until }));
    }

    /// For this time not enough servers could answer for anybody to be let in.
    pub fn absent(&mut self, from: u64, until: u64) {
        self.absences.push_back(Span { from, until });
    }

    /// A write that the fence has seen; they come in its order.
    pub fn wrote(&mut self, write: Written) {
        let number = self.verdict.taken + self.verdict.refused;
        let writes = self.writes.entry((write.who, write.token)).or_default();
        if write.taken {
            writes.first.get_or_insert(number);
            writes.last = number;
            self.verdict.taken += 1;
        } else {
            writes.refused.get_or_insert(write.at);
            self.verdict.refused += 1;
        }
    }

    /// Something else that cannot be.
    pub fn violation(&mut self, text: String) {
        self.found += 1;
        if self.verdict.violations.len() < TOLD {
            let mut story = format!("{text}\n  what came before:\n");
            let from = self.before.len().saturating_sub(8);
            for visit in self.before.range(from..) {
                story.push_str(&self.line(visit));
            }
            self.open.push((self.verdict.violations.len(), 5));
            self.verdict.violations.push(story);
        }
    }

    fn name(&self, who: u64) -> String {
        let language = self.languages.get(&(who >> 16)).map_or("?", |language| language.name());
        let child = if who & CHILD == 0 { "" } else { " child" };
        format!("{language} {}.{}{child}", who >> 16, who & (CHILD - 1))
    }

    fn line(&self, visit: &Visit) -> String {
        let us = |at: u64| format!("{}.{:06}", at / NS % 100_000, at % NS / 1000);
        let mut line = format!("    {}  {:<16} token {}", us(visit.entered), self.name(visit.who), visit.token);
        if visit.abandoned {
            line.push_str(" abandoned");
        }
        if visit.met != 0 {
            line.push_str(&format!(" met {}", self.name(visit.met)));
        }
        line.push_str(&format!(" counter {}", visit.seen));
        match visit.end {
            End::Inside => line.push_str(" is inside"),
            End::Killed(at) => line.push_str(&format!(" killed {}", us(at))),
            End::Left { at, code, released, .. } => {
                let released =
                    released.map_or("not told".to_owned(), |(at, code)| format!("{} {}", us(at), code_name(code)));
                line.push_str(&format!(" left {} {} released {released}", us(at), code_name(code)));
            }
        }
        let span = |span: &Span| format!("{} to {}", us(span.from), us(span.until));
        for (_, stop) in
            self.stops.iter().filter(|(of, stop)| *of == visit.who >> 16 && stop.meets(visit.asked, visit.until()))
        {
            line.push_str(&format!(" (stopped {})", span(stop)));
        }
        for (cause, when) in self.causes.iter().filter(|(_, when)| when.meets(visit.asked, visit.until())) {
            line.push_str(&format!(" ({cause:?} {})", span(when)));
        }
        line.push('\n');
        line
    }

    /// Judges what is old enough; `now` is the time up to which all logs have been read.
    pub fn advance(&mut self, now: u64) {
        self.judge_to(now.saturating_sub(HORIZON));
        if let Some(visit) = self.desk.oldest_inside()
            && visit.entered + HORIZON < now
        {
            self.violation(format!("{} is inside without an end:\n{}", self.name(visit.who), self.line(&visit)));
            self.desk.killed(visit.who >> 16, now);
        }
    }

    /// All records have come: judges the rest.
    pub fn finish(mut self) -> Verdict {
        self.judge_to(u64::MAX);
        if let Some(visit) = self.desk.oldest_inside() {
            self.violation(format!("{} never left", self.line(&visit).trim()));
        }
        if let Some((_, who)) = self.desk.longest_asking() {
            self.violation(format!("{} never had an answer", self.name(who)));
        }
        for code in self.desk.gave_up.keys().copied().collect::<Vec<_>>() {
            let fine = match self.law {
                Law::Lock => matches!(code_name(code), "TIMEOUT" | "CANCELED" | "CLOSED"),
                Law::Lease(_) => matches!(code_name(code), "TIMEOUT" | "CANCELED" | "CLOSED" | "UNAVAILABLE" | "LOST"),
            };
            if !fine {
                self.violation(format!("an acquisition was answered {}", code_name(code)));
            }
        }
        if self.found as usize > self.verdict.violations.len() {
            let more = self.found as usize - self.verdict.violations.len();
            self.verdict.violations.push(format!("and {more} more"));
        }
        let named = self.desk.gave_up.iter().map(|(code, count)| (code_name(*code), *count));
        self.verdict.gave_up = named.collect();
        self.verdict
    }

    /// What has been found so far.
    pub fn so_far(&self) -> (&Verdict, u64) {
        (&self.verdict, self.found)
    }

    /// The last visit that was judged, and who waits the longest: for a run that stands still.
    pub fn describe(&self) -> String {
        let mut text: String = self.desk.done.values().rev().take(5).map(|visit| self.line(visit)).collect();
        if let Some((at, who)) = self.desk.longest_asking() {
            text.push_str(&format!("    {} waits since {}.{:06}\n", self.name(who), at / NS % 100_000, at % NS / 1000));
        }
        text
    }

    fn judge_to(&mut self, horizon: u64) {
        while let Some((key, visit)) = self.desk.done.first_key_value().map(|(key, visit)| (*key, *visit)) {
            // One that is still inside and came earlier goes first.
            let earlier = self.desk.oldest_inside().is_some_and(|inside| inside.entered < key.0);
            if key.0 >= horizon || (earlier && horizon != u64::MAX) {
                break;
            }
            self.desk.done.remove(&key);
            self.judged_to = key.0;
            self.judge(visit);
            let line = self.line(&visit);
            for (at, lines) in &mut self.open {
                if *lines == 5 {
                    self.verdict.violations[*at].push_str("  then:\n");
                }
                self.verdict.violations[*at].push_str(&line);
                *lines -= 1;
            }
            self.open.retain(|(_, lines)| *lines > 0);
            self.before.push_back(visit);
            if self.before.len() > 256
                && let Some(old) = self.before.pop_front()
            {
                self.writes.remove(&(old.who, old.token));
            }
        }
        let old = self.judged_to.saturating_sub(4 * HORIZON);
        self.deaths.retain(|(_, span)| span.until > old);
        self.stops.retain(|(_, span)| span.until > old);
        self.causes.retain(|(_, span)| span.until > old);
        self.absences.retain(|span| span.until > old);
    }

    fn judge(&mut self, visit: Visit) {
        self.verdict.abandoned += u64::from(visit.abandoned);
        match visit.end {
            End::Killed(_) => self.verdict.killed_inside += 1,
            End::Left { code, released, .. } => {
                let lost = |code: u64| code == ipcmutex::ErrorKind::Lost as u64;
                if lost(code) || released.is_some_and(|(_, code)| lost(code)) {
                    let told = released.map_or(visit.until(), |(at, _)| at);
                    let cause = self.ended(&visit, told, "told LOST");
                    *self.verdict.lost.entry(cause).or_default() += 1;
                }
            }
            End::Inside => {}
        }
        self.codes(&visit);
        self.present(&visit);
        let clean = match self.law {
            Law::Lock => self.alone(&visit),
            Law::Lease(ttl) => self.believed_alone(&visit, ttl),
        };
        if clean {
            self.follows(&visit);
        }
        self.fenced(&visit);
        self.idle(&visit);
        let larger = self.largest.is_none_or(|largest| visit.token > largest.token);
        if larger && (self.law == Law::Lock || visit.believed.is_some()) {
            self.largest = Some(visit);
        }
    }

    fn codes(&mut self, visit: &Visit) {
        let End::Left { code, released, .. } = visit.end else { return };
        for code in [Some(code), released.map(|(_, code)| code)].into_iter().flatten() {
            let fine = match self.law {
                Law::Lock => matches!(code_name(code), "OK" | "unchecked"),
                Law::Lease(_) => matches!(code_name(code), "OK" | "unchecked" | "LOST" | "UNAVAILABLE"),
            };
            if !fine {
                self.violation(format!("a hold was answered {}:\n{}", code_name(code), self.line(visit)));
            }
        }
    }

    /// Whether there was somebody to let it in, and to renew its lease.
    fn present(&mut self, visit: &Visit) {
        let Law::Lease(ttl) = self.law else { return };
        let within = |at: u64, span: &Span| span.from < at && at < span.until;
        let late = |span: &Span| Span { from: span.from + ttl, until: span.until };
        let wrong = self.absences.iter().find_map(|span| {
            // A shell does not tell when it asked.
            if visit.asked > span.from && visit.asked < visit.entered && visit.entered < span.until {
                Some("somebody came in")
            } else if visit.believed.is_some_and(|believed| within(believed, &late(span))) {
                Some("a hold was believed in past its lease")
            } else {
                None
            }
        });
        if let Some(wrong) = wrong {
            self.violation(format!("{wrong} while nobody could answer:\n{}", self.line(visit)));
        }
    }

    /// The rules of a lock between this visit and all before it. Whether nothing overlapped.
    fn alone(&mut self, visit: &Visit) -> bool {
        let mut clean = true;
        if let Some(other) = self.before.iter().rev().find(|other| other.until() > visit.entered).copied() {
            let (one, two) = (self.line(&other), self.line(visit));
            self.violation(format!("two inside at once:\n{one}{two}"));
            clean = false;
        }
        if let Some(largest) = self.largest
            && largest.token >= visit.token
        {
            let (one, two) = (self.line(&largest), self.line(visit));
            self.violation(format!("a token that is not larger than one before:\n{one}{two}"));
        }
        clean
    }

    /// The same of a lease.
    fn believed_alone(&mut self, visit: &Visit, ttl: u64) -> bool {
        let mut clean = true;
        // Of two servers that grant at once who is granted first may come in last; who asked when the other was in is later.
        let certain = |before: &Visit| before.entered < visit.asked && visit.asked < visit.entered;
        if let (Some(largest), Some(_)) = (self.largest, visit.believed)
            && largest.token >= visit.token
            && (certain(&largest) || self.cause(&largest, visit.entered) != Cause::FailedOver)
        {
            let (one, two) = (self.line(&largest), self.line(visit));
            self.violation(format!("a token that is not larger than one before:\n{one}{two}"));
        }
        let others: Vec<Visit> =
            self.before.iter().rev().filter(|other| other.until() > visit.entered).copied().collect();
        for other in others {
            clean = false;
            let (older, newer) = if other.token <= visit.token { (other, *visit) } else { (*visit, other) };
            let both = [self.line(&older), self.line(&newer)].concat();
            if let (Some(one), Some(two)) = (older.believed, newer.believed)
                && one > newer.entered
                && two > older.entered
                && !self.may_believe(&older, newer.entered, ttl)
            {
                self.violation(format!("two believed that they hold:\n{both}"));
            }
            if let End::Left { at, released: Some((_, 0)), code, .. } = older.end
                && at > newer.entered
                && code != super::record::UNCHECKED
                // The old server still knew it.
                && !(self.cause(&older, newer.entered) == Cause::FailedOver && self.may_believe(&older, newer.entered, ttl))
            {
                self.violation(format!("a hold that was lost was released with OK:\n{both}"));
            }
            let cause = self.ended(&older, newer.entered, "another came in");
            *self.verdict.overlaps.entry(cause).or_default() += 1;
        }
        clean
    }

    /// Whether a hold may be believed in though the lock was another's at `until`: a server that forgot it is found out by the
    /// next renewal, or by its absence.
    fn may_believe(&self, visit: &Visit, until: u64, ttl: u64) -> bool {
        self.causes.iter().any(|(cause, span)| {
            let stopped = || self.after_stops(visit.who >> 16, span.from, visit.entered) > span.from;
            cause.forgets()
                && span.meets(visit.asked, until)
                // Granted by the server that forgot, not by the one that came after it.
                && (visit.entered <= span.until + SLOW || stopped())
                && visit.believed.is_some_and(|believed| believed <= span.until + ttl)
        })
    }

    /// The rules of the resource behind the fence, between this visit and all before it.
    fn fenced(&mut self, visit: &Visit) {
        let of = |visit: &Visit| self.writes.get(&(visit.who, visit.token)).copied().unwrap_or_default();
        let new = of(visit);
        let mut wrong = Vec::new();
        if let (Some(refused), Some(believed)) = (new.refused, visit.believed)
            && believed > refused
            && !matches!(self.law, Law::Lease(ttl) if self.may_believe(visit, refused, ttl))
        {
            wrong.push(format!("a write of a hold that stood was refused:\n{}", self.line(visit)));
        }
        // Asked for after the other had entered: granted later for certain.
        for old in self.before.iter().filter(|old| old.entered < visit.asked && visit.asked < visit.entered) {
            if let (Some(first), Some(_)) = (new.first, of(old).first)
                && of(old).last > first
            {
                wrong.push(format!("a stale write was taken:\n{}{}", self.line(old), self.line(visit)));
            }
        }
        for text in wrong {
            self.violation(text);
        }
    }

    /// What ended the lease of `visit` before `until`.
    fn cause(&self, visit: &Visit, until: u64) -> Cause {
        let met = self.causes.iter().filter(|(_, span)| span.meets(visit.asked, until)).map(|(cause, _)| *cause);
        let stopped = self.after_stops(visit.who >> 16, visit.asked, until) > visit.asked;
        met.chain(stopped.then_some(Cause::HolderStopped)).min().unwrap_or(Cause::Starved)
    }

    /// Counts a lease that ended under its holder before `until`.
    fn ended(&mut self, visit: &Visit, until: u64, what: &str) -> Cause {
        let cause = self.cause(visit, until);
        if cause >= Cause::SlotMoved && self.verdict.odd.len() < TOLD {
            self.verdict.odd.push(format!("{what}, {cause:?}:\n{}", self.line(visit)));
        }
        cause
    }

    /// The rules between this visit and the one before it, where nothing overlapped.
    fn follows(&mut self, visit: &Visit) {
        let Some(before) = self.before.back().copied() else { return };
        let overlapped = |one: &Visit| {
            self.before.iter().any(|other| other != one && other.until() > one.entered && other.entered < one.until())
        };
        if self.law != Law::Lock && self.before.iter().rev().take(2).any(overlapped) {
            return;
        }
        // Two servers may have let in one just as the other left.
        if self
            .causes
            .iter()
            .any(|(cause, span)| *cause == Cause::FailedOver && span.meets(before.asked, visit.entered))
        {
            return;
        }
        let both = [self.line(&before), self.line(visit)].concat();
        if let End::Left { stood, .. } = before.end
            && stood != before.who
        {
            let stood = self.name(stood);
            self.violation(format!("{stood} stood in the cell of another:\n{both}"));
        }
        let forgot = self.causes.iter().any(|(cause, span)| cause.forgets() && span.meets(before.asked, visit.entered));
        // One that was killed after it had entered the cell, and before it could tell.
        let unseen = self.deaths.iter().any(|(of, span)| {
            *of == visit.met >> 16 && span.meets(before.entered, visit.entered) && visit.met & CHILD == 0
        });
        let killed = matches!(before.end, End::Killed(_)) && visit.met == before.who;
        if visit.met != 0 && !unseen && !killed {
            let met = self.name(visit.met);
            self.violation(format!("{met} was met in the cell:\n{both}"));
        }
        let due = match before.end {
            End::Killed(_) => before.seen..=before.seen + 1,
            _ => before.seen + 1..=before.seen + 1,
        };
        if !due.contains(&visit.seen) {
            self.violation(format!("the counter was {}, not {due:?}: an update was lost:\n{both}", visit.seen));
        }
        // Tokens of a lock count one by one, but for holds that were killed or given back before anybody saw them.
        let next = match self.law {
            Law::Lock => visit.token == before.token + 1,
            Law::Lease(_) => true,
        };
        if next && matches!(before.end, End::Killed(_)) && !visit.abandoned && !forgot {
            self.violation(format!("it was not told that the one before was killed:\n{both}"));
        }
        if next && self.law == Law::Lock && before.was_released() && visit.abandoned {
            self.violation(format!("it was told `abandoned` after a release:\n{both}"));
        }
    }

    /// How long the lock lay free before this visit while somebody waited for it.
    fn idle(&mut self, visit: &Visit) {
        let Some(before) = self.before.back().copied() else { return };
        let ttl = match self.law {
            Law::Lock => 0,
            Law::Lease(ttl) => ttl,
        };
        // Free for certain: what is not told of a release counts as late as it can have been.
        let mut free = match before.end {
            End::Left { released: Some((at, 0)), .. } if at <= visit.entered => at,
            End::Left { at, released, .. } => match released {
                Some((_, 0)) => self.after_stops(before.who >> 16, at, visit.entered),
                _ => self.after_stops(before.who >> 16, at, visit.entered) + ttl,
            },
            End::Killed(at) => at + ttl,
            End::Inside => return,
        };
        // Who entered may have had the lock long before it could tell; and so may one that was killed before it could.
        free = self.after_stops(visit.who >> 16, free, visit.entered);
        if visit.abandoned {
            let before_it = self.deaths.iter().filter(|(_, span)| span.from < visit.entered);
            free = before_it.map(|(_, span)| span.until + ttl).fold(free, u64::max);
        }
        let before_it =
            self.causes.iter().filter(|(cause, span)| *cause != Cause::Minority && span.from < visit.entered);
        free = before_it.map(|(_, span)| span.until + ttl).fold(free, u64::max);
        for waits in self.desk.waits.values_mut() {
            while waits.front().is_some_and(|wait| wait.until <= before.entered) {
                waits.pop_front();
            }
        }
        self.desk.waits.retain(|_, waits| !waits.is_empty());
        if visit.entered.saturating_sub(free) <= self.verdict.longest_idle {
            return;
        }
        let mut longest = 0;
        for (who, waits) in &self.desk.waits {
            for wait in waits.iter().take_while(|wait| wait.from < visit.entered) {
                let end = wait.until.min(visit.entered);
                let from = self.after_stops(who >> 16, wait.from.max(free), end);
                longest = longest.max(end.saturating_sub(from));
            }
        }
        if longest <= self.verdict.longest_idle {
            return;
        }
        let both = [self.line(&before), self.line(visit)].concat();
        self.verdict.longest_idle = longest;
        self.verdict.around_longest_idle = both.clone();
        if longest > self.idle_limit {
            self.violation(format!("a free lock was waited for {:.3} s:\n{both}", longest as f64 / NS as f64));
        }
    }

    /// The end of the last stop of a participant between the two, or `from`.
    fn after_stops(&self, instance: u64, from: u64, until: u64) -> u64 {
        let stops = self.stops.iter().filter(|(of, span)| *of == instance && span.meets(from, until));
        stops.map(|(_, span)| span.until.min(until)).fold(from, u64::max)
    }
}

#[cfg(test)]
#[path = "judge_tests.rs"]
mod tests;
