//! One lock table per process, even when several copies of this library are loaded (a Python wheel, a Node addon, `libipcmutex.so`).
//!
//! Each copy exports the cell [`ipcmutex_spm_v1`]. All copies use the cell of the copy that was loaded first; whoever
//! needs it first puts its own [`Table`] of C functions in. From then on every copy calls that table, its own
//! code included. Neither the cell nor the table goes away: the copies are linked `-z nodelete`, and a plugin that is linked with the static
//! library is kept loaded once its cell is chosen, or its table is. A program that is linked statically
//! takes part if it exports its symbols (`-rdynamic`).
//!
//! What was loaded before a copy is noted when the copy is loaded: the loader's lock for `dl_iterate_phdr` is none of those which a fork
//! resets, and who throws a C++ exception takes it, too (before glibc 2.35). A child that was forked meanwhile would wait for it for ever.
//! The loader is asked for their cells at the first use only: asked earlier, it would begin what it has loaded and not begun yet.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::numbers::{BUCKETS, Numbers};

/// What the table is asked to call back: a waiter, or a listener for a loss.
pub(crate) trait Guesting: Send + Sync + 'static {
    /// Takes a grant, or refuses it.
    fn offer(&self, token: u64, abandoned: bool) -> bool;
    /// Looks again.
    fn nudge(&self);
    /// Hears that the hold is lost.
    fn lost(&self);
    /// Whether a thread sleeps for it and takes the lock itself when nudged.
    fn is_blocking(&self) -> bool;
}

#[repr(C)]
struct GuestTable {
    offer: extern "C" fn(*const c_void, u64, u8) -> u8,
    nudge: extern "C" fn(*const c_void),
    lost: extern "C" fn(*const c_void),
    is_blocking: extern "C" fn(*const c_void) -> u8,
    drop: extern "C" fn(*const c_void),
    clone: extern "C" fn(*const c_void),
}

/// A counted reference to a guest of whatever copy.
#[repr(C)]
pub(crate) struct Guest {
    data: *const c_void,
    table: *const GuestTable,
}

// SAFETY: a guest is an Arc of a `Send + Sync` type behind functions that take it by shared reference.
unsafe impl Send for Guest {}
// SAFETY: as above.
unsafe impl Sync for Guest {}

struct GuestTables<G>(std::marker::PhantomData<G>);

impl<G: Guesting> GuestTables<G> {
    const TABLE: GuestTable = GuestTable {
        offer: Self::offer,
        nudge: Self::nudge,
        lost: Self::lost,
        is_blocking: Self::is_blocking,
        drop: Self::drop,
        clone: Self::clone,
    };

    fn of<'a>(data: *const c_void) -> &'a G {
        // SAFETY: `data` came from Arc::into_raw of an Arc<G> in `Guest::new`, and the guest that carries it still
        // counts it; the reference lives no longer than the call.
        unsafe { &*data.cast::<G>() }
    }

    extern "C" fn offer(data: *const c_void, token: u64, abandoned: u8) -> u8 {
        Self::of(data).offer(token, abandoned != 0).into()
    }
    extern "C" fn nudge(data: *const c_void) {
        Self::of(data).nudge();
    }
    extern "C" fn lost(data: *const c_void) {
        Self::of(data).lost();
    }
    extern "C" fn is_blocking(data: *const c_void) -> u8 {
        Self::of(data).is_blocking().into()
    }
    extern "C" fn drop(data: *const c_void) {
        // SAFETY: as in `of`; a guest is dropped once, and gives its count back here.
        unsafe { Arc::decrement_strong_count(data.cast::<G>()) };
    }
    extern "C" fn clone(data: *const c_void) {
        // SAFETY: as in `of`; the caller makes a second guest, which owns this count.
        unsafe { Arc::increment_strong_count(data.cast::<G>()) };
    }
}

impl Guest {
    pub(crate) fn new<G: Guesting>(guest: Arc<G>) -> Guest {
        Guest { data: Arc::into_raw(guest).cast(), table: const { &GuestTables::<G>::TABLE } }
    }

