//! A thread that waits for its turn on a connection of its own, by itself, and what makes it go on by way of the background thread.

use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use ipcmutex::{Cancel, ErrorKind, EventLoop, Hold, Mutex, Timeout, Waiting};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::needs_redis;
use ipcmutex_tests::place::{Place, freeze, signal};
use ipcmutex_tests::proxy::{End, Fault, From, On, Proxy};
use ipcmutex_tests::servers::{Redis, Reply};
use rustix::process::{Pid, Signal, kill_process};

use super::built;

/// Who stands in the line of the lock: whether each of them hears by itself.
fn line(redis: &Redis, id: &str) -> Vec<bool> {
    match redis.command(&["ZRANGE", &format!("{{ipcmutex:{id}}}:line"), "0", "-1"]) {
        Reply::List(members) => members
            .iter()
            .map(|member| member.text().split_once('.').is_some_and(|(process, _)| process.len() == 17))
            .collect(),
        other => panic!("{other:?}"),
    }
}

/// What `wait` came to, when it waited by itself for the hold that `then` was given.
fn directly<T: Send>(
    redis: &Redis,
    id: &str,
    wait: impl Fn() -> T + Sync,
    then: impl FnOnce(Hold) -> Option<Hold>,
) -> T {
    // Of another engine, for it says who it is in another way.
    let other = open(&redis.url_at(&redis.address().replace("127.0.0.1", "localhost"), id));
    directly_behind(&other, redis, id, wait, then)
}

/// The same, of a hold of `other`.
fn directly_behind<T: Send>(
    other: &Mutex,
    redis: &Redis,
    id: &str,
    wait: impl Fn() -> T + Sync,
    then: impl FnOnce(Hold) -> Option<Hold>,
) -> T {
    let mut then = Some(then);
    loop {
        let hold = served(other);
        let (outcome, kept) = std::thread::scope(|scope| {
            let waits = scope.spawn(&wait);
            until("it waits", || line(redis, id).len() == 1);
            let kept = match then.take_if(|_| line(redis, id) == [true]) {
                Some(then) => then(hold),
                None => {
                    hold.release().expect("released");
                    None
                }
            };
            (waits.join().expect("no panic"), kept)
        });
        if let Some(kept) = kept {
            kept.release().expect("released");
        }
        if then.is_none() {
            return outcome;
        }
    }
}

/// Whoever else is served holds it for ever.
fn served(mutex: &Mutex) -> Hold {
    mutex.acquire_timeout(LONG).expect("no error").expect("served")
}

/// The hold is let go.
fn released(hold: Hold) -> Option<Hold> {
    hold.release().expect("released");
    None
}

fn is_free_and_empty(mutex: &Mutex) {
    until("nobody holds it and nobody waits", || {
        mutex.status().is_ok_and(|status| status.state == ipcmutex::State::Free && status.waiters == 0)
    });
}

#[test]
fn who_waits_by_itself_is_served_and_told_of_a_break() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("direct?ttl=1h"));
    let hold = directly(&redis, "direct", || served(&mutex), released);
    let (tell, told) = std::sync::mpsc::channel();
    hold.on_lost(move |error| tell.send(error.kind()).expect("the test listens")).expect("held");
    assert!(mutex.break_lock().expect("broken"));
    // A renewal would see it in twenty minutes.
    assert_eq!(told.recv_timeout(LONG).expect("told"), ErrorKind::Lost);
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    let next = served(&mutex);
    assert!(next.abandoned());
    next.release().expect("released");
    is_free_and_empty(&mutex);
}

