//! What the tests share: the libraries that C programs link.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub(crate) fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Whether a program that a test needs is there. `make test` installs it first, and says that none may be missing.
#[allow(dead_code, reason = "not each test file needs one")]
pub(crate) fn tool(name: &str) -> bool {
    let found = Command::new(name).arg("--version").output().is_ok();
    assert!(found || std::env::var_os("IPCMUTEX_REQUIRE_TOOLS").is_none(), "{name} is missing, and may not be");
    if !found {
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        // Not through the harness, which would swallow it.
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {name} is missing");
    }
    found
}

/// Cargo builds neither of the two for a test, so this does; the folder they are in.
pub(crate) fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let out = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--lib", "--manifest-path"])
            .arg(crate_dir().join("Cargo.toml"))
            .args(["--message-format", "json"])
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        let messages = String::from_utf8(out.stdout).unwrap();
        let file = messages
            .lines()
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .filter_map(|message| message["filenames"].as_array().cloned())
            .flatten()
            .filter_map(|name| name.as_str().map(PathBuf::from))
            .find(|name| name.ends_with("libipcmutex.so"))
            .expect("cargo built libipcmutex.so");
        file.parent().unwrap().to_owned()
    })
}
