//! `docs/FAULTS.md`: every fault of `faults.toml` with the tests that show it, found by their names so that none is forgotten, and with
//! what they measured last, of which `figures.tsv` keeps note.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use ipcmutex_tests::artifacts;

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    fault: String,
    outcome: String,
    /// Tests that are not named by the id.
    #[serde(default)]
    shown_by: Vec<String>,
    /// Why no test shows it, or not all of it.
    cannot: Option<String>,
}

const GROUPS: &[(char, &str, &str)] = &[
    ('F', "The lock file and the kernel's locks", ""),
    (
        'S',
        "The line",
        "These were written for a line that a server keeps. There is none here (`core/DESIGN.md` says why), so the server is read as \
         the process that stands first in line, and a grant as what it is told: the outcome binds, the mechanism does not.",
    ),
    ('K', "Processes and fork", ""),
    ('P', "Permissions and security", ""),
    ('R', "Redis", ""),
    ('C', "The C interface", ""),
    ('Y', "Python", ""),
    ('N', "Node", ""),
];

fn rows() -> BTreeMap<String, Row> {
    let text = fs::read_to_string(artifacts::source("faults.toml")).expect("it is there");
    toml::from_str(&text).unwrap_or_else(|error| panic!("faults.toml: {error}"))
}

/// F9 as ('F', 9).
fn parts(id: &str) -> Option<(char, u32)> {
    let letter = id.chars().next()?.to_ascii_uppercase();
    let number = id.get(1..)?.parse().ok()?;
    GROUPS.iter().any(|(group, ..)| *group == letter).then_some((letter, number))
}

/// What was measured last, by id. With `fresh`, which `make figures` has collected, in place of what it measured anew.
fn figures(fresh: Option<&Path>) -> BTreeMap<String, Vec<String>> {
    let read = |path: &Path| {
        let mut found: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let text = fs::read_to_string(path).expect("it is there");
        let mut lines: Vec<_> = text.lines().map(|line| line.split_once('\t').expect("an id and a figure")).collect();
        lines.sort_unstable(); // as tests ran side by side
        for (id, figure) in lines {
            found.entry(id.to_owned()).or_default().push(figure.to_owned());
        }
        found
    };
    let path = artifacts::source("figures.tsv");
    let mut all = read(&path);
    if let Some(fresh) = fresh {
        all.extend(read(fresh));
        let lines = all.iter().flat_map(|(id, figures)| figures.iter().map(move |figure| format!("{id}\t{figure}\n")));
        fs::write(&path, lines.collect::<String>()).expect("it is writable");
    }
    all
}

/// The sources that have tests in them.
fn sources() -> Vec<PathBuf> {
    fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let kind = path.extension().and_then(|kind| kind.to_str()).unwrap_or("");
            if path.is_dir() {
                if !["target", "node_modules", "__pycache__", "fuzz"].iter().any(|name| path.ends_with(name)) {
                    walk(&path, found);
                }
            } else if ["rs", "py", "js", "mjs", "c", "cpp"].contains(&kind) && !path.ends_with("faults/table.rs") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["core/src", "ffi/src", "ffi/tests", "tests/src", "tests/tests", "bindings"] {
        walk(&artifacts::checkout().join(folder), &mut found);
    }
    found.sort();
    found
}

/// The name of the test that begins on this line.
fn test_name(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("async ").or_else(|| line.strip_prefix("await t.")).unwrap_or(line);
    if let Some(rest) = line.strip_prefix("fn ").or_else(|| line.strip_prefix("def ")) {
        return rest.split(['(', '<']).next();
    }
    let rest =
        line.strip_prefix("test(").or_else(|| line.strip_prefix("alone(")).or_else(|| line.strip_prefix("pairs("))?;
    rest.get(1..)?.split(['"', '`', '\'']).next()
}

/// The ids that a test shows by its name: `f9_…`, `test_f9_…`, "f9 …".
fn id_of(name: &str) -> Option<(char, u32)> {
    parts(name.strip_prefix("test_").unwrap_or(name).split(['_', ' ', ':']).next()?)
}

/// The tests of each id, by name or by a comment before them.
fn found(sources: &[PathBuf]) -> BTreeMap<(char, u32), BTreeSet<String>> {
    let mut found: BTreeMap<(char, u32), BTreeSet<String>> = BTreeMap::new();
    for source in sources {
        let text = fs::read_to_string(source).expect("it is a text");
        let mut said: Vec<(char, u32)> = Vec::new();
        for line in text.lines() {
            if let Some((_, ids)) = line.split_once("FAULTS: ") {
                said.extend(ids.split([',', ' ']).filter_map(parts));
            } else if let Some(name) = test_name(line) {
                for id in said.drain(..).chain(id_of(name)) {
                    found.entry(id).or_default().insert(name.to_owned());
                }
            }
        }
    }
    found
}

