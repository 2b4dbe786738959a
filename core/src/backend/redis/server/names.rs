//! From a host's name to its addresses, in bounded time. The system's search for a name knows no limit but its own, which is
//! many seconds, and cannot be ended: it has a thread of the library's, which is left to itself when the time is over.
//!
//! A name has one search at a time, and who asks meanwhile, a thread or an event loop, waits for that: so there are no more
//! such threads than names.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::error;
use crate::sync::{Guarded, wait_for};
use crate::sys::fork::PerProcess;
use crate::sys::thread;

type Name = (String, u16);
/// What more than one may be told.
type Found = Result<Vec<SocketAddr>, (io::ErrorKind, String)>;

#[derive(Default)]
struct Search {
    found: Guarded<Option<Found>>,
    over: Condvar,
    /// The same for event loops.
    told: Notify,
}

impl Search {
    fn found(&self) -> Option<io::Result<Vec<SocketAddr>>> {
        let found = self.found.lock().clone();
        found.map(|found| found.map_err(|(kind, text)| io::Error::new(kind, text)))
    }
}

static SEARCHES: PerProcess<Guarded<HashMap<Name, Arc<Search>>>> = PerProcess::new();

/// The addresses of `host`.
///
/// # Errors
/// TimedOut if they are not found within `limit`.
pub(super) fn resolve(host: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    match plain(host, port) {
        Some(address) => Ok(vec![address]),
        None => search(host, port, limit, ask),
    }
}

/// As [`resolve`], for an event loop; the caller bounds the time. Its own searches would each keep one of its few threads
/// until they end, also when it has ended itself.
///
/// # Errors
/// Also if there is no thread for it.
pub(super) async fn resolve_async(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    match plain(host, port) {
        Some(address) => Ok(vec![address]),
        None => search_async(host, port, ask).await,
    }
}

fn plain(host: &str, port: u16) -> Option<SocketAddr> {
    Some(SocketAddr::new(host.parse::<IpAddr>().ok()?, port))
}

fn ask((host, port): &Name) -> io::Result<Vec<SocketAddr>> {
    Ok((host.as_str(), *port).to_socket_addrs()?.collect())
}

/// The search that is under way, or a new one and its thread.
fn begin(
    name: &Name,
    look: impl Fn(&Name) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> error::Result<(Arc<Search>, Option<JoinHandle<()>>)> {
    let mut searches = SEARCHES.get_or_init(Guarded::default).lock();
    if let Some(known) = searches.get(name) {
        return Ok((known.clone(), None));
    }
    let search = Arc::<Search>::default();
    let (sought, of) = (name.clone(), search.clone());
    let thread = thread::start("ipcmutex-name", thread::FULL_STACK, move || {
        let found = look(&sought).map_err(|error| (error.kind(), error.to_string()));
        if let Some(searches) = SEARCHES.get() {
            searches.lock().remove(&sought);
        }
        *of.found.lock() = Some(found);
        of.over.notify_all();
        of.told.notify_waiters();
    })?;
    searches.insert(name.clone(), search.clone());
    Ok((search, Some(thread)))
}

fn search(
    host: &str,
    port: u16,
    limit: Duration,
    look: impl Fn(&Name) -> io::Result<Vec<SocketAddr>> + Clone + Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let end = Instant::now() + limit;
    let name = (host.to_owned(), port);
    let Ok((search, thread)) = begin(&name, look.clone()) else {
        // No thread to be had. Late is better than not at all.
        return look(&name);
    };
    loop {
        if let Some(found) = search.found() {
            // Whoever forks next is to have no thread of ours beside it.
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            return found;
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let found = search.found.lock();
        if found.is_none() {
            let _ = wait_for(&search.over, found, left);
        }
    }
}

async fn search_async(
    host: &str,
    port: u16,
    look: impl Fn(&Name) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let (search, _) = begin(&(host.to_owned(), port), look).map_err(io::Error::other)?;
    loop {
        // Before it is looked at: what is told in between is not missed.
        let mut told = std::pin::pin!(search.told.notified());
        told.as_mut().enable();
        if let Some(found) = search.found() {
            return found;
        }
        told.await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    #[test]
    fn a_search_without_end_is_given_up_and_there_is_one_of_a_name() {
        let (tell, told) = mpsc::channel::<()>();
        let (told, begun) = (Arc::new(Guarded::new(told)), Arc::new(AtomicU32::new(0)));
        let address = SocketAddr::from(([127, 0, 0, 1], 7));
        let look = {
            let begun = begun.clone();
            move |_: &Name| {
                begun.fetch_add(1, Ordering::SeqCst);
                // Until the test ends it.
                let _ = told.lock().recv();
                Ok(vec![address])
            }
        };
        for _ in 0..3 {
            let late = search("endless", 7, Duration::from_millis(20), look.clone()).expect_err("nobody answers");
            assert_eq!(late.kind(), io::ErrorKind::TimedOut);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("an event loop");
        runtime.block_on(async {
            let late = tokio::time::timeout(Duration::from_millis(20), search_async("endless", 7, look.clone())).await;
            late.expect_err("nobody answers");
        });
        assert!(begun.load(Ordering::SeqCst) <= 1, "one at a time");
        let waits = search_async("endless", 7, look.clone());
        drop(tell);
        let found = runtime.block_on(async { tokio::time::timeout(LONG, waits).await });
        assert_eq!(found.expect("it is told").expect("it has ended"), [address]);
        let found = search("endless", 7, LONG, look);
        assert_eq!(found.expect("it has ended"), [address]);
        assert!(SEARCHES.get().is_some_and(|searches| !searches.lock().contains_key(&("endless".to_owned(), 7))));
    }

    #[test]
    fn what_was_not_found_is_told_and_looked_for_again() {
        let none = |_: &Name| Err(io::Error::new(io::ErrorKind::NotFound, "no such name"));
        for _ in 0..2 {
            let error = search("nobody", 7, LONG, none).expect_err("there is none");
            assert_eq!((error.kind(), error.to_string().as_str()), (io::ErrorKind::NotFound, "no such name"));
        }
        assert_eq!(resolve("::1", 7, Duration::ZERO).expect("an address"), ["[::1]:7".parse().expect("one")]);
        assert!(!resolve("localhost", 7, LONG).expect("it is there").is_empty());
    }
}
