//! One trace of calls, drawn at random, through every language on every engine, beside one model: all must answer as it does.
//! What diverges is shrunk and shown. `TRACE_CASES` says how many traces (16), `TRACE_SEED` which.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

use ipcmutex_tests::agent::{Agent, Language, Pending, Reply};
use ipcmutex_tests::cell::{Cell, Engine, Ground};
use ipcmutex_tests::servers::skipped;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// How an acquisition waits.
#[derive(Clone, Copy, Debug, PartialEq)]
enum How {
    /// Not at all; through the handle or as a hold.
    Try,
    Handle,
    /// For a short time.
    Timed,
    /// For ever, on a thread or without one.
    Blocking,
    Async,
}

/// One call. Handles are 0 to 2; holds and waits are named by the number of the step that asked for them, `n` counts those
/// there are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Call {
    Take(usize, How),
    End(usize),
    Check(usize),
    Release(usize),
    Cancel(usize),
    Close(usize),
    Open(usize),
    Break(usize),
    Status(usize),
}

fn call() -> impl Strategy<Value = Call> {
    let handle = 0..3_usize;
    let how = prop_oneof![Just(How::Try), Just(How::Handle), Just(How::Timed), Just(How::Blocking), Just(How::Async)];
    prop_oneof![
        8 => (handle.clone(), how).prop_map(|(handle, how)| Call::Take(handle, how)),
        5 => (0..40_usize).prop_map(Call::End),
        2 => (0..40_usize).prop_map(Call::Check),
        2 => handle.clone().prop_map(Call::Release),
        2 => (0..40_usize).prop_map(Call::Cancel),
        1 => handle.clone().prop_map(Call::Close),
        2 => handle.clone().prop_map(Call::Open),
        1 => handle.clone().prop_map(Call::Break),
        1 => handle.prop_map(Call::Status),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Waiting,
    Live,
    Ended,
    Lost,
    /// It never held.
    Over,
}

/// One acquisition.
#[derive(Clone, Copy, Debug)]
struct Taken {
    handle: usize,
    how: How,
    is: Is,
}

/// The lock as it should be.
#[derive(Default)]
struct Model {
    open: [bool; 3],
    taken: Vec<Taken>,
    line: Vec<usize>,
    owner: Option<usize>,
    abandoned: bool,
}

/// What an acquisition that waited came to.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Outcome {
    Got { abandoned: bool },
    Ended(&'static str),
}

impl Model {
    fn own(&mut self, number: usize) -> Outcome {
        self.owner = Some(number);
        self.taken[number].is = Is::Live;
        Outcome::Got { abandoned: std::mem::take(&mut self.abandoned) }
    }

    /// The owner has gone: the first in line is next.
    fn next(&mut self) -> Option<(usize, Outcome)> {
        self.owner = None;
        (!self.line.is_empty()).then(|| {
            let number = self.line.remove(0);
            (number, self.own(number))
        })
    }

    /// The one that `number` of all that were asked for stands for.
    fn pick(&self, number: usize, is_it: impl Fn(&Taken) -> bool) -> Option<usize> {
        let fit: Vec<usize> = (0..self.taken.len()).filter(|at| is_it(&self.taken[*at])).collect();
        (!fit.is_empty()).then(|| fit[number % fit.len()])
    }
}

/// An agent, and the lock of one trace in it.
struct Run<'a> {
    agent: &'a Agent,
    engine: Engine,
    url: String,
    /// Locks and holds of this trace are numbered from here.
    base: usize,
    model: Model,
    pending: BTreeMap<usize, Pending<'a>>,
    token: u64,
    log: Vec<String>,
}

/// A divergence.
struct Diverged(String);

impl fmt::Display for Diverged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an ended hold or a closed handle may be called: C has numbers that are dead, others have objects.
const GONE: &[&str] = &["NOT_OWNER", "BAD_HANDLE", "CLOSED"];

impl<'a> Run<'a> {
    fn new(agent: &'a Agent, engine: Engine, url: String) -> Run<'a> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let number = RUNS.fetch_add(1, Ordering::Relaxed) as usize;
        // A C agent has 2048 places; the others keep what a number once stood for.
        let base = 64 * if agent.language == Language::C { number % 30 } else { number } + 4;
        let (model, pending, log) = (Model::default(), BTreeMap::new(), Vec::new());
        let run = Run { agent, engine, url, base, model, pending, token: 0, log };
        // One more handle, to look through.
        run.agent.open(run.lock(3), &run.url).ok();
        run
    }

