//! Leases that are made shorter or longer, and answers about them that come late or never.

use std::time::Duration;

use ipcmutex::{ErrorKind, Mutex};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::proxy::{End, Fault, From, On, Proxy};
use ipcmutex_tests::servers::Redis;

use super::both_ways;

const SILENCE: Fault = Fault { from: From::Server, bytes: 0, end: End::Silence, on: On::Any };

/// The server does it, and nobody hears: from then on the shorter lease counts.
fn is_not_believed_for_longer(mutex: &Mutex, straight: &Mutex, proxies: &[Proxy]) {
    let hold = mutex.acquire().expect("acquired");
    hold.extend(None).expect("the way is known");
    for proxy in proxies {
        proxy.arm(SILENCE);
    }
    std::thread::scope(|scope| {
        let asked = scope.spawn(|| hold.extend(Some(Duration::from_millis(300))));
        let next = straight.acquire_with(within(LONG)).expect("the server let it go");
        assert_eq!(kind_of(hold.check()), ErrorKind::Lost, "two hold it");
        assert_ne!(asked.join().expect("no panic").map_err(|error| error.kind()), Ok(()));
        next.release().expect("released");
    });
}

#[test]
fn a_shorter_lease_whose_answer_is_lost_counts_from_when_it_was_asked_for() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "shorter?ttl=30s&renew=off");
    is_not_believed_for_longer(&mutex, &straight, &[proxy]);
}

#[test]
fn a_shorter_lease_on_independent_servers_whose_answer_is_lost_counts_too() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let mut proxies: Vec<Proxy> = servers.iter().map(|redis| Proxy::before(&redis.address())).collect();
    let url = |hosts: Vec<String>| format!("rpm+redlock://{}{}/shorter?ttl=30s", servers[0].login(), hosts.join(","));
    let mutex = open(&(url(proxies.iter().map(|proxy| proxy.address().to_owned()).collect()) + "&renew=off"));
    let straight = open(&url(servers.iter().map(Redis::address).collect()));
    proxies.truncate(2);
    is_not_believed_for_longer(&mutex, &straight, &proxies);
}

/// With renewals on, the hold is renewed before the shorter lease ends, and stands.
#[test]
fn a_shorter_lease_whose_connection_is_cut_is_renewed_in_time() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "cut?ttl=30s");
    let hold = mutex.acquire().expect("acquired");
    hold.extend(None).expect("the link is up");
    proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Cut, on: On::Link });
    assert_eq!(kind_of(hold.extend(Some(Duration::from_secs(2)))), ErrorKind::Unavailable);
    until("it is renewed", || hold.valid_for().is_some_and(|left| left > Duration::from_secs(3)));
    assert!(straight.try_acquire().expect("an answer").is_none());
    hold.release().expect("it stood all the time");
}

#[test]
fn what_is_extended_too_late_is_lost() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "late?ttl=5s&renew=off");
    let hold = mutex.acquire().expect("acquired");
    hold.extend(None).expect("the link is up");
    // It is asked before the end of the lease, comes in before its end in the server, 55 ms later, and is answered after both.
    proxy.delay(Duration::from_millis(50));
    until("the lease is as good as over", || hold.valid_for().is_none_or(|left| left < Duration::from_millis(30)));
    assert_eq!(kind_of(hold.extend(Some(Duration::from_secs(600)))), ErrorKind::Lost);
    assert_eq!(kind_of(hold.check()), ErrorKind::Lost);
    // What was told to be lost stands for nobody, also before it is released.
    let next = straight.acquire_with(within(LONG)).expect("nobody holds it");
    assert!(next.abandoned());
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    next.release().expect("released");
}

/// Nobody hears that the server has done it, and the lease that is known of runs out.
#[test]
fn what_is_lost_with_its_extension_under_way_blocks_nobody() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "under-way?ttl=4s&renew=off");
    let hold = mutex.acquire().expect("acquired");
    hold.extend(None).expect("the link is up");
    proxy.arm(Fault { on: On::Link, ..SILENCE });
    assert_ne!(hold.extend(Some(Duration::from_secs(600))).map_err(|error| error.kind()), Ok(()));
    assert!(redis.command(&["PTTL", "ipcmutex:under-way"]).number() > 500_000, "the server has done it");
    let next = straight.acquire_with(within(LONG)).expect("nobody holds it");
    assert_eq!(kind_of(hold.check()), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    next.check().expect("it is the next one's");
    next.release().expect("released");
}

#[test]
fn a_release_is_owed_for_as_long_as_the_lease_was_extended() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "longer?ttl=500ms");
    let hold = mutex.acquire().expect("acquired");
    hold.extend(Some(Duration::from_secs(120))).expect("extended");
    proxy.close(true);
    proxy.cut_all();
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    // For longer than the lease that the URL names.
    std::thread::sleep(Duration::from_secs(1));
    proxy.close(false);
    straight.acquire_with(within(LONG)).expect("it is released").release().expect("released");
}
