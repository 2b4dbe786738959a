//! Functions on an open mutex.

use std::ffi::{c_char, c_int};

use ipcmutex_core::text::cut;
use ipcmutex_core::{Mutex, Result, State, Status, Timeout, Waiting};

use crate::boundary::{Call, call};
use crate::handle::MUTEXES;
use crate::recent::{self, with_mutex};
use crate::types::{ipcmutex_status_t, ipcmutex_t};

/// Opens the lock that `url` names. It is not acquired.
///
/// - `url`: UTF-8, ended by a NUL, at most 8192 bytes. It is copied.
/// - `mutex`: where the handle is written. To be ended with ipcmutex_close().
///
/// Returns OK; INVALID for a bad URL (the text says what is possible); for a lock file PERMISSION,
/// UNSAFE, NO_SPACE, RESOURCE, IO or PROTOCOL; for Redis UNAVAILABLE, AUTH, PERMISSION, CONFIG or
/// PROTOCOL, and for a file of `ca=`, `crt=` or `key=` also IO; UNSUPPORTED for an engine that is
/// not built in.
///
/// Blocks only to connect to a server (`connect_timeout=`).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_open(url: *const c_char, mutex: *mut ipcmutex_t) -> c_int {
    call("open", |call| {
        ipcmutex_core::logging::from_environment();
        // SAFETY: the header demands a NUL-terminated text and a place for the handle, or NULL.
        let (url, place) = unsafe { (call.url(url, "url")?, call.place(mutex, "mutex")?) };
        place.write(call.insert(&MUTEXES, Mutex::open(url)?)?);
        Ok(())
    })
}

/// Acquires, as long as it takes. The hold is the handle's: ipcmutex_release() ends it, from
/// whichever thread.
///
/// The lock is not recursive: who holds it through this handle or any other and acquires again
/// waits for the release.
///
/// Returns OK; CLOSED if the mutex was closed meanwhile; FORKED in a child that a signal's handler
/// forks meanwhile; UNAVAILABLE if the server has not served for 5 s, or for `connect_timeout=` if
/// that is longer (ipcmutex_acquire_timeout() waits for it in full); of what the operating system
/// or the server makes impossible, the other codes of ipcmutex_open().
///
/// Blocks; first come, first served (see `fair=`).
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_acquire(mutex: ipcmutex_t) -> c_int {
    call("acquire", |call| acquire(call, mutex, Timeout::FOREVER))
}

/// Acquires if that is possible at once.
///
/// Returns OK; TIMEOUT if it is held (the text says by whom); else as ipcmutex_acquire().
///
/// Does not wait for a holder.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_try_acquire(mutex: ipcmutex_t) -> c_int {
    call("acquire", |call| acquire(call, mutex, Timeout::TRY))
}

/// Acquires within `timeout_ms` milliseconds: negative or INT64_MAX for ever, 0 to try.
///
/// Returns OK; TIMEOUT if that was not possible in time (the text says who holds it); else as
/// ipcmutex_acquire().
///
/// Blocks up to the limit. Signals do not lengthen it.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_acquire_timeout(mutex: ipcmutex_t, timeout_ms: i64) -> c_int {
    call("acquire", |call| acquire(call, mutex, Timeout::from_c_ms(timeout_ms)))
}

#[inline]
fn acquire(call: Call, mutex: ipcmutex_t, timeout: Timeout) -> Result<()> {
    with_mutex(call, mutex, |mutex| mutex.lock_with(Waiting { timeout, ..Waiting::default() }))
}

/// Ends the hold that is current through this handle, however it was taken. Any thread may do so.
///
/// Returns OK; NOT_OWNER if nothing is held through this handle; LOST if the hold was gone before
/// (nobody else's hold is touched); FORKED in a child whose parent holds; UNAVAILABLE if the server
/// does not answer, AUTH, PERMISSION, CONFIG or PROTOCOL if it refuses: then it ends with its
/// lease.
///
/// Does not wait for others; Redis: one round trip.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_release(mutex: ipcmutex_t) -> c_int {
    call("release", |call| with_mutex(call, mutex, Mutex::release))
}