/// Three connections are enough for all that a process does.
#[test]
fn an_event_loop_that_asks_no_more_makes_way_for_who_waits_by_itself() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("makes-way"));
    let (tell, told) = channel();
    let on = EventLoop::new(move |watched| tell.send(watched).expect("the loop runs"));
    let pair = || {
        let (acquired, holds) = channel();
        mutex.acquire_on(&on, Timeout::FOREVER, move |outcome| acquired.send(outcome).expect("it is awaited"));
        let hold = holds.recv_timeout(LONG).expect("told").expect("acquired");
        let (released, ends) = channel();
        hold.release_on(&on, move |outcome| released.send(outcome).expect("it is awaited"));
        ends.recv_timeout(LONG).expect("told").expect("released");
    };
    let watched = loop {
        pair();
        if let Ok(watched) = told.try_recv() {
            break watched;
        }
    };
    watched.start();
    pair();
    let other = open(&redis.unix_url("makes-way"));
    let theirs = |hold: Hold| {
        let Reply::Text(list) = redis.command(&["CLIENT", "LIST"]) else { panic!("CLIENT LIST") };
        let connections = list.lines().filter(|line| line.contains(" addr=127")).count();
        assert!(connections <= 3, "{connections} connections:\n{list}");
        released(hold)
    };
    directly_behind(&other, &redis, "makes-way", || served(&mutex).release(), theirs).expect("released");
    // And back, when that one waits no more.
    pair();
    while told.try_recv().is_err() {
        pair();
    }
}

/// That one's release grants nothing, but says whose turn it is.
#[test]
fn who_waits_by_itself_is_told_by_who_shares_the_key_with_other_libraries() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("shares?ttl=60s"));
    let other = open(&redis.unix_url("shares&redis_key=ipcmutex:shares&ttl=60s"));
    let begun = Instant::now();
    directly_behind(&other, &redis, "shares", || served(&mutex).release(), released).expect("released");
    assert!(begun.elapsed() < Duration::from_secs(10), "by itself it looks in 20 s: {:?}", begun.elapsed());
    is_free_and_empty(&mutex);
}

#[test]
fn a_wait_by_itself_ends_by_timeout_by_cancellation_and_by_close() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("ends"));
    for _ in 0..3 {
        let wait = || mutex.acquire_timeout(Duration::from_millis(500));
        let outcome = directly(&redis, "ends", wait, |hold| {
            until("it has left", || waiters(&mutex) == 0);
            Some(hold)
        });
        assert!(outcome.expect("no error").is_none());

        let cancel = std::sync::Mutex::new(Cancel::new());
        let wait = || {
            let token = Cancel::new();
            *cancel.lock().expect("no panic") = token.clone();
            mutex.acquire_with(Waiting { cancel: Some(&token), timeout: LONG.into(), ..Waiting::default() })
        };
        let outcome = directly(&redis, "ends", wait, |hold| {
            cancel.lock().expect("no panic").cancel();
            until("it has left", || waiters(&mutex) == 0);
            Some(hold)
        });
        assert_eq!(kind_of(outcome), ErrorKind::Canceled);
    }
    let outcome = directly(
        &redis,
        "ends",
        || mutex.acquire_with(within(LONG)),
        |hold| {
            mutex.close().expect("closed");
            Some(hold)
        },
    );
    assert_eq!(kind_of(outcome), ErrorKind::Closed);
    is_free_and_empty(&open(&redis.url("ends")));
}

/// Its look at the end of the lease is under way, and is not answered.
#[test]
fn a_wait_by_itself_ends_in_time_when_the_server_is_silent() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("silent"));
    let other = open(&redis.unix_url("silent&ttl=1s"));
    let wait = || {
        let begun = Instant::now();
        let outcome = mutex.acquire_timeout(Duration::from_millis(1500));
        redis.thaw();
        (outcome, begun.elapsed())
    };
    let mut kept = None;
    let (outcome, took) = directly_behind(&other, &redis, "silent", wait, |hold| {
        redis.freeze();
        kept = Some(hold);
        None
    });
    assert!(!outcome.is_ok_and(|hold| hold.is_some()), "nobody granted it");
    assert!(took < Duration::from_millis(2500), "a wait of 1.5 s took {took:?}");
    drop(kept);
    served(&mutex).release().expect("released");
    is_free_and_empty(&mutex);
}

/// The connection on which it would wait the next time is made meanwhile.
#[test]
fn a_wait_ends_in_time_when_the_server_falls_silent_as_its_connection_is_made() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "made"));
    let hold = served(&open(&redis.unix_url("made")));
    proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Silence, on: On::Ear });
    until("the connection was to be made", || {
        let begun = Instant::now();
        assert!(mutex.acquire_timeout(Duration::from_millis(500)).expect("an answer").is_none());
        assert!(begun.elapsed() < Duration::from_millis(1500), "a wait of 0.5 s took {:?}", begun.elapsed());
        proxy.struck() == 1
    });
    hold.release().expect("released");
    served(&mutex).release().expect("released");
}

