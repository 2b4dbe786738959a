//! Killed at every step. A process is single-stepped through a call by ptrace and killed with SIGKILL after the n-th step that others
//! can see: one that changed the lock file, or a system call. Between two such steps it does not matter when it dies, so
//! these are all moments there are, and the library needs no points at which it fails on purpose.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::panic::resume_unwind;
use std::thread;
use std::time::Duration;

use ipcmutex::{Hold, Mutex};
use ipcmutex_tests::agent::{Agent, Language, hex};
use ipcmutex_tests::place::{Place, kill, until};
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::Pid;

use crate::registers::{self, Registers};

const PAGE: usize = 4096;
/// The system call in which the C agent waits for its next command.
const READV: u64 = nix::libc::SYS_readv as u64;
const MMAP: u64 = nix::libc::SYS_mmap as u64;
/// What a waiter may take to go on: a watchdog.
const SOON: Duration = Duration::from_secs(20);

/// The word as `core/src/backend/mpm/word.rs` has it.
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    fn of(page: &[u8]) -> Word {
        Word(u64::from_le_bytes(page[64..72].try_into().expect("eight bytes")))
    }
    fn is_held_by(self, slot: u64) -> bool {
        self.0 & 3 == 1 && self.slot() == slot
    }
    fn slot(self) -> u64 {
        self.0 >> 5 & 0xfff
    }
    fn is_abandoned(self) -> bool {
        self.0 & (1 << 3) != 0
    }
}

type Page = [u8; PAGE];

/// One system call, if the file is as long: it is read after each step.
fn page(file: &File) -> Page {
    let mut page = [0; PAGE];
    let mut done = 0;
    while done < PAGE
        && let Ok(count @ 1..) = file.read_at(&mut page[done..], done as u64)
    {
        done += count;
    }
    page
}

/// An agent under the debugger. It is used on the thread that attached it, as ptrace demands.
struct Victim<'a> {
    agent: &'a Agent,
    pid: Pid,
    /// Which addresses have an instruction that makes a system call.
    code: HashMap<u64, bool>,
    events: usize,
}

/// Where a stepped command ended.
enum End {
    /// After the event at which it was to be killed, and it was; with the word as it left it.
    Killed(Word),
    /// The command was done before.
    Done,
}

impl<'a> Victim<'a> {
    fn attach(agent: &'a Agent) -> Victim<'a> {
        let pid = Pid::from_raw(agent.pid() as i32);
        ptrace::seize(pid, ptrace::Options::empty()).expect("it is our child");
        ptrace::interrupt(pid).expect("it is traced");
        let stopped = waitpid(pid, Some(WaitPidFlag::__WALL)).expect("it stops");
        assert!(!matches!(stopped, WaitStatus::Exited(..) | WaitStatus::Signaled(..)), "{stopped:?}");
        Victim { agent, pid, code: HashMap::new(), events: 0 }
    }

    fn is_syscall(&mut self, at: u64) -> bool {
        let pid = self.pid;
        *self.code.entry(at).or_insert_with(|| registers::is_syscall(pid, at))
    }

    /// Goes on to where `ptrace` stops it next.
    fn go(&self, how: impl FnOnce(Pid, Option<Signal>) -> nix::Result<()>) {
        how(self.pid, None).expect("it stands still");
        match waitpid(self.pid, Some(WaitPidFlag::__WALL)).expect("it stops") {
            WaitStatus::Stopped(_, Signal::SIGTRAP) | WaitStatus::PtraceEvent(..) => {}
            other => panic!("{other:?}"),
        }
    }

    /// Counts an event; kills it if that was number `last`.
    fn is_last(&mut self, last: usize) -> bool {
        self.events += 1;
        if self.events == last {
            kill(self.agent);
            // Left for the agent's own end to be reaped.
            let dead = waitid(Id::Pid(self.pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT);
            assert!(matches!(dead, Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _))), "{dead:?}");
        }
        self.events == last
    }

