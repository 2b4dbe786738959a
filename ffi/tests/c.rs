//! The C programs of `tests/c`, against `libipcmutex.so`, `libipcmutex.a`, and the first once more under sanitizers.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

mod common;

use common::{crate_dir, library, tool};

/// What ends a program that hangs.
const WATCHDOG: Duration = Duration::from_secs(120);

#[derive(Clone, Copy, Debug, PartialEq)]
enum Link {
    Shared,
    Static,
    Sanitized,
}

fn compile(source: &Path, program: &Path, link: Link) {
    let library = library();
    let is_cpp = source.extension().is_some_and(|extension| extension == "cpp");
    let mut gcc = Command::new(if is_cpp { "g++" } else { "gcc" });
    gcc.arg(if is_cpp { "-std=gnu++17" } else { "-std=gnu11" });
    gcc.args(["-g", "-O1", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
        .arg(crate_dir().join("../include"))
        .arg("-I")
        .arg(crate_dir().join("tests/c"))
        .arg("-o")
        .args([program, source]);
    match link {
        Link::Shared => {}
        Link::Static => drop(gcc.arg(library.join("libipcmutex.a")).args(["-lgcc_s", "-lutil", "-lrt", "-lm", "-ldl"])),
        Link::Sanitized => drop(gcc.args(["-fsanitize=address,undefined", "-fno-sanitize-recover=all"])),
    }
    if link != Link::Static {
        gcc.arg(program.with_file_name(SONAME)).arg("-Wl,-rpath,$ORIGIN");
    }
    let out = gcc.output().unwrap();
    assert!(out.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&out.stderr));
}

fn run(program: &Path, arguments: &[&str], code: i32) {
    run_as(Command::new(program).args(arguments), program, code);
}

fn run_as(command: &mut Command, program: &Path, code: i32) {
    let locks = program.with_extension("locks");
    std::fs::DirBuilder::new().mode(0o700).recursive(true).create(&locks).unwrap();
    let mut child = command
        .env("IPCMUTEX_DIR", locks)
        .env("UBSAN_OPTIONS", "print_stacktrace=1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if start.elapsed() > WATCHDOG {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("{} hangs", program.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    text.lines().filter(|line| line.starts_with("SKIPPED")).for_each(|line| eprintln!("{line}"));
    assert_eq!(status.code(), Some(code), "{} ({status}): {text}", program.display());
}

/// Whether gcc can link with its sanitizers here.
fn sanitizers(dir: &Path) -> bool {
    let source = dir.join("empty.c");
    std::fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    let out: Output = Command::new("gcc")
        .args(["-fsanitize=address,undefined", "-o"])
        .arg(dir.join("empty"))
        .arg(&source)
        .output()
        .unwrap();
    if !out.status.success() {
        eprintln!("SKIPPED: the sanitizers' libraries are missing: {}", String::from_utf8_lossy(&out.stderr));
    }
    out.status.success()
}

const SONAME: &str = "libipcmutex.so.0";

/// One run without arguments.
const ONCE: &[&[&str]] = &[&[]];

/// Each program, the arguments of its runs, and its exit code.
const RUNS: [(&str, &[&[&str]], i32); 8] = [
    ("use.c", &[&["spm:"], &["mpm:"]], 0),
    ("misuse.c", ONCE, 0),
    ("waiting.c", &[&["spm:"], &["mpm:"]], 42),
    ("races.c", &[&["spm:", "200"], &["mpm:", "200"]], 0),
    ("fork.c", ONCE, 0),
    ("log.c", ONCE, 0),
    ("statics.cpp", ONCE, 42),
    ("leaks.c", &[&["spm:", "20000"], &["mpm:", "2000"]], 0),
];

fn programs(link: Link) {
    let dir = tempfile::tempdir().unwrap();
    if link == Link::Sanitized && !sanitizers(dir.path()) {
        return;
    }
    let matrix = dir.path().join("matrix.c");
    std::fs::write(&matrix, matrix_of_bad_arguments()).unwrap();
    let example = dir.path().join("example.c");
    std::fs::write(&example, example_of_the_readme()).unwrap();
    // By its SONAME, as an installed program finds it.
    std::os::unix::fs::symlink(library().join("libipcmutex.so"), dir.path().join(SONAME)).unwrap();
    std::thread::scope(|scope| {
        let own = RUNS.map(|(name, runs, code)| (crate_dir().join("tests/c").join(name), runs, code));
        for (source, runs, code) in own.into_iter().chain([(matrix, ONCE, 0), (example, ONCE, 0)]) {
            let program = dir.path().join(source.file_stem().unwrap());
            scope.spawn(move || {
                compile(&source, &program, link);
                for arguments in runs {
                    run(&program, arguments, code);
                }
            });
        }
    });
}

fn example_of_the_readme() -> String {
    let readme = std::fs::read_to_string(crate_dir().join("../README.md")).unwrap();
    let from = readme.split_once("\n```c\n").expect("an example in C").1;
    from.split_once("\n```\n").unwrap().0.to_owned() + "\n"
}

#[test]
fn c_programs_with_the_shared_library() {
    programs(Link::Shared);
}

#[test]
fn c_programs_with_the_static_library() {
    programs(Link::Static);
}

#[test]
fn c_programs_under_the_sanitizers() {
    programs(Link::Sanitized);
}

/// Sequences of calls that nobody meant, kept because they found something, or because they reach far.
///
/// FAULTS: C2, C3
#[test]
fn c2_c3_kept_sequences_of_calls() {
    let dir = tempfile::tempdir().unwrap();
    if !sanitizers(dir.path()) {
        return;
    }
    std::os::unix::fs::symlink(library().join("libipcmutex.so"), dir.path().join(SONAME)).unwrap();
    let program = dir.path().join("calls");
    compile(&crate_dir().join("tests/c/calls.c"), &program, Link::Sanitized);
    let folder = crate_dir().join("../tests/fuzz/corpus/calls");
    let kept: Vec<String> = folder
        .read_dir()
        .unwrap()
        .map(|entry| entry.unwrap().path().to_str().expect("a name in UTF-8").to_owned())
        .collect();
    assert!(!kept.is_empty());
    let arguments: Vec<&str> = kept.iter().map(String::as_str).collect();
    for _ in 0..5 {
        run(&program, &arguments, 0); // what races, races anew
    }
}

/// `host.c` and plugins with the static library, in `dir`.
fn host_and<const N: usize>(dir: &Path, plugins: [&str; N]) -> (PathBuf, [String; N]) {
    let build = |source: &str, program: &Path, links: &[&str]| {
        let mut gcc = Command::new("gcc");
        gcc.args(["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"])
            .arg(crate_dir().join("../include"));
        let out =
            gcc.arg("-o").arg(program).arg(crate_dir().join("tests/c").join(source)).args(links).output().unwrap();
        assert!(out.status.success(), "{source}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let library = library().join("libipcmutex.a");
    let host = dir.join("host");
    build("host.c", &host, &["-ldl"]);
    let plugins = plugins.map(|source| {
        let plugin = dir.join(source).with_extension("so");
        build(
            source,
            &plugin,
            &["-shared", "-fPIC", "-Wl,-Bsymbolic-functions", library.to_str().unwrap(), "-lgcc_s", "-lm", "-ldl"],
        );
        plugin.to_str().unwrap().to_owned()
    });
    (host, plugins)
}

/// FAULTS: K7
#[test]
fn k7_a_plugin_with_the_static_library_stays_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (host, [plugin]) = host_and(dir.path(), ["plugin.c"]);
    for url in ["spm:plugin", "mpm:plugin"] {
        run(&host, &[&plugin, url], 0);
    }
}

/// Each finds itself, also where it would find the first one's names: only its functions are its own.
///
/// FAULTS: K7
#[test]
fn k7_a_plugin_stays_though_another_copys_names_come_before_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let (host, [plugin]) = host_and(dir.path(), ["plugin.c"]);
    for first in [dir.path().join("first.so"), library().join("libipcmutex.so")] {
        if !first.exists() {
            std::fs::copy(&plugin, &first).unwrap();
        }
        run_as(Command::new(&host).args([&plugin, "spm:plugin"]).env("FIRST", &first), &host, 0);
    }
}

/// They share the table of whichever was loaded first, which need not be one that is used.
///
/// FAULTS: K7
#[test]
fn k7_plugins_with_the_static_library_exclude_each_other_when_the_first_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let (host, [plugin]) = host_and(dir.path(), ["plugin.c"]);
    let copies = ["a.so", "b.so", "c.so"].map(|name| dir.path().join(name).to_str().unwrap().to_owned());
    for copy in &copies {
        std::fs::copy(&plugin, copy).unwrap();
    }
    let [first, second, third] = &copies;
    run(&host, &[first, second, third, "spm:plugins"], 0);
    run(&host, &[first, second, "spm:plugins"], 0);
}

/// FAULTS: K4
#[test]
fn k4_a_child_forked_during_the_first_open_opens() {
    let dir = tempfile::tempdir().unwrap();
    let (host, [plugin]) = host_and(dir.path(), ["loading.c"]);
    run(&host, &[&plugin, ""], 0);
}

/// FAULTS: K4
#[test]
fn k4_a_child_forked_at_any_allocation_of_the_first_open_opens() {
    run_static("firsts.c", &[&["spm:"], &["mpm:"]]);
}

/// To be loaded changes nothing for others: the loader begins each library when its turn has come.
#[test]
fn libraries_begin_in_the_same_order_with_ours_among_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::copy(library().join("libipcmutex.so"), path(SONAME)).unwrap();
    let gcc = |out: &str, more: &[&str]| {
        let source = crate_dir().join("tests/c/begins.c");
        let done = Command::new("gcc").arg(source).arg("-o").arg(path(out)).args(more).current_dir(&dir).status();
        assert!(done.unwrap().success(), "{out}");
    };
    for name in ["first", "second"] {
        gcc(&format!("{name}.so"), &["-shared", "-fPIC", &format!("-DSYMBOL={name}"), &format!("-DNAME=\"{name} \"")]);
    }
    let order = |program: &str, libraries: &[&str]| {
        gcc(program, &[&["-Wl,--no-as-needed"], libraries].concat());
        let told = Command::new(path(program)).current_dir(&dir).env("LD_LIBRARY_PATH", ".").output().unwrap();
        assert!(told.status.success(), "{told:?}");
        String::from_utf8(told.stderr).unwrap()
    };
    let (first, second, ours) = ("./first.so", "./second.so", &*format!("./{SONAME}"));
    let alone = order("alone", &[first, second]);
    assert_eq!(order("before", &[ours, first, second]), alone);
    assert_eq!(order("after", &[first, second, ours]), alone);
}

