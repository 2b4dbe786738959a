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
use super::watch::Watch;
use super::wire::Wire;
use crate::asking::until;
use crate::cluster::{self, Cluster};
use crate::occupancy::now;
use crate::secrets;
use crate::servers::Redis;

const KEY: &str = "ipcmutex:lock";
/// How soon what could not be done yet is tried again.
const AGAIN: Duration = Duration::from_millis(50);
/// How long a cluster may take to be whole again. It says nothing about speed.
const PATIENCE: Duration = Duration::from_secs(60);

/// What it has answered has been written: one that is killed forgets nothing. That it reaches the disk is waited for by nobody, for
/// a disk that others keep busy would stop them all.
const CONFIG: &[&str] = &["appendonly yes", "appendfsync no"];

/// What is done for a time.
struct Harmed {
    harm: Harm,
    nodes: Vec<usize>,
    /// Before and after it began.
    from: (u64, u64),
    until: Instant,
}

/// How they carry the lock together.
enum Together {
    /// They know nothing of each other, and a majority decides, be it one.
    Majority,
    /// One is the master.
    Watched(Watch),
    /// One has the lock's slot.
    Sharded {
        owner: usize,
        /// To whom it is on its way, since when, and until when it is left so.
        moving: Option<(usize, u64, Instant)>,
    },
}

/// The servers, and the resource behind a fence.
pub struct Servers {
    together: Together,
    redis: Vec<Redis>,
    wires: Vec<Wire>,
    fence: Fence,
    harmed: Vec<Harmed>,
}

impl Servers {
    /// `count` independent ones, and the fence, whose socket is in `folder`.
    pub fn independent(count: usize, folder: &Path) -> Servers {
        Servers::with(count, None, &[], folder)
    }

    fn with(count: usize, password: Option<&str>, config: &[&str], folder: &Path) -> Servers {
        let config = [CONFIG, config].concat();
        let redis: Vec<Redis> = (0..count).map(|_| Redis::with(password, &config)).collect();
        let wires = redis.iter().map(|redis| Wire::to(&redis.socket()).expect("a free port")).collect();
        let fence = Fence::listen(&folder.join("fence")).expect("the folder is writable");
        Servers { together: Together::Majority, redis, wires, fence, harmed: Vec::new() }
    }

    /// A master and two replicas with Sentinels.
    pub fn watched(folder: &Path) -> Servers {
        let mut servers = Servers::independent(3, folder);
        servers.together = Together::Watched(Watch::over(&mut servers.redis, &servers.wires));
        servers
    }

    /// Three masters of a cluster, each known by its wire.
    pub fn sharded(folder: &Path) -> Servers {
        let mut servers = Servers::with(3, Some(&secrets::password("the-cluster")), cluster::CONFIG, folder);
        for (redis, wire) in servers.redis.iter_mut().zip(&servers.wires) {
            redis.reconfigure(&[&format!("cluster-announce-port {}", wire.address().port())]);
        }
        let cluster = Cluster::of(std::mem::take(&mut servers.redis));
        servers.together = Together::Sharded { owner: cluster.home(KEY), moving: None };
        servers.redis = cluster.nodes;
        let told = |redis: &Redis| format!("{:?}", redis.command(&["CLUSTER", "SLOTS"]));
        let by_wire = |slots: &str| {
            servers.wires.iter().all(|wire| slots.contains(&format!("Number({})", wire.address().port())))
        };
        until("all are known by their wires", || servers.redis.iter().all(|redis| by_wire(&told(redis))));
        servers
    }

    fn cluster<T>(&mut self, ask: impl FnOnce(&Cluster) -> T) -> T {
        let cluster = Cluster { nodes: std::mem::take(&mut self.redis) };
        let answer = ask(&cluster);
        self.redis = cluster.nodes;
        answer
    }

    /// The lock's URL, through the wires.
    pub fn url(&self, ttl: Duration) -> String {
        let hosts: Vec<String> = self.wires.iter().map(|wire| wire.address().to_string()).collect();
        let place = match &self.together {
            Together::Majority if hosts.len() > 1 => format!("rpm+redlock://{}", hosts.join(",")),
            Together::Majority => format!("rpm+redis://{}", hosts[0]),
            Together::Watched(watch) => format!("rpm+redis+sentinel://{}/main", watch.hosts()),
            Together::Sharded { .. } => format!("rpm+redis+cluster://{}{}", self.redis[0].login(), hosts.join(",")),
        };
        format!("{place}/lock?ttl={}ms", ttl.as_millis())
    }

    /// The resource.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Whether so many are a majority.
    fn are_most(&self, count: usize) -> bool {
        count > self.redis.len() / 2
    }

    /// Whether the lock needs one of these.
    fn are_needed(&self, nodes: &[usize]) -> bool {
        match &self.together {
            Together::Majority => self.are_most(nodes.len()),
            Together::Watched(watch) => nodes.contains(&watch.master()),
            Together::Sharded { owner, moving } => {
                nodes.contains(owner) || moving.is_some_and(|(to, ..)| nodes.contains(&to))
            }
        }
    }

    fn cause(&self, harm: Harm, nodes: &[usize]) -> Cause {
        match harm {
            _ if !self.are_needed(nodes) => Cause::Minority,
            Harm::Stop => Cause::ServerStopped,
            Harm::Restart | Harm::Away => Cause::ServerRestarted,
            Harm::Forget => Cause::ServerForgot,
            Harm::Cut | Harm::Hush => Cause::NetworkCut,
            Harm::Outage | Harm::FailOver | Harm::Move => unreachable!("it is one of these"),
        }
    }

