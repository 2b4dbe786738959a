//! Users with few rights, and what the servers speak.

use std::sync::mpsc;
use std::time::Duration;

use ipcmutex::{ErrorKind, Hold, Mutex, State, Timeout};
use ipcmutex_tests::artifacts::checkout;
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Redis, Reply, version};

use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::needs_redis;

use super::{carries_a_lock, takes_no_other_with_it};

/// The rules that docs/REDIS.md tells people to give.
pub(super) fn documented() -> Vec<String> {
    let text = std::fs::read_to_string(checkout().join("docs/REDIS.md")).expect("docs/REDIS.md");
    let line = text.lines().find(|line| line.starts_with("ACL SETUSER locks")).expect("the documented rights");
    line.replace(">secret", ">c4nary").split(' ').map(str::to_owned).collect()
}

/// Those of a row of its table.
fn documented_beside(word: &str) -> Vec<String> {
    let text = std::fs::read_to_string(checkout().join("docs/REDIS.md")).expect("docs/REDIS.md");
    let row = text.lines().find(|line| line.starts_with(&format!("| `{word}"))).expect("a row of rights");
    row.split('`').nth(1).expect("rights").replace("\\|", "|").split(' ').map(str::to_owned).collect()
}

fn set_user(redis: &Redis, rules: &[String]) {
    let words: Vec<&str> = rules.iter().map(String::as_str).collect();
    assert_eq!(redis.command(&words).text(), "OK", "{rules:?}");
}

/// What the server refused to somebody.
fn refusals(redis: &Redis) -> Vec<String> {
    let Reply::List(entries) = redis.command(&["ACL", "LOG"]) else { panic!("no log") };
    let object = |entry: &Reply| match entry {
        Reply::List(parts) => {
            let at = parts.iter().position(|part| part.text() == "object").expect("an object");
            parts[at + 1].text().to_owned()
        }
        other => panic!("{other:?}"),
    };
    entries.iter().map(object).collect()
}

/// Everything that a lock is used for.
fn use_it_all(url: &str) {
    carries_a_lock(url);
    let (one, other) = (open(url), open(url));
    let hold = one.acquire().expect("acquired");
    let status = other.status().expect("status");
    assert_eq!((status.state, status.token), (State::Held, hold.token()));
    assert_eq!(kind_of(other.acquire_with(within(Duration::from_millis(30)))), ErrorKind::Timeout);
    assert!(other.break_lock().expect("broken"));
    until("the loss is seen", || hold.check().is_err() || hold.extend(None).is_err());
    let next = other.acquire_with(within(LONG)).expect("acquired");
    assert!(next.abandoned());
    next.release().expect("released");
}

#[test]
fn a_user_without_a_password_is_that_user() {
    needs_redis!();
    let redis = Redis::start();
    set_user(&redis, &["ACL", "SETUSER", "open", "on", "nopass", "~*", "&*", "+@all"].map(str::to_owned));
    let url = redis.url_with_user("open", "", "x");
    carries_a_lock(&url);
    let hold = open(&url).acquire().expect("acquired");
    let list = redis.command(&["CLIENT", "LIST"]);
    let strangers = |line: &&str| line.contains("addr=127.0.0.1") && !line.contains(" user=open ");
    assert_eq!(list.text().lines().find(strangers), None);
    hold.release().expect("released");
    assert_eq!(kind_of(Mutex::open(&redis.url_with_user("nobody", "", "x"))), ErrorKind::Auth);
}

#[test]
fn r22_the_documented_rights_suffice_and_none_is_left_over() {
    needs_redis!();
    let redis = Redis::start();
    let rules = documented();
    set_user(&redis, &rules);
    let url = redis.url_with_user("locks", "c4nary", "least");
    use_it_all(&url);
    use_it_all(&format!("{url}?protocol=2"));
    let (one, other) = (open(&url), open(&url));
    let hold = one.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let next = scope.spawn(|| other.acquire_with(within(LONG)));
        until("it stands in line", || waiters(&one) == 1);
        hold.release().expect("released");
        next.join().expect("no panic").expect("handed over").release().expect("released");
    });
    // Who we are is told at each connect, to servers that want to know.
    let refused = refusals(&redis);
    assert!(refused.iter().all(|what| what.starts_with("client")), "refused: {refused:?}");

    // What was given was used: commands inside scripts count, too.
    let stats = redis.command(&["INFO", "commandstats"]);
    // Before Redis 7 what stands behind SCRIPT is not told apart.
    let counted =
        |name: &str| if version() < (7, 0) { name.split('|').next().unwrap_or(name) } else { name }.to_owned();
    let used = |name: &str| stats.text().contains(&format!("cmdstat_{}:", counted(name)));
    let idle: Vec<&str> = rules
        .iter()
        .filter_map(|rule| rule.strip_prefix('+'))
        .filter(|name| !used(name) && !["eval", "hincrby", "zscore"].contains(name))
        .collect();
    assert!(idle.is_empty(), "documented and not used: {idle:?}");
}

