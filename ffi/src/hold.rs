//! Functions on a hold, and on a wait that becomes one.

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;
use std::time::Duration;

use ipcmutex_core::{ErrorKind, Timeout, Waiting};

use crate::boundary::{User, call, failed};
use crate::handle::{HOLDS, MUTEXES, WAITS};
use crate::types::{
    ipcmutex_acquired_fn, ipcmutex_hold_info_t, ipcmutex_hold_t, ipcmutex_lost_fn, ipcmutex_t, ipcmutex_wait_t,
};

/// Acquires within `timeout_ms` milliseconds (negative or INT64_MAX for ever, 0 to try) and gives
/// the hold a number of its own.
///
/// - `hold`: where it is written. To be ended with ipcmutex_hold_release(). It is also the hold
///   that is current through the mutex, so ipcmutex_release() and ipcmutex_close() end it as well.
///
/// Returns as ipcmutex_acquire_timeout().
///
/// Blocks up to the limit.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_hold(mutex: ipcmutex_t, timeout_ms: i64, hold: *mut ipcmutex_hold_t) -> c_int {
    call("acquire", |call| {
        // SAFETY: the header demands a place for the handle, or NULL.
        let place = unsafe { call.place(hold, "hold")? };
        let mutex = call.pin(&MUTEXES, mutex)?;
        let timeout = Timeout::from_c_ms(timeout_ms);
        let hold = mutex.acquire_with(Waiting { timeout, ..Waiting::default() })?;
        place.write(call.insert(&HOLDS, hold)?);
        Ok(())
    })
}

/// Ends this hold, and no other, ever.
///
/// Whatever it returns but FORKED, the number is no handle any more.
///
/// Returns OK; LOST if the hold was gone before; NOT_OWNER if it was released already, through its
/// mutex; FORKED in a child of the process that holds: it stays the parent's; UNAVAILABLE if the
/// server does not answer, AUTH, PERMISSION, CONFIG or PROTOCOL if it refuses: then it ends with its
/// lease.
///
/// Does not wait for others; Redis: one round trip.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_hold_release(hold: ipcmutex_hold_t) -> c_int {
    call("release", |call| {
        let outcome = call.pin(&HOLDS, hold)?.end();
        if !outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Forked) {
            HOLDS.remove(hold);
        }
        outcome
    })
}

/// Whether the hold still stands.
///
/// Returns OK; LOST; NOT_OWNER if it was released through its mutex; FORKED in a child.
///
/// Does not block, and does no input or output: call it as often as you like, and before each step
/// that must not run unlocked.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_hold_check(hold: ipcmutex_hold_t) -> c_int {
    call("check", |call| call.pin(&HOLDS, hold)?.check())
}

/// Renews the lease of a Redis hold, which then lasts `ttl_ms` milliseconds from now. Needed only
/// with `renew=off`.
///
/// - `ttl_ms`: 100 ms to 24 hours.
///
/// Returns OK; INVALID for another `ttl_ms`; UNSUPPORTED if the hold has no lease (it lasts until
/// it is released or its process ends); LOST; NOT_OWNER if it was released through its mutex;
/// FORKED in a child; UNAVAILABLE if the server does not answer, AUTH, PERMISSION, CONFIG or PROTOCOL
/// if it refuses.
///
/// Blocks for one round trip.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_hold_extend(hold: ipcmutex_hold_t, ttl_ms: i64) -> c_int {
    call("extend", |call| {
        let ttl = u64::try_from(ttl_ms).map_err(|_| call.invalid(format!("a lease of {ttl_ms} ms is not possible")))?;
        call.pin(&HOLDS, hold)?.extend(Some(Duration::from_millis(ttl)))
    })
}

/// The token of the hold, whether the one before was abandoned, and how long it lasts. A lost hold
/// still tells.
///
/// - `info`: its `size` set by the caller. As much of it is filled as both sides know.
///
/// Returns OK; INVALID for an impossible `size`; NOT_OWNER if it was released through its mutex;
/// FORKED in a child.
///
/// Does not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_hold_info(hold: ipcmutex_hold_t, info: *mut ipcmutex_hold_info_t) -> c_int {
    call("info", |call| {
        // SAFETY: the header demands a struct with its `size` set, or NULL.
        let place = unsafe { call.place(info, "info")? };
        let size = place.size();
        let bytes = call.size(size, size_of::<ipcmutex_hold_info_t>())?;
        let hold = call.pin(&HOLDS, hold)?;
        match hold.check() {
            Err(error) if error.kind() != ErrorKind::Lost => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let info = ipcmutex_hold_info_t {
            size,
            abandoned: hold.abandoned().into(),
            token: hold.token(),
            valid_ms: hold.valid_for().map_or(-1, |left| i64::try_from(left.as_millis()).unwrap_or(i64::MAX)),
        };
        place.write_head(&info, bytes);
        Ok(())
    })
}

