//! `mpm:`, processes of one host: the file engine.
//!
//! The WORD in a shared page decides who owns; the KERNEL vouches who lives, by a byte lock that dies with its
//! process; the LINE in the page says who is next. No server, no socket: whoever releases wakes who is first.
//!
//! # The word
//! Every change is one compare-and-swap of the whole word, so there is no half-done change that a death could leave.
//!
//! | from -> to | who | after it |
//! |---|---|---|
//! | FREE(g) -> HELD(own, g+1), LINE kept | a newcomer (strict: not if anybody waits), or the first waiter | |
//! | HELD(own, g) -> FREE(g), LINE kept | the hold | LINE: wake the first in line |
//! | HELD(own, g) with HAND_OVER, or LINE and the first in line has waited 1 ms -> RESERVED(first in line, g) | the hold; the time is noted before, and once more if the clock has gone on | wake it |
//! | HELD, RESERVED -> the same with LINE, and HAND_OVER if it is strict or has waited 1 ms | a waiter, before it sleeps | |
//! | HELD(d, g) -> HELD(own, g+1), abandoned | the first in line, or a newcomer (strict: not if anybody waits), who read the word, then found LIFE d free | |
//! | HELD(d, g) -> RESERVED(first in line, g), abandoned | anyone else in line who did | wake it |
//! | RESERVED(own) -> HELD(own, g+1) | the first of that process's line | |
//! | RESERVED(h) -> HELD(own, g+1) | the first in line but for h, or a newcomer (strict: not if anybody waits), if LIFE h is free, its cell is empty, or the reservation is older than 250 ms | |
//! | RESERVED(h) -> RESERVED(next), FREE | h, if its waiter left; who reserved it, if that one had left already or h has died; anyone else in line, in the same cases | wake |
//! | HELD(d), RESERVED(d) -> FREE | who moves into slot d, between taking CLAIM d and LIFE d | wake, also if nothing changed |
//! | FREE with LINE -> FREE | who looked for the first in line and found nobody; exactly the word it had read | look once more; somebody: LINE again |
//! | HELD(s, g) -> HELD(own, g+1) -> released | break; the old hold finds a word that is not its own | wake |
//!
//! # The line
//! Each process has one cell: the ticket of its first waiter, whether that one sleeps, and whether it is late. The lowest ticket is
//! first, but for those who are late.
//!
//! | event | who | what |
//! |---|---|---|
//! | a waiter comes | it | ticket from the page's counter; the first of its process writes the cell |
//! | the first is about to sleep | it | reads the bell, marks the cell asleep, looks at the word (and takes it, or sets LINE), sleeps on the bell as read |
//! | the lock comes free | who released | finds the lowest cell; if asleep: marks it awake, counts the bell up, wakes |
//! | it takes the lock or leaves | it | the next of its process takes over the cell, or the cell is cleared |
//! | it was woken, and does not come within 250 ms | whoever looks then | marks the cell late, if it is not asleep, and passes the lock on; nothing is reserved for it, and newcomers pass |
//! | it comes after all, at its next look | it | marks the cell asleep and not late: its ticket counts again |
//! | it dies | who finds its LIFE free | clears the cell |
//!
//! # The bell
//! One word for each process, which others can ring. On it sleeps the first of the process's line and nobody else, so that a ring
//! wakes one thread, however many wait. The table is of threads; who waits without one is the first's thread in `bells.rs`.
//!
//! | where a thread is | by | to |
//! |---|---|---|
//! | in line, awake | it is not the first: it clears its flag, and sleeps on that as cleared | on its own word |
//! | in line, awake | it is the first: reads the bell, looks at the word, sleeps on the bell as read | on the bell |
//! | on its own word | the one before it has left, under the line's lock: cell, then flag, then moved in the kernel, not woken | on the bell |
//! | on the bell | a ring, by a release or whoever has settled or ended its wait | awake |
//! | on its own word | whoever has ended its wait: flag, then wake, then a ring, for it may have been moved meanwhile | awake |
//!
//! Between the cell and the move a ring wakes nobody. It comes only if the word has been passed on already, so who moves a thread
//! looks at the word after it.
//!
//! # Why nothing is lost
//! A waiter writes its cell, then sees LINE in a word that is not free, then sleeps; a release changes the word, then
//! reads LINE from it, then reads the cells: one of the two sees the other. No release clears LINE; it goes only by a swap of the
//! very word for which the line was found empty, and an entry in between has another generation; whoever came between the reading and the
//! swap is found by a second look. A wake that comes
//! before the sleep has changed the bell, so the sleep ends at once. A waiter that leaves a free word to the one before it sets LINE in
//! it first. Who is found in the cells, and is gone when the word has been changed for it, is noticed by a second look at its cell. A releaser that dies between its swap and its wake, a waiter that
//! dies or freezes after it was woken: the pulse (`pulse.rs`) of the others looks, at the event of the death and every 250 ms.
//!
//! # Why nobody is robbed
//! A slot and a generation name one acquisition for ever; a process changes the word before its LIFE goes; LIFE goes only with the
//! process (or its last handle, which holds nothing). So from "the word names d, generation g" and then "LIFE d is free" follows that
//! this hold has ended without a release, and the swap succeeds only if the word still says so. A probe counts only on a
//! file description of the same inode; what cannot be told means that the owner lives.