/// Signals are kept back meanwhile, and come before it waits: nobody wakes the child, which is told so.
#[test]
fn a_child_that_is_forked_as_a_wait_makes_its_connection_does_not_wait() {
    needs_redis!();
    const PROGRAM: &str = r#"
#include <ipcmutex.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static volatile pid_t child = -1;
static void fork_here(int number) {
    (void)number;
    child = fork();
    if (child == 0) alarm(10);
    else if (write(1, "f", 1) != 1) _exit(6);
}
int main(int count, char **words) {
    struct sigaction action = {.sa_handler = fork_here};
    ipcmutex_t mutex;
    int code, status;
    if (count != 2 || sigaction(SIGUSR1, &action, NULL) != 0) return 1;
    if (ipcmutex_open(words[1], &mutex) != IPCMUTEX_OK) return 2;
    if (ipcmutex_acquire_timeout(mutex, 100) != IPCMUTEX_TIMEOUT) return 3;
    code = ipcmutex_acquire(mutex);
    if (child == 0) _exit(code == IPCMUTEX_FORKED ? 7 : 8);
    if (code != IPCMUTEX_OK || child < 0 || waitpid(child, &status, 0) != child) return 4;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 5;
}
"#;
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let place = Place::new();
    let program = built(&place, PROGRAM);
    let hold = served(&open(&redis.unix_url("forks")));
    proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Silence, on: On::Ear });
    let url = redis.url_at(proxy.address(), "forks");
    let mut waits = Command::new(program).arg(url).stdout(Stdio::piped()).spawn().expect("it runs");
    until("its connection is being made", || proxy.struck() == 1);
    kill_process(Pid::from_child(&waits), Signal::USR1).expect("it is there");
    waits.stdout.as_mut().expect("a pipe").read_exact(&mut [0]).expect("it has forked");
    hold.release().expect("released");
    assert_eq!(waits.wait().expect("it ends").code(), Some(7));
}

/// The server hears of the end of the wait before it hears of the look, which puts it in the line again.
#[test]
fn a_wait_that_is_cancelled_while_it_looks_leaves_nothing_in_the_line() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "looks"));
    let other = open(&redis.unix_url("looks"));
    for answer_is_lost in [false, true] {
        let cancel = std::sync::Mutex::new(Cancel::new());
        let wait = || {
            let token = Cancel::new();
            *cancel.lock().expect("no panic") = token.clone();
            mutex.acquire_with(Waiting { cancel: Some(&token), timeout: LONG.into(), ..Waiting::default() })
        };
        let mut held = None;
        let outcome = directly_behind(&other, &redis, "looks", wait, |hold| {
            held = Some(hold);
            proxy.keep_asked(true);
            let Reply::List(members) = redis.command(&["ZRANGE", "{ipcmutex:looks}:line", "0", "0"]) else { panic!() };
            let (process, token) = members[0].text().split_once('.').expect("a member");
            // As if the lease ended now.
            redis.command(&["PUBLISH", &format!("ipcmutex:w:{process}"), &format!("H {token} 0")]);
            until("it looks", || proxy.keeps_asked());
            cancel.lock().expect("no panic").cancel();
            until("it has left the line", || line(&redis, "looks").is_empty());
            if answer_is_lost {
                proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Cut, on: On::Ear });
            }
            proxy.keep_asked(false);
            None
        });
        assert_eq!(kind_of(outcome), ErrorKind::Canceled);
        assert_eq!(proxy.struck(), u64::from(answer_is_lost));
        until("nothing of it is left in the line", || line(&redis, "looks").is_empty());
        held.expect("it was given").release().expect("released");
        is_free_and_empty(&mutex);
    }
}

