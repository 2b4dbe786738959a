//! URL text to a plain value. Nothing is opened, read or looked up here.
//!
//! The grammar is RFC 3986's with two liberties that a general URL crate refuses or rewrites: several hosts
//! in one authority (`h1:26379,h2`), and paths that are kept to the byte (`mpm:/a/../b` names what the
//! kernel finds there). So the split is done here; percent-decoding is the `percent-encoding` crate's.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

pub use file::{FilePlace, FileTarget};
use query::{Query, decode, shown};
pub use redis::{RedisTarget, Topology};
pub use rooted::rooted;
pub use secret::{Secret, redact};
use secret::{hide, redact_torn};

use crate::error::{Error, ErrorKind, Result};

mod file;
mod query;
mod redis;
mod rooted;
mod secret;

/// The longest URL that is looked at.
pub const MAX_URL_BYTES: usize = 8192;
const MAX_ID_BYTES: usize = 200;

/// The schemes, as error messages list them.
pub const SCHEMES: &[&str] = &[
    "spm",
    "mpm",
    "file",
    "rpm+redis",
    "rpm+rediss",
    "rpm+redis+unix",
    "rpm+redis+sentinel",
    "rpm+redis+cluster",
    "rpm+redlock",
];

/// A parsed lock URL.
#[derive(Clone, Debug)]
pub struct LockUrl {
    target: Target,
    fair: Fairness,
    label: Option<String>,
    redacted: Arc<str>,
}

/// Where the lock lives.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Target {
    /// Threads of this process.
    Spm {
        /// The name.
        id: String,
    },
    /// Processes of this host.
    Mpm(FileTarget),
    /// Hosts, through Redis.
    Redis(Box<RedisTarget>),
}

/// Who goes first when a lock comes free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fairness {
    /// First come, first served, but a newcomer may take a free lock in passing for up to a millisecond.
    #[default]
    Eventual,
    /// First come, first served, always.
    Strict,
}

impl LockUrl {
    /// Parses `text`.
    ///
    /// # Errors
    /// INVALID with a sentence that says what is wrong and what is possible. It never repeats a secret.
    pub fn parse(text: &str) -> Result<LockUrl> {
        read(text, hide(text).into()).map_err(|error| match redact_torn(text) {
            // What is wrong may be in the secret, and must not be repeated then.
            Some(torn) => invalid("an `@` stands behind a `/`, `?` or `#`")
                .with_help("in a secret write %2F, %3F and %23 for them; elsewhere %40 for the `@`")
                .with_url(torn),
            None => error.with_url(redact(text)),
        })
    }

    /// Where the lock lives.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// Whether opening, acquiring and releasing talk to a server, and may take as long as a network does.
    pub fn is_remote(&self) -> bool {
        matches!(self.target, Target::Redis(_))
    }

    /// Who goes first.
    pub fn fairness(&self) -> Fairness {
        self.fair
    }

    /// The label of this participant, if the URL gives one.
    pub fn label(&self) -> Option<&str> {
        self.label.as_deref()
    }

    /// With this label, unless the URL gives one. What is shown of the URL stays.
    #[must_use]
    pub fn or_label(mut self, label: impl Into<String>) -> LockUrl {
        self.label.get_or_insert_with(|| label.into());
        self
    }

    /// With its relative paths [`rooted`], also in what is shown of it.
    pub(crate) fn into_rooted(mut self) -> LockUrl {
        // What cannot be told is refused when it is opened.
        let root = |path: &mut PathBuf| *path = std::path::absolute(&*path).unwrap_or_else(|_| std::mem::take(path));
        match &mut self.target {
            Target::Mpm(FileTarget { place: FilePlace::Path(path), .. }) => root(path),
            Target::Redis(target) => {
                [&mut target.ca, &mut target.crt, &mut target.key].into_iter().flatten().for_each(root)
            }
            Target::Mpm(_) | Target::Spm { .. } => {}
        }
        self.redacted = rooted(&self.redacted).into();
        self
    }

    /// The URL with the secret hidden.
    pub fn redacted(&self) -> &Arc<str> {
        &self.redacted
    }
}

impl fmt::Display for LockUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.redacted)
    }
}

impl std::str::FromStr for LockUrl {
    type Err = Error;
    fn from_str(text: &str) -> Result<LockUrl> {
        LockUrl::parse(text)
    }
}

fn invalid(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, "parse", message)
}

