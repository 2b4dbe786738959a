//! Containers: other pids, users, mounts and networks. A lock file that both can reach is one lock.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ipcmutex::{ErrorKind, Mutex, State};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::artifacts;
use ipcmutex_tests::place::{Place, kill, until, url_of};
use ipcmutex_tests::privilege::{skip, unshare, without_namespaces, without_root};

use crate::processes::Heir;

const SOON: Duration = Duration::from_secs(30);

fn contained(namespaces: &[&'static str], url: &str) -> Agent {
    let agent = Agent::start_under(Language::C, &unshare(namespaces));
    agent.open(1, url).ok();
    agent
}

/// In each of these every process has pid 1.
const CONTAINER: &[&str] = &["--pid", "--mount-proc", "--fork", "--kill-child", "--uts", "--ipc", "--net"];

fn ps(place: &Place) -> serde_json::Value {
    let output = Command::new(artifacts::program("ipcmutex"))
        .args(["ps", "--json"])
        .env("IPCMUTEX_DIR", place.dir.path())
        .output()
        .expect("the command is built");
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn s14_containers_exclude_each_other_and_no_pid_is_trusted() {
    if without_namespaces("s14_containers_exclude_each_other_and_no_pid_is_trusted") {
        return;
    }
    let place = Place::new();
    let (owner, waiter) = (contained(CONTAINER, &place.url()), contained(CONTAINER, &place.url()));
    let token = owner.call("hold 1 1 0").ok().token();
    waiter.call("acquire 1 0").err(ErrorKind::Timeout);
    let here = Mutex::open(&place.url()).unwrap();
    let status = here.status().unwrap();
    assert_eq!((status.state, status.token), (State::Held, token));
    assert_eq!(status.owner.expect("it is held").pid, 1, "as its owner sees itself");
    let listed = ps(&place);
    assert_eq!((listed[0]["state"].as_str(), listed[0]["owner_pid"].as_u64()), (Some("held"), Some(1)), "{listed}");

    let wait = waiter.begin("hold 1 1 forever");
    until("it waits", || here.status().unwrap().waiters == 1);
    owner.call("end 1").ok();
    assert!(!wait.reply().ok().abandoned());
    // Process 1 is alive here, and in the other container; the one that holds is not.
    kill(&waiter);
    waiter.leave();
    until("it is abandoned", || here.status().unwrap().state == State::Abandoned);
    assert_eq!(ps(&place)[0]["state"], "abandoned");
    assert!(owner.call("hold 1 1 0").ok().abandoned());
}

#[test]
fn s14_users_of_another_namespace_exclude_each_other() {
    if without_namespaces("s14_users_of_another_namespace_exclude_each_other") {
        return;
    }
    let place = Place::new();
    let here = Mutex::open(&place.url()).unwrap();
    let hold = here.acquire().unwrap();
    let inside =
        Agent::start_under(Language::C, &["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]);
    inside.open(1, &place.url()).ok();
    let wait = inside.begin("hold 1 1 forever");
    until("it waits", || here.status().unwrap().waiters == 1);
    hold.release().unwrap();
    wait.reply().ok();
    assert!(here.try_acquire().unwrap().is_none());
    kill(&inside);
    assert!(here.acquire_timeout(SOON).unwrap().expect("its owner is dead").abandoned());
}

#[test]
fn s16_another_network_is_the_same_host() {
    if without_namespaces("s16_another_network_is_the_same_host") {
        return;
    }
    let place = Place::new();
    let here = Mutex::open(&place.url()).unwrap();
    let hold = here.acquire().unwrap();
    let inside = contained(&["--net"], &place.url());
    let wait = inside.begin("hold 1 1 forever");
    until("it waits", || here.status().unwrap().waiters == 1);
    hold.release().unwrap();
    wait.reply().ok();
}

#[test]
fn f14_a_folder_that_is_mounted_twice_is_one_folder() {
    if without_namespaces("f14_a_folder_that_is_mounted_twice_is_one_folder") {
        return;
    }
    let place = Place::new();
    let (real, mounted) = (place.dir.path().join("real"), place.dir.path().join("mounted"));
    std::fs::create_dir(&real).unwrap();
    std::fs::create_dir(&mounted).unwrap();
    let script = format!("mount --bind '{}' '{}' && exec \"$0\"", real.display(), mounted.display());
    let mut words = unshare(&["--mount"]);
    words.extend(["sh", "-c", &script]);
    let inside = Agent::start_under(Language::C, &words);
    inside.open(1, &url_of(&mounted.join("lock"))).ok();
    inside.call("hold 1 1 0").ok();
    let here = Mutex::open(&url_of(&real.join("lock"))).unwrap();
    assert!(here.try_acquire().unwrap().is_none());
    kill(&inside);
    assert!(here.acquire_timeout(SOON).unwrap().expect("its owner is dead").abandoned());
}

/// The root folder of a container is such a one. A mapping of its files holds on to the file underneath, and to no byte lock.
#[test]
fn f14_in_the_folder_of_an_overlay() {
    const NAME: &str = "namespaces::f14_in_the_folder_of_an_overlay";
    const INSIDE: &str = "IPCMUTEX_TEST_OVERLAY";
    if let Some(folder) = std::env::var_os(INSIDE) {
        return on_an_overlay(&url_of(&Path::new(&folder).join("lock")));
    }
    if without_namespaces(NAME) {
        return;
    }
    let place = Place::new();
    let script = r#"mount -t tmpfs tmpfs "$1" && cd "$1" && mkdir lower upper work all || exit 3
        mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work all || exit 3
        IPCMUTEX_TEST_OVERLAY=$1/all exec "$0" --exact "$2" --nocapture"#;
    let mut words = unshare(&["--mount"]);
    words.extend(["sh", "-c", script]);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(std::env::current_exe().unwrap()).arg(place.dir.path()).arg(NAME);
    let output = command.output().expect("unshare is there");
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    if output.status.code() == Some(3) {
        skip(NAME, &format!("no overlay can be mounted: {}", said.trim()));
        return;
    }
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

fn on_an_overlay(url: &str) {
    let here = Mutex::open(url).unwrap();
    let owner = || {
        let agent = Agent::start(Language::C);
        agent.open(1, url).ok();
        agent.call("hold 1 1 0").ok();
        agent
    };
    let first = owner();
    assert!(here.try_acquire().unwrap().is_none());
    assert_eq!(here.status().unwrap().state, State::Held);
    for how in ["fork", "vfork", "posix_spawn", "system"] {
        let started = first.call(&format!("started {how} {}", url.trim_start_matches("mpm:"))).ok();
        assert_eq!((started.number("files"), started.number("maps")), (0, 0), "{how}");
    }
    // A child that lives on does not hold in its parent's place.
    let child = Heir::of(&first);
    kill(&first);
    assert!(here.acquire_timeout(SOON).unwrap().expect("its owner is dead").abandoned());
    assert!(child.lives());
    // Here a descriptor has to stay. A program that closes it is told that it owns the lock no more, and is none the worse for it.
    let careless = owner();
    careless.call("closefrom").ok();
    let hold = here.acquire_timeout(SOON).unwrap().expect("its byte lock is gone");
    careless.call("check 1").err(ErrorKind::Lost);
    drop(hold);
    careless.call("hold 1 2 forever").ok();
    assert!(here.try_acquire().unwrap().is_none());
    // Many at once, and each gone when it was closed.
    let path = url.trim_start_matches("mpm:");
    let descriptors = || {
        let all =
            std::fs::read_dir("/proc/self/fd").unwrap().filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
        all.filter(|file| file.to_string_lossy().starts_with(path)).count()
    };
    let many: Vec<Mutex> = (0..20).map(|at| Mutex::open(&format!("{url}-{at}")).unwrap()).collect();
    let holds: Vec<_> = many.iter().map(|mutex| mutex.try_acquire().unwrap().expect("nobody else is there")).collect();
    assert_eq!(descriptors(), 21);
    drop((holds, many, here));
    assert_eq!(descriptors(), 0);
}

/// A process with the dead owner's very number is no owner.
#[test]
fn k6_a_pid_that_is_used_again_owns_nothing() {
    const NAME: &str = "k6_a_pid_that_is_used_again_owns_nothing";
    if without_namespaces(NAME) || without_root(NAME) {
        return;
    }
    let place = Place::new();
    let script = r#"
        set -eu
        "$IPCMUTEX" run "$LOCK" -- sleep 100 & owner=$!
        until "$IPCMUTEX" status --json "$LOCK" | grep -q '"held"'; do :; done
        "$IPCMUTEX" status --json "$LOCK" | grep -q "\"owner_pid\":$owner[,}]"
        kill -9 $owner; wait $owner || :
        until echo $((owner - 1)) > /proc/sys/kernel/ns_last_pid; sleep 100 & [ $! = $owner ]; do kill $!; done
        kill -0 $owner
        "$IPCMUTEX" status --json "$LOCK" | grep -o '"state":"[a-z]*"'
        "$IPCMUTEX" run -n "$LOCK" -- printenv IPCMUTEX_ABANDONED
    "#;
    let output = Command::new("unshare")
        .args(["--pid", "--mount-proc", "--fork", "--kill-child", "bash", "-c", script])
        .env("IPCMUTEX", artifacts::program("ipcmutex"))
        .env("LOCK", place.url())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "\"state\":\"abandoned\"\n1\n", "{output:?}");
}
