//! The way to the server: packets that vanish, and everybody at once after it was gone.

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, EventLoop, Hold, Mutex, Timeout};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, waiters, within};
use ipcmutex_tests::cluster::Cluster;
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::place::Place;
use ipcmutex_tests::privilege::{skip, unshare, without_namespaces};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::{Redis, Reply};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{both_ways, built};

#[test]
fn r24_a_network_that_swallows_everything_is_noticed() {
    needs_redis!();
    let redis = Redis::start();
    let (proxy, another) = (Proxy::before(&redis.address()), Proxy::before(&redis.address()));
    // By itself a waiter looks 20 s later, and would find out 2 s after that: it is TCP that notices.
    let (mutex, straight) = both_ways(&redis, &proxy, "hole?ttl=60s");
    // Over a way of its own, for a renewal that is not answered tells of the hole, too.
    let (renewed, _) = both_ways(&redis, &another, "renewed?ttl=9s");
    let kept = renewed.acquire().expect("acquired");
    let hold = straight.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
    until("it waits", || waiters(&straight) == 1);
    proxy.swallow();
    another.swallow();
    let begun = Instant::now();
    // It is told, and cannot hear it.
    hold.release().expect("released");
    let next = told.recv_timeout(LONG).expect("an outcome").expect("acquired");
    let noticed = begun.elapsed();
    assert!(noticed < Duration::from_secs(10), "{noticed:?}");
    figure(
        "R24",
        format!("a waiter from whom all is kept owns {noticed:.1?} after the release that it did not hear of"),
    );
    // The calling thread's connection is in the hole still: that is told, and what it asked for is done all the same.
    let release = |hold: Hold| match hold.release() {
        Ok(()) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
    };
    release(next);
    straight.acquire_with(within(LONG)).expect("it is released").release().expect("released");
    until("the other has been renewed, too", || kept.valid_for().is_some_and(|left| left > Duration::from_secs(7)));
    std::thread::sleep(Duration::from_secs(9).saturating_sub(begun.elapsed()));
    kept.check().expect("its lease of 9 s would be over");
    release(kept);
}

/// A lock behind a proxy, with a link that is up, and one who dies holding it, straight.
struct SlowWay {
    proxy: Proxy,
    mutex: Mutex,
    kept: Hold,
    dying: Mutex,
    redis: Redis,
}

impl SlowWay {
    fn new(ttl: &str) -> SlowWay {
        let redis = Redis::start();
        let proxy = Proxy::before(&redis.address());
        let (mutex, _) = both_ways(&redis, &proxy, "slow?ttl=60s");
        let (kept, _) = both_ways(&redis, &proxy, "kept?ttl=60s");
        let dying = open(&redis.unix_url(&format!("slow&ttl={ttl}&renew=off")));
        let kept = kept.acquire().expect("acquired");
        kept.extend(None).expect("the link is up");
        SlowWay { proxy, mutex, kept, dying, redis }
    }

    /// What was on its way when the lease was told takes a little less than what is asked when it should be over: so
    /// that does not come in before.
    fn slow_down(&self) {
        self.proxy.delay(Duration::from_millis(550));
    }

    fn wait(&self) -> mpsc::Receiver<ipcmutex::Result<Hold>> {
        let (tell, told) = mpsc::channel();
        let done = move |outcome| drop(tell.send(outcome));
        self.mutex.acquire_callback(Timeout::FOREVER, done).expect("it begins");
        told
    }

    /// The waiter comes in when the lease has ended; how long that was after `begun`.
    fn comes_in(self, told: &mpsc::Receiver<ipcmutex::Result<Hold>>, begun: Instant) -> Duration {
        let next = told.recv_timeout(LONG).expect("told").expect("served");
        let waited = begun.elapsed();
        self.proxy.delay(Duration::ZERO);
        assert!(next.abandoned(), "its lease ended");
        next.release().expect("released");
        self.kept.release().expect("released");
        waited
    }
}

/// What it says of the lease is about when it was asked, at the latest.
#[test]
fn r1_a_refusal_that_is_long_on_its_way_puts_no_look_off() {
    needs_redis!();
    let way = SlowWay::new("2s");
    let _hold = way.dying.acquire().expect("acquired");
    let (begun, before) = (Instant::now(), way.redis.commands());
    way.proxy.delay(Duration::from_millis(500));
    let told = way.wait();
    until("it asks", || way.redis.commands() > before);
    way.slow_down();
    let waited = way.comes_in(&told, begun);
    // Asked at 0 s and again at 1.5 s. Counted from the answer, the second time would be at 2.5 s.
    assert!(waited < Duration::from_millis(3200), "it owns {waited:?} after a lease of 2 s began");
}

