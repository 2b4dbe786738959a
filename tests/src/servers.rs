//! Private Redis servers for tests: each in a folder of its own, on a unix socket and a free TCP port, gone on drop.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::asking::until;
use crate::certificates::{Authority, Certificate};
use crate::clock::Clock;
use crate::secrets;
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(20);

/// The programs that can be the server.
const PROGRAMS: &[&str] = &["redis-server", "valkey-server"];

/// Why no test with a server can run, if none can.
pub fn missing() -> Option<&'static str> {
    let there = PROGRAMS.iter().any(|name| Command::new(name).arg("--version").stdout(Stdio::null()).status().is_ok());
    (!there).then_some("redis-server is missing: apt-get install redis-server")
}

/// Says loudly that a test was skipped and why; whether it was. For the top of a test:
/// `if skipped("its_name") { return; }`. With `IPCMUTEX_REQUIRE_REDIS` set it fails instead.
pub fn skipped(test: &str) -> bool {
    let Some(missing) = missing() else { return false };
    assert!(std::env::var_os("IPCMUTEX_REQUIRE_REDIS").is_none(), "{missing}");
    // Not through the harness, which would swallow it.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {missing}");
    true
}

/// The release of Redis that the server is, or is like: Valkey goes on from 7.2.
pub fn version() -> (u32, u32) {
    static VERSION: OnceLock<(u32, u32)> = OnceLock::new();
    *VERSION.get_or_init(|| {
        let said = PROGRAMS.iter().find_map(|name| Command::new(name).arg("--version").output().ok());
        let said = String::from_utf8(said.expect("a server").stdout).expect("text");
        let number = said.split_once(" v=").unwrap_or_else(|| panic!("no version: {said}")).1;
        let mut parts = number.split('.').map(|part| part.parse().unwrap_or_else(|_| panic!("no version: {said}")));
        let mut part = || parts.next().unwrap_or_else(|| panic!("no version: {said}"));
        if said.starts_with("Valkey") { (7, 2) } else { (part(), part()) }
    })
}

/// The same if the server is older than that release. For what came with it, or is asked for in another way before.
pub fn skipped_before(test: &str, release: (u32, u32)) -> bool {
    if skipped(test) {
        return true;
    }
    let is_older = version() < release;
    if is_older {
        let _ = writeln!(std::io::stderr(), "SKIPPED {test}: it wants Redis {}.{}", release.0, release.1);
    }
    is_older
}

/// A running server.
pub struct Redis {
    folder: tempfile::TempDir,
    config: Vec<String>,
    port: u16,
    /// For the place of `@port@` in the configuration.
    second_port: u16,
    password: Option<String>,
    environment: Option<Box<[(&'static str, OsString); 2]>>,
    process: Option<Child>,
}

/// One reply of the server, as far as tests look at it.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply {
    /// Nothing there.
    Nil,
    /// A number.
    Number(i64),
    /// A text.
    Text(String),
    /// A refusal.
    Error(String),
    /// Several.
    List(Vec<Reply>),
}

impl Reply {
    /// The text, or an empty one.
    pub fn text(&self) -> &str {
        match self {
            Reply::Text(text) | Reply::Error(text) => text,
            _ => "",
        }
    }

    /// The number, or 0.
    pub fn number(&self) -> i64 {
        match self {
            Reply::Number(number) => *number,
            _ => 0,
        }
    }
}

impl Default for Redis {
    fn default() -> Redis {
        Redis::start()
    }
}

impl Redis {
    /// A server with a password that must not be shown.
    ///
    /// # Panics
    /// If none can be started; [`missing`] says why beforehand.
    pub fn start() -> Redis {
        Redis::with(Some(&secrets::password("server")), &[])
    }

    /// A server with further lines of configuration, such as `maxmemory 10mb`.
    pub fn with(password: Option<&str>, config: &[&str]) -> Redis {
        secrets::listen();
        let folder = tempfile::Builder::new().prefix("ipcmutex-redis-").tempdir().expect("a temporary folder");
        let mut redis = Redis {
            folder,
            config: config.iter().map(|line| (*line).to_owned()).collect(),
            port: 0,
            second_port: 0,
            password: password.map(str::to_owned),
            environment: None,
            process: None,
        };
        redis.launch();
        redis
    }

    /// A server whose clock is `clock`.
    pub fn by_clock(clock: &Clock) -> Redis {
        let mut redis = Redis::start();
        redis.kill();
        redis.environment = Some(Box::new(clock.environment()));
        redis.restart();
        redis
    }

    /// A server with a TLS port beside the plain one. `clients`: they must show a certificate, too.
    pub fn with_tls(authority: &Authority, certificate: &Certificate, clients: bool) -> Redis {
        Redis::with(
            None,
            &[
                "tls-port @port@",
                &format!("tls-ca-cert-file {}", authority.file().display()),
                &format!("tls-cert-file {}", certificate.crt.display()),
                &format!("tls-key-file {}", certificate.key.display()),
                if clients { "tls-auth-clients yes" } else { "tls-auth-clients no" },
            ],
        )
    }