#[test]
fn without_channels_and_info_a_lock_is_carried_all_the_same() {
    needs_redis!();
    let redis = Redis::start();
    let without = ["&ipcmutex:w:*", "+subscribe", "+publish", "+info", "+script|load"];
    let rules: Vec<String> = documented().into_iter().filter(|rule| !without.contains(&rule.as_str())).collect();
    set_user(&redis, &rules);
    use_it_all(&redis.url_with_user("locks", "c4nary", "less"));
}

/// They look four times a second, also behind one of their own process.
#[test]
fn those_of_a_process_that_is_not_told_come_in_one_after_the_other() {
    needs_redis!();
    let redis = Redis::start();
    let without = ["&ipcmutex:w:*", "+subscribe", "+publish"];
    let rules: Vec<String> = documented().into_iter().filter(|rule| !without.contains(&rule.as_str())).collect();
    set_user(&redis, &rules);
    let plain = "ACL SETUSER plain on >c4nary ~* &* +@all -@scripting";
    set_user(&redis, &plain.split(' ').map(str::to_owned).collect::<Vec<_>>());
    for user in ["locks", "plain"] {
        let mutex = open(&redis.url_with_user(user, "c4nary", "untold?ttl=60s"));
        let hold = open(&redis.url("untold")).acquire_with(within(LONG)).expect("acquired");
        let (tell, told) = mpsc::channel();
        for _ in 0..3 {
            let tell = tell.clone();
            let done = move |outcome: ipcmutex::Result<Hold>| drop(tell.send(outcome.and_then(Hold::release)));
            mutex.acquire_callback(Timeout::FOREVER, done).expect("it begins");
        }
        hold.release().expect("released");
        for _ in 0..3 {
            let outcome = told.recv_timeout(Duration::from_secs(10)).expect("long before a lease would end");
            outcome.expect("acquired and released");
        }
    }
}

/// The look of the first one, which is refused, is that of all of a process.
#[test]
fn who_loses_its_rights_is_told_also_behind_one_of_its_own_process() {
    needs_redis!();
    let redis = Redis::start();
    set_user(&redis, &documented());
    let _hold = open(&redis.url("taken?ttl=1s")).acquire().expect("acquired");
    let mutex = open(&redis.url_with_user("locks", "c4nary", "taken"));
    let (tell, told) = mpsc::channel();
    for place in 1..=3 {
        let tell = tell.clone();
        mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
        until("it waits", || waiters(&mutex) == place);
    }
    assert_eq!(redis.command(&["ACL", "SETUSER", "locks", "resetkeys"]).text(), "OK");
    for _ in 0..3 {
        assert_eq!(kind_of(told.recv_timeout(LONG).expect("it is told")), ErrorKind::Permission);
    }
}

/// Of a script the server undoes nothing when a command in it is refused.
#[test]
fn what_a_user_may_take_by_half_is_not_left_taken() {
    needs_redis!();
    let redis = Redis::start();
    let commands = documented().into_iter().filter(|rule| rule.starts_with('+'));
    // Who may delete nothing can undo nothing.
    let mut refused = Vec::new();
    for (at, right) in commands.filter(|right| !["+del", "+eval", "+evalsha"].contains(&right.as_str())).enumerate() {
        let user = format!("user{at}");
        let mut rules: Vec<String> = documented().into_iter().filter(|rule| *rule != right).collect();
        rules[2].clone_from(&user);
        set_user(&redis, &rules);
        let id = format!("half-{at}");
        let mutex = open(&redis.url_with_user(&user, "c4nary", &format!("{id}?ttl=60s")));
        // What only a release needs leaves a hold to its lease.
        let Err(error) = mutex.try_acquire() else { continue };
        assert_eq!(error.kind(), ErrorKind::Permission, "{right}: {error}");
        let next = open(&redis.url(&id)).try_acquire().expect("it answers");
        let next = next.unwrap_or_else(|| panic!("without {right} it was left taken"));
        assert!(!next.abandoned(), "without {right} it was left as if held");
        next.release().expect("released");
        refused.push(right);
    }
    assert!(refused.contains(&"+hset".to_owned()) && refused.contains(&"+set".to_owned()), "{refused:?}");
}

