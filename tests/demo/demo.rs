//! `make demo`: programs in C, Python, Node and shell keep one ledger under one lock, first on this host (`mpm:`), then over
//! Redis (`rpm+redis:`). Half way one of them is killed while it holds, in the middle of a transfer. README.md says how
//! the workers work; nothing shown here is computed from anything but what they did.

mod ledger;
mod screen;

use std::collections::{BTreeMap, HashMap};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipcmutex::{Mutex, State};
use ipcmutex_tests::artifacts;
use ipcmutex_tests::occupancy::now;
use ipcmutex_tests::servers::{self, Redis};
use rustix::process::{Pid, Signal, kill_process};

use ledger::{Audit, Ledger};
use screen::Screen;

/// How long each half lasts, in seconds; `IPCMUTEX_DEMO_SECONDS` says otherwise.
const LASTING: f64 = 10.0;
/// How long the victim stands in mid-transfer before it is killed, so that it can be seen; the others wait that long.
const STILL: Duration = Duration::from_millis(500);
/// What goes wrong in the demo itself, as opposed to in the lock.
type Failure = Box<dyn std::error::Error>;

/// The languages, and how many workers each has.
const WORKERS: [(&str, usize); 4] = [("c", 2), ("python", 2), ("node", 2), ("shell", 1)];

/// One hold, as its worker told it. Times are CLOCK_MONOTONIC in ns.
#[derive(Clone, Copy, Debug)]
struct Visit {
    pid: u32,
    asked: u64,
    entered: u64,
    left: u64,
    token: u64,
    abandoned: bool,
    repaired: i64,
}

enum Told {
    Visit(Visit),
    /// It holds, is in the middle of a transfer, and stays there.
    Mid {
        pid: u32,
        asked: u64,
        entered: u64,
        token: u64,
    },
    Nonsense(String),
}

struct Worker {
    language: &'static str,
    child: Child,
}

/// A killed holder, and what became of its lock.
struct Killing {
    language: &'static str,
    pid: u32,
    entered: u64,
    asked: u64,
    token: u64,
    killed: u64,
    next: Option<Visit>,
}

/// What one half showed.
struct Outcome {
    visits: Vec<Visit>,
    language: HashMap<u32, &'static str>,
    killing: Option<Killing>,
    audit: Audit,
    faults: Vec<String>,
}

fn main() -> ExitCode {
    match show() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("demo: {error}");
            ExitCode::FAILURE
        }
    }
}

fn show() -> Result<bool, Failure> {
    let lasting = match std::env::var("IPCMUTEX_DEMO_SECONDS") {
        Ok(text) => text.parse()?,
        Err(_) => LASTING,
    };
    let folder = tempfile::Builder::new().prefix("ipcmutex-demo-").tempdir()?;
    println!("One lock for C, Python, Node and shell: 7 processes keep one ledger of 4,000,000 in 4 accounts.\n");

    let url = format!("mpm:{}", folder.path().join("ledger.lock").display());
    let ledger = Ledger::create(folder.path().join("ledger"))?;
    let mut good = half("on this host", &url, "c", ledger, lasting)?;

    match servers::missing() {
        Some(missing) => println!("over Redis: not shown, {missing}\n"),
        None => {
            let server = Redis::start();
            // A short lease, so that the death of a holder is over soon.
            let url = server.url("ledger?ttl=1s");
            let ledger = Ledger::create(folder.path().join("ledger-redis"))?;
            good &= half("over Redis", &url, "node", ledger, lasting)?;
        }
    }
    println!("{}", if good { "all as promised" } else { "NOT as promised" });
    Ok(good)
}

/// Runs one half and gives its verdict.
fn half(place: &str, url: &str, victim: &str, ledger: Ledger, lasting: f64) -> Result<bool, Failure> {
    let outcome = run(place, url, victim, ledger, lasting)?;
    Ok(verdict(place, &outcome))
}

