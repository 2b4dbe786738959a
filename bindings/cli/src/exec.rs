//! The last step before the command: `ipcmutex __exec <parent> COMMAND…`.
//!
//! The command must not run on if `ipcmutex run` is killed, for then the lock is free. The kernel can see to that
//! (PDEATHSIG), but only the process itself can ask for it, after its fork and before its exec. So `run` starts this program
//! once more, which asks, looks whether its parent is still there, and becomes the command. It survives an exec, though not that
//! of a set-user-ID program.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

const WORD: &str = "__exec";
const NOT_EXECUTABLE: i32 = 126;
const NOT_FOUND: i32 = 127;

/// The command line that ends in `command`. This thread must live as long as the command: the kernel watches the
/// thread that started it, not the process.
pub(crate) fn command(command: &[OsString]) -> Command {
    // The file that this process runs, also if it was replaced meanwhile.
    let mut again = Command::new("/proc/self/exe");
    again.arg0("ipcmutex").arg(WORD).arg(getpid().as_raw_pid().to_string()).args(command);
    again
}

/// Becomes the command, if that is what this process was started for. An exit code if that fails.
pub(crate) fn asked_for() -> Option<i32> {
    let mut args = std::env::args_os().skip(1);
    if args.next()? != WORD {
        return None;
    }
    let parent = args.next().and_then(|parent| parent.to_str()?.parse().ok()).and_then(Pid::from_raw);
    let (Some(parent), Some(program)) = (parent, args.next()) else {
        crate::say("__exec is for `ipcmutex run` alone");
        return Some(crate::USAGE);
    };
    if let Err(errno) = set_parent_process_death_signal(Some(Signal::KILL)) {
        crate::say(format_args!("PDEATHSIG: {errno}"));
        return Some(NOT_EXECUTABLE);
    }
    if getppid() != Some(parent) {
        // It died before the kernel was asked: the lock is free, and the command must not begin.
        return Some(128 + Signal::KILL.as_raw());
    }
    let error = Command::new(&program).args(args).exec();
    crate::say(format_args!("{}: {error}", program.to_string_lossy()));
    Some(if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { NOT_EXECUTABLE })
}
