//! `run` and `wait`.

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use ipcmutex::url::LockUrl;
use ipcmutex::{Error, ErrorKind, Hold, Mutex, Result, Timeout, Waiting};
use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::args::{Limit, Run, Wait};
use crate::signals::Watch;
use crate::{exec, fail, lock, say};

pub(crate) fn run(args: Run) -> Result<i32> {
    let watch = Watch::start()?;
    // What runs under the lock is the command: that is who others see.
    let program = args.command.first().map(Path::new).and_then(Path::file_name).unwrap_or_default();
    let url = lock::parse(&args.lock, args.ttl)?.or_label(program.to_string_lossy());
    let acquire = |timeout| {
        let (mutex, timeout) = open(url, timeout, &watch)?;
        let hold = mutex.acquire_with(Waiting { timeout, cancel: Some(&watch.cancel), ..Waiting::default() })?;
        Ok((mutex, hold))
    };
    let (mutex, hold) = match acquire(args.limit.timeout()) {
        Ok(taken) => taken,
        Err(error) => return in_vain(error, &args.limit, &watch),
    };
    let mut command = exec::command(&args.command);
    command.env("IPCMUTEX_LOCK", &**mutex.url().redacted()).env("IPCMUTEX_TOKEN", hold.token().to_string());
    command.env("IPCMUTEX_ABANDONED", if hold.abandoned() { "1" } else { "0" });
    let mut child = None;
    let started = watch.run(|| {
        let spawned = command.spawn().map_err(|error| {
            Error::new(ErrorKind::Resource, "run", format!("no process can be started: {error}")).with_source(error)
        })?;
        let pid = Pid::from_child(&spawned);
        child = Some(spawned);
        Ok::<Pid, Error>(pid)
    })?;
    match (child, started) {
        (Some(child), Some(pid)) => supervise(child, pid, hold, &watch, &args),
        _ => {
            hold.release()?;
            Ok(watch.ended_by().map_or(1, |signal| 128 + signal))
        }
    }
}

fn supervise(mut child: Child, pid: Pid, hold: Hold, watch: &Arc<Watch>, args: &Run) -> Result<i32> {
    let lost = Arc::new(AtomicBool::new(false));
    let listening = {
        let (lost, watch, kill_after) = (lost.clone(), watch.clone(), args.kill_after);
        hold.on_lost(move |error| {
            lost.store(true, Ordering::SeqCst);
            say(format_args!("{error}; the command is being stopped"));
            watch.stop(kill_after);
        })
    };
    // A hold that is not there any more stays to be told by its release; the command is to end in any case.
    if let Err(error) = listening {
        say(format_args!("{error}; the command is being stopped"));
        lost.store(true, Ordering::SeqCst);
        watch.stop(args.kill_after);
    }
    let status = wait_for(&mut child, pid, watch)?;
    let released = hold.release();
    if lost.load(Ordering::SeqCst) {
        return Ok(ErrorKind::Lost.exit_code());
    }
    match released {
        Err(error) if error.kind() == ErrorKind::Lost => return Err(error),
        // It ran under the lock from begin to end; the lock ends with its lease.
        Err(error) => drop(fail(&error)),
        Ok(()) => {}
    }
    Ok(status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)))
}

/// Waits for the command to end, tells the watch, and only then reaps it: up to then its number is its own.
fn wait_for(child: &mut Child, pid: Pid, watch: &Watch) -> Result<ExitStatus> {
    let failed = |error: std::io::Error| Error::new(ErrorKind::Io, "run", error.to_string()).with_source(error);
    loop {
        match waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT) {
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(failed(errno.into())),
        }
    }
    watch.done();
    child.wait().map_err(failed)
}

/// Opens the lock, and says what is left of the time to wait: to open one of a server's may take as long. A try waits for that.
fn open(url: LockUrl, timeout: Timeout, watch: &Arc<Watch>) -> Result<(Mutex, Timeout)> {
    if !url.is_remote() {
        return Ok((Mutex::open_url(url)?, timeout));
    }
    let (begun, shown) = (Instant::now(), url.redacted().clone());
    let limit = timeout.limit().filter(|limit| !limit.is_zero());
    let ended = |kind, text: String| Err(Error::new(kind, "acquire", text).with_url(shown));
    match (watch.unless_ended(limit, || Mutex::open_url(url))?, limit) {
        (Some(opened), None) => Ok((opened?, timeout)),
        (Some(opened), Some(limit)) => Ok((opened?, limit.saturating_sub(begun.elapsed()).into())),
        (None, Some(limit)) if watch.ended_by().is_none() => {
            ended(ErrorKind::Timeout, format!("not acquired within {:.3} s: it is not opened yet", limit.as_secs_f64()))
        }
        (None, _) => ended(ErrorKind::Canceled, "the wait was cancelled".to_owned()),
    }
}

pub(crate) fn wait(args: Wait) -> Result<i32> {
    let watch = Watch::start()?;
    let url = lock::parse(&args.lock, None)?;
    if !ipcmutex::list::is_made(&url)? {
        return Ok(0);
    }
    let wait = |timeout| {
        let (mutex, timeout) = open(url, timeout, &watch)?;
        mutex.wait_until_free(Waiting { timeout, cancel: Some(&watch.cancel), ..Waiting::default() })
    };
    match wait(args.limit.timeout()) {
        Ok(()) => Ok(0),
        Err(error) => in_vain(error, &args.limit, &watch),
    }
}

/// The exit code of a wait that ended without the lock.
fn in_vain(error: Error, limit: &Limit, watch: &Watch) -> Result<i32> {
    match (error.kind(), watch.ended_by()) {
        (ErrorKind::Canceled, Some(signal)) => Ok(128 + signal),
        (ErrorKind::Timeout, _) => {
            say(error);
            Ok(limit.conflict_exit_code.into())
        }
        _ => Err(error),
    }
}