/// The same of a look, which finds that the lease was made longer.
#[test]
fn r1_a_refused_look_that_is_long_on_its_way_puts_the_next_one_off_no_more() {
    needs_redis!();
    let way = SlowWay::new("1s");
    let hold = way.dying.acquire().expect("acquired");
    let told = way.wait();
    until("it waits", || waiters(&way.dying) == 1);
    hold.extend(Some(Duration::from_secs(3))).expect("it stands");
    let (begun, before) = (Instant::now(), way.redis.commands());
    way.proxy.delay(Duration::from_millis(500));
    until("it looks", || way.redis.commands() > before);
    way.slow_down();
    let waited = way.comes_in(&told, begun);
    // It looks at 1 s and at 2.5 s. Counted from the answer, the second time would be at 3.5 s.
    assert!(waited < Duration::from_millis(4200), "it owns {waited:?} after a lease of 3 s began");
}

/// The look at the end of the lease is that of all of its process.
#[test]
fn r1_who_leaves_with_its_look_under_way_leaves_the_next_one_a_look() {
    needs_redis!();
    let way = SlowWay::new("1s");
    let hold = way.dying.acquire().expect("acquired");
    // Before them stands one whose process is gone: nobody of the living hears that it is the first now.
    let dead = format!("{:016x}.{:032x}", 1, 1);
    assert_eq!(way.redis.command(&["ZADD", "{ipcmutex:slow}:line", "1", &dead]).number(), 1);
    let first = way.mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    let told = way.wait();
    until("both wait", || waiters(&way.dying) == 3);
    hold.extend(Some(Duration::from_secs(3))).expect("it stands");
    let begun = Instant::now();
    let before = way.redis.commands();
    way.proxy.delay(Duration::from_millis(500));
    until("it looks", || way.redis.commands() > before);
    first.cancel();
    let waited = way.comes_in(&told, begun);
    assert!(waited < Duration::from_secs(10), "it owns {waited:?} after a lease of 3 s began");
}

/// An agent whose name server is silent: a search for a name ends by itself after half a minute there, and nothing ends it
/// sooner.
struct Nameless {
    agent: Agent,
    silent: UdpSocket,
    _folder: tempfile::TempDir,
}

impl Nameless {
    /// `at`: where the name server is silent, one for each test. `None`, said aloud, where that cannot be had.
    fn start(test: &str, at: &str) -> Option<Nameless> {
        if without_namespaces(test) {
            return None;
        }
        let Ok(silent) = UdpSocket::bind((at, 53)) else {
            skip(test, "it needs the right to a name server's port, and nobody who has it");
            return None;
        };
        silent.set_nonblocking(true).expect("it is a socket");
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("resolv.conf");
        std::fs::write(&file, format!("nameserver {at}\noptions timeout:15 attempts:2\n")).expect("written");
        let script = format!("mount --bind '{}' /etc/resolv.conf && exec \"$0\"", file.display());
        let mut words = unshare(&["--mount"]);
        words.extend(["sh", "-c", &script]);
        Some(Nameless { agent: Agent::start_under(Language::Rust, &words), silent, _folder: folder })
    }

    /// Some names were searched for, and one search of each goes on, on a thread of its own.
    #[track_caller]
    fn searches(&self, names: usize) {
        self.silent.recv(&mut [0; 512]).expect("it was asked");
        let (_, threads) = self.agent.threads();
        assert_eq!(threads.iter().filter(|name| *name == "ipcmutex-name").count(), names, "{threads:?}");
    }
}

