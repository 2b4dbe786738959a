//! The one place where a wait limit is checked and becomes a deadline.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind, Result};

/// The earlier of two, of which each may be never.
pub(crate) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

/// How long an acquisition may wait: at once, for a while, or for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeout(Option<Duration>);

impl Timeout {
    /// As long as it takes.
    pub const FOREVER: Timeout = Timeout(None);
    /// Do not wait at all.
    pub const TRY: Timeout = Timeout(Some(Duration::ZERO));

    /// Milliseconds as in C: negative and `i64::MAX` are for ever, 0 is a try.
    pub const fn from_c_ms(ms: i64) -> Timeout {
        if ms < 0 || ms == i64::MAX { Timeout::FOREVER } else { Timeout(Some(Duration::from_millis(ms as u64))) }
    }

    /// Seconds as in Python and the shell.
    ///
    /// # Errors
    /// INVALID for NaN, negatives, infinities and what no duration can hold.
    pub fn from_secs(seconds: f64) -> Result<Timeout> {
        match Duration::try_from_secs_f64(seconds) {
            Ok(limit) => Ok(Timeout(Some(limit))),
            Err(_) => Err(Error::new(
                ErrorKind::Invalid,
                "acquire",
                format!("a timeout of {seconds} seconds is not a time to wait"),
            )
            .with_help("give 0 to try, a positive number of seconds, or nothing to wait for ever")),
        }
    }

    /// Milliseconds as in Node: `Infinity` is for ever.
    ///
    /// # Errors
    /// INVALID for NaN and negatives.
    pub fn from_js_ms(ms: f64) -> Result<Timeout> {
        if ms == f64::INFINITY {
            return Ok(Timeout::FOREVER);
        }
        match Duration::try_from_secs_f64(ms / 1000.0) {
            Ok(limit) => Ok(Timeout(Some(limit))),
            Err(_) => Err(Error::new(
                ErrorKind::Invalid,
                "acquire",
                format!("a timeout of {ms} milliseconds is not a time to wait"),
            )
            .with_help("give 0 to try, a positive number of milliseconds, or nothing to wait for ever")),
        }
    }

    /// The limit, or `None` for ever.
    pub const fn limit(self) -> Option<Duration> {
        self.0
    }

    /// Whether this is a try.
    pub const fn is_try(self) -> bool {
        matches!(self.0, Some(limit) if limit.is_zero())
    }

    /// When the wait ends, counted from now; `None` is never (also what lies beyond the clock's range).
    pub fn deadline(self) -> Option<Instant> {
        self.0.and_then(|limit| Instant::now().checked_add(limit))
    }
}

impl From<Duration> for Timeout {
    fn from(limit: Duration) -> Timeout {
        Timeout(Some(limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_numbers_are_invalid_everywhere() {
        for bad in [f64::NAN, -0.5, -1.0, f64::NEG_INFINITY, 1e300] {
            assert_eq!(Timeout::from_secs(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
            assert_eq!(Timeout::from_js_ms(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad}");
        }
        assert_eq!(Timeout::from_secs(f64::INFINITY).unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(Timeout::from_js_ms(f64::INFINITY).unwrap(), Timeout::FOREVER);
    }

    #[test]
    fn the_edges_of_c() {
        assert_eq!(Timeout::from_c_ms(-1), Timeout::FOREVER);
        assert_eq!(Timeout::from_c_ms(i64::MIN), Timeout::FOREVER);
        assert_eq!(Timeout::from_c_ms(i64::MAX), Timeout::FOREVER);
        assert!(Timeout::from_c_ms(0).is_try());
        assert_eq!(Timeout::from_c_ms(1500).limit(), Some(Duration::from_millis(1500)));
    }
}
