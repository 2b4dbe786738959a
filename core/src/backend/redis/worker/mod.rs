//! The background thread: one loop that takes events, and looks at what is due whenever it has.
//!
//! Everything it does to the server is sent as a task whose answer comes back as an event, so the loop never waits
//! for the network. Of the link there is one at a time; it has a number, and what comes from an earlier one is void.
//!
//! | part | file |
//! |---|---|
//! | the loop and its events | here |
//! | what is asked of the server, and how much at once | `calls` |
//! | the link | `link` |
//! | the waiters: who, and when they look | `line` |
//! | their takes, and what is answered and told | `turn` |
//! | the renewals | `renewal` |
//! | beside other libraries | `tracking` |
//! | what is still owed | `owed` |

mod calls;
mod line;
mod link;
mod owed;
mod renewal;
#[cfg(all(test, feature = "schedules"))]
mod schedules;
mod tracking;
mod turn;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::task::Poll;
use std::time::{Duration, Instant};

use redis::{RedisResult, Value};
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use self::calls::Calls;
use self::line::{Entry, Line};
use self::renewal::{Batch, NEVER};
use self::turn::Owned;
use super::engine::placing::Placing;
use super::engine::{Engine, LINGER, bug};
use super::hold::{Hold, Loss};
use super::lease::{self, AGAIN};
use super::lock::Lock;
use super::server::{self, Heard, Link};
use super::token::Token;
use super::wire::{self, Message};
use super::witness::Unwitnessed;
use crate::error::{Error, ErrorKind, Result};
use crate::timeout::earlier;
use crate::waiter::Waiter;

/// How long an acquisition without a timeout waits for a server that does not serve, at least.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) enum Event {
    /// Another server has taken this one's place.
    Changed,
    /// Something on the board has become due earlier than thought, or the board is empty.
    Look,
    Join {
        serial: u64,
        waiter: Arc<Waiter>,
        lock: Arc<Lock>,
        placing: Placing,
    },
    /// One that stands in the line already, on the word of the caller's connection.
    Arrived {
        serial: u64,
        waiter: Arc<Waiter>,
        lock: Arc<Lock>,
    },
    Leave(u64),
    /// The process ends: the waiters step aside. Answered when that and all that was posted before is done, what it asked
    /// the server for included.
    Done(SyncSender<()>),
    Owed(Token),
    Extend {
        hold: Arc<Hold>,
        ttl: Duration,
        answer: SyncSender<Result<()>>,
    },
    Linked {
        number: u64,
        link: RedisResult<Link>,
    },
    Heard {
        number: u64,
        heard: Heard,
    },
    /// The lock's channel is heard, or not to be.
    Subscribed {
        lock: Arc<str>,
        number: u64,
        reply: RedisResult<Value>,
    },
    Taken {
        lock: Arc<Lock>,
        token: Token,
        serial: u64,
        call: u64,
        sent: u64,
        number: u64,
        reply: RedisResult<Value>,
    },
    Witnessed {
        serial: u64,
        call: u64,
        owned: Owned,
        outcome: Result<(), Unwitnessed>,
    },
    Tracked {
        lock: Arc<str>,
        number: u64,
        sent: u64,
        reply: RedisResult<(Value, i64)>,
    },
    Renewed {
        batch: Arc<Batch>,
        answer: Option<SyncSender<Result<()>>>,
        sent: u64,
        number: u64,
        reply: RedisResult<Value>,
    },
    Paid {
        token: Token,
        /// Of the debt that this pays: it may be owed anew since.
        until: u64,
        number: u64,
        reply: RedisResult<Value>,
    },
}

enum State {
    Down { retry_at: Instant },
    Making,
    Up(Link),
}

pub(super) struct Worker {
    engine: Arc<Engine>,
    events: UnboundedSender<Event>,
    state: State,
    /// Of the link that is up or being made.
    number: u64,
    failures: u32,
    last_try: Option<Instant>,
    /// Since when the server has not served, and what it last failed with. Also while there is a link, until it does.
    down: Option<(Instant, Error)>,
    /// Tasks whose answer has not come.
    tasks: usize,
    calls: Calls,
    /// Whether the link's server tells of changed keys; not asked yet.
    tracking: Option<bool>,
    /// A renewal waits for the link.
    overdue: bool,
    entries: BTreeMap<u64, Entry>,
    by_token: HashMap<Token, u64>,
    lines: HashMap<Arc<str>, Line>,
    /// In a cluster, on whose channels this link hears: also those for which nobody waits any more.
    channels: HashSet<Arc<str>>,
    timers: BTreeSet<(Instant, Arc<str>)>,
    serials: u64,
    /// Holds whose renewal is under way.
    renewing: HashSet<u64>,
    /// Those of them that are looked for anew: whom was asked may have been replaced since.
    anew: HashSet<u64>,
    extensions: Vec<(Arc<Hold>, Duration, SyncSender<Result<()>>)>,
    /// Tokens whose release waits for its turn.
    unpaid: HashSet<Token>,
    pay_at: Option<Instant>,
    /// The process ends, and waits a little for the last task.
    farewell: Option<SyncSender<()>>,
    /// Until when nothing is taken, since the process ends.
    aside: Option<Instant>,
    /// Since when there is nothing to do, and the count of holds then.
    idle: Option<(Instant, u64)>,
    /// The count of holds at the last look.
    taken: u64,
    /// When what is held was last looked for since a slot had moved.
    followed: Option<Instant>,
    /// When the loop wakes by itself.
    alarm: Instant,
}

