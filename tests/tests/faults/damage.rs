//! Lock files that their owner has written to, or cut off, while they are in use: see layout.rs and word.rs for the offsets.

use std::fs::File;
use std::os::unix::fs::FileExt;

use ipcmutex::ErrorKind;
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::place::Place;

const WORD: u64 = 64;
const BLOCKS: u64 = 136;
const BLOCK: u64 = 4096;

fn agent(url: &str) -> Agent {
    let agent = Agent::start(Language::C);
    agent.open(1, url).ok();
    agent
}

fn writable(place: &Place) -> File {
    File::options().write(true).open(place.path()).expect("it is ours")
}

/// Held or reserved by a slot that a file of one block does not have, or by none; with each flag, or all.
fn impossible_words() -> impl Iterator<Item = u64> {
    let slots = [0u64, 20, 4000, 4095];
    let flags = [0u64, 1 << 2, 1 << 4, 0b111 << 2];
    let states = [1u64, 2];
    let all = move |slot: u64| {
        states.into_iter().flat_map(move |state| flags.map(move |flags| state | flags | slot << 5 | 77 << 17))
    };
    slots.into_iter().flat_map(all).chain([3 | 1 << 5])
}

/// A slot number beyond the file would lead a reader to where a touch is a SIGBUS.
#[test]
fn s7_a_word_that_names_nobody_is_damage_and_kills_nobody() {
    let place = Place::new();
    let (user, file) = (agent(&place.url()), writable(&place));
    for word in impossible_words() {
        file.write_all_at(&word.to_le_bytes(), WORD).expect("it is ours");
        for acquire in ["hold 1 1 0", "hold 1 1 10", "hold 1 1 forever"] {
            let refused = user.call(acquire).err(ErrorKind::Protocol);
            assert!(refused.text.contains("damaged"), "{word:#x}: {}", refused.text);
        }
        user.call("status 1").ok();
    }
    // Breaking what nobody holds is allowed, and what was written is gone.
    file.write_all_at(&(1u64 | 4000 << 5 | 78 << 17).to_le_bytes(), WORD).expect("it is ours");
    user.call("break 1").ok();
    assert!(user.call("hold 1 1 0").ok().abandoned());
}

#[test]
fn s7_who_waits_is_told_of_the_damage() {
    let place = Place::new();
    for word in [1u64 | 4000 << 5, 2 | 4000 << 5, 1, 3] {
        let (owner, waiter, second) = (agent(&place.url()), agent(&place.url()), agent(&place.url()));
        let file = writable(&place);
        owner.call("hold 1 1 0").ok();
        let waits = [waiter.begin("hold 1 1 forever"), second.begin("hold 1 1 forever")];
        owner.until_waiters(1, 2);
        file.write_all_at(&(word | 1 << 2 | 99 << 17).to_le_bytes(), WORD).expect("it is ours");
        for wait in waits {
            wait.reply().err(ErrorKind::Protocol);
        }
        owner.call("end 1").err(ErrorKind::Lost);
        std::fs::remove_file(place.path()).expect("it is ours");
    }
}

/// A number of blocks beyond the file's end: who has it open goes on with what is there, who opens it is refused.
#[test]
fn s7_a_number_of_blocks_beyond_the_file_leads_nobody_there() {
    for blocks in [2u32, 216, 217, u32::MAX] {
        let place = Place::new();
        let url = format!("{}?fair=strict", place.url());
        let (owner, waiter) = (agent(&url), agent(&url));
        owner.call("hold 1 1 0").ok();
        writable(&place).write_all_at(&blocks.to_le_bytes(), BLOCKS).expect("it is ours");
        let wait = waiter.begin("hold 1 1 forever");
        owner.until_waiters(1, 1);
        let late = Agent::start(Language::C);
        let refused = late.open(1, &url).err(ErrorKind::Protocol);
        assert!(refused.text.contains("damaged"), "{}", refused.text);
        owner.call("end 1").ok();
        wait.reply().ok();
        waiter.call("end 1").ok();
        owner.call("status 1").ok();
    }
}

/// Cut off to its first block: whose slot was beyond notices before it writes there.
#[test]
fn s7_a_file_that_was_cut_short_is_noticed() {
    let place = Place::new();
    let users: Vec<Agent> = (0..21).map(|_| agent(&place.url())).collect();
    let file = writable(&place);
    assert_eq!(file.metadata().expect("it is open").len(), 2 * BLOCK, "the last two have a block of their own");
    file.set_len(BLOCK).expect("it is ours");
    for user in &users[19..] {
        user.call("hold 1 1 0").err(ErrorKind::Protocol);
        user.call("close 1").ok();
    }
}