fn run(place: &str, url: &str, victim: &str, ledger: Ledger, lasting: f64) -> Result<Outcome, Failure> {
    let lock = Mutex::open(url)?;
    let (teller, told) = mpsc::channel();
    let mut workers = Vec::new();
    for (language, count) in WORKERS {
        for _ in 0..count {
            workers.push(start(language, url, &ledger, lasting, &teller)?);
        }
    }
    drop(teller);
    let mut outcome = Outcome {
        visits: Vec::new(),
        language: workers.iter().map(|worker| (worker.child.id(), worker.language)).collect(),
        killing: None,
        audit: Audit { transfers: 0, faults: Vec::new() },
        faults: Vec::new(),
    };
    let mut screen = Screen::new(format!("{place}   {}", lock.url()), lasting);
    let begun = Instant::now();
    let mut asked_to_stay = false;
    let mut mid: Option<(Instant, Killing)> = None;
    // The workers end by themselves; what none of them can do is go on for much longer.
    let end = begun + Duration::from_secs_f64(lasting) + Duration::from_secs(30);
    loop {
        if Instant::now() > end {
            return Err(format!("the workers hang: {}", lock.status()?.describe()).into());
        }
        match told.recv_timeout(Duration::from_millis(20)) {
            Ok(Told::Visit(visit)) => {
                // Workers tell after their holds, each through a pipe of its own: the token has the order, not the arrival.
                if let Some(killing) = &mut outcome.killing
                    && visit.token > killing.token
                    && killing.next.is_none_or(|next| visit.token < next.token)
                {
                    killing.next = Some(visit);
                }
                outcome.visits.push(visit);
            }
            Ok(Told::Mid { pid, asked, entered, token }) => {
                let language = outcome.language.get(&pid).copied().unwrap_or("?");
                let killing = Killing { language, pid, entered, asked, token, killed: 0, next: None };
                mid = Some((Instant::now(), killing));
            }
            Ok(Told::Nonsense(line)) => outcome.faults.push(line),
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        if !asked_to_stay && begun.elapsed().as_secs_f64() > lasting / 2.0 {
            asked_to_stay = true;
            let chosen = workers.iter().find(|worker| worker.language == victim).ok_or("no victim")?;
            kill_process(Pid::from_child(&chosen.child), Signal::USR2)?;
        }
        // It has stood in mid-transfer long enough for the table to show it.
        if let Some((since, mut killing)) = mid.take() {
            if since.elapsed() < STILL {
                mid = Some((since, killing));
            } else {
                let chosen = workers.iter().find(|worker| worker.child.id() == killing.pid).ok_or("no victim")?;
                killing.killed = now();
                kill_process(Pid::from_child(&chosen.child), Signal::KILL)?;
                outcome.killing = Some(killing);
            }
        }
        if screen.is_due() {
            screen.show(&picture(&lock, &outcome, mid.as_ref().map(|(_, killing)| killing))?);
        }
    }
    for worker in &mut workers {
        let status = worker.child.wait()?;
        let was_killed = outcome.killing.as_ref().is_some_and(|killing| killing.pid == worker.child.id());
        if !status.success() && !was_killed {
            outcome.faults.push(format!("a worker in {} ended with {status}", worker.language));
        }
    }
    if let Some(killing) = &outcome.killing {
        // What it could not tell any more: it held from when it entered until it was killed.
        outcome.visits.push(Visit {
            pid: killing.pid,
            asked: killing.asked,
            entered: killing.entered,
            left: killing.killed,
            token: killing.token,
            abandoned: false,
            repaired: 0,
        });
    }
    outcome.audit = ledger.audit()?;
    screen.show(&picture(&lock, &outcome, None)?);
    if let (false, Some(killing)) = (screen.is_terminal(), &outcome.killing) {
        println!("{}", aftermath(killing, &outcome).join("\n"));
    }
    screen.finish();
    Ok(outcome)
}

fn start(
    language: &'static str,
    url: &str,
    ledger: &Ledger,
    lasting: f64,
    teller: &Sender<Told>,
) -> Result<Worker, Failure> {
    let mut command = match language {
        "c" => Command::new(artifacts::program("worker-c")),
        "python" => {
            let mut command = Command::new(artifacts::python());
            command.arg(artifacts::source("demo/worker.py"));
            command
        }
        "node" => {
            let mut command = Command::new(artifacts::node());
            command.arg(artifacts::node_modules().with_file_name("worker.mjs"));
            command
        }
        _ => {
            let mut command = Command::new("bash");
            command.arg(artifacts::source("demo/worker.sh")).env("IPCMUTEX", artifacts::program("ipcmutex"));
            command
        }
    };
    command.arg(url).arg(&ledger.0).arg(lasting.to_string());
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let (pid, teller) = (child.id(), teller.clone());
    let stdout = child.stdout.take().ok_or("no pipe")?;
    let step = time_of_day_behind();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            // Nobody listens any more once the demo has failed.
            let _ = teller.send(read(pid, &line, step).unwrap_or(Told::Nonsense(line)));
        }
    });
    Ok(Worker { language, child })
}

