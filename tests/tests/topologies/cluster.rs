//! Cluster: all keys of a lock on one node, also while their slot moves to another.

use std::collections::BTreeSet;
use std::io::Write;
use std::net::TcpListener;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::url::LockUrl;
use ipcmutex::{ErrorKind, Hold, Mutex, State, Timeout};
use ipcmutex_tests::agent::{Agent, Language};
use ipcmutex_tests::certificates::Authority;
use ipcmutex_tests::cluster::{CONFIG, Cluster};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Redis, Reply};

use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, within};
use ipcmutex_tests::needs_redis;

use super::carries_a_lock;
use super::rights::documented;

/// Less than the look that a waiter takes by itself (20 s): who is served within it was told.
const TOLD: Duration = Duration::from_secs(10);

/// Ids of locks whose keys lie on this node.
fn ids_on(cluster: &Cluster, node: usize) -> impl Iterator<Item = String> {
    (0..).map(|at| format!("on{at}")).filter(move |id| cluster.home(&format!("ipcmutex:{id}")) == node)
}

fn waits(mutex: &Mutex) -> u32 {
    mutex.status().map_or(0, |status| status.waiters)
}

#[test]
fn every_node_carries_locks() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let ids = ["a", "b", "c", "d", "e", "f"];
    for id in ids {
        carries_a_lock(&cluster.url(id));
    }
    let homes: BTreeSet<_> = ids.iter().map(|id| cluster.home(&format!("ipcmutex:{id}"))).collect();
    assert_eq!(homes.len(), 3, "the ids lie on all nodes");
    carries_a_lock(&cluster.url("x?redis_key=%7Bapp%7D:shared"));
    // By a list whose first one is not there.
    let login = cluster.nodes[0].login();
    carries_a_lock(&format!("rpm+redis+cluster://{login}127.0.0.1:1,{}/x", cluster.nodes[2].address()));
    for url in [
        cluster.url("x?redis_key=%7B%7Dx"),
        cluster.url("x?redis_key=a%7Db"),
        cluster.url("x?prefix=a%7Db"),
        cluster.url("x?db=1"),
    ] {
        assert_eq!(kind_of(Mutex::open(&url)), ErrorKind::Invalid, "{url}");
    }
    assert_eq!(kind_of(Mutex::open("rpm+redis+cluster://127.0.0.1:1/x")), ErrorKind::Unavailable);
    // One node that may evict is enough.
    let unfit = &cluster.nodes[1];
    assert_eq!(unfit.command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).text(), "OK");
    assert_eq!(kind_of(Mutex::open(&cluster.url("x"))), ErrorKind::Config);
    assert_eq!(unfit.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]).text(), "OK");
    // A waiter is told, it does not find out by its timer.
    let (one, other) = (open(&cluster.url("told?ttl=60s")), open(&cluster.url("told?ttl=60s")));
    let hold = one.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.acquire_with(within(TOLD)));
        until("it waits", || waits(&one) == 1);
        hold.release().expect("released");
        waiting.join().expect("no panic").expect("told and served").release().expect("released");
    });
}

#[test]
fn r27_a_hold_and_its_waiter_move_with_their_slot() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let key = "ipcmutex:r27";
    let home = cluster.home(key);
    let there = (home + 1) % 3;
    let mutex = open(&cluster.url("r27?ttl=2s"));
    let hold = mutex.acquire().expect("acquired");
    let token = hold.token();
    let waiting = open(&cluster.url("r27?ttl=60s"));
    std::thread::scope(|scope| {
        let served = scope.spawn(|| waiting.acquire_with(within(LONG)));
        until("it waits", || waits(&mutex) == 1);
        cluster.begin_move(key, home, there);
        hold.extend(None).expect("renewed while its slot moves");
        cluster.end_move(key, home, there);
        assert_eq!(cluster.nodes[there].command(&["EXISTS", key]).number(), 1, "it has moved");
        // Renewed where it is now: by itself, and when asked. The channel of who waits goes with the slot, which ends connections.
        renewed_anew(&hold).expect("renewed");
        let lease = || cluster.nodes[there].command(&["PTTL", key]).number();
        until("a part of its lease is over", || lease() < 1500);
        until("it is renewed by itself", || lease() > 1600);
        hold.check().expect("it stands");
        until("the waiter stands in line there", || waits(&mutex) == 1);
        hold.release().expect("released");
        let next = served.join().expect("no panic").expect("served");
        assert!(next.token() > token && !next.abandoned());
        next.release().expect("released");
    });
    assert_eq!(mutex.status().expect("status").state, State::Free);
    // And back, with nobody holding.
    cluster.begin_move(key, there, home);
    cluster.end_move(key, there, home);
    let hold = mutex.acquire().expect("acquired");
    assert!(hold.token() > token);
    hold.release().expect("released");
}

#[test]
fn r27_a_release_just_after_the_move_wakes_the_waiter() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let key = "ipcmutex:woken";
    let home = cluster.home(key);
    let there = (home + 1) % 3;
    let (one, other) = (open(&cluster.url("woken?ttl=60s")), open(&cluster.url("woken?ttl=60s")));
    let hold = one.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let served = scope.spawn(|| other.acquire_with(within(TOLD)));
        until("it waits", || waits(&one) == 1);
        cluster.begin_move(key, home, there);
        cluster.end_move(key, home, there);
        hold.release().expect("released");
        served.join().expect("no panic").expect("told and served").release().expect("released");
    });
}

/// What it takes away would count as moved before the next one is given it.
#[test]
fn a_release_waits_while_its_slot_is_open_and_is_not_half_done() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let key = "ipcmutex:half";
    let home = cluster.home(key);
    let there = (home + 1) % 3;
    let (one, other) = (open(&cluster.url("half?ttl=60s")), open(&cluster.url("half?ttl=60s")));
    for breaks in [false, true] {
        let (from, to) = if breaks { (there, home) } else { (home, there) };
        let hold = one.acquire_with(within(LONG)).expect("acquired");
        let refused = || cluster.nodes[from].info("errorstats", "errorstat_TRYAGAIN");
        std::thread::scope(|scope| {
            let served = scope.spawn(|| other.acquire_with(within(LONG)));
            until("it waits", || waits(&one) == 1);
            cluster.begin_move(key, from, to);
            let before = refused();
            let ends = scope.spawn(|| if breaks { one.break_lock() } else { hold.release().map(|()| true) });
            until("it is asked for in vain", || ends.is_finished() || refused() != before);
            cluster.end_move(key, from, to);
            assert!(ends.join().expect("no panic").expect("done, when it had moved"));
            let next = served.join().expect("no panic").expect("told and served");
            assert_eq!(next.abandoned(), breaks);
            next.release().expect("released");
        });
    }
}

