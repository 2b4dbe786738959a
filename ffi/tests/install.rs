//! `install.sh`: what it puts where, and that pkg-config and CMake users find it.

use std::path::Path;
use std::process::Command;

mod common;

use common::{crate_dir, library};

const CONSUMER: &str = "#include <ipcmutex.h>
#include <string.h>
int main(void) {
  ipcmutex_t mutex;
  return strcmp(ipcmutex_version(), IPCMUTEX_VERSION) || ipcmutex_open(\"spm:consumer\", &mutex) || ipcmutex_acquire(mutex)
    || ipcmutex_close(mutex);
}
";

fn run(command: &mut Command) -> String {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// Installs the libraries of this build, and `true` in place of the command, which is another crate's.
fn install(scratch: &Path, prefix: &Path, destdir: Option<&Path>) {
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
    run(&mut command);
}

#[test]
fn pkg_config_users_find_it() {
    let scratch = tempfile::tempdir().unwrap();
    let prefix = scratch.path().join("usr");
    install(scratch.path(), &prefix, None);
    install(scratch.path(), &prefix, None); // Twice is as once.
    let source = scratch.path().join("consumer.c");
    std::fs::write(&source, CONSUMER).unwrap();
    for linking in ["", "--static"] {
        let mut pkg_config = Command::new("pkg-config");
        pkg_config.env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")).args(["--cflags", "--libs"]);
        if !linking.is_empty() {
            pkg_config.arg(linking);
        }
        let flags = run(pkg_config.arg("ipcmutex"));
        let program = scratch.path().join(format!("consumer{linking}"));
        let mut gcc = Command::new("gcc");
        gcc.args(["-Wall", "-Werror", "-o"]).arg(&program).arg(&source);
        for flag in flags.split_whitespace() {
            // -l takes the shared library where there is one.
            gcc.arg(if flag == "-lipcmutex" && linking == "--static" { "-l:libipcmutex.a" } else { flag });
        }
        run(&mut gcc);
        let needed = run(Command::new("readelf").arg("-dW").arg(&program));
        assert_eq!(needed.contains("[libipcmutex.so.0]"), linking.is_empty(), "{needed}");
        run(Command::new(&program).env("LD_LIBRARY_PATH", prefix.join("lib")));
    }
}

#[test]
fn cmake_users_find_it() {
    if Command::new("cmake").arg("--version").output().is_err() {
        eprintln!("SKIPPED: cmake is missing");
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let prefix = scratch.path().join("usr");
    install(scratch.path(), &prefix, None);
    let moved = scratch.path().join("moved");
    std::fs::rename(&prefix, &moved).unwrap();
    std::fs::write(scratch.path().join("consumer.c"), CONSUMER).unwrap();
    std::fs::write(
        scratch.path().join("CMakeLists.txt"),
        format!(
            "cmake_minimum_required(VERSION 3.16)
project(consumer C)
find_package(ipcmutex {} REQUIRED)
add_executable(shared consumer.c)
target_link_libraries(shared ipcmutex::ipcmutex)
add_executable(static consumer.c)
target_link_libraries(static ipcmutex::static)
",
            env!("CARGO_PKG_VERSION")
        ),
    )
    .unwrap();
    let out = scratch.path().join("out");
    let root = format!("-DCMAKE_PREFIX_PATH={}", moved.display());
    run(Command::new("cmake").arg("-S").arg(scratch.path()).arg("-B").arg(&out).arg(root));
    run(Command::new("cmake").arg("--build").arg(&out));
    for program in ["shared", "static"] {
        run(&mut Command::new(out.join(program)));
    }
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
