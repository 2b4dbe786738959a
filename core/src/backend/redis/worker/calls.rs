//! What is asked of the server, and how much at once.

use std::collections::{HashMap, VecDeque};
use std::future::Future;
use std::sync::Arc;

use redis::{RedisResult, Value};

use super::{Event, Worker};
use crate::backend::redis::lease;
use crate::backend::redis::server::Address;
use crate::backend::redis::wire::{self, forbids_scripts};

/// So many takes and releases are under way to a server at a time. Of tens of thousands that are sent at once the last would be
/// answered later than an answer is waited for: the connection would be given up for that, and all be sent anew on the next one.
const MOST: usize = 500;

/// Kept by what is under way.
type Turn = Arc<()>;

type Waiting = Box<dyn FnOnce(&mut Worker, Turn) + Send>;

/// What was asked for and is not answered, by server: in a cluster a node that hangs keeps no other from its calls.
#[derive(Default)]
pub(super) struct Calls(HashMap<Option<Address>, Way>);

#[derive(Default)]
struct Way {
    turns: Turn,
    /// In the order in which they were asked for.
    waiting: VecDeque<Waiting>,
}

impl Way {
    fn turn(&self) -> Option<Turn> {
        (Arc::strong_count(&self.turns) <= MOST).then(|| self.turns.clone())
    }
}

impl Calls {
    /// The link is down: nothing of it is sent any more.
    pub(super) fn end(&mut self) {
        self.0.clear();
    }

    /// Whose turn it is.
    fn next(&mut self) -> Option<(Waiting, Turn)> {
        self.0.values_mut().find_map(|way| {
            let turn = way.turn()?;
            Some((way.waiting.pop_front()?, turn))
        })
    }
}

impl Worker {
    /// Sends a script call for the lock `key` when its turn comes, if it is `wanted` then. Its answer comes back as an event, made
    /// with when it was sent.
    pub(super) fn send(
        &mut self,
        key: &str,
        wanted: impl FnOnce(&mut Worker) -> bool + Send + 'static,
        call: impl Fn(bool) -> redis::Cmd + Send + Sync + 'static,
        event: impl FnOnce(u64, RedisResult<Value>) -> Event + Send + 'static,
    ) {
        let Some(link) = self.link() else { return };
        let way = self.calls.0.entry(link.road.way(key)).or_default();
        let send = move |worker: &mut Worker, turn: Turn| {
            if !wanted(worker) {
                return;
            }
            let sent = lease::now();
            worker.send_now(call, move |reply| {
                drop(turn);
                event(sent, reply)
            });
        };
        match way.turn() {
            Some(turn) if way.waiting.is_empty() => send(self, turn),
            _ => way.waiting.push_back(Box::new(send)),
        }
    }

    /// Sends those whose turn has come. The answer to what is under way wakes the loop, which asks for this.
    pub(super) fn send_waiting(&mut self) {
        while let Some((send, turn)) = self.calls.next() {
            send(self, turn);
        }
    }

    /// Sends a script call whatever is under way.
    pub(super) fn send_now(
        &mut self,
        call: impl Fn(bool) -> redis::Cmd + Send + Sync + 'static,
        event: impl FnOnce(RedisResult<Value>) -> Event + Send + 'static,
    ) {
        let Some(link) = self.link() else { return };
        let (engine, mut road, call) = (self.engine.clone(), link.road.clone(), Arc::new(call));
        self.report(async move {
            let mut reply = if engine.learned.forbids_scripts() {
                engine.aside(call).await
            } else {
                match road.call(|by_text| call(by_text)).await {
                    Err(error) if forbids_scripts(&error) && !engine.server.is_cluster() => {
                        engine.learned.found_plain();
                        engine.aside(call).await
                    }
                    reply => reply,
                }
            };
            if let Some(demoted) = reply.as_ref().err().filter(|error| wire::is_demoted(error)) {
                // As good as gone: the next connection leads to the master, or to whom the name leads since.
                let gone = std::io::Error::new(std::io::ErrorKind::ConnectionReset, demoted.to_string());
                reply = Err(gone.into());
            }
            event(reply)
        });
    }

    /// Runs `work`, whose outcome is an event.
    pub(super) fn report(&mut self, work: impl Future<Output = Event> + Send + 'static) {
        self.tasks += 1;
        let events = self.events.clone();
        tokio::spawn(async move {
            // The loop ends only when no task is left.
            let _ = events.send(work.await);
        });
    }
}
