//! The servers, and the thread that asks them all at once.
//!
//! The thread comes with the first thing to do and goes when there has been nothing for [`LINGER`]; the connections are its.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::super::engine::{LINGER, bug};
use super::super::lease::{self, AGAIN, jitter};
use super::super::server::{ANSWER, Learned, Server, Task, event_loop};
use super::super::wire::{self, Scripts};
use super::keep::Board;
use crate::error::Result;
use crate::service::answer::{self, Unanswered};
use crate::sync::Guarded;
use crate::sys::fork::{self, PerProcess};
use crate::sys::thread;
use crate::waiter;

/// How long the last ones may take when a majority has answered that cannot decide alone.
pub(super) const GRACE: Duration = Duration::from_millis(50);
/// So often the pause between two tries to reach a server is doubled: one that is back is found within about a second.
const DOUBLED: u32 = 4;

static QUORUMS: PerProcess<Guarded<HashMap<Vec<Server>, Weak<Quorum>>>> = PerProcess::new();

pub(super) type Work = Pin<Box<dyn Future<Output = ()> + Send>>;
type Job = Box<dyn FnOnce(Arc<Voters>) -> Work + Send>;

enum Message {
    Do(Job),
    /// A piece of work has ended.
    Ended,
}

pub(super) struct Quorum {
    servers: Vec<Server>,
    epoch: u32,
    pub(super) scripts: Arc<Scripts>,
    pub(super) board: Guarded<Board>,
    thread: Guarded<Option<UnboundedSender<Message>>>,
}

impl Quorum {
    pub(super) fn of(servers: Vec<Server>) -> Arc<Quorum> {
        let mut quorums = QUORUMS.get_or_init(Guarded::default).lock();
        if let Some(quorum) = quorums.get(&servers).and_then(Weak::upgrade) {
            return quorum;
        }
        let quorum = Arc::new(Quorum {
            servers: servers.clone(),
            epoch: fork::epoch(),
            scripts: Arc::new(Scripts::new(false)),
            board: Guarded::default(),
            thread: Guarded::default(),
        });
        quorums.retain(|_, quorum| quorum.strong_count() > 0);
        quorums.insert(servers, Arc::downgrade(&quorum));
        quorum
    }

    pub(super) fn is_ours(&self) -> bool {
        self.epoch == fork::epoch()
    }

    pub(super) fn count(&self) -> usize {
        self.servers.len()
    }

    pub(super) fn limit(&self) -> Duration {
        self.servers.first().map_or(ANSWER, |server| server.connect_timeout.max(ANSWER))
    }

    /// Has `work` done on the thread.
    pub(super) fn spawn(self: &Arc<Quorum>, work: impl FnOnce(Arc<Voters>) -> Work + Send + 'static) -> Result<()> {
        let mut thread = self.thread.lock();
        if thread.is_none() {
            let (sender, receiver) = unbounded_channel();
            self.start(sender.clone(), receiver)?;
            *thread = Some(sender);
        }
        if let Some(thread) = &*thread {
            // The receiver goes away only after the sender was taken away here.
            let _ = thread.send(Message::Do(Box::new(work)));
        }
        Ok(())
    }

    /// Does `work` there and waits for what it comes to. It must end in bounded time.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Quorum>,
        work: impl FnOnce(Arc<Voters>) -> Pin<Box<dyn Future<Output = T> + Send>> + Send + 'static,
    ) -> Result<T> {
        let (answer, answered) = sync_channel(1);
        self.spawn(move |voters| {
            let work = work(voters);
            Box::pin(async move {
                // Whoever asked waits for this, or has gone.
                let _ = answer.send(work.await);
            })
        })?;
        answer::of(&answered, || self.is_ours()).map_err(|unanswered| match unanswered {
            Unanswered::Forked => waiter::forked(),
            Unanswered::Ended => bug(),
        })
    }

    fn start(self: &Arc<Quorum>, sender: UnboundedSender<Message>, receiver: UnboundedReceiver<Message>) -> Result<()> {
        let runtime = event_loop()?;
        let quorum = self.clone();
        thread::spawn("ipcmutex-redlock", thread::FULL_STACK, move || {
            let voters = Arc::new(Voters::new(&quorum));
            let loop_ = quorum.work(&voters, &sender, receiver);
            let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| runtime.block_on(loop_)));
            if ended.is_err() {
                *quorum.thread.lock() = None;
            }
            runtime.shutdown_background();
        })
    }

    async fn work(
        &self,
        voters: &Arc<Voters>,
        sender: &UnboundedSender<Message>,
        mut receiver: UnboundedReceiver<Message>,
    ) {
        let busy = Arc::new(AtomicUsize::new(0));
        loop {
            let message = if busy.load(Ordering::Acquire) == 0 {
                tokio::time::timeout(LINGER, receiver.recv()).await
            } else {
                Ok(receiver.recv().await)
            };
            match message {
                Ok(Some(Message::Do(job))) => {
                    busy.fetch_add(1, Ordering::AcqRel);
                    let (work, busy, sender) = (job(voters.clone()), busy.clone(), sender.clone());
                    tokio::spawn(async move {
                        let _told = Told(busy, sender);
                        work.await;
                    });
                }
                Ok(Some(Message::Ended)) => {}
                Ok(None) | Err(_) => {
                    let mut thread = self.thread.lock();
                    if receiver.is_empty() {
                        *thread = None;
                        return;
                    }
                }
            }
        }
    }
}

