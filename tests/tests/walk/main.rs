//! Random walks over the scripts of the Redis engine (`core/src/backend/redis/lua/*.lua`), on a server whose clock only the
//! walk moves: what takes hours of bad luck passes in milliseconds, and the same seed is the same walk.
//!
//! Up to four processes live by the client's rules for one lock, each with up to three waiters. They take, try, give up
//! and release; they stop and go on, die, are cut off and come back; a copy of a command comes again, up to three
//! seconds later. Beside that, by variant: processes that share the key with other libraries, alone or among others;
//! the lock is broken; leases become shorter and longer; keys go, as they do when a server is wiped or evicts; its
//! clock jumps.
//!
//! | a waiter is | and becomes | when |
//! |---|---|---|
//! | waiting | holding | its take is answered so: it asks when it comes, is told, or its process's timer is due |
//! | | waiting, as another | its token ended before |
//! | | over | it gives up; its process dies |
//! | trying | holding or over | its only take is answered |
//! | holding | over | it is released, broken, or not renewed in time; its process dies |
//!
//! After each step: never two hold, nobody passes who waited before and was always there, tokens rise, `abandoned` is
//! said if and only if the hold before was not released, a hold that stands is renewed and released as such, a copy of
//! a take does nothing after the release, and every key has an end. What keys that go and a clock that jumps ahead may
//! cost is not asked for after they did. At the end no more faults come: every living waiter is served, the lock does
//! not lie free for longer than a client waits until it looks by itself, twice (no time at all, where no process ever
//! failed), and nothing stays on the server.
//!
//! Not among it: a copy of a take for a waiter that gave up; what comes while a question is under way, for each is answered at once;
//! threads that wait by themselves, clients without scripts, clusters.
//!
//! `CHAOS_SEED` says with which seed the walks begin (1), `CHAOS_SECONDS` for how long each variant walks.

mod scripts;
mod walk;

use std::time::{Duration, Instant};

use ipcmutex_tests::asking::{LONG, open, until, waiters, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::servers::{Redis, Reply};

use scripts::{Change, Script, Server, TEXTS};
use walk::{Variant, walk};

/// How many walks each variant has without `CHAOS_SECONDS`, and within how many a change is found.
const WALKS: u64 = 40;

const PLAIN: Variant = Variant {
    name: "plain",
    beside: 0,
    breaks: false,
    leases_change: false,
    keys_go: false,
    clock_jumps: false,
    calm: false,
    idle: 45_000,
};
const BESIDE: Variant = Variant { name: "beside", beside: 100, ..PLAIN };
const CALM: Variant = Variant { name: "calm", breaks: true, leases_change: true, calm: true, idle: 0, ..PLAIN };
const CLOCK: Variant = Variant { name: "clock", clock_jumps: true, ..PLAIN };
const ALL: Variant =
    Variant { name: "all", beside: 50, breaks: true, leases_change: true, keys_go: true, clock_jumps: true, ..PLAIN };

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name}={text}: a number")))
}

fn walks(variant: Variant) {
    needs_redis!();
    let Some(mut server) = Server::start(variant.name, &[]) else { return };
    let first = variable("CHAOS_SEED").unwrap_or(1);
    let end = variable("CHAOS_SECONDS").map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let wanted = |seed| end.map_or(seed < first + WALKS, |end| Instant::now() < end);
    let (mut longest, mut count) = (0, 0);
    for seed in (first..).take_while(|seed| wanted(*seed)) {
        let idle = walk(&mut server, variant, seed).unwrap_or_else(|why| panic!("{why}"));
        (longest, count) = (longest.max(idle), count + 1);
    }
    println!("{}: {count} walks; the lock lay free for {longest} ms at most", variant.name);
}

#[test]
fn plain() {
    walks(PLAIN);
}

#[test]
fn beside_other_libraries() {
    walks(BESIDE);
}

#[test]
fn some_beside_other_libraries() {
    walks(Variant { name: "mixed", beside: 50, ..PLAIN });
}

#[test]
fn no_process_fails() {
    walks(CALM);
    walks(Variant { name: "calm beside", beside: 100, ..CALM });
}

#[test]
fn the_lock_is_broken() {
    walks(Variant { name: "broken", breaks: true, ..PLAIN });
}

#[test]
fn leases_change() {
    walks(Variant { name: "leases", leases_change: true, ..PLAIN });
}

#[test]
fn keys_go() {
    walks(Variant { name: "keys", keys_go: true, ..PLAIN });
}

#[test]
fn the_clock_jumps() {
    walks(CLOCK);
}

#[test]
fn all_at_once() {
    walks(ALL);
}

/// The same walks over scripts that are changed: one of them must say so.
fn is_found(variant: Variant, changes: &[Change], violation: &str) {
    needs_redis!();
    let Some(mut server) = Server::start(variant.name, changes) else { return };
    let found = (1..=WALKS).find_map(|seed| Some((seed, walk(&mut server, variant, seed).err()?)));
    let (seed, why) = found.unwrap_or_else(|| panic!("{WALKS} walks do not find {changes:?}"));
    println!("found by walk {seed}");
    assert!(why.lines().next().is_some_and(|first| first.contains(violation)), "{why}");
}

