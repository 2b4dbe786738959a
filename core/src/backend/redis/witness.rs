//! `replicas=`: a take counts when so many replicas have acknowledged it.
//!
//! `WAIT` speaks of what was written on its own connection, and makes all that comes behind it there wait. So the key is
//! written once more, on a connection for this alone, and what the replicas acknowledge covers the take before it. It
//! proves copies, not that the replica which is promoted has one.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use super::engine::{self, Engine};
use super::lock::Lock;
use super::server::{Address, PATIENT};
use super::token::Token;
use super::wire;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Turns;

/// How long replicas may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Why what was granted is no hold.
pub(super) struct Unwitnessed {
    pub(super) error: Error,
    /// Fewer replicas than must have it do. Else they were not heard: what they would say is not known.
    pub(super) short: bool,
}

impl From<Error> for Unwitnessed {
    fn from(error: Error) -> Unwitnessed {
        Unwitnessed { error, short: false }
    }
}

/// When fewer replicas than were asked for had acknowledged what was written, and how many had. Whoever has it asks them.
pub(super) type Short = Turns<Option<(Instant, u32)>>;

impl Engine {
    /// Of this node of a cluster, or of the server.
    fn short_at(&self, node: Option<Address>) -> Arc<Short> {
        self.short.lock().entry(node).or_default().clone()
    }

    /// Waits until `lock`'s replicas have acknowledged that `token` holds it, as it was granted just before `begun`. Blocks, for some
    /// seconds at most, and behind others until `deadline`, or for as long as connecting may take. Who came while another waited in
    /// vain has waited, too: else the last of many would, one after the other, outlast its lease.
    ///
    /// # Errors
    /// UNAVAILABLE if they have not. The hold still stands in the server: it is the caller's to release.
    pub(super) fn witness(
        &self,
        lock: &Lock,
        token: &Token,
        begun: Instant,
        deadline: Option<Instant>,
    ) -> Result<(), Unwitnessed> {
        // Who has less than that would never get there: what it has connected to so far ends with it.
        let deadline = deadline.map(|end| end.max(begun + self.server.connect_timeout.max(PATIENT)));
        // Before any renewal.
        let hold = (&lock.keys, &**token, lock.ttl, 0);
        let (renewed, copies) = self
            .call_on(&self.aside, deadline, "acquire", |connection| {
                let turns = self.short_at(self.learned.node_of(lock.keys.lock()));
                let Some(mut short) = turns.lock_by(deadline) else {
                    return Err(io::Error::from(io::ErrorKind::TimedOut).into());
                };
                if let Some((_, copies)) = short.filter(|(at, copies)| *at > begun && *copies < lock.replicas) {
                    return Ok((None, copies));
                }
                connection.set_limit(self.server.patience());
                let renewed = engine::run(connection, |by_text| self.scripts.renew(by_text, std::iter::once(hold)))?;
                // Its answer may take as long as the replicas may, and on its way as long as any.
                connection.set_limit(PATIENCE + self.server.patience());
                let patience = PATIENCE.as_millis() as u64;
                let copies = redis::cmd("WAIT").arg(lock.replicas).arg(patience).query::<Value>(connection)?;
                let copies = wire::copies(&copies).map_err(wire::unasked)?;
                if copies < lock.replicas {
                    *short = Some((Instant::now(), copies));
                }
                Ok((Some(renewed), copies))
            })
            .map_err(|failed| failed.error)?;
        if let Some(renewed) = renewed
            && wire::renewed(&renewed, 1)? != [true]
        {
            // It was nobody's hold yet.
            let message = "what the server granted was gone before the replicas had it";
            return Err(Error::new(ErrorKind::Unavailable, "acquire", message).into());
        }
        if copies >= lock.replicas {
            return Ok(());
        }
        let error = Error::new(
            ErrorKind::Unavailable,
            "acquire",
            format!(
                "of {} replicas that must have it {copies} acknowledged the hold within {} s",
                lock.replicas,
                PATIENCE.as_secs()
            ),
        )
        .with_help("the hold was released; look after the replicas, or ask for fewer with ?replicas=");
        Err(Unwitnessed { error, short: true })
    }
}
