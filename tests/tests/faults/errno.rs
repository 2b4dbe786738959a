//! Every system call of every path may fail once. An agent runs under strace, which lets the n-th call of one name fail with one
//! error; whatever comes of it, it is an error of the table or a success, nobody enters beside a holder, and the next process goes on.
//!
//! `make sweep` goes through all of it; `make test` through every call, each with one of its errors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use ipcmutex::{Error, ErrorKind, Mutex};
use ipcmutex_tests::agent::{Agent, Language, Reply};
use ipcmutex_tests::place::{Place, kill, until};

const SOON: Duration = Duration::from_secs(20);

/// What a call may answer, by its manual page; what is not here may fail with EIO and EINTR.
const ERRORS: &[(&str, &[&str])] = &[
    ("openat", &["EACCES", "EMFILE", "ENFILE", "EINTR", "ENOENT", "ELOOP", "ENOMEM", "ENOSPC", "EROFS", "EIO"]),
    ("open", &["EACCES", "EMFILE", "ENOENT"]),
    ("fstat", &["EIO", "ENOMEM"]),
    ("newfstatat", &["EACCES", "EIO", "ENOENT", "ENOMEM", "ELOOP"]),
    ("statx", &["EACCES", "EIO", "ENOENT"]),
    ("fstatfs", &["EIO", "ENOSYS", "EINTR"]),
    ("fallocate", &["ENOSPC", "EINTR", "EIO", "EOPNOTSUPP", "EFBIG"]),
    ("fchmod", &["EPERM", "EIO", "EROFS"]),
    ("mmap", &["ENOMEM", "EAGAIN", "ENODEV"]),
    ("madvise", &["EINVAL", "ENOMEM", "EAGAIN"]),
    ("munmap", &["ENOMEM"]),
    ("mprotect", &["ENOMEM"]),
    ("fcntl", &["ENOLCK", "EINTR", "EAGAIN", "EINVAL", "ENOMEM", "EIO"]),
    ("close", &["EIO", "EINTR"]),
    ("futex", &["EINTR", "EAGAIN", "ETIMEDOUT", "EFAULT", "ENOSYS"]),
    ("futex_waitv", &["ENOSYS", "EINTR", "EAGAIN", "ENOMEM"]),
    ("clone3", &["EAGAIN", "ENOMEM", "EPERM"]),
    ("inotify_init1", &["EMFILE", "ENFILE", "ENOMEM"]),
    ("inotify_add_watch", &["ENOSPC", "ENOMEM", "EACCES", "ENOENT"]),
    ("inotify_rm_watch", &["EINVAL"]),
    ("eventfd2", &["EMFILE", "ENFILE", "ENOMEM"]),
    ("poll", &["EINTR", "ENOMEM"]),
    ("read", &["EINTR", "EIO", "EAGAIN"]),
    ("write", &["EINTR", "EIO", "EAGAIN"]),
    ("pread64", &["EINTR", "EIO"]),
];

/// What fails for as long as something has run out.
const EXHAUSTED: &[(&str, &str)] = &[
    ("openat", "EMFILE"),
    ("fcntl", "ENOLCK"),
    ("fallocate", "ENOSPC"),
    ("clone3", "EAGAIN"),
    ("inotify_init1", "EMFILE"),
    ("inotify_add_watch", "ENOSPC"),
    ("eventfd2", "ENFILE"),
    ("madvise", "EINVAL"),
];

/// Not the library's: the agent's own input and output, and what cannot fail.
const LEFT_ALONE: &[&str] = &[
    "brk",
    "exit",
    "exit_group",
    "geteuid",
    "getpid",
    "getrandom",
    "gettid",
    "prctl",
    "readv",
    "rseq",
    "rt_sigprocmask",
    "sched_yield",
    "set_robust_list",
    "sigaltstack",
    "uname",
    "writev",
];

fn errors_of(name: &str) -> &'static [&'static str] {
    ERRORS.iter().find(|(known, _)| *known == name).map_or(&["EIO", "EINTR"], |(_, errors)| errors)
}

/// What the victim does, and who holds meanwhile.
#[derive(Clone, Copy, PartialEq)]
enum Path {
    /// Makes a lock file, takes it, releases, closes.
    Alone,
    /// Waits for a holder, and gets it.
    Waits,
    /// Takes over from the dead.
    TakesOver,
    /// Waits for a holder, in vain.
    Leaves,
}

struct Round {
    place: Place,
    agent: Agent,
}

/// A reply that the table has.
fn known(reply: Reply, what: &str) -> Reply {
    let table = ["TIMEOUT", "LOST", "PERMISSION", "UNSAFE", "NO_SPACE", "RESOURCE", "IO", "OK"];
    assert!(table.contains(&reply.code.as_str()), "{what}: {reply:?}");
    reply
}

impl Round {
    /// An agent under strace with these arguments.
    fn new(arguments: &[&str]) -> Round {
        let words = [&["strace", "-f", "-qq"], arguments].concat();
        Round { place: Place::new(), agent: Agent::start_under(Language::C, &words) }
    }