#[test]
fn a_wait_whose_connection_is_cut_keeps_its_place() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("cut"));
    let behind = Agent::start_with(Language::Rust, &[talkative()]);
    behind.open(1, &redis.url("cut")).ok();
    let mut later = None;
    let hold = directly(
        &redis,
        "cut",
        || served(&mutex),
        |hold| {
            later = Some(behind.begin("hold 1 1 forever"));
            until("both wait", || line(&redis, "cut") == [true, false]);
            redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
            until("it has moved, and stands first", || line(&redis, "cut") == [false, false]);
            released(hold)
        },
    );
    let later = later.expect("it waited");
    assert!(later.is_waiting(), "who came later was served first");
    let first = hold.token();
    hold.release().expect("released");
    assert!(later.reply().ok().token() > first);
    behind.call("end 1").ok();
    is_free_and_empty(&mutex);
}

/// Its turn comes to nothing as the answer is cut off: it is not passed over for that.
#[test]
fn a_wait_whose_turn_is_cut_is_served_before_those_behind_it() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let mutex = open(&redis.url_at(proxy.address(), "turn?ttl=60s"));
    let (other, later) = (open(&redis.unix_url("turn")), open(&redis.url("turn")));
    let token = |hold: Hold| {
        let token = hold.token();
        hold.release().map(|()| token)
    };
    loop {
        let (tell, told) = std::sync::mpsc::channel();
        let (mut quick, struck) = (false, proxy.struck());
        let first = directly_behind(
            &other,
            &redis,
            "turn",
            || token(served(&mutex)),
            |hold| {
                let done = move |outcome: ipcmutex::Result<Hold>| drop(tell.send(outcome.and_then(token)));
                later.acquire_callback(Timeout::FOREVER, done).expect("it begins");
                until("both wait", || line(&redis, "turn") == [true, false]);
                proxy.keep_asked(true);
                let begun = Instant::now();
                hold.release().expect("released");
                until("it takes its turn", || proxy.keeps_asked());
                proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Cut, on: On::Ear });
                proxy.keep_asked(false);
                until("the answer is cut off", || proxy.struck() > struck);
                // Later than 0.4 s it would be right to pass it over.
                quick = begun.elapsed() < Duration::from_millis(300);
                None
            },
        );
        let later = told.recv_timeout(LONG).expect("told").expect("served and released");
        if quick {
            assert!(first.expect("released") < later, "who came later was served first");
            break;
        }
    }
    is_free_and_empty(&other);
}

/// The one before it, of its own process, stands in the line still: that says nothing of the place of one that moves.
#[test]
fn who_waits_behind_its_own_process_keeps_its_place_when_both_are_cut() {
    needs_redis!();
    let redis = Redis::start();
    let (mutex, other) = (open(&redis.url("behind")), open(&redis.unix_url("behind")));
    let later = open(&redis.url_at(&redis.address().replace("127.0.0.1", "localhost"), "behind"));
    let turn = |mutex: &Mutex| {
        let hold = served(mutex);
        let token = hold.token();
        hold.release().expect("released");
        token
    };
    let tokens = loop {
        let hold = served(&other);
        let (tell, told) = std::sync::mpsc::channel();
        mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
        until("one waits", || line(&redis, "behind").len() == 1);
        let tokens = std::thread::scope(|scope| {
            let second = scope.spawn(|| turn(&mutex));
            until("two wait", || line(&redis, "behind").len() == 2);
            let third = (line(&redis, "behind") == [false, true]).then(|| {
                let third = scope.spawn(|| turn(&later));
                until("three wait", || line(&redis, "behind").len() == 3);
                redis.command(&["CLIENT", "KILL", "TYPE", "pubsub"]);
                until("it has moved, and stands where it stood", || line(&redis, "behind") == [false; 3]);
                third
            });
            hold.release().expect("released");
            let first = told.recv_timeout(LONG).expect("told").expect("served");
            let before = first.token();
            first.release().expect("released");
            let second = second.join().expect("no panic");
            third.map(|third| [before, second, third.join().expect("no panic")])
        });
        if let Some(tokens) = tokens {
            break tokens;
        }
    };
    assert!(tokens.is_sorted(), "served out of order: {tokens:?}");
    is_free_and_empty(&mutex);
}