mod bells;
mod layout;
mod place;
mod pulse;
mod site;
mod word;

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::fs::{self, Mode, OFlags};
use rustix::process::{Uid, geteuid};

use self::site::{Label, Site};
use self::word::{ABANDONED, Word};
use crate::backend::contract::{Backend, Grant, OnLost, Owner, State, Status};
use crate::backend::open::Origin;
use crate::error::{Error, Result, broken};
use crate::identity::identity;
use crate::service::clock;
use crate::sys::file::is_byte_locked;
use crate::sys::futex::Woken;
use crate::sys::page::Latest;
use crate::url::{Fairness, FilePlace, FileTarget, LockUrl};
use crate::waiter::Waiter;

/// The default directory as it is for this process, if `target` is in it.
pub(crate) fn origin(target: &FileTarget) -> Result<Origin> {
    let is_named = matches!(target.place, FilePlace::Id(_));
    let folder = is_named.then(|| Ok((place::default_dir()?, geteuid().as_raw()))).transpose()?;
    Ok(Origin { folder })
}

pub(crate) fn open(target: &FileTarget, url: &LockUrl, origin: &Origin) -> Result<Arc<dyn Backend>> {
    let (path, user) = match (&target.place, &origin.folder) {
        (FilePlace::Id(id), Some((folder, user))) => {
            let user = Uid::from_raw(*user);
            if geteuid() == user {
                place::make_dir(folder)?;
            }
            (folder.join(id), user)
        }
        _ => (place::resolve(target)?, geteuid()),
    };
    let owner = identity(url);
    let label = Label::new(&owner.label);
    let site = Site::open(path.clone(), target, &owner, &label)?;
    Ok(Arc::new_cyclic(|me| Mpm {
        path,
        target: target.clone(),
        owner,
        label,
        strict: url.fairness() == Fairness::Strict,
        user,
        sites: Latest::new(site),
        me: me.clone(),
    }))
}

/// A handle. It follows its path: when the file is replaced, it moves to the new one.
struct Mpm {
    path: PathBuf,
    target: FileTarget,
    owner: Owner,
    label: Label,
    strict: bool,
    /// Who opened it, in whichever process.
    user: Uid,
    sites: Latest<Site>,
    me: Weak<Mpm>,
}

/// How often a hold whose loss somebody wants to hear of is looked after.
const LOSS_WATCH: Duration = Duration::from_secs(1);

impl Mpm {
    #[inline]
    fn site(&self) -> Result<&Site> {
        loop {
            let site = self.sites.get();
            if !site.has_vanished() {
                return Ok(site);
            }
            self.sites.replace(site, || {
                // Who has dropped its rights since would make the folder its own, and shut out whose it was.
                if let (FilePlace::Id(_), Some(dir)) = (&self.target.place, self.path.parent())
                    && geteuid() == self.user
                {
                    place::make_dir(dir)?;
                }
                Site::open(self.path.clone(), &self.target, &self.owner, &self.label)
            })?;
        }
    }

