//! Servers that are silent, refuse, or say what no server says.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, EventLoop, Mutex, Timeout};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::Redis;

use ipcmutex_tests::asking::{LONG, kind_of, open, until, until_renewed, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::proxy::Proxy;

use super::both_ways;

/// So many ask a server that does not answer.
const MANY: usize = 192;

/// How long a busy machine may take to ask it a few times.
const SOON: Duration = Duration::from_secs(20);

#[test]
fn a_frozen_server_does_not_outlast_the_callers_patience() {
    needs_redis!();
    let redis = Redis::start();
    let (patient, short) = (open(&redis.url("frozen")), open(&redis.url("frozen?connect_timeout=300ms")));
    for mutex in [&patient, &short] {
        mutex.acquire().expect("acquired").release().expect("released");
    }
    redis.freeze();
    // By itself an answer is waited for 2 s; the bounds leave a busy machine most of that.
    let begun = Instant::now();
    assert_eq!(kind_of(patient.acquire_with(within(Duration::from_millis(300)))), ErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_millis(1800), "{:?}", begun.elapsed());
    let begun = Instant::now();
    assert_eq!(kind_of(short.try_acquire()), ErrorKind::Unavailable);
    assert!(begun.elapsed() < Duration::from_millis(1800), "{:?}", begun.elapsed());
    redis.thaw();
    for mutex in [&patient, &short] {
        mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
    }
}

/// What a frozen server has not read yet it does when it goes on: also a take that was given up for longer than its lease.
#[test]
fn r8_a_take_that_a_frozen_server_does_late_is_taken_back() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("late?ttl=6s");
    let mutex = open(&url);
    mutex.acquire().expect("acquired").release().expect("released");
    redis.freeze();
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    std::thread::sleep(Duration::from_millis(6_500));
    redis.thaw();
    // If it were left to its lease, whoever comes next would hear of a holder that died.
    let hold = open(&url).acquire_with(within(LONG)).expect("acquired");
    assert!(!hold.abandoned());
    hold.release().expect("released");
}