/// Ends the handle: releases a hold that was taken through it, and ends the waits on it with
/// CLOSED.
///
/// Whatever it returns but BAD_HANDLE, the number is no handle any more. Calls under way in other
/// threads end in their own time and are safe. Numbers of holds taken through it stay until
/// ipcmutex_hold_release().
///
/// Returns OK; LOST if the hold was gone before; UNAVAILABLE if the server does not answer, AUTH,
/// PERMISSION, CONFIG or PROTOCOL if it refuses: then the hold ends with its lease.
///
/// Does not wait for others; Redis: one round trip if it is held.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_close(mutex: ipcmutex_t) -> c_int {
    call("close", |call| {
        let removed = call.remove(&MUTEXES, mutex)?;
        recent::forget(mutex);
        removed.close()
    })
}

/// The fencing token of the hold that is current through this handle. See ipcmutex_hold_info_t.
///
/// - `token`: where it is written.
///
/// Returns OK; NOT_OWNER if nothing is held through this handle; FORKED in a child whose parent
/// holds.
///
/// Does not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_token(mutex: ipcmutex_t, token: *mut u64) -> c_int {
    call("token", |call| {
        // SAFETY: the header demands a place for the token, or NULL.
        let place = unsafe { call.place(token, "token")? };
        place.write(call.pin(&MUTEXES, mutex)?.token()?);
        Ok(())
    })
}

/// Who holds the lock, in whatever process or host, and how many wait. It may have changed before
/// the call returns.
///
/// - `status`: its `size` set by the caller. As much of it is filled as both sides know.
///
/// Returns OK; INVALID for an impossible `size`; else what ipcmutex_acquire() returns of errors.
///
/// Does not wait for others; Redis: one round trip.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_status(mutex: ipcmutex_t, status: *mut ipcmutex_status_t) -> c_int {
    call("status", |call| {
        // SAFETY: the header demands a struct with its `size` set, or NULL.
        let place = unsafe { call.place(status, "status")? };
        let size = place.size();
        let bytes = call.size(size, size_of::<ipcmutex_status_t>())?;
        place.write_head(&in_c(size, &call.pin(&MUTEXES, mutex)?.status()?), bytes);
        Ok(())
    })
}

fn in_c(size: u32, status: &Status) -> ipcmutex_status_t {
    let (host, pid, label) = match &status.owner {
        Some(owner) => (owner.host.as_str(), owner.pid, owner.label.as_str()),
        None => ("", 0, ""),
    };
    ipcmutex_status_t {
        size,
        state: match status.state {
            State::Free => 0,
            State::Held => 1,
            State::Abandoned => 2,
        },
        token: status.token,
        waiters: status.waiters,
        owner_pid: pid,
        held_ms: status.held.map_or(-1, |held| i64::try_from(held.as_millis()).unwrap_or(i64::MAX)),
        owner_host: name(host),
        owner_label: name(label),
        acquisitions: status.numbers.acquisitions,
        contended: status.numbers.contended(),
        gave_up: status.numbers.gave_up,
        losses: status.numbers.losses,
        rechecks: status.numbers.rechecks,
        waits: status.numbers.waits,
    }
}

/// Cut between characters, never inside one; always ended by a NUL.
fn name(text: &str) -> [c_char; 64] {
    let mut place = [0; 64];
    let text = cut(text, place.len() - 1);
    for (to, from) in place.iter_mut().zip(text.bytes().take_while(|byte| *byte != 0)) {
        *to = from as c_char;
    }
    place
}

/// Takes the lock away from whoever holds it, in whatever process or host. That hold is lost and
/// its token stale; the next one hears `abandoned`. For a person or a supervisor who knows that the
/// owner hangs: the owner goes on running until it notices.
///
/// Returns OK, also if nobody held it; else what ipcmutex_acquire() returns of errors.
///
/// Does not wait for others; Redis: one round trip.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_break(mutex: ipcmutex_t) -> c_int {
    call("break", |call| call.pin(&MUTEXES, mutex)?.break_lock().map(drop))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_and_stay_utf8() {
        let text = |name: [c_char; 64]| {
            let bytes: Vec<u8> = name.iter().take_while(|c| **c != 0).map(|c| *c as u8).collect();
            String::from_utf8(bytes).unwrap()
        };
        assert_eq!(text(name("db1")), "db1");
        assert_eq!(text(name(&"a".repeat(64))), "a".repeat(63));
        assert_eq!(text(name(&"ä".repeat(40))), "ä".repeat(31));
        assert_eq!(text(name("a\0b")), "a");
    }
}