    /// The lines that have it speak TLS alone, also with its like.
    pub fn tls_alone(authority: &Authority, certificate: &Certificate) -> Vec<String> {
        vec![
            "port 0".to_owned(),
            "tls-port @first@".to_owned(),
            format!("tls-ca-cert-file {}", authority.file().display()),
            format!("tls-cert-file {}", certificate.crt.display()),
            format!("tls-key-file {}", certificate.key.display()),
            "tls-auth-clients no".to_owned(),
            "tls-replication yes".to_owned(),
        ]
    }

    /// A Sentinel that watches `master` under the name `main`, alone, and is quick to replace it.
    pub fn sentinel(master: &Redis, password: Option<&str>, config: &[&str]) -> Redis {
        let login = master.password.as_ref().map(|password| format!("sentinel auth-pass main {password}"));
        let login = login.unwrap_or_default();
        let more = [config, &["sentinel failover-timeout main 3000", &login]].concat();
        Redis::sentinel_of(&master.address(), 1, password, &more)
    }

    /// One that watches the master at `address`, and needs so many of its like to call it down.
    pub fn sentinel_of(address: &str, quorum: usize, password: Option<&str>, config: &[&str]) -> Redis {
        let watched = format!("sentinel monitor main {} {quorum}", address.replace(':', " "));
        Redis::with(password, &[&[&*watched, "sentinel down-after-milliseconds main 500"], config].concat())
    }

    /// Starts it again with these further lines of configuration, which stay.
    pub fn reconfigure(&mut self, config: &[&str]) {
        self.config.extend(config.iter().map(|line| (*line).to_owned()));
        self.restart();
        until("it has loaded its data", || self.command(&["PING"]).text() == "PONG");
    }

    /// The number that stands for `@port@` in the configuration.
    pub fn second_port(&self) -> u16 {
        self.second_port
    }

    fn launch(&mut self) {
        let end = Instant::now() + PATIENCE;
        loop {
            if self.port == 0 {
                // Free now; somebody may take it before the server does: then another one is tried.
                let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
                self.port = probe.local_addr().expect("its number").port();
                let second = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
                self.second_port = second.local_addr().expect("its number").port();
            }
            let mut text = format!(
                "port {}\nbind 127.0.0.1\nunixsocket {}\ndir {}\nlogfile {}\nsave \"\"\nappendonly no\ndaemonize no\n",
                self.port,
                self.socket().display(),
                self.folder.path().display(),
                self.log().display(),
            );
            if let Some(password) = &self.password {
                text.push_str(&format!("requirepass {password}\n"));
            }
            text.push_str(&self.config.join("\n").replace("@port@", &self.second_port.to_string()));
            let text = text.replace("@first@", &self.port.to_string());
            let mode = text.contains("\nsentinel ").then_some("--sentinel");
            let path = self.folder.path().join("redis.conf");
            std::fs::write(&path, text).expect("the server's configuration");
            let _ = std::fs::remove_file(self.socket());
            let mut process = PROGRAMS
                .iter()
                .find_map(|name| {
                    let environment =
                        self.environment.iter().flat_map(|all| all.iter()).map(|(name, value)| (name, value));
                    Command::new(name)
                        .arg(&path)
                        .args(mode)
                        .envs(environment)
                        .stdin(Stdio::null())
                        .stdout(Stdio::null())
                        .spawn()
                        .ok()
                })
                .unwrap_or_else(|| panic!("{}", missing().unwrap_or("the server does not start")));
            while Instant::now() < end {
                if UnixStream::connect(self.socket()).is_ok() && TcpStream::connect(self.address()).is_ok() {
                    self.process = Some(process);
                    return;
                }
                if process.try_wait().expect("its state").is_some() {
                    break;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let log = std::fs::read_to_string(self.log()).unwrap_or_default();
            let _ = process.kill();
            let _ = process.wait();
            assert!(
                Instant::now() < end && log.contains("Address already in use"),
                "the server does not start:\n{log}"
            );
            let _ = std::fs::remove_file(self.log());
            self.port = 0;
        }
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    /// The unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// host:port.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The password, or an empty text.
    pub fn password(&self) -> &str {
        self.password.as_deref().unwrap_or("")
    }

    /// A lock's URL over TCP, with the server's own password. `id` may carry a query.
    pub fn url(&self, id: &str) -> String {
        self.url_at(&self.address(), id)
    }

    /// The same by another way to the server.
    pub fn url_at(&self, address: &str, id: &str) -> String {
        format!("rpm+redis://{}{address}/{id}", self.login())
    }

    /// What stands before its address in a URL.
    pub fn login(&self) -> String {
        self.password.as_ref().map(|password| format!(":{password}@")).unwrap_or_default()
    }

    /// The same with another password.
    pub fn url_with_password(&self, password: &str, id: &str) -> String {
        format!("rpm+redis://:{password}@{}/{id}", self.address())
    }

    /// The same with a user.
    pub fn url_with_user(&self, user: &str, password: &str, id: &str) -> String {
        format!("rpm+redis://{user}:{password}@{}/{id}", self.address())
    }

    /// A lock's URL over the unix socket.
    pub fn unix_url(&self, id: &str) -> String {
        format!("rpm+redis+unix://{}{}?id={id}", self.login(), self.socket().display())
    }

    /// Runs one command on a connection of its own.
    pub fn command(&self, words: &[&str]) -> Reply {
        self.client().command(words)
    }

    /// A connection of its own.
    pub fn client(&self) -> Client {
        let begun = Instant::now();
        loop {
            let stream = UnixStream::connect(self.socket()).expect("a connection to the server");
            stream.set_read_timeout(Some(PATIENCE)).expect("a read timeout");
            let mut client = Client { stream: BufReader::new(stream) };
            let Some(password) = &self.password else { return client };
            client.send(&["AUTH", password]);
            match client.try_reply() {
                Ok(reply) => assert_eq!(reply.text(), "OK"),
                // The server that took the connection has ended since, and another has its socket.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset && begun.elapsed() < PATIENCE => {
                    continue;
                }
                Err(error) => panic!("the server answers: {error}"),
            }
            return client;
        }
    }

    /// Adds processes to the line of the lock `id` that have stopped: they hear, and do nothing. As long as what is returned
    /// lives.
    pub fn stopped_waiters(&self, id: &str, processes: &[&str]) -> Vec<Client> {
        let stop = |(place, process): (u32, &&str)| {
            let mut ear = self.client();
            ear.send(&["SUBSCRIBE", &format!("ipcmutex:w:{process}")]);
            ear.reply();
            let member = format!("{process}.{place:032x}");
            self.command(&["ZADD", &format!("{{ipcmutex:{id}}}:line"), &place.to_string(), &member]);
            ear
        };
        (1..).zip(processes).map(stop).collect()
    }

    /// A line of `INFO section`.
    pub fn info(&self, section: &str, name: &str) -> String {
        let info = self.command(&["INFO", section]);
        let found = info.text().lines().find_map(|line| line.strip_prefix(&format!("{name}:")).map(str::to_owned));
        found.unwrap_or_default()
    }

    /// How many commands the server has run, but for those of tests themselves (INFO, MONITOR, PING …).
    pub fn commands(&self) -> u64 {
        let stats = self.command(&["INFO", "commandstats"]);
        let ours =
            ["cmdstat_evalsha:", "cmdstat_eval:", "cmdstat_subscribe:", "cmdstat_script|load:", "cmdstat_hello:"];
        stats
            .text()
            .lines()
            .filter(|line| ours.iter().any(|name| line.starts_with(name)))
            .filter_map(|line| line.split("calls=").nth(1)?.split(',').next()?.parse::<u64>().ok())
            .sum()
    }

    /// The server's process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(self.process.as_ref().expect("a running server"))
    }

    /// Stops it in its tracks; [`Redis::thaw`] lets it go on.
    pub fn freeze(&self) {
        kill_process(self.pid(), Signal::STOP).expect("SIGSTOP");
    }

    /// See [`Redis::freeze`].
    pub fn thaw(&self) {
        kill_process(self.pid(), Signal::CONT).expect("SIGCONT");
    }

    /// Kills it: it writes nothing and says goodbye to nobody.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("SIGKILL");
            process.wait().expect("its end");
        }
    }