/// Who has waited for the others as long as it would wait for the server need not ask, too.
#[test]
fn a_frozen_server_is_not_asked_by_each_of_those_that_came_at_once() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("at-once"));
    let on = EventLoop::blind();
    redis.freeze();
    for timeout in [Timeout::TRY, Duration::from_millis(300).into()] {
        let (tell, told) = mpsc::channel();
        let begun = Instant::now();
        for _ in 0..48 {
            let tell = tell.clone();
            mutex.acquire_on(&on, timeout, move |outcome| tell.send(outcome).expect("it is awaited"));
        }
        for _ in 0..48 {
            let kind = kind_of(told.recv_timeout(LONG).expect("told"));
            assert!(kind == ErrorKind::Unavailable || kind == ErrorKind::Timeout && !timeout.is_try(), "{kind:?}");
        }
        // Each by itself would ask for 2 s, and eight at a time can.
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
    redis.thaw();
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

/// Of many locks, too; and a lock on another server does not wait behind all of them.
#[test]
fn a_frozen_server_is_not_asked_by_each_of_its_locks() {
    needs_redis!();
    let (redis, well) = (Redis::start(), Redis::start());
    let mutexes: Vec<Mutex> = (0..MANY).map(|at| open(&redis.url(&format!("many-{at}")))).collect();
    let here = open(&well.url("here"));
    let on = EventLoop::blind();
    redis.freeze();
    for timeout in [Timeout::TRY, Timeout::FOREVER] {
        let (tell, told) = mpsc::channel();
        let begun = Instant::now();
        for mutex in &mutexes {
            let tell = tell.clone();
            mutex.acquire_on(&on, timeout, move |outcome| drop(tell.send(outcome)));
        }
        let (tell_too, told_too) = mpsc::channel();
        here.acquire_on(&on, Timeout::FOREVER, move |outcome| drop(tell_too.send(outcome)));
        told_too.recv_timeout(LONG).expect("told").expect("its server is there").release().expect("released");
        if timeout.is_try() {
            assert!(mutexes.iter().all(|_| kind_of(told.recv_timeout(LONG).expect("told")) == ErrorKind::Unavailable));
        }
        // Each by itself would ask for 2 s, and eight at a time can: 48 s.
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        if !timeout.is_try() {
            redis.thaw();
            assert!(mutexes.iter().all(|_| told.recv_timeout(LONG).expect("told").is_ok()));
        }
    }
}

/// Nor by each of those that are released: that goes on in the background.
#[test]
fn a_frozen_server_is_not_asked_by_each_of_the_releases() {
    needs_redis!();
    let (redis, well) = (Redis::start(), Redis::start());
    let mutexes: Vec<Mutex> = (0..MANY).map(|at| open(&redis.url(&format!("held-{at}?ttl=60s")))).collect();
    let here = open(&well.url("here"));
    let holds: Vec<_> = mutexes.iter().map(|mutex| mutex.acquire().expect("acquired")).collect();
    let on = EventLoop::blind();
    redis.freeze();
    let (tell, told) = mpsc::channel();
    let begun = Instant::now();
    for hold in &holds {
        let tell = tell.clone();
        hold.release_on(&on, move |outcome| drop(tell.send(outcome)));
    }
    let (tell, told_too) = mpsc::channel();
    here.acquire_on(&on, Timeout::FOREVER, move |outcome| drop(tell.send(outcome)));
    told_too.recv_timeout(LONG).expect("told").expect("its server is there").release().expect("released");
    assert!(holds.iter().all(|_| kind_of(told.recv_timeout(LONG).expect("told")) == ErrorKind::Unavailable));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    redis.thaw();
    for mutex in &mutexes {
        mutex.acquire_with(within(LONG)).expect("released since").release().expect("released");
    }
}

/// Nor for anything else that a loop has done elsewhere.
#[test]
fn a_frozen_server_is_not_asked_by_each_of_those_who_look() {
    needs_redis!();
    let (redis, well) = (Redis::start(), Redis::start());
    let mutex = open(&redis.url("looked-at"));
    let here = open(&well.url("here"));
    redis.freeze();
    let (tell, told) = mpsc::channel();
    let begun = Instant::now();
    for _ in 0..MANY {
        let (tell, mutex) = (tell.clone(), mutex.clone());
        ipcmutex::offload(move || drop(tell.send(mutex.status())));
    }
    let (tell, told_too) = mpsc::channel();
    ipcmutex::offload(move || drop(tell.send(here.status())));
    told_too.recv_timeout(LONG).expect("told").expect("its server is there");
    assert!((0..MANY).all(|_| kind_of(told.recv_timeout(LONG).expect("told")) == ErrorKind::Unavailable));
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    redis.thaw();
    mutex.status().expect("it is there");
}

/// Those that ask a server that is frozen have all threads meanwhile.
#[test]
fn a_wait_of_an_event_loop_ends_in_time_when_no_thread_is_free_for_it() {
    needs_redis!();
    let (redis, well) = (Redis::start(), Redis::start());
    let mutexes: Vec<Mutex> = (0..8).map(|at| open(&redis.url(&format!("threads-{at}")))).collect();
    let here = open(&well.url("here"));
    let on = EventLoop::blind();
    redis.freeze();
    for mutex in &mutexes {
        mutex.acquire_on(&on, Timeout::TRY, drop);
    }
    let (tell, told) = mpsc::channel();
    let begun = Instant::now();
    here.acquire_on(&on, Duration::from_millis(300).into(), move |outcome| drop(tell.send(outcome.map(drop))));
    let outcome = told.recv_timeout(LONG).expect("told");
    assert!(begun.elapsed() < Duration::from_millis(1500), "after {:?}: {outcome:?}", begun.elapsed());
    redis.thaw();
    here.acquire_with(within(LONG)).expect("it took nothing").release().expect("released");
}

/// Nor does one whose loop asked by itself wait for a thread when that connection is cut.
#[test]
fn a_wait_of_an_event_loop_ends_in_time_when_its_connection_is_cut_and_no_thread_is_free() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "no-thread"));
    let (tell, told) = mpsc::channel();
    let on = EventLoop::new(move |watched| tell.send(watched).expect("the loop runs"));
    let acquire = |timeout: Timeout| {
        let (tell, told) = mpsc::channel();
        mutex.acquire_on(&on, timeout, move |outcome| drop(tell.send(outcome)));
        told
    };
    let watched = loop {
        acquire(Timeout::FOREVER).recv_timeout(LONG).expect("told").expect("acquired").release().expect("released");
        if let Ok(watched) = told.try_recv() {
            break watched;
        }
    };
    watched.start();
    // As many as there are threads.
    let (free, kept) = (Arc::new(std::sync::Barrier::new(9)), Arc::new(std::sync::Barrier::new(9)));
    for _ in 0..8 {
        let (free, kept) = (free.clone(), kept.clone());
        ipcmutex::offload(move || {
            kept.wait();
            free.wait();
        });
    }
    kept.wait();
    redis.freeze();
    let begun = Instant::now();
    let outcome = acquire(Duration::from_millis(300).into());
    proxy.cut_all();
    until("the loop sees it", || !watched.read());
    let outcome = outcome.recv_timeout(LONG);
    let took = begun.elapsed();
    free.wait();
    redis.thaw();
    assert!(outcome.expect("told").is_err() && took < Duration::from_millis(2500), "after {took:?}");
    mutex.acquire_with(within(LONG)).expect("it took nothing").release().expect("released");
}

