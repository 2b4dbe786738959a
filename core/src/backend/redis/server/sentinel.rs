//! Sentinel: asks who the master is, and hears when that changes.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures_util::Stream;
use redis::aio::PubSub;
use redis::{RedisConnectionInfo, RedisError, RedisResult, Value};

use super::super::lease::{self, jitter};
use super::super::wire::{self, refusal};
use super::dial::{Address, dial_async};
use super::learned::Learned;
use super::runtime::elsewhere;
use super::single::Single;
use super::{ANSWER, Login, Place, Server};
use crate::error::ErrorKind;

/// Who could be listened to for so long has served.
const SERVED: Duration = Duration::from_secs(2);
/// Pauses begin as if all had failed so often: with 100 to 200 ms.
const FIRST: u32 = 2;
const SWITCHED: &str = "+switch-master";

impl Server {
    /// Where the server is now. Blocks for `limit` at most, or a little longer.
    pub(super) fn locate(&self, learned: &Learned, limit: Duration) -> RedisResult<Address> {
        let Place::Sentinel { sentinels, master } = &self.place else { return Ok(self.seed().clone()) };
        let each = (limit / sentinels.len() as u32).max(Duration::from_millis(100));
        let (mut failure, mut doubted) = (None, Vec::new());
        for sentinel in sentinels {
            match self.ask(learned, sentinel, master, each) {
                // It may not have heard of a failover yet; if it has, all say so.
                Ok(Some(address)) if learned.is_doubted(&address) => doubted.push(address),
                Ok(Some(address)) => {
                    learned.found(&address);
                    return Ok(address);
                }
                Ok(None) => {
                    let message = format!("the Sentinel {sentinel} knows no master `{master}`");
                    failure = Some(refusal(ErrorKind::Config, message, "write …://h1,h2/<master>/<id>"));
                }
                Err(error) => failure = wire::telling(failure, error),
            }
        }
        let named = |address: &&Address| doubted.iter().filter(|other| other == address).count();
        let chosen = doubted
            .iter()
            // Nobody may have heard that it is the master again: one Sentinel that is behind must not hide it.
            .find(|address| named(address) > sentinels.len() / 2)
            // One that was replaced may take itself for the master still; one that said that it is not says so again.
            .or_else(|| doubted.iter().find(|address| !learned.is_replaced(address)))
            .or(doubted.last());
        if let Some(address) = chosen {
            learned.found(address);
            return Ok(address.clone());
        }
        Err(failure.unwrap_or_else(|| io::Error::from(io::ErrorKind::NotFound).into()))
    }

    fn ask(
        &self,
        learned: &Learned,
        sentinel: &Address,
        master: &str,
        limit: Duration,
    ) -> RedisResult<Option<Address>> {
        let ask = |login: &Login<'_>| {
            let mut connection = Single::open(sentinel, self.tls.as_ref(), login, limit)?;
            connection.set_limit(limit);
            redis::cmd("SENTINEL")
                .arg("get-master-addr-by-name")
                .arg(master)
                .query::<Option<(String, u16)>>(&mut connection)
        };
        let mut refused = None;
        for (number, login) in self.logins_of_sentinels(learned) {
            match ask(&login) {
                Err(error) if wants_another_login(&error) => refused = telling(refused, error),
                answer => {
                    let address = answer?.map(|(host, port)| Address::Tcp(host, port));
                    learned.sentinel_login.store(number, Ordering::Relaxed);
                    return Ok(address);
                }
            }
        }
        Err(refused.unwrap_or_else(no_login))
    }

    /// Whether another server can take this one's place.
    pub(crate) fn moves(&self) -> bool {
        matches!(self.place, Place::Sentinel { .. })
    }

    /// What the server says of its `ROLE`, where a wrong one is possible: an old Sentinel, or one that has just come
    /// back, names a server that is not the master any more.
    pub(super) fn check_role(
        &self,
        learned: &Learned,
        address: &Address,
        seen: u64,
        role: RedisResult<Value>,
    ) -> RedisResult<()> {
        let role = match role {
            Ok(Value::Array(parts)) => parts.into_iter().next(),
            Ok(_) => None,
            // Who may not ask finds out by the first write.
            Err(error) if error.code() == Some("NOPERM") => return Ok(()),
            Err(error) => return Err(error),
        };
        match role {
            Some(Value::BulkString(role)) if role == b"master" => {
                learned.trusts(address, seen);
                Ok(())
            }
            _ => {
                learned.doubts(address);
                Err(refusal(
                    ErrorKind::Unavailable,
                    format!("the server {address} is not the master"),
                    "a failover may be under way",
                ))
            }
        }
    }
}

