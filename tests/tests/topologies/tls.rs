//! `rpm+rediss:`: the server is verified, and who cannot be verified is never spoken to in plain text.

use std::io::Read;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use ipcmutex::{ErrorKind, Mutex};
use ipcmutex_tests::agent::{Agent, Language, talkative};
use ipcmutex_tests::certificates::{Authority, Certificate};
use ipcmutex_tests::proxy::Proxy;
use ipcmutex_tests::secrets;
use ipcmutex_tests::servers::Redis;

use ipcmutex_tests::asking::{LONG, kind_of, open, until, within};
use ipcmutex_tests::needs_redis;

use super::carries_a_lock;

fn url(redis: &Redis, host: &str, query: &str) -> String {
    format!("rpm+rediss://{host}:{}/tls?{query}", redis.second_port())
}

#[track_caller]
fn refusal(url: &str) -> (ErrorKind, String) {
    let error = Mutex::open(url).expect_err("it must be refused");
    secrets::search(&format!("{error} {error:?}"));
    (error.kind(), error.to_string())
}

#[test]
fn a_verified_server_carries_a_lock() {
    needs_redis!();
    let authority = Authority::new();
    let redis = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), false);
    let ca = format!("ca={}", authority.file().display());
    carries_a_lock(&url(&redis, "localhost", &ca));
    carries_a_lock(&url(&redis, "localhost", &format!("{ca}&protocol=2")));
    // To name an authority is to ask for TLS: with a scheme that does not say so, too.
    carries_a_lock(&url(&redis, "localhost", &ca).replace("rediss", "redis"));
}

#[test]
fn the_environment_may_name_a_server_with_tls() {
    needs_redis!();
    let authority = Authority::new();
    let redis = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), false);
    let server = url(&redis, "localhost", "").replace("rpm+", "").replace("/tls?", "");
    let told_of = |server: &str| {
        let known = authority.file().into_os_string();
        Agent::start_with(Language::Rust, &[("REDIS_URL", server.as_ref()), ("SSL_CERT_FILE", &known), talkative()])
    };
    for server in [server.clone(), server.replace("rediss", "valkeys")] {
        let agent = told_of(&server);
        agent.open(1, "rpm+redis:///env").ok();
        agent.call("acquire 1 forever").ok();
        agent.call("release 1").ok();
    }
    let refused = told_of(&format!("{server}#insecure")).open(1, "rpm+redis:///env").err(ErrorKind::Invalid);
    assert!(refused.text.contains("asks not to verify"), "{}", refused.text);
}

#[test]
fn p10_who_cannot_be_verified_is_refused() {
    needs_redis!();
    let (authority, other) = (Authority::new(), Authority::new());
    let ca = format!("ca={}", authority.file().display());
    let good = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), false);

    let (kind, text) = refusal(&url(&good, "localhost", &format!("ca={}", other.file().display())));
    assert_eq!(kind, ErrorKind::Auth, "{text}");
    assert!(text.contains("UnknownIssuer") && text.contains("?ca="), "{text}");

    // The system's authorities do not know it either.
    let (kind, text) = refusal(&url(&good, "localhost", ""));
    assert!(kind == ErrorKind::Auth || text.contains("knows no certificate authority"), "{text}");

    let (kind, text) = refusal(&url(&good, "127.0.0.1", &ca));
    assert_eq!(kind, ErrorKind::Auth, "{text}");
    assert!(text.contains("as the certificate names it"), "{text}");

    let expired = Redis::with_tls(&authority, &authority.sign("old", "localhost", false), false);
    let (kind, text) = refusal(&url(&expired, "localhost", &ca));
    assert_eq!(kind, ErrorKind::Auth, "{text}");
    assert!(text.contains("renew the server's certificate"), "{text}");

    let (_, port) = good.address().rsplit_once(':').map(|(_, port)| ((), port.to_owned())).expect("a port");
    let (kind, text) = refusal(&format!("rpm+rediss://localhost:{port}/x?{ca}"));
    assert_eq!(kind, ErrorKind::Unavailable, "{text}");

    // And what is plain does not get through where TLS is spoken.
    let plain = Mutex::open(&format!("rpm+redis://localhost:{}/x", good.second_port()));
    assert_eq!(kind_of(plain), ErrorKind::Unavailable);
}

