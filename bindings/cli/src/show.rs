//! `status`, `ps` and `break`.

mod watch;

use std::ffi::OsStr;
use std::io::Write as _;
use std::time::Duration;

use ipcmutex::list::{self, Listed};
use ipcmutex::text::printable;
use ipcmutex::url::LockUrl;
use ipcmutex::{Error, ErrorKind, Mutex, Numbers, Result, State, Status, WAIT_BOUNDS};
use serde_json::{Value, json};

use crate::args;
use crate::{lock, say};

/// A lock that nobody has opened yet.
fn unmade() -> Status {
    Status { state: State::Free, token: 0, waiters: 0, owner: None, held: None, numbers: Numbers::default() }
}

pub(crate) fn status(args: &args::Status) -> Result<i32> {
    let mut sight = Sight { url: lock::parse(&args.lock, None)?, mutex: None };
    if args.watch {
        return watch::watch(sight, args.json);
    }
    if args.numbers && sight.url.is_remote() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            "status",
            "a Redis lock keeps no numbers: each program has its own",
        )
        .with_url(sight.url.redacted().clone())
        .with_help("ask status() of the mutex in the program that uses it"));
    }
    let found = Listed { url: sight.url.to_string(), status: Ok(sight.look()?) };
    let numbers = match &found.status {
        Ok(status) if args.numbers => numbers(&status.numbers),
        _ => String::new(),
    };
    print(&if args.json { format!("{}\n", as_json(&found)) } else { table(&[found]) + &numbers })
}

/// A lock that is looked at, perhaps again and again; the look does not make it.
pub(crate) struct Sight {
    url: LockUrl,
    mutex: Option<Mutex>,
}

impl Sight {
    fn look(&mut self) -> Result<Status> {
        if !list::is_made(&self.url)? {
            // Its file may have been removed since: then the next one is another.
            self.mutex = None;
            return Ok(unmade());
        }
        let mutex = match self.mutex.take() {
            Some(mutex) => mutex,
            None => Mutex::open_url(self.url.clone())?,
        };
        self.mutex.insert(mutex).status()
    }
}

pub(crate) fn ps(args: &args::Ps) -> Result<i32> {
    let mut found = list::local()?;
    for url in &args.url {
        found.extend(list::on_server(&LockUrl::parse(url)?)?);
    }
    if args.json {
        return print(&format!("{}\n", Value::Array(found.iter().map(as_json).collect())));
    }
    found.sort_by_key(rank);
    print(&table(&found))
}

/// What is going on comes first, and what is free last.
fn rank(found: &Listed) -> u8 {
    match found.status.as_ref().map(|status| status.state) {
        Ok(State::Held) => 0,
        Ok(State::Abandoned) | Err(_) => 1,
        Ok(_) => 2,
    }
}

pub(crate) fn break_lock(lock: &OsStr) -> Result<i32> {
    let url = lock::parse(lock, None)?;
    let shown = url.to_string();
    if !list::is_made(&url)? || !Mutex::open_url(url)?.break_lock()? {
        say(format_args!("nobody held {shown}"));
    }
    Ok(0)
}

/// What a shell shows of a program that SIGPIPE ended.
const BROKEN_PIPE: i32 = 128 + 13;

/// To stdout, and a failure is heard of; but a reader that has had enough (`ipcmutex ps | head -1`) is none.
pub(crate) fn print(text: &str) -> Result<i32> {
    let mut out = std::io::stdout();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(BROKEN_PIPE),
        Err(error) => Err(Error::new(ErrorKind::Io, "print", format!("stdout: {error}")).with_source(error)),
    }
}

/// A lock with the names that every language gives its status.
fn as_json(found: &Listed) -> Value {
    match &found.status {
        Ok(status) => {
            let owner = status.owner.as_ref();
            // Of a lock in Redis they would be this command's own.
            let numbers = (!found.url.starts_with("rpm")).then_some(&status.numbers);
            json!({
                "lock": found.url,
                "state": status.state.name(),
                // A decimal string: it may be larger than what a JSON reader's numbers hold.
                "token": status.token.to_string(),
                "waiters": status.waiters,
                "owner_pid": owner.map(|owner| owner.pid),
                "owner_host": owner.map(|owner| &owner.host),
                "owner_label": owner.map(|owner| &owner.label),
                "held_ms": status.held.map(|held| u64::try_from(held.as_millis()).unwrap_or(u64::MAX)),
                "acquisitions": numbers.map(|numbers| numbers.acquisitions),
                "contended": numbers.map(Numbers::contended),
                "gave_up": numbers.map(|numbers| numbers.gave_up),
                "losses": numbers.map(|numbers| numbers.losses),
                "rechecks": numbers.map(|numbers| numbers.rechecks),
                "waits": numbers.map(|numbers| numbers.waits),
            })
        }
        Err(error) => json!({"lock": found.url, "error": error.kind().name(), "message": error.to_string()}),
    }
}

const COLUMNS: [&str; 6] = ["STATE", "OWNER", "SINCE", "WAITERS", "TOKEN", "LOCK"];

fn table(found: &[Listed]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(found.iter().map(row));
    aligned(&rows)
}

