//! What the scenarios measure: shown where they run, and noted for `docs/FAULTS.md` by `make figures`.

use std::fmt::Display;
use std::io::Write as _;

/// Says `said`, the figure of fault `id`.
///
/// # Panics
/// If it is to be noted and cannot be.
pub fn figure(id: &str, said: impl Display) {
    println!("{id}: {said}");
    if let Some(path) = std::env::var_os("IPCMUTEX_FIGURES") {
        let notes = std::fs::File::options().append(true).create(true).open(path);
        // In one write: tests run side by side.
        notes.and_then(|mut notes| notes.write_all(format!("{id}\t{said}\n").as_bytes())).expect("it is writable");
    }
}

/// The median and the most of some times.
#[must_use]
pub fn spread(mut times: Vec<std::time::Duration>) -> String {
    times.sort_unstable();
    match (times.get(times.len() / 2), times.last()) {
        (Some(median), Some(most)) => format!("median {median:.1?}, at most {most:.1?} of {}", times.len()),
        _ => "none".to_owned(),
    }
}
