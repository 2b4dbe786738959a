//! The caller's connection, on which whatever thread calls, one at a time.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;

use super::Engine;
use crate::backend::redis::server::{Connection, PATIENT, elsewhere};
use crate::backend::redis::wire::{self, Script};
use crate::backend::redis::worker::Event;
use crate::error::{Error, ErrorKind, Result, forked};
use crate::service::offload;
use crate::sync::Turns;
use crate::sys::thread;

#[derive(Default)]
pub(crate) struct Caller {
    pub(super) connection: Option<Connection>,
    /// The engine's count of changes when it was made.
    pub(super) changes: u64,
    /// When the server failed to be there, unless it has been since, how long it was waited for, and how it failed: who asked before
    /// that, and would not wait for longer, shares the outcome.
    failure: Option<(Instant, Duration, Error)>,
}

/// A call that failed, and whether the server may have done it all the same.
pub(crate) struct Failed {
    pub(crate) error: Error,
    pub(crate) in_doubt: bool,
}

impl Engine {
    /// Runs `call` on the caller's connection; once more on a new one if the old one turns out to be closed. `call`
    /// must be something that may be done twice.
    pub(crate) fn call<T>(
        &self,
        operation: &'static str,
        call: impl FnMut(&mut Connection) -> redis::RedisResult<T>,
    ) -> Result<T, Failed> {
        self.call_on(&self.caller, None, operation, call)
    }

    /// The same on `place`'s, by somebody who has until `deadline`.
    pub(crate) fn call_on<T>(
        &self,
        place: &Turns<Caller>,
        deadline: Option<Instant>,
        operation: &'static str,
        mut call: impl FnMut(&mut Connection) -> redis::RedisResult<T>,
    ) -> Result<T, Failed> {
        let (asked, queued) = (offload::asked(), Instant::now());
        let Some(mut caller) = place.lock_by(deadline.map(|end| end.max(queued + PATIENT))) else {
            if !self.is_ours() {
                return Err(Failed { error: forked(operation), in_doubt: false });
            }
            if let Some(error) = self.silent_before(operation, queued.elapsed()) {
                return Err(Failed { error, in_doubt: false });
            }
            let message = "not acquired in time: others of this process still wait for the server's answer";
            return Err(Failed { error: Error::new(ErrorKind::Timeout, operation, message), in_doubt: false });
        };
        let left = || deadline.map_or(Duration::MAX, |end| end.saturating_duration_since(Instant::now()).max(PATIENT));
        if let Some((at, waited, error)) = &caller.failure
            && *at > asked
            && *waited >= left()
        {
            return Err(Failed { error: error.clone().with_operation(operation), in_doubt: false });
        }
        // Replicas that are waited for are no silence of the server.
        let _asking = if std::ptr::eq(place, &self.caller) { self.asking() } else { None };
        // A signal would cut an answer in two. Bounded: by `connect_timeout` and ANSWER.
        let _undisturbed = thread::Undisturbed::enter();
        let mut in_doubt = false;
        let changes = self.changes();
        if std::mem::replace(&mut caller.changes, changes) != changes {
            caller.connection = None;
        }
        let (mut moved, mut dropped) = (false, false);
        loop {
            let most = left();
            let mut connection = match caller.connection.take() {
                Some(connection) => connection,
                None => match self.server.connect(&self.learned, most.min(self.server.connect_timeout)) {
                    Ok(connection) => {
                        caller.failure = None;
                        if self.changes() != changes {
                            // Who listens to the old server should know.
                            self.direct.ring();
                        }
                        connection
                    }
                    // Closed as it was being set up: once more, as if it had been closed before.
                    Err(error) if wire::is_cut(&error) && !std::mem::replace(&mut dropped, true) => continue,
                    Err(error) => {
                        let cut_short = error.is_timeout() && most < self.server.connect_timeout;
                        let error = self.server.failed(operation, &error);
                        self.hasty.fetch_or(cut_short, Ordering::Relaxed);
                        let waited = if cut_short { most } else { Duration::MAX };
                        caller.failure = Some((Instant::now(), waited, error.clone()));
                        return Err(Failed { error, in_doubt });
                    }
                },
            };
            connection.asked_for(asked, deadline);
            let begun = Instant::now();
            let answer = match connection.another() {
                // Who asks another node does not wait for this one.
                Some(another) => {
                    caller.connection = Some(another);
                    drop(caller);
                    let answer = call(&mut connection);
                    if self.learned.has_moved()
                        && let Some(thread) = &self.board().thread
                    {
                        let _ = thread.send(Event::Look); // it looks for what is held
                    }
                    match answer {
                        Ok(value) => return Ok(value),
                        Err(error) => {
                            caller = place.lock();
                            Err(error)
                        }
                    }
                }
                None => call(&mut connection),
            };
            match answer {
                Ok(value) => {
                    caller.connection = Some(connection);
                    caller.failure = None;
                    return Ok(value);
                }
                // Nothing was done: once more, where the master is now. The name may lead to another server since.
                Err(error) if wire::is_demoted(&error) && !moved => moved = true,
                Err(error) if wire::is_answer(&error) => {
                    caller.connection.get_or_insert(connection);
                    return Err(Failed { error: self.server.failed(operation, &error), in_doubt });
                }
                Err(error) => {
                    // A server that is silent will not answer a new connection either.
                    if std::mem::replace(&mut in_doubt, true) || error.is_timeout() {
                        let cut_short = error.is_timeout() && most < self.server.patience();
                        let waited = if cut_short { begun.elapsed() } else { Duration::MAX };
                        let error = self.server.failed(operation, &error);
                        // That one node failed says nothing of another.
                        if !self.server.is_cluster() {
                            caller.failure = Some((Instant::now(), waited, error.clone()));
                        }
                        return Err(Failed { error, in_doubt });
                    }
                }
            }
        }
    }

