//! The nodes of a cluster, as the threads that wait for an answer and as the event loop reach them: each command goes to the
//! node that has its slot, and on to where that one sends it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ConnectionLike, RedisError, RedisResult, Value};

use super::connect::{ANSWER, Hear, Heard, Learned, Place, Server, Task};
use super::dial::Address;
use super::slots::{Redirect, Slots, redirect, slot, slot_of};
use super::talk::Single;
use super::wire::{self, Scripts};
use crate::sync::Guarded;

/// How soon a node is asked again that cannot serve for now: a slot on its way, a failover.
const AGAIN: Duration = Duration::from_millis(25);
/// How long that is tried. No request sent on takes longer to arrive than this.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often one command is sent on.
const HOPS: usize = 8;

/// Whether the cluster is about to be able to serve this.
fn passes(error: &RedisError) -> bool {
    matches!(error.code(), Some("TRYAGAIN" | "CLUSTERDOWN"))
}

/// A node that cannot be reached, told as the cluster would: it is not the whole cluster that is gone.
fn down(node: &Address) -> RedisError {
    let what = redis::ServerErrorKind::ClusterDown;
    (redis::ErrorKind::Server(what), "Hash slot not served", format!("the node {node} cannot be reached")).into()
}

fn unknown() -> RedisError {
    (redis::ErrorKind::Server(redis::ServerErrorKind::ClusterDown), "Hash slot not served by any node").into()
}

impl Server {
    pub(super) fn is_cluster(&self) -> bool {
        matches!(self.place, Place::Cluster(_))
    }

    /// Asks the nodes that are known which slots are where. Blocks.
    pub(super) fn survey(&self, learned: &Learned, limit: Duration) -> RedisResult<Slots> {
        let Place::Cluster(seeds) = &self.place else { return Err(unknown()) };
        let known = learned.nodes();
        let asked: Vec<&Address> = known.iter().chain(seeds.iter().filter(|seed| !known.contains(seed))).collect();
        let each = (limit / asked.len() as u32).max(Duration::from_millis(200));
        let mut failure = None;
        for node in asked {
            let reply = self
                .open_at(learned, node, each)
                .and_then(|mut single| redis::cmd("CLUSTER").arg("SLOTS").query::<Value>(&mut single));
            match reply {
                Ok(reply) => {
                    if let Some(slots) = Slots::read(&reply, node) {
                        learned.found_nodes(slots.nodes());
                        return Ok(slots);
                    }
                    failure = wire::telling(failure, unknown());
                }
                Err(error) => failure = wire::telling(failure, error),
            }
        }
        Err(failure.unwrap_or_else(unknown))
    }
}

/// A thread's.
pub(super) struct Nodes {
    server: Server,
    learned: Arc<Learned>,
    slots: Slots,
    open: HashMap<Address, Single>,
    last: Option<Address>,
    limit: Duration,
}

impl Nodes {
    pub(super) fn open(server: &Server, learned: &Arc<Learned>, limit: Duration) -> RedisResult<Nodes> {
        let slots = server.survey(learned, limit)?;
        let (server, learned) = (server.clone(), learned.clone());
        Ok(Nodes { server, learned, slots, open: HashMap::new(), last: None, limit: ANSWER })
    }

    pub(super) fn set_limit(&mut self, limit: Duration) -> RedisResult<()> {
        self.limit = limit;
        self.open.values().try_for_each(|single| single.set_limit(limit))
    }

    /// Whether the one that has `key` has ended its connection.
    pub(super) fn has_ended(&self, key: &str) -> bool {
        self.slots.node(slot(key.as_bytes())).and_then(|node| self.open.get(node)).is_some_and(Single::has_ended)
    }