fn read(text: &str, redacted: Arc<str>) -> Result<LockUrl> {
    let schemes = || format!("known schemes: {}", SCHEMES.join(", "));
    if text.is_empty() {
        return Err(invalid("the URL is empty").with_help(schemes()));
    }
    if text.len() > MAX_URL_BYTES {
        return Err(invalid(format!("the URL is {} bytes long; {MAX_URL_BYTES} is the most", text.len())));
    }
    if text.contains('#') {
        return Err(invalid("a `#` must be written %23"));
    }
    if text.contains(|c: char| c.is_control()) {
        return Err(invalid("the URL contains a control character").with_help("write it percent-encoded"));
    }
    let Some((scheme, rest)) = text.split_once(':') else {
        return Err(invalid("there is no scheme").with_help(schemes()));
    };
    if !SCHEMES.contains(&scheme) {
        return Err(invalid(format!("unknown scheme `{}`", shown(scheme))).with_help(schemes()));
    }
    let (body, query) = rest.split_once('?').unwrap_or((rest, ""));
    let query = Query::parse(query)?;
    let target = match scheme {
        "spm" => {
            query.only(&[])?;
            Target::Spm { id: plain_id(&decode(body, "id")?)? }
        }
        "mpm" | "file" => Target::Mpm(file::target(scheme, body, &query)?),
        _ => Target::Redis(Box::new(redis::target(scheme, body, &query)?)),
    };
    let fair = query
        .read("fair", "strict, eventual", |value| match value {
            "strict" => Some(Fairness::Strict),
            "eventual" => Some(Fairness::Eventual),
            _ => None,
        })?
        .unwrap_or_default();
    let label = query.get("label").map(str::to_owned);
    Ok(LockUrl { target, fair, label, redacted })
}

fn check_id(id: &str, extra: &[char]) -> Result<()> {
    let wrong = if id.is_empty() {
        Some("it is empty".to_owned())
    } else if id.len() > MAX_ID_BYTES {
        Some(format!("it is {} bytes long", id.len()))
    } else if id.contains("..") || id == "." {
        Some("`..` is refused, and so is `.` alone".to_owned())
    } else {
        id.chars()
            .find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-') || extra.contains(c)))
            .map(|c| format!("it has a `{}`", c.escape_default()))
    };
    match wrong {
        None => Ok(()),
        Some(wrong) => {
            let also = if extra.is_empty() { "" } else { " / :" };
            Err(invalid(format!("bad id: {wrong}"))
                .with_help(format!("an id is 1 to {MAX_ID_BYTES} bytes of A-Z a-z 0-9 . _ -{also} without `..`")))
        }
    }
}

