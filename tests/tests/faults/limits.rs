//! What runs out: disk, inodes, descriptors, memory maps. And a file system that may not be written to.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use ipcmutex::{ErrorKind, Mutex};
use ipcmutex_tests::agent::{Agent, Language, WATCHDOG};
use ipcmutex_tests::figures::{figure, spread};
use ipcmutex_tests::place::{Place, kill, url_of};
use ipcmutex_tests::privilege::{in_mounts_of, skip, unshare, without, without_namespaces, without_root};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

/// An agent that has a small file system of its own at the place's folder; and that folder as seen from here.
fn confined(place: &Place, options: &str) -> (Agent, PathBuf) {
    let script = format!("mount -t tmpfs -o {options},mode=700 none '{}' && exec \"$0\"", place.dir.path().display());
    let mut words = unshare(&["--mount"]);
    words.extend(["sh", "-c", &script]);
    let agent = Agent::start_under(Language::C, &words);
    // It answers once it is what it becomes.
    agent.call("show 1").ok();
    let seen = PathBuf::from(format!("/proc/{}/root{}", agent.pid(), place.dir.path().display()));
    (agent, seen)
}

fn fill(path: &std::path::Path) {
    let mut file = fs::File::create(path).unwrap();
    while file.write(&[1; 1024]).is_ok_and(|written| written > 0) {}
}

#[test]
fn f9_a_full_disk_stops_new_locks_and_no_others() {
    if without_namespaces("f9_a_full_disk_stops_new_locks_and_no_others") {
        return;
    }
    let place = Place::new();
    let (agent, seen) = confined(&place, "size=64k,nr_inodes=8");
    agent.open(1, &place.url()).ok();
    agent.call("hold 1 1 0").ok();
    fill(&seen.join("fill"));
    // Who has it open, and who opens it now.
    let other = Mutex::open(&url_of(&seen.join("lock"))).unwrap();
    assert!(other.try_acquire().unwrap().is_none());
    let wait = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.acquire_timeout(WATCHDOG).map(|hold| hold.expect("served").release()));
        agent.until_waiters(1, 1);
        agent.call("end 1").ok();
        waiting.join().expect("no panic")
    });
    wait.unwrap().unwrap();
    let new = url_of(&place.dir.path().join("new"));
    let begun = Instant::now();
    agent.open(2, &new).err(ErrorKind::NoSpace);
    figure("F9", format!("no space is told after {:.1?}", begun.elapsed()));
    fs::remove_file(seen.join("fill")).unwrap();
    agent.open(2, &new).ok();
    agent.call("hold 2 2 0").ok();
}

#[test]
fn f9_no_inodes_are_no_space() {
    if without_namespaces("f9_no_inodes_are_no_space") {
        return;
    }
    let place = Place::new();
    // The folder is one of them.
    let (agent, _) = confined(&place, "nr_inodes=2");
    agent.open(1, &place.url()).ok();
    agent.open(2, &url_of(&place.dir.path().join("new"))).err(ErrorKind::NoSpace);
    agent.call("hold 1 1 0").ok();
    agent.call("end 1").ok();
}

/// Older kernels may want room for a store all the same.
fn knows_btrfs_in_place() -> bool {
    let uname = rustix::system::uname();
    let release = uname.release().to_string_lossy();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) >= (Some(6), Some(18))
}

/// It writes elsewhere what is written again: a lock file of its own kind would need room for each store.
#[test]
fn f9_a_full_btrfs_kills_nobody() {
    let test = "f9_a_full_btrfs_kills_nobody";
    if without_root(test)
        || without("mkfs.btrfs", "btrfs-progs", test)
        || !knows_btrfs_in_place() && skip(test, "it needs Linux 6.18")
    {
        return;
    }
    let (place, disk) = (Place::new(), tempfile::NamedTempFile::new().unwrap());
    disk.as_file().set_len(48 << 20).unwrap();
    assert!(Command::new("mkfs.btrfs").args(["-q", "-M"]).arg(disk.path()).output().unwrap().status.success());
    let folder = place.dir.path().display();
    let script = format!("mount -o loop '{}' '{folder}' && chmod 700 '{folder}' && exec \"$0\"", disk.path().display());
    let mut words = unshare(&["--mount"]);
    words.extend(["sh", "-c", &script]);
    let tried = Command::new(words[0]).args(&words[1..]).arg("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        skip(test, "it needs a loop device, and btrfs");
        return;
    }
    let agent = Agent::start_under(Language::C, &words);
    agent.open(1, &place.url()).ok();
    agent.call("hold 1 1 0").ok();
    agent.call("end 1").ok();
    let seen = PathBuf::from(format!("/proc/{}/root{folder}", agent.pid()));
    // What is on the disk is what would be written elsewhere.
    let written = || rustix::fs::syncfs(fs::File::open(&seen).unwrap()).unwrap();
    written();
    let mut rest = fs::File::create(seen.join("fill")).unwrap();
    for _ in 0..4 {
        // To write it may free some more.
        while rest.write(&[1; 4096]).is_ok_and(|written| written > 0) {}
        written();
    }
    agent.call("hold 1 1 0").ok();
    agent.call("end 1").ok();
}