#[test]
fn a_wait_too_short_for_a_late_server_fails_alone() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "late");
    let (own, _) = both_ways(&redis, &proxy, "own");
    let held = straight.acquire().expect("acquired");
    let hold = own.acquire().expect("acquired");
    proxy.said();
    redis.freeze();
    std::thread::scope(|scope| {
        let short = scope.spawn(|| mutex.acquire_with(within(Duration::from_millis(1))));
        until("it asks", || !proxy.said().is_empty());
        // Behind it, on the same connection, and with more patience.
        let release = scope.spawn(|| hold.release());
        assert_eq!(kind_of(short.join().expect("no panic")), ErrorKind::Unavailable);
        redis.thaw();
        release.join().expect("no panic").expect("the server was late by less than it may be");
    });
    held.release().expect("released");
}

#[test]
fn r10_a_renewal_that_fails_is_tried_again_within_the_lease() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r10?ttl=6s"));
    let hold = mutex.acquire().expect("acquired");
    // Silent when the first renewal comes, at 2 s, and until after it was given up.
    std::thread::sleep(Duration::from_millis(1200));
    redis.freeze();
    std::thread::sleep(Duration::from_millis(2900));
    redis.thaw();
    std::thread::sleep(Duration::from_millis(3200));
    hold.check().expect("renewed after all");
    hold.release().expect("released");
    let next = mutex.acquire().expect("acquired");
    until("the next hold is renewed, too", || next.valid_for().is_some_and(|left| left < Duration::from_millis(5000)));
    until("it is", || next.valid_for().is_some_and(|left| left > Duration::from_millis(5500)));
    next.release().expect("released");
}

#[test]
fn r20_a_server_that_refuses_writes_costs_the_hold_and_leaves_no_key() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("r20?ttl=1s"));
    let (kept, released) = (mutex.acquire().expect("acquired"), open(&redis.url("r20-released?ttl=1s")));
    let hold = released.acquire().expect("acquired");
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "1"]);
    assert_eq!(kind_of(released.try_acquire()), ErrorKind::Unavailable);
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    until("its lease ends it", || kept.check().is_err());
    assert_eq!(kind_of(kept.release()), ErrorKind::Lost);
    until("no key is left", || redis.command(&["EXISTS", "ipcmutex:r20", "ipcmutex:r20-released"]).number() == 0);
    redis.command(&["CONFIG", "SET", "min-replicas-to-write", "0"]);
    let next = mutex.acquire_with(within(LONG)).expect("acquired");
    assert!(next.abandoned(), "its lease ran out");
    next.release().expect("released");
}