/// Its lock was there once: the renewals have found out that it is not any more, and the caller has not asked since.
#[test]
fn a_node_that_hangs_does_not_hold_up_a_lock_that_has_left_it() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let key = "ipcmutex:left";
    let home = cluster.home(key);
    let there = (home + 1) % 3;
    // An answer is waited for longer than this lease lasts.
    let mutex = open(&cluster.url("left?ttl=1s"));
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    cluster.begin_move(key, home, there);
    cluster.end_move(key, home, there);
    until_renewed(&hold);
    hold.extend(None).expect("renewed where it is now");
    cluster.nodes[home].freeze();
    hold.release().expect("its node is there");
}

/// It has no line, and a key that is not there counts as moved.
#[test]
fn a_lock_for_which_nobody_waits_is_only_renewed_while_its_slot_is_open() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let key = "ipcmutex:alone";
    let home = cluster.home(key);
    let there = (home + 1) % 3;
    let mutex = open(&cluster.url("alone?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    cluster.begin_move(key, home, there);
    hold.extend(None).expect("renewed");
    assert_eq!(kind_of(mutex.status()), ErrorKind::Unavailable);
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    assert_eq!(cluster.nodes[home].command(&["EXISTS", key]).number(), 1, "it stands");
    cluster.end_move(key, home, there);
    mutex.acquire_with(within(LONG)).expect("released since").release().expect("released");
}

/// While its slot is open, a look is asked again and again, and so is what undoes it: the server may hear of that
/// first.
#[test]
fn waits_that_end_while_their_slot_is_open_take_nothing_afterwards() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(2);
    let home = cluster.home("{one}");
    let node = &cluster.nodes[home];
    let keys: Vec<String> = (0..16).map(|at| format!("{{one}}:{at}")).collect();
    let mutexes: Vec<Mutex> =
        (0..16).map(|at| open(&cluster.url(&format!("{at}?prefix=%7Bone%7D:&ttl=60s")))).collect();
    // Another program's: they are looked at a few times a second.
    for key in &keys {
        is_told(node, &["SET", key, "theirs", "PX", "600000"]);
    }
    let waiting: Vec<_> =
        mutexes.iter().map(|mutex| mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins")).collect();
    until("all wait", || mutexes.iter().all(|mutex| waits(mutex) == 1));
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let held = || keys.iter().map(|key| node.command(&["EXISTS", key]).number()).sum::<i64>();
    cluster.begin_move("{one}", home, 1 - home);
    for key in &keys {
        assert_eq!(node.command(&["DEL", key]).number(), 1);
    }
    // All look by now.
    std::thread::sleep(Duration::from_millis(400));
    waiting.iter().for_each(|wait| _ = wait.cancel());
    std::thread::sleep(Duration::from_millis(100));
    for node in &cluster.nodes {
        assert_eq!(node.command(&["CLUSTER", "SETSLOT", &cluster.slot("{one}").to_string(), "STABLE"]).text(), "OK");
    }
    until("nobody stands in a line", || mutexes.iter().all(|mutex| waits(mutex) == 0));
    until("nobody holds one", || held() == 0);
}

#[test]
fn a_cluster_over_tls_and_a_user_with_few_rights() {
    needs_redis!(7, 0);
    let authority = Authority::new();
    let mut config = Redis::tls_alone(&authority, &authority.sign("node", "127.0.0.1", true));
    config.push("tls-cluster yes".to_owned());
    let config: Vec<&str> = config.iter().map(String::as_str).collect();
    let cluster = Cluster::with(3, &config);
    let rights = documented().join(" ").replace("&ipcmutex:w:*", "&{ipcmutex:*").replace("+subscribe +publish", "");
    let words = secrets::password("a-user");
    let rights =
        rights.replace(">c4nary", &format!(">{words}")) + " +ssubscribe +spublish +asking +cluster|slots +scan";
    for node in &cluster.nodes {
        let rights: Vec<&str> = rights.split_whitespace().collect();
        assert_eq!(node.command(&rights).text(), "OK");
    }
    let ca = format!("ca={}", authority.file().display());
    let url = |user: &str, id: &str| {
        let url = cluster.url(id).replace(&cluster.nodes[0].login(), user);
        format!("{url}{}{ca}", if id.contains('?') { "&" } else { "?" })
    };
    let (user, root) = (format!("locks:{words}@"), cluster.nodes[0].login());
    let ids = ["a", "b", "c", "d", "e", "f"];
    for id in ids {
        carries_a_lock(&url(&user, id));
    }
    carries_a_lock(&url(&root, "a"));
    for wrong in ["", "locks:nobody@", ":c4nary-nobody@"] {
        let url = url(wrong, "a");
        assert_eq!(kind_of(Mutex::open(&url)), ErrorKind::Auth, "{wrong}");
        // Also if the first node is not there.
        let url = url.replace(&cluster.nodes[0].address(), &format!("127.0.0.1:1,{}", cluster.nodes[1].address()));
        assert_eq!(kind_of(Mutex::open(&url)), ErrorKind::Auth, "{wrong}");
    }

    // Held and waited for while its slot moves.
    let key = "ipcmutex:moved";
    let home = cluster.home(key);
    let there = (home + 1) % 3;
    let (one, other) = (open(&url(&user, "moved?ttl=60s")), open(&url(&user, "moved?ttl=60s")));
    let hold = one.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let served = scope.spawn(|| other.acquire_with(within(TOLD)));
        until("it waits", || waits(&one) == 1);
        cluster.begin_move(key, home, there);
        hold.extend(None).expect("renewed while its slot moves");
        cluster.end_move(key, home, there);
        hold.release().expect("released");
        served.join().expect("no panic").expect("told and served").release().expect("released");
    });
}

