//! The programs of the README run as they stand there.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use ipcmutex_tests::artifacts;

/// The fenced blocks with this tag.
fn blocks(tag: &str) -> Vec<String> {
    let readme = std::fs::read_to_string(artifacts::checkout().join("README.md")).expect("there is a README");
    let mut found = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if line.strip_prefix("```").is_some_and(|named| named.trim() == tag) {
            found.push(
                lines.by_ref().take_while(|line| !line.starts_with("```")).map(|line| format!("{line}\n")).collect(),
            );
        } else if line.starts_with("```") {
            lines.by_ref().take_while(|line| !line.starts_with("```")).for_each(drop);
        }
    }
    assert!(!found.is_empty(), "README.md has no example tagged ```{tag}");
    found
}

#[track_caller]
fn run(command: &mut Command) {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{command:?}: {status}\n{stdout}{stderr}");
}

/// Runs each block in a folder of its own; `program` makes the command out of the folder and the block.
fn each(tag: &str, parent: Option<&Path>, program: impl Fn(&Path, &str) -> Command) {
    for block in blocks(tag) {
        let mut builder = tempfile::Builder::new();
        builder.prefix("ipcmutex-readme-");
        let folder = match parent {
            Some(parent) => builder.tempdir_in(parent),
            None => builder.tempdir(),
        };
        let folder = folder.expect("a folder");
        let path = format!(
            "{}:{}",
            artifacts::installed().join("bin").display(),
            std::env::var("PATH").expect("there is a PATH")
        );
        run(program(folder.path(), &block)
            .current_dir(folder.path())
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", artifacts::installed().join("lib"))
            .env("IPCMUTEX_DIR", folder.path().join("locks")));
    }
}

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    std::fs::create_dir_all(folder.join("locks")).expect("a folder");
    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(folder.join("locks"), permissions).expect("our folder");
    let path = folder.join(name);
    std::fs::write(&path, text).expect("a temporary file");
    path
}

#[test]
fn c() {
    each("c", None, |folder, block| {
        let installed = artifacts::installed();
        let source = write(folder, "main.c", block);
        let mut gcc = Command::new("gcc");
        gcc.args(["-Wall", "-Wextra", "-Werror", "-I"]).arg(installed.join("include")).arg(source);
        run(gcc.arg("-L").arg(installed.join("lib")).args(["-lipcmutex", "-o"]).arg(folder.join("main")));
        Command::new(folder.join("main"))
    });
}

#[test]
fn rust() {
    each("rust", None, |folder, block| {
        let source = write(folder, "main.rs", block);
        let programs = artifacts::programs();
        let library = format!("ipcmutex={}", artifacts::program("libipcmutex.rlib").display());
        let dependencies = format!("dependency={}", programs.join("deps").display());
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        rustc.args(["--edition=2024", "--extern", &library, "-L", &dependencies]).arg(source);
        run(rustc.arg("-o").arg(folder.join("main")));
        Command::new(folder.join("main"))
    });
}

#[test]
fn python() {
    each("python", None, |folder, block| {
        let mut command = Command::new(artifacts::python());
        command.args(["-W", "error"]).arg(write(folder, "main.py", block));
        command
    });
}

#[test]
fn node() {
    let modules = artifacts::node_modules();
    each("js", modules.parent(), |folder, block| {
        let name = if block.contains("import ") { "main.mjs" } else { "main.cjs" };
        let mut command = Command::new(artifacts::node());
        command.arg(write(folder, name, block));
        command
    });
}

#[test]
fn shell() {
    each("sh", None, |folder, block| {
        let mut command = Command::new("sh");
        command.arg("-eu").arg(write(folder, "main.sh", block));
        command
    });
}
