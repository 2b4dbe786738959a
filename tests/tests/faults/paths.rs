//! Whose file it is, who may write to it, and what it is called.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, symlink};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use ipcmutex::{ErrorKind, Mutex};
use ipcmutex_tests::agent::{Agent, Language, WATCHDOG};
use ipcmutex_tests::artifacts;
use ipcmutex_tests::figures::{figure, spread};
use ipcmutex_tests::place::{Place, until, url_of};
use ipcmutex_tests::privilege::without_root;

use crate::registers::Registers;

const NOBODY: u32 = 65534;

fn mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// `None`: it opens; else the kind of its refusal.
fn outcome(url: &str) -> Option<ErrorKind> {
    Mutex::open(url).err().map(|error| error.kind())
}

/// An agent of nobody's: its program and library copied to where nobody may read them.
fn nobodys(place: &Place) -> Agent {
    let bin = place.dir.path().join("bin");
    fs::create_dir_all(&bin).unwrap();
    for path in [place.dir.path(), &bin] {
        mode(path, 0o755);
    }
    fs::copy(artifacts::program("agent-c"), bin.join("agent-c")).unwrap();
    fs::copy(artifacts::installed().join("lib/libipcmutex.so.0"), bin.join("libipcmutex.so.0")).unwrap();
    let script = format!(
        "exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups env LD_LIBRARY_PATH='{0}' '{0}/agent-c'",
        bin.display()
    );
    Agent::start_under(Language::C, &["sh", "-c", &script])
}

/// A cleaner removes what has not been used for days: a lock that is opened has been used.
#[test]
fn f4_an_open_keeps_the_cleaners_away() {
    // In memory: of files on a disk the kernel itself notes that their mapping was written to.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("lock");
    drop(Mutex::open(&url_of(&path)).unwrap());
    let days_ago = make_old(&path);
    drop(Mutex::open(&url_of(&path)).unwrap());
    assert!(is_younger(&path, days_ago), "it is as old as before");
}

/// Makes a file nine days old; when that was.
fn make_old(path: &Path) -> SystemTime {
    let days_ago = SystemTime::now() - Duration::from_secs(9 * 86_400);
    let file = fs::File::options().write(true).open(path).unwrap();
    file.set_times(fs::FileTimes::new().set_accessed(days_ago).set_modified(days_ago)).unwrap();
    days_ago
}

fn is_younger(path: &Path, days_ago: SystemTime) -> bool {
    let about = fs::metadata(path).unwrap();
    let times = [about.modified().unwrap(), about.accessed().unwrap()];
    times.iter().all(|time| *time > days_ago + Duration::from_secs(8 * 86_400))
}

#[test]
fn f4_a_use_keeps_the_cleaners_away() {
    // In memory, as above.
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("lock");
    let (owner, waiter) = (Agent::start(Language::C), Agent::start(Language::C));
    owner.open(1, &url_of(&path)).ok();
    waiter.open(1, &url_of(&path)).ok();
    let days_ago = make_old(&path);
    owner.call("hold 1 1 0").ok();
    assert!(is_younger(&path, days_ago), "it is as old as before");
    let days_ago = make_old(&path);
    let wait = waiter.begin("hold 1 1 forever");
    until("a wait has touched it", || is_younger(&path, days_ago));
    owner.call("end 1").ok();
    wait.reply().ok();
}

#[test]
fn f7_who_may_only_read_cannot_hold() {
    if without_root("f7_who_may_only_read_cannot_hold") {
        return;
    }
    let place = Place::new();
    let agent = nobodys(&place);
    let owner = Mutex::open(&place.url()).unwrap();
    for bits in [0o600, 0o644] {
        mode(&place.path(), bits);
        agent.open(1, &place.url()).err(ErrorKind::Permission);
    }
    owner.acquire().unwrap().release().unwrap();
}

