//! Negative controls: locks that are broken on purpose (`../src/broken/`) in front of the checker of the chaos runs. It must see each.
//! Their races are walked into step by step; nothing here depends on chance.

use std::time::Duration;

use ipcmutex::Mutex;
use ipcmutex_tests::agent::Language;
use ipcmutex_tests::asking::until;
use ipcmutex_tests::broken::{
    ForgetfulFence, GrantWithoutTheWord, ImpatientReset, NaiveTakeover, PlainDel, UnlinkOnRelease,
};
use ipcmutex_tests::chaos::judge::{Judge, Law, Verdict};
use ipcmutex_tests::chaos::record::{Cell, Entrant, Inside, Log, Told};
use ipcmutex_tests::cluster::Cluster;
use ipcmutex_tests::servers::{Redis, Reply, skipped, skipped_before};

const LEASE: Law = Law::Lease(60_000_000_000);

/// Where a broken lock is played, and the checker in front of it.
struct Stage {
    folder: tempfile::TempDir,
    players: u64,
    logs: Vec<Log>,
}

impl Stage {
    fn new() -> Stage {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Cell::create(&folder.path().join("cell")).expect("it is writable");
        Stage { folder, players: 0, logs: Vec::new() }
    }

    fn player(&mut self) -> Entrant {
        self.players += 1;
        let log = self.folder.path().join(format!("log-{}", self.players));
        self.logs.push(Log::create(&log).expect("it is writable"));
        Entrant::open(&self.folder.path().join("cell"), &log, self.players << 16 | 1).expect("they are there")
    }

    fn verdict(mut self, law: Law) -> Verdict {
        let mut judge = Judge::new(law, Duration::from_secs(5));
        for (log, number) in self.logs.iter_mut().zip(1..) {
            judge.born(number, Language::Rust);
            log.read().expect("whole records").into_iter().for_each(|event| judge.event(event));
        }
        judge.finish()
    }
}

fn enter(player: &Entrant, token: u64) -> Inside {
    player.tell(Told::Asked);
    let inside = player.enter(token, false);
    player.check(|| 0);
    player.count(&inside);
    inside
}

fn leave(player: &Entrant, inside: Inside) {
    player.leave(inside, || 0);
    player.tell(Told::Released { code: 0 });
}

#[track_caller]
fn must_be_red(verdict: &Verdict, what: &[&str]) {
    for text in what {
        assert!(
            verdict.violations.iter().any(|told| told.contains(text)),
            "the checker does not say `{text}`: {verdict:?}"
        );
    }
}

/// What every broken one has in common at the end: two are inside.
const TWO: &[&str] = &["two inside at once"];

#[test]
fn a_lock_that_holds_is_green() {
    let mut stage = Stage::new();
    let players = [stage.player(), stage.player(), stage.player()];
    let mutex = Mutex::open(&format!("mpm:{}", stage.folder.path().join("lock").display())).unwrap();
    for player in players.iter().cycle().take(30) {
        let hold = mutex.acquire().unwrap();
        let inside = enter(player, hold.token());
        player.leave(inside, || hold.check().map_or(3, |()| 0));
        hold.release().unwrap();
        player.tell(Told::Released { code: 0 });
    }
    let verdict = stage.verdict(Law::Lock);
    assert_eq!(verdict.violations, Vec::<String>::new());
    assert_eq!(verdict.all_holds(), 30);
}

#[test]
fn a_file_that_is_removed_on_release() {
    let mut stage = Stage::new();
    let (a, b, c) = (stage.player(), stage.player(), stage.player());
    let path = stage.folder.path().join("broken");
    let mut first = UnlinkOnRelease::open(&path).unwrap();
    assert!(first.try_lock().unwrap());
    let inside = enter(&a, 1);
    // It waits for the file that is about to go.
    let second = UnlinkOnRelease::open(&path).unwrap();
    assert!(!second.try_lock().unwrap());
    leave(&a, inside);
    first.release().unwrap();
    assert!(second.try_lock().unwrap());
    let inside_b = enter(&b, 2);
    let third = UnlinkOnRelease::open(&path).unwrap();
    assert!(third.try_lock().unwrap(), "the lock is broken as it should be");
    let inside_c = enter(&c, 3);
    leave(&b, inside_b);
    leave(&c, inside_c);
    must_be_red(&stage.verdict(Law::Lock), TWO);
}

