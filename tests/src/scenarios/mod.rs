//! The scenarios: each written once, each naming the promise of `CONTRACT.md` that it proves.

use crate::cell::Cell;

mod bad_input;
mod death;
mod exclusion;
mod exit;
mod fork;
mod hold;
mod idle;
mod line;
mod loss;
mod misuse;
mod names;
mod status;
mod token;
mod waiting;

/// One scenario.
pub struct Scenario {
    /// `file::function`.
    pub name: &'static str,
    /// The number of the promise.
    pub proves: u32,
    /// Whether it runs for each language, or for each ordered pair of languages in two processes.
    pub pairs: bool,
    /// It panics where the promise is broken.
    pub run: fn(&Cell<'_>),
}

const fn alone(name: &'static str, proves: u32, run: fn(&Cell<'_>)) -> Scenario {
    Scenario { name, proves, pairs: false, run }
}

const fn pairs(name: &'static str, proves: u32, run: fn(&Cell<'_>)) -> Scenario {
    Scenario { name, proves, pairs: true, run }
}

/// All of them.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [
        exclusion::ALL,
        token::ALL,
        hold::ALL,
        line::ALL,
        waiting::ALL,
        death::ALL,
        loss::ALL,
        misuse::ALL,
        idle::ALL,
        status::ALL,
        fork::ALL,
        names::ALL,
        bad_input::ALL,
        exit::ALL,
    ]
    .into_iter()
    .flatten()
}
