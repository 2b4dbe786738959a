use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// A word says who owns, a line says who is next; who releases frees the word and tells the first in line that it owns.
///
/// A newcomer finds the word free and takes it in between.
#[derive(Default)]
pub struct GrantWithoutTheWord {
    word: u64,
    line: VecDeque<u64>,
    told: Vec<u64>,
}

impl GrantWithoutTheWord {
    /// Takes the word if it is free; else lines up.
    pub fn acquire(&mut self, who: u64) -> bool {
        if self.word == 0 {
            self.word = who;
            return true;
        }
        self.line.push_back(who);
        false
    }

    /// Frees the word, and tells the next.
    pub fn release(&mut self) {
        self.word = 0;
        self.told.extend(self.line.pop_front());
    }

    /// Whether one in line was told that it owns.
    pub fn is_told(&self, who: u64) -> bool {
        self.told.contains(&who)
    }
}

/// A word says who owns and when it last gave a sign of life. Who gave none for a while counts as dead, and its word is reset.
///
/// That one has died is not what silence says: it may be stopped, and go on.
pub struct ImpatientReset {
    word: Option<(u64, Instant)>,
    patience: Duration,
}

impl ImpatientReset {
    /// A free lock whose owners count as dead after `patience`.
    pub fn new(patience: Duration) -> ImpatientReset {
        ImpatientReset { word: None, patience }
    }

    /// Takes the word, also from one that counts as dead.
    pub fn acquire(&mut self, who: u64) -> bool {
        let alive = self.word.is_some_and(|(_, sign)| sign.elapsed() < self.patience);
        if !alive {
            self.word = Some((who, Instant::now()));
        }
        !alive
    }
}
