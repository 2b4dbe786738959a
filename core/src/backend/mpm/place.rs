//! Which file, and whether it can be trusted with a lock.

use std::ffi::{CString, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::layout::{BLOCK, MAX_LEN};
use crate::error::{Error, ErrorKind, Result};
use crate::sys::file::is_set_id;
use crate::sys::fork::OwnFile;
use crate::url::{FilePlace, FileTarget};

/// What stands for a file, as long as it is not unlinked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Identity {
    pub(super) device: u64,
    pub(super) inode: u64,
}

impl Identity {
    pub(super) fn of(stat: &Stat) -> Identity {
        Identity { device: stat.st_dev, inode: stat.st_ino }
    }
}

/// The absolute path of the lock file.
pub(super) fn resolve(target: &FileTarget) -> Result<PathBuf> {
    match &target.place {
        FilePlace::Path(path) => std::path::absolute(path).map_err(|error| {
            Error::new(ErrorKind::Io, "open", format!("the working directory cannot be told: {error}"))
                .with_source(error)
        }),
        FilePlace::Id(id) => Ok(default_dir()?.join(id)),
    }
}

/// Where `mpm:<id>` locks live. It may have to be made yet.
pub(super) fn default_dir() -> Result<PathBuf> {
    let from_env = |name: &str| -> Option<OsString> {
        if is_set_id() { None } else { std::env::var_os(name).filter(|value| !value.is_empty()) }
    };
    let uid = rustix::process::geteuid().as_raw();
    // Of another user's login, as `su` leaves it set, it is not for us to put a folder there that its user cannot use.
    let is_ours = |run: &OsString| fs::stat(run.as_os_str()).map_or(true, |stat| stat.st_uid == uid);
    let dir = if let Some(dir) = from_env("IPCMUTEX_DIR") {
        PathBuf::from(dir)
    } else if let Some(run) = from_env("XDG_RUNTIME_DIR").filter(is_ours) {
        PathBuf::from(run).join("ipcmutex")
    } else {
        PathBuf::from(format!("/tmp/ipcmutex-{uid}"))
    };
    if !dir.is_absolute() {
        return Err(Error::new(
            ErrorKind::Invalid,
            "open",
            format!("the directory {} is not an absolute path", dir.display()),
        )
        .with_help("set IPCMUTEX_DIR to an absolute path"));
    }
    match fs::lstat(&dir) {
        Ok(stat) => check_dir(&dir, &stat, false)?,
        // Not made yet; but where it could not be made either, as in a login that is over, that is to be said.
        Err(Errno::NOENT) => {
            let parent = dir.parent().unwrap_or(Path::new("/"));
            fs::stat(parent)
                .map_err(|error| refused(parent, error).with_help("make it, or set IPCMUTEX_DIR to another place"))?;
        }
        Err(error) => return Err(refused(&dir, error)),
    }
    Ok(dir)
}

fn refused(dir: &Path, error: Errno) -> Error {
    Error::from_errno("open", format_args!("the directory {}", dir.display()), error)
}

/// Makes the default directory, if it is not there.
pub(super) fn make_dir(dir: &Path) -> Result<()> {
    let made = match fs::mkdir(dir, Mode::RWXU) {
        // The umask may have taken our own rights away.
        Ok(()) => fs::chmod(dir, Mode::RWXU),
        Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error),
    };
    let stat = made.and_then(|()| fs::lstat(dir)).map_err(|error| refused(dir, error))?;
    check_dir(dir, &stat, false)
}

fn check_dir(dir: &Path, stat: &Stat, shared: bool) -> Result<()> {
    let owner = stat.st_uid;
    let mode = stat.st_mode & 0o7777;
    let euid = rustix::process::geteuid().as_raw();
    let refuse =
        |what: String| Err(Error::new(ErrorKind::Unsafe, "open", format!("the directory {} {what}", dir.display())));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {}
        FileType::Symlink => return refuse("is a symbolic link".into()),
        _ => return refuse("is not a directory".into()),
    }
    if owner != euid && owner != 0 && !shared {
        return refuse(format!("belongs to user {owner}, not to user {euid}"));
    }
    if mode & 0o022 != 0 && mode & 0o1000 == 0 {
        return refuse(format!("has mode {mode:04o}: others could replace the lock file")).map_err(|error: Error| {
            error.with_help(format!("chmod go-w {0}, or set the sticky bit: chmod +t {0}", dir.display()))
        });
    }
    Ok(())
}

