use std::os::unix::fs::{FileTypeExt, chown, symlink};
use std::path::Path;

use ipcmutex::ErrorKind::{self, Auth, Invalid, Io, Timeout, Unavailable, Unsafe};
use ipcmutex::url::SCHEMES;

use super::{Scenario, alone};
use crate::agent::{Agent, Language, hex};
use crate::cell::{Cell, Engine};
use crate::secrets::CANARY;

pub(super) const ALL: &[Scenario] = &[
    alone("bad_input::urls", 15, urls),
    alone("bad_input::null", 15, null),
    alone("bad_input::not_utf8", 15, not_utf8),
    alone("bad_input::a_mebibyte", 15, a_mebibyte),
    alone("bad_input::timeouts", 15, timeouts),
    alone("bad_input::paths", 15, paths),
    alone("bad_input::servers", 15, servers),
    alone("bad_input::secrets_stay_secret", 16, secrets_stay_secret),
];

#[track_caller]
fn refused(agent: &Agent, url: &str, kind: ErrorKind, named: &[&str]) {
    let reply = agent.open(1, url).err(kind);
    for word in named {
        assert!(reply.text.contains(word), "{url}: the text does not name `{word}`: {}", reply.text);
    }
}

fn urls(cell: &Cell<'_>) {
    let agent = cell.agent();
    refused(&agent, "", Invalid, &[]);
    refused(&agent, "bogus:x", Invalid, SCHEMES);
    refused(&agent, "redis://127.0.0.1/x", Invalid, SCHEMES);
    let long = "x".repeat(201);
    let of_engine: &[(String, &[&str])] = match cell.engine {
        Engine::Spm => &[
            ("spm:".into(), &["empty"]),
            ("spm:a b".into(), &["bad id"]),
            ("spm:a/b".into(), &["bad id"]),
            ("spm:..".into(), &[".."]),
            (format!("spm:{long}"), &["201"]),
            ("spm:x%00".into(), &["NUL"]),
            ("spm:x%zz".into(), &["%"]),
            ("spm:x#y".into(), &["%23"]),
            ("spm:x\u{1b}[2J".into(), &["control"]),
            ("spm:x?nope=1".into(), &["nope", "fair", "label"]),
            ("spm:x?ttl=1s".into(), &["ttl", "fair", "label"]),
            ("spm:x?fair=maybe".into(), &["strict", "eventual"]),
            ("spm:x?fair=strict&fair=strict".into(), &["twice"]),
        ],
        Engine::Mpm => &[
            ("mpm:".into(), &["empty"]),
            ("mpm:a/b".into(), &["bad id"]),
            ("mpm:..".into(), &[".."]),
            (format!("mpm:{long}"), &["201"]),
            ("mpm:/somewhere/".into(), &["/"]),
            ("file:x".into(), &["path"]),
            ("file://elsewhere/x".into(), &["host"]),
            ("mpm:x?nope=1".into(), &["nope", "mode", "remotefs"]),
            ("mpm:x?ttl=1s".into(), &["ttl", "mode"]),
            ("mpm:x?mode=0777".into(), &["mode", "octal"]),
        ],
        Engine::Redis => &[
            ("rpm+redis://127.0.0.1/..".into(), &[".."]),
            (format!("rpm+redis://127.0.0.1/{long}"), &["201"]),
            ("rpm+redis://127.0.0.1:99999/x".into(), &["99999"]),
            ("rpm+redis://127.0.0.1/x?nope=1".into(), &["nope", "ttl", "prefix"]),
            ("rpm+redis://127.0.0.1/x?ttl=0".into(), &["ttl"]),
            ("rpm+redis://127.0.0.1/x?ttl=1ms".into(), &["ttl"]),
            ("rpm+redis://127.0.0.1/x?ttl=25h".into(), &["ttl"]),
            ("rpm+redis://127.0.0.1/x?db=x".into(), &["db"]),
            ("rpm+redis://127.0.0.1/x?protocol=4".into(), &["protocol"]),
        ],
    };
    for (url, named) in of_engine {
        refused(&agent, url, Invalid, named);
    }
    // And then it works as if nothing had been.
    agent.open(1, &cell.url("lock", "")).ok();
    agent.begin("hold 1 1 0").reply().ok();
}

fn null(cell: &Cell<'_>) {
    let agent = cell.agent();
    let reply = agent.call("open 1 null");
    // Python refuses what is no text as it always does.
    if reply.code != "TypeError" {
        reply.err(Invalid);
    }
    agent.open(1, &cell.url("lock", "")).ok();
    agent.begin("hold 1 1 0").reply().ok();
}

fn not_utf8(cell: &Cell<'_>) {
    let agent = cell.agent();
    let url = [cell.url("lock", "").as_bytes(), b"\xff\xfe"].concat();
    agent.call(&format!("open 1 {}", hex(&url))).err(Invalid);
    agent.open(1, &cell.url("lock", "")).ok();
}

