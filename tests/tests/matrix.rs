//! The matrix: every scenario, in every engine, in every language or between every two.
//!
//! `cargo test -p ipcmutex-tests --test matrix -- 'exclusion::two_handles[mpm,python]'` runs one cell.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::sync::Arc;

use ipcmutex_tests::agent::Language;
use ipcmutex_tests::cell::{Cell, Engine, Ground};
use ipcmutex_tests::impossible::{self, ROWS};
use ipcmutex_tests::scenarios;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> ExitCode {
    let arguments = Arguments::from_args();
    let ground = Arc::new(Ground::new().expect("a temporary folder"));
    let mut trials = vec![Trial::test("matrix::is_complete", complete)];
    for scenario in scenarios::all() {
        for engine in Engine::ALL {
            for (language, other) in cells(scenario.pairs) {
                if impossible::reason(scenario, engine, [language, other]).is_some() {
                    continue;
                }
                let name = if scenario.pairs {
                    format!("{}[{engine},{language}->{other}]", scenario.name)
                } else {
                    format!("{}[{engine},{language}]", scenario.name)
                };
                let ground = ground.clone();
                trials.push(Trial::test(name, move || {
                    (scenario.run)(&Cell::new(&ground, engine, language, other));
                    Ok(())
                }));
            }
        }
    }
    let conclusion = libtest_mimic::run(&arguments, trials);
    // The server ends before the process does.
    drop(ground);
    conclusion.exit_code()
}

fn cells(pairs: bool) -> Vec<(Language, Language)> {
    let all = Language::ALL;
    if pairs {
        all.into_iter().flat_map(|holder| all.map(|waiter| (holder, waiter))).collect()
    } else {
        all.map(|language| (language, language)).to_vec()
    }
}

/// Every promise has a scenario, every scenario a promise, and every hole a reason that still holds.
fn complete() -> Result<(), Failed> {
    let contract = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/CONTRACT.md"))?;
    let promises: BTreeSet<u32> =
        contract.lines().filter_map(|line| line.strip_prefix("## ")?.split_once('.')?.0.parse().ok()).collect();
    let mut wrong = Vec::new();
    let proven: BTreeSet<u32> = scenarios::all().map(|scenario| scenario.proves).collect();
    if promises != proven {
        wrong.push(format!("CONTRACT.md promises {promises:?}, the scenarios prove {proven:?}"));
    }
    let every_cell = || {
        scenarios::all().flat_map(|scenario| {
            Engine::ALL.into_iter().flat_map(move |engine| {
                cells(scenario.pairs).into_iter().map(move |(one, two)| (scenario, engine, [one, two]))
            })
        })
    };
    for row in ROWS {
        if !every_cell().any(|(scenario, engine, languages)| row.covers(scenario, engine, languages)) {
            wrong.push(format!("a reason without a cell: {} ({})", row.scenarios, row.reason));
        }
    }
    for scenario in scenarios::all() {
        let runs = every_cell().any(|(of, engine, languages)| {
            of.name == scenario.name && impossible::reason(of, engine, languages).is_none()
        });
        if !runs {
            wrong.push(format!("{} runs nowhere", scenario.name));
        }
    }
    let names: BTreeSet<&str> = scenarios::all().map(|scenario| scenario.name).collect();
    if names.len() != scenarios::all().count() {
        wrong.push("two scenarios of one name".to_owned());
    }
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n").into()) }
}
