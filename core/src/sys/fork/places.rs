//! The descriptors that a child of `fork` closes.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::fs::fstat;
use rustix::io::Errno;

use super::life::ForkGate;

/// Which file a descriptor is of: device and inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Inode(u64, u64);

impl Inode {
    pub(super) fn of(file: BorrowedFd<'_>) -> Result<Inode, Errno> {
        fstat(file).map(|stat| Inode(stat.st_dev, stat.st_ino))
    }
}

/// A descriptor that a child has no use for, and which file it is: where the program has closed it, the number may be a
/// file of its own by now, and its children's.
struct Place {
    /// A number that no other entry has << 32 | the descriptor; or one of these two.
    entry: AtomicU64,
    device: AtomicU64,
    inode: AtomicU64,
}

const FREE: u64 = 0;
const BUSY: u64 = u64::MAX;

impl Place {
    const fn new() -> Place {
        Place { entry: AtomicU64::new(FREE), device: AtomicU64::new(0), inode: AtomicU64::new(0) }
    }

    fn inode(&self) -> Inode {
        Inode(self.device.load(Ordering::Relaxed), self.inode.load(Ordering::Relaxed))
    }

    /// Whether it was `from`.
    fn swap(&self, from: u64, to: u64) -> bool {
        self.entry.compare_exchange(from, to, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }
}

/// What stands in a place.
pub(super) struct Entry {
    place: &'static Place,
    entry: u64,
    pub(super) inode: Inode,
}

impl Entry {
    /// Whether it still stands there: not so once another file of ours was opened under its number, which the program must have closed then.
    pub(super) fn stands(&self) -> bool {
        self.place.entry.load(Ordering::Acquire) == self.entry
    }

    /// Children have the descriptor from now on; whether it stood there still.
    pub(super) fn forget(&self) -> bool {
        self.place.swap(self.entry, FREE)
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
        // SAFETY: `more` is null or came from `Box::into_raw` in `more`.
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

    fn fill(self, file: BorrowedFd<'_>) -> Result<Entry, Errno> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let inode = Inode::of(file)?;
        let number = u64::from(file.as_raw_fd().cast_unsigned());
        // Never 0, and never all ones.
        let serial = u64::from(SERIAL.fetch_add(1, Ordering::Relaxed) % (u32::MAX - 1)) + 1;
        // What had the number before was closed by the program.
        for place in all() {
            let entry = place.entry.load(Ordering::Acquire);
            if entry != FREE && entry != BUSY && entry & u64::from(u32::MAX) == number {
                place.swap(entry, FREE);
            }
        }
        let entry = serial << 32 | number;
        self.0.device.store(inode.0, Ordering::Relaxed);
        self.0.inode.store(inode.1, Ordering::Relaxed);
        self.0.entry.store(entry, Ordering::Release);
        Ok(Entry { place: self.0, entry, inode })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.0.swap(BUSY, FREE); // Unless it is filled.
    }
}

fn all() -> impl Iterator<Item = &'static Place> {
    std::iter::successors(Some(&CLOSED_IN_CHILD), |places| places.next()).flat_map(|places| &places.places)
}

/// Has `file` closed in children that are forked while it is open here.
///
/// # Errors
/// It cannot be told which file it is.
pub(super) fn close_in_child(file: &impl AsFd) -> Result<Entry, Errno> {
    Reserved::new().fill(file.as_fd())
}

/// Opens by `open` what no child has, not for a moment. `open` takes no lock and allocates nothing.
///
/// # Errors
/// As `open`; or it cannot be told which file it is, and it is closed again.
pub(super) fn opened<F: AsFd, E: From<Errno>>(open: impl FnOnce() -> Result<F, E>) -> Result<(F, Entry), E> {
    let place = Reserved::new();
    let _gate = ForkGate::enter();
    let file = open()?;
    let entry = place.fill(file.as_fd())?;
    Ok((file, entry))
}

/// In a child of `fork`, before it opens any of its own.
pub(super) fn close_all() {
    for place in all() {
        let entry = place.entry.swap(FREE, Ordering::AcqRel);
        if entry == FREE || entry == BUSY {
            continue;
        }
        let number = (entry as u32).cast_signed();
        // SAFETY: it is only asked which file it is; a number that is not open is none.
        if Inode::of(unsafe { BorrowedFd::borrow_raw(number) }) == Ok(place.inode()) {
            // SAFETY: an inherited descriptor that nothing in this child uses: its owner's state is left behind.
            unsafe { libc::close(number) };
        }
    }
}
