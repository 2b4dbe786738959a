//! What can go wrong: one small table of kinds, and one `Error` that says what was tried, on which
//! lock, what was found and what to do.

use std::fmt;
use std::sync::Arc;

/// `Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $c:literal, $python:literal, exit $exit:literal, $text:literal;)*) => {
        /// The kind of a failure: what a program decides on.
        ///
        /// This table is the only one. The C codes, the Python classes, Node's `err.code` and the
        /// command's exit codes are read from it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(i32)]
        pub enum ErrorKind { $($(#[$doc])* $name = $code,)* }

        impl ErrorKind {
            /// Every kind, in the order of their codes.
            pub const ALL: &'static [ErrorKind] = &[$(ErrorKind::$name,)*];

            /// The kind with this C code; `None` for 0 (OK) and for numbers that are no code.
            pub const fn from_code(code: i32) -> Option<ErrorKind> {
                match code { $($code => Some(ErrorKind::$name),)* _ => None }
            }

            /// The name behind `IPCMUTEX_` in C and behind `ERR_IPCMUTEX_` in Node.
            pub const fn name(self) -> &'static str {
                match self { $(ErrorKind::$name => $c,)* }
            }

            /// Node's `err.code`.
            pub const fn node_code(self) -> &'static str {
                match self { $(ErrorKind::$name => concat!("ERR_IPCMUTEX_", $c),)* }
            }

            /// The Python exception class.
            pub const fn python_class(self) -> &'static str {
                match self { $(ErrorKind::$name => $python,)* }
            }

            /// The exit code of the `ipcmutex` command.
            pub const fn exit_code(self) -> i32 {
                match self { $(ErrorKind::$name => $exit,)* }
            }

            /// One sentence, the same in every language (`ipcmutex_strerror`).
            pub const fn text(self) -> &'static str {
                match self { $(ErrorKind::$name => $text,)* }
            }

            /// [`ErrorKind::text`] with a closing NUL, for C.
            pub const fn c_text(self) -> &'static std::ffi::CStr {
                match self { $(ErrorKind::$name => {
                    match std::ffi::CStr::from_bytes_with_nul(concat!($text, "\0").as_bytes()) {
                        Ok(text) => text,
                        Err(_) => c"",
                    }
                })* }
            }
        }
    };
}

kinds! {
    /// Not acquired in time; for a try: somebody holds it.
    Timeout = 1, "TIMEOUT", "AcquireTimeout", exit 1, "not acquired in time";
    /// The wait was cancelled.
    Canceled = 2, "CANCELED", "Canceled", exit 1, "the wait was cancelled";
    /// The hold was gone before its release.
    Lost = 3, "LOST", "LockLost", exit 75, "the hold was lost before its release";
    /// Release or extend without a hold.
    NotOwner = 4, "NOT_OWNER", "NotOwner", exit 70, "there is no hold to release or extend";
    /// The mutex was closed, also while waiting.
    Closed = 5, "CLOSED", "Closed", exit 70, "the mutex is closed";
    /// The hold belongs to the parent process.
    Forked = 6, "FORKED", "Forked", exit 70, "the hold belongs to the parent process";
    /// Not a live handle.
    BadHandle = 7, "BAD_HANDLE", "InternalError", exit 70, "not a live handle";
    /// A NULL, bad UTF-8, a bad URL or a bad number.
    Invalid = 8, "INVALID", "InvalidArgument", exit 64, "invalid argument";
    /// The operating system or a Redis ACL refused.
    Permission = 9, "PERMISSION", "PermissionDenied", exit 66, "permission denied";
    /// A path that must not be trusted.
    Unsafe = 10, "UNSAFE", "UnsafePath", exit 66, "the path cannot be trusted with a lock";
    /// Disk, inodes or quota full.
    NoSpace = 11, "NO_SPACE", "NoSpace", exit 66, "no space left for the lock file";
    /// Descriptors, memory, slots or threads are used up.
    Resource = 12, "RESOURCE", "ResourceExhausted", exit 66, "out of descriptors, memory, slots or threads";
    /// Any other error of the operating system.
    Io = 13, "IO", "IoError", exit 66, "an operating system error";
    /// The server cannot be reached or cannot serve.
    Unavailable = 14, "UNAVAILABLE", "Unavailable", exit 69, "the server is not available";
    /// A password, user or certificate was refused.
    Auth = 15, "AUTH", "AuthError", exit 66, "authentication failed";
    /// The server or the key is not fit to carry a lock.
    Config = 16, "CONFIG", "ConfigError", exit 66, "the server or the key is not fit for a lock";
    /// Another version of the format, or a peer that speaks something else.
    Protocol = 17, "PROTOCOL", "ProtocolError", exit 66, "another version or another protocol";
    /// Not built in, or this engine cannot do it.
    Unsupported = 18, "UNSUPPORTED", "Unsupported", exit 66, "not supported here";
    /// A bug of ours, contained.
    Panic = 19, "PANIC", "InternalError", exit 70, "internal error";
}

