//! Faults of Redis and of the way to it that need more than a server: a proxy that cuts, clocks that jump, other
//! libraries on the same key, and numbers. The simpler ones are in `../redis`. A fault that has a number has it in its name.

mod beside;
mod clocks;
mod direct;
mod exits;
mod leases;
mod network;
mod refusals;
mod replies;

use std::path::PathBuf;
use std::process::Command;

use ipcmutex::Mutex;
use ipcmutex_tests::artifacts::installed;
use ipcmutex_tests::asking::open;
use ipcmutex_tests::place::Place;
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::servers::Redis;

/// The lock `id` through the proxy, and straight.
fn both_ways(redis: &Redis, proxy: &Proxy, id: &str) -> (Mutex, Mutex) {
    (open(&redis.url_at(proxy.address(), id)), open(&redis.unix_url(&id.replace('?', "&"))))
}

/// A program in C with the installed library.
fn built(place: &Place, source: &str) -> PathBuf {
    let (file, program) = (place.dir.path().join("program.c"), place.dir.path().join("program"));
    std::fs::write(&file, source).expect("written");
    let installed = installed();
    let built = Command::new("gcc")
        .args(["-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", "-o"])
        .args([&program, &file])
        .arg(format!("-I{}", installed.join("include").display()))
        .arg(format!("-L{}", installed.join("lib").display()))
        .args(["-lipcmutex", &format!("-Wl,-rpath,{}", installed.join("lib").display())])
        .status();
    assert!(built.expect("gcc").success());
    program
}