    /// Where somebody had too little time to connect, a thread does for who comes next: else who never has more would never get there.
    pub(crate) fn connect_ahead(self: &Arc<Engine>) {
        // A cluster's nodes are connected to one by one.
        if !self.hasty.swap(false, Ordering::Relaxed)
            || self.server.is_cluster()
            || self.connecting.swap(true, Ordering::Relaxed)
        {
            return;
        }
        let engine = self.clone();
        let connect = move || {
            let changes = engine.changes();
            let made = engine.server.connect(&engine.learned, engine.server.connect_timeout);
            engine.connecting.store(false, Ordering::Relaxed);
            let mut caller = engine.caller.lock();
            if let (Ok(connection), None) = (made, &caller.connection) {
                (caller.connection, caller.changes, caller.failure) = (Some(connection), changes, None);
            }
        };
        if thread::spawn("ipcmutex-dial", thread::FULL_STACK, connect).is_err() {
            self.connecting.store(false, Ordering::Relaxed);
        }
    }

    /// What the background thread does by script, where those are forbidden: what it watches for must be on a
    /// connection for it alone.
    pub(crate) async fn aside(
        self: &Arc<Engine>,
        call: Arc<impl Fn(bool) -> redis::Cmd + Send + Sync + 'static>,
    ) -> redis::RedisResult<Value> {
        let engine = self.clone();
        let ask = move |connection: &mut Connection| match call(false).query::<Value>(connection) {
            // What the server says of one lock is no word about the way to it.
            Err(error) if wire::is_answer(&error) && !wire::is_demoted(&error) => Ok(Err(error)),
            answer => answer.map(Ok),
        };
        let work = move || engine.call_on(&engine.aside, None, "acquire", ask);
        match elsewhere(work).await? {
            Ok(answer) => answer,
            Err(failed) => Err(std::io::Error::other(failed.error).into()),
        }
    }

    /// A script on the caller's connection, and its answer as `read` understands it.
    pub(crate) fn run<T>(
        &self,
        operation: &'static str,
        script: &Script,
        keys: &[String],
        args: &[&str],
        read: fn(&Value) -> Result<T>,
    ) -> Result<T> {
        let call = |connection: &mut Connection| {
            let reply = run(connection, |by_text| script.call(by_text, keys, args))?;
            read(&reply).map_err(wire::unasked)
        };
        self.call(operation, call).map_err(|failed| failed.error)
    }
}

/// Runs a script; by text if the server has forgotten it.
pub(crate) fn run(connection: &mut Connection, call: impl Fn(bool) -> redis::Cmd) -> redis::RedisResult<Value> {
    match call(false).query::<Value>(connection) {
        Err(error) if wire::is_unknown_script(&error) => match call(true).query(connection) {
            Err(again) if wire::is_unknown_script(&again) => Err(wire::misplaced()),
            answer => answer,
        },
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::redis::server::Server;
    use crate::url::{LockUrl, Target};

    #[test]
    fn who_shares_a_failure_is_told_what_failed_for_it() {
        let url = LockUrl::parse("rpm+redis://nowhere/shared").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let error = Error::new(ErrorKind::Unavailable, "status", "it does not answer");
        let later = Instant::now() + Duration::from_secs(3600);
        engine.caller.lock().failure = Some((later, Duration::MAX, error));
        let told = engine.call("release", |_| Ok(())).map_err(|failed| failed.error).expect_err("it is shared");
        assert_eq!((told.operation(), told.message()), ("release", "it does not answer"));
    }
}
