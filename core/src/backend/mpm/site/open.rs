//! How a process comes to a lock file and leaves it: its mapping, its slot, its place among the sites of the process.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::*};
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{self, FallocateFlags};
use rustix::io::Errno;

use super::super::layout::{self, BLOCK, MAX_BLOCKS, MAX_LEN};
use super::super::place::{self, Identity};
use super::super::word::{self, ABANDONED, State};
use super::{Label, Site};
use crate::backend::contract::Owner;
use crate::error::{Error, ErrorKind, Result};
use crate::loss::Losses;
use crate::sync::Guarded;
use crate::sys::coarse_ms;
use crate::sys::file::{lock_byte, write_in_place};
use crate::sys::fork::PerProcess;
use crate::sys::page::Mapping;
use crate::url::FileTarget;

type Sites = Guarded<HashMap<Identity, Weak<Site>>>;
static SITES: PerProcess<Sites> = PerProcess::new();

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
}

/// A number for this boot of the host; 0 if it cannot be told.
fn boot_id() -> u64 {
    static BOOT_ID: PerProcess<u64> = PerProcess::new();
    *BOOT_ID.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        // FNV-1a: it only has to differ from the last one.
        text.bytes()
            .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
    })
}

impl Site {
    /// The site at `path`, with a slot of its own in the file; shared with the other handles of this process.
    pub(in crate::backend::mpm) fn open(
        path: PathBuf,
        target: &FileTarget,
        owner: &Owner,
        label: &Label,
    ) -> Result<Arc<Site>> {
        let sites = SITES.get_or_init(Guarded::default);
        // Sites that turn out not to be the one; dropped after `known` is unlocked, since their end locks it.
        let mut others: Vec<Arc<Site>> = Vec::new();
        let mut known = sites.lock();
        // The checks of `place::open` were made when the site was opened; the inode says that it is the same file.
        if !known.is_empty()
            && let Ok(Some(stat)) = place::found(&path)
            && let Some(site) = known.get(&Identity::of(&stat)).and_then(Weak::upgrade)
        {
            if !site.has_vanished() && site.path == path {
                return Ok(site);
            }
            others.push(site);
        }
        let place::Opened { file, stat, mapping_keeps } = place::open(&path, target)?;
        let file = Arc::new(file);
        let identity = Identity::of(&stat);
        if let Some(site) = known.get(&identity).and_then(Weak::upgrade) {
            if !site.has_vanished() {
                return Ok(site); // Another spelling of the same path.
            }
            others.push(site);
        }
        let io = |what: &'static str| {
            let path = &path;
            move |error: Errno| Error::from_errno("open", format_args!("{}: {what}", path.display()), error)
        };
        if stat.st_size == 0 {
            // A full disk would have no room for what Btrfs writes elsewhere, and a store into the mapping would be a SIGBUS.
            write_in_place(file.as_fd());
        }
        if (stat.st_size as usize) < BLOCK {
            allocate(file.as_fd(), 0).map_err(io("allocating"))?;
        }
        let len = (stat.st_size as usize).max(BLOCK);
        let page = Mapping::new(file.as_fd(), len, MAX_LEN).map_err(io("mapping"))?;
        begin_page(&page, identity, &path)?;
        let slot = claim_slot(file.as_fd(), &page).map_err(io("taking a slot"))?.ok_or_else(|| {
            Error::new(
                ErrorKind::Resource,
                "open",
                format!("{} has all of its {} slots taken", path.display(), layout::MAX_SLOT),
            )
            .with_help("close the lock in some of the processes that have it open")
        })?;
        let root = fs::stat("/").ok().map(|stat| Identity::of(&stat));
        let site = Arc::new_cyclic(|me| Site {
            path: path.clone(),
            identity,
            root,
            page,
            file: (!mapping_keeps).then(|| file.clone()),
            slot,
            since: layout::since(slot),
            base: AtomicU64::new(0),
            vanished: AtomicBool::new(false),
            looks: AtomicU64::new(0),
            next_touch: AtomicU64::new(0),
            label: AtomicU64::new(0),
            looked: AtomicU64::new(0),
            blind: AtomicI32::new(0),
            local: Guarded::default(),
            front: AtomicU64::new(0),
            watched: AtomicBool::new(false),
            losses: Losses::default(),
            me: me.clone(),
        });
        layout::write_text(&site.page, layout::host(slot), &owner.host);
        site.write_label(label);
        site.page.u32(layout::pid(slot)).store(owner.pid, Release);
        site.move_in();
        let alive = lock_byte(file.as_fd(), layout::life_byte(slot)).map_err(io("taking a slot"));
        if !matches!(alive, Ok(true)) {
            others.push(site);
            alive?;
            // Nobody else takes LIFE without CLAIM: a program that knows nothing of ours has a lock there.
            return Err(Error::new(ErrorKind::Unsafe, "open", format!("{} has foreign byte locks", path.display())));
        }
        drop(file);
        known.insert(identity, Arc::downgrade(&site));
        // If the file was unlinked meanwhile, this is nobody's lock: whoever takes it looks.
        Ok(site)
    }

    /// After CLAIM, before LIFE: what the slot's last occupant left. If it died as the owner, nobody else may have seen it.
    pub(super) fn move_in(&self) {
        self.page.u64(layout::cell(self.slot)).store(0, SeqCst);
        self.page.u32(layout::waiters(self.slot)).store(0, Relaxed);
        loop {
            let word = self.word();
            let owned = matches!(word.state(), State::Held | State::Reserved) && word.slot() == self.slot;
            if owned {
                let abandoned = word.state() == State::Held || word.has(ABANDONED);
                self.note_passing(coarse_ms());
                if self.swap(word, word.freed(abandoned)).is_err() {
                    continue;
                }
                if word.state() == State::Held {
                    self.count(layout::losses(self.slot));
                }
            }
            break;
        }
        // Also if nothing was cleared: the last occupant may have died between its release and its wake.
        self.serve_line();
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(sites) = SITES.get() {
            let mut sites = sites.lock();
            if sites.get(&self.identity).is_some_and(|site| site.strong_count() == 0) {
                sites.remove(&self.identity);
            }
        }
        self.page.u32(layout::pid(self.slot)).store(0, Release);
    }
}

