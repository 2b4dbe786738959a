//! What needs root or namespaces of its own. Where that cannot be had, a test says so in one line that CI repeats.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Says loudly, past the harness, that a test was skipped.
pub fn skip(test: &str, why: &str) -> bool {
    // Not through the harness, which would swallow it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
    true
}

/// Whether this process is root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// For the top of a test that makes files of other users: `if without_root("its_name") { return; }`.
pub fn without_root(test: &str) -> bool {
    !is_root() && skip(test, "it needs root")
}

/// As [`without_root`], for a program of `package` that is called with `-V`. With `IPCMUTEX_REQUIRE_TOOLS` set it fails instead:
/// `make test` has installed it.
pub fn without(program: &str, package: &str, test: &str) -> bool {
    let there = Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    let missing = format!("{program} is missing: apt-get install {package}");
    assert!(there || std::env::var_os("IPCMUTEX_REQUIRE_TOOLS").is_none(), "{missing}");
    !there && skip(test, &missing)
}

/// The words before a program that give it namespaces of its own, as `unshare` names them; without root, a user namespace too.
pub fn unshare(namespaces: &[&'static str]) -> Vec<&'static str> {
    let mut words = vec!["unshare"];
    if !is_root() {
        words.push("--map-root-user");
    }
    words.extend(namespaces);
    words
}

/// As [`without_root`], for namespaces.
pub fn without_namespaces(test: &str) -> bool {
    static POSSIBLE: OnceLock<bool> = OnceLock::new();
    let possible = *POSSIBLE.get_or_init(|| {
        let words = unshare(&["--mount", "--pid", "--net", "--fork"]);
        let tried = Command::new(words[0]).args(&words[1..]).arg("true").stderr(Stdio::null()).status();
        tried.is_ok_and(|status| status.success())
    });
    !possible && skip(test, "it needs `unshare` and the right to make namespaces")
}

/// Runs a program in the mount namespace of `pid`; whether it succeeded, and what it said.
pub fn in_mounts_of(pid: u32, program: &[&str]) -> (bool, String) {
    let mut command = Command::new("nsenter");
    command.arg(format!("--target={pid}")).arg("--mount");
    if !is_root() {
        command.args(["--user", "--preserve-credentials"]);
    }
    let output = command.args(program).output().expect("nsenter comes with unshare");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}
