//! How long a lease can be relied on. Pure, but for reading the clock.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// The shortest and the longest lease.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(86_400);

/// How long who looks after holds sleeps at most: timers stand still while the machine is suspended, and leases do not. So
/// late a loss may be told after that.
pub(super) const LOOK: Duration = Duration::from_secs(3);

/// How soon something is asked again that a server refused for now, or could not be asked.
pub(super) const AGAIN: Duration = Duration::from_millis(200);

/// For so long at least what is owed is remembered: a server that was frozen does late what it was asked, and its lease begins then.
const OWED: Duration = Duration::from_secs(60);

/// How many holds one call renews.
pub(super) const BATCH: usize = 100;
/// Holds whose renewals lie within this part of their lease go together.
pub(super) const TOGETHER: u32 = 12;

/// A moment in ns on a clock that also counts while the machine is suspended: leases run out then, too.
pub(super) fn now() -> u64 {
    #[cfg(target_os = "linux")]
    let clock = rustix::time::ClockId::Boottime;
    #[cfg(not(target_os = "linux"))]
    let clock = rustix::time::ClockId::Monotonic;
    let now = rustix::time::clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// When a lease that was asked for at `sent` ends for its holder: the server's count starts later and so ends later,
/// and the margin covers that its clock may run a little faster than ours.
pub(super) fn deadline(sent: u64, ttl: Duration) -> u64 {
    sent + nanos(ttl - ttl / 100 - Duration::from_millis(5))
}

/// Until when something is owed that may stand for `ttl`.
pub(super) fn owed(ttl: Duration) -> u64 {
    now() + nanos(ttl.max(OWED))
}

/// The end of `wait`, counted from `sent`: what is said of a key's life may be long on its way, or lie unread.
pub(super) fn counted_from(sent: u64, wait: Duration) -> Instant {
    Instant::now() + wait.saturating_sub(Duration::from_nanos(now().saturating_sub(sent)))
}

/// When to renew it: at a third, a little earlier by `spread` so that many holds do not renew in one moment.
pub(super) fn renewal(sent: u64, ttl: Duration, spread: u8) -> u64 {
    sent + nanos(ttl / 3 - ttl / 12 * u32::from(spread) / 256)
}

/// How long a waiter sleeps before it looks again by itself. `left` is what the server says of the key's life in ms
/// (-1: it never expires); `rank` is the waiter's place in the line.
pub(super) fn recheck(left: i64, rank: u32, foreign: bool, jitter: u8) -> Duration {
    let jitter = u64::from(jitter);
    // A foreign holder's release tells nobody: the look must be a bounded time away.
    let most = if foreign { 200 + jitter / 5 } else { 20_000 + 4 * jitter };
    let wait = match u64::try_from(left) {
        // In the order of the line, so that who comes first looks first and the others find it served.
        Ok(left) => left + 1 + 20 * u64::from(rank.min(20)) + jitter / 64,
        // Only another program holds without an expiry.
        Err(_) => most.min(10_000),
    };
    Duration::from_millis(wait.min(most))
}

/// How long to wait before the next try to reach a server: doubling from 50 ms to 2 s, the last half at random.
pub(super) fn backoff(failures: u32, jitter: u8) -> Duration {
    let most = 50_u64 << failures.min(6);
    let most = most.min(2_000);
    Duration::from_millis(most / 2 + most * u64::from(jitter) / 512)
}

/// `ttl`, if it can be one.
pub(super) fn possible(ttl: Duration) -> Result<Duration> {
    if (SHORTEST..=LONGEST).contains(&ttl) {
        return Ok(ttl);
    }
    Err(Error::new(ErrorKind::Invalid, "extend", format!("a lease of {ttl:?} is not possible"))
        .with_help("possible: 100 ms to 24 h"))
}

/// A byte for spreading timers, from the clock's last digits; which one it is matters little.
pub(super) fn jitter() -> u8 {
    let now = now();
    (now ^ now >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    #[test]
    fn the_holder_gives_up_before_the_server_does() {
        assert_eq!(deadline(1_000, Duration::from_secs(10)), 1_000 + 9_895 * MS);
        assert_eq!(deadline(0, SHORTEST), 94 * MS);
        for ttl in [SHORTEST, Duration::from_secs(10), LONGEST] {
            assert!(deadline(0, ttl) < nanos(ttl));
            for spread in [0, 255] {
                // At least two more tries fit into the lease after the first renewal.
                assert!(renewal(0, ttl, spread) * 3 <= nanos(ttl));
                assert!(renewal(0, ttl, spread) * 5 >= nanos(ttl));
            }
        }
    }

    #[test]
    fn a_waiter_never_looks_before_the_lease_ends_and_soon_after() {
        for jitter in [0, 128, 255] {
            let wait = recheck(1_000, 0, false, jitter);
            assert!((1_001..=1_005).contains(&wait.as_millis()), "{wait:?}");
            assert!(recheck(1_000, 500, false, jitter) <= Duration::from_millis(1_405));
            assert!(recheck(0, 0, false, jitter) >= Duration::from_millis(1));
            assert!(recheck(86_400_000, 0, false, jitter) < Duration::from_secs(30), "the line lives 60 s");
            assert!(recheck(-1, 0, true, jitter) <= Duration::from_millis(251));
        }
    }

    #[test]
    fn retries_slow_down_and_never_stop() {
        for jitter in [0, 255] {
            assert!(backoff(0, jitter) >= Duration::from_millis(25));
            assert!(backoff(60, jitter) <= Duration::from_secs(2));
            assert!(backoff(60, jitter) >= Duration::from_secs(1));
        }
    }
}