    fn lock(&self, handle: usize) -> u32 {
        (self.base + handle) as u32
    }

    fn hold(&self, number: usize) -> usize {
        self.base + number
    }

    fn answered(&mut self, what: &str, reply: &Reply, allowed: &[&str]) -> Result<(), Diverged> {
        self.log.push(format!("{what}: {} {}", reply.code, reply.text));
        if allowed.contains(&reply.code.as_str()) {
            return Ok(());
        }
        let (language, engine) = (self.agent.language, self.engine);
        Err(Diverged(format!("[{language}, {engine}] {what}: expected {allowed:?}\n  {}", self.log.join("\n  "))))
    }

    fn got(&mut self, what: &str, reply: &Reply, outcome: Outcome, how: How) -> Result<(), Diverged> {
        match outcome {
            Outcome::Ended(code) => self.answered(what, reply, &[code]),
            Outcome::Got { abandoned } => {
                self.answered(what, reply, &["OK"])?;
                if how == How::Handle {
                    return Ok(());
                }
                let (token, told) = (reply.token(), reply.abandoned());
                if token <= self.token || told != abandoned {
                    let wrong =
                        format!("{what}: token {token} after {}, abandoned {told}, not {abandoned}", self.token);
                    return Err(Diverged(format!(
                        "[{}, {}] {wrong}\n  {}",
                        self.agent.language,
                        self.engine,
                        self.log.join("\n  ")
                    )));
                }
                self.token = token;
                Ok(())
            }
        }
    }

    /// What waited and has an outcome now has told so.
    fn settle(&mut self, settled: impl IntoIterator<Item = (usize, Outcome)>) -> Result<(), Diverged> {
        for (number, outcome) in settled {
            if let Some(pending) = self.pending.remove(&number) {
                let reply = pending.reply();
                let how = self.model.taken[number].how;
                self.got(&format!("wait {number}"), &reply, outcome, how)?;
            }
        }
        self.agent.until_waiters(self.lock(3), self.model.line.len() as u64);
        Ok(())
    }

