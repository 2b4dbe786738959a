//! Which server, and how a connection to it is made: the only file that knows credentials and protocol.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::Stream;
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{ConnectionAddr, IntoConnectionInfo, ProtocolVersion, PushInfo, PushKind, RedisConnectionInfo, RedisError};
use tokio::task::JoinHandle;

use super::dial::{Address, dial_async};
use super::nodes::{Net, Nodes, Road};
use super::plain::forbids_scripts;
use super::talk::{Connection, Login, Single};
use super::tls::{self, Tls};
use super::wire;
use super::worker::elsewhere;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Guarded;
use crate::url::{RedisTarget, Topology};

/// How long to try to connect unless the URL says (`connect_timeout=`).
const CONNECT: Duration = Duration::from_secs(2);
/// No answer is given up sooner than this, whatever was asked for: else a short wait on a slow line would cut it.
pub(super) const PATIENT: Duration = Duration::from_millis(200);
/// How long to wait for an answer. A connection that does not answer is given up: TCP would hold on to it for minutes.
pub(super) const ANSWER: Duration = Duration::from_secs(2);

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    One(Address),
    Sentinel {
        sentinels: Vec<Address>,
        master: String,
    },
    /// By some of its nodes.
    Cluster(Vec<Address>),
}

/// All that tells one server and one login from another. It has no `Debug`, since it knows the secret.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Server {
    pub(super) place: Place,
    pub(super) tls: Option<Tls>,
    user: Option<String>,
    secret: Option<String>,
    /// The Sentinels' own user and secret.
    sentinel_login: Option<(Option<String>, String)>,
    db: i64,
    /// Asked for by the URL.
    protocol: Option<u8>,
    pub(super) connect_timeout: Duration,
}

/// What was learned of a server since its engine was made.
#[derive(Default)]
pub(super) struct Learned {
    /// It takes the secret without the user.
    alone: AtomicBool,
    /// It does not know RESP3.
    resp2: AtomicBool,
    /// It forbids scripts.
    plain: AtomicBool,
    /// Where it was last found.
    master: Guarded<Option<Address>>,
    /// What is known not to be the master, or not any more: a Sentinel that names it is not the last one asked.
    doubted: Guarded<Option<Address>>,
    /// Counts the changes of the server behind the name: who has a connection to an earlier one must not use it any more.
    changes: AtomicU64,
    /// The nodes of a cluster, as it last told them.
    nodes: Guarded<Vec<Address>>,
}

impl Learned {
    pub(super) fn forbids_scripts(&self) -> bool {
        self.plain.load(Ordering::Relaxed)
    }

    pub(super) fn found_plain(&self) {
        self.plain.store(true, Ordering::Relaxed);
    }

    pub(super) fn found(&self, address: &Address) {
        let before = self.master.lock().replace(address.clone());
        if before.is_some_and(|before| before != *address) {
            self.changed();
        }
    }

    /// It says that it is not the master.
    pub(super) fn doubts(&self, address: &Address) {
        *self.doubted.lock() = Some(address.clone());
    }

    pub(super) fn is_doubted(&self, address: &Address) -> bool {
        self.doubted.lock().as_ref() == Some(address)
    }

    /// It says that it is, and nothing has changed since `seen`.
    pub(super) fn trusts(&self, address: &Address, seen: u64) {
        let mut doubted = self.doubted.lock();
        if self.changes() == seen {
            doubted.take_if(|doubted| doubted == address);
        }
    }

    /// A Sentinel says that another one has become the master in its place.
    pub(super) fn replaced(&self, address: Option<Address>) {
        let mut doubted = self.doubted.lock();
        *doubted = address.or(doubted.take());
        self.changed();
    }

