//! What no child has: lock files, the descriptors of the library's threads, sockets.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicI32, Ordering};

use rustix::io::Errno;

use super::epoch;
use super::life::ForkGate;
use super::places::{Entry, Inode, close_in_child, opened};

/// A lock file's descriptor, which no child has: it would have the description's byte locks, and its dead parent would seem to live on.
pub(crate) struct OwnFile {
    file: ManuallyDrop<OwnedFd>,
    entry: Entry,
    epoch: u32,
}

impl OwnFile {
    /// What `open` opens; it takes no lock and allocates nothing.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn opened<E: From<Errno>>(open: impl FnOnce() -> Result<OwnedFd, E>) -> Result<OwnFile, E> {
        let epoch = epoch();
        let (file, entry) = opened(open)?;
        Ok(OwnFile { file: ManuallyDrop::new(file), entry, epoch })
    }

    /// Whether it still is that file: some programs close whatever they do not know, and then the number may be another's. A file that can
    /// no more be asked (a server that is gone) is still open.
    pub(crate) fn is_there(&self) -> bool {
        let is_that = match Inode::of(self.file.as_fd()) {
            Ok(inode) => inode == self.entry.inode,
            Err(error) => error != Errno::BADF,
        };
        is_that && self.entry.stands()
    }
}

impl AsFd for OwnFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        if self.epoch != epoch() {
            return; // The child has closed it.
        }
        let _gate = ForkGate::enter();
        let is_there = self.is_there();
        self.entry.forget();
        // Else the number is the program's own file by now, or another one of ours.
        if is_there {
            // SAFETY: it is dropped here and nowhere else, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// A descriptor of a thread of the library, which no child has. A program that closes what it does not know may have a file of its own
/// under that number: it is never touched.
#[cfg(target_os = "linux")]
pub(crate) struct MarkedFile {
    file: ManuallyDrop<OwnedFd>,
    entry: Entry,
    /// Whose mark it has; 0 if none yet.
    thread: AtomicI32,
}

/// Nobody's mark.
#[cfg(target_os = "linux")]
const GIVEN_UP: i32 = -1;

#[cfg(target_os = "linux")]
impl MarkedFile {
    /// What `open` opens; it takes no lock and allocates nothing. Until it is marked, and where the kernel refuses the mark, any number of
    /// such a file is believed.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn opened(open: impl FnOnce() -> Result<OwnedFd, Errno>) -> Result<MarkedFile, Errno> {
        let (file, entry) = opened(open)?;
        Ok(MarkedFile { file: ManuallyDrop::new(file), entry, thread: AtomicI32::new(0) })
    }

    /// It is the calling thread's now, which drops it before it ends: the mark of a thread that has ended proves nothing, and the file
    /// would stay open for ever.
    pub(crate) fn mark(&self) {
        if let Some(Ok(thread)) = self.get().map(crate::sys::file::mark) {
            self.thread.store(thread, Ordering::Release);
        }
    }

    /// Gives it up for good, if the number is not this file's any more: another one that this thread marks may have it next.
    pub(crate) fn disown(&self) {
        if self.get().is_none() {
            self.thread.store(GIVEN_UP, Ordering::Release);
        }
    }

    /// For [`rustix::event::poll`], which touches nothing.
    pub(crate) fn unproved(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// `None` if the number is not this file's any more.
    pub(crate) fn get(&self) -> Option<BorrowedFd<'_>> {
        let file = self.file.as_fd();
        let is_ours = match self.thread.load(Ordering::Acquire) {
            0 => Inode::of(file) == Ok(self.entry.inode),
            thread => crate::sys::file::is_marked(file, thread),
        };
        is_ours.then_some(file)
    }
}

#[cfg(target_os = "linux")]
impl Drop for MarkedFile {
    fn drop(&mut self) {
        let _gate = ForkGate::enter();
        self.entry.forget();
        if self.get().is_some() {
            // SAFETY: it is dropped here and nowhere else, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// A socket that no child has: there its number may be a file of the program's own, and is neither used nor closed.
pub(crate) struct Unshared<S: AsFd> {
    socket: ManuallyDrop<S>,
    /// None, if it could not be told which socket it is.
    entry: Option<Entry>,
    epoch: u32,
}

impl<S: AsFd> Unshared<S> {
    pub(crate) fn new(socket: S) -> Unshared<S> {
        let epoch = epoch(); // the handlers are in place
        let entry = close_in_child(&socket).ok();
        Unshared { socket: ManuallyDrop::new(socket), entry, epoch }
    }

    /// What `open` opens; no child has it for a moment either. `open` takes no lock and allocates nothing.
    ///
    /// # Errors
    /// As `open`.
    #[cfg(feature = "redis")]
    pub(crate) fn opened(open: impl FnOnce() -> std::io::Result<S>) -> std::io::Result<Unshared<S>> {
        let epoch = epoch();
        let (socket, entry) = opened(open)?;
        Ok(Unshared { socket: ManuallyDrop::new(socket), entry: Some(entry), epoch })
    }

    /// The same socket as something else; its descriptor stays the same.
    ///
    /// # Errors
    /// As `into`; BrokenPipe in a child.
    #[cfg(feature = "redis")]
    pub(crate) fn turned<T: AsFd>(self, into: impl FnOnce(S) -> std::io::Result<T>) -> std::io::Result<Unshared<T>> {
        self.get()?;
        let mut this = ManuallyDrop::new(self);
        let (entry, epoch) = (this.entry.take(), this.epoch);
        // SAFETY: `this` is neither used nor dropped after this.
        let turned = into(unsafe { ManuallyDrop::take(&mut this.socket) });
        if turned.is_err() {
            entry.as_ref().map(Entry::forget);
        }
        Ok(Unshared { socket: ManuallyDrop::new(turned?), entry, epoch })
    }

    /// # Errors
    /// BrokenPipe in a child.
    pub(crate) fn get(&self) -> std::io::Result<&S> {
        if self.epoch == epoch() { Ok(&self.socket) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
    }

    /// # Errors
    /// BrokenPipe in a child.
    #[cfg(feature = "redis")]
    pub(crate) fn get_mut(&mut self) -> std::io::Result<&mut S> {
        if self.epoch == epoch() { Ok(&mut self.socket) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
    }
}

impl<S: AsFd> Drop for Unshared<S> {
    fn drop(&mut self) {
        if self.epoch != epoch() {
            return; // The child has closed it.
        }
        // SAFETY: it is dropped here and nowhere else, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.socket) };
        // Only now, or a child that is forked in between would have it; no file of the program's is that inode.
        self.entry.as_ref().map(Entry::forget);
    }
}