/// An open lock file that may be trusted.
pub(super) struct Opened {
    pub(super) file: OwnFile,
    pub(super) stat: Stat,
    /// Whether a mapping keeps its description, and so its byte locks, when the descriptor is closed.
    pub(super) mapping_keeps: bool,
}

/// How anything at a lock file's path is opened: it may be what it should not be.
pub(super) const CAREFULLY: OFlags =
    OFlags::NOFOLLOW.union(OFlags::CLOEXEC).union(OFlags::NONBLOCK).union(OFlags::NOCTTY);

/// Opens a lock file, and makes it if it is not there.
pub(super) fn open(path: &Path, target: &FileTarget) -> Result<Opened> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    match fs::stat(parent) {
        Ok(stat) => check_dir(parent, &stat, target.mode.is_some())?,
        Err(Errno::NOENT) => {
            return Err(Error::from_errno("open", format_args!("the folder {}", parent.display()), Errno::NOENT)
                .with_help("create the folder first; it is never created for a path"));
        }
        Err(error) => return Err(Error::from_errno("open", format_args!("the folder {}", parent.display()), error)),
    }
    let flags = CAREFULLY | OFlags::RDWR;
    // Open first, create only what is missing: O_CREAT on somebody else's file in a sticky directory is EACCES even for root.
    // For a long path a string is allocated, which is not for behind the gate.
    let text = CString::new(path.as_os_str().as_bytes()).map_err(|_| explain(path, Errno::INVAL))?;
    let open = |flags, mode| OwnFile::opened(|| fs::open(&text, flags, mode));
    loop {
        match open(flags, Mode::empty()) {
            Ok(file) => return check(path, file, target),
            Err(Errno::NOENT) => {}
            Err(error) => return Err(explain(path, error)),
        }
        let mode = Mode::from_raw_mode(target.mode.unwrap_or(0o600));
        match open(flags | OFlags::CREATE | OFlags::EXCL, mode) {
            Ok(file) => {
                // The umask may have taken rights away that were asked for, our own included.
                fs::fchmod(&file, mode).map_err(|error| Error::from_errno("open", path.display(), error))?;
                return check(path, file, target);
            }
            Err(Errno::EXIST) => {} // Somebody was quicker: open theirs.
            Err(error) => return Err(explain(path, error)),
        }
    }
}

/// An open that was refused, as the reader understands it.
fn explain(path: &Path, error: Errno) -> Error {
    let refuse = |what: &str| {
        Error::new(ErrorKind::Unsafe, "open", format!("{} is {what}, not a lock file", path.display()))
            .with_help("name a path that is free or holds a lock file of yours")
    };
    match fs::lstat(path).map(|stat| (FileType::from_raw_mode(stat.st_mode), stat.st_uid)) {
        Ok((FileType::Symlink, _)) => refuse("a symbolic link"),
        Ok((FileType::Directory, _)) => refuse("a directory"),
        Ok((FileType::Fifo, _)) => refuse("a FIFO"),
        Ok((FileType::Socket, _)) => refuse("a socket"),
        Ok((FileType::BlockDevice | FileType::CharacterDevice, _)) => refuse("a device"),
        Ok((_, owner)) if error == Errno::ACCESS && owner != rustix::process::geteuid().as_raw() => Error::new(
            ErrorKind::Permission,
            "open",
            format!("{} belongs to user {owner} and may not be opened by us", path.display()),
        )
        .with_help("its owner can share it with its group: chmod 0660 it, and ?mode=0660 in the URL of each"),
        _ => Error::from_errno("open", path.display(), error),
    }
}

