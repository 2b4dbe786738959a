//! Faults of the file engine: what a process can do when it dies, freezes, forks, or loses its file.
//!
//! Programs are driven in Rust here; `matrix.rs` runs the promises in every language.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipcmutex::{Cancel, ErrorKind, Mutex, State, Waiting};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::figures::{figure, spread};
use ipcmutex_tests::place::{Page, Place, all_is_told, asleep, freeze, kill, signal, until, url_of};
use ipcmutex_tests::privilege::without_root;

const SOON: Duration = Duration::from_secs(30);

fn rust() -> Agent {
    Agent::start(Language::Rust)
}

#[track_caller]
fn kind_of<T: std::fmt::Debug>(outcome: ipcmutex::Result<T>) -> ErrorKind {
    outcome.expect_err("it must be refused").kind()
}

#[test]
fn f1_the_next_owner_is_told_that_the_last_one_was_killed() {
    let place = Place::new();
    let next = Mutex::open(&place.url()).unwrap();
    let (mut last, mut times) = (0, Vec::new());
    for _ in 0..10 {
        let owner = rust();
        owner.open(1, &place.url()).ok();
        let token = owner.call("hold 1 1 forever").ok().token();
        assert!(token > last);
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let hold = next.acquire_timeout(Duration::from_secs(60))?.expect("its owner has died");
                Ok::<_, ipcmutex::Error>((Instant::now(), hold.token(), hold.abandoned(), hold.release()))
            });
            owner.until_waiters(1, 1);
            let killed = Instant::now();
            kill(&owner);
            waiting.join().expect("no panic").inspect(|(at, ..)| times.push(*at - killed))
        });
        let (_, token_after, abandoned, released) = waiting.unwrap();
        released.unwrap();
        assert!(abandoned && token_after > token);
        last = token_after;
    }
    figure("F1", format!("from the kill to the next owner: {}", spread(times)));
}

#[test]
fn f1_who_sleeps_is_told_of_the_owners_death() {
    all_is_told(|place| {
        let (owner, next) = (rust(), rust());
        owner.open(1, &place.url()).ok();
        next.open(1, &place.url()).ok();
        owner.call("hold 1 1 forever").ok();
        let wait = next.begin("hold 1 1 forever");
        asleep(&next);
        kill(&owner);
        assert!(wait.reply().ok().abandoned());
        next.call("end 1").ok();
    });
}

#[test]
fn f1_a_try_alone_finds_the_dead_owner() {
    let place = Place::new();
    let owner = rust();
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 forever").ok();
    let other = Mutex::open(&place.url()).unwrap();
    assert!(other.try_acquire().unwrap().is_none());
    assert_eq!(other.status().unwrap().state, State::Held);
    kill(&owner);
    owner.leave();
    assert_eq!(other.status().unwrap().state, State::Abandoned);
    let hold = other.try_acquire().unwrap().expect("its owner is dead");
    assert!(hold.abandoned());
    hold.release().unwrap();
    let hold = other.try_acquire().unwrap().expect("it is free");
    assert!(!hold.abandoned());
}

#[test]
fn f3_a_frozen_owner_is_never_robbed() {
    let place = Place::new();
    let owner = rust();
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 forever").ok();
    freeze(&owner);
    let other = Mutex::open(&place.url()).unwrap();
    let begun = Instant::now();
    assert!(other.acquire_timeout(Duration::from_millis(1200)).unwrap().is_none());
    figure("F3", format!("1200 ms behind a stopped owner: {:.1?}", begun.elapsed()));
    signal(&owner, rustix::process::Signal::CONT);
    owner.call("check 1").ok();
    owner.call("end 1").ok();
    assert!(!other.acquire().unwrap().abandoned());
}

#[test]
fn f4_a_hold_of_a_removed_file_is_lost() {
    let place = Place::new();
    let mutex = Mutex::open(&place.url()).unwrap();
    for replace in [false, true] {
        let hold = mutex.acquire().unwrap();
        fs::remove_file(place.path()).unwrap();
        if replace {
            fs::write(place.path(), "").unwrap();
            fs::set_permissions(place.path(), fs::Permissions::from_mode(0o600)).unwrap();
        }
        assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
        let again = mutex.acquire().unwrap();
        let newcomer = Mutex::open(&place.url()).unwrap();
        assert!(newcomer.try_acquire().unwrap().is_none(), "both are at the new file");
        again.release().unwrap();
    }
}

