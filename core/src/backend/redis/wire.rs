//! What is said to the server and what it answers. Pure: no connection is touched here.

use std::time::Duration;

use redis::{RedisError, ServerErrorKind, Value};

use super::engine::Ending;
use super::keys::Keys;
use crate::backend::contract::{Owner, State, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::MAX_NAME_BYTES;
use crate::numbers::Numbers;
use crate::sys::fork::PerProcess;

/// A Lua script of this engine, and the digest by which the server knows it.
pub(super) struct Script {
    code: &'static str,
    digest: String,
}

impl Script {
    pub(super) fn new(code: &'static str) -> Script {
        Script { code, digest: redis::Script::new(code).get_hash().to_owned() }
    }

    /// The call, by digest or (for a server that has forgotten it) by text.
    pub(super) fn call<K: redis::ToRedisArgs, A: redis::ToRedisArgs>(
        &self,
        by_text: bool,
        keys: &[K],
        args: &[A],
    ) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        self.name(&mut command, by_text, keys.len());
        command.arg(keys).arg(args);
        command
    }

    fn name(&self, command: &mut redis::Cmd, by_text: bool, keys: usize) {
        let (word, script) = if by_text { ("EVAL", self.code) } else { ("EVALSHA", self.digest.as_str()) };
        command.arg(word).arg(script).arg(keys);
    }

    pub(super) fn load(&self) -> redis::Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.code);
        command
    }
}

pub(super) struct Scripts {
    pub(super) take: Script,
    pub(super) release: Script,
    renew: Script,
    pub(super) break_lock: Script,
    pub(super) status: Script,
    pub(super) forewarn: Script,
}

macro_rules! script {
    ($($file:literal),+) => { concat!(include_str!("keys.lua"), $(include_str!($file)),+) };
}

impl Scripts {
    pub(super) fn new(cluster: bool) -> Scripts {
        // Ahead of what concerns the line stands what must be fast without it.
        macro_rules! with_line {
            ($([$ahead:literal])? $file:literal) => {
                Script::new(if cluster {
                    script!($($ahead,)? "cluster.lua", "line.lua", $file)
                } else {
                    script!($($ahead,)? "one.lua", "line.lua", $file)
                })
            };
        }
        Scripts {
            take: with_line!(["newcomer.lua"] "take.lua"),
            release: with_line!(["alone.lua"] "release.lua"),
            renew: Script::new(include_str!("renew.lua")),
            break_lock: with_line!("break.lua"),
            status: Script::new(script!("status.lua")),
            forewarn: with_line!("forewarn.lua"),
        }
    }
}

/// What a script is for.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Take,
    Release,
    Renew,
    Break,
    Status,
    Forewarn,
}

impl Scripts {
    /// Which of the scripts for one server `word` means, by digest or text.
    pub(super) fn kind_of(word: &str) -> Option<Kind> {
        // A child may be forked while its parent makes it.
        static KNOWN: PerProcess<Scripts> = PerProcess::new();
        let known = KNOWN.get_or_init(|| Scripts::new(false));
        let kinds = [
            (&known.take, Kind::Take),
            (&known.release, Kind::Release),
            (&known.renew, Kind::Renew),
            (&known.break_lock, Kind::Break),
            (&known.status, Kind::Status),
            (&known.forewarn, Kind::Forewarn),
        ];
        kinds.into_iter().find(|(script, _)| script.digest == word || script.code == word).map(|(_, kind)| kind)
    }

    /// So that no call needs to be sent twice, and calls keep their order. A server that forbids this learns the scripts
    /// from their first use.
    pub(super) async fn teach(&self, connection: &mut redis::aio::MultiplexedConnection) {
        for script in [&self.take, &self.release, &self.renew] {
            let _ = script.load().query_async::<Value>(connection).await;
        }
    }
}

