//! Whether the server may carry a lock.

use redis::RedisError;

use super::Engine;
use crate::backend::redis::wire;
use crate::error::{Error, ErrorKind, Result};

impl Engine {
    /// Why this server must not carry the lock `key`, or any: it may evict the key of one that is held.
    pub(crate) fn check_policy(&self, key: Option<&str>) -> Result<()> {
        match self.policy(key)? {
            Some(policy) => Err(Error::new(
                ErrorKind::Config,
                "open",
                format!("the server {} may evict keys (maxmemory-policy is {policy})", self.server),
            )
            .with_help(
                "a lock that is evicted is held twice: set maxmemory-policy noeviction, or accept it with ?policy=any",
            )),
            None => Ok(()),
        }
    }

    fn is_forbidden(&self, error: &RedisError) -> bool {
        matches!(self.server.failed("open", error).kind(), ErrorKind::Permission | ErrorKind::Config)
    }

    /// The eviction policy, if it is not the one that is needed and the server, or a node, tells.
    fn policy(&self, key: Option<&str>) -> Result<Option<String>> {
        let asked = self.call("open", |connection| {
            // Managed servers forbid INFO; they are taken at their word.
            let forbids = |error: &RedisError| wire::is_answer(error) && self.is_forbidden(error);
            connection.ask_each(key, redis::cmd("INFO").arg("memory"), &forbids)
        });
        let replies = asked.map_err(|failed| failed.error)?.into_iter();
        let told = replies.filter_map(|reply| redis::from_redis_value::<String>(reply).ok());
        let mut policies = told.filter_map(|info| wire::eviction_policy(&info).map(str::to_owned));
        // The one that is unfit, if there is one.
        Ok(policies.find(|policy| policy != "noeviction"))
    }
}
