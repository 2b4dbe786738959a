//! The resource that a lease cannot protect alone: it takes a write only with a token that is not older than the newest it has seen.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::occupancy::now;

/// One write.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Written {
    /// When it came.
    pub at: u64,
    /// With which token.
    pub token: u64,
    /// Whose.
    pub who: u64,
    /// Whether it was taken.
    pub taken: bool,
}

#[derive(Default)]
struct Resource {
    newest: u64,
    writes: Vec<Written>,
}

/// Takes writes on a unix socket: 16 bytes of token and who, answered by one.
pub struct Fence {
    path: PathBuf,
    resource: Arc<Mutex<Resource>>,
}

impl Fence {
    /// Listens at `path` until the process ends.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn listen(path: &Path) -> std::io::Result<Fence> {
        let listener = UnixListener::bind(path)?;
        let resource: Arc<Mutex<Resource>> = Arc::default();
        let shared = resource.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || serve(&shared, stream));
            }
        });
        Ok(Fence { path: path.to_owned(), resource })
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The writes since the last call, in order.
    pub fn read(&self) -> Vec<Written> {
        std::mem::take(&mut self.resource.lock().expect("no panic under it").writes)
    }
}

fn serve(resource: &Mutex<Resource>, mut stream: UnixStream) {
    let mut words = [0; 16];
    while stream.read_exact(&mut words).is_ok() {
        let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("eight bytes"));
        let (token, who) = (word(0), word(8));
        let mut resource = resource.lock().expect("no panic under it");
        let taken = token >= resource.newest;
        resource.newest = resource.newest.max(token);
        resource.writes.push(Written { at: now(), token, who, taken });
        drop(resource);
        if stream.write_all(&[u8::from(taken)]).is_err() {
            break;
        }
    }
}