#[test]
fn f4_who_wants_to_hear_of_it_is_told_that_the_file_is_gone() {
    let place = Place::new();
    let mutex = Mutex::open(&place.url()).unwrap();
    let hold = mutex.acquire().unwrap();
    let (told, hears) = std::sync::mpsc::channel();
    hold.on_lost(move |error| told.send(error.kind()).expect("it is waited for")).unwrap();
    fs::rename(place.path(), place.dir.path().join("elsewhere")).unwrap();
    assert_eq!(hears.recv_timeout(Duration::from_secs(10)).expect("the loss is told"), ErrorKind::Lost);
    assert_eq!(kind_of(hold.check()), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
}

#[test]
fn f5_waiters_of_a_removed_file_meet_at_the_new_one() {
    let place = Place::new();
    let owner = Mutex::open(&place.url()).unwrap();
    let _lost = owner.acquire().unwrap();
    let waiters: Vec<Agent> = (0..3).map(|_| rust()).collect();
    let waits: Vec<_> = waiters
        .iter()
        .enumerate()
        .map(|(at, waiter)| {
            waiter.open(1, &place.url()).ok();
            let command = if at == 0 { "async 1 1 forever 1" } else { "hold 1 1 forever" };
            let wait = waiter.begin(command);
            waiter.until_waiters(1, at as u64 + 1);
            wait
        })
        .collect();
    let removed = Instant::now();
    fs::remove_file(place.path()).unwrap();
    // They meet at the new file in any order: each ends its hold as soon as it has it.
    std::thread::scope(|scope| {
        for (waiter, wait) in waiters.iter().zip(waits) {
            scope.spawn(move || {
                wait.reply().ok();
                waiter.call("end 1").ok();
            });
        }
    });
    figure("F5", format!("three of a removed file have had the new one after {:.1?}", removed.elapsed()));
}

#[test]
fn f5_waiters_of_a_removed_folder_are_told() {
    let place = Place::new();
    let dir = place.dir.path().join("sub");
    fs::create_dir(&dir).unwrap();
    let url = url_of(&dir.join("lock"));
    let owner = Mutex::open(&url).unwrap();
    let _lost = owner.acquire().unwrap();
    let waiter = rust();
    waiter.open(1, &url).ok();
    let wait = waiter.begin("hold 1 1 forever");
    waiter.until_waiters(1, 1);
    // In one step: a folder that is emptied first is refilled by who finds its file gone.
    let removed = Instant::now();
    fs::rename(&dir, place.dir.path().join("elsewhere")).unwrap();
    wait.reply().err(ErrorKind::Io);
    figure("F5", format!("a removed folder is told after {:.1?}", removed.elapsed()));
}

#[test]
fn f8_other_descriptors_of_the_file_change_nothing() {
    let place = Place::new();
    let owner = Mutex::open(&place.url()).unwrap();
    let hold = owner.acquire().unwrap();
    for _ in 0..1000 {
        drop(fs::File::options().read(true).write(true).open(place.path()).unwrap());
    }
    let other = rust();
    other.open(1, &place.url()).ok();
    other.call("acquire 1 0").err(ErrorKind::Timeout);
    hold.release().unwrap();
}

#[test]
fn f11_waiting_and_releasing_need_no_descriptor() {
    let place = Place::new();
    let owner = rust();
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 forever").ok();
    let waiter = rust();
    waiter.open(1, &place.url()).ok();
    let pid = rustix::process::Pid::from_raw(waiter.pid() as i32);
    let none = rustix::process::Rlimit { current: Some(3), maximum: Some(3) };
    rustix::process::prlimit(pid, rustix::process::Resource::Nofile, none).unwrap();
    let wait = waiter.begin("hold 1 1 forever");
    let other = Mutex::open(&place.url()).unwrap();
    let begun = Instant::now();
    while other.status().unwrap().waiters != 1 {
        assert!(begun.elapsed() < Duration::from_secs(10));
        std::thread::yield_now();
    }
    owner.call("end 1").ok();
    wait.reply().ok();
    waiter.call("end 1").ok();
    assert!(other.try_acquire().unwrap().is_some());
}

#[test]
fn f16_a_path_may_be_long() {
    let place = Place::new();
    let mut dir = place.dir.path().to_owned();
    for _ in 0..4 {
        dir.push("d".repeat(200));
        fs::create_dir(&dir).unwrap();
    }
    let mutex = Mutex::open(&url_of(&dir.join("x".repeat(200)))).unwrap();
    mutex.acquire().unwrap().release().unwrap();
}

#[test]
fn f17_every_spelling_of_a_path_is_one_lock() {
    let place = Place::new();
    let dir = place.dir.path();
    fs::create_dir(dir.join("sub")).unwrap();
    symlink(dir, dir.join("link")).unwrap();
    let owner = Mutex::open(&place.url()).unwrap();
    let hold = owner.acquire().unwrap();
    for spelling in ["link/lock", "sub/../lock", ".//lock"] {
        let url = format!("mpm:{}/{spelling}", dir.display());
        assert!(Mutex::open(&url).unwrap().try_acquire().unwrap().is_none(), "{url}");
        let other = rust();
        other.open(1, &url).ok();
        other.call("acquire 1 0").err(ErrorKind::Timeout);
    }
    hold.release().unwrap();
}

#[test]
fn p1_what_is_no_lock_file_of_ours_is_refused_and_left_alone() {
    let place = Place::new();
    let path = place.path();
    let refused = |what: &str, expected: ErrorKind| {
        let error = Mutex::open(&place.url()).expect_err(what);
        assert_eq!(error.kind(), expected, "{what}: {error}");
    };
    symlink(place.dir.path().join("victim"), &path).unwrap();
    refused("a symbolic link", ErrorKind::Unsafe);
    assert!(!place.dir.path().join("victim").exists());
    fs::remove_file(&path).unwrap();

    fs::create_dir(&path).unwrap();
    refused("a directory", ErrorKind::Unsafe);
    fs::remove_dir(&path).unwrap();

    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, rustix::fs::Mode::RWXU, 0).unwrap();
    refused("a FIFO", ErrorKind::Unsafe);
    fs::remove_file(&path).unwrap();

    let socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
    refused("a socket", ErrorKind::Unsafe);
    drop(socket);
    fs::remove_file(&path).unwrap();

    for (what, content) in
        [("a short text", b"hello".to_vec()), ("a page of text", vec![b'x'; 4096]), ("a huge file", vec![0; 8 << 20])]
    {
        fs::write(&path, &content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        refused(what, ErrorKind::Unsafe);
        assert!(fs::read(&path).unwrap() == content, "{what} was changed");
    }
    fs::remove_file(&path).unwrap();

    Mutex::open(&place.url()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().write_all_at(&[99], 7).unwrap();
    refused("a later version", ErrorKind::Protocol);
    fs::remove_file(&path).unwrap();

    fs::write(&path, "").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o666)).unwrap();
    refused("a file that others may write to", ErrorKind::Unsafe);
    fs::remove_file(&path).unwrap();

    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    refused("a folder that others may write to", ErrorKind::Unsafe);
    fs::set_permissions(place.dir.path(), fs::Permissions::from_mode(0o700)).unwrap();

    assert_eq!(kind_of(Mutex::open(&url_of(&place.dir.path().join("missing/lock")))), ErrorKind::Io);
}

