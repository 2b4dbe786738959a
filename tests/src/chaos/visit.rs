//! Visits and waits, put together from the records of each entrant.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use ipcmutex::ErrorKind;

use super::record::{CHILD, Event, Told, UNCHECKED};

/// The name of a code of the table.
pub fn code_name(code: u64) -> &'static str {
    match code {
        0 => "OK",
        UNCHECKED => "unchecked",
        code => ErrorKind::ALL.iter().find(|kind| **kind as u64 == code).map_or("?", |kind| kind.name()),
    }
}

/// How a visit ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum End {
    /// It has not.
    Inside,
    /// Its process was killed inside.
    Killed(u64),
    /// It left at this time, with what its last check said and who stood in the cell. `released` is the time and the code
    /// of its release, if it lived to tell.
    Left {
        /// Before the last check.
        at: u64,
        /// What that said.
        code: u64,
        /// Who stood in the cell.
        stood: u64,
        /// After the release, and its code.
        released: Option<(u64, u64)>,
    },
}

/// One hold, as its entrant told it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "see the records")]
pub struct Visit {
    pub who: u64,
    pub token: u64,
    pub asked: u64,
    pub entered: u64,
    pub abandoned: bool,
    pub met: u64,
    pub seen: u64,
    /// Up to when it could believe that it holds: the last check that said so began then.
    pub believed: Option<u64>,
    pub end: End,
}

impl Visit {
    /// Up to when it was inside for certain.
    pub fn until(&self) -> u64 {
        match self.end {
            End::Inside => u64::MAX,
            End::Killed(at) | End::Left { at, .. } => at.max(self.entered),
        }
    }

    /// Whether the lock can have been released properly.
    pub fn was_released(&self) -> bool {
        matches!(self.end, End::Left { released: Some((_, 0)), .. })
    }
}

/// A time in which somebody wanted the lock and did not have it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Wait {
    /// From when.
    pub from: u64,
    /// Until when.
    pub until: u64,
}

/// Puts the records of all entrants together.
#[derive(Default)]
pub struct Desk {
    asked: HashMap<u64, u64>,
    /// Ended by a kill; a shell may still tell of the command that was killed.
    ended: HashSet<u64>,
    inside: HashMap<u64, Visit>,
    /// Whole visits, by when they began.
    pub done: BTreeMap<(u64, u64), Visit>,
    /// Waits of each entrant, in order.
    pub waits: HashMap<u64, VecDeque<Wait>>,
    /// The codes of acquisitions that failed.
    pub gave_up: BTreeMap<u64, u64>,
    /// What records contradicted.
    pub nonsense: Vec<String>,
}

impl Desk {
    fn wait_ends(&mut self, who: u64, at: u64) -> u64 {
        let from = self.asked.remove(&who).unwrap_or(at);
        self.waits.entry(who).or_default().push_back(Wait { from, until: at });
        from
    }

    /// Takes a record; those of one entrant come in order.
    pub fn take(&mut self, event: Event) {
        let Event { at, who, told } = event;
        match told {
            Told::Asked => drop(self.asked.insert(who, at)),
            Told::Entered { token, abandoned, met, seen } => {
                let asked = self.wait_ends(who, at);
                let visit =
                    Visit { who, token, asked, entered: at, abandoned, met, seen, believed: None, end: End::Inside };
                if let Some(before) = self.inside.insert(who, visit) {
                    self.close(before);
                }
            }
            Told::Checked { code } => {
                if let (0, Some(visit)) = (code, self.inside.get_mut(&who)) {
                    visit.believed = Some(at);
                }
            }
            Told::Left { code, stood } => match self.inside.get_mut(&who) {
                Some(visit) => {
                    visit.end = End::Left { at, code, stood, released: None };
                    if code == 0 {
                        visit.believed = Some(at);
                    }
                }
                None => self.nonsense.push(format!("{who:x} left and was not inside")),
            },
            Told::Released { code } => match self.inside.remove(&who) {
                Some(mut visit) => {
                    match &mut visit.end {
                        End::Left { released, .. } => *released = Some((at, code)),
                        // A command that was stopped because its lock was lost.
                        end => *end = End::Killed(at),
                    }
                    self.close(visit);
                }
                // The shell tells of its command, which may have ended before it could tell of itself.
                None if !self.ended.remove(&who) => self.gave_up(who, at, code),
                None => {}
            },
            Told::GaveUp { code } => self.gave_up(who, at, code),
            Told::Did(_) => {}
        }
    }

    fn gave_up(&mut self, who: u64, at: u64, code: u64) {
        self.wait_ends(who, at);
        *self.gave_up.entry(code).or_default() += 1;
    }

    fn close(&mut self, visit: Visit) {
        self.done.insert((visit.entered, visit.who), visit);
    }

    /// A participant was killed; all that it wrote has been taken. Its forked children live on.
    pub fn killed(&mut self, instance: u64, at: u64) {
        let of = |who: &u64| who >> 16 == instance && who & CHILD == 0;
        for who in self.asked.keys().copied().filter(of).collect::<Vec<_>>() {
            self.wait_ends(who, at);
        }
        for who in self.inside.keys().copied().filter(of).collect::<Vec<_>>() {
            if let Some(mut visit) = self.inside.remove(&who) {
                self.ended.insert(who);
                if visit.end == End::Inside {
                    visit.end = End::Killed(at);
                }
                self.close(visit);
            }
        }
    }

    /// Since when the longest visit lasts that has not ended.
    pub fn oldest_inside(&self) -> Option<Visit> {
        self.inside.values().min_by_key(|visit| visit.entered).copied()
    }

    /// Who asked first and has no answer yet.
    pub fn longest_asking(&self) -> Option<(u64, u64)> {
        self.asked.iter().map(|(who, at)| (*at, *who)).min()
    }
}
