//! The canary. Every secret that the tests give away has it in it, and all that the product says is searched for it, where it is
//! read: answers, output and log of the agents (`agent`), the log and the refusals in the tests' own process (`listen`, `asking`),
//! and what a command that the product starts can see (`found_in_children`).

use std::sync::{Arc, Mutex, Once, PoisonError};

/// What shows that a secret is shown.
pub const CANARY: &str = "c4nary";

/// Secrets of another make, such as the lines of a key file.
static OTHERS: Mutex<Vec<String>> = Mutex::new(Vec::new());
/// What was found in this process's own log.
static FOUND: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A password that will be recognised.
#[must_use]
pub fn password(whose: &str) -> String {
    format!("{CANARY}-of-{whose}")
}

/// Each line of a key file is to be kept secret.
pub fn keep(pem: &str) {
    let lines = pem.lines().filter(|line| line.len() > 16 && !line.starts_with("--")).map(str::to_owned);
    OTHERS.lock().unwrap_or_else(PoisonError::into_inner).extend(lines);
}

/// The secret that is in `said`, shown with what stands around it.
pub fn found(said: &str) -> Option<String> {
    let others = OTHERS.lock().unwrap_or_else(PoisonError::into_inner);
    let at = std::iter::once(CANARY).chain(others.iter().map(String::as_str)).find_map(|secret| said.find(secret))?;
    let begin = said[..at].char_indices().rev().nth(100).map_or(0, |(begin, _)| begin);
    Some(said[begin..].chars().take(200).collect())
}

/// Fails if a secret shows in `said`.
///
/// # Panics
/// If it does.
#[track_caller]
pub fn search(said: &str) {
    if let Some(found) = found(said) {
        panic!("a secret shows: {found}");
    }
}

/// From now on this process's own log is told in full, and searched.
pub fn listen() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let search = |level: ipcmutex::logging::Level, said: &str| {
            if let Some(found) = found(said) {
                FOUND.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{level}: {found}"));
            }
        };
        ipcmutex::logging::to_sink(ipcmutex::logging::LevelFilter::Trace, Some(Arc::new(search)));
    });
}

/// What of it was found in the log. Whoever ends a server asks.
#[must_use]
pub fn found_in_log() -> Vec<String> {
    std::mem::take(&mut *FOUND.lock().unwrap_or_else(PoisonError::into_inner))
}

/// A secret that the children of `pid` can read in how they were started.
pub fn found_in_children(pid: &str) -> Option<String> {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        ["cmdline", "environ"].iter().find_map(|what| {
            let text = std::fs::read(format!("/proc/{child}/{what}")).ok()?;
            found(&String::from_utf8_lossy(&text)).map(|found| format!("{what} of a command: {found}"))
        })
    })
}
