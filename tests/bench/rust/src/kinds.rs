//! Each lock as its own documentation uses it.

use std::error::Error;
use std::fs::File;
use std::time::Duration;

/// What failed, in the lock's own words.
pub type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// A lock that is open.
pub trait Lock {
    /// Waits as long as it takes.
    fn acquire(&mut self) -> Result<()>;
    /// Ends the hold.
    fn release(&mut self) -> Result<()>;
}

/// The lock of kind `name`.
pub fn open(name: &str, place: &str) -> Result<Box<dyn Lock>> {
    Ok(match name {
        "fd-lock" => {
            Box::new(FdLock { file: Box::into_raw(Box::new(fd_lock::RwLock::new(file(place)?))), guard: None })
        }
        "fslock" => Box::new(fslock::LockFile::open(place)?),
        "named-lock" => Box::new(NamedLock { lock: named_lock::NamedLock::with_path(place)?, guard: None }),
        "parking_lot" => Box::new(ParkingLot(parking_lot::Mutex::new(()))),
        "rslock" => Box::new(RsLock::open(place)?),
        _ => Box::new(Ours { mutex: ipcmutex::Mutex::open(place)?, hold: None }),
    })
}

fn file(place: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(place)
}

struct Ours {
    mutex: ipcmutex::Mutex,
    hold: Option<ipcmutex::Hold>,
}

impl Lock for Ours {
    fn acquire(&mut self) -> Result<()> {
        self.hold = Some(self.mutex.acquire()?);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.hold.take().ok_or("not held")?.release()?)
    }
}

struct FdLock {
    file: *mut fd_lock::RwLock<File>,
    guard: Option<fd_lock::RwLockWriteGuard<'static, File>>,
}

impl Lock for FdLock {
    fn acquire(&mut self) -> Result<()> {
        // SAFETY: the box lives until drop, and the guard, its only borrower, is dropped before that and before the next acquire.
        self.guard = Some(unsafe { &mut *self.file }.write()?);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        self.guard = None;
        Ok(())
    }
}

impl Drop for FdLock {
    fn drop(&mut self) {
        self.guard = None;
        // SAFETY: made by Box::into_raw in `open`, and its borrower is gone.
        drop(unsafe { Box::from_raw(self.file) });
    }
}

impl Lock for fslock::LockFile {
    fn acquire(&mut self) -> Result<()> {
        Ok(self.lock()?)
    }
    fn release(&mut self) -> Result<()> {
        Ok(self.unlock()?)
    }
}

struct NamedLock {
    lock: named_lock::NamedLock,
    guard: Option<named_lock::NamedLockGuard>,
}

impl Lock for NamedLock {
    fn acquire(&mut self) -> Result<()> {
        self.guard = Some(self.lock.lock()?);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        self.guard = None;
        Ok(())
    }
}

struct ParkingLot(parking_lot::Mutex<()>);

impl Lock for ParkingLot {
    fn acquire(&mut self) -> Result<()> {
        // The guard cannot outlive this call; what it does at its end is done by `release`.
        std::mem::forget(self.0.lock());
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        // SAFETY: `acquire` has locked it and forgotten the guard.
        unsafe { self.0.force_unlock() };
        Ok(())
    }
}

struct RsLock {
    runtime: tokio::runtime::Runtime,
    manager: rslock::LockManager,
    name: String,
    lease: Duration,
    lock: Option<rslock::Lock>,
}

impl RsLock {
    /// `<url of the server>#<key>#<lease in ms>`
    fn open(place: &str) -> Result<Self> {
        let mut parts = place.split('#');
        let mut next = || parts.next().ok_or("rslock needs url#key#lease");
        let (url, name, lease) = (next()?, next()?.to_owned(), next()?.parse()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let manager = rslock::LockManager::new(vec![url]);
        Ok(RsLock { runtime, manager, name, lease: Duration::from_millis(lease), lock: None })
    }
}

impl Lock for RsLock {
    fn acquire(&mut self) -> Result<()> {
        let taken = self.runtime.block_on(self.manager.acquire_no_guard(self.name.as_str(), self.lease));
        self.lock = Some(taken.map_err(|error| format!("{error:?}"))?);
        Ok(())
    }
    fn release(&mut self) -> Result<()> {
        let lock = self.lock.take().ok_or("not held")?;
        self.runtime.block_on(self.manager.unlock(&lock));
        Ok(())
    }
}
