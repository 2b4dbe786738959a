//! The participants: programs that take the lock over and over, each language in the ways it has, until they are killed
//! and replaced, or asked to end.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process_group};

use super::judge::Judge;
use super::record::{Cell, Log};
use crate::agent::Language;
use crate::artifacts;
use crate::occupancy::now;

/// Who takes part.
pub const CREW: [Language; 10] = [
    Language::C,
    Language::C,
    Language::C,
    Language::Python,
    Language::Python,
    Language::Node,
    Language::Node,
    Language::Rust,
    Language::Shell,
    Language::Shell,
];

/// How long the end of all may take before it counts as hung. It says nothing about speed.
const PATIENCE: Duration = Duration::from_secs(60);

struct Member {
    instance: u64,
    language: Language,
    child: Child,
    log: Log,
    /// When it was stopped and when it is to go on.
    stopped: Option<(u64, Instant)>,
}

/// One that has ended, and may have left forked children.
struct Past {
    instance: u64,
    group: Pid,
    log: Log,
}

/// What every participant is told.
pub struct Setting {
    /// Where logs and the cell are.
    pub folder: PathBuf,
    /// The lock.
    pub url: String,
    /// Where the fence listens, if there is one.
    pub fence: Option<PathBuf>,
    /// The seed.
    pub seed: u64,
}

impl Setting {
    /// The cell's file.
    pub fn cell(&self) -> PathBuf {
        self.folder.join("cell")
    }

    fn log(&self, instance: u64) -> PathBuf {
        self.folder.join(format!("log-{instance}"))
    }

    fn errors(&self, instance: u64) -> PathBuf {
        self.folder.join(format!("errors-{instance}"))
    }
}

/// All of them.
pub struct Crew {
    setting: Setting,
    members: Vec<Member>,
    past: Vec<Past>,
    started: u64,
}

fn command(language: Language) -> Command {
    let script = |interpreter: &Path, name: &str| {
        let mut command = Command::new(interpreter);
        command.arg(artifacts::source(name));
        command
    };
    match language {
        Language::Rust => Command::new(artifacts::program("hammer")),
        Language::C => Command::new(artifacts::program("hammer-c")),
        Language::Python => script(&artifacts::python(), "chaos/hammer.py"),
        Language::Node => {
            let mut command = Command::new(artifacts::node());
            command.arg(artifacts::node_modules().with_file_name("hammer.mjs"));
            command
        }
        Language::Shell => {
            let mut command = script("bash".as_ref(), "chaos/hammer.sh");
            command.env("IPCMUTEX", artifacts::program("ipcmutex")).env("HAMMER", artifacts::program("hammer"));
            command
        }
    }
}

fn pid_of(child: &Child) -> Pid {
    Pid::from_child(child)
}

impl Crew {
    /// Starts all.
    pub fn start(setting: Setting, judge: &mut Judge) -> Crew {
        let mut crew = Crew { setting, members: Vec::new(), past: Vec::new(), started: 0 };
        for language in CREW {
            let member = crew.begin(language, judge);
            crew.members.push(member);
        }
        crew
    }

    fn begin(&mut self, language: Language, judge: &mut Judge) -> Member {
        self.started += 1;
        let instance = self.started;
        let log = Log::create(&self.setting.log(instance)).expect("the folder is writable");
        let errors = File::create(self.setting.errors(instance)).expect("the folder is writable");
        let mut command = command(language);
        command.env("CHAOS_URL", &self.setting.url).env("CHAOS_CELL", self.setting.cell());
        command.env("CHAOS_LOG", self.setting.log(instance)).env("CHAOS_INSTANCE", instance.to_string());
        // Of 31 bits: what every language can take.
        let seed = fastrand::Rng::with_seed(self.setting.seed ^ instance << 32).u32(1..1 << 31);
        command.env("CHAOS_SEED", seed.to_string());
        if let Some(fence) = &self.setting.fence {
            command.env("CHAOS_FENCE", fence);
        }
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        judge.born(instance, language);
        let child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        Member { instance, language, child, log, stopped: None }
    }

    /// The place of the participant that is inside, if it is one of those.
    pub fn place_of(&self, who: u64) -> Option<usize> {
        self.members.iter().position(|member| who != 0 && member.instance == who >> 16)
    }

