//! Servers that forbid scripts: the same steps by WATCH and MULTI, on the same keys, so that clients with scripts and
//! without exclude each other. Two round trips where a script takes one, and no line: who waits looks for itself. Those who
//! stand in the line, with scripts, are told when to look.
//!
//! A step reads what it watches, and is done by EXEC only if nothing of that has changed; else it is begun anew.

use redis::{Arg, Cmd, ConnectionLike, Pipeline, RedisError, RedisResult, Value, from_redis_value};

use super::super::wire::{self, Kind, Scripts};

/// What lives a week, in ms.
const WEEK: u64 = 604_800_000;
/// How often a step is begun anew that others have disturbed.
const ROUNDS: usize = 32;
/// How many of the line are looked at, at a time, for some who hear.
const PAGE: isize = 32;

/// A call of a script, taken apart.
struct Call {
    kind: Kind,
    keys: Vec<String>,
    args: Vec<String>,
}

impl Call {
    fn of(command: &Cmd) -> Option<Call> {
        let mut words = command.args_iter().filter_map(|word| match word {
            Arg::Simple(word) => std::str::from_utf8(word).ok().map(str::to_owned),
            _ => None,
        });
        words.next().filter(|word| word == "EVALSHA" || word == "EVAL")?;
        let kind = Scripts::kind_of(&words.next()?)?;
        let count = words.next()?.parse().ok()?;
        let keys: Vec<String> = words.by_ref().take(count).collect();
        Some(Call { kind, keys, args: words.collect() })
    }
}

/// Does what the script that `command` calls would do, and answers as it would; `None` if it is no call of a script.
pub(crate) fn act(server: &mut dyn ConnectionLike, command: &Cmd) -> Option<RedisResult<Value>> {
    let call = Call::of(command)?;
    let (keys, args) = (&call.keys, &call.args);
    Some(match call.kind {
        Kind::Take => match again(|| take(server, keys, args)) {
            // They take it all the time: so it is not free, and nobody knows for how long.
            Err(error) if is_busy(&error) => Ok(refused(-1, 1, "", 0, at(args, 0))),
            answer => answer,
        },
        Kind::Release => again(|| release(server, keys, args)),
        Kind::Renew => renew(server, keys, args),
        Kind::Break => again(|| break_lock(server, keys, args)),
        Kind::Status => status(server, keys),
        Kind::Forewarn => shortened(server, keys),
    })
}

fn strange() -> RedisError {
    (redis::ErrorKind::UnexpectedReturnType, "an answer that a lock does not give").into()
}

/// Whether the server has no room for what was to be written.
fn is_out_of_memory(error: &RedisError) -> bool {
    error.to_string().contains("OOM")
}

/// Whether others have disturbed a step each time.
fn is_busy(error: &RedisError) -> bool {
    error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::TryAgain)
}

/// Runs `step` until nobody disturbs it.
fn again(mut step: impl FnMut() -> RedisResult<Option<Value>>) -> RedisResult<Value> {
    for _ in 0..ROUNDS {
        if let Some(done) = step()? {
            return Ok(done);
        }
    }
    let busy = redis::ServerErrorKind::TryAgain;
    Err((redis::ErrorKind::Server(busy), "others change the lock all the time").into())
}

/// All the replies; the first refusal among them instead.
fn send(server: &mut dyn ConnectionLike, words: &Pipeline) -> RedisResult<Vec<Value>> {
    let replies = server.req_packed_commands(&words.get_packed_pipeline(), 0, words.len())?;
    let mut checked = Vec::with_capacity(replies.len());
    for reply in replies {
        checked.push(reply.extract_error()?);
    }
    Ok(checked)
}

/// Watches `keys` and reads.
fn look(server: &mut dyn ConnectionLike, keys: &[&str], read: impl FnOnce(&mut Pipeline)) -> RedisResult<Vec<Value>> {
    let mut words = redis::pipe();
    words.cmd("WATCH").arg(keys);
    read(&mut words);
    Ok(send(server, &words)?.split_off(1))
}

fn unwatch(server: &mut dyn ConnectionLike) -> RedisResult<()> {
    redis::cmd("UNWATCH").query(server)
}

