//! The connection of a thread that waits for each answer. RESP2: nothing comes in on it that was not asked for.
//!
//! The client library's own one cannot be given a stream, and would take TLS with whatever provider of cryptography the
//! host program has set for its process, or set one. Commands and replies are read and written by the library.

use std::io::Read;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike, Parser, RedisError, RedisResult, Value};

use super::connect::Learned;
use super::dial::{Address, Stream, dial};
use super::nodes::Nodes;
use super::plain::{self, forbids_scripts};
use super::tls::Tls;

/// No answer is as long as this, in bytes: the longest are a page of keys, and the slots of a cluster.
const LONGEST: u64 = 16 << 20;

/// Who we are to a server. It has no `Debug`, since it knows the secret.
pub(super) struct Login<'a> {
    pub(super) user: Option<&'a str>,
    pub(super) secret: Option<&'a str>,
    pub(super) db: i64,
}

/// To one server.
pub(super) struct Single {
    stream: Box<dyn Stream>,
    parser: Parser,
    db: i64,
    /// How long an answer may take.
    limit: Duration,
}

impl Single {
    pub(super) fn open(
        address: &Address,
        tls: Option<&Tls>,
        login: &Login<'_>,
        limit: Duration,
    ) -> RedisResult<Single> {
        let stream = dial(address, tls, limit)?;
        let mut connection = Single { stream, parser: Parser::new(), db: login.db, limit };
        connection.greet(login)?;
        Ok(connection)
    }

    fn greet(&mut self, login: &Login<'_>) -> RedisResult<()> {
        let mut words = redis::pipe();
        if let Some(secret) = login.secret {
            words.cmd("AUTH").arg(login.user).arg(secret);
        }
        if login.db != 0 {
            words.cmd("SELECT").arg(login.db);
        }
        let needed = words.len();
        // Servers before 7.2 do not know these two; to be named is not worth a failure.
        words.cmd("CLIENT").arg("SETINFO").arg("LIB-NAME").arg("ipcmutex");
        words.cmd("CLIENT").arg("SETINFO").arg("LIB-VER").arg(env!("CARGO_PKG_VERSION"));
        // Within the limit of the connecting.
        self.say(&words.get_packed_pipeline())?;
        for reply in self.replies(words.len())?.into_iter().take(needed) {
            reply.extract_error()?;
        }
        Ok(())
    }

    /// How long an answer may take from now on.
    pub(super) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Whether the server has ended it, so that nobody hears what is asked now.
    pub(super) fn has_ended(&mut self) -> bool {
        self.stream.has_ended()
    }

    /// Whether an event loop could read it.
    pub(super) fn can_be_watched(&self) -> bool {
        self.stream.socket().is_some()
    }

    /// For who reads and writes it in another way. Between two questions nothing is on it.
    pub(super) fn into_stream(self) -> Box<dyn Stream> {
        self.stream
    }

    fn send(&mut self, words: &[u8]) -> RedisResult<()> {
        self.stream.set_limit(self.limit)?;
        self.say(words)
    }

    fn say(&mut self, words: &[u8]) -> RedisResult<()> {
        self.stream.write_all(words)?;
        self.stream.flush()?;
        Ok(())
    }

    fn read(&mut self) -> RedisResult<Value> {
        let mut limited = (&mut *self.stream).take(LONGEST);
        let value = self.parser.parse_value(&mut limited);
        if value.is_err() && limited.limit() == 0 {
            return Err((redis::ErrorKind::Parse, "an answer that does not end").into());
        }
        value
    }

    fn replies(&mut self, count: usize) -> RedisResult<Vec<Value>> {
        (0..count).map(|_| self.read()).collect::<Result<_, RedisError>>()
    }
}

impl ConnectionLike for Single {
    fn req_packed_command(&mut self, words: &[u8]) -> RedisResult<Value> {
        self.send(words)?;
        self.read()
    }

    fn req_packed_commands(&mut self, words: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.send(words)?;
        Ok(self.replies(offset + count)?.into_iter().skip(offset).collect())
    }

    fn get_db(&self) -> i64 {
        self.db
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<Value>(self).is_ok()
    }

