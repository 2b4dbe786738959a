//! From an address to a stream of bytes, for a thread that waits and for the event loop.

use std::fmt;
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redis::io::tcp::socket2::{Domain, SockAddr, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::{AsyncRead, AsyncWrite};

use super::prompt::{self, Prompt};
use super::tls::Tls;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) enum Address {
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
pub(super) trait Stream: Read + Write + Send {
    /// How long a read and a write may take from now on.
    fn set_limit(&self, limit: Duration) -> io::Result<()>;

    /// Its socket, if what goes over that is what is written and read here.
    fn socket(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether the other side has ended it, so that nobody reads what is written now.
    fn has_ended(&self) -> bool {
        self.socket().is_some_and(prompt::has_ended)
    }
}

impl Stream for Prompt<TcpStream> {
    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(limit)).and(self.socket.set_write_timeout(Some(limit)))
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl Stream for Prompt<UnixStream> {
    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.socket.set_read_timeout(Some(limit)).and(self.socket.set_write_timeout(Some(limit)))
    }

    fn socket(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

#[cfg(feature = "tls")]
impl Stream for rustls::StreamOwned<rustls::ClientConnection, Prompt<TcpStream>> {
    fn has_ended(&self) -> bool {
        self.sock.has_ended()
    }

    fn set_limit(&self, limit: Duration) -> io::Result<()> {
        self.sock.set_limit(limit)
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

/// Where a server that hangs has no room for one more who waits to be let in, connecting waits as long as a write would.
fn dial_path(path: &Path, limit: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // None at all would be no limit.
    socket.set_write_timeout(Some(limit.max(Duration::from_millis(1))))?;
    socket.connect(&SockAddr::unix(path)?).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    })?;
    Ok(OwnedFd::from(socket).into())
}

/// Connects within `limit`, which then also bounds each read and write.
pub(super) fn dial(address: &Address, tls: Option<&Tls>, limit: Duration) -> io::Result<Box<dyn Stream>> {
    let (host, port) = match address {
        Address::Unix(path) => {
            let stream = Prompt::new(dial_path(path, limit)?);
            stream.set_limit(limit)?;
            return Ok(Box::new(stream));
        }
        Address::Tcp(host, port) => (host.as_str(), *port),
    };
    let end = Instant::now() + limit;
    let mut failure = io::Error::from(io::ErrorKind::AddrNotAvailable);
    let mut addresses = (host, port).to_socket_addrs()?;
    let stream = loop {
        let Some(address) = addresses.next() else { return Err(failure) };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => break stream,
            Err(error) => failure = error,
        }
    };
    tune(SockRef::from(&stream))?;
    let stream = Prompt::new(stream);
    stream.set_limit(end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)))?;
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

/// As [`dial`]; the caller bounds the time.
pub(super) async fn dial_async(address: &Address, tls: Option<&Tls>) -> io::Result<Box<dyn AsyncStream>> {
    match address {
        Address::Unix(path) => Ok(Box::new(tokio::net::UnixStream::connect(path).await?)),
        Address::Tcp(host, port) => {
            let stream = tokio::net::TcpStream::connect((host.as_str(), *port)).await?;
            tune(SockRef::from(&stream))?;
            match tls {
                None => Ok(Box::new(stream)),
                Some(tls) => secure_async(stream, host, tls).await,
            }
        }
    }
}

#[cfg(feature = "tls")]
async fn secure_async(stream: tokio::net::TcpStream, host: &str, tls: &Tls) -> io::Result<Box<dyn AsyncStream>> {
    let config = tls.config().map_err(io::Error::other)?;
    let name = super::tls::server_name(host).map_err(io::Error::other)?;
    Ok(Box::new(tokio_rustls::TlsConnector::from(config).connect(name, stream).await?))
}

#[cfg(not(feature = "tls"))]
async fn secure_async(_: tokio::net::TcpStream, _: &str, tls: &Tls) -> io::Result<Box<dyn AsyncStream>> {
    Err(tls.config().err().map_or_else(|| io::ErrorKind::Unsupported.into(), io::Error::other))
}
