use crate::servers::{Redis, Reply};

/// `SET NX PX`, and `DEL` to release: whoever's it is by then.
///
/// A holder whose lease has ended deletes the key of the next one.
pub struct PlainDel<'a> {
    redis: &'a Redis,
}

impl<'a> PlainDel<'a> {
    /// A lock in the server.
    pub fn new(redis: &'a Redis) -> PlainDel<'a> {
        PlainDel { redis }
    }

    /// Takes the key for `lease_ms`; the token, if it was free.
    pub fn acquire(&self, who: u64, lease_ms: u64) -> Option<u64> {
        let (who, lease) = (who.to_string(), lease_ms.to_string());
        let taken = self.redis.command(&["SET", "lock", &who, "NX", "PX", &lease]) != Reply::Nil;
        taken.then(|| self.redis.command(&["INCR", "fence"]).number() as u64)
    }

    /// Whether the key is gone.
    pub fn is_free(&self) -> bool {
        self.redis.command(&["EXISTS", "lock"]).number() == 0
    }

    /// Deletes the key.
    pub fn release(&self) {
        self.redis.command(&["DEL", "lock"]);
    }
}

/// A lock that is released properly, and counts its tokens with `INCR`.
///
/// A server that loses its data counts from 1 again: what refuses old tokens then refuses the new owner, and takes what the old one
/// writes.
pub struct ForgetfulFence<'a> {
    redis: &'a Redis,
}

impl<'a> ForgetfulFence<'a> {
    /// A lock in the server.
    pub fn new(redis: &'a Redis) -> ForgetfulFence<'a> {
        ForgetfulFence { redis }
    }

    /// Takes the key; the token, if it was free.
    pub fn acquire(&self, who: u64) -> Option<u64> {
        let taken = self.redis.command(&["SET", "lock", &who.to_string(), "NX", "PX", "60000"]) != Reply::Nil;
        taken.then(|| self.redis.command(&["INCR", "fence"]).number() as u64)
    }

    /// Deletes the key if it is `who`'s.
    pub fn release(&self, who: u64) {
        let script = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end";
        self.redis.command(&["EVAL", script, "1", "lock", &who.to_string()]);
    }
}
