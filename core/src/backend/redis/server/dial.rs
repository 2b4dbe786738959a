//! From an address to a stream of bytes, for a thread that waits and for the event loop.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use redis::io::tcp::socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::names;
use super::prompt::{self, Prompt};
use super::tls::Tls;
use crate::sys::fork::Unshared;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) enum Address {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A stream of a thread's own.
pub(crate) trait Stream: Read + Write + Send {
    /// How long what is asked now may take, until all of the answer has come.
    fn set_limit(&mut self, limit: Duration) -> io::Result<()>;

    /// There is none, for who looks after that otherwise.
    fn lift_limit(&mut self);

    /// Its socket, if what goes over that is what is written and read here.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the other side has ended it, so that nobody reads what is written now.
    fn has_ended(&mut self) -> bool {
        self.socket().is_some_and(prompt::has_ended)
    }
}

impl<S: AsFd + Read + Write + Send> Stream for Prompt<S> {
    fn set_limit(&mut self, limit: Duration) -> io::Result<()> {
        Prompt::set_limit(self, limit)
    }

    fn lift_limit(&mut self) {
        Prompt::lift_limit(self);
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Prompt::socket(self).ok().map(AsFd::as_fd)
    }
}

#[cfg(feature = "tls")]
impl Stream for rustls::StreamOwned<rustls::ClientConnection, Prompt<TcpStream>> {
    /// Its end may be said within TLS: what has come is understood first. It answers nothing that was asked.
    fn has_ended(&mut self) -> bool {
        // Nothing is waited for here, and the limit was that of the last answer.
        self.sock.lift_limit();
        while self.sock.socket().is_ok_and(|socket| prompt::has_come(socket.as_fd())) {
            let read = self.conn.read_tls(&mut self.sock).is_ok_and(|read| read > 0);
            if !read || !self.conn.process_new_packets().is_ok_and(|state| !state.peer_has_closed()) {
                return true;
            }
        }
        self.sock.has_ended()
    }

    fn set_limit(&mut self, limit: Duration) -> io::Result<()> {
        self.sock.set_limit(limit)
    }

    fn lift_limit(&mut self) {
        self.sock.lift_limit();
    }
}

/// Small messages at once; a peer that is gone is noticed in seconds, not in TCP's quarter of an hour.
fn tune(socket: SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(Duration::from_secs(2)).with_interval(Duration::from_secs(1)),
    )?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(Duration::from_secs(5)))?;
    Ok(())
}

/// One that no child has, were it forked while this connects.
fn socket(domain: Domain) -> io::Result<Unshared<Socket>> {
    Unshared::opened(|| Socket::new(domain, Type::STREAM, None))
}

/// Where a server that hangs has no room for one more who waits to be let in, connecting waits as long as a write would.
fn dial_path(path: &Path, limit: Duration) -> io::Result<Unshared<UnixStream>> {
    let socket = socket(Domain::UNIX)?;
    // None at all would be no limit.
    socket.get()?.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    socket.get()?.connect(&SockAddr::unix(path)?).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    })?;
    socket.turned(|socket| Ok(OwnedFd::from(socket).into()))
}

/// How long one address may take of the time until `end`, with so many to try: where the first one swallows everything the
/// next one must still have its turn.
fn share(end: Instant, addresses: usize) -> io::Result<Duration> {
    let each = end.saturating_duration_since(Instant::now()) / u32::try_from(addresses).unwrap_or(u32::MAX);
    if each.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(each) }
}

fn connect(address: &SocketAddr, limit: Duration) -> io::Result<Unshared<TcpStream>> {
    let socket = socket(Domain::for_address(*address))?;
    socket.get()?.connect_timeout(&(*address).into(), limit)?;
    socket.turned(|socket| Ok(socket.into()))
}

async fn connect_async(address: &SocketAddr) -> io::Result<Unshared<tokio::net::TcpStream>> {
    let socket = socket(Domain::for_address(*address))?;
    socket.get()?.set_nonblocking(true)?;
    match socket.get()?.connect(&(*address).into()) {
        Err(error) if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) => return Err(error),
        _ => {}
    }
    let stream = socket.turned(|socket| tokio::net::TcpStream::from_std(socket.into()))?;
    stream.get()?.writable().await?;
    match stream.get()?.take_error()? {
        None => Ok(stream),
        Some(error) => Err(error),
    }
}