impl Drop for Quorum {
    fn drop(&mut self) {
        if !self.is_ours() {
            // The parent's thread is not there to be told.
            std::mem::forget(self.thread.get_mut().take());
        }
    }
}

/// Tells of the end of a piece of work, however it ends.
struct Told(Arc<AtomicUsize>, UnboundedSender<Message>);

impl Drop for Told {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
        // The loop may be gone.
        let _ = self.1.send(Message::Ended);
    }
}

/// The servers, on the thread.
pub(super) struct Voters(Vec<Arc<Voter>>);

/// Whether a server is dialled that could not be used a moment ago. All locks of the process share it: each by itself
/// would be too many for it.
#[derive(Clone, Copy)]
pub(super) enum Dial {
    /// Once the pause is over, or this much of it: until then the last failure is the answer.
    After(Duration),
    /// The same, but that is waited for: what is asked cannot be asked later.
    Behind(Duration),
    /// For what takes back what was asked since then: once the pause is over, and only where that has gone out.
    Undo(u64),
}

impl Dial {
    /// For who looks at the servers as they are now.
    pub(super) const AT_ONCE: Dial = Dial::After(Duration::ZERO);
    /// For a caller who waits for what it comes to, and may try again.
    pub(super) const SOON: Dial = Dial::After(AGAIN);
    /// For a caller to whom a server that is back already must not be away still.
    pub(super) const SURELY: Dial = Dial::Behind(AGAIN);
    /// For what is tried again by itself.
    pub(super) const PACED: Dial = Dial::After(Duration::MAX);
    /// For what may have gone out at any time.
    pub(super) const OWED: Dial = Dial::Undo(0);
}

struct Voter {
    server: Server,
    learned: Learned,
    connection: tokio::sync::Mutex<State>,
    /// How often it was dialled.
    dials: AtomicU64,
    /// How often in a row that has come to nothing.
    failures: AtomicU32,
    /// When somebody last had its connection.
    used: AtomicU64,
}

#[derive(Default)]
enum State {
    #[default]
    Unknown,
    /// With its number.
    Up(u64, MultiplexedConnection, Task),
    /// It could not be used then, and is not dialled for a while.
    Away { at: Instant, pause: Duration, error: RedisError },
}

impl Voter {
    /// The connection, its number, and whether it was there before.
    async fn connected(&self, dial: Dial) -> RedisResult<(MultiplexedConnection, u64, bool)> {
        let dials = self.dials.load(Ordering::Relaxed);
        let mut state = loop {
            let state = self.connection.lock().await;
            // Whoever asked it came to the connection before this one, and in order.
            if matches!(dial, Dial::Undo(since) if self.used.load(Ordering::Relaxed) < since) {
                return Err((redis::ErrorKind::Client, "there is nothing to take back").into());
            }
            let State::Away { at, pause, error } = &*state else { break state };
            let pause = match dial {
                // Who stands behind one that it does not answer must not wait as long as that one did, one after the other.
                Dial::After(most) | Dial::Behind(most) if !error.is_timeout() => most.min(*pause),
                _ => *pause,
            };
            let left = pause.saturating_sub(at.elapsed());
            if left.is_zero() {
                break state;
            }
            // What waited finds what another has come to meanwhile.
            if matches!(dial, Dial::After(_)) || self.dials.load(Ordering::Relaxed) != dials {
                return Err(error.clone());
            }
            drop(state);
            tokio::time::sleep(left).await;
        };
        // What nobody hears is not said: it would leave it in doubt whose a lock is that the server has forgotten.
        if let State::Up(number, connection, driver) = &*state
            && !driver.has_ended()
        {
            self.used.store(lease::now(), Ordering::Relaxed);
            return Ok((connection.clone(), *number, true));
        }
        let number = self.dials.fetch_add(1, Ordering::Relaxed);
        match self.server.plain(&self.learned).await {
            Ok((connection, driver)) => {
                *state = State::Up(number, connection.clone(), driver);
                self.used.store(lease::now(), Ordering::Relaxed);
                Ok((connection, number, false))
            }
            Err(error) => {
                *state = self.away(&error);
                Err(error)
            }
        }
    }