#[test]
fn p10_no_word_is_said_in_plain_text() {
    let authority = Authority::new();
    let listener = TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    let port = listener.local_addr().expect("its number").port();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut words = vec![0; 1000];
        let length = stream.read(&mut words).expect("a greeting");
        words.truncate(length);
        words
    });
    let url =
        format!("rpm+rediss://:c4nary@localhost:{port}/x?connect_timeout=500ms&ca={}", authority.file().display());
    let (kind, text) = refusal(&url);
    assert_eq!(kind, ErrorKind::Unavailable, "{text}");
    secrets::search(&text);
    let heard = heard.join().expect("no panic");
    // A TLS handshake record, and nothing of the secret in it.
    assert_eq!(heard[..2], [22, 3]);
    assert!(!heard.windows(6).any(|word| word == secrets::CANARY.as_bytes()));
}

#[test]
fn a_server_that_asks_for_a_certificate_gets_ours() {
    needs_redis!();
    let authority = Authority::new();
    let redis = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), true);
    let ours = authority.sign("client", "client", true);
    let ca = format!("ca={}", authority.file().display());
    let identity = format!("crt={}&key={}", ours.crt.display(), ours.key.display());
    carries_a_lock(&url(&redis, "localhost", &format!("{ca}&{identity}")));
    // By when the server says so the connection may be gone, and its reason with it.
    let (kind, text) = refusal(&url(&redis, "localhost", &ca));
    assert!(matches!(kind, ErrorKind::Auth | ErrorKind::Unavailable), "{text}");
}

/// The files are read at each connect.
#[test]
fn certificates_that_were_renewed_are_used_without_a_restart() {
    needs_redis!();
    let (before, after) = (Authority::new(), Authority::new());
    let theirs = before.sign("server", "localhost", true);
    let ours = before.sign("client", "client", true);
    let mut redis = Redis::with_tls(&before, &theirs, true);
    let query = format!("ca={}&crt={}&key={}", before.file().display(), ours.crt.display(), ours.key.display());
    let mutex = open(&url(&redis, "localhost", &query));
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
    let renew = |old: &Certificate, new: &Certificate| {
        for (old, new) in [(&old.crt, &new.crt), (&old.key, &new.key)] {
            std::fs::copy(new, old).expect("it is renewed");
        }
    };
    renew(&theirs, &after.sign("server", "localhost", true));
    renew(&ours, &after.sign("client", "client", true));
    std::fs::copy(after.file(), before.file()).expect("it is renewed");
    redis.restart();
    mutex.acquire_with(within(LONG)).expect("acquired").release().expect("released");
}