/// Writes if nothing that is watched has changed; whether it was written.
fn write(server: &mut dyn ConnectionLike, steps: impl FnOnce(&mut Pipeline)) -> RedisResult<bool> {
    let mut words = redis::pipe();
    words.cmd("MULTI");
    steps(&mut words);
    words.cmd("EXEC");
    let mut replies = server.req_packed_commands(&words.get_packed_pipeline(), 0, words.len())?;
    let done = replies.pop().ok_or_else(strange)?;
    for reply in replies {
        // What was refused before EXEC says more than that EXEC was.
        reply.extract_error()?;
    }
    match done.extract_error()? {
        Value::Nil => Ok(false),
        Value::Array(done) => {
            for one in done {
                one.extract_error()?;
            }
            Ok(true)
        }
        _ => Err(strange()),
    }
}

fn read<T: redis::FromRedisValue>(replies: &mut impl Iterator<Item = Value>) -> RedisResult<T> {
    Ok(from_redis_value(replies.next().ok_or_else(strange)?)?)
}

/// What stands in the key. Another library's may be no text, and is no token of ours.
fn value_of(replies: &mut impl Iterator<Item = Value>) -> RedisResult<Option<String>> {
    Ok(read::<Option<Vec<u8>>>(replies)?.map(|value| String::from_utf8_lossy(&value).into_owned()))
}

fn some(field: Option<String>) -> Option<String> {
    field.filter(|text| !text.is_empty())
}

fn at(words: &[String], at: usize) -> &str {
    words.get(at).map_or("", String::as_str)
}

fn bulk(text: impl ToString) -> Value {
    Value::BulkString(text.to_string().into_bytes())
}

fn micros(clock: (u64, u64)) -> u64 {
    clock.0 * 1_000_000 + clock.1
}

/// What a take hears that is refused, and has no place in a line.
fn refused(left: i64, kind: i64, shown: &str, held: i64, token: &str) -> Value {
    Value::Array(vec![
        Value::Int(0),
        Value::Int(left),
        Value::Int(0),
        bulk(0),
        Value::Int(0),
        Value::Int(kind),
        bulk(shown),
        Value::Int(held),
        Value::Int(0),
        bulk(token),
    ])
}

/// KEYS: lock, line, state. ARGV: token, ttl, proc, info, ticket, floor.
fn take(server: &mut dyn ConnectionLike, keys: &[String], args: &[String]) -> RedisResult<Option<Value>> {
    let (key, state) = (at(keys, 0), at(keys, 2));
    let (token, ttl, process, info) = (at(args, 0), at(args, 1), at(args, 2), at(args, 3));
    let floor: u64 = at(args, 5).parse().unwrap_or(0);
    let mut seen = look(server, &[key, state], |words| {
        words.cmd("GET").arg(key);
        words.cmd("PTTL").arg(key);
        words.cmd("HMGET").arg(state).arg(&["o", "l", "f", "g", "i", "s", "a"]);
        words.cmd("TIME");
    })?
    .into_iter();
    let value = value_of(&mut seen)?;
    let left: i64 = read(&mut seen)?;
    let mut fields = read::<Vec<Option<String>>>(&mut seen)?.into_iter().map(some);
    let [owner, released, last, granted, by, since, died] = std::array::from_fn(|_| fields.next().flatten());
    let now = micros(read(&mut seen)?);
    if released.as_deref() == Some(token) {
        unwatch(server)?;
        return Ok(Some(Value::Array(vec![Value::Int(2), bulk(token)])));
    }
    if value.as_deref().is_some_and(|value| value != token) {
        unwatch(server)?;
        let kind = if value == owner {
            0
        } else if value == granted {
            1
        } else {
            2
        };
        let held =
            since.and_then(|since| since.parse::<u64>().ok()).map_or(0, |since| (now / 1000).saturating_sub(since));
        let (shown, held) = if kind == 0 { (by.unwrap_or_default(), held) } else { (String::new(), 0) };
        let held = i64::try_from(held).unwrap_or(0);
        return Ok(Some(refused(left, kind, &shown, held, token)));
    }
    let last: u64 = last.and_then(|last| last.parse().ok()).unwrap_or(0);
    let repeated = value.is_some() && owner.as_deref() == Some(token);
    let fence = if repeated { last } else { (last + 1).max(now).max(floor + 1) };
    let abandoned = match &owner {
        Some(owner) if owner != token => 1,
        Some(_) => died.and_then(|died| died.parse().ok()).unwrap_or(0),
        None => 0,
    };
    let done = write(server, |words| {
        words.cmd("SET").arg(key).arg(token).arg("PX").arg(ttl);
        let fields = [("o", token), ("i", info), ("p", process)];
        words.cmd("HSET").arg(state).arg(&fields).arg("f").arg(fence).arg("a").arg(abandoned).arg("s").arg(now / 1000);
        words.cmd("PEXPIRE").arg(state).arg(WEEK);
    })?;
    let owned = || Value::Array(vec![Value::Int(1), bulk(fence), Value::Int(abandoned), Value::Int(0), bulk(token)]);
    Ok(done.then(owned))
}

