//! What a process can do to itself: die slowly, leave a child behind, fork, execute another program, close what it did not open.

use std::fs;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex, State};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::figures::{figure, spread};
use ipcmutex_tests::occupancy;
use ipcmutex_tests::place::{Page, Place, all_is_told, asleep, freeze, kill, signal, until};
use rustix::process::Signal;

const SOON: Duration = Duration::from_secs(30);

fn agent(url: &str) -> Agent {
    let agent = Agent::start(Language::C);
    agent.open(1, url).ok();
    agent
}

/// A child that outlives its parent; it ends with the scope, or with its parent's group.
pub(crate) struct Heir(u64);

impl Heir {
    pub(crate) fn of(parent: &Agent) -> Heir {
        Heir(parent.call("heir").ok().number("pid"))
    }
    pub(crate) fn lives(&self) -> bool {
        let status = fs::read_to_string(format!("/proc/{}/status", self.0));
        status.is_ok_and(|status| !status.contains("State:\tZ") && !status.contains("State:\tX"))
    }
}

/// How long its threads have run.
fn processor_ms(agent: &Agent) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", agent.pid())).expect("it runs");
    let fields: Vec<&str> = stat.rsplit(") ").next().expect("a name in brackets").split(' ').collect();
    let ticks: u64 = [11, 12].iter().map(|at| fields[*at].parse::<u64>().expect("a number")).sum();
    ticks * 10
}

#[test]
fn f2_a_big_owner_is_alive_until_it_runs_no_more() {
    for (how, mib) in [(Signal::KILL, 512), (Signal::ABORT, 64)] {
        let place = Place::new();
        let counter = place.dir.path().join("counter");
        fs::write(&counter, [0; 8]).unwrap();
        let count = || u64::from_le_bytes(fs::read(&counter).unwrap().try_into().unwrap());
        let owner = agent(&place.url());
        owner.call(&format!("fat {mib}")).ok();
        owner.call(&format!("dump {}", place.dir.path().display())).ok();
        owner.call("hold 1 1 0").ok();
        owner.call(&format!("count {}", counter.display())).ok();
        let next = Mutex::open(&place.url()).unwrap();
        let killed = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| next.acquire_timeout(SOON).unwrap().expect("its owner has died"));
            owner.until_waiters(1, 1);
            until("it counts", || count() > 0);
            let killed = Instant::now();
            signal(&owner, how);
            let hold = waiting.join().expect("no panic");
            let counted = count();
            assert!(hold.abandoned());
            std::thread::sleep(Duration::from_millis(20));
            assert_eq!(count(), counted, "the dead owner still ran when the next one entered");
            killed.elapsed()
        });
        figure(
            "F2",
            format!(
                "an owner of {mib} MiB, {}: {:.0?}",
                if how == Signal::KILL { "killed" } else { "dumping core" },
                killed.saturating_sub(Duration::from_millis(20))
            ),
        );
    }
}

#[test]
fn f13_signals_lengthen_no_wait() {
    let place = Place::new();
    let owner = Mutex::open(&place.url()).unwrap();
    let hold = owner.acquire().unwrap();
    let waiter = agent(&place.url());
    waiter.call("storm").ok();
    for limit in [50, 400] {
        let begun = Instant::now();
        waiter.call(&format!("acquire 1 {limit}")).err(ErrorKind::Timeout);
        let waited = begun.elapsed();
        figure("F13", format!("{limit} ms with 1,000 signals a second: {waited:.1?}"));
        assert!(waited >= Duration::from_millis(limit) && waited < SOON);
    }
    let wait = waiter.begin_alone("hold 1 1 forever");
    until("it waits", || owner.status().unwrap().waiters == 1);
    hold.release().unwrap();
    wait.reply().ok();
}

