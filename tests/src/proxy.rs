//! A proxy between a client and its Redis server, which breaks the connection where a test says: after any byte, in
//! either direction, by closing it, by going silent or by saying something twice.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockFilter, SockRef};

use crate::asking::until;

/// From whom the bytes come that are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// What the client sends.
    Client,
    /// What the server answers and publishes.
    Server,
}

/// What becomes of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Both sides see it closed.
    Cut,
    /// Nothing passes any more, either way; both sides find it open.
    Silence,
    /// Nothing more; but what was read with the byte that strikes passes twice.
    Twice,
}

/// On which connections. The engine's link is the one that subscribes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum On {
    /// Of the calling threads.
    Caller,
    /// Of the background thread, and of a thread that waits by itself.
    Link,
    /// Of a thread that waits by itself.
    Ear,
    /// The first on which it happens.
    Any,
    /// The first on which this is said.
    Saying(&'static str),
}

impl On {
    fn is_so(self, link: bool, ear: bool, data: &[u8]) -> bool {
        match self {
            On::Caller => !link,
            On::Link => link,
            On::Ear => ear,
            On::Any => true,
            On::Saying(words) => data.windows(words.len()).any(|said| said == words.as_bytes()),
        }
    }
}

/// A fault: strikes once, on one connection, after `bytes` more bytes have passed there.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    /// Whose bytes count.
    pub from: From,
    /// How many of them still pass.
    pub bytes: usize,
    /// What happens then.
    pub end: End,
    /// Where.
    pub on: On,
}

#[derive(Default)]
struct Plan {
    fault: Option<Fault>,
    delay: Duration,
    drip: Duration,
    /// Every new connection is refused.
    closed: bool,
    /// Every new connection waits.
    waits: bool,
    /// Where new connections lead.
    server: String,
    /// The proxy is dropped.
    done: bool,
    /// Ways to end the connections there are.
    open: Vec<(TcpStream, TcpStream, Arc<AtomicU64>)>,
    /// What the clients have sent since it was asked for.
    said: Vec<u8>,
}

#[derive(Default)]
struct Shared {
    plan: Mutex<Plan>,
    connections: Mutex<Vec<Instant>>,
    struck: AtomicU64,
    /// What those say who wait by themselves is kept back; something is.
    keeping: AtomicBool,
    keeps: AtomicBool,
    /// Held while something is passed on.
    passing: Mutex<()>,
}

impl Shared {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running proxy. It listens until it is dropped.
pub struct Proxy {
    shared: Arc<Shared>,
    address: String,
}

impl Proxy {
    /// A proxy before `server` (host:port).
    pub fn before(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let shared = Arc::new(Shared::default());
        shared.plan().server = server.to_owned();
        let of = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut plan = of.plan();
                while plan.waits && !plan.done {
                    drop(plan);
                    std::thread::sleep(Duration::from_millis(1));
                    plan = of.plan();
                }
                let (closed, done, server) = (plan.closed, plan.done, plan.server.clone());
                drop(plan);
                if done {
                    return;
                }
                of.connections.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
                if closed {
                    continue;
                }
                if let Ok(upstream) = TcpStream::connect(server) {
                    serve(&of, client, upstream);
                }
            }
        });
        Proxy { shared, address }
    }

    /// host:port of the proxy.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Arms a fault.
    pub fn arm(&self, fault: Fault) {
        self.shared.plan().fault = Some(fault);
    }

    /// Disarms what has not struck; whether it had.
    pub fn disarm(&self) -> bool {
        self.shared.plan().fault.take().is_none()
    }

    /// Does something that no fault may meet: one that has not struck waits meanwhile.
    pub fn disarm_for(&self, undisturbed: impl FnOnce()) {
        let kept = self.shared.plan().fault.take();
        undisturbed();
        self.shared.plan().fault = kept;
    }

    /// How many faults have struck.
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// From now on each piece of data is this late, in both directions.
    pub fn delay(&self, by: Duration) {
        self.shared.plan().delay = by;
    }

    /// From now on what the server says comes byte by byte, each this late; no fault strikes there then.
    pub fn drip(&self, by: Duration) {
        self.shared.plan().drip = by;
    }

    /// Refuses new connections, or takes them again.
    pub fn close(&self, closed: bool) {
        self.shared.plan().closed = closed;
    }

    /// Has new connections wait, or lets them in.
    pub fn let_wait(&self, waits: bool) {
        self.shared.plan().waits = waits;
    }

    /// From now on new connections lead to another server, as a name does that was given to it.
    pub fn lead_to(&self, server: &str) {
        self.shared.plan().server = server.to_owned();
    }

    /// Cuts every connection there is.
    pub fn cut_all(&self) {
        let open = std::mem::take(&mut self.shared.plan().open);
        for (client, upstream, _) in open {
            let _ = client.shutdown(Shutdown::Both);
            let _ = upstream.shutdown(Shutdown::Both);
        }
    }

    /// When each connection came.
    pub fn connections(&self) -> Vec<Instant> {
        self.shared.connections.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The network between is gone: whatever is sent on the connections there are is neither taken nor refused, not even by
    /// the kernels. New ones are as before.
    pub fn swallow(&self) {
        // What is not acknowledged when that begins would be sent anew again and again, and be heard.
        {
            let _passing = self.shared.passing.lock().unwrap_or_else(PoisonError::into_inner);
            for (.., link) in &self.shared.plan().open {
                link.fetch_or(SILENT, Ordering::SeqCst);
            }
        }
        until("all that was sent has arrived", || {
            self.shared.plan().open.iter().all(|(client, upstream, _)| has_arrived(client) && has_arrived(upstream))
        });
        // The classic filter `return 0`: each packet is dropped before TCP sees it.
        let nothing = [SockFilter::new(0x06, 0, 0, 0)];
        for (client, upstream, _) in &self.shared.plan().open {
            for socket in [client, upstream] {
                SockRef::from(socket).attach_filter(&nothing).expect("a filter");
            }
        }
    }

    /// Keeps back what a thread that waits by itself asks, or lets it pass again.
    pub fn keep_asked(&self, keep: bool) {
        self.shared.keeps.store(false, Ordering::SeqCst);
        self.shared.keeping.store(keep, Ordering::SeqCst);
    }

    /// Whether something is kept back.
    pub fn keeps_asked(&self) -> bool {
        self.shared.keeps.load(Ordering::SeqCst)
    }

    /// What clients have sent since the last time this was asked.
    pub fn said(&self) -> Vec<u8> {
        std::mem::take(&mut self.shared.plan().said)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.cut_all();
        self.shared.plan().done = true;
        // Wakes the listener, which ends.
        let _ = TcpStream::connect(&self.address);
    }
}

