//! `rpm+redlock:`: a majority of independent servers.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, EventLoop, Hold, Mutex, State, Timeout};
use ipcmutex_tests::certificates::Authority;
use ipcmutex_tests::proxy::{End, Fault, From, On, Proxy};
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Redis, Reply};

use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;

use super::{carries_a_lock, takes_no_other_with_it};

fn five() -> Vec<Redis> {
    (0..5).map(|_| Redis::start()).collect()
}

fn three() -> Vec<Redis> {
    (0..3).map(|_| Redis::start()).collect()
}

fn url(servers: &[Redis], id: &str) -> String {
    let hosts: Vec<String> = servers.iter().map(Redis::address).collect();
    format!("rpm+redlock://{}{}/{id}", servers[0].login(), hosts.join(","))
}

/// On how many of them the lock's key is.
fn copies(servers: &[&Redis], key: &str) -> i64 {
    servers.iter().map(|redis| redis.command(&["EXISTS", key]).number()).sum()
}

/// A proxy before each, and the URL of a lock by way of them.
fn proxied(servers: &[Redis], id: &str) -> (Vec<Proxy>, String) {
    let proxies: Vec<Proxy> = servers.iter().map(|redis| Proxy::before(&redis.address())).collect();
    let hosts: Vec<&str> = proxies.iter().map(Proxy::address).collect();
    let url = format!("rpm+redlock://{}{}/{id}", servers[0].login(), hosts.join(","));
    (proxies, url)
}

/// Whether a hold of the lock was released on the server, be it one that nobody heard of.
fn was_released(redis: &Redis, id: &str) -> bool {
    redis.command(&["HEXISTS", &format!("{{ipcmutex:{id}}}:state"), "l"]).number() == 1
}

#[test]
fn r28_two_of_five_are_not_missed_and_three_are() {
    needs_redis!();
    let mut servers = five();
    let at = |id: &str, servers: &[Redis]| url(servers, id);
    carries_a_lock(&at("all", &servers));
    let mutex = open(&at("r28", &servers));
    let hold = mutex.acquire().expect("acquired");
    let before = hold.token();
    servers[0].kill();
    servers[3].kill();
    hold.extend(None).expect("renewed by the others");
    hold.release().expect("released by the others");
    carries_a_lock(&at("r28", &servers));
    carries_a_lock(&at("new", &servers));

    let hold = mutex.acquire().expect("acquired");
    assert!(hold.token() > before);
    servers[1].kill();
    assert_eq!(kind_of(hold.extend(None)), ErrorKind::Unavailable);
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    for timeout in [Duration::ZERO, Duration::from_millis(500)] {
        let error = mutex.acquire_with(within(timeout)).expect_err("no majority");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
        assert!(error.to_string().contains("of 5 servers answered, 3 that agree are needed"), "{error}");
    }
    assert_eq!(kind_of(Mutex::open(&at("r28", &servers))), ErrorKind::Unavailable);
    // What was taken on the other two in vain is given back.
    until("nothing is left over", || copies(&[&servers[2], &servers[4]], "ipcmutex:r28") == 0);
    for dead in [0, 1, 3] {
        servers[dead].restart();
    }
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    assert!(hold.token() > before);
    hold.release().expect("released");
}