    /// How many processes can have the lock open: participants and what they forked.
    pub fn processes(&self) -> usize {
        self.members.len() + self.past.len()
    }

    /// kill -9, and another in its place. Of a shell, if not `whole`, only its `ipcmutex run`.
    pub fn kill(&mut self, place: usize, whole: bool, judge: &mut Judge) {
        let group = pid_of(&self.members[place].child);
        if self.members[place].language == Language::Shell {
            // First all stop, so that what runs under a killed `ipcmutex run` cannot go on for a moment.
            send(group, Signal::STOP, true);
            until_stopped(group);
            if !whole {
                let at = now();
                for run in children(group).into_iter().filter(|pid| does(*pid, b"run")) {
                    // Its command dies with it, by the kernel's hand and before it is let go on. What has not become the
                    // command yet looks for its parent when it goes on; stopped, it keeps what it shares with the dead.
                    let under_it: Vec<Pid> = children(run).into_iter().filter(|pid| does(*pid, b"visit")).collect();
                    send(run, Signal::KILL, false);
                    under_it.into_iter().chain([run]).for_each(|pid| until(pid, ENDED));
                }
                self.drain_member(place, judge);
                judge.killed(self.members[place].instance, at, now());
                self.members[place].stopped.get_or_insert((at, Instant::now()));
                self.go_on(place, judge);
                return;
            }
        }
        let at = now();
        send(group, Signal::KILL, self.members[place].language == Language::Shell);
        self.members[place].child.wait().expect("it is our child");
        let ended = now();
        self.go_on(place, judge);
        self.drain_member(place, judge);
        judge.killed(self.members[place].instance, at, ended);
        self.replace(place, judge);
    }

    fn replace(&mut self, place: usize, judge: &mut Judge) {
        let new = self.begin(self.members[place].language, judge);
        let old = std::mem::replace(&mut self.members[place], new);
        self.past.push(Past { instance: old.instance, group: pid_of(&old.child), log: old.log });
    }

    /// SIGSTOP, until `lasting` is over.
    pub fn stop(&mut self, place: usize, lasting: Duration) {
        let member = &mut self.members[place];
        if member.stopped.is_none() {
            let at = now();
            send(pid_of(&member.child), Signal::STOP, member.language == Language::Shell);
            member.stopped = Some((at, Instant::now() + lasting));
        }
    }

    /// Stops who is in that place; whether it is inside then, and stays there. Else it goes on.
    pub fn catch_inside(&mut self, place: usize, cell: &Cell, judge: &mut Judge) -> bool {
        let is_new = self.members[place].stopped.is_none();
        self.stop(place, Duration::ZERO);
        let member = &self.members[place];
        match member.language {
            Language::Shell => until_stopped(pid_of(&member.child)),
            // What it has forked goes on.
            _ => until(pid_of(&member.child), STOPPED),
        }
        let is_inside = self.place_of(cell.inside()) == Some(place);
        if is_new && !is_inside {
            self.go_on(place, judge);
        }
        is_inside
    }

    fn go_on(&mut self, place: usize, judge: &mut Judge) {
        let member = &mut self.members[place];
        if let Some((from, _)) = member.stopped.take() {
            send(pid_of(&member.child), Signal::CONT, member.language == Language::Shell);
            judge.stopped(member.instance, from, now());
        }
    }

    /// Lets go on who is due; all, if `all`. When the next is due.
    pub fn wake(&mut self, all: bool, judge: &mut Judge) -> Option<Instant> {
        for place in 0..self.members.len() {
            if self.members[place].stopped.is_some_and(|(_, until)| all || until <= Instant::now()) {
                self.go_on(place, judge);
            }
        }
        self.members.iter().filter_map(|member| Some(member.stopped?.1)).min()
    }

    fn drain_member(&mut self, place: usize, judge: &mut Judge) {
        let member = &mut self.members[place];
        match member.log.read() {
            Ok(events) => events.into_iter().for_each(|event| judge.event(event)),
            Err(error) => judge.violation(format!("the log of {} {}: {error}", member.language, member.instance)),
        }
    }

