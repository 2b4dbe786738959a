//! Sentinels, and whether they are at one about who the master is.

use std::time::{Duration, Instant};

use super::judge::{Cause, Judge};
use super::wire::Wire;
use crate::asking::until;
use crate::occupancy::now;
use crate::servers::{Redis, Reply};

/// How often they are asked, and for how long it must have been calm.
const LOOK: Duration = Duration::from_millis(100);
const CALM: Duration = Duration::from_millis(300);
/// How long all may take to be at one. It says nothing about speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Three Sentinels that watch servers behind wires.
pub struct Watch {
    sentinels: Vec<Redis>,
    master: usize,
    looked: (u64, Instant),
    /// Since when it is not certain who the master is, and whether it was another one meanwhile; since when it seems to be.
    unsettled: Option<(u64, bool)>,
    calm: Option<Instant>,
}

/// A reply of names and values, as these names'.
fn field<'a>(reply: &'a Reply, name: &str) -> &'a str {
    let Reply::List(parts) = reply else { return "" };
    parts.chunks(2).find(|pair| pair[0].text() == name).map_or("", |pair| pair[1].text())
}

impl Watch {
    /// Makes the first one of the servers the master of the others, each known by its wire, and has them watched.
    pub fn over(servers: &mut [Redis], wires: &[Wire]) -> Watch {
        let master = wires[0].address();
        for (at, (redis, wire)) in servers.iter_mut().zip(wires).enumerate() {
            redis.reconfigure(&[
                "replica-announce-ip 127.0.0.1",
                &format!("replica-announce-port {}", wire.address().port()),
                "repl-diskless-sync-delay 0",
            ]);
            if at > 0 {
                replicate(redis, master.port());
            }
        }
        let sentinel = |_| {
            let sentinel = Redis::sentinel_of(&master.to_string(), 2, None, &["sentinel failover-timeout main 1000"]);
            // Who was the master and comes back as one is told after four of these.
            let quick = ["SENTINEL", "DEBUG", "PUBLISH-PERIOD", "250", "INFO-PERIOD", "500"];
            assert_eq!(sentinel.command(&quick).text(), "OK");
            sentinel
        };
        let sentinels = (0..3).map(sentinel).collect();
        let watch = Watch { sentinels, master: 0, looked: (now(), Instant::now()), unsettled: None, calm: None };
        let begun = Instant::now();
        while !watch.is_settled(servers, wires) {
            assert!(begun.elapsed() < PATIENCE, "the Sentinels do not come together");
            std::thread::sleep(LOOK);
        }
        watch
    }

    /// The lock's hosts, as in its URL.
    pub fn hosts(&self) -> String {
        self.sentinels.iter().map(Redis::address).collect::<Vec<_>>().join(",")
    }

    /// Who was last known to be the master.
    pub fn master(&self) -> usize {
        self.master
    }

    /// Whether that is certain.
    pub fn is_certain(&self) -> bool {
        self.unsettled.is_none()
    }

    /// From this time on another one may become the master.
    pub fn doubts(&mut self, from: u64) {
        self.unsettled.get_or_insert((from, false));
        self.calm = None;
    }

    /// Has one of the Sentinels replace the master; whether it begins to.
    pub fn fail_over(&mut self, which: usize) -> bool {
        let from = now();
        let begins = self.sentinels[which % 3].command(&["SENTINEL", "FAILOVER", "main"]).text() == "OK";
        if begins {
            self.doubts(from);
        }
        begins
    }

    /// A server that was killed is back: if it is the master no more, it follows the one that is.
    pub fn back(&self, at: usize, redis: &Redis, wires: &[Wire]) {
        let master = self.named(&self.sentinels[0], wires);
        if let Some(master) = master.filter(|master| *master != at) {
            replicate(redis, wires[master].address().port());
        }
    }

    fn named(&self, sentinel: &Redis, wires: &[Wire]) -> Option<usize> {
        let reply = sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]);
        let Reply::List(place) = reply else { return None };
        wires.iter().position(|wire| wire.address().port().to_string() == place[1].text())
    }

    /// All are at one, nothing is under way, and all servers follow the master.
    fn is_settled(&self, servers: &[Redis], wires: &[Wire]) -> bool {
        let Some(master) = self.named(&self.sentinels[0], wires) else { return false };
        let port = wires[master].address().port().to_string();
        let at_one = self.sentinels.iter().all(|sentinel| {
            let known = sentinel.command(&["SENTINEL", "MASTER", "main"]);
            let others = [field(&known, "num-slaves"), field(&known, "num-other-sentinels")];
            field(&known, "port") == port && field(&known, "flags") == "master" && others == ["2", "2"]
        });
        at_one
            && servers.iter().enumerate().all(|(at, redis)| match redis.command(&["ROLE"]) {
                Reply::List(role) if at == master => role[0].text() == "master",
                Reply::List(role) => {
                    role[0].text() == "slave" && role[2].number().to_string() == port && role[3].text() == "connected"
                }
                _ => false,
            })
    }

    /// Looks whether another one is the master now; `whole`: all servers are there. When to look next.
    pub fn look(&mut self, servers: &[Redis], wires: &[Wire], whole: bool, judge: &mut Judge) -> Instant {
        if self.looked.1.elapsed() < LOOK {
            return self.looked.1 + LOOK;
        }
        let before = std::mem::replace(&mut self.looked, (now(), Instant::now())).0;
        let master = self.named(&self.sentinels[0], wires);
        if let Some(master) = master.filter(|master| *master != self.master) {
            // By itself, if nothing was done: the machine gave somebody no time.
            self.unsettled = Some((self.unsettled.map_or(before, |(from, _)| from), true));
            self.master = master;
        }
        if let Some((from, another)) = self.unsettled {
            if !whole || !self.is_settled(servers, wires) {
                self.calm = None;
            } else if self.calm.get_or_insert_with(Instant::now).elapsed() > CALM {
                if another {
                    judge.disturbed(Cause::FailedOver, from, now());
                }
                self.unsettled = None;
            }
        }
        self.looked.1 + LOOK
    }

    /// Waits until it is certain.
    pub fn settle(&mut self, servers: &[Redis], wires: &[Wire], judge: &mut Judge) {
        let begun = Instant::now();
        while !self.is_certain() {
            self.look(servers, wires, true, judge);
            if begun.elapsed() > PATIENCE {
                let roles: Vec<_> = servers.iter().map(|redis| redis.command(&["ROLE"])).collect();
                let known: Vec<_> =
                    self.sentinels.iter().map(|sentinel| sentinel.command(&["SENTINEL", "MASTER", "main"])).collect();
                let ports: Vec<u16> = wires.iter().map(|wire| wire.address().port()).collect();
                return judge.violation(format!(
                    "the Sentinels are not at one about the master of {ports:?}: {roles:?} {known:?}"
                ));
            }
            std::thread::sleep(LOOK);
        }
    }
}

fn replicate(redis: &Redis, port: u16) {
    let follows = || redis.command(&["REPLICAOF", "127.0.0.1", &port.to_string()]).text() == "OK";
    until("it has loaded its data, and follows", follows);
}