#[test]
fn r28_two_that_hang_cost_no_time() {
    needs_redis!();
    let servers = five();
    let mutex = open(&url(&servers, "hung"));
    mutex.acquire().expect("acquired").release().expect("released");
    servers[1].freeze();
    servers[2].freeze();
    let begun = Instant::now();
    for _ in 0..10 {
        let hold = mutex.acquire().expect("acquired");
        assert!(mutex.try_acquire().expect("an answer").is_none());
        hold.release().expect("released");
    }
    figure(
        "R28",
        format!("a take and a release with two of five that hang: {:.1?}, the mean of 10", begun.elapsed() / 10),
    );
    // To wait for them once each would be 2 s of each turn.
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

#[test]
fn r29_the_token_rises_over_majorities_that_share_one_server() {
    needs_redis!();
    let mut servers = five();
    // The clock of the first one is far ahead.
    let ahead = "3000000000000000";
    servers[0].command(&["HSET", "{ipcmutex:a14}:state", "f", ahead]);
    let whole = url(&servers, "a14");
    servers[3].kill();
    servers[4].kill();
    let hold = open(&whole).acquire().expect("acquired on 0, 1, 2");
    let first = hold.token();
    assert!(first > ahead.parse().expect("a number"));
    hold.release().expect("released");
    servers[3].restart();
    servers[4].restart();
    servers[0].kill();
    servers[1].kill();
    // A handle that does not remember the first.
    let hold = open(&whole).acquire().expect("acquired on 2, 3, 4");
    let token = hold.token();
    assert!(token > first, "{token} after {first}");
    hold.release().expect("released");
}

#[test]
fn a_hold_that_a_majority_has_lost_is_lost() {
    needs_redis!();
    let servers = five();
    let mutex = open(&url(&servers, "lost?ttl=1500ms"));
    let hold = mutex.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    hold.on_lost(move |error| _ = tell.send(error.kind())).expect("a live hold");
    for redis in &servers[..2] {
        redis.command(&["DEL", "ipcmutex:lost"]);
    }
    // Longer than the lease: a minority changes nothing.
    assert!(told.recv_timeout(Duration::from_secs(2)).is_err());
    hold.check().expect("a majority has it");
    servers[4].command(&["DEL", "ipcmutex:lost"]);
    assert_eq!(told.recv_timeout(LONG).expect("the loss is told"), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    let next = mutex.acquire_with(within(LONG)).expect("acquired");
    // Broken by somebody: found at the next renewal.
    assert!(open(&url(&servers, "lost?ttl=1500ms")).break_lock().expect("broken"));
    until("it is told", || next.check().is_err());
    // Three of five away for longer than a lease: told by then.
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    for redis in &servers[..3] {
        redis.freeze();
    }
    until("it is told", || hold.check().is_err());
}

#[test]
fn r28_those_who_take_each_others_votes_come_to_an_end() {
    needs_redis!();
    let servers = five();
    let (inside, last, turns) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..5 {
            // Handles do not know of each other.
            let mutex = open(&url(&servers, "storm"));
            let (inside, last, turns) = (&inside, &last, &turns);
            scope.spawn(move || {
                for _ in 0..6 {
                    let hold = mutex.acquire_with(within(LONG)).unwrap_or_else(|error| panic!("{error}"));
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                    assert!(last.swap(hold.token(), Ordering::SeqCst) < hold.token(), "the token rises");
                    assert!(!hold.abandoned());
                    turns.fetch_add(1, Ordering::SeqCst);
                    inside.fetch_sub(1, Ordering::SeqCst);
                    hold.release().expect("released");
                }
            });
        }
    });
    assert_eq!(turns.load(Ordering::SeqCst), 30);
}

#[test]
fn what_a_majority_cannot_have() {
    needs_redis!();
    let servers = five();
    assert_eq!(kind_of(Mutex::open(&url(&servers, "x?replicas=1"))), ErrorKind::Invalid);
    servers[4].command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    assert_eq!(kind_of(Mutex::open(&url(&servers, "x"))), ErrorKind::Config);
    carries_a_lock(&url(&servers, "x?policy=any"));
}

/// As at a single server.
#[test]
fn servers_that_do_not_tell_their_policy_are_taken_at_their_word() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::with(None, &["rename-command INFO \"\""])).collect();
    carries_a_lock(&url(&servers, "untold"));
}

/// What is wrong with the connection is told by open already.
#[test]
fn servers_without_a_database_are_refused() {
    needs_redis!();
    assert_eq!(kind_of(Mutex::open(&url(&three(), "none?db=99"))), ErrorKind::Config);
}

/// Its name leads to another one by now, and it goes on as a replica: nobody ends the connection to it.
#[test]
fn a_server_that_was_demoted_is_looked_up_anew() {
    needs_redis!();
    let (servers, new) = (three(), three());
    let (proxies, url) = proxied(&servers, "demoted?ttl=60s");
    let mutex = open(&url);
    mutex.acquire().expect("acquired").release().expect("released");
    for ((proxy, old), new) in proxies.iter().zip(&servers).zip(&new).take(2) {
        proxy.lead_to(&new.address());
        let address = new.address();
        let (host, port) = address.split_once(':').expect("host:port");
        assert_eq!(old.command(&["REPLICAOF", host, port]).text(), "OK");
    }
    let hold = mutex.try_acquire().expect("they are there").expect("it is free");
    until("it is on the new ones", || copies(&[&new[0], &new[1]], "ipcmutex:demoted") == 2);
    hold.release().expect("released there");
}

