//! Bytes that nobody meant: those that `make fuzz` found something with, and some that reach far.

use std::path::PathBuf;

use ipcmutex_tests::artifacts;
use ipcmutex_tests::fuzz::{page, resp, url};

fn replay(target: &str, run: fn(&[u8])) {
    let folder = artifacts::source("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> =
        folder.read_dir().expect("a corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{target} has bytes");
    for file in files {
        println!("{}", file.display());
        run(&std::fs::read(file).expect("a file"));
    }
}

#[test]
fn p7_p8_url() {
    replay("url", url::run);
}

#[test]
fn page_of_a_lock_file() {
    replay("page", page::run);
}

#[test]
fn r26_resp() {
    replay("resp", resp::run);
}