#[test]
fn files_that_cannot_be_used_are_named() {
    let authority = Authority::new();
    let folder = authority.folder();
    std::fs::write(folder.join("empty"), "").expect("a file");
    let pair = authority.sign("client", "client", true);
    let other = authority.sign("other", "other", true);
    let (ca, missing, empty) = (authority.file(), folder.join("missing"), folder.join("empty"));
    let at = |query: String| refusal(&format!("rpm+rediss://localhost:1/x?{query}"));
    let here = std::env::current_dir().expect("a folder");
    let rooted = here.join("relative.pem").display().to_string();
    for (query, kind, told) in [
        ("ca=relative.pem".to_owned(), ErrorKind::Io, rooted.as_str()),
        (format!("ca={}", missing.display()), ErrorKind::Io, "missing"),
        (format!("ca={}", empty.display()), ErrorKind::Invalid, "no PEM certificate"),
        (format!("ca={}&crt={}", ca.display(), pair.crt.display()), ErrorKind::Invalid, "come together"),
        (
            format!("ca={}&crt={}&key={}", ca.display(), pair.crt.display(), empty.display()),
            ErrorKind::Invalid,
            "no PEM private key",
        ),
        (
            format!("ca={}&crt={}&key={}", ca.display(), pair.crt.display(), other.key.display()),
            ErrorKind::Invalid,
            "does not fit",
        ),
    ] {
        let (found, text) = at(query.clone());
        assert_eq!(found, kind, "{query}: {text}");
        assert!(text.contains(told), "{query}: {text}");
    }
    let (kind, text) = refusal(&format!("rpm+redis+unix:///s?id=x&ca={}", ca.display()));
    assert_eq!(kind, ErrorKind::Invalid, "{text}");
    // The switch by which other clients turn verification off.
    assert_eq!(refusal("rpm+rediss://localhost:1/x#insecure").0, ErrorKind::Invalid);
    assert_eq!(refusal("rpm+rediss://localhost:1/x?insecure=1").0, ErrorKind::Invalid);
}

/// It said so before it ended the connection; that is no answer, and nobody hears what is said then.
#[test]
fn a_release_that_only_a_new_server_hears_of_is_a_loss_over_tls_too() {
    needs_redis!();
    let authority = Authority::new();
    let mut redis = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), false);
    // Nobody renews it, and so nobody asks the new server before.
    let query = format!("ca={}&ttl=60s&renew=off", authority.file().display());
    let hold = open(&url(&redis, "localhost", &query)).acquire().expect("acquired");
    assert!(redis.command(&["CLIENT", "KILL", "TYPE", "normal"]).number() > 0);
    redis.restart();
    let next = open(&redis.url("tls")).acquire_with(within(LONG)).expect("the new server knows of nobody");
    assert_eq!(kind_of(hold.release()), ErrorKind::Lost);
    next.release().expect("it is still the other's");
}

/// Each byte comes in time, and all of them together do not.
#[test]
fn a_handshake_that_comes_byte_by_byte_does_not_outlast_connect_timeout() {
    needs_redis!();
    let authority = Authority::new();
    let redis = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), false);
    let proxy = Proxy::before(&format!("127.0.0.1:{}", redis.second_port()));
    let (_, port) = proxy.address().rsplit_once(':').expect("a port");
    let url = format!("rpm+rediss://localhost:{port}/tls?ca={}", authority.file().display());
    proxy.drip(Duration::from_millis(10));
    let begun = Instant::now();
    // More than 1000 bytes.
    assert_eq!(refusal(&format!("{url}&connect_timeout=500ms")).0, ErrorKind::Unavailable);
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(5), "{took:?}");
    proxy.drip(Duration::ZERO);
    carries_a_lock(&url);
}

/// To let it in takes longer than any of its waits, and to answer does not.
#[test]
fn who_never_waits_for_long_gets_back_to_a_server_that_is_far() {
    needs_redis!();
    let authority = Authority::new();
    let redis = Redis::with_tls(&authority, &authority.sign("server", "localhost", true), false);
    let proxy = Proxy::before(&format!("127.0.0.1:{}", redis.second_port()));
    let (_, port) = proxy.address().rsplit_once(':').expect("a port");
    let mutex =
        open(&format!("rpm+rediss://localhost:{port}/far?ca={}&connect_timeout=20s", authority.file().display()));
    proxy.delay(Duration::from_millis(60));
    proxy.cut_all();
    until("it is served", || {
        // Nothing of what the wait begins is there for the next one.
        std::thread::sleep(Duration::from_secs(1));
        let begun = Instant::now();
        let outcome = mutex.acquire_with(within(Duration::from_millis(200)));
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        outcome.is_ok_and(|hold| hold.release().is_ok())
    });
}
