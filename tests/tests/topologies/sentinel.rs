//! Sentinel: the master is found, and when it is replaced everything goes on at the new one, or is told of.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex};
use ipcmutex_tests::certificates::Authority;
use ipcmutex_tests::proxy::{End, Fault, From, On, Proxy};
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::{Client, Redis, Reply};

use ipcmutex_tests::asking::{LONG, kind_of, open, until, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;

use super::carries_a_lock;

struct Guarded {
    master: Redis,
    replica: Redis,
    sentinel: Redis,
    query: String,
}

/// A server, its replica, and who replaces it.
fn guarded() -> Guarded {
    guarded_by(None, None, None)
}

/// Over TLS, if there is an authority, and with the passwords of the servers and of the Sentinel.
fn guarded_by(authority: Option<&Authority>, password: Option<&str>, sentinels: Option<&str>) -> Guarded {
    let lines = authority.map(|authority| Redis::tls_alone(authority, &authority.sign("node", "127.0.0.1", true)));
    let lines = lines.unwrap_or_default();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let login = password.map(|password| format!("masterauth {password}")).unwrap_or_default();
    let server = |line: &str| Redis::with(password, &[&lines[..], &[line, &login]].concat());
    let master = server("repl-diskless-sync-delay 0");
    let port = master.address().replace("127.0.0.1:", "");
    let replica = server(&format!("replicaof 127.0.0.1 {port}"));
    until("the replica has caught up", || master.info("replication", "slave0").contains("state=online"));
    let sentinel = Redis::sentinel(&master, sentinels, &lines);
    let count = |sentinel: &Redis| match sentinel.command(&["SENTINEL", "REPLICAS", "main"]) {
        Reply::List(replicas) => replicas.len(),
        other => panic!("{other:?}"),
    };
    until("the Sentinel knows the replica", || count(&sentinel) == 1);
    let ca = authority.map(|authority| format!("&ca={}", authority.file().display())).unwrap_or_default();
    let own = sentinels.map(|own| format!("&sentinel_password={own}")).unwrap_or_default();
    Guarded { master, replica, sentinel, query: ca + &own }
}

impl Guarded {
    /// By a list whose first one is not there.
    fn url(&self, id: &str) -> String {
        let url =
            format!("rpm+redis+sentinel://{}127.0.0.1:1,{}/main/{id}", self.master.login(), self.sentinel.address());
        format!("{url}{}connect_timeout=3s{}", if id.contains('?') { "&" } else { "?" }, self.query)
    }

    fn switched(&self) -> bool {
        let Reply::List(place) = self.sentinel.command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", "main"]) else {
            panic!("no answer");
        };
        self.replica.address().ends_with(place[1].text())
    }
}

#[test]
fn the_master_carries_the_lock() {
    needs_redis!();
    let it = guarded();
    carries_a_lock(&it.url("lock"));
    carries_a_lock(&it.url("lock?protocol=2"));
    assert!(it.master.commands() > 0, "taken on the master");
    let unknown = it.url("x").replace("/main/", "/other/");
    let error = Mutex::open(&unknown).expect_err("no such master");
    assert_eq!(error.kind(), ErrorKind::Config, "{error}");
    assert!(error.to_string().contains("knows no master `other`"), "{error}");
    let nobody = Mutex::open("rpm+redis+sentinel://127.0.0.1:1/main/x");
    assert_eq!(kind_of(nobody), ErrorKind::Unavailable);
}

#[test]
fn r16_a_hold_that_was_copied_survives_and_its_waiter_is_served() {
    needs_redis!();
    survives_a_failover(&guarded());
}

#[test]
fn over_tls_and_with_two_passwords() {
    needs_redis!();
    let authority = Authority::new();
    let (servers, own) = (secrets::password("the-servers"), secrets::password("the-sentinels"));
    let it = guarded_by(Some(&authority), Some(&servers), Some(&own));
    carries_a_lock(&it.url("lock"));
    carries_a_lock(&it.url("lock?protocol=2"));
    for (from, to) in [(&own, "c4nary-nobody"), (&servers, "c4nary-nobody")] {
        let error = Mutex::open(&it.url("lock").replace(from.as_str(), to)).expect_err("a wrong password");
        assert_eq!(kind_of(Err::<(), _>(error.clone())), ErrorKind::Auth, "{error}");
    }
    // Without its own, a Sentinel is given the servers'.
    let error =
        Mutex::open(&it.url("lock").replace(&format!("&sentinel_password={own}"), "")).expect_err("not its own");
    assert_eq!(error.kind(), ErrorKind::Auth, "{error}");
    survives_a_failover(&it);
}

