//! What the scripts answer, and what they publish.

use std::time::Duration;

use redis::Value;

use crate::backend::contract::{Owner, State, Status};
use crate::error::{Error, ErrorKind, Result};
use crate::identity::MAX_NAME_BYTES;
use crate::numbers::Numbers;
use crate::text::cut;

/// What a take came to.
#[derive(Debug, PartialEq)]
pub(crate) enum Taken {
    Owned {
        fence: u64,
        abandoned: bool,
        /// It had no place in the line.
        unlined: bool,
    },
    Refused(Refusal),
    /// This token was released before.
    Spent,
}

#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    /// How long the key still lives, in ms; -1 for ever.
    pub(crate) left: i64,
    pub(crate) rank: u32,
    pub(crate) ticket: u64,
    /// It was not in the line before.
    pub(crate) fresh: bool,
    /// Held by a program that is not one of ours.
    pub(crate) foreign: bool,
    /// Nobody's yet: it is being handed over to somebody else.
    pub(crate) handed: bool,
    pub(crate) sight: Status,
}

/// A reply that this version's scripts do not give.
fn strange(operation: &'static str) -> Error {
    Error::new(ErrorKind::Protocol, operation, "the server gave an answer that this version does not know")
        .with_help("is it a Redis or Valkey server, and are all programs of one version?")
}

fn number<T: TryFrom<i64>>(value: Option<&Value>) -> Option<T> {
    match value? {
        Value::Int(number) => T::try_from(*number).ok(),
        _ => None,
    }
}

