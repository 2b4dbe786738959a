//! The command as a user meets it: what it prints, how it ends, and what its child finds.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
#[cfg(feature = "redis")]
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;

mod common;

use common::{Place, Watchdog, has, status, until};

/// After a change of the help: `IPCMUTEX_BLESS=1 cargo test -p ipcmutex-cli`.
#[test]
fn the_help_is_as_pinned_and_fits_a_screen() {
    let place = Place::new();
    let mut all = String::new();
    for args in [
        &["--help"][..],
        &["run", "--help"],
        &["status", "--help"],
        &["ps", "--help"],
        &["wait", "--help"],
        &["break", "--help"],
        &["completions", "--help"],
    ] {
        let out = place.run(args);
        assert_eq!((out.status.code(), &*out.stderr), (Some(0), &b""[..]));
        let text = String::from_utf8(out.stdout).unwrap();
        assert!(text.lines().count() <= 24, "{args:?} is longer than a screen:\n{text}");
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{args:?} is wider than a screen:\n{text}");
        all.push_str(&format!("$ ipcmutex {}\n{text}\n", args.join(" ")));
    }
    let pinned = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/help.txt");
    if std::env::var_os("IPCMUTEX_BLESS").is_some() {
        std::fs::write(&pinned, &all).unwrap();
    }
    assert_eq!(all, std::fs::read_to_string(pinned).unwrap());
}

#[test]
fn the_commands_own_end_is_the_end() {
    let place = Place::new();
    for (command, code) in [
        (&["true"][..], 0),
        (&["--", "false"], 1),
        (&["sh", "-c", "exit 77"], 77),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["sh", "-c", "kill -TERM $$"], 143),
    ] {
        let out = place.run(&[&["run", "jobs"], command].concat());
        assert_eq!((out.status.code(), &*out.stderr), (Some(code), &b""[..]), "{command:?}");
    }
    std::fs::write(place.path().join("plain"), "text").unwrap();
    assert_eq!(place.code(&["run", "jobs", "./plain"]).0, Some(126));
    let (code, text) = place.code(&["run", "jobs", "no-such-command"]);
    assert_eq!((code, text.starts_with("ipcmutex: no-such-command: ")), (Some(127), true), "{text}");
    assert_eq!(place.code(&["run", "jobs", "no/such/command"]).0, Some(127));
    assert_eq!(status(&place, "jobs")["state"], "free");
}

#[test]
fn arguments_reach_the_command_as_they_are() {
    let place = Place::new();
    let out = place.run(&["run", "jobs", "printf", "%s|", "-n", "--", "--help", "", "a b"]);
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "-n|--|--help||a b|");
}

#[test]
fn usage_is_64() {
    let place = Place::new();
    for args in [
        &[][..],
        &["nonsense"],
        &["run"],
        &["run", "jobs"],
        &["run", "-n", "-w", "1", "jobs", "true"],
        &["run", "-w", "-1", "jobs", "true"],
        &["run", "-w", "NaN", "jobs", "true"],
        &["run", "-w", "inf", "jobs", "true"],
        &["run", "-w", "x", "jobs", "true"],
        &["run", "-E", "256", "jobs", "true"],
        &["run", "--ttl", "3", "jobs", "true"], // no lease on a host
        &["run", "no-such-scheme:x", "true"],
        &["run", "a b", "true"],
        &["run", "..", "true"],
        &["status", "jobs", "more"],
        &["ps", "--url", "mpm:jobs"],
        &["__exec"],
    ] {
        let (code, text) = place.code(args);
        assert_eq!(code, Some(64), "{args:?}: {text}");
        assert!(text.starts_with("ipcmutex: ") || args.is_empty(), "{args:?}: {text}");
    }
}

#[test]
fn a_lock_that_cannot_be_opened_is_66() {
    let place = Place::new();
    let (code, text) = place.code(&["run", "./no/such/folder/lock", "true"]);
    assert_eq!(code, Some(66), "{text}");
    let here = place.path().canonicalize().unwrap();
    let told = format!("ipcmutex: open mpm:{}/no/such/folder/lock: ", here.display());
    assert!(text.starts_with(&told) && text.contains("create"), "{text}");
    std::fs::create_dir(place.path().join("folder")).unwrap();
    assert_eq!(place.code(&["run", "./folder", "true"]).0, Some(66));
}

#[test]
#[cfg(feature = "redis")]
fn a_server_that_cannot_be_reached_is_69() {
    let place = Place::new();
    let (code, text) = place.code(&["run", "rpm+redis://u:canary@127.0.0.1:1/x", "true"]);
    assert_eq!(code, Some(69), "{text}");
    assert!(!text.contains("canary"), "{text}");
}