/// Gives the file room for a block. An allocated block never fails to be written, however full the disk is: but on Btrfs, where a snapshot
/// shares it, or an older kernel wants room all the same.
fn allocate(file: BorrowedFd<'_>, block: usize) -> Result<(), Errno> {
    loop {
        match fs::fallocate(file, FallocateFlags::empty(), (block * BLOCK) as u64, BLOCK as u64) {
            Err(Errno::INTR) => {}
            // A file system that cannot reserve: the length alone must do.
            Err(Errno::OPNOTSUPP) => {
                let len = fs::fstat(file)?.st_size as u64;
                return fs::ftruncate(file, len.max(((block + 1) * BLOCK) as u64));
            }
            other => return other,
        }
    }
}

/// What no program of ours has written.
pub(super) fn damaged(operation: &'static str, path: &Path) -> Error {
    Error::new(ErrorKind::Protocol, operation, format!("the lock file {} is damaged", path.display()))
        .with_help("stop the programs that use it and remove it")
}

/// Makes a new page ours, or checks that it is. An all-zero page is a valid one: nothing here is half done, whoever dies.
fn begin_page(page: &Mapping, identity: Identity, path: &Path) -> Result<()> {
    let header = page.u64(layout::HEADER).load(Acquire);
    if header != 0 && header != layout::MAGIC {
        return Err(if header & layout::MAGIC_MASK == layout::MAGIC & layout::MAGIC_MASK {
            Error::new(
                ErrorKind::Protocol,
                "open",
                format!("{} is a lock file of version {}; this library knows version 1", path.display(), header >> 56),
            )
            .with_help("use the same version of the library everywhere on this host")
        } else {
            Error::new(ErrorKind::Unsafe, "open", format!("{} has content that is not a lock's", path.display()))
                .with_help("name a path that is free, or remove the file if it is not needed")
        });
    }
    // Others add a block to the file before they count it here.
    match page.reaches(page.u32(layout::BLOCKS).load(Acquire) as usize * BLOCK) {
        Some(true) => {}
        Some(false) => return Err(damaged("open", path)),
        None => {
            return Err(Error::from_errno("open", format_args!("{}: mapping", path.display()), Errno::NOMEM)
                .with_help("give this process more memory (ulimit -v) or more mappings (vm.max_map_count)"));
        }
    }
    let boot = boot_id();
    let known = page.u64(layout::BOOT).load(Acquire) == boot && page.u64(layout::INODE).load(Acquire) == identity.inode;
    if header == 0 || !known {
        // A new page, or one from before a restart or a restore: tokens go on from the wall clock, which no count has reached.
        let now = wall_ns();
        page.u64(layout::BASES[0]).fetch_max(now, AcqRel);
        page.u64(layout::BASES[1]).fetch_max(now.wrapping_add(word::HALF), AcqRel);
        page.u64(layout::BOOT).store(boot, Release);
        page.u64(layout::INODE).store(identity.inode, Release);
        // Last: whoever finds the magic finds the bases. If somebody else was first, so much the better.
        let _ = page.u64(layout::HEADER).compare_exchange(0, layout::MAGIC, AcqRel, Acquire);
    }
    Ok(())
}

/// Takes CLAIM of a slot that nobody has, growing the file if need be.
fn claim_slot(file: BorrowedFd<'_>, page: &Mapping) -> Result<Option<u16>, Errno> {
    let mut blocks = layout::blocks(page);
    // First the slots that say they are empty, then those that say they are not: their occupants may have died.
    for say_empty in [true, false] {
        for slot in layout::slots(blocks) {
            let empty = page.u32(layout::pid(slot)).load(Relaxed) == 0;
            if empty == say_empty && lock_byte(file, layout::claim_byte(slot))? {
                return Ok(Some(slot));
            }
        }
    }
    while blocks < MAX_BLOCKS {
        allocate(file, blocks)?;
        blocks += 1;
        match page.reaches(blocks * BLOCK) {
            Some(true) => {}
            Some(false) => return Err(Errno::IO), // It was cut off in this very moment.
            None => return Err(Errno::NOMEM),
        }
        page.u32(layout::BLOCKS).fetch_max(blocks as u32, AcqRel);
        for slot in layout::slots(blocks) {
            if layout::block_of(slot) == blocks - 1 && lock_byte(file, layout::claim_byte(slot))? {
                return Ok(Some(slot));
            }
        }
    }
    Ok(None)
}
