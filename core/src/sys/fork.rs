//! What a forked child may still believe.
//!
//! A child inherits memory but neither threads nor, of what is marked so, mappings. Any lock of this crate may
//! be held by a thread that the child does not have. So nothing of a parent's state is used in a child: every
//! piece of per-process state sits in a [`PerProcess`] cell, which gives the child a fresh value. The cell knows
//! by [`epoch`], a number in a page that the kernel wipes at fork (`MADV_WIPEONFORK`, also for raw `clone`), so
//! no handler needs to run. Where the kernel is too old for that, a `pthread_atfork` handler wipes the page.
//!
//! What the handlers are needed for: a child of `fork` closes the descriptors that no child may have. Each is written down when it is
//! opened, and so that no fork comes in between, both are done behind a gate, through which a fork must go, too.
//!
//! The handlers are in place when the library is loaded. So those of the program, which come later, are outside of the gate, before and after,
//! and may use the library, which may hold locks of its own while it waits for the gate. An allocator's or a collector's may be among them:
//! whoever forks then has their locks when it comes to the gate, so who has the gate takes no locks and allocates nothing.
//! For a library that is loaded late (a plugin's) some handlers of the program are within the gate: so whoever forks may enter it again, and a
//! child is made fit by the handler or by the first use of it, whichever comes first.
//!
//! | the gate | by | then |
//! |---|---|---|
//! | free | a thread that opens (`ForkGate`), its signals blocked; or that forks | its thread's |
//! | its thread's | the same thread again: a handler of the program, or a signal's handler, that opens or forks | its thread's, one deeper |
//! | its thread's | another one | waits, its signals as they were |
//! | its thread's, deeper | leaves | one less deep |
//! | its thread's | leaves | free; one of those who wait is woken |
//! | any | a child, by whatever call | free: it has none of these threads |

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use rustix::fs::fstat;

use super::futex;
use super::thread::Undisturbed;

/// What a child finds empty.
#[repr(C)]
struct Life {
    /// See [`epoch`]; 0 until it is asked for, and [`BEGINNING`] while a thread makes the process fit.
    stamp: AtomicU32,
    /// The thread that has the gate, and whether another one waits; 0 if it is free.
    gate: AtomicU32,
    /// How often it has entered again.
    depth: AtomicU32,
}

static LIFE: AtomicPtr<Life> = AtomicPtr::new(std::ptr::null_mut());
/// Stands in for the page where there is no memory for one.
static FALLBACK: Life = Life { stamp: AtomicU32::new(0), gate: AtomicU32::new(0), depth: AtomicU32::new(0) };
static NEXT: AtomicU32 = AtomicU32::new(BEGINNING + 1);
const BEGINNING: u32 = 1;
/// How many forks are under way. A child that finds one is a child of `fork`.
static FORKS: AtomicU32 = AtomicU32::new(0);
/// The number of the process, while it forks. A child that has it still has a page that nobody has wiped, whatever was answered to
/// `madvise`: emulators say yes, and do nothing.
static FORKED: AtomicU32 = AtomicU32::new(0);
/// Beside a thread's number, which is less.
const WAITED_FOR: u32 = 1 << 31;

fn life() -> Option<&'static Life> {
    // SAFETY: null, or a mapped page (or the static) that is never unmapped and is inherited by children, where it is zero.
    unsafe { LIFE.load(Ordering::Acquire).as_ref() }
}

/// A number that stands for this process: never 0, and another one after each fork.
#[inline]
pub(crate) fn epoch() -> u32 {
    match life().map_or(0, |life| life.stamp.load(Ordering::Relaxed)) {
        0 | BEGINNING => begin(),
        now => now,
    }
}

/// In a process that has no number yet.
#[cold]
fn begin() -> u32 {
    // A handler that forked here would wait for its own thread.
    let _undisturbed = Undisturbed::enter();
    let life = life().unwrap_or_else(first_life);
    loop {
        match life.stamp.compare_exchange(0, BEGINNING, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {
                close_of_parent();
                let fresh = NEXT.fetch_add(1, Ordering::Relaxed);
                life.stamp.store(fresh, Ordering::Release);
                return fresh;
            }
            Err(BEGINNING) => std::thread::yield_now(),
            Err(now) => return now,
        }
    }
}