    pub(super) fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        let slot = slot_of(command);
        let end = Instant::now() + PATIENCE.min(self.limit);
        let mut forced: Option<Address> = None;
        let mut surveyed = false;
        for _ in 0..HOPS {
            let node = match (forced.take(), slot) {
                (Some(node), _) => Some((node, true)),
                (None, Some(slot)) => self.slots.node(slot).map(|node| (node.clone(), false)),
                // To where the last one went: WAIT speaks of what was written there.
                (None, None) => {
                    self.last.clone().or_else(|| self.slots.nodes().into_iter().next()).map(|node| (node, false))
                }
            };
            let Some((node, asking)) = node else { return Err(unknown()) };
            let answer = loop {
                match self.ask_at(&node, asking, command) {
                    Err(error) if passes(&error) && Instant::now() < end => std::thread::sleep(AGAIN),
                    answer => break answer,
                }
            };
            match answer {
                Err(error) if error.is_connection_refusal() && !surveyed => {
                    // It may have a successor.
                    surveyed = true;
                    self.slots = self.server.survey(&self.learned, self.limit)?;
                }
                Err(error) => match redirect(&error, &node) {
                    Some(Redirect { ask: true, address }) => forced = Some(address),
                    Some(Redirect { ask: false, address }) => {
                        if let Some(slot) = slot {
                            self.slots.correct(slot, address);
                        }
                    }
                    None => return Err(error),
                },
                Ok(value) => {
                    self.last = Some(node);
                    return Ok(value);
                }
            }
        }
        Err(unknown())
    }

    /// The answers of the masters that are there.
    pub(super) fn ask_each(&mut self, command: &Cmd) -> RedisResult<Vec<Value>> {
        let answers = self.slots.nodes().into_iter().map(|node| self.ask_at(&node, false, command));
        answers.filter(|answer| !answer.as_ref().is_err_and(RedisError::is_io_error)).collect()
    }

    pub(super) fn masters(&self) -> Vec<Address> {
        self.slots.nodes()
    }

    /// Asks this very node.
    pub(super) fn ask_at(&mut self, node: &Address, asking: bool, command: &Cmd) -> RedisResult<Value> {
        if !self.open.contains_key(node) {
            let single = self.server.open_at(&self.learned, node, self.server.connect_timeout.min(self.limit))?;
            single.set_limit(self.limit)?;
            self.open.insert(node.clone(), single);
        }
        let Some(single) = self.open.get_mut(node) else { return Err(unknown()) };
        if asking {
            redis::cmd("ASKING").query::<()>(single)?;
        }
        single.req_command(command)?.extract_error()
    }
}

/// The event loop's.
pub(super) struct Net {
    server: Server,
    learned: Arc<Learned>,
    slots: Guarded<Slots>,
    open: Guarded<HashMap<Address, Node>>,
    /// To each node one connects at a time, and in the order of arrival: those at whose door somebody stands.
    doors: Guarded<HashMap<Address, Arc<Door>>>,
    /// When the slots were last asked for, and whether that came to something.
    surveyed: tokio::sync::Mutex<Option<(Instant, bool)>>,
    hear: Hear,
}

/// When somebody failed to get in, and how: who stood behind it then shares that, and does not wait as long once more.
type Door = tokio::sync::Mutex<Option<(Instant, RedisError)>>;

struct Node {
    connection: MultiplexedConnection,
    _driver: Task,
}

impl Net {
    pub(super) async fn open(server: &Server, learned: &Arc<Learned>, hear: Hear) -> RedisResult<Net> {
        let (server, learned) = (server.clone(), learned.clone());
        let slots = Net::survey(&server, &learned).await?;
        let (slots, open) = (Guarded::new(slots), Guarded::default());
        Ok(Net {
            server,
            learned,
            slots,
            open,
            doors: Guarded::default(),
            surveyed: tokio::sync::Mutex::default(),
            hear,
        })
    }

    async fn survey(server: &Server, learned: &Arc<Learned>) -> RedisResult<Slots> {
        let (server, learned) = (server.clone(), learned.clone());
        let asked = tokio::task::spawn_blocking(move || server.survey(&learned, server.connect_timeout)).await;
        asked.map_err(|_| unknown())?
    }

    /// Asks where the slots are now, or shares what somebody found who was just about it; whether that is known.
    async fn survey_again(&self) -> bool {
        let queued = Instant::now();
        let mut last = self.surveyed.lock().await;
        if let Some((at, known)) = *last
            && at > queued
        {
            return known;
        }
        let found = Net::survey(&self.server, &self.learned).await;
        let known = found.is_ok();
        if let Ok(slots) = found {
            *self.slots.lock() = slots;
        }
        *last = Some((Instant::now(), known));
        known
    }