#[test]
fn f15_a_network_file_system_is_refused_unless_it_is_asked_for() {
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, waitpid};
    const FSTATFS: u64 = nix::libc::SYS_fstatfs as u64;
    const WRITEV: u64 = nix::libc::SYS_writev as u64; // by which an agent answers
    for (magic, name) in [(0x6969, "NFS"), (0xfe53_4d42_u32, "SMB"), (0x6573_5546, "FUSE"), (0x0102_1997, "9P")] {
        let place = Place::new();
        let agent = Agent::start(Language::C);
        let pid = nix::unistd::Pid::from_raw(agent.pid() as i32);
        let go = |how: fn(nix::unistd::Pid, Option<nix::sys::signal::Signal>) -> nix::Result<()>| {
            how(pid, None).unwrap();
            waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        };
        agent.call("show 1").ok();
        ptrace::seize(pid, ptrace::Options::empty()).unwrap();
        ptrace::interrupt(pid).unwrap();
        waitpid(pid, Some(WaitPidFlag::__WALL)).unwrap();
        let opened = agent.begin_alone(&format!("open 1 {}", ipcmutex_tests::agent::hex(place.url().as_bytes())));
        // The kernel's answer is changed on its way back.
        loop {
            go(ptrace::syscall);
            go(ptrace::syscall);
            let registers = Registers::of(pid);
            assert_ne!(registers.call, WRITEV, "it opened without asking what file system it is");
            if registers.call == FSTATFS {
                ptrace::write(pid, registers.arguments[1] as ptrace::AddressType, i64::from(magic)).unwrap();
                break;
            }
        }
        ptrace::detach(pid, None).unwrap();
        let refused = opened.reply().err(ErrorKind::Unsafe);
        assert!(refused.text.contains(name) && refused.text.contains("remotefs=1"), "{}", refused.text);
        agent.open(1, &format!("{}?remotefs=1", place.url())).ok();
        agent.call("hold 1 1 0").ok();
    }
}

#[test]
fn f17_a_hard_link_is_the_same_lock() {
    let place = Place::new();
    let owner = Mutex::open(&place.url()).unwrap();
    let hold = owner.acquire().unwrap();
    let link = place.dir.path().join("link");
    fs::hard_link(place.path(), &link).unwrap();
    assert!(Mutex::open(&url_of(&link)).unwrap().try_acquire().unwrap().is_none());
    let agent = Agent::start(Language::C);
    agent.open(1, &url_of(&link)).ok();
    let wait = agent.begin("hold 1 1 forever");
    agent.until_waiters(1, 1);
    hold.release().unwrap();
    wait.reply().ok();
}

#[test]
fn p2_who_else_could_write_decides() {
    if without_root("p2_who_else_could_write_decides") {
        return;
    }
    use ErrorKind::Unsafe;
    // The folder's owner and mode, the file's, what follows; and what follows with ?mode=0660.
    type Row = (u32, u32, u32, u32, Option<ErrorKind>, Option<ErrorKind>);
    let table: &[Row] = &[
        (0, 0o700, 0, 0o600, None, None),
        (0, 0o755, 0, 0o644, None, None),
        (0, 0o770, 0, 0o600, Some(Unsafe), Some(Unsafe)),
        (0, 0o777, 0, 0o600, Some(Unsafe), Some(Unsafe)),
        (0, 0o1777, 0, 0o600, None, None),
        (0, 0o1770, 0, 0o660, Some(Unsafe), None),
        (0, 0o700, 0, 0o620, Some(Unsafe), None),
        (0, 0o700, 0, 0o666, Some(Unsafe), Some(Unsafe)),
        (NOBODY, 0o700, 0, 0o600, Some(Unsafe), None),
        (NOBODY, 0o1777, 0, 0o600, Some(Unsafe), None),
        (0, 0o700, NOBODY, 0o600, Some(Unsafe), None),
        (0, 0o1777, NOBODY, 0o660, Some(Unsafe), None),
    ];
    for row @ (dir_owner, dir_mode, owner, bits, alone, shared) in table {
        let place = Place::new();
        fs::write(place.path(), "").unwrap();
        mode(&place.path(), *bits);
        chown(place.path(), Some(*owner), Some(*owner)).unwrap();
        mode(place.dir.path(), *dir_mode);
        chown(place.dir.path(), Some(*dir_owner), Some(*dir_owner)).unwrap();
        assert_eq!(outcome(&place.url()), *alone, "{row:?}");
        assert_eq!(outcome(&format!("{}?mode=0660", place.url())), *shared, "{row:?}, shared");
        if alone.is_some() && shared.is_some() {
            assert_eq!(fs::metadata(place.path()).unwrap().len(), 0, "what was refused was left alone");
        }
    }
}

