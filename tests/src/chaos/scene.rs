//! What the crew fights over: the lock of one engine, and what can be done to it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ipcmutex::{Mutex, State};

use super::judge::{Judge, Law};
use super::plan::Harm;
use super::server::Servers;

/// Which engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    /// `mpm:`.
    Mpm,
    /// `mpm:` with `fair=strict`.
    MpmStrict,
    /// `rpm+redis:`.
    Redis,
    /// `rpm+redlock:` over five servers.
    Redlock,
    /// `rpm+redis+sentinel:`, a master and two replicas.
    Sentinel,
    /// `rpm+redis+cluster:`, three masters.
    Cluster,
}

impl Engine {
    /// All.
    pub const ALL: [Engine; 6] =
        [Engine::Mpm, Engine::MpmStrict, Engine::Redis, Engine::Redlock, Engine::Sentinel, Engine::Cluster];

    /// Its name in `CHAOS_ENGINE`.
    pub const fn name(self) -> &'static str {
        match self {
            Engine::Mpm => "mpm",
            Engine::MpmStrict => "mpm-strict",
            Engine::Redis => "redis",
            Engine::Redlock => "redlock",
            Engine::Sentinel => "sentinel",
            Engine::Cluster => "cluster",
        }
    }

    /// How long its lease lasts, if it has one.
    const fn ttl(self) -> Option<Duration> {
        match self {
            Engine::Mpm | Engine::MpmStrict => None,
            Engine::Redis | Engine::Redlock | Engine::Cluster => Some(Duration::from_millis(500)),
            // About as long as a failover takes: some holds survive one.
            Engine::Sentinel => Some(Duration::from_millis(1500)),
        }
    }

    /// What it promises.
    pub const fn law(self) -> Law {
        match self.ttl() {
            None => Law::Lock,
            Some(ttl) => Law::Lease(ttl.as_nanos() as u64),
        }
    }

    /// What is done to its servers, and how often beside 100 faults of participants.
    pub const fn harms(self) -> &'static [(u32, Harm)] {
        match self {
            Engine::Mpm | Engine::MpmStrict => &[],
            Engine::Redis => &[(3, Harm::Stop), (1, Harm::Restart), (1, Harm::Forget), (3, Harm::Cut), (2, Harm::Hush)],
            Engine::Redlock => &[
                (14, Harm::Stop),
                (6, Harm::Restart),
                (10, Harm::Away),
                (10, Harm::Cut),
                (10, Harm::Hush),
                (4, Harm::Outage),
            ],
            Engine::Sentinel => &[
                (8, Harm::Stop),
                (3, Harm::Restart),
                (8, Harm::Away),
                (4, Harm::Cut),
                (5, Harm::Hush),
                (8, Harm::FailOver),
            ],
            Engine::Cluster => &[
                (20, Harm::Move),
                (4, Harm::Stop),
                (2, Harm::Restart),
                (2, Harm::Away),
                (6, Harm::Cut),
                (6, Harm::Hush),
            ],
        }
    }

    /// From where on a free lock that is waited for is a violation: no figure, but the mark of a wake-up that never came.
    pub const fn idle_limit(self) -> Duration {
        match self {
            Engine::Mpm | Engine::MpmStrict => Duration::from_secs(5),
            _ => Duration::from_secs(10),
        }
    }
}

/// A lock, and what it is made of.
pub enum Scene {
    /// In a file.
    File {
        /// Where.
        path: PathBuf,
        /// The lock's URL.
        url: String,
        /// How many processes can have had it open at a time.
        most_processes: usize,
    },
    /// In servers.
    Servers {
        /// Which.
        servers: Servers,
        /// The lock's URL.
        url: String,
    },
}

