//! What is done to whom and when: all of it follows from the seed.

use std::time::Duration;

/// One fault.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// kill -9 of the participant in a place of the crew, or of whoever is inside.
    Kill {
        /// Which place.
        place: usize,
        /// Rather whoever is inside.
        inside: bool,
    },
    /// SIGSTOP, and SIGCONT after a time.
    Stop {
        /// Which place.
        place: usize,
        /// Rather whoever is inside.
        inside: bool,
        /// How long.
        lasting: Duration,
    },
    /// Something is done to servers, or to the network before them.
    Servers {
        /// What.
        harm: Harm,
        /// To which of them; the scene makes of it what fits.
        which: usize,
        /// How long, if it lasts.
        lasting: Duration,
    },
}

/// What is done to servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// One is stopped for a time.
    Stop,
    /// One is killed and started again, with its data.
    Restart,
    /// The same without its data.
    Forget,
    /// One is killed, and started again with its data after a time.
    Away,
    /// All connections to one end.
    Cut,
    /// They carry nothing for a time.
    Hush,
    /// So many are stopped, killed or not to be heard for a time that nobody can have the lock.
    Outage,
    /// Another one becomes the master, by command.
    FailOver,
    /// The lock's slot is open for a move for a time, and then moves to another.
    Move,
}

impl Harm {
    /// What is counted.
    pub const fn name(self) -> &'static str {
        match self {
            Harm::Stop => "server stopped",
            Harm::Restart => "server restarted",
            Harm::Forget => "server restarted empty",
            Harm::Away => "server away",
            Harm::Cut => "network cut",
            Harm::Hush => "network hushed",
            Harm::Outage => "majority away",
            Harm::FailOver => "failover by command",
            Harm::Move => "slot moved",
        }
    }
}

/// The faults of a seed, one after the other.
pub struct Plan {
    random: fastrand::Rng,
    places: usize,
    /// What is done to servers, and how often beside 100 faults of participants.
    harms: &'static [(u32, Harm)],
}

impl Plan {
    /// The plan of `seed` for a crew of so many places, with these faults of servers, if any.
    pub fn new(seed: u64, places: usize, harms: &'static [(u32, Harm)]) -> Plan {
        Plan { random: fastrand::Rng::with_seed(seed), places, harms }
    }

    fn harm(&mut self, mut draw: u32) -> Fault {
        let harm = self.harms.iter().find_map(|(weight, harm)| {
            let chosen = draw < *weight;
            draw = draw.saturating_sub(*weight);
            chosen.then_some(*harm)
        });
        let (which, lasting) = (self.random.usize(..), self.between(10, 1500));
        Fault::Servers { harm: harm.expect("a draw below the sum"), which, lasting }
    }

    fn between(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_micros(self.random.u64(from_ms * 1000..=to_ms * 1000))
    }
}

impl Iterator for Plan {
    /// How long nothing happens before it, and what it is.
    type Item = (Duration, Fault);

    fn next(&mut self) -> Option<(Duration, Fault)> {
        // Who is killed inside leaves a lease that must run out: then nothing happens, and faults hit only who waits.
        let leased = !self.harms.is_empty();
        let pause = self.between(5, if leased { 300 } else { 120 });
        let place = self.random.usize(0..self.places);
        let inside = self.random.u8(0..4) < if leased { 1 } else { 2 };
        let harms: u32 = self.harms.iter().map(|(weight, _)| weight).sum();
        let fault = match self.random.u32(0..100 + harms) {
            0..45 => Fault::Kill { place, inside },
            45..90 => Fault::Stop { place, inside, lasting: self.between(1, 150) },
            90..100 => Fault::Stop { place, inside, lasting: self.between(150, if leased { 1500 } else { 600 }) },
            harm => self.harm(harm - 100),
        };
        Some((pause, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        const HARMS: &[(u32, Harm)] = &[(9, Harm::Stop), (1, Harm::Forget)];
        let plan = |seed| Plan::new(seed, 10, HARMS).take(1000).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        for (_, harm) in HARMS {
            assert!(plan(1).iter().any(|(_, fault)| matches!(fault, Fault::Servers { harm: of, .. } if of == harm)));
        }
        assert!(
            Plan::new(1, 10, &[]).take(1000).all(|(_, fault)| matches!(fault, Fault::Kill { .. } | Fault::Stop { .. }))
        );
    }
}