/// Calls `callback` once if the hold is lost; never if it is released. If it is lost already, that
/// is soon. Each callback that was given is called.
///
/// - `callback`: not NULL.
/// - `user`: handed to it; NULL is fine. It must live until the callback ran or the hold was
///   released. What ends the hold and returns LOST has not released it: the callback may still come.
///
/// Of an mpm hold it is told up to a second late: a thread of the library looks once a second, for as
/// long as the hold lasts.
///
/// Returns OK; NOT_OWNER if the hold was released through its mutex; FORKED in a child.
///
/// Does not block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_hold_on_lost(
    hold: ipcmutex_hold_t,
    callback: ipcmutex_lost_fn,
    user: *mut c_void,
) -> c_int {
    call("on_lost", |call| {
        let callback = call.given(callback, "callback")?;
        let user = User::new(user);
        call.pin(&HOLDS, hold)?.on_lost(move |error| {
            let reason = failed(&error);
            // SAFETY: the header demands a function of this type, and a `user` that lives until it ran.
            unsafe { callback(reason, user.get()) }
        })
    })
}

/// Acquires without blocking the caller: `callback` gets the hold, or the reason why there is none.
///
/// - `timeout_ms`: negative or INT64_MAX for ever, 0 to try.
/// - `callback`: not NULL. It may run before this call returns.
/// - `user`: handed to it; NULL is fine. It must live until the callback ran.
/// - `wait`: where the number to cancel with is written, perhaps after the callback ran; NULL if it
///   is not wanted. It ends with the callback, and needs no freeing.
///
/// Returns OK, and then the callback is called exactly once; any other code (as ipcmutex_acquire(),
/// but neither TIMEOUT nor CANCELED), and then never. In a forked child no callback of the parent's
/// waits is called.
///
/// Does not block: a waiter costs memory, not a thread, and a lock in Redis is asked for by a
/// thread of the library. In a forked child the first call opens the lock anew, as ipcmutex_open().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ipcmutex_hold_async(
    mutex: ipcmutex_t,
    timeout_ms: i64,
    callback: ipcmutex_acquired_fn,
    user: *mut c_void,
    wait: *mut ipcmutex_wait_t,
) -> c_int {
    call("acquire", |call| {
        let callback = call.given(callback, "callback")?;
        // SAFETY: the header demands a place for the handle, or NULL.
        let place = unsafe { call.place(wait, "wait") }.ok();
        let mutex = call.pin(&MUTEXES, mutex)?;
        let user = User::new(user);
        let handle = call.insert(&WAITS, OnceLock::new())?;
        let started = mutex.acquire_callback(Timeout::from_c_ms(timeout_ms), move |outcome| {
            WAITS.remove(handle);
            let (code, hold) = match outcome.and_then(|hold| call.insert(&HOLDS, hold)) {
                Ok(hold) => (0, hold),
                Err(error) => (failed(&error), 0),
            };
            // SAFETY: the header demands a function of this type, and a `user` that lives until it ran.
            unsafe { callback(code, hold, user.get()) }
        });
        match (started, WAITS.pin(handle)) {
            (Ok(started), Some(pending)) => drop(pending.set(started)),
            (Ok(_), None) => {} // The callback ran already.
            (Err(error), _) => {
                WAITS.remove(handle);
                return Err(error);
            }
        }
        if let Some(place) = place {
            place.write(handle);
        }
        Ok(())
    })
}

/// Ends a pending acquisition: its callback is told CANCELED. A wait that has ended never takes the
/// lock.
///
/// Returns OK; BAD_HANDLE if the wait has an outcome already, which its callback was told or soon
/// will be, and in a forked child.
///
/// Does not block, and does not wait for the callback.
#[unsafe(no_mangle)]
pub extern "C" fn ipcmutex_cancel(wait: ipcmutex_wait_t) -> c_int {
    call("cancel", |call| {
        let pending = call.pin(&WAITS, wait)?;
        match pending.get() {
            Some(started) if started.cancel() => Ok(()),
            _ => Err(call.bad_handle(&WAITS, wait)),
        }
    })
}
