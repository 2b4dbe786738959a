//! A stretch of network between clients and a server on this host, which can be cut and hushed.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
struct State {
    /// Nothing passes; what comes meanwhile is late, not lost.
    hushed: Mutex<bool>,
    go_on: Condvar,
    /// The two ends of each connection.
    links: Mutex<HashMap<u64, [TcpStream; 2]>>,
    numbers: AtomicU64,
    over: AtomicBool,
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
    pub fn to(target: &str) -> std::io::Result<Wire> {
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
                if let Ok(server) = TcpStream::connect(&target) {
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
            for end in ends {
                // It may have been closed by its other end.
                let _ = end.shutdown(Shutdown::Both);
            }
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

fn link(state: &Arc<State>, client: TcpStream, server: TcpStream) {
    let number = state.numbers.fetch_add(1, Ordering::Relaxed);
    let pair = |one: &TcpStream, two: &TcpStream| Some((one.try_clone().ok()?, two.try_clone().ok()?));
    let (Some(kept), Some(there), Some(back)) =
        (pair(&client, &server), pair(&client, &server), pair(&server, &client))
    else {
        return;
    };
    for end in [&client, &server] {
        // Only the speed depends on it.
        let _ = end.set_nodelay(true);
    }
    state.links.lock().expect("no panic under it").insert(number, [kept.0, kept.1]);
    for (from, to) in [there, back] {
        let state = state.clone();
        std::thread::spawn(move || {
            pump(&state, from, to);
            state.links.lock().expect("no panic under it").remove(&number);
        });
    }
}

fn pump(state: &State, mut from: TcpStream, mut to: TcpStream) {
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
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_hushed_is_late_and_what_is_cut_is_over() {
        let server = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let wire = Wire::to(&server.local_addr().unwrap().to_string()).unwrap();
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
