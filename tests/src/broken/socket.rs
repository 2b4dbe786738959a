use std::io::ErrorKind;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Who listens on the socket owns. A socket that refuses belongs to a dead owner: it is removed and bound anew.
///
/// Of two that find the same dead owner, the second one removes the first one's socket.
pub struct NaiveTakeover {
    path: PathBuf,
    listener: Option<UnixListener>,
}

impl NaiveTakeover {
    /// One who wants the lock at `path`.
    pub fn new(path: &Path) -> NaiveTakeover {
        NaiveTakeover { path: path.to_owned(), listener: None }
    }

    /// First step: whether there is no owner, or a dead one.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn is_stale(&self) -> std::io::Result<bool> {
        match UnixStream::connect(&self.path) {
            Ok(_) => Ok(false),
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(true),
            Err(error) => Err(error),
        }
    }

    /// Second step, once it was found stale.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn take(&mut self) -> std::io::Result<()> {
        match std::fs::remove_file(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        self.listener = Some(UnixListener::bind(&self.path)?);
        Ok(())
    }

    /// Ends as a killed owner does: the socket stays.
    pub fn die(&mut self) {
        self.listener = None;
    }
}