/// Who has begun to wait first may be heard by the server later, and stands behind. Who is passed over first, while the
/// process cannot be told, is the one that stands first.
#[test]
fn who_was_passed_over_comes_back_whoever_of_its_process_began_before() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, other) = (open(&redis.url_at(proxy.address(), "passed")), open(&redis.unix_url("passed")));
    // One is granted the lock, and the other one is told that it is the next.
    let between = [(); 2].map(|()| Agent::start_with(Language::Rust, &[talkative()]));
    for agent in &between {
        agent.open(1, &redis.url("passed")).ok();
    }
    loop {
        directly_behind(&other, &redis, "passed", || served(&mutex).release(), released).expect("released");
        let hold = served(&other);
        proxy.keep_asked(true);
        let done = std::thread::scope(|scope| {
            let early = scope.spawn(|| served(&mutex).release().expect("released"));
            until("it asks", || proxy.keeps_asked() || line(&redis, "passed").len() == 1);
            if !proxy.keeps_asked() {
                proxy.keep_asked(false);
                hold.release().expect("released");
                return false;
            }
            let (tell, told) = std::sync::mpsc::channel();
            mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
            until("one waits", || line(&redis, "passed") == [false]);
            let next = between[0].begin("hold 1 1 forever");
            until("two wait", || line(&redis, "passed") == [false; 2]);
            let last = between[1].begin("hold 1 1 forever");
            until("three wait", || line(&redis, "passed") == [false; 3]);
            proxy.keep_asked(false);
            until("four wait", || line(&redis, "passed") == [false, false, false, true]);
            proxy.cut_all();
            until("it has moved", || line(&redis, "passed") == [false; 4]);
            proxy.close(true);
            proxy.cut_all();
            let heard = || redis.command(&["PUBSUB", "CHANNELS", "ipcmutex:w:*"]);
            until("the agents alone hear", || matches!(heard(), Reply::List(list) if list.len() == 2));
            hold.release().expect("released");
            next.reply().ok();
            assert_eq!(line(&redis, "passed"), [false; 2]);
            proxy.close(false);
            until("both stand in the line", || line(&redis, "passed") == [false; 3]);
            between[0].call("end 1").ok();
            told.recv_timeout(LONG).expect("told").expect("served").release().expect("released");
            last.reply().ok();
            between[1].call("end 1").ok();
            early.join().expect("no panic");
            true
        });
        if done {
            break;
        }
    }
    is_free_and_empty(&other);
}

/// Nothing is told of it: the lease ends, and who waits looks.
#[test]
fn who_waits_by_itself_for_one_who_dies_looks_when_the_lease_ends() {
    needs_redis!();
    let redis = Redis::start();
    let mutex = open(&redis.url("dies"));
    let dying = Agent::start_with(Language::Rust, &[talkative()]);
    dying.open(1, &redis.url("dies?ttl=2s")).ok();
    let hold = loop {
        dying.call("hold 1 1 forever").ok();
        let (died, hold) = std::thread::scope(|scope| {
            let waits = scope.spawn(|| served(&mutex));
            until("it waits", || line(&redis, "dies").len() == 1);
            let direct = line(&redis, "dies") == [true];
            if direct {
                dying.kill(u64::from(dying.pid()));
            } else {
                dying.call("end 1").ok();
            }
            (direct, waits.join().expect("no panic"))
        });
        if died {
            break hold;
        }
        hold.release().expect("released");
    };
    assert!(hold.abandoned());
    hold.release().expect("released");
    is_free_and_empty(&mutex);
}

/// That it is first now, a waiter is told while its process is stopped; its own look is due when the lease ends.
#[test]
fn a_word_that_lay_unread_puts_no_look_off() {
    needs_redis!();
    let redis = Redis::start();
    std::thread::scope(|scope| {
        for (id, by_itself) in [("by-the-thread", false), ("by-itself", true)] {
            let redis = &redis;
            scope.spawn(move || stopped_when_it_is_told(redis, id, by_itself));
        }
    });
}

