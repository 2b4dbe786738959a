//! The code stays where it is: threads of the library may still run when a plugin that it is linked into is closed.

use super::copies::own_object;
use super::fork::Done;

/// From now on `dlclose` leaves the object in place that this was linked into. The shared libraries are linked so
/// (`-z nodelete`); of a plugin with the static one its own linker decides. When it is loaded, since others may already count on it as soon
/// as they can find it; and not later, for the loader may be busy with a constructor that waits for who opens a mutex.
pub(crate) fn stay() {
    static STAYS: Done = Done::new();
    STAYS.or(|| {
        if let Some(name) = own_object() {
            // SAFETY: a live C string; NOLOAD only finds what is loaded, and this one has begun if this runs.
            unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE) };
        }
    });
}
