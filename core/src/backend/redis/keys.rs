//! A lock's keys. Pure.

use std::sync::Arc;

/// The key of a lock and those of its helpers, all in one hash slot.
///
/// | key | type, life | content |
/// |---|---|---|
/// | the lock | string, the lease (a claim: 400 ms) | the owner's token, 128 bits in hex |
/// | `:fence` | string, 7 days | the last fencing token, decimal |
/// | `:line` | sorted set, 60 s | `<process>.<token>` of who waits, by ticket |
/// | `:state` | hash, 7 days | o owner, p its process, f fence, a abandoned, i pid host label, s since (ms), g granted, l last released, q last ticket |
/// | `:next` | string, 500 ms | beside other libraries: whose turn it is among our own clients |
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Keys(Arc<[String; 5]>);

impl Keys {
    pub(super) fn of(key: &str) -> Keys {
        let base = if has_tag(key) { key.to_owned() } else { format!("{{{key}}}") };
        let helper = |name: &str| format!("{base}:{name}");
        Keys(Arc::new([key.to_owned(), helper("fence"), helper("line"), helper("state"), helper("next")]))
    }

    /// In the order of the scripts' KEYS.
    pub(super) fn all(&self) -> &[String] {
        &*self.0
    }

    pub(super) fn lock(&self) -> &str {
        &self.0[0]
    }

    pub(super) fn state(&self) -> &str {
        &self.0[3]
    }
}

/// Whether Redis hashes only a part of the key: what stands between the first `{` and the next `}`, if anything does.
fn has_tag(key: &str) -> bool {
    key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).is_some_and(|(tag, _)| !tag.is_empty())
}

/// The lock's key, if `found` is one of a lock under `prefix`: the lock itself, or its state.
pub(super) fn lock_under(prefix: &str, found: &str) -> Option<String> {
    const HELPERS: [&str; 4] = [":fence", ":line", ":state", ":next"];
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
    fn helpers_hash_to_the_slot_of_their_lock() {
        for (key, fence) in [
            ("ipcmutex:job", "{ipcmutex:job}:fence"),
            ("{app}:foo", "{app}:foo:fence"),
            ("x{y}z", "x{y}z:fence"),
            ("{}x", "{{}x}:fence"),
            ("a}b", "{a}b}:fence"),
        ] {
            assert_eq!(Keys::of(key).all()[1], fence);
        }
    }

    #[test]
    fn a_lock_is_found_by_its_key_and_by_its_state() {
        assert_eq!(lock_under("ipcmutex:", "ipcmutex:job").as_deref(), Some("ipcmutex:job"));
        assert_eq!(lock_under("ipcmutex:", "{ipcmutex:job}:state").as_deref(), Some("ipcmutex:job"));
        assert_eq!(lock_under("{app}:", "{app}:job:state").as_deref(), Some("{app}:job"));
        assert_eq!(lock_under("{app}:", "{app}:job:fence"), None);
        assert_eq!(lock_under("ipcmutex:", "{ipcmutex:job}:line"), None);
        assert_eq!(lock_under("ipcmutex:", "other:job"), None);
        assert_eq!(lock_under("ipcmutex:", "ipcmutex:state").as_deref(), Some("ipcmutex:state"));
        assert_eq!(lock_under("ipcmutex:", "ipcmutex:fence").as_deref(), Some("ipcmutex:fence"));
    }
}