fn document(
    rows: &BTreeMap<String, Row>,
    tests: &BTreeMap<(char, u32), BTreeSet<String>>,
    figures: &BTreeMap<String, Vec<String>>,
) -> String {
    let mut text = String::from(
        "# Faults\n\nWhat can go wrong, exactly what must happen then, and the test that shows it. Error names are those of the table of codes; bounds are\n\
         counted generously in tests (a watchdog, not a stop-watch) and measured in benchmarks. Made from `tests/faults.toml` by\n\
         `IPCMUTEX_BLESS=1 cargo test -p ipcmutex-tests --test faults table`. The last figure is what the test measured when `make figures` ran\n\
         last, on whatever machine that was; where there is none, the test says yes or no.\n",
    );
    let cell = |text: &str| text.replace('|', "\\|");
    for (group, title, remark) in GROUPS {
        let _ = writeln!(text, "\n## {group}: {title}\n");
        if !remark.is_empty() {
            let _ = writeln!(text, "{remark}\n");
        }
        let _ = writeln!(text, "| | fault | what must happen | shown by | last figure |\n|---|---|---|---|---|");
        let mut own: Vec<((char, u32), &Row)> =
            rows.iter().filter_map(|(id, row)| Some((parts(id)?, row))).filter(|(id, _)| id.0 == *group).collect();
        own.sort_by_key(|(id, _)| *id);
        for (id, row) in own {
            let mut names = tests.get(&id).cloned().unwrap_or_default();
            names.extend(row.shown_by.iter().cloned());
            let shown = match &row.cannot {
                Some(why) if names.is_empty() => cell(why),
                why => {
                    let names = names.iter().map(|name| format!("`{}`", cell(name))).collect::<Vec<_>>().join(", ");
                    why.iter().fold(names, |names, why| format!("{names}; but {}", cell(why)))
                }
            };
            let (id, none) = (format!("{}{}", id.0, id.1), Vec::new());
            let last = cell(&figures.get(&id).unwrap_or(&none).join("; "));
            let _ = writeln!(text, "| {id} | {} | {} | {shown} | {last} |", cell(&row.fault), cell(&row.outcome));
        }
    }
    text
}

#[test]
fn the_table_of_faults_is_whole_and_as_the_tests_are() {
    let (rows, sources) = (rows(), sources());
    let tests = found(&sources);
    assert_eq!(rows.len(), 116, "no fault is forgotten");
    let everything: String = sources.iter().map(|source| fs::read_to_string(source).expect("it is a text")).collect();
    for (id, row) in &rows {
        let place = parts(id).unwrap_or_else(|| panic!("`{id}` is no id"));
        for name in &row.shown_by {
            let there = everything.contains(name.as_str()) || sources.iter().any(|source| source.ends_with(name));
            assert!(there, "{id} is said to be shown by `{name}`, which is not there");
        }
        let shown = tests.contains_key(&place) || !row.shown_by.is_empty();
        assert!(shown || row.cannot.is_some(), "{id} ({}) is shown by no test, and nothing says why", row.fault);
    }
    for (id, names) in &tests {
        let known = rows.contains_key(&format!("{}{}", id.0, id.1));
        assert!(known, "{names:?} shows a fault {}{} that is not in faults.toml", id.0, id.1);
    }
    let bless = std::env::var_os("IPCMUTEX_BLESS").is_some();
    let collected = std::env::var_os("IPCMUTEX_FIGURES").map(PathBuf::from).filter(|_| bless);
    let figures = figures(collected.as_deref());
    assert!(figures.keys().all(|id| rows.contains_key(id)), "each figure is of a fault: {:?}", figures.keys());
    let fresh = document(&rows, &tests, &figures);
    let path = artifacts::checkout().join("docs/FAULTS.md");
    if fs::read_to_string(&path).unwrap_or_default() == fresh {
        return;
    }
    if bless {
        fs::create_dir_all(path.parent().expect("docs"))
            .and_then(|()| fs::write(&path, fresh))
            .expect("docs is writable");
        return;
    }
    panic!(
        "docs/FAULTS.md is not what the tests are; run\n  \
         IPCMUTEX_BLESS=1 cargo test -p ipcmutex-tests --test faults table"
    );
}
