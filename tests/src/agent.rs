//! Drives a program of one language over its pipes. `agents/README.md` has the commands.
//!
//! Each command is answered by one line, or the watchdog ends the program and the test fails with the command that hung.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ipcmutex::ErrorKind;

use crate::{artifacts, secrets};

/// How long a step may take before it counts as hung. Generous: it says nothing about speed.
pub const WATCHDOG: Duration = Duration::from_secs(30);

/// Has an agent tell on stderr all that its library can tell: for those that know a secret.
pub fn talkative() -> (&'static str, &'static std::ffi::OsStr) {
    ("IPCMUTEX_LOG", "trace".as_ref())
}

/// A language that has a face.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Language {
    /// The crate.
    Rust,
    /// The header and the shared library.
    C,
    /// The package.
    Python,
    /// The npm package.
    Node,
    /// The command.
    Shell,
}

impl Language {
    /// Every language.
    pub const ALL: [Language; 5] = [Language::Rust, Language::C, Language::Python, Language::Node, Language::Shell];

    /// Its name in the names of tests.
    pub const fn name(self) -> &'static str {
        match self {
            Language::Rust => "rust",
            Language::C => "c",
            Language::Python => "python",
            Language::Node => "node",
            Language::Shell => "shell",
        }
    }

    fn command(self) -> Command {
        let script = |interpreter: &std::path::Path, name: &str| {
            let mut command = Command::new(interpreter);
            command.arg(artifacts::source(name));
            command
        };
        match self {
            Language::Rust => Command::new(artifacts::program("agent")),
            Language::C => Command::new(artifacts::agent_c().0),
            Language::Python => script(&artifacts::python(), "agents/agent.py"),
            Language::Node => {
                // An ES module finds packages from its own folder upwards and nowhere else, so its copy lies beside them.
                let modules = artifacts::node_modules();
                let mut command = Command::new(artifacts::node());
                command.arg(modules.with_file_name("agent.mjs"));
                command
            }
            Language::Shell => {
                let mut command = script("bash".as_ref(), "agents/agent.sh");
                command.env("IPCMUTEX", artifacts::program("ipcmutex"));
                command.env("VISIT", artifacts::program("agent"));
                command
            }
        }
    }
}

impl fmt::Display for Language {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What an agent answered.
#[derive(Clone, Debug)]
pub struct Reply {
    step: String,
    /// `OK`, the name of a kind, or `EXIT<n>` of a command.
    pub code: String,
    fields: BTreeMap<String, String>,
    /// The text of the error, or the JSON of a status.
    pub text: String,
}

impl Reply {
    fn parse(step: &str, line: &str) -> Reply {
        let (head, text) = line.split_once(" | ").unwrap_or((line, ""));
        let mut words = head.split_whitespace();
        let code = words.next().unwrap_or("").to_owned();
        let fields = words
            .filter_map(|word| word.split_once('='))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        Reply { step: step.to_owned(), code, fields, text: text.to_owned() }
    }

    /// Whether it is OK.
    pub fn is_ok(&self) -> bool {
        self.code == "OK"
    }

    /// Whether it is this kind; of a command, whether that is this kind's exit code.
    pub fn is(&self, kind: ErrorKind) -> bool {
        self.code == kind.name() || self.code == format!("EXIT{}", kind.exit_code())
    }

    /// The reply, which must be OK.
    #[track_caller]
    pub fn ok(self) -> Reply {
        assert!(self.is_ok(), "{}: expected OK, was {} {}", self.step, self.code, self.text);
        self
    }

    /// The reply, which must be this kind.
    #[track_caller]
    pub fn err(self, kind: ErrorKind) -> Reply {
        assert!(self.is(kind), "{}: expected {}, was {} {}", self.step, kind.name(), self.code, self.text);
        self
    }

    /// A field, which must be there.
    #[track_caller]
    pub fn text_of(&self, field: &str) -> String {
        match self.fields.get(field) {
            Some(value) => value.clone(),
            None => match self.json(field) {
                Some(serde_json::Value::String(value)) => value,
                Some(value) => value.to_string(),
                None => panic!("{}: no `{field}` in {self:?}", self.step),
            },
        }
    }