    /// Starts it again, on the same addresses and without its data.
    pub fn restart(&mut self) {
        self.kill();
        self.launch();
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            // SIGKILL also ends a process that a test has stopped.
            let _ = process.kill();
            let _ = process.wait();
        }
        let found = secrets::found_in_log();
        assert!(found.is_empty() || std::thread::panicking(), "the log shows a secret: {found:?}");
    }
}

/// A bare connection.
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Sends a command and reads its reply.
    pub fn command(&mut self, words: &[&str]) -> Reply {
        self.send(words);
        self.reply()
    }

    /// Sends a command whose reply is read later, if at all.
    pub fn send(&mut self, words: &[&str]) {
        let mut text = format!("*{}\r\n", words.len());
        for word in words {
            text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.say(text.as_bytes());
    }

    /// Sends these very bytes.
    pub fn say(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("the server takes it");
    }

    /// Reads one reply.
    pub fn reply(&mut self) -> Reply {
        self.try_reply().expect("the server answers")
    }

    fn try_reply(&mut self) -> std::io::Result<Reply> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let line = line.trim_end();
        let (kind, rest) = line.split_at(1.min(line.len()));
        let length = || rest.parse::<i64>().expect("a length");
        Ok(match kind {
            "+" => Reply::Text(rest.to_owned()),
            "-" => Reply::Error(rest.to_owned()),
            ":" => Reply::Number(length()),
            "$" | "*" if length() < 0 => Reply::Nil,
            "$" => {
                let mut bytes = vec![0; length() as usize + 2];
                self.stream.read_exact(&mut bytes).expect("a whole reply");
                bytes.truncate(bytes.len() - 2);
                Reply::Text(String::from_utf8_lossy(&bytes).into_owned())
            }
            "*" => Reply::List((0..length()).map(|_| self.reply()).collect()),
            _ => panic!("the server answers {line:?}"),
        })
    }
}
