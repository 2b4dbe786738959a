//! The link: made when it is needed, given up when it breaks, and who is told if the server stays away.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Event, PATIENCE, State, Worker};
use crate::backend::redis::lease::{self, jitter};
use crate::backend::redis::server::{Link, Road};
use crate::backend::redis::token::Token;
use crate::error::{Error, ErrorKind};
use crate::timeout::earlier;

impl Worker {
    pub(super) fn is_link_needed(&mut self) -> bool {
        let board = self.engine.board();
        self.overdue &= !board.holds.is_empty();
        // In a cluster a node that dies must be noticed: it may have taken holds with it.
        self.overdue |= self.engine.server.is_cluster() && !board.holds.is_empty();
        // Who listens for a loss is to hear of it when it happens.
        let listens = board.listened > 0;
        self.overdue || listens || !self.entries.is_empty() || !self.extensions.is_empty() || !board.debts.is_empty()
    }

    pub(super) fn link(&self) -> Option<&Link> {
        match &self.state {
            State::Up(link) => Some(link),
            _ => None,
        }
    }

    pub(super) fn connect(&mut self) {
        self.state = State::Making;
        self.number += 1;
        self.last_try = Some(Instant::now());
        self.tasks += 1;
        let (number, engine, events) = (self.number, self.engine.clone(), self.events.clone());
        let ear = self.events.clone();
        tokio::spawn(async move {
            let hear = Arc::new(move |heard| {
                // The loop outlives its links.
                let _ = ear.send(Event::Heard { number, heard });
            });
            let mut link = engine.server.link(&engine.learned, &engine.channel(), hear).await;
            if let Ok(Link { road: Road::One(connection), .. }) = &mut link {
                engine.scripts.teach(connection).await;
            }
            let _ = events.send(Event::Linked { number, link });
        });
    }

    pub(super) fn linked(&mut self, link: Link) {
        self.engine.board().arrivals.hearing =
            if link.listens && !self.engine.learned.forbids_scripts() { self.number } else { 0 };
        self.state = State::Up(link);
        self.overdue = false;
        // Subscribed first, looked then: what was published before is not missed.
        self.retake_all();
        self.renew_all();
        let debts: Vec<Token> = self.engine.board().debts.keys().cloned().collect();
        for token in debts {
            self.pay(&token);
        }
    }

    /// The server did what it was asked: that there is a connection to it does not say that it will.
    pub(super) fn serves(&mut self) {
        (self.failures, self.down) = (0, None);
    }

    /// A call found the connection broken.
    pub(super) fn broke(&mut self, number: u64, error: &redis::RedisError) {
        let error = self.engine.server.failed("acquire", error);
        self.unlink(number, &error);
    }

    pub(super) fn unlink(&mut self, number: u64, error: &Error) {
        if number != self.number || matches!(self.state, State::Down { .. }) {
            return;
        }
        // What it still answers is void: else what was subscribed on it would count as heard on the next one.
        self.number += 1;
        self.engine.board().arrivals.hearing = 0;
        self.calls.end();
        self.unpaid.clear();
        self.channels.clear();
        self.tracking = None;
        let now = Instant::now();
        self.state = State::Down { retry_at: now + lease::backoff(self.failures, jitter()) };
        self.failures = self.failures.saturating_add(1);
        let since = self.down.as_ref().map_or(now, |(since, _)| *since);
        self.down = Some((since, error.clone()));
        self.renewing.clear();
        self.anew.clear();
        self.overdue = true;
        for (_, _, answer) in self.extensions.drain(..) {
            // Whoever asked has gone if this fails.
            let _ = answer.send(Err(error.clone().with_operation("extend")));
        }
        let passing = matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Resource | ErrorKind::Protocol);
        if passing {
            self.suspend_lines(error);
        } else {
            // To ask again with the same password would change nothing.
            for serial in self.entries.keys().copied().collect::<Vec<_>>() {
                self.settle(serial, Err(error.clone()));
            }
        }
    }

    /// All connections lead to the old server. What is held is looked for on the new one at once.
    pub(super) fn changed(&mut self) {
        self.engine.direct.ring();
        self.overdue = true;
        self.last_try = None;
        match &mut self.state {
            State::Down { retry_at } => *retry_at = Instant::now(),
            State::Making | State::Up(_) => {
                let error = Error::new(ErrorKind::Unavailable, "acquire", "another server has become the master");
                self.unlink(self.number, &error);
            }
        }
    }

    /// Ends the waits that nobody else ends, when the server has not served them for long; when to look next.
    pub(super) fn give_up(&mut self) -> Option<Instant> {
        let (down_since, error) = self.down.clone().filter(|_| self.link().is_none())?;
        let patience = self.patience();
        let now = Instant::now();
        let mut next = None;
        let mut over = Vec::new();
        for (serial, entry) in &self.entries {
            if !entry.waiter.is_limited() {
                let until = entry.joined.max(down_since) + patience;
                if until <= now { over.push(*serial) } else { next = earlier(next, Some(until)) }
            }
        }
        for serial in over {
            self.settle(serial, Err(error.clone()));
        }
        next
    }

    pub(super) fn patience(&self) -> Duration {
        PATIENCE.max(self.engine.server.connect_timeout)
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::backend::redis::engine::Engine;
    use crate::backend::redis::hold::Hold;
    use crate::backend::redis::lock::Lock;
    use crate::backend::redis::server::Server;
    use crate::backend::redis::worker::line::{Ear, Line};
    use crate::url::{LockUrl, Target};

    #[test]
    fn what_a_link_that_was_given_up_answers_is_void() {
        let url = LockUrl::parse("rpm+redis+cluster://nowhere/given-up").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let mut worker = Worker::new(engine, unbounded_channel().0);
        (worker.state, worker.number, worker.tasks) = (State::Making, 1, 1);
        worker.lines.insert("given-up".into(), Line::default());
        worker.unlink(1, &Error::new(ErrorKind::Unavailable, "acquire", "a node closed the connection"));
        // By another node's connection, which lives for as long as something waits for its answer.
        worker.act(Event::Subscribed { lock: "given-up".into(), number: 1, reply: Ok(Value::Nil) });
        assert!(worker.channels.is_empty() && worker.lines["given-up"].ear == Ear::Shut);
    }

    #[test]
    fn an_extension_that_a_broken_link_keeps_from_the_server_is_told_as_one() {
        let url = LockUrl::parse("rpm+redis://nowhere/extended").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let lock = Arc::new(Lock::new(engine.clone(), "extended", target, String::new()));
        let hold = Arc::new(Hold::new(1, "token".into(), 1, &lock, lease::now(), lock.ttl));
        let mut worker = Worker::new(engine, unbounded_channel().0);
        (worker.state, worker.number) = (State::Making, 1);
        let (answer, answered) = std::sync::mpsc::sync_channel(1);
        worker.extensions.push((hold, lock.ttl, answer));
        worker.unlink(1, &Error::new(ErrorKind::Unavailable, "acquire", "the connection broke"));
        assert_eq!(answered.recv().expect("told").expect_err("not sent").operation(), "extend");
    }
}
