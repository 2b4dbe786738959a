//! Core's errors as exceptions: `code` from the table, the text as `message`.

use napi_derive::napi;

/// What becomes `err.code`.
pub struct Code(&'static str);

impl AsRef<str> for Code {
    fn as_ref(&self) -> &str {
        self.0
    }
}

/// What functions that JavaScript calls return.
pub(crate) type Result<T> = std::result::Result<T, napi::Error<Code>>;

#[cold]
pub fn raise(error: ipcmutex::Error) -> napi::Error<Code> {
    napi::Error::new(Code(error.kind().node_code()), error.to_string())
}

/// The `err.code`s, by the names of the table.
#[napi]
pub fn codes() -> std::collections::HashMap<String, String> {
    ipcmutex::ErrorKind::ALL.iter().map(|kind| (kind.name().to_owned(), kind.node_code().to_owned())).collect()
}