/// Tells some who wait with scripts, the first ones of their processes, that the lock may come free in `left` ms:
/// without, it is granted to nobody. `waiters`: the first page of the line. Who may not publish leaves them to their
/// timers.
fn forewarn(server: &mut dyn ConnectionLike, line: &str, mut waiters: Vec<Vec<u8>>, left: i64) -> RedisResult<()> {
    while !waiters.is_empty() {
        let (mut processes, mut told) = (Vec::new(), 0);
        // Anybody may have written there: what is no text is no waiter.
        let members = waiters.iter().filter_map(|waiter| std::str::from_utf8(waiter).ok()?.split_once('.'));
        for (process, token) in members {
            // A thread that waits by itself has a longer name, and stops with its process.
            let whole = process.get(..16).unwrap_or(process);
            if processes.contains(&whole) {
                continue;
            }
            processes.push(whole);
            let mut publish = redis::cmd("PUBLISH");
            publish.arg(format!("ipcmutex:w:{process}")).arg(format!("H {token} {left}"));
            match publish.query::<i64>(server) {
                Err(error) if wire::is_answer(&error) => return Ok(()),
                heard => told += i64::from(heard? != 0),
            }
            if told == 3 {
                break;
            }
        }
        if told > 0 {
            return Ok(());
        }
        // All of these are gone.
        redis::cmd("ZREM").arg(line).arg(&waiters).exec(server)?;
        waiters = page(line).query(server)?;
    }
    Ok(())
}

/// The first of the line.
fn page(line: &str) -> Cmd {
    let mut range = redis::cmd("ZRANGE");
    range.arg(line).arg(0).arg(PAGE - 1);
    range
}

/// The lease has become shorter.
fn shortened(server: &mut dyn ConnectionLike, keys: &[String]) -> RedisResult<Value> {
    let (key, line) = (at(keys, 0), at(keys, 1));
    let mut words = redis::pipe();
    words.cmd("PTTL").arg(key);
    words.add_command(page(line));
    let mut seen = send(server, &words)?.into_iter();
    let left: i64 = read(&mut seen)?;
    let waiters = read(&mut seen)?;
    forewarn(server, line, waiters, left.max(0))?;
    Ok(Value::Int(1))
}

/// ARGV: token, proc, ending.
fn release(server: &mut dyn ConnectionLike, keys: &[String], args: &[String]) -> RedisResult<Option<Value>> {
    let (key, line, state) = (at(keys, 0), at(keys, 1), at(keys, 2));
    let (token, process, ending) = (at(args, 0), at(args, 1), at(args, 2));
    let mut seen = look(server, &[key, state], |words| {
        words.cmd("GET").arg(key);
        words.cmd("HMGET").arg(state).arg(&["o", "l", "a"]);
        words.add_command(page(line));
    })?
    .into_iter();
    let value = value_of(&mut seen)?;
    let fields: Vec<Option<String>> = read(&mut seen)?;
    let [owner, released, died] = <[Option<String>; 3]>::try_from(fields).map_err(|_| strange())?;
    let mut waiters: Vec<Vec<u8>> = read(&mut seen)?;
    let held = owner.as_deref() == Some(token);
    let cleared = held && (ending == "released" || (ending == "undone" && died.as_deref() != Some("1")));
    if value.as_deref() != Some(token) {
        // Undone: it was taken, and lapsed before anybody heard of it.
        if cleared && ending == "undone" {
            if !write(server, |words| _ = words.cmd("HSET").arg(state).arg("o").arg(""))? {
                return Ok(None);
            }
        } else {
            unwatch(server)?;
        }
        // It may have lined up when scripts were allowed.
        let member = format!("{process}.{token}");
        redis::cmd("ZREM").arg(line).arg(&member).exec(server)?;
        let first = waiters.first().is_some_and(|waiter| waiter == member.as_bytes());
        waiters.retain(|waiter| *waiter != member.as_bytes());
        if value.is_none() {
            // As who leaves a line for a lock that is free.
            forewarn(server, line, waiters, 0)?;
        } else if first {
            // The next one stands first now, and looks when the lease ends, which it may have done meanwhile.
            let left: i64 = redis::cmd("PTTL").arg(key).query(server)?;
            forewarn(server, line, waiters, if left == -2 { 0 } else { left })?;
        }
        return Ok(Some(Value::Int(if released.as_deref() == Some(token) { 2 } else { 0 })));
    }
    // Without a note the next one may hear "abandoned".
    let done = take_away(server, key, token, |words| {
        words.cmd("HSET").arg(state).arg("l").arg(token);
        if cleared {
            words.cmd("HSET").arg(state).arg("o").arg("");
        }
        words.cmd("PEXPIRE").arg(state).arg(WEEK);
    })?;
    if !done {
        return Ok(None);
    }
    forewarn(server, line, waiters, 0)?;
    Ok(Some(Value::Int(if held { 1 } else { 3 })))
}

