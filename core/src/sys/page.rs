//! A lock file in memory: shared with other processes, so everything in it is atomic.

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use rustix::io::Errno;

use super::futex;

/// A shared, writable mapping from the start of a file. On most file systems it keeps the file's open description, and so
/// its byte locks, alive after the descriptor is closed. A forked child does not have it.
///
/// Only what the file has is mapped at first: a mapping of all that it may grow to costs an open 2 µs more.
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    /// The same file again, as far as it may ever reach; null until it has grown.
    whole: AtomicPtr<u8>,
    most: usize,
    /// How far the file was seen to reach. Beyond it nothing is touched, whatever the file says of itself.
    reach: AtomicUsize,
    /// The smaller of `len` and `reach`.
    near: AtomicUsize,
    /// Stands for what lies beyond: it reads as zero, and what is written there is in no file.
    nowhere: AtomicU64,
    epoch: u32,
}

// SAFETY: the memory is reached only as atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a file that has `len` bytes, and may grow to `most`. Who touches a page beyond a file's end gets SIGBUS.
    pub(crate) fn new(file: BorrowedFd<'_>, len: usize, most: usize) -> Result<Mapping, Errno> {
        use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};
        // Until it is told so, it would be a child's, too.
        let _gate = super::fork::ForkGate::enter();
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing of this process; what other
        // processes do to it is only ever seen through atomics.
        let start =
            unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, file, 0)? };
        let Some(pointer) = NonNull::new(start.cast::<u8>()) else { return Err(Errno::NOMEM) };
        // SAFETY: the range is the mapping just made.
        if let Err(error) = unsafe { madvise(start, len, Advice::LinuxDontFork) } {
            // SAFETY: as above; nothing refers to it yet.
            let _ = unsafe { munmap(start, len) };
            return Err(error);
        }
        Ok(Mapping {
            start: pointer,
            len,
            whole: AtomicPtr::new(std::ptr::null_mut()),
            most,
            reach: AtomicUsize::new(len),
            near: AtomicUsize::new(len),
            nowhere: AtomicU64::new(0),
            epoch: super::fork::epoch(),
        })
    }

    #[inline]
    pub(crate) fn reach(&self) -> usize {
        self.reach.load(Ordering::Relaxed)
    }

    /// Whether the file has `end` bytes by now. The kernel is asked for the last of them: it says no where a touch would be
    /// a SIGBUS, and needs no descriptor and no path. `None` if this process has no room to see so much of it.
    pub(crate) fn reaches(&self, end: usize) -> Option<bool> {
        if end <= self.reach() {
            return Some(true);
        }
        if end > self.most {
            return Some(false);
        }
        let whole = self.whole()?;
        // SAFETY: inside the mapping and aligned, and only its address is used here; the kernel alone looks at it.
        let there = futex::is_there(unsafe { whole.add(end / 4 * 4 - 4) }.cast());
        if there {
            self.reach.fetch_max(end, Ordering::Release);
        }
        Some(there)
    }

    /// The mapping of all that the file may grow to, made when it is first asked for. `None` if there is no room for it.
    #[cold]
    fn whole(&self) -> Option<NonNull<u8>> {
        use rustix::mm::{MremapFlags, mremap, munmap};
        if let Some(whole) = NonNull::new(self.whole.load(Ordering::Acquire)) {
            return Some(whole);
        }
        // SAFETY: an old size of 0 makes a second mapping of a shared one's file (mremap(2)), with the same description and
        // the same advice, at an address of the kernel's choice; the first one stays as it is.
        let fresh = unsafe { mremap(self.start.as_ptr().cast(), 0, self.most, MremapFlags::MAYMOVE) }.ok()?;
        match self.whole.compare_exchange(std::ptr::null_mut(), fresh.cast(), Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => NonNull::new(fresh.cast()),
            Err(first) => {
                // SAFETY: the mapping just made, to which nothing refers.
                let _ = unsafe { munmap(fresh, self.most) };
                NonNull::new(first)
            }
        }
    }

    /// The file was seen to have `len` bytes and no more.
    pub(crate) fn shrink(&self, len: usize) {
        self.near.fetch_min(len, Ordering::Relaxed);
        self.reach.fetch_min(len, Ordering::Relaxed);
    }

    #[inline]
    fn at<T>(&self, offset: usize) -> NonNull<T> {
        if offset + size_of::<T>() > self.near.load(Ordering::Relaxed) {
            return self.far(offset, size_of::<T>()).unwrap_or(NonNull::from(&self.nowhere).cast()).cast();
        }
        // SAFETY: the offset lies inside the mapping: `near` is never more than its length.
        unsafe { self.start.add(offset).cast() }
    }

    /// What lies behind the first mapping; `None` where the file does not reach.
    #[cold]
    fn far(&self, offset: usize, len: usize) -> Option<NonNull<u8>> {
        if offset + len > self.reach.load(Ordering::Acquire) {
            return None;
        }
        // SAFETY: inside the mapping: `reach` is never more than its length, once there is one.
        NonNull::new(self.whole.load(Ordering::Acquire)).map(|whole| unsafe { whole.add(offset) })
    }

    #[inline]
    pub(crate) fn u64(&self, offset: usize) -> &AtomicU64 {
        // SAFETY: inside the mapping or `nowhere`, and aligned (`at`); any bytes are a valid AtomicU64; `&self` keeps both.
        unsafe { self.at::<AtomicU64>(offset).as_ref() }
    }

    #[inline]
    pub(crate) fn u32(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: as in `u64`.
        unsafe { self.at::<AtomicU32>(offset).as_ref() }
    }

    /// `count` in a row; none, if the file does not reach so far.
    #[inline]
    pub(crate) fn u64s(&self, offset: usize, count: usize) -> &[AtomicU64] {
        let len = count * size_of::<u64>();
        let first = if offset + len <= self.near.load(Ordering::Relaxed) {
            // SAFETY: as in `at`.
            Some(unsafe { self.start.add(offset) })
        } else {
            self.far(offset, len)
        };
        // SAFETY: all of them are inside one mapping, and aligned as the mapping and the offset are; else as in `u64`.
        first.map_or(&[], |first| unsafe { std::slice::from_raw_parts(first.cast().as_ptr(), count) })
    }

    pub(crate) fn u8(&self, offset: usize) -> &AtomicU8 {
        // SAFETY: as in `u64`.
        unsafe { self.at::<AtomicU8>(offset).as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // In a forked child the range is not mapped, or is something else by now.
        if self.epoch == super::fork::epoch() {
            // SAFETY: the range was mapped by `new` in this process, and no reference outlives `self`.
            let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
            let whole = *self.whole.get_mut();
            if !whole.is_null() {
                // SAFETY: as above, by `whole`.
                let _ = unsafe { rustix::mm::munmap(whole.cast(), self.most) };
            }
        }
    }
}

