//! Clocks that jump: a host that sleeps, a server whose time of day is set.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, State};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::clock::{Clock, Jump};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::place::{freeze, signal};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::Redis;
use rustix::process::Signal;

use super::both_ways;

const HOUR: Duration = Duration::from_secs(3600);

#[test]
fn r3_a_host_that_slept_longer_than_the_lease_has_lost() {
    needs_redis!();
    let Some(clock) = Clock::new("r3_a_host_that_slept_longer_than_the_lease_has_lost") else { return };
    let redis = Redis::start();
    let environment = clock.environment();
    let mut environment: Vec<(&str, &OsStr)> =
        environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
    environment.push(talkative());
    let agent = Agent::start_with(Language::Rust, &environment);
    for lock in [1, 2] {
        agent.open(lock, &redis.url(&format!("slept-{lock}?ttl=6s"))).ok();
        agent.call(&format!("hold {lock} {lock} forever")).ok();
        agent.call(&format!("check {lock}")).ok();
    }
    let told = agent.begin("lost 2");
    clock.suspend(HOUR);
    // Asked, it knows at once; the server, whose clock did not sleep, would still renew it.
    agent.call("check 1").err(ErrorKind::Lost);
    agent.call("end 1").err(ErrorKind::Lost);
    // Not asked, it is told when the renewal would have been due, and nothing is renewed.
    told.reply().err(ErrorKind::Lost);
    agent.call("end 2").err(ErrorKind::Lost);
    for lock in [1, 2] {
        let next = open(&redis.url(&format!("slept-{lock}")));
        let hold = next.acquire_with(within(LONG)).expect("acquired");
        assert!(hold.abandoned(), "it was not released in time");
        hold.release().expect("released");
    }
}

/// The server has lost the last token and its clock is behind it: who had that token says so.
#[test]
fn r29_the_token_rises_for_who_had_it_when_the_clock_goes_back_and_all_is_forgotten() {
    needs_redis!();
    let Some(clock) = Clock::new("r29_the_token_rises_for_who_had_it_when_the_clock_goes_back_and_all_is_forgotten")
    else {
        return;
    };
    let redis = Redis::by_clock(&clock);
    for url in [redis.url("forgotten"), redis.url("forgotten?redis_key=forgotten")] {
        let mutex = open(&url);
        let hold = mutex.acquire().expect("acquired");
        let token = hold.token();
        hold.release().expect("released");
        clock.set(Jump::Back(HOUR));
        redis.command(&["FLUSHALL"]);
        let next = mutex.acquire().expect("acquired");
        assert!(next.token() > token, "{} after {token}", next.token());
        next.release().expect("released");
    }
}

/// Nobody asks, and no renewal would be due soon, if at all.
#[test]
fn a_host_that_slept_longer_than_a_long_lease_is_told_soon() {
    needs_redis!();
    let Some(clock) = Clock::new("a_host_that_slept_longer_than_a_long_lease_is_told_soon") else { return };
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let hosts: Vec<String> = servers.iter().map(Redis::address).collect();
    let on_all = |id: &str| format!("rpm+redlock://{}{}/{id}", servers[0].login(), hosts.join(","));
    let urls = [
        servers[0].url("slept?ttl=600s&renew=off"),
        servers[0].url("slept-renewed?ttl=600s"),
        on_all("slept-too?ttl=600s&renew=off"),
        on_all("slept-too-renewed?ttl=600s"),
    ];
    let environment = clock.environment();
    let mut environment: Vec<(&str, &OsStr)> =
        environment.iter().map(|(name, value)| (*name, value.as_os_str())).collect();
    environment.push(talkative());
    let agents = urls.map(|url| {
        let agent = Agent::start_with(Language::Rust, &environment);
        agent.open(1, &url).ok();
        agent.call("hold 1 1 forever").ok();
        agent
    });
    let told: Vec<_> = agents.iter().map(|agent| agent.begin("lost 1")).collect();
    clock.suspend(HOUR);
    for told in told {
        told.reply_after(LONG).err(ErrorKind::Lost);
    }
}

