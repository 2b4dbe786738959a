//! Where the build left what the tests run. `make build` puts all of it there.

use std::path::{Path, PathBuf};

/// The checkout.
pub fn checkout() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

/// The folder of this build's programs: `target/<profile>`.
pub fn programs() -> PathBuf {
    let exe = std::env::current_exe().expect("a running program has a path");
    let dir = exe.parent().expect("a program lies in a folder");
    if dir.ends_with("deps") { dir.parent().expect("deps lies in a folder").to_owned() } else { dir.to_owned() }
}

/// A program that `cargo build` or `make build` left in `target/<profile>`.
pub fn program(name: &str) -> PathBuf {
    there(programs().join(name))
}

/// The C agent, and its build that looks for leaks when it ends (`make sanitize`), if that is wanted.
pub fn agent_c() -> (PathBuf, bool) {
    match std::env::var_os("IPCMUTEX_SANITIZED_AGENT") {
        Some(path) => (there(path.into()), true),
        None => (program("agent-c"), false),
    }
}

/// The interpreter that has the `ipcmutex` package.
pub fn python() -> PathBuf {
    there(programs().parent().expect("programs lie in the target folder").join("venv/bin/python"))
}

/// Where `make build` installed the C library and the command.
pub fn installed() -> PathBuf {
    there(programs().parent().expect("programs lie in the target folder").join("installed"))
}

/// The node program, as found on PATH.
pub fn node() -> PathBuf {
    PathBuf::from("node")
}

/// The folder from which node finds the `ipcmutex` package.
pub fn node_modules() -> PathBuf {
    there(programs().parent().expect("programs lie in the target folder").join("node/node_modules"))
}

/// A file of the tests' own sources.
pub fn source(name: &str) -> PathBuf {
    there(Path::new(env!("CARGO_MANIFEST_DIR")).join(name))
}

fn there(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: `make build` makes it", path.display());
    path
}