    /// Which of them a fault is for: each second time the one that matters most.
    fn chosen(&self, which: usize) -> usize {
        match &self.together {
            Together::Watched(watch) if which.is_multiple_of(2) => watch.master(),
            Together::Sharded { owner, .. } if which.is_multiple_of(2) => *owner,
            _ => which / 2 % self.redis.len(),
        }
    }

    /// Injects a fault; its name, if it could be.
    pub fn suffer(&mut self, wanted: Harm, which: usize, lasting: Duration, judge: &mut Judge) -> Option<&'static str> {
        if let Together::Watched(watch) = &mut self.together {
            // One failover after the other.
            if !watch.is_certain() {
                return None;
            }
            if wanted == Harm::FailOver {
                return (self.harmed.is_empty() && watch.fail_over(which)).then_some(wanted.name());
            }
        }
        if wanted == Harm::Move {
            return self.begin_move(which, lasting).then_some(wanted.name());
        }
        let count = self.redis.len();
        let (harm, size) = match wanted {
            Harm::Outage => ([Harm::Stop, Harm::Away, Harm::Hush][which / count % 3], count / 2 + 1),
            harm => (harm, 1),
        };
        let first = self.chosen(which);
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
                Harm::Outage | Harm::FailOver | Harm::Move => unreachable!("it is one of these"),
            }
            if harm == Harm::Restart {
                self.back(at);
            }
        }
        if self.are_needed(&nodes)
            && let Together::Watched(watch) = &mut self.together
        {
            watch.doubts(from);
        }
        let begun = now();
        if matches!(harm, Harm::Stop | Harm::Away | Harm::Hush) {
            self.harmed.push(Harmed { harm, nodes, from: (from, begun), until: Instant::now() + lasting });
        } else {
            judge.disturbed(self.cause(harm, &nodes), from, begun);
        }
        Some(wanted.name())
    }

    /// Whether the slot begins to move.
    fn begin_move(&mut self, which: usize, lasting: Duration) -> bool {
        let Together::Sharded { owner, moving: None } = self.together else { return false };
        if !self.harmed.is_empty() || !self.cluster(Cluster::is_whole) {
            return false;
        }
        let (from, to) = (now(), (owner + 1 + which % 2) % 3);
        // With all its keys together, or without one of them.
        let ahead = [None, Some(KEY), Some("{ipcmutex:lock}:line"), Some("{ipcmutex:lock}:state")][which / 2 % 4];
        self.cluster(|cluster| {
            cluster.begin_move(KEY, owner, to);
            if let Some(ahead) = ahead {
                cluster.migrate(&[ahead], owner, to);
            }
        });
        self.together = Together::Sharded { owner, moving: Some((to, from, Instant::now() + lasting / 3)) };
        true
    }

    /// Ends a move that is due, when all are there; when to try that next.
    fn end_move(&mut self, all: bool, judge: &mut Judge) -> Option<Instant> {
        let Together::Sharded { owner, moving: Some((to, from, until)) } = self.together else { return None };
        let begun = Instant::now();
        if !all && until > begun {
            return Some(until);
        }
        while !self.harmed.is_empty() || !self.cluster(Cluster::is_whole) {
            if !all {
                return Some(begun + AGAIN);
            }
            if begun.elapsed() > PATIENCE {
                judge.violation("the cluster does not become whole".to_owned());
                return None;
            }
            std::thread::sleep(AGAIN);
        }
        self.cluster(|cluster| cluster.end_move(KEY, owner, to));
        self.together = Together::Sharded { owner: to, moving: None };
        judge.disturbed(Cause::SlotMoved, from, now());
        None
    }

    /// One that was killed is there again.
    fn back(&self, at: usize) {
        if let Together::Watched(watch) = &self.together {
            watch.back(at, &self.redis[at], &self.wires);
        }
    }

    fn end_those(&mut self, judge: &mut Judge, which: impl FnMut(&mut Harmed) -> bool) {
        for harmed in self.harmed.extract_if(.., which).collect::<Vec<_>>() {
            // Where another one takes the place of the one that is gone, somebody may come in.
            let alone = matches!(self.together, Together::Majority | Together::Sharded { moving: None, .. });
            if alone && self.are_needed(&harmed.nodes) {
                judge.absent(harmed.from.1, now());
            }
            for at in harmed.nodes.iter().copied() {
                match harmed.harm {
                    Harm::Stop => self.redis[at].thaw(),
                    Harm::Away => {
                        self.redis[at].restart();
                        self.back(at);
                    }
                    _ => self.wires[at].hush(false),
                }
            }
            judge.disturbed(self.cause(harmed.harm, &harmed.nodes), harmed.from.0, now());
        }
    }

    /// Lets go on what is due; all, if `all`. When the next is due.
    pub fn wake(&mut self, all: bool, judge: &mut Judge) -> Option<Instant> {
        self.end_those(judge, |harmed| all || harmed.until <= Instant::now());
        let next = self.harmed.iter().map(|harmed| harmed.until).min();
        let moved = self.end_move(all, judge);
        let next = next.into_iter().chain(moved).min();
        let Together::Watched(watch) = &mut self.together else { return next };
        if all {
            watch.settle(&self.redis, &self.wires, judge);
        }
        let look = watch.look(&self.redis, &self.wires, self.harmed.is_empty(), judge);
        Some(next.map_or(look, |next| next.min(look)))
    }
}
