//! Every name of `surface.rs` exists, in the header and in the libraries, in the packages and in the command.

use std::path::Path;
use std::process::{Command, Output};

use ipcmutex::ErrorKind;
use ipcmutex_tests::artifacts;
use ipcmutex_tests::surface::{
    C_FUNCTIONS, C_TYPES, CODES, COMMAND, JSON_STATUS, NODE_HOLD, NODE_MUTEX, NODE_STATUS, PYTHON, PYTHON_BASES,
};

/// Runs it; its output, which must end well.
#[track_caller]
fn run(command: &mut Command) -> String {
    let Output { status, stdout, stderr } = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let told = String::from_utf8_lossy(&stdout).into_owned();
    assert!(status.success(), "{command:?}: {status}\n{told}{}", String::from_utf8_lossy(&stderr));
    told
}

fn header() -> String {
    std::fs::read_to_string(artifacts::checkout().join("include/ipcmutex.h")).expect("the header is committed")
}

/// Compiles a C program that needs each function with its type, and runs it.
fn compiled(folder: &Path, link: &[&str]) {
    let installed = artifacts::installed();
    let program = folder.join("surface");
    let mut source = "#include <ipcmutex.h>\n#include <ipcmutex.h>\n".to_owned();
    for (name, value) in CODES {
        source.push_str(&format!("typedef char is_{name}[IPCMUTEX_{name} == {value} ? 1 : -1];\n"));
    }
    source.push_str(C_TYPES);
    std::fs::write(folder.join("surface.c"), source).expect("a temporary file");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I"]).arg(installed.join("include"));
    gcc.arg(folder.join("surface.c")).arg("-o").arg(&program).arg("-L").arg(installed.join("lib")).args(link);
    run(&mut gcc);
    run(Command::new(&program).env("LD_LIBRARY_PATH", installed.join("lib")));
}

#[test]
fn the_header() {
    let header = header();
    // What stands in a comment is not declared.
    let declared =
        |name: &str| header.lines().any(|line| !line.starts_with([' ', '/']) && line.contains(&format!("{name}(")));
    let missing: Vec<_> = C_FUNCTIONS.iter().filter(|name| !declared(name)).collect();
    assert!(missing.is_empty(), "not in the header: {missing:?}");
}

#[test]
fn the_shared_library() {
    compiled(tempfile::tempdir().expect("a folder").path(), &["-lipcmutex"]);
}

#[test]
fn the_static_library() {
    let link = ["-Wl,-Bstatic", "-lipcmutex", "-Wl,-Bdynamic", "-pthread", "-lgcc_s", "-lm", "-ldl"];
    compiled(tempfile::tempdir().expect("a folder").path(), &link);
}

#[test]
fn the_codes() {
    let table: Vec<(&str, i32)> = ErrorKind::ALL.iter().map(|kind| (kind.name(), *kind as i32)).collect();
    assert_eq!(table, CODES[1..]);
}

#[test]
fn python() {
    let mut script = "import builtins, ipcmutex\nmissing = []\n".to_owned();
    for (class, names) in PYTHON {
        for name in *names {
            script.push_str(&format!("hasattr(ipcmutex.{class}, {name:?}) or missing.append('{class}.{name}')\n"));
        }
    }
    let classes = ErrorKind::ALL.iter().filter(|kind| !matches!(kind, ErrorKind::BadHandle));
    for class in classes.map(|kind| kind.python_class()) {
        script.push_str(&format!(
            "issubclass(ipcmutex.{class}, ipcmutex.IpcMutexError) or missing.append('{class} of IpcMutexError')\n"
        ));
    }
    for (class, base) in PYTHON_BASES {
        script.push_str(&format!(
            "issubclass(ipcmutex.{class}, builtins.{base}) or missing.append('{class} of {base}')\n"
        ));
    }
    script.push_str("assert not missing, missing\n");
    run(Command::new(artifacts::python()).args(["-c", &script]));
}

#[test]
fn node() {
    let both = format!(
        "const mutex = new Mutex('spm:surface');
         const missing = {mutex:?}.filter((name) => typeof mutex[name] !== 'function');
         mutex.acquire().then(async (hold) => {{
           missing.push(...{hold:?}.filter((name) => !(name in hold)));
           const status = await mutex.status();
           missing.push(...{status:?}.filter((name) => !(name in status)));
           if (typeof hold[Symbol.asyncDispose ?? Symbol.for('nodejs.asyncDispose')] !== 'function') missing.push('dispose');
           if (typeof hold.token !== 'bigint' || typeof status.token !== 'bigint') missing.push('bigint');
           if (!(hold.signal instanceof AbortSignal)) missing.push('AbortSignal');
           await mutex.release();
           await mutex.close();
           if (missing.length) throw new Error(missing.join(' '));
         }});",
        mutex = NODE_MUTEX,
        hold = NODE_HOLD,
        status = NODE_STATUS,
    );
    let folder = artifacts::node_modules();
    let folder = folder.parent().expect("it lies in a folder");
    let imports = [
        ("module", "import { Mutex } from 'ipcmutex'; import other from 'ipcmutex'; if (other !== Mutex) throw 0;\n"),
        ("commonjs", "const Mutex = require('ipcmutex'); if (Mutex.Mutex !== Mutex) throw 0;\n"),
    ];
    for (kind, import) in imports {
        run(Command::new(artifacts::node()).current_dir(folder).args([
            &format!("--input-type={kind}"),
            "-e",
            &format!("{import}{both}"),
        ]));
    }
}

#[test]
fn the_command() {
    let program = artifacts::program("ipcmutex");
    let general = run(Command::new(&program).arg("--help"));
    for (name, options) in COMMAND {
        assert!(general.contains(name), "`{name}` is not in the help");
        let help = run(Command::new(&program).args([name, "--help"]));
        for option in *options {
            assert!(help.contains(option), "`{option}` is not in the help of `{name}`:\n{help}");
        }
    }
    let folder = tempfile::tempdir().expect("a folder");
    let lock = folder.path().join("lock");
    let status =
        run(Command::new(&program).arg("run").arg(&lock).arg("--").arg(&program).args(["status", "--json"]).arg(&lock));
    let status: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    for name in JSON_STATUS {
        assert!(status.get(name).is_some(), "no `{name}` in {status}");
    }
    assert!(status["token"].is_string(), "a token is larger than a number of JSON: {status}");
    let told = run(Command::new(&program).args(["run"]).arg(&lock).args([
        "--",
        "sh",
        "-c",
        "echo $IPCMUTEX_LOCK $IPCMUTEX_TOKEN",
    ]));
    let told: Vec<&str> = told.split_whitespace().collect();
    assert!(told.len() == 2 && told[0].ends_with("/lock") && told[1].parse::<u64>().is_ok(), "{told:?}");
}
