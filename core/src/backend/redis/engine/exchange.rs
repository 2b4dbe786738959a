//! A connection that an event loop reads: what is asked on it is written by the thread that asks, and no other thread is on the way. That one
//! looks for the answer for a moment (`prompt`): of a near server it is there before the loop would be told of it.
//!
//! One question at a time, so that an answer is never another's. The loop may be busy for long: a library thread looks after an
//! answer that lies unread for [`LOOK`], so that a lock taken is renewed and a turn is not slept through.
//!
//! | state | |
//! |---|---|
//! | laid | nobody watches it yet: not used |
//! | idle | a question may be asked |
//! | asked | its answer, its end or its time decides; whoever takes the question out of the state tells |
//! | ended | shut down; another is laid |

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redis::Value;
use redis::io::tcp::socket2::SockRef;

use super::Debt;
use crate::backend::redis::server::Stream;
use crate::backend::redis::token::Token;
use crate::backend::redis::wire::frame::{LONGEST, frame};
use crate::event_loop::{self, EventLoop, Mark};
use crate::service::{clock, offload};
use crate::sync::Guarded;
use crate::sys::fork;

/// How long an answer may lie unread before a library thread reads it.
const LOOK: Duration = Duration::from_millis(100);
/// After how long without a question another event loop may have the connection's place.
const FORSAKEN: Duration = Duration::from_secs(1);

/// Why no answer came. Unless it was not asked, the server may have done it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unheard {
    /// It was not asked: the connection was busy, or had ended.
    Unasked,
    /// The connection ended, or nobody reads it any more: it may be asked again on another one.
    Cut,
    /// The time is over: it would not answer on another one either.
    Silent,
}

pub(super) type Then = Box<dyn FnOnce(Result<Value, Unheard>) + Send>;

pub(crate) struct Question {
    pub(crate) words: Vec<u8>,
    /// How long the answer may take.
    pub(crate) limit: Duration,
    /// What the end of the process must undo.
    pub(crate) leaves: Option<(Token, Debt)>,
    pub(crate) then: Then,
}

struct Asked {
    at: Instant,
    limit: Duration,
    leaves: Option<(Token, Debt)>,
    then: Then,
}

pub(crate) struct Exchange {
    owner: Mark,
    epoch: u32,
    /// The engine's count of changes when it was made.
    pub(crate) changes: u64,
    state: Guarded<State>,
    this: Weak<Exchange>,
}

struct State {
    stream: Box<dyn Stream>,
    watched: bool,
    ended: bool,
    asked: Option<Asked>,
    /// Of the answer, so far.
    heard: Vec<u8>,
    last_asked: Instant,
    /// The clock will look.
    looking: bool,
}

impl State {
    fn end(&mut self) -> Option<Asked> {
        if !std::mem::replace(&mut self.ended, true)
            && let Some(socket) = self.stream.socket()
        {
            // Whoever watches it sees its end.
            let _ = SockRef::from(&socket).shutdown(std::net::Shutdown::Both);
        }
        self.asked.take()
    }

    /// What has come can be told, or not yet.
    fn hear(&mut self, bytes: &[u8]) -> Option<(Asked, Result<Value, Unheard>)> {
        self.heard.extend_from_slice(bytes);
        let whole = match frame(&self.heard) {
            Some(length) if self.asked.is_some() => length == self.heard.len(),
            None if self.asked.is_some() && !bytes.is_empty() && self.heard.len() < LONGEST => return None,
            // The end, or something that nobody asked for.
            _ => false,
        };
        let value = if whole { redis::parse_redis_value(&self.heard).ok() } else { None };
        self.heard.clear();
        match value {
            Some(value) => self.asked.take().map(|asked| (asked, Ok(value))),
            None => self.end().map(|asked| (asked, Err(Unheard::Cut))),
        }
    }
}

impl Exchange {
    /// On a stream that is nobody else's any more. `None` for one whose bytes are not the server's own.
    pub(super) fn lay(mut stream: Box<dyn Stream>, changes: u64, owner: &EventLoop) -> Option<Arc<Exchange>> {
        SockRef::from(&stream.socket()?).set_nonblocking(true).ok()?;
        stream.lift_limit();
        let state = Guarded::new(State {
            stream,
            watched: false,
            ended: false,
            asked: None,
            heard: Vec::new(),
            last_asked: Instant::now(),
            looking: false,
        });
        let (owner, epoch) = (owner.mark(), fork::epoch());
        Some(Arc::new_cyclic(|this| Exchange { owner, epoch, changes, state, this: this.clone() }))
    }

    pub(super) fn is_of(&self, event_loop: &EventLoop) -> bool {
        self.owner.is_of(event_loop)
    }

