//! What a server says instead of an answer, what that means, and how it is told.

use redis::{RedisError, ServerErrorKind, Value};

use crate::error::{Error, ErrorKind};
use crate::text::{cut, printable};

/// For an answer that no question of ours had: the connection is not to be believed any more, and no other is meant.
pub(crate) fn unasked(error: Error) -> RedisError {
    (redis::ErrorKind::Parse, "an unexpected answer", error.message().to_owned()).into()
}

/// For an answer that was to something else.
pub(crate) fn misplaced() -> RedisError {
    (redis::ErrorKind::Parse, "an answer to something else").into()
}

/// For what one of ours refuses where the client library's errors are told.
pub(crate) fn refusal(kind: ErrorKind, message: String, help: &str) -> RedisError {
    std::io::Error::other(Error::new(kind, "open", message).with_help(help)).into()
}

/// Whether the server, or this user's rights, forbid scripts.
pub(crate) fn forbids_scripts(error: &RedisError) -> bool {
    let text = error.to_string().to_ascii_lowercase();
    // Before Redis 7 an unknown command is in quotes of another kind.
    ["'eval", "`eval"].iter().any(|name| text.contains(name))
        && (error.code() == Some("NOPERM") || text.contains("unknown command"))
}

/// Whether the server has forgotten the script.
pub(crate) fn is_unknown_script(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(ServerErrorKind::NoScript)
}

/// Whether what the server said leaves the connection as it was.
pub(crate) fn is_answer(error: &RedisError) -> bool {
    matches!(error.kind(), redis::ErrorKind::Server(_) | redis::ErrorKind::Extension)
}

/// Whether the connection was closed, by a server that is there.
pub(crate) fn is_cut(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_connection_refusal() && !is_answer(error)
}

/// Whether that is the code of what the server says. Before Redis 7 it wraps what fails inside a script into an ERR of its
/// own, so it is looked for in the words, too.
fn says(error: &RedisError, code: &str) -> bool {
    let within = |words: &str| words.contains(&format!("{code} "));
    is_answer(error) && (error.code() == Some(code) || error.detail().is_some_and(within))
}

/// Whether the server is not the master, or not any more.
pub(crate) fn is_demoted(error: &RedisError) -> bool {
    says(error, "READONLY") || says(error, "MASTERDOWN")
}

/// Whether the server has done nothing of what it was asked.
pub(crate) fn did_nothing(error: &RedisError) -> bool {
    is_unknown_script(error) || is_demoted(error)
}

/// The same of an answer.
pub(crate) fn is_refusal(reply: &Value) -> bool {
    matches!(reply, Value::ServerError(error) if did_nothing(&error.clone().into()))
}

/// Whether the server speaks to those alone who say who they are.
pub(crate) fn wants_login(error: &RedisError) -> bool {
    error.code() == Some("NOAUTH")
}

/// Of what some servers failed with, what says most: who was reached says more than who is not there.
pub(crate) fn telling(before: Option<RedisError>, error: RedisError) -> Option<RedisError> {
    let is_away = |error: &RedisError| error.is_connection_refusal() || error.is_timeout();
    Some(before.filter(|before| is_away(&error) || !is_away(before)).unwrap_or(error))
}

/// Whether these credentials were refused.
pub(crate) fn is_wrong_password(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::AuthenticationFailed || error.code() == Some("WRONGPASS")
}

/// Whether the server cannot speak RESP3: it is too old, or stands behind a proxy that is.
pub(crate) fn is_without_resp3(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::RESP3NotSupported
        || error.code() == Some("NOPROTO")
        || (is_answer(error) && error.to_string().to_ascii_lowercase().contains("hello"))
}

/// Of a secret, as much as nobody takes for a word: so much of its start is not shown either.
const TELLING: usize = 10;

/// `text` without `secret`, and without the start of it, since who quotes what it was sent may cut it.
fn hidden(text: &str, secret: &str) -> String {
    let secret: Vec<char> = secret.chars().collect();
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let alike = rest.chars().zip(&secret).take_while(|(one, other)| one == *other).count();
        if alike > 0 && (alike == secret.len() || alike >= TELLING) {
            shown.push_str("***");
            rest = rest.char_indices().nth(alike).map_or("", |(at, _)| &rest[at..]);
        } else {
            shown.push(first);
            rest = &rest[first.len_utf8()..];
        }
    }
    shown
}

/// Our error for the client library's. `secrets` must not be repeated: some servers quote what they were sent.
pub(crate) fn failed(operation: &'static str, server: &str, secrets: &[&str], error: &RedisError) -> Error {
    let text = match error.detail() {
        Some(detail) if is_answer(error) => format!("{} {detail}", error.code().unwrap_or("ERR")),
        _ => error.to_string(),
    };
    // Of a command that it does not know, AUTH among them, a server repeats what stands behind it, in part and changed.
    let text = text.split(", with args beginning with").next().unwrap_or_default();
    let (kind, help) = kind_of(error, text);
    let text = secrets.iter().fold(text.to_owned(), |text, secret| hidden(&text, secret));
    let text = printable(cut(&text, 300));
    let answered = is_answer(error) || error.kind() == redis::ErrorKind::AuthenticationFailed;
    let message = if answered {
        format!("the server {server} answered: {text}")
    } else if error.is_timeout() {
        format!("the server {server} does not answer in time")
    } else {
        format!("the server {server} cannot be used: {text}")
    };
    let mapped = Error::new(kind, operation, message);
    if help.is_empty() { mapped } else { mapped.with_help(help) }
}