#[test]
fn r23_servers_that_refuse_are_dialled_once_for_all_locks_of_a_process() {
    needs_redis!();
    const LOCKS: usize = 50;
    let servers = three();
    let (proxies, first) = proxied(&servers, "refuse-0?ttl=60s");
    let id = |lock: usize| format!("refuse-{lock}?");
    let straight: Vec<Mutex> = (0..LOCKS).map(|lock| open(&url(&servers, &(id(lock) + "ttl=60s")))).collect();
    let holds: Vec<_> = straight.iter().map(|mutex| mutex.acquire_with(within(LONG)).expect("acquired")).collect();
    let mutexes: Vec<Mutex> = (0..LOCKS).map(|lock| open(&first.replace(&id(0), &id(lock)))).collect();
    let (tell, told) = mpsc::channel();
    for mutex in &mutexes {
        let tell = tell.clone();
        let done = move |outcome: ipcmutex::Result<Hold>| drop(tell.send(outcome.and_then(Hold::release)));
        mutex.acquire_callback((2 * LONG).into(), done).expect("it begins");
    }
    until("all wait", || mutexes.iter().all(|mutex| waiters(mutex) == 1));
    proxies.iter().for_each(|proxy| proxy.close(true));
    let gone = Instant::now();
    proxies.iter().for_each(Proxy::cut_all);
    let away = Duration::from_secs(3);
    std::thread::sleep(away);
    for proxy in &proxies {
        let since = |at: Instant| at.checked_duration_since(gone).is_some_and(|at| at < away);
        let dials = proxy.connections().into_iter().filter(|at| since(*at)).count();
        assert!((2..=15).contains(&dials), "{dials} in 3 s, at most 5 a second for {LOCKS} locks");
    }
    proxies.iter().for_each(|proxy| proxy.close(false));
    for hold in holds {
        hold.release().expect("released");
    }
    for _ in 0..LOCKS {
        told.recv_timeout(LONG).expect("served").expect("acquired and released");
    }
}

#[test]
fn those_under_way_on_a_connection_that_is_cut_all_go_on() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let proxies: Vec<Proxy> = servers.iter().map(|redis| Proxy::before(&redis.address())).collect();
    let hosts: Vec<&str> = proxies.iter().map(Proxy::address).collect();
    let ids = ["one", "two", "three"];
    let url = |id| format!("rpm+redlock://{}{}/{id}?ttl=60s", servers[0].login(), hosts.join(","));
    let mutexes = ids.map(|id| open(&url(id)));
    let holds = mutexes.each_ref().map(|mutex| mutex.acquire_with(within(LONG)).expect("acquired"));
    servers.iter().for_each(Redis::freeze);
    proxies.iter().for_each(|proxy| drop(proxy.said()));
    std::thread::scope(|scope| {
        let releases = holds.map(|hold| scope.spawn(move || hold.release()));
        for proxy in &proxies {
            let mut said = String::new();
            until("all have asked", || {
                said += &String::from_utf8_lossy(&proxy.said());
                ids.iter().all(|id| said.contains(&format!("ipcmutex:{id}")))
            });
        }
        proxies.iter().for_each(Proxy::cut_all);
        servers.iter().for_each(Redis::thaw);
        for release in releases {
            release.join().expect("no panic").expect("released, on the next connection");
        }
    });
    let servers: Vec<&Redis> = servers.iter().collect();
    // Told is what a majority did: the last one may be slower.
    for id in ids {
        until("no copy is left", || copies(&servers, &format!("ipcmutex:{id}")) == 0);
    }
}

/// Each server is asked for the lock, told the token, and told of the end: `docs/REDIS.md`.
#[test]
fn a_free_lock_costs_two_rounds_and_its_release_one() {
    needs_redis!();
    const PAIRS: u64 = 10;
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let mutex = open(&url(&servers, "rounds"));
    let pair = || mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
    pair();
    let asked = || servers.iter().map(Redis::commands).collect::<Vec<_>>();
    let before = asked();
    (0..PAIRS).for_each(|_| pair());
    let each: Vec<u64> = asked().iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(each.iter().all(|asked| *asked <= 3 * PAIRS), "{each:?} for {PAIRS} holds");
}

#[test]
fn over_tls_a_majority_carries_a_lock() {
    needs_redis!();
    let authority = Authority::new();
    let certificate = authority.sign("server", "localhost", true);
    let servers: Vec<Redis> = (0..3).map(|_| Redis::with_tls(&authority, &certificate, false)).collect();
    let hosts: Vec<String> = servers.iter().map(|redis| format!("localhost:{}", redis.second_port())).collect();
    carries_a_lock(&format!("rpm+redlock://{}/tls?ca={}", hosts.join(","), authority.file().display()));
}