/// How far CLOCK_MONOTONIC is behind the time of day.
fn time_of_day_behind() -> u64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (time.as_nanos() as u64).wrapping_sub(now())
}

fn read(pid: u32, line: &str, step: u64) -> Option<Told> {
    let (verb, numbers) = line.split_once(' ')?;
    let numbers: Vec<u64> = numbers.split(' ').map(|word| word.parse().ok()).collect::<Option<_>>()?;
    let monotonic = |time: u64| if verb == "shell" { time.wrapping_sub(step) } else { time };
    match (verb, &numbers[..]) {
        ("hold" | "shell", &[asked, entered, left, token, abandoned, repaired]) => Some(Told::Visit(Visit {
            pid,
            asked: monotonic(asked),
            entered: monotonic(entered),
            left: monotonic(left),
            token,
            abandoned: abandoned == 1,
            repaired: repaired as i64,
        })),
        ("mid", &[asked, entered, token]) => Some(Told::Mid { pid, asked, entered, token }),
        _ => None,
    }
}

fn milliseconds(ns: u64) -> String {
    format!("{:.1} ms", ns as f64 / 1e6)
}

/// Holds, waits and the like of one language.
#[derive(Default)]
struct Share {
    holds: usize,
    longest: u64,
    waited: u64,
}

fn shares(outcome: &Outcome) -> BTreeMap<&'static str, Share> {
    let mut shares: BTreeMap<&'static str, Share> = WORKERS.map(|(name, _)| (name, Share::default())).into();
    for visit in &outcome.visits {
        let language = outcome.language.get(&visit.pid).copied().unwrap_or("?");
        let share = shares.entry(language).or_default();
        let waited = visit.entered.saturating_sub(visit.asked);
        share.holds += 1;
        share.waited += waited;
        share.longest = share.longest.max(waited);
    }
    shares
}

fn picture(lock: &Mutex, outcome: &Outcome, mid: Option<&Killing>) -> Result<screen::Picture, Failure> {
    let status = lock.status()?;
    let language = |pid: u32| outcome.language.get(&pid).copied().unwrap_or("shell");
    let holder = match (&status.owner, status.state) {
        (Some(owner), State::Held) => format!("{} (pid {})", language(owner.pid), owner.pid),
        _ => "nobody".to_owned(),
    };
    let mut lines =
        vec![format!("  held by {holder:<22} in line {:<3}{}", status.waiters, "▮".repeat(status.waiters as usize))];
    lines.push(String::new());
    lines.push(format!("  {:<9}{:>8}{:>9}{:>13}{:>14}", "language", "workers", "holds", "mean wait", "longest wait"));
    for (name, share) in shares(outcome) {
        let workers = WORKERS.iter().find(|(of, _)| *of == name).map_or(0, |(_, count)| *count);
        let mean = share.waited.checked_div(share.holds as u64).unwrap_or(0);
        lines.push(format!(
            "  {name:<9}{workers:>8}{:>9}{:>13}{:>14}",
            share.holds,
            milliseconds(mean),
            milliseconds(share.longest)
        ));
    }
    lines.push(String::new());
    lines.extend(match (&outcome.killing, mid) {
        (Some(killing), _) => aftermath(killing, outcome),
        (None, Some(killing)) => {
            let line = format!(
                "  kill -9    {} (pid {}) stands still between debit and credit …",
                killing.language, killing.pid
            );
            [line, String::new()]
        }
        (None, None) => [String::new(), String::new()],
    });
    let brief = format!("{:>5} holds, held by {holder}, {} in line", outcome.visits.len(), status.waiters);
    Ok(screen::Picture { lines, brief })
}