#[test]
fn r26_what_is_no_answer_is_an_error() {
    // Each answer to whatever is asked; then it is silent.
    let answers: [&[u8]; 8] = [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\0\0\0\0\0\0\0\0\r\n",
        b":12abc\r\n",
        b"$-7\r\n",
        b"$5\r\nabcdefgh\r\n",
        b"*-3\r\n",
        b"?what\r\n",
        b"=3\r\nxy\r\n",
    ];
    for answer in answers {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address");
        std::thread::spawn(move || {
            for mut client in listener.incoming().map_while(Result::ok) {
                let mut asked = [0; 4096];
                while client.read(&mut asked).is_ok_and(|read| read > 0) {
                    if client.write_all(answer).is_err() {
                        break;
                    }
                }
            }
        });
        let url = format!("rpm+redis://:c4nary@{address}/r26?connect_timeout=500ms");
        let begun = Instant::now();
        let error = Mutex::open(&url).and_then(|mutex| mutex.try_acquire().map(drop)).expect_err("it is no server");
        let shown = String::from_utf8_lossy(answer);
        let wrong = [ErrorKind::Protocol, ErrorKind::Unavailable].contains(&error.kind());
        assert!(wrong, "{shown:?}: {error:?}");
        secrets::search(&format!("{error} {error:?}"));
        assert!(begun.elapsed() < LONG, "{shown:?}");
    }
}

/// The words of the first request, and where it ends, once it has come whole.
fn request(bytes: &[u8]) -> Option<(Vec<String>, usize)> {
    let number = |at: usize| {
        let end = at + bytes.get(at..)?.windows(2).position(|two| two == b"\r\n")?;
        Some((std::str::from_utf8(&bytes[at + 1..end]).ok()?.parse::<usize>().ok()?, end + 2))
    };
    let (count, mut end) = number(0)?;
    let mut words = Vec::new();
    for _ in 0..count {
        let (length, start) = number(end)?;
        end = start + length + 2;
        words.push(String::from_utf8_lossy(bytes.get(start..end)?).trim_end_matches("\r\n").to_owned());
    }
    Some((words, end))
}

/// What a server answers where another one holds the lock; `None` if somebody who waits by itself asks for it.
fn usual(words: &[String]) -> Option<String> {
    let bulk = |text: &str| format!("${}\r\n{text}\r\n", text.len());
    Some(match words[0].as_str() {
        "HELLO" => "%1\r\n+proto\r\n:3\r\n".to_owned(),
        "SUBSCRIBE" => format!(">3\r\n{}{}:1\r\n", bulk("subscribe"), bulk(&words[1])),
        "EVALSHA" => match &words[words[2].parse::<usize>().expect("a number of keys") + 3..] {
            [_, _, process, _, _, _, ..] if process.len() == 17 => return None,
            [token, _, _, _, _, _, ..] => {
                let owner = bulk("7 host label");
                format!("*10\r\n:0\r\n:30000\r\n:0\r\n{}:1\r\n:0\r\n{owner}:5\r\n:1\r\n{}", bulk("7"), bulk(token))
            }
            _ => ":1\r\n".to_owned(),
        },
        _ => "+OK\r\n".to_owned(),
    })
}

/// The lock on a server that answers as `unusual` does whoever waits by itself.
fn hostile(unusual: impl Fn(&mut TcpStream) + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    let unusual = Arc::new(unusual);
    let serve = move |mut client: TcpStream| {
        let (mut asked, mut buffer) = (Vec::new(), [0; 4096]);
        while let Some(read) = client.read(&mut buffer).ok().filter(|read| *read > 0) {
            asked.extend_from_slice(&buffer[..read]);
            while let Some((words, end)) = request(&asked) {
                asked.drain(..end);
                match usual(&words) {
                    Some(answer) if client.write_all(answer.as_bytes()).is_err() => return,
                    Some(_) => {}
                    None => unusual(&mut client),
                }
            }
        }
    };
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let serve = serve.clone();
            std::thread::spawn(move || serve(client));
        }
    });
    format!("rpm+redis://{address}/hostile?policy=any")
}

