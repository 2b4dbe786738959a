use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use super::OwnFile;
#[cfg(feature = "redis")]
use super::Unshared;
use super::places::close_in_child;
use super::{Done, ForkGate, PerProcess, epoch};
use crate::backend::contract::{Grant, OnLost, Status};
use crate::sys::futex;
use crate::wait::{Waiting, block};
use crate::waiter::Waiter;

/// Whether `body`, run in a child, says so. It calls only what is safe after a fork in a threaded process: system calls, malloc, and the
/// library.
fn says_a_child(body: impl FnOnce() -> bool) -> bool {
    // SAFETY: what the child runs is safe there; the alarm is for one that hangs, and it leaves without running anything of the test harness.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::alarm(10);
            libc::_exit(if body() { 7 } else { 8 });
        }
        exit_code(child) == 7
    }
}

/// Of a child that has ended, or will.
fn exit_code(child: libc::pid_t) -> i32 {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    unsafe { libc::waitpid(child, &mut status, 0) };
    status >> 8
}

/// Whether a child of now has `file` open.
fn has_child(file: i32) -> bool {
    // SAFETY: it only asks.
    says_a_child(|| unsafe { libc::fcntl(file, libc::F_GETFD) } >= 0)
}

#[test]
fn a_child_closes_what_is_ours_and_not_what_the_program_has_under_the_same_number() {
    epoch(); // the handlers are in place
    let file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    let number = file.as_raw_fd();
    let entry = close_in_child(&file).unwrap();
    assert!(!has_child(number));
    // As a program does that closes what it does not know, and opens something of its own.
    let mut file = file;
    rustix::io::dup2(std::fs::File::open("/dev/null").unwrap(), &mut file).unwrap();
    assert!(has_child(number));
    assert!(entry.forget());
}

/// FAULTS: K2
#[test]
fn what_is_closed_by_the_program_costs_no_other_file_its_place() {
    epoch(); // the handlers are in place
    let mut file = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
    let earlier = std::fs::File::open("/proc/self/exe").unwrap();
    let before = close_in_child(&earlier).unwrap();
    let (number, first) = (file.as_raw_fd(), close_in_child(&file).unwrap());
    assert!(before.forget()); // its place comes before
    // The program has closed it, and another one of ours is opened under its number.
    rustix::io::dup2(std::fs::File::open("/dev/null").unwrap(), &mut file).unwrap();
    let second = close_in_child(&file).unwrap();
    assert!(!first.forget());
    assert!(!has_child(number));
    assert!(second.forget());
    assert!(has_child(number));
}

/// FAULTS: K3
#[test]
fn what_is_closed_by_the_program_and_opened_anew_belongs_to_the_new_one() {
    // One thread: nobody else takes the number in between.
    assert!(says_a_child(|| {
        let open = || OwnFile::opened(|| Ok::<_, Errno>(std::fs::File::open("/proc/self/exe").unwrap().into()));
        let first = open().unwrap();
        let number = first.as_fd().as_raw_fd();
        // SAFETY: as a program does that closes what it does not know.
        unsafe { libc::close(number) };
        let second = open().unwrap();
        let replaced = second.as_fd().as_raw_fd() == number && !first.is_there();
        drop(first);
        replaced && second.is_there()
    }));
}

#[cfg(feature = "redis")]
#[test]
fn a_child_has_no_socket_of_its_parents_and_leaves_its_number_alone() {
    use std::io::{Read, Write};
    let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
    let number = near.as_raw_fd();
    let mut near = Some(Unshared::new(near));
    assert!(!has_child(number));
    assert!(says_a_child(|| {
        // SAFETY: the number is free, and is then the child's own.
        let own = unsafe { libc::dup2(libc::STDERR_FILENO, number) } == number;
        let refused = near.take().is_some_and(|mut near| near.get().is_err() && near.get_mut().is_err());
        // SAFETY: it only asks.
        own && refused && unsafe { libc::fcntl(number, libc::F_GETFD) } >= 0
    }));
    let mut near = near.take().expect("only the child has dropped it");
    near.get_mut().unwrap().write_all(b"a").unwrap();
    drop(near);
    let mut heard = Vec::new();
    far.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"a");
}

