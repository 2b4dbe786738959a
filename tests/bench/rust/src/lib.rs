//! The locks of Rust programs, behind four functions that the C tasks of the benchmark call.

mod kinds;

use std::ffi::{CStr, c_char, c_void};

use kinds::Lock;

type Opened = Box<dyn Lock>;

/// Opens the lock of kind `name` at `place`. A failure is printed as the worker's answer, and ends it.
///
/// # Safety
/// Both are texts that end with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rust_open(name: *const c_char, place: *const c_char) -> *mut c_void {
    // SAFETY: the caller's promise.
    let (name, place) = unsafe { (CStr::from_ptr(name), CStr::from_ptr(place)) };
    let (name, place) = (name.to_str().expect("UTF-8"), place.to_str().expect("UTF-8"));
    Box::into_raw(Box::new(told(kinds::open(name, place)))).cast()
}

/// # Safety
/// `lock` is from `rust_open`, not closed, and used by one thread at a time.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rust_acquire(lock: *mut c_void) {
    // SAFETY: made by `rust_open`; the caller promises that nobody else uses it.
    told(unsafe { &mut *lock.cast::<Opened>() }.acquire());
}

/// # Safety
/// As `rust_acquire`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rust_release(lock: *mut c_void) {
    // SAFETY: as in `rust_acquire`.
    told(unsafe { &mut *lock.cast::<Opened>() }.release());
}

/// # Safety
/// As `rust_acquire`; it is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn rust_close(lock: *mut c_void) {
    // SAFETY: as in `rust_acquire`; the box is the caller's to give back.
    drop(unsafe { Box::from_raw(lock.cast::<Opened>()) });
}

/// The value, or the end of the worker with the words of the failure.
fn told<T>(result: kinds::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        println!("{{\"failed\": {:?}}}", error.to_string());
        std::process::exit(1)
    })
}