#[test]
fn a_takeover_by_connect_unlink_and_bind() {
    let mut stage = Stage::new();
    let (a, b) = (stage.player(), stage.player());
    let path = stage.folder.path().join("broken");
    let mut dead = NaiveTakeover::new(&path);
    dead.take().unwrap();
    dead.die();
    let (mut first, mut second) = (NaiveTakeover::new(&path), NaiveTakeover::new(&path));
    assert!(first.is_stale().unwrap() && second.is_stale().unwrap());
    first.take().unwrap();
    let inside_a = enter(&a, 1);
    second.take().unwrap();
    let inside_b = enter(&b, 2);
    leave(&a, inside_a);
    leave(&b, inside_b);
    must_be_red(&stage.verdict(Law::Lock), TWO);
}

#[test]
fn a_grant_without_the_word() {
    let mut stage = Stage::new();
    let (a, b, c) = (stage.player(), stage.player(), stage.player());
    let mut lock = GrantWithoutTheWord::default();
    assert!(lock.acquire(a.who()));
    let inside = enter(&a, 1);
    assert!(!lock.acquire(b.who()));
    leave(&a, inside);
    lock.release();
    assert!(lock.acquire(c.who()));
    let inside_c = enter(&c, 2);
    assert!(lock.is_told(b.who()));
    let inside_b = enter(&b, 3);
    leave(&c, inside_c);
    leave(&b, inside_b);
    must_be_red(&stage.verdict(Law::Lock), TWO);
}

#[test]
fn a_reset_of_an_owner_that_only_seems_dead() {
    let mut stage = Stage::new();
    let (a, b) = (stage.player(), stage.player());
    let mut lock = ImpatientReset::new(Duration::from_millis(20));
    assert!(lock.acquire(a.who()));
    let inside_a = enter(&a, 1);
    // It stands still, and lives.
    while !lock.acquire(b.who()) {
        std::thread::sleep(Duration::from_millis(1));
    }
    let inside_b = enter(&b, 2);
    leave(&a, inside_a);
    leave(&b, inside_b);
    must_be_red(&stage.verdict(Law::Lock), TWO);
}

#[test]
fn a_key_that_is_deleted_whosever_it_is() {
    if skipped("a_key_that_is_deleted_whosever_it_is") {
        return;
    }
    let mut stage = Stage::new();
    let (a, b, c) = (stage.player(), stage.player(), stage.player());
    let redis = Redis::start();
    let lock = PlainDel::new(&redis);
    let token = lock.acquire(a.who(), 30).expect("it is free");
    a.tell(Told::Asked);
    let inside_a = a.enter(token, false);
    while !lock.is_free() {
        std::thread::sleep(Duration::from_millis(2));
    }
    // It knows that its lease is over, and leaves as it should; only its release is wrong.
    a.leave(inside_a, || 3);
    let inside_b = enter(&b, lock.acquire(b.who(), 60_000).expect("the lease has ended"));
    lock.release();
    a.tell(Told::Released { code: 3 });
    let inside_c = enter(&c, lock.acquire(c.who(), 60_000).expect("the lock is broken as it should be"));
    leave(&b, inside_b);
    leave(&c, inside_c);
    must_be_red(&stage.verdict(LEASE), &["two believed that they hold"]);
}

#[test]
fn a_fence_that_counts_from_one_again() {
    if skipped("a_fence_that_counts_from_one_again") {
        return;
    }
    let mut redis = Redis::start();
    for restarted in [false, true] {
        let mut stage = Stage::new();
        let (a, b) = (stage.player(), stage.player());
        for player in [&a, &a] {
            let lock = ForgetfulFence::new(&redis);
            let inside = enter(player, lock.acquire(player.who()).expect("it is free"));
            leave(player, inside);
            lock.release(player.who());
        }
        if restarted {
            redis.restart();
        } else {
            redis.command(&["FLUSHALL"]);
        }
        let inside = enter(&b, ForgetfulFence::new(&redis).acquire(b.who()).expect("it is free"));
        leave(&b, inside);
        must_be_red(&stage.verdict(LEASE), &["a token that is not larger"]);
        redis.command(&["FLUSHALL"]);
    }
}

