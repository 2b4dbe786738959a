//! The `ipcmutex` command.
fn main() {}