#[test]
fn the_locks_of_all_nodes_are_listed() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(3);
    let ids = ["a", "b", "c", "d", "e", "f"];
    let homes: BTreeSet<_> = ids.iter().map(|id| cluster.home(&format!("ipcmutex:{id}"))).collect();
    assert_eq!(homes.len(), 3, "the ids lie on all nodes");
    let mutexes = ids.map(|id| open(&cluster.url(id)));
    let holds = mutexes.each_ref().map(|mutex| mutex.acquire().expect("acquired"));
    let url = LockUrl::parse(&cluster.url("")).expect("a URL");
    let listed = || {
        let found = ipcmutex::list::on_server(&url).expect("listed");
        found.into_iter().map(|one| (one.url, one.status.expect("status").state)).collect::<Vec<_>>()
    };
    let at = |id: &str| cluster.url(id).replace(&cluster.nodes[0].login(), "***@");
    assert_eq!(listed(), ids.map(|id| (at(id), State::Held)));
    for hold in holds {
        hold.release().expect("released");
    }
    assert_eq!(listed(), ids.map(|id| (at(id), State::Free)));
    // Without one of them the list would not be whole.
    cluster.nodes[2].kill();
    let error = ipcmutex::list::on_server(&url).expect_err("one is missing");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains(&cluster.nodes[2].address()), "{error}");
}

#[test]
fn a_cluster_that_forbids_scripts_is_unfit() {
    needs_redis!(7, 0);
    let cluster = Cluster::with(1, &["rename-command EVAL \"\"", "rename-command EVALSHA \"\""]);
    let error = open(&cluster.url("x")).try_acquire().expect_err("there is no other way in a cluster");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("forbids scripts"), "{error}");
    let waiting = open(&cluster.url("x")).acquire_with(within(LONG)).expect_err("nor for who waits");
    assert_eq!(waiting.kind(), ErrorKind::Config, "{waiting}");
}

#[test]
fn a_release_that_only_a_new_node_hears_of_is_a_loss() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(3);
    let home = cluster.home("ipcmutex:forgotten");
    // Nobody renews it, and so nobody asks the new node before.
    let url = cluster.url("forgotten?ttl=60s&renew=off");
    let agent = Agent::start(Language::Rust);
    agent.open(1, &url).ok();
    agent.call("acquire 1 forever").ok();
    cluster.nodes[home].restart();
    let other = open(&url);
    let hold = other.acquire_with(within(LONG)).expect("the new node knows of nobody");
    agent.call("release 1").err(ErrorKind::Lost);
    hold.release().expect("it is still the other's");
}

#[test]
fn a_node_that_dies_costs_its_own_holds_alone() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(3);
    let (lost, kept) = ("gone", ["a", "b", "c", "d", "e", "f"]);
    let home = cluster.home(&format!("ipcmutex:{lost}"));
    let other = kept.iter().find(|id| cluster.home(&format!("ipcmutex:{id}")) != home).expect("one on another node");
    let seeds: Vec<String> = cluster.nodes.iter().map(Redis::address).collect();
    let seeds = cluster.nodes[0].login() + &seeds.join(",");
    let url = |id: &str| format!("rpm+redis+cluster://{seeds}/{id}?ttl=60s&connect_timeout=1s");
    let mutex = open(&url(lost));
    let hold = mutex.acquire().expect("acquired");
    let safe_mutex = open(&url(other));
    let safe = safe_mutex.acquire().expect("acquired");
    let (tell, told) = mpsc::channel();
    hold.on_lost(move |error| _ = tell.send(error.kind())).expect("a live hold");
    // One that is never renewed is looked for all the same.
    let beside = (0..).map(|at| format!("beside{at}")).find(|id| cluster.home(&format!("ipcmutex:{id}")) == home);
    let unrenewed = open(&(url(&beside.expect("one on this node")) + "&renew=off"));
    let unrenewed = unrenewed.acquire().expect("acquired");
    let (tell, told_too) = mpsc::channel();
    unrenewed.on_lost(move |error| _ = tell.send(error.kind())).expect("a live hold");
    // Nobody waits and no renewal is due; yet somebody looks after what is held.
    let connected = |redis: &Redis| redis.command(&["CLIENT", "LIST"]).text().contains(" resp=3");
    until("the background thread has come", || connected(&cluster.nodes[home]));

    cluster.nodes[home].kill();
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    // The one that is under way in the moment of the death may fail.
    until("it is renewed, on a node that lives", || safe.extend(None).is_ok());
    safe.release().expect("released");
    safe_mutex.acquire().expect("acquired").release().expect("released");
    assert!(told.try_recv().is_err(), "nobody knows yet whether it comes back with its data");

    cluster.nodes[home].restart();
    // A third of the lease would be 20 s.
    for told in [told, told_too] {
        assert_eq!(told.recv_timeout(TOLD).expect("the loss is told"), ErrorKind::Lost);
    }
    let next = mutex.acquire_with(within(LONG)).expect("acquired");
    next.release().expect("released");
}

/// A process that waits for one lock after another does not hear of all of them for ever.
#[test]
fn channels_for_which_nobody_waits_are_given_up() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let keep = open(&cluster.url("keep"));
    let keep = keep.acquire().expect("acquired");
    let channels = || match node.command(&["PUBSUB", "SHARDCHANNELS"]) {
        Reply::List(channels) => channels.len(),
        other => panic!("{other:?}"),
    };
    let url = |at: usize| cluster.url(&format!("many{at}?ttl=60s"));
    let held: Vec<_> = (0..1_100).map(|at| open(&(url(at) + "&connect_timeout=2100ms"))).collect();
    let held: Vec<_> = held.iter().map(|mutex| mutex.acquire().expect("acquired")).collect();
    let many: Vec<Mutex> = (0..held.len()).map(|at| open(&url(at))).collect();
    for mutex in &many {
        mutex.acquire_callback(Timeout::FOREVER, |_| {}).expect("it begins");
    }
    until("all are heard of", || channels() == many.len());
    for mutex in &many {
        mutex.close().expect("closed");
    }
    // Those that were closed last may be heard of once more by the new link.
    until("most are not", || channels() <= 100);
    let left = channels();
    let (again, holder) = (open(&cluster.url("again")), open(&cluster.url("again?connect_timeout=2100ms")));
    for _ in 0..2 {
        let hold = holder.acquire().expect("acquired");
        std::thread::scope(|scope| {
            let next = scope.spawn(|| again.acquire_with(within(TOLD)));
            until("it waits", || waits(&holder) == 1);
            hold.release().expect("released");
            next.join().expect("no panic").expect("it was told").release().expect("released");
        });
        assert_eq!(channels(), left + 1, "one that is waited for twice is heard of once");
    }
    for hold in held {
        hold.release().expect("released");
    }
    keep.release().expect("it stood all the time");
}

