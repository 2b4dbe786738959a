//! From a host's name to its addresses, in bounded time. The system's search for a name knows no limit but its own, which is
//! many seconds, and cannot be ended: it has a thread of the library's, which is left to itself when the time is over.
//!
//! A name has one search at a time, and who asks meanwhile waits for that: so there are no more such threads than names.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Condvar};
use std::time::{Duration, Instant};

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
}

static SEARCHES: PerProcess<Guarded<HashMap<Name, Arc<Search>>>> = PerProcess::new();

/// The addresses of `host`.
///
/// # Errors
/// TimedOut if they are not found within `limit`.
pub(super) fn resolve(host: &str, port: u16, limit: Duration) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    search(host, port, limit, |(host, port)| Ok((host.as_str(), *port).to_socket_addrs()?.collect()))
}

fn search(
    host: &str,
    port: u16,
    limit: Duration,
    look: impl Fn(&Name) -> io::Result<Vec<SocketAddr>> + Clone + Send + 'static,
) -> io::Result<Vec<SocketAddr>> {
    let end = Instant::now() + limit;
    let name = (host.to_owned(), port);
    let mut searches = SEARCHES.get_or_init(Guarded::default).lock();
    let known = searches.get(&name).cloned();
    let search = known.clone().unwrap_or_default();
    let mut thread = None;
    if known.is_none() {
        let (name, search, look) = (name.clone(), search.clone(), look.clone());
        let begun = thread::start("ipcmutex-name", thread::FULL_STACK, move || {
            let found = look(&name).map_err(|error| (error.kind(), error.to_string()));
            if let Some(searches) = SEARCHES.get() {
                searches.lock().remove(&name);
            }
            *search.found.lock() = Some(found);
            search.over.notify_all();
        });
        thread = begun.ok();
    }
    if known.is_none() && thread.is_none() {
        drop(searches);
        // Late is better than not at all.
        return look(&name);
    }
    if known.is_none() {
        searches.insert(name, search.clone());
    }
    drop(searches);
    let mut found = search.found.lock();
    loop {
        if let Some(found) = found.clone() {
            // Whoever forks next is to have no thread of ours beside it.
            if let Some(thread) = thread {
                let _ = thread.join();
            }
            return found.map_err(|(kind, text)| io::Error::new(kind, text));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        found = wait_for(&search.over, found, left).0;
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
        assert!(begun.load(Ordering::SeqCst) <= 1, "one at a time");
        drop(tell);
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