    fn table(&self) -> &GuestTable {
        // SAFETY: a promoted constant of a copy that is never unloaded.
        unsafe { &*self.table }
    }

    /// The same number for the same guest.
    pub(crate) fn id(&self) -> usize {
        self.data as usize
    }
    pub(crate) fn offer(&self, token: u64, abandoned: bool) -> bool {
        (self.table().offer)(self.data, token, abandoned.into()) != 0
    }
    pub(crate) fn nudge(&self) {
        (self.table().nudge)(self.data);
    }
    pub(crate) fn lost(&self) {
        (self.table().lost)(self.data);
    }
    pub(crate) fn is_blocking(&self) -> bool {
        (self.table().is_blocking)(self.data) != 0
    }
}

impl Clone for Guest {
    fn clone(&self) -> Guest {
        (self.table().clone)(self.data);
        Guest { data: self.data, table: self.table }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        (self.table().drop)(self.data);
    }
}

/// What can be seen of a lock.
#[repr(C)]
pub(crate) struct RawStatus {
    pub(crate) state: u32,
    pub(crate) waiters: u32,
    pub(crate) token: u64,
    pub(crate) held_ms: i64,
    pub(crate) label_len: u32,
    pub(crate) label: [u8; 64],
}

impl Default for RawStatus {
    fn default() -> RawStatus {
        RawStatus { state: 0, waiters: 0, token: 0, held_ms: 0, label_len: 0, label: [0; 64] }
    }
}

/// What a lock has been through.
#[repr(C)]
#[derive(Default)]
struct RawNumbers {
    acquisitions: u64,
    gave_up: u64,
    losses: u64,
    rechecks: u64,
    waits: [u64; BUCKETS],
}

/// An in-process lock, as the copy that keeps it implements it.
pub(crate) trait SharedLock: Send + Sync + 'static {
    fn open(name: &str) -> Arc<Self>;
    /// A number for this label, for `take` and `claim`.
    fn label(&self, label: &str) -> u32;
    fn take(&self, strict: bool, label: u32) -> Option<(u64, bool)>;
    fn join(&self, guest: Guest, strict: bool, label: u32);
    /// Takes the lock for this guest if it is the first in line and the lock is free, and offers it.
    fn claim(&self, guest: usize);
    fn leave(&self, guest: usize);
    fn release(&self, token: u64) -> bool;
    fn give_back(&self, token: u64, abandoned: bool);
    fn holds(&self, token: u64) -> bool;
    /// Keeps `guest` to be told of the loss of `token`; false if it is lost already.
    fn watch(&self, token: u64, guest: Guest) -> bool;
    fn break_lock(&self) -> bool;
    fn status(&self) -> RawStatus;
    fn numbers(&self) -> Numbers;
}

/// The functions of the copy that keeps the locks. It only ever grows at its end.
#[repr(C)]
pub(crate) struct Table {
    size: usize,
    open: extern "C" fn(*const u8, usize) -> *const c_void,
    close: extern "C" fn(*const c_void),
    label: extern "C" fn(*const c_void, *const u8, usize) -> u32,
    take: extern "C" fn(*const c_void, u8, u32, *mut u8) -> u64,
    join: extern "C" fn(*const c_void, Guest, u8, u32),
    claim: extern "C" fn(*const c_void, usize),
    leave: extern "C" fn(*const c_void, usize),
    release: extern "C" fn(*const c_void, u64) -> u8,
    give_back: extern "C" fn(*const c_void, u64, u8),
    holds: extern "C" fn(*const c_void, u64) -> u8,
    watch: extern "C" fn(*const c_void, u64, Guest) -> u8,
    break_lock: extern "C" fn(*const c_void) -> u8,
    status: extern "C" fn(*const c_void, *mut RawStatus),
    numbers: extern "C" fn(*const c_void, *mut RawNumbers),
}

struct Tables<L>(std::marker::PhantomData<L>);

impl<L: SharedLock> Tables<L> {
    const TABLE: Table = Table {
        size: size_of::<Table>(),
        open: Self::open,
        close: Self::close,
        label: Self::label,
        take: Self::take,
        join: Self::join,
        claim: Self::claim,
        leave: Self::leave,
        release: Self::release,
        give_back: Self::give_back,
        holds: Self::holds,
        watch: Self::watch,
        break_lock: Self::break_lock,
        status: Self::status,
        numbers: Self::numbers,
    };