    /// Reads all logs, and looks after who has ended by itself.
    pub fn drain(&mut self, judge: &mut Judge) {
        for place in 0..self.members.len() {
            self.drain_member(place, judge);
            if let Some(status) = self.members[place].child.try_wait().expect("it is our child") {
                let at = now();
                self.drain_member(place, judge);
                let member = &self.members[place];
                let errors = self.errors(member.instance);
                judge
                    .violation(format!("{} {} ended by itself ({status})\n{errors}", member.language, member.instance));
                judge.killed(member.instance, at, at);
                self.replace(place, judge);
            }
        }
        self.drain_past(judge);
    }

    /// Reads the logs of those that have ended; forgets who has left nothing behind.
    fn drain_past(&mut self, judge: &mut Judge) {
        let setting = &self.setting;
        self.past.retain_mut(|past| {
            let gone = test_kill_process_group(past.group).is_err();
            match past.log.read() {
                Ok(events) => events.into_iter().for_each(|event| judge.event(event)),
                Err(error) => judge.violation(format!("the log of {}: {error}", past.instance)),
            }
            if gone {
                // What is gone already needs no removing.
                let _ = std::fs::remove_file(setting.log(past.instance));
                let _ = std::fs::remove_file(setting.errors(past.instance));
            }
            !gone
        });
    }

    fn errors(&self, instance: u64) -> String {
        let text = std::fs::read(self.setting.errors(instance)).unwrap_or_default();
        String::from_utf8_lossy(&text).lines().take(20).map(|line| format!("    {line}\n")).collect()
    }

    /// Waits until all have ended, as they were asked to; who does not is a violation. Their last records are read.
    pub fn end(mut self, judge: &mut Judge) {
        self.wake(true, judge);
        let until = Instant::now() + PATIENCE;
        while !self.members.is_empty() {
            self.members.retain_mut(|member| {
                let ended = member.child.try_wait().expect("it is our child");
                match member.log.read() {
                    Ok(events) => events.into_iter().for_each(|event| judge.event(event)),
                    Err(error) => judge.violation(format!("the log of {}: {error}", member.instance)),
                }
                if let Some(status) = ended
                    && !status.success()
                {
                    let path = self.setting.errors(member.instance);
                    let text = std::fs::read_to_string(path).unwrap_or_default();
                    judge.violation(format!("{} ended with {status}\n{text}", member.language));
                }
                ended.is_none()
            });
            self.drain_past(judge);
            if Instant::now() > until {
                for member in &self.members {
                    judge.violation(format!(
                        "{} {} does not end:\n{}",
                        member.language,
                        member.instance,
                        judge.describe()
                    ));
                }
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        while !self.past.is_empty() {
            self.drain_past(judge);
            if Instant::now() > until {
                judge.violation(format!("{} processes are left that were forked", self.past.len()));
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        for member in &mut self.members {
            send(pid_of(&member.child), Signal::KILL, true);
            let _ = member.child.wait();
        }
        for past in &self.past {
            send(past.group, Signal::KILL, true);
        }
    }
}

/// A signal to a process that may just have ended.
fn send(pid: Pid, signal: Signal, group: bool) {
    let _ = if group { kill_process_group(pid, signal) } else { kill_process(pid, signal) };
}

/// The processes that a process has started and that have not been reaped.
fn children(pid: Pid) -> Vec<Pid> {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
    let texts = tasks
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    texts
        .flat_map(|text| {
            text.split_whitespace().filter_map(|word| Pid::from_raw(word.parse().ok()?)).collect::<Vec<_>>()
        })
        .collect()
}

/// Whether a process was started for this, by its first argument.
fn does(pid: Pid, verb: &[u8]) -> bool {
    let text = std::fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    text.split(|byte| *byte == 0).nth(1) == Some(verb)
}

const ENDED: &[&str] = &[") Z ", ") X "];
/// One that sleeps in the kernel (D: it waits for what it has just forked) stops before it goes on.
const STOPPED: &[&str] = &[") T ", ") t ", ") D ", ") Z ", ") X "];

/// Waits until all threads of a process are in one of these states, or gone.
fn until(pid: Pid, states: &[&str]) {
    let is_so = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.is_empty() || states.iter().any(|state| stat.contains(state))
    };
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", pid.as_raw_nonzero()));
        if tasks.into_iter().flatten().flatten().all(is_so) {
            return;
        }
        std::thread::yield_now();
    }
}

/// Waits until a stop has reached a process and all that it has started.
pub(super) fn until_stopped(pid: Pid) {
    until(pid, STOPPED);
    children(pid).into_iter().for_each(until_stopped);
}