/// A server that counts twice makes no majority, and nothing but answers comes on these connections.
#[test]
fn servers_that_are_one_and_a_protocol_that_is_not_spoken_are_refused() {
    let refused = |url: &str| {
        let error = Mutex::open(url).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        error.to_string()
    };
    for hosts in ["h,h,o", "h,o,h:6379", "h:1,o,H:1", "[::1]:5,o,[::1]:5"] {
        assert!(refused(&format!("rpm+redlock://{hosts}/x")).contains("is named twice"), "{hosts}");
    }
    assert!(refused("rpm+redlock://h1,h2,h3/x?protocol=3").contains("RESP2"));
}

/// It has answered first, and is gone before it is told what to remember.
#[test]
fn one_that_dies_while_it_is_taken_is_replaced_by_another() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let proxies: Vec<Proxy> = servers.iter().map(|redis| Proxy::before(&redis.address())).collect();
    let hosts: Vec<&str> = proxies.iter().map(Proxy::address).collect();
    let mutex = open(&format!("rpm+redlock://{}{}/dies?ttl=60s", servers[0].login(), hosts.join(",")));
    let all: Vec<&Redis> = servers.iter().collect();
    // None lags behind the majority that has decided.
    let acquire_everywhere = || {
        let hold = mutex.acquire_with(within(LONG)).expect("acquired");
        let token = hold.token();
        hold.release().expect("released");
        let counter = |redis: &Redis| redis.command(&["HGET", "{ipcmutex:dies}:state", "f"]).text().parse::<u64>();
        let took = |redis: &&Redis| counter(redis).is_ok_and(|last| last >= token);
        until("all have taken it", || all.iter().all(took));
        until("no copy is left", || copies(&all, "ipcmutex:dies") == 0);
    };
    // From the second time on all that is said is known to the server, and as long as before.
    acquire_everywhere();
    drop(proxies[0].said());
    acquire_everywhere();
    let said = String::from_utf8_lossy(&proxies[0].said()).into_owned();
    let take = said.find("\r\n*").expect("more than a take") + 2;
    proxies[0].arm(Fault { from: From::Client, bytes: take, end: End::Silence, on: On::Any });
    // Not among the first.
    proxies[2].delay(Duration::from_millis(200));
    let hold = mutex.try_acquire().expect("two of three are there").expect("it is free");
    assert!(proxies[0].disarm(), "it was gone by then");
    hold.release().expect("released by the other two");
}

/// The loop's thread, that is: what the answer comes to is told later.
#[test]
fn an_event_loop_waits_for_no_majority() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let mutex = open(&url(&servers, "loop?ttl=60s"));
    let on = EventLoop::blind();
    let (tell, told) = mpsc::channel();
    servers.iter().for_each(Redis::freeze);
    mutex.acquire_on(&on, Timeout::TRY, move |outcome| drop(tell.send(outcome)));
    assert!(told.try_recv().is_err(), "nobody has answered");
    servers.iter().for_each(Redis::thaw);
    let hold = told.recv_timeout(LONG).expect("told").expect("it is free");
    let (tell, told) = mpsc::channel();
    servers.iter().for_each(Redis::freeze);
    hold.release_on(&on, move |outcome| drop(tell.send(outcome)));
    assert!(told.try_recv().is_err(), "nobody has answered");
    assert_eq!(kind_of(hold.check()), ErrorKind::NotOwner, "it has ended here");
    servers.iter().for_each(Redis::thaw);
    told.recv_timeout(LONG).expect("told").expect("released");
}

#[test]
fn a_wait_for_a_majority_that_hangs_ends_in_time() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let mutex = open(&url(&servers, "short"));
    mutex.acquire().expect("acquired").release().expect("released");
    servers[..2].iter().for_each(Redis::freeze);
    let begun = Instant::now();
    assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(300)))), ErrorKind::Unavailable);
    // An answer is waited for 2 s; the bound leaves a busy machine most of that.
    assert!(begun.elapsed() < Duration::from_millis(1800), "{:?}", begun.elapsed());
}

#[test]
fn a_majority_that_hangs_is_not_asked_by_each_of_those_that_came_at_once() {
    needs_redis!();
    let servers: Vec<Redis> = (0..3).map(|_| Redis::start()).collect();
    let mutex = open(&url(&servers, "at-once"));
    let on = EventLoop::blind();
    servers.iter().for_each(Redis::freeze);
    let (tell, told) = mpsc::channel();
    let begun = Instant::now();
    for _ in 0..48 {
        let tell = tell.clone();
        mutex.acquire_on(&on, Timeout::TRY, move |outcome| drop(tell.send(outcome)));
    }
    assert!((0..48).all(|_| kind_of(told.recv_timeout(LONG).expect("told")) == ErrorKind::Unavailable));
    // Each by itself would ask for 2 s, and eight at a time can.
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    servers.iter().for_each(Redis::thaw);
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

/// The answers of all servers to what `asks` are lost, and `meanwhile` is over before they are asked again.
fn asked_again<T: Send, M>(
    proxies: &[Proxy],
    asks: impl FnOnce() -> T + Send,
    meanwhile: impl FnOnce() -> M,
) -> (T, M) {
    for proxy in proxies {
        proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Cut, on: On::Any });
        proxy.let_wait(true);
    }
    std::thread::scope(|scope| {
        let asked = scope.spawn(asks);
        until("their answers are lost", || proxies.iter().all(|proxy| proxy.struck() == 1));
        let met = meanwhile();
        proxies.iter().for_each(|proxy| proxy.let_wait(false));
        (asked.join().expect("no panic"), met)
    })
}

