//! Connections that are cut at every byte of every exchange, and answers that never come: no ghost is left holding the
//! lock, no holder is told that it is none, and the next one gets it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Hold, Mutex, State, Timeout};
use ipcmutex_tests::proxy::{End, Fault, From, On, Proxy};
use ipcmutex_tests::servers::{Redis, Reply};

use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::asking::{LONG, kind_of, open, until, waiters, within};
use ipcmutex_tests::figures::figure;
use ipcmutex_tests::needs_redis;

use super::both_ways;

/// Runs `exchange` with a cut after each number of bytes, until one comes that the exchange does not reach; how many
/// there were. `lane` of `lanes` does its share of the numbers.
fn cut_everywhere(
    proxy: &Proxy,
    from: From,
    on: On,
    (lane, lanes): (usize, usize),
    mut exchange: impl FnMut(&dyn Fn()),
) -> usize {
    let mut cuts = 0;
    for bytes in (lane..).step_by(lanes) {
        exchange(&|| proxy.arm(Fault { from, bytes, end: End::Cut, on }));
        if !proxy.disarm() {
            return cuts;
        }
        cuts += 1;
    }
    cuts
}

fn side(from: From) -> &'static str {
    if from == From::Client { "call" } else { "answer" }
}

/// Nobody holds it, and the next one gets it at once.
#[track_caller]
fn next_one_gets_it(straight: &Mutex, after: u64) -> u64 {
    let next = straight.try_acquire().expect("no error").expect("the lock is free");
    let token = next.token();
    assert!(token > after, "the token rises: {token} after {after}");
    assert!(!next.abandoned(), "it was released");
    next.release().expect("released");
    token
}

#[track_caller]
fn is_alone(hold: &Hold, straight: &Mutex) {
    hold.check().expect("it stands");
    assert!(straight.try_acquire().expect("no error").is_none(), "two hold it");
}

#[test]
fn r6_a_take_takes_once_wherever_the_connection_is_cut() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "r6");
    let mut last = 0;
    for from in [From::Client, From::Server] {
        let cuts = cut_everywhere(&proxy, from, On::Caller, (0, 1), |arm| {
            arm();
            let hold = mutex.try_acquire().expect("asked again").expect("nobody else wants it");
            proxy.disarm_for(|| is_alone(&hold, &straight));
            assert!(hold.token() > last);
            last = hold.token();
            proxy.disarm_for(|| hold.release().expect("released"));
            last = next_one_gets_it(&straight, last);
        });
        assert!(cuts > if from == From::Client { 200 } else { 20 }, "{from:?}: {cuts}");
        figure("R6", format!("cut after each of {cuts} bytes of the {}: one hold each time", side(from)));
    }
}

#[test]
fn r7_a_release_is_one_wherever_the_connection_is_cut() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "r7");
    let mut last = 0;
    for from in [From::Client, From::Server] {
        let cuts = cut_everywhere(&proxy, from, On::Caller, (0, 1), |arm| {
            let hold = mutex.try_acquire().expect("no error").expect("nobody else wants it");
            last = hold.token();
            arm();
            hold.release().expect("neither LOST nor NOT_OWNER");
            proxy.disarm_for(|| last = next_one_gets_it(&straight, last));
        });
        assert!(cuts > if from == From::Client { 150 } else { 3 }, "{from:?}: {cuts}");
        figure("R7", format!("cut after each of {cuts} bytes of the {}: released each time", side(from)));
    }
}

/// With scripts, and by the steps of who may not run any.
fn breaks(redis: &Redis, through: &Proxy, id: &str) -> [Mutex; 2] {
    assert_eq!(
        redis.command(&["ACL", "SETUSER", "plain", "on", ">c4nary", "~*", "&*", "+@all", "-@scripting"]).text(),
        "OK"
    );
    [redis.url(id), redis.url_with_user("plain", "c4nary", id)]
        .map(|url| open(&url.replace(&redis.address(), through.address())))
}