/// Calls `changed` whenever the master is another one, for as long as it is polled. `seen`: of the changes that were counted.
pub(crate) async fn watch(server: Server, learned: Arc<Learned>, mut seen: u64, changed: impl Fn()) {
    let Place::Sentinel { sentinels, master } = &server.place else { return };
    let mut failures = 0;
    for sentinel in sentinels.iter().cycle() {
        let ear = tokio::time::timeout(server.connect_timeout, listen(&server, &learned, sentinel)).await;
        if let Ok(Ok(ear)) = ear {
            // It may have changed before anybody listened, and whoever looked for it may have found that: both count.
            let (server, known) = (server.clone(), learned.clone());
            let _ = elsewhere(move || server.locate(&known, ANSWER)).await;
            if std::mem::replace(&mut seen, learned.changes()) != seen {
                changed();
            }
            let begun = Instant::now();
            let mut messages = ear.into_on_message();
            while let Some(message) = std::future::poll_fn(|cx| Pin::new(&mut messages).poll_next(cx)).await {
                let text = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
                // The name, and where that master was, and is.
                let mut words = text.split(' ');
                if words.next() == Some(master) {
                    let mut place = || {
                        let (host, port) = words.next().zip(words.next())?;
                        Some(Address::Tcp(host.to_owned(), port.parse().ok()?))
                    };
                    let (from, to) = (place(), place());
                    learned.replaced(from, to.as_ref());
                    seen = learned.changes();
                    changed();
                }
            }
            if begun.elapsed() > SERVED {
                failures = 0;
            }
        }
        // One after the other in each round, and the rounds further and further apart.
        let rounds = failures / sentinels.len() as u32;
        tokio::time::sleep(lease::backoff(FIRST + rounds, jitter())).await;
        failures += 1;
    }
}

async fn listen(server: &Server, learned: &Learned, sentinel: &Address) -> RedisResult<PubSub> {
    let mut refused = None;
    for (number, login) in server.logins_of_sentinels(learned) {
        let mut info = RedisConnectionInfo::default().set_skip_set_lib_name();
        if let Some(user) = login.user {
            info = info.set_username(user);
        }
        if let Some(secret) = login.secret {
            info = info.set_password(secret);
        }
        let stream = dial_async(sentinel, server.tls.as_ref(), server.connect_timeout).await?;
        let heard = async {
            let mut ear = PubSub::new(&info, stream).await?;
            ear.subscribe(SWITCHED).await?;
            Ok(ear)
        };
        match heard.await {
            Err(error) if wants_another_login(&error) => refused = telling(refused, error),
            heard => {
                let ear = heard?;
                learned.sentinel_login.store(number, Ordering::Relaxed);
                return Ok(ear);
            }
        }
    }
    Err(refused.unwrap_or_else(no_login))
}

/// Whether it may be for who asks: for want of a login, for a wrong one, for one that it knows nothing of, or that may not ask.
fn wants_another_login(error: &RedisError) -> bool {
    let knows_none = wire::is_answer(error) && error.detail().is_some_and(|text| text.contains("AUTH"));
    wire::wants_login(error) || wire::is_wrong_password(error) || error.code() == Some("NOPERM") || knows_none
}

/// That a login is needed says less than what becomes of one.
fn telling(before: Option<RedisError>, error: RedisError) -> Option<RedisError> {
    Some(before.filter(|before| !wire::wants_login(before)).unwrap_or(error))
}

fn no_login() -> RedisError {
    (redis::ErrorKind::Client, "no login to try").into()
}