fn check(path: &Path, file: OwnFile, target: &FileTarget) -> Result<Opened> {
    let stat = fs::fstat(&file).map_err(|error| Error::from_errno("open", path.display(), error))?;
    let refuse = |what: String| Err(Error::new(ErrorKind::Unsafe, "open", format!("{} {what}", path.display())));
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Fifo => return refuse("is a FIFO, not a lock file".into()),
        _ => return refuse("is not a regular file".into()),
    }
    let euid = rustix::process::geteuid().as_raw();
    let mode = stat.st_mode & 0o777;
    if target.mode.is_none() && stat.st_uid != euid {
        return refuse(format!("belongs to user {}, not to user {euid}", stat.st_uid));
    }
    let foreign = if target.mode.is_some() { 0o002 } else { 0o022 };
    if mode & foreign != 0 {
        return refuse(format!("has mode {mode:04o}: others may write to it"))
            .map_err(|error: Error| error.with_help("chmod go-w it, or share it with its group by ?mode=0660"));
    }
    let len = stat.st_size as u64;
    if !len.is_multiple_of(BLOCK as u64) || len > MAX_LEN as u64 {
        return refuse(format!("is {len} bytes long: it is not a lock file"));
    }
    let kind = fs::fstatfs(file.as_fd()).map_or(0, |found| found.f_type as u32);
    if !target.remote_fs
        && let Some(name) = remote_fs(kind)
    {
        return refuse(format!("is on {name}: a network file system does not tell when a lock's owner has died"))
            .map_err(|error: Error| {
                error.with_help("use rpm+redis: for several hosts, or ?remotefs=1 if it is used by this host alone")
            });
    }
    if is_old(&stat) {
        // A cleaner's removal is noticed and told; that it was not put off is no reason to refuse.
        let _ = fs::futimens(&file, &now());
    }
    Ok(Opened { file, stat, mapping_keeps: mapping_keeps(kind) })
}

/// Cleaners of temporary folders go by a file's times, and what is done in memory changes none: once a day an open or a use does.
fn is_old(stat: &Stat) -> bool {
    rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec - stat.st_mtime > 86_400
}

fn now() -> fs::Timestamps {
    let now = fs::Timespec { tv_sec: 0, tv_nsec: fs::UTIME_NOW };
    fs::Timestamps { last_access: now, last_modification: now }
}

/// What an open does for a file that is used and not opened: `stat` is what was found at `path`.
pub(super) fn keep_from_cleaners(path: &Path, stat: &Stat) {
    if is_old(stat) {
        let _ = fs::utimensat(fs::CWD, path, &now(), fs::AtFlags::SYMLINK_NOFOLLOW);
    }
}

/// Whether a file of this kind of file system is mapped as itself. One that lies over another (overlayfs above all) puts the
/// file underneath in its place, and then nothing holds on to the description that has the byte locks.
fn mapping_keeps(kind: u32) -> bool {
    const EXT: u32 = 0xef53;
    const XFS: u32 = 0x5846_5342;
    const BTRFS: u32 = 0x9123_683e;
    const TMPFS: u32 = 0x0102_1994;
    const F2FS: u32 = 0xf2f5_2010;
    matches!(kind, EXT | XFS | BTRFS | TMPFS | F2FS)
}

/// The name of the kind of file system, if other hosts may share it.
fn remote_fs(kind: u32) -> Option<&'static str> {
    match kind {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x6573_5546 => Some("FUSE"),
        0x0102_1997 => Some("9P"),
        0x00c3_6400 => Some("Ceph"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x7375_7245 => Some("Coda"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x0116_1970 => Some("GFS2"),
        0x7461_636f => Some("OCFS2"),
        0x4750_4653 => Some("GPFS"),
        _ => None,
    }
}

/// What is at `path` now.
pub(super) fn found(path: &Path) -> Result<Option<Stat>, Errno> {
    match fs::lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error),
    }
}
