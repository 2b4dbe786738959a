//! The code stays where it is: threads of the library may still run when a plugin that it is linked into is closed.

use std::ffi::c_void;
use std::mem::MaybeUninit;

use super::fork::Done;

/// From now on `dlclose` leaves the object in place that this was linked into. The shared libraries are linked so
/// (`-z nodelete`); of a plugin with the static one its own linker decides.
pub(crate) fn stay() {
    static STAYS: Done = Done::new();
    STAYS.or(|| {
        let mut place = MaybeUninit::<libc::Dl_info>::zeroed();
        // SAFETY: any address may be asked for; `place` is written if the answer is not 0, and its name then lives as long as the
        // object, which runs this. NOLOAD only finds what is loaded; a program itself need not be found.
        unsafe {
            if libc::dladdr(stay as *const c_void, place.as_mut_ptr()) != 0 {
                libc::dlopen(place.assume_init().dli_fname, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
            }
        }
    });
}