    /// Lines up again where the path leads now.
    fn rejoin(&self, waiter: &Arc<Waiter>) -> Result<()> {
        while !self.site()?.join(waiter, self.me.clone(), self.strict)? {}
        if !waiter.is_waiting() {
            self.leave(waiter);
        }
        Ok(())
    }

    /// The site of the hold with `token`, also if its file has gone since.
    fn site_of(&self, token: u64) -> Option<Arc<Site>> {
        self.sites.find(|site| site.hold(token).is_some())
    }

    /// The end of a hold that is not where the path leads now.
    #[cold]
    fn release_elsewhere(&self, token: u64) -> Result<()> {
        let mut outcome = None;
        let _site = self.sites.find(|site| {
            outcome = site.hold(token).map(|hold| site.release(hold, token, false));
            outcome.is_some()
        });
        outcome.unwrap_or_else(|| {
            let error = broken("release");
            let _everywhere = self.sites.find(|site| {
                site.losses.tell(token, &error);
                false
            });
            Err(error)
        })
    }
}

fn watch_loss(site: Arc<Site>, token: u64) -> Result<()> {
    let again = Box::new(move || {
        if !site.losses.is_listening(token) {
            return;
        }
        match site.check_path(token) {
            Err(error) => site.losses.tell(token, &error),
            // Without a timer the loss is told by the release, at the latest.
            Ok(()) => drop(watch_loss(site, token)),
        }
    });
    clock::at(Instant::now() + LOSS_WATCH, again).map(drop)
}

impl Backend for Mpm {
    fn take_free(&self) -> Option<Grant> {
        let site = self.sites.get();
        let grant = site.take_free(self.strict, &self.label)?;
        if site.note_hold() {
            return Some(grant);
        }
        site.give_back(grant);
        None
    }

    fn try_take(&self) -> Result<Option<Grant>> {
        loop {
            let site = self.site()?;
            match site.take(self.strict, &self.label)? {
                None if site.is_here() => return Ok(None),
                None => {}
                Some(grant) if site.note_hold() => return Ok(Some(grant)),
                // A lock that nobody else can find is none; its loss is nobody's.
                Some(grant) => site.give_back(grant),
            }
        }
    }

    fn moves_sleepers(&self) -> bool {
        true
    }

    fn join(&self, waiter: &Arc<Waiter>) -> Result<()> {
        self.rejoin(waiter)
    }

    fn wait(&self, waiter: &Arc<Waiter>, until: Option<Instant>) -> Woken {
        match self.site() {
            Ok(site) => site.wait(waiter, until, self.strict),
            Err(error) => {
                // If it has an outcome already, that one stands.
                let _ = waiter.settle(Err(error));
                Woken::Changed
            }
        }
    }

    fn nudge(&self, waiter: &Arc<Waiter>) {
        self.sites.get().nudge(waiter);
    }

    fn leave(&self, waiter: &Arc<Waiter>) {
        let _everywhere = self.sites.find(|site| {
            site.leave(waiter);
            false
        });
    }

    #[inline]
    fn release(&self, token: u64) -> Result<()> {
        let site = self.sites.get();
        match site.hold(token) {
            Some(hold) => site.release(hold, token, false),
            None => self.release_elsewhere(token),
        }
    }

    fn give_back(&self, grant: Grant) {
        if let Some(site) = self.site_of(grant.token) {
            site.give_back(grant);
        }
    }

    fn check(&self, token: u64) -> Result<()> {
        match self.site_of(token) {
            Some(site) => site.check(token),
            None => Err(broken("check")),
        }
    }