    fn of<'a>(lock: *const c_void) -> &'a L {
        // SAFETY: `lock` came from Arc::into_raw in `open`, and the `Remote` that passes it still counts it.
        unsafe { &*lock.cast::<L>() }
    }

    fn text<'a>(text: *const u8, len: usize) -> &'a str {
        // SAFETY: `Remote` passes the pointer and length of a live &str.
        let bytes = unsafe { std::slice::from_raw_parts(text, len) };
        std::str::from_utf8(bytes).unwrap_or_default()
    }

    extern "C" fn open(name: *const u8, len: usize) -> *const c_void {
        Arc::into_raw(L::open(Self::text(name, len))).cast()
    }
    extern "C" fn close(lock: *const c_void) {
        // SAFETY: as in `of`; a `Remote` closes once and gives its count back here.
        drop(unsafe { Arc::from_raw(lock.cast::<L>()) });
    }
    extern "C" fn label(lock: *const c_void, label: *const u8, len: usize) -> u32 {
        Self::of(lock).label(Self::text(label, len))
    }
    extern "C" fn take(lock: *const c_void, strict: u8, label: u32, abandoned: *mut u8) -> u64 {
        match Self::of(lock).take(strict != 0, label) {
            None => 0,
            Some((token, left)) => {
                // SAFETY: `Remote` passes a pointer to a local of its own.
                unsafe { *abandoned = left.into() };
                token
            }
        }
    }
    extern "C" fn join(lock: *const c_void, guest: Guest, strict: u8, label: u32) {
        Self::of(lock).join(guest, strict != 0, label);
    }
    extern "C" fn claim(lock: *const c_void, guest: usize) {
        Self::of(lock).claim(guest);
    }
    extern "C" fn leave(lock: *const c_void, guest: usize) {
        Self::of(lock).leave(guest);
    }
    extern "C" fn release(lock: *const c_void, token: u64) -> u8 {
        Self::of(lock).release(token).into()
    }
    extern "C" fn give_back(lock: *const c_void, token: u64, abandoned: u8) {
        Self::of(lock).give_back(token, abandoned != 0);
    }
    extern "C" fn holds(lock: *const c_void, token: u64) -> u8 {
        Self::of(lock).holds(token).into()
    }
    extern "C" fn watch(lock: *const c_void, token: u64, guest: Guest) -> u8 {
        Self::of(lock).watch(token, guest).into()
    }
    extern "C" fn break_lock(lock: *const c_void) -> u8 {
        Self::of(lock).break_lock().into()
    }
    extern "C" fn status(lock: *const c_void, status: *mut RawStatus) {
        // SAFETY: `Remote` passes a pointer to a local of its own.
        unsafe { *status = Self::of(lock).status() };
    }
    extern "C" fn numbers(lock: *const c_void, numbers: *mut RawNumbers) {
        let Numbers { acquisitions, gave_up, losses, rechecks, waits } = Self::of(lock).numbers();
        // SAFETY: `Remote` passes a pointer to a local of its own.
        unsafe { *numbers = RawNumbers { acquisitions, gave_up, losses, rechecks, waits } };
    }
}

/// A lock of the process's one table.
pub(crate) struct Remote {
    table: &'static Table,
    lock: *const c_void,
}

// SAFETY: the lock behind is `Send + Sync` (`SharedLock`), and all calls take it by shared reference.
unsafe impl Send for Remote {}
// SAFETY: as above.
unsafe impl Sync for Remote {}