/// More holds than one server is asked for in one go.
#[test]
fn a_node_that_hangs_keeps_no_other_from_its_renewals() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let take = |node, count| -> Vec<(Mutex, Hold)> {
        let mutexes = ids_on(&cluster, node).take(count).map(|id| open(&cluster.url(&format!("{id}?ttl=60s"))));
        mutexes.map(|mutex| (mutex.acquire().expect("acquired"), mutex)).map(|(hold, mutex)| (mutex, hold)).collect()
    };
    let (_sick, near) = (take(2, 101), take(0, 1));
    let well = open(&cluster.url(&format!("{}?ttl=3s", ids_on(&cluster, 1).next().expect("one"))));
    near[0].1.extend(None).expect("by the link");
    cluster.nodes[2].freeze();
    // The link is made anew, and all that is held is asked for.
    assert!(cluster.nodes[0].command(&["CLIENT", "KILL", "TYPE", "normal"]).number() > 0);
    until_renewed(&near[0].1);
    let hold = well.acquire().expect("acquired");
    until_renewed(&hold);
    hold.release().expect("its node was there all the time");
    cluster.nodes[2].thaw();
}

#[test]
fn a_node_that_hung_tells_waiters_of_their_turn_again() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let ids: Vec<String> = ids_on(&cluster, 1).take(2).collect();
    // Not of the same engine as who waits.
    let holder = open(&cluster.url(&format!("{}?ttl=60s", ids[0])));
    let url = |id: &str| cluster.url(&format!("{id}?ttl=60s&connect_timeout=300ms"));
    let (waiting, kept) = (open(&url(&ids[0])), open(&url(&ids[1])));
    let hold = holder.acquire().expect("acquired");
    let kept = kept.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let served = scope.spawn(|| waiting.acquire_with(within(LONG)));
        until("it waits", || waits(&holder) == 1);
        cluster.nodes[1].freeze();
        assert_eq!(kind_of(kept.extend(None)), ErrorKind::Unavailable);
        cluster.nodes[1].thaw();
        until("the node is there again", || kept.extend(None).is_ok());
        hold.release().expect("released");
        let released = Instant::now();
        served.join().expect("no panic").expect("served").release().expect("released");
        assert!(released.elapsed() < TOLD, "it was told");
    });
}

#[test]
fn a_call_about_one_node_waits_for_no_other_that_hangs() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let [well, sick] = [1, 2].map(|node| open(&cluster.url(&ids_on(&cluster, node).next().expect("one"))));
    cluster.nodes[2].freeze();
    std::thread::scope(|scope| {
        let begun = Instant::now();
        let asks: Vec<_> = (0..6).map(|_| scope.spawn(|| sick.try_acquire())).collect();
        let mut answers = 0;
        while !asks.iter().all(|asks| asks.is_finished()) {
            well.acquire_with(within(LONG)).expect("its node is there").release().expect("released");
            answers += 1;
        }
        // One behind the other they would take 2 s each.
        assert!(begun.elapsed() < Duration::from_secs(8), "those who ask it wait together: {:?}", begun.elapsed());
        // Behind each of them there would be one.
        assert!(answers > 50, "only {answers} answers of a node that is there");
        for asks in asks {
            assert_eq!(kind_of(asks.join().expect("no panic")), ErrorKind::Unavailable);
        }
    });
}

/// The one ahead of it has all the time that an answer may take.
#[test]
fn behind_another_at_a_node_that_hangs_a_timeout_is_kept() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let mutex = open(&cluster.url(&ids_on(&cluster, 2).next().expect("one")));
    cluster.nodes[2].freeze();
    std::thread::scope(|scope| {
        let ahead = scope.spawn(|| mutex.try_acquire());
        // The first may have come before it.
        for _ in 0..2 {
            assert!(mutex.acquire_with(within(Duration::from_millis(300))).is_err());
        }
        assert!(!ahead.is_finished(), "it was waited for");
        assert_eq!(kind_of(ahead.join().expect("no panic")), ErrorKind::Unavailable);
    });
}

/// Who has no limit waits for its turn there, as it does with one server.
#[test]
fn many_who_ask_a_node_that_is_far_are_all_answered() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(1);
    let node = &cluster.nodes[0];
    let proxy = Proxy::before(&node.address());
    let (_, port) = proxy.address().rsplit_once(':').expect("a port");
    assert_eq!(node.command(&["CONFIG", "SET", "cluster-announce-port", port]).text(), "OK");
    let mutexes: Vec<_> = (0..40).map(|at| open(&cluster.url(&format!("far-{at}")))).collect();
    let before = proxy.connections().len();
    // One after the other they take longer than an answer may.
    proxy.delay(Duration::from_millis(30));
    std::thread::scope(|scope| {
        let asks: Vec<_> = mutexes.iter().map(|mutex| scope.spawn(|| mutex.try_acquire().map(drop))).collect();
        for asks in asks {
            asks.join().expect("no panic").expect("answered");
        }
    });
    assert!(proxy.connections().len() > before, "it was asked by that way");
}

#[test]
fn at_the_end_of_the_process_a_node_that_hangs_keeps_no_other_from_its_releases() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let [sick, well] = [2, 1].map(|node| ids_on(&cluster, node).take(2).collect::<Vec<_>>());
    let agent = Agent::start(Language::Rust);
    for (lock, id) in (1..).zip(sick.iter().chain(&well)) {
        agent.open(lock, &cluster.url(&format!("{id}?ttl=60s"))).ok();
        agent.call(&format!("hold {lock} {lock} forever")).ok();
    }
    cluster.nodes[2].freeze();
    // Another thread waits for an answer of it meanwhile.
    let _ends = agent.begin("end 2");
    assert_eq!(agent.leave(), 0);
    for id in well {
        let next = open(&cluster.url(&id)).try_acquire().expect("its node is there").expect("released");
        next.release().expect("released");
    }
}