#[test]
fn a_break_is_one_wherever_the_connection_is_cut() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let straight = open(&redis.url("broken?ttl=60s&renew=off"));
    for breaks in breaks(&redis, &proxy, "broken") {
        for from in [From::Client, From::Server] {
            let cuts = cut_everywhere(&proxy, from, On::Caller, (0, 1), |arm| {
                let hold = straight.try_acquire().expect("no error").expect("nobody else wants it");
                breaks.status().expect("connected");
                arm();
                assert!(breaks.break_lock().expect("asked again"), "it was held");
                assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
            });
            assert!(cuts > if from == From::Client { 100 } else { 3 }, "{from:?}: {cuts}");
        }
    }
}

/// Its answer was lost, and the next one has taken the lock before it is asked for again.
#[test]
fn a_break_that_is_asked_for_again_leaves_the_next_hold_alone() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (one, other) = (open(&redis.url("next?ttl=60s")), open(&redis.url("next?ttl=60s")));
    for (breaks, struck) in breaks(&redis, &proxy, "next?connect_timeout=1m").into_iter().zip(1..) {
        assert!(!breaks.break_lock().expect("connected"), "nobody holds it");
        let hold = one.acquire().expect("acquired");
        // Without scripts something is read before, and no number.
        let done = On::Saying(":1\r\n");
        proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Cut, on: done });
        proxy.let_wait(true);
        std::thread::scope(|scope| {
            let broken = scope.spawn(|| breaks.break_lock());
            let mut next = None;
            until("it is broken", || {
                next = other.try_acquire().expect("no error");
                next.is_some()
            });
            until("the answer is lost", || proxy.struck() == struck);
            proxy.let_wait(false);
            assert!(broken.join().expect("no panic").expect("asked again"), "it was held");
            let next = next.expect("taken");
            next.extend(None).expect("it still stands");
            next.release().expect("released");
        });
        assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    }
}

/// As many ways through the same server at once as it takes to cut everywhere in a few seconds.
fn in_lanes(redis: &Redis, lanes: usize, test: impl Fn(&Proxy, (usize, usize)) + Sync) {
    std::thread::scope(|scope| {
        for lane in 0..lanes {
            let test = &test;
            scope.spawn(move || test(&Proxy::before(&redis.address()), (lane, lanes)));
        }
    });
}

/// The answer to its first question was lost: asked again it stands where it stood, and comes back there.
#[test]
fn a_place_in_the_line_outlives_the_answer_that_named_it() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "place");
    let hold = straight.acquire().expect("acquired");
    let line = "{ipcmutex:place}:line";
    let stands = || match redis.command(&["ZRANGE", line, "0", "-1", "WITHSCORES"]) {
        Reply::List(found) => found.iter().map(|word| word.text().to_owned()).collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Cut, on: On::Caller });
    std::thread::scope(|scope| {
        let waits = scope.spawn(|| mutex.acquire_with(within(LONG)));
        until("it waits", || waiters(&straight) == 1);
        let first = stands();
        let (process, token) = first[0].split_once('.').expect("a member");
        // Who is told of a turn looks; it does when it has heard its answer.
        let channel = format!("ipcmutex:w:{process}");
        until("it listens", || redis.command(&["PUBLISH", &channel, &format!("H {token} 0")]).number() == 1);
        assert_eq!(proxy.struck(), 1, "its first answer was cut off");
        redis.command(&["DEL", line]);
        until("it is back", || {
            redis.command(&["PUBLISH", &channel, &format!("H {token} 0")]);
            !stands().is_empty()
        });
        assert_eq!(stands(), first);
        hold.release().expect("released");
        waits.join().expect("no panic").expect("acquired").release().expect("released");
    });
}

