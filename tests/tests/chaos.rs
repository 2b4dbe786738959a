//! Short runs of chaos (`../chaos/README.md`); `make chaos` runs longer ones. `CHAOS_SEED` chooses other faults.

use std::time::Duration;

use ipcmutex_tests::chaos::scene::Engine;
use ipcmutex_tests::chaos::{Order, run};
use ipcmutex_tests::servers::skipped;

fn short(engine: Engine, faults: u64) {
    // They take a quarter of it where nothing else runs.
    let lasting = Duration::from_secs(180);
    let seed = std::env::var("CHAOS_SEED").map_or(1, |text| text.parse().expect("a number"));
    let outcome = run(Order { engine, seed, faults, lasting }, |_| ());
    println!("{outcome}");
    assert!(outcome.verdict.violations.is_empty(), "{outcome}");
    // That it was chaos, and that all were in it.
    assert!(outcome.missing().is_empty(), "{outcome}");
}

#[test]
fn mpm() {
    short(Engine::Mpm, 250);
}

#[test]
fn mpm_strict() {
    short(Engine::MpmStrict, 250);
}

#[test]
fn redis() {
    if !skipped("redis") {
        short(Engine::Redis, 250);
    }
}

#[test]
fn redlock() {
    if !skipped("redlock") {
        short(Engine::Redlock, 120);
    }
}