/// The callers', the link, and one aside for replicas.
#[test]
fn with_replicas_a_process_has_three_connections_to_a_node() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(1);
    let (held, waiting) = (open(&cluster.url("held")), open(&cluster.url("held")));
    let hold = held.acquire().expect("acquired");
    // There are no replicas; it is the waiting for them that has a connection of its own.
    assert_eq!(kind_of(open(&cluster.url("copied?replicas=1")).try_acquire()), ErrorKind::Unavailable);
    waiting.acquire_callback(Timeout::FOREVER, |_| {}).expect("it begins");
    until("it waits", || waits(&held) == 1);
    let list = cluster.nodes[0].command(&["CLIENT", "LIST"]);
    // The tests' own come by the unix socket.
    assert_eq!(list.text().lines().filter(|line| line.contains("addr=127.0.0.1")).count(), 3, "{}", list.text());
    hold.release().expect("released");
}

#[test]
fn a_cluster_opens_without_its_first_node_whatever_policy_it_has() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(3);
    let id = ids_on(&cluster, 1).next().expect("one");
    let url = cluster.url(&id).replace(&cluster.nodes[0].address(), &cluster.nodes[1].address());
    cluster.nodes[0].kill();
    // Each with a connection of its own.
    for query in ["connect_timeout=1s", "connect_timeout=1100ms&policy=any"] {
        carries_a_lock(&format!("{url}?{query}"));
    }
}

#[test]
fn a_slot_that_nobody_had_is_found_when_somebody_has_it() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(2);
    let slot = cluster.slot("ipcmutex:found").to_string();
    let home = cluster.home("ipcmutex:found");
    for node in &cluster.nodes {
        assert_eq!(node.command(&["CLUSTER", "DELSLOTS", &slot]).text(), "OK");
    }
    let url = |query: &str| cluster.url(&format!("found?{query}"));
    // Each with connections of its own.
    let (tries, waits) = (open(&url("connect_timeout=1s")), open(&url("connect_timeout=1100ms")));
    assert_eq!(kind_of(tries.try_acquire()), ErrorKind::Unavailable);
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| waits.acquire_with(within(LONG)));
        for node in &cluster.nodes {
            let id = cluster.nodes[home].command(&["CLUSTER", "MYID"]);
            assert_eq!(node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", id.text()]).text(), "OK");
        }
        waits.join().expect("no panic").expect("served").release().expect("released");
    });
    until("it is served", || tries.try_acquire().is_ok_and(|hold| hold.is_some_and(|hold| hold.release().is_ok())));
}

/// The first of a process asks for all of it.
#[test]
fn who_waits_behind_another_of_its_process_forgets_a_cut_with_it() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(1);
    let url = cluster.url("cut?ttl=60s");
    // Not of the same engine as who waits.
    let holder = open(&cluster.url("cut?ttl=60s&connect_timeout=2100ms"));
    let hold = holder.acquire().expect("acquired");
    let (first, second) = (open(&url), open(&url));
    let waiting = first.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("it waits", || waits(&holder) == 1);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| second.acquire_with(within(Duration::from_secs(5))));
        until("both wait", || waits(&holder) == 2);
        assert!(cluster.nodes[0].command(&["CLIENT", "KILL", "TYPE", "pubsub"]).number() > 0);
        assert_eq!(kind_of(second.join().expect("no panic")), ErrorKind::Timeout);
    });
    waiting.cancel();
    hold.release().expect("released");
}

#[test]
fn many_who_miss_a_replica_of_a_node_are_told_together() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(1);
    let mutexes: Vec<_> = (0..12).map(|at| open(&cluster.url(&format!("missed-{at}?replicas=1&ttl=6s")))).collect();
    for waits in [false, true] {
        let (tell, told) = mpsc::channel();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for mutex in &mutexes {
                let tell = tell.clone();
                let told = move |outcome| tell.send(kind_of(outcome)).expect("it is awaited");
                if waits {
                    mutex.acquire_callback(Timeout::FOREVER, told).expect("it begins");
                } else {
                    scope.spawn(move || told(mutex.try_acquire().map(Option::unwrap)));
                }
            }
            for _ in &mutexes {
                assert_eq!(told.recv_timeout(LONG).expect("told"), ErrorKind::Unavailable);
            }
        });
        // One after the other they would take twice a lease.
        assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    }
}

/// As while a slot is closed where it comes from, and not yet where it goes to.
#[test]
fn r15_what_is_sent_to_and_fro_is_asked_again_until_a_node_has_it() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(2);
    let key = "ipcmutex:r15";
    let (home, there) = (cluster.home(key), 1 - cluster.home(key));
    let mutex = open(&cluster.url("r15?ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    cluster.begin_move(key, home, there);
    cluster.migrate(&[key, "{ipcmutex:r15}:state"], home, there);
    let (slot, id) = (cluster.slot(key).to_string(), cluster.nodes[there].command(&["CLUSTER", "MYID"]));
    let close = |node: usize| {
        assert_eq!(cluster.nodes[node].command(&["CLUSTER", "SETSLOT", &slot, "NODE", id.text()]).text(), "OK");
    };
    close(home);
    std::thread::scope(|scope| {
        // A thread's call, and the background thread's.
        let status = scope.spawn(|| mutex.status());
        let extended = scope.spawn(|| hold.extend(None));
        std::thread::sleep(Duration::from_millis(300));
        close(there);
        assert_eq!(status.join().expect("no panic").expect("a node has it").state, State::Held);
        extended.join().expect("no panic").expect("a node has it");
    });
    hold.release().expect("released");
}

/// Another node has the slot, and not what was in it: as after a failover for which the old master stays alive. Its connections
/// stay, so what is said of any call is the sign.
#[test]
fn r16_what_a_node_forgot_that_took_over_is_lost_when_anybody_is_sent_there() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(2);
    let home = cluster.home("{app}:a");
    let url = |key: &str, query: &str| cluster.url(&format!("{key}?redis_key=%7Bapp%7D:{key}&ttl=60s{query}"));
    let (renewed, unrenewed) = (open(&url("a", "")), open(&url("b", "&renew=off")));
    let holds = [renewed.acquire().expect("acquired"), unrenewed.acquire().expect("acquired")];
    holds[0].extend(None).expect("the link is up");
    for hold in &holds {
        hold.check().expect("held");
    }
    let (slot, id) = (cluster.slot("{app}:a").to_string(), cluster.nodes[1 - home].command(&["CLUSTER", "MYID"]));
    cluster.begin_move("{app}:a", home, 1 - home);
    assert_eq!(cluster.nodes[1 - home].command(&["CLUSTER", "SETSLOT", &slot, "NODE", id.text()]).text(), "OK");
    until("the old one has let go", || cluster.nodes[home].command(&["DBSIZE"]).number() == 0);
    let begun = Instant::now();
    renewed.status().expect("served");
    for hold in &holds {
        until("it is lost", || hold.check().is_err());
    }
    // By its renewal it would be after 20 s, by nothing the other one.
    assert!(begun.elapsed() < TOLD, "{:?}", begun.elapsed());
    assert!(holds.into_iter().all(|hold| kind_of(hold.release()) == ErrorKind::Lost));
}

