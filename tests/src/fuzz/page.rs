//! Lock files with contents that nobody of ours wrote.

use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use ipcmutex::{ErrorKind, Mutex};

/// Where one process tries them, a file each time.
fn folder() -> &'static PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::Builder::new().prefix("ipcmutex-fuzz-").tempdir().expect("a folder").keep())
}

/// What may be answered for a file like that. Anything else would send its reader the wrong way.
const FIT: [ErrorKind; 6] = [
    ErrorKind::Timeout,
    ErrorKind::Protocol,
    ErrorKind::Unsafe,
    ErrorKind::Resource,
    ErrorKind::Lost,
    ErrorKind::NotOwner,
];

/// Uses the bytes as a lock file: first only looks, then takes it within a moment, is looked at, and lets it go.
///
/// # Panics
/// If a call answers what does not fit, or a hold is not one.
pub fn run(data: &[u8]) {
    let path = folder().join("page");
    // A new file: nothing that the last one left mapped is looked at.
    let _ = std::fs::remove_file(&path);
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(options.write(true).create_new(true), 0o600);
    options.open(&path).and_then(|mut file| file.write_all(data)).expect("a file");
    // After the 1 ms in which newcomers may pass, and no longer than a fuzzer has.
    let url = format!("mpm:{}", path.display());
    if let Err(error) = use_it(&url) {
        assert!(FIT.contains(&error.kind()), "{error}");
    }
}

fn use_it(url: &str) -> ipcmutex::Result<()> {
    let mutex = Mutex::open(url)?;
    let status = mutex.status()?;
    if let Some(owner) = status.owner {
        let harmless = |text: &str| text.len() <= 256 && !text.contains(char::is_control);
        assert!(harmless(&owner.host) && harmless(&owner.label), "{owner:?}");
    }
    match mutex.acquire_timeout(Duration::from_millis(5))? {
        Some(hold) => {
            assert!(hold.token() > 0);
            assert!(mutex.try_acquire()?.is_none(), "held twice");
            hold.check()?;
            hold.release()?;
        }
        None => drop(mutex.break_lock()?),
    }
    mutex.close()
}