    fn away(&self, error: &RedisError) -> State {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed);
        // One that does not answer has taken its time already.
        let pause = if error.is_timeout() { AGAIN } else { lease::backoff(failures.min(DOUBLED), jitter()) };
        State::Away { at: Instant::now(), pause, error: error.clone() }
    }

    /// What it answers, and whether it was asked before on a connection that was cut, and may have done it then.
    async fn ask(&self, dial: Dial, call: impl Fn(bool) -> Cmd) -> (RedisResult<Value>, bool) {
        let mut in_doubt = false;
        loop {
            let (mut connection, number, old) = match self.connected(dial).await {
                Ok(connected) => connected,
                Err(error) => return (Err(error), in_doubt),
            };
            let mut answer = call(false).query_async::<Value>(&mut connection).await;
            if answer.as_ref().is_err_and(wire::is_unknown_script) {
                answer = call(true).query_async(&mut connection).await;
            }
            match answer {
                // A name may lead to another server than when this was made: it is looked up anew where one is demoted, too.
                Err(error) if !wire::is_answer(&error) || wire::is_demoted(&error) => {
                    let mut state = self.connection.lock().await;
                    // Somebody else who was on it may have made another since: what goes on there must not end.
                    if matches!(&*state, State::Up(up, ..) if *up == number) {
                        *state = if old { State::Unknown } else { self.away(&error) };
                    }
                    drop(state);
                    // One that was closed or demoted meanwhile says nothing about the server. What is asked may be asked twice.
                    if !old || error.is_timeout() {
                        return (Err(error), in_doubt);
                    }
                    in_doubt |= !wire::is_demoted(&error);
                }
                answer => {
                    if answer.is_ok() {
                        self.failures.store(0, Ordering::Relaxed);
                    }
                    return (answer, in_doubt);
                }
            }
        }
    }
}

/// What one server answered.
pub(super) struct Vote {
    /// A failure in our words.
    pub(super) reply: Result<Value>,
    /// It was asked before, and may have done it then: that answer was lost.
    pub(super) in_doubt: bool,
}

impl Voters {
    fn new(quorum: &Quorum) -> Voters {
        let voter = |server: &Server| {
            Arc::new(Voter {
                server: server.clone(),
                learned: Learned::default(),
                connection: tokio::sync::Mutex::default(),
                dials: AtomicU64::new(0),
                failures: AtomicU32::new(0),
                used: AtomicU64::new(0),
            })
        };
        Voters(quorum.servers.iter().map(voter).collect())
    }

    /// Asks all servers at once. `enough` sees each vote as it comes, and ends the round by `true`; so does `limit`, the
    /// last vote, and `grace` after a majority has answered. Who has not answered by then is not waited for, but has been asked.
    pub(super) async fn ask(
        &self,
        operation: &'static str,
        (limit, grace): (Duration, Duration),
        dial: Dial,
        call: impl Fn(bool) -> Cmd + Clone + Send + Sync + 'static,
        mut enough: impl FnMut(Vote) -> bool,
    ) {
        let (tell, mut told) = unbounded_channel();
        for voter in self.0.iter().cloned() {
            let (tell, call) = (tell.clone(), call.clone());
            tokio::spawn(async move {
                let (answer, in_doubt) = voter.ask(dial, call).await;
                let reply = answer.map_err(|error| voter.server.failed(operation, &error));
                // The round may be over.
                let _ = tell.send(Vote { reply, in_doubt });
            });
        }
        drop(tell);
        let mut end = tokio::time::Instant::now() + limit;
        let mut answers = 0;
        while let Ok(Some(vote)) = tokio::time::timeout_at(end, told.recv()).await {
            answers += usize::from(vote.reply.is_ok());
            if enough(vote) {
                return;
            }
            if answers > self.0.len() / 2 {
                end = end.min(tokio::time::Instant::now() + grace);
            }
        }
    }
}
