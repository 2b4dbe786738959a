//! An event loop's own connection: it was the caller's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Engine;
use super::exchange::Exchange;
use crate::backend::redis::server::Connection;
use crate::event_loop::EventLoop;

/// So often an event loop goes by way of a thread before it gets a connection.
const PASSING: usize = 2;

impl Engine {
    /// The event loop's own connection, if it has one on which it may ask now.
    pub(crate) fn exchange_of(&self, on: &EventLoop) -> Option<Arc<Exchange>> {
        let exchange = self.exchange.lock().clone().filter(|exchange| exchange.is_of(on))?;
        if exchange.changes != self.changes() || self.learned.forbids_scripts() {
            exchange.end();
        }
        exchange.is_idle().then_some(exchange)
    }

    /// Whether no event loop has a connection, and `takes` so has its place. One that has not been used for a while ends for that.
    pub(crate) fn takes_place_of_exchange(&self, takes: impl FnOnce() -> bool) -> bool {
        let mut place = self.exchange.lock();
        if place.as_ref().is_some_and(|exchange| !exchange.is_over()) || !takes() {
            return false;
        }
        let before = place.take();
        drop(place);
        if let Some(before) = before {
            before.end();
        }
        true
    }

    /// Makes the caller's connection the event loop's, if no loop has one. Somebody who only comes by needs none.
    pub(crate) fn lay_exchange(self: &Arc<Engine>, on: &EventLoop) {
        // Over RESP2 there is a connection more already.
        if on.is_blind()
            || self.unlaid.fetch_add(1, Ordering::Relaxed) < PASSING
            || self.learned.forbids_scripts()
            || self.server.is_resp2(&self.learned)
        {
            return;
        }
        let mut place = self.exchange.lock();
        if place.as_ref().is_some_and(|exchange| !exchange.is_over()) || !self.direct.make_way() {
            return;
        }
        let Some(mut caller) = self.caller.lock_by(Some(Instant::now())) else { return };
        if caller.changes != self.changes() {
            return;
        }
        let single = match caller.connection.take() {
            Some(Connection::One(single, _)) if single.can_be_watched() => single,
            other => {
                caller.connection = other;
                return;
            }
        };
        let laid = Exchange::lay(single.into_stream(), caller.changes, on);
        drop(caller);
        let before = std::mem::replace(&mut *place, laid.clone());
        drop(place);
        if let Some(before) = before {
            before.end();
        }
        if let Some(laid) = laid {
            on.watch(laid);
        }
    }
}
