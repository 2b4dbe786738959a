//! `include/ipcmutex.h` is what the sources say, and compiles wherever C is spoken.
//!
//! After a change of the sources: `IPCMUTEX_BLESS=1 cargo test -p ipcmutex-ffi --test header`.

use std::path::{Path, PathBuf};
use std::process::Command;

use ipcmutex_core::ErrorKind;

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header_path() -> PathBuf {
    crate_dir().join("../include/ipcmutex.h")
}

/// What is not Rust in the sources: versions, codes, states. The codes come from core's one table.
fn constants() -> String {
    let version: Vec<u32> = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse().unwrap()).collect();
    let [major, minor, patch] = version[..] else { panic!("a version has three parts") };
    let mut text = format!(
        "
/** The version of this header. ipcmutex_version() tells the library's. */
#define IPCMUTEX_VERSION \"{major}.{minor}.{patch}\"
#define IPCMUTEX_VERSION_MAJOR {major}
#define IPCMUTEX_VERSION_MINOR {minor}
#define IPCMUTEX_VERSION_PATCH {patch}
/** One number to compare: major * 1000000 + minor * 1000 + patch. */
#define IPCMUTEX_VERSION_NUMBER {}
/** The number of the binary interface, as in libipcmutex.so.{abi}. ipcmutex_abi_version() tells the library's. */
#define IPCMUTEX_ABI_VERSION {abi}

/** What functions return. A number keeps its meaning for ever. */
enum ipcmutex_code {{
  IPCMUTEX_OK = 0,
",
        major * 1_000_000 + minor * 1_000 + patch,
        abi = abi(),
    );
    for (at, kind) in ErrorKind::ALL.iter().enumerate() {
        let comma = if at + 1 < ErrorKind::ALL.len() { "," } else { "" };
        text.push_str(&format!("  /** {} */\n  IPCMUTEX_{} = {}{comma}\n", kind.text(), kind.name(), *kind as i32));
    }
    text.push_str(
        "};

/** The `state` of ipcmutex_status_t. */
enum ipcmutex_state {
  /** Nobody holds it. */
  IPCMUTEX_FREE = 0,
  /** Somebody holds it. */
  IPCMUTEX_HELD = 1,
  /** Nobody holds it, and the last hold ended without a release. */
  IPCMUTEX_ABANDONED = 2
};",
    );
    text
}

/// The number in the SONAME.
fn abi() -> u32 {
    let build = std::fs::read_to_string(crate_dir().join("build.rs")).unwrap();
    let (_, rest) = build.split_once("-soname,libipcmutex.so.").expect("build.rs sets the SONAME");
    rest.split('"').next().unwrap().parse().unwrap()
}

fn generate() -> String {
    let mut config = cbindgen::Config::from_file(crate_dir().join("cbindgen.toml")).unwrap();
    config.after_includes = Some(constants());
    let mut builder = cbindgen::Builder::new().with_config(config);
    for source in ["types", "mutex", "hold", "library"] {
        builder = builder.with_src(crate_dir().join(format!("src/{source}.rs")));
    }
    let mut text = Vec::new();
    builder.generate().unwrap().write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_header_is_what_the_sources_say() {
    let fresh = generate();
    let committed = std::fs::read_to_string(header_path()).unwrap_or_default();
    if fresh == committed {
        return;
    }
    if std::env::var_os("IPCMUTEX_BLESS").is_some() {
        std::fs::write(header_path(), fresh).unwrap();
        return;
    }
    let differing = fresh.lines().zip(committed.lines()).position(|(fresh, committed)| fresh != committed);
    let line = differing.unwrap_or_else(|| fresh.lines().count().min(committed.lines().count())) + 1;
    panic!(
        "include/ipcmutex.h differs from the sources from line {line} on; run\n  \
         IPCMUTEX_BLESS=1 cargo test -p ipcmutex-ffi --test header"
    );
}

#[test]
fn the_header_compiles_alone_and_twice_in_c_and_cpp() {
    let dir = tempfile::tempdir().unwrap();
    let strict = ["-Wall", "-Wextra", "-pedantic", "-Werror", "-fsyntax-only"];
    for (compiler, standard, suffix) in [
        ("gcc", "-std=c99", "c"),
        ("gcc", "-std=c11", "c"),
        ("gcc", "-std=c2x", "c"),
        ("g++", "-std=c++98", "cpp"),
        ("g++", "-std=c++20", "cpp"),
    ] {
        for (name, text) in
            [("alone", "#include <ipcmutex.h>\n"), ("twice", "#include <ipcmutex.h>\n#include <ipcmutex.h>\n")]
        {
            let file = dir.path().join(format!("{name}.{suffix}"));
            // ISO C forbids an empty translation unit.
            std::fs::write(&file, format!("{text}int ipcmutex_header_test;\n")).unwrap();
            let mut command = Command::new(compiler);
            command.arg(standard).args(strict);
            if standard == "-std=c++98" {
                command.arg("-Wno-long-long"); // stdint.h's own, before C++11
            }
            let out = command.arg("-I").arg(header_path().parent().unwrap()).arg(&file).output().unwrap();
            assert!(out.status.success(), "{compiler} {standard} {name}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
