//! What stands between C and Rust. Every exported function that can fail runs in [`call`], the only place where
//! a panic is caught, and takes from its [`Call`] what turns C's arguments into Rust's.

use std::any::Any;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use ipcmutex_core::url::MAX_URL_BYTES;
use ipcmutex_core::{Error, ErrorKind, Result};

use crate::handle::{Pin, Table};

/// One call from C: the name of what it does, for the texts of its failures.
#[derive(Clone, Copy)]
pub(crate) struct Call(&'static str);

/// Runs `body` and answers with the code of what became of it.
#[inline]
pub(crate) fn call(operation: &'static str, body: impl FnOnce(Call) -> Result<()>) -> c_int {
    // Whatever a panic leaves behind is behind core's own locks, which keep their state whole at every step.
    match catch_unwind(AssertUnwindSafe(|| body(Call(operation)))) {
        Ok(Ok(())) => 0,
        Ok(Err(error)) => failed(&error),
        Err(panic) => panicked(operation, &*panic),
    }
}

#[cold]
fn panicked(operation: &'static str, panic: &(dyn Any + Send)) -> c_int {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "no message",
    };
    failed(&Error::new(ErrorKind::Panic, operation, format!("a panic was caught: {text}")))
}

thread_local! {
    static LAST: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// Keeps the text of `error` for this thread; its code.
#[cold]
pub(crate) fn failed(error: &Error) -> c_int {
    let mut text = error.to_string().into_bytes();
    text.retain(|byte| *byte != 0);
    // In a thread that is ending the cell may be gone: then the code must do.
    let _ = LAST.try_with(|last| last.replace(CString::new(text).ok()));
    error.kind() as c_int
}

/// The text of this thread's last failure; it stays until this thread's next failure, and so at least until its next call.
pub(crate) fn last_error() -> *const c_char {
    LAST.try_with(|last| last.borrow().as_ref().map(|text| text.as_ptr())).ok().flatten().unwrap_or(c"".as_ptr())
}

impl Call {
    pub(crate) fn invalid(self, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Invalid, self.0, message)
    }

    /// The value behind a handle.
    ///
    /// # Errors
    /// BAD_HANDLE.
    #[inline]
    pub(crate) fn pin<T: Send + Sync>(self, table: &'static Table<T>, handle: u64) -> Result<Pin<T>> {
        table.pin(handle).ok_or_else(|| self.bad_handle(table, handle))
    }

    /// The value behind a handle, which this ends.
    ///
    /// # Errors
    /// BAD_HANDLE.
    pub(crate) fn remove<T: Send + Sync>(self, table: &'static Table<T>, handle: u64) -> Result<Pin<T>> {
        table.remove(handle).ok_or_else(|| self.bad_handle(table, handle))
    }

    /// A new handle for `value`.
    ///
    /// # Errors
    /// RESOURCE; then the value is dropped.
    pub(crate) fn insert<T: Send + Sync>(self, table: &'static Table<T>, value: T) -> Result<u64> {
        table.insert(value).map_err(|_| {
            Error::new(ErrorKind::Resource, self.0, format!("all {} handles are in use", table.name))
                .with_help("close or release what is no longer needed")
        })
    }

    #[cold]
    pub(crate) fn bad_handle<T>(self, table: &'static Table<T>, handle: u64) -> Error {
        let what = table.name;
        Error::new(ErrorKind::BadHandle, self.0, format!("{handle:#x} is not a live {what} handle"))
            .with_help("it has ended already, or never was one")
    }

    /// An argument that must not be NULL.
    ///
    /// # Errors
    /// INVALID.
    pub(crate) fn given<T>(self, argument: Option<T>, name: &str) -> Result<T> {
        argument.ok_or_else(|| self.invalid(format!("`{name}` is NULL")))
    }

    /// A place to write to.
    ///
    /// # Errors
    /// INVALID if it is NULL.
    ///
    /// # Safety
    /// What is not NULL must be writable for a `T` until the call ends.
    pub(crate) unsafe fn place<T>(self, place: *mut T, name: &str) -> Result<Place<T>> {
        Ok(Place(self.given((!place.is_null()).then_some(place), name)?))
    }

    /// The text behind a C string.
    ///
    /// # Errors
    /// INVALID if it is NULL, longer than any URL can be, or not UTF-8.
    ///
    /// # Safety
    /// What is not NULL must be readable up to a NUL or for `MAX_URL_BYTES + 1` bytes, and unchanged during the call.
    pub(crate) unsafe fn url<'a>(self, text: *const c_char, name: &str) -> Result<&'a str> {
        let text = self.given((!text.is_null()).then_some(text), name)?;
        let mut length = 0;
        // SAFETY: bytes are read one by one and only up to the NUL, and never more than the caller promised.
        while unsafe { *text.add(length) } != 0 {
            length += 1;
            if length > MAX_URL_BYTES {
                return Err(self.invalid(format!("the URL does not end within {MAX_URL_BYTES} bytes")));
            }
        }
        // SAFETY: `length` bytes and a NUL after them were just read, and the caller keeps them unchanged.
        let text = unsafe { CStr::from_bytes_with_nul_unchecked(std::slice::from_raw_parts(text.cast(), length + 1)) };
        text.to_str().map_err(|error| self.invalid(format!("the URL is not UTF-8: {error}")))
    }

    /// How many bytes of a struct of `ours` bytes are served to a caller whose struct says it has `size`.
    ///
    /// # Errors
    /// INVALID for what is not even the head of the struct, and for what can only be garbage.
    pub(crate) fn size(self, size: u32, ours: usize) -> Result<usize> {
        const HEAD: usize = 8;
        const GARBAGE: usize = 4096;
        match size as usize {
            size if (HEAD..=GARBAGE).contains(&size) => Ok(size.min(ours)),
            size => Err(self
                .invalid(format!("a struct of {size} bytes cannot be filled"))
                .with_help("set its `size` to sizeof before the call")),
        }
    }
}

