//! Programs of all languages hammer one lock, and the checker of `occupancy.rs` finds nothing. That it finds something
//! where there is something to find is shown with locks that are broken.
//!
//! `IPCMUTEX_HAMMER_SECONDS` says how long (8 by default; `make soak` takes 60).

use std::collections::BTreeMap;
use std::time::Duration;

use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::cell::{Cell, Engine, Ground};
use ipcmutex_tests::occupancy::{self, Verdict};

/// Who hammers, and how.
type Crowd = [(Language, &'static str, u32)];

const ALL: &Crowd = &[
    (Language::C, "lock", 3),
    (Language::Python, "lock", 3),
    (Language::Node, "lock", 3),
    (Language::Rust, "lock", 1),
    (Language::Rust, "future", 1),
    (Language::Shell, "lock", 1),
];

fn lasting() -> Duration {
    let seconds = std::env::var("IPCMUTEX_HAMMER_SECONDS").map_or(8, |text| text.parse().expect("seconds"));
    Duration::from_secs(seconds)
}

fn hammered(engine: Engine, crowd: &Crowd, lasting: Duration) -> (Verdict, BTreeMap<Language, u64>) {
    let ground = Ground::new().expect("a temporary folder");
    let cell = Cell::new(&ground, engine, Language::Rust, Language::Rust);
    let url = cell.url("hammer", "");
    let file = ground.folder().join("cell");
    occupancy::create(&file).expect("the temporary folder is writable");
    let mut agents = Vec::new();
    for (language, mode, count) in crowd {
        for _ in 0..*count {
            let agent: Agent = cell.agent_of(*language);
            agent.open(1, &url).ok();
            agents.push((agent, *mode));
        }
    }
    let mut under_way = Vec::new();
    let mut records = Vec::new();
    for (number, (agent, mode)) in agents.iter().enumerate() {
        let record = ground.folder().join(format!("record-{number}"));
        let command = format!("hammer 1 {} {} {} {mode}", file.display(), record.display(), lasting.as_millis());
        under_way.push((agent.language, agent.begin(&command)));
        records.push(record);
    }
    let (mut met, mut visits) = (0, BTreeMap::new());
    for (language, pending) in under_way {
        let told = pending.reply_after(lasting).ok();
        met += told.number("overlaps");
        *visits.entry(language).or_default() += told.number("count");
    }
    records.retain(|record| record.exists());
    let verdict = occupancy::judge(&file, &records, met);
    println!("{engine}: {visits:?}, {verdict:?}");
    (verdict, visits)
}

fn nobody_meets(engine: Engine) {
    let (verdict, visits) = hammered(engine, ALL, lasting());
    assert!(verdict.is_exclusive(), "{verdict:?}");
    assert_eq!(visits.values().sum::<u64>(), verdict.visits);
    for language in Language::ALL {
        assert!(visits[&language] > 0, "{language} never got in: {visits:?}");
    }
}

#[test]
fn all_languages_on_mpm() {
    nobody_meets(Engine::Mpm);
}

#[test]
fn all_languages_on_redis() {
    nobody_meets(Engine::Redis);
}

#[test]
fn negative_control_nobody_locks() {
    let crowd: Vec<_> = ALL.iter().map(|(language, _, count)| (*language, "none", *count)).collect();
    let (verdict, _) = hammered(Engine::Mpm, &crowd, Duration::from_secs(2));
    assert!(verdict.met > 0 && verdict.lost_updates > 0, "the checker is blind: {verdict:?}");
    assert!(verdict.crossed > 0 && verdict.stale_tokens > 0, "the checker is blind: {verdict:?}");
}

#[test]
fn negative_control_one_of_each_does_not_lock() {
    for intruder in [Language::C, Language::Python, Language::Node, Language::Rust] {
        let crowd = [(Language::C, "lock", 1), (Language::Python, "lock", 1), (intruder, "none", 1)];
        let (verdict, _) = hammered(Engine::Mpm, &crowd, Duration::from_secs(2));
        assert!(verdict.met > 0 && verdict.crossed > 0, "the checker does not see one {intruder}: {verdict:?}");
    }
}

#[test]
fn negative_control_lock_file_unlinked_on_release() {
    let (verdict, _) = hammered(Engine::Mpm, &[(Language::C, "unlink", 4)], Duration::from_secs(2));
    assert!(verdict.met > 0 && verdict.crossed > 0, "the checker does not see a known fault: {verdict:?}");
}