/// Everything a take says.
pub(super) struct Ask<'a> {
    pub(super) token: &'a str,
    pub(super) ttl: Duration,
    pub(super) info: &'a str,
    /// Its place in the line, 0 for a newcomer's; `None` does not wait.
    pub(super) ticket: Option<u64>,
    pub(super) floor: u64,
    pub(super) beside_others: bool,
    pub(super) process: &'a str,
    /// The process that is told if the hold is lost, if it is known in the line by another name.
    pub(super) home: Option<&'a str>,
}

impl Scripts {
    pub(super) fn take(&self, by_text: bool, keys: &Keys, ask: &Ask<'_>) -> redis::Cmd {
        let args = [
            ask.token.to_owned(),
            ask.ttl.as_millis().to_string(),
            ask.process.to_owned(),
            ask.info.to_owned(),
            ask.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
            ask.floor.to_string(),
            ask.home.unwrap_or_default().to_owned(),
        ];
        let args = &args[..if ask.home.is_some() { 7 } else { 6 }];
        self.take.call(by_text, keys.all(ask.beside_others), args)
    }

    /// Of many holds at once: the keys, the token and the lease of each.
    pub(super) fn renew<'a>(
        &self,
        by_text: bool,
        holds: impl Iterator<Item = (&'a Keys, &'a str, Duration)> + Clone,
    ) -> redis::Cmd {
        // Written once and in one place: many locks are many of these.
        let (count, bytes) = holds.clone().fold((0, 0), |(count, bytes), (keys, token, _)| {
            (count + 1, bytes + keys.lock().len() + keys.state().len() + token.len() + 8)
        });
        let mut command = redis::Cmd::with_capacity(3 + 4 * count, 64 + bytes);
        self.renew.name(&mut command, by_text, 2 * count);
        for (keys, ..) in holds.clone() {
            command.arg(keys.lock()).arg(keys.state());
        }
        for (_, token, ttl) in holds {
            command.arg(token).arg(ttl.as_millis() as u64);
        }
        command
    }

    pub(super) fn release(
        &self,
        by_text: bool,
        keys: &Keys,
        token: &str,
        ending: Ending,
        beside_others: bool,
        process: &str,
    ) -> redis::Cmd {
        let ending = match ending {
            Ending::Released => "released",
            Ending::Undone => "undone",
            Ending::Lost => "lost",
        };
        let args = [token, process, ending];
        self.release.call(by_text, keys.all(beside_others), &args)
    }
}

/// What a take came to.
#[derive(Debug, PartialEq)]
pub(super) enum Taken {
    Owned {
        fence: u64,
        abandoned: bool,
        /// It had no place in the line.
        unlined: bool,
    },
    Refused(Refusal),
    /// This token was released before.
    Spent,
}

#[derive(Debug, PartialEq)]
pub(super) struct Refusal {
    /// How long the key still lives, in ms; -1 for ever.
    pub(super) left: i64,
    pub(super) rank: u32,
    pub(super) ticket: u64,
    /// It was not in the line before.
    pub(super) fresh: bool,
    /// Held by a program that is not one of ours.
    pub(super) foreign: bool,
    pub(super) sight: Status,
}

/// A reply that this version's scripts do not give.
fn strange(operation: &'static str) -> Error {
    Error::new(ErrorKind::Protocol, operation, "the server gave an answer that this version does not know")
        .with_help("is it a Redis or Valkey server, and are all programs of one version?")
}

