//! The end of the process: what it holds is released, so that nobody waits for its leases.

use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use redis::Value;

use super::board::Debt;
use super::{ENGINES, Engine};
use crate::backend::redis::token::Token;
use crate::backend::redis::wire::{self, Ending};
use crate::backend::redis::worker::Event;

/// How much of a process's exit the releases may take, per server.
pub(crate) const FAREWELL: Duration = Duration::from_millis(400);

impl Engine {
    /// A take goes out, on the caller's connection: until what is returned is dropped, the end of the process waits for it.
    pub(crate) fn begin_taking(&self) -> Taking<'_> {
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
        let Some(mut caller) = self.caller.lock_by(Some(end)) else { return };
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
}

/// A take that is under way.
pub(crate) struct Taking<'a>(&'a AtomicUsize);

impl Drop for Taking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// That of all engines.
pub(crate) fn farewell() {
    let Some(engines) = ENGINES.get() else { return };
    let engines: Vec<Arc<Engine>> = engines.lock().values().filter_map(Weak::upgrade).collect();
    for engine in engines {
        engine.farewell();
    }
}
