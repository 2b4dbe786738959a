//! What participants leave behind: fixed records in a file of their own, each appended by one write, so that a participant
//! that is killed has told everything up to that moment; and the cell that they all share.
//!
//! A record is 64 bytes, eight u64 in little-endian: kind, CLOCK_MONOTONIC in ns, who, token, and four values.
//!
//! | kind | when | values |
//! |---|---|---|
//! | 1 ASKED | before an acquisition | |
//! | 2 ENTERED | after it | abandoned, who was met in the cell, the counter as seen |
//! | 3 CHECKED | before a check of the hold | its code |
//! | 4 LEFT | before the last check of the hold | its code, who stood in the cell |
//! | 5 RELEASED | after the release | its code |
//! | 6 GAVE_UP | after an acquisition that failed | its code |
//! | 7 DID | a participant forked, closed or cancelled | which: 1, 2, 3 |
//!
//! *who* is the participant's number << 16 and the entrant's (thread, task) in it; [`CHILD`] marks a forked child's.
//! The cell file is four u64: who is inside, the counter, whether to stop, and one that stays 0.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::occupancy::now;

/// The bit of an entrant that is a forked child: it does not die with its participant.
pub const CHILD: u64 = 0x8000;
/// The length of a record.
pub const RECORD: usize = 64;
/// The code of a check that was not made.
pub const UNCHECKED: u64 = 255;

/// What a participant did by its own choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Deed {
    /// It forked.
    Fork,
    /// It closed a mutex with a wait or a hold of its own.
    Close,
    /// It cancelled a wait.
    Cancel,
}

/// What a record tells.
#[derive(Clone, Copy, Debug, PartialEq)]
#[allow(missing_docs, reason = "the table above says it")]
pub enum Told {
    Asked,
    Entered { token: u64, abandoned: bool, met: u64, seen: u64 },
    Checked { code: u64 },
    Left { code: u64, stood: u64 },
    Released { code: u64 },
    GaveUp { code: u64 },
    Did(Deed),
}

/// One record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Event {
    /// CLOCK_MONOTONIC in ns.
    pub at: u64,
    /// Whose.
    pub who: u64,
    /// What.
    pub told: Told,
}

impl Event {
    /// Reads a record; `None` if it is none.
    pub fn read(bytes: &[u8]) -> Option<Event> {
        let mut words = [0; 8];
        for (word, eight) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(eight.try_into().ok()?);
        }
        let [kind, at, who, token, a, b, c, _] = words;
        let told = match (kind, a) {
            (1, _) => Told::Asked,
            (2, 0 | 1) => Told::Entered { token, abandoned: a == 1, met: b, seen: c },
            (3, _) => Told::Checked { code: a },
            (4, _) => Told::Left { code: a, stood: b },
            (5, _) => Told::Released { code: a },
            (6, _) => Told::GaveUp { code: a },
            (7, 1) => Told::Did(Deed::Fork),
            (7, 2) => Told::Did(Deed::Close),
            (7, 3) => Told::Did(Deed::Cancel),
            _ => return None,
        };
        Some(Event { at, who, told })
    }

    fn bytes(self) -> Vec<u8> {
        let (kind, token, values) = match self.told {
            Told::Asked => (1, 0, [0; 3]),
            Told::Entered { token, abandoned, met, seen } => (2, token, [u64::from(abandoned), met, seen]),
            Told::Checked { code } => (3, 0, [code, 0, 0]),
            Told::Left { code, stood } => (4, 0, [code, stood, 0]),
            Told::Released { code } => (5, 0, [code, 0, 0]),
            Told::GaveUp { code } => (6, 0, [code, 0, 0]),
            Told::Did(deed) => (7, 0, [deed as u64 + 1, 0, 0]),
        };
        let [a, b, c] = values;
        [kind, self.at, self.who, token, a, b, c, 0].iter().flat_map(|word| word.to_le_bytes()).collect()
    }
}

/// The cell that all participants share.
pub struct Cell(File);