/// Frees the lock of `value`, which was watched, and notes it; without a note where there is no room for one. Whether
/// nobody disturbed it.
fn take_away(
    server: &mut dyn ConnectionLike,
    key: &str,
    value: &str,
    note: impl FnOnce(&mut Pipeline),
) -> RedisResult<bool> {
    let noted = write(server, |words| {
        words.cmd("DEL").arg(key);
        note(words);
    });
    if !noted.as_ref().is_err_and(is_out_of_memory) {
        return noted;
    }
    let mut seen = look(server, &[key], |words| _ = words.cmd("GET").arg(key))?.into_iter();
    if value_of(&mut seen)?.as_deref() != Some(value) {
        unwatch(server)?;
        return Ok(false);
    }
    write(server, |words| _ = words.cmd("DEL").arg(key))
}

/// A hold to be renewed; without a lease it is looked for alone.
struct Renewal<'a> {
    key: &'a str,
    state: &'a str,
    token: &'a str,
    ttl: &'a str,
    number: u64,
}

impl Renewal<'_> {
    /// What must be known of it.
    fn read(&self, words: &mut Pipeline) {
        words.cmd("GET").arg(self.key);
        words.cmd("HGET").arg(self.state).arg("n");
    }

    /// `noted`: which renewal was the last. One that comes late makes no lease shorter. `notes`: that this one is now.
    fn write(&self, words: &mut Pipeline, noted: &Value, notes: bool) {
        let last = match noted {
            Value::BulkString(noted) => {
                std::str::from_utf8(noted).ok().and_then(|noted| noted.strip_prefix(self.token))
            }
            _ => None,
        };
        let last: Option<u64> = last.and_then(|last| last.trim_start().parse().ok());
        if self.ttl == "0" || last.is_some_and(|last| self.number < last) {
            return;
        }
        words.cmd("PEXPIRE").arg(self.key).arg(self.ttl);
        if notes && self.number > 0 && last != Some(self.number) {
            words.cmd("HSET").arg(self.state).arg("n").arg(format!("{} {}", self.token, self.number));
        }
        words.cmd("PEXPIRE").arg(self.state).arg(WEEK);
    }
}

/// KEYS: lock and state of each hold. ARGV: token, ttl and number of each.
fn renew(server: &mut dyn ConnectionLike, keys: &[String], args: &[String]) -> RedisResult<Value> {
    let each = keys.chunks(2).zip(args.chunks(3));
    let renewals: Vec<Renewal<'_>> = each
        .map(|(keys, args)| Renewal {
            key: at(keys, 0),
            state: at(keys, 1),
            token: at(args, 0),
            ttl: at(args, 1),
            number: at(args, 2).parse().unwrap_or(0),
        })
        .collect();
    match renew_each(server, &renewals, true) {
        // What is noted takes room, to renew takes none.
        Err(error) if is_out_of_memory(&error) => renew_each(server, &renewals, false),
        renewed => renewed,
    }
}

