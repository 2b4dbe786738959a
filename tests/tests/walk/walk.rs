//! One walk: processes by the client's rules, steps by chance, and after each what must be so.

use fastrand::Rng;
use ipcmutex_tests::servers::Reply;

use super::scripts::{Script, Server};

/// What else happens on a walk, beside what happens on each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Variant {
    pub(super) name: &'static str,
    /// How many of the processes of 100 share the key with other libraries.
    pub(super) beside: u32,
    pub(super) breaks: bool,
    pub(super) leases_change: bool,
    pub(super) keys_go: bool,
    pub(super) clock_jumps: bool,
    /// No process stops, dies, or is cut off.
    pub(super) calm: bool,
    /// How long the lock may lie free, in ms, while a living one waits.
    pub(super) idle: i64,
}

/// A violation, or nothing.
type So<T = ()> = Result<T, String>;

/// How often a client looks that heard nothing.
const LOOK: i64 = 20_000;
const WEEK: i64 = 604_800_000;

#[derive(Debug, Default)]
struct Process {
    name: String,
    beside: bool,
    frozen: bool,
    dead: bool,
    /// It has no connection.
    cut: bool,
    /// When it looks by itself.
    timer: Option<i64>,
    /// The last token that it knows of.
    floor: u64,
    inbox: std::collections::VecDeque<String>,
}

impl Process {
    fn acts(&self) -> bool {
        !self.frozen && !self.dead && !self.cut
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Is {
    Waiting,
    Trying,
    Holding,
    Over,
}

/// See the table in the test's own documentation.
#[derive(Debug)]
struct Waiter {
    process: usize,
    token: String,
    is: Is,
    ttl: i64,
    ticket: u64,
    /// Its process was always there: nobody may pass it.
    steady: bool,
    renewal: i64,
    /// Of its renewals: one more with each change of the lease.
    number: u64,
    /// When it holds no more by its own clock.
    deadline: i64,
}

/// How the last hold ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Last {
    None,
    Holds(usize),
    Released,
    Died,
}

/// A copy of a command, on its way.
struct Copied {
    at: i64,
    script: Script,
    process: usize,
    args: Vec<String>,
}

struct Walk<'a> {
    server: &'a mut Server,
    variant: Variant,
    random: Rng,
    keys: [String; 4],
    now: i64,
    processes: Vec<Process>,
    waiters: Vec<Waiter>,
    copies: Vec<Copied>,
    last: Last,
    /// The token whose release the server noted last.
    noted: String,
    highest: u64,
    /// Something ended a hold under its holder, or cost the line its order.
    damaged: bool,
    forgotten: bool,
    /// How far the clock was set back, in all.
    back: i64,
    events: Vec<String>,
}

/// The longest time that the lock lay free while somebody waited; or what is wrong, and how it came to that.
pub(super) fn walk(server: &mut Server, variant: Variant, seed: u64) -> So<i64> {
    server.begin();
    let mut walk = Walk {
        server,
        variant,
        random: Rng::with_seed(seed),
        keys: ["m", "{m}:line", "{m}:state", "{m}:next"].map(str::to_owned),
        now: 0,
        processes: Vec::new(),
        waiters: Vec::new(),
        copies: Vec::new(),
        last: Last::None,
        noted: String::new(),
        highest: 0,
        damaged: false,
        forgotten: false,
        back: 0,
        events: Vec::new(),
    };
    let outcome = walk.all();
    for at in 0..walk.processes.len() {
        walk.server.listen(&walk.processes[at].name, false);
    }
    outcome.map_err(|why| {
        let events = &walk.events[walk.events.len().saturating_sub(60)..];
        format!("{why}\nseed {seed}, variant {}; the last events:\n{}", variant.name, events.join("\n"))
    })
}

