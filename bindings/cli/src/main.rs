//! The `ipcmutex` command: `args` is what can be said, `lock` what LOCK means, `run` and `show` do it.

mod args;
mod exec;
mod lock;
mod manual;
mod run;
mod show;
mod signals;

use std::fmt::Display;

use clap::Parser;
use ipcmutex::{Error, ErrorKind};

use args::{Args, Command};

/// A usage error, as sysexits.h has it.
const USAGE: i32 = ErrorKind::Invalid.exit_code();

fn main() {
    if let Some(code) = exec::asked_for() {
        std::process::exit(code);
    }
    ipcmutex::logging::from_environment();
    let args = Args::try_parse().unwrap_or_else(|error| std::process::exit(explain(&error)));
    let done = match args.command {
        Command::Run(run) => run::run(run),
        Command::Wait(wait) => run::wait(wait),
        Command::Status(status) => show::status(&status),
        Command::Ps(ps) => show::ps(&ps),
        Command::Break(lock) => show::break_lock(&lock.lock),
        Command::Man => manual::page(),
        Command::Completions(completions) => manual::completions(completions.shell),
    };
    std::process::exit(done.unwrap_or_else(|error| fail(&error)));
}

/// Help and version are answers; everything else is a usage error, and reads like our other errors.
fn explain(error: &clap::Error) -> i32 {
    let text = error.to_string();
    if !error.use_stderr() {
        return show::print(&text).unwrap_or_else(|error| fail(&error));
    }
    match text.strip_prefix("error: ") {
        Some(what) => say(what.trim_end()),
        None => write(&text), // no command at all: the help
    }
    USAGE
}

fn fail(error: &Error) -> i32 {
    say(error);
    error.kind().exit_code()
}

/// To the person in front: one line on stderr.
fn say(text: impl Display) {
    write(&format!("ipcmutex: {text}\n"));
}

/// If even stderr cannot be written, the exit code has to do.
fn write(text: &str) {
    use std::io::Write as _;
    let _ = std::io::stderr().write_all(text.as_bytes());
}
