//! `make chaos`: see `../src/chaos/mod.rs` and README.md.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipcmutex_tests::chaos::scene::Engine;
use ipcmutex_tests::chaos::{Order, run};

fn variable<T: std::str::FromStr>(name: &str, otherwise: T) -> Result<T, String> {
    match std::env::var(name) {
        Ok(text) if !text.is_empty() => text.parse().map_err(|_| format!("{name}={text} is no number")),
        _ => Ok(otherwise),
    }
}

fn main() -> ExitCode {
    match chaos() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::from(64)
        }
    }
}

fn chaos() -> Result<bool, String> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let seed = variable("CHAOS_SEED", clock % 100_000)?;
    // 2,000 for each engine, of which those with a server take five minutes.
    let faults = variable("CHAOS_FAULTS", 12_000)?;
    let lasting = Duration::from_secs(variable("CHAOS_SECONDS", 3600)?);
    let wanted = variable("CHAOS_ENGINE", "all".to_owned())?;
    let engines: Vec<Engine> = Engine::ALL
        .into_iter()
        .filter(|engine| wanted == "all" || wanted.split(',').any(|name| name == engine.name()))
        .collect();
    if engines.is_empty() {
        let names: Vec<_> = Engine::ALL.iter().map(|engine| engine.name()).collect();
        return Err(format!("CHAOS_ENGINE={wanted}: there are all, {}", names.join(", ")));
    }
    let share = engines.len() as u64;
    let mut good = true;
    for engine in engines {
        let order = Order { engine, seed, faults: u64::div_ceil(faults, share), lasting: lasting / share as u32 };
        let terminal = std::io::stdout().is_terminal();
        let mut shown: Option<Instant> = None;
        let outcome = run(order, |progress| {
            let every = Duration::from_secs(if terminal { 0 } else { 10 });
            if shown.is_none_or(|at| at.elapsed() >= every) {
                shown = Some(Instant::now());
                let (begin, end) = if terminal { ("\r", "\x1b[K") } else { ("", "\n") };
                print!("{begin}{progress}{end}");
                // Nobody looks; the outcome is what counts.
                let _ = std::io::stdout().flush();
            }
        });
        println!("{}{outcome}\n", if terminal { "\r\x1b[K" } else { "" });
        good &= outcome.verdict.violations.is_empty() && outcome.missing().is_empty();
    }
    Ok(good)
}
