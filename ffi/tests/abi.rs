//! The library's binary interface is that of `abi/libipcmutex.abi`: abidiff compares symbols, parameters and structs.
//!
//! After an addition: `IPCMUTEX_BLESS=1 cargo test -p ipcmutex-ffi --test abi`. After anything that breaks programs which
//! are linked already, first raise the number in `build.rs`.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

mod common;

use common::{crate_dir, library, tool};

/// The bits of abidiff's exit code that say it could not compare.
const FAILED: i32 = 1 | 2;

fn abi(file: &str) -> PathBuf {
    crate_dir().join("abi").join(file)
}

fn compare(baseline: &Path) -> Output {
    let mut abidiff = Command::new("abidiff");
    abidiff.arg("--suppressions").arg(abi("ours.suppr")).arg(baseline).arg(library().join("libipcmutex.so"));
    abidiff.output().unwrap()
}

#[test]
fn c8_the_abi_is_the_kept_one() {
    if !tool("abidiff") {
        return;
    }
    if std::env::var_os("IPCMUTEX_BLESS").is_some() {
        let mut abidw = Command::new("abidw");
        abidw.args([
            "--no-corpus-path",
            "--no-comp-dir-path",
            "--no-show-locs",
            "--no-elf-needed",
            "--no-parameter-names",
        ]);
        abidw.arg("--suppressions").arg(abi("ours.suppr")).arg("--out-file").arg(abi("libipcmutex.abi"));
        assert!(abidw.arg(library().join("libipcmutex.so")).status().unwrap().success());
    }
    let out = compare(&abi("libipcmutex.abi"));
    assert!(
        out.status.success(),
        "bless it if nothing was changed or removed; else raise the ABI's number in build.rs first:\n{}{}",
        String::from_utf8_lossy(&out.stdout),
        String::from_utf8_lossy(&out.stderr)
    );
}

/// The comparison sees what it is there for, in a baseline from which the library differs.
#[test]
fn c8_breaks_of_the_abi_are_seen() {
    if !tool("abidiff") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let kept = std::fs::read_to_string(abi("libipcmutex.abi")).unwrap();
    let (_, declared) = kept.split_once("<function-decl name='ipcmutex_acquire_timeout'").unwrap();
    let two_parameters = declared.split_once("</function-decl>").unwrap().0;
    let last = two_parameters.rfind("<parameter").unwrap();
    let one_parameter = &two_parameters[..last];
    let (_, size) = kept.split_once("name='ipcmutex_status_t' size-in-bits='").unwrap();
    let status = format!("name='ipcmutex_status_t' size-in-bits='{}'", size.split_once('\'').unwrap().0);
    let known = "<elf-symbol name='ipcmutex_version'";
    let gone = format!("{} type='func-type' is-defined='yes'/>{known}", known.replace("version", "gone"));
    for (what, from, to) in [
        ("a function is gone", known, gone.as_str()),
        ("a struct has another size", status.as_str(), "name='ipcmutex_status_t' size-in-bits='1216'"),
        ("a parameter more", two_parameters, &format!("{one_parameter}<return type-id='type-id-2'/>")),
        ("the name of the library", "soname='libipcmutex.so.0'", "soname='libipcmutex.so.9'"),
    ] {
        assert!(kept.contains(from) && from != to, "the baseline has {from}");
        let broken = dir.path().join("broken.abi");
        std::fs::write(&broken, kept.replace(from, to)).unwrap();
        let out = compare(&broken);
        assert!(out.status.code().is_some_and(|code| code & FAILED == 0 && code != 0), "{what}: {out:?}");
    }
}

/// What is built here runs where glibc is 2.17, if it is linked there: each name that must be found was there then.
/// (A name that came later is looked for at run time, by a weak reference.)
#[test]
fn it_needs_no_function_that_an_old_glibc_lacks() {
    let symbols = |file: &Path| {
        let told = Command::new("objdump").arg("-T").arg(file).output().expect("binutils come with gcc");
        assert!(told.status.success(), "{told:?}");
        String::from_utf8(told.stdout).expect("it is text")
    };
    let is_new = |line: &&str| {
        let version = line.split("GLIBC_2.").nth(1).and_then(|rest| rest.split(['.', ')', ' ']).next());
        version.is_some_and(|minor| minor.parse::<u32>().expect("a number") > 17)
    };
    let name = |line: &str| line.split_whitespace().last().unwrap_or_default().to_owned();
    let libc = std::fs::read_to_string("/proc/self/maps").expect("it is Linux");
    let libc = libc.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.ends_with("/libc.so.6"));
    let there = symbols(Path::new(libc.expect("this test is linked with it")));
    // Once functions of a library that every program had.
    let stat = ["stat64", "lstat64", "fstat64", "fstatat64", "stat", "lstat", "fstat", "fstatat"];
    let ours = symbols(&library().join("libipcmutex.so"));
    let strong = ours.lines().filter(|line| line.contains("*UND*") && !line.contains(" w "));
    let missing: Vec<String> = strong
        .filter(is_new)
        .map(name)
        .filter(|wanted| {
            let was_there = |line: &str| line.contains(".text") && line.contains("GLIBC_2.") && name(line) == *wanted;
            !stat.contains(&wanted.as_str()) && !there.lines().any(|line| was_there(line) && !is_new(&line))
        })
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}
