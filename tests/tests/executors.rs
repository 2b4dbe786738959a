//! `acquire_async` needs no runtime, and works under any: here tokio's two and smol, over every engine.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::{Duration, Instant};

use ipcmutex::Mutex;
use ipcmutex_tests::servers::{Redis, skipped};

/// A watchdog, not a stop-watch.
const LONG: Duration = Duration::from_secs(60);
const TASKS: u32 = 20;

/// A task of the executor under test.
type Task = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// What an executor is asked for: to run `main`, which starts tasks with what it is given.
trait Executor {
    fn run(&self, main: impl FnOnce(Arc<dyn Fn(Task) + Send + Sync>) -> Task);
}

struct Tokio(fn() -> tokio::runtime::Builder);

impl Executor for Tokio {
    fn run(&self, main: impl FnOnce(Arc<dyn Fn(Task) + Send + Sync>) -> Task) {
        let runtime = (self.0)().build().expect("a runtime");
        let handle = runtime.handle().clone();
        let main = main(Arc::new(move |task| drop(handle.spawn(task))));
        runtime.block_on(main);
    }
}

struct Smol;

impl Executor for Smol {
    fn run(&self, main: impl FnOnce(Arc<dyn Fn(Task) + Send + Sync>) -> Task) {
        smol::block_on(main(Arc::new(|task| smol::spawn(task).detach())));
    }
}

/// Lets the others of the executor go first.
async fn step_back() {
    let mut stepped = false;
    std::future::poll_fn(|context| {
        if std::mem::replace(&mut stepped, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < LONG, "never: {what}");
        step_back().await;
    }
}

/// Many tasks take turns; a future that is dropped while it waits leaves the line and never takes the lock.
fn works(executor: &impl Executor, url: &str) {
    let mutex = Mutex::open(url).expect("it opens");
    let (inside, done) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0)));
    executor.run(|spawn| {
        Box::pin(async move {
            for _ in 0..TASKS {
                let (mutex, inside, done) = (mutex.clone(), inside.clone(), done.clone());
                spawn(Box::pin(async move {
                    let hold = mutex.acquire_async().await.expect("granted");
                    assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two at once");
                    step_back().await;
                    inside.fetch_sub(1, Ordering::SeqCst);
                    hold.release().expect("held");
                    done.fetch_add(1, Ordering::SeqCst);
                }));
            }
            until("all had their turn", || done.load(Ordering::SeqCst) == TASKS).await;

            let hold = mutex.acquire_async().await.expect("free");
            {
                let mut wait = pin!(mutex.acquire_async());
                let first = std::future::poll_fn(|context| Poll::Ready(wait.as_mut().poll(context).is_ready())).await;
                assert!(!first, "it is held");
                until("it waits", || mutex.status().expect("it tells").waiters == 1).await;
            }
            until("it has left the line", || mutex.status().expect("it tells").waiters == 0).await;
            hold.release().expect("held");
            mutex.try_acquire().expect("no error").expect("nobody took it").release().expect("held");
        })
    });
}

fn on_every_engine(name: &str, executor: &impl Executor) {
    works(executor, &format!("spm:{name}"));
    let folder = tempfile::tempdir().expect("a folder");
    works(executor, &format!("mpm:{}", folder.path().join("lock").display()));
    if !skipped(name) {
        let server = Redis::start();
        works(executor, &server.url(name));
    }
}

#[test]
fn tokio_of_one_thread() {
    on_every_engine("tokio_of_one_thread", &Tokio(tokio::runtime::Builder::new_current_thread));
}

#[test]
fn tokio_of_many_threads() {
    on_every_engine("tokio_of_many_threads", &Tokio(tokio::runtime::Builder::new_multi_thread));
}

#[test]
fn smol() {
    on_every_engine("smol", &Smol);
}

/// One that is there again when the poll has returned, or should have.
#[test]
fn a_poll_waits_for_no_server() {
    if skipped("a_poll_waits_for_no_server") {
        return;
    }
    let redis = Redis::start();
    let mutex = Mutex::open(&redis.url("polled")).expect("it opens");
    redis.freeze();
    let mut wait = pin!(mutex.acquire_async());
    let (tell, told) = std::sync::mpsc::channel();
    let first = std::thread::scope(|scope| {
        let redis = &redis;
        scope.spawn(move || {
            let _ = told.recv_timeout(Duration::from_secs(1));
            redis.thaw();
        });
        let first = smol::block_on(std::future::poll_fn(|context| Poll::Ready(wait.as_mut().poll(context).is_ready())));
        // It waits no more, if this comes late.
        let _ = tell.send(());
        first
    });
    assert!(!first, "it waited for the answer");
    smol::block_on(wait).expect("the server is there").release().expect("released");
}