fn number<T: TryFrom<i64>>(value: Option<&Value>) -> Option<T> {
    match value? {
        Value::Int(number) => T::try_from(*number).ok(),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    match value? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn decimal(value: Option<&Value>) -> Option<u64> {
    text(value)?.parse().ok()
}

/// The answer to a take with `token`, and to no other.
pub(super) fn taken(reply: &Value, token: &str) -> Result<Taken> {
    read_taken(reply, token).ok_or_else(|| strange("acquire"))
}

fn read_taken(reply: &Value, token: &str) -> Option<Taken> {
    let Value::Array(parts) = reply else { return None };
    if text(parts.last()) != Some(token) {
        return None;
    }
    let part = |at: usize| parts.get(at);
    match number::<u8>(part(0))? {
        1 => {
            let fence = decimal(part(1)).filter(|fence| *fence != 0)?;
            Some(Taken::Owned { fence, abandoned: number::<u8>(part(2))? != 0, unlined: number::<u8>(part(3))? != 0 })
        }
        2 => Some(Taken::Spent),
        0 => {
            let kind = number::<u8>(part(5))?;
            let ours = kind == 0;
            Some(Taken::Refused(Refusal {
                left: number(part(1))?,
                rank: number(part(2))?,
                ticket: decimal(part(3))?,
                fresh: number::<u8>(part(4))? != 0,
                foreign: kind == 2,
                sight: Status {
                    state: State::Held,
                    token: 0,
                    waiters: number(part(8))?,
                    owner: if ours { owner(text(part(6))?) } else { None },
                    held: ours.then(|| Duration::from_millis(number(part(7)).unwrap_or(0))),
                    numbers: Numbers::default(),
                },
            }))
        }
        _ => None,
    }
}

/// For an answer that no question of ours had: the connection is not to be believed any more, and no other is meant.
pub(super) fn unasked(error: Error) -> RedisError {
    (redis::ErrorKind::Parse, "an unexpected answer", error.message().to_owned()).into()
}

/// For an answer that was to something else.
pub(super) fn misplaced() -> RedisError {
    (redis::ErrorKind::Parse, "an answer to something else").into()
}

/// What a release came to: whether the token still stood.
pub(super) fn released(reply: &Value) -> Result<bool> {
    match number::<u8>(Some(reply)) {
        Some(0) => Ok(false),
        Some(1..=3) => Ok(true),
        _ => Err(strange("release")),
    }
}

/// One answer per hold.
pub(super) fn renewed(reply: &Value, holds: usize) -> Result<Vec<bool>> {
    let Value::Array(parts) = reply else { return Err(strange("extend")) };
    let answers: Vec<bool> = parts.iter().filter_map(|part| number::<u8>(Some(part))).map(|one| one == 1).collect();
    if answers.len() == holds { Ok(answers) } else { Err(strange("extend")) }
}

/// How many replicas have acknowledged.
pub(super) fn copies(reply: &Value) -> Result<u32> {
    number(Some(reply)).ok_or_else(|| strange("acquire"))
}

pub(super) fn broken(reply: &Value) -> Result<bool> {
    number::<u8>(Some(reply)).map(|broken| broken == 1).ok_or_else(|| strange("break"))
}

pub(super) fn forewarned(reply: &Value) -> Result<()> {
    if matches!(reply, Value::Int(1)) { Ok(()) } else { Err(strange("extend")) }
}

pub(super) fn status(reply: &Value) -> Result<Status> {
    read_status(reply).ok_or_else(|| strange("status"))
}

fn read_status(reply: &Value) -> Option<Status> {
    let Value::Array(parts) = reply else { return None };
    let part = |at: usize| parts.get(at);
    let kind = number::<u8>(part(0))?;
    Some(Status {
        state: match kind {
            0 => State::Free,
            1..=3 => State::Held,
            4 => State::Abandoned,
            _ => return None,
        },
        token: decimal(part(1))?,
        waiters: number(part(4))?,
        owner: owner(text(part(2))?),
        // Negative if the server's clock went back.
        held: (kind == 1).then(|| Duration::from_millis(number(part(3)).unwrap_or(0))),
        // The server keeps none; the handle that asks has its own.
        numbers: Numbers::default(),
    })
}

/// How an owner is written into the server.
pub(super) fn info(owner: &Owner) -> String {
    let host: String = owner.host.chars().map(|c| if c.is_whitespace() { '-' } else { c }).collect();
    format!("{} {host} {}", owner.pid, owner.label)
}

/// And read. Anybody may have written it: what is too long is cut.
fn owner(info: &str) -> Option<Owner> {
    let mut parts = info.splitn(3, ' ');
    let (pid, host, label) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    let cut = |text: &str| {
        let end = (0..=MAX_NAME_BYTES.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text[..end].to_owned()
    };
    Some(Owner { host: cut(host), pid, label: cut(label) })
}

/// A message on this process's channel.
#[derive(Debug, PartialEq)]
pub(super) enum Message<'a> {
    /// The lock `key` was granted to `token`, for a short while.
    Granted { token: &'a str, key: &'a str },
    /// `token` stands first in line, and the lock lives `left` ms more.
    First { token: &'a str, left: i64 },
    /// The lock is free and `token`'s turn among our own.
    Turn { token: &'a str },
    /// Somebody broke the lock that `token` held.
    Lost { token: &'a str },
}

pub(super) fn message(text: &str) -> Option<Message<'_>> {
    let (kind, rest) = text.split_once(' ')?;
    match kind {
        "G" => rest.split_once(' ').map(|(token, key)| Message::Granted { token, key }),
        "H" => rest.split_once(' ').and_then(|(token, left)| Some(Message::First { token, left: left.parse().ok()? })),
        "N" => Some(Message::Turn { token: rest }),
        "L" => Some(Message::Lost { token: rest }),
        _ => None,
    }
}

/// Whether the server has forgotten the script.
pub(super) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether what the server said leaves the connection as it was.
pub(super) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

/// Whether the connection was closed, by a server that is there.
pub(super) fn is_cut(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal() && !is_answer(error)
}

/// Whether the server is not the master, or not any more.
pub(super) fn is_demoted(error: &RedisError) -> bool {
    matches!(error.code(), Some("READONLY" | "MASTERDOWN"))
}

/// Whether the server has done nothing of what it was asked.
pub(super) fn did_nothing(error: &RedisError) -> bool {
    is_unknown_script(error) || is_demoted(error)
}

/// The same of an answer.
pub(super) fn is_refusal(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if did_nothing(&error.clone().into()))
}

/// Whether the server speaks to those alone who say who they are.
pub(super) fn wants_login(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH")
}

/// Of what some servers failed with, what says most: who was reached says more than who is not there.
pub(super) fn telling(before: Option<RedisError>, error: RedisError) -> Option<RedisError> {
    let is_away = |error: &RedisError| error.is_connection_refusal() || error.is_timeout();
    Some(before.filter(|before| is_away(&error) || !is_away(before)).unwrap_or(error))
}

/// Whether these credentials were refused.
pub(super) fn is_wrong_password(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::AuthenticationFailed || error.code() == Some("WRONGPASS")
}

/// Whether the server cannot speak RESP3: it is too old, or stands behind a proxy that is.
pub(super) fn is_without_resp3(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::RESP3NotSupported
        || error.code() == Some("NOPROTO")
        || (is_answer(error) && error.to_string().to_ascii_lowercase().contains("hello"))
}

/// Of a secret, as much as nobody takes for a word: so much of its start is not shown either.
const TELLING: usize = 10;

/// `text` without `secret`, and without the start of it, since who quotes what it was sent may cut it.
fn hidden(text: &str, secret: &str) -> String {
    let secret: Vec<char> = secret.chars().collect();
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let alike = rest.chars().zip(&secret).take_while(|(one, other)| one == *other).count();
        if alike > 0 && (alike == secret.len() || alike >= TELLING) {
            shown.push_str("***");
            rest = rest.char_indices().nth(alike).map_or("", |(at, _)| &rest[at..]);
        } else {
            shown.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    shown
}

/// Our error for the client library's. `secrets` must not be repeated: some servers quote what they were sent.
pub(super) fn failed(operation: &'static str, server: &str, secrets: &[&str], error: &RedisError) -> Error {
    let text = match error.detail() {
        Some(detail) if is_answer(error) => format!("{} {detail}", error.code().unwrap_or("ERR")),
        _ => error.to_string(),
    };
    // Of a command that it does not know, AUTH among them, a server repeats what stands behind it, in part and changed.
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    let (kind, help) = kind_of(error, text);
    let text: String = secrets
        .iter()
        .fold(text.to_owned(), |text, secret| hidden(&text, secret))
        .chars()
        .take(300)
        .flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] })
        .collect();
    let answered = is_answer(error) || error.kind() == redis::ErrorKind::AuthenticationFailed;
    let message = if answered {
        format!("the server {server} answered: {text}")
    } else if error.is_timeout() {
        format!("the server {server} does not answer in time")
    } else {
        format!("the server {server} cannot be used: {text}")
    };
    let mapped = Error::new(kind, operation, message);
    if help.is_empty() { mapped } else { mapped.with_help(help) }
}

fn kind_of(error: &RedisError, text: &str) -> (ErrorKind, &'static str) {
    if is_without_resp3(error) {
        return (ErrorKind::Protocol, "use Redis 6 or newer, or ?protocol=2");
    }
    match error.kind() {
        redis::ErrorKind::Io => return (ErrorKind::Unavailable, ""),
        redis::ErrorKind::AuthenticationFailed => return (ErrorKind::Auth, "check user and password of the URL"),
        redis::ErrorKind::InvalidClientConfig => return (ErrorKind::Invalid, ""),
        // What the client library says of an answer that the end of the connection cut in two.
        _ if !is_answer(error) && text.contains("Unexpected end of input") => return (ErrorKind::Unavailable, ""),
        _ if !is_answer(error) => return (ErrorKind::Protocol, "is it a Redis or Valkey server?"),
        _ => {}
    }
    // Redis 6 wraps what fails inside a script into an ERR of its own, so the words are looked for in the text.
    let says = |word: &str| error.code() == Some(word) || text.contains(&format!("{word} "));
    const FOR_NOW: &[&str] = &[
        "LOADING",
        "MASTERDOWN",
        "READONLY",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "BUSY",
        "OOM",
        "NOREPLICAS",
        "MISCONF",
        "UNBLOCKED",
        "max number of clients",
    ];
    if says("WRONGPASS") || says("NOAUTH") || text.contains("AUTH <password> called without") {
        (ErrorKind::Auth, "check user and password of the URL")
    } else if says("NOPERM")
        || says("DENIED")
        || text.contains("ACL failure")
        || text.contains("can't run this command")
    {
        (
            ErrorKind::Permission,
            "the user needs the keys ~<prefix>* and ~{<prefix>*, the channels &ipcmutex:w:*, and +@string +@hash \
             +@sortedset +@scripting +@pubsub +@keyspace +@connection +time",
        )
    } else if says("WRONGTYPE") || text.contains("not an integer") {
        (ErrorKind::Config, "a key of another program stands where the lock should be; choose another id or prefix")
    } else if says("MOVED") || says("ASK") || says("CROSSSLOT") {
        (ErrorKind::Config, "the server is a node of a cluster; use rpm+redis+cluster://")
    } else if FOR_NOW.iter().any(|word| says(word)) {
        (ErrorKind::Unavailable, "")
    } else {
        (ErrorKind::Config, "")
    }
}

/// The eviction policy in the server's `INFO memory`.
pub(super) fn eviction_policy(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn replies_of_a_take() {
        let owned =
            Value::Array(vec![Value::Int(1), bulk("1795203524783123"), Value::Int(1), Value::Int(0), bulk("t")]);
        assert_eq!(
            taken(&owned, "t").unwrap(),
            Taken::Owned { fence: 1_795_203_524_783_123, abandoned: true, unlined: false }
        );
        let refused = Value::Array(vec![
            Value::Int(0),
            Value::Int(-1),
            Value::Int(3),
            bulk("17"),
            Value::Int(1),
            Value::Int(0),
            bulk("7 host a label"),
            Value::Int(1500),
            Value::Int(4),
            bulk("t"),
        ]);
        let Taken::Refused(refusal) = taken(&refused, "t").unwrap() else { panic!() };
        assert_eq!(
            (refusal.left, refusal.rank, refusal.ticket, refusal.fresh, refusal.foreign),
            (-1, 3, 17, true, false)
        );
        let owner = refusal.sight.owner.unwrap();
        assert_eq!((owner.pid, owner.host.as_str(), owner.label.as_str()), (7, "host", "a label"));
        assert_eq!(refusal.sight.held, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn strange_replies_are_errors_and_never_a_lock() {
        let bad = [
            Value::Nil,
            Value::Int(1),
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Int(1), bulk("0"), Value::Int(0), Value::Int(0), bulk("t")]),
            Value::Array(vec![Value::Int(1), bulk("-5"), Value::Int(0), Value::Int(0), bulk("t")]),
            Value::Array(vec![Value::Int(1), bulk("5"), Value::Int(0), Value::Int(0)]),
            Value::Array(vec![Value::Int(1), bulk("5"), Value::Int(0), Value::Int(0), bulk("other")]),
            Value::Array(vec![Value::Int(9), bulk("t")]),
            Value::Array(vec![Value::Int(0), Value::Int(5), bulk("t")]),
        ];
        for reply in bad {
            assert_eq!(taken(&reply, "t").unwrap_err().kind(), ErrorKind::Protocol, "{reply:?}");
        }
        assert!(released(&Value::Nil).is_err());
        assert!(renewed(&Value::Array(vec![Value::Int(1)]), 2).is_err());
    }

    #[test]
    fn messages() {
        assert_eq!(message("G ab k:1 x"), Some(Message::Granted { token: "ab", key: "k:1 x" }));
        assert_eq!(message("H ab -1"), Some(Message::First { token: "ab", left: -1 }));
        assert_eq!(message("L ab"), Some(Message::Lost { token: "ab" }));
        assert_eq!(message("N ab"), Some(Message::Turn { token: "ab" }));
        for bad in ["", "G", "G ab", "H ab", "H ab x", "Q ab", "\u{0}"] {
            assert_eq!(message(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn owners_written_by_others_are_cut() {
        let long = format!("1 {} {}", "h".repeat(500), "ä".repeat(500));
        let owner = owner(&long).unwrap();
        assert!(owner.host.len() <= MAX_NAME_BYTES && owner.label.len() <= MAX_NAME_BYTES);
        assert_eq!(super::owner("x y z"), None);
        assert_eq!(super::owner(""), None);
    }

    #[test]
    fn a_secret_is_not_shown_when_a_server_quotes_it() {
        let secret = "CANARY-0123456789".repeat(12);
        let quoted = [
            format!("unknown command 'AUTH', with args beginning with: '{}' ", &secret[..126]),
            format!("unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `me`, `{}", &secret[..100]),
            format!("what is AUTH {secret}?"),
            format!("what is AUTH {}...", &secret[..40]),
            format!("what is AUTH CANAR{}{}", &secret[..12], "x".repeat(300)),
        ];
        for text in quoted {
            let error = RedisError::from((redis::ErrorKind::Extension, "ERR", text.clone()));
            for error in [error, RedisError::from((redis::ErrorKind::Parse, "an unexpected answer", text))] {
                let said = failed("open", "h:1", &[&secret], &error).to_string();
                assert!(!said.contains("CANARY-") && (said.contains("AUTH") || said.contains("HELLO")), "{said}");
            }
        }
        assert_eq!(hidden("no: a n", "n"), "***o: a ***");
        assert_eq!((hidden("topsecrets äö", "topsecrets!").as_str(), hidden("so", "").as_str()), ("*** äö", "so"));
    }

    #[test]
    fn the_policy() {
        assert_eq!(eviction_policy("# Memory\r\nmaxmemory_policy:allkeys-lru\r\n"), Some("allkeys-lru"));
        assert_eq!(eviction_policy(""), None);
    }
}
