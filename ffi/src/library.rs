//! Functions about the library itself, and about codes.

use std::ffi::{c_char, c_int};

use ipcmutex_core::ErrorKind;

use crate::boundary;

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
