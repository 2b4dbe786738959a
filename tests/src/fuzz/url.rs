//! Texts that may be URLs.

use ipcmutex::url::{LockUrl, redact};

const SECRET: &str = "hunter2secret";

/// Parses the bytes as a URL, and once more with a password put where one belongs: it must never be shown.
///
/// # Panics
/// If a password is shown, or a URL is not what it shows.
pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if text.contains(SECRET) {
        return; // Where it stands it may be no password.
    }
    check(text);
    let server = |scheme: &str| {
        scheme.starts_with("rpm+") && scheme.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'+')
    };
    if let Some((scheme, rest)) = text.split_once("://")
        && server(scheme)
    {
        check(&format!("{scheme}://user:{SECRET}@{rest}"));
    }
}

fn check(text: &str) {
    let shown = redact(text);
    // A secret counts as one where the parser sees a secret; where the fuzzer broke the URL, `redact` must still hide it.
    let hidden = text.matches(SECRET).count() == 1 && text.contains(&format!("{SECRET}@"));
    match LockUrl::parse(text) {
        Ok(url) => {
            assert!(!hidden || !url.redacted().contains(SECRET), "{text} is shown as {}", url.redacted());
            assert!(!hidden || !format!("{url:?}").contains(SECRET), "{text} is debugged as {url:?}");
            let again = LockUrl::parse(text).expect("what was parsed is parsed again");
            assert_eq!(url.redacted(), again.redacted());
        }
        Err(error) => {
            assert!(!hidden || !error.to_string().contains(SECRET), "{text}: {error}");
            assert!(!hidden || !format!("{error:?}").contains(SECRET), "{text}: {error:?}");
        }
    }
    assert!(!hidden || !shown.contains(SECRET), "{text} is shown as {shown}");
}