#[test]
fn with_one_password_for_all() {
    needs_redis!();
    let word = secrets::password("all");
    let mut it = guarded_by(None, Some(&word), Some(&word));
    it.query = String::new();
    carries_a_lock(&it.url("lock"));
    // With a user that nobody knows, as for a server that has a password alone.
    let hold = open(&it.url("lock").replace("://:", "://nobody:")).acquire().expect("acquired");
    until("changes are heard of", || it.sentinel.command(&["CLIENT", "LIST"]).text().contains(" sub=1 "));
    hold.release().expect("released");
    // Given to a Sentinel that has none, it does no harm.
    let mut open = guarded_by(None, Some(&word), None);
    open.query = format!("&sentinel_user=somebody&sentinel_password={word}");
    carries_a_lock(&open.url("lock"));
}

/// Who says nothing is let in there, and may do less than is needed.
#[test]
fn the_user_of_the_sentinels_asks_and_listens_where_nobody_else_may() {
    needs_redis!(6, 2);
    let master = Redis::with(None, &[]);
    let word = secrets::password("watcher");
    for rights in ["-@all +auth +hello +ping", "+@all -subscribe"] {
        let users = [
            format!("user default on nopass ~* resetchannels {rights}"),
            format!("user watcher on >{word} ~* &* +@all"),
        ];
        let users: Vec<&str> = users.iter().map(String::as_str).collect();
        let sentinel = Redis::sentinel_of(&master.address(), 1, None, &users);
        let url = format!("rpm+redis+sentinel://{}/main/asks", sentinel.address());
        let mutex = open(&format!("{url}?sentinel_user=watcher&sentinel_password={word}"));
        let hold = mutex.acquire_with(within(LONG)).expect("acquired");
        let mut client = sentinel.client();
        assert_eq!(client.command(&["AUTH", "watcher", &word]).text(), "OK");
        until("changes are heard of", || client.command(&["CLIENT", "LIST"]).text().contains(" sub=1 "));
        hold.release().expect("released");
    }
}

/// For as long as something is held somebody is to listen.
#[test]
fn a_sentinel_that_lets_nobody_listen_is_dialled_less_and_less() {
    needs_redis!();
    let master = Redis::with(None, &[]);
    let sentinel = Seeming::new(&master.address(), false);
    let proxy = Proxy::before(&sentinel.address);
    let mutex = open(&format!("rpm+redis+sentinel://{}/main/deaf?ttl=60s", proxy.address()));
    let hold = mutex.acquire().expect("acquired");
    let begun = proxy.connections().len();
    until("it was to be heard, and again", || proxy.connections().len() > begun + 3);
    let before = proxy.connections().len();
    std::thread::sleep(Duration::from_secs(5));
    let dials = proxy.connections().len() - before;
    assert!(dials <= 10, "{dials} in 5 s");
    hold.release().expect("released");
}

/// Held, and waited for, while the master goes.
fn survives_a_failover(it: &Guarded) {
    let mutex = open(&it.url("r16?replicas=1&ttl=60s"));
    let hold = mutex.acquire().expect("acquired");
    let token = hold.token();
    // The waiter knows only the new master, once the old one is gone.
    let waiting = open(&it.url("r16?ttl=60s"));
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| waiting.acquire_with(within(LONG)));
        until("it stands in line", || mutex.status().is_ok_and(|status| status.waiters == 1));
        // It does not even close its connections.
        it.master.freeze();
        until("the replica has taken its place", || it.switched());
        until("it is renewed there", || hold.extend(None).is_ok());
        hold.check().expect("it stands");
        hold.release().expect("released");
        let next = waits.join().expect("no panic").expect("acquired");
        assert!(next.token() > token);
        next.release().expect("released");
    });
}

