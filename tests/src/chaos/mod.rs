//! Chaos: participants in C, Python, Node, Rust and shell fight over one lock while they are killed and stopped at random,
//! and a checker reads what they tell. `make chaos` runs it long, `tests/chaos.rs` short.
//!
//! | part | file |
//! |---|---|
//! | what is done to whom and when, from a seed | `plan` |
//! | the participants | `crew`, `../../chaos/hammer.*` |
//! | what they leave behind | `record`, `visit` |
//! | what cannot be | `judge` |
//! | the lock, and what is left of it at the end | `scene`, `server`, `watch`, `wire`, `fence` |

pub mod crew;
pub mod fence;
pub mod judge;
pub mod plan;
pub mod record;
pub mod scene;
pub mod server;
pub mod visit;
pub mod watch;
pub mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::agent::Language;
use crate::occupancy::now;
use crew::{CREW, Crew, Setting};
use judge::{Cause, Judge, Verdict};
use plan::{Fault, Plan};
use record::Cell;
use scene::{Engine, Scene};
use server::Servers;

/// What to run.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    /// The engine.
    pub engine: Engine,
    /// Where the faults come from.
    pub seed: u64,
    /// How many.
    pub faults: u64,
    /// Enough after this time, however many there were.
    pub lasting: Duration,
}

/// How far a run is.
pub struct Progress<'a> {
    /// What is run.
    pub order: &'a Order,
    /// Faults so far, by kind.
    pub faults: &'a BTreeMap<&'static str, u64>,
    /// Since when.
    pub running: Duration,
    /// What was found so far, and how often something that cannot be.
    pub found: (&'a Verdict, u64),
}

impl fmt::Display for Progress<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done: u64 = self.faults.values().sum();
        let (verdict, violations) = self.found;
        write!(
            f,
            "{} {:>4} s  {done:>5} of {} faults",
            self.order.engine.name(),
            self.running.as_secs(),
            self.order.faults
        )?;
        write!(f, "  {} holds:", verdict.all_holds())?;
        for (language, holds) in &verdict.holds {
            write!(f, " {language} {holds}")?;
        }
        write!(f, "  longest idle {:.1} ms  {violations} violations", verdict.longest_idle as f64 / 1e6)
    }
}

/// What a run came to.
pub struct Outcome {
    /// What was run.
    pub order: Order,
    /// The faults that were injected, by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// How many of the plan's the servers were spared, which were not as it takes for them.
    pub spared: u64,
    /// Whether there is a resource that refuses old tokens.
    pub fenced: bool,
    /// What the checker says.
    pub verdict: Verdict,
    /// How often the look every 250 ms found the lock free and nobody had told; unknown of a server's.
    pub rechecks: Option<u64>,
    /// How long it took.
    pub took: Duration,
}

impl Outcome {
    /// What was missing for it to show anything: a run without violations in which nothing happened has shown none.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        let done = self.faults.values().sum::<u64>();
        if done + self.spared < self.order.faults {
            missing.push(format!("{done} faults, and {} spared, of {} in time", self.spared, self.order.faults));
        }
        if done < self.spared {
            missing.push(format!("{} faults were spared, more than came", self.spared));
        }
        if self.verdict.killed_inside == 0 {
            missing.push("nobody was killed inside".to_owned());
        }
        if self.fenced && self.verdict.taken == 0 {
            missing.push("no write was taken".to_owned());
        }
        for language in Language::ALL.into_iter().filter(|language| CREW.contains(language)) {
            if self.verdict.holds.get(&language).is_none_or(|holds| *holds == 0) {
                missing.push(format!("{language} never got in"));
            }
        }
        missing
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = &self.verdict;
        let list = |items: Vec<String>| if items.is_empty() { "none".to_owned() } else { items.join(", ") };
        let counts = |(name, count): (&&str, &u64)| format!("{count} {name}");
        writeln!(f, "{}, seed {}, {:.0} s", self.order.engine.name(), self.order.seed, self.took.as_secs_f64())?;
        writeln!(f, "  injected   {}", list(self.faults.iter().map(counts).collect()))?;
        writeln!(
            f,
            "  by choice  {}",
            list(verdict.deeds.iter().map(|(deed, count)| format!("{count} {deed:?}")).collect())
        )?;
        let holds = verdict.holds.iter().map(|(language, count)| format!("{count} {language}")).collect();
        writeln!(f, "  holds      {}: {}", verdict.all_holds(), list(holds))?;
        writeln!(f, "  gave up    {}", list(verdict.gave_up.iter().map(counts).collect()))?;
        writeln!(
            f,
            "  died       {} inside; {} holds were told `abandoned`",
            verdict.killed_inside, verdict.abandoned
        )?;
        let causes =
            |of: &BTreeMap<Cause, u64>| list(of.iter().map(|(cause, count)| format!("{count} {cause:?}")).collect());
        if !verdict.overlaps.is_empty() || !verdict.lost.is_empty() {
            writeln!(f, "  leases     told LOST: {}", causes(&verdict.lost))?;
            writeln!(f, "             overlaps after the end of a lease: {}", causes(&verdict.overlaps))?;
            for odd in &verdict.odd {
                write!(f, "  {odd}")?;
            }
        }
        writeln!(
            f,
            "  idle       the lock was free and waited for for {:.1} ms at most",
            verdict.longest_idle as f64 / 1e6
        )?;
        write!(f, "{}", verdict.around_longest_idle)?;
        if let Some(rechecks) = self.rechecks {
            writeln!(f, "  re-checks  {rechecks} found a free lock that nobody had told of")?;
        }
        for missing in self.missing() {
            writeln!(f, "  MISSING    {missing}")?;
        }
        if self.fenced {
            writeln!(f, "  fence      {} writes taken, {} of lost holds refused", verdict.taken, verdict.refused)?;
        }
        if verdict.violations.is_empty() {
            return write!(f, "  violations none");
        }
        write!(f, "  VIOLATIONS")?;
        for violation in &verdict.violations {
            write!(f, "\n\n{violation}")?;
        }
        let order = &self.order;
        write!(
            f,
            "\n\nagain: make chaos CHAOS_ENGINE={} CHAOS_SEED={} CHAOS_FAULTS={}",
            order.engine.name(),
            order.seed,
            order.faults
        )
    }
}

