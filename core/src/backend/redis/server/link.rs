//! The background thread's connection, to one server or to a cluster.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Cmd, RedisResult, Value};

use super::super::wire;
use super::Server;
use super::dial::{Address, dial_async};
use super::learned::Learned;
use super::multiplex::{Hear, Heard, Task};
use super::net::Net;
use super::runtime::elsewhere;

/// The background thread's connection.
pub(crate) struct Link {
    pub(crate) road: Road,
    /// Whether this process can be told when its turn comes. In a cluster each lock knows that for itself.
    pub(crate) listens: bool,
    /// Whether it can carry word of changed keys.
    pub(crate) tells: bool,
    _tasks: Vec<Task>,
}

/// Where the background thread's calls go.
#[derive(Clone)]
pub(crate) enum Road {
    One(MultiplexedConnection),
    Cluster(Arc<Net>),
}

impl Road {
    /// The node of a cluster that has `key`, as far as is known.
    pub(crate) fn way(&self, key: &str) -> Option<Address> {
        match self {
            Road::One(_) => None,
            Road::Cluster(net) => net.node_of(key),
        }
    }

    pub(crate) async fn ask(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Road::One(connection) => command.query_async(connection).await,
            Road::Cluster(net) => net.ask(command).await,
        }
    }

    /// A script; by text if the server has forgotten it.
    pub(crate) async fn call(&mut self, call: impl Fn(bool) -> Cmd) -> RedisResult<Value> {
        match self.ask(&call(false)).await {
            Err(error) if wire::is_unknown_script(&error) => self.ask(&call(true)).await,
            answer => answer,
        }
    }
}

impl Server {
    /// A connection for the background thread, which hears what is published on `channel`: over RESP3 the one
    /// connection does both, over RESP2 a second one listens. In a cluster each lock has a channel, subscribed to later.
    pub(crate) async fn link(&self, learned: &Arc<Learned>, channel: &str, hear: Hear) -> redis::RedisResult<Link> {
        if self.is_cluster() {
            let net = Net::open(self, learned, hear).await?;
            return Ok(Link { road: Road::Cluster(Arc::new(net)), listens: false, tells: false, _tasks: Vec::new() });
        }
        let seen = learned.changes();
        let address = if self.moves() {
            let (server, learned, limit) = (self.clone(), learned.clone(), self.connect_timeout);
            elsewhere(move || server.locate(&learned, limit)).await??
        } else {
            self.seed().clone()
        };
        self.logged_in(learned, |alone, resp2| {
            self.link_as(learned, (&address, seen), (alone, resp2), channel, hear.clone())
        })
        .await
    }

    async fn link_as(
        &self,
        learned: &Learned,
        (address, seen): (&Address, u64),
        (alone, resp2): (bool, bool),
        channel: &str,
        hear: Hear,
    ) -> redis::RedisResult<Link> {
        let (mut connection, driver) = self.multiplex(address, alone, resp2, hear.clone()).await?;
        if self.moves() {
            let role = redis::cmd("ROLE").query_async(&mut connection).await;
            self.check_role(learned, address, seen, role)?;
        }
        if !resp2 {
            let listens = is_allowed(connection.subscribe(channel).await)?;
            return Ok(Link { road: Road::One(connection), listens, tells: true, _tasks: vec![driver] });
        }
        let stream = dial_async(address, self.tls.as_ref(), self.connect_timeout).await?;
        let mut pubsub = PubSub::new(&self.info(alone, resp2), stream).await?;
        let listens = is_allowed(pubsub.subscribe(channel).await)?;
        let ear = Task(tokio::spawn(async move {
            let mut messages = pubsub.into_on_message();
            while let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await {
                hear(Heard::Message(String::from_utf8_lossy(message.get_payload_bytes()).into_owned()));
            }
            hear(Heard::End);
        }));
        Ok(Link { road: Road::One(connection), listens, tells: false, _tasks: vec![driver, ear] })
    }
}

/// A user without a right to the channel can still take turns by looking; any other failure is one.
fn is_allowed(subscribed: redis::RedisResult<()>) -> redis::RedisResult<bool> {
    match subscribed {
        Ok(()) => Ok(true),
        Err(error) if error.code() == Some("NOPERM") => Ok(false),
        Err(error) => Err(error),
    }
}
