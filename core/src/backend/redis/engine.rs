//! One engine per server, login and process: the caller's connection, and the board on which callers and the
//! background thread leave word for each other.
//!
//! | connection | used by | for |
//! |---|---|---|
//! | the caller's; to each node of a cluster one | whatever thread calls, one at a time | take, release, status, break: one round trip, no thread hop |
//! | one aside | the same | with `replicas=`: waiting for them |
//! | one event loop's, once it has asked for a while: it was the caller's | that loop | take and release, awaited |
//! | the ear, once a lock was found taken | one thread that waits | take, its turn, confirm (`direct`) |
//! | the link (RESP2: and its ear) | the background thread | the line, wake-ups, renewals, what is still owed |
//!
//! The thread starts with the first hold or waiter and ends when there has been neither for [`LINGER`].

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redis::Value;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::arrival::Arrivals;
use super::connect::{Learned, PATIENT, Server};
use super::direct::Direct;
use super::exchange::Exchange;
use super::hold::{Hold, Loss, Token};
use super::keys::Keys;
use super::lease;
use super::lock::Lock;
use super::placing::Placings;
use super::redlock;
use super::talk::Connection;
use super::wire::{self, Script, Scripts};
use super::worker::{self, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::event_loop::EventLoop;
use crate::numbers::count;
use crate::service::offload;
use crate::sync::{Guarded, MutexGuard, Turns};
use crate::sys::fork::{self, PerProcess};
use crate::sys::{exit, thread};
use crate::wait::Waiter;

/// How long the background thread stays with nothing to do: a burst of holds shares one thread.
pub(super) const LINGER: Duration = Duration::from_millis(250);
/// How much of a process's exit the releases may take, per server.
const FAREWELL: Duration = Duration::from_millis(400);
/// So often an event loop goes by way of a thread before it gets a connection.
const PASSING: usize = 2;

static ENGINES: PerProcess<Guarded<HashMap<Server, Weak<Engine>>>> = PerProcess::new();

pub(super) struct Engine {
    pub(super) server: Server,
    pub(super) scripts: Scripts,
    pub(super) learned: Arc<Learned>,
    /// This process instance, in the line and as a channel.
    pub(super) process: String,
    /// And the thread that waits by itself.
    pub(super) ear_process: String,
    pub(super) direct: Direct,
    epoch: u32,
    serial: AtomicU64,
    /// Who is on the way to a line.
    pub(super) placings: Arc<Placings>,
    pub(super) caller: Turns<Caller>,
    exchange: Guarded<Option<Arc<Exchange>>>,
    /// How often an event loop asked and had none.
    unlaid: AtomicUsize,
    /// Takes that were sent on the caller's connection and of whose outcome the board does not know.
    taking: AtomicUsize,
    /// For what makes all behind it wait (`witness`).
    pub(super) aside: Turns<Caller>,
    board: Guarded<Board>,
}

#[derive(Default)]
pub(super) struct Caller {
    connection: Option<Connection>,
    /// The engine's count of changes when it was made.
    changes: u64,
    /// When the server failed to be there, unless it has been since, how long it was waited for, and how it failed: who asked before
    /// that, and would not wait for longer, shares the outcome.
    failure: Option<(Instant, Duration, Error)>,
}

pub(super) struct Board {
    /// To the background thread, while there is one.
    thread: Option<UnboundedSender<Event>>,
    /// By when each is next looked at, and its serial.
    pub(super) holds: BTreeMap<(u64, u64), Arc<Hold>>,
    pub(super) arrivals: Arrivals,
    /// Waiters that have come, for the background thread to find when it next wakes.
    pub(super) come: Vec<Event>,
    /// What must still be released.
    pub(super) debts: HashMap<Token, Debt>,
    /// When the thread will look at the board by itself; never, if there is none.
    pub(super) wake_at: u64,
    /// Counts holds, so that the thread sees that there was one.
    pub(super) taken: u64,
}

impl Board {
    /// There is no thread any more.
    fn end(&mut self) {
        self.thread = None;
        self.wake_at = u64::MAX;
        self.arrivals.hearing = 0;
    }
}

/// A token that may stand in the server and that nobody here wants: a release that got no answer, a grant that was
/// refused, a waiter that left.
#[derive(Clone)]
pub(super) struct Debt {
    pub(super) keys: Keys,
    pub(super) beside_others: bool,
    /// It stood in the line for a thread that hears by itself.
    pub(super) by_ear: bool,
    pub(super) ending: Ending,
    /// After this it has ended by itself.
    pub(super) until: u64,
}

#[cfg(test)]
impl Debt {
    pub(super) fn of_nobody() -> Debt {
        Debt { keys: Keys::of("nobody's"), beside_others: false, by_ear: false, ending: Ending::Undone, until: 0 }
    }
}

/// What the next hold hears of the one that ends.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// Nothing.
    Released,
    /// What this one heard: it reached nobody.
    Undone,
    /// That it was abandoned.
    Lost,
}

