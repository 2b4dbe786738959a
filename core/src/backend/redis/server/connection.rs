//! What a thread's calls are made on: one server, or the nodes of a cluster.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike, RedisError, RedisResult, Value};

use super::super::wire::forbids_scripts;
use super::Server;
use super::dial::Address;
use super::learned::Learned;
use super::nodes::{Nodes, down};
use super::plain;
use super::single::Single;

/// What a call is made on: one server, or the nodes of a cluster.
pub(crate) enum Connection {
    One(Single, Arc<Learned>),
    Cluster(Box<Nodes>),
}

impl Connection {
    /// The answers of the server, or of all masters, above all of the one that has `key`; without those that `may` be missing.
    pub(crate) fn ask_each(
        &mut self,
        key: Option<&str>,
        command: &Cmd,
        may: &dyn Fn(&RedisError) -> bool,
    ) -> RedisResult<Vec<Value>> {
        match self {
            Connection::One(single, _) => match single.req_command(command)?.extract_error() {
                Err(error) if may(&error) => Ok(Vec::new()),
                answer => Ok(vec![answer?]),
            },
            Connection::Cluster(nodes) => nodes.ask_each(key, command, may),
        }
    }

    /// Who has to be asked for what lies anywhere: the server, or each master.
    pub(crate) fn parts(&self) -> Vec<Option<Address>> {
        match self {
            Connection::One(..) => vec![None],
            Connection::Cluster(nodes) => nodes.masters().into_iter().map(Some).collect(),
        }
    }

    /// Asks one of [`Connection::parts`]; if that is not there, the error names it.
    pub(crate) fn ask_part(&mut self, part: Option<&Address>, command: &Cmd) -> RedisResult<Value> {
        match (self, part) {
            (Connection::Cluster(nodes), Some(node)) => match nodes.ask_at(node, command) {
                Err(error) if error.is_connection_refusal() || error.is_timeout() => Err(down(node)),
                answer => answer,
            },
            (connection, _) => connection.req_command(command)?.extract_error(),
        }
    }

    /// Whether the server has ended it, so that nobody would hear what is asked. A node of a cluster is not asked on one that has ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        match self {
            Connection::One(single, _) => single.has_ended(),
            Connection::Cluster(_) => false,
        }
    }

    /// One more for another call, if calls need not wait for each other here.
    pub(crate) fn another(&self) -> Option<Connection> {
        match self {
            Connection::One(..) => None,
            Connection::Cluster(nodes) => Some(Connection::Cluster(Box::new(nodes.another()))),
        }
    }

    /// It is for somebody who has been about it since `asked`, and has until `deadline`: to a node of a cluster that was not there since
    /// nobody goes once more, and behind others who ask it nobody waits for longer.
    pub(crate) fn asked_for(&mut self, asked: Instant, deadline: Option<Instant>) {
        if let Connection::Cluster(nodes) = self {
            nodes.asked_for(asked, deadline);
        }
    }

    /// For the end of the process: it waits for no other thread, and for no node twice.
    pub(crate) fn hurry(&mut self) {
        if let Connection::Cluster(nodes) = self {
            nodes.hurry();
        }
    }

    pub(crate) fn set_limit(&mut self, limit: Duration) {
        match self {
            Connection::One(single, _) => single.set_limit(limit),
            Connection::Cluster(nodes) => nodes.set_limit(limit),
        }
    }
}

impl ConnectionLike for Connection {
    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Connection::One(single, learned) => act(single, learned, command),
            Connection::Cluster(nodes) => nodes.ask(command),
        }
    }

    fn req_packed_command(&mut self, words: &[u8]) -> RedisResult<Value> {
        match self {
            Connection::One(single, _) => single.req_packed_command(words),
            Connection::Cluster(_) => Err(unrouted()),
        }
    }

    fn req_packed_commands(&mut self, words: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        match self {
            Connection::One(single, _) => single.req_packed_commands(words, offset, count),
            Connection::Cluster(_) => Err(unrouted()),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Connection::One(single, _) => single.get_db(),
            Connection::Cluster(_) => 0,
        }
    }

    fn supports_pipelining(&self) -> bool {
        matches!(self, Connection::One(..))
    }

    fn check_connection(&mut self) -> bool {
        redis::cmd("PING").query::<Value>(self).is_ok()
    }

    fn is_open(&self) -> bool {
        true
    }
}

/// By script, or where those are forbidden by the steps that it would take.
fn act(single: &mut Single, learned: &Learned, command: &Cmd) -> RedisResult<Value> {
    if !learned.forbids_scripts() {
        let answer = single.req_command(command)?;
        match &answer {
            Value::ServerError(error) if forbids_scripts(&RedisError::from(error.clone())) => learned.found_plain(),
            _ => return Ok(answer),
        }
    }
    plain::act(single, command).unwrap_or_else(|| single.req_command(command))
}

/// Which node words are for is seen by their key, and here nobody looks at them any more.
fn unrouted() -> RedisError {
    (redis::ErrorKind::Client, "one command at a time, in a cluster").into()
}

impl Server {
    /// A connection for the caller's own thread. It gives up after `limit`.
    pub(crate) fn connect(&self, learned: &Arc<Learned>, limit: Duration) -> redis::RedisResult<Connection> {
        if self.is_cluster() {
            return Nodes::open(self, learned, limit).map(|nodes| Connection::Cluster(Box::new(nodes)));
        }
        let seen = learned.changes();
        let address = self.locate(learned, limit)?;
        let mut single = self.connect_to(learned, &address, seen, limit);
        if single.is_err() && learned.is_doubted(&address) {
            // Perhaps another Sentinel knows better. Whom most of them name may be the master again, though it was replaced once.
            let better = self.locate(learned, limit)?;
            if better != address {
                single = self.connect_to(learned, &better, seen, limit);
            }
        }
        Ok(Connection::One(single?, learned.clone()))
    }

    /// `seen`: of the changes that were counted when it was looked for.
    fn connect_to(
        &self,
        learned: &Learned,
        address: &Address,
        seen: u64,
        limit: Duration,
    ) -> redis::RedisResult<Single> {
        let mut single = self.open_at(learned, address, limit)?;
        if self.moves() {
            // Who has little time for the connecting has no more for this.
            single.set_limit(limit.min(self.patience()));
            let role = redis::cmd("ROLE").query(&mut single);
            self.check_role(learned, address, seen, role)?;
            single.set_limit(self.patience());
        }
        Ok(single)
    }
}
