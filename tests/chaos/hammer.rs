//! A participant of the chaos runs in Rust, and what the shell's one needs: `../src/chaos/record.rs` says what it tells, and
//! README.md what all of them do.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::parent_id;
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;

use ipcmutex::{Cancel, Error, ErrorKind, Hold, Mutex, Timeout, Waiting};
use ipcmutex_tests::chaos::record::{Deed, Entrant, Told, UNCHECKED};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"))
}

fn number(name: &str) -> u64 {
    variable(name).parse().expect("a number")
}

fn entrant(number_of: u64) -> Entrant {
    let (cell, log) = (PathBuf::from(variable("CHAOS_CELL")), PathBuf::from(variable("CHAOS_LOG")));
    Entrant::open(&cell, &log, number("CHAOS_INSTANCE") << 16 | number_of).expect("the files are there")
}

fn code(outcome: Result<(), Error>) -> u64 {
    outcome.map_or_else(|error| error.kind() as u64, |()| 0)
}

/// The resource that refuses old tokens.
struct Fence(Option<UnixStream>);

impl Fence {
    fn connect() -> Fence {
        let path = std::env::var_os("CHAOS_FENCE");
        Fence(path.map(|path| UnixStream::connect(path).expect("the fence is there")))
    }

    fn write(&mut self, who: u64, token: u64) {
        let Some(stream) = &mut self.0 else { return };
        stream.write_all(&[token.to_le_bytes(), who.to_le_bytes()].concat()).expect("the fence is there");
        stream.read_exact(&mut [0]).expect("the fence answers");
    }
}

fn main() {
    match &std::env::args().skip(1).collect::<Vec<_>>()[..] {
        [] => std::thread::scope(|scope| {
            for number in 1..=3 {
                scope.spawn(move || Hammer::new(number).run());
            }
        }),
        // For the shell.
        [verb] if verb == "stopped" => println!("{}", u8::from(entrant(0).cell().is_stopped())),
        [verb] if verb == "visit" => visit(),
        [verb, exit] if verb == "ran" => ran(exit.parse().expect("an exit code")),
        other => panic!("unknown: {other:?}"),
    }
}

/// One visit, under the lock of the command that started it.
fn visit() {
    let (me, token) = (entrant(number("CHAOS_ENTRANT")), number("IPCMUTEX_TOKEN"));
    let mut fence = Fence::connect();
    let inside = me.enter(token, variable("IPCMUTEX_ABANDONED") == "1");
    fence.write(me.who(), token);
    std::thread::yield_now();
    me.count(&inside);
    fence.write(me.who(), token);
    me.leave(inside, || UNCHECKED);
}

/// What became of it, by the command's exit code.
fn ran(exit: i32) {
    let kind = ErrorKind::ALL.iter().find(|kind| exit != 0 && kind.exit_code() == exit);
    let code = if exit == 0 { 0 } else { kind.map_or(ErrorKind::Panic as u64, |kind| *kind as u64) };
    entrant(number("CHAOS_ENTRANT")).tell(Told::Released { code });
}

struct Hammer {
    me: Entrant,
    random: fastrand::Rng,
    fence: Fence,
}

impl Hammer {
    fn new(number_of: u64) -> Hammer {
        let random = fastrand::Rng::with_seed(number("CHAOS_SEED") ^ number_of << 32);
        Hammer { me: entrant(number_of), random, fence: Fence::connect() }
    }

    fn pause(&mut self, most_us: u64) {
        std::thread::sleep(Duration::from_micros(self.random.u64(0..most_us)));
    }

    fn visit(&mut self, hold: Hold, end: impl FnOnce(&Hold) -> Result<(), Error>) {
        let inside = self.me.enter(hold.token(), hold.abandoned());
        self.me.check(|| code(hold.check()));
        self.fence.write(self.me.who(), hold.token());
        if self.random.u8(0..4) == 0 {
            self.pause(1500);
        }
        self.me.count(&inside);
        self.fence.write(self.me.who(), hold.token());
        self.me.leave(inside, || code(hold.check()));
        self.me.tell(Told::Released { code: code(end(&hold)) });
    }

    fn acquired(&mut self, outcome: Result<Hold, Error>, end: impl FnOnce(&Hold) -> Result<(), Error>) {
        match outcome {
            Ok(hold) => self.visit(hold, end),
            Err(error) => self.me.tell(Told::GaveUp { code: error.kind() as u64 }),
        }
    }

    fn open(&self) -> Mutex {
        loop {
            match Mutex::open(&variable("CHAOS_URL")) {
                Ok(mutex) => return mutex,
                Err(error) if error.kind() == ErrorKind::Unavailable => {
                    self.me.tell(Told::Asked);
                    self.me.tell(Told::GaveUp { code: error.kind() as u64 });
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn canceled(&mut self, mutex: &Mutex) {
        let cancel = Cancel::new();
        let patience = Duration::from_micros(self.random.u64(0..5000));
        self.me.tell(Told::Asked);
        let outcome = std::thread::scope(|scope| {
            let (done, over) = mpsc::channel();
            let (cancel, me) = (&cancel, &self.me);
            scope.spawn(move || {
                if over.recv_timeout(patience).is_err() {
                    me.tell(Told::Did(Deed::Cancel));
                    cancel.cancel();
                }
            });
            let outcome = mutex.acquire_with(Waiting { cancel: Some(cancel), ..Waiting::default() });
            // The canceller may have come first.
            let _ = done.send(());
            outcome
        });
        self.acquired(outcome, Hold::end);
    }

    fn closed_while_waiting(&mut self) {
        let mutex = self.open();
        let patience = Duration::from_micros(self.random.u64(0..5000));
        self.me.tell(Told::Asked);
        self.me.tell(Told::Did(Deed::Close));
        let (tell, told) = mpsc::channel();
        let wait = mutex.acquire_callback(Timeout::FOREVER, move |outcome| drop(tell.send(outcome)));
        let wait = wait.map(|_wait| std::thread::sleep(patience));
        mutex.close().expect("it is open");
        let outcome = wait.and_then(|()| told.recv().expect("the callback is called"));
        // Granted before it was closed: then closing released it.
        let code = outcome.map_or_else(|error| error.kind(), |_hold| ErrorKind::Closed);
        self.me.tell(Told::GaveUp { code: code as u64 });
    }

    fn run(mut self) {
        let mutex = self.open();
        let driver = parent_id();
        // Nobody goes on without it.
        while !self.me.cell().is_stopped() && parent_id() == driver {
            self.pause(3000);
            let how = self.random.u8(0..100);
            if (75..87).contains(&how) {
                self.canceled(&mutex);
                continue;
            }
            if (87..91).contains(&how) {
                self.closed_while_waiting();
                continue;
            }
            if how >= 97 {
                let own = self.open();
                self.me.tell(Told::Did(Deed::Close));
                self.me.tell(Told::Asked);
                let outcome = own.acquire();
                self.acquired(outcome, |_| own.close());
                continue;
            }
            let limit = match how {
                0..50 => Timeout::FOREVER,
                50..65 => Timeout::from(Duration::from_micros(self.random.u64(1..30_000))),
                65..75 => Timeout::TRY,
                _ => Timeout::FOREVER,
            };
            self.me.tell(Told::Asked);
            let outcome = mutex.acquire_with(Waiting { timeout: limit, ..Waiting::default() });
            self.acquired(outcome, Hold::end);
        }
    }
}