/// What a lock has been through, and under it its waits by their length.
fn numbers(numbers: &Numbers) -> String {
    let Numbers { acquisitions, gave_up, losses, rechecks, .. } = *numbers;
    let totals = [acquisitions, numbers.contended(), gave_up, losses, rechecks].map(|number| number.to_string());
    let bounds = WAIT_BOUNDS.map(|bound| format!("<{bound:?}")).into_iter().chain(["longer".to_owned()]);
    let waits: [_; WAIT_BOUNDS.len() + 1] = numbers.waits.map(|waits| waits.to_string());
    let heads = ["ACQUIRED", "WAITED", "GAVE UP", "LOST", "FOUND LATE"].map(str::to_owned);
    format!("\n{}\nWAITS\n{}", aligned(&[heads, totals]), aligned(&[bounds.collect::<Vec<_>>(), waits.into()]))
}

fn aligned<Row: AsRef<[String]>>(rows: &[Row]) -> String {
    let columns = rows.first().map_or(0, |row| row.as_ref().len());
    let width = |column: usize| rows.iter().map(|row| row.as_ref()[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells = row.as_ref().iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

fn row(found: &Listed) -> [String; COLUMNS.len()] {
    let none = || "-".to_owned();
    match &found.status {
        Ok(status) => [
            status.state.name().to_owned(),
            status.owner.as_ref().map_or_else(none, |owner| {
                format!("{} (pid {} on {})", printable(&owner.label), owner.pid, printable(&owner.host))
            }),
            status.held.map_or_else(none, age),
            status.waiters.to_string(),
            status.token.to_string(),
            printable(&found.url),
        ],
        Err(error) => {
            [error.kind().name().to_owned(), printable(error.message()), none(), none(), none(), printable(&found.url)]
        }
    }
}

/// The two largest units, as `ps` and `uptime` round.
fn age(held: Duration) -> String {
    let seconds = held.as_secs();
    match seconds {
        0..60 => format!("{:.1}s", held.as_secs_f64()),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3600..86400 => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
        _ => format!("{}d{:02}h", seconds / 86400, seconds / 3600 % 24),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipcmutex::{Owner, State, Status};

    fn held(url: &str, label: &str, seconds: u64) -> Listed {
        let owner = Owner { host: "db1".into(), pid: 4711, label: label.into() };
        let held = Some(Duration::from_secs(seconds));
        let status = Status {
            state: State::Held,
            token: u64::MAX,
            waiters: 3,
            owner: Some(owner),
            held,
            numbers: Numbers::default(),
        };
        Listed { url: url.into(), status: Ok(status) }
    }

    #[test]
    fn a_table_is_read_at_a_glance() {
        let free =
            Status { state: State::Free, token: 7, waiters: 0, owner: None, held: None, numbers: Numbers::default() };
        let unreadable = Error::new(ErrorKind::Protocol, "status", "another version");
        let found = [
            held("mpm:nightly", "backup", 3725),
            Listed { url: "mpm:b".into(), status: Ok(free) },
            Listed { url: "mpm:c".into(), status: Err(unreadable) },
        ];
        let expected = "\
STATE     OWNER                      SINCE  WAITERS  TOKEN                 LOCK
held      backup (pid 4711 on db1)   1h02m  3        18446744073709551615  mpm:nightly
free      -                          -      0        7                     mpm:b
PROTOCOL  another version            -      -        -                     mpm:c
";
        let mut sorted = [found[1].clone(), found[2].clone(), found[0].clone()];
        sorted.sort_by_key(rank);
        assert_eq!(sorted.map(|one| one.url), ["mpm:nightly", "mpm:c", "mpm:b"]);
        let squeezed = |text: &str| {
            text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
        };
        assert_eq!(squeezed(&table(&found)), squeezed(expected));
        let text = table(&found);
        let starts: Vec<_> = text.lines().map(|line| line.find("mpm:").or(line.find("LOCK"))).collect();
        assert!(starts.windows(2).all(|pair| pair[0] == pair[1]), "aligned:\n{text}");
    }

    #[test]
    fn what_others_wrote_is_escaped() {
        let text = table(&[held("mpm:x", "\u{1b}[2J\nheld", 1)]);
        assert!(text.contains("\\u{1b}[2J\\nheld") && text.lines().count() == 2, "{text}");
    }

    #[test]
    fn json_has_the_names_of_the_api() {
        let value = as_json(&held("mpm:x", "a", 2));
        assert_eq!(
            value.to_string(),
            r#"{"acquisitions":0,"contended":0,"gave_up":0,"held_ms":2000,"lock":"mpm:x","losses":0,"owner_host":"db1","owner_label":"a","owner_pid":4711,"rechecks":0,"state":"held","token":"18446744073709551615","waiters":3,"waits":[0,0,0,0,0,0,0]}"#
        );
    }

    #[test]
    fn ages() {
        let shown: Vec<_> = [0, 59, 61, 3_600, 90_061].map(Duration::from_secs).map(age).into();
        assert_eq!(shown, ["0.0s", "59.0s", "1m01s", "1h00m", "1d01h"]);
    }
}