/// Whether all that was sent on `socket`, of this machine's IPv4, has been acknowledged.
fn has_arrived(socket: &TcpStream) -> bool {
    let port = |address: std::io::Result<std::net::SocketAddr>| address.map_or(0, |address| address.port());
    let (from, to) = (port(socket.local_addr()), port(socket.peer_addr()));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("the kernel's table");
    // sl local remote state sent:received ...
    let line = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).find(|line| {
        line.len() > 4 && line[1].ends_with(&format!(":{from:04X}")) && line[2].ends_with(&format!(":{to:04X}"))
    });
    line.is_none_or(|line| line[4].starts_with("00000000:"))
}

fn serve(shared: &Arc<Shared>, client: TcpStream, upstream: TcpStream) {
    let both = || Some((client.try_clone().ok()?, upstream.try_clone().ok()?));
    let (Some(kept), Some(up), Some(down)) = (both(), both(), both()) else { return };
    for socket in [&client, &upstream] {
        let _ = socket.set_nodelay(true);
    }
    let link = Arc::new(AtomicU64::new(0));
    shared.plan().open.push((kept.0, kept.1, link.clone()));
    for (from, (client, upstream)) in [(From::Client, up), (From::Server, down)] {
        let (shared, link) = (shared.clone(), link.clone());
        std::thread::spawn(move || {
            let (source, target) = if from == From::Client { (&client, &upstream) } else { (&upstream, &client) };
            pump(&shared, from, source, target, &link);
            let _ = client.shutdown(Shutdown::Both);
            let _ = upstream.shutdown(Shutdown::Both);
        });
    }
}

/// What a connection has become: its link byte says whether it subscribes, whether it is silent, and whether it is that
/// of a thread that waits by itself, whose channel has a longer name.
const SUBSCRIBES: u64 = 1;
const SILENT: u64 = 2;
const EAR: u64 = 4;
const ITS_CHANNEL: &[u8] = b"SUBSCRIBE\r\n$28\r\nipcmutex:w:";

fn pump(shared: &Shared, from: From, mut source: &TcpStream, mut target: &TcpStream, kind: &AtomicU64) {
    let mut buffer = [0; 16 << 10];
    loop {
        let Ok(read) = source.read(&mut buffer) else { return };
        if read == 0 {
            return;
        }
        let data = &buffer[..read];
        if from == From::Client && data.windows(9).any(|word| word.eq_ignore_ascii_case(b"SUBSCRIBE")) {
            kind.fetch_or(SUBSCRIBES, Ordering::SeqCst);
        }
        if from == From::Client && data.windows(ITS_CHANNEL.len()).any(|word| word == ITS_CHANNEL) {
            kind.fetch_or(EAR, Ordering::SeqCst);
        }
        let mut plan = shared.plan();
        if from == From::Client {
            plan.said.extend_from_slice(data);
        }
        let (delay, drip) = (plan.delay, if from == From::Server { plan.drip } else { Duration::ZERO });
        let is = |what| kind.load(Ordering::SeqCst) & what != 0;
        let strikes = match &mut plan.fault {
            Some(fault) if fault.from == from && fault.on.is_so(is(SUBSCRIBES), is(EAR), data) => {
                let left = fault.bytes;
                fault.bytes = left.saturating_sub(read);
                (left < read).then_some((left, fault.end))
            }
            _ => None,
        };
        if strikes.is_some() {
            plan.fault = None;
        }
        drop(plan);
        if !delay.is_zero() {
            std::thread::sleep(delay);
        }
        while from == From::Client && kind.load(Ordering::SeqCst) & EAR != 0 && shared.keeping.load(Ordering::SeqCst) {
            shared.keeps.store(true, Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(1));
        }
        if !drip.is_zero() {
            for byte in data {
                std::thread::sleep(drip);
                if target.write_all(&[*byte]).is_err() {
                    return;
                }
            }
            continue;
        }
        let _passing = shared.passing.lock().unwrap_or_else(PoisonError::into_inner);
        if kind.load(Ordering::SeqCst) & SILENT != 0 {
            continue;
        }
        let twice = strikes.is_some_and(|(_, end)| end == End::Twice);
        let pass = strikes.filter(|_| !twice).map_or(read, |(left, _)| left);
        if strikes.is_some_and(|(_, end)| end == End::Silence) {
            kind.fetch_or(SILENT, Ordering::SeqCst);
        }
        let passed = target.write_all(&data[..pass]).and_then(|()| target.write_all(if twice { data } else { &[] }));
        if strikes.is_some() {
            shared.struck.fetch_add(1, Ordering::SeqCst);
        }
        if passed.is_err() || strikes.is_some_and(|(_, end)| end == End::Cut) {
            return;
        }
    }
}
