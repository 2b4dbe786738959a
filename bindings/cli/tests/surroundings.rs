//! The command where people put it: in cron, in a service, in a pipeline, and in a terminal that shows a lock live.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

mod common;

use common::{Place, Watchdog, has, until};

const IPCMUTEX: &str = env!("CARGO_BIN_EXE_ipcmutex");

/// A lock where those go who have no environment: it is this user's, so its name is this test's alone.
struct Common(String);

impl Common {
    fn new(name: &str) -> Common {
        Common(format!("test-{name}-{}", std::process::id()))
    }
}

impl Drop for Common {
    fn drop(&mut self) {
        let dir = format!("/tmp/ipcmutex-{}", rustix::process::geteuid().as_raw());
        let _ = std::fs::remove_file(std::path::Path::new(&dir).join(&self.0));
    }
}

/// As cron starts it: no terminal, no session of a login, four variables.
fn cron(args: &[&str]) -> Command {
    let mut command = Command::new("setsid");
    command.env_clear().arg("-w").arg(IPCMUTEX).args(args).stdin(Stdio::null()).current_dir("/");
    command.envs([("PATH", "/usr/bin:/bin"), ("HOME", "/root"), ("SHELL", "/bin/sh"), ("LOGNAME", "root")]);
    command
}

/// As a service manager starts it: nothing at all.
fn service(args: &[&str]) -> Command {
    let mut command = Command::new(IPCMUTEX);
    command.env_clear().args(args).stdin(Stdio::null()).current_dir("/");
    command
}

#[test]
fn cron_and_a_service_share_the_lock_of_a_name() {
    let lock = Common::new("cron");
    let mut holder =
        cron(&["run", &lock.0, "sh", "-c", "echo in; exec sleep 60"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "in\n");
    let refused = service(&["run", "-n", &lock.0, "true"]).output().unwrap();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(1), "{text}");
    assert!(text.contains("held by pid"), "{text}");
    // setsid waits for `run`, and passes nothing on: what it started is told by the lock.
    let seen: Value =
        serde_json::from_slice(&service(&["status", "--json", &lock.0]).output().unwrap().stdout).unwrap();
    let pid = i32::try_from(seen["owner_pid"].as_i64().unwrap()).unwrap();
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert_eq!(holder.wait().unwrap().code(), Some(128 + 15));
    let out = service(&["run", "-n", &lock.0, "sh", "-c", "echo $IPCMUTEX_ABANDONED"]).output().unwrap();
    assert_eq!((out.status.code(), &*out.stdout, &*out.stderr), (Some(0), &b"0\n"[..], &b""[..]));
}

/// A pipe that nobody reads any more.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn a_reader_that_had_enough_is_no_error() {
    let place = Place::new();
    place.run(&["run", "jobs", "true"]);
    for args in [&["ps"][..], &["status", "--json", "jobs"], &["--help"], &["man"], &["status", "--watch", "jobs"]] {
        let out =
            place.command(args).stdin(Stdio::null()).stdout(closed_pipe()).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((out.status.code(), &*out.stderr), (Some(128 + 13), &b""[..]), "{args:?}");
    }
    // And one that could not be written to is: here the disk is full.
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let out = place.command(&["ps"]).stdout(full).output().unwrap();
    assert_eq!(out.status.code(), Some(66), "{}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn the_command_in_a_pipeline_ends_by_sigpipe_as_without_us() {
    let place = Place::new();
    let status = place.command(&["run", "jobs", "yes"]).stdout(closed_pipe()).status().unwrap();
    assert_eq!(status.code(), Some(128 + 13));
    assert_eq!(place.code(&["run", "-n", "jobs", "true"]).0, Some(0));
}