    /// Steps until the agent waits for its next command; kills it after event number `last`.
    fn step(&mut self, file: &File, last: usize) -> End {
        let mut before = page(file);
        let mut steps = 0u64;
        loop {
            let registers = Registers::of(self.pid);
            let calls = self.is_syscall(registers.at);
            // readv(0, …): it has done its command. The first of them, which gets the command, is entered within a few steps.
            if calls && registers.call == READV && registers.arguments[0] == 0 && steps > 100 {
                return End::Done;
            }
            self.go(ptrace::step);
            steps += 1;
            let after = page(file);
            let changed = after != before;
            before = after;
            if (calls || changed) && self.is_last(last) {
                return End::Killed(Word::of(&before));
            }
        }
    }

    /// Goes from system call to system call until it has mapped a file: before that it can change nothing in one.
    fn until_it_maps(&mut self, file: &File, last: usize) -> Option<End> {
        loop {
            self.go(ptrace::syscall);
            self.go(ptrace::syscall);
            let registers = Registers::of(self.pid);
            if self.is_last(last) {
                return Some(End::Killed(Word::of(&page(file))));
            }
            if registers.call == MMAP && registers.arguments[4] as i32 >= 0 {
                return None;
            }
        }
    }
}

/// Lets `agent` run the commands, kills it after event `last` of all of them; the word as it left it, or `None` if it did not come so far.
fn killed_at(agent: &Agent, file: &File, commands: &[&str], last: usize) -> Option<Word> {
    // It stands in readv(0).
    let (call, stands) = (format!("/proc/{}/syscall", agent.pid()), format!("{READV} 0x0 "));
    until("it waits for a command", || std::fs::read_to_string(&call).expect("it runs").starts_with(&stands));
    let mut victim = Victim::attach(agent);
    for command in commands {
        let pending = agent.begin_alone(command);
        let early = if command.starts_with("open ") { victim.until_it_maps(file, last) } else { None };
        match early.unwrap_or_else(|| victim.step(file, last)) {
            End::Killed(word) => return Some(word),
            End::Done => drop(pending.reply()),
        }
    }
    None
}

/// Rounds with a later and later end, until one is not reached.
fn sweep(what: &str, at_least: usize, mut round: impl FnMut(usize) -> bool) {
    seen(what, at_least, (1..).take_while(|last| round(*last)).count());
}

/// The same by two threads, of which each has a place of its own and every second end.
fn sweep_by_halves<R: FnMut(usize) -> bool>(what: &str, at_least: usize, begin: impl Fn() -> R + Sync) {
    let half = |first: usize| {
        let mut round = begin();
        (first..).step_by(2).take_while(|last| round(*last)).count()
    };
    let moments = thread::scope(|scope| {
        let other = scope.spawn(|| half(2));
        half(1) + other.join().unwrap_or_else(|panic| resume_unwind(panic))
    });
    seen(what, at_least, moments);
}

fn seen(what: &str, at_least: usize, moments: usize) {
    ipcmutex_tests::figures::figure("F1", format!("killed at each of {moments} steps of {what}"));
    assert!(moments >= at_least, "{what}: only {moments} steps were seen");
}

fn agent(url: &str) -> Agent {
    let agent = Agent::start(Language::C);
    agent.open(1, url).ok();
    agent
}

/// An agent that has done everything once, so that no step is spent on the first time: a lock of its own, with a wait and a break.
fn trained(url: &str) -> Agent {
    let place = Place::new();
    let agent = Agent::start_with(Language::C, &[("LD_BIND_NOW", "1".as_ref())]);
    agent.open(2, &place.url()).ok();
    for command in ["hold 2 2 0", "hold 2 3 5", "break 2", "hold 2 2 0", "end 2", "hold 2 2 0", "end 2"] {
        drop(agent.call(command));
    }
    agent.open(1, url).ok();
    agent
}

fn file_of(place: &Place) -> File {
    File::open(place.path()).expect("the lock was opened")
}