#[test]
fn r5_a_renewal_that_is_cut_anywhere_costs_nothing() {
    needs_redis!();
    let redis = Redis::start();
    let answers = AtomicUsize::new(0);
    in_lanes(&redis, 8, |proxy, lane| {
        let (mutex, straight) = both_ways(&redis, proxy, &format!("renew-{}", lane.0));
        let hold = mutex.acquire().expect("acquired");
        // The link comes up with the first.
        hold.extend(None).expect("renewed");
        for from in [From::Client, From::Server] {
            let cuts = cut_everywhere(proxy, from, On::Link, lane, |arm| {
                arm();
                match hold.extend(None) {
                    Ok(()) => {}
                    Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}"),
                }
                is_alone(&hold, &straight);
                until("it is renewed again", || match hold.extend(None) {
                    Ok(()) => true,
                    Err(error) => {
                        assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
                        false
                    }
                });
            });
            match from {
                From::Client => assert!(cuts > 10, "{cuts}"),
                From::Server => drop(answers.fetch_add(cuts, Ordering::SeqCst)),
            }
        }
        let token = hold.token();
        hold.release().expect("released");
        next_one_gets_it(&straight, token);
    });
    // What is said of one hold that was renewed has eight bytes.
    assert!(answers.load(Ordering::SeqCst) >= 8, "{answers:?}");
}

#[test]
fn r11_a_waiter_is_served_wherever_its_hand_over_is_cut() {
    needs_redis!();
    let redis = Redis::start();
    in_lanes(&redis, 16, |proxy, lane| {
        let (mutex, straight) = both_ways(&redis, proxy, &format!("line-{}", lane.0));
        for from in [From::Client, From::Server] {
            let cuts = cut_everywhere(proxy, from, On::Link, lane, |arm| {
                let hold = straight.acquire().expect("acquired");
                let (tell, told) = mpsc::channel();
                let done = move |outcome| drop(tell.send(outcome));
                mutex.acquire_callback(Timeout::FOREVER, done).expect("it begins");
                until("it waits", || waiters(&straight) == 1);
                arm();
                let token = hold.token();
                hold.release().expect("released");
                let next = told.recv_timeout(LONG).expect("an outcome").expect("acquired");
                assert!(next.token() > token && !next.abandoned());
                proxy.disarm_for(|| is_alone(&next, &straight));
                next.release().expect("released");
                let free = || straight.status().is_ok_and(|status| status.state == State::Free && status.waiters == 0);
                until("nothing is left behind", free);
            });
            assert!(cuts >= 2, "{from:?}: {cuts}");
        }
    });
}

#[test]
fn r6_what_is_said_twice_counts_once() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "twice");
    let mut last = 0;
    let (twice, one_more) = (|from, on| Fault { from, bytes: 0, end: End::Twice, on }, 4);
    // The take, the release, and each of some more that would hear the answer to the one before.
    for from in [From::Client, From::Server] {
        for struck in 0..4 {
            for turn in 0..one_more {
                let arm = |step| {
                    if turn == 0 && struck == step {
                        proxy.arm(twice(from, On::Caller));
                    }
                };
                arm(0);
                let hold = mutex.try_acquire().expect("asked again").expect("nobody else wants it");
                assert!(hold.token() > last);
                is_alone(&hold, &straight);
                arm(1);
                assert!(mutex.try_acquire().expect("asked again").is_none(), "it is held");
                arm(2);
                assert_eq!(
                    mutex.status().map(|status| status.token).ok(),
                    Some(hold.token()),
                    "{from:?} {struck} {turn}"
                );
                arm(3);
                hold.release().expect("neither LOST nor NOT_OWNER");
                last = next_one_gets_it(&straight, last);
            }
            assert!(proxy.disarm());
        }
    }
    // The line.
    for from in [From::Client, From::Server] {
        for _ in 0..10 {
            let hold = straight.acquire().expect("acquired");
            let (tell, told) = mpsc::channel();
            mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome))).expect("it begins");
            until("it waits", || waiters(&straight) == 1);
            proxy.arm(twice(from, On::Link));
            hold.release().expect("released");
            let next = told.recv_timeout(LONG).expect("an outcome").expect("acquired");
            assert!(proxy.disarm());
            is_alone(&next, &straight);
            next.extend(None).expect("renewed");
            next.release().expect("released");
            let free = || straight.status().is_ok_and(|status| status.state == State::Free && status.waiters == 0);
            until("nothing is left behind", free);
        }
    }
}

