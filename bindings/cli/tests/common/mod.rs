//! What the tests of the command share.
#![allow(dead_code, reason = "not every test file uses all of it")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;

/// What ends a test that hangs.
pub(crate) const WATCHDOG: Duration = Duration::from_secs(60);

/// A directory of locks of its own.
pub(crate) struct Place(TempDir);

impl Place {
    pub(crate) fn new() -> Place {
        Place(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ipcmutex"));
        command.args(args).env("IPCMUTEX_DIR", self.path().join("locks")).current_dir(self.path());
        std::fs::create_dir_all(self.path().join("locks")).unwrap();
        std::fs::set_permissions(self.path().join("locks"), std::os::unix::fs::PermissionsExt::from_mode(0o700))
            .unwrap();
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let child =
            self.command(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (tell, told) = mpsc::channel();
        std::thread::spawn(move || tell.send(child.wait_with_output()));
        told.recv_timeout(WATCHDOG).unwrap_or_else(|_| panic!("{args:?} hangs")).unwrap()
    }

    /// The exit code, and what was said on stderr.
    pub(crate) fn code(&self, args: &[&str]) -> (Option<i32>, String) {
        let out = self.run(args);
        (out.status.code(), String::from_utf8(out.stderr).unwrap())
    }

    /// A command that says "in" and then waits until its stdin is closed, or a line comes.
    pub(crate) fn start(&self, args: &[&str], script: &str) -> Running {
        let mut all = args.to_vec();
        all.extend(["sh", "-c", script]);
        let mut child =
            self.command(&all).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().unwrap();
        let (tell, lines) = mpsc::channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| tell.send(line))
        });
        Running { child, stdin, lines }
    }

    /// A lock that is held until what this gives is ended.
    pub(crate) fn held(&self, lock: &str) -> Running {
        let running = self.start(&["run", lock], "echo in; read line");
        running.says("in");
        running
    }
}

pub(crate) struct Running {
    pub(crate) child: Child,
    pub(crate) stdin: Option<ChildStdin>,
    pub(crate) lines: mpsc::Receiver<String>,
}

impl Running {
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(WATCHDOG).expect("the command says something")
    }

    pub(crate) fn says(&self, line: &str) {
        assert_eq!(self.line(), line);
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    pub(crate) fn end(&mut self) -> (ExitStatus, String) {
        drop(self.stdin.take());
        let start = Instant::now();
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if start.elapsed() > WATCHDOG => panic!("it does not end"),
                None => std::thread::sleep(Duration::from_millis(2)),
            }
        };
        let mut text = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        (status, text)
    }

    /// The end of `run` itself, while the command's stdin stays open: nothing but us ends it.
    pub(crate) fn end_keeping_stdin(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // A test that failed leaves nothing running; killing `run` kills its command.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `is_so`, for what has no handshake.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < WATCHDOG, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Kills `child` if the test takes too long, so that reading from it ends. It runs until this is dropped.
pub(crate) struct Watchdog(
    #[allow(dead_code, reason = "its drop says that the test has ended; not every compiler minds")] mpsc::Sender<()>,
);

impl Watchdog {
    pub(crate) fn on(child: &Child) -> Watchdog {
        let (alive, ended) = mpsc::channel();
        let child = Pid::from_child(child);
        std::thread::spawn(move || {
            if ended.recv_timeout(WATCHDOG) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill_process(child, Signal::KILL);
            }
        });
        Watchdog(alive)
    }
}

pub(crate) fn status(place: &Place, lock: &str) -> Value {
    let out = place.run(&["status", "--json", lock]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// Whether `program` is here; a test that lacks it says so.
pub(crate) fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("IPCMUTEX_REQUIRE_TOOLS").is_none(), "{program} is missing, and may not be");
    if !found {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Not through the harness, which would swallow it.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {program} is missing");
    }
    found
}