/// FAULTS: K1
#[test]
fn what_a_parent_waits_for_is_nothing_to_its_child() {
    use crate::{Cancel, ErrorKind, EventLoop, Mutex, Timeout};
    use std::task::{Context, Poll, Waker};

    let path = std::env::temp_dir().join(format!("ipcmutex-fork-{}", std::process::id()));
    for url in ["spm:fork-waits".to_owned(), format!("mpm:{}", path.display())] {
        let mutex = Mutex::open(&url).expect("it opens");
        let hold = mutex.acquire().expect("it is free");
        let waits_in_line = |count: u32| {
            while mutex.status().expect("it is told").waiters != count {
                std::thread::yield_now();
            }
        };
        let mut context = Context::from_waker(Waker::noop());
        let [mut polled, mut dropped] = [(); 2].map(|()| Box::pin(mutex.acquire_async()));
        for future in [&mut polled, &mut dropped] {
            assert!(future.as_mut().poll(&mut context).is_pending());
        }
        let mut dropped = Some(dropped);
        let on = EventLoop::new(|_| {});
        let event = mutex.acquire_on(&on, Timeout::FOREVER, |_| {});
        let callback = mutex.acquire_callback(Timeout::FOREVER, |_| {}).expect("it begins");
        let cancel = Cancel::new();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| mutex.acquire_with(Waiting { cancel: Some(&cancel), ..Waiting::default() }));
            waits_in_line(5);
            let refused = says_a_child(|| {
                drop(dropped.take());
                cancel.cancel();
                let polled = polled.as_mut().poll(&mut context);
                let forked = matches!(polled, Poll::Ready(Err(error)) if error.kind() == ErrorKind::Forked);
                forked && !event.cancel() && !callback.cancel() && callback.is_over()
            });
            let waiters = mutex.status().expect("it is told").waiters;
            cancel.cancel();
            let ended = thread.join().expect("no panic").expect_err("it is held").kind();
            assert_eq!((refused, waiters, ended), (true, 5, ErrorKind::Canceled), "{url}");
        });
        drop((polled, dropped));
        waits_in_line(2);
        assert!(callback.cancel() && event.cancel(), "{url}");
        hold.release().expect("it was held");
    }
    std::fs::remove_file(path).expect("it was made");
}

/// An engine that is asked in vain, and whose waiters leave when the test lets them.
#[derive(Default)]
struct Slow(std::sync::Mutex<()>);

impl crate::backend::contract::Backend for Slow {
    fn try_take(&self) -> crate::Result<Option<Grant>> {
        Ok(None)
    }
    fn join(&self, _: &Arc<Waiter>) -> crate::Result<()> {
        Ok(())
    }
    fn wait(&self, waiter: &Arc<Waiter>, _: Option<std::time::Instant>) -> futex::Woken {
        while waiter.is_waiting() {
            std::thread::yield_now();
        }
        futex::Woken::Changed
    }
    fn leave(&self, _: &Arc<Waiter>) {
        drop(self.0.lock());
    }
    fn release(&self, _: u64) -> crate::Result<()> {
        unreachable!("nobody holds it")
    }
    fn give_back(&self, _: Grant) {}
    fn check(&self, _: u64) -> crate::Result<()> {
        unreachable!("nobody holds it")
    }
    fn on_lost(&self, _: u64, _: OnLost) -> crate::Result<()> {
        unreachable!("nobody holds it")
    }
    fn status(&self) -> crate::Result<Status> {
        unreachable!("nobody asks")
    }
    fn break_lock(&self) -> crate::Result<bool> {
        unreachable!("nobody breaks it")
    }
}