    fn step(&mut self, call: Call) -> Result<(), Diverged> {
        match call {
            Call::Open(handle) => {
                if !self.model.open[handle] {
                    let reply = self.agent.open(self.lock(handle), &self.url);
                    self.answered(&format!("open {handle}"), &reply, &["OK"])?;
                    self.model.open[handle] = true;
                }
            }
            Call::Take(handle, how) => return self.take(handle, how),
            Call::End(number) => {
                // One that was taken through a handle has no name of its own.
                let named = |taken: &Taken| taken.how != How::Handle && !matches!(taken.is, Is::Waiting | Is::Over);
                let Some(number) = self.model.pick(number, named) else { return Ok(()) };
                let reply = self.agent.call(&format!("end {}", self.hold(number)));
                let what = format!("end {number}");
                match self.model.taken[number].is {
                    Is::Live => {
                        self.answered(&what, &reply, &["OK"])?;
                        self.model.taken[number].is = Is::Ended;
                        let next = self.model.next();
                        self.settle(next)?;
                    }
                    Is::Lost => {
                        self.answered(&what, &reply, &["LOST"])?;
                        self.model.taken[number].is = Is::Ended;
                    }
                    // A second release of a Hold does nothing in Node.
                    _ if self.agent.language == Language::Node => {
                        self.answered(&what, &reply, &["OK", "NOT_OWNER", "CLOSED"])?;
                    }
                    _ => self.answered(&what, &reply, GONE)?,
                }
            }
            Call::Check(number) => {
                let named = |taken: &Taken| taken.how != How::Handle && !matches!(taken.is, Is::Waiting | Is::Over);
                let Some(number) = self.model.pick(number, named) else { return Ok(()) };
                let reply = self.agent.call(&format!("check {}", self.hold(number)));
                let allowed = match (self.model.taken[number].is, self.engine) {
                    (Is::Live, _) => &["OK"][..],
                    // Without I/O it knows when the server has told it, at the latest at the next renewal.
                    (Is::Lost, Engine::Redis) => &["OK", "LOST"],
                    (Is::Lost, _) => &["LOST"],
                    _ => GONE,
                };
                self.answered(&format!("check {number}"), &reply, allowed)?;
            }
            Call::Release(handle) => {
                if !self.model.open[handle] {
                    return Ok(());
                }
                // In some languages asynchronous holds have a handle of their own; and of several that were lost, any may be
                // the current one.
                let through = |taken: &Taken| taken.handle == handle && matches!(taken.is, Is::Live | Is::Lost);
                let candidates: Vec<usize> =
                    (0..self.model.taken.len()).filter(|at| through(&self.model.taken[*at])).collect();
                let live = match candidates[..] {
                    [] => None,
                    [one] if self.model.taken[one].is == Is::Live && self.model.taken[one].how != How::Async => {
                        Some(one)
                    }
                    _ => return Ok(()),
                };
                let reply = self.agent.call(&format!("release {}", self.lock(handle)));
                self.answered(
                    &format!("release {handle}"),
                    &reply,
                    if live.is_some() { &["OK"] } else { &["NOT_OWNER"] },
                )?;
                if let Some(number) = live {
                    self.model.taken[number].is = Is::Ended;
                    let next = self.model.next();
                    self.settle(next)?;
                }
            }
            Call::Cancel(number) => {
                let asynchronous = |taken: &Taken| taken.how == How::Async && taken.is == Is::Waiting;
                let Some(number) = self.model.pick(number, asynchronous) else { return Ok(()) };
                let reply = self.agent.call(&format!("cancel {}", self.hold(number)));
                self.answered(&format!("cancel {number}"), &reply, &["OK"])?;
                self.model.taken[number].is = Is::Over;
                self.model.line.retain(|waiting| *waiting != number);
                self.settle([(number, Outcome::Ended("CANCELED"))])?;
            }
            Call::Close(handle) => return self.close(handle),
            Call::Break(handle) => {
                if !self.model.open[handle] {
                    return Ok(());
                }
                let reply = self.agent.call(&format!("break {}", self.lock(handle)));
                self.answered(&format!("break {handle}"), &reply, &["OK"])?;
                if let Some(owner) = self.model.owner {
                    self.model.taken[owner].is = Is::Lost;
                    self.model.abandoned = true;
                    let next = self.model.next();
                    self.settle(next)?;
                }
            }
            Call::Status(handle) => {
                if !self.model.open[handle] {
                    return Ok(());
                }
                let reply = self.agent.call(&format!("status {}", self.lock(handle)));
                self.answered(&format!("status {handle}"), &reply, &["OK"])?;
                let expected = match (self.model.owner, self.model.abandoned) {
                    (Some(_), _) => "held",
                    (None, true) => "abandoned",
                    (None, false) => "free",
                };
                let (state, waiters) = (reply.text_of("state"), reply.number("waiters"));
                if state != expected || waiters != self.model.line.len() as u64 {
                    let wrong =
                        format!("{state} with {waiters} waiting, not {expected} with {}", self.model.line.len());
                    return Err(Diverged(format!(
                        "[{}, {}] status: {wrong}\n  {}",
                        self.agent.language,
                        self.engine,
                        self.log.join("\n  ")
                    )));
                }
            }
        }
        Ok(())
    }

    fn take(&mut self, handle: usize, how: How) -> Result<(), Diverged> {
        let number = self.model.taken.len();
        // Enough for the shortest of the agents' tables.
        if !self.model.open[handle] || number >= 50 {
            return Ok(());
        }
        let (lock, hold) = (self.lock(handle), self.hold(number));
        let what = format!("take {number} through {handle} {how:?}");
        let command = match how {
            How::Try => format!("hold {lock} {hold} 0"),
            How::Handle => format!("acquire {lock} 0"),
            How::Timed => format!("hold {lock} {hold} 15"),
            How::Blocking => format!("hold {lock} {hold} forever"),
            How::Async => format!("async {lock} {hold} forever {hold}"),
        };
        let free = self.model.owner.is_none();
        self.model.taken.push(Taken { handle, how, is: Is::Over });
        let pending = self.agent.begin(&command);
        if free {
            let reply = pending.reply();
            let outcome = self.model.own(number);
            return self.got(&what, &reply, outcome, how);
        }
        if matches!(how, How::Blocking | How::Async) {
            self.log.push(format!("{what}: waits"));
            self.model.taken[number].is = Is::Waiting;
            self.model.line.push(number);
            self.pending.insert(number, pending);
            return self.settle([]);
        }
        let reply = pending.reply();
        self.answered(&what, &reply, &["TIMEOUT"])?;
        self.settle([])
    }