    /// An engine drops a connection that failed: what is there is open as far as anybody knows.
    fn is_open(&self) -> bool {
        true
    }
}

/// What a call is made on: one server, or the nodes of a cluster.
pub(super) enum Connection {
    One(Single, Arc<Learned>),
    Cluster(Box<Nodes>),
}

impl Connection {
    /// The answers of the server, or of all masters.
    pub(super) fn ask_each(&mut self, command: &Cmd) -> RedisResult<Vec<Value>> {
        match self {
            Connection::One(single, _) => Ok(vec![single.req_command(command)?.extract_error()?]),
            Connection::Cluster(nodes) => nodes.ask_each(command),
        }
    }

    /// Who has to be asked for what lies anywhere: the server, or each master.
    pub(super) fn parts(&self) -> Vec<Option<Address>> {
        match self {
            Connection::One(..) => vec![None],
            Connection::Cluster(nodes) => nodes.masters().into_iter().map(Some).collect(),
        }
    }

    /// Asks one of [`Connection::parts`].
    pub(super) fn ask_part(&mut self, part: Option<&Address>, command: &Cmd) -> RedisResult<Value> {
        match (self, part) {
            (Connection::Cluster(nodes), Some(node)) => nodes.ask_at(node, command),
            (connection, _) => connection.req_command(command)?.extract_error(),
        }
    }

    /// Whether the server has ended it, so that nobody would hear what is asked. A node of a cluster is not asked on one that has ended.
    pub(super) fn has_ended(&mut self) -> bool {
        match self {
            Connection::One(single, _) => single.has_ended(),
            Connection::Cluster(_) => false,
        }
    }

    /// One more for another call, if calls need not wait for each other here.
    pub(super) fn another(&self) -> Option<Connection> {
        match self {
            Connection::One(..) => None,
            Connection::Cluster(nodes) => Some(Connection::Cluster(Box::new(nodes.another()))),
        }
    }

    /// It is for somebody who has been about it since `asked`: to a node of a cluster that was not there since, nobody goes once more.
    pub(super) fn asked_for(&mut self, asked: Instant) {
        if let Connection::Cluster(nodes) = self {
            nodes.asked_for(asked);
        }
    }

    /// For the end of the process: it waits for no other thread, and for no node twice.
    pub(super) fn hurry(&mut self) {
        if let Connection::Cluster(nodes) = self {
            nodes.hurry();
        }
    }

    pub(super) fn set_limit(&mut self, limit: Duration) {
        match self {
            Connection::One(single, _) => single.set_limit(limit),
            Connection::Cluster(nodes) => nodes.set_limit(limit),
        }
    }
}

impl ConnectionLike for Connection {
    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Connection::One(single, learned) => act(single, learned, command),
            Connection::Cluster(nodes) => nodes.ask(command),
        }
    }

    fn req_packed_command(&mut self, words: &[u8]) -> RedisResult<Value> {
        match self {
            Connection::One(single, _) => single.req_packed_command(words),
            Connection::Cluster(_) => Err(unrouted()),
        }
    }

    fn req_packed_commands(&mut self, words: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        match self {
            Connection::One(single, _) => single.req_packed_commands(words, offset, count),
            Connection::Cluster(_) => Err(unrouted()),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::One(single, _) => single.get_db(),
            Connection::Cluster(_) => 0,
        }
    }

    fn supports_pipelining(&self) -> bool {
        matches!(self, Connection::One(..))
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<Value>(self).is_ok()
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// By script, or where those are forbidden by the steps that it would take.
fn act(single: &mut Single, learned: &Learned, command: &Cmd) -> RedisResult<Value> {
    if !learned.forbids_scripts() {
        let answer = single.req_command(command)?;
        match &answer {
            Value::ServerError(error) if forbids_scripts(&RedisError::from(error.clone())) => learned.found_plain(),
            _ => return Ok(answer),
        }
    }
    plain::act(single, command).unwrap_or_else(|| single.req_command(command))
}

/// Which node words are for is seen by their key, and here nobody looks at them any more.
fn unrouted() -> RedisError {
    (redis::ErrorKind::Client, "one command at a time, in a cluster").into()
}