    /// Whether another may be laid in its place.
    pub(crate) fn is_over(&self) -> bool {
        let state = self.state.lock();
        state.ended || (state.asked.is_none() && state.last_asked.elapsed() > FORSAKEN)
    }

    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.watched && !state.ended && state.asked.is_none()
    }

    /// Asks; `then` is told of the answer, perhaps before this returns.
    pub(crate) fn ask(&self, question: Question) {
        let Question { words, limit, leaves, then } = question;
        let mut state = self.state.lock();
        let mut possible = state.watched && !state.ended && state.asked.is_none();
        // Nothing is under way: the socket has room for all of it, or is broken. Of one that is cut short the server does nothing.
        if possible
            && (state.stream.has_ended() || !state.stream.write(&words).is_ok_and(|written| written == words.len()))
        {
            state.end();
            possible = false;
        }
        if !possible {
            drop(state);
            return then(Err(Unheard::Unasked));
        }
        let at = Instant::now();
        state.asked = Some(Asked { at, limit, leaves, then });
        state.last_asked = at;
        let look = !std::mem::replace(&mut state.looking, true);
        drop(state);
        if look {
            self.look_later();
        }
        event_loop::Exchange::read(self);
    }

    fn look_later(&self) {
        let this = self.this.clone();
        let look = move || {
            if let Some(exchange) = this.upgrade() {
                exchange.look();
            }
        };
        if clock::at(Instant::now() + LOOK, Box::new(look)).is_err() {
            // No thread to be had: the loop alone reads.
            self.state.lock().looking = false;
        }
    }

    /// On the clock's thread, as long as something is asked now and then.
    fn look(self: Arc<Exchange>) {
        let mut state = self.state.lock();
        if state.asked.is_none() {
            state.looking = false;
            return;
        }
        let late = state.asked.as_ref().is_some_and(|asked| asked.at.elapsed() >= LOOK);
        drop(state);
        if late {
            let this = self.clone();
            offload::offload(move || this.read_for_the_loop());
        }
        self.look_later();
    }

    fn read_for_the_loop(&self) {
        event_loop::Exchange::read(self);
        let mut state = self.state.lock();
        if state.asked.as_ref().is_some_and(|asked| asked.at.elapsed() >= asked.limit) {
            let asked = state.end();
            drop(state);
            if let Some(asked) = asked {
                (asked.then)(Err(Unheard::Silent));
            }
        }
    }

    /// Ends it. In the process that made it.
    pub(crate) fn end(&self) {
        let asked = self.state.lock().end();
        if let Some(asked) = asked {
            (asked.then)(Err(Unheard::Cut));
        }
    }

    /// The process ends: what is under way is undone behind itself, on the same connection, so that it cannot come too late. Waits for
    /// the answers, no longer than `limit`.
    pub(crate) fn farewell(&self, limit: Duration, release: impl FnOnce(&Token, &Debt) -> Vec<u8>) {
        let mut state = self.state.lock();
        // From here on nothing is asked any more.
        state.ended = true;
        let Some((token, debt)) = state.asked.take().and_then(|asked| asked.leaves) else { return };
        let Some(socket) = state.stream.socket() else { return };
        let words = release(&token, &debt);
        let ready = SockRef::from(&socket).set_nonblocking(false).and_then(|()| state.stream.set_limit(limit));
        if ready.is_err() || state.stream.write_all(&words).is_err() {
            return;
        }
        let (mut heard, mut buffer) = (std::mem::take(&mut state.heard), [0; 1024]);
        for _ in 0..2 {
            let length = loop {
                match frame(&heard) {
                    Some(length) => break length,
                    None => match state.stream.read(&mut buffer) {
                        Ok(read @ 1..) => heard.extend_from_slice(&buffer[..read]),
                        _ => return,
                    },
                }
            };
            heard.drain(..length);
        }
    }
}

impl event_loop::Exchange for Exchange {
    fn descriptor(&self) -> io::Result<OwnedFd> {
        let state = self.state.lock();
        state.stream.socket().ok_or(io::ErrorKind::Unsupported)?.try_clone_to_owned()
    }

    fn start(&self) {
        self.state.lock().watched = true;
    }

    fn feed(&self, bytes: &[u8]) {
        if self.epoch != fork::epoch() {
            return;
        }
        let told = self.state.lock().hear(bytes);
        if let Some((asked, answer)) = told {
            (asked.then)(answer);
        }
    }

    fn read(&self) -> bool {
        if self.epoch != fork::epoch() {
            return false;
        }
        let mut buffer = [0; 4096];
        let mut state = self.state.lock();
        if state.ended {
            return false;
        }
        let told = match state.stream.read(&mut buffer) {
            Ok(read) => state.hear(&buffer[..read]),
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => None,
            Err(_) => state.hear(&[]),
        };
        let more = !state.ended;
        drop(state);
        if let Some((asked, answer)) = told {
            (asked.then)(answer);
        }
        more
    }