#[test]
fn r16_a_hold_that_was_not_copied_is_told_of_at_once() {
    needs_redis!();
    let mut it = guarded();
    // A third of this lease is 20 s: it is no renewal that finds it.
    let mutex = open(&it.url("r16?ttl=60s"));
    mutex.acquire().expect("acquired").release().expect("released");
    // The replica is cut off, and cannot come back: it is not known here any more.
    let mut master: Client = it.master.client();
    assert_eq!(master.command(&["CONFIG", "SET", "requirepass", "nobody-knows"]).text(), "OK");
    assert_eq!(master.command(&["CLIENT", "KILL", "TYPE", "replica"]).number(), 1);
    let hold = mutex.acquire().expect("acquired, on a connection that was there before");
    let (tell, told) = mpsc::channel();
    hold.on_lost(move |error| _ = tell.send(error.kind())).expect("a live hold");
    assert!(told.try_recv().is_err());
    it.master.kill();
    until("the replica has taken its place", || it.switched());
    let switched = Instant::now();
    assert_eq!(told.recv_timeout(Duration::from_secs(10)).expect("the loss is told"), ErrorKind::Lost);
    figure("R16", format!("with a lease of 60 s, told {:.0?} after the failover", switched.elapsed()));
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    let next = mutex.acquire_with(within(LONG)).expect("the new master has it free");
    next.release().expect("released");
}

/// The old master goes on for a while as if nothing had happened, and it is not the watch that first finds the new one.
#[test]
fn a_connection_to_the_old_master_is_not_used_again() {
    needs_redis!();
    let it = guarded();
    // Who wants to hear of changes asks this one first, and gets no answer; who looks for the master goes on to the next.
    let hung = Redis::with(None, &[]);
    hung.freeze();
    let url = it.url("stale?ttl=60s").replace("127.0.0.1:1,", &format!("{},", hung.address()));
    // By this the caller has its connection, and there is no thread yet.
    let mutex = open(&url);
    it.master.freeze();
    until("the replica has taken its place", || it.switched());
    until("it is one", || it.replica.info("replication", "role") == "master");
    it.master.thaw();
    // Who finds it taken there waits, and does so at the new one.
    assert_eq!(it.master.command(&["SET", "ipcmutex:stale", "another", "PX", "60000"]).text(), "OK");
    let hold = mutex.acquire_with(within(LONG)).expect("free on the new one");
    assert_eq!(it.replica.command(&["EXISTS", "ipcmutex:stale"]).number(), 1, "it was acquired there");
    hold.release().expect("released there");
    assert_eq!(it.replica.command(&["EXISTS", "ipcmutex:stale"]).number(), 0);
}

/// What seems to be a Sentinel, and says what a test wants.
struct Seeming {
    address: String,
    shared: Arc<std::sync::Mutex<Seen>>,
}

struct Seen {
    master: String,
    /// Those who listen, if anybody may.
    listeners: Option<Vec<TcpStream>>,
}

impl Seeming {
    fn new(master: &str, may_listen: bool) -> Seeming {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let seen = Seen { master: master.to_owned(), listeners: may_listen.then(Vec::new) };
        let shared = Arc::new(std::sync::Mutex::new(seen));
        let of = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let of = of.clone();
                std::thread::spawn(move || Seeming::serve(&of, client));
            }
        });
        Seeming { address, shared }
    }

    fn serve(shared: &std::sync::Mutex<Seen>, mut client: TcpStream) {
        let mut buffer = [0; 4096];
        while let Some(read) = client.read(&mut buffer).ok().filter(|read| *read > 0) {
            let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
            let mut seen = shared.lock().expect("no panic");
            let mut answer = "+OK\r\n".repeat(asked.matches("SETINFO").count());
            if asked.contains("get-master-addr-by-name") {
                let (host, port) = seen.master.split_once(':').expect("host:port");
                answer += &format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.len());
            }
            if asked.contains("SUBSCRIBE") {
                answer += match &mut seen.listeners {
                    None => "-ERR not now\r\n",
                    Some(listeners) => {
                        listeners.push(client.try_clone().expect("a descriptor"));
                        "*3\r\n$9\r\nsubscribe\r\n$14\r\n+switch-master\r\n:1\r\n"
                    }
                };
            }
            if client.write_all(answer.as_bytes()).is_err() {
                return;
            }
        }
    }

    fn is_heard(&self) -> bool {
        self.shared.lock().expect("no panic").listeners.as_ref().is_some_and(|listeners| !listeners.is_empty())
    }

    /// Another one has become the master.
    fn switch(&self, to: &str) {
        let mut seen = self.shared.lock().expect("no panic");
        let from = std::mem::replace(&mut seen.master, to.to_owned());
        let text = format!("main {} {}", from.replace(':', " "), to.replace(':', " "));
        let told = format!("*3\r\n$7\r\nmessage\r\n$14\r\n+switch-master\r\n${}\r\n{text}\r\n", text.len());
        if let Some(listeners) = &mut seen.listeners {
            listeners.retain_mut(|listener| listener.write_all(told.as_bytes()).is_ok());
        }
    }
}

