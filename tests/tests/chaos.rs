//! Short runs of chaos (`../chaos/README.md`); `make chaos` runs longer ones. `CHAOS_SEED` chooses other faults.

use std::time::Duration;

use ipcmutex_tests::agent::Language;
use ipcmutex_tests::chaos::crew::CREW;
use ipcmutex_tests::chaos::scene::Engine;
use ipcmutex_tests::chaos::{Order, run};
use ipcmutex_tests::servers::skipped;

fn short(engine: Engine, faults: u64, lasting: Duration) {
    let seed = std::env::var("CHAOS_SEED").map_or(1, |text| text.parse().expect("a number"));
    let outcome = run(Order { engine, seed, faults, lasting }, |_| ());
    println!("{outcome}");
    assert!(outcome.verdict.violations.is_empty(), "{outcome}");
    // That it was chaos, and that all were in it.
    assert!(outcome.faults.values().sum::<u64>() > 50 && outcome.verdict.killed_inside > 0, "{outcome}");
    for language in Language::ALL.into_iter().filter(|language| CREW.contains(language)) {
        assert!(
            outcome.verdict.holds.get(&language).is_some_and(|holds| *holds > 0),
            "{language} never got in: {outcome}"
        );
    }
}

#[test]
fn mpm() {
    short(Engine::Mpm, 250, Duration::from_secs(25));
}

#[test]
fn mpm_strict() {
    short(Engine::MpmStrict, 250, Duration::from_secs(25));
}

#[test]
fn redis() {
    if !skipped("redis") {
        short(Engine::Redis, 250, Duration::from_secs(50));
    }
}

#[test]
fn redlock() {
    if !skipped("redlock") {
        short(Engine::Redlock, 75, Duration::from_secs(50));
    }
}