#[test]
fn an_answer_that_is_nested_without_end_ends_no_process() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let url = hostile(move |client| {
        let _ = client.write_all(&b"*1\r\n".repeat(300_000));
        let _ = tell.lock().expect("no panic").send(());
    });
    let agent = Agent::start_with(Language::Rust, &[talkative()]);
    agent.open(1, &url).ok();
    let mut heard = 0;
    until("who waits by itself has asked three times", || {
        agent.call("acquire 1 500").err(ErrorKind::Timeout);
        heard += told.try_iter().count();
        heard >= 3
    });
}

#[test]
fn an_answer_without_end_is_not_read_for_ever() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    // More than what may be under way.
    let much = 32 << 20;
    let url = hostile(move |client| {
        let mut given_up = client.write_all(b"$1000000000\r\n").is_err();
        for _ in 0..much / 4096 {
            given_up = given_up || client.write_all(&[b'x'; 4096]).is_err();
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = tell.lock().expect("no panic").send(given_up);
    });
    let mutex = open(&url);
    until("who waits by itself was answered", || {
        assert_eq!(kind_of(mutex.acquire_with(within(Duration::from_millis(500)))), ErrorKind::Timeout);
        told.try_recv().is_ok_and(|given_up| {
            assert!(given_up, "all of it was read");
            true
        })
    });
}

/// Nor by who asks on its own thread.
#[test]
fn an_answer_without_end_is_not_kept_in_memory() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its address");
    // More than what may be under way beside the longest answer.
    let much = 64 << 20;
    let serves = std::thread::spawn(move || {
        let (mut client, _) = listener.accept().expect("a connection");
        let mut given_up = client.write_all(b"$1000000000\r\n").is_err();
        for _ in 0..much / 4096 {
            given_up = given_up || client.write_all(&[b'x'; 4096]).is_err();
        }
        given_up
    });
    let error = Mutex::open(&format!("rpm+redis://{address}/endless")).expect_err("it is no server");
    assert!(serves.join().expect("no panic"), "all of it was read");
    assert_eq!(error.kind(), ErrorKind::Protocol, "{error}");
}

/// It repeats what was sent with a command that it does not know, cut.
#[test]
fn a_server_that_knows_no_auth_has_no_secret_shown() {
    needs_redis!();
    let redis = Redis::with(None, &["rename-command AUTH \"\""]);
    let secret = secrets::password(&"0123456789".repeat(20));
    for user in ["", "me"] {
        let url = redis.url_with_user(user, &secret, "p8");
        for url in [format!("{url}?protocol=2"), url] {
            assert_eq!(kind_of(Mutex::open(&url)), ErrorKind::Config);
        }
    }
}

#[test]
fn r30_leases_that_are_none() {
    for ttl in ["0", "0s", "1ms", "99ms", "25h", "-1s", "9223372036854775807ms", "1e9s", "x"] {
        let refused = Mutex::open(&format!("rpm+redis://127.0.0.1:1/r30?ttl={ttl}"));
        assert_eq!(kind_of(refused), ErrorKind::Invalid, "{ttl}");
    }
    // No moment is so far ahead.
    let refused = Mutex::open("rpm+redis://127.0.0.1:1/r30?connect_timeout=5000000000000000h");
    assert_eq!(kind_of(refused), ErrorKind::Invalid);
}

/// Of what was refused nothing is in doubt: that the lock is somebody else's is a loss.
#[test]
fn a_release_that_was_refused_once_is_not_in_doubt() {
    needs_redis!();
    for language in [Language::Rust, Language::Python, Language::Node] {
        let redis = Redis::start();
        let agent = Agent::start_with(language, &[talkative()]);
        agent.open(1, &redis.url("refused?ttl=60s&renew=off")).ok();
        // By then an event loop has a connection of its own.
        for _ in 0..20 {
            agent.call("acquire 1 forever").ok();
            agent.call("release 1").ok();
        }
        agent.call("acquire 1 forever").ok();
        redis.command(&["DEL", "ipcmutex:refused"]);
        let other = open(&redis.url("refused"));
        let hold = other.try_acquire().expect("no error").expect("it is free");
        redis.command(&["SCRIPT", "FLUSH"]);
        agent.call("release 1").err(ErrorKind::Lost);
        hold.release().expect("it is still the other's");
    }
}

