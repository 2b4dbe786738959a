//! One engine per server, login and process: the caller's connection, and the board on which callers and the
//! background thread leave word for each other.
//!
//! | part | file |
//! |---|---|
//! | calls of a thread | `caller` |
//! | whether they are answered | `silence` |
//! | event loops, and their connection | `loops`, `exchange` |
//! | the board | `board` |
//! | on the way to the line: straight, through the thread | `arrival`, `placing` |
//! | whether the server may carry a lock | `policy` |
//! | the end of the process | `farewell` |
//!
//! | connection | used by | for |
//! |---|---|---|
//! | the caller's; to each node of a cluster one | whatever thread calls, one at a time | take, release, status, break: one round trip, no thread hop |
//! | one aside | the same | with `replicas=`: waiting for them |
//! | | the background thread | where scripts are forbidden, what it cannot do on the link |
//! | one event loop's, once it has asked for a while: it was the caller's | that loop | take and release, awaited |
//! | the ear, once a lock was found taken | one thread that waits | take, its turn, confirm (`direct`) |
//! | the link (RESP2: and its ear) | the background thread | the line, wake-ups, renewals, word of a break for who listens, what is still owed |
//!
//! The thread starts with the first hold or waiter and ends when there has been neither for [`LINGER`].

pub(super) mod arrival;
mod board;
mod caller;
pub(super) mod exchange;
mod farewell;
mod loops;
pub(super) mod placing;
mod policy;
mod silence;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

pub(super) use self::board::{Board, Debt};
use self::caller::Caller;
pub(super) use self::caller::{Failed, run};
use self::exchange::Exchange;
pub(super) use self::farewell::{FAREWELL, farewell};
use self::placing::Placings;
use super::direct::Direct;
use super::lock::Trouble;
use super::server::{Address, Learned, Server};
use super::token;
use super::wire::Scripts;
use super::witness::Short;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Guarded, Turns};
use crate::sys::fork::{self, PerProcess};

/// How long the background thread stays with nothing to do: a burst of holds shares one thread.
pub(super) const LINGER: Duration = Duration::from_millis(250);

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
    /// Since when somebody asks and has no answer.
    asked: silence::Since,
    /// Somebody had too little time to connect; a thread is about it.
    hasty: AtomicBool,
    connecting: AtomicBool,
    exchange: Guarded<Option<Arc<Exchange>>>,
    /// How often an event loop asked and had none.
    unlaid: AtomicUsize,
    /// Takes that were sent on the caller's connection and of whose outcome the board does not know.
    taking: AtomicUsize,
    /// For what makes all behind it wait (`witness`).
    pub(super) aside: Turns<Caller>,
    /// By node of a cluster.
    pub(super) short: Guarded<HashMap<Option<Address>, Arc<Short>>>,
    troubles: Guarded<HashMap<Box<str>, Weak<Trouble>>>,
    board: Guarded<Board>,
}

/// What a library thread was to answer nobody does any more.
pub(super) fn bug() -> Error {
    Error::new(ErrorKind::Panic, "acquire", "the background thread ended by a bug")
}

impl Engine {
    /// This process's engine for the server.
    pub(super) fn of(server: Server) -> Result<Arc<Engine>> {
        let mut engines = ENGINES.get_or_init(Guarded::default).lock();
        if let Some(engine) = engines.get(&server).and_then(Weak::upgrade) {
            return Ok(engine);
        }
        let process = token::name()?;
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
            asked: silence::Since::default(),
            hasty: AtomicBool::new(false),
            connecting: AtomicBool::new(false),
            exchange: Guarded::default(),
            unlaid: AtomicUsize::new(0),
            taking: AtomicUsize::new(0),
            aside: Turns::default(),
            short: Guarded::default(),
            troubles: Guarded::default(),
            board: Guarded::new(Board::new()),
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

    pub(super) fn changes(&self) -> u64 {
        self.learned.changes()
    }

    /// What those share who have the lock `key` open.
    pub(super) fn trouble_of(&self, key: &str) -> Arc<Trouble> {
        let mut troubles = self.troubles.lock();
        troubles.get(key).and_then(Weak::upgrade).unwrap_or_else(|| {
            let trouble = Arc::default();
            troubles.insert(key.into(), Arc::downgrade(&trouble));
            trouble
        })
    }

    /// One of them has it open no more.
    pub(super) fn forget_trouble(&self, key: &str, trouble: Arc<Trouble>) {
        let mut troubles = self.troubles.lock();
        drop(trouble);
        if troubles.get(key).is_some_and(|shared| shared.strong_count() == 0) {
            troubles.remove(key);
        }
    }

    pub(super) fn release_command(&self, by_text: bool, token: &str, debt: &Debt) -> redis::Cmd {
        let process = if debt.by_ear { &self.ear_process } else { &self.process };
        self.scripts.release(by_text, &debt.keys, token, debt.ending, debt.beside_others, process)
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