    fn close(&mut self, handle: usize) -> Result<(), Diverged> {
        if !self.model.open[handle] {
            return Ok(());
        }
        // In some languages asynchronous holds have a handle of their own, and the two are closed one after the other.
        let of = |taken: &Taken| taken.handle == handle && matches!(taken.is, Is::Waiting | Is::Live);
        let kinds =
            |asynchronous| self.model.taken.iter().any(|taken| of(taken) && (taken.how == How::Async) == asynchronous);
        if kinds(true) && kinds(false) {
            return Ok(());
        }
        let reply = self.agent.call(&format!("close {}", self.lock(handle)));
        // Closing releases, and a release tells of a loss.
        let lost = self.model.taken.iter().any(|taken| taken.handle == handle && taken.is == Is::Lost);
        self.answered(&format!("close {handle}"), &reply, if lost { &["OK", "LOST"] } else { &["OK"] })?;
        self.model.open[handle] = false;
        let mut settled = Vec::new();
        for number in 0..self.model.taken.len() {
            let taken = &mut self.model.taken[number];
            if taken.handle == handle && taken.is == Is::Waiting {
                taken.is = Is::Over;
                self.model.line.retain(|waiting| *waiting != number);
                settled.push((number, Outcome::Ended("CLOSED")));
            }
        }
        if let Some(owner) = self.model.owner
            && self.model.taken[owner].handle == handle
        {
            self.model.taken[owner].is = Is::Ended;
            settled.extend(self.model.next());
        }
        // The lost ones of a closed handle are not asked any more.
        for taken in self.model.taken.iter_mut().filter(|taken| taken.handle == handle && taken.is == Is::Lost) {
            taken.is = Is::Over;
        }
        self.settle(settled)
    }

    /// Leaves nothing behind.
    fn end(mut self) -> Result<(), Diverged> {
        while let Some(owner) = self.model.owner {
            // Whatever closes it, the next one in line comes.
            if self.model.open[self.model.taken[owner].handle] && self.model.taken[owner].how == How::Handle {
                self.step(Call::Release(self.model.taken[owner].handle))?;
            } else {
                let named = |taken: &Taken| taken.how != How::Handle && !matches!(taken.is, Is::Waiting | Is::Over);
                let fit: Vec<usize> = (0..self.model.taken.len()).filter(|at| named(&self.model.taken[*at])).collect();
                let at = fit.iter().position(|number| *number == owner).expect("a named hold");
                self.step(Call::End(at))?;
            }
            if self.model.owner == Some(owner) {
                // Neither can end it: breaking can.
                self.agent.call(&format!("break {}", self.lock(3))).ok();
                self.model.taken[owner].is = Is::Over;
                self.model.abandoned = true;
                let next = self.model.next();
                self.settle(next)?;
            }
        }
        for handle in 0..3 {
            self.step(Call::Close(handle))?;
        }
        self.agent.call(&format!("close {}", self.lock(3))).ok();
        Ok(())
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

const LANGUAGES: [Language; 4] = [Language::Rust, Language::C, Language::Python, Language::Node];

fn on(engine: Engine) {
    let ground = Ground::new().expect("a temporary folder");
    let cell = Cell::new(&ground, engine, Language::Rust, Language::Rust);
    let agents = LANGUAGES.map(|language| cell.agent_of(language));
    let traces = proptest::collection::vec(call(), 4..40);
    let config = Config {
        cases: number("TRACE_CASES", 16) as u32,
        failure_persistence: None,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&number("TRACE_SEED", 1).to_le_bytes());
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &seed));
    let names = AtomicU32::new(0);
    let outcome = runner.run(&traces, |trace| {
        for agent in &agents {
            let url = cell.url(&format!("trace{}", names.fetch_add(1, Ordering::Relaxed)), "");
            let mut run = Run::new(agent, engine, url);
            // All handles are open to begin with.
            let calls = (0..3).map(Call::Open).chain(trace.iter().copied());
            calls
                .into_iter()
                .try_for_each(|call| run.step(call))
                .and_then(|()| run.end())
                .map_err(|diverged| TestCaseError::fail(diverged.to_string()))?;
        }
        Ok(())
    });
    match outcome {
        Ok(()) => {}
        Err(TestError::Fail(reason, trace)) => panic!("{reason}\nthe trace: {trace:?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn all_languages_on_spm_are_one_model() {
    on(Engine::Spm);
}

#[test]
fn all_languages_on_mpm_are_one_model() {
    on(Engine::Mpm);
}

#[test]
fn all_languages_on_redis_are_one_model() {
    if !skipped("all_languages_on_redis_are_one_model") {
        on(Engine::Redis);
    }
}