/// protected_regular refuses O_CREAT on somebody else's file there, to root too: it is opened without.
#[test]
fn p3_somebody_elses_file_in_a_sticky_folder() {
    if without_root("p3_somebody_elses_file_in_a_sticky_folder") {
        return;
    }
    let place = Place::new();
    let agent = nobodys(&place);
    mode(place.dir.path(), 0o1777);
    agent.open(1, &format!("{}?mode=0666", place.url())).err(ErrorKind::Invalid);
    agent.open(1, &format!("{}?mode=0660", place.url())).ok();
    agent.call("hold 1 1 0").ok();
    assert_eq!(outcome(&place.url()), Some(ErrorKind::Unsafe));
    let shared = Mutex::open(&format!("{}?mode=0660", place.url())).unwrap();
    assert!(shared.try_acquire().unwrap().is_none());
    agent.call("end 1").ok();
    assert!(shared.acquire_timeout(WATCHDOG).unwrap().is_some());
}

/// As docs/TROUBLESHOOTING.md has it made: what one makes, the others may open; and what was made for its owner alone, after what the
/// refusal advises.
#[test]
fn p3_a_group_shares_a_folder() {
    if without_root("p3_a_group_shares_a_folder") {
        return;
    }
    let place = Place::new();
    let agent = nobodys(&place);
    let shared = format!("{}?mode=0660", place.url());
    chown(place.dir.path(), Some(0), Some(NOBODY)).unwrap();
    mode(place.dir.path(), 0o3770);
    drop(Mutex::open(&shared).unwrap());
    agent.open(1, &shared).ok();
    fs::remove_file(place.path()).unwrap();
    drop(Mutex::open(&place.url()).unwrap());
    let refused = agent.open(2, &shared).err(ErrorKind::Permission);
    assert!(refused.text.contains("chmod 0660"), "{refused:?}");
    mode(&place.path(), 0o660);
    agent.open(2, &shared).ok();
}