impl Remote {
    /// Opens `name` in the process's table; `L` is what this copy offers if the table is still missing.
    pub(crate) fn open<L: SharedLock>(name: &str) -> Remote {
        let table = shared_table(const { &Tables::<L>::TABLE });
        Remote { table, lock: (table.open)(name.as_ptr(), name.len()) }
    }
    pub(crate) fn label(&self, label: &str) -> u32 {
        (self.table.label)(self.lock, label.as_ptr(), label.len())
    }
    pub(crate) fn take(&self, strict: bool, label: u32) -> Option<(u64, bool)> {
        let mut abandoned = 0;
        match (self.table.take)(self.lock, strict.into(), label, &mut abandoned) {
            0 => None,
            token => Some((token, abandoned != 0)),
        }
    }
    pub(crate) fn join(&self, guest: Guest, strict: bool, label: u32) {
        (self.table.join)(self.lock, guest, strict.into(), label);
    }
    pub(crate) fn claim(&self, guest: usize) {
        (self.table.claim)(self.lock, guest);
    }
    pub(crate) fn leave(&self, guest: usize) {
        (self.table.leave)(self.lock, guest);
    }
    pub(crate) fn release(&self, token: u64) -> bool {
        (self.table.release)(self.lock, token) != 0
    }
    pub(crate) fn give_back(&self, token: u64, abandoned: bool) {
        (self.table.give_back)(self.lock, token, abandoned.into());
    }
    pub(crate) fn holds(&self, token: u64) -> bool {
        (self.table.holds)(self.lock, token) != 0
    }
    pub(crate) fn watch(&self, token: u64, guest: Guest) -> bool {
        (self.table.watch)(self.lock, token, guest) != 0
    }
    pub(crate) fn break_lock(&self) -> bool {
        (self.table.break_lock)(self.lock) != 0
    }
    pub(crate) fn status(&self) -> RawStatus {
        let mut status = RawStatus::default();
        (self.table.status)(self.lock, &mut status);
        status
    }
    pub(crate) fn numbers(&self) -> Numbers {
        let mut raw = RawNumbers::default();
        (self.table.numbers)(self.lock, &mut raw);
        let RawNumbers { acquisitions, gave_up, losses, rechecks, waits } = raw;
        Numbers { acquisitions, gave_up, losses, rechecks, waits }
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        (self.table.close)(self.lock);
    }
}

/// This copy's cell; see the module. The name carries the version of [`Table`].
#[unsafe(no_mangle)]
#[allow(non_upper_case_globals, reason = "a C symbol")]
pub(crate) static ipcmutex_spm_v1: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());
const SYMBOL: &CStr = c"ipcmutex_spm_v1";

fn shared_table(mine: &'static Table) -> &'static Table {
    static CHOSEN: AtomicPtr<Table> = AtomicPtr::new(std::ptr::null_mut());
    let chosen = CHOSEN.load(Ordering::Acquire);
    if !chosen.is_null() {
        // SAFETY: CHOSEN only ever holds pointers to the constant table of a copy that is never unloaded.
        return unsafe { &*chosen };
    }
    let cell = cell();
    let offered: *mut c_void = std::ptr::from_ref(mine).cast_mut().cast();
    let table = match cell.compare_exchange(std::ptr::null_mut(), offered, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => mine,
        // SAFETY: whoever filled the cell filled it with its constant `Table` of this version.
        Err(theirs) => unsafe { &*theirs.cast::<Table>() },
    };
    let table = if table.size >= mine.size { table } else { mine };
    CHOSEN.store(std::ptr::from_ref(table).cast_mut(), Ordering::Release);
    table
}

/// The chosen cell.
static CELL: AtomicPtr<AtomicPtr<c_void>> = AtomicPtr::new(std::ptr::null_mut());

fn cell() -> &'static AtomicPtr<c_void> {
    // SAFETY: null, or the cell of a copy that is never unloaded.
    if let Some(cell) = unsafe { CELL.load(Ordering::Acquire).as_ref() } {
        return cell;
    }
    let first = std::ptr::from_ref(first_cell(what_was_loaded())).cast_mut();
    // What was looked for in vain is no error of the program's, which may be within its own `dlopen`.
    // SAFETY: it asks nothing of its caller.
    unsafe { libc::dlerror() };
    let chosen = CELL.compare_exchange(std::ptr::null_mut(), first, Ordering::AcqRel, Ordering::Acquire).err();
    // SAFETY: as in `cell`.
    unsafe { &*chosen.unwrap_or(first) }
}