    /// Another server may have taken this one's place.
    pub(super) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::Release);
    }

    pub(super) fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    pub(super) fn found_nodes(&self, nodes: Vec<Address>) {
        *self.nodes.lock() = nodes;
    }

    pub(super) fn nodes(&self) -> Vec<Address> {
        self.nodes.lock().clone()
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::One(address) => address.fmt(f),
            Place::Sentinel { sentinels, master } => {
                write!(f, "{master} of the Sentinels")?;
                sentinels.iter().try_for_each(|sentinel| write!(f, " {sentinel}"))
            }
            Place::Cluster(nodes) => {
                f.write_str("cluster")?;
                nodes.iter().try_for_each(|node| write!(f, " {node}"))
            }
        }
    }
}

impl Server {
    /// The server that the URL, or for it `$REDIS_URL`, names.
    ///
    /// # Errors
    /// UNSUPPORTED for what is not built in; INVALID if `$REDIS_URL` cannot be read.
    pub(super) fn of(target: &RedisTarget) -> Result<Server> {
        let mut server = Server {
            place: Place::One(Address::Tcp("127.0.0.1".to_owned(), 6379)),
            tls: tls_of(target)?,
            user: target.user.clone(),
            secret: target.secret.as_ref().map(|secret| secret.expose().to_owned()),
            sentinel_login: target
                .sentinel_login
                .as_ref()
                .map(|(user, secret)| (user.clone(), secret.expose().to_owned())),
            db: target.db.unwrap_or(0),
            protocol: target.protocol,
            connect_timeout: target.connect_timeout.unwrap_or(CONNECT),
        };
        match (&target.topology, target.hosts.first()) {
            (Topology::Unix(path), _) => server.place = Place::One(Address::Unix(path.clone())),
            (Topology::Standalone, Some((host, port))) => {
                server.place = Place::One(Address::Tcp(host.clone(), *port));
            }
            (Topology::Standalone, None) => {
                if let Some(url) = std::env::var_os("REDIS_URL").filter(|url| !url.is_empty()) {
                    server.read_environment(&url.to_string_lossy(), target.db)?;
                }
            }
            (Topology::Sentinel { master }, _) => {
                let sentinels = target.hosts.iter().map(|(host, port)| Address::Tcp(host.clone(), *port)).collect();
                server.place = Place::Sentinel { sentinels, master: master.clone() };
            }
            (Topology::Cluster, _) => {
                let misfit = match (target.db, target.protocol) {
                    (Some(1..), _) => Some(("a cluster has the database 0 alone", "leave out ?db=")),
                    (_, Some(2)) => Some(("a cluster's wake-ups come over RESP3", "leave out ?protocol=2")),
                    _ => None,
                };
                if let Some((found, help)) = misfit {
                    return Err(Error::new(ErrorKind::Invalid, "open", found).with_help(help));
                }
                let nodes = target.hosts.iter().map(|(host, port)| Address::Tcp(host.clone(), *port)).collect();
                server.place = Place::Cluster(nodes);
            }
            (Topology::Redlock, _) if target.protocol == Some(3) => {
                return Err(Error::new(ErrorKind::Invalid, "open", "independent servers are asked over RESP2")
                    .with_help("leave out ?protocol=3"));
            }
            // The first of them; `each` makes one for each host.
            (Topology::Redlock, Some((host, port))) => server.place = Place::One(Address::Tcp(host.clone(), *port)),
            (Topology::Redlock, None) => return Err(Error::new(ErrorKind::Invalid, "open", "the host is missing")),
        }
        if server.user.is_some() {
            // One without a password (`nopass`) is asked for as well: without a login it would be the default user.
            server.secret.get_or_insert_default();
        }
        if let Some(tls) = &server.tls {
            // A file that cannot be used is told now, in its own words.
            tls.config()?;
        }
        Ok(server)
    }

    /// The servers of the URL, each for itself.
    pub(super) fn each(target: &RedisTarget) -> Result<Vec<Server>> {
        let first = Server::of(target)?;
        let at = |(host, port): &(String, u16)| Place::One(Address::Tcp(host.clone(), *port));
        Ok(target.hosts.iter().map(|host| Server { place: at(host), ..first.clone() }).collect())
    }

