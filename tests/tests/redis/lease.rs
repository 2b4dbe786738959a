//! A hold: how long it lasts, how it is renewed, and how its loss is told.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, State, Timeout};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::occupancy::now;
use ipcmutex_tests::servers::{Client, Redis};

use super::{kill, listen, rust, told_of_loss};

#[test]
fn r1_a_killed_holder_frees_the_lock_when_its_lease_ends() {
    needs_redis!();
    const LOCKS: u32 = 8;
    let redis = Redis::start();
    let holder = rust();
    let mutexes: Vec<_> = (0..LOCKS)
        .map(|lock| {
            let url = redis.url(&format!("r1-{lock}?ttl=1s"));
            holder.open(lock, &url).ok();
            open(&url)
        })
        .collect();
    let tokens: Vec<_> =
        (0..LOCKS).map(|lock| holder.call(&format!("hold {lock} {lock} forever")).ok().token()).collect();
    let waits: Vec<_> = mutexes
        .iter()
        .map(|mutex| {
            let own = mutex.clone();
            std::thread::spawn(move || (own.acquire_with(within(LONG)).expect("acquired"), now()))
        })
        .collect();
    until("all wait", || mutexes.iter().all(|mutex| waiters(mutex) == 1));
    kill(&holder);
    let left: Vec<_> =
        (0..LOCKS).map(|lock| (now(), redis.command(&["PTTL", &format!("ipcmutex:r1-{lock}")]).number())).collect();
    let mut late = Vec::new();
    for ((thread, (asked, left)), token) in waits.into_iter().zip(left).zip(tokens) {
        assert!((1..=1000).contains(&left));
        let (hold, at) = thread.join().expect("no panic");
        let waited = (at - asked) as i64 / 1_000_000;
        assert!(waited >= left - 2, "{waited} ms, but the lease had {left} ms");
        assert!(waited <= left + 2000, "{waited} ms, and the lease had {left} ms");
        late.push((waited - left).max(0));
        assert!(hold.abandoned() && hold.token() > token);
        hold.release().expect("released");
    }
    late.sort_unstable();
    // What a busy machine delays is not the lock's.
    assert!(late[0] <= 100, "{late:?} ms after the lease");
    figure(
        "R1",
        format!("the next owner {} ms after the end of the lease, the median of {LOCKS}", late[late.len() / 2]),
    );
    let next = mutexes[0].acquire().expect("acquired");
    assert!(!next.abandoned(), "told once");
    next.release().expect("released");
}

/// Of a waiter that has lined up by itself the background thread hears when it next wakes, maybe late in the lease.
#[test]
fn r1_a_lease_ends_when_it_ends_also_for_who_came_while_the_background_thread_rested() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("rested?ttl=3s"));
    // Of the same engine: its thread rests until it is to be renewed, in 2.2 to 3 s.
    let kept = open(&redis.url("kept?ttl=9s")).acquire().expect("acquired");
    kept.extend(None).expect("the link is up");
    std::thread::sleep(Duration::from_millis(600));
    // As if its process had died: nobody renews it.
    let dying = open(&redis.unix_url("rested&ttl=3s&renew=off")).acquire().expect("acquired");
    let begun = Instant::now();
    let (tell, told) = mpsc::channel();
    mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
    let next = told.recv_timeout(LONG).expect("told").expect("served");
    let waited = begun.elapsed();
    assert!(next.abandoned(), "its lease ended");
    assert!(waited < Duration::from_secs(4), "it owns {waited:?} after a lease of 3 s began");
    drop(dying);
    next.release().expect("released");
    kept.release().expect("released");
}