    /// A field that is a number.
    #[track_caller]
    pub fn number(&self, field: &str) -> u64 {
        let text = self.text_of(field);
        text.parse().unwrap_or_else(|_| panic!("{}: `{field}={text}` is no number", self.step))
    }

    /// Whether the hold was told that the one before ended without a release.
    #[track_caller]
    pub fn abandoned(&self) -> bool {
        self.number("abandoned") == 1
    }

    /// The fencing token.
    #[track_caller]
    pub fn token(&self) -> u64 {
        self.number("token")
    }

    fn json(&self, field: &str) -> Option<serde_json::Value> {
        serde_json::from_str::<serde_json::Value>(&self.text).ok()?.get(field).cloned()
    }
}

/// A command under way.
pub struct Pending<'a> {
    agent: &'a Agent,
    step: String,
    answer: Receiver<String>,
    /// An answer that was seen and not yet taken.
    seen: std::cell::OnceCell<String>,
}

impl Pending<'_> {
    /// Its reply, waited for.
    #[track_caller]
    pub fn reply(self) -> Reply {
        self.reply_after(Duration::ZERO)
    }

    /// Its reply, which is not due before `lasting` is over.
    #[track_caller]
    pub fn reply_after(self, lasting: Duration) -> Reply {
        let answer = match self.seen.into_inner() {
            Some(line) => Ok(line),
            None => self.answer.recv_timeout(lasting + WATCHDOG),
        };
        match answer {
            Ok(line) => Reply::parse(&self.step, &line),
            Err(_) => self.agent.fail(&self.step),
        }
    }

    /// Whether there is no reply yet.
    pub fn is_waiting(&self) -> bool {
        if self.seen.get().is_some() {
            return false;
        }
        match self.answer.try_recv() {
            Ok(line) => self.seen.set(line).is_err(),
            Err(error) => error == mpsc::TryRecvError::Empty,
        }
    }

    /// Whether there is a reply and it is OK.
    pub fn has_succeeded(&self) -> bool {
        !self.is_waiting() && self.seen.get().is_some_and(|line| Reply::parse(&self.step, line).is_ok())
    }
}

/// A running program of one language. All that it says is searched for secrets; one that was found fails the test in the end.
pub struct Agent {
    /// Its language.
    pub language: Language,
    child: Mutex<Child>,
    stdin: Mutex<Option<ChildStdin>>,
    replies: Arc<Mutex<HashMap<u64, Sender<String>>>>,
    errors: Arc<Mutex<String>>,
    leaks: Arc<Mutex<Vec<String>>>,
    /// Nothing comes, but it ends when all that it said was read.
    read: Mutex<Receiver<()>>,
    next: AtomicU64,
    _folder: Option<tempfile::TempDir>,
}

impl Agent {
    /// Starts one; `environment` is added to its own.
    pub fn start_with(language: Language, environment: &[(&str, &std::ffi::OsStr)]) -> Agent {
        let mut command = language.command();
        command.envs(environment.iter().copied());
        Agent::run(language, command)
    }

    /// Starts one as the last arguments of another program, as `unshare`, `nice` or a shell that changes what it then becomes.
    pub fn start_under(language: Language, wrapper: &[&str]) -> Agent {
        let inner = language.command();
        let mut command = Command::new(wrapper[0]);
        command.args(&wrapper[1..]).arg(inner.get_program()).args(inner.get_args());
        Agent::run(language, command)
    }