#[test]
fn r6_a_take_that_arrives_after_its_release_takes_nothing() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "late");
    // The connection is there, and the scripts are known.
    mutex.acquire().expect("acquired").release().expect("released");
    proxy.said();
    let hold = mutex.try_acquire().expect("no error").expect("nobody else wants it");
    let take = proxy.said();
    assert_eq!(String::from_utf8_lossy(&take).matches("EVALSHA").count(), 1, "the take and nothing else");
    let token = hold.token();
    hold.release().expect("released");
    // A copy of it was on its way for longer, over another road.
    let mut road = redis.client();
    road.say(&take);
    assert!(matches!(road.reply(), Reply::List(_)), "it is no error");
    next_one_gets_it(&straight, token);
}

/// Asked again when what it was given has lapsed: nobody has heard yet what the first answer said.
#[test]
fn r6_a_take_that_is_asked_again_after_its_lease_says_the_same_of_the_one_before() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "again?ttl=60s&renew=off");
    // The connection is there, and the scripts are known.
    mutex.acquire().expect("acquired").release().expect("released");
    for died in [false, true] {
        let before = straight.acquire().expect("acquired");
        if died {
            redis.command(&["DEL", "ipcmutex:again"]);
        } else {
            before.release().expect("released");
        }
        proxy.said();
        let hold = mutex.try_acquire().expect("no error").expect("it is free");
        let take = proxy.said();
        assert_eq!(hold.abandoned(), died);
        // As the end of its lease does.
        redis.command(&["DEL", "ipcmutex:again"]);
        let mut road = redis.client();
        road.say(&take);
        let Reply::List(answer) = road.reply() else { panic!("it is no error") };
        assert_eq!((answer[0].number(), answer[2].number()), (1, i64::from(died)), "taken, and the same is told");
        hold.release().expect("the key has its token");
    }
}

/// Nobody held what was given up unheard, so nobody hears that it was abandoned.
#[test]
fn r6_a_take_that_was_answered_after_its_lease_was_no_hold() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "stale?ttl=800ms&renew=off");
    mutex.acquire().expect("acquired").release().expect("released");
    // The link is up, and stays: else what is owed would come when nobody needs it any more.
    let kept = open(&redis.url_at(proxy.address(), "kept?ttl=60s")).acquire().expect("acquired");
    kept.extend(None).expect("the link is up");
    let state = |field| redis.command(&["HGET", "{ipcmutex:stale}:state", field]).text().to_owned();
    for died in [false, true] {
        if died {
            let before = straight.acquire().expect("acquired");
            redis.command(&["DEL", "ipcmutex:stale"]);
            drop(before);
        }
        let before = state("f");
        proxy.delay(Duration::from_millis(600));
        assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
        assert_ne!(state("f"), before, "it was taken all the same");
        until("its lease ends", || redis.command(&["EXISTS", "ipcmutex:stale"]).number() == 0);
        if !died {
            until("it is given up", || state("o").is_empty());
        }
        proxy.delay(Duration::ZERO);
        let next = straight.acquire_with(within(LONG)).expect("acquired");
        assert_eq!(next.abandoned(), died);
        next.release().expect("released");
    }
    kept.release().expect("released");
}