/// A call that failed, and whether the server may have done it all the same.
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) in_doubt: bool,
}

pub(super) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::new(ErrorKind::Resource, "acquire", format!("no random numbers: {error}")))?;
    Ok(bytes)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A token that nobody had before: asked of the kernel each time, so that a fork copies no state.
pub(super) fn new_token() -> Result<Token> {
    Ok(hex(&random::<16>()?).into())
}

/// A byte for spreading timers, from the clock's last digits; which one it is matters little.
pub(super) fn jitter() -> u8 {
    let now = lease::now();
    (now ^ now >> 8) as u8
}

impl Engine {
    /// This process's engine for the server.
    pub(super) fn of(server: Server) -> Result<Arc<Engine>> {
        let mut engines = ENGINES.get_or_init(Guarded::default).lock();
        if let Some(engine) = engines.get(&server).and_then(Weak::upgrade) {
            return Ok(engine);
        }
        let process = hex(&random::<8>()?);
        let engine = Arc::new(Engine {
            server: server.clone(),
            scripts: Scripts::new(server.is_cluster()),
            learned: Arc::default(),
            ear_process: format!("{process}e"),
            process,
            direct: Direct::default(),
            epoch: fork::epoch(),
            serial: AtomicU64::new(0),
            placings: Arc::default(),
            caller: Turns::default(),
            exchange: Guarded::default(),
            unlaid: AtomicUsize::new(0),
            taking: AtomicUsize::new(0),
            aside: Turns::default(),
            board: Guarded::new(Board {
                thread: None,
                holds: BTreeMap::new(),
                arrivals: Arrivals::default(),
                come: Vec::new(),
                debts: HashMap::new(),
                wake_at: u64::MAX,
                taken: 0,
            }),
        });
        engines.retain(|_, engine| engine.strong_count() > 0);
        engines.insert(server, Arc::downgrade(&engine));
        Ok(engine)
    }

    /// Whether this is the process that opened it. In a forked child nothing of it may be touched: its locks may be
    /// held by threads that do not exist there, its sockets are the parent's.
    pub(super) fn is_ours(&self) -> bool {
        self.epoch == fork::epoch()
    }

    pub(super) fn next_serial(&self) -> u64 {
        self.serial.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(super) fn channel(&self) -> String {
        format!("ipcmutex:w:{}", self.process)
    }

    pub(super) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock()
    }

    // ---- the caller's connection

    /// Runs `call` on the caller's connection; once more on a new one if the old one turns out to be closed. `call`
    /// must be something that may be done twice.
    pub(super) fn call<T>(
        &self,
        operation: &'static str,
        call: impl FnMut(&mut Connection) -> redis::RedisResult<T>,
    ) -> Result<T, Failed> {
        self.call_on(&self.caller, None, operation, call)
    }