impl Cell {
    /// Makes an empty one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path) -> std::io::Result<Cell> {
        std::fs::write(path, [0; 32])?;
        Cell::open(path)
    }

    /// Opens one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> std::io::Result<Cell> {
        Ok(Cell(OpenOptions::new().read(true).write(true).open(path)?))
    }

    fn read(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.0.read_exact_at(&mut bytes, at).expect("the cell file is whole");
        u64::from_le_bytes(bytes)
    }

    fn write(&self, at: u64, value: u64) {
        self.0.write_all_at(&value.to_le_bytes(), at).expect("the cell file is writable");
    }

    /// Who is inside; 0 is nobody.
    pub fn inside(&self) -> u64 {
        self.read(0)
    }

    /// Asks all to end.
    pub fn stop(&self) {
        self.write(16, 1);
    }

    /// Whether all are asked to end.
    pub fn is_stopped(&self) -> bool {
        self.read(16) != 0
    }
}

/// One entrant in Rust. Those in the other languages do the same.
pub struct Entrant {
    cell: Cell,
    log: File,
    who: u64,
}

/// A visit under way.
pub struct Inside {
    seen: u64,
}

impl Entrant {
    /// Opens the files.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(cell: &Path, log: &Path, who: u64) -> std::io::Result<Entrant> {
        let log = OpenOptions::new().create(true).append(true).open(log)?;
        Ok(Entrant { cell: Cell::open(cell)?, log, who })
    }

    /// The cell.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// Who it is.
    pub fn who(&self) -> u64 {
        self.who
    }

    /// Leaves a record dated `at`.
    pub fn tell_at(&self, at: u64, told: Told) {
        let bytes = Event { at, who: self.who, told }.bytes();
        (&self.log).write_all(&bytes).expect("the log is writable");
    }

    /// Leaves a record.
    pub fn tell(&self, told: Told) {
        self.tell_at(now(), told);
    }

    /// Enters with a hold.
    pub fn enter(&self, token: u64, abandoned: bool) -> Inside {
        let at = now();
        let met = self.cell.read(0);
        self.cell.write(0, self.who);
        let seen = self.cell.read(8);
        self.tell_at(at, Told::Entered { token, abandoned, met, seen });
        Inside { seen }
    }

    /// Asks whether the hold still stands; `check` answers a code of the table.
    pub fn check(&self, check: impl FnOnce() -> u64) {
        let at = now();
        let code = check();
        self.tell_at(at, Told::Checked { code });
    }

    /// Counts itself; the longer after `enter`, the more can be seen.
    pub fn count(&self, inside: &Inside) {
        self.cell.write(8, inside.seen + 1);
    }

    /// Leaves the cell; the release comes after it.
    pub fn leave(&self, _inside: Inside, check: impl FnOnce() -> u64) {
        let at = now();
        let code = check();
        let stood = self.cell.read(0);
        self.cell.write(0, 0);
        self.tell_at(at, Told::Left { code, stood });
    }
}

/// A participant's log, read while it is written.
pub struct Log {
    file: File,
    at: u64,
}

impl Log {
    /// Makes an empty one.
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path) -> std::io::Result<Log> {
        Ok(Log { file: OpenOptions::new().create(true).truncate(true).read(true).write(true).open(path)?, at: 0 })
    }

    /// What has come since the last call.
    ///
    /// # Errors
    /// What the file system says, and a record that is none.
    pub fn read(&mut self) -> std::io::Result<Vec<Event>> {
        let length = self.file.metadata()?.len();
        let whole = (length - self.at) / RECORD as u64 * RECORD as u64;
        let mut bytes = vec![0; whole as usize];
        self.file.read_exact_at(&mut bytes, self.at)?;
        self.at += whole;
        let events = bytes.chunks_exact(RECORD).map(|record| {
            Event::read(record).ok_or_else(|| std::io::Error::other(format!("no record: {record:02x?}")))
        });
        events.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for told in [
            Told::Asked,
            Told::Entered { token: u64::MAX, abandoned: true, met: 7, seen: 8 },
            Told::Checked { code: 3 },
            Told::Left { code: 3, stood: 9 },
            Told::Released { code: 3 },
            Told::GaveUp { code: 2 },
            Told::Did(Deed::Cancel),
        ] {
            let event = Event { at: 1 << 60, who: 3 << 16 | CHILD, told };
            assert_eq!(Event::read(&event.bytes()), Some(event));
            assert_eq!(event.bytes().len(), RECORD);
        }
        assert_eq!(Event::read(&[0; RECORD]), None);
    }
}
