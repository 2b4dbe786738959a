//! The protocol of the file engine (`core/src/backend/mpm/mod.rs`), checked in every interleaving of a small world:
//! three processes, one slot each, that take the lock, hold it and let it go, while some of them are killed or stopped
//! for ever at any step, cancel their waits, and come back as new processes into a dead one's slot. Or two are threads of one
//! process, of which one only tries.
//!
//! Each step is one atomic access. An event of a death reaches every waiter that still sleeps (the pulse); the look every
//! 250 ms happens only when nothing else can, so that a wake-up that would be lost without it shows.
//!
//! Each rule can be left out. Then the checker must find the fault that the rule is there for.

use stateright::{Checker, HasDiscoveries, Model, Property};

const PROCESSES: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Free,
    Held,
    Reserved,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Word {
    kind: Kind,
    line: bool,
    hand_over: bool,
    slot: usize,
    generation: u8,
}

impl Word {
    fn entered(self, slot: usize, strict: bool) -> Word {
        Word { kind: Kind::Held, slot, generation: self.generation + 1, hand_over: strict && self.line, ..self }
    }
    fn freed(self) -> Word {
        Word { kind: Kind::Free, slot: 0, hand_over: false, ..self }
    }
    fn reserved(self, slot: usize) -> Word {
        Word { kind: Kind::Reserved, slot, hand_over: false, ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Cell {
    ticket: u8,
    asleep: bool,
    /// Woken, and not seen since, for longer than a claim lasts.
    late: bool,
}

const EMPTY: Cell = Cell { ticket: 0, asleep: false, late: false };

impl Cell {
    fn order(self) -> (bool, u8) {
        (self.late, self.ticket)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Slot {
    claim: bool,
    life: bool,
    bell: u8,
    cell: Cell,
}

/// What a scan of the cells is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum For {
    /// A release that reserves.
    Reserve,
    /// A free word with LINE.
    Serve,
    /// A reservation whose waiter is gone.
    PassOn,
    /// A waiter that sees a free word.
    Look,
    /// A word from which LINE was dropped.
    Dropped,
    /// A waiter that sees a reservation for one who is late, or gone.
    Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Idle,
    TryCas(Word),
    Probe(Word),
    Join,
    Hear,
    Mark,
    Look,
    LookCas(Word),
    PassOver(Word, usize),
    Rouse(Word, usize),
    Flag(Word, bool),
    Sleep,
    Asleep,
    Entered,
    Critical,
    Release,
    ReleaseCas(Word),
    Scan(For, Word, usize, Option<(usize, Cell)>),
    Found(For, Word, Option<(usize, Cell)>),
    Ring(For, Word, usize, Cell),
    RingBell(For, Word, usize, Cell),
    RingWake(For, Word, usize, Cell),
    RingProbe(For, Word, usize, Cell),
    Serve,
    Restore,
    Leave,
    Left,
    Claimed,
    Cleared,
    Owned(Word),
    Live,
    Done,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Process {
    at: At,
    slot: usize,
    /// The bell as heard, and the ticket.
    heard: u8,
    ticket: u8,
    rounds: u8,
    holds: bool,
    frozen: bool,
    /// A death was told, and not yet looked after.
    pulse: bool,
    /// This look asks after the owner; out of turn, if nobody else came in time.
    asked: bool,
    late: bool,
    /// Still moving in: after the next `Done` it takes LIFE.
    moving_in: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    word: Word,
    slots: [Slot; PROCESSES],
    processes: [Process; PROCESSES],
    tickets: u8,
    crashes: u8,
    freezes: u8,
    cancels: u8,
    births: u8,
    /// Somebody in line took a free lock while one before it slept.
    overtaken: bool,
    /// How often a claim had to run out.
    claims: u8,
}

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// A dead owner is replaced whatever the word has become since it was read.
    NoGeneration,
    /// An owner counts as dead without a look at its byte.
    NoProbe,
    /// LINE is dropped from whatever word is there, not from exactly the one that was read.
    DropsAnyLine,
    /// LINE is dropped without a second look at the cells.
    DropsForGood,
    /// A waiter marks its cell after it has looked at the word.
    MarksLate,
    /// A waiter sleeps on the bell as it is, not as it was before the look.
    HearsLate,
    /// Who moves into a slot takes LIFE before it has cleared the word.
    LivesEarly,
    /// Who moves in wakes nobody; and no event of a death is told.
    NoPulse,
    /// A reservation for a process that stays away is kept for ever.
    NoClaimLimit,
    /// A waiter that leaves does not pass on what was reserved for it.
    LeavesReservation,
    /// Who was found in the cells is taken to be there still when the word has been changed for it.
    TrustsTheScan,
    /// The same, if it is of the process that rings.
    TrustsItsOwn,
    /// Who passes a reservation on takes any change of the word for somebody's entry.
    TrustsAnySwap,
    /// A reservation for a process of which nobody waits is kept until its claim is over.
    KeepsUnclaimed,
    /// A waiter leaves a free word to the one before it without setting LINE.
    SilentLook,
    /// A waiter takes a free word although another stands before it.
    Overtakes,
    /// Who does not come for a lock that was kept for it is not passed over from then on.
    WaitsForTheLate,
    /// Who is passed over is not woken once more.
    RousesNobody,
}

#[derive(Clone, Copy)]
struct Protocol {
    strict: bool,
    /// How often each process takes the lock.
    rounds: [u8; PROCESSES],
    crashes: u8,
    freezes: u8,
    cancels: u8,
    births: u8,
    /// The second process is a thread of the first, and the first only tries.
    threads: bool,
    defect: Defect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Step(usize),
    /// A step that also wants the next release to reserve: the waiter's millisecond is over. Or a release that finds so itself.
    Impatient(usize),
    Crash(usize),
    Freeze(usize),
    Cancel(usize),
    Born(usize, usize),
    Pulse(usize),
    Timer(usize),
}

impl World {
    fn swap(&mut self, from: Word, to: Word) -> bool {
        let same = self.word == from;
        if same {
            self.word = to;
        }
        same
    }
    fn in_line(at: At) -> bool {
        matches!(
            at,
            At::Hear
                | At::Mark
                | At::Look
                | At::LookCas(_)
                | At::Flag(..)
                | At::Sleep
                | At::Asleep
                | At::PassOver(..)
                | At::Rouse(..)
                | At::Scan(For::Look | For::Claim, ..)
                | At::Found(For::Look | For::Claim, ..)
                | At::Ring(For::Look | For::Claim, ..)
                | At::RingBell(For::Look | For::Claim, ..)
                | At::RingWake(For::Look | For::Claim, ..)
                | At::RingProbe(For::Look | For::Claim, ..)
        )
    }
}

impl Protocol {
    /// What process `p` does next. `None`: nothing until something else happens.
    fn step(&self, world: &World, p: usize, impatient: bool) -> Option<World> {
        let mut w = world.clone();
        let me = w.processes[p];
        if me.frozen {
            return None;
        }
        let slot = me.slot;
        let hand_over = self.strict || impatient;
        let mut at = me.at;
        if impatient && !matches!(at, At::Look | At::Release) {
            return None;
        }
        match me.at {
            At::Dead | At::Asleep => return None,
            At::Idle => {
                if me.rounds == 0 {
                    return None;
                }
                let word = w.word;
                at = match word.kind {
                    // Strict: the rest of the line goes first, and this one looks again from within it.
                    Kind::Free if self.strict && word.line => self.refused(p),
                    Kind::Free => At::TryCas(word),
                    _ => At::Probe(word),
                };
            }
            At::Probe(word) => {
                let others_first = self.strict && self.first_alive(&w).is_some();
                let unclaimed = word.kind == Kind::Reserved
                    && w.slots[word.slot].cell == EMPTY
                    && self.defect != Defect::KeepsUnclaimed;
                let may = (unclaimed || self.is_dead(&w, word.slot)) && !others_first;
                at = if may { At::TryCas(word) } else { self.refused(p) };
            }
            At::TryCas(word) => at = if self.enter(&mut w, slot, word) { At::Critical } else { At::Idle },
            At::Join => {
                w.tickets += 1;
                w.processes[p].ticket = w.tickets;
                // Once it is watched for it, the pulse looks: a death before tells no event any more. Where nobody has died it must
                // not be needed.
                w.processes[p].pulse = w.crashes < self.crashes;
                w.slots[slot].cell = Cell { ticket: w.tickets, asleep: true, late: false };
                at = At::Hear;
            }
            At::Hear => {
                w.processes[p].heard = w.slots[slot].bell;
                at = if self.defect == Defect::MarksLate { At::Look } else { At::Mark };
            }
            At::Mark => {
                w.slots[slot].cell.asleep = true;
                w.slots[slot].cell.late = false;
                at = if self.defect == Defect::MarksLate { At::Sleep } else { At::Look };
            }
            At::Look => {
                let word = w.word;
                let mine = word.slot == slot;
                let unclaimed = w.slots[word.slot].cell == EMPTY && self.defect != Defect::KeepsUnclaimed;
                let stale = unclaimed || me.late && self.defect != Defect::NoClaimLimit;
                at = match word.kind {
                    Kind::Free if self.defect == Defect::Overtakes => At::LookCas(word),
                    Kind::Free => match self.first(&w) {
                        Some(first) if me.late && first != slot => At::PassOver(word, first),
                        _ => At::Scan(For::Look, word, 0, None),
                    },
                    Kind::Reserved if mine => At::LookCas(word),
                    Kind::Reserved if stale => At::PassOver(word, word.slot),
                    _ if me.asked && self.is_dead(&w, word.slot) => At::Scan(For::Claim, word, 0, None),
                    _ if word.line && (word.hand_over || !hand_over) => self.before_sleep(),
                    _ => At::Flag(word, hand_over),
                };
            }
            At::LookCas(word) => {
                let entered = self.enter(&mut w, slot, word);
                let before = |other: &Process| {
                    other.at == At::Asleep && !other.frozen && (1..me.ticket).contains(&w.slots[other.slot].cell.ticket)
                };
                w.overtaken |= entered
                    && !me.late
                    && (word.kind != Kind::Reserved || word.slot != slot)
                    && w.processes.iter().any(before);
                at = if entered { At::Entered } else { At::Look };
            }
            At::PassOver(word, first) => {
                let cell = &mut w.slots[first].cell;
                let late = *cell != EMPTY && !cell.asleep && !cell.late && self.defect != Defect::WaitsForTheLate;
                cell.late |= late;
                let why = if word.kind == Kind::Free { For::Look } else { For::Claim };
                at = if late { At::Rouse(word, first) } else { At::Scan(why, word, 0, None) };
            }
            At::Rouse(word, first) => {
                w.slots[first].bell = (w.slots[first].bell + 1) % 8;
                for process in &mut w.processes {
                    if process.at == At::Asleep && process.slot == first && self.defect != Defect::RousesNobody {
                        process.at = At::Hear;
                    }
                }
                let why = if word.kind == Kind::Free { For::Look } else { For::Claim };
                at = At::Scan(why, word, 0, None);
            }
            At::Flag(word, hand_over) => {
                let flagged = Word { line: true, hand_over: word.hand_over || hand_over, ..word };
                at = if w.swap(word, flagged) { self.before_sleep() } else { At::Look };
            }
            At::Sleep => {
                let me = &mut w.processes[p];
                (me.asked, me.late) = (false, false);
                let heard = if self.defect == Defect::HearsLate { w.slots[slot].bell } else { me.heard };
                at = if w.slots[slot].bell == heard { At::Asleep } else { At::Hear };
            }
            At::Entered => {
                w.slots[slot].cell = EMPTY;
                let me = &mut w.processes[p];
                (me.asked, me.late, me.pulse) = (false, false, false);
                at = At::Critical;
            }
            At::Critical => at = At::Release,
            At::Release => {
                let word = w.word;
                at = if word.hand_over || impatient {
                    At::Scan(For::Reserve, word, 0, None)
                } else {
                    At::ReleaseCas(word)
                };
            }
            At::ReleaseCas(word) => {
                at = match w.swap(word, word.freed()) {
                    false => At::Release,
                    true if word.line => At::Serve,
                    true => At::Done,
                };
            }
            At::Serve => {
                let word = w.word;
                at = if word.kind == Kind::Free && word.line { At::Scan(For::Serve, word, 0, None) } else { At::Done };
            }
            At::Restore => {
                w.word.line = true;
                at = At::Serve;
            }
            At::Scan(why, word, next, best) => {
                let cell = w.slots[next].cell;
                let better = cell != EMPTY && best.is_none_or(|(_, best)| cell.order() < best.order());
                let best = if better { Some((next, cell)) } else { best };
                at =
                    if next + 1 < PROCESSES { At::Scan(why, word, next + 1, best) } else { At::Found(why, word, best) };
            }
            At::Found(why, word, found) => at = self.found(&mut w, slot, why, word, found),
            At::Ring(why, word, to, cell) => {
                // The cell as it is now, or, with the defect, as it was when this waiter was chosen.
                let now = w.slots[to].cell;
                // A claim of its own begins for who is given it.
                w.processes[p].late &= why != For::Claim;
                let seen = if self.defect == Defect::TrustsTheScan { cell } else { now };
                at = if to == slot && self.defect == Defect::TrustsItsOwn {
                    At::RingBell(why, word, to, now)
                } else if seen.ticket != cell.ticket {
                    Protocol::gone(why, word)
                } else if seen.asleep && seen == now {
                    let awake = Cell { asleep: false, ..now };
                    w.slots[to].cell = awake;
                    At::RingBell(why, word, to, awake)
                } else {
                    self.rung(why)
                };
            }
            At::RingBell(why, word, to, cell) => {
                w.slots[to].bell = (w.slots[to].bell + 1) % 8;
                at = At::RingWake(why, word, to, cell);
            }
            At::RingWake(why, word, to, cell) => {
                let mut woken = false;
                for process in &mut w.processes {
                    if process.at == At::Asleep && process.slot == to {
                        woken = true;
                        // A stopped sleeper is taken off the futex all the same.
                        process.at = At::Hear;
                    }
                }
                at = if woken { self.rung(why) } else { At::RingProbe(why, word, to, cell) };
            }
            At::RingProbe(why, word, to, cell) => {
                at = if !self.is_dead(&w, to) {
                    self.rung(why)
                } else {
                    if w.slots[to].cell == cell {
                        w.slots[to].cell = EMPTY;
                    }
                    Protocol::gone(why, word)
                };
            }
            At::Leave => {
                w.slots[slot].cell = EMPTY;
                at = At::Left;
            }
            At::Left => {
                let word = w.word;
                let mine = word.kind == Kind::Reserved && word.slot == slot && self.defect != Defect::LeavesReservation;
                at = if mine { At::Scan(For::PassOn, word, 0, None) } else { At::Serve };
            }
            At::Claimed => {
                w.slots[slot].cell = EMPTY;
                if self.defect == Defect::LivesEarly {
                    w.slots[slot].life = true;
                }
                at = At::Cleared;
            }
            At::Cleared => {
                let word = w.word;
                at = if word.kind != Kind::Free && word.slot == slot { At::Owned(word) } else { self.moved_in() };
            }
            At::Owned(word) => at = if w.swap(word, word.freed()) { self.moved_in() } else { At::Cleared },
            At::Live => {
                w.slots[slot].life = true;
                w.processes[p].moving_in = false;
                at = At::Idle;
            }
            At::Done => {}
        }
        let me = &mut w.processes[p];
        match at {
            At::Entered | At::Critical => me.holds = true,
            At::Serve | At::Ring(..) | At::Done => me.holds = false,
            _ => {}
        }
        if at == At::Done {
            at = if me.moving_in { At::Live } else { At::Idle };
            if !me.moving_in {
                me.rounds = me.rounds.saturating_sub(1);
            }
            // What is not read again must not make two worlds of one.
            (me.heard, me.ticket, me.pulse) = (0, 0, false);
        }
        me.at = at;
        Some(w)
    }

    fn before_sleep(&self) -> At {
        if self.defect == Defect::MarksLate { At::Mark } else { At::Sleep }
    }

    fn moved_in(&self) -> At {
        if self.defect == Defect::NoPulse { At::Done } else { At::Serve }
    }

    /// After a ring that nobody will answer.
    fn gone(why: For, word: Word) -> At {
        match why {
            For::Serve | For::Dropped => At::Serve,
            For::Look | For::Claim => At::Look,
            For::Reserve | For::PassOn => At::Scan(For::PassOn, word, 0, None),
        }
    }

    /// After a ring that somebody will answer.
    fn rung(&self, why: For) -> At {
        match why {
            For::Look => self.before_sleep(),
            For::Claim => At::Look,
            _ => At::Done,
        }
    }

    fn found(&self, w: &mut World, slot: usize, why: For, word: Word, found: Option<(usize, Cell)>) -> At {
        // Nothing is kept for who is late.
        let found = found.filter(|(_, cell)| !cell.late || !matches!(why, For::Reserve | For::PassOn));
        match (why, found) {
            (For::Look, Some((first, _))) if first == slot => At::LookCas(word),
            (For::Claim, Some((first, _))) if first == slot => At::LookCas(word),
            (For::Look | For::Claim, None) => At::LookCas(word),
            (For::Claim, Some((first, cell))) => {
                let reserved = word.reserved(first);
                if w.swap(word, reserved) { At::Ring(why, reserved, first, cell) } else { At::Look }
            }
            (For::Look, Some(_))
                if !word.line && self.defect != Defect::SilentLook && !w.swap(word, Word { line: true, ..word }) =>
            {
                At::Look
            }
            (For::Look | For::Serve, Some((first, cell))) => At::Ring(why, word, first, cell),
            (For::Serve, None) => {
                if self.defect == Defect::DropsAnyLine {
                    w.word.line = false;
                    return At::Done;
                }
                let dropped = w.swap(word, Word { line: false, ..word }) && self.defect != Defect::DropsForGood;
                if dropped { At::Scan(For::Dropped, word, 0, None) } else { At::Done }
            }
            (For::Dropped, None) => At::Done,
            (For::Dropped, Some(_)) => At::Restore,
            (For::Reserve, None) => At::ReleaseCas(word),
            (For::PassOn, None) => {
                if w.swap(word, word.freed()) {
                    At::Serve
                } else {
                    self.passed_by_another(w, word)
                }
            }
            (For::Reserve | For::PassOn, Some((first, cell))) => {
                let reserved = word.reserved(first);
                if w.swap(word, reserved) {
                    At::Ring(why, reserved, first, cell)
                } else if why == For::Reserve {
                    At::Release
                } else {
                    self.passed_by_another(w, word)
                }
            }
        }
    }

    /// The word is no longer what was to be passed on; or it is, and only flagged.
    fn passed_by_another(&self, w: &World, word: Word) -> At {
        let flagged = Word { line: w.word.line, hand_over: w.word.hand_over, ..word };
        if w.word == flagged && self.defect != Defect::TrustsAnySwap {
            At::Scan(For::PassOn, w.word, 0, None)
        } else {
            At::Done
        }
    }

    /// It is not to be had now.
    fn refused(&self, p: usize) -> At {
        if self.only_tries(p) { At::Done } else { At::Join }
    }

    fn only_tries(&self, p: usize) -> bool {
        self.threads && p == 0
    }

    fn is_dead(&self, w: &World, slot: usize) -> bool {
        !w.slots[slot].life || self.defect == Defect::NoProbe
    }

    fn enter(&self, w: &mut World, slot: usize, word: Word) -> bool {
        let mut from = word;
        if self.defect == Defect::NoGeneration
            && word.kind == Kind::Held
            && w.word.kind == Kind::Held
            && w.word.slot == word.slot
        {
            from = w.word;
        }
        w.swap(from, from.entered(slot, self.strict))
    }

    /// Everything that can happen but for the looks every 250 ms.
    fn prompt(&self, w: &World) -> Vec<Action> {
        let mut actions = Vec::new();
        for p in 0..PROCESSES {
            let me = w.processes[p];
            if self.step(w, p, false).is_some() {
                actions.push(Action::Step(p));
            }
            let may_lose_patience = me.at == At::Look || me.at == At::Release && w.word.line;
            if !self.strict && may_lose_patience && !me.frozen && !w.word.hand_over && w.word.kind != Kind::Free {
                actions.push(Action::Impatient(p));
            }
            // Who is not the first looks again a moment later, when the first has had its turn, or has left.
            let mut cleared = w.clone();
            self.clear_dead_cells(&mut cleared);
            let first = self.first_alive(&cleared) == Some(me.slot);
            if me.pulse && first && me.at == At::Asleep && !me.frozen && self.defect != Defect::NoPulse {
                actions.push(Action::Pulse(p));
            }
        }
        actions
    }

    fn first(&self, w: &World) -> Option<usize> {
        (0..PROCESSES).filter(|slot| w.slots[*slot].cell != EMPTY).min_by_key(|slot| w.slots[*slot].cell.order())
    }

    fn first_alive(&self, w: &World) -> Option<usize> {
        (0..PROCESSES)
            .filter(|slot| w.slots[*slot].cell != EMPTY && w.slots[*slot].life)
            .min_by_key(|slot| w.slots[*slot].cell.order())
    }

    fn waits_in_vain(&self, w: &World) -> bool {
        let waiting = w.processes.iter().any(|process| process.at == At::Asleep && !process.frozen);
        // Whoever holds it and lives, even if it is stopped, is waited for.
        let owns = |process: &Process| process.holds && process.slot == w.word.slot;
        let waited_for = w.word.kind == Kind::Held && w.processes.iter().any(owns);
        waiting && !waited_for
    }
}

impl Model for Protocol {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let slot = Slot { claim: true, life: true, bell: 0, cell: EMPTY };
        let process = |p| Process {
            at: At::Idle,
            slot: if self.threads && p == 1 { 0 } else { p },
            heard: 0,
            ticket: 0,
            rounds: self.rounds[p],
            holds: false,
            frozen: false,
            pulse: false,
            asked: false,
            late: false,
            moving_in: false,
        };
        vec![World {
            word: Word { kind: Kind::Free, line: false, hand_over: false, slot: 0, generation: 0 },
            slots: [slot; PROCESSES],
            processes: std::array::from_fn(process),
            tickets: 0,
            crashes: self.crashes,
            freezes: self.freezes,
            cancels: self.cancels,
            births: self.births,
            overtaken: false,
            claims: 0,
        }]
    }

    fn actions(&self, w: &World, actions: &mut Vec<Action>) {
        actions.extend(self.prompt(w));
        if actions.is_empty() {
            // The look every 250 ms.
            actions.extend(
                (0..PROCESSES)
                    .filter(|p| w.processes[*p].at == At::Asleep && !w.processes[*p].frozen)
                    .map(Action::Timer),
            );
        }
        for p in 0..PROCESSES {
            let me = w.processes[p];
            if me.at == At::Dead {
                if w.births > 0 {
                    actions
                        .extend((0..PROCESSES).filter(|slot| !w.slots[*slot].claim).map(|slot| Action::Born(p, slot)));
                }
                continue;
            }
            let busy = me.at != At::Idle || me.rounds > 0;
            if w.crashes > 0 && busy {
                actions.push(Action::Crash(p));
            }
            if w.freezes > 0 && busy && !me.frozen {
                actions.push(Action::Freeze(p));
            }
            // A look that is under way ends first.
            if w.cancels > 0 && matches!(me.at, At::Hear | At::Mark | At::Look | At::Sleep | At::Asleep) && !me.frozen {
                actions.push(Action::Cancel(p));
            }
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut w = last.clone();
        match action {
            Action::Step(p) => return self.step(last, p, false),
            Action::Impatient(p) => return self.step(last, p, true),
            Action::Crash(p) => {
                w.crashes -= 1;
                let me = &mut w.processes[p];
                me.at = At::Dead;
                (me.frozen, me.pulse, me.holds) = (false, false, false);
                let slot = &mut w.slots[me.slot];
                (slot.claim, slot.life) = (false, false);
                for process in &mut w.processes {
                    process.pulse |= World::in_line(process.at);
                }
            }
            Action::Freeze(p) => {
                w.freezes -= 1;
                w.processes[p].frozen = true;
            }
            Action::Cancel(p) => {
                w.cancels -= 1;
                w.processes[p].at = At::Leave;
            }
            Action::Born(p, slot) => {
                w.births -= 1;
                w.slots[slot].claim = true;
                let me = &mut w.processes[p];
                *me = Process { at: At::Claimed, slot, rounds: 1, heard: 0, ticket: 0, moving_in: true, ..*me };
                (me.asked, me.late, me.pulse) = (false, false, false);
            }
            Action::Pulse(p) => {
                self.clear_dead_cells(&mut w);
                let me = &mut w.processes[p];
                (me.pulse, me.asked, me.at) = (false, true, At::Hear);
            }
            Action::Timer(p) => {
                self.clear_dead_cells(&mut w);
                let first = self.first_alive(&w) == Some(w.processes[p].slot);
                let owned = w.word.kind == Kind::Held && w.slots[w.word.slot].life;
                if owned {
                    return None;
                }
                w.claims += u8::from(self.crashes == 0 && self.freezes > 0 && w.claims < 9);
                w.processes[p].asked = true;
                w.processes[p].late = true;
                w.processes[p].at = At::Hear;
                if !first && w.word.kind == Kind::Reserved && self.defect == Defect::NoClaimLimit {
                    return None;
                }
            }
        }
        Some(w)
    }

    fn properties(&self) -> Vec<Property<Protocol>> {
        vec![
            Property::always("exclusion", |_, w: &World| {
                let owners =
                    w.processes.iter().filter(|process| matches!(process.at, At::Critical | At::Entered | At::Release));
                owners.count() <= 1
            }),
            Property::always("a hold is its owner's until it releases", |_, w: &World| {
                w.processes
                    .iter()
                    .filter(|process| process.at == At::Critical)
                    .all(|process| w.word.kind == Kind::Held && w.word.slot == process.slot)
            }),
            // But for a look that is late anyway, when the one before did not come.
            Property::always("order in the line", |_, w: &World| !w.overtaken),
            // Without a stopped process nobody needs the look every 250 ms, whoever dies.
            Property::always("no lost wake-up", |protocol: &Protocol, w: &World| {
                let stopped = w.processes.iter().any(|process| process.frozen);
                stopped || !protocol.waits_in_vain(w) || !protocol.prompt(w).is_empty()
            }),
            Property::always("nothing is kept for nobody", |protocol: &Protocol, w: &World| {
                let stopped = w.processes.iter().any(|process| process.frozen || process.at == At::Dead);
                stopped || w.word.kind != Kind::Reserved || !protocol.prompt(w).is_empty()
            }),
            // Twice, if it was stopped between its mark and its sleep: then it is taken for one that has been seen.
            Property::always(
                "a stopped process does not hold the others up each time",
                |protocol: &Protocol, w: &World| w.claims <= 2 * protocol.freezes,
            ),
            Property::always("no wait for ever", |protocol: &Protocol, w: &World| {
                let mut actions = Vec::new();
                let quiet = Protocol { crashes: 0, ..*protocol };
                let still = World { crashes: 0, freezes: 0, cancels: 0, births: 0, ..w.clone() };
                quiet.actions(&still, &mut actions);
                !protocol.waits_in_vain(w)
                    || actions
                        .iter()
                        .any(|action| protocol.next_state(&still, *action).is_some_and(|next| next != still))
            }),
        ]
    }
}

impl Protocol {
    fn clear_dead_cells(&self, w: &mut World) {
        for slot in &mut w.slots {
            if !slot.life && !slot.claim {
                slot.cell = EMPTY;
            }
        }
    }
}

const SOUND: Protocol = Protocol {
    strict: false,
    rounds: [1; 3],
    crashes: 0,
    freezes: 0,
    cancels: 0,
    births: 0,
    threads: false,
    defect: Defect::None,
};

#[track_caller]
fn holds(protocol: Protocol) {
    let checker = protocol.checker().threads(2).spawn_bfs().join();
    assert!(checker.is_done());
    println!("{} states", checker.unique_state_count());
    assert!(checker.unique_state_count() > 1000, "the world is not trivial");
    checker.assert_properties();
}

/// The fault that the rule prevents is found in this world. It says nothing unless the world holds with all of the rules.
#[track_caller]
fn fails(defect: Defect, world: Protocol) {
    let checker = Protocol { defect, ..world }.checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    println!("{defect:?}: {} states", checker.unique_state_count());
    assert!(!checker.discoveries().is_empty(), "the model does not need the rule that {defect:?} leaves out");
}

#[test]
fn without_faults() {
    for strict in [false, true] {
        holds(Protocol { strict, ..SOUND });
        holds(Protocol { strict, rounds: [3, 2, 0], ..SOUND });
    }
    holds(Protocol { strict: true, rounds: [1, 2, 1], ..SOUND });
}

#[test]
fn with_a_crash_and_a_newcomer_in_its_slot() {
    for strict in [false, true] {
        holds(Protocol { strict, rounds: [1, 1, 0], crashes: 1, births: 1, ..SOUND });
    }
}

#[test]
fn with_a_crash_and_a_freeze() {
    for strict in [false, true] {
        holds(Protocol { strict, crashes: 1, freezes: 1, ..SOUND });
    }
}

#[test]
fn with_a_freeze_and_others_that_come_again() {
    holds(Protocol { strict: true, rounds: [1, 4, 0], freezes: 1, ..SOUND });
}

#[test]
fn with_two_crashes() {
    for strict in [false, true] {
        holds(Protocol { strict, crashes: 2, ..SOUND });
    }
}

#[test]
fn with_a_cancel_and_a_crash() {
    for strict in [false, true] {
        holds(Protocol { strict, crashes: 1, cancels: 1, ..SOUND });
    }
}

#[test]
fn with_cancels() {
    for strict in [false, true] {
        holds(Protocol { strict, cancels: 1, ..SOUND });
        holds(Protocol { strict, cancels: 2, ..SOUND });
    }
}

#[test]
fn with_two_threads_of_a_process_and_a_cancel() {
    for strict in [false, true] {
        holds(Protocol { strict, cancels: 1, threads: true, ..SOUND });
    }
}

#[test]
fn each_rule_is_needed() {
    let two = Protocol { rounds: [1, 1, 0], ..SOUND };
    let strict = Protocol { strict: true, ..SOUND };
    let newcomer = Protocol { crashes: 1, births: 1, ..two };
    let stopped = Protocol { rounds: [1, 4, 0], freezes: 1, ..strict };
    let worlds: [(Protocol, &[Defect]); _] = [
        (two, &[Defect::NoProbe, Defect::HearsLate]),
        (Protocol { rounds: [2, 1, 0], ..newcomer }, &[Defect::NoGeneration]),
        (Protocol { rounds: [1, 2, 1], ..strict }, &[Defect::DropsForGood]),
        (Protocol { rounds: [2, 1, 1], ..SOUND }, &[Defect::DropsAnyLine]),
        (SOUND, &[Defect::MarksLate, Defect::Overtakes]),
        (Protocol { freezes: 1, ..newcomer }, &[Defect::LivesEarly]),
        (Protocol { crashes: 1, ..two }, &[Defect::NoPulse]),
        (Protocol { freezes: 1, ..strict }, &[Defect::NoClaimLimit]),
        (Protocol { cancels: 1, ..strict }, &[Defect::LeavesReservation, Defect::TrustsTheScan, Defect::TrustsAnySwap]),
        (Protocol { threads: true, cancels: 1, ..strict }, &[Defect::TrustsItsOwn]),
        (strict, &[Defect::SilentLook]),
        (stopped, &[Defect::WaitsForTheLate]),
        (Protocol { rounds: [1, 2, 1], ..stopped }, &[Defect::RousesNobody]),
    ];
    for (world, defects) in worlds {
        world.checker().threads(2).spawn_bfs().join().assert_properties();
        for defect in defects {
            fails(*defect, world);
        }
    }
    // That this one holds is a test of its own.
    fails(Defect::KeepsUnclaimed, Protocol { crashes: 1, cancels: 1, ..strict });
}
