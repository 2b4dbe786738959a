//! Functions about the library itself, and about codes.

use std::ffi::{CString, c_char, c_int, c_void};
use std::sync::Arc;

use ipcmutex_core::ErrorKind;
use ipcmutex_core::logging::{self, Level, LevelFilter, Sink};

use crate::boundary::{self, User, call};
use crate::types::ipcmutex_log_fn;

/// Has what the library does told to `callback`, or written to stderr: waits and how they ended, dead
/// owners, lost holds, servers that are away. Nothing is told of an acquisition that need not wait.
///
/// Without this call the environment variable IPCMUTEX_LOG (`error`, `warn`, `info`, `debug`, `trace`;
/// any other word is `debug`, but `off`, `0` and none at all are nothing) has it written to stderr;
/// without both nothing is told. The last call counts, for the whole process;
/// a forked child writes to stderr.
///
/// - `level`: up to which it is told: 0 nothing, 1 error, 2 warning, 3 information, 4 debug, 5 trace.
/// - `callback`: NULL for stderr. It may still be running, or be called once more, when a later call
///   has set another.
/// - `user`: handed to it; NULL is fine. It must live as long as the process.
///
/// Returns OK; INVALID for another level.
///
/// Does not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_set_log(level: c_int, callback: ipcmutex_log_fn, user: *mut c_void) -> c_int {
    call("set_log", |call| {
        let filter = match level {
            0 => LevelFilter::Off,
            1 => LevelFilter::Error,
            2 => LevelFilter::Warn,
            3 => LevelFilter::Info,
            4 => LevelFilter::Debug,
            5 => LevelFilter::Trace,
            _ => return Err(call.invalid(format!("{level} is no level; they are 0 to 5"))),
        };
        let sink = callback.map(|callback| {
            let user = User::new(user);
            let sink = move |level: Level, text: &str| {
                let mut bytes = text.as_bytes().to_vec();
                bytes.retain(|byte| *byte != 0);
                let text = CString::new(bytes).unwrap_or_default();
                // SAFETY: the header demands a function that may be called on any thread, with `user` as it was given.
                unsafe { callback(level as c_int, text.as_ptr(), user.get()) };
            };
            Arc::new(sink) as Sink
        });
        logging::to_sink(filter, sink);
        Ok(())
    })
}

/// One sentence for a code. Static, never NULL, also for a number that is no code.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_strerror(code: c_int) -> *const c_char {
    match ErrorKind::from_code(code) {
        Some(kind) => kind.c_text().as_ptr(),
        None if code == 0 => c"success".as_ptr(),
        None => c"unknown code".as_ptr(),
    }
}

/// This thread's last failure in full: what was tried, on which URL (its secret shown as ***), what
/// was found, what can be done. "" if nothing has failed yet. Never NULL; valid until this thread's
/// next call of a function of this library, or its end. A success does not clear it.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_last_error() -> *const c_char {
    boundary::last_error()
}

/// The version of the library at run time, such as "0.1.0". Static. Compare with IPCMUTEX_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_version() -> *const c_char {
    const { concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast() }
}

/// The number of the binary interface at run time: that of the library's file name. Compare with
/// IPCMUTEX_ABI_VERSION.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_abi_version() -> u32 {
    0
}