#[test]
fn a_newcomer_that_passes_who_waits_is_found() {
    let change = ("elseif kept or not advance(me, ticket or 0) then", "elseif true then");
    is_found(PLAIN, &[change], " passes ");
    is_found(BESIDE, &[change], " passes ");
}

#[test]
fn a_second_hold_is_found() {
    let change = ("call('SET', key, token, 'NX', 'PX', ttl)", "call('SET', key, token, 'PX', ttl)");
    is_found(PLAIN, &[change], "two hold");
}

#[test]
fn a_late_copy_that_takes_again_is_found() {
    is_found(PLAIN, &[("if was[2] == token then return {2, token} end", "")], "a copy of a take");
}

#[test]
fn a_death_that_nobody_hears_of_is_found() {
    let change = ("local abandoned = (owner and owner ~= '') and 1 or 0", "local abandoned = 0");
    is_found(PLAIN, &[change], "abandoned");
}

#[test]
fn a_token_that_goes_back_with_the_clock_is_found() {
    let changes =
        [("if last >= fence then fence = last + 1 end", ""), ("if floor >= fence then fence = floor + 1 end", "")];
    is_found(CLOCK, &changes, "the token");
    // Who had no hold before has no floor.
    is_found(CLOCK, &changes[..1], "the token");
}

#[test]
fn a_grant_that_is_not_told_is_found() {
    let change = ("if proc and tell(proc, 'G ' .. token .. ' ' .. key) ~= 0 then", "if proc then");
    is_found(CALM, &[change], "");
}

#[test]
fn a_release_that_leaves_the_next_one_waiting_is_found() {
    is_found(CALM, &[("note(clears)\nadvance(nil, 0)\n", "note(clears)\n")], "it lies free");
}

#[test]
fn keys_without_an_end_are_found() {
    is_found(PLAIN, &[("call('PEXPIRE', line, MINUTE)", "")], ":line has no end");
    let change = ("if now - now % HOUR ~= last - last % HOUR then call('PEXPIRE', state, WEEK) end", "");
    is_found(PLAIN, &[change], ":state has no end");
}

/// Walks find it, too, but not many of them.
#[test]
fn a_late_copy_makes_no_lease_shorter() {
    needs_redis!();
    let change =
        ("if owner ~= token or call('PTTL', key) < tonumber(ttl) then call('PEXPIRE'", "if true then call('PEXPIRE'");
    for (changes, lease) in [(&[][..], 20_000), (&[change][..], 1000)] {
        let Some(mut server) = Server::start("late", changes) else { return };
        let keys = ["m", "{m}:line", "{m}:state"].map(str::to_owned);
        let take = ["t", "1000", "p", "info", "", "0"].map(str::to_owned);
        server.run(Script::Take, &keys, &take);
        server.run(Script::Renew, &[keys[0].clone(), keys[2].clone()], &["t", "20000", "2"].map(str::to_owned));
        server.run(Script::Take, &keys, &take);
        assert_eq!(server.ask(&["PTTL", "m"]).number(), lease, "{changes:?}");
    }
}

#[test]
fn a_late_copy_of_a_renewal_undoes_no_extension() {
    needs_redis!();
    let change = ("if not last or tonumber(number) >= tonumber(last) then", "if true then");
    for (changes, lease) in [(&[][..], 20_000), (&[change][..], 1000)] {
        let Some(mut server) = Server::start("late renewal", changes) else { return };
        let keys = ["m", "{m}:state"].map(str::to_owned);
        server.ask(&["SET", "m", "ab"]);
        for (ttl, number) in [("1000", "1"), ("20000", "2"), ("20000", "2"), ("1000", "1")] {
            let args = ["ab", ttl, number].map(str::to_owned);
            assert_eq!(server.run(Script::Renew, &keys, &args), Reply::List(vec![Reply::Number(1)]));
        }
        assert_eq!(server.ask(&["PTTL", "m"]).number(), lease, "{changes:?}");
        // Of another hold nothing is said by that.
        server.ask(&["SET", "m", "abc"]);
        server.run(Script::Renew, &keys, &["abc", "1000", "1"].map(str::to_owned));
        assert_eq!(server.ask(&["PTTL", "m"]).number(), 1000, "{changes:?}");
    }
}

/// What walks is what the library sends: by their digests, the server has learned just these from it.
#[test]
fn the_scripts_are_those_of_the_library() {
    needs_redis!();
    let redis = Redis::start();
    let digests = TEXTS.map(|text| redis.command(&["SCRIPT", "LOAD", text]).text().to_owned());
    redis.command(&["SCRIPT", "FLUSH"]);
    let mutex = open(&redis.url("walked"));
    let hold = mutex.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let other = scope.spawn(|| open(&redis.url("walked")).acquire_with(within(LONG)).expect("acquired").release());
        until("it waits", || waiters(&mutex) == 1);
        hold.extend(Some(Duration::from_secs(5))).expect("extended");
        hold.release().expect("released");
        other.join().expect("no panic").expect("released");
    });
    mutex.break_lock().expect("asked");
    for script in [Script::Take, Script::Release, Script::Renew, Script::Break, Script::Forewarn] {
        let known = redis.command(&["SCRIPT", "EXISTS", &digests[script as usize]]);
        assert_eq!(known, Reply::List(vec![Reply::Number(1)]), "{script:?}");
    }
}
