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
    /// The server is stopped for a time.
    ServerStop(Duration),
    /// The server is killed and started again, with its data.
    ServerRestart,
    /// The same without its data.
    ServerForget,
    /// All connections end.
    Cut,
    /// Connections carry nothing for a time.
    Hush(Duration),
}

/// The faults of a seed, one after the other.
pub struct Plan {
    random: fastrand::Rng,
    places: usize,
    server: bool,
}

impl Plan {
    /// The plan of `seed` for a crew of so many places, with faults of a server or without.
    pub fn new(seed: u64, places: usize, server: bool) -> Plan {
        Plan { random: fastrand::Rng::with_seed(seed), places, server }
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
        let pause = self.between(5, if self.server { 300 } else { 120 });
        let place = self.random.usize(0..self.places);
        let inside = self.random.u8(0..4) < if self.server { 1 } else { 2 };
        let fault = match self.random.u32(0..if self.server { 110 } else { 100 }) {
            0..45 => Fault::Kill { place, inside },
            45..90 => Fault::Stop { place, inside, lasting: self.between(1, 150) },
            90..100 => Fault::Stop { place, inside, lasting: self.between(150, if self.server { 1500 } else { 600 }) },
            100..103 => Fault::ServerStop(self.between(10, 1500)),
            103..104 => Fault::ServerRestart,
            104..105 => Fault::ServerForget,
            105..108 => Fault::Cut,
            _ => Fault::Hush(self.between(10, 1500)),
        };
        Some((pause, fault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_a_plan() {
        let plan = |seed| Plan::new(seed, 10, true).take(1000).collect::<Vec<_>>();
        assert_eq!(plan(1), plan(1));
        assert_ne!(plan(1), plan(2));
        assert!(plan(1).iter().any(|(_, fault)| *fault == Fault::ServerForget));
        assert!(
            Plan::new(1, 10, false)
                .take(1000)
                .all(|(_, fault)| matches!(fault, Fault::Kill { .. } | Fault::Stop { .. }))
        );
    }
}
