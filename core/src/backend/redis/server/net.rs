//! The nodes of a cluster, as an event loop reaches them (`nodes`: as the threads do).

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Instant;

use redis::aio::MultiplexedConnection;
use redis::{Cmd, RedisError, RedisResult, Value};

use super::super::wire::{self, Scripts};
use super::Server;
use super::dial::Address;
use super::learned::Learned;
use super::multiplex::{Hear, Heard, Task};
use super::nodes::{AGAIN, HOPS, PATIENCE, SPARED, down, is_down, nobody, passes, slots, unknown};
use super::runtime::elsewhere;
use super::slots::{Redirect, redirect, slot_of};
use crate::sync::Guarded;

/// All of them.
pub(crate) struct Net {
    server: Server,
    learned: Arc<Learned>,
    open: Guarded<HashMap<Address, Node>>,
    /// To each node one connects at a time, and in the order of arrival: those at whose door somebody stands.
    doors: Guarded<HashMap<Address, Arc<Door>>>,
    /// When it was last begun to ask for the slots, when that ended, and whether it came to something.
    surveyed: tokio::sync::Mutex<Option<(Instant, Instant, bool)>>,
    hear: Hear,
}

/// When somebody failed to get in, and how: who stood behind it then shares that, and does not wait as long once more.
type Door = tokio::sync::Mutex<Option<(Instant, RedisError)>>;

struct Node {
    connection: MultiplexedConnection,
    _driver: Task,
}

impl Net {
    pub(crate) async fn open(server: &Server, learned: &Arc<Learned>, hear: Hear) -> RedisResult<Net> {
        let (server, learned) = (server.clone(), learned.clone());
        Net::survey(&server, &learned, None).await?;
        Ok(Net {
            server,
            learned,
            open: Guarded::default(),
            doors: Guarded::default(),
            surveyed: tokio::sync::Mutex::default(),
            hear,
        })
    }

    async fn survey(server: &Server, learned: &Arc<Learned>, doubted: Option<&Address>) -> RedisResult<()> {
        let (server, learned, doubted) = (server.clone(), learned.clone(), doubted.cloned());
        elsewhere(move || server.survey(&learned, doubted.as_ref(), server.connect_timeout)).await?
    }

    /// Asks where the slots are now, or shares what somebody found who began after this; whether that is known.
    async fn survey_again(&self, doubted: Option<&Address>) -> bool {
        let queued = Instant::now();
        let mut last = self.surveyed.lock().await;
        if let Some((begun, at, known)) = *last {
            if begun > queued {
                return known;
            }
            // An answer from before the doubt is none to it. Those who come meanwhile share the next one.
            tokio::time::sleep_until((at + SPARED).into()).await;
        }
        let begun = Instant::now();
        let known = Net::survey(&self.server, &self.learned, doubted).await.is_ok();
        *last = Some((begun, Instant::now(), known));
        known
    }

    pub(super) fn node_of(&self, key: &str) -> Option<Address> {
        self.learned.node_of(key)
    }

    /// Sends a command to where it belongs. Nothing is waited for before it is sent, if its node is known: calls keep
    /// their order. A node that is gone is an answer like any other; the rest of the cluster is there.
    pub(crate) async fn ask(&self, command: &Cmd) -> RedisResult<Value> {
        let slot = slot_of(command).unwrap_or(0);
        let end = Instant::now() + PATIENCE;
        let mut forced: Option<Address> = None;
        let mut surveyed = false;
        for hop in 0.. {
            if hop > HOPS {
                if Instant::now() >= end {
                    break;
                }
                tokio::time::sleep(AGAIN).await;
            }
            let asking = forced.is_some();
            let node = forced.take().or_else(|| self.learned.slots.lock().node(slot).cloned());
            let Some(node) = node else {
                if std::mem::replace(&mut surveyed, true) || !self.survey_again(None).await {
                    return Err(unknown());
                }
                continue;
            };
            let answer = loop {
                match self.ask_at(&node, asking, command).await {
                    Err(error) if is_down(&error) && !surveyed => break Err(error),
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
                    if !self.survey_again(Some(&node)).await {
                        return Err(down(&node));
                    }
                }
                Err(error) if wire::is_wrong_password(&error) && !surveyed => {
                    // Its address may be another server's.
                    surveyed = true;
                    if !self.survey_again(Some(&node)).await {
                        return Err(error);
                    }
                }
                Err(error) if is_down(&error) && !surveyed => {
                    // It may have left the cluster. If nobody tells, it is asked again.
                    surveyed = true;
                    self.survey_again(Some(&node)).await;
                }
                Err(error) => match redirect(&error, &node) {
                    Some(Redirect { ask: true, address }) => forced = Some(address),
                    Some(Redirect { ask: false, address }) => {
                        if self.learned.corrected(slot, address) {
                            self.survey_again(Some(&node)).await;
                        }
                    }
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

    /// It must be of the cluster that is known.
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
        match self.dial(node).await {
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

    async fn dial(&self, node: &Address) -> RedisResult<(MultiplexedConnection, Task)> {
        let made = self.server.multiplex_at(&self.learned, node, self.hear.clone()).await;
        let (mut connection, driver) = made.map_err(|error| nobody(node, error))?;
        let said = slots().query_async(&mut connection).await;
        if !self.learned.slots.lock().are_those_of(node, said)? {
            return Err(io::Error::from(io::ErrorKind::ConnectionRefused).into());
        }
        Ok((connection, driver))
    }
}