#[test]
fn who_finds_it_held_is_told_by_whom() {
    let place = Place::new();
    let mut holder = place.held("jobs");
    for (args, code) in [
        (&["run", "-n", "jobs", "true"][..], 1),
        (&["run", "-n", "-E", "9", "jobs", "true"], 9),
        (&["run", "-w", "0.05", "jobs", "true"], 1),
        (&["run", "-w", "0", "-E", "0", "jobs", "true"], 0),
        (&["wait", "-n", "jobs"], 1),
        (&["wait", "-w", "0.05", "-E", "200", "jobs"], 200),
    ] {
        let (got, text) = place.code(args);
        assert_eq!(got, Some(code), "{args:?}: {text}");
        assert!(text.contains("mpm:jobs") && text.contains(&format!("held by pid {}", holder.child.id())), "{text}");
        assert!(text.contains("(sh)"), "the label is the command's name: {text}");
    }
    assert_eq!(place.code(&["run", "-n", "other", "true"]).0, Some(0));
    assert_eq!(holder.end().0.code(), Some(1), "read finds the end of its input");
    assert_eq!(place.code(&["run", "-n", "jobs", "true"]).0, Some(0));
    assert_eq!(place.code(&["wait", "-n", "jobs"]).0, Some(0));
}

#[test]
fn waiters_get_it_when_it_is_released() {
    let place = Place::new();
    let mut holder = place.held("jobs");
    let waiter = place.start(&["run", "jobs"], "echo in");
    let mut watcher = place.command(&["wait", "jobs"]).spawn().unwrap();
    until("two stand in line", || status(&place, "jobs")["waiters"] == 2);
    holder.end();
    waiter.says("in");
    assert!(watcher.wait().unwrap().success());
}