    fn give_up(&self) {
        if self.epoch == fork::epoch() {
            self.end();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, BorrowedFd};
    use std::os::unix::net::UnixStream;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::{Receiver, channel};

    use super::*;
    use crate::backend::redis::server::Prompt;
    use crate::event_loop::Exchange as _;

    struct Far {
        exchange: Arc<Exchange>,
        server: UnixStream,
        _owner: EventLoop,
    }

    fn far() -> Far {
        let (near, server) = UnixStream::pair().expect("a pair");
        let owner = EventLoop::new(|_| {});
        let exchange = Exchange::lay(Box::new(Prompt::new(near)), 0, &owner).expect("it can be watched");
        Far { exchange, server, _owner: owner }
    }

    fn ask(exchange: &Exchange, limit: Duration) -> (bool, Receiver<Result<Value, Unheard>>) {
        let (tell, told) = channel();
        let asked = Arc::new(AtomicBool::new(true));
        let refused = asked.clone();
        let then = move |answer| match answer {
            Err(Unheard::Unasked) => refused.store(false, Ordering::Relaxed),
            answer => tell.send(answer).expect("the test listens"),
        };
        exchange.ask(Question { words: b"PING\r\n".to_vec(), limit, leaves: None, then: Box::new(then) });
        (asked.load(Ordering::Relaxed), told)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn one_question_at_a_time_and_none_before_it_is_watched() {
        let mut far = far();
        assert!(!ask(&far.exchange, LONG).0, "nobody watches");
        far.exchange.start();
        let (asked, told) = ask(&far.exchange, LONG);
        assert!(asked && !ask(&far.exchange, LONG).0, "one is under way");
        let mut words = [0; 6];
        far.server.read_exact(&mut words).expect("it was written");
        far.exchange.feed(b"*2\r\n:1\r");
        far.exchange.feed(b"\n:2\r\n");
        assert_eq!(told.recv().expect("told"), Ok(Value::Array(vec![Value::Int(1), Value::Int(2)])));
        assert!(ask(&far.exchange, LONG).0, "the next one");
    }

    #[test]
    fn what_nobody_asked_for_ends_it() {
        let far = far();
        far.exchange.start();
        far.exchange.feed(b":1\r\n");
        assert!(!ask(&far.exchange, LONG).0 && far.exchange.is_over());

        let far = self::far();
        far.exchange.start();
        let (_, told) = ask(&far.exchange, LONG);
        far.exchange.feed(b":1\r\n:2\r\n");
        assert_eq!(told.recv().expect("told"), Err(Unheard::Cut), "which of them is the answer?");
        assert!(far.exchange.is_over());
    }

    #[test]
    fn what_nobody_would_hear_is_not_asked() {
        let far = far();
        far.exchange.start();
        drop(far.server);
        assert!(!ask(&far.exchange, LONG).0, "the loop has not seen its end");
        assert!(far.exchange.is_over());
    }

    #[test]
    fn a_question_ends_with_its_connection_or_its_loop() {
        let far = far();
        far.exchange.start();
        let (_, told) = ask(&far.exchange, LONG);
        drop(far.server);
        far.exchange.read();
        assert_eq!(told.recv().expect("told"), Err(Unheard::Cut));

        let far = self::far();
        let held: Arc<dyn event_loop::Exchange> = far.exchange.clone();
        far._owner.watch(held);
        far.exchange.start();
        let (_, told) = ask(&far.exchange, LONG);
        drop(far._owner);
        assert_eq!(told.recv().expect("told"), Err(Unheard::Cut));
    }

    /// The loop never comes to read.
    #[test]
    fn a_library_thread_looks_after_what_lies_unread() {
        let mut far = far();
        far.exchange.start();
        let (_, told) = ask(&far.exchange, LONG);
        far.server.write_all(b":5\r\n").expect("it is written");
        assert_eq!(told.recv().expect("told"), Ok(Value::Int(5)));
        let (_, told) = ask(&far.exchange, Duration::ZERO);
        assert_eq!(told.recv().expect("told"), Err(Unheard::Silent));
        assert!(far.exchange.is_over());
    }

    #[test]
    fn what_the_end_of_the_process_finds_under_way_is_undone_behind_itself() {
        let mut far = far();
        far.exchange.start();
        let token: Token = "t".into();
        let debt = Debt::of_nobody();
        let question =
            Question { words: b"take".to_vec(), limit: LONG, leaves: Some((token, debt)), then: Box::new(drop) };
        far.exchange.ask(question);
        far.server.write_all(b":1\r\n:1\r\n").expect("both are answered");
        far.exchange.farewell(LONG, |token, _| format!("release {token}").into_bytes());
        let mut words = [0; 13];
        far.server.read_exact(&mut words).expect("both were written");
        assert_eq!(&words, b"takerelease t");
        assert!(far.exchange.is_over());
    }

    /// The bytes of TLS are not the server's.
    #[test]
    fn what_is_wrapped_is_not_watched() {
        struct Wrapped(UnixStream);
        impl Read for Wrapped {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                self.0.read(buffer)
            }
        }
        impl Write for Wrapped {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0.write(bytes)
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        impl Stream for Wrapped {
            fn lift_limit(&mut self) {}

            fn set_limit(&mut self, _: Duration) -> io::Result<()> {
                Ok(())
            }
            fn socket(&self) -> Option<BorrowedFd<'_>> {
                let _inner = self.0.as_fd();
                None
            }
        }
        let (near, _far) = UnixStream::pair().expect("a pair");
        assert!(Exchange::lay(Box::new(Wrapped(near)), 0, &EventLoop::new(|_| {})).is_none());
    }
}