/// `source` with the static library, whose calls of the C library it may have its own functions for.
fn run_static(source: &str, runs: &[&[&str]]) {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join(source).with_extension("");
    compile(&crate_dir().join("tests/c").join(source), &program, Link::Static);
    for arguments in runs {
        run(&program, arguments, 0);
    }
}

/// FAULTS: K4
#[test]
fn k4_a_handler_that_forks_while_its_thread_does() {
    run_static("handler.c", &[&["spm:"]]);
}

/// FAULTS: K4
#[test]
fn k4_a_programs_own_fork_handlers_use_the_library() {
    run_static("atfork.c", &[&["spm:"], &["mpm:"]]);
}

/// FAULTS: K4
#[test]
fn k4_handlers_that_were_there_before_the_library_use_it_in_the_child() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("late");
    let source = crate_dir().join("tests/c/late.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-std=gnu11", "-g", "-Wall", "-Wextra", "-Werror", "-pthread", "-I"]).arg(crate_dir().join("../include"));
    assert!(gcc.arg("-o").arg(&program).arg(source).arg("-ldl").status().unwrap().success());
    let library = library().join("libipcmutex.so");
    for engine in ["spm:", "mpm:"] {
        run(&program, &[library.to_str().unwrap(), engine], 0);
    }
}