#[test]
fn a_name_server_that_is_silent_does_not_outlast_connect_timeout() {
    const NAME: &str = "a_name_server_that_is_silent_does_not_outlast_connect_timeout";
    let Some(it) = Nameless::start(NAME, "127.0.0.99") else { return };
    let begun = Instant::now();
    for _ in 0..3 {
        it.agent.open(1, "rpm+redis://redis.example/a?connect_timeout=300ms").err(ErrorKind::Unavailable);
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // All three wait for the same one.
    it.searches(1);
}

/// Each turn begins with a search anew, when the background thread has gone meanwhile.
#[test]
fn a_server_whose_name_is_not_found_costs_no_thread_with_each_turn() {
    const NAME: &str = "a_server_whose_name_is_not_found_costs_no_thread_with_each_turn";
    needs_redis!();
    let Some(it) = Nameless::start(NAME, "127.0.0.98") else { return };
    let servers = [Redis::with(None, &[]), Redis::with(None, &[])];
    let [one, other] = servers.each_ref().map(Redis::address);
    let idle = it.agent.threads().0;
    it.agent.open(1, &format!("rpm+redlock://redis.example,{one},{other}/turns?connect_timeout=300ms")).ok();
    let gone = || !it.agent.threads().1.iter().any(|name| name.starts_with("ipcmutex-red"));
    for _ in 0..5 {
        it.agent.call("acquire 1 forever").ok();
        it.agent.call("release 1").ok();
        until("the background thread has gone", gone);
    }
    let begun = Instant::now();
    until("one search is left, and nothing else", || it.agent.threads().0 <= idle + 1);
    assert!(begun.elapsed() < Duration::from_secs(10), "others were left until they ended by themselves");
    it.searches(1);
}

#[test]
fn r23_two_hundred_that_come_back_at_once_come_one_by_one() {
    needs_redis!();
    const CLIENTS: usize = 200;
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let straight = open(&redis.unix_url("storm"));
    let hold = straight.acquire().expect("acquired");
    // An engine for each: what differs between them is how long they try to connect.
    let mutexes: Vec<_> = (0..CLIENTS)
        .map(|client| {
            let id = format!("storm?policy=any&connect_timeout={}ms", 20_000 + client);
            open(&redis.url_at(proxy.address(), &id))
        })
        .collect();
    let (tell, told) = mpsc::channel();
    for mutex in &mutexes {
        let tell = tell.clone();
        mutex
            .acquire_callback(Timeout::FOREVER, move |outcome| {
                let outcome = outcome.and_then(ipcmutex::Hold::release);
                tell.send(outcome).expect("the test waits");
            })
            .expect("it begins");
    }
    until("all wait", || waiters(&straight) as usize == CLIENTS);
    proxy.close(true);
    let gone = Instant::now();
    proxy.cut_all();
    let away = Duration::from_secs(3);
    std::thread::sleep(away);
    let tries: Vec<Duration> =
        proxy.connections().iter().filter_map(|at| at.checked_duration_since(gone)).filter(|at| *at < away).collect();
    assert!(tries.len() >= CLIENTS, "{} tries: everybody has noticed", tries.len());
    assert!(tries.len() <= CLIENTS * 5 * 3, "{} tries in 3 s, at most 5 a second each", tries.len());
    // Without chance they would come in step, each time all of them.
    let moments: BTreeSet<u128> =
        tries.iter().map(Duration::as_millis).filter(|ms| *ms >= 1000).map(|ms| ms / 20).collect();
    assert!(moments.len() >= 25, "in the last 2 s they came in {} moments of 20 ms", moments.len());
    proxy.close(false);
    let back = Instant::now();
    hold.release().expect("released");
    for _ in 0..CLIENTS {
        told.recv_timeout(LONG).expect("served").expect("acquired and released");
    }
    let (each, served) = (tries.len() as f64 / CLIENTS as f64 / away.as_secs_f64(), back.elapsed());
    figure(
        "R23",
        format!(
            "200 clients, each {each:.1} connects a second while it is away; all served {served:.1?} after it is back"
        ),
    );
    straight.acquire_with(within(LONG)).expect("nothing is left").release().expect("released");
}

#[test]
fn a_unix_socket_at_which_too_many_stand_holds_nobody_up() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&(redis.unix_url("crowd") + "&connect_timeout=300ms"));
    redis.freeze();
    // The connection that was there is given up.
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    let address = SockAddr::unix(redis.socket()).expect("an address");
    let one_more = || {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        socket.set_nonblocking(true).expect("it is one");
        socket.connect(&address).is_ok().then_some(socket)
    };
    let crowd: Vec<Socket> = std::iter::from_fn(one_more).collect();
    assert!(!crowd.is_empty());
    std::thread::scope(|scope| {
        let asks = scope.spawn(|| mutex.acquire_with(within(Duration::from_millis(300))).map(drop));
        let begun = Instant::now();
        while !asks.is_finished() && begun.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(2));
        }
        let ended = asks.is_finished();
        redis.thaw();
        let outcome = asks.join().expect("no panic");
        assert!(ended, "it waited for the server to go on");
        assert_eq!(kind_of(outcome), ErrorKind::Unavailable);
    });
}

