//! Who this participant says it is. For people; nothing is decided by it.

use crate::backend::contract::Owner;
use crate::sys::fork::PerProcess;
use crate::text::cut;
use crate::url::LockUrl;

/// Labels and host names longer than this are cut (63 bytes and a NUL fit the C struct).
pub(crate) const MAX_NAME_BYTES: usize = 63;

/// This process as others see it: the host, the pid, and the URL's label or else the program's name. Asked for once: a host
/// that is renamed while the process runs is shown by the name that it had.
pub(crate) fn identity(url: &LockUrl) -> Owner {
    static OURS: PerProcess<Owner> = PerProcess::new();
    let ours = OURS.get_or_init(|| Owner {
        host: name(&rustix::system::uname().nodename().to_string_lossy()),
        pid: std::process::id(),
        label: name(&program()),
    });
    match url.label() {
        Some(label) => Owner { label: name(label), ..ours.clone() },
        None => ours.clone(),
    }
}

fn program() -> String {
    let path = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&path).file_name().unwrap_or(&path).to_string_lossy().into_owned();
    if name.is_empty() { "?".to_owned() } else { name }
}

fn name(text: &str) -> String {
    cut(text, MAX_NAME_BYTES).to_owned()
}