fn stopped_when_it_is_told(redis: &Redis, id: &str, by_itself: bool) {
    let (mutex, dying) = (open(&redis.url(id)), open(&redis.unix_url(&format!("{id}&ttl=3s&renew=off"))));
    let stopped = Agent::start_with(Language::Rust, &[talkative()]);
    stopped.open(1, &redis.url(id)).ok();
    loop {
        let hold = served(&dying);
        let begun = Instant::now();
        let first = mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
        until("one waits", || line(redis, id).len() == 1);
        let waits = stopped.begin("hold 1 1 forever");
        until("two wait", || line(redis, id).len() == 2);
        if line(redis, id) != [false, by_itself] {
            first.cancel();
            hold.release().expect("released");
            waits.reply().ok();
            stopped.call("end 1").ok();
            continue;
        }
        freeze(&stopped);
        first.cancel();
        until("it is first", || line(redis, id) == [by_itself]);
        std::thread::sleep(Duration::from_secs(2).saturating_sub(begun.elapsed()));
        signal(&stopped, Signal::CONT);
        let going_on = Instant::now();
        assert!(waits.reply().ok().abandoned(), "nobody renewed it");
        let waited = going_on.elapsed();
        assert!(waited < Duration::from_secs(2), "it owns {waited:?} later, of a lease that had 1 s left");
        stopped.call("end 1").ok();
        return drop(hold);
    }
}

/// A hundred turns each, of threads of one process and of another process: one of each process waits by itself.
#[test]
fn all_who_wait_take_turns_whichever_way() {
    needs_redis!();
    let redis = Redis::start();
    let url = redis.url("turns");
    let (mutex, inside) = (open(&url), std::sync::atomic::AtomicU32::new(0));
    let last = std::sync::Mutex::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let hold = served(&mutex);
                    assert_eq!(inside.fetch_add(1, std::sync::atomic::Ordering::SeqCst), 0, "two are inside");
                    let before = std::mem::replace(&mut *last.lock().expect("no panic"), hold.token());
                    assert!(hold.token() > before, "served out of order");
                    inside.fetch_sub(1, std::sync::atomic::Ordering::SeqCst);
                    hold.release().expect("released");
                }
            });
        }
    });
    is_free_and_empty(&mutex);
}

/// So far that no such connection is made in the time that there is for it: that is not tried again each time.
#[test]
fn a_server_that_is_far_is_not_connected_to_with_each_wait() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = (open(&redis.url_at(proxy.address(), "far")), open(&redis.unix_url("far")));
    mutex.acquire().expect("acquired").release().expect("released");
    proxy.delay(Duration::from_millis(55));
    let turn = || {
        let hold = served(&straight);
        std::thread::scope(|scope| {
            let next = scope.spawn(|| served(&mutex).release().expect("released"));
            until("it waits", || line(&redis, "far").len() == 1);
            hold.release().expect("released");
            next.join().expect("no panic");
        });
    };
    // Somebody else of its process waits, so that all other connections are there.
    let _kept = open(&redis.unix_url("kept")).acquire().expect("acquired");
    let waits =
        open(&redis.url_at(proxy.address(), "kept")).acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("it waits", || line(&redis, "kept").len() == 1);
    let made = proxy.connections().len();
    until("it has been tried", || {
        turn();
        proxy.connections().len() > made
    });
    let made = proxy.connections().len();
    (0..5).for_each(|_| turn());
    assert_eq!(proxy.connections().len(), made, "each wait connects anew");
    waits.cancel();
}

/// Who will not wait for long does not spend its time on a connection for the next wait.
#[test]
fn a_short_wait_makes_no_connection() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = (open(&redis.url_at(proxy.address(), "short")), open(&redis.unix_url("short")));
    let hold = served(&straight);
    let wait = |limit| assert!(mutex.acquire_timeout(limit).expect("no error").is_none());
    // The link is up, and stays for who waits on it.
    let long = mutex.acquire_callback(Timeout::FOREVER, drop).expect("it begins");
    until("it waits", || line(&redis, "short").len() == 1);
    let made = proxy.connections().len();
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        wait(Duration::from_millis(20));
    }
    assert_eq!(proxy.connections().len(), made);
    long.cancel();
    hold.release().expect("released");
    is_free_and_empty(&straight);
}