    /// Sends a command to where it belongs. Nothing is waited for before it is sent, if its node is known: calls keep
    /// their order. A node that is gone is an answer like any other; the rest of the cluster is there.
    pub(super) async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        let slot = slot_of(command).unwrap_or(0);
        let end = Instant::now() + PATIENCE;
        let mut forced: Option<Address> = None;
        let mut surveyed = false;
        for _ in 0..HOPS {
            let asking = forced.is_some();
            let node = forced.take().or_else(|| self.slots.lock().node(slot).cloned());
            let Some(node) = node else { return Err(unknown()) };
            let answer = loop {
                match self.ask_at(&node, asking, command).await {
                    Err(error) if passes(&error) && Instant::now() < end => tokio::time::sleep(AGAIN).await,
                    answer => break answer,
                }
            };
            match answer {
                Err(error) if error.is_io_error() => {
                    let gone = self.open.lock().remove(&node);
                    if gone.is_some() {
                        // What was subscribed to on it is not heard any more. One that was not made ends nothing.
                        (self.hear)(Heard::End);
                    }
                    if std::mem::replace(&mut surveyed, true) {
                        return Err(down(&node));
                    }
                    if !self.survey_again().await {
                        return Err(down(&node));
                    }
                }
                Err(error) => match redirect(&error, &node) {
                    Some(Redirect { ask: true, address }) => forced = Some(address),
                    Some(Redirect { ask: false, address }) => self.slots.lock().correct(slot, address),
                    None => return Err(error),
                },
                Ok(value) => return Ok(value),
            }
        }
        Err(unknown())
    }

    fn known(&self, node: &Address) -> Option<MultiplexedConnection> {
        self.open.lock().get(node).map(|node| node.connection.clone())
    }

    async fn ask_at(&self, node: &Address, asking: bool, command: &Cmd) -> RedisResult<Value> {
        let mut connection = match self.known(node) {
            Some(connection) => connection,
            None => self.reach(node).await?,
        };
        if asking {
            let mut both = redis::pipe();
            both.cmd("ASKING").ignore().add_command(command.clone());
            let mut replies: Vec<Value> = both.query_async(&mut connection).await?;
            return replies.pop().ok_or_else(unknown)?.extract_error();
        }
        command.query_async(&mut connection).await
    }

    async fn reach(&self, node: &Address) -> RedisResult<MultiplexedConnection> {
        let queued = Instant::now();
        let door = {
            let mut doors = self.doors.lock();
            doors.retain(|_, door| Arc::strong_count(door) > 1);
            doors.entry(node.clone()).or_default().clone()
        };
        let mut failed = door.lock().await;
        if let Some((at, error)) = &*failed
            && *at > queued
        {
            return Err(error.clone());
        }
        if let Some(connection) = self.known(node) {
            return Ok(connection);
        }
        match self.server.multiplex_at(&self.learned, node, self.hear.clone()).await {
            Ok((mut connection, driver)) => {
                Scripts::new(true).teach(&mut connection).await;
                self.open.lock().insert(node.clone(), Node { connection: connection.clone(), _driver: driver });
                Ok(connection)
            }
            Err(error) => {
                *failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }
}

/// Where the background thread's calls go.
#[derive(Clone)]
pub(super) enum Road {
    One(MultiplexedConnection),
    Cluster(Arc<Net>),
}

impl Road {
    pub(super) async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Road::One(connection) => command.query_async(connection).await,
            Road::Cluster(net) => net.ask(command).await,
        }
    }

    /// A script; by text if the server has forgotten it.
    pub(super) async fn call(&mut self, call: impl Fn(bool) -> Cmd) -> RedisResult<Value> {
        match self.ask(&call(false)).await {
            Err(error) if wire::is_unknown_script(&error) => self.ask(&call(true)).await,
            answer => answer,
        }
    }
}
