//! A socket that is looked at for a moment before its thread sleeps.
//!
//! A near server has answered before a processor that fell asleep is awake again: of the time of a round trip on one host
//! most is spent waking. Between two looks the processor is anybody's, so that the server can have it, and whoever else
//! needs it. A server that turns out to be far is looked for seldom.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use redis::io::tcp::socket2::SockRef;
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use crate::sys::fork::Unshared;

/// How long a look takes at most: some times what a near server needs.
const LOOK: Duration = Duration::from_micros(100);
/// After how many looks in vain one read in 2^6 begins with one.
const RARELY: u32 = 6;

/// Whether the other side has ended the connection.
pub(crate) fn has_ended(socket: BorrowedFd<'_>) -> bool {
    match recv(socket, &mut [0_u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK) {
        Ok((read, _)) => read == 0,
        Err(error) => !matches!(error, Errno::AGAIN | Errno::INTR),
    }
}

/// Whether there is something to read.
#[cfg(feature = "tls")]
pub(super) fn has_come(socket: BorrowedFd<'_>) -> bool {
    recv(socket, &mut [0_u8; 1], RecvFlags::DONTWAIT | RecvFlags::PEEK).is_ok_and(|(read, _)| read > 0)
}

pub(crate) struct Prompt<S: AsFd> {
    socket: Unshared<S>,
    /// How many looks were in vain since the last one that was not.
    vain: u32,
    /// How many reads are to be made without one.
    passed: u32,
    /// How long the system lets a read and a write sleep.
    sleeps: Option<Duration>,
    /// When all that is read must have come.
    end: Option<Instant>,
    /// Some of it has.
    begun: bool,
}

impl<S: AsFd> Prompt<S> {
    #[cfg(test)]
    pub(crate) fn new(socket: S) -> Prompt<S> {
        Prompt::of(Unshared::new(socket))
    }

    pub(crate) fn of(socket: Unshared<S>) -> Prompt<S> {
        Prompt { socket, vain: 0, passed: 0, sleeps: None, end: None, begun: false }
    }

    /// How long what is read from now on may take: together, in however many pieces it comes.
    pub(crate) fn set_limit(&mut self, limit: Duration) -> io::Result<()> {
        // None at all would be no limit.
        self.let_sleep(limit.max(Duration::from_millis(1)))?;
        (self.end, self.begun) = (Some(Instant::now() + limit), false);
        Ok(())
    }

    /// For who does not sleep in a read.
    pub(crate) fn lift_limit(&mut self) {
        self.end = None;
    }

    fn let_sleep(&mut self, limit: Duration) -> io::Result<()> {
        if self.sleeps != Some(limit) {
            let socket = SockRef::from(self.socket.get()?);
            socket.set_read_timeout(Some(limit)).and(socket.set_write_timeout(Some(limit)))?;
            self.sleeps = Some(limit);
        }
        Ok(())
    }

    /// How long the next piece of what has come in part may take.
    fn left(&self) -> io::Result<Option<Duration>> {
        let left = self.end.filter(|_| self.begun).map(|end| end.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }

    /// # Errors
    /// BrokenPipe in a forked child, which does not have it.
    pub(crate) fn socket(&self) -> io::Result<&S> {
        self.socket.get()
    }

    /// What has come, if it came within a moment.
    fn look(&mut self, buffer: &mut [u8]) -> Option<io::Result<usize>> {
        let socket = match self.socket.get() {
            Ok(socket) => socket,
            Err(error) => return Some(Err(error)),
        };
        if self.passed > 0 {
            self.passed -= 1;
            return None;
        }
        let begun = Instant::now();
        loop {
            match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((read, _)) => {
                    self.vain = 0;
                    return Some(Ok(read));
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Some(Err(error.into())),
            }
            if begun.elapsed() >= LOOK {
                self.vain = (self.vain + 1).min(RARELY);
                self.passed = (1 << self.vain) - 1;
                return None;
            }
            thread::yield_now();
        }
    }
}

impl<S: AsFd + Read> Read for Prompt<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left()?;
        let read = match self.look(buffer) {
            Some(found) => found,
            None => {
                if let Some(left) = left {
                    self.let_sleep(left.max(Duration::from_millis(1)))?;
                }
                self.socket.get_mut()?.read(buffer)
            }
        };
        self.begun |= read.is_ok();
        read
    }
}

impl<S: AsFd + Write> Write for Prompt<S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.socket.get_mut()?.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.socket.get_mut()?.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// One that does not sleep, so that it can be told whether it looked.
    fn pair() -> (Prompt<UnixStream>, UnixStream) {
        let (near, far) = UnixStream::pair().expect("a pair");
        near.set_nonblocking(true).expect("it is a socket");
        (Prompt::new(near), far)
    }

    fn in_vain(prompt: &mut Prompt<UnixStream>) {
        assert_eq!(prompt.read(&mut [0; 8]).expect_err("nothing came").kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn who_is_far_is_looked_for_seldom_until_an_answer_is_near() {
        let (mut near, mut far) = pair();
        let mut looks = Vec::new();
        for at in 0..400 {
            let looked = near.passed == 0;
            in_vain(&mut near);
            if looked {
                looks.push(at);
            }
        }
        assert_eq!(looks, [0, 2, 6, 14, 30, 62, 126, 190, 254, 318, 382]);
        // Found without a look: that says nothing of how near it is.
        far.write_all(b"a").expect("it is written");
        assert_eq!(near.read(&mut [0; 8]).expect("it came"), 1);
        while near.passed > 0 {
            in_vain(&mut near);
        }
        far.write_all(b"b").expect("it is written");
        assert_eq!(near.read(&mut [0; 8]).expect("it came"), 1);
        assert_eq!((near.vain, near.passed), (0, 0));
        in_vain(&mut near);
        assert_eq!(near.passed, 1, "as in the beginning");
    }

    #[test]
    fn an_end_is_an_end_and_a_failure_a_failure() {
        let (mut near, far) = pair();
        assert!(!has_ended(near.socket().expect("it is ours").as_fd()));
        drop(far);
        assert!(has_ended(near.socket().expect("it is ours").as_fd()));
        assert_eq!(near.read(&mut [0; 8]).expect("it ended"), 0);

        let socket = UnixStream::from(
            rustix::net::socket(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, None)
                .expect("a socket"),
        );
        let error = Prompt::new(socket).read(&mut [0; 8]).expect_err("it is not connected");
        assert!(error.kind() != io::ErrorKind::WouldBlock, "{error}");
    }
}