/// In the child nobody tells it that it has left the line.
#[test]
fn a_child_that_is_forked_while_its_wait_is_being_ended_does_not_wait() {
    static FORKED: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn fork_here(_: libc::c_int) {
        // SAFETY: async-signal-safe, as is what follows in the child.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: for a child that hangs.
            unsafe { libc::alarm(10) };
        }
        FORKED.store(child, Ordering::SeqCst);
    }
    // SAFETY: the handler is one, and no other test of this crate has that signal.
    unsafe { libc::signal(libc::SIGUSR2, fork_here as *const () as libc::sighandler_t) };
    let slow = Arc::new(Slow::default());
    let backend: Arc<dyn crate::backend::contract::Backend> = slow.clone();
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        let kept = slow.0.lock();
        let waits = scope.spawn(move || {
            // SAFETY: both ask for a number.
            let me = unsafe { (libc::gettid(), libc::pthread_self()) };
            let outcome =
                block(&backend, Waiting::default(), |pending| tell.send((me, pending)).expect("the test waits"));
            if FORKED.load(Ordering::SeqCst) == 0 {
                let forked = outcome.is_err_and(|error| error.kind() == crate::ErrorKind::Forked);
                // SAFETY: leaves the child without running anything of the test harness.
                unsafe { libc::_exit(if forked { 7 } else { 8 }) };
            }
            outcome
        });
        let ((number, thread), pending) = told.recv().expect("it waits");
        scope.spawn(move || pending.end(crate::error::Error::new(crate::ErrorKind::Closed, "acquire", "closed")));
        let call = libc::SYS_futex.to_string();
        let sleeps = || {
            std::fs::read_to_string(format!("/proc/self/task/{number}/syscall")).is_ok_and(|now| now.starts_with(&call))
        };
        while !sleeps() {
            std::thread::yield_now();
        }
        // SAFETY: the thread waits, and is joined below.
        unsafe { libc::pthread_kill(thread, libc::SIGUSR2) };
        let child = loop {
            match FORKED.load(Ordering::SeqCst) {
                child @ 1.. => break child,
                _ => std::thread::yield_now(),
            }
        };
        let code = exit_code(child);
        drop(kept);
        let told = waits.join().expect("no panic").expect_err("it has ended").kind();
        assert_eq!((code, told), (7, crate::ErrorKind::Closed));
    });
}

/// A thread may be at it when the process forks.
#[test]
fn who_finds_somebody_at_it_does_not_wait() {
    let (done, times) = (Done::new(), AtomicU32::new(0));
    let count = || {
        times.fetch_add(1, Ordering::Relaxed);
    };
    done.or(|| {
        std::thread::scope(|scope| scope.spawn(|| done.or(count)).join()).expect("it does it, too");
        count();
    });
    done.or(count);
    assert_eq!(times.into_inner(), 2);
}

/// FAULTS: K4
#[test]
fn a_signals_handler_that_forks_does_not_wait_for_its_own_thread() {
    static FORKED: AtomicI32 = AtomicI32::new(-1);
    extern "C" fn fork_here(_: libc::c_int) {
        // SAFETY: this process has one thread, so that fork takes no locks but ours.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: leaves the child without running anything of the test harness.
            unsafe { libc::_exit(7) };
        }
        FORKED.store(child, Ordering::SeqCst);
    }
    // That child has one thread, which may hang there and is ended then.
    assert!(says_a_child(|| {
        // SAFETY: the handler is one.
        unsafe { libc::signal(libc::SIGUSR1, fork_here as *const () as libc::sighandler_t) };
        let gate = ForkGate::enter();
        // SAFETY: it has a handler.
        unsafe { libc::raise(libc::SIGUSR1) };
        let early = FORKED.load(Ordering::SeqCst);
        drop(gate);
        early == -1 && exit_code(FORKED.load(Ordering::SeqCst)) == 7
    }));
}

#[test]
fn a_child_has_its_own_value() {
    static CELL: PerProcess<AtomicU32> = PerProcess::new();
    let mine = epoch();
    CELL.get_or_init(|| AtomicU32::new(7));
    assert!(says_a_child(|| {
        let fresh = CELL.get().is_none() && epoch() != mine;
        fresh && CELL.get_or_init(|| AtomicU32::new(8)).load(Ordering::Relaxed) == 8
    }));
    assert_eq!(epoch(), mine);
    assert_eq!(CELL.get().map(|cell| cell.load(Ordering::Relaxed)), Some(7));
}