#[test]
fn s1_waiters_that_are_killed_cost_the_others_nothing() {
    let mut times = Vec::new();
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let owner = agent(&url);
    let waiters: Vec<Agent> = (0..6).map(|_| agent(&url)).collect();
    let page = Page::of(&place);
    for doomed in 0..3 {
        owner.call("hold 1 1 0").ok();
        let killed = agent(&url);
        let mut waits = Vec::new();
        let mut count = 0;
        for (at, waiter) in waiters.iter().enumerate() {
            if at == doomed {
                count += 1;
                drop(killed.begin("hold 1 1 forever"));
                owner.until_waiters(1, count);
            }
            count += 1;
            waits.push(waiter.begin("hold 1 1 forever"));
            owner.until_waiters(1, count);
        }
        kill(&killed);
        killed.leave();
        let released = Instant::now();
        owner.call("end 1").ok();
        // The last slot was the dead one's: a release that finds it dead goes on to the next at once.
        assert!(page.slot() <= 7, "the lock is kept for a dead waiter");
        let mut last = 0;
        for (waiter, wait) in waiters.iter().zip(waits) {
            let served = wait.reply().ok();
            assert!(served.token() > last && !served.abandoned(), "in the order of arrival");
            last = served.token();
            waiter.call("end 1").ok();
        }
        times.push(released.elapsed());
    }
    figure("S1", format!("six past one that was killed, in order: {}", spread(times)));
}

#[test]
fn s4_a_waiters_child_does_not_wait_in_its_place() {
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let owner = agent(&url);
    owner.call("hold 1 1 0").ok();
    let (first, second) = (agent(&url), agent(&url));
    drop(first.begin("hold 1 1 forever"));
    owner.until_waiters(1, 1);
    // Later than a moment: by now the library watches for it, with descriptors that the child inherits.
    until("it is watched", || !first.threads().1.is_empty());
    let child = Heir::of(&first);
    kill(&first);
    first.leave();
    let wait = second.begin("hold 1 1 forever");
    // Their slots are the second and the third.
    let page = Page::of(&place);
    until("it stands in line", || page.cell(3) != 0);
    let released = Instant::now();
    owner.call("end 1").ok();
    assert_ne!(page.slot(), 2, "the lock is kept for a dead waiter");
    wait.reply().ok();
    figure("S4", format!("past a dead waiter whose child lives: {:.1?}", released.elapsed()));
    assert!(child.lives());
}

#[test]
fn s5_one_of_six_takes_over_from_the_dead() {
    let place = Place::new();
    let rivals: Vec<Agent> = (0..6).map(|_| agent(&place.url())).collect();
    let mut last = 0;
    for round in 0..50 {
        let owner = agent(&place.url());
        last = owner.call("hold 1 1 0").ok().token().max(last);
        kill(&owner);
        owner.leave();
        let tries: Vec<_> = rivals.iter().map(|rival| rival.begin("hold 1 1 0")).collect();
        let replies: Vec<_> = tries.into_iter().map(|attempt| attempt.reply()).collect();
        let winners: Vec<usize> = (0..6).filter(|at| replies[*at].is_ok()).collect();
        assert_eq!(winners.len(), 1, "round {round}: {replies:?}");
        for (at, reply) in replies.into_iter().enumerate() {
            if at == winners[0] {
                assert!(reply.abandoned() && reply.token() > last, "round {round}");
                last = reply.token();
            } else {
                reply.err(ErrorKind::Timeout);
            }
        }
        rivals[winners[0]].call("end 1").ok();
    }
    figure("S5", "50 takeovers by six, none of them double");
}

#[test]
fn s8_nobody_enters_because_he_was_told_so() {
    let place = Place::new();
    let cell = place.dir.path().join("cell");
    occupancy::create(&cell).unwrap();
    let liar = agent(&place.url());
    liar.call(&format!("impostor {}", place.path().display())).ok();
    let agents: Vec<Agent> = (0..3).map(|_| agent(&place.url())).collect();
    let records: Vec<_> = (0..3).map(|at| place.dir.path().join(format!("records-{at}"))).collect();
    let hammers: Vec<_> = agents
        .iter()
        .zip(&records)
        .map(|(agent, records)| agent.begin(&format!("hammer 1 {} {} 1500 lock", cell.display(), records.display())))
        .collect();
    let met = hammers.into_iter().map(|hammer| hammer.reply().ok().number("overlaps")).sum();
    let verdict = occupancy::judge(&cell, &records, met);
    assert!(verdict.is_exclusive() && verdict.visits > 100, "{verdict:?}");
    figure("S8", format!("{} visits, no overlap", verdict.visits));
    // And who waits in earnest is not woken in vain for ever.
    liar.call("honest").ok();
    let owner = Mutex::open(&place.url()).unwrap();
    let hold = owner.acquire().unwrap();
    let wait = agents[0].begin("hold 1 1 forever");
    agents[1].until_waiters(1, 1);
    hold.release().unwrap();
    wait.reply().ok();
}

