//! The types of the header.
#![allow(non_camel_case_types, reason = "the names of the C header")]

use std::ffi::{c_char, c_int, c_void};

/// An open mutex. Any number of threads may use it at the same time. 0 is never one.
pub type ipcmutex_t = u64;

/// One hold: one acquisition, and the proof of it. It belongs to whoever has the number, not to a
/// thread. 0 is never one.
pub type ipcmutex_hold_t = u64;

/// A pending acquisition that was started with ipcmutex_hold_async(). 0 is never one.
pub type ipcmutex_wait_t = u64;

/// Told the outcome of ipcmutex_hold_async(), exactly once, on a thread of the library.
///
/// - `code`: OK; TIMEOUT, CANCELED or CLOSED if the wait was ended; else what ipcmutex_acquire()
///   may return. ipcmutex_last_error() called in here tells it in full.
/// - `hold`: with OK the hold, to be released with ipcmutex_hold_release(), in here or later, on
///   any thread; else 0.
/// - `user`: as it was given.
///
/// It may call every function of the library. Callbacks run one after the other: one that blocks
/// keeps others waiting, and one that waits for a lock which another callback is to release waits
/// for ever. Where no thread can be started they run on the one that has something to tell, which may be
/// in a release or a cancel: a mutex of the program's that is held around such a call must not be
/// taken in here. It must not throw a C++ exception.
pub type ipcmutex_acquired_fn = Option<unsafe extern "C" fn(code: c_int, hold: ipcmutex_hold_t, user: *mut c_void)>;

/// Told that a hold is lost, exactly once, on a thread of the library. What is said of
/// ipcmutex_acquired_fn holds here too.
///
/// - `reason`: LOST, or another code that says why. ipcmutex_last_error() called in here tells it
///   in full.
/// - `user`: as it was given.
pub type ipcmutex_lost_fn = Option<unsafe extern "C" fn(reason: c_int, user: *mut c_void)>;

/// Told what the library does, see ipcmutex_set_log().
///
/// - `level`: 1 error, 2 warning, 3 information, 4 debug, 5 trace.
/// - `text`: UTF-8, one sentence, without a secret; valid during the call. It may name what other
///   processes wrote (labels, hosts): escape it before a terminal shows it.
/// - `user`: as it was given.
///
/// It runs on whatever thread has something to tell, at any time, and on several at once. It must not
/// call a function of this library, nor throw a C++ exception.
pub type ipcmutex_log_fn = Option<unsafe extern "C" fn(level: c_int, text: *const c_char, user: *mut c_void)>;

/// What ipcmutex_hold_info() tells.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ipcmutex_hold_info_t {
    /// To be set to sizeof(ipcmutex_hold_info_t) before the call.
    pub size: u32,
    /// 1 if the previous hold ended without a release (its process died, its lease ran out, or it was
    /// broken): what the lock protects may be half done. Else 0.
    pub abandoned: u32,
    /// The fencing token: never 0, and larger than that of every earlier hold of this name. Hand it to
    /// what the lock protects, and let that refuse a smaller one than it has seen.
    pub token: u64,
    /// For how many milliseconds the hold stands for certain without a renewal; -1 if it has no lease.
    pub valid_ms: i64,
}

/// What ipcmutex_status() tells.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct ipcmutex_status_t {
    /// To be set to sizeof(ipcmutex_status_t) before the call.
    pub size: u32,
    /// IPCMUTEX_FREE, IPCMUTEX_HELD or IPCMUTEX_ABANDONED.
    pub state: u32,
    /// The token of the hold, or of the last one if there is none; 0 if that is not known.
    pub token: u64,
    /// How many acquisitions wait. It may count one that has just died.
    pub waiters: u32,
    /// The process id of the owner as the owner sees it; 0 if that is not known. Of an abandoned lock:
    /// who held it. For display only: a process id says nothing across containers, and is used again.
    pub owner_pid: u32,
    /// For how many milliseconds it is held; -1 if it is not, or that is not known.
    pub held_ms: i64,
    /// The owner's host, "" if not known. Written by the owner: escape it before a terminal shows it.
    pub owner_host: [c_char; 64],
    /// The owner's label (`label=` of its URL, else its program's name), "" if not known. As
    /// owner_host.
    pub owner_label: [c_char; 64],
    /// How often it was acquired, with or without a wait: for `spm:` since it is open in this process,
    /// for `mpm:` since its file was made, by whichever process; for Redis through this handle. The
    /// same holds for the numbers that follow.
    pub acquisitions: u64,
    /// Acquisitions that had to wait: the sum of `waits`.
    pub contended: u64,
    /// Waits that ended without the lock: timed out, cancelled, closed.
    pub gave_up: u64,
    /// Holds that ended without a release: their process died, their lease ran out, they were broken.
    pub losses: u64,
    /// Slow looks that found what nobody had told: 0, or nearly, when all is well.
    pub rechecks: u64,
    /// Acquisitions that had to wait, by how long: shorter than 0.1 ms, 1 ms, 10 ms, 100 ms, 1 s, 10 s;
    /// the last counts the longer ones.
    pub waits: [u64; 7],
}
