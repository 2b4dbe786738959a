//! Faults of Redis and of the way to it that need more than a server: a proxy that cuts, clocks that jump, other
//! libraries on the same key, and numbers. The simpler ones are in `../redis.rs`. A fault that has a number has it in its name.

mod beside;
mod clocks;
mod direct;
mod exits;
mod leases;
mod network;
mod refusals;
mod replies;

use ipcmutex::Mutex;
use ipcmutex_tests::asking::open;
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::Redis;

/// The lock `id` through the proxy, and straight.
fn both_ways(redis: &Redis, proxy: &Proxy, id: &str) -> (Mutex, Mutex) {
    (open(&redis.url_at(proxy.address(), id)), open(&redis.unix_url(&id.replace('?', "&"))))
}