/// What is ahead of it still asks a server that does not answer.
#[test]
fn behind_another_of_an_event_loop_a_timeout_is_kept() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "behind"));
    let asked_on = proxy.connections().len();
    redis.freeze();
    let (tell, told) = mpsc::channel();
    let start = |timeout| {
        let (tell, on) = (tell.clone(), EventLoop::blind());
        mutex.acquire_on(&on, timeout, move |outcome| tell.send(outcome).expect("it is awaited"));
    };
    start(Timeout::FOREVER);
    start(Timeout::from(Duration::from_secs(1)));
    assert_eq!(kind_of(told.recv_timeout(LONG).expect("told")), ErrorKind::Unavailable);
    assert_eq!(proxy.connections().len(), asked_on, "the first one has not given up its own");
    redis.thaw();
    told.recv_timeout(LONG).expect("told").expect("served").release().expect("released");
}

/// Each byte comes in time, and all of them together do not.
#[test]
fn an_answer_that_comes_byte_by_byte_is_waited_for_no_longer() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "drip?ttl=60s&connect_timeout=300ms");
    let commands = redis.commands();
    proxy.drip(Duration::from_millis(100));
    let begun = Instant::now();
    // The answer has about 90 bytes.
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    assert!(redis.commands() > commands, "it was asked");
    // Nor is what is said while it connects.
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    assert_eq!(
        kind_of(Mutex::open(&redis.url_at(proxy.address(), "drip?connect_timeout=301ms"))),
        ErrorKind::Unavailable
    );
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    proxy.drip(Duration::ZERO);
    // What was taken unheard is given back.
    straight.acquire_with(within(LONG)).expect("it comes free").release().expect("released");
}

/// The server lets it in, and says nothing.
#[test]
fn to_connect_anew_takes_no_longer_than_the_caller_has() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "anew?connect_timeout=20s"));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    proxy.lead_to(&silent.local_addr().expect("its address").to_string());
    proxy.cut_all();
    let begun = Instant::now();
    assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(300)))), ErrorKind::Unavailable);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
    proxy.lead_to(&redis.address());
    proxy.cut_all();
    mutex.acquire_with(within(LONG)).expect("it is there again").release().expect("released");
}

/// The one ahead of it has no limit, and connects to a server that says nothing.
#[test]
fn behind_another_thread_a_timeout_is_kept() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "ahead?connect_timeout=20s"));
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    proxy.lead_to(&silent.local_addr().expect("its address").to_string());
    proxy.cut_all();
    let before = proxy.connections().len();
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| mutex.acquire_with(within(LONG)).and_then(Hold::release));
        until("it connects", || proxy.connections().len() > before);
        let begun = Instant::now();
        let outcome = mutex.acquire_with(within(Duration::from_millis(300)));
        let took = begun.elapsed();
        proxy.lead_to(&redis.address());
        proxy.cut_all();
        assert_eq!(kind_of(outcome), ErrorKind::Unavailable);
        assert!(took < Duration::from_secs(8), "{took:?}");
        ahead.join().expect("no panic").expect("it is served");
    });
}

/// The system refuses one thread, for a moment: which nodes there are is asked for on a thread of its own.
#[test]
fn a_thread_that_does_not_come_is_asked_for_again() {
    needs_redis!(7, 0);
    const PROGRAM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <ipcmutex.h>
#include <pthread.h>
static int begun = -1;
int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*body)(void *), void *argument) {
    static int (*begin)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
    if (begin == NULL) *(void **)&begin = dlsym(RTLD_NEXT, "pthread_create");
    if (begun >= 0 && __atomic_fetch_add(&begun, 1, __ATOMIC_SEQ_CST) == 1) return EAGAIN;
    return begin(thread, how, body, argument);
}
int main(int count, char **words) {
    ipcmutex_t mutex;
    if (count != 2 || ipcmutex_open(words[1], &mutex) != IPCMUTEX_OK) return 2;
    begun = 0;
    if (ipcmutex_acquire_timeout(mutex, 20000) != IPCMUTEX_OK) return 3;
    return begun > 1 ? 0 : 4;
}
"#;
    let (cluster, place) = (Cluster::start(1), Place::new());
    let mutex = open(&cluster.url("refused"));
    let hold = mutex.acquire().expect("acquired");
    let program = built(&place, PROGRAM);
    let mut waits = Command::new(program).arg(cluster.url("refused")).stderr(Stdio::null()).spawn().expect("it runs");
    until("it stands in line", || waiters(&mutex) == 1 || waits.try_wait().expect("its state").is_some());
    hold.release().expect("released");
    assert_eq!(waits.wait().expect("it ends").code(), Some(0));
}

