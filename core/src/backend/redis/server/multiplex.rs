//! A connection of an event loop: many calls are under way on it, and it hears what is published.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use redis::aio::MultiplexedConnection;
use redis::{ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError};
use tokio::task::JoinHandle;

use super::super::wire;
use super::dial::{Address, dial_async};
use super::learned::Learned;
use super::{ANSWER, Server};

/// What comes in on a link by itself.
pub(crate) enum Heard {
    Message(String),
    /// This key was changed by somebody else; `None`: all of them.
    Changed(Option<String>),
    /// The connection is gone.
    End,
}

pub(super) type Hear = Arc<dyn Fn(Heard) + Send + Sync>;

/// Work of the event loop that ends with what it is for.
pub(crate) struct Task(pub(super) JoinHandle<()>);

impl Task {
    /// Whether that has ended by itself.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.is_finished()
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Server {
    /// A connection of the event loop's to a node of a cluster.
    pub(super) async fn multiplex_at(
        &self,
        learned: &Learned,
        address: &Address,
        hear: Hear,
    ) -> redis::RedisResult<(MultiplexedConnection, Task)> {
        self.logged_in(learned, |alone, _| self.multiplex(address, alone, false, hear.clone())).await
    }

    /// A connection of the event loop's that hears nothing.
    pub(crate) async fn plain(&self, learned: &Learned) -> redis::RedisResult<(MultiplexedConnection, Task)> {
        let deaf: Hear = Arc::new(|_| {});
        self.logged_in(learned, |alone, _| self.multiplex(self.seed(), alone, true, deaf.clone())).await
    }

    /// What `connect` makes with the login, and the protocol, that the server takes.
    pub(super) async fn logged_in<T, F: Future<Output = redis::RedisResult<T>>>(
        &self,
        learned: &Learned,
        connect: impl Fn(bool, bool) -> F,
    ) -> redis::RedisResult<T> {
        let mut refused = None;
        for alone in self.logins(learned) {
            let resp2 = self.is_resp2(learned);
            let mut made = self.in_time(connect(alone, resp2)).await;
            if !resp2 && self.protocol.is_none() && made.as_ref().is_err_and(wire::is_without_resp3) {
                made = self.in_time(connect(alone, true)).await;
                learned.resp2.fetch_or(made.is_ok(), Ordering::Relaxed);
            }
            match made {
                Ok(made) => {
                    learned.alone.store(alone, Ordering::Relaxed);
                    return Ok(made);
                }
                Err(error) if wire::is_wrong_password(&error) => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| (redis::ErrorKind::Client, "no login to try").into()))
    }

    async fn in_time<T>(&self, work: impl Future<Output = redis::RedisResult<T>>) -> redis::RedisResult<T> {
        let late = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        tokio::time::timeout(self.connect_timeout, work).await.map_err(late)?
    }

    pub(super) fn info(&self, alone: bool, resp2: bool) -> RedisConnectionInfo {
        let protocol = if resp2 { ProtocolVersion::RESP2 } else { ProtocolVersion::RESP3 };
        let login = self.login(alone);
        let mut info = RedisConnectionInfo::default()
            .set_db(login.db)
            .set_protocol(protocol)
            .set_lib_name("ipcmutex", env!("CARGO_PKG_VERSION"));
        if let Some(secret) = login.secret {
            info = info.set_password(secret);
        }
        if let Some(user) = login.user {
            info = info.set_username(user);
        }
        info
    }

    pub(super) async fn multiplex(
        &self,
        address: &Address,
        alone: bool,
        resp2: bool,
        hear: Hear,
    ) -> redis::RedisResult<(MultiplexedConnection, Task)> {
        let mut config = redis::AsyncConnectionConfig::new()
            .set_response_timeout(Some(ANSWER))
            // A queue that is never full: at a full one, calls would pass each other, and waiters their turn.
            .set_pipeline_buffer_size(1 << 20);
        if !resp2 {
            config = config.set_push_sender(move |push: PushInfo| {
                match push.kind {
                    PushKind::Message | PushKind::SMessage => {
                        if let Some(redis::Value::BulkString(payload)) = push.data.get(1) {
                            hear(Heard::Message(String::from_utf8_lossy(payload).into_owned()));
                        }
                    }
                    PushKind::Invalidate => match push.data.first() {
                        Some(redis::Value::Array(keys)) => {
                            for key in keys {
                                if let redis::Value::BulkString(key) = key {
                                    hear(Heard::Changed(Some(String::from_utf8_lossy(key).into_owned())));
                                }
                            }
                        }
                        _ => hear(Heard::Changed(None)),
                    },
                    // Nobody here gives up a channel: it went with its slot to another node. The library takes this for an
                    // answer to whatever is under way, so nothing more that comes on this connection can be believed.
                    PushKind::SUnsubscribe | PushKind::Disconnection => hear(Heard::End),
                    _ => {}
                }
                Ok::<(), redis::aio::SendError>(())
            });
        }
        let stream = dial_async(address, self.tls.as_ref(), self.connect_timeout).await?;
        let info = self.info(alone, resp2);
        let (connection, driver) = MultiplexedConnection::new_with_config(&info, stream, config).await?;
        Ok((connection, Task(tokio::spawn(driver))))
    }
}