#[test]
fn p4_what_would_block_is_refused_at_once() {
    let place = Place::new();
    rustix::fs::mknodat(rustix::fs::CWD, place.path(), rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    let agent = Agent::start(Language::C);
    let mut times = Vec::new();
    for url in [place.url(), "mpm:/dev/null".into(), "mpm:/dev/tty".into()] {
        let begun = Instant::now();
        let reply = agent.open(1, &url);
        times.push(begun.elapsed());
        assert!(reply.is(ErrorKind::Unsafe) || reply.is(ErrorKind::Permission), "{url}: {reply:?}");
    }
    figure("P4", format!("a refusal: {}", spread(times)));
}

#[test]
fn p5_any_umask() {
    for umask in ["000", "077", "777"] {
        let place = Place::new();
        let folder = place.dir.path().join("locks");
        let script = format!("umask {umask}; export IPCMUTEX_DIR='{}'; exec \"$0\"", folder.display());
        let agent = Agent::start_under(Language::C, &["sh", "-c", &script]);
        agent.open(1, "mpm:lock").ok();
        agent.open(2, "mpm:shared?mode=0660").ok();
        let bits = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(bits(&folder), 0o700, "umask {umask}");
        assert_eq!(bits(&folder.join("lock")), 0o600, "umask {umask}");
        assert_eq!(bits(&folder.join("shared")), 0o660, "umask {umask}");
    }
}

#[test]
fn p6_the_default_folder_is_ours_or_none() {
    let place = Place::new();
    let dir = place.dir.path();
    let agent = |environment: &[(&str, &Path)]| {
        let mut words =
            vec!["env".to_owned(), "-u".into(), "IPCMUTEX_DIR".into(), "-u".into(), "XDG_RUNTIME_DIR".into()];
        words.extend(environment.iter().map(|(name, path)| format!("{name}={}", path.display())));
        Agent::start_under(Language::C, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let id = format!("mpm:p6-{}", std::process::id());
    let made = |folder: &Path| folder.join(&id["mpm:".len()..]).is_file();

    agent(&[("IPCMUTEX_DIR", &dir.join("own")), ("XDG_RUNTIME_DIR", dir)]).open(1, &id).ok();
    assert!(made(&dir.join("own")));
    agent(&[("XDG_RUNTIME_DIR", dir)]).open(1, &id).ok();
    assert!(made(&dir.join("ipcmutex")));
    assert_eq!(fs::metadata(dir.join("ipcmutex")).unwrap().permissions().mode() & 0o7777, 0o700);
    agent(&[("IPCMUTEX_DIR", Path::new("")), ("XDG_RUNTIME_DIR", Path::new(""))]).open(1, &id).ok();
    let last = format!("/tmp/ipcmutex-{}", rustix::process::geteuid().as_raw());
    assert!(made(last.as_ref()));
    fs::remove_file(Path::new(&last).join(&id["mpm:".len()..])).unwrap();

    agent(&[("IPCMUTEX_DIR", Path::new("own"))]).open(1, &id).err(ErrorKind::Invalid);
    agent(&[("IPCMUTEX_DIR", &dir.join("missing/own"))]).open(1, &id).err(ErrorKind::Io);
    // Not the next best: a folder that comes later would split the lock in two.
    let missing = agent(&[("XDG_RUNTIME_DIR", &dir.join("missing"))]).open(1, &id).err(ErrorKind::Io);
    assert!(missing.text.contains("/missing: ") && missing.text.contains("IPCMUTEX_DIR"), "{}", missing.text);
    symlink(dir.join("own"), dir.join("link")).unwrap();
    agent(&[("IPCMUTEX_DIR", &dir.join("link"))]).open(1, &id).err(ErrorKind::Unsafe);
    fs::write(dir.join("file"), "").unwrap();
    agent(&[("IPCMUTEX_DIR", &dir.join("file"))]).open(1, &id).err(ErrorKind::Unsafe);
    mode(&dir.join("own"), 0o777);
    agent(&[("IPCMUTEX_DIR", &dir.join("own"))]).open(1, &id).err(ErrorKind::Unsafe);
}

/// As `su` and `sudo -E` leave it set: a folder in it that is root's would keep its user's locks out until the next login.
#[test]
fn p6_the_folder_of_somebody_elses_login_is_left_alone() {
    if without_root("p6_the_folder_of_somebody_elses_login_is_left_alone") {
        return;
    }
    let place = Place::new();
    let theirs = place.dir.path();
    std::os::unix::fs::chown(theirs, Some(NOBODY), None).unwrap();
    let login = format!("XDG_RUNTIME_DIR={}", theirs.display());
    let id = format!("p6-login-{}", std::process::id());
    Agent::start_under(Language::C, &["env", "-u", "IPCMUTEX_DIR", &login]).open(1, &format!("mpm:{id}")).ok();
    assert!(!theirs.join("ipcmutex").exists(), "it is in somebody else's folder");
    fs::remove_file(format!("/tmp/ipcmutex-0/{id}")).unwrap();
}

/// A program with rights that its caller does not have does not let the caller say where its locks are.
#[test]
fn p6_a_set_user_id_program_does_not_listen_to_its_caller() {
    if without_root("p6_a_set_user_id_program_does_not_listen_to_its_caller") {
        return;
    }
    let place = Place::new();
    drop(nobodys(&place));
    let command = place.dir.path().join("bin/ipcmutex");
    fs::copy(artifacts::program("ipcmutex"), &command).unwrap();
    mode(&command, 0o4755);
    let trap = place.dir.path().join("trap");
    fs::create_dir(&trap).unwrap();
    mode(&trap, 0o700);
    let id = format!("p6-set-id-{}", std::process::id());
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&command)
        .args(["run", &id, "--", "true"])
        .env("IPCMUTEX_DIR", &trap)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(fs::read_dir(&trap).unwrap().count(), 0, "the caller chose the folder");
    fs::remove_file(format!("/tmp/ipcmutex-0/{id}")).unwrap();
}

/// The label and the host's name are whatever their writer wrote.
#[test]
fn p9_what_others_wrote_of_themselves_is_shown_harmless() {
    let place = Place::new();
    let owner = Agent::start(Language::C);
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 0").ok();
    // The record of the first slot: see layout.rs.
    let evil = b"\x1b]0;owned\x07\x1b[2J\r\nheld by root \xff\xfe\xc2\x9b31m\x00";
    let file = fs::File::options().write(true).open(place.path()).unwrap();
    for record in [448 + 24, 448 + 24 + 64] {
        file.write_all_at(evil, record).unwrap();
    }
    let harmless = |text: &str| !text.chars().any(|c| c.is_control() && c != '\n') && text.contains("owned");
    let other = Agent::start(Language::C);
    other.open(1, &place.url()).ok();
    let told = other.call("acquire 1 10").err(ErrorKind::Timeout);
    assert!(harmless(&told.text), "{:?}", told.text);
    for command in [&["status"][..], &["status", "--json"]] {
        let shown = Command::new(artifacts::program("ipcmutex")).args(command).arg(place.url()).output().unwrap();
        assert!(harmless(&String::from_utf8_lossy(&shown.stdout)), "{shown:?}");
    }
    let shown =
        Command::new(artifacts::program("ipcmutex")).args(["ps"]).env("IPCMUTEX_DIR", place.dir.path()).output();
    assert!(harmless(&String::from_utf8_lossy(&shown.unwrap().stdout)));
    let tried = Mutex::open(&place.url()).unwrap().acquire_timeout(Duration::from_millis(10)).unwrap();
    assert!(tried.is_none());
}

/// Whoever may write to the page may stand in its line with any ticket. As nobody lives in those slots, nobody waits for them.
#[test]
fn s7_garbage_in_the_line_is_cleared_away() {
    for seed in 1..40u64 {
        let place = Place::new();
        let url = format!("{}?fair={}", place.url(), if seed % 2 == 0 { "strict" } else { "eventual" });
        let (owner, waiter) = (Agent::start(Language::C), Agent::start(Language::C));
        for agent in [&owner, &waiter] {
            agent.open(1, &url).ok();
        }
        owner.call("hold 1 1 0").ok();
        let wait = waiter.begin("hold 1 1 forever");
        owner.until_waiters(1, 1);
        let mut state = seed;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state
        };
        // The cells and records of the slots 3 to 19, which nobody has: see layout.rs.
        let file = fs::File::options().write(true).open(place.path()).unwrap();
        for slot in 2..19 {
            file.write_all_at(&random().to_le_bytes(), 256 + 8 * slot).unwrap();
            let record: Vec<u8> = (0..24).flat_map(|_| random().to_le_bytes()).collect();
            file.write_all_at(&record, 448 + 192 * slot).unwrap();
        }
        owner.call("end 1").ok();
        assert!(!wait.reply().ok().abandoned(), "seed {seed}");
        waiter.call("end 1").ok();
        assert!(Mutex::open(&url).unwrap().acquire_timeout(WATCHDOG).unwrap().is_some(), "seed {seed}");
    }
}

/// As a logout does to the folder of its user.
#[test]
fn f5_a_default_folder_that_was_removed_is_made_again() {
    let place = Place::new();
    let folder = place.dir.path().join("locks");
    let agent = Agent::start_with(Language::C, &[("IPCMUTEX_DIR", folder.as_os_str())]);
    agent.open(1, "mpm:jobs").ok();
    for _ in 0..2 {
        agent.call("hold 1 1 0").ok();
        agent.call("end 1").ok();
        fs::remove_dir_all(&folder).unwrap();
    }
    // A folder that was named is its user's.
    let named = place.dir.path().join("named");
    fs::create_dir(&named).unwrap();
    agent.open(2, &url_of(&named.join("lock"))).ok();
    fs::remove_dir_all(&named).unwrap();
    agent.call("acquire 2 0").err(ErrorKind::Io);
}

/// It would be the folder of who it is now, and nobody else's. Its parent is one where anybody may make it, as `/tmp` is.
#[test]
fn f5_who_has_dropped_its_rights_does_not_make_the_default_folder_again() {
    if without_root("f5_who_has_dropped_its_rights_does_not_make_the_default_folder_again") {
        return;
    }
    let place = Place::new();
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    let folder = place.dir.path().join("locks");
    let start = || Agent::start_with(Language::C, &[("IPCMUTEX_DIR", folder.as_os_str())]);
    let (daemon, other) = (start(), start());
    daemon.open(1, "mpm:jobs").ok();
    daemon.call(&format!("drop {NOBODY}")).ok();
    fs::remove_dir_all(&folder).unwrap();
    daemon.call("acquire 1 0").err(ErrorKind::Io);
    other.open(1, "mpm:jobs").ok();
    other.call("hold 1 1 0").ok();
}

/// A daemon that opens its lock as root and goes on as somebody else: of nobody can it tell whether it has died.
#[test]
fn who_may_not_open_the_file_any_more_is_told_why_it_waits() {
    if without_root("who_may_not_open_the_file_any_more_is_told_why_it_waits") {
        return;
    }
    let place = Place::new();
    let (owner, daemon) = (Agent::start(Language::C), Agent::start(Language::C));
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 0").ok();
    daemon.open(1, &place.url()).ok();
    let said = "whether it lives cannot be told";
    assert!(!daemon.call("acquire 1 20").err(ErrorKind::Timeout).text.contains(said));
    daemon.call(&format!("drop {NOBODY}")).ok();
    for limit in [0, 20] {
        let reply = daemon.call(&format!("acquire 1 {limit}")).err(ErrorKind::Timeout);
        assert!(reply.text.contains(said) && reply.text.contains("Permission denied"), "{}", reply.text);
    }
    owner.call("end 1").ok();
    daemon.call("hold 1 1 0").ok();
    owner.call("hold 1 1 0").err(ErrorKind::Timeout);
}
