//! The Redis servers that carry a lock together, each behind a wire, and what is done to them.
//!
//! What happens to fewer of them than the lock needs explains nothing to the checker ([`Cause::Minority`]); while too many are
//! away, nobody may come in.

use std::path::Path;
use std::time::{Duration, Instant};

use super::crew::until_stopped;
use super::fence::Fence;
use super::judge::{Cause, Judge};
use super::plan::Harm;
use super::wire::Wire;
use crate::occupancy::now;
use crate::servers::Redis;

/// What it has answered is on the disk: a restart forgets nothing.
const CONFIG: &[&str] = &["appendonly yes", "appendfsync always"];

/// What is done for a time.
struct Harmed {
    harm: Harm,
    nodes: Vec<usize>,
    /// Before and after it began.
    from: (u64, u64),
    until: Instant,
}

/// Independent servers of which a majority decides, be it one; and the resource behind a fence.
pub struct Servers {
    redis: Vec<Redis>,
    wires: Vec<Wire>,
    fence: Fence,
    harmed: Vec<Harmed>,
}

impl Servers {
    /// `count` of them, and the fence, whose socket is in `folder`.
    pub fn independent(count: usize, folder: &Path) -> Servers {
        let redis: Vec<Redis> = (0..count).map(|_| Redis::with(None, CONFIG)).collect();
        let wires = redis.iter().map(|redis| Wire::to(&redis.socket()).expect("a free port")).collect();
        let fence = Fence::listen(&folder.join("fence")).expect("the folder is writable");
        Servers { redis, wires, fence, harmed: Vec::new() }
    }

    /// The lock's URL, through the wires.
    pub fn url(&self, ttl: Duration) -> String {
        let hosts: Vec<String> = self.wires.iter().map(|wire| wire.address().to_string()).collect();
        let scheme = if hosts.len() > 1 { "rpm+redlock" } else { "rpm+redis" };
        format!("{scheme}://{}/lock?ttl={}ms", hosts.join(","), ttl.as_millis())
    }

    /// The resource.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether so many are a majority.
    fn are_most(&self, count: usize) -> bool {
        count > self.redis.len() / 2
    }

    fn cause(&self, harm: Harm, nodes: &[usize]) -> Cause {
        match harm {
            _ if !self.are_most(nodes.len()) => Cause::Minority,
            Harm::Stop => Cause::ServerStopped,
            Harm::Restart | Harm::Away => Cause::ServerRestarted,
            Harm::Forget => Cause::ServerForgot,
            Harm::Cut | Harm::Hush => Cause::NetworkCut,
            Harm::Outage => unreachable!("it is one of these"),
        }
    }

    /// Injects a fault; its name, if it could be.
    pub fn suffer(&mut self, wanted: Harm, which: usize, lasting: Duration, judge: &mut Judge) -> Option<&'static str> {
        let count = self.redis.len();
        let (harm, size) = match wanted {
            Harm::Outage => ([Harm::Stop, Harm::Away, Harm::Hush][which / count % 3], count / 2 + 1),
            harm => (harm, 1),
        };
        let first = which % count;
        let nodes: Vec<usize> = (first..first + size).map(|at| at % count).collect();
        if wanted == Harm::Outage {
            self.wake(true, judge);
        } else if count > 1 {
            let mut harmed: Vec<_> = self.harmed.iter().flat_map(|harmed| &harmed.nodes).chain(&nodes).collect();
            harmed.sort_unstable();
            harmed.dedup();
            if self.are_most(harmed.len()) {
                return None;
            }
        }
        // A network can be hushed beside what is done to its server; else one thing ends before the next one begins.
        let is_hush = |harm| harm == Harm::Hush;
        self.end_those(judge, |harmed| {
            is_hush(harmed.harm) == is_hush(harm) && harmed.nodes.iter().any(|node| nodes.contains(node))
        });
        let from = now();
        for at in nodes.iter().copied() {
            let (redis, wire) = (&mut self.redis[at], &self.wires[at]);
            match harm {
                Harm::Stop => {
                    redis.freeze();
                    until_stopped(redis.pid());
                }
                Harm::Restart => redis.restart(),
                Harm::Forget => {
                    redis.kill();
                    let _ = std::fs::remove_dir_all(redis.folder().join("appendonlydir"));
                    redis.restart();
                }
                Harm::Away => redis.kill(),
                Harm::Cut => wire.cut(),
                Harm::Hush => wire.hush(true),
                Harm::Outage => unreachable!("it is one of these"),
            }
        }
        let begun = now();
        if matches!(harm, Harm::Stop | Harm::Away | Harm::Hush) {
            self.harmed.push(Harmed { harm, nodes, from: (from, begun), until: Instant::now() + lasting });
        } else {
            judge.disturbed(self.cause(harm, &nodes), from, begun);
        }
        Some(wanted.name())
    }

    fn end_those(&mut self, judge: &mut Judge, which: impl FnMut(&mut Harmed) -> bool) {
        for harmed in self.harmed.extract_if(.., which).collect::<Vec<_>>() {
            if self.are_most(harmed.nodes.len()) {
                judge.absent(harmed.from.1, now());
            }
            for at in harmed.nodes.iter().copied() {
                match harmed.harm {
                    Harm::Stop => self.redis[at].thaw(),
                    Harm::Away => self.redis[at].restart(),
                    _ => self.wires[at].hush(false),
                }
            }
            judge.disturbed(self.cause(harmed.harm, &harmed.nodes), harmed.from.0, now());
        }
    }

    /// Lets go on what is due; all, if `all`. When the next is due.
    pub fn wake(&mut self, all: bool, judge: &mut Judge) -> Option<Instant> {
        self.end_those(judge, |harmed| all || harmed.until <= Instant::now());
        self.harmed.iter().map(|harmed| harmed.until).min()
    }
}