#[test]
fn a_lock_is_opened_soon_while_another_node_hangs() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let id = ids_on(&cluster, 0).next().expect("one");
    let kept = open(&cluster.url(&id));
    cluster.nodes[1].freeze();
    let begun = Instant::now();
    for query in ["", "?policy=any"].into_iter().cycle().take(6) {
        let mutex = open(&(cluster.url(&id) + query));
        mutex.acquire().expect("its node is there").release().expect("released");
    }
    // Each would wait for 2 s, and does for half a second.
    assert!(begun.elapsed() < TOLD, "{:?}", begun.elapsed());
    drop(kept);
    cluster.nodes[1].thaw();
}

/// It is up, and says of each slot that nobody serves it.
#[test]
fn what_a_node_had_that_left_the_cluster_is_found_where_it_is_now() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let id = ids_on(&cluster, 2).next().expect("one");
    let key = format!("ipcmutex:{id}");
    let url = |query: &str| cluster.url(&format!("{id}?ttl=60s{query}"));
    // Each with connections of its own: a thread's calls, and the background thread's.
    let (tries, held) = (open(&url("")), open(&url("&connect_timeout=2100ms")));
    let hold = held.acquire().expect("acquired");
    hold.extend(None).expect("renewed");
    assert!(tries.try_acquire().expect("served").is_none());
    cluster.begin_move(&key, 2, 0);
    cluster.end_move(&key, 2, 0);
    let left = cluster.nodes[2].command(&["CLUSTER", "MYID"]);
    for node in &cluster.nodes[..2] {
        assert_eq!(node.command(&["CLUSTER", "FORGET", left.text()]).text(), "OK");
    }
    assert_eq!(cluster.nodes[2].command(&["CLUSTER", "RESET", "SOFT"]).text(), "OK");
    assert!(cluster.nodes[2].command(&["GET", &key]).text().starts_with("CLUSTERDOWN"), "it serves nothing");
    assert!(tries.try_acquire().expect("asked where it is now").is_none());
    hold.extend(None).expect("renewed where it is now");
    hold.release().expect("released");
    tries.try_acquire().expect("asked").expect("free").release().expect("released");
}

#[test]
fn another_server_at_the_address_of_a_node_is_given_no_lock() {
    needs_redis!(7, 0);
    // Who asks first finds out for both.
    for link_first in [false, true] {
        let cluster = with_a_stranger(&[], link_first);
        let stranger = &cluster.nodes[2];
        assert_eq!(stranger.command(&["DBSIZE"]).number(), 0);
        assert_eq!(stranger.info("commandstats", "cmdstat_evalsha"), "", "it was not asked for a lock");
    }
}

#[test]
fn another_server_at_the_address_of_a_node_that_wants_another_login_keeps_nobody_from_a_lock() {
    needs_redis!(7, 0);
    for link_first in [false, true] {
        with_a_stranger(&["CONFIG", "SET", "requirepass", &secrets::password("another")], link_first);
    }
}

#[test]
fn what_is_no_redis_at_the_address_of_a_node_costs_its_own_locks_alone() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(3);
    let [well, sick] = [0, 1].map(|node| ids_on(&cluster, node).next().expect("one"));
    let kept = open(&cluster.url(&format!("{well}?ttl=4s"))).acquire().expect("acquired");
    let waiting = open(&cluster.url(&format!("{sick}?ttl=60s")));
    is_told(&cluster.nodes[1], &["SET", &format!("ipcmutex:{sick}"), "somebody", "PX", "600000"]);
    let wait = waiting.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("it waits", || waits(&waiting) == 1);
    let address = cluster.nodes[1].address();
    cluster.nodes[1].kill();
    let listener = TcpListener::bind(&address).expect("nobody is there");
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for mut client in listener.incoming().map_while(Result::ok) {
            let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
            let _ = tell.send(());
        }
    });
    for _ in 0..3 {
        told.recv_timeout(LONG).expect("who waits asks there again and again");
        until_renewed(&kept);
    }
    assert_eq!(kind_of(waiting.try_acquire()), ErrorKind::Unavailable);
    wait.cancel();
    kept.release().expect("its node was there all the time");
}

/// A node has failed over, nobody has asked for what it had since, and another server, which is told this, has its address.
fn with_a_stranger(told: &[&str], link_first: bool) -> Cluster {
    let mut cluster = Cluster::start(3);
    let id = ids_on(&cluster, 2).next().expect("one");
    let key = format!("ipcmutex:{id}");
    let (slot, heir) = (cluster.slot(&key).to_string(), cluster.nodes[0].command(&["CLUSTER", "MYID"]));
    let url = |query: &str| cluster.url(&format!("{id}?ttl=60s{query}"));
    // Each with connections of its own: a thread's calls, and the background thread's.
    let (tries, held) = (open(&url("")), open(&url("&connect_timeout=2100ms")));
    tries.acquire().expect("acquired").release().expect("released");
    let hold = held.acquire().expect("acquired");
    hold.extend(None).expect("renewed");
    cluster.nodes[2].kill();
    assert_eq!(kind_of(hold.extend(None)), ErrorKind::Unavailable);
    for node in &cluster.nodes[..2] {
        assert_eq!(node.command(&["CLUSTER", "SETSLOT", &slot, "NODE", heir.text()]).text(), "OK");
    }
    cluster.nodes[2].reconfigure(&["cluster-enabled no"]);
    if !told.is_empty() {
        assert_eq!(cluster.nodes[2].command(told).text(), "OK");
    }
    if link_first {
        assert_eq!(kind_of(hold.extend(None)), ErrorKind::Lost);
    }
    let next = tries.try_acquire().expect("asked where it is now").expect("free there");
    assert_eq!(cluster.nodes[0].command(&["EXISTS", &key]).number(), 1);
    assert_eq!(kind_of(hold.extend(None)), ErrorKind::Lost);
    next.release().expect("released");
    cluster
}

