//! One cell of the matrix: a scenario in one engine, in one language or between two.

use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::agent::{Agent, Language, Reply, talkative};
use crate::servers::Redis;

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Engine {
    /// Threads of one process.
    Spm,
    /// Processes of one host.
    Mpm,
    /// Hosts, through a Redis of the tests' own.
    Redis,
}

impl Engine {
    /// Every engine.
    pub const ALL: [Engine; 3] = [Engine::Spm, Engine::Mpm, Engine::Redis];
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Spm => "spm",
            Engine::Mpm => "mpm",
            Engine::Redis => "redis",
        })
    }
}

/// What all cells share: a folder and a Redis, gone when the tests are.
pub struct Ground {
    folder: tempfile::TempDir,
    redis: OnceLock<Redis>,
}

impl Ground {
    /// An empty folder; a server starts when a cell first asks for it.
    ///
    /// # Errors
    /// What the file system says.
    pub fn new() -> std::io::Result<Ground> {
        let folder = tempfile::Builder::new().prefix("ipcmutex-tests-").tempdir()?;
        // What a lock's folder must be, whatever the umask.
        std::fs::create_dir(folder.path().join("locks"))?;
        std::fs::set_permissions(folder.path().join("locks"), std::fs::Permissions::from_mode(0o700))?;
        Ok(Ground { folder, redis: OnceLock::new() })
    }

    /// The server, which asks for a password.
    pub fn redis(&self) -> &Redis {
        self.redis.get_or_init(Redis::start)
    }

    /// A folder that all cells share.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// Where a scenario runs.
pub struct Cell<'a> {
    /// The engine.
    pub engine: Engine,
    /// The language; of a pair, the holder's.
    pub language: Language,
    /// Of a pair, the waiter's; else the same.
    pub other: Language,
    /// What it shares with the others.
    pub ground: &'a Ground,
    number: u32,
}

impl<'a> Cell<'a> {
    /// A cell with a name space of its own.
    pub fn new(ground: &'a Ground, engine: Engine, language: Language, other: Language) -> Cell<'a> {
        static CELLS: AtomicU32 = AtomicU32::new(1);
        Cell { engine, language, other, ground, number: CELLS.fetch_add(1, Ordering::Relaxed) }
    }

    /// A URL of this cell's own; the same for the same `name` and `query`.
    pub fn url(&self, name: &str, query: &str) -> String {
        let id = self.id(name);
        let url = match self.engine {
            Engine::Spm => format!("spm:{id}"),
            Engine::Mpm => format!("mpm:{id}"),
            Engine::Redis => self.ground.redis().url(&id),
        };
        match query {
            "" => url,
            query => format!("{url}{}{query}", if url.contains('?') { '&' } else { '?' }),
        }
    }

    /// A name of this cell's own.
    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.number)
    }

    /// A program of `language`.
    pub fn agent_of(&self, language: Language) -> Agent {
        let locks = self.locks();
        let place = ("IPCMUTEX_DIR", locks.as_os_str());
        match self.engine {
            Engine::Redis => Agent::start_with(language, &[place, talkative()]),
            _ => Agent::start_with(language, &[place]),
        }
    }

    /// A program of this cell's language.
    pub fn agent(&self) -> Agent {
        self.agent_of(self.language)
    }

    /// A program of this cell's language that has opened `url` as lock 1.
    #[track_caller]
    pub fn opened(&self, url: &str) -> Agent {
        let agent = self.agent();
        agent.open(1, url).ok();
        agent
    }

    /// Where `mpm:<id>` keeps its files.
    pub fn locks(&self) -> PathBuf {
        self.ground.folder().join("locks")
    }

    /// A new folder for this cell's own files.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.ground.folder().join(self.id(name));
        std::fs::create_dir_all(&folder).expect("the tests' folder is writable");
        folder
    }

    /// The process that holds: the agent's own, or that of its `ipcmutex run`.
    #[track_caller]
    pub fn owner_pid(&self, agent: &Agent, hold: &Reply) -> u64 {
        if agent.language == Language::Shell { hold.number("pid") } else { u64::from(agent.pid()) }
    }
}