/// The body of the thread.
pub(super) fn work(
    engine: Arc<Engine>,
    runtime: Runtime,
    events: UnboundedSender<Event>,
    receiver: UnboundedReceiver<Event>,
) {
    let worker = Worker::new(engine.clone(), events);
    let receiver = Arc::new(tokio::sync::Mutex::new(receiver));
    let heard = receiver.clone();
    // As a task, not as what the runtime blocks on: to wake that costs a system call, even from its own thread.
    let body = runtime.spawn(async move { worker.run(&mut *heard.lock().await).await });
    let ended = catch_unwind(AssertUnwindSafe(|| runtime.block_on(body)));
    if !matches!(ended, Ok(Ok(()))) {
        engine.bury();
        let mut receiver = receiver.blocking_lock();
        let come = std::mem::take(&mut engine.board().come);
        for event in come.into_iter().chain(std::iter::from_fn(|| receiver.try_recv().ok())) {
            if let Event::Join { waiter, .. } | Event::Arrived { waiter, .. } = event {
                let _ = waiter.settle(Err(bug()));
            }
        }
    }
    // A name may still be being looked up on a thread of the runtime; nobody waits for it.
    runtime.shutdown_background();
}

impl Worker {
    pub(super) fn new(engine: Arc<Engine>, events: UnboundedSender<Event>) -> Worker {
        Worker {
            engine,
            events,
            state: State::Down { retry_at: Instant::now() },
            number: 0,
            failures: 0,
            last_try: None,
            down: None,
            tasks: 0,
            calls: Calls::default(),
            tracking: None,
            overdue: false,
            entries: BTreeMap::new(),
            by_token: HashMap::new(),
            lines: HashMap::new(),
            channels: HashSet::new(),
            timers: BTreeSet::new(),
            serials: 0,
            renewing: HashSet::new(),
            anew: HashSet::new(),
            extensions: Vec::new(),
            unpaid: HashSet::new(),
            pay_at: None,
            farewell: None,
            aside: None,
            idle: None,
            taken: 0,
            followed: None,
            alarm: Instant::now(),
        }
    }