#[test]
fn in_the_midst_of_a_pipeline_it_is_as_if_it_were_not_there() {
    let place = Place::new();
    let script = r#"set -o pipefail
        printf 'b\na\n' | "$0" run jobs tr a-z A-Z | sort
        printf x | "$0" run jobs sh -c 'cat; exit 7' | cat; echo " ${PIPESTATUS[1]}"
        "$0" ps | grep -c 'mpm:jobs$'"#;
    let out = Command::new("bash").args(["-c", script, IPCMUTEX]).env("IPCMUTEX_DIR", place.path()).output().unwrap();
    let told = (String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert_eq!((&*told.0, &*told.1, out.status.code()), ("A\nB\nx 7\n1\n", "", Some(0)));
}

/// Who starts it without the first three descriptors must not find a lock file in their place.
#[test]
fn without_stdin_stdout_and_stderr_the_command_writes_into_no_lock() {
    let place = Place::new();
    let file = place.path().join("locks/jobs");
    assert_eq!(place.code(&["run", "jobs", "true"]).0, Some(0));
    let before = std::fs::metadata(&file).unwrap().len();
    let run = "exec env -i \"IPCMUTEX_DIR=$IPCMUTEX_DIR\" \"$0\" run jobs /bin/sh -c '/bin/cat; echo out; echo err >&2; exit 9' <&- >&- 2>&-";
    let locks = place.path().join("locks");
    let status = Command::new("sh").args(["-c", run, IPCMUTEX]).env("IPCMUTEX_DIR", locks).status().unwrap();
    assert_eq!(status.code(), Some(9));
    assert_eq!(std::fs::metadata(&file).unwrap().len(), before);
    let seen = common::status(&place, "jobs");
    assert_eq!((&seen["state"], &seen["acquisitions"]), (&Value::from("free"), &Value::from(2)));
}

#[test]
fn a_watch_tells_each_change_to_a_pipe() {
    let place = Place::new();
    for json in [false, true] {
        let lock = if json { "b" } else { "a" };
        let args = if json { &["status", "--watch", "--json", lock][..] } else { &["status", "--watch", lock] };
        let mut watch = place.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let _watchdog = Watchdog::on(&watch);
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut state = || {
            let line = lines.next().unwrap();
            match json {
                true => serde_json::from_str::<Value>(&line).unwrap()["state"].as_str().unwrap().to_owned(),
                false => line.split_whitespace().next().unwrap().to_owned(),
            }
        };
        if !json {
            assert_eq!(state(), "STATE");
        }
        assert_eq!(state(), "free");
        let mut holder = place.held(lock);
        assert_eq!(state(), "held");
        holder.signal(Signal::KILL);
        holder.end();
        assert_eq!(state(), "abandoned");
        kill_process(Pid::from_child(&watch), Signal::INT).unwrap();
        watch.wait().unwrap();
    }
}

#[test]
fn what_cannot_be_said_leaves_the_exit_code() {
    for args in [&[][..], &["--nonsense"], &["status", "spm:/"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let ended = Command::new(IPCMUTEX).args(args).stderr(full).status().unwrap();
        assert_eq!(ended.code(), Some(64), "{args:?}");
    }
}

/// As `| head -1` does, also while there is no news.
#[test]
fn a_watch_ends_when_nobody_reads_any_more() {
    let place = Place::new();
    let mut watch = place.command(&["status", "--watch", "jobs"]).stdout(Stdio::piped()).spawn().unwrap();
    let _watchdog = Watchdog::on(&watch);
    let mut out = BufReader::new(watch.stdout.take().unwrap());
    for _ in 0..2 {
        out.read_line(&mut String::new()).unwrap();
    }
    drop(out);
    assert_eq!(watch.wait().unwrap().code(), Some(141));
}

/// As what a program of Node's starts has it: that its peer is gone is a hangup and no error. Of a TCP connection that is not so: who
/// closes one may still read, and is found to be gone when something is written.
#[test]
fn a_watch_ends_when_the_peer_of_its_socket_is_gone() {
    let place = Place::new();
    let (ours, its) = UnixStream::pair().unwrap();
    let mut watch = place.command(&["status", "--watch", "jobs"]).stdout(OwnedFd::from(its)).spawn().unwrap();
    let _watchdog = Watchdog::on(&watch);
    let mut out = BufReader::new(ours);
    for _ in 0..2 {
        out.read_line(&mut String::new()).unwrap();
    }
    drop(out);
    assert_eq!(watch.wait().unwrap().code(), Some(141));
}

#[test]
fn a_watch_in_a_terminal_stays_two_lines() {
    if !has("script") {
        return;
    }
    let place = Place::new();
    let line = format!("exec '{IPCMUTEX}' status --watch jobs");
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env("IPCMUTEX_DIR", place.path());
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let _watchdog = Watchdog::on(&child);
    let mut out = child.stdout.take().unwrap();
    let mut seen = Vec::new();
    let mut read_until = |what: &str| {
        while !String::from_utf8_lossy(&seen).contains(what) {
            let mut some = [0; 4096];
            let count = out.read(&mut some).unwrap();
            assert!(count > 0, "never: {what:?} in {:?}", String::from_utf8_lossy(&seen));
            seen.extend_from_slice(&some[..count]);
        }
    };
    read_until("free");
    read_until("\x1b[2F\x1b[JSTATE");
    child.stdin.as_ref().unwrap().write_all(b"\x03").unwrap();
    until("Ctrl-C ends it", || !matches!(child.try_wait(), Ok(None)));
}

#[test]
fn the_manual_and_the_completions_know_every_word() {
    let place = Place::new();
    let page = String::from_utf8(place.run(&["man"]).stdout).unwrap().replace("\\-", "-");
    let help = |args: &[&str]| String::from_utf8(place.run(args).stdout).unwrap();
    let bash = help(&["completions", "bash"]);
    let mut words = 0;
    for command in ["run", "status", "ps", "wait", "break", "man", "completions"] {
        assert!(page.contains(&format!(".SS {command}\n")), "{command}\n{page}");
        for word in help(&[command, "--help"]).split([' ', '\n', ',', '`']).filter(|word| word.starts_with("--")) {
            words += 1;
            assert!(bash.contains(word), "{word} of {command} in the completions");
            assert!(word == "--help" || page.contains(word), "{word} of {command} in the manual");
        }
    }
    assert!(words > 12);
    for name in ["IPCMUTEX_LOCK", "IPCMUTEX_TOKEN", "IPCMUTEX_ABANDONED", "IPCMUTEX_DIR"] {
        assert!(page.contains(name), "{name}");
    }
    for shell in ["zsh", "fish"] {
        assert!(help(&["completions", shell]).contains("kill-after"), "{shell}");
    }
    // The page as a reader of pages sees it, without a complaint.
    if has("man") {
        let file = place.path().join("ipcmutex.1");
        std::fs::write(&file, place.run(&["man"]).stdout).unwrap();
        let out = Command::new("man").args(["--warnings", "-l"]).arg(&file).stdin(Stdio::null()).output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        assert_eq!((out.status.code(), &*String::from_utf8_lossy(&out.stderr)), (Some(0), ""));
        assert!(text.contains("ENVIRONMENT") && text.contains("75"), "{text}");
    }
}

/// The login is over, and its folder has gone with it: who only looks says so as does who would make the lock.
#[test]
fn a_runtime_folder_that_is_missing_is_said_by_every_command() {
    let place = Place::new();
    let missing = place.path().join("missing");
    let run: &[&str] = &["run", "jobs", "true"];
    for args in [run, &["wait", "jobs"], &["status", "jobs"], &["break", "jobs"], &["ps"]] {
        let out = service(args).env("XDG_RUNTIME_DIR", &missing).output().unwrap();
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(66), "{args:?}: {said}");
        assert!(said.contains("/missing: ") && said.contains("IPCMUTEX_DIR"), "{args:?}: {said}");
    }
    std::fs::create_dir(&missing).unwrap();
    for args in [&["wait", "jobs"][..], &["status", "jobs"], &["ps"]] {
        let out = service(args).env("XDG_RUNTIME_DIR", &missing).output().unwrap();
        assert_eq!(out.status.code(), Some(0), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    }
}