    fn run(language: Language, mut command: Command) -> Agent {
        // Killed, it removes nothing: what it makes in its folder goes with the driver's.
        let folder = (language == Language::Shell).then(|| tempfile::tempdir().expect("a temporary folder"));
        if let Some(folder) = &folder {
            command.env("IPCMUTEX_AGENT_DIR", folder.path());
        }
        // A group of its own, so that what it starts ends with it.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} cannot be started: {error}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("piped");
        let mut stderr = child.stderr.take().expect("piped");
        let replies: Arc<Mutex<HashMap<u64, Sender<String>>>> = Arc::default();
        let errors: Arc<Mutex<String>> = Arc::default();
        let leaks: Arc<Mutex<Vec<String>>> = Arc::default();
        let (reading, read) = mpsc::channel::<()>();
        let (table, told, leaked, until_read) = (replies.clone(), errors.clone(), leaks.clone(), reading.clone());
        std::thread::spawn(move || {
            let _until_read = until_read;
            for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).into_owned();
                // Of a command that holds the lock the answer tells who runs it.
                let runs = line.split(" pid=").nth(1).and_then(|pid| pid.split_whitespace().next());
                let found = secrets::found(&line).or_else(|| secrets::found_in_children(runs?));
                leaked.lock().expect("no panic under it").extend(found);
                let answered = line.split_once(' ').and_then(|(number, answer)| {
                    let sender = table.lock().expect("no panic under it").remove(&number.parse().ok()?)?;
                    sender.send(answer.to_owned()).ok()
                });
                if answered.is_none() {
                    told.lock().expect("no panic under it").push_str(&format!("stdout: {line}\n"));
                }
            }
            // The end of its output is the end of every wait for it.
            table.lock().expect("no panic under it").clear();
        });
        let (told, leaked) = (errors.clone(), leaks.clone());
        std::thread::spawn(move || {
            let _until_read = reading;
            let mut bytes = [0; 4096];
            // A secret may be read in two parts.
            let mut unsearched = String::new();
            while let Ok(count @ 1..) = std::io::Read::read(&mut stderr, &mut bytes) {
                let said = String::from_utf8_lossy(&bytes[..count]);
                told.lock().expect("no panic under it").push_str(&said);
                unsearched.push_str(&said);
                leaked.lock().expect("no panic under it").extend(secrets::found(&unsearched));
                unsearched = unsearched.rsplit('\n').next().unwrap_or_default().to_owned();
            }
        });
        Agent {
            language,
            child: Mutex::new(child),
            stdin: Mutex::new(stdin),
            replies,
            errors,
            leaks,
            read: read.into(),
            next: AtomicU64::new(1),
            _folder: folder,
        }
    }

    /// Starts one.
    pub fn start(language: Language) -> Agent {
        Agent::start_with(language, &[])
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("no panic under it").id()
    }

    /// One command, and its reply.
    #[track_caller]
    pub fn call(&self, command: &str) -> Reply {
        self.send("", command).reply()
    }

    /// One command that may wait: the agent goes on reading meanwhile. An `async` has begun by then, and can be cancelled.
    #[track_caller]
    pub fn begin(&self, command: &str) -> Pending<'_> {
        // What Node's and the shell's begin as a task they begin at once; the others would begin it on another thread.
        let at_once = command.starts_with("async ") && !matches!(self.language, Language::Node | Language::Shell);
        self.send(if at_once { "" } else { "&" }, command)
    }

    /// One command on its main thread: until it is answered, the agent does nothing else.
    #[track_caller]
    pub fn begin_alone(&self, command: &str) -> Pending<'_> {
        self.send("", command)
    }

    #[track_caller]
    fn send(&self, mark: &str, command: &str) -> Pending<'_> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let step = format!("[{}] {}", self.language, shortened(command));
        let (sender, answer) = mpsc::channel();
        self.replies.lock().expect("no panic under it").insert(number, sender);
        let mut stdin = self.stdin.lock().expect("no panic under it");
        // In one write: a signal, or an error that is injected, must not meet an agent that has read half a command.
        let line = format!("{number} {mark}{command}\n");
        let sent = stdin.as_mut().map(|stdin| stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush()));
        drop(stdin);
        if !matches!(sent, Some(Ok(()))) {
            self.fail(&step);
        }
        Pending { agent: self, step, answer, seen: std::cell::OnceCell::new() }
    }

    /// Opens `url` as lock number `lock`.
    #[track_caller]
    pub fn open(&self, lock: u32, url: &str) -> Reply {
        self.call(&format!("open {lock} {}", hex(url.as_bytes())))
    }

    /// What the lock's status says, once `is_it` holds of it; the handshake that replaces a sleep.
    #[track_caller]
    pub fn status_until(&self, lock: u32, what: &str, mut is_it: impl FnMut(&Reply) -> bool) -> Reply {
        let begun = Instant::now();
        loop {
            let status = self.call(&format!("status {lock}")).ok();
            if is_it(&status) {
                return status;
            }
            assert!(begun.elapsed() < WATCHDOG, "[{}] the status never became `{what}`: {status:?}", self.language);
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until `count` acquisitions stand in line.
    #[track_caller]
    pub fn until_waiters(&self, lock: u32, count: u64) {
        self.status_until(lock, &format!("{count} waiters"), |status| status.number("waiters") == count);
    }

    /// kill -9 of the process that holds or waits: the agent's own, or that of its `ipcmutex run`.
    pub fn kill(&self, pid: u64) {
        let pid = rustix::process::Pid::from_raw(pid as i32).expect("a pid is not 0");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
    }

    /// How many threads it has, and the names of those that the library started.
    pub fn threads(&self) -> (usize, Vec<String>) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let names: Vec<String> = tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok())
            .map(|name| name.trim().to_owned())
            .collect();
        let count = names.len();
        (count, names.into_iter().filter(|name| name.starts_with("ipcmutex")).collect())
    }

    /// How often its threads slept and were put to run again so far.
    pub fn switches(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        tasks
            .filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("status")).ok())
            .flat_map(|status| {
                status
                    .lines()
                    .filter(|line| line.contains("ctxt_switches"))
                    .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
                    .collect::<Vec<_>>()
            })
            .sum()
    }

    /// Lets it end as a program does: its input ends, and it returns from main. The exit code.
    #[track_caller]
    pub fn leave(&self) -> i32 {
        drop(self.stdin.lock().expect("no panic under it").take());
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.lock().expect("no panic under it").try_wait().expect("it is our child") {
                return status.code().unwrap_or(-1);
            }
            if begun.elapsed() > WATCHDOG {
                self.fail("exit");
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// What it wrote to stderr.
    pub fn errors(&self) -> String {
        self.errors.lock().expect("no panic under it").clone()
    }

    #[track_caller]
    fn fail(&self, step: &str) -> ! {
        let ended = self.child.lock().expect("no panic under it").try_wait().ok().flatten();
        self.end();
        let how = match ended {
            Some(status) => format!("the program ended ({status})"),
            None => format!("no answer within {} s", WATCHDOG.as_secs()),
        };
        panic!("{step}: {how}\n{}", self.errors());
    }

    fn end(&self) {
        let mut child = self.child.lock().expect("no panic under it");
        if let Some(group) = rustix::process::Pid::from_raw(child.id() as i32) {
            // The group may be gone already; then there is nothing to end.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
        let _ = child.kill();
        let _ = child.wait();
    }
}

/// How long one that looks for leaks when it ends may take to do so, one that waits in its main thread never ends by itself; and how
/// long its last words may be on their way.
const FAREWELL: Duration = Duration::from_secs(2);

impl Drop for Agent {
    fn drop(&mut self) {
        if self.language == Language::C && artifacts::agent_c().1 {
            drop(self.stdin.lock().expect("no panic under it").take());
            let begun = Instant::now();
            while begun.elapsed() < FAREWELL
                && matches!(self.child.lock().expect("no panic under it").try_wait(), Ok(None))
            {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        self.end();
        // What lives on and holds its output is not waited for.
        let _ = self.read.lock().expect("no panic under it").recv_timeout(FAREWELL);
        let leaks = std::mem::take(&mut *self.leaks.lock().expect("no panic under it"));
        assert!(leaks.is_empty() || std::thread::panicking(), "[{}] a secret shows: {leaks:#?}", self.language);
    }
}

fn shortened(command: &str) -> String {
    let mut words: Vec<String> = command.split(' ').map(str::to_owned).collect();
    if words[0] == "open"
        && let Some(url) = words.get_mut(2)
    {
        *url = String::from_utf8_lossy(&unhex(url)).into_owned();
    }
    let text = words.join(" ");
    if text.chars().count() > 120 { format!("{}…", text.chars().take(120).collect::<String>()) } else { text }
}

/// Bytes as an agent reads them; `-` is nothing.
pub fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "-".to_owned();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).filter_map(|at| u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()).collect()
}
