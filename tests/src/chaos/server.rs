//! A Redis of its own behind a wire, and what is done to both.

use std::path::Path;
use std::time::{Duration, Instant};

use super::fence::Fence;
use super::judge::{Cause, Judge};
use super::plan::Fault;
use super::wire::Wire;
use crate::occupancy::now;
use crate::servers::Redis;

/// The lease of its lock.
pub const TTL: Duration = Duration::from_millis(500);

/// The server, the wire to it, and the resource behind a fence.
pub struct Server {
    redis: Redis,
    wire: Wire,
    fence: Fence,
    stopped: Option<(u64, Instant)>,
    hushed: Option<(u64, Instant)>,
}

impl Server {
    /// Starts all; the fence's socket is in `folder`.
    pub fn start(folder: &Path) -> Server {
        // What it has answered is on the disk: a restart forgets nothing.
        let redis = Redis::with(None, &["appendonly yes", "appendfsync always"]);
        let wire = Wire::to(&redis.address()).expect("a free port");
        let fence = Fence::listen(&folder.join("fence")).expect("the folder is writable");
        Server { redis, wire, fence, stopped: None, hushed: None }
    }

    /// The lock's URL, through the wire.
    pub fn url(&self) -> String {
        format!("rpm+redis://{}/lock?ttl={}ms", self.wire.address(), TTL.as_millis())
    }

    /// The resource.
    pub fn fence(&self) -> &Fence {
        &self.fence
    }

    /// Injects a fault; its name, or `None` if it is none of a server.
    pub fn suffer(&mut self, fault: Fault, judge: &mut Judge) -> Option<&'static str> {
        match fault {
            Fault::ServerStop(lasting) => {
                if self.stopped.is_none() {
                    self.redis.freeze();
                    self.stopped = Some((now(), Instant::now() + lasting));
                }
                Some("server stopped")
            }
            Fault::ServerRestart | Fault::ServerForget => {
                self.go_on(judge);
                let from = now();
                self.redis.kill();
                let forgets = fault == Fault::ServerForget;
                if forgets {
                    let _ = std::fs::remove_dir_all(self.redis.folder().join("appendonlydir"));
                }
                self.redis.restart();
                let cause = if forgets { Cause::ServerForgot } else { Cause::ServerRestarted };
                judge.disturbed(cause, from, now());
                Some(if forgets { "server restarted empty" } else { "server restarted" })
            }
            Fault::Cut => {
                let from = now();
                self.wire.cut();
                judge.disturbed(Cause::NetworkCut, from, now());
                Some("network cut")
            }
            Fault::Hush(lasting) => {
                if self.hushed.is_none() {
                    self.wire.hush(true);
                    self.hushed = Some((now(), Instant::now() + lasting));
                }
                Some("network hushed")
            }
            Fault::Kill { .. } | Fault::Stop { .. } => None,
        }
    }

    fn go_on(&mut self, judge: &mut Judge) {
        if let Some((from, _)) = self.stopped.take() {
            self.redis.thaw();
            judge.disturbed(Cause::ServerStopped, from, now());
        }
    }

    /// Lets go on what is due; all, if `all`. When the next is due.
    pub fn wake(&mut self, all: bool, judge: &mut Judge) -> Option<Instant> {
        let due = |of: &Option<(u64, Instant)>| of.is_some_and(|(_, until)| all || until <= Instant::now());
        if due(&self.stopped) {
            self.go_on(judge);
        }
        if due(&self.hushed)
            && let Some((from, _)) = self.hushed.take()
        {
            self.wire.hush(false);
            judge.disturbed(Cause::NetworkCut, from, now());
        }
        [self.stopped, self.hushed].into_iter().flatten().map(|(_, until)| until).min()
    }
}