impl Scene {
    /// A lock of its own; what it needs is in `folder`.
    pub fn new(engine: Engine, folder: &Path) -> Scene {
        let path = folder.join("lock");
        let query = if engine == Engine::MpmStrict { "?fair=strict" } else { "" };
        match engine.ttl() {
            None => Scene::File { url: format!("mpm:{}{query}", path.display()), path, most_processes: 0 },
            Some(ttl) => {
                let servers = match engine {
                    Engine::Sentinel => Servers::watched(folder),
                    Engine::Cluster => Servers::sharded(folder),
                    Engine::Redlock => Servers::independent(5, folder),
                    _ => Servers::independent(1, folder),
                };
                Scene::Servers { url: servers.url(ttl), servers }
            }
        }
    }

    /// The lock's URL.
    pub fn url(&self) -> String {
        match self {
            Scene::File { url, .. } | Scene::Servers { url, .. } => url.clone(),
        }
    }

    /// Where the fence listens, if there is one.
    pub fn fence(&self) -> Option<PathBuf> {
        match self {
            Scene::File { .. } => None,
            Scene::Servers { servers, .. } => Some(servers.fence().path().to_owned()),
        }
    }

    /// What there is to be harmed.
    pub fn servers(&mut self) -> Option<&mut Servers> {
        match self {
            Scene::File { .. } => None,
            Scene::Servers { servers, .. } => Some(servers),
        }
    }

    /// Looks at it while the crew is at work.
    pub fn look(&mut self, processes: usize, judge: &mut Judge) {
        match self {
            // A participant may have forked, and a shell has a program beside it.
            Scene::File { most_processes, .. } => *most_processes = (*most_processes).max(4 * processes),
            Scene::Servers { servers, .. } => servers.fence().read().into_iter().for_each(|write| judge.wrote(write)),
        }
    }

    /// How often a slow look found what nobody had told, over all processes that there were.
    pub fn rechecks(&self) -> Option<u64> {
        match self {
            Scene::File { url, .. } => Some(Mutex::open(url).ok()?.status().ok()?.numbers.rechecks),
            Scene::Servers { .. } => None,
        }
    }

    /// All have ended: whether they left anything behind.
    pub fn inspect(&mut self, judge: &mut Judge) {
        self.look(0, judge);
        if let Scene::File { path, most_processes, .. } = self {
            let locks = byte_locks(path);
            if locks != 0 {
                judge.violation(format!("{locks} byte locks are left though nobody is"));
            }
            // 19 processes to a block: slots that are never used again would make it grow with the dead.
            let blocks = std::fs::metadata(path).map_or(0, |file| file.len() as usize / 4096);
            if blocks > *most_processes / 19 + 1 {
                judge.violation(format!("the lock file has {blocks} blocks for at most {most_processes} processes"));
            }
        }
        at_rest(&self.url(), judge);
    }
}

/// Nobody holds it or waits, and it can be had.
fn at_rest(url: &str, judge: &mut Judge) {
    let looked = || -> ipcmutex::Result<Option<String>> {
        let mutex = Mutex::open(url)?;
        let begun = Instant::now();
        let mut status = mutex.status()?;
        while (status.state == State::Held || status.waiters != 0) && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
            status = mutex.status()?;
        }
        if status.state == State::Held || status.waiters != 0 {
            return Ok(Some(format!("all have ended, and the lock is {}", status.describe())));
        }
        Ok(match mutex.acquire_timeout(Duration::from_secs(10))? {
            Some(hold) if hold.token() > status.token => None,
            Some(hold) => Some(format!("after token {} came {}", status.token, hold.token())),
            None => Some("all have ended, and the lock cannot be had".to_owned()),
        })
    };
    match looked() {
        Ok(None) => {}
        Ok(Some(wrong)) => judge.violation(wrong),
        Err(error) => judge.violation(format!("all have ended, and the lock answers {error}")),
    }
}

/// How many locks the kernel keeps on a file.
fn byte_locks(path: &Path) -> usize {
    use std::os::unix::fs::MetadataExt;
    let Ok(file) = std::fs::metadata(path) else { return 0 };
    let inode = format!(":{}", file.ino());
    let locks = std::fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().filter(|line| line.split_whitespace().any(|word| word.ends_with(&inode))).count()
}