#[test]
fn p2_somebody_elses_file_is_refused() {
    if without_root("p2_somebody_elses_file_is_refused") {
        return;
    }
    let place = Place::new();
    fs::write(place.path(), "").unwrap();
    std::os::unix::fs::chown(place.path(), Some(65534), Some(65534)).unwrap();
    let error = Mutex::open(&place.url()).expect_err("it is of another user");
    assert_eq!(error.kind(), ErrorKind::Unsafe);
    assert!(error.to_string().contains("65534"), "{error}");
}

#[test]
fn p5_a_new_lock_file_lets_nobody_else_in() {
    let place = Place::new();
    Mutex::open(&place.url()).unwrap();
    assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o600);
    let shared = place.dir.path().join("shared");
    Mutex::open(&format!("{}?mode=0660", url_of(&shared))).unwrap();
    assert_eq!(fs::metadata(shared).unwrap().permissions().mode() & 0o777, 0o660);
}

#[test]
fn a_page_of_zeros_is_a_valid_new_lock() {
    let place = Place::new();
    for len in [0, 4096, 8192] {
        fs::write(place.path(), vec![0; len]).unwrap();
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o600)).unwrap();
        Mutex::open(&place.url()).unwrap().acquire().unwrap().release().unwrap();
        fs::remove_file(place.path()).unwrap();
    }
}