    /// The same on `place`'s, by somebody who has until `deadline`.
    pub(super) fn call_on<T>(
        &self,
        place: &Turns<Caller>,
        deadline: Option<Instant>,
        operation: &'static str,
        mut call: impl FnMut(&mut Connection) -> redis::RedisResult<T>,
    ) -> Result<T, Failed> {
        let (asked, queued) = (offload::asked(), Instant::now());
        let turn = match deadline {
            Some(end) => place.lock_by(end.max(queued + PATIENT)),
            None => Some(place.lock()),
        };
        let Some(mut caller) = turn else {
            let message = "not acquired in time: others of this process still wait for the server's answer";
            return Err(Failed { error: Error::new(ErrorKind::Timeout, operation, message), in_doubt: false });
        };
        let left = || deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()).max(PATIENT));
        if let Some((at, waited, error)) = &caller.failure
            && *at > asked
            && *waited >= left()
        {
            return Err(Failed { error: error.clone(), in_doubt: false });
        }
        // A signal would cut an answer in two. Bounded: by `connect_timeout` and ANSWER.
        let _undisturbed = thread::Undisturbed::enter();
        let mut in_doubt = false;
        let changes = self.changes();
        if std::mem::replace(&mut caller.changes, changes) != changes {
            caller.connection = None;
        }
        let (mut moved, mut dropped) = (false, false);
        loop {
            let most = left();
            let mut connection = match caller.connection.take() {
                Some(connection) => connection,
                None => match self.server.connect(&self.learned, most.min(self.server.connect_timeout)) {
                    Ok(connection) => {
                        caller.failure = None;
                        if self.changes() != changes {
                            // Who listens to the old server should know.
                            self.direct.ring();
                        }
                        connection
                    }
                    // Closed as it was being set up: once more, as if it had been closed before.
                    Err(error) if wire::is_cut(&error) && !std::mem::replace(&mut dropped, true) => continue,
                    Err(error) => {
                        let cut_short = error.is_timeout() && most < self.server.connect_timeout;
                        let error = self.server.failed(operation, &error);
                        let waited = if cut_short { most } else { Duration::MAX };
                        caller.failure = Some((Instant::now(), waited, error.clone()));
                        return Err(Failed { error, in_doubt });
                    }
                },
            };
            connection.asked_for(asked);
            let begun = Instant::now();
            let answer = match connection.another() {
                // Who asks another node does not wait for this one.
                Some(another) => {
                    caller.connection = Some(another);
                    drop(caller);
                    match call(&mut connection) {
                        Ok(value) => return Ok(value),
                        Err(error) => {
                            caller = place.lock();
                            Err(error)
                        }
                    }
                }
                None => call(&mut connection),
            };
            match answer {
                Ok(value) => {
                    caller.connection = Some(connection);
                    caller.failure = None;
                    return Ok(value);
                }
                // Nothing was done: once more, where the master is now. The name may lead to another server since.
                Err(error) if wire::is_demoted(&error) && !moved => moved = true,
                Err(error) if wire::is_answer(&error) => {
                    caller.connection.get_or_insert(connection);
                    return Err(Failed { error: self.server.failed(operation, &error), in_doubt });
                }
                Err(error) => {
                    // A server that is silent will not answer a new connection either.
                    if std::mem::replace(&mut in_doubt, true) || error.is_timeout() {
                        let cut_short = error.is_timeout() && most < self.server.patience();
                        let waited = if cut_short { begun.elapsed() } else { Duration::MAX };
                        let error = self.server.failed(operation, &error);
                        // That one node failed says nothing of another.
                        if !self.server.is_cluster() {
                            caller.failure = Some((Instant::now(), waited, error.clone()));
                        }
                        return Err(Failed { error, in_doubt });
                    }
                }
            }
        }
    }

    // ---- an event loop's connection

    /// The event loop's own connection, if it has one on which it may ask now.
    pub(super) fn exchange_of(&self, on: &EventLoop) -> Option<Arc<Exchange>> {
        let exchange = self.exchange.lock().clone().filter(|exchange| exchange.is_of(on))?;
        if exchange.changes != self.changes() || self.learned.forbids_scripts() {
            exchange.end();
        }
        exchange.is_idle().then_some(exchange)
    }

    /// Whether no event loop has a connection, and `takes` so has its place. One that has not been used for a while ends for that.
    pub(super) fn takes_place_of_exchange(&self, takes: impl FnOnce() -> bool) -> bool {
        let mut place = self.exchange.lock();
        if place.as_ref().is_some_and(|exchange| !exchange.is_over()) || !takes() {
            return false;
        }
        let before = place.take();
        drop(place);
        if let Some(before) = before {
            before.end();
        }
        true
    }

    /// Makes the caller's connection the event loop's, if no loop has one. Somebody who only comes by needs none.
    pub(super) fn lay_exchange(self: &Arc<Engine>, on: &EventLoop) {
        // Over RESP2 there is a connection more already.
        if on.is_blind()
            || self.unlaid.fetch_add(1, Ordering::Relaxed) < PASSING
            || self.learned.forbids_scripts()
            || self.server.is_resp2(&self.learned)
        {
            return;
        }
        let mut place = self.exchange.lock();
        if place.as_ref().is_some_and(|exchange| !exchange.is_over()) || !self.direct.make_way() {
            return;
        }
        let Some(mut caller) = self.caller.lock_by(Instant::now()) else { return };
        if caller.changes != self.changes() {
            return;
        }
        let single = match caller.connection.take() {
            Some(Connection::One(single, _)) if single.can_be_watched() => single,
            other => {
                caller.connection = other;
                return;
            }
        };
        let laid = Exchange::lay(single.into_stream(), caller.changes, on);
        drop(caller);
        let before = std::mem::replace(&mut *place, laid.clone());
        drop(place);
        if let Some(before) = before {
            before.end();
        }
        if let Some(laid) = laid {
            on.watch(laid);
        }
    }

    /// What the background thread does by script, where those are forbidden: what it watches for must be on a
    /// connection for it alone.
    pub(super) async fn aside(
        self: &Arc<Engine>,
        call: Arc<impl Fn(bool) -> redis::Cmd + Send + Sync + 'static>,
    ) -> redis::RedisResult<Value> {
        let engine = self.clone();
        let ask = move |connection: &mut Connection| match call(false).query::<Value>(connection) {
            // What the server says of one lock is no word about the way to it.
            Err(error) if wire::is_answer(&error) && !wire::is_demoted(&error) => Ok(Err(error)),
            answer => answer.map(Ok),
        };
        let work = move || engine.call_on(&engine.aside, None, "acquire", ask);
        match worker::elsewhere(work).await? {
            Ok(answer) => answer,
            Err(failed) => Err(std::io::Error::other(failed.error).into()),
        }
    }

    /// A script without arguments on the caller's connection, and its answer as `read` understands it.
    pub(super) fn run<T>(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &[String],
        read: fn(&Value) -> Result<T>,
    ) -> Result<T> {
        let call = |connection: &mut Connection| {
            let reply = run(connection, |by_text| script.call::<_, &str>(by_text, keys, &[]))?;
            read(&reply).map_err(wire::unasked)
        };
        self.call(operation, call).map_err(|failed| failed.error)
    }

    /// Why this server must not carry a lock: it may evict the key of one that is held.
    pub(super) fn check_policy(&self) -> Result<()> {
        match self.policy()? {
            Some(policy) => Err(Error::new(
                ErrorKind::Config,
                "open",
                format!("the server {} may evict keys (maxmemory-policy is {policy})", self.server),
            )
            .with_help(
                "a lock that is evicted is held twice: set maxmemory-policy noeviction, or accept it with ?policy=any",
            )),
            None => Ok(()),
        }
    }

    fn is_forbidden(&self, error: &redis::RedisError) -> bool {
        matches!(self.server.failed("open", error).kind(), ErrorKind::Permission | ErrorKind::Config)
    }

    /// The eviction policy, if it is not the one that is needed and the server, or a node, tells.
    fn policy(&self) -> Result<Option<String>> {
        let asked = self.call("open", |connection| {
            match connection.ask_each(redis::cmd("INFO").arg("memory")) {
                // Managed servers forbid INFO; they are taken at their word.
                Err(error) if wire::is_answer(&error) && self.is_forbidden(&error) => Ok(Vec::new()),
                answer => answer,
            }
        });
        let replies = asked.map_err(|failed| failed.error)?.into_iter();
        let told = replies.filter_map(|reply| redis::from_redis_value::<String>(reply).ok());
        let mut policies = told.filter_map(|info| wire::eviction_policy(&info).map(str::to_owned));
        // The one that is unfit, if there is one.
        Ok(policies.find(|policy| policy != "noeviction"))
    }

    pub(super) fn changes(&self) -> u64 {
        self.learned.changes()
    }

    // ---- the board

    /// Leaves word for the background thread; starts it if there is none.
    pub(super) fn post(self: &Arc<Engine>, event: Event) -> Result<()> {
        let mut board = self.board.lock();
        self.post_on(&mut board, event)
    }

    /// Leaves word of a waiter that stands in the line already. To wake the thread for it costs about as much as the release
    /// before did, and it has nothing to do yet, unless something was told of it or its timer comes first.
    pub(super) fn arrive(self: &Arc<Engine>, serial: u64, waiter: Arc<Waiter>, lock: Arc<Lock>) -> Result<()> {
        let mut board = self.board.lock();
        let hearing = board.arrivals.hearing;
        let far = board.arrivals.of(serial).filter(|arrival| {
            let quiet = arrival.heard.is_none() && arrival.link == hearing && !lock.beside_others;
            quiet && arrival.left > 0
        });
        let until = far.map(|arrival| arrival.sent + 1_000_000 * arrival.left.unsigned_abs());
        let event = Event::Arrived { serial, waiter, lock };
        if until.is_some_and(|until| board.wake_at <= until) {
            board.come.push(event);
            return Ok(());
        }
        self.post_on(&mut board, event)
    }

    fn post_on(self: &Arc<Engine>, board: &mut Board, event: Event) -> Result<()> {
        if board.thread.is_none() {
            let (sender, receiver) = unbounded_channel();
            self.start(sender.clone(), receiver)?;
            board.thread = Some(sender);
        }
        if let Some(thread) = &board.thread {
            // The receiver goes away only after `thread` was taken off the board.
            let _ = thread.send(event);
        }
        Ok(())
    }

    fn start(self: &Arc<Engine>, sender: UnboundedSender<Event>, receiver: UnboundedReceiver<Event>) -> Result<()> {
        let runtime = worker::event_loop()?;
        let engine = self.clone();
        thread::spawn("ipcmutex-redis", thread::FULL_STACK, move || worker::work(engine, runtime, sender, receiver))
    }

    /// The thread's resignation: true if nothing has come in meanwhile.
    pub(super) fn retire(&self, receiver: &UnboundedReceiver<Event>) -> bool {
        let mut board = self.board.lock();
        let idle = receiver.is_empty() && board.holds.is_empty() && board.debts.is_empty() && board.arrivals.is_empty();
        if idle {
            board.end();
        }
        idle
    }

    /// The thread died of a bug: the next that needs one starts another.
    pub(super) fn bury(&self) {
        self.board.lock().end();
    }

    /// Puts a hold under watch; not one that the end of the process undoes.
    pub(super) fn watch(self: &Arc<Engine>, hold: &Arc<Hold>, due: u64) -> Result<()> {
        let mut board = self.board.lock();
        if board.arrivals.is_undone(&hold.token) {
            return Err(Error::new(ErrorKind::Unavailable, "acquire", "the process ends"));
        }
        if due < board.wake_at {
            self.post_on(&mut board, Event::Look)?;
            board.wake_at = due;
        }
        hold.due.store(due, Ordering::Relaxed);
        board.holds.insert((due, hold.serial), hold.clone());
        board.taken = board.taken.wrapping_add(1);
        Ok(())
    }

    /// Takes it off; when what it leaves in the server has been let go or is a debt, so that the end of the process, which
    /// looks at the board, always finds it.
    pub(super) fn unwatch(&self, hold: &Hold) {
        let mut board = self.board.lock();
        if board.holds.remove(&(hold.due.load(Ordering::Relaxed), hold.serial)).is_none() {
            return;
        }
        let soon = lease::now() + lease::nanos(LINGER);
        if board.holds.is_empty()
            && board.wake_at > soon
            && let Some(thread) = &board.thread
        {
            let _ = thread.send(Event::Look); // it may go
            board.wake_at = soon;
        }
    }

    /// The hold is lost: whoever listens is told, and nothing renews it any more.
    pub(super) fn lose(&self, hold: &Hold, loss: Loss) {
        if hold.lose(loss) {
            self.unwatch(hold);
            if let Some(lock) = hold.lock.upgrade() {
                count(&lock.tally.losses);
                log::warn!(
                    "{}: the hold with token {} is lost: {}",
                    lock.keys.lock(),
                    hold.fence,
                    loss.error("check").message()
                );
                lock.losses.tell(hold.fence, &loss.error("check"));
            }
        }
    }

    /// Has `token` released in the background.
    pub(super) fn owe(self: &Arc<Engine>, token: &Token, debt: Debt) {
        let mut board = self.board.lock();
        board.debts.insert(token.clone(), debt);
        if self.post_on(&mut board, Event::Owed(token.clone())).is_err() {
            // No thread to be had: it ends with its lease.
            board.debts.remove(token);
        }
    }

    // ---- the end of the process

    /// A take goes out, on the caller's connection: until what is returned is dropped, the end of the process waits for it.
    pub(super) fn begin_taking(&self) -> Taking<'_> {
        self.taking.fetch_add(1, Ordering::SeqCst);
        // Whoever begins to end the process sees this, or is seen by what is looked at next (`pause`).
        fence(Ordering::SeqCst);
        Taking(&self.taking)
    }

    /// Releases what is held, as well as that goes in [`FAREWELL`].
    fn farewell(&self) {
        let end = Instant::now() + FAREWELL;
        // A wait that has just ended may not be on the board yet, or be joining still: its place would stay in the line. Those
        // that go on step aside: what is released here must not be granted to a thread that ends with the process.
        let thread = self.board.lock().thread.clone();
        if let Some(thread) = thread {
            let (done, told) = sync_channel(1);
            if thread.send(Event::Done(done)).is_ok() {
                let _ = told.recv_timeout(FAREWELL / 2);
            }
        }
        let left = || end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        let cluster = self.server.is_cluster();
        // Who waits for an answer on it will not outlive this process either.
        let Some(mut caller) = self.caller.lock_by(end) else { return };
        fence(Ordering::SeqCst);
        // No call begins any more. Those that were answered are on the board in a moment: a few instructions of another thread, which
        // has nobody to wake for them. In a cluster one may wait for a node that hangs: the others' have the rest of the time.
        let soon = end - FAREWELL / 2;
        while self.taking.load(Ordering::SeqCst) != 0 && Instant::now() < soon {
            std::thread::sleep(Duration::from_micros(50));
        }
        let exchange = self.exchange.try_lock().and_then(|exchange| exchange.clone());
        if let Some(exchange) = exchange {
            exchange.farewell(left(), |token, debt| self.release_command(false, token, debt).get_packed_command());
        }
        let owed = self.owed();
        if owed.is_empty() {
            return;
        }
        let connection = caller.connection.take().or_else(|| self.server.connect(&self.learned, left()).ok());
        let Some(mut connection) = connection else { return };
        connection.hurry();
        let alone = cluster || self.learned.forbids_scripts();
        for chunk in owed.chunks(if alone { 1 } else { 100 }) {
            // In a cluster a node that hangs leaves the others half of the time, and is not asked again.
            connection.set_limit(if cluster { left() / 2 } else { left() });
            let mut pipeline = redis::pipe();
            for (at, (token, debt)) in chunk.iter().enumerate() {
                // By text once: that also teaches it to a server that has forgotten it.
                pipeline.add_command(self.release_command(at == 0, token, debt));
            }
            // Best effort: who is left to tell? What was not released ends with its lease.
            let told = match chunk {
                [(token, debt)] => self.release_command(true, token, debt).query::<Value>(&mut connection),
                _ => pipeline.query(&mut connection),
            };
            if !cluster && told.is_err_and(|error| !wire::is_answer(&error)) || Instant::now() >= end {
                return;
            }
        }
    }

    /// All that stands in the server for this process and that the board knows of.
    fn owed(&self) -> Vec<(Token, Debt)> {
        let mut board = self.board.lock();
        let arrivals = board.arrivals.undo_all();
        let mut owed: Vec<(Token, Debt)> = arrivals
            .map(|arrival| {
                (arrival.token.clone(), Debt { by_ear: arrival.direct, ..arrival.lock.debt(Ending::Undone) })
            })
            .collect();
        owed.extend(board.debts.iter().map(|(token, debt)| (token.clone(), debt.clone())));
        for hold in board.holds.values() {
            // One that has ended and is still there is being released by another thread, whose words may not go out any more.
            if let (None, Some(lock)) = (hold.loss(), hold.lock.upgrade()) {
                // Nobody relies on it from here on, nor is it renewed.
                hold.end();
                owed.push((hold.token.clone(), lock.debt_of(hold, Ending::Released)));
            }
        }
        owed
    }

    pub(super) fn release_command(&self, by_text: bool, token: &str, debt: &Debt) -> redis::Cmd {
        let process = if debt.by_ear { &self.ear_process } else { &self.process };
        self.scripts.release(by_text, &debt.keys, token, debt.ending, debt.beside_others, process)
    }

    /// The hold of this process that has `token`.
    pub(super) fn hold_with(&self, token: &str) -> Option<Arc<Hold>> {
        self.board.lock().holds.values().find(|hold| *hold.token == *token).cloned()
    }

    pub(super) fn released(&self, token: &str) {
        self.board.lock().debts.remove(token);
    }
}