/// The next one gets it, with a larger token, and hears what it must hear.
#[track_caller]
fn goes_on(next: &Mutex, last: &mut u64, abandoned: bool, at: usize) {
    let hold: Hold = next.acquire_timeout(SOON).expect("no error").unwrap_or_else(|| panic!("step {at}: it is stuck"));
    assert_eq!(hold.abandoned(), abandoned, "step {at}");
    assert!(hold.token() > *last, "step {at}");
    *last = hold.token();
    hold.release().expect("it was held");
    let again = next.try_acquire().expect("no error").expect("nobody holds it");
    assert!(!again.abandoned(), "step {at}: it is told once");
    *last = again.token();
}

#[test]
fn killed_at_every_step_of_a_take_and_a_release() {
    let place = Place::new();
    let next = Mutex::open(&place.url()).unwrap();
    let (file, mut last) = (file_of(&place), 0);
    sweep("a take and a release", 6, |at| {
        let victim = trained(&place.url());
        let Some(word) = killed_at(&victim, &file, &["hold 1 1 0", "end 1"], at) else { return false };
        goes_on(&next, &mut last, word.0 & 3 == 1 || word.is_abandoned(), at);
        true
    });
}

#[test]
fn killed_at_every_step_of_taking_over_from_the_dead() {
    let place = Place::new();
    let next = Mutex::open(&place.url()).unwrap();
    let (file, mut last) = (file_of(&place), 0);
    sweep("taking over from the dead", 10, |at| {
        // Before the owner, so that it does not move into the dead one's slot.
        let victim = trained(&place.url());
        let owner = agent(&place.url());
        owner.call("hold 1 1 0").ok();
        kill(&owner);
        owner.leave();
        let Some(word) = killed_at(&victim, &file, &["hold 1 1 0", "end 1"], at) else { return false };
        goes_on(&next, &mut last, word.0 & 3 == 1 || word.is_abandoned(), at);
        true
    });
}

#[test]
fn killed_at_every_step_of_a_hand_over() {
    for fair in ["eventual", "strict"] {
        let place = Place::new();
        let url = format!("{}?fair={fair}", place.url());
        let waiter = agent(&url);
        let file = file_of(&place);
        sweep(&format!("a hand-over, fair={fair}"), 4, |at| {
            let victim = trained(&url);
            victim.call("hold 1 1 0").ok();
            let slot = Word::of(&page(&file)).slot();
            let waits = waiter.begin("hold 1 1 forever");
            victim.until_waiters(1, 1);
            let killed = killed_at(&victim, &file, &["end 1"], at);
            let served = waits.reply().ok();
            if let Some(word) = killed {
                assert_eq!(served.abandoned(), word.is_held_by(slot), "step {at}");
            }
            waiter.call("end 1").ok();
            killed.is_some()
        });
    }
}

#[test]
fn killed_at_every_step_of_being_granted() {
    for fair in ["eventual", "strict"] {
        let place = Place::new();
        let url = format!("{}?fair={fair}", place.url());
        let (owner, waiter) = (agent(&url), agent(&url));
        let file = file_of(&place);
        sweep(&format!("being granted, fair={fair}"), 2, |at| {
            owner.call("hold 1 1 0").ok();
            let victim = trained(&url);
            let granted = victim.begin_alone("hold 1 1 forever");
            owner.until_waiters(1, 1);
            let waits = waiter.begin("hold 1 1 forever");
            owner.until_waiters(1, 2);
            let mut stepped = Victim::attach(&victim);
            owner.call("end 1").ok();
            let end = stepped.step(&file, at);
            // Whether it was killed holding is told by the word alone: nobody has taken it from a victim that lived.
            let held = match end {
                End::Killed(word) => word,
                End::Done => {
                    drop(granted.reply());
                    kill(&victim);
                    Word::of(&page(&file))
                }
            };
            let served = waits.reply().ok();
            if held.0 & 3 == 1 && !served.abandoned() {
                assert_eq!(
                    Word::of(&page(&file)).0 >> 17,
                    held.0 >> 17,
                    "step {at}: a dead holder was passed over in silence"
                );
            }
            waiter.call("end 1").ok();
            matches!(end, End::Killed(_))
        });
    }
}

