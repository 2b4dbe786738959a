//! The programs of README.md and docs/ run as they stand there, and what the pages name exists.
//!
//! A block runs if its tag is a language of ours alone (```` ```python ````). Behind the language, in brackets, stands why one does
//! not: ```` ```js (theirs) ````. A Redis server of the page's own is `$REDIS_URL`, and so `rpm+redis:///<id>`.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::Duration;

use ipcmutex::ErrorKind;
use ipcmutex_tests::artifacts;
use ipcmutex_tests::servers::{self, Redis};
use libtest_mimic::{Arguments, Failed, Trial};

/// A watchdog, not a stop-watch.
const LONG: Duration = Duration::from_secs(120);
const LANGUAGES: [&str; 5] = ["c", "rust", "python", "js", "sh"];
/// What stands in a block and is no program.
const NOT_PROGRAMS: [&str; 6] = ["text", "sql", "json", "ini", "toml", "make"];

type Outcome = Result<(), Failed>;

struct Page {
    name: String,
    text: String,
}

struct Block {
    line: usize,
    tag: String,
    body: String,
}

fn pages() -> Vec<Page> {
    let root = artifacts::checkout();
    let docs = std::fs::read_dir(root.join("docs")).into_iter().flatten().flatten().map(|entry| entry.path());
    let docs = docs.filter(|path| path.extension().is_some_and(|extension| extension == "md"));
    let mut paths: Vec<PathBuf> = docs.chain([root.join("README.md")]).collect();
    paths.sort();
    let page = |path: PathBuf| Page {
        name: path.strip_prefix(root).unwrap_or(&path).display().to_string(),
        text: std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())),
    };
    paths.into_iter().map(page).collect()
}

fn blocks(page: &Page) -> Vec<Block> {
    let mut found = Vec::new();
    let mut lines = page.text.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        let Some(tag) = line.strip_prefix("```") else { continue };
        let body = lines.by_ref().map(|(_, line)| line).take_while(|line| !line.starts_with("```"));
        let body = body.map(|line| format!("{line}\n")).collect();
        found.push(Block { line: at + 1, tag: tag.trim().to_owned(), body });
    }
    found
}

/// What a program of the pages finds around it: a folder, locks, and a server.
struct Place {
    folder: tempfile::TempDir,
    server: Option<Arc<Redis>>,
}

impl Place {
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, text).expect("a temporary file");
        path
    }

    fn run(&self, mut command: Command) -> Outcome {
        let bin = artifacts::installed().join("bin");
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
        command
            .current_dir(self.folder.path())
            .env("PATH", path)
            .env("LD_LIBRARY_PATH", artifacts::installed().join("lib"))
            .env("IPCMUTEX_DIR", self.folder.path().join("locks"));
        if let Some(server) = &self.server {
            // Ours, with its password; `redis_key` and its like need nothing else.
            command.env("REDIS_URL", server.url("").replace("rpm+redis", "redis"));
        }
        run(command)
    }
}

/// Runs to its end, or to the watchdog's.
fn run(mut command: Command) -> Outcome {
    let shown = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = rustix::process::Pid::from_child(&child);
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(child.wait_with_output()));
    let Ok(output) = told.recv_timeout(LONG) else {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        return Err(format!("it hangs: {shown}").into());
    };
    let output = output?;
    if output.status.success() {
        return Ok(());
    }
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{}: {shown}\n{stdout}{stderr}", output.status).into())
}

/// `before` makes what is there already when the program starts.
fn run_block(language: &str, body: &str, server: Option<Arc<Redis>>, before: fn(&Place)) -> Outcome {
    let modules = artifacts::node_modules();
    let mut builder = tempfile::Builder::new();
    builder.prefix("ipcmutex-prose-");
    let folder = match (language, modules.parent()) {
        // Where node looks for packages from a program's own folder.
        ("js", Some(beside)) => builder.tempdir_in(beside)?,
        _ => builder.tempdir()?,
    };
    let place = Place { folder, server };
    let locks = place.folder.path().join("locks");
    std::fs::create_dir(&locks)?;
    std::fs::set_permissions(&locks, std::os::unix::fs::PermissionsExt::from_mode(0o700))?;
    before(&place);
    match language {
        "c" => c(&place, body),
        "rust" => rust(&place, body),
        "python" => {
            let mut command = Command::new(artifacts::python());
            command.args(["-W", "error"]).arg(place.write("main.py", body));
            place.run(command)
        }
        "js" => {
            let mut command = Command::new(artifacts::node());
            let module = body.lines().any(|line| line.starts_with("import "));
            command.arg(place.write(if module { "main.mjs" } else { "main.cjs" }, body));
            place.run(command)
        }
        _ => {
            let mut command = Command::new("sh");
            command.arg("-eu").arg(place.write("main.sh", body));
            place.run(command)
        }
    }
}