#[test]
fn s2_a_frozen_waiter_delays_and_never_blocks() {
    for fair in ["eventual", "strict"] {
        let place = Place::new();
        let url = format!("{}?fair={fair}", place.url());
        let owner = rust();
        owner.open(1, &url).ok();
        owner.call("hold 1 1 forever").ok();
        let (first, second) = (rust(), rust());
        first.open(1, &url).ok();
        second.open(1, &url).ok();
        let frozen = first.begin("hold 1 1 forever");
        owner.until_waiters(1, 1);
        let wait = second.begin("hold 1 1 forever");
        owner.until_waiters(1, 2);
        freeze(&first);
        let released = Instant::now();
        owner.call("end 1").ok();
        wait.reply().ok();
        figure("S2", format!("the one behind the frozen one, {fair}: {:.0?}", released.elapsed()));
        second.call("end 1").ok();
        signal(&first, rustix::process::Signal::CONT);
        frozen.reply().ok();
        first.call("end 1").ok();
    }
}

#[test]
fn s3_owner_and_first_waiter_die_together() {
    let mut times = Vec::new();
    for (round, fair) in ["eventual", "strict", "eventual", "strict"].iter().enumerate() {
        let place = Place::new();
        let url = format!("{}?fair={fair}", place.url());
        let agents: Vec<Agent> = (0..3).map(|_| rust()).collect();
        for agent in &agents {
            agent.open(1, &url).ok();
        }
        agents[0].call("hold 1 1 forever").ok();
        let _first = agents[1].begin("hold 1 1 forever");
        agents[2].until_waiters(1, 1);
        let last = agents[2].begin(if round < 2 { "hold 1 1 forever" } else { "async 1 1 forever 1" });
        agents[2].until_waiters(1, 2);
        let killed = Instant::now();
        kill(&agents[0]);
        kill(&agents[1]);
        assert!(last.reply().ok().abandoned());
        times.push(killed.elapsed());
    }
    figure("S3", format!("from the kills to the next owner: {}", spread(times)));
}

#[test]
fn s3_who_sleeps_is_told_that_owner_and_first_waiter_died() {
    all_is_told(|place| {
        let agents: Vec<Agent> = (0..3).map(|_| rust()).collect();
        for agent in &agents {
            agent.open(1, &place.url()).ok();
        }
        agents[0].call("hold 1 1 forever").ok();
        drop(agents[1].begin("hold 1 1 forever"));
        agents[2].until_waiters(1, 1);
        let last = agents[2].begin("hold 1 1 forever");
        asleep(&agents[2]);
        kill(&agents[1]);
        kill(&agents[0]);
        assert!(last.reply().ok().abandoned());
        agents[2].call("end 1").ok();
    });
}

#[test]
fn s10_who_sleeps_behind_the_dead_is_told() {
    all_is_told(|place| {
        let agents: Vec<Agent> = (0..4).map(|_| rust()).collect();
        for agent in &agents {
            agent.open(1, &place.url()).ok();
        }
        agents[0].call("hold 1 1 forever").ok();
        for (at, dead) in agents[1..3].iter().enumerate() {
            drop(dead.begin("hold 1 1 forever"));
            agents[0].until_waiters(1, at as u64 + 1);
        }
        let last = agents[3].begin("hold 1 1 forever");
        asleep(&agents[3]);
        for dead in &agents[1..3] {
            kill(dead);
            dead.leave();
        }
        agents[0].call("end 1").ok();
        last.reply().ok();
        agents[3].call("end 1").ok();
    });
}

#[test]
fn s10_a_dead_waiter_is_passed_over() {
    for fair in ["eventual", "strict"] {
        let place = Place::new();
        let url = format!("{}?fair={fair}", place.url());
        let owner = rust();
        owner.open(1, &url).ok();
        owner.call("hold 1 1 forever").ok();
        let dead: Vec<Agent> = (0..5).map(|_| rust()).collect();
        for (at, agent) in dead.iter().enumerate() {
            agent.open(1, &url).ok();
            drop(agent.begin("hold 1 1 forever"));
            owner.until_waiters(1, at as u64 + 1);
        }
        let last = rust();
        last.open(1, &url).ok();
        let wait = last.begin("hold 1 1 forever");
        owner.until_waiters(1, 6);
        for agent in &dead {
            kill(agent);
            agent.leave();
        }
        owner.until_waiters(1, 1);
        let page = Page::of(&place);
        let released = Instant::now();
        owner.call("end 1").ok();
        // The owner's slot was the first, the dead ones' are the next.
        assert!((2..=6).all(|slot| page.cell(slot) == 0), "the lock waits for the dead");
        assert!(!wait.reply().ok().abandoned());
        figure("S10", format!("past five dead, {fair}: {:.1?}", released.elapsed()));
    }
}

