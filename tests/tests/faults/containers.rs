//! What a container does to its processes: it is paused, it is short of processor time, its files are another's upper folder.

use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex, State};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::cgroup::Cgroup;
use ipcmutex_tests::figures::{figure, spread};
use ipcmutex_tests::place::{Place, kill, until, url_of};
use ipcmutex_tests::privilege::{skip, unshare, without_namespaces, without_root};

const SOON: Duration = Duration::from_secs(30);

fn agent(url: &str) -> Agent {
    let agent = Agent::start(Language::C);
    agent.open(1, url).ok();
    agent
}

/// As `docker pause`. With version 1 of cgroups, who is frozen dies of kill -9 only when it is thawed, and holds until then.
#[test]
fn f3_an_owner_in_a_frozen_cgroup_is_waited_for() {
    let groups: Vec<(u8, Cgroup)> =
        [1, 2].into_iter().filter_map(|version| Some((version, Cgroup::freezer(version)?))).collect();
    if groups.is_empty() {
        skip("f3_an_owner_in_a_frozen_cgroup_is_waited_for", "it needs root, and cgroups with a freezer");
    }
    for (version, group) in groups {
        let place = Place::new();
        let (owner, other) = (agent(&place.url()), agent(&place.url()));
        let group = group; // ends first: an agent that is frozen does not
        owner.call("hold 1 1 0").ok();
        group.add(&owner);
        group.freeze();
        let begun = Instant::now();
        other.call("acquire 1 400").err(ErrorKind::Timeout);
        figure("F3", format!("400 ms behind an owner in a frozen cgroup, version {version}: {:.1?}", begun.elapsed()));
        group.thaw();
        owner.call("check 1").ok();
        group.freeze();
        let wait = other.begin("hold 1 1 forever");
        let here = Mutex::open(&place.url()).unwrap();
        until("it waits", || here.status().unwrap().waiters == 1);
        kill(&owner);
        if version == 1 {
            // Longer than the look every 250 ms; were it robbed, this would show.
            std::thread::sleep(Duration::from_millis(300));
            assert!(wait.is_waiting() && here.status().unwrap().state == State::Held);
            group.thaw();
        }
        assert!(wait.reply().ok().abandoned(), "version {version}");
    }
}

#[test]
fn s9_a_waiter_in_a_frozen_cgroup_is_passed_over() {
    let Some(group) = Cgroup::freezer(2).or_else(|| Cgroup::freezer(1)) else {
        skip("s9_a_waiter_in_a_frozen_cgroup_is_passed_over", "it needs root, and cgroups with a freezer");
        return;
    };
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let (owner, paused, other) = (agent(&url), agent(&url), agent(&url));
    let group = group; // ends first: an agent that is frozen does not
    owner.call("hold 1 1 0").ok();
    let waits = paused.begin("hold 1 1 forever");
    owner.until_waiters(1, 1);
    group.add(&paused);
    group.freeze();
    let served = other.begin("hold 1 1 forever");
    owner.until_waiters(1, 2);
    let released = Instant::now();
    owner.call("end 1").ok();
    let token = served.reply().ok().token();
    figure("S9", format!("past one in a frozen cgroup, strict: {:.0?}", released.elapsed()));
    group.thaw();
    other.call("end 1").ok();
    assert!(waits.reply().ok().token() > token);
}

/// A hundredth of a processor: each look of this waiter may be a tenth of a second late, and nobody else's.
#[test]
fn s17_a_waiter_with_a_hundredth_of_a_processor_is_served() {
    let Some(group) = Cgroup::share(1) else {
        skip("s17_a_waiter_with_a_hundredth_of_a_processor_is_served", "it needs root, and cgroups with a quota");
        return;
    };
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let (owner, starved, other) = (agent(&url), agent(&url), agent(&url));
    // What it has, another of its group takes from it.
    let counter = place.dir.path().join("counter");
    std::fs::write(&counter, [0; 8]).unwrap();
    let busy = Agent::start(Language::C);
    busy.call(&format!("count {}", counter.display())).ok();
    group.add(&busy);
    group.add(&starved);
    let (mut times, mut others) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        owner.call("hold 1 1 forever").ok();
        let waits = starved.begin("hold 1 1 forever");
        owner.until_waiters(1, 1);
        let next = other.begin("hold 1 1 forever");
        owner.until_waiters(1, 2);
        let released = Instant::now();
        owner.call("end 1").ok();
        // In which order: a claim may run out while it stands without a processor.
        std::thread::scope(|scope| {
            for (agent, wait, times) in [(&starved, waits, &mut times), (&other, next, &mut others)] {
                scope.spawn(move || {
                    wait.reply().ok();
                    times.push(released.elapsed());
                    agent.call("end 1").ok();
                });
            }
        });
    }
    figure(
        "S17",
        format!(
            "with 1% of a processor, from the release to its hold: {}; the one behind it: {}",
            spread(times),
            spread(others)
        ),
    );
}

/// Two sides of an overlay are two files for the kernel's locks, and one for what is written: who is taken for dead is told so.
#[test]
fn f14_the_upper_folder_of_an_overlay_is_another_side() {
    const NAME: &str = "f14_the_upper_folder_of_an_overlay_is_another_side";
    if without_namespaces(NAME) || without_root(NAME) {
        return;
    }
    let place = Place::new();
    let folder = place.dir.path().display();
    for name in ["lower", "upper", "work", "merged"] {
        std::fs::create_dir(place.dir.path().join(name)).unwrap();
    }
    // An overlay cannot have another one as its upper folder.
    let script = format!(
        "mkdir -p {folder} && mount -t overlay overlay -o lowerdir={folder}/lower,upperdir={folder}/upper,workdir={folder}/work {folder}/merged"
    );
    let mut words = unshare(&["--mount"]);
    let possible = std::process::Command::new(words[0])
        .args(&words[1..])
        .args(["sh", "-c", &script])
        .output()
        .is_ok_and(|output| output.status.success());
    if !possible {
        skip(NAME, "no overlay can be mounted over the temporary folder");
        return;
    }
    let script = format!("{script} && exec \"$0\"");
    words.extend(["sh", "-c", &script]);
    let inside = Agent::start_under(Language::C, &words);
    let merged = url_of(&place.dir.path().join("merged/lock"));
    inside.open(1, &merged).ok();
    inside.call("hold 1 1 0").ok();
    // From outside its owner is taken for dead. It must hear of it, at the latest when it releases.
    let outside = Mutex::open(&url_of(&place.dir.path().join("upper/lock"))).unwrap();
    let taken = outside.try_acquire().unwrap();
    if let Some(hold) = taken {
        assert!(hold.abandoned());
        inside.call("check 1").err(ErrorKind::Lost);
        inside.call("end 1").err(ErrorKind::Lost);
        hold.release().unwrap();
    } else {
        inside.call("end 1").ok();
        assert!(outside.acquire_timeout(SOON).unwrap().is_some());
    }
}
