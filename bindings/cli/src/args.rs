//! What can be said on the command line.

use std::ffi::OsString;
use std::time::Duration;

use clap::{Args as ClapArgs, Parser, Subcommand, ValueHint};
use ipcmutex::{Result, Timeout};

const ABOUT: &str = "One lock for programs of any language, on one host or many.

LOCK is a name, a path, or a URL:
  jobs                     the lock of this name, of this user on this host
  /srv/app/lock, ./lock    the lock file at this path
  rpm+redis://host/jobs    a lock in Redis; also mpm:, file:, rpm+rediss: ...

  ipcmutex run -n nightly -- rsync -a /srv/ backup:/srv/";

const EXIT_CODES: &str = "Exit codes: the command's own, or 128 + signal; 1 not acquired (-E);
64 usage; 66 cannot open the lock; 69 server unreachable; 70 a bug;
75 lock lost; 126 not executable; 127 not found.";

#[derive(Parser)]
#[command(name = "ipcmutex", version, about = ABOUT, disable_help_subcommand = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run a command while holding the lock
    Run(Run),
    /// Tell who holds the lock and how many wait
    Status(Status),
    /// List the named locks of this user on this host
    Ps(Ps),
    /// Wait until nobody holds the lock, without taking it
    Wait(Wait),
    /// Take the lock away from whoever holds it
    Break(Lock),
    /// Print the manual page
    Man,
    /// Print what a shell completes this command with
    Completions(Completions),
}

#[derive(ClapArgs)]
#[command(after_help = EXIT_CODES)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// Lease, for a Redis URL alone [default: 10]
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = seconds)]
    pub(crate) ttl: Option<Duration>,
    /// Lock lost: TERM, then KILL after
    #[arg(long, value_name = "SECS", allow_negative_numbers = true, value_parser = seconds, default_value = "5")]
    pub(crate) kill_after: Duration,
    /// A name, a path or a URL; see `ipcmutex --help`
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) lock: OsString,
    /// Finds IPCMUTEX_LOCK, IPCMUTEX_TOKEN and IPCMUTEX_ABANDONED set
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_hint = ValueHint::CommandWithArguments)]
    pub(crate) command: Vec<OsString>,
}

#[derive(ClapArgs)]
pub(crate) struct Wait {
    #[command(flatten)]
    pub(crate) limit: Limit,
    /// A name, a path or a URL; see `ipcmutex --help`
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) lock: OsString,
}

/// How long to wait, and what to say if that was in vain.
#[derive(ClapArgs)]
pub(crate) struct Limit {
    /// Do not wait: fail if somebody holds it
    #[arg(short = 'n', long = "no-wait", aliases = ["nonblock", "nb"], conflicts_with = "wait")]
    no_wait: bool,
    /// Wait at most this long (fractions possible)
    #[arg(short, long, value_name = "SECS", allow_negative_numbers = true, value_parser = seconds, alias = "timeout")]
    wait: Option<Duration>,
    /// Exit code if it was not acquired
    #[arg(short = 'E', long, value_name = "CODE", allow_negative_numbers = true, default_value = "1")]
    pub(crate) conflict_exit_code: u8,
}

impl Limit {
    pub(crate) fn timeout(&self) -> Timeout {
        match (self.no_wait, self.wait) {
            (true, _) => Timeout::TRY,
            (false, Some(limit)) => limit.into(),
            (false, None) => Timeout::FOREVER,
        }
    }
}

#[derive(ClapArgs)]
pub(crate) struct Status {
    /// One JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Also what it has been through, and how long waits were
    #[arg(long, conflicts_with_all = ["json", "watch"])]
    pub(crate) numbers: bool,
    /// Keep it up to date; to a pipe: a line for each change
    #[arg(long)]
    pub(crate) watch: bool,
    /// A name, a path or a URL; see `ipcmutex --help`
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) lock: OsString,
}

#[derive(ClapArgs)]
pub(crate) struct Ps {
    /// A JSON array of objects
    #[arg(long)]
    pub(crate) json: bool,
    /// Also the locks of this Redis server (may be given again)
    #[arg(long)]
    pub(crate) url: Vec<String>,
}

#[derive(ClapArgs)]
pub(crate) struct Lock {
    /// A name, a path or a URL; see `ipcmutex --help`
    #[arg(value_hint = ValueHint::FilePath)]
    pub(crate) lock: OsString,
}

#[derive(ClapArgs)]
pub(crate) struct Completions {
    /// Of which shell
    pub(crate) shell: clap_complete::Shell,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds".to_owned())?;
    let limit = Timeout::from_secs(seconds).map_err(|error| error.message().to_owned())?;
    limit.limit().ok_or_else(|| "not a time to wait".to_owned())
}
