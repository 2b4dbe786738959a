//! The board on which callers and the background thread leave word for each other: holds, waiters on their way, debts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::arrival::Arrivals;
use super::{Engine, LINGER};
use crate::backend::redis::hold::{Hold, Loss};
use crate::backend::redis::keys::Keys;
use crate::backend::redis::lease;
use crate::backend::redis::lock::Lock;
use crate::backend::redis::server::event_loop;
use crate::backend::redis::token::Token;
use crate::backend::redis::wire::Ending;
use crate::backend::redis::worker::{self, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::numbers::count;
use crate::sync::MutexGuard;
use crate::sys::thread;
use crate::waiter::Waiter;

pub(crate) struct Board {
    /// To the background thread, while there is one.
    pub(super) thread: Option<UnboundedSender<Event>>,
    /// By when each is next looked at, and its serial.
    pub(crate) holds: BTreeMap<(u64, u64), Arc<Hold>>,
    /// How many of them somebody listens to.
    pub(crate) listened: usize,
    pub(crate) arrivals: Arrivals,
    /// Waiters that have come, for the background thread to find when it next wakes.
    pub(crate) come: Vec<Event>,
    /// What must still be released.
    pub(crate) debts: HashMap<Token, Debt>,
    /// When the thread will look at the board by itself; never, if there is none.
    pub(crate) wake_at: u64,
    /// Counts holds, so that the thread sees that there was one.
    pub(crate) taken: u64,
}

impl Board {
    pub(super) fn new() -> Board {
        Board {
            thread: None,
            holds: BTreeMap::new(),
            listened: 0,
            arrivals: Arrivals::default(),
            come: Vec::new(),
            debts: HashMap::new(),
            wake_at: u64::MAX,
            taken: 0,
        }
    }

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
pub(crate) struct Debt {
    pub(crate) keys: Keys,
    pub(crate) beside_others: bool,
    /// It stood in the line for a thread that hears by itself.
    pub(crate) by_ear: bool,
    pub(crate) ending: Ending,
    /// After this it has ended by itself, or nothing more is done about it.
    pub(crate) until: u64,
}

#[cfg(test)]
impl Debt {
    pub(super) fn of_nobody() -> Debt {
        Debt { keys: Keys::of("nobody's"), beside_others: false, by_ear: false, ending: Ending::Undone, until: 0 }
    }
}

impl Engine {
    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock()
    }

    /// Leaves word for the background thread; starts it if there is none.
    pub(crate) fn post(self: &Arc<Engine>, event: Event) -> Result<()> {
        let mut board = self.board.lock();
        self.post_on(&mut board, event)
    }

    /// Leaves word of a waiter that stands in the line already. To wake the thread for it costs about as much as the release
    /// before did, and it has nothing to do yet, unless something was told of it or its timer comes first.
    pub(crate) fn arrive(self: &Arc<Engine>, serial: u64, waiter: Arc<Waiter>, lock: Arc<Lock>) -> Result<()> {
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
        let runtime = event_loop()?;
        let engine = self.clone();
        thread::spawn("ipcmutex-redis", thread::FULL_STACK, move || worker::work(engine, runtime, sender, receiver))
    }

    /// The thread's resignation: true if nothing has come in meanwhile.
    pub(crate) fn retire(&self, receiver: &UnboundedReceiver<Event>) -> bool {
        let mut board = self.board.lock();
        let idle = receiver.is_empty() && board.holds.is_empty() && board.debts.is_empty() && board.arrivals.is_empty();
        if idle {
            board.end();
        }
        idle
    }

    /// The thread died of a bug: the next that needs one starts another.
    pub(crate) fn bury(&self) {
        self.board.lock().end();
    }

    /// Puts a hold under watch; not one that the end of the process undoes.
    pub(crate) fn watch(self: &Arc<Engine>, hold: &Arc<Hold>, due: u64) -> Result<()> {
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
    pub(crate) fn unwatch(&self, hold: &Hold) {
        let mut board = self.board.lock();
        if board.holds.remove(&(hold.due.load(Ordering::Relaxed), hold.serial)).is_none() {
            return;
        }
        board.listened -= usize::from(hold.listened.load(Ordering::Relaxed));
        let soon = lease::now() + lease::nanos(LINGER);
        if board.holds.is_empty()
            && board.wake_at > soon
            && let Some(thread) = &board.thread
        {
            let _ = thread.send(Event::Look); // it may go
            board.wake_at = soon;
        }
    }

    /// Somebody is to be told when the hold is lost. Who breaks it says so over the link, which is needed from now on.
    pub(crate) fn listen(self: &Arc<Engine>, hold: &Hold) {
        let mut board = self.board.lock();
        let watched = board.holds.contains_key(&(hold.due.load(Ordering::Relaxed), hold.serial));
        if watched && !hold.listened.swap(true, Ordering::Relaxed) {
            board.listened += 1;
            // Without a thread a renewal would not come either: the end of the lease is seen by who looks.
            let _ = self.post_on(&mut board, Event::Look);
        }
    }

    /// The hold is lost: whoever listens is told, and nothing renews it any more.
    pub(crate) fn lose(self: &Arc<Engine>, hold: &Hold, loss: Loss) {
        if hold.lose(loss) {
            self.unwatch(hold);
            if let Some(lock) = hold.lock.upgrade() {
                if loss == Loss::Expired && hold.is_doubted() {
                    // A longer lease is on its way, or was given unheard: it would stand for nobody, and block all.
                    self.owe(&hold.token, lock.debt_of(hold, Ending::Lost));
                }
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
    pub(crate) fn owe(self: &Arc<Engine>, token: &Token, debt: Debt) {
        let mut board = self.board.lock();
        board.debts.insert(token.clone(), debt);
        if self.post_on(&mut board, Event::Owed(token.clone())).is_err() {
            // No thread to be had: it ends with its lease.
            board.debts.remove(token);
        }
    }

    /// The hold of this process that has `token`.
    pub(crate) fn hold_with(&self, token: &str) -> Option<Arc<Hold>> {
        self.board.lock().holds.values().find(|hold| *hold.token == *token).cloned()
    }

    pub(crate) fn released(&self, token: &str, until: u64) {
        let mut board = self.board.lock();
        if board.debts.get(token).is_some_and(|debt| debt.until == until) {
            board.debts.remove(token);
        }
    }
}
