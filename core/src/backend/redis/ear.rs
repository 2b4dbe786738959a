//! A connection that a sleeping thread reads by itself: it asks on it, and hears on a channel of the same connection of its turn. Then
//! no other thread stands between the server and who waits.
//!
//! RESP3, since over RESP2 who has subscribed may ask nothing.

use std::io::{self, Read};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use redis::{Cmd, PushKind, RedisResult, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::server::Stream;
use super::wire;
use super::wire::frame::{LONGEST, frame};
use crate::sys::futex::Woken;

pub(super) struct Ear {
    stream: Box<dyn Stream>,
    /// The engine's count of changes when it was made.
    pub(super) changes: u64,
    /// What was read and not looked at.
    unread: Vec<u8>,
    /// What was told meanwhile.
    told: Vec<String>,
}

impl Ear {
    /// On a stream that is nobody else's, logged in and speaking RESP2.
    ///
    /// # Errors
    /// What the server says of RESP3 or of the channel.
    pub(super) fn open(stream: Box<dyn Stream>, changes: u64, channel: &str, limit: Duration) -> RedisResult<Ear> {
        let mut ear = Ear { stream, changes, unread: Vec::new(), told: Vec::new() };
        ear.set_limit(limit)?;
        ear.ask(redis::cmd("HELLO").arg(3))?;
        ear.send(redis::cmd("SUBSCRIBE").arg(channel))?;
        loop {
            match ear.next()? {
                Value::Push { kind: PushKind::Subscribe, .. } => return Ok(ear),
                other => drop(other.extract_error()?),
            }
        }
    }

    /// How long what is asked from now on may take, all together.
    pub(super) fn set_limit(&mut self, limit: Duration) -> RedisResult<()> {
        Ok(self.stream.set_limit(limit)?)
    }

    fn send(&mut self, command: &Cmd) -> RedisResult<()> {
        self.stream.write_all(&command.get_packed_command())?;
        Ok(())
    }

    /// The answer; what is told meanwhile is kept.
    pub(super) fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        self.send(command)?;
        loop {
            let value = self.next()?;
            if let Some(answer) = self.keep(value) {
                return answer.extract_error();
            }
        }
    }

    /// What was told so far.
    pub(super) fn told(&mut self) -> Vec<String> {
        std::mem::take(&mut self.told)
    }

    /// Sleeps until something was told (`None`), `bell` rings, `until` or a signal.
    ///
    /// # Errors
    /// The end of the connection, and an answer that nobody asked for.
    pub(super) fn listen(&mut self, mut bell: &UnixStream, until: Instant) -> RedisResult<Option<Woken>> {
        // It sleeps for `until` alone.
        self.stream.lift_limit();
        while frame(&self.unread).is_none() {
            let limit = Timespec::try_from(until.saturating_duration_since(Instant::now())).ok();
            let socket = self.stream.socket().ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))?;
            let mut both = [PollFd::from_borrowed_fd(socket, PollFlags::IN), PollFd::new(&bell, PollFlags::IN)];
            match poll(&mut both, limit.as_ref()) {
                Ok(0) => return Ok(Some(Woken::TimedOut)),
                Ok(_) if !both[1].revents().is_empty() => {
                    // Empty, if it was rung for somebody else who came first.
                    let _ = bell.read(&mut [0_u8; 8]);
                    return Ok(Some(Woken::Changed));
                }
                Ok(_) => self.read()?,
                Err(rustix::io::Errno::INTR) => return Ok(Some(Woken::Interrupted)),
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        while frame(&self.unread).is_some() {
            let value = self.next()?;
            if self.keep(value).is_some() {
                return Err(wire::misplaced());
            }
        }
        Ok(None)
    }

    /// `None` if it was told and not asked for.
    fn keep(&mut self, value: Value) -> Option<Value> {
        match value {
            Value::Push { kind: PushKind::Message, data } => {
                if let Some(Value::BulkString(text)) = data.get(1) {
                    self.told.push(String::from_utf8_lossy(text).into_owned());
                }
                None
            }
            Value::Push { .. } => None,
            answer => Some(answer),
        }
    }

    fn next(&mut self) -> RedisResult<Value> {
        loop {
            if let Some(length) = frame(&self.unread) {
                let value = redis::parse_redis_value(&self.unread[..length])?;
                self.unread.drain(..length);
                return Ok(value);
            }
            self.read()?;
        }
    }

    fn read(&mut self) -> RedisResult<()> {
        if self.unread.len() >= LONGEST {
            return Err((redis::ErrorKind::Parse, "an answer that does not end").into());
        }
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            read => {
                self.unread.extend_from_slice(&buffer[..read]);
                Ok(())
            }
        }
    }
}