    /// Whether any step of the path was answered by an error that would not have been otherwise.
    fn go(&self, path: Path, what: &str) -> bool {
        let url = self.place.url();
        let holder = (path != Path::Alone).then(|| Mutex::open(&url).expect("nothing fails here"));
        let mut held = match (path, &holder) {
            (Path::Waits | Path::Leaves, Some(holder)) => Some(holder.acquire().expect("nothing fails here")),
            (Path::TakesOver, _) => {
                let dead = Agent::start(Language::C);
                dead.open(1, &url).ok();
                dead.call("hold 1 1 0").ok();
                kill(&dead);
                dead.leave();
                None
            }
            _ => None,
        };
        let opened = known(self.agent.open(1, &url), what);
        let mut refused = !opened.is_ok();
        let mut left = path == Path::TakesOver;
        if opened.is_ok() {
            let limit = match path {
                Path::Waits => "forever",
                Path::Leaves => "10",
                _ => "0",
            };
            let taking = self.agent.begin_alone(&format!("hold 1 1 {limit}"));
            if let (Path::Waits, Some(holder)) = (path, &holder) {
                until("it waits, or has failed", || {
                    !taking.is_waiting() || holder.status().is_ok_and(|status| status.waiters > 0)
                });
                assert!(taking.is_waiting() || !taking.has_succeeded(), "{what}: it entered beside a holder");
                held.take().expect("it is held").release().unwrap_or_else(|error: Error| panic!("{what}: {error}"));
            }
            let taken = known(taking.reply(), what);
            refused |= !(taken.is_ok() || path == Path::Leaves && taken.is(ErrorKind::Timeout));
            if taken.is_ok() {
                assert!(held.is_none(), "{what}: it entered beside a holder");
                assert_eq!(taken.abandoned(), path == Path::TakesOver, "{what}");
                let other = Mutex::open(&url).expect("nothing fails here");
                assert!(
                    other.try_acquire().expect("nothing fails here").is_none(),
                    "{what}: another entered beside it"
                );
                left = !known(self.agent.call("end 1"), what).is_ok();
                refused |= left;
            }
            refused |= !known(self.agent.call("close 1"), what).is_ok();
        }
        drop(held);
        self.agent.leave();
        let next = Mutex::open(&url).unwrap_or_else(|error| panic!("{what}: {error}"));
        let hold = next.acquire_timeout(SOON).unwrap_or_else(|error| panic!("{what}: {error}"));
        let hold = hold.unwrap_or_else(|| panic!("{what}: the next one does not go on"));
        assert!(left || !hold.abandoned(), "{what}: nobody died holding");
        hold.release().unwrap_or_else(|error| panic!("{what}: {error}"));
        refused
    }
}

/// A call's name, and which of them, counted by thread from 1, are the library's.
type Calls = BTreeMap<String, BTreeSet<usize>>;

/// The calls of a path. What the agent's main thread calls before its first command is its start, and no part of any.
fn recorded(path: Path) -> Calls {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let record = folder.path().join("record");
    let round = Round::new(&["-o", record.to_str().expect("a temporary path")]);
    assert!(!round.go(path, "recording"), "nothing fails here");
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    let (mut calls, mut starting): (Calls, Calls) = Default::default();
    let mut started = false;
    let text = fs::read_to_string(&record).expect("strace wrote it");
    for line in text.lines() {
        let Some((thread, call)) = line.split_once(' ') else { continue };
        let Some((name, _)) = call.trim_start().split_once('(') else { continue };
        started |= name == "readv";
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') || LEFT_ALONE.contains(&name) {
            continue;
        }
        let count = counts.entry((name, thread)).or_default();
        *count += 1;
        let known = if started { &mut calls } else { &mut starting };
        known.entry(name.to_owned()).or_default().insert(*count);
    }
    // What another thread calls as its third is the third of the main thread too.
    for (name, numbers) in &mut calls {
        let unfit = starting.remove(name).unwrap_or_default();
        numbers.retain(|number| !unfit.contains(number));
    }
    calls.retain(|_, numbers| !numbers.is_empty());
    calls
}

fn sweep(path: Path, what: &str) {
    let whole = std::env::var_os("IPCMUTEX_SWEEP").is_some();
    let (mut runs, mut told) = (0, 0);
    let mut run = |name: &str, error: &str, when: &str| {
        let (trace, inject) = (format!("trace={name}"), format!("inject={name}:error={error}:when={when}"));
        let round = Round::new(&["-o", "/dev/null", "-e", &trace, "-e", &inject]);
        runs += 1;
        told += u32::from(round.go(path, &format!("{what}, {inject}")));
    };
    for (name, numbers) in recorded(path) {
        let errors = errors_of(&name);
        for (nth, number) in numbers.iter().enumerate() {
            for (at, error) in errors.iter().enumerate() {
                // Each call, and each error somewhere.
                if whole || at == nth % errors.len() {
                    run(&name, error, &number.to_string());
                }
            }
        }
        if let (Some((_, error)), Some(first)) = (EXHAUSTED.iter().find(|(known, _)| *known == name), numbers.first()) {
            run(&name, error, &format!("{first}+"));
        }
    }
    ipcmutex_tests::figures::figure("F12", format!("{what}: {runs} failures, {told} of them told"));
    assert!(runs > 20 && told > 5, "{what}: only {runs} failures, {told} told");
}

fn without_strace(test: &str) -> bool {
    ipcmutex_tests::privilege::without("strace", "strace", test)
}

#[test]
fn every_call_may_fail_once_of_a_new_lock() {
    if !without_strace("every_call_may_fail_once_of_a_new_lock") {
        sweep(Path::Alone, "a new lock");
    }
}

#[test]
fn every_call_may_fail_once_of_a_wait() {
    if !without_strace("every_call_may_fail_once_of_a_wait") {
        sweep(Path::Waits, "a wait");
    }
}

#[test]
fn every_call_may_fail_once_of_taking_over_from_the_dead() {
    if !without_strace("every_call_may_fail_once_of_taking_over_from_the_dead") {
        sweep(Path::TakesOver, "taking over");
    }
}

#[test]
fn every_call_may_fail_once_of_a_wait_in_vain() {
    if !without_strace("every_call_may_fail_once_of_a_wait_in_vain") {
        sweep(Path::Leaves, "a wait in vain");
    }
}