/// A place of C's to write to, once the call has succeeded.
pub(crate) struct Place<T>(*mut T);

impl<T: Copy> Place<T> {
    #[inline]
    pub(crate) fn write(self, value: T) {
        // SAFETY: `Call::place` was promised that the pointer is writable. Unaligned, for members of packed structs.
        unsafe { self.0.write_unaligned(value) };
    }

    /// The `size` at the head of a struct.
    pub(crate) fn size(&self) -> u32 {
        // SAFETY: as in `write`; the caller sets `size` before the call.
        unsafe { self.0.cast::<u32>().read_unaligned() }
    }

    /// Writes the first `bytes` of `value`.
    pub(crate) fn write_head(self, value: &T, bytes: usize) {
        let bytes = bytes.min(size_of::<T>());
        // SAFETY: the caller's struct has at least `bytes` (its `size` says so), and so has `value`; `value` is a local
        // of the library, so they do not overlap.
        unsafe { std::ptr::copy_nonoverlapping(std::ptr::from_ref(value).cast::<u8>(), self.0.cast(), bytes) };
    }
}

/// What the caller wants to be given back; the library never looks at it.
pub(crate) struct User(*mut c_void);

// SAFETY: the header says that callbacks run on threads of the library, and those of the log on several at once; what `user`
// points to is theirs to share.
unsafe impl Send for User {}
// SAFETY: as above.
unsafe impl Sync for User {}

impl User {
    pub(crate) fn new(user: *mut c_void) -> User {
        User(user)
    }

    /// A method, so that closures capture the whole `User`.
    pub(crate) fn get(&self) -> *mut c_void {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> &'static str {
        // SAFETY: never NULL; the text lives until this thread's next failure, and the tests read it before that.
        unsafe { CStr::from_ptr(last_error()) }.to_str().unwrap()
    }

    /// FAULTS: C6
    #[test]
    fn a_panic_is_a_code_and_a_text() {
        assert_eq!(call("acquire", |_| panic!("number {}", 7)), ErrorKind::Panic as c_int);
        assert_eq!(last(), "acquire: a panic was caught: number 7");
        assert_eq!(call("acquire", |_| Ok(())), 0);
        assert_eq!(last(), "acquire: a panic was caught: number 7", "a success leaves the last failure's text");
    }

    #[test]
    fn a_text_is_its_threads_own_and_has_no_nul() {
        call("release", |call| Err(call.invalid("a\0b")));
        assert_eq!(last(), "release: ab");
        std::thread::spawn(|| assert_eq!(last(), "")).join().unwrap();
    }

    #[test]
    fn urls_are_read_up_to_a_limit() {
        // SAFETY: each text is NULL, ends with a NUL, or is longer than what may be read.
        let read = |text: *const c_char| unsafe { Call("open").url(text, "url") }.map_err(|error| error.kind());
        assert_eq!(read(c"spm:a".as_ptr()), Ok("spm:a"));
        assert_eq!(read(std::ptr::null()), Err(ErrorKind::Invalid));
        assert_eq!(read(c"spm:\xff".as_ptr()), Err(ErrorKind::Invalid));
        let endless = vec![b'a'; MAX_URL_BYTES + 1];
        assert_eq!(read(endless.as_ptr().cast()), Err(ErrorKind::Invalid));
        let mut longest = vec![b'a'; MAX_URL_BYTES];
        longest.push(0);
        assert_eq!(read(longest.as_ptr().cast()).map(str::len), Ok(MAX_URL_BYTES));
    }

    /// FAULTS: C8
    #[test]
    fn sizes() {
        let served = |size| Call("status").size(size, 24).map_err(|error| error.kind());
        assert_eq!([served(8), served(23), served(24), served(25)], [Ok(8), Ok(23), Ok(24), Ok(24)]);
        assert_eq!([served(0), served(7), served(u32::MAX)], [Err(ErrorKind::Invalid); 3]);
    }
}
