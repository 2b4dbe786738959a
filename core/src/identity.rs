//! Who this participant says it is. For people; nothing is decided by it.

use crate::backend::contract::Owner;
use crate::url::LockUrl;

/// Labels and host names longer than this are cut (63 bytes and a NUL fit the C struct).
pub(crate) const MAX_NAME_BYTES: usize = 63;

/// This process as others see it: the host, the pid, and the URL's label or else the program's name.
pub(crate) fn identity(url: &LockUrl) -> Owner {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let label = match url.label() {
        Some(label) => label.to_owned(),
        None => program(),
    };
    Owner { host: cut(&host), pid: std::process::id(), label: cut(&label) }
}

fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or(&path).to_string_lossy().into_owned();
    if name.is_empty() { "?".to_owned() } else { name }
}

fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_NAME_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}