#[test]
fn s13_a_waiter_that_closes_lets_the_next_one_through() {
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let owner = agent(&url);
    owner.call("hold 1 1 0").ok();
    let (first, second) = (agent(&url), agent(&url));
    let closed = first.begin("hold 1 1 forever");
    owner.until_waiters(1, 1);
    let wait = second.begin("hold 1 1 forever");
    owner.until_waiters(1, 2);
    first.call("close 1").ok();
    closed.reply().err(ErrorKind::Closed);
    owner.until_waiters(1, 1);
    let released = Instant::now();
    owner.call("end 1").ok();
    // Its slot was the second.
    assert_ne!(Page::of(&place).slot(), 2, "the lock is kept for a waiter that has left");
    wait.reply().ok();
    figure("S13", format!("{:.1?}", released.elapsed()));
}

#[test]
fn s13_who_sleeps_behind_one_that_closes_is_told() {
    all_is_told(|place| {
        let (owner, first, second) = (agent(&place.url()), agent(&place.url()), agent(&place.url()));
        owner.call("hold 1 1 0").ok();
        let closed = first.begin("hold 1 1 forever");
        owner.until_waiters(1, 1);
        let wait = second.begin("hold 1 1 forever");
        asleep(&second);
        first.call("close 1").ok();
        closed.reply().err(ErrorKind::Closed);
        owner.call("end 1").ok();
        wait.reply().ok();
        second.call("end 1").ok();
    });
}

#[test]
fn s17_a_starved_waiter_is_served_all_the_same() {
    let mut times = Vec::new();
    let place = Place::new();
    let owner = agent(&place.url());
    owner.call("hold 1 1 0").ok();
    let starved = Agent::start_under(Language::C, &["nice", "-n", "19"]);
    starved.open(1, &place.url()).ok();
    // Both processors are busy with others.
    let counter = place.dir.path().join("counter");
    fs::write(&counter, [0; 8]).unwrap();
    let busy: Vec<Agent> = (0..2).map(|_| Agent::start(Language::C)).collect();
    for busy in &busy {
        busy.call(&format!("count {}", counter.display())).ok();
    }
    for _ in 0..3 {
        let waits = starved.begin("hold 1 1 forever");
        owner.until_waiters(1, 1);
        let released = Instant::now();
        owner.call("end 1").ok();
        waits.reply().ok();
        times.push(released.elapsed());
        let waits = owner.begin("hold 1 1 forever");
        starved.until_waiters(1, 1);
        starved.call("end 1").ok();
        waits.reply().ok();
    }
    figure("S17", format!("from the release to the starved one's hold: {}", spread(times)));
}

#[test]
fn k2_a_dead_owners_child_does_not_hold_in_its_place() {
    let place = Place::new();
    let next = Mutex::open(&place.url()).unwrap();
    for waited_for in [false, true] {
        let owner = agent(&place.url());
        owner.call("hold 1 1 0").ok();
        let child = Heir::of(&owner);
        let hold = if waited_for {
            std::thread::scope(|scope| {
                let waiting = scope.spawn(|| next.acquire_timeout(SOON).unwrap());
                owner.until_waiters(1, 1);
                let killed = Instant::now();
                kill(&owner);
                let hold = waiting.join().expect("no panic");
                figure("K2", format!("from the kill to the next owner: {:.1?}", killed.elapsed()));
                hold
            })
        } else {
            kill(&owner);
            owner.leave();
            next.try_acquire().unwrap()
        };
        assert!(hold.expect("its owner is dead").abandoned());
        assert!(child.lives());
    }
}