fn plain_id(id: &str) -> Result<String> {
    check_id(id, &[])?;
    Ok(id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn redis_of(text: &str) -> RedisTarget {
        match LockUrl::parse(text).unwrap().target {
            Target::Redis(target) => *target,
            other => panic!("{other:?}"),
        }
    }

    fn refused(text: &str) -> String {
        let error = LockUrl::parse(text).expect_err(text);
        assert_eq!(error.kind(), ErrorKind::Invalid, "{text}");
        error.to_string()
    }

    #[test]
    fn names_and_paths() {
        let place = |text: &str| match LockUrl::parse(text).unwrap().target {
            Target::Mpm(file) => file.place,
            other => panic!("{other:?}"),
        };
        assert_eq!(LockUrl::parse("spm:jobs").unwrap().target, Target::Spm { id: "jobs".into() });
        assert_eq!(LockUrl::parse("spm:j%6Fbs").unwrap().target, Target::Spm { id: "jobs".into() });
        assert_eq!(place("mpm:jobs"), FilePlace::Id("jobs".into()));
        for (text, path) in [
            ("mpm:/var/x", "/var/x"),
            ("mpm:./x%20y", "./x y"),
            ("file:/a", "/a"),
            ("file:///a", "/a"),
            ("file://localhost/a", "/a"),
        ] {
            assert_eq!(place(text), FilePlace::Path(path.into()), "{text}");
        }
    }

    #[test]
    fn a_label_of_the_url_wins() {
        let label = |text: &str| LockUrl::parse(text).unwrap().or_label("mine");
        assert_eq!((label("spm:a").label(), label("spm:a?label=x").label()), (Some("mine"), Some("x")));
        assert_eq!(label("spm:a").to_string(), "spm:a");
    }

    #[test]
    fn relative_paths_are_rooted() {
        let here = std::env::current_dir().unwrap();
        let written = here.to_str().unwrap();
        for (text, path) in [("mpm:./x%20y", "x y"), ("file:./a/../b?fair=strict", "a/../b")] {
            let url = LockUrl::parse(text).unwrap().into_rooted();
            let Target::Mpm(file) = url.target() else { panic!("{url:?}") };
            assert_eq!(file.place, FilePlace::Path(here.join(path)), "{text}");
            assert_eq!(LockUrl::parse(&rooted(text)).unwrap().into_rooted().target(), url.target(), "{text}");
            assert_eq!(url.to_string(), text.replacen("./", &format!("{written}/"), 1));
        }
        let text = "rpm+rediss://u:s@h/x?ca=a%20b&ttl=1s&crt=./c&key=%2Fd";
        let url = LockUrl::parse(text).unwrap().into_rooted();
        assert_eq!(
            url.to_string(),
            format!("rpm+rediss://u:***@h/x?ca={written}/a%20b&ttl=1s&crt={written}/./c&key=%2Fd")
        );
        let Target::Redis(target) = url.target() else { panic!("{url:?}") };
        let paths = [&target.ca, &target.crt, &target.key].map(|path| path.clone().unwrap());
        assert_eq!(paths, [here.join("a b"), here.join("c"), PathBuf::from("/d")]);
        assert_eq!(redis_of(&rooted(text)).secret, Some(Secret::new("s".to_owned())));
        let deep = format!("mpm:./{}x", "deep/".repeat(100));
        assert!(LockUrl::parse(&deep).unwrap().into_rooted().redacted().ends_with("/deep/x"));
        let url = LockUrl::parse("mpm:./a@1/x").unwrap().into_rooted();
        assert_eq!(url.to_string(), format!("mpm:{written}/a@1/x"));
        for text in
            ["spm:x", "mpm:x", "mpm:/x", "rpm+redis://h/x?prefix=ca", "rpm+redis+unix:///s?id=x&ca=", "ca", "a:b?ca=x"]
        {
            assert_eq!(rooted(text), text);
        }
    }

    #[test]
    fn redis_urls() {
        let url = redis_of("rpm+redis://me:s%40cret@db.example:7000/a/b:c?ttl=500ms&renew=off&db=5&protocol=3");
        assert_eq!(url.hosts, [("db.example".to_owned(), 7000)]);
        assert_eq!((url.user.as_deref(), url.secret.as_ref().map(Secret::expose)), (Some("me"), Some("s@cret")));
        assert_eq!(
            (url.id.as_str(), url.ttl, url.renew, url.db),
            ("a/b:c", Duration::from_millis(500), false, Some(5))
        );
        assert_eq!(redis_of("rpm+redis:///x").hosts, []);
        assert_eq!(redis_of("rpm+redis://h").id, "default");
        assert_eq!(redis_of("rpm+redis://[::1]:6380/x").hosts, [("::1".to_owned(), 6380)]);
        let unix = redis_of("rpm+redis+unix://:pw@/run/redis.sock?id=x");
        assert_eq!((unix.topology, unix.id.as_str()), (Topology::Unix("/run/redis.sock".into()), "x"));
        let sentinel = redis_of("rpm+redis+sentinel://h1,h2:5000/main/x");
        assert_eq!(sentinel.hosts, [("h1".to_owned(), 26379), ("h2".to_owned(), 5000)]);
        assert_eq!((sentinel.topology, sentinel.id.as_str()), (Topology::Sentinel { master: "main".into() }, "x"));
        assert_eq!(sentinel.sentinel_login, None);
        let own = redis_of("rpm+redis+sentinel://:a@h/main/x?sentinel_user=u&sentinel_password=p%26q").sentinel_login;
        assert_eq!(own, Some((Some("u".to_owned()), Secret::new("p&q".to_owned()))));
        assert_eq!(redis_of("rpm+redlock://a,b,c/x").hosts.len(), 3);
        assert!(redis_of("rpm+rediss://h/x?ca=/c.pem").tls);
        assert!(redis_of("rpm+redis://h/x?tls=on").tls && !redis_of("rpm+redis://h/x?tls=off").tls);
    }

    #[test]
    fn what_is_refused_says_what_is_possible() {
        assert!(refused("").contains("rpm+redlock"));
        assert!(refused("jobs").contains("known schemes: spm, mpm"));
        assert!(refused("redis://h/x").contains("unknown scheme `redis`; known schemes"));
        assert!(refused("spm:a?tll=1").contains("unknown query key `tll`; known for this scheme: fair, label"));
        assert!(refused("spm:a?ttl=1s").contains("unknown query key"));
        assert!(refused("rpm+redis://h/x?ttl=50ms").contains("100ms to 24h"));
        assert!(refused("rpm+redis://h/x?ttl=25h").contains("100ms to 24h"));
        assert!(refused("spm:a?fair=no").contains("strict, eventual"));
        for text in [
            "spm:",
            "spm:a/b",
            "spm:..",
            "mpm:../x",
            "mpm:a..b",
            "mpm:%2e%2e",
            "spm:\u{e4}",
            "spm:a%00",
            "spm:a%zz",
            "spm:a%",
            "spm:a#b",
            "mpm:/a/",
            "file:a",
            "file://host/a",
            "rpm+redis:x",
            "rpm+redis://a,b/x",
            "rpm+redis://h:0/x",
            "rpm+redis://h:70000/x",
            "rpm+redis://u@h/x",
            "rpm+redis+cluster:///x",
            "rpm+redis+sentinel://h",
            "rpm+redis+unix://",
            "rpm+redis://h/a b",
            "spm:a?fair=strict&fair=strict",
            "mpm:a?mode=0666",
            "mpm:a?mode=x",
            "rpm+redis://h/x?protocol=4",
            "rpm+redis+unix:///s?id=a..b",
            "rpm+redis://h/x?sentinel_password=p",
            "rpm+redis+sentinel://h/m/x?sentinel_user=u",
            "rpm+redis+sentinel://h/m/x?sentinel_password=",
            "spm:a\nb",
        ] {
            refused(text);
        }
        refused(&format!("spm:{}", "a".repeat(201)));
        LockUrl::parse(&format!("spm:{}", "a".repeat(200))).unwrap();
        refused(&"x".repeat(1 << 20));
    }

    #[test]
    fn a_secret_is_never_shown() {
        for text in [
            "rpm+redis://u:canary@h/x",
            "rpm+redis://:canary@h/x",
            "rpm+redis://u:can:canary@h/x?ttl=1",
            "rpm+redis://u:p@canary@h",
            "rpm+redis:u:canary@h",
            "redis://u:canary@h/x",
            "u:canary@h",
            "rpm+redis://u:canary@h:bad/x",
            "rpm+redis://u:canary%zz@h/x",
            "rpm+redis://u:a/canary@h/x",
            "rpm+redis://u:canary/a@h/x",
            "rpm+redis://u:canary?a@h/x",
            "rpm+redis://u:a?canary@h/x",
            "rpm+redis://u:a?canary=a@h/x",
            "rpm+redis://u:canary#a@h/x",
            "rpm+redis://:a#canary@h",
            "redis:u:canary?a@h",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary&ttl=1",
            "rpm+redis+sentinel://h/m/x?ttl=1s&sentinel_password=a&canary",
            "rpm+redis+sentinel://h/m/x?sentinel_password=a&canary=b&ttl=1s",
            "rpm+redis+sentinel://h/m/x?sentinel%5fpassword=canary",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary@a",
            "rpm+redis+sentinel://h/m/x?sentinel_password=a@canary&x",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary?a",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary#a",
            "rpm+redis+sentinel://h/m/x?sentinel_password=canary&sentinel_password=b",
            "rpm+redis://h/m/x?sentinel_password=canary",
            "redis://u:can?ary/canary@h",
            "rpm+redis+unix://u:12/canary@/run/s",
            "rpm+redis+unix://u:canary/a@/run/s",
            "rpm+redis+unix:u:canary@/run/s",
        ] {
            let seen = match LockUrl::parse(text) {
                Ok(url) => format!("{url} {url:?}"),
                Err(error) => format!("{error} {error:?}"),
            };
            assert!(!seen.contains("canary"), "{text}: {seen}");
        }
        for text in ["mpm:/app@1/x", "file:///app@1/x", "file://localhost/a:b@1", "rpm+redis+unix:///run/u@1/s?id=x"] {
            assert_eq!(LockUrl::parse(text).unwrap().to_string(), text);
        }
        let both = LockUrl::parse("rpm+redis+unix://u:c@nary@/run/u@1/s").unwrap();
        assert_eq!(both.to_string(), "rpm+redis+unix://u:***@/run/u@1/s");
        let torn = LockUrl::parse("rpm+redis+sentinel://u:12/34@h/main").unwrap();
        assert_eq!(torn.to_string(), "rpm+redis+sentinel://u:***@h/main");
        assert_eq!(redact("mpm://u:p@h/x"), "mpm://u:***@h/x");
        assert_eq!(redact("rpm+redis://u:p@h/x"), "rpm+redis://u:***@h/x");
        assert_eq!(redact("rpm+redis://:p@h/x"), "rpm+redis://***@h/x");
        let (given, shown) = ("?sentinel_password=p&ttl=1s", "?sentinel_password=***&ttl=1s");
        assert_eq!(redact(&format!("rpm+redis+sentinel://h/m/x{given}")), format!("rpm+redis+sentinel://h/m/x{shown}"));
    }
}