fn text(value: Option<&Value>) -> Option<&str> {
    match value? {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn decimal(value: Option<&Value>) -> Option<u64> {
    text(value)?.parse().ok()
}

/// The answer to a take with `token`, and to no other.
pub(crate) fn taken(reply: &Value, token: &str) -> Result<Taken> {
    read_taken(reply, token).ok_or_else(|| strange("acquire"))
}

fn read_taken(reply: &Value, token: &str) -> Option<Taken> {
    let Value::Array(parts) = reply else { return None };
    if text(parts.last()) != Some(token) {
        return None;
    }
    let part = |at: usize| parts.get(at);
    match number::<u8>(part(0))? {
        1 => {
            let fence = decimal(part(1)).filter(|fence| *fence != 0)?;
            Some(Taken::Owned { fence, abandoned: number::<u8>(part(2))? != 0, unlined: number::<u8>(part(3))? != 0 })
        }
        2 => Some(Taken::Spent),
        0 => {
            let kind = number::<u8>(part(5))?;
            let ours = kind == 0;
            Some(Taken::Refused(Refusal {
                left: number(part(1))?,
                rank: number(part(2))?,
                ticket: decimal(part(3))?,
                fresh: number::<u8>(part(4))? != 0,
                foreign: kind == 2,
                handed: kind == 1,
                sight: Status {
                    state: State::Held,
                    token: 0,
                    waiters: number(part(8))?,
                    owner: if ours { owner(text(part(6))?) } else { None },
                    held: ours.then(|| Duration::from_millis(number(part(7)).unwrap_or(0))),
                    numbers: Numbers::default(),
                },
            }))
        }
        _ => None,
    }
}

/// What a release came to: whether the token still stood.
pub(crate) fn released(reply: &Value) -> Result<bool> {
    match number::<u8>(Some(reply)) {
        Some(0) => Ok(false),
        Some(1..=3) => Ok(true),
        _ => Err(strange("release")),
    }
}

/// One answer per hold.
pub(crate) fn renewed(reply: &Value, holds: usize) -> Result<Vec<bool>> {
    let Value::Array(parts) = reply else { return Err(strange("extend")) };
    let answers: Vec<bool> = parts.iter().filter_map(|part| number::<u8>(Some(part))).map(|one| one == 1).collect();
    if answers.len() == holds { Ok(answers) } else { Err(strange("extend")) }
}

/// How many replicas have acknowledged.
pub(crate) fn copies(reply: &Value) -> Result<u32> {
    number(Some(reply)).ok_or_else(|| strange("acquire"))
}

pub(crate) fn broken(reply: &Value) -> Result<bool> {
    number::<u8>(Some(reply)).map(|broken| broken == 1).ok_or_else(|| strange("break"))
}

pub(crate) fn forewarned(reply: &Value) -> Result<()> {
    if matches!(reply, Value::Int(1)) { Ok(()) } else { Err(strange("extend")) }
}

pub(crate) fn status(reply: &Value) -> Result<Status> {
    read_status(reply).ok_or_else(|| strange("status"))
}

fn read_status(reply: &Value) -> Option<Status> {
    let Value::Array(parts) = reply else { return None };
    let part = |at: usize| parts.get(at);
    let kind = number::<u8>(part(0))?;
    Some(Status {
        state: match kind {
            0 => State::Free,
            1..=3 => State::Held,
            4 => State::Abandoned,
            _ => return None,
        },
        token: decimal(part(1))?,
        waiters: number(part(4))?,
        owner: owner(text(part(2))?),
        // Negative if the server's clock went back.
        held: (kind == 1).then(|| Duration::from_millis(number(part(3)).unwrap_or(0))),
        // The server keeps none; the handle that asks has its own.
        numbers: Numbers::default(),
    })
}

/// How an owner is written into the server.
pub(crate) fn info(owner: &Owner) -> String {
    let host: String = owner.host.chars().map(|c| if c.is_whitespace() { '-' } else { c }).collect();
    format!("{} {host} {}", owner.pid, owner.label)
}

/// And read. Anybody may have written it: what is too long is cut.
fn owner(info: &str) -> Option<Owner> {
    let mut parts = info.splitn(3, ' ');
    let (pid, host, label) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
    Some(Owner { host: cut(host, MAX_NAME_BYTES).to_owned(), pid, label: cut(label, MAX_NAME_BYTES).to_owned() })
}

/// A message on this process's channel.
#[derive(Debug, PartialEq)]
pub(crate) enum Message<'a> {
    /// The lock `key` was granted to `token`, for a short while.
    Granted { token: &'a str, key: &'a str },
    /// `token` stands first in line, and the lock lives `left` ms more.
    First { token: &'a str, left: i64 },
    /// The lock is free and `token`'s turn among our own.
    Turn { token: &'a str },
    /// Somebody broke the lock that `token` held.
    Lost { token: &'a str },
}

pub(crate) fn message(text: &str) -> Option<Message<'_>> {
    let (kind, rest) = text.split_once(' ')?;
    match kind {
        "G" => rest.split_once(' ').map(|(token, key)| Message::Granted { token, key }),
        "H" => rest.split_once(' ').and_then(|(token, left)| Some(Message::First { token, left: left.parse().ok()? })),
        "N" => Some(Message::Turn { token: rest }),
        "L" => Some(Message::Lost { token: rest }),
        _ => None,
    }
}

/// The eviction policy in the server's `INFO memory`.
pub(crate) fn eviction_policy(info: &str) -> Option<&str> {
    info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:")).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn replies_of_a_take() {
        let owned =
            Value::Array(vec![Value::Int(1), bulk("1795203524783123"), Value::Int(1), Value::Int(0), bulk("t")]);
        assert_eq!(
            taken(&owned, "t").unwrap(),
            Taken::Owned { fence: 1_795_203_524_783_123, abandoned: true, unlined: false }
        );
        let refused = Value::Array(vec![
            Value::Int(0),
            Value::Int(-1),
            Value::Int(3),
            bulk("17"),
            Value::Int(1),
            Value::Int(0),
            bulk("7 host a label"),
            Value::Int(1500),
            Value::Int(4),
            bulk("t"),
        ]);
        let Taken::Refused(refusal) = taken(&refused, "t").unwrap() else { panic!() };
        assert_eq!(
            (refusal.left, refusal.rank, refusal.ticket, refusal.fresh, refusal.foreign),
            (-1, 3, 17, true, false)
        );
        let owner = refusal.sight.owner.unwrap();
        assert_eq!((owner.pid, owner.host.as_str(), owner.label.as_str()), (7, "host", "a label"));
        assert_eq!(refusal.sight.held, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn strange_replies_are_errors_and_never_a_lock() {
        let bad = [
            Value::Nil,
            Value::Int(1),
            Value::Array(vec![]),
            Value::Array(vec![Value::Int(1)]),
            Value::Array(vec![Value::Int(1), bulk("0"), Value::Int(0), Value::Int(0), bulk("t")]),
            Value::Array(vec![Value::Int(1), bulk("-5"), Value::Int(0), Value::Int(0), bulk("t")]),
            Value::Array(vec![Value::Int(1), bulk("5"), Value::Int(0), Value::Int(0)]),
            Value::Array(vec![Value::Int(1), bulk("5"), Value::Int(0), Value::Int(0), bulk("other")]),
            Value::Array(vec![Value::Int(9), bulk("t")]),
            Value::Array(vec![Value::Int(0), Value::Int(5), bulk("t")]),
        ];
        for reply in bad {
            assert_eq!(taken(&reply, "t").unwrap_err().kind(), ErrorKind::Protocol, "{reply:?}");
        }
        assert!(released(&Value::Nil).is_err());
        assert!(renewed(&Value::Array(vec![Value::Int(1)]), 2).is_err());
    }

    #[test]
    fn messages() {
        assert_eq!(message("G ab k:1 x"), Some(Message::Granted { token: "ab", key: "k:1 x" }));
        assert_eq!(message("H ab -1"), Some(Message::First { token: "ab", left: -1 }));
        assert_eq!(message("L ab"), Some(Message::Lost { token: "ab" }));
        assert_eq!(message("N ab"), Some(Message::Turn { token: "ab" }));
        for bad in ["", "G", "G ab", "H ab", "H ab x", "Q ab", "\u{0}"] {
            assert_eq!(message(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn owners_written_by_others_are_cut() {
        let long = format!("1 {} {}", "h".repeat(500), "ä".repeat(500));
        let owner = owner(&long).unwrap();
        assert!(owner.host.len() <= MAX_NAME_BYTES && owner.label.len() <= MAX_NAME_BYTES);
        assert_eq!(super::owner("x y z"), None);
        assert_eq!(super::owner(""), None);
    }

    #[test]
    fn the_policy() {
        assert_eq!(eviction_policy("# Memory\r\nmaxmemory_policy:allkeys-lru\r\n"), Some("allkeys-lru"));
        assert_eq!(eviction_policy(""), None);
    }
}
