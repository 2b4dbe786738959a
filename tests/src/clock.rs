//! A clock that programs are started with and that a test moves while they run. See `../agents/clock.c`.

use std::ffi::OsString;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use crate::artifacts;

/// Which way a clock jumps.
#[derive(Clone, Copy, Debug)]
pub enum Jump {
    /// Into the future.
    Ahead(Duration),
    /// Into the past.
    Back(Duration),
}

/// The clock. At first it goes as that of the host does.
pub struct Clock(tempfile::NamedTempFile);

impl Clock {
    /// For the top of a test: a clock, or in one line why there is none.
    pub fn new(test: &str) -> Option<Clock> {
        if !cfg!(target_arch = "x86_64") {
            let _ =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("SKIPPED {test}: it needs an x86-64\n"));
            return None;
        }
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let clock = Clock(file);
        for at in [0, 8, 16] {
            clock.write(at, 0);
        }
        Some(clock)
    }

    /// What a program is started with that is to live by it.
    pub fn environment(&self) -> [(&'static str, OsString); 2] {
        let shim = artifacts::program("libclock.so");
        [("LD_PRELOAD", shim.into_os_string()), ("IPCMUTEX_TEST_CLOCK", self.0.path().as_os_str().to_owned())]
    }

    /// The time of day is set.
    pub fn set(&self, jump: Jump) {
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).expect("not that far");
        self.write(
            0,
            match jump {
                Jump::Ahead(by) => nanos(by),
                Jump::Back(by) => -nanos(by),
            },
        );
    }

    /// The host has slept for so long: what counts that goes on there, CLOCK_MONOTONIC does not.
    pub fn suspend(&self, lasting: Duration) {
        self.write(8, i64::try_from(lasting.as_nanos()).expect("not that far"));
    }

    /// The time of day stands, at so long after 1970.
    pub fn stand(&self, at: Duration) {
        self.write(16, i64::try_from(at.as_nanos()).expect("not that far"));
    }

    fn write(&self, at: u64, value: i64) {
        self.0.as_file().write_all_at(&value.to_le_bytes(), at).expect("the file is ours");
    }
}
