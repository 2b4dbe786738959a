//! What the library tells while it runs, for whoever looks for a fault: through the crate `log`, with target `ipcmutex`.
//!
//! Nothing is told on the free path, and no text ever has a secret. A Rust program sees it with its own logger. Other
//! languages and the command have none: there `IPCMUTEX_LOG` has it written to stderr, and C may set a callback.

use std::str::FromStr as _;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

pub use log::{Level, LevelFilter};
use log::{Log, Metadata, Record};

use crate::sync::Guarded;
use crate::sys::fork::{Done, ForkGate, PerProcess};
use crate::text::printable;

/// Told each text and its level.
pub type Sink = Arc<dyn Fn(Level, &str) + Send + Sync>;

/// In a forked child there is none: callbacks never run there.
static SINK: PerProcess<Guarded<Option<Sink>>> = PerProcess::new();
static LOGGER: Logger = Logger;

struct Logger;

/// Has it written to stderr if `IPCMUTEX_LOG` says so: `error`, `warn`, `info`, `debug` or `trace`; any other word is
/// `debug`, but `off`, `0` and none at all are nothing. Looks once. Language bindings call it when a mutex is opened. A Rust program
/// that calls it, and has no logger, has this one from then on.
pub fn from_environment() {
    static LOOKED: Done = Done::new();
    LOOKED.or(|| {
        let asked = std::env::var_os("IPCMUTEX_LOG");
        let Some(word) = asked.filter(|word| !word.is_empty() && word != "0") else { return };
        let level = word.to_str().and_then(|word| LevelFilter::from_str(word).ok()).unwrap_or(LevelFilter::Debug);
        if level != LevelFilter::Off {
            install(level);
        }
    });
}

/// Has it told to `sink`, in the place of stderr, up to `level`; `None` ends that. For language bindings.
pub fn to_sink(level: LevelFilter, sink: Option<Sink>) {
    let place = SINK.get_or_init(Guarded::default);
    let before = std::mem::replace(&mut *place.lock(), sink);
    // What it drops may be anything: not under the lock.
    drop(before);
    install(level);
}

fn install(level: LevelFilter) {
    // Who finds another thread at this spins until that one is through, which in a child it never is.
    let _gate = ForkGate::enter();
    // Refused if the program has a logger: then that one hears of us, as far as it likes.
    if log::set_logger(&LOGGER).is_ok() || std::ptr::addr_eq(log::logger(), &LOGGER) {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("ipcmutex")
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let sink = SINK.get().and_then(|sink| sink.lock().clone());
        match sink {
            Some(sink) => sink(record.level(), &record.args().to_string()),
            None => to_stderr(record),
        }
    }

    fn flush(&self) {}
}

/// One write for one line: lines of several processes stay whole, and no lock of `std`'s is taken, which a forked child might
/// find locked.
fn to_stderr(record: &Record<'_>) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let day = now.as_secs() % 86400;
    let mut line = format!(
        "ipcmutex[{}] {:02}:{:02}:{:02}.{:03}Z {}: ",
        std::process::id(),
        day / 3600,
        day / 60 % 60,
        day % 60,
        now.subsec_millis(),
        record.level().as_str().to_ascii_lowercase()
    );
    // What others wrote (labels, hosts) must not steer a terminal, nor begin a line.
    line.push_str(&printable(&record.args().to_string()));
    line.push('\n');
    // If stderr is full or closed, nobody can be told so.
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}
