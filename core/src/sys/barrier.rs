//! A memory barrier that one thread pays for all of its process: `membarrier(2)`, the kind for private memory.

#[cfg(target_os = "linux")]
mod linux {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use rustix::thread::{MembarrierCommand, membarrier};

    use super::super::fork::PerProcess;

    static THERE: PerProcess<bool> = PerProcess::new();

    /// Whether [`on_all_processors`] may be called in this process. Decided at the first question: a process with one thread
    /// has it for the asking, where one with more would wait for tens of milliseconds.
    pub(crate) fn is_there() -> bool {
        *THERE.get_or_init(|| has_one_thread() && membarrier(MembarrierCommand::RegisterPrivateExpedited).is_ok())
    }

    /// What each running thread of this process did before some moment of this call is seen by all after it; what it does after
    /// that moment sees what was done before the call.
    pub(crate) fn on_all_processors() {
        if membarrier(MembarrierCommand::PrivateExpedited).is_err() && membarrier(MembarrierCommand::Global).is_err() {
            // It was registered, so only memory can be wanting. No processor keeps a store to itself for a tick of its clock.
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    const UNKNOWN: usize = 0;
    const NONE: usize = 1;
    /// Where glibc (from 2.32 on) says whether there is one thread. Looked up once, at load: a forked child is not to ask the loader.
    static WORD: AtomicUsize = AtomicUsize::new(UNKNOWN);

    pub(crate) fn find_word() {
        if WORD.load(Ordering::Relaxed) == UNKNOWN {
            // SAFETY: the name ends with a NUL.
            let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"__libc_single_threaded".as_ptr()) } as usize;
            WORD.store(if found == 0 { NONE } else { found }, Ordering::Relaxed);
        }
    }

    /// Whether the C library vouches for it; not every one has a word for that.
    fn has_one_thread() -> bool {
        find_word();
        match WORD.load(Ordering::Relaxed) {
            NONE => false,
            // SAFETY: a `char` that lives as long as the process. The library writes it when a thread starts another one: while
            // there is no other thread than this one, nobody does.
            word => unsafe { (word as *const libc::c_char).read_volatile() != 0 },
        }
    }
}

#[cfg(target_os = "linux")]
pub(crate) use linux::{find_word, is_there, on_all_processors};

#[cfg(not(target_os = "linux"))]
pub(crate) fn is_there() -> bool {
    false
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn on_all_processors() {}
