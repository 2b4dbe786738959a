//! The Rust agent: see README.md.

use std::collections::HashMap;
use std::future::Future;
use std::io::BufRead;
use std::pin::pin;
use std::sync::{Arc, Mutex as Guard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use ipcmutex::{Error, ErrorKind, Hold, Mutex, Timeout, Wait, Waiting};
use ipcmutex_tests::occupancy::{Hammer, now};

#[derive(Default)]
struct Agent {
    locks: Guard<HashMap<String, Mutex>>,
    holds: Guard<HashMap<String, Arc<Hold>>>,
    waits: Guard<HashMap<String, Wait>>,
}

fn main() {
    // `agent visit CELL RECORDS`: one visit under the lock of the command that started it.
    if let [_, verb, cell, records] = &std::env::args().collect::<Vec<_>>()[..] {
        assert_eq!(verb, "visit");
        let token = std::env::var("IPCMUTEX_TOKEN").map_or(0, |token| token.parse().expect("a number"));
        let mut hammer = Hammer::open(cell.as_ref(), Duration::ZERO);
        hammer.occupy(token);
        let told = hammer.leave(records.as_ref());
        std::process::exit(if told.ends_with("overlaps=0") { 0 } else { 3 });
    }
    ipcmutex::logging::from_environment();
    let agent: &'static Agent = Box::leak(Box::default());
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        match line.split_once(" &") {
            Some((number, command)) => {
                let (number, command) = (number.to_owned(), command.to_owned());
                std::thread::spawn(move || agent.answer(&number, &command));
            }
            None => match line.split_once(' ') {
                Some((number, command)) => agent.answer(number, command),
                None => panic!("no command in `{line}`"),
            },
        }
    }
}

fn say(number: &str, outcome: Result<String, Error>) {
    match outcome {
        Ok(fields) => println!("{number} OK {fields}"),
        Err(error) => println!("{number} {} | {error}", error.kind().name()),
    }
}

fn timeout(text: &str) -> Result<Timeout, Error> {
    match text {
        "forever" => Ok(Timeout::FOREVER),
        text => Timeout::from_js_ms(text.parse().expect("a number")),
    }
}

fn or_timeout<T>(taken: Option<T>) -> Result<T, Error> {
    taken.ok_or_else(|| Error::new(ErrorKind::Timeout, "acquire", "not free"))
}

impl Agent {
    fn lock(&self, name: &str) -> Mutex {
        self.locks.lock().unwrap().get(name).expect("an opened lock").clone()
    }

    fn hold(&self, name: &str) -> Arc<Hold> {
        self.holds.lock().unwrap().get(name).expect("a hold").clone()
    }

    fn keep(&self, name: &str, from: u64, hold: Hold) -> String {
        let to = now();
        let fields = format!("token={} abandoned={} from={from} to={to}", hold.token(), u8::from(hold.abandoned()));
        self.holds.lock().unwrap().insert(name.to_owned(), Arc::new(hold));
        fields
    }

    fn answer(&'static self, number: &str, command: &str) {
        let words: Vec<&str> = command.split(' ').collect();
        let outcome = match words[..] {
            ["async", lock, hold, limit, wait] => return self.wait(number, lock, hold, limit, wait),
            ["lost", hold] => {
                let number = number.to_owned();
                let told = move |error: Error| say(&number, Err(error));
                match self.hold(hold).on_lost(told) {
                    Ok(()) => return,
                    Err(error) => panic!("on_lost: {error}"),
                }
            }
            _ => self.run(&words),
        };
        say(number, outcome);
    }

    fn run(&self, words: &[&str]) -> Result<String, Error> {
        match *words {
            ["open", lock, url] => {
                let opened = Mutex::open(&unhex(url))?;
                self.locks.lock().unwrap().insert(lock.to_owned(), opened);
            }
            ["close", lock] => self.lock(lock).close()?,
            ["acquire", lock, limit] => {
                let (lock, from) = (self.lock(lock), now());
                lock.lock_with(Waiting { timeout: timeout(limit)?, ..Waiting::default() })?;
                return Ok(format!("from={from} to={}", now()));
            }
            ["release", lock] => self.lock(lock).release()?,
            ["hold", lock, hold, limit] => {
                let (lock, from) = (self.lock(lock), now());
                // The three ways to wait are all used: for ever, a try, a limit.
                let taken = match timeout(limit)? {
                    Timeout::FOREVER => lock.acquire()?,
                    Timeout::TRY => or_timeout(lock.try_acquire()?)?,
                    limit => lock.acquire_with(Waiting { timeout: limit, ..Waiting::default() })?,
                };
                return Ok(self.keep(hold, from, taken));
            }
            ["cancel", wait] => {
                let wait = self.waits.lock().unwrap().get(wait).expect("a wait").clone();
                if !wait.cancel() {
                    return Err(Error::new(ErrorKind::BadHandle, "cancel", "it has an outcome"));
                }
            }
            ["end", hold] => self.hold(hold).end()?,
            ["check", hold] => self.hold(hold).check()?,
            ["extend", hold, ms] => self.hold(hold).extend(Some(Duration::from_millis(ms.parse().expect("ms"))))?,
            ["token", lock] => return Ok(format!("token={}", self.lock(lock).token()?)),
            ["status", lock] => {
                let status = self.lock(lock).status()?;
                let owner = status.owner.map(|owner| (owner.pid, owner.host, owner.label)).unwrap_or_default();
                return Ok(format!(
                    "state={} token={} waiters={} owner_pid={} owner_host={} owner_label={} held_ms={}",
                    status.state.name(),
                    status.token,
                    status.waiters,
                    owner.0,
                    owner.1,
                    owner.2,
                    status.held.unwrap_or_default().as_millis()
                ));
            }
            ["show", lock] => return Ok(format!("| {:?}", self.lock(lock))),
            ["break", lock] => drop(self.lock(lock).break_lock()?),
            ["hammer", lock, file, records, ms, mode] => {
                let lock = self.lock(lock);
                let mut hammer = Hammer::open(file.as_ref(), Duration::from_millis(ms.parse().expect("ms")));
                while hammer.goes_on() {
                    match mode {
                        "future" => {
                            let hold = block_on(lock.acquire_async())?;
                            hammer.occupy(hold.token());
                            hold.release()?;
                        }
                        "lock" => {
                            let hold = lock.acquire()?;
                            hammer.occupy(hold.token());
                            hold.release()?;
                        }
                        _ => hammer.occupy(0),
                    }
                }
                return Ok(hammer.leave(records.as_ref()));
            }
            _ => panic!("unknown command {words:?}"),
        }
        Ok(String::new())
    }

    fn wait(&'static self, number: &str, lock: &str, hold: &str, limit: &str, wait: &str) {
        let (from, hold, told) = (now(), hold.to_owned(), number.to_owned());
        let done = move |outcome: Result<Hold, Error>| say(&told, outcome.map(|taken| self.keep(&hold, from, taken)));
        match timeout(limit).and_then(|limit| self.lock(lock).acquire_callback(limit, done)) {
            Ok(pending) => drop(self.waits.lock().unwrap().insert(wait.to_owned(), pending)),
            Err(error) => say(number, Err(error)),
        }
    }
}

/// The smallest executor: it parks the thread between polls.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

fn unhex(text: &str) -> String {
    let bytes = (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex"));
    String::from_utf8(bytes.collect()).expect("a URL of Rust is UTF-8")
}
