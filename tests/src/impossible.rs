//! The cells that cannot be, each with its reason. A row that fits no cell fails the matrix.

use crate::agent::Language::{self, C, Node, Rust, Shell};
use crate::cell::Engine::{self, Mpm, Redis, Spm};
use crate::scenarios::Scenario;

/// Cells that cannot be.
pub struct Row {
    /// The start of the scenarios' names.
    pub scenarios: &'static str,
    /// The engines.
    pub engines: &'static [Engine],
    /// The languages.
    pub languages: &'static [Language],
    /// Why.
    pub reason: &'static str,
}

const ALL: &[Engine] = &Engine::ALL;
const EVERY: &[Language] = &Language::ALL;

const fn row(
    scenarios: &'static str,
    engines: &'static [Engine],
    languages: &'static [Language],
    reason: &'static str,
) -> Row {
    Row { scenarios, engines, languages, reason }
}

/// The table.
pub const ROWS: &[Row] = &[
    row("", &[Spm], &[Shell], "each `ipcmutex run` is a process of its own, and spm ends at the process"),
    row("exclusion::two_processes", &[Spm], EVERY, "spm ends at the process"),
    row("line::across_processes_and_languages", &[Spm], EVERY, "spm ends at the process"),
    row("death::", &[Spm], EVERY, "the process is the scope: nobody is left to be told"),
    row("status::tells_everyone", &[Spm], EVERY, "spm ends at the process"),
    row("exit::while_holding", &[Spm], EVERY, "the process is the scope: nobody is left to wait"),
    row("exclusion::one_handle_queues", ALL, &[Shell], "the command has no handles, one run is one hold"),
    row("token::of_the_handle", ALL, &[Shell], "the command has no handles"),
    row("token::of_the_handle", ALL, &[Node], "a hold has the token there, a handle has none"),
    row("hold::", ALL, &[Shell], "the command's hold is its child's life: nobody else can release it"),
    row("waiting::asynchronous", ALL, &[Shell], "a process that waits is what the shell has"),
    row("waiting::a_thousand_without_threads", ALL, &[Shell], "a process that waits is what the shell has"),
    row("waiting::ends_with_close", ALL, &[Shell], "the command has no handles to close"),
    row("misuse::", ALL, &[Shell], "the command has no call that could be made too often"),
    row("idle::", ALL, &[Shell], "between two runs nothing of the command exists"),
    row("fork::", ALL, &[Shell], "what the command starts gets no handle"),
    row("exit::with_an_open_mutex", ALL, &[Shell], "between two runs nothing of the command exists"),
    row("exit::while_holding_and_waiting", ALL, &[Shell], "one run is one hold or one wait"),
    row(
        "exit::while_holding_and_waiting",
        ALL,
        &[Node],
        "a pending acquire keeps it alive; process.exit() has its own test",
    ),
    row("misuse::opened_twice", ALL, &[Rust, C], "open makes the object, there is none yet to open twice"),
    row("fork::", ALL, &[Rust], "fork is unsafe in Rust; core's own tests fork below it"),
    row("fork::", ALL, &[Node], "Node has no fork of its own process: child_process.fork starts another"),
    row("loss::lease_runs_out", &[Spm, Mpm], EVERY, "only a Redis hold has a lease"),
    row("loss::file_removed", &[Spm, Redis], EVERY, "only mpm has a lock file"),
    row("names::spellings_of_one_file", &[Spm, Redis], EVERY, "only mpm has a lock file"),
    row("bad_input::paths", &[Spm, Redis], EVERY, "only mpm has a lock file"),
    row("bad_input::servers", &[Spm, Mpm], EVERY, "only Redis has a server"),
    row("bad_input::secrets_stay_secret", &[Spm, Mpm], EVERY, "only Redis has a password"),
    row("bad_input::null", ALL, &[Rust], "a &str is never null"),
    row("bad_input::null", ALL, &[Shell], "an argument is never null"),
    row("bad_input::not_utf8", ALL, &[Rust, Node], "its strings are Unicode"),
    row("bad_input::a_mebibyte", ALL, &[Shell], "Linux passes no argument of more than 128 KiB"),
    row("bad_input::timeouts", ALL, &[C], "every int64_t is a time to wait: negative is for ever"),
];

impl Row {
    /// Whether it speaks of this cell.
    pub fn covers(&self, scenario: &Scenario, engine: Engine, languages: [Language; 2]) -> bool {
        let languages = if scenario.pairs { &languages[..] } else { &languages[..1] };
        scenario.name.starts_with(self.scenarios)
            && self.engines.contains(&engine)
            && languages.iter().any(|language| self.languages.contains(language))
    }
}

/// Why this cell cannot be, if it cannot.
pub fn reason(scenario: &Scenario, engine: Engine, languages: [Language; 2]) -> Option<&'static str> {
    ROWS.iter().find(|row| row.covers(scenario, engine, languages)).map(|row| row.reason)
}