#[test]
fn f10_a_read_only_file_system_is_said_so() {
    if without_namespaces("f10_a_read_only_file_system_is_said_so") {
        return;
    }
    let place = Place::new();
    let (agent, seen) = confined(&place, "size=64k");
    let folder = place.dir.path().display().to_string();
    agent.open(1, &place.url()).ok();
    agent.call("hold 1 1 0").ok();
    // While somebody has a lock open there, the kernel refuses; so a holder can always release.
    let (done, said) = in_mounts_of(agent.pid(), &["mount", "-o", "remount,ro", &folder]);
    assert!(!done && said.contains("busy"), "{said}");
    agent.call("end 1").ok();
    agent.call("close 1").ok();
    let (done, said) = in_mounts_of(agent.pid(), &["mount", "-o", "remount,ro", &folder]);
    assert!(done, "{said}");
    let mut times = Vec::new();
    for name in ["lock", "new"] {
        let begun = Instant::now();
        let reply = agent.open(2, &url_of(&place.dir.path().join(name))).err(ErrorKind::Io);
        times.push(begun.elapsed());
        assert!(reply.text.contains("Read-only file system"), "{}", reply.text);
    }
    figure("F10", format!("a refusal: {}", spread(times)));
    let (done, said) = in_mounts_of(agent.pid(), &["mount", "-o", "remount,rw", &folder]);
    assert!(done, "{said}");
    agent.open(2, &place.url()).ok();
    assert!(Mutex::open(&url_of(&seen.join("lock"))).unwrap().try_acquire().unwrap().is_some());
}

fn limit(agent: &Agent, what: Resource, most: u64) -> Rlimit {
    // The agent's are those of this process.
    let most = Rlimit { current: Some(most), maximum: getrlimit(what).maximum };
    prlimit(Pid::from_raw(agent.pid() as i32), what, most).expect("it is our child")
}

#[test]
fn f11_without_descriptors_nothing_is_opened_and_all_else_goes_on() {
    let place = Place::new();
    let agent = Agent::start(Language::C);
    agent.open(1, &place.url()).ok();
    let before = limit(&agent, Resource::Nofile, 3);
    let begun = Instant::now();
    agent.open(2, &url_of(&place.dir.path().join("new"))).err(ErrorKind::Resource);
    figure("F11", format!("no descriptor is told after {:.1?}", begun.elapsed()));
    agent.call("hold 1 1 0").ok();
    agent.call("acquire 1 20").err(ErrorKind::Timeout);
    agent.call("end 1").ok();
    prlimit(Pid::from_raw(agent.pid() as i32), Resource::Nofile, before).unwrap();
    agent.open(2, &url_of(&place.dir.path().join("new"))).ok();
}

#[test]
fn f11_without_room_in_memory_nothing_is_opened_and_all_else_goes_on() {
    let place = Place::new();
    let agent = Agent::start(Language::C);
    agent.open(1, &place.url()).ok();
    agent.call("hold 1 1 0").ok();
    let sizes = fs::read_to_string(format!("/proc/{}/statm", agent.pid())).unwrap();
    let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
    let before = limit(&agent, Resource::As, pages * 4096);
    agent.open(2, &url_of(&place.dir.path().join("new"))).err(ErrorKind::Resource);
    agent.call("end 1").ok();
    agent.call("hold 1 1 0").ok();
    // A wait would have a thread to watch it; without one it looks for itself.
    agent.call("acquire 1 20").err(ErrorKind::Timeout);
    agent.call("end 1").ok();
    prlimit(Pid::from_raw(agent.pid() as i32), Resource::As, before).unwrap();
    agent.open(2, &url_of(&place.dir.path().join("new"))).ok();
}

