//! Which server, and how a connection to it is made: the only file that knows addresses, credentials and protocol.

use std::fmt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::Stream;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::{TcpSettings, socket2};
use redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError};

use super::wire;
use crate::error::{Error, ErrorKind, Result};
use crate::url::{RedisTarget, Topology};

/// How long to try to connect unless the URL says (`connect_timeout=`).
const CONNECT: Duration = Duration::from_secs(2);
/// How long to wait for an answer. A connection that does not answer is given up: TCP would hold on to it for minutes.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

/// All that tells one server and one login from another. It has no `Debug`, since it knows the secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Server {
    address: Address,
    user: Option<String>,
    secret: Option<String>,
    db: i64,
    protocol: u8,
    pub(super) connect_timeout: Duration,
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.address {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

fn not_built(what: &str) -> Error {
    Error::new(ErrorKind::Unsupported, "open", format!("{what} is not supported by this version"))
        .with_help("use rpm+redis:// or rpm+redis+unix:// with one server")
}

impl Server {
    /// The server that the URL, or for it `$REDIS_URL`, names.
    ///
    /// # Errors
    /// UNSUPPORTED for what is not built in; INVALID if `$REDIS_URL` cannot be read.
    pub(super) fn of(target: &RedisTarget) -> Result<Server> {
        if target.tls || target.ca.is_some() || target.crt.is_some() || target.key.is_some() {
            return Err(not_built("TLS"));
        }
        if target.replicas > 0 {
            return Err(not_built("waiting for replicas (`replicas=`)"));
        }
        let mut server = Server {
            address: Address::Tcp("127.0.0.1".to_owned(), 6379),
            user: target.user.clone(),
            secret: target.secret.as_ref().map(|secret| secret.expose().to_owned()),
            db: target.db,
            protocol: target.protocol.unwrap_or(3),
            connect_timeout: target.connect_timeout.unwrap_or(CONNECT),
        };
        match (&target.topology, target.hosts.first()) {
            (Topology::Unix(path), _) => server.address = Address::Unix(path.clone()),
            (Topology::Standalone, Some((host, port))) => server.address = Address::Tcp(host.clone(), *port),
            (Topology::Standalone, None) => {
                if let Some(url) = std::env::var_os("REDIS_URL").filter(|url| !url.is_empty()) {
                    server.read_environment(&url.to_string_lossy())?;
                }
            }
            (Topology::Sentinel { .. }, _) => return Err(not_built("Sentinel")),
            (Topology::Cluster, _) => return Err(not_built("Cluster")),
            (Topology::Redlock, _) => return Err(not_built("Redlock")),
        }
        Ok(server)
    }

    /// `$REDIS_URL` as other Redis programs read it. It may hold a secret, so it is never repeated.
    fn read_environment(&mut self, url: &str) -> Result<()> {
        let info = url.into_connection_info().map_err(|_| {
            Error::new(ErrorKind::Invalid, "open", "$REDIS_URL is not a Redis URL")
                .with_help("write redis://[user:secret@]host[:port][/db] or unix:///path")
        })?;
        self.address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            _ => return Err(not_built("TLS (in $REDIS_URL)")),
        };
        let login = info.redis_settings();
        self.user = login.username().map(str::to_owned);
        self.secret = login.password().map(str::to_owned);
        if self.db == 0 {
            self.db = login.db();
        }
        Ok(())
    }

    fn client(&self, alone: bool) -> redis::RedisResult<redis::Client> {
        let address = match &self.address {
            Address::Tcp(host, port) => ConnectionAddr::Tcp(host.clone(), *port),
            Address::Unix(path) => ConnectionAddr::Unix(path.clone()),
        };
        let protocol = if self.protocol == 2 { ProtocolVersion::RESP2 } else { ProtocolVersion::RESP3 };
        let mut login = RedisConnectionInfo::default()
            .set_db(self.db)
            .set_protocol(protocol)
            .set_lib_name("ipcmutex", env!("CARGO_PKG_VERSION"));
        if let Some(secret) = &self.secret {
            login = login.set_password(secret);
        }
        if let Some(user) = self.user.as_ref().filter(|_| !alone) {
            login = login.set_username(user);
        }
        let tcp = TcpSettings::default()
            .set_nodelay(true)
            .set_keepalive(socket2::TcpKeepalive::new().with_time(Duration::from_secs(10)));
        #[cfg(target_os = "linux")]
        let tcp = tcp.set_user_timeout(Duration::from_secs(5));
        redis::Client::open(address.into_connection_info()?.set_redis_settings(login).set_tcp_settings(tcp))
    }

    /// The logins to try, as `alone`: with the user and then, since a password-only server knows no users, with the
    /// secret alone. What worked last comes first.
    fn logins(&self, alone: &AtomicBool) -> impl Iterator<Item = bool> {
        let first = self.user.is_none() || alone.load(Ordering::Relaxed);
        let second = (self.user.is_some() && self.secret.is_some()).then_some(!first);
        std::iter::once(first).chain(second)
    }

    pub(super) fn failed(&self, operation: &'static str, error: &RedisError) -> Error {
        wire::failed(operation, &self.to_string(), self.secret.as_deref(), error)
    }

    /// A connection for the caller's own thread. It gives up after `limit`.
    pub(super) fn connect(&self, alone: &AtomicBool, limit: Duration) -> redis::RedisResult<redis::Connection> {
        let mut refused = None;
        for login in self.logins(alone) {
            match self.client(login)?.get_connection_with_timeout(limit) {
                Ok(connection) => {
                    alone.store(login, Ordering::Relaxed);
                    connection.set_read_timeout(Some(ANSWER))?;
                    connection.set_write_timeout(Some(ANSWER))?;
                    return Ok(connection);
                }
                // What the first refusal says is about what the URL says.
                Err(error) if wire::is_wrong_password(&error) => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| (redis::ErrorKind::Client, "no login to try").into()))
    }

    /// A connection for the background thread, which hears what is published on `channel`: over RESP3 the one
    /// connection does both, over RESP2 a second one listens.
    pub(super) async fn link(&self, alone: &AtomicBool, channel: &str, hear: Hear) -> redis::RedisResult<Link> {
        let mut refused = None;
        for login in self.logins(alone) {
            match self.link_as(login, channel, hear.clone()).await {
                Ok(link) => {
                    alone.store(login, Ordering::Relaxed);
                    return Ok(link);
                }
                Err(error) if wire::is_wrong_password(&error) => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| (redis::ErrorKind::Client, "no login to try").into()))
    }

    async fn link_as(&self, alone: bool, channel: &str, hear: Hear) -> redis::RedisResult<Link> {
        let client = self.client(alone)?;
        let config = redis::AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect_timeout))
            .set_response_timeout(Some(ANSWER))
            // A queue that is never full: at a full one, calls would pass each other, and waiters their turn.
            .set_pipeline_buffer_size(1 << 20);
        let timed_out = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
        if self.protocol == 2 {
            let connection = client.get_multiplexed_async_connection_with_config(&config).await?;
            let listen = async {
                let mut pubsub = client.get_async_pubsub().await?;
                let subscribed = pubsub.subscribe(channel).await;
                Ok::<_, RedisError>((pubsub, subscribed))
            };
            let (pubsub, subscribed) =
                tokio::time::timeout(self.connect_timeout, listen).await.map_err(timed_out)??;
            let listens = is_allowed(subscribed)?;
            let ear = tokio::spawn(async move {
                let mut messages = pubsub.into_on_message();
                while let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await {
                    hear(Heard::Message(String::from_utf8_lossy(message.get_payload_bytes()).into_owned()));
                }
                hear(Heard::End);
            });
            return Ok(Link { connection, listens, _ear: Some(Ear(ear)) });
        }
        let config = config.set_push_sender(move |push: PushInfo| {
            match push.kind {
                PushKind::Message => {
                    if let Some(redis::Value::BulkString(payload)) = push.data.get(1) {
                        hear(Heard::Message(String::from_utf8_lossy(payload).into_owned()));
                    }
                }
                PushKind::Disconnection => hear(Heard::End),
                _ => {}
            }
            Ok::<(), redis::aio::SendError>(())
        });
        let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
        let listens = is_allowed(connection.subscribe(channel).await)?;
        Ok(Link { connection, listens, _ear: None })
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

/// What comes in on a link by itself.
pub(super) enum Heard {
    Message(String),
    /// The connection is gone.
    End,
}

pub(super) type Hear = std::sync::Arc<dyn Fn(Heard) + Send + Sync>;

/// The background thread's connection.
pub(super) struct Link {
    pub(super) connection: MultiplexedConnection,
    /// Whether this process can be told when its turn comes.
    pub(super) listens: bool,
    _ear: Option<Ear>,
}

struct Ear(tokio::task::JoinHandle<()>);

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.abort();
    }
}
