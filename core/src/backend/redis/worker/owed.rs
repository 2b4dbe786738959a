//! What is owed to the server: tokens that may stand there and that nobody here wants.

use std::time::{Duration, Instant};

use super::{Event, Worker};
use crate::backend::redis::lease;
use crate::backend::redis::token::Token;
use crate::timeout::earlier;

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
            move |_, reply| Event::Paid { token: owed, until, number, reply },
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

#[cfg(test)]
mod tests {
    use redis::Value;
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;
    use crate::backend::redis::engine::{Debt, Engine};
    use crate::backend::redis::keys::Keys;
    use crate::backend::redis::server::Server;
    use crate::backend::redis::wire::Ending;
    use crate::url::{LockUrl, Target};

    /// A token that stood again since the release of it was sent.
    #[test]
    fn what_is_owed_anew_is_not_paid_by_the_answer_before() {
        let url = LockUrl::parse("rpm+redis://nowhere/owed").expect("a URL");
        let Target::Redis(target) = url.target() else { panic!("of Redis") };
        let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
        let mut worker = Worker::new(engine.clone(), unbounded_channel().0);
        let token: Token = "token".into();
        let owe = |until| {
            let debt =
                Debt { keys: Keys::of("owed"), beside_others: false, by_ear: false, ending: Ending::Undone, until };
            engine.board().debts.insert(token.clone(), debt);
        };
        for (owed_since, left) in [(2, 1), (1, 0)] {
            owe(owed_since);
            worker.tasks = 1;
            worker.act(Event::Paid { token: token.clone(), until: 1, number: worker.number, reply: Ok(Value::Nil) });
            assert_eq!(engine.board().debts.len(), left);
        }
    }
}
