//! How the waiting threads of one process share its bell in the lock file (`core/src/backend/mpm/mod.rs`, "The bell"), in every
//! interleaving of a small world: the first of the line sleeps on the bell, which other processes ring, each of the others on a
//! word of its own, and whoever is first next is moved from there to the bell without being woken.
//!
//! Each step is one atomic access or one call to the kernel. What the word and the cells of several processes have to do with it is the
//! other model's (`model_mpm.rs`): here LINE is always set, and the other process is one that takes and releases the lock.
//!
//! Each rule can be left out. Then the checker must find the fault that the rule is there for.

use stateright::{Checker, HasDiscoveries, Model, Property};

const THREADS: usize = 3;
/// Who else does something: the other process, and who cancels a wait.
const OTHER: usize = THREADS;
const CANCELER: usize = THREADS + 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum At {
    Absent,
    Join,
    Hear,
    Check,
    Drive,
    Look,
    SleepOnBell,
    Clear,
    SleepOnOwn,
    OnBell,
    OnOwn,
    /// On the bell, by a call that was made for its own word.
    Moved,
    WokenFromOwn,
    /// Of a thread, and of the others who act: the lock is released, and the cell looked at.
    Release,
    Find,
    Mark(usize),
    Count,
    Wake,
    /// Under the line's lock, after the first has gone: what follows is `then`.
    Promote,
    Flag,
    Move(usize),
    Unlock,
    LookAfter(usize),
    Settle(usize),
    UnparkSettled(usize),
    Cancel,
    Leave,
    Tell,
    Nudge,
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Outcome {
    None,
    /// Decided, and not told yet.
    Ending,
    Granted,
    Canceled,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Actor {
    at: At,
    /// What comes after `Unlock`, and after `Wake`.
    then: At,
    after_wake: At,
    heard: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    /// Who has the lock.
    owner: Option<usize>,
    /// Of this process: whose waiter, and whether it is asleep. The line in its memory, in order.
    cell: Option<(usize, bool)>,
    line: Vec<usize>,
    front: Option<usize>,
    locked: bool,
    bell: u8,
    own: [bool; THREADS],
    outcome: [Outcome; THREADS],
    actors: [Actor; THREADS + 2],
    rounds: u8,
    /// Sleeps that may still end for no reason: a timeout's slice, a signal.
    spurious: u8,
}

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Defect {
    None,
    /// Who moves a sleeper does not raise its flag: who is about to sleep on its own word does.
    NoFlag,
    /// Who has moved a sleeper does not look whether the bell was rung for it before, or for the one before it.
    NoLookAfter,
    /// A sleeper is left where it is.
    NoMove,
    /// Who ends a wait wakes the thread on its own word alone.
    NoNudge,
    /// A thread clears its flag, and sleeps without a look at who is first.
    ForgetsFlag,
}

#[derive(Clone, Copy)]
struct Bells {
    threads: usize,
    cancels: Option<usize>,
    spurious: u8,
    /// How often the other process comes again, and whether it breaks the lock then.
    rounds: u8,
    breaks: bool,
    defect: Defect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    Step(usize),
    Spurious(usize),
}

impl World {
    fn wake_bell(&mut self) {
        for actor in &mut self.actors {
            match actor.at {
                At::OnBell => actor.at = At::Hear,
                At::Moved => actor.at = At::WokenFromOwn,
                _ => {}
            }
        }
    }
    fn unpark(&mut self, thread: usize) {
        if !std::mem::replace(&mut self.own[thread], true) && self.actors[thread].at == At::OnOwn {
            self.actors[thread].at = At::WokenFromOwn;
        }
    }
}

impl Bells {
    fn step(&self, world: &World, who: usize) -> Option<World> {
        let mut w = world.clone();
        let me = w.actors[who];
        let at;
        match me.at {
            At::Absent | At::OnBell | At::OnOwn | At::Moved | At::Done => return None,
            At::Join => {
                if w.locked {
                    return None;
                }
                w.line.push(who);
                if w.line.len() == 1 {
                    w.cell = Some((who, true));
                    w.front = Some(who);
                }
                at = At::Hear;
            }
            At::Hear => {
                w.actors[who].heard = w.bell;
                at = match w.outcome[who] {
                    Outcome::Granted => At::Release,
                    Outcome::Canceled => At::Done,
                    Outcome::Ending => At::Clear,
                    Outcome::None => At::Check,
                };
            }
            At::Check => at = if w.front == Some(who) { At::Drive } else { At::Clear },
            At::Drive => {
                if w.locked {
                    return None;
                }
                match w.line.first() {
                    None => at = At::Hear,
                    Some(first) if w.outcome[*first] != Outcome::None => {
                        w.locked = true;
                        w.line.remove(0);
                        w.actors[who].then = At::Drive;
                        at = At::Promote;
                    }
                    Some(_) => {
                        w.locked = true;
                        if let Some((_, asleep)) = &mut w.cell {
                            *asleep = true;
                        }
                        at = At::Look;
                    }
                }
            }
            At::Look => {
                if w.owner.is_none() {
                    let first = w.line.remove(0);
                    w.owner = Some(first);
                    w.actors[who].then = At::LookAfter(first);
                    at = At::Promote;
                } else {
                    w.locked = false;
                    at = At::SleepOnBell;
                }
            }
            At::SleepOnBell => at = if w.bell == me.heard { At::OnBell } else { At::Hear },
            At::Clear => {
                let set = std::mem::take(&mut w.own[who]);
                at = if set && self.defect != Defect::ForgetsFlag { At::Hear } else { At::SleepOnOwn };
            }
            At::SleepOnOwn => at = if w.own[who] { At::WokenFromOwn } else { At::OnOwn },
            At::WokenFromOwn => {
                w.own[who] = false;
                at = At::Hear;
            }
            At::Promote => {
                w.cell = w.line.first().map(|first| (*first, true));
                w.front = w.line.first().copied();
                at = if w.line.is_empty() { At::Unlock } else { At::Flag };
            }
            At::Flag => {
                let next = w.line[0];
                let was = w.own[next];
                w.own[next] |= self.defect != Defect::NoFlag;
                at = if was || self.defect == Defect::NoMove { At::Unlock } else { At::Move(next) };
            }
            At::Move(next) => {
                if w.actors[next].at == At::OnOwn {
                    w.actors[next].at = At::Moved;
                }
                at = At::Unlock;
            }
            At::Unlock => {
                w.locked = false;
                at = me.then;
            }
            At::LookAfter(first) => {
                let look = w.owner.is_none() && w.cell.is_some() && self.defect != Defect::NoLookAfter;
                w.actors[who].after_wake = At::Settle(first);
                at = if look { At::Count } else { At::Settle(first) };
            }
            At::Settle(first) => {
                if w.outcome[first] == Outcome::None {
                    w.outcome[first] = Outcome::Granted;
                    w.actors[who].after_wake = At::Hear;
                    at = if first == who { At::Hear } else { At::UnparkSettled(first) };
                } else {
                    // It was cancelled meanwhile: the lock goes on.
                    w.actors[who].after_wake = At::Hear;
                    at = if w.owner == Some(first) { At::Find } else { At::Hear };
                    w.owner = w.owner.filter(|owner| *owner != first);
                }
            }
            At::UnparkSettled(first) => {
                w.unpark(first);
                at = At::Count;
            }
            At::Release => {
                // Somebody may have broken it.
                w.actors[who].after_wake = At::Done;
                at = if w.owner == Some(who) { At::Find } else { At::Done };
                w.owner = w.owner.filter(|owner| *owner != who);
            }
            // Of another process's waiter, whether it sleeps; one of one's own is rung for in any case.
            At::Find => {
                at = match w.cell {
                    _ if w.owner.is_some() => me.after_wake,
                    None => me.after_wake,
                    Some((first, _)) if who == OTHER => At::Mark(first),
                    Some(_) => At::Count,
                };
                w.actors[who].after_wake = me.after_wake;
            }
            At::Mark(first) => {
                at = match &mut w.cell {
                    Some((now, asleep)) if *now == first => {
                        if std::mem::take(asleep) {
                            At::Count
                        } else {
                            me.after_wake
                        }
                    }
                    _ => At::Find,
                }
            }
            At::Count => {
                w.bell = (w.bell + 1) % 16;
                at = At::Wake;
            }
            At::Wake => {
                w.wake_bell();
                at = w.actors[who].after_wake;
            }
            At::Cancel => {
                let whom = self.cancels?;
                // Not before it waits.
                if w.actors[whom].at == At::Join {
                    return None;
                }
                at = if w.outcome[whom] == Outcome::None {
                    w.outcome[whom] = Outcome::Ending;
                    At::Leave
                } else {
                    At::Done
                };
            }
            At::Leave => {
                if w.locked {
                    return None;
                }
                w.actors[who].after_wake = At::Tell;
                match w.line.iter().position(|thread| Some(*thread) == self.cancels) {
                    Some(0) => {
                        w.line.remove(0);
                        w.locked = true;
                        w.actors[who].then = At::Find;
                        at = At::Promote;
                    }
                    Some(place) => {
                        w.line.remove(place);
                        at = At::Find;
                    }
                    None => at = At::Tell,
                }
            }
            At::Tell => {
                let whom = self.cancels?;
                w.outcome[whom] = Outcome::Canceled;
                w.unpark(whom);
                at = At::Nudge;
            }
            At::Nudge => {
                w.actors[who].after_wake = At::Done;
                at = if self.defect == Defect::NoNudge { At::Done } else { At::Count };
            }
        }
        if who == OTHER && at == At::Done && w.rounds > 0 {
            // It comes again, and passes if the lock is free in this moment, or breaks it.
            w.rounds -= 1;
            if self.breaks || w.owner.is_none() {
                w.owner = Some(OTHER);
                w.actors[who].at = At::Release;
                return Some(w);
            }
        }
        let me = &mut w.actors[who];
        me.at = at;
        if matches!(at, At::Done | At::OnOwn | At::Clear) {
            // What is not read again must not make two worlds of one.
            (me.heard, me.then, me.after_wake) = (0, At::Done, At::Done);
        }
        Some(w)
    }
}

impl Model for Bells {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let at = |who| match who {
            OTHER => At::Release,
            CANCELER if self.cancels.is_some() => At::Cancel,
            CANCELER => At::Done,
            thread if thread < self.threads => At::Join,
            _ => At::Absent,
        };
        let actor = |who| Actor { at: at(who), then: At::Done, after_wake: At::Done, heard: 0 };
        vec![World {
            owner: Some(OTHER),
            cell: None,
            line: Vec::new(),
            front: None,
            locked: false,
            bell: 0,
            own: [false; THREADS],
            outcome: [Outcome::None; THREADS],
            actors: std::array::from_fn(actor),
            rounds: self.rounds,
            spurious: self.spurious,
        }]
    }

    fn actions(&self, w: &World, actions: &mut Vec<Action>) {
        for who in 0..w.actors.len() {
            if self.step(w, who).is_some() {
                actions.push(Action::Step(who));
            }
        }
        if w.spurious > 0 {
            let asleep = |who: &usize| matches!(w.actors[*who].at, At::OnBell | At::OnOwn | At::Moved);
            actions.extend((0..THREADS).filter(asleep).map(Action::Spurious));
        }
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        match action {
            Action::Step(who) => self.step(last, who),
            Action::Spurious(who) => {
                let mut w = last.clone();
                w.spurious -= 1;
                w.actors[who].at = if w.actors[who].at == At::OnBell { At::Hear } else { At::WokenFromOwn };
                Some(w)
            }
        }
    }

    fn properties(&self) -> Vec<Property<Bells>> {
        vec![
            Property::always("everybody is served or told", |model: &Bells, w: &World| {
                let over = w.actors.iter().all(|actor| matches!(actor.at, At::Done | At::Absent));
                over || (0..w.actors.len()).any(|who| model.step(w, who).is_some())
            }),
            Property::always("who sleeps on its own word is not the first", |_, w: &World| {
                // But for a moment, in which who made it the first has the line's lock.
                w.locked
                    || w.front.is_none_or(|first| w.actors[first].at != At::OnOwn || w.outcome[first] != Outcome::None)
            }),
        ]
    }
}

const SOUND: Bells = Bells { threads: 2, cancels: None, spurious: 0, rounds: 0, breaks: false, defect: Defect::None };

#[track_caller]
fn holds(world: Bells) {
    let checker = world.checker().threads(2).spawn_bfs().join();
    assert!(checker.is_done());
    println!("{} states", checker.unique_state_count());
    assert!(checker.unique_state_count() > 300, "the world is not trivial");
    checker.assert_properties();
}

/// The fault that the rule prevents is found in this world.
#[track_caller]
fn fails(defect: Defect, world: Bells) {
    let checker = Bells { defect, ..world }.checker().threads(2).finish_when(HasDiscoveries::Any).spawn_bfs().join();
    println!("{defect:?}: {} states", checker.unique_state_count());
    assert!(!checker.discoveries().is_empty(), "the model does not need the rule that {defect:?} leaves out");
}

#[test]
fn threads_in_line() {
    holds(SOUND);
    holds(Bells { spurious: 1, rounds: 1, ..SOUND });
    holds(Bells { rounds: 1, breaks: true, ..SOUND });
    holds(Bells { threads: 3, ..SOUND });
}

#[test]
fn a_wait_that_is_cancelled() {
    for whom in 0..2 {
        holds(Bells { cancels: Some(whom), ..SOUND });
    }
}

#[test]
fn each_rule_is_needed() {
    let canceled = Bells { cancels: Some(0), ..SOUND };
    let broken = Bells { rounds: 1, breaks: true, ..SOUND };
    fails(Defect::NoFlag, SOUND);
    fails(Defect::NoLookAfter, broken);
    fails(Defect::NoMove, SOUND);
    fails(Defect::NoNudge, canceled);
    fails(Defect::ForgetsFlag, SOUND);
}