fn aftermath(killing: &Killing, outcome: &Outcome) -> [String; 2] {
    let stood = milliseconds(killing.killed.saturating_sub(killing.entered));
    let dead = format!(
        "  kill -9    {} (pid {}) between debit and credit, after {stood} there",
        killing.language, killing.pid
    );
    let next = match &killing.next {
        None => "  then       nobody yet".to_owned(),
        Some(next) => {
            let language = outcome.language.get(&next.pid).copied().unwrap_or("?");
            let after = milliseconds(next.entered.saturating_sub(killing.killed));
            let heard = if next.abandoned { "told `abandoned`" } else { "NOT told `abandoned`" };
            format!("  then       {after} later {language} (pid {}): {heard}, put {} back", next.pid, next.repaired)
        }
    };
    [dead, next]
}

fn verdict(place: &str, outcome: &Outcome) -> bool {
    let mut visits = outcome.visits.clone();
    visits.sort_by_key(|visit| visit.entered);
    let pairs = || visits.windows(2).map(|pair| (pair[0], pair[1]));
    let overlaps = pairs().filter(|(before, after)| after.entered < before.left).count();
    let stale = pairs().filter(|(before, after)| after.token <= before.token).count();
    let mut faults = outcome.faults.clone();
    faults.extend(outcome.audit.faults.clone());
    if overlaps > 0 {
        faults.push(format!("{overlaps} overlaps"));
    }
    if stale > 0 {
        faults.push(format!("{stale} tokens not larger than the one before"));
    }
    // The killed one's transfer was rolled back; every other hold booked exactly one.
    if outcome.audit.transfers + usize::from(outcome.killing.is_some()) != visits.len() {
        faults.push(format!("{} holds, but {} transfers", visits.len(), outcome.audit.transfers));
    }
    let by_language = shares(outcome);
    for (name, share) in &by_language {
        if share.holds == 0 {
            faults.push(format!("{name} never held it"));
        }
    }
    match &outcome.killing {
        Some(Killing { next: Some(next), .. }) if next.abandoned && next.repaired > 0 => {}
        Some(_) => faults.push("the one after the killed holder was not told `abandoned`".to_owned()),
        None => faults.push("nobody was killed while holding".to_owned()),
    }
    let told_twice = visits.iter().filter(|visit| visit.abandoned).count();
    if told_twice > 1 {
        faults.push(format!("`abandoned` was told {told_twice} times for one death"));
    }
    let holds: Vec<String> = by_language.iter().map(|(name, share)| format!("{name} {}", share.holds)).collect();
    println!("  {place}: {} holds ({})", visits.len(), holds.join(", "));
    println!(
        "  {overlaps} overlaps, tokens {}, ledger {} ({} transfers)",
        if stale == 0 { "strictly increasing" } else { "NOT strictly increasing" },
        if outcome.audit.faults.is_empty() { "balanced" } else { "NOT balanced" },
        outcome.audit.transfers
    );
    for fault in faults.iter().take(10) {
        println!("  FAULT: {fault}");
    }
    println!();
    faults.is_empty()
}

/// Ends the workers with the demo, whatever ends it.
impl Drop for Worker {
    fn drop(&mut self) {
        // It has usually ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