/// The first of a host's addresses that takes a connection.
fn reach(addresses: &[SocketAddr], end: Instant) -> io::Result<Unshared<TcpStream>> {
    let mut failure = io::ErrorKind::AddrNotAvailable.into();
    for (at, address) in addresses.iter().enumerate() {
        match connect(address, share(end, addresses.len() - at)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

/// As [`reach`], for the event loop.
async fn reach_async(addresses: &[SocketAddr], end: Instant) -> io::Result<Unshared<tokio::net::TcpStream>> {
    let mut failure = io::ErrorKind::AddrNotAvailable.into();
    for (at, address) in addresses.iter().enumerate() {
        let each = share(end, addresses.len() - at)?;
        match tokio::time::timeout(each, connect_async(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failure = error,
            Err(_) => failure = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(failure)
}

/// Connects within `limit`, in which all that is read until another is set must come as well.
pub(super) fn dial(address: &Address, tls: Option<&Tls>, limit: Duration) -> io::Result<Box<dyn Stream>> {
    let end = Instant::now() + limit;
    let left = || end.saturating_duration_since(Instant::now());
    let (host, port) = match address {
        Address::Unix(path) => {
            let mut stream = Prompt::of(dial_path(path, limit)?);
            stream.set_limit(left())?;
            return Ok(Box::new(stream));
        }
        Address::Tcp(host, port) => (host.as_str(), *port),
    };
    let stream = reach(&names::resolve(host, port, limit)?, end)?;
    tune(SockRef::from(stream.get()?))?;
    let mut stream = Prompt::of(stream);
    stream.set_limit(left())?;
    let Some(tls) = tls else { return Ok(Box::new(stream)) };
    secure(stream, host, tls)
}

#[cfg(feature = "tls")]
fn secure(mut stream: Prompt<TcpStream>, host: &str, tls: &Tls) -> io::Result<Box<dyn Stream>> {
    let config = tls.config().map_err(io::Error::other)?;
    let name = super::tls::server_name(host).map_err(io::Error::other)?;
    let mut session = rustls::ClientConnection::new(config, name).map_err(io::Error::other)?;
    while session.is_handshaking() {
        session.complete_io(&mut stream)?;
    }
    Ok(Box::new(rustls::StreamOwned::new(session, stream)))
}

#[cfg(not(feature = "tls"))]
fn secure(_: Prompt<TcpStream>, _: &str, tls: &Tls) -> io::Result<Box<dyn Stream>> {
    Err(tls.config().err().map_or_else(|| io::ErrorKind::Unsupported.into(), io::Error::other))
}

/// A stream of the event loop's.
pub(super) trait AsyncStream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> AsyncStream for T {}

struct Looped<S: AsFd>(Unshared<S>);

impl<S: AsFd> Looped<S> {
    fn get(self: Pin<&mut Self>) -> io::Result<Pin<&mut S>>
    where
        S: Unpin,
    {
        self.get_mut().0.get_mut().map(Pin::new)
    }
}

impl<S: AsFd + AsyncRead + Unpin> AsyncRead for Looped<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.get()?.poll_read(cx, buffer)
    }
}

impl<S: AsFd + AsyncWrite + Unpin> AsyncWrite for Looped<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get()?.poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get()?.poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.get().is_ok_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get()?.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get()?.poll_shutdown(cx)
    }
}

/// As [`dial`]; the caller bounds the time, to the same.
pub(super) async fn dial_async(
    address: &Address,
    tls: Option<&Tls>,
    limit: Duration,
) -> io::Result<Box<dyn AsyncStream>> {
    match address {
        Address::Unix(path) => Ok(Box::new(Looped(Unshared::new(tokio::net::UnixStream::connect(path).await?)))),
        Address::Tcp(host, port) => {
            let end = Instant::now() + limit;
            let stream = reach_async(&names::resolve_async(host, *port).await?, end).await?;
            tune(SockRef::from(stream.get()?))?;
            let stream = Looped(stream);
            match tls {
                None => Ok(Box::new(stream)),
                Some(tls) => secure_async(stream, host, tls).await,
            }
        }
    }
}

#[cfg(feature = "tls")]
async fn secure_async(
    stream: Looped<tokio::net::TcpStream>,
    host: &str,
    tls: &Tls,
) -> io::Result<Box<dyn AsyncStream>> {
    let config = tls.config().map_err(io::Error::other)?;
    let name = super::tls::server_name(host).map_err(io::Error::other)?;
    Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, stream).await?))
}

#[cfg(not(feature = "tls"))]
async fn secure_async(_: Looped<tokio::net::TcpStream>, _: &str, tls: &Tls) -> io::Result<Box<dyn AsyncStream>> {
    Err(tls.config().err().map_or_else(|| io::ErrorKind::Unsupported.into(), io::Error::other))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Somebody who lets nobody in and refuses nobody: as many stand before it as can.
    fn hole() -> (Socket, SocketAddr, Vec<TcpStream>) {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a free port");
        socket.listen(0).expect("it listens");
        let address = socket.local_addr().ok().and_then(|address| address.as_socket()).expect("its address");
        let crowd = std::iter::from_fn(|| TcpStream::connect_timeout(&address, Duration::from_millis(100)).ok());
        let crowd = crowd.collect();
        (socket, address, crowd)
    }

    #[test]
    fn behind_an_address_that_swallows_everything_the_next_is_reached() {
        let (_hole, swallows, _crowd) = hole();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addresses = [swallows, listener.local_addr().expect("its address")];
        let limit = Duration::from_millis(600);
        reach(&addresses, Instant::now() + limit).expect("the other is reached");
        assert!(reach(&addresses[..1], Instant::now() + limit / 3).is_err(), "nobody is let in there");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("an event loop");
        runtime.block_on(reach_async(&addresses, Instant::now() + limit)).expect("nor does an event loop stay there");
    }
}
