//! What every engine promises.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};
use crate::event_loop::EventLoop;
use crate::numbers::Numbers;
use crate::sys::futex::Woken;
use crate::text::printable;
use crate::waiter::Waiter;

/// One acquisition that an engine has granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// The fencing token: never 0, and strictly increasing per name.
    pub(crate) token: u64,
    /// Whether the previous hold ended without a release.
    pub(crate) abandoned: bool,
}

/// Told once, at most, why a hold is gone.
pub(crate) type OnLost = Box<dyn FnOnce(Error) + Send>;

/// Told what came of a take: a grant, or the ticket for a waiter.
pub(crate) type TookOrLinedUp = Box<dyn FnOnce(Result<Result<Grant, u64>>) + Send>;

/// Told what came of a release.
pub(crate) type Released = Box<dyn FnOnce(Result<()>) + Send>;

/// Whether anybody holds a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Nobody holds it.
    Free,
    /// Somebody holds it.
    Held,
    /// Nobody holds it, and the last hold ended without a release.
    Abandoned,
}

impl State {
    /// The word that every language shows.
    pub const fn name(self) -> &'static str {
        match self {
            State::Free => "free",
            State::Held => "held",
            State::Abandoned => "abandoned",
        }
    }
}

/// What can be seen of a lock from outside, at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Whether it is held.
    pub state: State,
    /// The token of the hold, or of the last one if there is none; 0 if that is not known.
    pub token: u64,
    /// How many acquisitions wait. It may count one that has just died.
    pub waiters: u32,
    /// Who holds it; for an abandoned lock, who held it. For display only: a pid says nothing across containers.
    pub owner: Option<Owner>,
    /// Since how long it is held.
    pub held: Option<Duration>,
    /// What it has been through.
    pub numbers: Numbers,
}

/// Who holds a lock, for display.
#[derive(Clone, Debug, PartialEq)]
pub struct Owner {
    /// The host's name as the owner sees it.
    pub host: String,
    /// The process id as the owner sees it.
    pub pid: u32,
    /// The owner's label.
    pub label: String,
}

impl Status {
    /// One clause for a TIMEOUT text: who holds it, since when, and how many wait.
    #[must_use]
    pub fn describe(&self) -> String {
        let mut text = match (&self.owner, self.state) {
            (Some(owner), State::Held) => {
                format!("held by pid {} on {} ({})", owner.pid, printable(&owner.host), printable(&owner.label))
            }
            _ => self.state.name().to_owned(),
        };
        if let (Some(held), State::Held) = (self.held, self.state) {
            text.push_str(&format!(" for {:.1} s", held.as_secs_f64()));
        }
        text.push_str(&format!(", {} waiting", self.waiters));
        text
    }
}

/// An open lock in one engine.
///
/// # The promise
/// - **Exclusion.** At most one grant of a name is live at a time: from when `try_take` returns it or a waiter is
///   settled with it, until `release`, `give_back`, `break_lock`, the death of the process or the end of a lease.
/// - **Token.** Each grant's token is larger than every earlier one of the name.
/// - **Line.** After `join` the engine owes the waiter one outcome: it settles it with a grant as soon as it is the
///   first in line and the lock is free, or with an error. The line is first come, first served over all
///   threads, processes and hosts that share the name; `try_take` may pass it only as `fair` allows.
/// - **Settling.** A waiter is settled outside every lock of the engine, since what it notifies may call back in.
///   A refusal (the waiter had ended meanwhile) gives the grant back, and the engine passes it on.
/// - **No polling.** A free lock is taken by who waits because it is woken. A slow re-check may back this up (files:
///   250 ms; Redis: the end of the lease, at most 20 s). Only redlock has no line: who waits there tries again, at random.
/// - **Fork.** An engine is used only in the process that opened it.
///
/// All methods may be called from any thread, at the same time.
pub(crate) trait Backend: Send + Sync {
    /// Takes the lock if that is possible now; never waits for a holder. `None`: it is held, or others go first.
    fn try_take(&self) -> Result<Option<Grant>>;

    /// Takes the lock if that needs nothing but the engine's own memory; `None` says nothing. The free path: `try_take` follows
    /// where it does not get there.
    #[inline]
    fn take_free(&self) -> Option<Grant> {
        None
    }