#[test]
fn k2_who_sleeps_is_told_of_a_death_that_a_child_outlives() {
    all_is_told(|place| {
        let (owner, next) = (agent(&place.url()), agent(&place.url()));
        owner.call("hold 1 1 0").ok();
        let child = Heir::of(&owner);
        let wait = next.begin("hold 1 1 forever");
        asleep(&next);
        kill(&owner);
        assert!(wait.reply().ok().abandoned());
        next.call("end 1").ok();
        assert!(child.lives());
    });
}

#[test]
fn k3_a_program_that_is_started_inherits_nothing() {
    let place = Place::new();
    let other = Mutex::open(&place.url()).unwrap();
    let waiter = agent(&place.url());
    let _held = other.acquire().unwrap();
    drop(waiter.begin("hold 1 1 forever"));
    until("it is watched", || !waiter.threads().1.is_empty());
    for how in ["fork", "vfork", "posix_spawn", "system"] {
        let started = waiter.call(&format!("started {how} {}", place.path().display())).ok();
        assert_eq!((started.number("files"), started.number("maps")), (0, 0), "{how}");
    }
    figure("K3", "0 descriptors and 0 mappings of ours in a program started by fork, vfork, posix_spawn, system");
}

#[test]
fn k4_forks_while_threads_are_in_the_library() {
    let place = Place::new();
    let many = std::env::var("IPCMUTEX_FORKS").map_or(1000, |many| many.parse().expect("a number"));
    let parent = Agent::start(Language::C);
    let begun = Instant::now();
    let forks = parent.begin(&format!("forks {many} {}", place.url()));
    let bad = forks.reply_after(Duration::from_millis(30 * many)).ok().number("bad");
    figure("K4", format!("{many} forks: {bad} bad, in {:.1?}", begun.elapsed()));
    assert_eq!(bad, 0, "{}", parent.errors());
}

#[test]
fn k7_loaded_and_unloaded_a_thousand_times_while_a_thread_waits() {
    let place = Place::new();
    let script = r#"
import _ctypes, ctypes, sys, threading
path, url = sys.argv[1], sys.argv[2].encode()
def load():
    return ctypes.CDLL(path)
library = load()
held, waits = ctypes.c_uint64(), ctypes.c_uint64()
assert library.ipcmutex_open(url, ctypes.byref(held)) == 0 and library.ipcmutex_acquire(held) == 0
assert library.ipcmutex_open(url, ctypes.byref(waits)) == 0
acquire = library.ipcmutex_acquire
thread = threading.Thread(target=lambda: acquire(waits))
thread.start()
_ctypes.dlclose(library._handle)
for _ in range(1000):
    library = load()
    other = ctypes.c_uint64()
    assert library.ipcmutex_open(url, ctypes.byref(other)) == 0
    assert library.ipcmutex_try_acquire(other) == 1
    assert library.ipcmutex_close(other) == 0
    _ctypes.dlclose(library._handle)
library = load()
assert library.ipcmutex_release(held) == 0
thread.join(30)
assert not thread.is_alive()
assert library.ipcmutex_release(waits) == 0
"#;
    let library = ipcmutex_tests::artifacts::installed().join("lib/libipcmutex.so.0");
    let python =
        std::process::Command::new("python3").args(["-c", script]).arg(library).arg(place.url()).output().unwrap();
    assert!(python.status.success(), "{} {}", python.status, String::from_utf8_lossy(&python.stderr));
}

#[test]
fn k9_an_owner_that_executes_another_program_holds_no_more() {
    let place = Place::new();
    let owner = agent(&place.url());
    owner.call("hold 1 1 0").ok();
    let next = Mutex::open(&place.url()).unwrap();
    let begun = Instant::now();
    drop(owner.begin("become 30"));
    let hold = next.acquire_timeout(SOON).unwrap().expect("its owner is another program now");
    figure("K9", format!("from the order to execute another program to the next owner: {:.1?}", begun.elapsed()));
    assert!(hold.abandoned());
    let name = fs::read_to_string(format!("/proc/{}/comm", owner.pid())).unwrap();
    assert_eq!(name.trim(), "sleep", "it lives on");
}