/// By way of proxies, a lock whose rounds wait for as long as a test may, and a hold of another that keeps the connections.
fn connected(servers: &[Redis], id: &str) -> (Vec<Proxy>, Mutex, Hold) {
    let (proxies, url) = proxied(servers, &format!("{id}?ttl=60s&connect_timeout=1m"));
    let kept = open(&url.replace(&format!("/{id}?"), "/kept?")).acquire().expect("acquired");
    let mutex = open(&url);
    // The scripts are known, and no answer is still under way.
    mutex.acquire().expect("acquired").release().expect("released");
    assert!(!mutex.break_lock().expect("a majority is there"));
    until("all have it", || copies(&servers.iter().collect::<Vec<_>>(), "ipcmutex:kept") == 3);
    (proxies, mutex, kept)
}

#[test]
fn a_break_that_is_asked_for_again_leaves_the_next_hold_alone() {
    needs_redis!();
    let servers = three();
    let (proxies, mutex, kept) = connected(&servers, "next");
    let straight = url(&servers, "next?ttl=60s");
    let (one, other) = (open(&straight), open(&straight));
    let hold = one.acquire().expect("acquired");
    let (broken, next) = asked_again(&proxies, || mutex.break_lock(), || other.try_acquire());
    let next = next.expect("no error").expect("it was broken");
    assert!(broken.expect("asked again"), "it was held");
    next.extend(None).expect("it still stands");
    next.release().expect("released");
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    kept.release().expect("released");
}

