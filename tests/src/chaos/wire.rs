//! A stretch of network between clients and the unix socket of a server on this host, which can be cut and hushed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    /// Nothing passes; what comes meanwhile is late, not lost.
    hushed: Mutex<bool>,
    go_on: Condvar,
    /// The two ends of each connection.
    links: Mutex<HashMap<u64, [End; 2]>>,
    numbers: AtomicU64,
    over: AtomicBool,
}

#[derive(Debug)]
enum End {
    Client(TcpStream),
    Server(UnixStream),
}

impl End {
    fn both(client: &TcpStream, server: &UnixStream) -> std::io::Result<[End; 2]> {
        Ok([End::Client(client.try_clone()?), End::Server(server.try_clone()?)])
    }

    fn close(&self) {
        // It may have been closed by its other end.
        let _ = match self {
            End::Client(stream) => stream.shutdown(Shutdown::Both),
            End::Server(stream) => stream.shutdown(Shutdown::Both),
        };
    }

    fn read(&mut self, bytes: &mut [u8]) -> std::io::Result<usize> {
        match self {
            End::Client(stream) => stream.read(bytes),
            End::Server(stream) => stream.read(bytes),
        }
    }

    fn write_all(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            End::Client(stream) => stream.write_all(bytes),
            End::Server(stream) => stream.write_all(bytes),
        }
    }
}

/// Takes connections and passes on what comes, both ways.
pub struct Wire {
    state: Arc<State>,
    address: SocketAddr,
    acceptor: Option<std::thread::JoinHandle<()>>,
}

impl Wire {
    /// A wire to the server at `target`, which need not be there yet.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn to(target: &Path) -> std::io::Result<Wire> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let address = listener.local_addr()?;
        let state = Arc::new(State::default());
        let (shared, target) = (state.clone(), target.to_owned());
        let acceptor = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if shared.over.load(Ordering::SeqCst) {
                    return;
                }
                // A server that is away refuses: so does the wire.
                if let Ok(server) = UnixStream::connect(&target) {
                    link(&shared, client, server);
                }
            }
        });
        Ok(Wire { state, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends all connections.
    pub fn cut(&self) {
        for (_, ends) in self.state.links.lock().expect("no panic under it").drain() {
            ends.iter().for_each(End::close);
        }
    }

    /// Lets nothing pass, or lets what has come meanwhile pass.
    pub fn hush(&self, hushed: bool) {
        *self.state.hushed.lock().expect("no panic under it") = hushed;
        self.state.go_on.notify_all();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.state.over.store(true, Ordering::SeqCst);
        self.hush(false);
        self.cut();
        // Wakes the acceptor.
        drop(TcpStream::connect(self.address));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn link(state: &Arc<State>, client: TcpStream, server: UnixStream) {
    let number = state.numbers.fetch_add(1, Ordering::Relaxed);
    // Only the speed depends on it.
    let _ = client.set_nodelay(true);
    let both = || End::both(&client, &server);
    let (Ok(kept), Ok([client_from, server_to]), Ok([client_to, server_from])) = (both(), both(), both()) else {
        return;
    };
    state.links.lock().expect("no panic under it").insert(number, kept);
    for (from, to) in [(client_from, server_to), (server_from, client_to)] {
        let state = state.clone();
        std::thread::spawn(move || {
            pump(&state, from, to);
            state.links.lock().expect("no panic under it").remove(&number);
        });
    }
}

fn pump(state: &State, mut from: End, mut to: End) {
    let mut bytes = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut bytes) {
        let mut hushed = state.hushed.lock().expect("no panic under it");
        while *hushed {
            hushed = state.go_on.wait(hushed).expect("no panic under it");
        }
        drop(hushed);
        if to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    to.close();
    from.close();
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::time::Duration;

    #[test]
    fn what_is_hushed_is_late_and_what_is_cut_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let server = UnixListener::bind(folder.path().join("s")).unwrap();
        let wire = Wire::to(&folder.path().join("s")).unwrap();
        let mut client = TcpStream::connect(wire.address()).unwrap();
        let (mut there, _) = server.accept().unwrap();
        let mut byte = [0];
        client.write_all(b"1").unwrap();
        there.read_exact(&mut byte).unwrap();
        wire.hush(true);
        client.write_all(b"2").unwrap();
        there.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        assert!(there.read(&mut byte).is_err());
        wire.hush(false);
        there.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        there.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"2");
        wire.cut();
        assert!(!matches!(client.read(&mut byte), Ok(1..)) && !matches!(there.read(&mut byte), Ok(1..)));
    }
}
