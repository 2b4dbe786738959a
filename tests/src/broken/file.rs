use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// flock(2) on a file that is removed when it is released, to leave nothing behind.
///
/// Who had opened the file before it was removed locks what nobody else can find any more.
pub struct UnlinkOnRelease {
    path: PathBuf,
    file: Option<File>,
}

impl UnlinkOnRelease {
    /// First step: the file is opened.
    ///
    /// # Errors
    /// What the file system says.
    pub fn open(path: &Path) -> std::io::Result<UnlinkOnRelease> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
        Ok(UnlinkOnRelease { path: path.to_owned(), file: Some(file) })
    }

    /// Second step: whether the lock was free.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn try_lock(&self) -> std::io::Result<bool> {
        let Some(file) = &self.file else { return Ok(false) };
        match flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Releases, and removes the file.
    ///
    /// # Errors
    /// What the file system says.
    pub fn release(&mut self) -> std::io::Result<()> {
        std::fs::remove_file(&self.path)?;
        self.file = None;
        Ok(())
    }
}
