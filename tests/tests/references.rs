//! What the references of the languages name: the header and its manual page, `cargo doc`, `help(ipcmutex)`, the `.d.ts`, the
//! command's manual page. Each names all that there is, and all of them say the same of URLs.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use ipcmutex::url::SCHEMES;
use ipcmutex::{ErrorKind, Mutex};
use ipcmutex_tests::artifacts;
use ipcmutex_tests::surface::{C_FUNCTIONS, CODES, COMMAND, NODE_HOLD, NODE_MUTEX, NODE_STATUS, PYTHON};

fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn told(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn source(path: &str) -> String {
    read(artifacts::checkout().join(path))
}

fn manual(section: u32) -> String {
    // Without roff's own marks.
    read(artifacts::installed().join(format!("share/man/man{section}/ipcmutex.{section}")))
        .replace("\\-", "-")
        .replace("\\fB", "")
        .replace("\\fI", "")
        .replace("\\fR", "")
}

fn help() -> String {
    let script = "import pydoc, ipcmutex; print(pydoc.plain(pydoc.render_doc(ipcmutex)))";
    told(Command::new(artifacts::python()).args(["-c", script]))
}

/// Every reference, by name.
fn references() -> [(&'static str, String); 6] {
    [
        ("include/ipcmutex.h", source("include/ipcmutex.h")),
        ("ipcmutex(3)", manual(3)),
        ("cargo doc", source("core/src/lib.rs")),
        ("help(ipcmutex)", help()),
        ("index.d.ts", source("bindings/node/index.d.ts")),
        ("ipcmutex(1)", manual(1)),
    ]
}

/// Word by word, without what makes a comment or a block of them.
fn words(text: &str) -> String {
    const BLOCKS: [&str; 5] = [".nf", ".fi", ".RS", ".RE", ".PP"];
    let lines = text
        .lines()
        .filter(|line| !BLOCKS.iter().any(|request| line.starts_with(request)))
        .map(|line| line.trim_start().trim_start_matches("//!").trim_start_matches(['*', '|']).trim());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// Whether `text` has `name`, and not as a part of another.
fn has(text: &str, name: &str) -> bool {
    let part = |character: char| character.is_ascii_alphanumeric() || character == '_';
    text.match_indices(name).any(|(at, _)| {
        let ends = !name.ends_with(part) || !text[at + name.len()..].starts_with(part);
        ends && !(name.starts_with(part) && text[..at].ends_with(part))
    })
}

#[track_caller]
fn names_all<'a>(reference: &str, text: &str, names: impl IntoIterator<Item = &'a str>) {
    let missing: Vec<&str> = names.into_iter().filter(|name| !has(text, name)).collect();
    assert!(missing.is_empty(), "{reference} does not name {missing:?}");
}

/// What an error says is known.
fn known(url: &str) -> Vec<String> {
    let error = Mutex::open(url).expect_err("nobody knows zz").to_string();
    let (_, known) = error.rsplit_once(": ").expect("it lists them");
    known.split(", ").map(str::to_owned).collect()
}

#[test]
fn urls_are_the_same_everywhere() {
    let header = source("include/ipcmutex.h");
    let (_, section) = header.split_once("* URLS").expect("a section");
    let (section, _) = section.split_once("* CONVENTIONS").expect("the next one");
    let section = words(section);
    names_all("the header's URLS", &section, SCHEMES.iter().copied());
    for url in ["spm:x?zz=1", "mpm:x?zz=1", "rpm+redis://h/x?zz=1", "rpm+redis+sentinel://h/m/x?zz=1"] {
        let keys = known(url);
        assert!(keys.len() >= 2 && keys.iter().any(|key| key == "fair"), "{keys:?}");
        names_all(
            "the header's URLS",
            &section,
            keys.iter().map(|key| format!("{key}=")).collect::<Vec<_>>().iter().map(String::as_str),
        );
    }
    for (reference, text) in references() {
        assert!(words(&text).contains(section.trim()), "{reference} says something else of URLs than the header");
    }
}

#[test]
fn codes() {
    let header: Vec<String> = CODES.iter().map(|(name, _)| format!("IPCMUTEX_{name}")).collect();
    names_all("the header", &source("include/ipcmutex.h"), header.iter().map(String::as_str));
    names_all("ipcmutex(3)", &manual(3), CODES.iter().map(|(name, _)| *name));
    let elsewhere = || ErrorKind::ALL.iter().filter(|kind| !matches!(kind, ErrorKind::BadHandle));
    names_all("help(ipcmutex)", &help(), elsewhere().map(|kind| kind.python_class()));
    let node: Vec<String> = elsewhere().map(|kind| format!("\"ERR_IPCMUTEX_{}\"", kind.name())).collect();
    names_all("index.d.ts", &source("bindings/node/index.d.ts"), node.iter().map(String::as_str));
    let program = artifacts::program("ipcmutex");
    let exits: BTreeSet<String> = ErrorKind::ALL.iter().map(|kind| kind.exit_code().to_string()).collect();
    for (reference, text) in
        [("run --help", told(Command::new(program).args(["run", "--help"]))), ("ipcmutex(1)", manual(1))]
    {
        names_all(reference, &text, exits.iter().map(String::as_str).chain(["128", "126", "127"]));
    }
}

#[test]
fn functions_of_c() {
    let exported = told(
        Command::new("nm").args(["--dynamic", "--defined-only"]).arg(artifacts::installed().join("lib/libipcmutex.so")),
    );
    let exported: BTreeSet<&str> = exported.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    let exported: BTreeSet<&str> = exported.into_iter().map(|name| name.split('@').next().unwrap_or(name)).collect();
    let functions: BTreeSet<&str> =
        exported.into_iter().filter(|name| name.starts_with("ipcmutex_") && *name != "ipcmutex_spm_v1").collect();
    assert_eq!(functions, C_FUNCTIONS.iter().copied().collect());
    names_all("include/ipcmutex.h", &source("include/ipcmutex.h"), functions.iter().copied());
    names_all("ipcmutex(3)", &manual(3), functions);
}

#[test]
fn python_tells_of_each_name_and_each_parameter() {
    let script = r#"
import inspect, ipcmutex
for name in ipcmutex.__all__:
    value = getattr(ipcmutex, name)
    if name.startswith("__"):
        continue
    assert inspect.getdoc(value), name
    if issubclass(value, BaseException):
        continue
    for member, function in vars(value).items():
        if member.startswith("_"):
            continue
        assert inspect.getdoc(function), f"{name}.{member}"
        if callable(function):
            inspect.signature(function)
        print(f"{name}.{member}")
"#;
    let members = told(Command::new(artifacts::python()).args(["-c", script]));
    let stub =
        source("bindings/python/python/ipcmutex/_ipcmutex.pyi") + &source("bindings/python/python/ipcmutex/_aio.py");
    let help = help();
    for member in members.lines().filter_map(|line| line.split_once('.').map(|(_, member)| member)) {
        names_all("help(ipcmutex)", &help, [member]);
        names_all("the stubs", &stub, [member]);
    }
    for (class, names) in PYTHON {
        let members: Vec<&str> = members.lines().filter_map(|line| line.strip_prefix(&format!("{class}."))).collect();
        let missing: Vec<_> = names.iter().filter(|name| !name.starts_with('_') && !members.contains(name)).collect();
        assert!(missing.is_empty(), "{class} has no {missing:?} of its own");
    }
}

#[test]
fn node_tells_of_each_name() {
    let script = "const M = require('ipcmutex');
        for (const [name, of] of [['Mutex', M], ['Hold', M.Hold]])
            for (const member of Object.getOwnPropertyNames(of.prototype)) console.log(`${name}.${member}`)
        for (const name of Object.keys(M)) console.log(`export.${name}`)";
    let modules = artifacts::node_modules();
    let folder = modules.parent().expect("it lies in a folder");
    let real = told(Command::new(artifacts::node()).current_dir(folder).args(["-e", script]));
    let types = source("bindings/node/index.d.ts");
    for (class, names) in [("Mutex", NODE_MUTEX), ("Hold", NODE_HOLD)] {
        let (_, body) = types.split_once(&format!("declare class {class} {{")).expect("it is declared");
        let (body, _) = body.split_once("\n}").expect("it ends");
        let lines: Vec<&str> = body.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let mut declared = BTreeSet::new();
        for (at, line) in lines.iter().enumerate() {
            if line.starts_with(['/', '*', '[']) || line.starts_with("ERR_") || line.contains("constructor ") {
                continue;
            }
            let name = line.trim_start_matches("readonly ");
            let name = name.split([' ', '(', ':', '<']).next().unwrap_or(name);
            assert!(at > 0 && lines[at - 1].ends_with("*/"), "index.d.ts says nothing of {class}.{name}");
            declared.insert(name);
        }
        let real = real.lines().filter_map(|line| line.strip_prefix(&format!("{class}.")));
        let real: BTreeSet<&str> = real.filter(|name| *name != "constructor").collect();
        assert_eq!(declared, real, "{class} in index.d.ts, and as it is");
        assert!(names.iter().all(|name| real.contains(name)), "{class}");
    }
    names_all("index.d.ts", &types, NODE_STATUS.iter().copied().chain(["timeout", "signal"]));
    let module = source("bindings/node/index.d.mts");
    names_all("index.d.mts", &module, real.lines().filter_map(|line| line.strip_prefix("export.")));
}

#[test]
fn the_commands_words() {
    let (manual, completions) =
        (manual(1), read(artifacts::installed().join("share/bash-completion/completions/ipcmutex")));
    let program = artifacts::program("ipcmutex");
    for (name, _) in COMMAND {
        let help = told(Command::new(&program).args([name, "--help"]));
        let options = help.lines().map(str::trim).filter(|line| line.starts_with('-'));
        let options = options.flat_map(|line| line.split([' ', ',']).take(3)).filter(|word| word.starts_with('-'));
        // Each has it; the manual says so once.
        let options: Vec<&str> = options.filter(|option| !["-h", "--help"].contains(option)).chain([*name]).collect();
        for option in options {
            assert!(manual.contains(option), "ipcmutex(1) does not name `{option}` of `{name}`");
            assert!(completions.contains(option), "the completions do not know `{option}` of `{name}`");
        }
    }
    names_all(
        "ipcmutex(1)",
        &manual,
        ["IPCMUTEX_LOCK", "IPCMUTEX_TOKEN", "IPCMUTEX_ABANDONED", "IPCMUTEX_DIR", "IPCMUTEX_LOG", "REDIS_URL"],
    );
}