#[test]
fn the_command_finds_lock_token_and_its_own_descriptors_only() {
    let place = Place::new();
    let script = "echo $IPCMUTEX_LOCK; echo $IPCMUTEX_TOKEN; ls /proc/self/fd | tr '\\n' ' '; grep SigIgn /proc/self/status; grep SigBlk /proc/self/status";
    let direct = Command::new("sh").args(["-c", script]).stdin(Stdio::null()).stderr(Stdio::null()).output().unwrap();
    let out = place.run(&["run", "./a lock", "sh", "-c", script]);
    let text = String::from_utf8(out.stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    // Wherever the command goes, this names the lock.
    assert_eq!(lines[0], format!("mpm:{}/a%20lock", place.path().canonicalize().unwrap().display()));
    let token: u64 = lines[1].parse().unwrap();
    let direct = String::from_utf8(direct.stdout).unwrap();
    assert_eq!(lines[2..], direct.lines().collect::<Vec<_>>()[2..], "descriptors and signals are as without us");
    let again = place.run(&["run", "./a lock", "sh", "-c", "echo $IPCMUTEX_TOKEN"]);
    assert!(String::from_utf8(again.stdout).unwrap().trim().parse::<u64>().unwrap() > token);
    assert!(place.path().join("a lock").exists(), "a path is taken literally");
}

#[test]
fn input_and_output_are_the_commands() {
    let place = Place::new();
    let mut command = place.command(&["run", "jobs", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"through").unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"through");
}

#[test]
fn signals_are_passed_on_once_each() {
    let place = Place::new();
    for (signal, name) in [
        (Signal::INT, "INT"),
        (Signal::TERM, "TERM"),
        (Signal::HUP, "HUP"),
        (Signal::QUIT, "QUIT"),
        (Signal::USR1, "USR1"),
        (Signal::USR2, "USR2"),
    ] {
        let script = format!("trap 'echo got {name}' {name}; echo in; while read line; do echo $line; done; exit 5");
        let mut running = place.start(&["run", "jobs"], &script);
        running.says("in");
        running.signal(signal);
        running.says(&format!("got {name}"));
        // dash ends `read` when a signal comes; bash goes on. Either way the command decides how it ends.
        assert_eq!(running.end().0.code(), Some(5), "{name}");
    }
    let mut running = place.held("jobs");
    running.signal(Signal::TERM);
    assert_eq!(running.end_keeping_stdin().code(), Some(143), "a command without a handler ends by the signal");
}

#[test]
fn ctrl_c_reaches_the_command_once() {
    if !has("script") {
        return;
    }
    let place = Place::new();
    // The terminal sends INT to all of the foreground group, us and the command. The USR1 after it comes by us alone, and
    // only when we have dealt with the INT: what was counted by then is all there is.
    let script = "n=0; trap 'n=$((n+1)); kill -USR1 $PPID' INT; trap 'echo counted $n; exit 0' USR1; echo in; while :; do sleep 0.02; done";
    let line = format!("exec '{}' run jobs sh -c \"$SCRIPT\"", env!("CARGO_BIN_EXE_ipcmutex"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("IPCMUTEX_DIR", place.path()).env("SCRIPT", script);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "in");
    child.stdin.as_ref().unwrap().write_all(b"\x03").unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("counted 1"), "{rest}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// As `timeout` does: what the terminal sends does not reach it.
#[test]
fn ctrl_c_and_quit_reach_a_command_that_has_a_group_of_its_own() {
    if !has("script") {
        return;
    }
    for (key, name) in [(b"\x03", "INT"), (b"\x1c", "QUIT")] {
        let place = Place::new();
        // Into a file: what the terminal has not shown when the leader of its session ends may be lost. And a shell that starts one
        // program after another may end without its trap when `timeout` signals the whole group.
        let script = format!(
            "trap 'echo got {name} > heard; kill $!; exit 0' {name}; sleep 90 & echo in; while :; do wait; done"
        );
        let line = format!("exec '{}' run jobs timeout 90 sh -c \"$SCRIPT\"", env!("CARGO_BIN_EXE_ipcmutex"));
        let mut command = Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).env("IPCMUTEX_DIR", place.path()).env("SCRIPT", script);
        command.current_dir(place.path());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let _watchdog = Watchdog::on(&child);
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "in");
        child.stdin.as_ref().unwrap().write_all(key).unwrap();
        out.read_to_string(&mut String::new()).unwrap();
        child.wait().unwrap();
        assert_eq!(std::fs::read_to_string(place.path().join("heard")).unwrap(), format!("got {name}\n"));
    }
}

/// As `ssh -t host 'ipcmutex run …'`, `xterm -e` and `tmux new` start it: the kernel tells the leader of the session alone.
#[test]
fn a_hangup_reaches_the_command_of_a_session_leader() {
    if !has("script") {
        return;
    }
    let place = Place::new();
    let script = "trap 'echo HUP >> heard; exit' HUP; echo in; while [ -d \"$IPCMUTEX_DIR\" ]; do sleep 0.02; done";
    let line = format!("exec '{}' run jobs sh -c \"$SCRIPT\"", env!("CARGO_BIN_EXE_ipcmutex"));
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("IPCMUTEX_DIR", place.path()).env("SCRIPT", script);
    command.current_dir(place.path()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut terminal = command.spawn().unwrap();
    let mut line = String::new();
    BufReader::new(terminal.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "in");
    terminal.kill().unwrap();
    terminal.wait().unwrap();
    until("the command hears of it", || place.path().join("heard").exists());
    let wait = Command::new(env!("CARGO_BIN_EXE_ipcmutex"))
        .args(["wait", "-w", "60", "jobs"])
        .env("IPCMUTEX_DIR", place.path())
        .status();
    assert!(wait.unwrap().success());
    assert_eq!(std::fs::read_to_string(place.path().join("heard")).unwrap(), "HUP\n");
}

/// That is what `setsid` is for. Whether `run` leads the session, or is hung up when who leads it has ended.
#[test]
fn a_hangup_does_not_reach_a_command_that_has_left_the_session() {
    if !has("script") {
        return;
    }
    for line in ["exec \"$RUN\" run jobs setsid sh -c \"$SCRIPT\"", "\"$RUN\" run jobs setsid sh -c \"$SCRIPT\"; true"]
    {
        let place = Place::new();
        let script = "trap 'echo HUP >> heard' HUP; trap 'echo TERM >> heard; exit' TERM
            echo $PPID; while [ -d \"$IPCMUTEX_DIR\" ]; do sleep 0.02; done";
        let mut command = Command::new("script");
        command.args(["-qec", line, "/dev/null"]).env("IPCMUTEX_DIR", place.path()).env("SCRIPT", script);
        command.env("RUN", env!("CARGO_BIN_EXE_ipcmutex")).current_dir(place.path());
        let mut terminal = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut pid = String::new();
        BufReader::new(terminal.stdout.take().unwrap()).read_line(&mut pid).unwrap();
        let run = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
        let parent = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", run.as_raw_nonzero())).unwrap();
            status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().to_owned()
        };
        let before = parent();
        terminal.kill().unwrap();
        terminal.wait().unwrap();
        // Whoever ends has had all hung up by the time that its children are another's.
        until("run is hung up", || parent() != before);
        kill_process(run, Signal::TERM).unwrap();
        let wait = Command::new(env!("CARGO_BIN_EXE_ipcmutex"))
            .args(["wait", "-w", "60", "jobs"])
            .env("IPCMUTEX_DIR", place.path())
            .status();
        assert!(wait.unwrap().success());
        assert_eq!(std::fs::read_to_string(place.path().join("heard")).unwrap(), "TERM\n", "{line}");
    }
}

/// Ends with the test, also with one that failed.
#[cfg(feature = "redis")]
struct Server(Child);

#[cfg(feature = "redis")]
impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[cfg(feature = "redis")]
fn a_lease_that_runs_out_stops_the_command() {
    if !has("redis-server") {
        return;
    }
    let place = Place::new();
    let socket = place.path().join("s");
    let server = Command::new("redis-server")
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .current_dir(place.path())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server(server);
    until("the server listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let url = format!("rpm+redis+unix://{}?id=jobs", socket.display());
    let script = "trap 'echo got TERM; exit 0' TERM; echo $IPCMUTEX_LOCK; while :; do sleep 0.02; done";
    let mut running = place.start(&["run", "--ttl", "0.5", &url], script);
    running.says(&format!("{url}&ttl=0.5s"));
    let out = place.run(&["ps", "--json", "--url", &url]);
    let listed: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!((&listed[0]["state"], &listed[0]["owner_label"]), (&"held".into(), &"sh".into()), "{listed:?}");
    kill_process(Pid::from_child(&server.0), Signal::STOP).unwrap();
    running.says("got TERM");
    let status = running.end_keeping_stdin();
    let text = running.end().1;
    assert_eq!(status.code(), Some(75), "{text}");
}

#[test]
fn a_signal_ends_the_wait_for_the_lock() {
    let place = Place::new();
    let mut holder = place.held("jobs");
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        for args in [&["run", "jobs"][..], &["wait", "jobs"]] {
            let mut command = place.command(args);
            if args[0] == "run" {
                command.arg("true");
            }
            let mut waiter = command.spawn().unwrap();
            until("it waits", || status(&place, "jobs")["waiters"] == 1);
            kill_process(Pid::from_child(&waiter), signal).unwrap();
            assert_eq!(waiter.wait().unwrap().code(), Some(code), "{args:?}");
            assert_eq!(status(&place, "jobs")["waiters"], 0);
        }
    }
    holder.end();
}

/// It lets everybody in and says nothing.
#[test]
#[cfg(feature = "redis")]
fn a_silent_server_holds_up_neither_the_end_of_a_wait_nor_a_signal() {
    let place = Place::new();
    let socket = place.path().join("s");
    let silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let url = format!("rpm+redis+unix://{}?id=jobs&connect_timeout=50s", socket.display());
    let begun = Instant::now();
    for args in [&["run", "-w", "0.1", "-E", "3", &url, "true"][..], &["wait", "-w", "0.1", "-E", "3", &url]] {
        let (code, text) = place.code(args);
        assert_eq!(code, Some(3), "{text}");
        assert!(text.contains("not acquired within 0.100 s: it is not opened yet"), "{text}");
        silent.accept().unwrap();
    }
    for args in [&["run", &url, "true"][..], &["wait", &url]] {
        let mut opening = place.command(args).spawn().unwrap();
        let _connected = silent.accept().unwrap();
        kill_process(Pid::from_child(&opening), Signal::TERM).unwrap();
        assert_eq!(opening.wait().unwrap().code(), Some(143), "{args:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

#[test]
fn what_nohup_ignores_stays_ignored() {
    let place = Place::new();
    let mut child = Command::new("sh")
        .args(["-c", "trap '' HUP; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_ipcmutex"), "run", "jobs"])
        .args(["sh", "-c", "kill -HUP $$ $PPID; echo survived"])
        .env("IPCMUTEX_DIR", place.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((child.wait().unwrap().code(), &*text), (Some(0), "survived\n"));
}

#[test]
fn a_parent_that_ignores_its_children_still_hears_the_exit_code() {
    let place = Place::new();
    let status = Command::new("sh")
        .args(["-c", "trap '' CHLD; exec \"$@\"", "sh", env!("CARGO_BIN_EXE_ipcmutex"), "run", "jobs"])
        .args(["sh", "-c", "exit 6"])
        .env("IPCMUTEX_DIR", place.path())
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(6));
}

#[test]
fn killed_it_takes_the_command_along() {
    let place = Place::new();
    let mut running = place.start(&["run", "jobs"], "trap '' TERM INT HUP; echo $$; read line");
    let command = Pid::from_raw(running.line().parse().unwrap()).unwrap();
    running.signal(Signal::KILL);
    assert_eq!(running.end_keeping_stdin().signal(), Some(9));
    until("the command is dead", || is_dead(command));
    assert_eq!(place.code(&["run", "-w", "30", "jobs", "true"]), (Some(0), String::new()));
}

/// Dead, or a zombie that init has not reaped.
fn is_dead(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_pid())).unwrap_or_default();
    test_kill_process(pid).is_err() || stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('Z'))
}

#[test]
fn a_lost_lock_stops_the_command() {
    let place = Place::new();
    let mut polite =
        place.start(&["run", "jobs"], "trap 'echo got TERM; exit 0' TERM; echo in; while read line; do :; done");
    polite.says("in");
    assert_eq!(place.code(&["break", "jobs"]), (Some(0), String::new()));
    polite.says("got TERM");
    let status = polite.end_keeping_stdin();
    let text = polite.end().1;
    assert_eq!(status.code(), Some(75), "{text}");
    assert!(text.starts_with("ipcmutex: ") && text.contains("mpm:jobs") && text.contains("being stopped"), "{text}");

    let script = "trap 'echo got TERM' TERM; echo in; while :; do sleep 0.02; done";
    let mut stubborn = place.start(&["run", "--kill-after", "0.1", "jobs"], script);
    stubborn.says("in");
    assert_eq!(place.code(&["break", "jobs"]).0, Some(0));
    stubborn.says("got TERM");
    assert_eq!(stubborn.end().0.code(), Some(75));
}

#[test]
fn a_loss_that_the_command_outran_is_told_all_the_same() {
    let place = Place::new();
    let command = format!("'{}' break jobs; exit 0", env!("CARGO_BIN_EXE_ipcmutex"));
    let (code, text) = place.code(&["run", "jobs", "sh", "-c", &command]);
    assert_eq!(code, Some(75), "{text}");
}

#[test]
fn breaking_what_nobody_holds_says_so() {
    let place = Place::new();
    assert_eq!(place.code(&["break", "jobs"]), (Some(0), "ipcmutex: nobody held mpm:jobs\n".to_owned()));
}

#[test]
fn status_and_ps_tell_who_holds() {
    let place = Place::new();
    assert_eq!(String::from_utf8(place.run(&["ps"]).stdout).unwrap().lines().count(), 1, "the heads of the columns");
    let holder = place.held("mpm:jobs?label=nightly%20run");
    let held = status(&place, "jobs");
    assert_eq!(
        (&held["state"], &held["owner_label"], &held["owner_pid"], &held["waiters"]),
        (&"held".into(), &"nightly run".into(), &holder.child.id().into(), &0.into())
    );
    assert!(held["token"].as_str().unwrap().parse::<u64>().unwrap() > 0 && held["held_ms"].is_u64());
    assert_eq!(held["lock"], "mpm:jobs");
    place.run(&["run", "other", "true"]);
    let out = place.run(&["ps", "--json"]);
    let listed: Vec<Value> = serde_json::from_slice(&out.stdout).unwrap();
    let find = |lock: &str| listed.iter().find(|one| one["lock"] == lock).unwrap()["state"].clone();
    assert_eq!((find("mpm:jobs"), find("mpm:other"), listed.len()), ("held".into(), "free".into(), 2));
    let text = String::from_utf8(place.run(&["status", "jobs"]).stdout).unwrap();
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect();
    assert_eq!(lines[0], ["STATE", "OWNER", "SINCE", "WAITERS", "TOKEN", "LOCK"]);
    assert_eq!((lines[1][0], lines[1][5]), ("held", "mpm:jobs"));
    assert!(lines[1][1].starts_with(&format!("nightly run (pid {} on ", holder.child.id())), "{text}");
}

#[test]
fn looking_at_a_lock_does_not_make_it() {
    let place = Place::new();
    let file = place.path().join("locks/nobody");
    let status = status(&place, "nobody");
    assert_eq!((&status["state"], &status["waiters"]), (&Value::from("free"), &Value::from(0)));
    assert_eq!(place.code(&["wait", "nobody"]).0, Some(0));
    assert_eq!(place.code(&["break", "nobody"]).0, Some(0));
    assert!(!file.exists());
    assert_eq!(place.code(&["run", "nobody", "true"]).0, Some(0));
    assert!(file.exists());
    // A folder that is not there is a mistake, not a free lock.
    assert_eq!(place.code(&["status", "./missing/lock"]).0, Some(66));
}