#[test]
fn r5_a_server_that_stops_answering_costs_the_hold_in_time() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r5?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    let told = listen(&hold);
    until_renewed(&hold);
    redis.freeze();
    let frozen = Instant::now();
    let valid = hold.valid_for().expect("a lease");
    assert!(valid <= Duration::from_millis(1976));
    let error = told.recv_timeout(LONG).expect("told while the server is silent");
    assert_eq!(error.kind(), ErrorKind::Lost);
    let after = frozen.elapsed();
    assert!(
        after >= valid.saturating_sub(Duration::from_millis(50)) && after < valid + Duration::from_secs(5),
        "{after:?}"
    );
    figure("R5", format!("told {after:.0?} after the server froze, valid for {valid:.0?} then"));
    assert_eq!(kind_of(hold.check()), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    redis.thaw();
    // What the server still had of it goes, by the release or by its lease.
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

#[test]
fn the_loss_of_the_key_is_told() {
    needs_redis!();
    let redis = Redis::start();
    for (id, command) in [
        ("del", &["DEL", "ipcmutex:del"] as &[&str]),
        ("flush", &["FLUSHALL"]),
        ("set", &["SET", "ipcmutex:set", "mine"]),
    ] {
        let mutex = open(&redis.url(&format!("{id}?ttl=300ms")));
        let hold = mutex.acquire().expect("acquired");
        let told = listen(&hold);
        redis.command(command);
        told_of_loss(hold, &told);
        if id == "set" {
            assert_eq!(redis.command(&["GET", "ipcmutex:set"]).text(), "mine", "never touched");
        }
    }
    // And by the release itself, without waiting for a renewal.
    let mutex = open(&redis.url("quick"));
    let hold = mutex.acquire().expect("acquired");
    redis.command(&["DEL", "ipcmutex:quick"]);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    assert!(mutex.acquire().expect("acquired").abandoned(), "that release was none");
}

/// By hand, of which nobody is told: its holder finds out, and then who waits need not look by itself.
#[test]
fn who_waits_is_told_by_the_holder_whose_key_was_deleted() {
    needs_redis!();
    let redis = Redis::start();
    let (holder, mutex) = (open(&redis.url("by-hand?ttl=3s")), open(&redis.unix_url("by-hand")));
    let hold = holder.acquire().expect("acquired");
    let told = listen(&hold);
    // Until the next renewal, so that who waits means to look in 20 s.
    until_renewed(&hold);
    assert_eq!(redis.command(&["PEXPIRE", "ipcmutex:by-hand", "60000"]).number(), 1);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&holder) == 1);
        let begun = Instant::now();
        assert_eq!(redis.command(&["DEL", "ipcmutex:by-hand"]).number(), 1);
        let next = waits.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
        assert!(next.abandoned());
        told_of_loss(hold, &told);
        next.release().expect("released");
    });
}

#[test]
fn a_broken_hold_is_lost_and_the_next_one_hears_abandoned() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("broken?ttl=30s");
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    // It waits for another lock, so it listens: the break is told at once and not at the next renewal, in 10 s.
    let mutex = open(&url);
    let busy = open(&redis.url("busy"));
    let kept = busy.acquire().expect("acquired");
    holder.open(2, &redis.url("busy")).ok();
    let waits = holder.begin("hold 2 2 forever");
    until("it waits", || waiters(&busy) == 1);
    let told = holder.begin("lost 1");
    assert!(mutex.break_lock().expect("broken"));
    told.reply().err(ErrorKind::Lost);
    assert_eq!(mutex.status().expect("status").state, State::Abandoned);
    assert!(!mutex.break_lock().expect("nothing to break"));
    let hold = mutex.acquire().expect("acquired");
    assert!(hold.abandoned());
    holder.call("end 1").err(ErrorKind::Lost);
    hold.check().expect("it holds");
    hold.release().expect("released");
    kept.release().expect("released");
    waits.reply().ok();
}

/// It holds, and does nothing else with the server.
#[test]
fn who_listens_for_a_loss_is_told_of_a_break_at_once() {
    needs_redis!();
    let redis = Redis::start();
    for query in ["ttl=1h", "ttl=1h&renew=off"] {
        let id = format!("listens-{}", query.len());
        let (holder, other) = (open(&redis.url(&format!("{id}?{query}"))), open(&redis.unix_url(&id)));
        let hold = holder.acquire().expect("acquired");
        let told = listen(&hold);
        assert!(other.break_lock().expect("broken"));
        told_of_loss(hold, &told);
    }
}

/// Reads what a server does until somebody says "the end": of a lock of which `ECHO released <key>` was said nothing is prolonged until
/// it is taken anew, and no token that was released is written again. What was.
fn written_after_release(mut monitor: Client) -> Vec<String> {
    let (mut holders, mut released) = (HashMap::<String, String>::new(), HashSet::new());
    let mut wrong = Vec::new();
    loop {
        let line = monitor.reply();
        let words: Vec<&str> = line.text().split('"').skip(1).step_by(2).collect();
        match words[..] {
            ["ECHO", "the end"] => return wrong,
            ["ECHO", word] => released.extend(word.strip_prefix("released ").and_then(|key| holders.remove(key))),
            ["SET", key, token, ..] if released.contains(token) => wrong.push(format!("{key} is set again")),
            ["SET", key, token, ..] => _ = holders.insert(key.to_owned(), token.to_owned()),
            ["PEXPIRE", key, ..] if key.starts_with("ipcmutex:") && !holders.contains_key(key) => {
                wrong.push(format!("{key} is prolonged"));
            }
            _ => {}
        }
    }
}