/// A value that is replaced now and then and read all the time. What was replaced stays until the cell is dropped, so
/// a reader needs no count.
pub(crate) struct Latest<T> {
    current: std::sync::atomic::AtomicPtr<T>,
    kept: crate::sync::Guarded<Vec<std::sync::Arc<T>>>,
}

impl<T> Latest<T> {
    pub(crate) fn new(first: std::sync::Arc<T>) -> Latest<T> {
        let current = std::sync::atomic::AtomicPtr::new(std::sync::Arc::as_ptr(&first).cast_mut());
        Latest { current, kept: crate::sync::Guarded::new(vec![first]) }
    }

    #[inline]
    pub(crate) fn get(&self) -> &T {
        // SAFETY: the pointer is of an Arc in `kept`, from which nothing is removed before the drop of `self`.
        unsafe { &*self.current.load(std::sync::atomic::Ordering::Acquire) }
    }

    /// Each value, the current one first, until `found` says so.
    pub(crate) fn find(&self, mut found: impl FnMut(&T) -> bool) -> Option<std::sync::Arc<T>> {
        let kept = self.kept.lock().clone();
        kept.into_iter().rev().find(|value| found(value))
    }

    /// Replaces the value, unless `stale` is not it any more.
    pub(crate) fn replace(
        &self,
        stale: &T,
        make: impl FnOnce() -> crate::error::Result<std::sync::Arc<T>>,
    ) -> crate::error::Result<()> {
        let mut kept = self.kept.lock();
        if !std::ptr::eq(self.current.load(std::sync::atomic::Ordering::Acquire), stale) {
            return Ok(());
        }
        let fresh = make()?;
        self.current.store(std::sync::Arc::as_ptr(&fresh).cast_mut(), std::sync::atomic::Ordering::Release);
        kept.push(fresh);
        Ok(())
    }
}
