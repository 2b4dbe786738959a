//! The checker: whether two were ever inside at once.
//!
//! A *cell file* of 16 bytes is shared by all participants (the page cache keeps `mmap`, `pread` and `pwrite` in step):
//! who is inside (0: nobody), and a counter that each visit reads and writes back one higher. Each participant leaves a
//! *record file*: per visit when it was entered and left (CLOCK_MONOTONIC, ns) and the token. [`judge`] reads it all.
//!
//! A visit sees an overlap if the cell is taken when it enters or is not its own when it leaves; two that overlap unseen
//! lose an update, or their intervals cross.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// CLOCK_MONOTONIC in nanoseconds: comparable between the processes of a host.
pub fn now() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Makes an empty cell file.
///
/// # Errors
/// What the file system says.
pub fn create(cell: &Path) -> std::io::Result<()> {
    std::fs::write(cell, [0; 16])
}

/// A participant in Rust. Those in the other languages do the same.
pub struct Hammer {
    cell: File,
    me: u64,
    until: u64,
    overlaps: u64,
    records: Vec<[u64; 3]>,
}

impl Hammer {
    /// Opens the cell file for `lasting`.
    pub fn open(cell: &Path, lasting: Duration) -> Hammer {
        static ENTRANTS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let cell = OpenOptions::new().read(true).write(true).open(cell).expect("the driver made the cell");
        let entrant = ENTRANTS.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let me = u64::from(std::process::id()) << 16 | entrant;
        Hammer { cell, me, until: now() + lasting.as_nanos() as u64, overlaps: 0, records: Vec::new() }
    }

    /// Whether time is left.
    pub fn goes_on(&self) -> bool {
        now() < self.until
    }

    fn read(&self, at: u64) -> u64 {
        let mut bytes = [0; 8];
        self.cell.read_exact_at(&mut bytes, at).expect("the cell file is whole");
        u64::from_le_bytes(bytes)
    }

    fn write(&self, at: u64, value: u64) {
        self.cell.write_all_at(&value.to_le_bytes(), at).expect("the cell file is writable");
    }

    /// One visit.
    pub fn occupy(&mut self, token: u64) {
        let entered = now();
        let someone = self.read(0) != 0;
        self.write(0, self.me);
        let count = self.read(8);
        // Long enough for another to be scheduled meanwhile, now and then.
        std::thread::yield_now();
        self.write(8, count + 1);
        let intruder = self.read(0) != self.me;
        self.write(0, 0);
        self.overlaps += u64::from(someone) + u64::from(intruder);
        self.records.push([entered, now(), token]);
    }

    /// Adds the records to their file; the fields of the agent's answer.
    pub fn leave(self, records: &Path) -> String {
        let bytes: Vec<u8> = self.records.iter().flatten().flat_map(|number| number.to_le_bytes()).collect();
        let file = OpenOptions::new().create(true).append(true).open(records);
        file.and_then(|mut file| file.write_all(&bytes)).expect("the driver made the folder");
        format!("count={} overlaps={}", self.records.len(), self.overlaps)
    }
}

/// What the checker found.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    /// How many visits there were.
    pub visits: u64,
    /// Visits that met another in the cell.
    pub met: u64,
    /// Updates of the counter that were overwritten.
    pub lost_updates: u64,
    /// Visits that began before the one before them had ended.
    pub crossed: u64,
    /// Tokens that were not larger than that of the visit before.
    pub stale_tokens: u64,
}

impl Verdict {
    /// Whether every visit was alone, and its token the largest so far.
    pub fn is_exclusive(&self) -> bool {
        self.met == 0 && self.lost_updates == 0 && self.crossed == 0 && self.stale_tokens == 0
    }
}

/// Reads the cell and the records; `met` is the sum of the overlaps that the participants told of.
pub fn judge(cell: &Path, records: &[PathBuf], met: u64) -> Verdict {
    let mut visits: Vec<[u64; 3]> = Vec::new();
    for path in records {
        let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        assert_eq!(bytes.len() % 24, 0, "{} is torn", path.display());
        let numbers: Vec<u64> =
            bytes.chunks_exact(8).map(|eight| u64::from_le_bytes(eight.try_into().expect("eight bytes"))).collect();
        visits.extend(numbers.chunks_exact(3).map(|three| [three[0], three[1], three[2]]));
    }
    visits.sort_unstable();
    let cell = std::fs::read(cell).expect("the driver made the cell");
    let counted = u64::from_le_bytes(cell[8..16].try_into().expect("eight bytes"));
    let pairs = || visits.windows(2).map(|pair| (pair[0], pair[1]));
    Verdict {
        visits: visits.len() as u64,
        met,
        lost_updates: (visits.len() as u64).abs_diff(counted),
        crossed: pairs().filter(|(before, after)| after[0] < before[1]).count() as u64,
        stale_tokens: pairs().filter(|(before, after)| after[2] <= before[2]).count() as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(visits: &[[u64; 3]], counted: u64) -> Verdict {
        let folder = tempfile::tempdir().unwrap();
        let (cell, records) = (folder.path().join("cell"), folder.path().join("records"));
        std::fs::write(&cell, [0u64.to_le_bytes(), counted.to_le_bytes()].concat()).unwrap();
        std::fs::write(&records, visits.iter().flatten().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>()).unwrap();
        judge(&cell, &[records], 0)
    }

    #[test]
    fn each_kind_of_fault_is_seen_alone() {
        assert!(verdict(&[[1, 2, 7], [2, 3, 8]], 2).is_exclusive());
        assert_eq!(verdict(&[[1, 3, 7], [2, 4, 8]], 2).crossed, 1);
        assert_eq!(verdict(&[[1, 2, 7], [2, 3, 8]], 1).lost_updates, 1);
        assert_eq!(verdict(&[[1, 2, 8], [2, 3, 8]], 2).stale_tokens, 1);
        assert_eq!(verdict(&[[3, 4, 8], [1, 2, 9]], 2).stale_tokens, 1);
    }
}