    async fn run(mut self, receiver: &mut UnboundedReceiver<Event>) {
        if self.engine.server.moves() {
            let (server, learned, events) =
                (self.engine.server.clone(), self.engine.learned.clone(), self.events.clone());
            let seen = learned.changes();
            // It ends with the thread's runtime.
            tokio::spawn(server::watch(server, learned, seen, move || {
                let _ = events.send(Event::Changed);
            }));
        }
        let mut alarm = std::pin::pin!(tokio::time::sleep_until(self.alarm.into()));
        loop {
            while let Ok(event) = receiver.try_recv() {
                self.handle(event);
            }
            self.welcome();
            self.send_waiting();
            if self.tasks == 0
                && let Some(answer) = self.farewell.take()
            {
                // Who asked may have waited long enough already.
                let _ = answer.try_send(());
            }
            let Some(wake) = self.look() else {
                if self.engine.retire(receiver) {
                    return;
                }
                self.idle = None;
                continue;
            };
            if alarm.deadline() != wake.into() {
                alarm.as_mut().reset(wake.into());
            }
            let next = std::future::poll_fn(|context| match receiver.poll_recv(context) {
                Poll::Pending => alarm.as_mut().poll(context).map(|()| None),
                event => event,
            });
            if let Some(event) = next.await {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: Event) {
        self.welcome();
        self.act(event);
    }

    /// Takes in who has come meanwhile: before anything else, since it may be about them.
    fn welcome(&mut self) {
        let come = std::mem::take(&mut self.engine.board().come);
        for event in come {
            self.act(event);
        }
    }

    fn act(&mut self, event: Event) {
        match event {
            Event::Look => {}
            Event::Changed => self.changed(),
            Event::Join { serial, waiter, lock, placing } => {
                if let (Some((_, error)), None) = (&self.down, self.link()) {
                    lock.not_served(error);
                }
                self.join(serial, waiter, lock, placing);
                if let (State::Down { retry_at }, Some(last)) = (&mut self.state, self.last_try) {
                    *retry_at = (*retry_at).min(last + AGAIN);
                }
            }
            Event::Arrived { serial, waiter, lock } => self.arrived(serial, waiter, lock),
            Event::Leave(serial) => self.leave(serial),
            Event::Done(answer) => {
                self.farewell = Some(answer);
                self.step_aside();
            }
            Event::Owed(token) => self.pay(&token),
            Event::Extend { hold, ttl, answer } => self.extend(hold, ttl, answer),
            Event::Linked { number, link } => {
                self.tasks -= 1;
                match link {
                    Ok(link) if number == self.number => self.linked(link),
                    Ok(_) => {}
                    Err(error) => {
                        let error = self.engine.server.failed("acquire", &error);
                        self.unlink(number, &error);
                    }
                }
            }
            Event::Heard { number, heard } if number == self.number => match heard {
                Heard::Message(text) => self.hear(&text),
                Heard::Changed(key) => self.key_changed(key.as_deref()),
                Heard::End => {
                    let text = format!("the server {} closed the connection", self.engine.server);
                    self.unlink(number, &Error::new(ErrorKind::Unavailable, "acquire", text));
                }
            },
            Event::Heard { .. } => {}
            Event::Subscribed { lock, number, reply } => {
                self.tasks -= 1;
                if number == self.number {
                    self.subscribed(&lock, reply);
                }
            }
            Event::Taken { lock, token, serial, call, sent, number, reply } => {
                self.tasks -= 1;
                if self.by_token.contains_key(&token) {
                    self.taken(serial, call, sent, number, reply);
                } else {
                    self.taken_in_vain(&lock, &token, &reply);
                }
            }
            Event::Witnessed { serial, call, owned, outcome } => {
                self.tasks -= 1;
                self.witnessed(serial, call, &owned, outcome);
            }
            Event::Tracked { lock, number, sent, reply } => {
                self.tasks -= 1;
                self.tracked(&lock, number, sent, reply);
            }
            Event::Renewed { batch, answer, sent, number, reply } => {
                self.tasks -= 1;
                self.renewed(&batch, answer, sent, number, reply);
            }
            Event::Paid { token, until, number, reply } => {
                self.tasks -= 1;
                match reply {
                    _ if number != self.number => {}
                    Ok(_) => {
                        self.serves();
                        self.engine.released(&token, until);
                        self.pay(&token);
                    }
                    Err(error) if wire::is_answer(&error) => {
                        self.pay_at = earlier(self.pay_at, Some(Instant::now() + AGAIN));
                    }
                    Err(error) => self.broke(number, &error),
                }
            }
        }
    }

    /// Does what is due; when to do so again, or `None` if there is nothing to do.
    fn look(&mut self) -> Option<Instant> {
        let follow = self.follow();
        self.renew_due();
        self.recheck_due();
        self.pay_due();
        self.shed_channels();
        let needed = self.is_link_needed();
        let mut wake = self.give_up();
        if let State::Down { retry_at } = self.state
            && needed
        {
            if retry_at <= Instant::now() {
                self.connect();
            } else {
                wake = earlier(wake, Some(retry_at));
            }
        }
        wake = earlier(wake, follow);
        wake = earlier(wake, self.pay_at);
        wake = earlier(wake, self.timers.first().map(|(at, _)| *at));
        let busy = needed || self.tasks > 0;
        let mut board = self.engine.board();
        let now = Instant::now();
        let boot = lease::now();
        let come = !board.come.is_empty();
        if come {
            wake = Some(now);
        }
        if let Some(((due, _), _)) = board.holds.first_key_value()
            && *due != NEVER
        {
            wake = earlier(wake, Some(now + Duration::from_nanos(due.saturating_sub(boot)).min(lease::LOOK)));
        }
        // While holds come and go, each end of one finds a look near enough, and need not call for it.
        if std::mem::replace(&mut self.taken, board.taken) != board.taken {
            wake = earlier(wake, Some(now + LINGER));
        }
        let wake = if busy || come || !board.holds.is_empty() {
            self.idle = None;
            // While an answer is awaited it comes as an event.
            wake.unwrap_or(now + LINGER)
        } else {
            match self.idle {
                Some((until, taken)) if taken == board.taken && until <= now => return None,
                Some((until, taken)) if taken == board.taken => until,
                _ => {
                    self.idle = Some((now + LINGER, board.taken));
                    now + LINGER
                }
            }
        };
        // To wake early costs nothing but the look; to move the alarm costs a system call.
        let wake = if self.alarm > now { wake.min(self.alarm) } else { wake };
        self.alarm = wake;
        board.wake_at = boot + lease::nanos(wake.saturating_duration_since(now));
        Some(wake)
    }

    pub(super) fn number(&self) -> u64 {
        self.number
    }

    fn hear(&mut self, text: &str) {
        match wire::message(text) {
            Some(Message::Granted { token, key }) => self.granted(token, key),
            Some(Message::Turn { token }) => self.turn(token),
            Some(Message::First { token, left }) => self.first(token, left),
            Some(Message::Lost { token }) => {
                if let Some(hold) = self.engine.hold_with(token) {
                    self.engine.lose(&hold, Loss::Broken);
                }
            }
            // Of another version, or of somebody who may publish here: nothing is decided by it.
            None => {}
        }
    }
}