    /// `$REDIS_URL` as other Redis programs read it. It may hold a secret, so it is never repeated.
    /// What the lock's URL says itself comes first.
    fn read_environment(&mut self, url: &str, db: Option<i64>) -> Result<()> {
        let info = url.into_connection_info().map_err(|_| {
            Error::new(ErrorKind::Invalid, "open", "$REDIS_URL is not a Redis URL")
                .with_help("write redis://[user:secret@]host[:port][/db] or unix:///path")
        })?;
        let address = match info.addr() {
            ConnectionAddr::Tcp(host, port) => Address::Tcp(host.clone(), *port),
            ConnectionAddr::Unix(_) if self.tls.is_some() => return Err(no_tls()),
            ConnectionAddr::Unix(path) => Address::Unix(path.clone()),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => {
                self.tls.get_or_insert(Tls { ca: None, identity: None });
                Address::Tcp(host.clone(), *port)
            }
            _ => {
                return Err(Error::new(ErrorKind::Invalid, "open", "$REDIS_URL asks not to verify the server")
                    .with_help("certificates are always verified; name your authority with ?ca="));
            }
        };
        self.place = Place::One(address);
        let login = info.redis_settings();
        self.user = login.username().map(str::to_owned);
        self.secret = login.password().map(str::to_owned);
        self.db = db.unwrap_or(login.db());
        Ok(())
    }

    /// The address that the URL names first.
    pub(super) fn seed(&self) -> &Address {
        match &self.place {
            Place::One(address) => address,
            Place::Sentinel { sentinels, .. } => &sentinels[0],
            Place::Cluster(nodes) => &nodes[0],
        }
    }

