//! What is asked of all servers, and what their answers come to. A majority decides.

use std::sync::Arc;
use std::time::Duration;

use redis::Value;

use super::super::lease;
use super::super::token::Token;
use super::super::wire::{self, Ask, Ending, Refusal, Script, Scripts, Taken};
use super::Shape;
use super::quorum::{Dial, GRACE, Vote, Voters};
use crate::backend::contract::{State, Status};
use crate::error::{Error, ErrorKind, Result};

pub(super) struct Won {
    pub(super) fence: u64,
    pub(super) abandoned: bool,
    /// When it was asked for.
    pub(super) sent: u64,
}

pub(super) enum Took {
    Won(Won),
    Refused(Option<Refusal>),
}

/// Counts votes until they decide.
pub(super) struct Poll {
    servers: usize,
    yes: usize,
    no: usize,
    failures: Vec<Error>,
}

impl Poll {
    pub(super) fn new(servers: usize) -> Poll {
        Poll { servers, yes: 0, no: 0, failures: Vec::new() }
    }

    fn majority(&self) -> usize {
        self.servers / 2 + 1
    }

    fn is_won(&self) -> bool {
        self.yes >= self.majority()
    }

    pub(super) fn count(&mut self, vote: Result<bool>) {
        match vote {
            Ok(true) => self.yes += 1,
            Ok(false) => self.no += 1,
            Err(error) => self.failures.push(error),
        }
    }

    /// Whether a majority says yes; an error if no majority says anything.
    pub(super) fn outcome(&self, operation: &'static str) -> Result<bool> {
        if self.is_won() {
            Ok(true)
        } else if self.no > self.servers - self.majority() {
            Ok(false)
        } else {
            Err(self.failure(operation))
        }
    }

    /// Those that are there and will not have it.
    pub(super) fn misfits(&self) -> usize {
        self.failures.iter().filter(|error| error.kind() != ErrorKind::Unavailable).count()
    }

    /// No majority can answer, and it is known whether that may pass.
    fn is_hopeless(&self) -> bool {
        let (most, misfits) = (self.servers - self.majority(), self.misfits());
        self.failures.len() > most && (misfits == 0 || misfits > most)
    }

    /// Whatever the others say: it is won, or cannot be, and it is known whether a majority is there.
    pub(super) fn is_over(&self) -> bool {
        let cannot_be_won = self.no + self.failures.len() > self.servers - self.majority();
        self.is_won() || self.is_hopeless() || (cannot_be_won && self.yes + self.no >= self.majority())
    }

    /// Why there is no majority for anything.
    fn failure(&self, operation: &'static str) -> Error {
        let answered = self.yes + self.no;
        // One that is misconfigured says more than one that is away.
        let told = self.failures.iter().max_by_key(|error| error.kind() != ErrorKind::Unavailable);
        let Some(told) = told else {
            let text = format!("{answered} of {} servers answered in time", self.servers);
            return Error::new(ErrorKind::Unavailable, operation, text);
        };
        let text = format!(
            "{answered} of {} servers answered, {} that agree are needed; {}",
            self.servers,
            self.majority(),
            told.message()
        );
        // Unless it is for them alone that there is no majority, it may come back.
        let kind = if self.misfits() > self.servers - self.majority() { told.kind() } else { ErrorKind::Unavailable };
        Error::new(kind, operation, text)
    }
}

/// What is known to a lock's rounds.
pub(super) struct Rounds {
    pub(super) shape: Arc<Shape>,
    pub(super) scripts: Arc<Scripts>,
    pub(super) raise: Arc<Script>,
    pub(super) servers: usize,
    pub(super) limit: Duration,
}

impl Rounds {
    /// Takes the lock on a majority, and has that majority remember the token. Else what was taken is to be released.
    pub(super) async fn take(&self, voters: &Voters, dial: Dial, token: &Token, floor: u64) -> Result<Took> {
        let sent = lease::now();
        let mut poll = Poll::new(self.servers);
        let mut abandoned = false;
        let mut highest = floor;
        let mut refusal = None;
        let (shape, scripts, asked) = (self.shape.clone(), self.scripts.clone(), token.clone());
        let call = move |by_text: bool| {
            let ask = Ask {
                token: &asked,
                ttl: shape.ttl,
                info: &shape.info,
                ticket: None,
                floor,
                beside_others: shape.beside_others,
                process: "0",
                home: None,
            };
            scripts.take(by_text, &shape.keys, &ask)
        };
        voters
            .ask("acquire", (self.limit, GRACE), dial, call, |vote| {
                match vote.reply.and_then(|reply| wire::taken(&reply, token)) {
                    Ok(Taken::Owned { fence, abandoned: died, .. }) => {
                        poll.yes += 1;
                        abandoned |= died;
                        highest = highest.max(fence);
                    }
                    Ok(Taken::Refused(seen)) => {
                        poll.no += 1;
                        refusal = Some(seen);
                    }
                    Ok(Taken::Spent) => poll.no += 1,
                    Err(error) => poll.failures.push(error),
                }
                poll.is_over()
            })
            .await;
        if poll.is_won() {
            self.remember(voters, dial, token, highest).await?;
            if lease::deadline(sent, self.shape.ttl) <= lease::now() {
                let text = "the servers took longer to answer than the lease lasts";
                return Err(Error::new(ErrorKind::Unavailable, "acquire", text));
            }
            Ok(Took::Won(Won { fence: highest, abandoned, sent }))
        } else if poll.no > 0 && poll.yes + poll.no >= poll.majority() {
            // Who holds it somewhere, or is taking it just now, has been seen: it can be tried again.
            Ok(Took::Refused(refusal))
        } else {
            Err(poll.failure("acquire"))
        }
    }