fn c(place: &Place, body: &str) -> Outcome {
    let installed = artifacts::installed();
    let program = place.folder.path().join("main");
    let mut gcc = Command::new("gcc");
    gcc.args(["-Wall", "-Wextra", "-Werror", "-I"]).arg(installed.join("include")).arg(place.write("main.c", body));
    gcc.arg("-L").arg(installed.join("lib")).args(["-lipcmutex", "-o"]).arg(&program);
    run(gcc)?;
    place.run(Command::new(program))
}

fn rust(place: &Place, body: &str) -> Outcome {
    let programs = artifacts::programs();
    let program = place.folder.path().join("main");
    let library = format!("ipcmutex={}", artifacts::program("libipcmutex.rlib").display());
    let dependencies = format!("dependency={}", programs.join("deps").display());
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--extern", &library, "-L", &dependencies]).arg(place.write("main.rs", body));
    rustc.arg("-o").arg(&program);
    run(rustc)?;
    place.run(Command::new(program))
}

/// What the first program of a section of MIGRATION.md is asked besides, for it stands for what others wrote.
struct Beside {
    section: &'static str,
    why: &'static str,
    before: fn(&Place),
    then: &'static str,
}

const BESIDE: [Beside; 3] = [
    Beside {
        section: "live-mutex",
        why: "all usages of its readme",
        before: |_| (),
        then: r#"
      //  simple usage with key
       client.lock('key', function(err){
           //handle error
           client.unlock('key',function(err){
           // handle error, although unlocking errors should be very rare
           });
       });

       // *recommended usage* => for convenience and safety, you can use the unlock callback, which is bound
       // to the right key and internal call id for safety
      client.lock('key', function(err, unlock){
              // hanlde potential error
           unlock(function(err){
               // handle err, although unlocking errors should be very rare
           });
       });

      // using the unlock callback is basically equivalent to doing this:
       client.lock('key', function(err, unlock, id){
                    // hanlde potential error
            client.unlock('key', id, function(err){
                 // handle err, although unlocking errors should be very rare
            });
        });
new Mutex("mpm:key").acquire({ timeout: 60_000 }).then((last) => {
    if (held.size !== 0 || last.abandoned) throw new Error("something was left")
    last.release()
})
client.unlock("key", 0n, (err) => { if (!err) throw new Error("by another id") })
"#,
    },
    Beside {
        section: "distributed-lock",
        why: "theirs keeps ours out",
        // As theirs does it: `keyPrefix` and the scope's key.
        before: |place| {
            let server = place.server.as_ref().expect("a server");
            let set = server.command(&["SET", "<distributed-lock>theirs:lock", "bG9jaw==", "NX", "PX", "60000"]);
            assert_eq!(set.text(), "OK");
        },
        then: r#"lock.lock("theirs").then((id) => assert.equal(id, null))"#,
    },
    Beside {
        section: "Numbers for a dashboard",
        why: "one bad file hides no lock",
        before: |place| drop(place.write("locks/bad", "no lock file")),
        then: "",
    },
];

fn beside(page: &Page, name: &str, Beside { section, before, then, .. }: &Beside) -> Outcome {
    let (at, _) = page.text.match_indices(&format!("\n## {section}\n")).next().ok_or("no such section")?;
    let line = page.text[..at].lines().count();
    let block = blocks(page).into_iter().find(|block| block.line > line).ok_or("no program")?;
    let wanted = block.body.contains("rpm+redis://");
    if wanted && servers::skipped(name) {
        return Ok(());
    }
    let server = wanted.then(|| Arc::new(Redis::start()));
    run_block(&block.tag, &format!("{}\n{then}\n", block.body), server, *before)
}

/// One test per program, and one per page for its links.
fn trials() -> Vec<Trial> {
    let mut trials = Vec::new();
    for page in pages() {
        let server = Arc::new(std::sync::OnceLock::new());
        for Block { line, tag, body } in blocks(&page) {
            let name = format!("{}:{line} {tag}", page.name);
            let (language, reason) = tag.split_once(' ').unwrap_or((&tag, ""));
            let excused = reason.starts_with('(') && reason.ends_with(')');
            let language = language.to_owned();
            if LANGUAGES.contains(&language.as_str()) && reason.is_empty() {
                let server = server.clone();
                trials.push(Trial::test(name.clone(), move || {
                    let wanted = body.contains("rpm+redis://");
                    if wanted && servers::skipped(&name) {
                        return Ok(());
                    }
                    let server = wanted.then(|| server.get_or_init(|| Arc::new(Redis::start())).clone());
                    run_block(&language, &body, server, |_| ())
                }));
            } else if !excused && !NOT_PROGRAMS.contains(&tag.as_str()) {
                let complaint = format!("{name}: neither a language that runs nor a reason in brackets");
                trials.push(Trial::test(name, move || Err(complaint.into())));
            }
        }
        trials.push(Trial::test(format!("{}: links", page.name), move || links(&page)));
    }
    for case in &BESIDE {
        let name = format!("docs/MIGRATION.md: {}: {}", case.section, case.why);
        trials.push(Trial::test(name.clone(), move || {
            let page = pages().into_iter().find(|page| page.name == "docs/MIGRATION.md").ok_or("no page")?;
            beside(&page, &name, case)
        }));
    }
    trials.push(Trial::test("every code has its section", every_code_has_its_section));
    trials.push(Trial::test("tables are the sources'", tables_are_the_sources));
    trials.push(Trial::test("pictures are drawn by their script", pictures_are_drawn_by_their_script));
    trials.push(Trial::test("every test that is named exists", every_test_that_is_named_exists));
    trials
}

