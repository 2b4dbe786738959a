//! The books that the workers keep, checked line by line. README.md has their format.

use std::path::{Path, PathBuf};

const ACCOUNTS: [&str; 4] = ["alice", "bob", "carol", "dave"];
const EACH: i64 = 1_000_000;
const HEAD: usize = 160;
const ENTRY: usize = 64;

/// The ledger's file.
pub(crate) struct Ledger(pub(crate) PathBuf);

/// What the audit found.
pub(crate) struct Audit {
    /// How many transfers are booked.
    pub(crate) transfers: usize,
    /// What is wrong; empty if the books balance.
    pub(crate) faults: Vec<String>,
}

impl Ledger {
    /// New books: everybody has a million.
    pub(crate) fn create(path: PathBuf) -> std::io::Result<Ledger> {
        let balances = ACCOUNTS.iter().map(|name| (*name, EACH)).chain([("transfers", 0)]);
        std::fs::write(&path, balances.map(|(name, value)| format!("{name:<11}{value:>20}\n")).collect::<String>())?;
        Ok(Ledger(path))
    }

    /// Reads the books as an accountant: from the first entry, trusting no balance.
    pub(crate) fn audit(&self) -> std::io::Result<Audit> {
        let text = std::fs::read_to_string(path(self))?;
        let mut faults = Vec::new();
        let (head, body) = text.split_at(HEAD.min(text.len()));
        let told: Vec<i64> =
            head.lines().map(|line| line.get(11..).and_then(|n| n.trim().parse().ok()).unwrap_or(-1)).collect();
        let entries: Vec<Vec<&str>> = body.lines().map(|line| line.split_whitespace().collect()).collect();
        if body.len() % ENTRY != 0 || told.len() != 5 {
            faults.push("a line is torn".to_owned());
        }
        let transfers = told.last().copied().unwrap_or(0) as usize;
        if entries.len() < 2 * transfers {
            faults.push(format!("{transfers} transfers are counted, {} entries written", entries.len()));
        }
        let (mut balances, mut last) = ([EACH; 4], 0);
        for (number, pair) in entries.chunks(2).take(transfers).enumerate() {
            let [debit, credit] = pair else { break };
            match (booked(debit, "debit"), booked(credit, "credit")) {
                (Some((token, from, out)), Some((other, to, into))) if token == other && out == into => {
                    if token <= last {
                        faults.push(format!("transfer {number}: token {token} after {last}"));
                    }
                    last = token;
                    balances[from] -= out;
                    balances[to] += into;
                }
                _ => faults.push(format!("transfer {number}: {debit:?} and {credit:?} are no pair")),
            }
        }
        if told.get(..4) != Some(&balances[..]) {
            faults.push(format!("the balances are {told:?}, the entries add up to {balances:?}"));
        }
        Ok(Audit { transfers, faults })
    }
}

fn path(ledger: &Ledger) -> &Path {
    &ledger.0
}

/// Token, account and amount of one entry.
fn booked(words: &[&str], side: &str) -> Option<(u64, usize, i64)> {
    let [token, _language, _pid, of, account, amount] = words else { return None };
    let account = ACCOUNTS.iter().position(|name| name == account)?;
    (*of == side).then_some((token.parse().ok()?, account, amount.parse().ok()?))
}
