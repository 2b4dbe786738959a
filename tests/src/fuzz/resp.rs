//! Servers that answer anything.

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

use ipcmutex::{ErrorKind, Mutex};

/// A server whose answers are the bytes that it was given last, one piece per request. Pieces end with two NULs.
struct Server {
    url: String,
    answers: Sender<Vec<u8>>,
}

fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("ipcmutex-fuzz-").tempdir().expect("a folder").keep();
        let socket: PathBuf = folder.join("socket");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let (answers, given) = channel::<Vec<u8>>();
        std::thread::spawn(move || {
            let mut script = Vec::new();
            for stream in listener.incoming().flatten() {
                if let Some(next) = given.try_iter().last() {
                    script = next;
                }
                let script = script.clone();
                std::thread::spawn(move || drop(serve(stream, &script)));
            }
        });
        let url = format!("rpm+redis+unix://{}?id=fuzz&connect_timeout=200ms&ttl=300ms&policy=any", socket.display());
        Server { url, answers }
    })
}

fn serve(mut stream: UnixStream, script: &[u8]) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let mut rest = script;
    while !rest.is_empty() && stream.read(&mut request)? > 0 {
        let end = rest.windows(2).position(|pair| pair == [0, 0]).unwrap_or(rest.len());
        stream.write_all(&rest[..end])?;
        rest = rest.get(end + 2..).unwrap_or(&[]);
    }
    Ok(())
}

/// What a server that talks nonsense may be called.
const FIT: [ErrorKind; 9] = [
    ErrorKind::Timeout,
    ErrorKind::Unavailable,
    ErrorKind::Protocol,
    ErrorKind::Config,
    ErrorKind::Auth,
    ErrorKind::Permission,
    ErrorKind::Lost,
    ErrorKind::NotOwner,
    ErrorKind::Unsupported,
];

/// Talks to a server that answers with the bytes.
///
/// # Panics
/// If a call answers what does not fit.
pub fn run(data: &[u8]) {
    let server = server();
    server.answers.send(data.to_vec()).expect("the server runs");
    if let Err(error) = use_it(&server.url) {
        assert!(FIT.contains(&error.kind()), "{error}");
    }
}

fn use_it(url: &str) -> ipcmutex::Result<()> {
    let mutex = Mutex::open(url)?;
    let status = mutex.status();
    let taken = mutex.acquire_timeout(Duration::from_millis(20));
    if let Ok(Some(hold)) = taken {
        let _ = hold.check();
        let _ = hold.extend(None);
        hold.release()?;
    } else {
        taken?;
    }
    status?;
    mutex.close()
}