#[test]
fn another_prefix_is_refused() {
    needs_redis!();
    let redis = Redis::start();
    set_user(&redis, &documented());
    let mutex = open(&redis.url_with_user("locks", "c4nary", "x?prefix=other:"));
    let error = mutex.acquire().expect_err("no right to the key");
    assert_eq!(error.kind(), ErrorKind::Permission, "{error}");
}

#[test]
fn who_waits_beside_others_is_told_if_it_may_be() {
    needs_redis!();
    let redis = Redis::start();
    let least = [documented(), documented_beside("~shared")].concat();
    let tracking = || redis.info("clients", "tracking_clients");
    for told in [false, true] {
        let more = if told { documented_beside("+client") } else { Vec::new() };
        set_user(&redis, &[least.clone(), more].concat());
        // Each with connections of its own.
        let url = format!("?redis_key=shared&connect_timeout={}s", if told { 2 } else { 3 });
        let mutex = open(&redis.url_with_user("locks", "c4nary", &url));
        assert_eq!(redis.command(&["SET", "shared", "another's", "NX", "PX", "60000"]).text(), "OK");
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
            // Before Redis 7 what stands behind CLIENT is not told, and the library's name is refused, too.
            let asked = if version() < (7, 0) { "client" } else { "client|tracking" };
            let refused = || refusals(&redis).iter().any(|what| what == asked);
            if told {
                until("it is to be told", || tracking() == "1");
                assert!(asked == "client" || !refused());
            } else {
                until("it has asked to be told", refused);
                let before = redis.commands();
                until("it looks, and again", || redis.commands() > before + 3);
                assert_eq!(tracking(), "0");
            }
            assert_eq!(redis.command(&["DEL", "shared"]).number(), 1);
            waits.join().expect("no panic").expect("acquired").release().expect("released");
        });
        assert_eq!(redis.command(&["ACL", "LOG", "RESET"]).text(), "OK");
    }
}

/// How many connections of others than this one speak RESP3.
fn speak_resp3(redis: &Redis) -> usize {
    redis.command(&["CLIENT", "LIST"]).text().lines().filter(|line| line.contains(" resp=3")).count()
}

#[test]
fn r25_the_protocol_is_as_asked_and_falls_back_only_unasked() {
    needs_redis!(7, 0);
    let redis = Redis::start();
    for (query, count) in [("", 1), ("?protocol=3", 1), ("?protocol=2", 0)] {
        let mutex = open(&redis.url(&format!("speech{query}")));
        let hold = mutex.acquire().expect("acquired");
        hold.extend(None).expect("renewed, on the background thread's connection");
        assert_eq!(speak_resp3(&redis), count, "{query}");
        hold.release().expect("released");
        drop(mutex);
        until("its connections are gone", || speak_resp3(&redis) == 0);
    }
    let old = Redis::with(None, &["rename-command HELLO \"\""]);
    carries_a_lock(&old.url("old"));
    carries_a_lock(&old.url("old?protocol=2"));
    let strict = open(&old.url("old?protocol=3"));
    let hold = strict.acquire().expect("acquired");
    let error = strict.acquire_with(within(Duration::from_millis(500))).expect_err("it cannot wait there");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
    hold.release().expect("released");
}

/// A call renews many, and is refused for one.
#[test]
fn a_hold_that_is_not_allowed_any_more_takes_no_other_with_it() {
    needs_redis!();
    let redis = Redis::start();
    let secret = secrets::password("user");
    let set = |rules: &[&str]| assert_eq!(redis.command(&[&["ACL", "SETUSER", "locks"], rules].concat()).text(), "OK");
    set(&["on", &format!(">{secret}"), "+@all", "~*", "&*"]);
    let at = |id: &str| open(&format!("rpm+redis://locks:{secret}@{}/{id}?ttl=2s", redis.address()));
    takes_no_other_with_it(at, set);
}
