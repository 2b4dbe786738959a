//! A control group of a test's own, for processes that it started: stopped as a paused container is, or short of processor time.
//!
//! Both versions of cgroups are looked for, where this machine has them mounted; nothing but the group itself is made or changed.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::agent::Agent;
use crate::place::until;

/// A group, which ends with the value.
pub struct Cgroup {
    path: PathBuf,
    version: u8,
}

/// Where the hierarchy is mounted that has `controller` (version 1), or all that are left (version 2).
fn mounted(version: u8, controller: &str) -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, place, kind, options, ..] = fields[..] else { return None };
        let found = match version {
            1 => kind == "cgroup" && options.split(',').any(|option| option == controller),
            _ => kind == "cgroup2",
        };
        found.then(|| PathBuf::from(place))
    })
}

impl Cgroup {
    /// A new group that has `file`; `None` if that cannot be had here.
    fn new(version: u8, controller: &str, file: &str) -> Option<Cgroup> {
        static LAST: AtomicU32 = AtomicU32::new(0);
        let name = format!("ipcmutex-test-{}-{}", std::process::id(), LAST.fetch_add(1, Ordering::Relaxed));
        let path = mounted(version, controller)?.join(name);
        fs::create_dir(&path).ok()?;
        let group = Cgroup { path, version };
        (group.path.join(file).exists() && group.takes_processes()).then_some(group)
    }

    /// Whether a process of ours can be moved into it: where a part of the tree is lent to us, not every one can.
    fn takes_processes(&self) -> bool {
        let Ok(mut process) = std::process::Command::new("sleep").arg("60").spawn() else { return false };
        let taken = self.write("cgroup.procs", &process.id().to_string()).is_ok();
        process.kill().and_then(|()| process.wait()).expect("it is ours");
        taken
    }

    /// A group that can be frozen, of this version of cgroups.
    pub fn freezer(version: u8) -> Option<Cgroup> {
        Cgroup::new(version, "freezer", if version == 1 { "freezer.state" } else { "cgroup.freeze" })
    }

    /// A group that has so many hundredths of one processor, in periods of 100 ms.
    pub fn share(percent: u32) -> Option<Cgroup> {
        let quota = percent * 1000;
        let set = |version, file: &str, value: &str| {
            let group = Cgroup::new(version, "cpu", file)?;
            fs::write(group.path.join(file), value).ok()?;
            Some(group)
        };
        set(2, "cpu.max", &format!("{quota} 100000")).or_else(|| {
            let group = set(1, "cpu.cfs_period_us", "100000")?;
            group.write("cpu.cfs_quota_us", &quota.to_string()).ok()?;
            Some(group)
        })
    }

    fn write(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.path.join(file), value)
    }

    fn says(&self, file: &str, word: &str) -> bool {
        fs::read_to_string(self.path.join(file)).is_ok_and(|text| text.lines().any(|line| line == word))
    }

    /// Moves an agent's process into the group.
    ///
    /// # Panics
    /// If that is refused.
    pub fn add(&self, agent: &Agent) {
        self.write("cgroup.procs", &agent.pid().to_string()).expect("the group takes it");
    }

    /// Freezes all in it, and returns when they stand still.
    ///
    /// # Panics
    /// If that is refused.
    pub fn freeze(&self) {
        if self.version == 1 {
            self.write("freezer.state", "FROZEN").expect("it can be frozen");
            until("it is frozen", || self.says("freezer.state", "FROZEN"));
        } else {
            self.write("cgroup.freeze", "1").expect("it can be frozen");
            until("it is frozen", || self.says("cgroup.events", "frozen 1"));
        }
    }

    /// The end of [`Cgroup::freeze`].
    ///
    /// # Panics
    /// If that is refused.
    pub fn thaw(&self) {
        let (file, value) = if self.version == 1 { ("freezer.state", "THAWED") } else { ("cgroup.freeze", "0") };
        self.write(file, value).expect("it can be thawed");
    }

    /// Whether nobody is in it.
    fn is_empty(path: &Path) -> bool {
        fs::read_to_string(path.join("cgroup.procs")).is_ok_and(|text| text.is_empty())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.says("freezer.state", "FROZEN") || self.says("cgroup.events", "frozen 1") {
            self.thaw();
        }
        // What a failed test has left in it is moved out: its agents end with their own values.
        if !Cgroup::is_empty(&self.path)
            && let (Some(parent), Ok(left)) = (self.path.parent(), fs::read_to_string(self.path.join("cgroup.procs")))
        {
            for pid in left.lines() {
                // It may have ended by itself.
                let _ = fs::write(parent.join("cgroup.procs"), pid);
            }
        }
        // A process that has ended leaves its group a moment later.
        let begun = std::time::Instant::now();
        while fs::remove_dir(&self.path).is_err() && begun.elapsed() < std::time::Duration::from_secs(5) {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}