    /// Two majorities share a server, but not the highest counter: the token goes back to a majority of those that
    /// hold it, so that whoever takes it next meets it. All are asked: one of those that answered first may be gone by now.
    async fn remember(&self, voters: &Voters, dial: Dial, token: &Token, fence: u64) -> Result<()> {
        let args = [token.to_string(), fence.to_string()];
        let keys = [self.shape.keys.lock().to_owned(), self.shape.keys.state().to_owned()];
        let raise = self.raise.clone();
        let call = move |by_text: bool| raise.call(by_text, &keys, &args);
        self.decide(voters, "acquire", dial, call, |vote| Ok(vote.reply? == Value::Int(1))).await.and_then(|won| {
            let lost = || Error::new(ErrorKind::Unavailable, "acquire", "the hold was lost while it was being taken");
            if won { Ok(()) } else { Err(lost()) }
        })
    }

    /// What the votes come to. Where those that answered first differ, the others
    /// have the last word: they are waited for.
    async fn decide(
        &self,
        voters: &Voters,
        operation: &'static str,
        dial: Dial,
        call: impl Fn(bool) -> redis::Cmd + Clone + Send + Sync + 'static,
        read: impl Fn(Vote) -> Result<bool>,
    ) -> Result<bool> {
        let mut poll = Poll::new(self.servers);
        let vote = |vote: Vote| {
            poll.count(read(vote));
            poll.is_over()
        };
        voters.ask(operation, (self.limit, self.limit), dial, call, vote).await;
        poll.outcome(operation)
    }

    /// Releases `token` wherever it stands; whether it stood on a majority.
    pub(super) async fn release(&self, voters: &Voters, dial: Dial, token: &Token, ending: Ending) -> Result<bool> {
        let (shape, scripts, token) = (self.shape.clone(), self.scripts.clone(), token.clone());
        let call = move |by_text: bool| scripts.release(by_text, &shape.keys, &token, ending, shape.beside_others, "0");
        // The first may have released it, and somebody else have held it since: by our own clock the lease stood.
        let stood = |vote: Vote| Ok(wire::released(&vote.reply?)? || vote.in_doubt);
        self.decide(voters, "release", dial, call, stood).await
    }

    /// The same at the end of the process: also those are waited for that no majority needs.
    pub(super) async fn release_everywhere(&self, voters: &Voters, token: &Token, ending: Ending) {
        let (shape, scripts, token) = (self.shape.clone(), self.scripts.clone(), token.clone());
        let call = move |by_text: bool| scripts.release(by_text, &shape.keys, &token, ending, shape.beside_others, "0");
        voters.ask("release", (self.limit, GRACE), Dial::OWED, call, |_| false).await;
    }

    /// Asks `script` of all; the answers that came before a majority's and a moment after it.
    pub(super) async fn each<T>(
        &self,
        voters: &Voters,
        operation: &'static str,
        which: fn(&Scripts) -> &Script,
        args: &[&str],
        read: fn(&Value) -> Result<T>,
    ) -> Result<Vec<T>> {
        let (shape, scripts) = (self.shape.clone(), self.scripts.clone());
        let args: Vec<String> = args.iter().map(|&arg| arg.to_owned()).collect();
        let call = move |by_text: bool| which(&scripts).call(by_text, shape.keys.all(shape.beside_others), &args);
        gather(voters, operation, (self.servers, self.limit), call, |vote| read(&vote?)).await
    }

    pub(super) async fn status(&self, voters: &Voters) -> Result<Status> {
        let seen = self.each(voters, "status", |scripts| &scripts.status, &[], wire::status).await?;
        let holding = seen.iter().filter(|one| one.state == State::Held);
        // Those that have not answered may hold it, too.
        let held = holding.count() + self.servers - seen.len() > self.servers / 2;
        let token = seen.iter().map(|one| one.token).max().unwrap_or(0);
        let died = seen.iter().any(|one| one.state == State::Abandoned);
        let state = match (held, died) {
            (true, _) => State::Held,
            (false, true) => State::Abandoned,
            (false, false) => State::Free,
        };
        let shown = seen.into_iter().find(|one| one.state == state && (one.owner.is_some() || state == State::Free));
        let (owner, held) = shown.map_or((None, None), |one| (one.owner, one.held));
        Ok(Status { state, token, waiters: 0, owner, held, numbers: crate::numbers::Numbers::default() })
    }
}

/// The answers of a majority at least, as `read` understands them.
pub(super) async fn gather<T>(
    voters: &Voters,
    operation: &'static str,
    (servers, limit): (usize, Duration),
    call: impl Fn(bool) -> redis::Cmd + Clone + Send + Sync + 'static,
    read: impl Fn(Result<Value>) -> Result<T>,
) -> Result<Vec<T>> {
    let mut poll = Poll::new(servers);
    let mut replies = Vec::new();
    voters
        .ask(operation, (limit, GRACE), Dial::AT_ONCE, call, |vote| {
            match read(vote.reply) {
                Ok(reply) => {
                    poll.yes += 1;
                    replies.push(reply);
                }
                Err(error) => poll.failures.push(error),
            }
            poll.is_hopeless()
        })
        .await;
    if poll.is_won() { Ok(replies) } else { Err(poll.failure(operation)) }
}