/// FAULTS: K4
#[test]
fn k4_a_collector_that_stops_the_world_while_the_process_forks() {
    run_static("collector.c", ONCE);
}

/// FAULTS: K4
#[test]
fn k4_an_allocator_that_a_fork_locks() {
    run_static("allocator.c", ONCE);
}

/// FAULTS: K1
#[test]
fn k1_a_child_that_finds_its_parents_page_begins_anew() {
    run_static("unwiped.c", &[&["spm:"], &["mpm:"]]);
}

/// FAULTS: K4
#[test]
fn k4_a_child_forked_while_a_thread_is_in_the_loader_opens() {
    run_static("walking.c", ONCE);
}

/// FAULTS: C10. No descriptor of a wait that has ended is left.
#[test]
fn c10_a_wait_leaves_no_descriptor_and_makes_new_ones_once() {
    run_static("descriptors.c", ONCE);
}

/// Programs are debugged under it; and it sees what the sanitizers, which know only the C half, do not.
///
/// FAULTS: C10. No memory is out of reach at the end, and no descriptor of ours is open.
#[test]
fn c10_c_programs_under_valgrind() {
    if !tool("valgrind") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for (name, arguments) in [("use", &["mpm:"][..]), ("leaks", &["spm:", "50"]), ("leaks", &["mpm:", "50"])] {
        let program = dir.path().join(name);
        compile(&crate_dir().join("tests/c").join(name).with_extension("c"), &program, Link::Static);
        let log = dir.path().join("log");
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["-q", "--leak-check=full", "--show-leak-kinds=definite,indirect", "--track-fds=yes"]);
        valgrind.arg(format!("--log-file={}", log.display()));
        run_as(valgrind.arg(&program).args(arguments), &program, 0);
        let log = std::fs::read_to_string(log).unwrap();
        // Of what it says all is a fault but the descriptors that came from outside; since 3.24 it counts those as faults, too.
        let harmless = ["FILE DESCRIPTORS", "Open file descriptor", "<inherited from parent>"];
        let said = log.lines().map(|line| line.rsplit("== ").next().unwrap_or_default().trim());
        let faults = said.filter(|said| {
            !said.is_empty() && !said.starts_with("==") && !harmless.iter().any(|word| said.starts_with(word))
        });
        assert_eq!(faults.count(), 0, "{name} {arguments:?}: {log}");
    }
}

