//! Signals: while we wait for the lock they end that, while the command runs they are its.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipcmutex::{Cancel, Error, ErrorKind, Result};
use rustix::process::{Pid, Signal, getpgid, getpgrp, getpid, getsid, kill_process};
use signal_hook::consts::{SIGCHLD, SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2};
use signal_hook::iterator::SignalsInfo;
use signal_hook::iterator::exfiltrator::origin::WithOrigin;
use signal_hook::low_level::siginfo::Cause;

const OURS: [i32; 6] = [SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2];

/// Where we are, as a signal finds us.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Stage {
    Waiting,
    /// A signal ended the wait.
    Ended(i32),
    /// The command runs. Until it is reaped its number is nobody else's.
    Running(Pid),
    Done,
}

/// What signals are watched with.
pub(crate) struct Watch {
    stage: Mutex<Stage>,
    changed: Condvar,
    /// Ends the wait for the lock.
    pub(crate) cancel: Cancel,
}

impl Watch {
    /// Watches from now on.
    ///
    /// # Errors
    /// RESOURCE or IO if the handlers or their thread cannot be set up.
    pub(crate) fn start() -> Result<Arc<Watch>> {
        let failed = |error: std::io::Error| {
            Error::new(ErrorKind::Resource, "watch signals", error.to_string()).with_source(error)
        };
        let ignored = ignored();
        // What we were told to ignore (nohup) stays ignored, for the command too, but for SIGPIPE, which Rust's runtime has made its
        // own before this, and the standard library gives back as default. SIGCHLD is here because a parent that ignored
        // it would leave us no exit code to wait for.
        let watched = OURS.into_iter().filter(|signal| ignored >> (signal - 1) & 1 == 0).chain([SIGCHLD]);
        let mut signals = SignalsInfo::<WithOrigin>::new(watched).map_err(failed)?;
        let watch =
            Arc::new(Watch { stage: Mutex::new(Stage::Waiting), changed: Condvar::new(), cancel: Cancel::new() });
        let here = watch.clone();
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || {
                for origin in &mut signals {
                    if origin.signal != SIGCHLD {
                        here.arrived(origin.signal, origin.cause);
                    }
                }
            })
            .map_err(failed)?;
        Ok(watch)
    }

    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn arrived(&self, signal: i32, cause: Cause) {
        let mut stage = self.stage();
        match *stage {
            Stage::Waiting => {
                *stage = Stage::Ended(signal);
                drop(stage);
                self.changed.notify_all();
                self.cancel.cancel();
            }
            Stage::Running(command) if !matches!(cause, Cause::Kernel) || is_not_told(command, signal) => {
                send(command, signal);
            }
            Stage::Running(_) | Stage::Ended(_) | Stage::Done => {}
        }
    }

    /// The signal that ended the wait.
    pub(crate) fn ended_by(&self) -> Option<i32> {
        match *self.stage() {
            Stage::Ended(signal) => Some(signal),
            _ => None,
        }
    }

    /// What `work` comes to, on a thread of its own; `None` if that was not within `limit`, or before a signal: then it is left
    /// to itself.
    ///
    /// # Errors
    /// RESOURCE if there is no thread for it.
    pub(crate) fn unless_ended<T: Send + 'static>(
        self: &Arc<Watch>,
        limit: Option<Duration>,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Option<T>> {
        let (done, watch) = (Arc::new(Mutex::new(None)), self.clone());
        let place = done.clone();
        let spawned = std::thread::Builder::new().name("open".to_owned()).spawn(move || {
            let came = catch_unwind(AssertUnwindSafe(work));
            *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(came);
            drop(watch.stage()); // who waits sees it, or is woken
            watch.changed.notify_all();
        });
        spawned.map_err(|error| Error::new(ErrorKind::Resource, "open", error.to_string()).with_source(error))?;
        let end = limit.and_then(|limit| Instant::now().checked_add(limit));
        let mut stage = self.stage();
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            match done.lock().unwrap_or_else(PoisonError::into_inner).take() {
                Some(Ok(came)) => return Ok(Some(came)),
                Some(Err(panic)) => resume_unwind(panic),
                None if *stage != Stage::Waiting || left.is_some_and(|left| left.is_zero()) => return Ok(None),
                None => {}
            }
            stage = match left {
                Some(left) => self.changed.wait_timeout(stage, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.changed.wait(stage).unwrap_or_else(PoisonError::into_inner),
            };
        }
    }

    /// Starts the command, unless a signal came before: then `None`.
    pub(crate) fn run<E>(&self, start: impl FnOnce() -> Result<Pid, E>) -> Result<Option<Pid>, E> {
        let mut stage = self.stage();
        if *stage != Stage::Waiting {
            return Ok(None);
        }
        let command = start()?;
        *stage = Stage::Running(command);
        Ok(Some(command))
    }

    /// From now on nobody is sent anything. To be called when the command has ended, before it is reaped.
    pub(crate) fn done(&self) {
        *self.stage() = Stage::Done;
        self.changed.notify_all();
    }

    /// TERM now, and KILL if the command has not ended after `patience`.
    pub(crate) fn stop(&self, patience: Duration) {
        let stage = self.stage();
        let Stage::Running(command) = *stage else { return };
        send(command, SIGTERM);
        let running = |stage: &mut Stage| *stage != Stage::Done;
        let waited = self.changed.wait_timeout_while(stage, patience, running);
        let (stage, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if *stage != Stage::Done {
            send(command, Signal::KILL.as_raw());
        }
    }
}

/// Whether the terminal's signal is for `command` too and has not reached it. It went to the whole foreground group: to a command
/// that is in it twice is once too often.
fn is_not_told(command: Pid, signal: i32) -> bool {
    match signal {
        // Of a terminal that is gone the kernel tells the leader of the session, and the others only when that has ended. Who has
        // left the session, by `setsid`, has done so in order not to be told.
        SIGHUP => getsid(None) == Ok(getpid()) && getsid(Some(command)) == Ok(getpid()),
        // It has left our group, as `timeout` does.
        SIGINT | SIGQUIT => getpgid(Some(command)).is_ok_and(|group| group != getpgrp()),
        _ => false,
    }
}

/// The caller holds the stage, which says that `command` runs or at least is not reaped: the number is its.
fn send(command: Pid, signal: i32) {
    let sent =
        Signal::from_named_raw(signal).ok_or(rustix::io::Errno::INVAL).and_then(|signal| kill_process(command, signal));
    if let Err(errno) = sent {
        crate::say(format_args!("signal {signal} could not be passed on: {errno}"));
    }
}

/// The set of signals that we were started with as ignored, bit 0 for signal 1; empty if the system does not tell.
fn ignored() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0)
}
