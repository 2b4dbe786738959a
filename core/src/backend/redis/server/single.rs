//! The connection of a thread that waits for each answer. RESP2: nothing comes in on it that was not asked for.
//!
//! The client library's own one cannot be given a stream, and would take TLS with whatever provider of cryptography the
//! host program has set for its process, or set one. Commands and replies are read and written by the library.

use std::io::Read;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::{ConnectionLike, Parser, RedisError, RedisResult, Value};

use super::super::wire;
use super::dial::{Address, Stream, dial};
use super::learned::Learned;
use super::tls::Tls;
use super::{Login, Server};

/// No answer is as long as this, in bytes: the longest are a page of keys, and the slots of a cluster.
const LONGEST: u64 = 16 << 20;

/// Whether the server only will not have a connection named.
fn is_about_names(error: &RedisError) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    error.code() == Some("NOPERM") || text.contains("setinfo") || text.contains("unknown command")
}

/// To one server.
pub(crate) struct Single {
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
        let (mut refused, mut said) = (None, None);
        for at in 0..words.len() {
            let reply = match self.read() {
                Ok(reply) => reply,
                // What it said before it closes the connection says more than that it has.
                Err(error) => return Err(refused.or(said).unwrap_or(error)),
            };
            match reply.extract_error() {
                Err(error) if at < needed => _ = refused.get_or_insert(error),
                Err(error) if !is_about_names(&error) => _ = said.get_or_insert(error),
                _ => {}
            }
        }
        refused.map_or(Ok(()), Err)
    }

    /// How long an answer may take from now on.
    pub(crate) fn set_limit(&mut self, limit: Duration) {
        self.limit = limit;
    }

    /// Whether the server has ended it, so that nobody hears what is asked now.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.stream.has_ended()
    }

    /// Whether an event loop could read it.
    pub(crate) fn can_be_watched(&self) -> bool {
        self.stream.socket().is_some()
    }

    /// For who reads and writes it in another way. Between two questions nothing is on it.
    pub(crate) fn into_stream(self) -> Box<dyn Stream> {
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

impl Server {
    /// One to the server at `address`, by the login that works there.
    pub(super) fn open_at(&self, learned: &Learned, address: &Address, limit: Duration) -> redis::RedisResult<Single> {
        let end = Instant::now() + limit;
        let mut refused = None;
        for alone in self.logins(learned) {
            let left = end.saturating_duration_since(Instant::now());
            match Single::open(address, self.tls.as_ref(), &self.login(alone), left) {
                Ok(mut single) => {
                    learned.alone.store(alone, Ordering::Relaxed);
                    single.set_limit(self.patience());
                    return Ok(single);
                }
                // What the first refusal says is about what the URL says.
                Err(error) if wire::is_wrong_password(&error) => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| (redis::ErrorKind::Client, "no login to try").into()))
    }
}