#[test]
fn r9_nothing_is_renewed_after_a_release() {
    needs_redis!();
    let rounds: u64 = std::env::var("IPCMUTEX_RELEASES").ok().and_then(|many| many.parse().ok()).unwrap_or(64);
    let redis = Redis::start();
    let mut monitor = redis.client();
    assert_eq!(monitor.command(&["MONITOR"]).text(), "OK");
    let written = std::thread::spawn(|| written_after_release(monitor));
    let released = AtomicU64::new(0);
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..16_u64 {
            let mutex = open(&redis.url(&format!("r9-{thread}?ttl=300ms")));
            let (redis, released) = (&redis, &released);
            scope.spawn(move || {
                let mut round = thread;
                while released.load(Ordering::SeqCst) < rounds {
                    // A round takes a tenth of a second; more than ten times as long means that hardly any release succeeds.
                    let limit = 2 * LONG + Duration::from_millis(100) * rounds as u32;
                    assert!(begun.elapsed() < limit, "{released:?} of {rounds} releases succeeded");
                    let hold =
                        mutex.acquire_with(within(LONG)).expect("acquired: none that was released is there for ever");
                    // Around the moment of the first renewal.
                    round += 7;
                    std::thread::sleep(Duration::from_millis(80 + round % 20));
                    // On a machine that is too busy the lease may run out: then there is nothing to see.
                    if hold.release().is_ok() {
                        redis.command(&["ECHO", &format!("released ipcmutex:r9-{thread}")]);
                        assert_eq!(redis.command(&["EXISTS", &format!("ipcmutex:r9-{thread}")]).number(), 0);
                        released.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    // A renewal that is still to come would have come by now.
    std::thread::sleep(Duration::from_millis(150));
    redis.command(&["ECHO", "the end"]);
    assert_eq!(written.join().expect("no panic"), Vec::<String>::new());
    figure("R9", format!("{} releases around a renewal: nothing is prolonged or set after one", released.into_inner()));
}

#[test]
fn many_holds_are_renewed_by_few_calls() {
    needs_redis!();
    const HOLDS: u64 = 1000;
    /// As many as one call renews.
    const BATCH: u64 = 100;
    const PERIODS: u32 = 3;
    let redis = Redis::start();
    let mutexes: Vec<_> = (0..HOLDS).map(|lock| open(&redis.url(&format!("many-{lock}?ttl=9s")))).collect();
    let holds: Vec<_> = mutexes
        .iter()
        .map(|mutex| {
            // One after another, over the period.
            std::thread::sleep(Duration::from_millis(3));
            mutex.acquire().expect("acquired")
        })
        .collect();
    // Each has been renewed once; then come three periods, of a third of the lease at most.
    std::thread::sleep(Duration::from_millis(3500));
    let before = redis.commands();
    std::thread::sleep(Duration::from_secs(3) * PERIODS);
    let renewals = redis.commands() - before;
    let least = HOLDS / BATCH * u64::from(PERIODS);
    figure("R12", format!("{renewals} calls renew {HOLDS} holds in {PERIODS} periods"));
    // A renewal may come a quarter of its period early, so as to meet others.
    assert!((least..=2 * least).contains(&renewals), "{renewals} calls for {HOLDS} holds in {PERIODS} periods");
    for hold in holds {
        hold.release().expect("it was renewed");
    }
}

#[test]
fn a_hold_without_renewal_ends_with_its_lease_unless_it_is_extended() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("once?ttl=3s&renew=off"));
    let hold = mutex.acquire().expect("acquired");
    let told = listen(&hold);
    let short = Some(Duration::from_millis(1800));
    until("it runs down", || hold.valid_for() < short);
    hold.extend(None).expect("extended");
    assert!(hold.valid_for() > short);
    hold.extend(Some(Duration::from_secs(2))).expect("extended");
    let left = hold.valid_for().expect("a lease");
    assert!(left > Duration::from_millis(1500) && left < Duration::from_millis(1980), "{left:?}");
    assert_eq!(kind_of(hold.extend(Some(Duration::from_millis(1)))), ErrorKind::Invalid);
    assert_eq!(kind_of(hold.extend(Some(Duration::from_secs(90_000)))), ErrorKind::Invalid);
    hold.extend(Some(Duration::from_millis(300))).expect("extended");
    told_of_loss(hold, &told);
    // An extension for longer is kept up by the renewals.
    let mutex = open(&redis.url("long?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    hold.extend(Some(Duration::from_secs(60))).expect("extended");
    // Two periods of what it was before.
    std::thread::sleep(Duration::from_millis(1400));
    assert!(redis.command(&["PTTL", "ipcmutex:long"]).number() > 50_000);
    hold.release().expect("released");
}

/// Who waits looks when the lease ends that it knows of: that there is a shorter one now it must be told.
#[test]
fn a_lease_that_was_made_shorter_ends_for_who_waits_too() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("shorter?ttl=60s");
    let mutex = open(&url);
    let holder = rust();
    holder.open(1, &url).ok();
    holder.call("hold 1 1 forever").ok();
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 1);
        holder.call("extend 1 1000").ok();
        kill(&holder);
        let begun = Instant::now();
        let hold = waits.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert!(hold.abandoned());
        hold.release().expect("released");
    });
}
