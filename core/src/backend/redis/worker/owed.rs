//! What is owed to the server: tokens that may stand there and that nobody here wants.

use std::time::{Duration, Instant};

use super::{Event, Worker, earlier};
use crate::backend::redis::lease;
use crate::backend::redis::token::Token;

impl Worker {
    pub(super) fn pay(&mut self, token: &Token) {
        if self.link().is_none() {
            return;
        }
        let Some(debt) = self.engine.board().debts.get(token).cloned() else { return };
        // It waits for its turn already.
        if !self.unpaid.insert(token.clone()) {
            return;
        }
        let (engine, number, owed) = (self.engine.clone(), self.number, token.clone());
        let (called, due) = (owed.clone(), owed.clone());
        let (keys, until) = (debt.keys.clone(), debt.until);
        self.send(
            keys.lock(),
            move |worker| {
                worker.unpaid.remove(&due);
                until > lease::now()
            },
            move |by_text| engine.release_command(by_text, &called, &debt),
            move |_, reply| Event::Paid { token: owed, number, reply },
        );
    }

    pub(super) fn pay_due(&mut self) {
        let now = lease::now();
        self.engine.board().debts.retain(|_, debt| debt.until > now);
        let next = self.engine.board().debts.values().map(|debt| debt.until).min();
        if self.pay_at.is_some_and(|at| at <= Instant::now()) {
            self.pay_at = None;
            let debts: Vec<Token> = self.engine.board().debts.keys().cloned().collect();
            for token in debts {
                self.pay(&token);
            }
        }
        if let (Some(until), None) = (next, self.link()) {
            let forgiven = Instant::now() + Duration::from_nanos(until.saturating_sub(now));
            self.pay_at = earlier(self.pay_at, Some(forgiven));
        }
    }
}