/// Who looks tells the others when the lock may come free, also those who are just asking: that is no reason to ask once more.
#[test]
fn who_look_at_the_same_time_do_not_keep_each_other_at_it() {
    needs_redis!();
    const WAITERS: u32 = 6;
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let holder = open(&redis.unix_url("at-once&ttl=60s&renew=off"));
    let hold = holder.acquire().expect("acquired");
    let waits: Vec<_> = (1..=WAITERS)
        .map(|place| {
            // Each with connections of its own, as another process.
            let url = redis.url_at(proxy.address(), &format!("at-once?ttl=60s&connect_timeout={place}s"));
            let mutex = open(&url);
            let wait = mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
            until("it waits", || waiters(&holder) == place);
            (mutex, wait)
        })
        .collect();
    let Reply::List(line) = redis.command(&["ZRANGE", "{ipcmutex:at-once}:line", "0", "-1"]) else { panic!("a line") };
    let asked = || redis.commands();
    // A line so slow that their questions meet.
    proxy.delay(Duration::from_millis(20));
    const ROUNDS: u64 = 5;
    let begun = asked();
    for round in 1..=ROUNDS {
        for (process, token) in line.iter().filter_map(|member| member.text().split_once('.')) {
            redis.command(&["PUBLISH", &format!("ipcmutex:w:{process}"), &format!("H {token} 1")]);
        }
        until("they have looked", || asked() >= begun + round * u64::from(WAITERS));
    }
    let before = asked();
    std::thread::sleep(Duration::from_secs(2));
    let said = asked() - before;
    assert!(said <= 2 * u64::from(WAITERS), "{said} looks in 2 s, where the next one is due in 20");
    proxy.delay(Duration::ZERO);
    drop(waits);
    hold.release().expect("released");
}

/// A renewal on a connection that was given up may come late, as TCP goes on sending it.
#[test]
fn a_late_renewal_makes_no_lease_shorter() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, other) = both_ways(&redis, &proxy, "late?ttl=2s");
    let hold = mutex.acquire().expect("acquired");
    drop(proxy.said());
    until_renewed(&hold);
    let said = proxy.said();
    let from = said.windows(4).rposition(|word| word == b"*8\r\n").expect("it was renewed");
    hold.extend(Some(Duration::from_secs(60))).expect("extended");
    let mut late = redis.client();
    late.say(&said[from..]);
    assert_eq!(late.reply(), Reply::List(vec![Reply::Number(1)]), "it stands");
    let next = other.acquire_with(within(Duration::from_secs(4)));
    assert!(next.is_err() || hold.check().is_err(), "two hold it: {next:?}");
}

/// Of more than a server can answer in the time that an answer has, the last would end the connection, and all be asked anew.
#[test]
fn what_many_ask_at_once_is_not_all_sent_at_once() {
    needs_redis!();
    const MANY: u32 = 2_000;
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "flood?ttl=60s");
    let hold = straight.acquire().expect("acquired");
    let wait = |_| mutex.acquire_callback(Timeout::FOREVER, |outcome| drop(outcome.map(Hold::release)));
    let waits: Vec<_> = (0..MANY).map(|place| wait(place).expect("it begins")).collect();
    until("they wait", || waiters(&straight) == MANY);
    let connections = proxy.connections().len();
    proxy.said();
    redis.freeze();
    for wait in waits {
        assert!(wait.cancel(), "nobody was served");
    }
    // None of it is answered, and the connection given up after a while.
    until("the link is made anew", || proxy.connections().len() > connections);
    let said = proxy.said();
    let asked = said.windows(7).filter(|word| word == b"EVALSHA").count();
    assert!((1..=500).contains(&asked), "{asked} at once");
    redis.thaw();
    until("all have left", || waiters(&straight) == 0);
    hold.release().expect("released");
    straight.acquire_with(within(LONG)).expect("nobody is in the way").release().expect("released");
}

/// Two handles of one lock. When the connection is there again the first waiter of the process looks for all.
#[test]
fn who_is_not_asked_for_after_a_cut_is_told_of_its_timeout() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (first, straight) = both_ways(&redis, &proxy, "cut?ttl=60s");
    let second = open(&redis.url_at(proxy.address(), "cut?ttl=60s"));
    let hold = straight.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| first.acquire_with(within(LONG)));
        until("it waits", || waiters(&straight) == 1);
        let ends = scope.spawn(|| second.acquire_with(within(Duration::from_secs(4))));
        until("both wait", || waiters(&straight) == 2);
        let before = proxy.connections().len();
        proxy.cut_all();
        until("it is connected anew", || proxy.connections().len() > before);
        let error = ends.join().expect("no panic").expect_err("it is held");
        assert_eq!(error.kind(), ErrorKind::Timeout, "{error}");
        hold.release().expect("released");
        waits.join().expect("no panic").expect("acquired").release().expect("released");
    });
}