#[test]
fn s11_cancelling_against_granting_loses_nothing() {
    let mut granted = 0;
    let place = Place::new();
    let mutex = Mutex::open(&place.url()).unwrap();
    let other = Mutex::open(&place.url()).unwrap();
    for round in 0..2000u32 {
        let hold = mutex.acquire().unwrap();
        let (done, outcome) = std::sync::mpsc::channel();
        let wait = other
            .acquire_callback(ipcmutex::Timeout::FOREVER, move |outcome| done.send(outcome).expect("it is waited for"))
            .unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..round % 50 {
                    std::hint::spin_loop();
                }
                wait.cancel();
            });
            hold.release().unwrap();
        });
        match outcome.recv_timeout(Duration::from_secs(20)).expect("it is told once") {
            Ok(hold) => {
                granted += 1;
                hold.release().unwrap();
            }
            Err(error) => assert_eq!(error.kind(), ErrorKind::Canceled),
        }
        // A grant that came too late is on its way back for a moment; it must not stay away.
        let free = mutex.acquire_timeout(Duration::from_secs(10)).unwrap();
        assert!(free.is_some(), "round {round}: nobody holds it, and nobody waits");
    }
    figure("S11", format!("of 2000 waits {granted} were granted and {} cancelled, none lost", 2000 - granted));
}

/// Five times a waiter is cancelled when it has been granted the lock and has not seen that yet; the one behind it is told.
#[test]
fn s11_a_grant_that_nobody_takes_goes_on_at_once() {
    all_is_told(|place| {
        let mutex = Mutex::open(&place.url()).unwrap();
        let other = rust();
        other.open(1, &place.url()).ok();
        let mut canceled = 0;
        while canceled < 5 {
            let hold = mutex.acquire().unwrap();
            let cancel = Cancel::new();
            std::thread::scope(|scope| {
                let first = scope.spawn(|| {
                    // It must not run before the one that wakes it has gone on.
                    let _ = rustix::process::nice(19);
                    mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() })
                });
                until("it waits", || mutex.status().unwrap().waiters == 1);
                let theirs = other.begin("hold 1 1 forever");
                until("the next one waits", || mutex.status().unwrap().waiters == 2);
                asleep(&other);
                hold.release().unwrap();
                cancel.cancel();
                match first.join().expect("no panic") {
                    Ok(hold) => hold.release().unwrap(),
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Canceled);
                        canceled += 1;
                    }
                }
                theirs.reply().ok();
                other.call("end 1").ok();
            });
        }
    });
}

/// The wait of the first ends by its timeout at any moment of the release: the one behind it, of the same process, is told.
#[test]
fn s11_a_wait_that_ends_as_it_is_granted_the_lock_leaves_it_to_the_next() {
    all_is_told(|place| {
        let mutex = Mutex::open(&place.url()).unwrap();
        let limit = Duration::from_millis(4);
        for round in 0..200 {
            let hold = mutex.acquire().unwrap();
            std::thread::scope(|scope| {
                let begun = Instant::now();
                let first = scope.spawn(|| {
                    let _ = rustix::process::nice(19);
                    mutex.acquire_timeout(limit)
                });
                until("it waits, or has waited", || first.is_finished() || mutex.status().unwrap().waiters == 1);
                let next = scope.spawn(|| mutex.acquire_timeout(SOON));
                let end = begun + limit + Duration::from_micros(2 * round);
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
                hold.release().unwrap();
                for wait in [first, next] {
                    if let Some(hold) = wait.join().expect("no panic").unwrap() {
                        hold.release().unwrap();
                    }
                }
            });
        }
    });
}

/// A free lock that seems to be waited for costs each newcomer the way of those who wait.
#[test]
fn s11_who_was_woken_and_has_left_leaves_no_line() {
    let place = Place::new();
    let mutex = Mutex::open(&place.url()).unwrap();
    let mut canceled = 0;
    while canceled < 50 {
        let hold = mutex.acquire().unwrap();
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() }));
            // It may be young enough to be woken without being handed the lock.
            while mutex.status().unwrap().waiters == 0 {
                std::hint::spin_loop();
            }
            hold.release().unwrap();
            cancel.cancel();
            match waits.join().expect("no panic") {
                Ok(hold) => hold.release().unwrap(),
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Canceled);
                    canceled += 1;
                }
            }
        });
        assert!(!Page::of(&place).is_waited_for_while_free(), "nobody waits, and it says that somebody does");
    }
}

