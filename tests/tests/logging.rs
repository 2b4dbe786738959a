//! `IPCMUTEX_LOG` in every language: told on stderr when asked for, never otherwise, and never a secret.

use std::process::{Command, Output, Stdio};

use ipcmutex_tests::artifacts;

const SECRET: &str = "correct-horse-battery";

/// A try that is refused by a server that is not there, and a lock that is opened and held, in each language.
fn programs(url: &str, lock: &str) -> Vec<(&'static str, Command)> {
    let command = |program: std::path::PathBuf, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args);
        command
    };
    let python = format!(
        "import ipcmutex\nwith ipcmutex.Mutex({lock:?}): pass\ntry: ipcmutex.Mutex({url:?})\nexcept ipcmutex.Unavailable: pass"
    );
    let node = format!(
        "const M = require('ipcmutex'); (async () => {{ await new M({lock:?}).acquire(); await new M({url:?}).open().catch(() => 0); }})()"
    );
    let shell = r#""$1" run "$2" true; "$1" status "$3" 2>/dev/null; "$1" status "$3" 2>&1 >/dev/null | grep -v '^ipcmutex: ' >&2; true"#;
    let ipcmutex = artifacts::installed().join("bin/ipcmutex").display().to_string();
    let mut node = command(artifacts::node(), &["-e", &node]);
    node.current_dir(artifacts::node_modules());
    vec![
        ("python", command(artifacts::python(), &["-c", &python])),
        ("node", node),
        ("shell", command("bash".into(), &["-c", shell, "sh", &ipcmutex, lock, url])),
    ]
}

#[test]
fn it_is_told_when_asked_for_and_has_no_secret() {
    let folder = tempfile::tempdir().expect("a folder");
    let lock = format!("mpm:{}", folder.path().join("lock").display());
    // Nobody listens on a port of a listener that is gone.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|gone| gone.local_addr()).expect("a port").port();
    let url = format!("rpm+redis://me:{SECRET}@127.0.0.1:{port}/x?connect_timeout=100ms");
    for asked in [None, Some("0"), Some("OFF"), Some(""), Some("trace")] {
        for (language, mut program) in programs(&url, &lock) {
            program.stdin(Stdio::null()).env_remove("IPCMUTEX_LOG");
            if let Some(level) = asked {
                program.env("IPCMUTEX_LOG", level);
            }
            let Output { status, stderr, .. } = program.output().expect("it runs");
            let told = String::from_utf8_lossy(&stderr);
            assert!(status.success(), "{language}: {status}: {told}");
            assert!(!told.contains(SECRET), "{language}: {told}");
            match asked {
                None | Some("0" | "OFF" | "") => assert_eq!(told, "", "{language}"),
                Some(_) => {
                    assert!(told.contains(&format!(" debug: open {lock}\n")), "{language}: {told}");
                    assert!(told.contains(" warn: open rpm+redis://me:***@127.0.0.1"), "{language}: {told}");
                    assert!(told.lines().all(|line| line.starts_with("ipcmutex[")), "{language}: {told}");
                    let warned = told.lines().any(|line| line.contains(" warn: ") && line.contains(&lock));
                    assert!(!warned, "{language}: nothing was wrong with it: {told}");
                }
            }
        }
    }
}
