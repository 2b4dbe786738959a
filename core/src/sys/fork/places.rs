//! The descriptors that a child of `fork` closes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicU64, Ordering};

use rustix::fs::fstat;

use super::life::ForkGate;

/// Which file a descriptor is of: device and inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode(u64, u64);

impl Inode {
    /// No file's.
    pub(super) const NONE: Inode = Inode(0, 0);

    pub(super) fn of(file: BorrowedFd<'_>) -> Inode {
        fstat(file).map_or(Inode::NONE, |stat| Inode(stat.st_dev, stat.st_ino))
    }
}

/// A descriptor that a child has no use for, and which file it is: where the program has closed it, the number may be a
/// file of its own by now, and its children's.
struct Place {
    /// Or one of these two.
    file: AtomicI32,
    device: AtomicU64,
    inode: AtomicU64,
}

const FREE: i32 = -1;
const BUSY: i32 = -2;

impl Place {
    const fn new() -> Place {
        Place { file: AtomicI32::new(FREE), device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    fn inode(&self) -> Inode {
        Inode(self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed))
    }

    /// Whether it was `from`.
    fn swap(&self, from: i32, to: i32) -> bool {
        self.file.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// It grows, and never shrinks.
struct Places {
    places: [Place; 8],
    more: AtomicPtr<Places>,
}

impl Places {
    const fn new() -> Places {
        Places { places: [const { Place::new() }; 8], more: AtomicPtr::new(std::ptr::null_mut()) }
    }

    fn next(&self) -> Option<&'static Places> {
        // SAFETY: `more` is null or came from `Box::leak` in `more`.
        unsafe { self.more.load(Ordering::Acquire).as_ref() }
    }

    #[cold]
    fn more(&self) -> &'static Places {
        let fresh = Box::into_raw(Box::new(Places::new()));
        match self.more.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: just leaked from a Box, and never freed.
            Ok(_) => unsafe { &*fresh },
            Err(first) => {
                // SAFETY: nobody else has seen `fresh`; `first` was leaked by whoever put it there.
                unsafe {
                    drop(Box::from_raw(fresh));
                    &*first
                }
            }
        }
    }
}

static CLOSED_IN_CHILD: Places = Places::new();

/// A place for a descriptor that is about to be opened. To find one may allocate, which is not for behind the gate.
struct Reserved(&'static Place);

impl Reserved {
    fn new() -> Reserved {
        let mut places = &CLOSED_IN_CHILD;
        loop {
            match places.places.iter().find(|place| place.swap(FREE, BUSY)) {
                Some(place) => return Reserved(place),
                None => places = places.next().unwrap_or_else(|| places.more()),
            }
        }
    }

    fn fill(self, file: BorrowedFd<'_>) -> Inode {
        let inode = Inode::of(file);
        self.0.device.store(inode.0, Ordering::Relaxed);
        self.0.inode.store(inode.1, Ordering::Relaxed);
        self.0.file.store(file.as_raw_fd(), Ordering::Release);
        inode
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.swap(BUSY, FREE); // Unless it is filled.
    }
}

/// Closes `file` in children that are forked while it is open here. When it is closed here, [`forget`] is told of the same.
pub(super) fn close_in_child(file: &impl AsFd) -> Inode {
    Reserved::new().fill(file.as_fd())
}

/// Opens by `open` what no child has, not for a moment. `open` takes no lock and allocates nothing.
pub(super) fn opened<F: AsFd, E>(open: impl FnOnce() -> Result<F, E>) -> Result<(F, Inode), E> {
    let place = Reserved::new();
    let _gate = ForkGate::enter();
    let file = open()?;
    let inode = place.fill(file.as_fd());
    Ok((file, inode))
}

/// The number alone does not say which it is: the program may have closed it, and another of ours have it by now.
pub(super) fn forget(number: RawFd, inode: Inode) {
    let mut places = Some(&CLOSED_IN_CHILD);
    while let Some(these) = places
        && !these.places.iter().any(|place| {
            place.file.load(Ordering::Acquire) == number && place.inode() == inode && place.swap(number, FREE)
        })
    {
        places = these.next();
    }
}

/// In a child of `fork`, before it opens any of its own.
pub(super) fn close_all() {
    let mut places = Some(&CLOSED_IN_CHILD);
    while let Some(these) = places {
        for place in &these.places {
            let file = place.file.swap(FREE, Ordering::AcqRel);
            // SAFETY: it is only asked which file it is; a number that is not open is none.
            if file >= 0 && place.inode() == Inode::of(unsafe { BorrowedFd::borrow_raw(file) }) {
                // SAFETY: an inherited descriptor that nothing in this child uses: its owner's state is left behind.
                unsafe { libc::close(file) };
            }
        }
        places = these.next();
    }
}