#[test]
fn r7_a_release_that_is_asked_for_again_is_none_of_the_next_hold() {
    needs_redis!();
    let servers = three();
    let (proxies, mutex, kept) = connected(&servers, "r7");
    let other = open(&url(&servers, "r7?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    until("all have it", || copies(&servers.iter().collect::<Vec<_>>(), "ipcmutex:r7") == 3);
    mutex.status().expect("a majority is there");
    let next = || other.try_acquire().map(|next| next.map(Hold::release));
    let (released, next) = asked_again(&proxies, || hold.release(), next);
    next.expect("no error").expect("it was free").expect("released");
    released.expect("neither LOST nor NOT_OWNER");
    kept.release().expect("released");
}

/// What they had is gone before they are asked.
#[test]
fn r7_a_release_that_only_new_servers_hear_of_is_a_loss() {
    needs_redis!();
    let mut servers = three();
    let mutex = open(&url(&servers, "forgotten?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    servers.iter_mut().for_each(Redis::restart);
    // By connections of its own.
    let other = open(&url(&servers, "forgotten?connect_timeout=3s"));
    let next = other.try_acquire().expect("no error").expect("nobody has it");
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    next.release().expect("it is still the other's");
}

/// It was asked in vain, and nobody has heard its answer: the next one must hear what it says.
#[test]
fn a_death_is_not_forgotten_by_who_is_slow_to_tell_of_it() {
    needs_redis!();
    let mut servers = three();
    let (proxies, url) = proxied(&servers, "death?ttl=60s");
    servers[1].kill();
    let mutex = open(&url);
    let hold = mutex.acquire().expect("acquired");
    until("both have it", || copies(&[&servers[0], &servers[2]], "ipcmutex:death") == 2);
    assert!(mutex.break_lock().expect("a majority is there"));
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    servers[1].restart();
    // It was away a moment ago: a try might not ask it yet, and who looks does.
    let before = servers[1].commands();
    until("it is asked again", || mutex.status().is_ok() && servers[1].commands() > before);
    servers[1].command(&["SET", "ipcmutex:death", "somebody"]);
    proxies[2].delay(Duration::from_millis(100));
    assert!(mutex.try_acquire().expect("two have answered").is_none(), "one has it, one refuses, one is late");
    until("it is given back by the late one, too", || was_released(&servers[2], "death"));
    proxies[2].delay(Duration::ZERO);
    servers[1].command(&["DEL", "ipcmutex:death"]);
    servers[0].kill();
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    assert!(hold.abandoned(), "the late one knows");
    hold.release().expect("released");
}

/// The release of what was asked for in vain goes on behind it.
#[test]
fn a_try_waits_once_for_a_majority_that_hangs() {
    needs_redis!();
    let servers = three();
    let at = |id: &str| open(&url(&servers, &format!("{id}?ttl=60s&connect_timeout=5s")));
    // Who holds keeps the connections.
    let before = at("before");
    let kept = before.acquire().expect("acquired");
    let mutex = at("once");
    servers[..2].iter().for_each(Redis::freeze);
    let begun = Instant::now();
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    // An answer is waited for 2 s, and on the next connection, for which the release waits, for 5 s.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    servers[..2].iter().for_each(Redis::thaw);
    until("it is released on all", || servers.iter().all(|redis| was_released(redis, "once")));
    assert_eq!(copies(&servers.iter().collect::<Vec<_>>(), "ipcmutex:once"), 0);
    kept.release().expect("released");
}

/// It is slower than the others by more than what they are waited for beyond a majority, and has the last word.
#[test]
fn where_the_first_answers_differ_the_last_one_decides() {
    needs_redis!();
    let servers = three();
    let (proxies, url) = proxied(&servers, "differ?ttl=60s&renew=off");
    let hold = open(&url).acquire().expect("acquired");
    let all: Vec<&Redis> = servers.iter().collect();
    until("all of them have it", || copies(&all, "ipcmutex:differ") == 3);
    servers[0].command(&["DEL", "ipcmutex:differ"]);
    proxies[2].delay(Duration::from_millis(100));
    hold.extend(None).expect("two of three have it");
    hold.release().expect("two of three had it");
}

#[test]
fn one_that_is_misconfigured_does_not_end_the_wait_for_one_that_is_away() {
    needs_redis!();
    let mut servers = three();
    servers[2] = Redis::with(Some(&secrets::password("other")), &[]);
    let mutex = open(&url(&servers, "misconfigured"));
    servers[1].kill();
    let error = mutex.try_acquire().expect_err("one of three is there");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.to_string().contains(&servers[2].address()), "it is told all the same: {error}");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        std::thread::sleep(Duration::from_millis(300));
        servers[1].restart();
        waits.join().expect("no panic").expect("two of three are there").release().expect("released");
    });
    // Where it is the reason, so that nothing that comes back helps.
    servers[1] = Redis::with(Some(&secrets::password("other")), &[]);
    assert_eq!(kind_of(Mutex::open(&url(&servers, "misconfigured"))), ErrorKind::Auth);
}

#[test]
fn a_lock_that_may_be_held_by_those_who_do_not_answer_is_not_free() {
    needs_redis!();
    let mut servers = five();
    let mutex = open(&url(&servers, "unseen?ttl=60s"));
    servers[..2].iter_mut().for_each(Redis::kill);
    let hold = mutex.acquire().expect("acquired on the last three");
    until("all three have it", || copies(&servers[2..].iter().collect::<Vec<_>>(), "ipcmutex:unseen") == 3);
    servers[..2].iter_mut().for_each(Redis::restart);
    servers[3..].iter().for_each(Redis::freeze);
    assert_eq!(mutex.status().expect("a majority answers").state, State::Held);
    servers[3..].iter().for_each(Redis::thaw);
    hold.release().expect("released");
    assert_eq!(mutex.status().expect("a majority answers").state, State::Free);
}

/// The numbers from here on are not all to be told apart by Lua.
#[test]
fn r29_the_token_rises_beyond_what_lua_counts() {
    needs_redis!();
    let mut servers = five();
    let whole = url(&servers, "lua");
    servers[0].command(&["HSET", "{ipcmutex:lua}:state", "f", "9007199254740992"]);
    servers[2].command(&["HSET", "{ipcmutex:lua}:state", "f", "9007199254740991"]);
    servers[3..].iter_mut().for_each(Redis::kill);
    let hold = open(&whole).acquire().expect("acquired on 0, 1, 2");
    let first = hold.token();
    hold.release().expect("released");
    servers[3..].iter_mut().for_each(Redis::restart);
    servers[..2].iter_mut().for_each(Redis::kill);
    let hold = open(&whole).acquire().expect("acquired on 2, 3, 4");
    assert!(hold.token() > first, "{} after {first}", hold.token());
    hold.release().expect("released");
}

#[test]
fn many_holds_are_renewed_by_few_calls_to_each_server() {
    needs_redis!();
    const HOLDS: u64 = 200;
    let servers = three();
    let mutexes: Vec<Mutex> = (0..HOLDS).map(|lock| open(&url(&servers, &format!("many-{lock}?ttl=3s")))).collect();
    let holds: Vec<_> = mutexes.iter().map(|mutex| mutex.acquire().expect("acquired")).collect();
    // Each has been renewed once; then come three periods, and some.
    std::thread::sleep(Duration::from_millis(1500));
    let asked = || servers.iter().map(Redis::commands).collect::<Vec<_>>();
    let before = asked();
    std::thread::sleep(Duration::from_secs(3));
    let calls: Vec<u64> = asked().iter().zip(before).map(|(after, before)| after - before).collect();
    assert!(
        calls.iter().all(|calls| (3..=HOLDS / 4).contains(calls)),
        "{calls:?} calls for {HOLDS} holds in three periods"
    );
    for hold in holds {
        hold.release().expect("it was renewed");
    }
}

/// With one of three that hangs, too.
#[test]
fn of_holds_that_are_renewed_together_each_stands_for_itself() {
    needs_redis!();
    const TTL: Duration = Duration::from_secs(2);
    let servers = three();
    let at = |id: &str| open(&url(&servers, id));
    let mutexes: Vec<Mutex> = (0..20).map(|lock| at(&format!("each-{lock}?ttl=2s"))).collect();
    let unrenewed = at("each-off?ttl=2s&renew=off");
    let ends = unrenewed.acquire().expect("acquired");
    let mut holds: Vec<_> = mutexes.iter().map(|mutex| mutex.acquire().expect("acquired")).collect();
    servers[2].freeze();
    for redis in &servers[..2] {
        redis.command(&["DEL", "ipcmutex:each-7"]);
    }
    let (lost, begun) = (holds.remove(7), Instant::now());
    until("what is gone is told, and what is not renewed has ended", || lost.check().is_err() && ends.check().is_err());
    std::thread::sleep((2 * TTL).saturating_sub(begun.elapsed()));
    for hold in holds {
        hold.check().expect("the others stand");
        hold.release().expect("released by two of three");
    }
    assert_eq!((kind_of(lost.release()), kind_of(ends.release())), (ErrorKind::Lost, ErrorKind::Lost));
}

/// What is said of many in one call is refused for one of them.
#[test]
fn a_hold_that_is_not_allowed_any_more_takes_no_other_with_it() {
    needs_redis!();
    let servers = three();
    let secret = secrets::password("user");
    let set = |rules: &[&str]| {
        for redis in &servers {
            assert_eq!(redis.command(&[&["ACL", "SETUSER", "locks"], rules].concat()).text(), "OK");
        }
    };
    set(&["on", &format!(">{secret}"), "+@all", "~*", "&*"]);
    let hosts: Vec<String> = servers.iter().map(Redis::address).collect();
    let at = |id: &str| open(&format!("rpm+redlock://locks:{secret}@{}/{id}?ttl=2s", hosts.join(",")));
    takes_no_other_with_it(at, set);
}

#[test]
fn who_has_no_limit_gives_up_a_majority_whoever_stands_before_it() {
    needs_redis!();
    let servers = three();
    let hold = open(&url(&servers, "before?ttl=60s")).acquire().expect("acquired");
    let mutex = open(&url(&servers, "before?ttl=60s"));
    let start = |timeout: Timeout| {
        let (tell, told) = mpsc::channel();
        mutex.acquire_callback(timeout, move |outcome| _ = tell.send(outcome)).expect("begun");
        told
    };
    let [limited, forever] = [(3 * LONG).into(), Timeout::FOREVER].map(start);
    until("both wait", || mutex.status().expect("status").waiters == 2);
    servers[..2].iter().for_each(Redis::freeze);
    assert_eq!(kind_of(forever.recv_timeout(LONG).expect("it gives up")), ErrorKind::Unavailable);
    assert!(limited.try_recv().is_err(), "it has its limit");
    servers[..2].iter().for_each(Redis::thaw);
    until("they answer", || mutex.status().is_ok());
    hold.release().expect("released");
    limited.recv_timeout(LONG).expect("told").expect("acquired").release().expect("released");
}

/// A renewal on a connection that was given up may come late, as TCP goes on sending it.
#[test]
fn a_late_renewal_makes_no_lease_of_a_majority_shorter() {
    needs_redis!();
    let servers = three();
    let (proxies, url) = proxied(&servers, "late?ttl=2s");
    let hold = open(&url).acquire().expect("acquired");
    proxies.iter().for_each(|proxy| drop(proxy.said()));
    until_renewed(&hold);
    let late = |proxy: &Proxy| {
        let said = proxy.said();
        let from = said.windows(4).rposition(|word| word == b"*8\r\n");
        from.map(|from| said[from..].to_vec())
    };
    let said: Vec<_> = proxies.iter().map(late).collect();
    hold.extend(Some(Duration::from_secs(60))).expect("extended");
    let mut stood = 0;
    for (redis, late) in servers.iter().zip(said) {
        let Some(late) = late else { continue };
        let mut client = redis.client();
        client.say(&late);
        assert_eq!(client.reply(), Reply::List(vec![Reply::Number(1)]), "it stands");
        assert!(redis.command(&["PTTL", "ipcmutex:late"]).number() > 10_000, "as it was extended");
        stood += 1;
    }
    assert!(stood > 1, "a majority had renewed it");
    hold.release().expect("released");
}

#[test]
fn who_comes_while_a_majority_is_away_has_as_much_patience_as_who_came_first() {
    needs_redis!();
    let mut servers = three();
    let mutex = open(&url(&servers, "late"));
    servers[..2].iter_mut().for_each(Redis::kill);
    std::thread::scope(|scope| {
        let limited = scope.spawn(|| mutex.acquire_with(within(Duration::from_secs(12))));
        let begun = Instant::now();
        assert_eq!(kind_of(mutex.acquire()), ErrorKind::Unavailable);
        assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
        // It is away for long now.
        let begun = Instant::now();
        assert_eq!(kind_of(mutex.acquire()), ErrorKind::Unavailable);
        assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
        assert_eq!(kind_of(limited.join().expect("no panic")), ErrorKind::Unavailable);
    });
}

/// Another lock has found some of them away, and they are back: no copy stays for the lease.
#[test]
fn a_release_and_an_extend_reach_servers_that_are_back() {
    needs_redis!();
    for away in [1, 2] {
        let servers = three();
        let (proxies, url) = proxied(&servers, "back?ttl=60s");
        let (mutex, other) = (open(&url), open(&url.replace("back?", "other?")));
        let all: Vec<&Redis> = servers.iter().collect();
        let hold = mutex.acquire().expect("acquired");
        until("it is on all", || copies(&all, "ipcmutex:back") == 3);
        let blip = || {
            for proxy in &proxies[..away] {
                proxy.close(true);
                proxy.cut_all();
            }
            match other.try_acquire() {
                Ok(taken) => taken.expect("it is free").release().expect("two are there"),
                Err(error) => assert_eq!((away, error.kind()), (2, ErrorKind::Unavailable)),
            }
            proxies[..away].iter().for_each(|proxy| proxy.close(false));
        };
        blip();
        hold.extend(Some(Duration::from_secs(90))).expect("they are back");
        blip();
        hold.release().expect("they are back");
        until("it is on none", || copies(&all, "ipcmutex:back") == 0);
    }
}

/// The waits for another lock have made the pause between two dials longer than what is left of the lease.
#[test]
fn a_short_lease_does_not_end_of_the_pause_of_those_who_wait() {
    needs_redis!();
    let servers = three();
    let (proxies, url) = proxied(&servers, "short?ttl=2s");
    let dials = || proxies[0].connections().len();
    let left = |hold: &Hold| hold.valid_for().unwrap_or_default();
    let is_saved = || {
        let mutex = open(&url);
        let taken = open(&self::url(&servers, "long?ttl=60s")).acquire_with(within(LONG)).expect("acquired");
        let (tell, told) = mpsc::channel();
        let done = move |outcome: ipcmutex::Result<Hold>| drop(tell.send(outcome.and_then(Hold::release)));
        open(&url.replace("short?ttl=2s", "long?ttl=60s"))
            .acquire_callback((2 * LONG).into(), done)
            .expect("it begins");
        let hold = mutex.acquire_with(within(LONG)).expect("acquired");
        for proxy in &proxies {
            proxy.close(true);
            proxy.cut_all();
        }
        until("little is left", || left(&hold) < Duration::from_millis(500));
        // The pause begins now.
        let before = dials();
        until("they were dialled", || dials() > before || left(&hold).is_zero());
        proxies.iter().for_each(|proxy| proxy.close(false));
        until("it is renewed or over", || {
            let left = left(&hold);
            left.is_zero() || left > Duration::from_secs(1)
        });
        let is_saved = hold.check().is_ok();
        taken.release().expect("released");
        told.recv_timeout(LONG).expect("served").expect("acquired and released");
        is_saved
    };
    // A machine that is busy may be late for it once.
    assert!((0..5).any(|_| is_saved()));
}