fn renew_each(server: &mut dyn ConnectionLike, renewals: &[Renewal<'_>], notes: bool) -> RedisResult<Value> {
    if let Some(renewed) = renew_together(server, renewals, notes)? {
        return Ok(renewed);
    }
    let mut renewed = Vec::new();
    for renewal in renewals {
        renewed.push(again(|| {
            let mut seen = match look(server, &[renewal.key], |words| renewal.read(words)) {
                // A key of another type is a loss of that hold alone.
                Err(error) if error.code() == Some("WRONGTYPE") => Vec::new(),
                seen => seen?,
            }
            .into_iter();
            if seen.next() != Some(bulk(renewal.token)) {
                unwatch(server)?;
                return Ok(Some(Value::Int(0)));
            }
            let noted = seen.next().unwrap_or(Value::Nil);
            Ok(write(server, |words| renewal.write(words, &noted, notes))?.then_some(Value::Int(1)))
        })?);
    }
    Ok(Value::Array(renewed))
}

/// All in one step: one by one, many holds of a server that is far could not be renewed within their leases. `None` if somebody has
/// disturbed it, or one of the keys is of another type.
fn renew_together(
    server: &mut dyn ConnectionLike,
    renewals: &[Renewal<'_>],
    notes: bool,
) -> RedisResult<Option<Value>> {
    let locks: Vec<&str> = renewals.iter().map(|renewal| renewal.key).collect();
    let seen = look(server, &locks, |words| renewals.iter().for_each(|renewal| renewal.read(words)));
    let seen = match seen {
        Err(error) if error.code() == Some("WRONGTYPE") => {
            unwatch(server)?;
            return Ok(None);
        }
        seen => seen?,
    };
    let stands: Vec<(bool, &Value)> =
        renewals.iter().zip(seen.chunks(2)).map(|(renewal, seen)| (seen[0] == bulk(renewal.token), &seen[1])).collect();
    let done = write(server, |words| {
        for (renewal, (_, noted)) in renewals.iter().zip(&stands).filter(|(_, (stands, _))| *stands) {
            renewal.write(words, noted, notes);
        }
    })?;
    Ok(done.then(|| Value::Array(stands.iter().map(|(stands, _)| Value::Int((*stands).into())).collect())))
}

/// ARGV: this break's name.
fn break_lock(server: &mut dyn ConnectionLike, keys: &[String], args: &[String]) -> RedisResult<Option<Value>> {
    let (key, line, state) = (at(keys, 0), at(keys, 1), at(keys, 2));
    let name = at(args, 0);
    let mut seen = look(server, &[key], |words| {
        words.cmd("GET").arg(key);
        words.cmd("HMGET").arg(state).arg(&["p", "b"]);
        words.add_command(page(line));
    })?
    .into_iter();
    let value = value_of(&mut seen)?;
    let (holder, last): (Option<String>, Option<String>) = read(&mut seen)?;
    let waiters: Vec<Vec<u8>> = read(&mut seen)?;
    // Asked for again: by now the next one may hold it, or those who wait may not have been told.
    let again = last.as_deref() == Some(name);
    let Some(value) = value.filter(|_| !again) else {
        unwatch(server)?;
        forewarn(server, line, waiters, 0)?;
        return Ok(Some(Value::Int(again.into())));
    };
    // Without a note it breaks the next one's, too, if it is asked for again.
    let done = take_away(server, key, &value, |words| {
        words.cmd("HSET").arg(state).arg("b").arg(name);
        words.cmd("PEXPIRE").arg(state).arg(WEEK);
    })?;
    if !done {
        return Ok(None);
    }
    if let Some(holder) = holder {
        // Who may not publish leaves the holder to its next renewal.
        let _ =
            redis::cmd("PUBLISH").arg(format!("ipcmutex:w:{holder}")).arg(format!("L {value}")).query::<Value>(server);
    }
    forewarn(server, line, waiters, 0)?;
    Ok(Some(Value::Int(1)))
}

fn status(server: &mut dyn ConnectionLike, keys: &[String]) -> RedisResult<Value> {
    let (key, line, state) = (at(keys, 0), at(keys, 1), at(keys, 2));
    let mut words = redis::pipe();
    words.cmd("GET").arg(key);
    words.cmd("HMGET").arg(state).arg(&["o", "g", "f", "i", "s"]);
    words.cmd("TIME");
    words.cmd("ZCARD").arg(line);
    let mut seen = send(server, &words)?.into_iter();
    let value = value_of(&mut seen)?;
    let mut fields = read::<Vec<Option<String>>>(&mut seen)?.into_iter().map(some);
    let [owner, granted, fence, info, since] = std::array::from_fn(|_| fields.next().flatten());
    let now = micros(read(&mut seen)?) / 1000;
    let waiters = read::<i64>(&mut seen)?;
    let kind = match &value {
        None if owner.is_some() => 4,
        None => 0,
        _ if value == owner => 1,
        _ if value == granted => 2,
        _ => 3,
    };
    let since: u64 = since.and_then(|since| since.parse().ok()).unwrap_or(now);
    let shown = if matches!(kind, 1 | 4) { info.unwrap_or_default() } else { String::new() };
    let held = if kind == 1 { i64::try_from(now.saturating_sub(since)).unwrap_or(0) } else { 0 };
    let fence = fence.unwrap_or_else(|| "0".to_owned());
    Ok(Value::Array(vec![Value::Int(kind), bulk(fence), bulk(shown), Value::Int(held), Value::Int(waiters)]))
}
