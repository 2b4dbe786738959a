//! The C interface, called in an order that bytes say.
#![no_main]

// The calls, and what they are linked to.
extern crate ipcmutex_fuzz as _;
extern crate ipcmutex_fuzz_ffi as _;

unsafe extern "C" {
    /// Of ffi/tests/c/calls.c.
    fn run_calls(bytes: *const u8, size: usize);
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // SAFETY: it reads `size` bytes, and keeps none of them.
    unsafe { run_calls(data.as_ptr(), data.len()) }
});