fn kind_of(error: &RedisError, text: &str) -> (ErrorKind, &'static str) {
    if is_without_resp3(error) {
        return (ErrorKind::Protocol, "use Redis 6 or newer, or ?protocol=2");
    }
    match error.kind() {
        redis::ErrorKind::Io => return (ErrorKind::Unavailable, ""),
        redis::ErrorKind::AuthenticationFailed => return (ErrorKind::Auth, "check user and password of the URL"),
        redis::ErrorKind::InvalidClientConfig => return (ErrorKind::Invalid, ""),
        // What the client library says of an answer that the end of the connection cut in two.
        _ if !is_answer(error) && text.contains("Unexpected end of input") => return (ErrorKind::Unavailable, ""),
        _ if !is_answer(error) => return (ErrorKind::Protocol, "is it a Redis or Valkey server?"),
        _ => {}
    }
    let says = |code: &str| says(error, code);
    const FOR_NOW: &[&str] = &[
        "LOADING",
        "MASTERDOWN",
        "READONLY",
        "CLUSTERDOWN",
        "TRYAGAIN",
        "BUSY",
        "OOM",
        "NOREPLICAS",
        "MISCONF",
        "UNBLOCKED",
    ];
    if says("WRONGPASS") || says("NOAUTH") || text.contains("AUTH <password> called without") {
        (ErrorKind::Auth, "check user and password of the URL")
    } else if says("DENIED") {
        // Protected mode, in which it speaks to its own host alone: how to end that it says itself.
        (ErrorKind::Permission, "")
    } else if says("NOPERM") || text.contains("ACL failure") || text.contains("can't run this command") {
        (
            ErrorKind::Permission,
            "the user needs the keys ~<prefix>* and ~{<prefix>*, the channels &ipcmutex:w:*, and +@string +@hash \
             +@sortedset +@scripting +@pubsub +@keyspace +@connection +time; in a cluster also the channels &{<prefix>* \
             and +cluster|slots, with Sentinels +role, with replicas= +wait",
        )
    } else if says("WRONGTYPE") || text.contains("not an integer") {
        (ErrorKind::Config, "a key of another program stands where the lock should be; choose another id or prefix")
    } else if says("MOVED") || says("ASK") || says("CROSSSLOT") {
        (ErrorKind::Config, "the server is a node of a cluster; use rpm+redis+cluster://")
    } else if FOR_NOW.iter().any(|code| says(code)) || text.contains("max number of clients") {
        (ErrorKind::Unavailable, "")
    } else {
        (ErrorKind::Config, "")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Redis 6.2 says it.
    #[test]
    fn what_a_server_before_redis_7_says_is_understood() {
        let said =
            |code: &'static str, text: &str| RedisError::from((redis::ErrorKind::Extension, code, text.to_owned()));
        let in_script = |text: &str| {
            said("ERR", &format!("Error running script (call to f_0a9f): @user_script:1: @user_script: 1: {text}"))
        };
        let demoted = in_script("-READONLY You can't write against a read only replica.");
        assert!(is_demoted(&demoted) && !is_demoted(&in_script("-OOM command not allowed")));
        let kind = |error: &RedisError| failed("acquire", "h:1", &[], error).kind();
        assert_eq!(kind(&demoted), ErrorKind::Unavailable);
        assert_eq!(kind(&in_script("-NOREPLICAS Not enough good replicas to write.")), ErrorKind::Unavailable);
        assert_eq!(kind(&in_script("-WRONGTYPE Operation against a key")), ErrorKind::Config);
        assert!(forbids_scripts(&said("ERR", "unknown command `EVALSHA`, with args beginning with: `0a9f`, ")));
        assert!(!forbids_scripts(&said("ERR", "unknown command `SCRIPT`, with args beginning with: `LOAD`, ")));
    }

    #[test]
    fn a_secret_is_not_shown_when_a_server_quotes_it() {
        let secret = "CANARY-0123456789".repeat(12);
        let quoted = [
            format!("unknown command 'AUTH', with args beginning with: '{}' ", &secret[..126]),
            format!("unknown command `HELLO`, with args beginning with: `3`, `AUTH`, `me`, `{}", &secret[..100]),
            format!("what is AUTH {secret}?"),
            format!("what is AUTH {}...", &secret[..40]),
            format!("what is AUTH CANAR{}{}", &secret[..12], "x".repeat(300)),
        ];
        for text in quoted {
            let error = RedisError::from((redis::ErrorKind::Extension, "ERR", text.clone()));
            for error in [error, RedisError::from((redis::ErrorKind::Parse, "an unexpected answer", text))] {
                let said = failed("open", "h:1", &[&secret], &error).to_string();
                assert!(!said.contains("CANARY-") && (said.contains("AUTH") || said.contains("HELLO")), "{said}");
            }
        }
        assert_eq!(hidden("no: a n", "n"), "***o: a ***");
        assert_eq!((hidden("topsecrets äö", "topsecrets!").as_str(), hidden("so", "").as_str()), ("*** äö", "so"));
    }
}
