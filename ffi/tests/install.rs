//! `install.sh`: what it puts where. That pkg-config and CMake users find it is seen by `tests/packages/c.sh`.

use std::path::Path;
use std::process::Command;

mod common;

use common::{crate_dir, library};

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Installs the libraries of this build, and `true` in place of the command, which is another crate's.
fn install(scratch: &Path, prefix: &Path, destdir: Option<&Path>) {
    run(&mut installer(scratch, prefix, destdir));
}

fn installer(scratch: &Path, prefix: &Path, destdir: Option<&Path>) -> Command {
    let build = scratch.join("build");
    if !build.exists() {
        std::fs::create_dir(&build).unwrap();
        for name in ["libipcmutex.so", "libipcmutex.a"] {
            std::os::unix::fs::symlink(library().join(name), build.join(name)).unwrap();
        }
        std::os::unix::fs::symlink("/bin/true", build.join("ipcmutex")).unwrap();
    }
    let mut command = Command::new(crate_dir().join("install.sh"));
    command.env("PREFIX", prefix).env("BUILD", build).env_remove("LIBDIR").env_remove("DESTDIR");
    if let Some(destdir) = destdir {
        command.env("DESTDIR", destdir);
    }
    command
}

/// With `id` and `ldconfig` of our own in front of the system's. Without its cache no program starts that is linked with what lies in
/// /usr/local/lib.
#[test]
fn the_loaders_cache_is_renewed_where_the_system_looks() {
    let scratch = tempfile::tempdir().unwrap();
    let (bin, told) = (scratch.path().join("bin"), scratch.path().join("told"));
    std::fs::create_dir(&bin).unwrap();
    let program = |name: &str, text: String| {
        std::fs::write(bin.join(name), format!("#!/bin/sh\n{text}\n")).unwrap();
        std::fs::set_permissions(bin.join(name), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    };
    let (inside, elsewhere) = (scratch.path().join("inside"), scratch.path().join("elsewhere"));
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    // Who installs, where, whether ldconfig works: how often it ran, and what was said.
    let case = |uid: u32, prefix: &Path, destdir: Option<&Path>, works: bool| {
        let looked_through = inside.join("lib");
        program("id", format!("echo {uid}"));
        program(
            "ldconfig",
            format!(
                "if [ $# -gt 0 ]; then echo '{}: (from /etc/ld.so.conf:1)'; else echo ran >> {}; {works}; fi",
                looked_through.display(),
                told.display()
            ),
        );
        let _ = std::fs::remove_file(&told);
        let out = installer(scratch.path(), prefix, destdir).env("PATH", &path).output().unwrap();
        let said = String::from_utf8(out.stderr).unwrap();
        assert!(out.status.success(), "{said}");
        (std::fs::read_to_string(&told).unwrap_or_default().lines().count(), said)
    };
    assert_eq!(case(0, &inside, None, true), (1, String::new()));
    let (ran, said) = case(0, &inside, None, false);
    assert!(ran == 1 && said.contains("ldconfig failed") && said.contains("libipcmutex.so.0"), "{said}");
    assert_eq!(case(1000, &inside, None, true).0, 0, "not root");
    assert_eq!(case(0, &elsewhere, None, true).0, 0, "a folder of one's own");
    assert_eq!(case(0, &inside, Some(&scratch.path().join("stage")), true).0, 0, "for a package");
}

#[test]
fn packagers_get_all_of_it_under_destdir() {
    let scratch = tempfile::tempdir().unwrap();
    let stage = scratch.path().join("stage");
    install(scratch.path(), Path::new("/opt/x"), Some(&stage));
    let version = env!("CARGO_PKG_VERSION");
    let installed = run(Command::new("find").current_dir(&stage).args([".", "-type", "f", "-o", "-type", "l"]));
    let mut installed: Vec<&str> = installed.lines().filter(|file| !file.contains("/share/man/")).collect();
    installed.sort();
    assert!(stage.join("opt/x/share/man/man1/ipcmutex.1").exists());
    the_manual_has_each_function(&stage.join("opt/x/share/man/man3/ipcmutex.3"));
    let library = format!("./opt/x/lib/libipcmutex.so.{version}");
    assert_eq!(
        installed,
        [
            "./opt/x/bin/ipcmutex",
            "./opt/x/include/ipcmutex.h",
            "./opt/x/lib/cmake/ipcmutex/ipcmutex-config-version.cmake",
            "./opt/x/lib/cmake/ipcmutex/ipcmutex-config.cmake",
            "./opt/x/lib/libipcmutex.a",
            "./opt/x/lib/libipcmutex.so",
            "./opt/x/lib/libipcmutex.so.0",
            &library,
            "./opt/x/lib/pkgconfig/ipcmutex.pc",
            "./opt/x/share/bash-completion/completions/ipcmutex",
            "./opt/x/share/fish/vendor_completions.d/ipcmutex.fish",
            "./opt/x/share/zsh/site-functions/_ipcmutex",
        ]
    );
    let pc = std::fs::read_to_string(stage.join("opt/x/lib/pkgconfig/ipcmutex.pc")).unwrap();
    assert!(pc.starts_with("prefix=/opt/x\n") && pc.contains(&format!("\nVersion: {version}\n")), "{pc}");
    assert!(!pc.contains('@') && !pc.contains("stage"), "{pc}");
    assert!(
        std::fs::read_link(stage.join("opt/x/lib/libipcmutex.so.0"))
            .unwrap()
            .ends_with(library.rsplit('/').next().unwrap())
    );
}

fn the_manual_has_each_function(page: &Path) {
    let text = std::fs::read_to_string(page).unwrap();
    let header = std::fs::read_to_string(crate_dir().join("../include/ipcmutex.h")).unwrap();
    let declared: Vec<&str> = header
        .lines()
        .filter(|line| line.starts_with(|first: char| first.is_ascii_lowercase()) && !line.starts_with("typedef"))
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .collect();
    assert!(declared.len() > 20, "{declared:?}");
    for name in declared {
        let (_, about) = text.split_once(&format!("\n.SS {name}()\n")).unwrap_or_else(|| panic!("no {name} in {text}"));
        let about = about.split_once("\n.SS ").map_or(about, |(about, _)| about);
        assert!(
            about.split_once("\n.PP\n").is_some_and(|(_, words)| words.len() > 40),
            "{name} is not explained: {about}"
        );
    }
    for part in ["CAVEATS", "THREADS", "FORK", "SIGNALS", "TYPES AND CONSTANTS"] {
        assert!(text.contains(&format!("\n.SH {part}\n")), "{part}");
    }
    if Command::new("groff").arg("--version").output().is_ok() {
        let out = Command::new("groff").args(["-man", "-ww", "-z", "-Tutf8"]).arg(page).output().unwrap();
        assert!(out.status.success() && out.stderr.is_empty(), "{}", String::from_utf8_lossy(&out.stderr));
    }
}