    /// Whether even a try asks a server, so that its time is part of a timeout.
    fn is_remote(&self) -> bool {
        false
    }

    /// Whether a sleeper may be moved to a word that other processes wake: [`Waiter::move_to`].
    fn moves_sleepers(&self) -> bool {
        false
    }

    /// `try_take` for one who waits until `deadline` if it comes to nothing: else the ticket for its waiter, which may
    /// be a place in the line already. `join` must follow. `sleeps`: then a thread calls `wait`.
    fn take_or_line_up(&self, _deadline: Option<Instant>, _sleeps: bool) -> Result<Result<Grant, u64>> {
        Ok(self.try_take()?.ok_or(0))
    }

    /// `take_or_line_up`, or `try_take` unless it `waits`, for an event loop, which waits for no server: `then` is told, here or on another
    /// thread. As a ticket 0 says that there is none. Whether it may have to wait for a thread that asks.
    fn ask_take(&self, _on: &EventLoop, waits: bool, deadline: Option<Instant>, then: TookOrLinedUp) -> bool {
        then(if waits { self.take_or_line_up(deadline, false) } else { self.try_take().map(|grant| grant.ok_or(0)) });
        false
    }

    /// `release` in this way.
    fn ask_release(&self, _on: &EventLoop, token: u64, then: Released) {
        then(self.release(token));
    }

    /// Puts `waiter` at the end of the line, and looks once more whether the lock is free.
    fn join(&self, waiter: &Arc<Waiter>) -> Result<()>;

    /// Sleeps on the caller's thread until the waiter may be settled, is nudged, `until`, or a signal.
    /// It may return for no reason. An engine in which the sleeper itself takes the lock does so in here.
    fn wait(&self, waiter: &Arc<Waiter>, until: Option<Instant>) -> Woken {
        waiter.park(until)
    }

    /// Makes a `wait` for this waiter return, now or if it is just about to begin.
    fn nudge(&self, waiter: &Arc<Waiter>) {
        waiter.unpark();
    }

    /// Takes a waiter that has ended out of the line, or leaves word that it is to be: an event loop may call it, it waits for
    /// no server. Who waited is told afterwards. What it stood in the way of goes on.
    fn leave(&self, waiter: &Arc<Waiter>);

    /// Ends the hold with this token.
    ///
    /// # Errors
    /// LOST if it was gone already; then nobody else's hold is touched. UNAVAILABLE if a server does not
    /// answer; then the hold ends with its lease.
    fn release(&self, token: u64) -> Result<()>;

    /// Undoes a grant that reached nobody: `release`, but the next one hears the same `abandoned`.
    fn give_back(&self, grant: Grant);

    /// Whether the hold still stands, without I/O: `Ok` or LOST.
    fn check(&self, token: u64) -> Result<()>;

    /// Renews a lease to `ttl`, or to the URL's.
    fn extend(&self, _token: u64, _ttl: Option<Duration>) -> Result<()> {
        Err(Error::new(ErrorKind::Unsupported, "extend", "a hold of this engine has no lease")
            .with_help("it lasts until it is released or its process ends"))
    }

    /// How long the lease still lasts for certain; `None` if there is no lease.
    fn valid_for(&self, _token: u64) -> Option<Duration> {
        None
    }

    /// Calls `notify` once if the hold is lost, and never if it is released. Called at once if it is lost already.
    fn on_lost(&self, token: u64, notify: OnLost) -> Result<()>;

    /// What can be seen from outside.
    fn status(&self) -> Result<Status>;

    /// Who holds it, for the text of a TIMEOUT; it must cost no round trip.
    fn describe_owner(&self) -> Option<String> {
        self.status().ok().map(|status| status.describe())
    }

    /// Why waits cannot be served at the moment, if they cannot: told in the place of TIMEOUT. No round trip.
    fn unserved(&self) -> Option<Error> {
        None
    }

    /// Why a wait of so long came to ask nothing, if what others of this process ask stays unanswered. No round trip.
    fn silent(&self, _waited: Duration) -> Option<Error> {
        None
    }

    /// Takes the lock away from whoever holds it; whether somebody did. That hold is LOST, its token stale.
    fn break_lock(&self) -> Result<bool>;
}