/// It was cut off from the others, and has not heard of a failover.
#[test]
fn a_sentinel_that_names_who_is_not_the_master_is_not_the_last_one_asked() {
    needs_redis!();
    let it = guarded();
    let behind = Seeming::new(&it.replica.address(), false);
    carries_a_lock(&it.url("behind").replace("127.0.0.1:1,", &format!("{},", behind.address)));
}

/// It will in a moment, or is cut off for long, and the old master goes on as one for so long.
#[test]
fn a_sentinel_that_has_not_heard_of_a_failover_leads_nobody_back() {
    needs_redis!();
    let [old, new, third] = [(); 3].map(|()| Redis::with(None, &[]));
    let (behind, ahead) = (Seeming::new(&old.address(), false), Seeming::new(&old.address(), true));
    let url = |id: &str| format!("rpm+redis+sentinel://{},{}/main/{id}?ttl=60s", behind.address, ahead.address);
    let mutex = open(&url("back"));
    let _kept = open(&url("kept")).acquire().expect("acquired");
    until("somebody listens", || ahead.is_heard());
    let is_asked = |redis: &Redis| {
        let before = redis.commands();
        mutex.status().is_ok() && redis.commands() > before
    };
    for (place, master) in
        [("the new one", &new), ("the one after it", &third), ("the old one, again the master", &old)]
    {
        ahead.switch(&master.address());
        until(place, || is_asked(master));
        assert!((0..5).all(|_| is_asked(master)), "{place} alone");
        mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released where it was taken");
    }
}

/// Nobody of the process has heard that it is: nobody held or waited.
#[test]
fn the_master_again_is_found_though_a_sentinel_is_behind() {
    needs_redis!();
    for tries in [false, true] {
        let [old, new] = [(); 2].map(|()| Redis::with(None, &[]));
        let (behind, ahead) = (Seeming::new(&new.address(), false), Seeming::new(&old.address(), true));
        let second = ahead.address.replace("127.0.0.1", "localhost");
        let sentinels = if tries {
            format!("{},{},{second}", behind.address, ahead.address)
        } else {
            format!("{},{second},{}", ahead.address, behind.address)
        };
        let url = |id: &str| format!("rpm+redis+sentinel://{sentinels}/main/{id}?ttl=60s");
        let (mutex, kept) = (open(&url("again")), open(&url("kept")).acquire().expect("acquired"));
        until("somebody listens", || ahead.is_heard());
        ahead.switch(&new.address());
        until("the new one", || {
            let before = new.commands();
            mutex.status().is_ok() && new.commands() > before
        });
        drop(kept);
        ahead.shared.lock().expect("no panic").master = old.address();
        let address = old.address();
        let (host, port) = address.split_once(':').expect("host:port");
        assert_eq!(new.command(&["REPLICAOF", host, port]).text(), "OK");
        let hold = if tries { mutex.try_acquire().map(Option::unwrap) } else { mutex.acquire_with(within(LONG)) };
        hold.expect("acquired").release().expect("released where it was taken");
        assert_eq!(old.command(&["EXISTS", "{ipcmutex:again}:state"]).number(), 1, "it was acquired there");
    }
}

/// The connection on which it would wait the next time is made meanwhile, and whom the Sentinel names is asked whether it
/// is the master.
#[test]
fn a_wait_ends_in_time_when_who_may_be_the_master_falls_silent() {
    needs_redis!();
    let master = Redis::with(None, &[]);
    let proxy = Proxy::before(&master.address());
    let sentinel = Seeming::new(proxy.address(), true);
    let url = |id: &str| format!("rpm+redis+sentinel://{}/main/{id}?ttl=60s", sentinel.address);
    let (mutex, _kept) = (open(&url("role")), open(&url("kept")).acquire().expect("acquired"));
    let hold = open(&master.unix_url("role")).acquire().expect("acquired");
    until("the connection was to be made", || {
        let begun = Instant::now();
        let outcome = mutex.acquire_with(within(Duration::from_millis(500)));
        assert_eq!(kind_of(outcome), ErrorKind::Timeout);
        assert!(begun.elapsed() < Duration::from_millis(1500), "a wait of 0.5 s took {:?}", begun.elapsed());
        // By now there is all that asks for it, but for that connection.
        let is_made = proxy.connections().len() > 2;
        if !is_made {
            proxy.arm(Fault { from: From::Client, bytes: 0, end: End::Silence, on: On::Saying("ROLE") });
        }
        is_made
    });
    assert_eq!(proxy.struck(), 1);
    hold.release().expect("released");
}