#[test]
fn r6_an_answer_that_never_comes_leaves_no_ghost() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "silent");
    // The take is applied, and its answer lost: it is given up, and the wait goes on with another token.
    proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Silence, on: On::Caller });
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    assert!(proxy.disarm());
    is_alone(&hold, &straight);
    let token = hold.token();
    hold.release().expect("released");
    next_one_gets_it(&straight, token);
    // A try is told, and nothing stays held.
    proxy.arm(Fault { from: From::Server, bytes: 0, end: End::Silence, on: On::Caller });
    assert_eq!(kind_of(mutex.try_acquire()), ErrorKind::Unavailable);
    until("what it may have taken is given back", || straight.status().is_ok_and(|status| status.state == State::Free));
    // Free, not abandoned: nobody ever held it.
    // So is a release; what it asked for happens all the same.
    let hold = mutex.acquire_with(within(LONG)).expect("acquired");
    proxy.arm(Fault { from: From::Client, bytes: 0, end: End::Silence, on: On::Caller });
    assert_eq!(kind_of(hold.release()), ErrorKind::Unavailable);
    let begun = Instant::now();
    until("it is released", || straight.status().is_ok_and(|status| status.state == State::Free));
    assert!(begun.elapsed() < Duration::from_secs(8), "it was not only its lease that ended");
}

#[test]
fn r8_a_wait_that_is_cancelled_with_its_take_under_way() {
    needs_redis!();
    let redis = Redis::start();
    let proxy = Proxy::before(&redis.address());
    let (mutex, straight) = both_ways(&redis, &proxy, "r8?ttl=300ms");
    mutex.acquire().expect("acquired").release().expect("released");
    proxy.delay(Duration::from_millis(15));
    let hold = straight.acquire().expect("acquired");
    let mut hold = Some(hold);
    for round in 0..30_u64 {
        let (tell, told) = mpsc::channel();
        let canceler = std::thread::scope(|scope| {
            let started = scope
                .spawn(|| mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome.map(drop)))));
            if round % 2 == 0 {
                drop(hold.take());
            }
            started.join().expect("no panic").expect("it begins")
        });
        std::thread::sleep(Duration::from_millis(round * 3 % 40));
        canceler.cancel();
        match told.recv_timeout(LONG).expect("an outcome") {
            Ok(()) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::Canceled, "{error}"),
        }
        if hold.is_none() {
            hold = Some(straight.acquire_with(within(LONG)).expect("no orphan keeps it"));
        }
        // On a busy machine a lease of this length may run out: that is not what is looked at.
        until("the line is empty", || waiters(&straight) == 0);
    }
    drop(hold);
    proxy.delay(Duration::ZERO);
    until("it is free", || straight.status().is_ok_and(|status| status.state != State::Held));
    // The last take may still be on its way, and then what undoes it. An orphan would be renewed three times in each look, for ever.
    until("nothing is renewed", || {
        proxy.said();
        std::thread::sleep(Duration::from_millis(350));
        !String::from_utf8_lossy(&proxy.said()).contains("EVAL")
    });
    figure("R8", "30 waits cancelled with their take under way: the lock is free, and nothing is renewed");
}

/// The server was another one before the release was asked: nothing of it is in doubt, and it is no success.
#[test]
fn r7_a_release_that_only_a_new_server_hears_of_is_a_loss() {
    needs_redis!();
    for language in [Language::Rust, Language::C, Language::Python, Language::Node] {
        let mut redis = Redis::start();
        let address: [fn(&Redis, &str) -> String; 2] = [Redis::url, Redis::unix_url];
        let agent = Agent::start_with(language, &[talkative()]);
        for (lock, url) in (1..).zip(address) {
            // Nobody renews it, and so nobody asks the new server before.
            let url = format!("{}{}ttl=60s&renew=off", url(&redis, "forgotten"), if lock == 1 { '?' } else { '&' });
            agent.open(lock, &url).ok();
            // By then an event loop has a connection of its own.
            for _ in 0..20 {
                agent.call(&format!("acquire {lock} forever")).ok();
                agent.call(&format!("release {lock}")).ok();
            }
            agent.call(&format!("acquire {lock} forever")).ok();
            redis.restart();
            let other = open(&redis.url("forgotten"));
            let hold = other.try_acquire().expect("no error").expect("the new server knows of nobody");
            agent.call(&format!("release {lock}")).err(ErrorKind::Lost);
            hold.release().expect("it is still the other's");
        }
    }
}