fn a_mebibyte(cell: &Cell<'_>) {
    let agent = cell.agent();
    let url = cell.url("lock", "") + &"x".repeat(1 << 20);
    let reply = agent.open(1, &url).err(Invalid);
    assert!(reply.text.len() < 1024, "the text repeats the URL");
}

fn timeouts(cell: &Cell<'_>) {
    let agent = cell.opened(&cell.url("lock", ""));
    for limit in ["NaN", "-1", "-0.5", "-Infinity", "1e300"] {
        agent.begin(&format!("hold 1 1 {limit}")).reply().err(Invalid);
        agent.begin(&format!("acquire 1 {limit}")).reply().err(Invalid);
    }
    assert_eq!(agent.call("status 1").ok().text_of("state"), "free");
    agent.begin("hold 1 1 0").reply().ok();
}

fn listing(folder: &Path) -> Vec<(std::ffi::OsString, std::fs::FileType, u64)> {
    let mut all: Vec<_> = std::fs::read_dir(folder)
        .expect("our folder")
        .map(|entry| {
            let entry = entry.expect("our folder");
            let about = std::fs::symlink_metadata(entry.path()).expect("our file");
            (entry.file_name(), about.file_type(), about.len())
        })
        .collect();
    all.sort_by(|a, b| a.0.cmp(&b.0));
    all
}

fn paths(cell: &Cell<'_>) {
    let folder = cell.folder("paths");
    let at = |name: &str| folder.join(name);
    std::fs::create_dir(at("directory")).expect("a new folder");
    rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), rustix::fs::FileType::Fifo, 0o600.into(), 0).expect("a new FIFO");
    std::fs::write(at("target"), "").expect("a new file");
    symlink(at("target"), at("symlink")).expect("a new link");
    std::fs::write(at("letter"), "Dear reader,\n".repeat(400)).expect("a new file");
    let mut cases = vec!["directory", "fifo", "symlink", "letter"];
    if rustix::process::geteuid().is_root() {
        std::fs::write(at("somebody-elses"), "").expect("a new file");
        chown(at("somebody-elses"), Some(65534), Some(65534)).expect("we are root");
        cases.push("somebody-elses");
    } else {
        println!("not shown here: a file of somebody else's needs root to be made");
    }
    let before = listing(&folder);
    let agent = cell.agent();
    for name in cases {
        refused(&agent, &format!("mpm:{}", at(name).display()), Unsafe, &[name]);
        assert_eq!(listing(&folder), before, "after {name}");
    }
    refused(&agent, &format!("mpm:{}", at("missing/lock").display()), Io, &["missing"]);
    assert_eq!(listing(&folder), before);
    assert!(std::fs::symlink_metadata(at("fifo")).is_ok_and(|about| about.file_type().is_fifo()));
}

fn servers(cell: &Cell<'_>) {
    let agent = cell.agent();
    // Nothing listens on port 1, and at this path is no socket.
    refused(&agent, "rpm+redis://127.0.0.1:1/x?connect_timeout=500ms", Unavailable, &["127.0.0.1:1"]);
    let missing = cell.folder("sockets").join("missing.sock");
    refused(
        &agent,
        &format!("rpm+redis+unix://{}?id=x", missing.display()),
        Unavailable,
        &[&missing.display().to_string()],
    );
    agent.open(1, &cell.url("lock", "")).ok();
    agent.begin("hold 1 1 0").reply().ok();
}

fn secrets_stay_secret(cell: &Cell<'_>) {
    // Whatever the agent says is searched for the word that all secrets have in them.
    let agent = cell.agent();
    let urls = [
        format!("rpm+redis://user:{CANARY}@127.0.0.1/x?nope=1"),
        format!("rpm+redis://:{CANARY}@127.0.0.1:1/x?connect_timeout=500ms"),
        format!("redis://user:{CANARY}@127.0.0.1/x"),
        format!("rpm+redis:user:{CANARY}@127.0.0.1/x"),
    ];
    for url in urls {
        let reply = agent.open(1, &url);
        assert!(!reply.is_ok(), "{reply:?}");
    }
    let (guarded, id) = (cell.ground.redis(), cell.id("lock"));
    agent.open(1, &guarded.url_with_password(&format!("wrong-{CANARY}"), &id)).err(Auth);
    // The right one opens, and shows itself nowhere either.
    agent.open(1, &guarded.url(&id)).ok();
    agent.begin("hold 1 1 forever").reply().ok();
    agent.call("status 1").ok();
    agent.begin("hold 1 2 0").reply().err(Timeout);
    if agent.language != Language::Shell {
        agent.call("show 1").ok();
    }
}
