//! Containers: other pids, users, mounts and networks. A lock file that both can reach is one lock.

use std::process::Command;
use std::time::Duration;

use ipcmutex::{ErrorKind, Mutex, State};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::artifacts;
use ipcmutex_tests::place::{Place, kill, until, url_of};
use ipcmutex_tests::privilege::{unshare, without_namespaces, without_root};

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