#[test]
fn s12_a_thousand_waiters_of_one_process() {
    let place = Place::new();
    let mutex = Mutex::open(&place.url()).unwrap();
    let hold = mutex.acquire().unwrap();
    let (done, outcomes) = std::sync::mpsc::channel();
    for at in 0..1000 {
        let done = done.clone();
        mutex
            .acquire_callback(ipcmutex::Timeout::FOREVER, move |outcome| {
                let hold = outcome.expect("it is acquired in turn");
                hold.release().expect("it was held");
                done.send(at).expect("it is waited for");
            })
            .unwrap();
    }
    assert_eq!(mutex.status().unwrap().waiters, 1000);
    hold.release().unwrap();
    let order: Vec<i32> =
        (0..1000).map(|_| outcomes.recv_timeout(Duration::from_secs(30)).expect("each has its turn")).collect();
    assert!(order.is_sorted(), "first come, first served");
}

#[test]
fn fair_strict_serves_in_the_order_of_arrival() {
    let place = Place::new();
    let url = format!("{}?fair=strict", place.url());
    let agents: Vec<Agent> = (0..6).map(|_| rust()).collect();
    for agent in &agents {
        agent.open(1, &url).ok();
    }
    for _ in 0..20 {
        agents[0].call("hold 1 1 forever").ok();
        let waits: Vec<_> = (1..6)
            .map(|at| {
                let wait = agents[at].begin("hold 1 1 forever");
                agents[0].until_waiters(1, at as u64);
                wait
            })
            .collect();
        agents[0].call("end 1").ok();
        let mut last = 0;
        for (at, wait) in waits.into_iter().enumerate() {
            let token = wait.reply().ok().token();
            assert!(token > last);
            last = token;
            agents[at + 1].call("end 1").ok();
        }
    }
}

#[test]
fn twenty_processes_and_more_have_slots() {
    let place = Place::new();
    let agents: Vec<Agent> = (0..45).map(|_| rust()).collect();
    for agent in &agents {
        agent.open(1, &place.url()).ok();
    }
    let waits: Vec<_> = agents.iter().map(|agent| agent.begin("hold 1 1 forever")).collect();
    // Whoever has it is killed, until all have had it.
    let mut tokens: Vec<u64> = std::thread::scope(|scope| {
        let served: Vec<_> = agents
            .iter()
            .zip(waits)
            .map(|(agent, wait)| {
                scope.spawn(move || {
                    let token = wait.reply().ok().token();
                    kill(agent);
                    token
                })
            })
            .collect();
        served.into_iter().map(|served| served.join().expect("it is served")).collect()
    });
    tokens.sort_unstable();
    tokens.dedup();
    assert_eq!(tokens.len(), 45);
}

#[test]
fn idle_costs_nothing() {
    let place = Place::new();
    let agent = rust();
    let descriptors = || -> Vec<PathBuf> {
        let files = fs::read_dir(format!("/proc/{}/fd", agent.pid())).unwrap();
        files.filter_map(|file| fs::read_link(file.ok()?.path()).ok()).collect()
    };
    // An open mutex has none of its own either.
    agent.open(1, &place.url()).ok();
    let before = descriptors();
    assert!(!before.contains(&place.path()));
    let other = Mutex::open(&place.url()).unwrap();
    let hold = other.acquire().unwrap();
    let wait = agent.begin("async 1 1 forever 1");
    agent.until_waiters(1, 1);
    let begun = Instant::now();
    while agent.threads().1.is_empty() {
        assert!(begun.elapsed() < Duration::from_secs(10), "somebody must wait for the waiter");
        std::thread::yield_now();
    }
    hold.release().unwrap();
    wait.reply().ok();
    agent.call("end 1").ok();
    let begun = Instant::now();
    while !agent.threads().1.is_empty() || descriptors() != before {
        assert!(begun.elapsed() < Duration::from_secs(10), "left: {:?}, {:?}", agent.threads().1, descriptors());
        std::thread::yield_now();
    }
}

#[test]
fn broken_is_lost_and_the_next_one_is_told() {
    let place = Place::new();
    let owner = rust();
    owner.open(1, &place.url()).ok();
    owner.call("hold 1 1 forever").ok();
    let other = Mutex::open(&place.url()).unwrap();
    assert!(other.break_lock().unwrap());
    owner.call("check 1").err(ErrorKind::Lost);
    let hold = other.acquire().unwrap();
    assert!(hold.abandoned());
    owner.call("end 1").err(ErrorKind::Lost);
    hold.check().unwrap();
    hold.release().unwrap();
    assert!(!other.break_lock().unwrap());
}