/// It leaves, what it had is the heir's, and it is a cluster by itself now, which serves all slots.
fn becomes_a_stranger(cluster: &Cluster, node: usize, heir: usize, reset: &str) {
    let said = |at: usize, words: &[&str]| assert_eq!(cluster.nodes[at].command(words).text(), "OK", "{words:?}");
    let others: Vec<_> = (0..3).filter(|at| *at != node).collect();
    let left = cluster.nodes[node].command(&["CLUSTER", "MYID"]);
    let (first, last) = ((node * 16384 / 3).to_string(), ((node + 1) * 16384 / 3 - 1).to_string());
    for other in &others {
        said(*other, &["CLUSTER", "FORGET", left.text()]);
    }
    said(node, &["FLUSHALL"]);
    said(node, &["CLUSTER", "RESET", reset]);
    said(node, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    // Who forgets a node forgets what it had.
    said(heir, &["CLUSTER", "ADDSLOTSRANGE", &first, &last]);
    for at in 0..3 {
        serves_all(&cluster.nodes[at]);
    }
}

fn serves_all(node: &Redis) {
    until("all is served", || {
        let info = node.command(&["CLUSTER", "INFO"]);
        ["cluster_state:ok", "cluster_slots_ok:16384"].iter().all(|line| info.text().contains(line))
    });
}

fn ends_connections(node: &Redis) {
    assert!(node.command(&["CLIENT", "KILL", "TYPE", "normal"]).number() > 0);
}

/// What its connections' end makes of a hold. Whoever is just asking may be told of that end.
fn renewed_anew(hold: &Hold) -> ipcmutex::Result<()> {
    let mut outcome = hold.extend(None);
    until("it is connected to anew", || {
        let cut = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::Unavailable);
        if cut {
            outcome = hold.extend(None);
        }
        !cut
    });
    outcome
}

/// A node that is connected to anew knows of changes. The first one that was known has left, with its id or without.
#[test]
fn a_node_that_knows_better_leads_to_no_other_cluster() {
    needs_redis!(7, 0);
    for (reset, link_first) in [("HARD", true), ("HARD", false), ("SOFT", false)] {
        let cluster = Cluster::start(3);
        let id = ids_on(&cluster, 2).next().expect("one");
        let url = |query: &str| cluster.url(&format!("{id}?ttl=60s{query}"));
        // Each with connections of its own: a thread's calls, and the background thread's.
        let (tries, held) = (open(&url("")), open(&url("&connect_timeout=2100ms")));
        let hold = held.acquire().expect("acquired");
        hold.extend(None).expect("renewed");
        assert!(tries.try_acquire().expect("asked").is_none());
        becomes_a_stranger(&cluster, 0, 1, reset);
        ends_connections(&cluster.nodes[2]);
        if link_first {
            renewed_anew(&hold).expect("renewed where it is");
        }
        assert!(tries.try_acquire().expect("asked where it is").is_none(), "{reset}: held");
        renewed_anew(&hold).expect("renewed where it is");
        let stranger = &cluster.nodes[0];
        assert_eq!(stranger.info("commandstats", "cmdstat_evalsha"), "", "{reset}: it was not asked for a lock");
        hold.release().expect("released");
    }
}

fn is_told(node: &Redis, words: &[&str]) {
    assert_eq!(node.command(words).text(), "OK", "{words:?}");
}

fn meets(node: &Redis, other: &Redis) {
    let address = other.address();
    let (host, port) = address.split_once(':').expect("host:port");
    is_told(node, &["CLUSTER", "MEET", host, port, &other.second_port().to_string()]);
}

/// They forget it, and what it had.
fn forget(node: &Redis, others: &[Redis]) {
    let id = node.command(&["CLUSTER", "MYID"]);
    others.iter().for_each(|other| is_told(other, &["CLUSTER", "FORGET", id.text()]));
}

#[test]
fn a_master_whose_replica_is_a_cluster_of_its_own_now_is_believed() {
    needs_redis!(7, 0);
    let password = secrets::password("the-cluster");
    let login = format!("masterauth {password}");
    let cluster = Cluster::with(1, &[&login]);
    let (master, replica) = (&cluster.nodes[0], Redis::with(Some(&password), &[CONFIG, &[&login]].concat()));
    let [master_id, replica_id] = [master, &replica].map(|node| node.command(&["CLUSTER", "MYID"]));
    meets(&replica, master);
    until("they have met", || replica.command(&["CLUSTER", "REPLICATE", master_id.text()]).text() == "OK");
    until("it is told of", || format!("{:?}", master.command(&["CLUSTER", "SLOTS"])).contains(replica_id.text()));
    let both = format!("{},{}", master.address(), replica.address());
    let tries = open(&cluster.url("left?ttl=60s").replace(&master.address(), &both));
    is_told(master, &["SET", "ipcmutex:left", "somebody", "PX", "600000"]);
    assert!(tries.try_acquire().expect("asked").is_none());
    forget(&replica, &cluster.nodes);
    is_told(&replica, &["CLUSTER", "RESET", "SOFT"]);
    is_told(&replica, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]);
    serves_all(&replica);
    serves_all(master);
    ends_connections(master);
    assert!(tries.try_acquire().expect("asked where it is").is_none(), "held");
}

/// All that was known of the cluster when it was last asked for is gone: it is one of the new nodes that tells.
#[test]
fn a_node_that_a_slot_has_moved_to_is_asked_when_all_others_are_gone() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(2);
    let id = ids_on(&cluster, 1).next().expect("one");
    let key = format!("ipcmutex:{id}");
    let slot = cluster.slot(&key);
    for _ in 0..2 {
        let node = Redis::with(Some(&secrets::password("the-cluster")), CONFIG);
        meets(&node, &cluster.nodes[0]);
        cluster.nodes.push(node);
    }
    until("they have met", || cluster.is_whole());
    let tries = open(&cluster.url(&format!("{id}?ttl=60s")));
    is_told(&cluster.nodes[1], &["SET", &key, "somebody", "PX", "600000"]);
    assert!(tries.try_acquire().expect("asked").is_none());
    cluster.begin_move(&key, 1, 2);
    cluster.end_move(&key, 1, 2);
    assert!(tries.try_acquire().expect("sent on").is_none());
    let (old, new) = cluster.nodes.split_at_mut(2);
    for node in old {
        forget(node, new);
        node.kill();
    }
    // The slot has its node already.
    let (below, above) = ((slot - 1).to_string(), (slot + 1).to_string());
    is_told(&new[0], &["CLUSTER", "ADDSLOTSRANGE", "0", "8191"]);
    is_told(&new[1], &["CLUSTER", "ADDSLOTSRANGE", "8192", &below, &above, "16383"]);
    new.iter().for_each(serves_all);
    ends_connections(&new[0]);
    assert!(tries.try_acquire().expect("asked where it is").is_none(), "held");
}

