//! The mutexes that a thread used last, each kept by one pin of the thread's own, so that using one again costs no
//! atomic operation: a look at its slot says whether the handle is still live.
//!
//! | event | what becomes of a kept pin |
//! |---|---|
//! | the thread closes the handle, or ends | dropped |
//! | the thread uses a handle that falls on the same place, or finds this one dead | dropped |
//! | another thread closes the handle | stays until one of the above: what it keeps is an object that is closed |
//!
//! Mutexes in Redis are not kept: one atomic operation is nothing beside a round trip, and a connection is not to outlive
//! its handle.

use std::cell::RefCell;

use ipcmutex_core::url::Target;
use ipcmutex_core::{Mutex, Result};

use crate::boundary::Call;
use crate::handle::{MUTEXES, Pin};

/// Enough for locks that are nested.
const PLACES: usize = 4;

type Places = [Option<(u64, Pin<Mutex>)>; PLACES];

thread_local! {
    static RECENT: RefCell<Places> = const { RefCell::new([const { None }; PLACES]) };
}

/// Runs `body` on the mutex behind `handle`.
///
/// # Errors
/// BAD_HANDLE, and what `body` answers.
#[inline]
pub(crate) fn with_mutex(call: Call, handle: u64, body: impl FnOnce(&Mutex) -> Result<()>) -> Result<()> {
    let mut body = Some(body);
    let outcome = RECENT.try_with(|recent| {
        // Borrowed already: this call was made from within another one of this thread, by a callback.
        let mut places = recent.try_borrow_mut().ok()?;
        let place = &mut places[handle as usize % PLACES];
        match place {
            Some((kept, pin)) if *kept == handle && MUTEXES.is_live(pin, handle) => {}
            _ => {
                *place = None;
                let pin = MUTEXES.pin(handle)?;
                if !matches!(pin.url().target(), Target::Spm { .. } | Target::Mpm(_)) {
                    return None;
                }
                *place = Some((handle, pin));
            }
        }
        let (_, pin) = place.as_ref()?;
        let outcome = body.take()?(pin);
        if outcome.is_err() && !MUTEXES.is_live(pin, handle) {
            *place = None; // Closed meanwhile, by another thread.
        }
        Some(outcome)
    });
    match (outcome, body) {
        (Ok(Some(outcome)), _) => outcome,
        (_, Some(body)) => body(&*call.pin(&MUTEXES, handle)?),
        (_, None) => Err(call.bad_handle(&MUTEXES, handle)),
    }
}

/// This thread keeps `handle` no longer.
pub(crate) fn forget(handle: u64) {
    // Busy or ended, it keeps it until its next call, or not at all.
    let _ = RECENT.try_with(|recent| {
        let kept = recent.try_borrow_mut().ok()?[handle as usize % PLACES].take_if(|(kept, _)| *kept == handle);
        kept.map(drop)
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipcmutex_core::ErrorKind;

    fn use_it(handle: u64) -> std::result::Result<(), ErrorKind> {
        let mut seen = Ok(());
        crate::boundary::call("test", |call| {
            seen = with_mutex(call, handle, |mutex| mutex.try_lock().and_then(|_| mutex.release()))
                .map_err(|error| error.kind());
            Ok(())
        });
        seen
    }

    fn insert(url: &str) -> u64 {
        MUTEXES.insert(Mutex::open(url).unwrap()).ok().unwrap()
    }

    #[test]
    fn a_handle_that_was_closed_elsewhere_is_dead_here_too() {
        let handle = insert("spm:recent");
        assert_eq!(use_it(handle), Ok(()));
        std::thread::spawn(move || drop(MUTEXES.remove(handle))).join().unwrap();
        assert_eq!(use_it(handle), Err(ErrorKind::BadHandle));
        assert_eq!(use_it(handle), Err(ErrorKind::BadHandle));
        // The slot is used again, and so is the place.
        let next = insert("spm:recent");
        assert_eq!((use_it(next), use_it(handle)), (Ok(()), Err(ErrorKind::BadHandle)));
        drop(MUTEXES.remove(next));
    }

    #[test]
    fn more_handles_than_places_and_calls_within_calls() {
        let handles: Vec<u64> = (0..3 * PLACES).map(|number| insert(&format!("spm:recent-{number}"))).collect();
        for handle in handles.iter().chain(handles.iter().rev()) {
            assert_eq!(use_it(*handle), Ok(()));
        }
        let mut nested = Ok(());
        crate::boundary::call("test", |call| {
            with_mutex(call, handles[0], |_| {
                nested = use_it(handles[0]).and_then(|()| use_it(handles[PLACES]));
                Ok(())
            })
        });
        assert_eq!(nested, Ok(()));
        for handle in handles {
            forget(handle);
            drop(MUTEXES.remove(handle));
            assert_eq!(use_it(handle), Err(ErrorKind::BadHandle));
        }
    }

    #[test]
    fn a_thread_that_ends_keeps_nothing() {
        let mutex = Mutex::open("spm:recent-thread").unwrap();
        let handle = MUTEXES.insert(mutex.clone()).ok().unwrap();
        std::thread::spawn(move || assert_eq!(use_it(handle), Ok(()))).join().unwrap();
        let pin = MUTEXES.remove(handle).unwrap();
        assert_eq!(pin.pins(), 1, "only this one is left");
    }
}