/// The place of who is inside, if somebody comes in soon and `is_it`.
fn somebody_inside(crew: &mut Crew, cell: &Cell, mut is_it: impl FnMut(&mut Crew, usize) -> bool) -> Option<usize> {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_millis(250) {
        if let Some(place) = crew.place_of(cell.inside())
            && is_it(crew, place)
        {
            return Some(place);
        }
        std::thread::yield_now();
    }
    None
}

/// Runs an order; `show` is called a few times a second.
pub fn run(order: Order, mut show: impl FnMut(&Progress<'_>)) -> Outcome {
    let folder = tempfile::Builder::new().prefix("ipcmutex-chaos-").tempdir().expect("a temporary folder");
    let mut scene = Scene::new(order.engine, folder.path());
    let setting =
        Setting { folder: folder.path().to_owned(), url: scene.url(), fence: scene.fence(), seed: order.seed };
    let fenced = setting.fence.is_some();
    let cell = Cell::create(&setting.cell()).expect("the folder is writable");
    let mut judge = Judge::new(order.engine.law(), order.engine.idle_limit());
    let mut crew = Crew::start(setting, &mut judge);
    let (mut faults, mut spared) = (BTreeMap::new(), 0);
    let begun = Instant::now();
    let mut looked = begun;
    let mut whole = false;
    for (pause, fault) in Plan::new(order.seed, CREW.len(), order.engine.harms()).take(order.faults as usize) {
        let due = Instant::now() + pause;
        loop {
            let servers = scene.servers().and_then(|servers| servers.wake(false, &mut judge));
            let next = [crew.wake(false, &mut judge), servers];
            let until = next.into_iter().flatten().fold(due, Instant::min);
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() && due <= Instant::now() {
                break;
            }
            std::thread::sleep(rest);
        }
        match fault {
            Fault::Kill { place, inside } => {
                // A visit is short: who is not held fast has left before it is killed.
                let caught = |crew: &mut Crew, place| crew.catch_inside(place, &cell, &mut judge);
                let place = inside.then(|| somebody_inside(&mut crew, &cell, caught)).flatten().unwrap_or(place);
                whole = !whole;
                crew.kill(place, whole, &mut judge);
                *faults.entry("kill -9").or_default() += 1;
            }
            Fault::Stop { place, inside, lasting } => {
                let place = inside.then(|| somebody_inside(&mut crew, &cell, |_, _| true)).flatten().unwrap_or(place);
                crew.stop(place, lasting);
                *faults.entry("SIGSTOP").or_default() += 1;
            }
            Fault::Servers { harm, which, lasting } => {
                let suffered = |servers: &mut Servers| servers.suffer(harm, which, lasting, &mut judge);
                match scene.servers().and_then(suffered) {
                    Some(name) => *faults.entry(name).or_default() += 1,
                    None => spared += 1,
                }
            }
        }
        if looked.elapsed() > Duration::from_millis(250) {
            looked = Instant::now();
            let read_to = now();
            crew.drain(&mut judge);
            judge.advance(read_to);
            scene.look(crew.processes(), &mut judge);
            show(&Progress { order: &order, faults: &faults, running: begun.elapsed(), found: judge.so_far() });
        }
        if begun.elapsed() > order.lasting || judge.so_far().1 > 0 {
            break;
        }
    }
    if let Some(servers) = scene.servers() {
        servers.wake(true, &mut judge);
    }
    cell.stop();
    crew.end(&mut judge);
    scene.inspect(&mut judge);
    let rechecks = scene.rechecks();
    let (holds, suffered) = (judge.so_far().0.all_holds(), faults.values().sum::<u64>());
    // Who is killed, stopped or kept from running at the wrong moment takes a wake-up along: one fault in fifty does, and on a
    // machine with forty programs for two processors one in twelve.
    if let Some(lost) = rechecks.filter(|lost| *lost > 10 + suffered / 10 + holds / 100) {
        judge.violation(format!("of {holds} holds {lost} began with a look at a free lock that nobody had told of"));
    }
    Outcome { order, faults, spared, fenced, verdict: judge.finish(), rechecks, took: begun.elapsed() }
}