/// Of a process that has its number.
fn begun() -> &'static Life {
    epoch();
    life().unwrap_or(&FALLBACK)
}

/// When the library is loaded; and by the first use where nothing is run then.
pub(crate) fn put_handlers_in_place() {
    static THERE: AtomicBool = AtomicBool::new(false);
    if !THERE.swap(true, Ordering::AcqRel) {
        // SAFETY: the three handlers are `extern "C"`, take nothing, and touch only statics.
        unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
    }
}

#[cold]
fn first_life() -> &'static Life {
    put_handlers_in_place();
    let fresh = wiped_page();
    // A page lost to a race at the very first use stays mapped: 4 KiB, once.
    let lost = LIFE.compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire).err();
    // SAFETY: as in `life`.
    unsafe { &*lost.unwrap_or(fresh) }
}

fn wiped_page() -> *mut Life {
    // SAFETY: an anonymous private mapping at an address of the kernel's choice; length is one page.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return std::ptr::from_ref(&FALLBACK).cast_mut();
    }
    #[cfg(target_os = "linux")]
    // SAFETY: the range is the page just mapped.
    unsafe {
        libc::madvise(page, 4096, libc::MADV_WIPEONFORK);
    }
    page.cast()
}

/// A number that no other living thread of this process has, and that is not 0.
fn me() -> u32 {
    // `gettid` is a function only since glibc 2.30. It may be refused.
    #[cfg(target_os = "linux")]
    // SAFETY: it asks nothing of its caller.
    if let Ok(me @ 1..) = u32::try_from(unsafe { libc::syscall(libc::SYS_gettid) }) {
        return me;
    }
    // The stacks of two threads are more than 16 bytes apart.
    // SAFETY: as above.
    (unsafe { libc::pthread_self() } as usize >> 4) as u32 & !WAITED_FOR | 1
}

