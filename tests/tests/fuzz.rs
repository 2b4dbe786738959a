//! Bytes that nobody meant. In every run the kept ones; with IPCMUTEX_FUZZ_SECONDS made-up ones for that long, each
//! target (`make fuzz`). What ends the process is then in the file that it names; it belongs into `tests/fuzz/corpus`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ipcmutex_tests::fuzz::{bytes::Maker, page, resp, url};

/// What takes longer hangs.
const WATCHDOG: Duration = Duration::from_secs(60);

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> =
        folder.read_dir().expect("a corpus").map(|entry| entry.expect("a file").path()).collect();
    files.sort();
    files.iter().map(|file| std::fs::read(file).expect("a file")).collect()
}

/// Ends the process when one run does not.
fn watch(target: &'static str, runs: &'static AtomicU64) {
    std::thread::spawn(move || {
        let mut seen = 0;
        loop {
            std::thread::sleep(WATCHDOG);
            let now = runs.load(Ordering::Relaxed);
            if now == seen {
                eprintln!("{target} hangs in run {now}");
                std::process::abort();
            }
            seen = now;
        }
    });
}

fn fuzz(target: &'static str, run: fn(&[u8])) {
    let kept = corpus(target);
    for bytes in &kept {
        run(bytes);
    }
    let Some(seconds) = std::env::var_os("IPCMUTEX_FUZZ_SECONDS") else { return };
    let seconds =
        Duration::from_secs(seconds.to_str().and_then(|text| text.parse().ok()).expect("a number of seconds"));
    let seed = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
    let runs: &'static AtomicU64 = Box::leak(Box::default());
    watch(target, runs);
    let last = std::env::temp_dir().join(format!("ipcmutex-fuzz-{target}-{}", std::process::id()));
    println!("{target}: seed {seed}; the bytes of the run under way are in {}", last.display());
    let mut maker = Maker::new(seed, kept);
    let start = Instant::now();
    while start.elapsed() < seconds {
        let bytes = maker.make();
        std::fs::write(&last, &bytes).expect("a file");
        run(&bytes);
        runs.fetch_add(1, Ordering::Relaxed);
    }
    std::fs::remove_file(&last).expect("a file");
    println!("{target}: {} runs in {:.0} s", runs.load(Ordering::Relaxed), start.elapsed().as_secs_f64());
}

#[test]
fn p7_p8_url() {
    fuzz("url", url::run);
}

#[test]
fn page_of_a_lock_file() {
    fuzz("page", page::run);
}

#[test]
fn r26_resp() {
    fuzz("resp", resp::run);
}