#[test]
fn killed_at_every_step_of_waiting_and_leaving() {
    // The longest of them; the other fairness has the same steps but one.
    let both = std::env::var_os("IPCMUTEX_SWEEP").is_some();
    for fair in ["strict", "eventual"].into_iter().take(if both { 2 } else { 1 }) {
        sweep_by_halves(&format!("waiting and leaving, fair={fair}"), 10, || {
            let place = Place::new();
            let url = format!("{}?fair={fair}", place.url());
            let (owner, waiter) = (agent(&url), agent(&url));
            let file = file_of(&place);
            move |at| {
                let _stays = &place;
                owner.call("hold 1 1 0").ok();
                let victim = trained(&url);
                let killed = killed_at(&victim, &file, &["hold 1 1 20"], at).is_some();
                owner.call("check 1").ok();
                let waits = waiter.begin("hold 1 1 forever");
                owner.status_until(1, "somebody waits", |status| status.number("waiters") >= 1);
                owner.call("end 1").ok();
                assert!(!waits.reply().ok().abandoned(), "step {at}: only a waiter died");
                waiter.call("end 1").ok();
                killed
            }
        });
    }
}

/// A new page, and one whose last owner died: the newcomer moves into its slot.
#[test]
fn killed_at_every_step_of_an_open() {
    for dead in [false, true] {
        let what = if dead { "an open in a dead owner's slot" } else { "the open of a new lock" };
        sweep(what, 10, |at| {
            let (place, mut last) = (Place::new(), 0);
            // The file is there, so that it can be watched; an empty one is as good as none.
            let file = File::create(place.path()).expect("the folder is writable");
            file.set_permissions(std::fs::Permissions::from_mode(0o600)).expect("it is ours");
            if dead {
                let owner = agent(&place.url());
                owner.call("hold 1 1 0").ok();
                kill(&owner);
                owner.leave();
            }
            let victim = trained(&Place::new().url());
            let open = format!("open 1 {}", hex(place.url().as_bytes()));
            let killed = killed_at(&victim, &file, &[&open], at).is_some();
            goes_on(&Mutex::open(&place.url()).expect("the page is whole"), &mut last, dead, at);
            killed
        });
    }
}

#[test]
fn killed_at_every_step_of_a_close() {
    let place = Place::new();
    let next = Mutex::open(&place.url()).unwrap();
    let (file, mut last) = (file_of(&place), 0);
    sweep("a close while holding", 3, |at| {
        let victim = trained(&place.url());
        victim.call("hold 1 1 0").ok();
        let Some(word) = killed_at(&victim, &file, &["close 1"], at) else { return false };
        goes_on(&next, &mut last, word.0 & 3 == 1, at);
        true
    });
}

#[test]
fn killed_at_every_step_of_a_break() {
    let place = Place::new();
    let next = Mutex::open(&place.url()).unwrap();
    let owner = agent(&place.url());
    let (file, mut last) = (file_of(&place), 0);
    sweep("a break", 4, |at| {
        owner.call("hold 1 1 0").ok();
        let slot = Word::of(&page(&file)).slot();
        let victim = trained(&place.url());
        let killed = killed_at(&victim, &file, &["break 1"], at);
        if Word::of(&page(&file)).is_held_by(slot) {
            assert!(next.try_acquire().unwrap().is_none(), "step {at}: its owner lives");
            owner.call("check 1").ok();
            owner.call("end 1").ok();
            goes_on(&next, &mut last, false, at);
        } else {
            goes_on(&next, &mut last, true, at);
            owner.call("end 1").err(ipcmutex::ErrorKind::Lost);
        }
        killed.is_some()
    });
}