/// What a page links to is there.
fn links(page: &Page) -> Outcome {
    let folder = artifacts::checkout().join(&page.name);
    let folder = folder.parent().unwrap_or(Path::new("/"));
    let mut missing = Vec::new();
    for link in page.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let path = link.split('#').next().unwrap_or(link);
        if !link.contains("://") && !path.is_empty() && !folder.join(path).exists() {
            missing.push(link.to_owned());
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(format!("{}: no such file: {missing:?}", page.name).into()) }
}

/// TROUBLESHOOTING.md tells of each code of core's table, in its order, with what each language calls it.
fn every_code_has_its_section() -> Outcome {
    let text = std::fs::read_to_string(artifacts::checkout().join("docs/TROUBLESHOOTING.md"))?;
    let sections: Vec<&str> = text.split("\n## ").skip(1).collect();
    let mut at = 0;
    for kind in ErrorKind::ALL {
        let head = format!("{} ({})", kind.name(), *kind as i32);
        let found = sections.iter().position(|section| section.starts_with(&head));
        let Some(found) = found else { return Err(format!("no section `## {head}`").into()) };
        if found < at {
            return Err(format!("`## {head}` is not in the order of the table").into());
        }
        at = found;
        let class = format!("`{}`", kind.python_class());
        let exit = format!("exit {}", kind.exit_code());
        for word in [class.as_str(), kind.node_code(), &exit] {
            if !sections[found].contains(word) {
                return Err(format!("`## {head}` does not name {word}").into());
            }
        }
    }
    Ok(())
}

/// Tables that a page has from a source, `<!-- from path -->`, are still the source's.
fn tables_are_the_sources() -> Outcome {
    let mut seen = 0;
    for page in pages() {
        for part in page.text.split("<!-- from ").skip(1) {
            let (path, rest) = part.split_once(" -->\n").ok_or("a marker that does not end")?;
            let table: String =
                rest.lines().take_while(|line| line.starts_with('|')).map(|line| format!("//! {line}\n")).collect();
            let source = std::fs::read_to_string(artifacts::checkout().join(path))?;
            if table.lines().count() < 3 || !source.contains(&table) {
                return Err(format!("{}: the table is not the one of {path}", page.name).into());
            }
            seen += 1;
        }
    }
    if seen > 3 { Ok(()) } else { Err("no tables are compared".into()) }
}

/// The pictures are what their script draws.
fn pictures_are_drawn_by_their_script() -> Outcome {
    let mut python = Command::new("python3");
    python.arg(artifacts::checkout().join("docs/drawings/draw.py")).arg("--check");
    run(python)
}

/// The tests that MIGRATION.md names exist.
fn every_test_that_is_named_exists() -> Outcome {
    let mut sources = String::new();
    for folder in ["tests", "ffi/tests", "core/src", "bindings"] {
        read_sources(&artifacts::checkout().join(folder), &mut sources)?;
    }
    let text = std::fs::read_to_string(artifacts::checkout().join("docs/MIGRATION.md"))?;
    let list = text.split("\n## The whole list\n").nth(1).ok_or("no list")?;
    let named = list.split('`').skip(1).step_by(2).filter(|word| word.contains("::") && !word.contains('…'));
    let exists = |name: &str| {
        let own = name.rsplit("::").next().unwrap_or(name);
        let is_scenario = sources.contains(&format!("\"{name}\""));
        is_scenario || sources.contains(&format!("fn {own}(")) || sources.contains(&format!("def {own}("))
    };
    let mut missing: Vec<&str> = named.filter(|name| !exists(name)).collect();
    let rows = list.lines().filter(|line| line.starts_with("| ")).filter_map(|line| line.split(" | ").last());
    let quoted = rows.flat_map(|shown| shown.split('"').skip(1).step_by(2));
    missing.extend(quoted.filter(|title| !sources.contains(&format!("test(\"{title}\""))));
    if missing.is_empty() { Ok(()) } else { Err(format!("no such test: {missing:?}").into()) }
}

fn read_sources(folder: &Path, sources: &mut String) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("node_modules") {
            read_sources(&path, sources)?;
        } else if path.extension().is_some_and(|extension| ["rs", "py", "js"].iter().any(|known| extension == *known)) {
            sources.push_str(&std::fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn main() -> ExitCode {
    libtest_mimic::run(&Arguments::from_args(), trials()).exit_code()
}