/// The functions of the header that return a code, each with the types of its parameters.
fn functions() -> Vec<(String, Vec<String>)> {
    let header = std::fs::read_to_string(crate_dir().join("../include/ipcmutex.h")).unwrap();
    let mut code = String::new();
    let mut rest = header.as_str();
    while let Some((before, comment)) = rest.split_once("/*") {
        code.push_str(before);
        rest = comment.split_once("*/").unwrap().1;
    }
    code.push_str(rest);
    let mut functions = Vec::new();
    for statement in code.split("\nint ").skip(1) {
        let (name, rest) = statement.split_once('(').unwrap();
        let parameters = rest.split_once(')').unwrap().0;
        let types = parameters.split(',').map(|parameter| {
            let words: Vec<&str> = parameter.split_whitespace().collect();
            let (name, words) = words.split_last().unwrap();
            format!("{}{}", words.join(" "), if name.starts_with('*') { " *" } else { "" })
        });
        functions.push((name.to_owned(), types.collect()));
    }
    functions
}

/// FAULTS: C1, C2. Each function with NULL for each pointer, and with each wrong number for each handle.
fn matrix_of_bad_arguments() -> String {
    let functions = functions();
    assert!(functions.len() > 15, "the header's functions are found: {functions:?}");
    let mut body = String::new();
    for (name, types) in &functions {
        let good: Vec<&str> = types
            .iter()
            .map(|parameter| match parameter.as_str() {
                "const char *" => "\"spm:matrix-new\"",
                "ipcmutex_t" => "mutex",
                "ipcmutex_hold_t" => "hold",
                "ipcmutex_wait_t" => "pending",
                "int64_t" => "1",
                "ipcmutex_t *" | "ipcmutex_hold_t *" | "ipcmutex_wait_t *" | "uint64_t *" => "&number",
                "ipcmutex_status_t *" => "&status",
                "ipcmutex_hold_info_t *" => "&info",
                "ipcmutex_acquired_fn" => "acquired",
                "ipcmutex_lost_fn" => "lost",
                "ipcmutex_log_fn" => "NULL",
                "int" => "0",
                "void *" => "NULL",
                other => panic!("{name} has a parameter of type `{other}`: say here what a good one is"),
            })
            .collect();
        for (at, parameter) in types.iter().enumerate() {
            let mut call = |bad: &str, code: &str| {
                let mut arguments = good.clone();
                arguments[at] = bad;
                writeln!(body, "  EXPECT({name}({}), {code});", arguments.join(", ")).unwrap();
            };
            match parameter.as_str() {
                "void *" | "ipcmutex_wait_t *" | "ipcmutex_log_fn" => {} // NULL is allowed
                "int" => call("6", "IPCMUTEX_INVALID"),
                pointer if pointer.ends_with('*') || pointer.ends_with("_fn") => call("NULL", "IPCMUTEX_INVALID"),
                handle if handle.ends_with("_t") && handle.starts_with("ipcmutex") => {
                    let own = good[at];
                    for bad in
                        ["0", "1", "UINT64_MAX", "mutex", "hold", "pending", "dead_mutex", "dead_hold", "dead_wait"]
                    {
                        if bad != own {
                            call(bad, "IPCMUTEX_BAD_HANDLE");
                        }
                    }
                    call(&format!("{own} + 1"), "IPCMUTEX_BAD_HANDLE");
                    call(&format!("{own} ^ (UINT64_C(1) << 40)"), "IPCMUTEX_BAD_HANDLE");
                }
                _ => {}
            }
        }
    }
    format!(
        "#include \"check.h\"
static flag_t done = FLAG;
static void acquired(int code, ipcmutex_hold_t hold, void *user) {{
  (void)hold, (void)user;
  EXPECT(code, IPCMUTEX_CANCELED);
  flag_raise(&done);
}}
static void lost(int reason, void *user) {{ (void)reason, (void)user; CHECK(!\"nothing was lost\"); }}
int main(void) {{
  ipcmutex_t mutex, dead_mutex;
  ipcmutex_hold_t hold, dead_hold;
  ipcmutex_wait_t pending, dead_wait;
  uint64_t number = 0;
  ipcmutex_status_t status = {{.size = sizeof status}};
  ipcmutex_hold_info_t info = {{.size = sizeof info}};
  OK(ipcmutex_open(\"spm:matrix\", &mutex));
  OK(ipcmutex_open(\"spm:matrix\", &dead_mutex));
  OK(ipcmutex_hold(mutex, 0, &dead_hold));
  OK(ipcmutex_hold_release(dead_hold));
  OK(ipcmutex_hold(mutex, 0, &hold));
  OK(ipcmutex_hold_async(dead_mutex, -1, acquired, NULL, &dead_wait));
  OK(ipcmutex_cancel(dead_wait));
  flag_wait(&done, 1);
  OK(ipcmutex_close(dead_mutex));
  OK(ipcmutex_hold_async(mutex, -1, acquired, NULL, &pending));
{body}  /* And all of that changed nothing. */
  CHECK(number == 0);
  OK(ipcmutex_hold_check(hold));
  OK(ipcmutex_cancel(pending));
  flag_wait(&done, 2);
  OK(ipcmutex_hold_release(hold));
  OK(ipcmutex_close(mutex));
  return 0;
}}
"
    )
}

#[test]
fn the_shared_library_exports_the_header_and_the_shared_lock_table_and_nothing_else() {
    let out = Command::new("nm")
        .args(["-D", "--defined-only", "--format=posix"])
        .arg(library().join("libipcmutex.so"))
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let symbols = String::from_utf8(out.stdout).unwrap();
    let exported: BTreeSet<&str> = symbols.lines().filter_map(|line| line.split_whitespace().next()).collect();
    let header = std::fs::read_to_string(crate_dir().join("../include/ipcmutex.h")).unwrap();
    let declared = header.lines().filter(|line| !line.starts_with([' ', '/', '#']) && !line.starts_with("typedef"));
    let mut expected: BTreeSet<&str> = declared
        .filter_map(|line| line.split_once('(')?.0.rsplit([' ', '*']).next())
        .filter(|name| name.starts_with("ipcmutex_"))
        .collect();
    assert!(expected.len() > 20, "{expected:?}");
    expected.insert("ipcmutex_spm_v1");
    assert_eq!(exported, expected);
}

#[test]
fn the_shared_library_has_its_name_and_stays_loaded() {
    let out = Command::new("readelf").arg("-dW").arg(library().join("libipcmutex.so")).output().unwrap();
    let dynamic = String::from_utf8(out.stdout).unwrap();
    assert!(dynamic.contains("[libipcmutex.so.0]"), "{dynamic}");
    assert!(dynamic.contains("NODELETE"), "{dynamic}");
}