/// What was loaded when this copy was, noted by the first who asks: when the copy is loaded, or where nothing is run then, by the first use.
pub(crate) fn what_was_loaded() -> &'static [Object] {
    // No `OnceLock`: a child would wait for ever for the thread that was at it.
    static LOADED: AtomicPtr<Vec<Object>> = AtomicPtr::new(std::ptr::null_mut());
    let mut loaded = LOADED.load(Ordering::Acquire);
    if loaded.is_null() {
        let fresh = Box::into_raw(Box::new(objects()));
        // One that comes second is lost: once.
        loaded = LOADED
            .compare_exchange(std::ptr::null_mut(), fresh, Ordering::AcqRel, Ordering::Acquire)
            .map_or_else(|first| first, |_| fresh);
    }
    // SAFETY: it came from a Box, and is never given back.
    unsafe { &*loaded }
}

/// The name of the object that this is linked into; none if that is the program itself, which stays anyway.
pub(crate) fn own_object() -> Option<&'static CStr> {
    // SAFETY: an address of ours is asked for, and the answer is only read if it was filled.
    let base = unsafe {
        let mut info: libc::Dl_info = std::mem::zeroed();
        // Of nothing that is exported: the loader may give another copy's in its place.
        if libc::dladdr(own_object as *const c_void, &mut info) == 0 {
            return None;
        }
        info.dli_fbase as u64
    };
    let own = what_was_loaded().iter().find(|object| object.base == base)?;
    (!own.name.is_empty()).then_some(&own.name)
}

pub(crate) struct Object {
    base: u64,
    name: CString,
}

/// What is loaded, in the order in which it was.
fn objects() -> Vec<Object> {
    extern "C" fn note(info: *mut libc::dl_phdr_info, _size: usize, objects: *mut c_void) -> c_int {
        // SAFETY: the loader passes a valid info; `objects` is the Vec below, used by this thread alone; a null
        // name is checked for, and any other is a C string that lives during the callback.
        unsafe {
            let objects = &mut *objects.cast::<Vec<Object>>();
            let name: *const c_char = (*info).dlpi_name;
            let name = if name.is_null() { CString::default() } else { CStr::from_ptr(name).to_owned() };
            objects.push(Object { base: (*info).dlpi_addr, name });
        }
        0
    }
    let mut objects: Vec<Object> = Vec::new();
    // SAFETY: `note` has the type that the loader calls; the Vec outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note), std::ptr::from_mut(&mut objects).cast()) };
    objects
}

/// The cell of the first loaded object that has one; ours, if none can be found.
fn first_cell(objects: &[Object]) -> &'static AtomicPtr<c_void> {
    for object in objects {
        let name = if object.name.is_empty() { std::ptr::null() } else { object.name.as_ptr() };
        // SAFETY: the name is null (the program itself) or a live C string; NOLOAD only finds what is loaded. The
        // count that dlopen takes is given back below.
        let handle = unsafe { libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD) };
        if handle.is_null() {
            continue;
        }
        // SAFETY: a live handle and a C string; the Dl_info is only read if dladdr says that it was filled.
        let (symbol, own) = unsafe {
            let symbol = libc::dlsym(handle, SYMBOL.as_ptr());
            let mut info: libc::Dl_info = std::mem::zeroed();
            // dlsym also looks into the object's dependencies; only the object's own cell counts.
            let own = !symbol.is_null()
                && libc::dladdr(symbol, &mut info) != 0
                && (object.base == 0 || info.dli_fbase as u64 == object.base);
            if own {
                // A plugin with the static library may be closed, if nobody has used its copy, and would take the cell with it.
                libc::dlopen(name, libc::RTLD_LAZY | libc::RTLD_NOLOAD | libc::RTLD_NODELETE);
            }
            libc::dlclose(handle);
            (symbol, own)
        };
        if own {
            // SAFETY: an object that exports this symbol exports an AtomicPtr<c_void> under it, and stays.
            return unsafe { &*symbol.cast::<AtomicPtr<c_void>>() };
        }
    }
    &ipcmutex_spm_v1
}