/// Two of three are one majority, and two of another three the next.
#[test]
fn lists_of_servers_that_differ() {
    if skipped("lists_of_servers_that_differ") {
        return;
    }
    let servers: Vec<Redis> = (0..5).map(|_| Redis::with(None, &[])).collect();
    two_believe(&redlock(&servers[..3]), &redlock(&servers[2..]), || ());
}

#[test]
fn a_majority_that_comes_back_empty_within_a_lease() {
    if skipped("a_majority_that_comes_back_empty_within_a_lease") {
        return;
    }
    let mut servers: Vec<Redis> = (0..5).map(|_| Redis::with(None, &[])).collect();
    let url = redlock(&servers);
    two_believe(&url, &url, || servers[1..4].iter_mut().for_each(Redis::restart));
}

fn redlock(servers: &[Redis]) -> String {
    let hosts: Vec<String> = servers.iter().map(Redis::address).collect();
    format!("rpm+redlock://{}/lock?ttl=60s", hosts.join(","))
}

/// Two holds by these URLs at once, the second one after something was done; nothing explains it to the checker.
#[track_caller]
fn two_believe(first: &str, second: &str, between: impl FnOnce()) {
    let mut stage = Stage::new();
    let (a, b) = (stage.player(), stage.player());
    let [first, second] = [first, second].map(|url| Mutex::open(url).unwrap());
    let hold_a = first.acquire().unwrap();
    let inside_a = enter(&a, hold_a.token());
    between();
    let hold_b = second.acquire_timeout(Duration::from_secs(30)).unwrap().expect("the lock is broken as it should be");
    let inside_b = enter(&b, hold_b.token());
    leave(&a, inside_a);
    leave(&b, inside_b);
    must_be_red(&stage.verdict(LEASE), &["two believed that they hold"]);
}

/// Who asks the one knows nothing of what the other granted: so it is after a failover that nobody tells the checker of.
#[test]
fn a_replica_that_became_a_master_beside_the_master() {
    if skipped("a_replica_that_became_a_master_beside_the_master") {
        return;
    }
    let master = Redis::with(None, &["repl-diskless-sync-delay 0"]);
    let port = master.address().replace("127.0.0.1:", "");
    let replica = Redis::with(None, &[&format!("replicaof 127.0.0.1 {port}")]);
    until("it has caught up", || master.info("replication", "slave0").contains("state=online"));
    // Before the hold is copied.
    assert_eq!(replica.command(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    two_believe(&master.url("lock?ttl=60s"), &replica.url("lock?ttl=60s"), || ());
}

/// The slot goes without the keys in it.
#[test]
fn a_slot_that_leaves_its_keys_behind() {
    if skipped_before("a_slot_that_leaves_its_keys_behind", (7, 0)) {
        return;
    }
    let cluster = Cluster::start(2);
    let (slot, from) = (cluster.slot("ipcmutex:lock").to_string(), cluster.home("ipcmutex:lock"));
    let to = 1 - from;
    let url = cluster.url("lock?ttl=60s");
    two_believe(&url, &url, || {
        let id = cluster.nodes[to].command(&["CLUSTER", "MYID"]);
        for words in [&["SETSLOT", &*slot, "NODE", id.text()][..], &["BUMPEPOCH"]] {
            let reply = cluster.nodes[to].command(&[&["CLUSTER"], words].concat());
            assert!(!matches!(reply, Reply::Error(_)), "{reply:?}");
        }
        let owner = || cluster.nodes[from].command(&["CLUSTER", "COUNTKEYSINSLOT", &slot]);
        until("the other has heard of it, and forgets them", || owner().number() == 0);
    });
}