/// Of the file that has grown meanwhile it cannot see all; that is no damage, and whom it cannot see lives.
#[test]
fn f11_without_room_in_memory_a_lock_of_many_processes_is_waited_for() {
    let place = Place::new();
    let agent = Agent::start(Language::C);
    agent.open(1, &place.url()).ok();
    let others: Vec<Agent> = (0..20).map(|_| Agent::start(Language::C)).collect();
    for other in &others {
        other.open(1, &place.url()).ok();
    }
    // In the second block.
    let owner = &others[19];
    owner.call("hold 1 1 0").ok();
    let sizes = fs::read_to_string(format!("/proc/{}/statm", agent.pid())).unwrap();
    let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
    let before = limit(&agent, Resource::As, pages * 4096);
    agent.call("acquire 1 0").err(ErrorKind::Timeout);
    agent.call("acquire 1 20").err(ErrorKind::Timeout);
    let wait = agent.begin_alone("hold 1 1 forever");
    owner.until_waiters(1, 1);
    owner.call("end 1").ok();
    wait.reply().ok();
    owner.call("acquire 1 0").err(ErrorKind::Timeout);
    agent.call("end 1").ok();
    owner.call("hold 1 1 0").ok();
    kill(owner);
    assert!(agent.call("hold 1 1 forever").ok().abandoned());
    prlimit(Pid::from_raw(agent.pid() as i32), Resource::As, before).unwrap();
}

/// A waiter without a thread has nobody else who would look.
#[test]
fn f11_a_wait_without_a_thread_hears_of_a_death_though_nothing_could_watch_when_it_began() {
    let place = Place::new();
    let (owner, waiter) = (Agent::start(Language::C), Agent::start(Language::C));
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 0").ok();
    waiter.open(1, &place.url()).ok();
    let before = limit(&waiter, Resource::Nofile, 3);
    let wait = waiter.begin("async 1 1 forever 1");
    waiter.call("show 1").ok();
    // It has begun; and without a descriptor nobody can be asked after.
    prlimit(Pid::from_raw(waiter.pid() as i32), Resource::Nofile, before).unwrap();
    kill(&owner);
    assert!(wait.reply().ok().abandoned());
}

/// What a program is started by that can have no inotify instance; without, `test` is skipped.
fn without_inotify(test: &str) -> Option<Vec<&'static str>> {
    let mut words = unshare(&["--user", "--map-root-user"]);
    words.extend(["sh", "-c", "echo 0 >/proc/sys/user/max_inotify_instances && exec \"$0\""]);
    let tried = Command::new(words[0]).args(&words[1..]).arg("true").stderr(Stdio::null()).status();
    if !tried.is_ok_and(|status| status.success()) {
        skip(test, "it needs a user namespace");
        return None;
    }
    Some(words)
}

#[test]
fn f11_a_wait_hears_that_the_file_was_removed_without_inotify() {
    let Some(words) = without_inotify("f11_a_wait_hears_that_the_file_was_removed_without_inotify") else { return };
    let place = Place::new();
    let owner = Agent::start(Language::C);
    owner.open(1, &place.url()).ok();
    for wait in ["async 1 1 forever 1", "hold 1 1 forever"] {
        owner.call("hold 1 1 0").ok();
        let waiter = Agent::start_under(Language::C, &words);
        waiter.open(1, &place.url()).ok();
        let wait = waiter.begin(wait);
        owner.until_waiters(1, 1);
        fs::remove_file(place.url().strip_prefix("mpm:").unwrap()).unwrap();
        wait.reply().ok();
        owner.call("end 1").err(ErrorKind::Lost);
        drop(waiter);
    }
}

#[test]
fn f11_a_wait_without_a_thread_hears_of_a_death_without_inotify() {
    let Some(words) = without_inotify("f11_a_wait_without_a_thread_hears_of_a_death_without_inotify") else { return };
    let place = Place::new();
    let owner = Agent::start(Language::C);
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 0").ok();
    let waiter = Agent::start_under(Language::C, &words);
    waiter.open(1, &place.url()).ok();
    let wait = waiter.begin("async 1 1 forever 1");
    owner.until_waiters(1, 1);
    let killed = Instant::now();
    kill(&owner);
    assert!(wait.reply().ok().abandoned());
    figure("F11", format!("without inotify a death is heard of after {:.1?}", killed.elapsed()));
}

#[test]
fn f11_a_wait_for_which_no_thread_can_be_had_is_refused() {
    let place = Place::new();
    let (owner, waiter) = (Agent::start(Language::C), Agent::start(Language::C));
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 0").ok();
    waiter.open(1, &place.url()).ok();
    let sizes = fs::read_to_string(format!("/proc/{}/statm", waiter.pid())).unwrap();
    let pages: u64 = sizes.split(' ').next().unwrap().parse().unwrap();
    let before = limit(&waiter, Resource::As, pages * 4096);
    waiter.call("async 1 1 forever 1").err(ErrorKind::Resource);
    assert_eq!(owner.call("status 1").ok().number("waiters"), 0, "it is in line still");
    prlimit(Pid::from_raw(waiter.pid() as i32), Resource::As, before).unwrap();
    let wait = waiter.begin("async 1 1 forever 1");
    owner.call("end 1").ok();
    wait.reply().ok();
}