/// A take that is under way.
pub(super) struct Taking<'a>(&'a AtomicUsize);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Runs a script; by text if the server has forgotten it.
pub(super) fn run(connection: &mut Connection, call: impl Fn(bool) -> redis::Cmd) -> redis::RedisResult<Value> {
    match call(false).query::<Value>(connection) {
        Err(error) if wire::is_unknown_script(&error) => match call(true).query(connection) {
            Err(again) if wire::is_unknown_script(&again) => Err(wire::misplaced()),
            answer => answer,
        },
        answer => answer,
    }
}

/// At a normal end of the process: holds are released, so that nobody waits for their leases.
pub(super) extern "C" fn farewell() {
    exit::begins_here();
    redlock::farewell(Instant::now() + FAREWELL);
    let Some(engines) = ENGINES.get() else { return };
    let engines: Vec<Arc<Engine>> = engines.lock().values().filter_map(Weak::upgrade).collect();
    for engine in engines {
        engine.farewell();
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if self.is_ours() {
            if let Some(exchange) = self.exchange.get_mut().take() {
                exchange.end();
            }
        } else {
            self.direct.forget();
            // The parent's socket: not a byte is sent on it and nothing of it is shut down.
            std::mem::forget(self.caller.get_mut().connection.take());
            std::mem::forget(self.aside.get_mut().connection.take());
        }
    }
}