/// One name, and another server behind it: the old one is its replica now, and keeps the connections that it has.
#[test]
fn a_name_that_leads_to_another_server_is_followed() {
    needs_redis!();
    let old = Redis::with(None, &["repl-diskless-sync-delay 0"]);
    let port = |redis: &Redis| redis.address().replace("127.0.0.1:", "");
    let new = Redis::with(None, &[&format!("replicaof 127.0.0.1 {}", port(&old))]);
    until("the replica has caught up", || old.info("replication", "slave0").contains("state=online"));
    let name = Proxy::before(&old.address());
    let (mutex, lost) = (open(&old.url_at(name.address(), "a?ttl=6s")), open(&old.url_at(name.address(), "b?ttl=60s")));
    let kept = open(&old.url_at(name.address(), "kept?ttl=6s"));
    mutex.acquire().expect("acquired").release().expect("released");
    let (kept, hold) = (kept.acquire().expect("acquired"), lost.acquire().expect("acquired"));
    kept.extend(None).expect("the link is up");
    until("both are copied", || new.command(&["EXISTS", "ipcmutex:kept", "ipcmutex:b"]).number() == 2);
    assert_eq!(new.command(&["REPLICAOF", "NO", "ONE"]).text(), "OK");
    name.lead_to(&new.address());
    assert_eq!(old.command(&["REPLICAOF", "127.0.0.1", &port(&new)]).text(), "OK");
    assert_eq!(new.command(&["SET", "ipcmutex:b", "another's"]).text(), "OK");
    // The old server refuses it, the new one says whose it is: nothing was in doubt.
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    mutex.acquire_with(within(LONG)).expect("the new one serves it").release().expect("released");
    until_renewed(&kept);
    kept.release().expect("it stands on the new one");
}

/// What a try was told long before is none of its time.
#[test]
fn a_wait_has_all_of_its_patience_whatever_failed_before() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("patience"));
    let most = |bytes| assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", bytes]).text(), "OK");
    most("1");
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    most("0");
    // Longer than a wait without a timeout has patience.
    std::thread::sleep(Duration::from_millis(5500));
    most("1");
    let begun = Instant::now();
    assert_eq!(kind_of(mutex.acquire()), ErrorKind::Unavailable);
    assert!(begun.elapsed() > Duration::from_secs(4), "{:?}", begun.elapsed());
}

/// Another handle of the process has found that since, and all of it go by what that one is told.
#[test]
fn what_failed_before_is_not_told_when_the_server_is_well() {
    needs_redis!();
    let redis = Redis::start();
    redis.command(&["ACL", "SETUSER", "plain", "on", ">c4nary", "~*", "&*", "+@all", "-@scripting"]);
    let url = redis.url_with_user("plain", "c4nary", "mended?ttl=60s");
    let (failed, waits) = (open(&url), open(&url));
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "1"]).text(), "OK");
    assert_eq!(kind_of(failed.acquire_with(within(Duration::from_millis(500)))), ErrorKind::Unavailable);
    assert_eq!(redis.command(&["CONFIG", "SET", "maxmemory", "0"]).text(), "OK");
    let hold = open(&redis.url("mended?ttl=60s")).acquire().expect("acquired");
    // It has no place in the server's line, and whoever comes to its process later is behind it.
    let waiting = waits.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    assert_eq!(redis.command(&["CONFIG", "RESETSTAT"]).text(), "OK");
    let looks =
        || -> Option<u64> { redis.info("commandstats", "cmdstat_watch").split(['=', ',']).nth(1)?.parse().ok() };
    until("it looks again and again", || looks() >= Some(5));
    until("it is seen to be taken", || failed.try_acquire().is_ok_and(|hold| hold.is_none()));
    assert_eq!(kind_of(failed.acquire_with(within(Duration::from_millis(500)))), ErrorKind::Timeout);
    waiting.cancel();
    hold.release().expect("released");
}