    pub(super) fn login(&self, alone: bool) -> Login<'_> {
        let user = self.user.as_deref().filter(|_| !alone);
        Login { user, secret: self.secret.as_deref(), db: self.db }
    }

    /// Whether nothing but answers can come on a connection, as far as is known.
    pub(super) fn is_resp2(&self, learned: &Learned) -> bool {
        self.protocol == Some(2) || learned.resp2.load(Ordering::Relaxed)
    }

    /// For Sentinels: mostly they have no password; if they have one, and the URL does not say it, it is the servers', and
    /// they too may know no users.
    pub(super) fn logins_of_sentinels(&self) -> Vec<Login<'_>> {
        match &self.sentinel_login {
            Some((user, secret)) => vec![Login { user: user.as_deref(), secret: Some(secret), db: 0 }],
            None if self.user.is_some() && self.secret.is_some() => {
                [false, true].map(|alone| Login { db: 0, ..self.login(alone) }).into()
            }
            None => vec![Login { db: 0, ..self.login(false) }],
        }
    }

    /// How long a caller waits for an answer: who gives up on connecting sooner gives up on this sooner, too.
    pub(super) fn patience(&self) -> Duration {
        ANSWER.min(self.connect_timeout.max(PATIENT))
    }

    /// The logins to try, as `alone`: with the user and then, since a password-only server knows no users, with the
    /// secret alone. What worked last comes first.
    fn logins(&self, learned: &Learned) -> impl Iterator<Item = bool> + use<> {
        let first = self.user.is_none() || learned.alone.load(Ordering::Relaxed);
        let second =
            (self.user.is_some() && self.secret.as_ref().is_some_and(|secret| !secret.is_empty())).then_some(!first);
        std::iter::once(first).chain(second)
    }

    pub(super) fn failed(&self, operation: &'static str, error: &RedisError) -> Error {
        let server = self.to_string();
        // One server does without (`plain`).
        if forbids_scripts(error) {
            let message = format!("the server {server} forbids scripts, and a lock on several servers needs them");
            return Error::new(ErrorKind::Config, operation, message)
                .with_help("allow EVAL, EVALSHA and SCRIPT LOAD, to its user as well");
        }
        tls::cause(operation, &server, error).unwrap_or_else(|| {
            let sentinels = self.sentinel_login.as_ref().map(|(_, secret)| secret.as_str());
            let secrets: Vec<&str> = self.secret.as_deref().into_iter().chain(sentinels).collect();
            wire::failed(operation, &server, &secrets, error)
        })
    }

    /// A connection for the caller's own thread. It gives up after `limit`.
    pub(super) fn connect(&self, learned: &Arc<Learned>, limit: Duration) -> redis::RedisResult<Connection> {
        if self.is_cluster() {
            return Nodes::open(self, learned, limit).map(|nodes| Connection::Cluster(Box::new(nodes)));
        }
        let seen = learned.changes();
        let mut address = self.locate(learned, limit)?;
        let mut single = self.connect_to(learned, &address, seen, limit);
        if single.is_err() && learned.is_doubted(&address) {
            // Perhaps another Sentinel knows better.
            address = self.locate(learned, limit)?;
            if !learned.is_doubted(&address) {
                single = self.connect_to(learned, &address, seen, limit);
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

    /// One to the server at `address`, by the login that works there.
    pub(super) fn open_at(&self, learned: &Learned, address: &Address, limit: Duration) -> redis::RedisResult<Single> {
        let end = Instant::now() + limit;
        let mut refused = None;
        for alone in self.logins(learned) {
            let left = end.saturating_duration_since(Instant::now());
            match Single::open(address, self.tls.as_ref(), &self.login(alone), left) {
                Ok(mut single) => {
                    learned.alone.store(alone, Ordering::Relaxed);
                    single.set_limit(self.patience());
                    return Ok(single);
                }
                // What the first refusal says is about what the URL says.
                Err(error) if wire::is_wrong_password(&error) => refused = refused.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        Err(refused.unwrap_or_else(|| (redis::ErrorKind::Client, "no login to try").into()))
    }

    /// A connection for the background thread, which hears what is published on `channel`: over RESP3 the one
    /// connection does both, over RESP2 a second one listens. In a cluster each lock has a channel, subscribed to later.
    pub(super) async fn link(&self, learned: &Arc<Learned>, channel: &str, hear: Hear) -> redis::RedisResult<Link> {
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
    pub(super) async fn plain(&self, learned: &Learned) -> redis::RedisResult<(MultiplexedConnection, Task)> {
        let deaf: Hear = Arc::new(|_| {});
        self.logged_in(learned, |alone, _| self.multiplex(self.seed(), alone, true, deaf.clone())).await
    }

    /// What `connect` makes with the login, and the protocol, that the server takes.
    async fn logged_in<T, F: Future<Output = redis::RedisResult<T>>>(
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

    fn info(&self, alone: bool, resp2: bool) -> RedisConnectionInfo {
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

    async fn multiplex(
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

fn tls_of(target: &RedisTarget) -> Result<Option<Tls>> {
    let identity = match (&target.crt, &target.key) {
        (Some(crt), Some(key)) => Some((crt.clone(), key.clone())),
        (None, None) => None,
        _ => {
            return Err(Error::new(ErrorKind::Invalid, "open", "a certificate and its key come together")
                .with_help("give both ?crt= and ?key="));
        }
    };
    // Who names an authority or a certificate must not be served in plain text.
    let asked = target.tls || target.ca.is_some() || identity.is_some();
    if asked && matches!(target.topology, Topology::Unix(_)) {
        return Err(no_tls());
    }
    Ok(asked.then(|| Tls { ca: target.ca.clone(), identity }))
}

fn no_tls() -> Error {
    Error::new(ErrorKind::Invalid, "open", "a unix socket has no TLS")
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
    /// This key was changed by somebody else; `None`: all of them.
    Changed(Option<String>),
    /// The connection is gone.
    End,
}

pub(super) type Hear = std::sync::Arc<dyn Fn(Heard) + Send + Sync>;

/// The background thread's connection.
pub(super) struct Link {
    pub(super) road: Road,
    /// Whether this process can be told when its turn comes. In a cluster each lock knows that for itself.
    pub(super) listens: bool,
    /// Whether it can carry word of changed keys.
    pub(super) tells: bool,
    _tasks: Vec<Task>,
}

/// Work of the event loop that ends with what it is for.
pub(super) struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
