//! Renewal against release: the worker renews a hold while its owner lets it go and somebody breaks it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::Value;
use shuttle::thread;
use tokio::sync::mpsc::unbounded_channel;

use super::Worker;
use crate::backend::redis::engine::Engine;
use crate::backend::redis::hold::Hold;
use crate::backend::redis::lease;
use crate::backend::redis::lock::Lock;
use crate::backend::redis::server::Server;
use crate::backend::redis::token::Token;
use crate::schedules::play;
use crate::sync::Guarded;
use crate::url::{LockUrl, Target};

/// What the server has: the token that holds. Each script is one step.
type Key = Arc<Guarded<Option<Token>>>;

fn lock_and_hold() -> (Arc<Lock>, Arc<Hold>) {
    let url = LockUrl::parse("rpm+redis://nowhere/schedules").expect("a URL");
    let Target::Redis(target) = url.target() else { panic!("of Redis") };
    let engine = Engine::of(Server::of(target).expect("a server")).expect("an engine");
    engine.board().wake_at = 0; // its thread is ours
    let lock = Arc::new(Lock::new(engine.clone(), "schedules", target, String::new()));
    let hold = Arc::new(Hold::new(engine.next_serial(), "token".into(), 1, &lock, lease::now(), lock.ttl));
    engine.watch(&hold, lease::now()).expect("it is watched");
    (lock, hold)
}

/// FAULTS: R9
#[test]
fn a_hold_ends_once_and_what_has_ended_is_renewed_no_more() {
    play(|| {
        let (lock, hold) = lock_and_hold();
        let key: Key = Arc::new(Guarded::new(Some(hold.token.clone())));
        let let_go = Arc::new(AtomicBool::new(false));

        let (engine, server, gone) = (lock.engine.clone(), key.clone(), let_go.clone());
        let worker = thread::spawn(move || {
            let mut worker = Worker::new(engine, unbounded_channel().0);
            for _ in 0..3 {
                worker.renew_all();
                let too_late = gone.load(Ordering::SeqCst);
                let sent = lease::now();
                let (batch, lost) = worker.due(true);
                assert!(lost.is_empty(), "leases are long");
                assert!(!too_late || batch.is_empty(), "renewed after it was let go");
                if batch.is_empty() {
                    continue;
                }
                let current = server.lock().clone();
                let renewed = batch.iter().map(|(hold, _)| Value::Int((current.as_ref() == Some(&hold.token)).into()));
                let reply = Ok(Value::Array(renewed.collect()));
                worker.renewed(&batch, None, sent, worker.number(), reply);
            }
        });
        let server = key.clone();
        let robber = thread::spawn(move || server.lock().take());
        let ended = lock.end(&hold);
        let_go.store(true, Ordering::SeqCst);
        if ended.is_ok() {
            key.lock().take_if(|token| *token == hold.token);
            lock.engine.unwatch(&hold);
        }
        worker.join().expect("it went well");
        robber.join().expect("it went well");

        assert_eq!(ended.is_ok(), hold.loss().is_none(), "released, or lost: one of them");
        assert_eq!(lock.tally.numbers().losses, u64::from(ended.is_err()), "what was told is what became of it");
        assert!(!hold.is_live());
        let board = lock.engine.board();
        assert!(board.holds.is_empty(), "nothing is left to be renewed");
    });
}

#[test]
fn a_hold_is_renewed_once_in_a_call() {
    play(|| {
        let (lock, hold) = lock_and_hold();
        // After an error its next look is at its deadline, and stays there.
        let sent = lease::now() - lease::nanos(Duration::from_millis(11_500));
        let late =
            Arc::new(Hold::new(lock.engine.next_serial(), "late".into(), 2, &lock, sent, Duration::from_secs(12)));
        lock.engine.watch(&late, late.deadline()).expect("it is watched");
        let engine = lock.engine.clone();
        let worker = thread::spawn(move || {
            let (batch, lost) = Worker::new(engine, unbounded_channel().0).due(true);
            assert!(lost.is_empty(), "leases are long");
            batch.iter().map(|(hold, _)| hold.serial).collect::<Vec<_>>()
        });
        lock.engine.unwatch(&hold);
        let renewed = worker.join().expect("it went well");
        // The late one only goes along.
        assert!(renewed.is_empty() || renewed == [hold.serial, late.serial], "{renewed:?}");
        lock.engine.unwatch(&late);
    });
}