impl Walk<'_> {
    fn all(&mut self) -> So<i64> {
        for _ in 0..if self.random.bool() { 30 } else { 100 } {
            self.step()?;
            self.act()?;
            if let Some(key) = self.server.endless(&self.keys) {
                return Err(format!("{key} has no end"));
            }
        }
        let idle = self.settle()?;
        self.leave()?;
        Ok(idle)
    }

    fn note(&mut self, event: String) {
        self.events.push(format!("{:>7} {event}", self.now));
    }

    fn any<T: Copy>(&mut self, of: &[T]) -> Option<T> {
        self.random.choice(of).copied()
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits).map(|_| self.random.digit(16)).collect()
    }

    fn those(&self, wanted: impl Fn(&Waiter) -> bool) -> Vec<usize> {
        (0..self.waiters.len()).filter(|at| wanted(&self.waiters[*at])).collect()
    }

    fn waiting(&self, process: usize) -> Vec<usize> {
        self.those(|waiter| waiter.process == process && waiter.is == Is::Waiting)
    }

    /// The one that stands first among those of a process, as far as the process knows.
    fn first(&self, process: usize) -> Option<usize> {
        let ticket = |at: &usize| self.waiters[*at].ticket.wrapping_sub(1);
        self.waiting(process).into_iter().min_by_key(ticket)
    }

    fn acting(&self, is: Is) -> Vec<usize> {
        self.those(|waiter| waiter.is == is && self.processes[waiter.process].acts())
    }

    fn ended(&mut self, who: usize, is: Is, last: Last) {
        self.waiters[who].is = is;
        if self.last == Last::Holds(who) {
            self.last = last;
        }
    }

    /// Calls a script; at times, a copy of the call comes again, later.
    fn run(&mut self, script: Script, process: usize, args: Vec<String>, may_be_copied: bool) -> So<Reply> {
        let keys = if self.processes[process].beside { &self.keys[..] } else { &self.keys[..3] };
        let reply = self.server.run(script, keys, &args);
        let short = |text: &str| text.chars().take(16).collect::<String>();
        let shown = match &reply {
            Reply::List(parts) => parts.iter().take(5).map(|part| format!("{part:?} ")).collect(),
            reply => format!("{reply:?}"),
        };
        let args_shown: Vec<String> = args.iter().map(|arg| short(arg)).collect();
        let name = short(&self.processes[process].name);
        self.note(format!("{script:?} of {name} {} -> {shown}", args_shown.join(" ")));
        if may_be_copied {
            self.copy(script, process, &args);
        }
        if let Reply::Error(error) = reply { Err(format!("{script:?}: {error}")) } else { Ok(reply) }
    }

    fn copy(&mut self, script: Script, process: usize, args: &[String]) {
        if self.random.u32(..10) == 0 {
            let at = self.now + self.random.choice([0, 1, 50, 500, 3000]).unwrap_or(0);
            self.copies.push(Copied { at, script, process, args: args.to_vec() });
        }
    }

    fn add(&mut self, process: usize, is: Is, ttl: i64) -> usize {
        let token = self.hex(32);
        self.waiters.push(Waiter {
            process,
            token,
            is,
            ttl,
            ticket: 0,
            steady: true,
            renewal: 0,
            number: 0,
            deadline: 0,
        });
        self.waiters.len() - 1
    }

    fn take(&mut self, who: usize) -> So {
        let (waiter, sent) = (&self.waiters[who], self.now);
        let ticket = if waiter.is == Is::Trying { String::new() } else { waiter.ticket.to_string() };
        let process = &self.processes[waiter.process];
        let args = vec![
            waiter.token.clone(),
            waiter.ttl.to_string(),
            process.name.clone(),
            "1 host label".to_owned(),
            ticket,
            process.floor.to_string(),
        ];
        let reply = self.run(Script::Take, waiter.process, args, true)?;
        let Reply::List(parts) = reply else { return Err("a strange answer".to_owned()) };
        match parts[0].number() {
            1 => self.owns(who, &parts, sent),
            0 if self.waiters[who].is == Is::Trying => {
                self.waiters[who].is = Is::Over;
                Ok(())
            }
            0 => self.waits(who, &parts),
            // Ended before: it asks as another.
            _ => {
                self.waiters[who].token = self.hex(32);
                self.take(who)
            }
        }
    }

    /// A take was answered: it holds.
    fn owns(&mut self, who: usize, parts: &[Reply], sent: i64) -> So {
        let (process, ticket) = (self.waiters[who].process, self.waiters[who].ticket);
        if !self.damaged {
            let token = |at: usize| &self.waiters[at].token;
            let others = self.those(|other| other.is == Is::Holding && self.now < other.deadline);
            if let Some(other) = others.into_iter().find(|other| *other != who) {
                return Err(format!("two hold: {} and {}", token(other), token(who)));
            }
            let before = |other: &Waiter| other.ticket > 0 && (ticket == 0 || other.ticket < ticket);
            let passed = self
                .acting(Is::Waiting)
                .into_iter()
                .find(|other| *other != who && self.waiters[*other].steady && before(&self.waiters[*other]));
            if let Some(other) = passed {
                return Err(format!("{} passes {}", token(who), token(other)));
            }
            let abandoned = i64::from(self.last == Last::Died);
            if self.last != Last::None && parts[2].number() != abandoned {
                return Err(format!("abandoned: {:?} after {:?}", parts[2], self.last));
            }
        }
        let fence: u64 = parts[1].text().parse().unwrap_or(0);
        // Who forgets the last token and what time it is cannot go on from there.
        if fence <= self.highest && !(self.forgotten && self.back > 0) {
            return Err(format!("the token {fence} after {}", self.highest));
        }
        self.highest = self.highest.max(fence);
        self.processes[process].floor = self.processes[process].floor.max(fence);
        self.last = Last::Holds(who);
        self.waiters[who].is = Is::Holding;
        self.renewed(who, sent);
        // It was thrown out of the line: and so were the others of its process.
        if parts[3].number() == 1 && ticket != 0 {
            for other in self.waiting(process) {
                self.take(other)?;
            }
        }
        let look = self.now + (self.waiters[who].ttl + 2).min(LOOK);
        if !self.waiting(process).is_empty() {
            self.processes[process].timer.get_or_insert(look);
        }
        Ok(())
    }

    /// Its lease runs from when that was asked for.
    fn renewed(&mut self, who: usize, sent: i64) {
        let waiter = &mut self.waiters[who];
        waiter.deadline = sent + waiter.ttl - waiter.ttl / 100 - 5;
        waiter.renewal = sent + waiter.ttl / 3;
    }

    /// A take was answered: it has a place in the line, and its process looks again when the lock may be free.
    fn waits(&mut self, who: usize, parts: &[Reply]) -> So {
        let (left, rank, fresh) = (parts[1].number(), parts[2].number(), parts[4].number() == 1);
        let process = self.waiters[who].process;
        let had = self.waiters[who].ticket != 0;
        self.waiters[who].ticket = parts[3].text().parse().unwrap_or(0);
        let first = self.first(process) == Some(who);
        if fresh && had && first {
            for other in self.waiting(process).into_iter().filter(|other| *other != who) {
                self.take(other)?;
            }
        }
        let wait = if left < 0 { LOOK / 2 } else { left + 1 + 20 * rank.min(20) };
        let look = self.now + wait.min(LOOK);
        let timer = &mut self.processes[process].timer;
        *timer = Some(if first { look } else { timer.map_or(look, |timer| timer.min(look)) });
        Ok(())
    }

    /// `token` holds or waits no more.
    fn end(&mut self, process: usize, token: &str, ending: &str) -> So<i64> {
        let args = vec![token.to_owned(), self.processes[process].name.clone(), ending.to_owned()];
        self.release(process, args, true)
    }

    fn release(&mut self, process: usize, args: Vec<String>, may_be_copied: bool) -> So<i64> {
        let token = args[0].clone();
        let answer = self.run(Script::Release, process, args, may_be_copied)?.number();
        if matches!(answer, 1 | 3) {
            self.noted = token;
        }
        Ok(answer)
    }

    /// A hold is released.
    fn give_back(&mut self, who: usize) -> So {
        let (process, token) = (self.waiters[who].process, self.waiters[who].token.clone());
        // From now on it is not believed to hold.
        self.waiters[who].is = Is::Over;
        let stood = self.end(process, &token, "released")? == 1;
        self.ended(who, Is::Over, if stood { Last::Released } else { Last::Died });
        if stood || self.damaged { Ok(()) } else { Err("a hold that stands was lost".to_owned()) }
    }

    fn renew(&mut self, who: usize) -> So {
        let (process, token) = (self.waiters[who].process, self.waiters[who].token.clone());
        self.waiters[who].number += u64::from(self.waiters[who].number != 0);
        let args = [token, self.waiters[who].ttl.to_string(), self.waiters[who].number.to_string()];
        let keys = [self.keys[0].clone(), self.keys[2].clone()];
        self.copy(Script::Renew, process, &args);
        if self.server.run(Script::Renew, &keys, &args) == Reply::List(vec![Reply::Number(1)]) {
            self.renewed(who, self.now);
        } else {
            let name = self.processes[process].name.clone();
            self.note(format!("{name} has lost {}", args[0]));
            self.ended(who, Is::Over, Last::Died);
            if !self.damaged {
                return Err("a hold was lost before its end".to_owned());
            }
            // Who is next is told of that.
            self.end(process, &args[0], "lost")?;
        }
        Ok(())
    }

    /// All that can act do so, until nobody has anything to do.
    fn act(&mut self) -> So {
        for _ in 0..200 {
            let mut quiet = true;
            for (name, text) in self.server.hear() {
                if let Some(process) = self.processes.iter_mut().find(|process| process.name == name) {
                    process.inbox.push_back(text);
                }
            }
            for process in 0..self.processes.len() {
                while self.processes[process].acts()
                    && let Some(text) = self.processes[process].inbox.pop_front()
                {
                    quiet = false;
                    self.told(process, &text)?;
                }
                let due = self.processes[process].timer.is_some_and(|timer| timer <= self.now);
                if due && self.processes[process].acts() {
                    quiet = false;
                    self.processes[process].timer = None;
                    if let Some(first) = self.first(process) {
                        self.take(first)?;
                    }
                }
            }
            for who in self.acting(Is::Holding) {
                if self.now >= self.waiters[who].deadline {
                    quiet = false;
                    self.ended(who, Is::Over, Last::Died);
                    // At times its user releases it, which is told of the loss.
                    if self.random.bool() {
                        let (process, token) = (self.waiters[who].process, self.waiters[who].token.clone());
                        self.end(process, &token, "lost")?;
                    }
                } else if self.now >= self.waiters[who].renewal {
                    quiet = false;
                    self.renew(who)?;
                }
            }
            if quiet {
                return Ok(());
            }
        }
        Err("they never come to rest".to_owned())
    }

    /// What a message has a process do.
    fn told(&mut self, process: usize, text: &str) -> So {
        self.note(format!("{} hears {text}", self.processes[process].name));
        let words: Vec<&str> = text.split(' ').collect();
        let (kind, token) = (words[0], words[1]);
        let waits = self.waiting(process).into_iter().find(|who| self.waiters[*who].token == token);
        let holds = self.those(|waiter| waiter.is == Is::Holding && waiter.token == token);
        match (kind, waits) {
            ("G" | "N", Some(who)) => self.take(who)?,
            ("G", None) if holds.is_empty() => {
                self.end(process, token, "undone")?;
            }
            ("H", Some(_)) => {
                let left: i64 = words[2].parse().expect("a number");
                let look = self.now + (left + 1).min(LOOK);
                let timer = &mut self.processes[process].timer;
                *timer = Some(timer.map_or(look, |timer| timer.min(look)));
            }
            ("L", _) => holds.into_iter().for_each(|who| self.waiters[who].is = Is::Over),
            _ => {}
        }
        Ok(())
    }

    /// Time passes, and whatever falls due in it happens when it is due.
    fn pass(&mut self, ms: i64) -> So {
        let end = self.now + ms;
        while self.now < end {
            let timers = self.processes.iter().filter(|process| process.acts()).filter_map(|process| process.timer);
            let holds = self.acting(Is::Holding);
            let holds = holds.iter().map(|who| self.waiters[*who].renewal.min(self.waiters[*who].deadline));
            let copies = self.copies.iter().map(|copied| copied.at);
            let next = timers.chain(holds).chain(copies).filter(|at| *at > self.now).min().unwrap_or(end).min(end);
            self.server.pass(next - self.now);
            self.now = next;
            for who in self.those(|waiter| waiter.is == Is::Holding) {
                let waiter = &self.waiters[who];
                let lapsed = self.now >= waiter.deadline + waiter.ttl / 100 + 5;
                if lapsed && !self.processes[waiter.process].acts() {
                    self.ended(who, Is::Over, Last::Died);
                }
            }
            self.act()?;
            self.copies_come()?;
        }
        Ok(())
    }

    /// The copies that are due.
    fn copies_come(&mut self) -> So {
        let (due, later) = std::mem::take(&mut self.copies).into_iter().partition(|copied| copied.at <= self.now);
        self.copies = later;
        let due: Vec<Copied> = due;
        for Copied { script, process, args, .. } in due {
            if self.processes[process].dead || self.processes[process].cut {
                continue;
            }
            let token = args[0].clone();
            self.note("a copy comes:".to_owned());
            match script {
                Script::Take => {}
                Script::Renew => {
                    self.server.run(script, &[self.keys[0].clone(), self.keys[2].clone()], &args);
                    continue;
                }
                _ => {
                    self.release(process, args, false)?;
                    continue;
                }
            }
            let acts = self.processes[process].acts();
            let live = |waiter: &Waiter| waiter.is == Is::Holding || (waiter.is == Is::Waiting && acts);
            let live = self.those(|waiter| waiter.token == token && live(waiter));
            if let [who] = live[..] {
                let reply = self.run(script, process, args, false)?;
                // Its answer reaches nobody; but who waits will look.
                let owns = matches!(&reply, Reply::List(parts) if parts[0].number() == 1);
                if owns && self.waiters[who].is == Is::Waiting {
                    self.take(who)?;
                }
            } else if token == self.noted && !self.forgotten {
                let reply = self.run(script, process, args, false)?;
                if !matches!(&reply, Reply::List(parts) if parts[0].number() == 2) {
                    return Err("a copy of a take did something after the release".to_owned());
                }
            }
            // Any other copy may hold or wait for nobody, until its lease or the line ends.
        }
        Ok(())
    }

    fn come_back(&mut self, process: usize) -> So {
        self.processes[process].cut = false;
        let name = self.processes[process].name.clone();
        self.note(format!("{name} has a connection again"));
        self.server.listen(&name, true);
        if self.processes[process].frozen {
            self.processes[process].timer = Some(self.now);
        } else if let Some(first) = self.first(process) {
            self.take(first)?;
        }
        Ok(())
    }

    /// Whoever waits there may be passed from now on.
    fn unsettle(&mut self, process: usize) {
        for who in self.waiting(process) {
            self.waiters[who].steady = false;
        }
    }

    /// Nobody listens for it any more.
    fn go(&mut self, process: usize) {
        let name = self.processes[process].name.clone();
        self.server.listen(&name, false);
        self.processes[process].inbox.clear();
        self.processes[process].timer = None;
        self.unsettle(process);
    }

    /// Something happens, by chance.
    fn step(&mut self) -> So {
        let draw = self.random.u32(..100);
        let living: Vec<usize> = (0..self.processes.len()).filter(|at| !self.processes[*at].dead).collect();
        if living.len() < 4 && draw < 30 {
            let process = Process {
                name: self.hex(16),
                beside: self.random.u32(..100) < self.variant.beside,
                ..Process::default()
            };
            self.server.listen(&process.name, true);
            self.processes.push(process);
            return Ok(());
        }
        let Some(process) = self.any(&living) else { return Ok(()) };
        let (acts, name) = (self.processes[process].acts(), self.processes[process].name.clone());
        let waiting = self.waiting(process);
        match draw {
            ..45 if acts && waiting.len() < 3 => {
                let ttl = self.any(&[1000, 10_000, 60_000]).unwrap_or(1000);
                let who = self.add(process, Is::Waiting, ttl);
                self.take(who)?;
            }
            ..45 => {}
            45..50 if acts => {
                let who = self.add(process, Is::Trying, 1000);
                self.take(who)?;
            }
            50..70 => {
                let holds = self.acting(Is::Holding);
                if let Some(who) = self.any(&holds) {
                    self.give_back(who)?;
                }
            }
            70..78 if acts => {
                if let Some(who) = self.any(&waiting) {
                    self.waiters[who].is = Is::Over;
                    self.end(process, &self.waiters[who].token.clone(), "undone")?;
                    self.processes[process].timer.get_or_insert(self.now + 200);
                }
            }
            78..85 if self.variant.calm => {}
            78..82 => {
                self.processes[process].frozen ^= true;
                self.note(format!("{name} stops or goes on"));
                self.unsettle(process);
            }
            82 if self.processes[process].cut => self.come_back(process)?,
            82 => {
                self.note(format!("{name} is cut off"));
                self.processes[process].cut = true;
                self.go(process);
            }
            83..85 => {
                self.note(format!("{name} dies"));
                self.processes[process].dead = true;
                self.go(process);
                for who in self.those(|waiter| waiter.process == process && waiter.is == Is::Holding) {
                    self.ended(who, Is::Over, Last::Died);
                }
            }
            85..87 if self.variant.breaks => {
                let this_break = self.hex(32);
                if self.run(Script::Break, process, vec![this_break], false)?.number() == 1 {
                    for who in self.those(|waiter| waiter.is == Is::Holding) {
                        self.ended(who, Is::Over, Last::Died);
                    }
                }
            }
            87..89 if self.variant.leases_change => {
                let holds = self.acting(Is::Holding);
                if let Some(who) = self.any(&holds) {
                    self.waiters[who].ttl = self.any(&[100, 500, 20_000]).unwrap_or(100);
                    self.waiters[who].number += 1;
                    self.note(format!("the lease of {} is {} now", self.waiters[who].token, self.waiters[who].ttl));
                    self.renew(who)?;
                    self.run(Script::Forewarn, self.waiters[who].process, Vec::new(), false)?;
                }
            }
            89..91 if self.variant.keys_go => {
                let which = self.random.usize(..5);
                let key = self.keys.get(which).cloned();
                self.note(format!("gone: {}", key.as_deref().unwrap_or("all")));
                match &key {
                    Some(key) => self.server.ask(&["DEL", key]),
                    None => self.server.ask(&["FLUSHALL"]),
                };
                self.damaged = true;
                self.forgotten |= which != 0 && which != 1;
            }
            91 if self.variant.clock_jumps => {
                let by = self.any(&[-30_000, -500, 700, 30_000]).unwrap_or(0);
                self.note(format!("the clock jumps by {by}"));
                self.server.pass(by);
                self.back += (-by).max(0);
                // Leases end early.
                self.damaged |= by > 0;
            }
            _ => {
                // At times, until just after the end of a lease or claim.
                let left = self.server.ask(&["PTTL", &self.keys[0]]).number().clamp(0, 60_000);
                let ms = self.any(&[1, 5, 20, 100, 450, 1000, 5000, 12_000, left + 1, left + 5]).unwrap_or(1);
                self.pass(ms)?;
            }
        }
        Ok(())
    }

    /// No more faults; who is stopped stays so. Whoever waits is served, one after the other.
    fn settle(&mut self) -> So<i64> {
        for process in 0..self.processes.len() {
            if self.processes[process].cut && !self.processes[process].dead {
                self.come_back(process)?;
            }
        }
        let end = self.now + 2 * 60_000 + self.back;
        let (mut idle, mut longest) = (0, 0);
        loop {
            for who in self.those(|waiter| waiter.is == Is::Holding) {
                if self.processes[self.waiters[who].process].acts() {
                    self.give_back(who)?;
                } else {
                    self.ended(who, Is::Over, Last::Died);
                }
            }
            self.act()?;
            if self.acting(Is::Waiting).is_empty() && self.acting(Is::Holding).is_empty() {
                break;
            }
            let next = self.processes.iter().filter(|process| process.acts()).filter_map(|process| process.timer).min();
            let step = next.map_or(200, |next| next - self.now).clamp(1, 200);
            let value = self.server.ask(&["GET", &self.keys[0]]);
            // A claim is no hold, and a hold is one to the end of its lease.
            let free = self.those(|waiter| waiter.deadline != 0 && waiter.token == value.text()).is_empty();
            self.pass(step)?;
            idle = if free { idle + step } else { 0 };
            longest = longest.max(idle);
            if longest > self.variant.idle + self.back {
                return Err(format!("it lies free for {longest} ms while a living one waits"));
            }
            if self.now > end {
                return Err("a living one is never served".to_owned());
            }
        }
        Ok(longest)
    }

    /// Nobody waits any more: nothing may stay.
    fn leave(&mut self) -> So {
        self.pass(65_000 + self.back)?;
        if self.server.ask(&["EXISTS", &self.keys[1]]).number() != 0 {
            return Err("the line stays".to_owned());
        }
        self.pass(WEEK)?;
        for key in &self.keys {
            if self.server.ask(&["EXISTS", key]).number() != 0 {
                let l = self.server.ask(&["PTTL", key]);
                return Err(format!("{key} stays {l:?}"));
            }
        }
        Ok(())
    }
}