impl Life {
    /// The gate, also again; else what is to be waited for. `waited` has whoever leaves wake the next one.
    fn enter(&self, me: u32, waited: bool) -> Result<(), u32> {
        let mine = if waited { me | WAITED_FOR } else { me };
        match self.gate.compare_exchange(0, mine, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(now) if now & !WAITED_FOR == me => {
                self.depth.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
            Err(now) => Err(now),
        }
    }

    fn wait(&self, seen: u32) {
        let now = seen | WAITED_FOR;
        if seen == now || self.gate.compare_exchange(seen, now, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            futex::wait(&self.gate, now, futex::ANY, None, false);
        }
    }

    /// Whether `me` had it. Not so in a child, and where the handlers came in place while this thread forked.
    fn leave(&self, me: u32) -> bool {
        if self.gate.load(Ordering::Relaxed) & !WAITED_FOR != me {
            return false;
        }
        if self.depth.load(Ordering::Relaxed) > 0 {
            self.depth.fetch_sub(1, Ordering::Relaxed);
        } else if self.gate.swap(0, Ordering::Release) & WAITED_FOR != 0 {
            futex::wake(&self.gate, 1, futex::ANY, false);
        }
        true
    }
}

/// Keeps this process from forking (by `fork`; a raw `clone` runs no handlers) until it is dropped, unless this thread is just forking: then
/// a handler of the program is at work, before or after the fork itself. For a few system calls, which take no lock and allocate
/// nothing: whoever forks may have any lock. So long signals wait, too: one whose handler forks would give its child what is open here.
pub(crate) struct ForkGate(#[expect(dead_code, reason = "it is dropped")] Undisturbed);

impl ForkGate {
    pub(crate) fn enter() -> ForkGate {
        let (life, me) = (begun(), me());
        let mut waited = false;
        loop {
            let undisturbed = Undisturbed::enter();
            match life.enter(me, waited) {
                Ok(()) => return ForkGate(undisturbed),
                Err(now) => {
                    // Who has it may wait for a handler of this thread.
                    drop(undisturbed);
                    life.wait(now);
                    waited = true;
                }
            }
        }
    }
}

impl Drop for ForkGate {
    fn drop(&mut self) {
        if let Some(life) = life() {
            life.leave(me());
        }
    }
}

/// Which file a descriptor is of: device and inode.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inode(u64, u64);

impl Inode {
    /// No file's.
    const NONE: Inode = Inode(0, 0);

    fn of(file: BorrowedFd<'_>) -> Inode {
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

/// Closes `file` in children that are forked while it is open here. When it is closed here, [`keep_in_child`] is told of the same.
pub(crate) fn close_in_child(file: &impl AsFd) -> Inode {
    Reserved::new().fill(file.as_fd())
}

/// Opens by `open` what no child has, not for a moment. `open` takes no lock and allocates nothing.
fn opened<F: AsFd, E>(open: impl FnOnce() -> Result<F, E>) -> Result<(F, Inode), E> {
    let place = Reserved::new();
    let _gate = ForkGate::enter();
    let file = open()?;
    let inode = place.fill(file.as_fd());
    Ok((file, inode))
}

/// The number alone does not say which it is: the program may have closed it, and another of ours have it by now.
pub(crate) fn keep_in_child(number: RawFd, inode: Inode) {
    let mut places = Some(&CLOSED_IN_CHILD);
    while let Some(these) = places
        && !these.places.iter().any(|place| {
            place.file.load(Ordering::Acquire) == number && place.inode() == inode && place.swap(number, FREE)
        })
    {
        places = these.next();
    }
}

/// A lock file's descriptor, which no child has: it would have the description's byte locks, and its dead parent would seem to live on.
pub(crate) struct OwnFile {
    file: ManuallyDrop<OwnedFd>,
    inode: Inode,
    epoch: u32,
}

impl OwnFile {
    /// What `open` opens; it takes no lock and allocates nothing.
    ///
    /// # Errors
    /// As `open`.
    pub(crate) fn opened<E>(open: impl FnOnce() -> Result<OwnedFd, E>) -> Result<OwnFile, E> {
        let epoch = epoch();
        let (file, inode) = opened(open)?;
        Ok(OwnFile { file: ManuallyDrop::new(file), inode, epoch })
    }

    /// Whether it still is that file: some programs close whatever they do not know.
    pub(crate) fn is_there(&self) -> bool {
        self.inode != Inode::NONE && Inode::of(self.file.as_fd()) == self.inode
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
        keep_in_child(self.file.as_raw_fd(), self.inode);
        // Else the number is the program's own file by now.
        if self.is_there() {
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
    inode: Inode,
    /// Whose mark it has; 0 if none yet.
    thread: AtomicI32,
}

/// Nobody's mark.
#[cfg(target_os = "linux")]
const GIVEN_UP: i32 = -1;

#[cfg(target_os = "linux")]
impl MarkedFile {
    /// Until it is marked, and where the kernel refuses the mark, any number of such a file is believed.
    pub(crate) fn new(file: OwnedFd) -> MarkedFile {
        let inode = close_in_child(&file);
        MarkedFile { file: ManuallyDrop::new(file), inode, thread: AtomicI32::new(0) }
    }

    /// It is the calling thread's now, which drops it before it ends: the mark of a thread that has ended proves nothing, and the file
    /// would stay open for ever.
    pub(crate) fn mark(&self) {
        if let Some(Ok(thread)) = self.get().map(super::file::mark) {
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
            0 => Inode::of(file) == self.inode,
            thread => super::file::is_marked(file, thread),
        };
        is_ours.then_some(file)
    }
}

#[cfg(target_os = "linux")]
impl Drop for MarkedFile {
    fn drop(&mut self) {
        keep_in_child(self.file.as_raw_fd(), self.inode);
        if self.get().is_some() {
            // SAFETY: it is dropped here and nowhere else, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.file) };
        }
    }
}

/// A socket that no child has: there its number may be a file of the program's own, and is neither used nor closed.
pub(crate) struct Unshared<S: AsFd> {
    socket: ManuallyDrop<S>,
    inode: Inode,
    epoch: u32,
}

impl<S: AsFd> Unshared<S> {
    pub(crate) fn new(socket: S) -> Unshared<S> {
        let epoch = epoch(); // the handlers are in place
        let inode = close_in_child(&socket);
        Unshared { socket: ManuallyDrop::new(socket), inode, epoch }
    }

    /// What `open` opens; no child has it for a moment either. `open` takes no lock and allocates nothing.
    ///
    /// # Errors
    /// As `open`.
    #[cfg(feature = "redis")]
    pub(crate) fn opened(open: impl FnOnce() -> std::io::Result<S>) -> std::io::Result<Unshared<S>> {
        let epoch = epoch();
        let (socket, inode) = opened(open)?;
        Ok(Unshared { socket: ManuallyDrop::new(socket), inode, epoch })
    }

    /// The same socket as something else; its descriptor stays the same.
    ///
    /// # Errors
    /// As `into`; BrokenPipe in a child.
    #[cfg(feature = "redis")]
    pub(crate) fn turned<T: AsFd>(self, into: impl FnOnce(S) -> std::io::Result<T>) -> std::io::Result<Unshared<T>> {
        self.get()?;
        let mut this = ManuallyDrop::new(self);
        let (number, inode, epoch) = (this.socket.as_fd().as_raw_fd(), this.inode, this.epoch);
        // SAFETY: `this` is neither used nor dropped after this.
        let turned = into(unsafe { ManuallyDrop::take(&mut this.socket) });
        let socket = turned.inspect_err(|_| keep_in_child(number, inode))?;
        Ok(Unshared { socket: ManuallyDrop::new(socket), inode, epoch })
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
        let number = self.socket.as_fd().as_raw_fd();
        // SAFETY: it is dropped here and nowhere else, and not used again.
        unsafe { ManuallyDrop::drop(&mut self.socket) };
        // Only now, or a child that is forked in between would have it; no file of the program's is that inode.
        keep_in_child(number, self.inode);
    }
}

extern "C" fn before_fork() {
    let (life, me) = (begun(), me());
    // First: a handler's child that goes on here, and is no child of this fork, has counted nothing.
    FORKS.fetch_add(1, Ordering::Relaxed);
    let mut waited = false;
    while let Err(now) = life.enter(me, waited) {
        life.wait(now);
        waited = true;
    }
    FORKED.store(epoch(), Ordering::Relaxed);
}

extern "C" fn after_fork_parent() {
    // The count first: once it has left, another one may fork.
    if let Some(life) = life()
        && life.gate.load(Ordering::Relaxed) & !WAITED_FOR == me()
    {
        let _ = FORKS.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |forks| forks.checked_sub(1));
        if life.depth.load(Ordering::Relaxed) == 0 {
            // A child whose handler forks has its own number, and its page is its own.
            FORKED.store(0, Ordering::Relaxed);
        }
        life.leave(me());
    }
}

extern "C" fn after_fork_child() {
    if let Some(life) = life()
        && life.stamp.load(Ordering::Relaxed) == FORKED.load(Ordering::Relaxed)
    {
        for word in [&life.gate, &life.depth, &life.stamp] {
            word.store(0, Ordering::Release);
        }
    }
    epoch();
}

/// In a child of `fork`, once: before it opens any of its own. By the one thread that gives it its number.
fn close_of_parent() {
    if FORKS.swap(0, Ordering::Relaxed) == 0 {
        return;
    }
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

/// Whether something was done that does no harm if it is done twice. Nobody waits for who is at it, as `std`'s `Once` does: a child
/// does not have that thread, and would wait for ever.
pub(crate) struct Done(AtomicBool);

impl Done {
    pub(crate) const fn new() -> Done {
        Done(AtomicBool::new(false))
    }

    /// Does it, unless somebody, perhaps a parent, has.
    pub(crate) fn or(&self, work: impl FnOnce()) {
        if !self.0.load(Ordering::Acquire) {
            work();
            self.0.store(true, Ordering::Release);
        }
    }
}

struct Node<T> {
    epoch: u32,
    value: T,
}

/// A value made on first use in each process. A child makes its own and never looks into its parent's.
pub(crate) struct PerProcess<T> {
    node: AtomicPtr<Node<T>>,
    /// epoch << 1 | 1 while a thread of that epoch makes the value.
    making: AtomicU64,
}

// SAFETY: the cell hands out `&T` to any thread and drops `T` on the thread that drops the cell.
unsafe impl<T: Send + Sync> Send for PerProcess<T> {}
// SAFETY: as above; `node` and `making` are atomics.
unsafe impl<T: Send + Sync> Sync for PerProcess<T> {}

impl<T> PerProcess<T> {
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess { node: AtomicPtr::new(std::ptr::null_mut()), making: AtomicU64::new(0) }
    }

    /// The value, if this process has made one.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: a node stays allocated until the cell is dropped (in its own process) or for ever (in others).
        let node = unsafe { node.as_ref()? };
        (node.epoch == epoch()).then_some(&node.value)
    }

    /// What the parent had, in a child that has not made its own: only what is atomic in it may be read.
    pub(crate) fn of_parent(&self) -> Option<&T> {
        let node = self.node.load(Ordering::Acquire);
        // SAFETY: as in `get`.
        let node = unsafe { node.as_ref()? };
        (node.epoch != epoch()).then_some(&node.value)
    }

    /// The value. `make` sees what the parent had: only what is atomic in it may be read.
    #[inline]
    pub(crate) fn get_or_try_init<E>(&self, make: impl FnOnce(Option<&T>) -> Result<T, E>) -> Result<&T, E> {
        match self.get() {
            Some(value) => Ok(value),
            None => self.init(make),
        }
    }

    /// [`PerProcess::get_or_try_init`] for what cannot fail.
    #[inline]
    pub(crate) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        match self.get_or_try_init(|_| Ok::<T, std::convert::Infallible>(make())) {
            Ok(value) => value,
            Err(never) => match never {},
        }
    }

    #[cold]
    fn init<E>(&self, make: impl FnOnce(Option<&T>) -> Result<T, E>) -> Result<&T, E> {
        let epoch = epoch();
        let mine = u64::from(epoch) << 1 | 1;
        loop {
            let seen = self.making.load(Ordering::Acquire);
            // A mark of another epoch is of a thread that this process does not have.
            if seen != mine && self.making.compare_exchange(seen, mine, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                break;
            }
            std::thread::yield_now();
        }
        struct Unmark<'a>(&'a AtomicU64);
        impl Drop for Unmark<'_> {
            fn drop(&mut self) {
                self.0.store(0, Ordering::Release);
            }
        }
        let _unmark = Unmark(&self.making);
        let old = self.node.load(Ordering::Acquire);
        // SAFETY: as in `get`.
        let old = unsafe { old.as_ref() };
        if let Some(node) = old
            && node.epoch == epoch
        {
            return Ok(&node.value); // Another thread was first.
        }
        let value = make(old.map(|node| &node.value))?;
        let node = Box::into_raw(Box::new(Node { epoch, value }));
        self.node.store(node, Ordering::Release);
        // The parent's node is not dropped: dropping would touch what belongs to the parent.
        // SAFETY: `node` was just leaked from a Box.
        Ok(unsafe { &(*node).value })
    }
}

impl<T> Default for PerProcess<T> {
    fn default() -> PerProcess<T> {
        PerProcess::new()
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let node = *self.node.get_mut();
        if node.is_null() {
            return;
        }
        // SAFETY: `&mut self`: nobody else looks; the node came from Box::into_raw and was not dropped before.
        unsafe {
            if (*node).epoch == epoch() {
                drop(Box::from_raw(node));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::backend::contract::{Grant, OnLost, Status};
    use crate::wait::{Waiter, Waiting, block};

    /// Whether a child of now has `file` open.
    fn has_child(file: i32) -> bool {
        // SAFETY: the child calls only what is safe after fork in a threaded process: fcntl and _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: leaves the child without running anything of the test harness.
            unsafe { libc::_exit(if libc::fcntl(file, libc::F_GETFD) < 0 { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just forked; `status` outlives the call.
        unsafe { libc::waitpid(child, &mut status, 0) };
        status != 0
    }

    #[test]
    fn a_child_closes_what_is_ours_and_not_what_the_program_has_under_the_same_number() {
        epoch(); // the handlers are in place
        let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
        let number = file.as_raw_fd();
        let inode = close_in_child(&file);
        assert!(!has_child(number));
        // As a program does that closes what it does not know, and opens something of its own.
        let mut file = file;
        rustix::io::dup2(std::fs::File::open("/dev/null").unwrap(), &mut file).unwrap();
        assert!(has_child(number));
        keep_in_child(number, inode);
    }

    /// FAULTS: K2
    #[test]
    fn what_is_closed_by_the_program_costs_no_other_file_its_place() {
        epoch(); // the handlers are in place
        let mut file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
        let earlier = std::fs::File::open("/proc/self/exe").unwrap();
        let inode = close_in_child(&earlier);
        let (number, first) = (file.as_raw_fd(), close_in_child(&file));
        keep_in_child(earlier.as_raw_fd(), inode); // its place comes before
        // The program has closed it, and another one of ours is opened under its number.
        rustix::io::dup2(std::fs::File::open("/dev/null").unwrap(), &mut file).unwrap();
        let second = close_in_child(&file);
        keep_in_child(number, first);
        assert!(!has_child(number));
        keep_in_child(number, second);
        assert!(has_child(number));
    }

    #[cfg(feature = "redis")]
    #[test]
    fn a_child_has_no_socket_of_its_parents_and_leaves_its_number_alone() {
        use std::io::{Read, Write};
        let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
        let number = near.as_raw_fd();
        let mut near = Unshared::new(near);
        assert!(!has_child(number));
        // SAFETY: the child calls only what is safe after fork in a threaded process: system calls.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: as above; the number is free, and is then the child's own.
            let own = unsafe { libc::dup2(libc::STDERR_FILENO, number) } == number;
            let refused = near.get().is_err() && near.get_mut().is_err();
            drop(near);
            // SAFETY: as above; leaves the child without running anything of the test harness.
            unsafe {
                let open = libc::fcntl(number, libc::F_GETFD) >= 0;
                libc::_exit(if own && refused && open { 0 } else { 1 });
            }
        }
        let mut status = 0;
        // SAFETY: waits for the child just forked; `status` outlives the call.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        near.get_mut().unwrap().write_all(b"a").unwrap();
        drop(near);
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).unwrap();
        assert_eq!(heard, b"a");
    }

    /// FAULTS: K1
    #[test]
    fn what_a_parent_waits_for_is_nothing_to_its_child() {
        use crate::{Cancel, ErrorKind, EventLoop, Mutex, Timeout};
        use std::task::{Context, Poll, Waker};

        let path = std::env::temp_dir().join(format!("ipcmutex-fork-{}", std::process::id()));
        for url in ["spm:fork-waits".to_owned(), format!("mpm:{}", path.display())] {
            let mutex = Mutex::open(&url).expect("it opens");
            let hold = mutex.acquire().expect("it is free");
            let waits_in_line = |count: u32| {
                while mutex.status().expect("it is told").waiters != count {
                    std::thread::yield_now();
                }
            };
            let mut context = Context::from_waker(Waker::noop());
            let [mut polled, mut dropped] = [(); 2].map(|()| Box::pin(mutex.acquire_async()));
            for future in [&mut polled, &mut dropped] {
                assert!(future.as_mut().poll(&mut context).is_pending());
            }
            let mut dropped = Some(dropped);
            let on = EventLoop::new(|_| {});
            let event = mutex.acquire_on(&on, Timeout::FOREVER, |_| {});
            let callback = mutex.acquire_callback(Timeout::FOREVER, |_| {}).expect("it begins");
            let cancel = Cancel::new();
            std::thread::scope(|scope| {
                let thread =
                    scope.spawn(|| mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() }));
                waits_in_line(5);
                // SAFETY: malloc and the library, which is safe there, are all that the child uses.
                let child = unsafe { libc::fork() };
                if child == 0 {
                    // SAFETY: for a child that hangs.
                    unsafe { libc::alarm(10) };
                    drop(dropped.take());
                    cancel.cancel();
                    let polled = polled.as_mut().poll(&mut context);
                    let forked = matches!(polled, Poll::Ready(Err(error)) if error.kind() == ErrorKind::Forked);
                    let refused = !event.cancel() && !callback.cancel() && callback.is_over();
                    // SAFETY: leaves the child without running anything of the test harness.
                    unsafe { libc::_exit(if forked && refused { 7 } else { 8 }) };
                }
                let mut status = 0;
                // SAFETY: waits for the child just forked; `status` outlives the call.
                unsafe { libc::waitpid(child, &mut status, 0) };
                let waiters = mutex.status().expect("it is told").waiters;
                cancel.cancel();
                let ended = thread.join().expect("no panic").expect_err("it is held").kind();
                assert_eq!((status, waiters, ended), (7 << 8, 5, ErrorKind::Canceled), "{url}");
            });
            drop((polled, dropped));
            waits_in_line(2);
            assert!(callback.cancel() && event.cancel(), "{url}");
            hold.release().expect("it was held");
        }
        std::fs::remove_file(path).expect("it was made");
    }

    /// An engine that is asked in vain, and whose waiters leave when the test lets them.
    #[derive(Default)]
    struct Slow(std::sync::Mutex<()>);

    impl crate::backend::contract::Backend for Slow {
        fn try_take(&self) -> crate::Result<Option<Grant>> {
            Ok(None)
        }
        fn join(&self, _: &Arc<Waiter>) -> crate::Result<()> {
            Ok(())
        }
        fn wait(&self, waiter: &Arc<Waiter>, _: Option<std::time::Instant>) -> futex::Woken {
            while waiter.is_waiting() {
                std::thread::yield_now();
            }
            futex::Woken::Changed
        }
        fn leave(&self, _: &Arc<Waiter>) {
            drop(self.0.lock());
        }
        fn release(&self, _: u64) -> crate::Result<()> {
            unreachable!("nobody holds it")
        }
        fn give_back(&self, _: Grant) {}
        fn check(&self, _: u64) -> crate::Result<()> {
            unreachable!("nobody holds it")
        }
        fn on_lost(&self, _: u64, _: OnLost) -> crate::Result<()> {
            unreachable!("nobody holds it")
        }
        fn status(&self) -> crate::Result<Status> {
            unreachable!("nobody asks")
        }
        fn break_lock(&self) -> crate::Result<bool> {
            unreachable!("nobody breaks it")
        }
    }

    /// In the child nobody tells it that it has left the line.
    #[test]
    fn a_child_that_is_forked_while_its_wait_is_being_ended_does_not_wait() {
        static FORKED: AtomicI32 = AtomicI32::new(-1);
        extern "C" fn fork_here(_: libc::c_int) {
            // SAFETY: async-signal-safe, as is what follows in the child.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: for a child that hangs.
                unsafe { libc::alarm(10) };
            }
            FORKED.store(child, Ordering::SeqCst);
        }
        // SAFETY: the handler is one, and no other test of this crate has that signal.
        unsafe { libc::signal(libc::SIGUSR2, fork_here as *const () as libc::sighandler_t) };
        let slow = Arc::new(Slow::default());
        let backend: Arc<dyn crate::backend::contract::Backend> = slow.clone();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::scope(|scope| {
            let kept = slow.0.lock();
            let waits = scope.spawn(move || {
                // SAFETY: both ask for a number.
                let me = unsafe { (libc::gettid(), libc::pthread_self()) };
                let outcome =
                    block(&backend, Waiting::default(), |pending| tell.send((me, pending)).expect("the test waits"));
                if FORKED.load(Ordering::SeqCst) == 0 {
                    let forked = outcome.is_err_and(|error| error.kind() == crate::ErrorKind::Forked);
                    // SAFETY: leaves the child without running anything of the test harness.
                    unsafe { libc::_exit(if forked { 7 } else { 8 }) };
                }
                outcome
            });
            let ((number, thread), pending) = told.recv().expect("it waits");
            scope.spawn(move || pending.end(crate::error::Error::new(crate::ErrorKind::Closed, "acquire", "closed")));
            let call = libc::SYS_futex.to_string();
            let sleeps = || {
                std::fs::read_to_string(format!("/proc/self/task/{number}/syscall"))
                    .is_ok_and(|now| now.starts_with(&call))
            };
            while !sleeps() {
                std::thread::yield_now();
            }
            // SAFETY: the thread waits, and is joined below.
            unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
            let child = loop {
                match FORKED.load(Ordering::SeqCst) {
                    child @ 1.. => break child,
                    _ => std::thread::yield_now(),
                }
            };
            let mut status = 0;
            // SAFETY: waits for the child just forked; `status` outlives the call.
            unsafe { libc::waitpid(child, &mut status, 0) };
            drop(kept);
            let told = waits.join().expect("no panic").expect_err("it has ended").kind();
            assert_eq!((status, told), (7 << 8, crate::ErrorKind::Closed));
        });
    }

    /// A thread may be at it when the process forks.
    #[test]
    fn who_finds_somebody_at_it_does_not_wait() {
        let (done, times) = (Done::new(), AtomicU32::new(0));
        let count = || {
            times.fetch_add(1, Ordering::Relaxed);
        };
        done.or(|| {
            std::thread::scope(|scope| scope.spawn(|| done.or(count)).join()).expect("it does it, too");
            count();
        });
        done.or(count);
        assert_eq!(times.into_inner(), 2);
    }

    /// FAULTS: K4
    #[test]
    fn a_signals_handler_that_forks_does_not_wait_for_its_own_thread() {
        static FORKED: AtomicI32 = AtomicI32::new(-1);
        extern "C" fn fork_here(_: libc::c_int) {
            // SAFETY: this process has one thread, so that fork takes no locks but ours.
            let child = unsafe { libc::fork() };
            if child == 0 {
                // SAFETY: leaves the child without running anything of the test harness.
                unsafe { libc::_exit(7) };
            }
            FORKED.store(child, Ordering::SeqCst);
        }
        // SAFETY: one thread, which may hang here and is ended then.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: the handler is one; the rest is asynchronous-signal-safe.
            unsafe {
                libc::alarm(10);
                libc::signal(libc::SIGUSR1, fork_here as *const () as libc::sighandler_t);
            }
            let gate = ForkGate::enter();
            // SAFETY: it has a handler.
            unsafe { libc::raise(libc::SIGUSR1) };
            let early = FORKED.load(Ordering::SeqCst);
            drop(gate);
            let (inner, mut status) = (FORKED.load(Ordering::SeqCst), 0);
            // SAFETY: waits for the handler's child, and leaves this one without running anything of the test harness.
            unsafe {
                libc::waitpid(inner, &mut status, 0);
                libc::_exit(if early == -1 && status == 7 << 8 { 7 } else { 8 });
            }
        }
        let mut status = 0;
        // SAFETY: waits for the child just forked; `status` outlives the call.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 7 << 8);
    }

    #[test]
    fn a_child_has_its_own_value() {
        static CELL: PerProcess<AtomicU32> = PerProcess::new();
        let mine = epoch();
        CELL.get_or_init(|| AtomicU32::new(7));
        // SAFETY: the child calls only what is safe after fork in a threaded process: atomics, malloc, _exit.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let fresh = CELL.get().is_none() && epoch() != mine;
            let value = CELL.get_or_init(|| AtomicU32::new(8)).load(Ordering::Relaxed);
            // SAFETY: leaves the child without running anything of the test harness.
            unsafe { libc::_exit(if fresh && value == 8 { 0 } else { 1 }) };
        }
        let mut status = 0;
        // SAFETY: waits for the child just forked; `status` outlives the call.
        unsafe { libc::waitpid(child, &mut status, 0) };
        assert_eq!(status, 0);
        assert_eq!(epoch(), mine);
        assert_eq!(CELL.get().map(|cell| cell.load(Ordering::Relaxed)), Some(7));
    }
}
