//! What is said to the server and what it answers. Pure: no connection is touched here.
//!
//! | part | file |
//! |---|---|
//! | the scripts and their arguments | here, `../lua` |
//! | what they answer, and what is published | `reply` |
//! | what else the server says: its refusals, in our words | `failure` |
//! | where an answer ends | `frame` |

mod failure;
pub(super) mod frame;
mod reply;

use std::time::Duration;

use redis::Value;

pub(super) use self::failure::{
    did_nothing, failed, forbids_scripts, is_answer, is_cut, is_demoted, is_refusal, is_unknown_script,
    is_without_resp3, is_wrong_password, misplaced, refusal, telling, unasked, wants_login,
};
pub(super) use self::reply::{
    Message, Refusal, Taken, broken, copies, eviction_policy, forewarned, info, message, released, renewed, status,
    taken,
};
use super::keys::Keys;
use crate::sys::fork::PerProcess;

/// A Lua script of this engine, and the digest by which the server knows it.
pub(super) struct Script {
    code: &'static str,
    digest: String,
}

impl Script {
    pub(super) fn new(code: &'static str) -> Script {
        Script { code, digest: redis::Script::new(code).get_hash().to_owned() }
    }

    /// The call, by digest or (for a server that has forgotten it) by text.
    pub(super) fn call<K: redis::ToRedisArgs, A: redis::ToRedisArgs>(
        &self,
        by_text: bool,
        keys: &[K],
        args: &[A],
    ) -> redis::Cmd {
        let mut command = redis::Cmd::new();
        self.name(&mut command, by_text, keys.len());
        command.arg(keys).arg(args);
        command
    }

    fn name(&self, command: &mut redis::Cmd, by_text: bool, keys: usize) {
        let (word, script) = if by_text { ("EVAL", self.code) } else { ("EVALSHA", self.digest.as_str()) };
        command.arg(word).arg(script).arg(keys);
    }

    pub(super) fn load(&self) -> redis::Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(self.code);
        command
    }
}

pub(super) struct Scripts {
    pub(super) take: Script,
    pub(super) release: Script,
    renew: Script,
    pub(super) break_lock: Script,
    pub(super) status: Script,
    pub(super) forewarn: Script,
}

macro_rules! script {
    ($($file:literal),+) => { concat!(include_str!("../lua/keys.lua"), $(include_str!(concat!("../lua/", $file))),+) };
}

impl Scripts {
    pub(super) fn new(cluster: bool) -> Scripts {
        // Ahead of what concerns the line stands what must be fast without it.
        macro_rules! with_line {
            ($([$ahead:literal])? $file:literal) => {
                Script::new(if cluster {
                    script!($($ahead,)? "cluster.lua", "line.lua", $file)
                } else {
                    script!($($ahead,)? "one.lua", "line.lua", $file)
                })
            };
        }
        Scripts {
            take: with_line!(["newcomer.lua"] "take.lua"),
            release: with_line!(["alone.lua"] "release.lua"),
            renew: Script::new(include_str!("../lua/renew.lua")),
            break_lock: with_line!("break.lua"),
            status: Script::new(script!("status.lua")),
            forewarn: with_line!("forewarn.lua"),
        }
    }
}

/// What a script is for.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Take,
    Release,
    Renew,
    Break,
    Status,
    Forewarn,
}

impl Scripts {
    /// Which of the scripts for one server `word` means, by digest or text.
    pub(super) fn kind_of(word: &str) -> Option<Kind> {
        // A child may be forked while its parent makes it.
        static KNOWN: PerProcess<Scripts> = PerProcess::new();
        let known = KNOWN.get_or_init(|| Scripts::new(false));
        let kinds = [
            (&known.take, Kind::Take),
            (&known.release, Kind::Release),
            (&known.renew, Kind::Renew),
            (&known.break_lock, Kind::Break),
            (&known.status, Kind::Status),
            (&known.forewarn, Kind::Forewarn),
        ];
        kinds.into_iter().find(|(script, _)| script.digest == word || script.code == word).map(|(_, kind)| kind)
    }

    /// So that no call needs to be sent twice, and calls keep their order. A server that forbids this learns the scripts
    /// from their first use.
    pub(super) async fn teach(&self, connection: &mut redis::aio::MultiplexedConnection) {
        for script in [&self.take, &self.release, &self.renew] {
            let _ = script.load().query_async::<Value>(connection).await;
        }
    }
}

/// What the next hold hears of the one that ends.
#[derive(Clone, Copy)]
pub(super) enum Ending {
    /// Nothing.
    Released,
    /// What this one heard: it reached nobody.
    Undone,
    /// That it was abandoned.
    Lost,
}

/// Everything a take says.
pub(super) struct Ask<'a> {
    pub(super) token: &'a str,
    pub(super) ttl: Duration,
    pub(super) info: &'a str,
    /// Its place in the line, 0 for a newcomer's; `None` does not wait.
    pub(super) ticket: Option<u64>,
    pub(super) floor: u64,
    pub(super) beside_others: bool,
    pub(super) process: &'a str,
    /// The process that is told if the hold is lost, if it is known in the line by another name.
    pub(super) home: Option<&'a str>,
}

impl Scripts {
    pub(super) fn take(&self, by_text: bool, keys: &Keys, ask: &Ask<'_>) -> redis::Cmd {
        let args = [
            ask.token.to_owned(),
            ask.ttl.as_millis().to_string(),
            ask.process.to_owned(),
            ask.info.to_owned(),
            ask.ticket.map(|ticket| ticket.to_string()).unwrap_or_default(),
            ask.floor.to_string(),
            ask.home.unwrap_or_default().to_owned(),
        ];
        let args = &args[..if ask.home.is_some() { 7 } else { 6 }];
        self.take.call(by_text, keys.all(ask.beside_others), args)
    }

    /// Of many holds at once: the keys, the token and the lease of each, and the number of this renewal.
    pub(super) fn renew<'a>(
        &self,
        by_text: bool,
        holds: impl Iterator<Item = (&'a Keys, &'a str, Duration, u64)> + Clone,
    ) -> redis::Cmd {
        // Written once and in one place: many locks are many of these.
        let (count, bytes) = holds.clone().fold((0, 0), |(count, bytes), (keys, token, ..)| {
            (count + 1, bytes + keys.lock().len() + keys.state().len() + token.len() + 9)
        });
        let mut command = redis::Cmd::with_capacity(3 + 5 * count, 64 + bytes);
        self.renew.name(&mut command, by_text, 2 * count);
        for (keys, ..) in holds.clone() {
            command.arg(keys.lock()).arg(keys.state());
        }
        for (_, token, ttl, number) in holds {
            command.arg(token).arg(ttl.as_millis() as u64).arg(number);
        }
        command
    }

    pub(super) fn release(
        &self,
        by_text: bool,
        keys: &Keys,
        token: &str,
        ending: Ending,
        beside_others: bool,
        process: &str,
    ) -> redis::Cmd {
        let ending = match ending {
            Ending::Released => "released",
            Ending::Undone => "undone",
            Ending::Lost => "lost",
        };
        let args = [token, process, ending];
        self.release.call(by_text, keys.all(beside_others), &args)
    }
}
