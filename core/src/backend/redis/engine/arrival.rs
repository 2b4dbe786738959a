//! Waiters that line up on the caller's connection, before the background thread knows of them: one round trip to join,
//! and no thread but the caller's on the way.
//!
//! Who is in the line may be told that it is its turn. So the token is known here before it is sent, and what is heard
//! of it is kept until the waiter has come.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use crate::backend::redis::lease;
use crate::backend::redis::lock::Lock;
use crate::backend::redis::token::Token;

/// What came on the channel for a token.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// The lock is granted to it, or it is its turn.
    Turn,
    /// It is the first in line; the lock lives this long, in ms.
    First(i64),
}

pub(crate) struct Arrival {
    pub(crate) token: Token,
    pub(crate) lock: Arc<Lock>,
    /// The link that heard when it joined; on another one, something may have been missed.
    pub(crate) link: u64,
    /// Its place in the line.
    pub(crate) ticket: u64,
    /// What the server said: how long the key lives, how many are before it, and whether a foreigner holds.
    pub(crate) left: i64,
    pub(crate) rank: u32,
    pub(crate) foreign: bool,
    /// When that was asked.
    pub(crate) sent: u64,
    pub(crate) heard: Option<Word>,
    /// Its thread hears by itself, as another process in the line.
    pub(crate) direct: bool,
}

impl Arrival {
    fn new(token: Token, lock: Arc<Lock>, link: u64, direct: bool) -> Arrival {
        let sent = lease::now();
        Arrival { token, lock, link, ticket: 0, left: 0, rank: 0, foreign: false, sent, heard: None, direct }
    }
}

#[derive(Default)]
pub(crate) struct Arrivals {
    /// The link on which this process hears; 0 if there is none. Without, nobody may line up in this way.
    pub(crate) hearing: u64,
    by_serial: HashMap<u64, Arrival>,
    /// The tokens that the end of the process has given up: what they are granted is undone behind them.
    undone: HashSet<Token>,
}

impl Arrivals {
    /// One is about to join; whether it may.
    pub(crate) fn announce(&mut self, serial: u64, token: &Token, lock: &Arc<Lock>) -> bool {
        if self.hearing != 0 {
            let (token, lock, link) = (token.clone(), lock.clone(), self.hearing);
            self.by_serial.insert(serial, Arrival::new(token, lock, link, false));
        }
        self.hearing != 0
    }

    /// The same, for one whose thread hears by itself.
    pub(crate) fn announce_direct(&mut self, serial: u64, token: &Token, lock: &Arc<Lock>) {
        self.by_serial.insert(serial, Arrival::new(token.clone(), lock.clone(), 0, true));
    }

    /// It hears no more by itself, and comes to the background thread with another token; false if it has left.
    pub(crate) fn moves(&mut self, serial: u64, token: Token, ticket: u64) -> bool {
        let Some(arrival) = self.by_serial.get_mut(&serial) else { return false };
        *arrival = Arrival { ticket, ..Arrival::new(token, arrival.lock.clone(), 0, false) };
        true
    }

    /// One that heard by itself has ended: its token.
    pub(crate) fn take_direct(&mut self, serial: u64) -> Option<Token> {
        let arrival = self.by_serial.get(&serial).filter(|arrival| arrival.direct)?;
        let token = arrival.token.clone();
        self.by_serial.remove(&serial);
        Some(token)
    }

    pub(crate) fn of(&mut self, serial: u64) -> Option<&mut Arrival> {
        self.by_serial.get_mut(&serial)
    }

    pub(crate) fn take(&mut self, serial: u64) -> Option<Arrival> {
        self.by_serial.remove(&serial)
    }

    /// Keeps what was heard for `token`; false if nobody with it is on the way.
    pub(crate) fn hear(&mut self, token: &str, word: Word) -> bool {
        let Some(arrival) = self.by_serial.values_mut().find(|arrival| *arrival.token == *token) else { return false };
        // Its turn comes last.
        if arrival.heard != Some(Word::Turn) {
            arrival.heard = Some(word);
        }
        true
    }

    /// All are given up, for the process ends.
    pub(super) fn undo_all(&mut self) -> impl Iterator<Item = &Arrival> {
        self.undone.extend(self.by_serial.values().map(|arrival| arrival.token.clone()));
        self.by_serial.values()
    }

    /// Whether what `token` is granted will be undone.
    pub(super) fn is_undone(&self, token: &str) -> bool {
        self.undone.contains(token)
    }

    /// Whether nobody is on the way to the background thread.
    pub(crate) fn is_empty(&self) -> bool {
        self.by_serial.values().all(|arrival| arrival.direct)
    }
}