#[test]
fn f3_what_is_frozen_while_waiting_is_overtaken_and_comes_back() {
    let place = Place::new();
    let owner = agent(&place.url());
    owner.call("hold 1 1 0").ok();
    let waiter = agent(&place.url());
    let wait = waiter.begin("hold 1 1 forever");
    owner.until_waiters(1, 1);
    freeze(&waiter);
    owner.call("end 1").ok();
    let other = Mutex::open(&place.url()).unwrap();
    let begun = Instant::now();
    let hold = other.acquire_timeout(SOON).unwrap().expect("the one before it is frozen");
    figure("S9", format!("past a frozen one: {:.0?}", begun.elapsed()));
    signal(&waiter, Signal::CONT);
    until("it waits again", || other.status().unwrap().waiters == 1);
    assert!(wait.is_waiting());
    hold.release().unwrap();
    wait.reply().ok();
}

/// The lock's descriptors are none of the program's: an open mutex has none, and a wait goes on without.
#[test]
fn k3_a_program_may_close_every_descriptor() {
    let place = Place::new();
    let (owner, waiter) = (agent(&place.url()), agent(&place.url()));
    owner.call("hold 1 1 0").ok();
    let wait = waiter.begin("hold 1 1 forever");
    until("it is watched", || !waiter.threads().1.is_empty());
    for agent in [&owner, &waiter] {
        agent.call("closefrom").ok();
    }
    // Nor does it wait by turning in circles: three looks take no tenth of the time.
    let before = processor_ms(&waiter);
    std::thread::sleep(Duration::from_millis(800));
    let used = processor_ms(&waiter) - before;
    figure("F11", format!("a wait without descriptors: {used} ms of 800 on the processor"));
    assert!(used < 200, "{used} ms of 800 on the processor");
    let other = Mutex::open(&place.url()).unwrap();
    assert!(other.try_acquire().unwrap().is_none());
    assert_eq!(other.status().unwrap().state, State::Held);
    owner.call("end 1").ok();
    wait.reply().ok();
    assert!(other.try_acquire().unwrap().is_none());
    kill(&waiter);
    assert!(other.acquire_timeout(SOON).unwrap().expect("its owner is dead").abandoned());
}

/// Whether the thread that watches waits for something else than another thread.
fn waits_for_events(agent: &Agent) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", agent.pid())).expect("it runs");
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    tasks.flatten().map(|task| task.path()).filter(|task| read(task.join("comm")).trim() == "ipcmutex-pulse").any(
        |task| {
            // "running", or the number of the system call.
            let call = read(task.join("syscall")).split_whitespace().next().and_then(|call| call.parse().ok());
            call.is_some_and(|call: i64| call >= 0 && call != nix::libc::SYS_futex)
        },
    )
}

/// Under the numbers of a wait's descriptors the program has its own: what is in them is the program's, and the wait goes on.
#[test]
fn k3_a_program_may_reuse_the_number_of_every_descriptor() {
    for kind in ["pipes", "events"] {
        let place = Place::new();
        let (owner, waiter, next) = (agent(&place.url()), agent(&place.url()), agent(&place.url()));
        owner.call("hold 1 1 0").ok();
        let wait = waiter.begin("hold 1 1 forever");
        // Until that thread first waits for them, any eventfd under such a number would be believed.
        until("it is watched", || waits_for_events(&waiter));
        waiter.call(&format!("reuse {kind}")).ok();
        // A few looks of the pulse, and a death that it alone hears of.
        std::thread::sleep(Duration::from_millis(800));
        kill(&owner);
        assert!(wait.reply().ok().abandoned());
        // It ends with the last who waits, and begins with the next.
        until("it has ended", || !waiter.threads().1.contains(&"ipcmutex-pulse".to_owned()));
        waiter.call("end 1").ok();
        next.call("hold 1 1 0").ok();
        waiter.call("acquire 1 400").err(ErrorKind::Timeout);
        assert_eq!(waiter.call("intact").ok().number("intact"), 8, "{kind}");
    }
}
