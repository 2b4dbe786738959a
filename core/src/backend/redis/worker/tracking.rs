//! Beside other libraries: hearing of their releases. They announce nothing, but a server that speaks RESP3 tells a
//! client which keys it has read that have changed (`CLIENT TRACKING`). It tells of DEL and SET; an expiry it tells late
//! or never, so the timer for the end of the lease always runs.
//!
//! | event | then |
//! |---|---|
//! | a waiter is refused that is first or second of the line, and of its process the first | arm: read the key, to be told once |
//! | armed, and the key is gone meanwhile | take |
//! | refused, since it is another one's turn of our own | nothing is armed; the timer, for the end of that turn |
//! | told | arm again; who looked before it was armed could miss what comes between |
//! | told of a renewal | the timer, from the answer to arming |
//! | RESP2, a cluster, a server that refuses | look a few times a second |

use std::sync::Arc;

use redis::{RedisResult, Value};

use super::{Event, Worker};
use crate::backend::redis::lease::{self, jitter};
use crate::backend::redis::lock::Lock;
use crate::backend::redis::server::{Link, Road};
use crate::backend::redis::wire;

/// How far from the head of the line one may stand and still listen: the head itself, and who notices that it has died.
pub(super) const NEAR: u32 = 1;

/// What PTTL says of a key that is not there.
const NO_KEY: i64 = -2;

impl Worker {
    /// Sees to it that this process hears of changes of the lock's key; false if it cannot.
    pub(super) fn track(&mut self, lock: &Lock) -> bool {
        let Some(Link { road: Road::One(connection), tells: true, .. }) = self.link() else { return false };
        let mut connection = connection.clone();
        if self.tracking == Some(false) {
            return false;
        }
        let Some((name, line)) = self.lines.get_key_value(lock.keys.lock()) else { return false };
        if line.tracked {
            return true;
        }
        let name = name.clone();
        if let Some(line) = self.lines.get_mut(&name) {
            line.tracked = true;
        }
        let mut pipeline = redis::pipe();
        if self.tracking.is_none() {
            // Told of what others do, not of what this connection does.
            pipeline.cmd("CLIENT").arg("TRACKING").arg("ON").arg("OPTIN").arg("NOLOOP").ignore();
        }
        pipeline.cmd("CLIENT").arg("CACHING").arg("YES").ignore();
        pipeline.cmd("GET").arg(&*name).cmd("PTTL").arg(&*name);
        self.tasks += 1;
        let (number, sent, events) = (self.number(), lease::now(), self.events.clone());
        tokio::spawn(async move {
            let reply = pipeline.query_async::<(Value, i64)>(&mut connection).await;
            // The loop ends only when no task is left.
            let _ = events.send(Event::Tracked { lock: name, number, sent, reply });
        });
        true
    }

    pub(super) fn tracked(&mut self, lock: &Arc<str>, number: u64, sent: u64, reply: RedisResult<(Value, i64)>) {
        if number != self.number() {
            return;
        }
        let left = match reply {
            // The two are asked one after the other: it may have gone in between.
            Ok((Value::Nil, _) | (_, NO_KEY)) => {
                self.tracking = Some(true);
                if let Some(line) = self.lines.get_mut(lock) {
                    line.tracked = false;
                }
                return self.retake(lock);
            }
            Ok((_, left)) => {
                self.tracking = Some(true);
                Some(left)
            }
            Err(error) if wire::is_answer(&error) => {
                if let Some(line) = self.lines.get_mut(lock) {
                    line.tracked = false;
                }
                self.tracking = Some(false);
                None
            }
            Err(error) => return self.broke(number, &error),
        };
        let wait = lease::recheck(left.unwrap_or(-1), 0, left.is_none(), jitter());
        self.set_timer(lock, Some(lease::counted_from(sent, wait)));
    }

    /// Somebody changed the key; `None`: any key, the server was emptied.
    pub(super) fn key_changed(&mut self, key: Option<&str>) {
        let lines = self.lines.iter_mut().filter(|(name, line)| line.tracked && key.is_none_or(|key| key == &***name));
        let firsts: Vec<u64> = lines
            .filter_map(|(_, line)| {
                line.tracked = false;
                line.members.first().map(|(_, serial)| *serial)
            })
            .collect();
        for serial in firsts {
            if let Some(lock) = self.entries.get(&serial).map(|entry| entry.lock.clone()) {
                self.track(&lock);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::backend::redis::engine::Engine;
    use crate::backend::redis::server::Server;
    use crate::url::{LockUrl, Target};

    #[test]
    fn a_key_that_goes_while_it_is_looked_at_has_gone() {
        let url = LockUrl::parse("rpm+redis://tracked-nowhere/goes?redis_key=goes").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let mut worker = Worker::new(engine, unbounded_channel().0);
        for (value, left, there) in [(Value::Int(1), 5, true), (Value::Int(1), NO_KEY, false), (Value::Nil, 5, false)] {
            worker.lines.entry("goes".into()).or_default().tracked = true;
            worker.tracked(&"goes".into(), worker.number, lease::now(), Ok((value, left)));
            assert_eq!(worker.lines["goes"].tracked, there);
        }
    }
}
