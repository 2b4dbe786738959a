//! A lock's keys. Pure.

use std::sync::Arc;

/// The key of a lock and those of its helpers, all in one hash slot.
///
/// | key | type, life | content |
/// |---|---|---|
/// | the lock | string, the lease (a claim: 400 ms) | the owner's token, 128 bits in hex |
/// | `:line` | sorted set, 60 s | `<process>.<token>` of who waits, by ticket |
/// | `:state` | hash, 7 days | f last fencing token, o owner, p its process, a abandoned, i pid host label, s since (ms), g granted or told of its turn, l last released, q last ticket, n who renewed it and with which number |
/// | `:next` | string, 500 ms | beside other libraries: whose turn it is among our own clients |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Keys(Arc<[String; 4]>);

impl Keys {
    pub(super) fn of(key: &str) -> Keys {
        let base = if has_tag(key) { key.to_owned() } else { format!("{{{key}}}") };
        let helper = |name: &str| format!("{base}:{name}");
        Keys(Arc::new([key.to_owned(), helper("line"), helper("state"), helper("next")]))
    }

    /// In the order of the scripts' KEYS. That the last one is there tells them that the lock is shared with others.
    pub(super) fn all(&self, beside_others: bool) -> &[String] {
        if beside_others { &*self.0 } else { &self.0[..3] }
    }

    pub(super) fn lock(&self) -> &str {
        &self.0[0]
    }

    /// Where a process hears of the lock, in a cluster.
    pub(super) fn channel(&self, process: &str) -> String {
        format!("{}w:{process}", self.state().trim_end_matches("state"))
    }

    /// Whether all of them lie on one node of a cluster.
    pub(super) fn fit_a_cluster(&self) -> bool {
        self.0.iter().all(|key| slot(key.as_bytes()) == slot(self.lock().as_bytes()))
    }

    pub(super) fn state(&self) -> &str {
        &self.0[2]
    }
}

/// Redis's hash slot of a key: of the first `{…}` in it that is not empty, else of all of it.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|c| *c == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        rest.iter().position(|c| *c == b'}').filter(|end| *end > 0).map(|end| &rest[..end])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % 16384
}

/// Whether Redis hashes only a part of the key: what stands between the first `{` and the next `}`, if anything does.
fn has_tag(key: &str) -> bool {
    key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).is_some_and(|(tag, _)| !tag.is_empty())
}

/// The lock's key, if `found` is one of a lock under `prefix`: the lock itself, or its state.
pub(super) fn lock_under(prefix: &str, found: &str) -> Option<String> {
    const HELPERS: [&str; 3] = [":line", ":state", ":next"];
    let base = found.strip_suffix(":state");
    let inner = base.and_then(|base| base.strip_prefix('{')?.strip_suffix('}'));
    let of_state =
        [inner, base].into_iter().flatten().find(|lock| lock.starts_with(prefix) && Keys::of(lock).state() == found);
    let is_helper = has_tag(found) && HELPERS.iter().any(|name| found.ends_with(name));
    of_state.or((!is_helper && found.starts_with(prefix)).then_some(found)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_server() {
        // From CLUSTER KEYSLOT of a server.
        for (key, expected) in [("foo", 12182), ("{foo}bar", 12182), ("x{foo}", 12182), ("", 0), ("123456789", 12739)] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(slot(b"{}foo"), crc16::State::<crc16::XMODEM>::calculate(b"{}foo") % 16384);
    }

    #[test]
    fn helpers_hash_to_the_slot_of_their_lock() {
        for (key, line) in [
            ("ipcmutex:job", "{ipcmutex:job}:line"),
            ("{app}:foo", "{app}:foo:line"),
            ("x{y}z", "x{y}z:line"),
            ("{}x", "{{}x}:line"),
            ("a}b", "{a}b}:line"),
        ] {
            assert_eq!(Keys::of(key).all(false)[1], line);
        }
    }

    #[test]
    fn keys_that_a_cluster_would_scatter_are_seen() {
        for (key, fits) in
            [("ipcmutex:job", true), ("{app}:foo", true), ("x{y}z", true), ("{}x", false), ("a}b", false)]
        {
            let keys = Keys::of(key);
            assert_eq!(keys.fit_a_cluster(), fits, "{key}");
            assert!(!fits || slot(keys.channel("ab").as_bytes()) == slot(key.as_bytes()), "{key}");
        }
        assert_eq!(Keys::of("ipcmutex:job").channel("ab"), "{ipcmutex:job}:w:ab");
    }

    #[test]
    fn a_lock_is_found_by_its_key_and_by_its_state() {
        assert_eq!(lock_under("ipcmutex:", "ipcmutex:job").as_deref(), Some("ipcmutex:job"));
        assert_eq!(lock_under("ipcmutex:", "{ipcmutex:job}:state").as_deref(), Some("ipcmutex:job"));
        assert_eq!(lock_under("{app}:", "{app}:job:state").as_deref(), Some("{app}:job"));
        assert_eq!(lock_under("{app}:", "{app}:job:next"), None);
        assert_eq!(lock_under("ipcmutex:", "{ipcmutex:job}:line"), None);
        assert_eq!(lock_under("ipcmutex:", "other:job"), None);
        assert_eq!(lock_under("ipcmutex:", "ipcmutex:state").as_deref(), Some("ipcmutex:state"));
        assert_eq!(lock_under("ipcmutex:", "ipcmutex:next").as_deref(), Some("ipcmutex:next"));
    }
}