    fn on_lost(&self, token: u64, notify: OnLost) -> Result<()> {
        let Some(site) = self.site_of(token) else {
            crate::service::call::run(Box::new(move || notify(broken("on_lost"))));
            return Ok(());
        };
        let number = site.losses.listen(token, notify);
        match site.check_path(token) {
            Err(error) => {
                site.losses.tell(token, &error);
                Ok(())
            }
            Ok(()) => match watch_loss(site.clone(), token) {
                // Who is told that it was not heard is not called later.
                Err(error) if site.losses.unlisten(token, number) => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn status(&self) -> Result<Status> {
        self.site()?;
        inspect(&self.path)
    }

    fn describe_owner(&self) -> Option<String> {
        let site = self.site().ok()?;
        let mut said = read(site.view(), |_| true).describe();
        said.extend(site.blindness());
        Some(said)
    }

    fn break_lock(&self) -> Result<bool> {
        loop {
            let site = self.site()?;
            if site.is_here() {
                return Ok(site.break_lock());
            }
        }
    }
}

/// What a lock file says, if `lives` says who lives.
fn read(view: &(impl layout::View + ?Sized), lives: impl Fn(u16) -> bool) -> Status {
    let word = Word(view.u64(layout::WORD));
    let held_by = matches!(word.state(), word::State::Held).then(|| word.slot());
    let state = match held_by {
        Some(slot) if lives(slot) => State::Held,
        Some(_) => State::Abandoned,
        None if word.has(ABANDONED) => State::Abandoned,
        None => State::Free,
    };
    let generation = word.generation();
    let base = view.u64(layout::BASES[word::half_of(generation)]);
    let token = if generation == 0 { 0 } else { word::token(base, generation) };
    let waiters = layout::slots(layout::blocks(view))
        .filter(|slot| view.u64(layout::cell(*slot)) != 0 && lives(*slot))
        .map(|slot| view.u32(layout::waiters(slot)))
        .fold(0, u32::saturating_add);
    let owner = held_by.map(|slot| layout::owner(view, slot));
    let held = held_by
        .filter(|_| state == State::Held)
        .map(|slot| Duration::from_millis(crate::sys::coarse_ms().saturating_sub(view.u64(layout::since(slot)))));
    Status { state, token, waiters, owner, held, numbers: layout::numbers(view, generation) }
}

/// What can be seen of the lock file at `path`, without opening the lock.
fn inspect(path: &Path) -> Result<Status> {
    let failed = |error| Error::from_errno("status", path.display(), error);
    let file = fs::open(path, place::CAREFULLY | OFlags::RDONLY, Mode::empty()).map_err(failed)?;
    let len = fs::fstat(&file).map_err(failed)?.st_size as usize;
    let mut bytes = vec![0; len.min(layout::MAX_LEN)];
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(&file, &mut bytes[done..], done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    use layout::View;
    let header = bytes.as_slice().u64(layout::HEADER);
    if header != 0 && header != layout::MAGIC {
        return Err(Error::new(
            crate::error::ErrorKind::Unsafe,
            "status",
            format!("{} is not a lock file", path.display()),
        ));
    }
    // What cannot be told means that it lives.
    Ok(read(bytes.as_slice(), |slot| is_byte_locked(file.as_fd(), layout::life_byte(slot)) != Ok(false)))
}

/// Whether nobody has made the lock file yet, though it could be made.
pub(crate) fn is_unmade(target: &FileTarget) -> Result<bool> {
    let path = place::resolve(target)?;
    let by_path = matches!(target.place, FilePlace::Path(_));
    Ok(matches!(place::found(&path), Ok(None)) && (!by_path || path.parent().is_some_and(Path::is_dir)))
}

/// The locks in this user's default directory, by URL.
pub(crate) fn list() -> Result<Vec<(String, Result<Status>)>> {
    let dir = place::default_dir()?;
    let entries = match std::fs::read_dir(&dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => {
            return Err(
                Error::new(crate::error::ErrorKind::Io, "ps", format!("{}: {error}", dir.display())).with_source(error)
            );
        }
    };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        // What is no regular file, or has a name that no URL has, is none of ours.
        let regular = entry.file_type().is_ok_and(|kind| kind.is_file());
        let Some(name) = entry.file_name().to_str().map(|name| format!("mpm:{name}")) else { continue };
        if regular && LockUrl::parse(&name).is_ok() {
            found.push((name, inspect(&entry.path())));
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(found)
}