#[test]
fn who_opens_a_lock_once_more_lets_nobody_trust_another_cluster() {
    needs_redis!(7, 0);
    for reset in ["HARD", "SOFT"] {
        let cluster = Cluster::start(3);
        let id = ids_on(&cluster, 2).next().expect("one");
        let url = |query: &str| cluster.url(&format!("{id}?ttl=60s{query}"));
        let tries = open(&url(""));
        tries.acquire().expect("acquired").release().expect("released");
        becomes_a_stranger(&cluster, 2, 0, reset);
        let stranger = &cluster.nodes[2];
        assert_eq!(stranger.command(&["CONFIG", "RESETSTAT"]).text(), "OK");
        ends_connections(stranger);
        // By another engine, where it is now.
        let hold = open(&url("&connect_timeout=2100ms")).acquire().expect("acquired");
        let again = open(&url(""));
        for handle in [&tries, &again] {
            assert!(handle.try_acquire().expect("asked where it is").is_none(), "{reset}: held");
        }
        assert_eq!(stranger.info("commandstats", "cmdstat_evalsha"), "", "{reset}: it was not asked for a lock");
        hold.release().expect("released");
    }
}

#[test]
fn a_cluster_all_of_whose_nodes_were_replaced_is_believed() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(2);
    let id = ids_on(&cluster, 1).next().expect("one");
    let url = |query: &str| cluster.url(&format!("{id}?ttl=60s{query}"));
    let (tries, held) = (open(&url("")), open(&url("&connect_timeout=2100ms")));
    tries.acquire().expect("acquired").release().expect("released");
    let hold = held.acquire().expect("acquired");
    hold.extend(None).expect("renewed");
    for node in &cluster.nodes {
        for words in [&["FLUSHALL"][..], &["CLUSTER", "RESET", "HARD"]] {
            assert_eq!(node.command(words).text(), "OK", "{words:?}");
        }
    }
    let new = &cluster.nodes[0];
    assert_eq!(new.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).text(), "OK");
    serves_all(new);
    cluster.nodes.iter().for_each(ends_connections);
    assert_eq!(kind_of(renewed_anew(&hold)), ErrorKind::Lost);
    tries.try_acquire().expect("asked").expect("free there").release().expect("released");
}

#[test]
fn what_another_master_refuses_keeps_nobody_from_a_lock() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let id = ids_on(&cluster, 0).next().expect("one");
    // It lets nobody in any more.
    assert_eq!(cluster.nodes[2].command(&["CONFIG", "SET", "maxclients", "1"]).text(), "OK");
    for query in ["", "?policy=any"] {
        carries_a_lock(&(cluster.url(&id) + query));
    }
}

#[test]
fn a_node_that_does_not_tell_its_policy_hides_that_of_no_other() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(3);
    let id = ids_on(&cluster, 0).next().expect("one");
    assert_eq!(cluster.nodes[1].command(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]).text(), "OK");
    // Another one, and the one that would have the lock.
    for silent in [2, 0] {
        assert_eq!(cluster.nodes[silent].command(&["ACL", "SETUSER", "default", "-info"]).text(), "OK");
        assert_eq!(kind_of(Mutex::open(&cluster.url(&id))), ErrorKind::Config, "{silent}");
    }
}

/// Each of them asks where its slot is now.
#[test]
fn many_who_wait_at_a_node_that_is_gone_share_what_is_asked_of_the_others() {
    needs_redis!(7, 0);
    let mut cluster = Cluster::start(2);
    let mutexes: Vec<_> = ids_on(&cluster, 1).take(300).map(|id| open(&cluster.url(&id))).collect();
    cluster.nodes[1].kill();
    let connections = || cluster.nodes[0].info("stats", "total_connections_received").parse::<u64>().expect("a number");
    let before = connections();
    let (tell, told) = mpsc::channel();
    for mutex in &mutexes {
        let tell = tell.clone();
        let told = move |outcome: ipcmutex::Result<Hold>| tell.send(kind_of(outcome)).expect("it is awaited");
        mutex.acquire_callback(Timeout::from(Duration::from_secs(6)), told).expect("it begins");
    }
    for _ in &mutexes {
        told.recv_timeout(LONG).expect("told");
    }
    let made = connections() - before;
    // Each of them would ask twice, and now and then again.
    assert!(made < 300, "{made} connections");
}

#[test]
fn the_rights_that_a_refusal_names_are_enough() {
    needs_redis!(7, 0);
    let cluster = Cluster::start(2);
    let words = secrets::password("a-user");
    let set = |rights: &[&str]| {
        for node in &cluster.nodes {
            let secret = format!(">{words}");
            let rules = [&["ACL", "SETUSER", "few", "on", &secret, "resetkeys", "resetchannels"], rights].concat();
            assert_eq!(node.command(&rules).text(), "OK", "{rules:?}");
        }
    };
    set(&[]);
    let url = |id: &str| cluster.url(id).replace(&cluster.nodes[0].login(), &format!("few:{words}@"));
    let error = Mutex::open(&url("a")).expect_err("it may nothing");
    assert_eq!(error.kind(), ErrorKind::Permission);
    let help = error.to_string().replace("<prefix>", "ipcmutex:");
    let named = help.split(|c: char| c.is_whitespace() || c == ',' || c == ';');
    set(&named.filter(|word| word.starts_with(['~', '&', '+'])).collect::<Vec<_>>());
    for id in ["a", "b", "c", "d"] {
        carries_a_lock(&url(id));
    }
    let (one, other) = (open(&url("told?ttl=60s")), open(&url("told?ttl=60s")));
    let hold = one.acquire().expect("acquired");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| other.acquire_with(within(TOLD)));
        until("it waits", || waits(&one) == 1);
        hold.release().expect("released");
        waiting.join().expect("no panic").expect("told and served").release().expect("released");
    });
}