#[test]
fn r3_a_lease_counts_from_before_it_is_asked_for() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, _) = both_ways(&redis, &proxy, "asked?ttl=10s");
    proxy.delay(Duration::from_millis(200));
    let hold = mutex.acquire().expect("acquired");
    // There and back it took 400 ms; the margin is 105 ms.
    let left = hold.valid_for().expect("a lease");
    assert!(left <= Duration::from_millis(10_000 - 400 - 105), "{left:?}");
    hold.extend(None).expect("renewed");
    let left = hold.valid_for().expect("a lease");
    assert!(left <= Duration::from_millis(10_000 - 400 - 105), "{left:?}");
    hold.release().expect("released");
}

#[test]
fn r4_a_server_whose_clock_is_set_ahead_costs_the_hold_and_tells() {
    needs_redis!();
    let Some(clock) = Clock::new("r4_a_server_whose_clock_is_set_ahead_costs_the_hold_and_tells") else { return };
    let redis = Redis::by_clock(&clock);
    let mutex = open(&redis.url("ahead?ttl=3s"));
    let hold = mutex.acquire().expect("acquired");
    let (tell, told) = std::sync::mpsc::channel();
    hold.on_lost(move |error| _ = tell.send(error.kind())).expect("a live hold");
    clock.set(Jump::Ahead(HOUR));
    let set = Instant::now();
    let other = open(&redis.unix_url("ahead"));
    let next = other.acquire_with(within(LONG)).expect("the server has forgotten the first");
    assert!(next.abandoned() && next.token() > hold.token(), "what asks for the higher token is safe");
    // At the next renewal, a third of the lease away.
    assert_eq!(told.recv_timeout(LONG).expect("told"), ErrorKind::Lost);
    figure("R4", format!("with a lease of 3 s, told {:.1?} after the server's clock was set ahead", set.elapsed()));
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    next.check().expect("it stands");
    next.release().expect("released");
}

#[test]
fn r4_a_server_whose_clock_is_set_back_keeps_no_lease_for_longer_than_it_is() {
    needs_redis!();
    let Some(clock) = Clock::new("r4_a_server_whose_clock_is_set_back_keeps_no_lease_for_longer_than_it_is") else {
        return;
    };
    let redis = Redis::by_clock(&clock);
    let mutex = open(&redis.url("back?ttl=3s"));
    let hold = mutex.acquire().expect("acquired");
    clock.set(Jump::Back(HOUR));
    let left = || redis.command(&["PTTL", "ipcmutex:back"]).number();
    until("the server has noticed", || left() > 3_500_000);
    until("the renewal sets it right", || (1..=3000).contains(&left()));
    hold.check().expect("it was renewed all the while");
    let token = hold.token();
    hold.release().expect("released");
    let next = mutex.acquire().expect("acquired");
    assert!(next.token() > token, "the token rises although the clock went back");
    assert_eq!(mutex.status().expect("status").state, State::Held);
    next.release().expect("released");
}

/// Who is granted the lock and who is told of that have both stopped. By the server's clock neither has come yet.
#[test]
fn r4_a_server_whose_clock_is_set_back_has_stopped_waiters_noticed() {
    needs_redis!();
    let Some(clock) = Clock::new("r4_a_server_whose_clock_is_set_back_has_stopped_waiters_noticed") else { return };
    let redis = Redis::by_clock(&clock);
    let mutex = open(&redis.url("stopped?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    let stopped = Agent::start_with(Language::Rust, &[talkative()]);
    stopped.open(1, &redis.url("stopped?ttl=60s")).ok();
    let waits = [1, 2].map(|place| {
        let wait = stopped.begin(&format!("hold 1 {place} forever"));
        until("it waits", || waiters(&mutex) == place);
        wait
    });
    std::thread::scope(|scope| {
        let next = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&mutex) == 3);
        let time = || redis.command(&["EVAL", "return tonumber(redis.call('TIME')[1])", "0"]).number();
        let before = time();
        clock.set(Jump::Back(HOUR));
        until("the server has noticed", || time() < before);
        freeze(&stopped);
        let begun = Instant::now();
        hold.release().expect("released");
        let next = next.join().expect("no panic").expect("acquired");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        signal(&stopped, Signal::CONT);
        until("they wait again", || waiters(&mutex) == 2);
        next.release().expect("released");
    });
    // What is handed over to it is let go at its end.
    drop(waits);
}