/// A failure: its [`kind`](Error::kind) to decide on, and a text for people.
///
/// ```
/// let error = ipcmutex::Mutex::open("mpm:/no/such/folder/lock").unwrap_err();
/// assert_eq!(error.kind(), ipcmutex::ErrorKind::Io);
/// assert!(error.to_string().starts_with("open mpm:/no/such/folder/lock: "));
/// ```
///
/// The text reads *what was tried*, *on which URL* (the secret shown as `***`), *what was found*, and
/// where there is something to do, *what to do*.
#[derive(Clone)]
pub struct Error(Box<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    url: Option<Arc<str>>,
    message: String,
    help: Option<String>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// A failure of `operation` ("open", "acquire", …); `message` says what was found.
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Error {
        Error(Box::new(Inner { kind, operation, url: None, message: message.into(), help: None, source: None }))
    }

    /// The same failure, on this lock. The URL must already hide its secret. The first one told stays.
    #[must_use]
    pub fn with_url(mut self, redacted: impl Into<Arc<str>>) -> Error {
        self.0.url.get_or_insert_with(|| redacted.into());
        self
    }

    /// What the reader can do about it.
    #[must_use]
    pub fn with_help(mut self, help: impl Into<String>) -> Error {
        self.0.help = Some(help.into());
        self
    }

    /// The cause underneath.
    #[must_use]
    pub fn with_source(mut self, source: impl std::error::Error + Send + Sync + 'static) -> Error {
        self.0.source = Some(Arc::new(source));
        self
    }

    /// The same failure, for who was kept by it from something else.
    #[cfg(feature = "redis")]
    pub(crate) fn with_operation(mut self, operation: &'static str) -> Error {
        self.0.operation = operation;
        self
    }

    /// An error of the operating system: the kind follows from errno, the text names both.
    pub(crate) fn from_errno(operation: &'static str, what: impl fmt::Display, errno: rustix::io::Errno) -> Error {
        use rustix::io::Errno;
        let kind = match errno {
            Errno::ACCESS | Errno::PERM => ErrorKind::Permission,
            Errno::NOSPC | Errno::DQUOT => ErrorKind::NoSpace,
            Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOLCK | Errno::AGAIN => ErrorKind::Resource,
            Errno::LOOP => ErrorKind::Unsafe,
            _ => ErrorKind::Io,
        };
        let cause = std::io::Error::from_raw_os_error(errno.raw_os_error());
        Error::new(kind, operation, format!("{what}: {cause}")).with_source(cause)
    }

    /// What a program decides on.
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// What was being done: "open", "acquire", "release", ….
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// What was found, without operation and URL.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The lock's URL with the secret hidden, where the failure is about one lock.
    pub fn url(&self) -> Option<&str> {
        self.0.url.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let inner = &*self.0;
        f.write_str(inner.operation)?;
        if let Some(url) = &inner.url {
            write!(f, " {url}")?;
        }
        write!(f, ": {}", inner.message)?;
        if let Some(help) = &inner.help {
            write!(f, "; {help}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({self})", self.0.kind.name())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| &**source as _)
    }
}

/// There is no such hold any more.
pub(crate) fn ended(operation: &'static str) -> Error {
    Error::new(ErrorKind::NotOwner, operation, "the hold has ended already")
}

/// The caller is a child of the holder.
pub(crate) fn forked(operation: &'static str) -> Error {
    Error::new(ErrorKind::Forked, operation, "the hold belongs to the parent process")
        .with_help("acquire in this process; the parent's hold stays the parent's")
}

/// The engine, or somebody, has taken it away.
pub(crate) fn lost(operation: &'static str, why: impl Into<String>) -> Error {
    Error::new(ErrorKind::Lost, operation, why)
        .with_help("what was done under this hold may have met another holder; its token is stale")
}

/// Somebody has broken the lock.
pub(crate) fn broken(operation: &'static str) -> Error {
    lost(operation, "somebody broke the lock")
}

/// Whoever could end the wait has done so.
pub(crate) fn canceled() -> Error {
    Error::new(ErrorKind::Canceled, "acquire", "the wait was cancelled")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_codes_are_the_contract() {
        let codes: Vec<i32> = ErrorKind::ALL.iter().map(|kind| *kind as i32).collect();
        assert_eq!(codes, (1..=19).collect::<Vec<_>>());
        for kind in ErrorKind::ALL {
            assert_eq!(ErrorKind::from_code(*kind as i32), Some(*kind));
            assert_eq!(kind.c_text().to_str(), Ok(kind.text()));
        }
        assert_eq!(ErrorKind::from_code(0), None);
    }

    #[test]
    fn a_text_says_what_where_why_and_what_to_do() {
        let error =
            Error::new(ErrorKind::Io, "open", "no such folder").with_url("mpm:/x/y").with_help("create it first");
        assert_eq!(error.to_string(), "open mpm:/x/y: no such folder; create it first");
    }
}
