//! What can be seen of a lock from outside.

use napi::bindgen_prelude::BigInt;
use napi_derive::napi;

#[napi(object, object_from_js = false)]
pub struct Status {
    pub state: String,
    pub token: BigInt,
    pub waiters: u32,
    pub owner_pid: Option<u32>,
    pub owner_host: Option<String>,
    pub owner_label: Option<String>,
    pub held_ms: Option<f64>,
}

impl From<ipcmutex::Status> for Status {
    fn from(status: ipcmutex::Status) -> Status {
        let (owner_pid, owner_host, owner_label) = match status.owner {
            Some(owner) => (Some(owner.pid), Some(owner.host), Some(owner.label)),
            None => (None, None, None),
        };
        Status {
            state: status.state.name().to_owned(),
            token: status.token.into(),
            waiters: status.waiters,
            owner_pid,
            owner_host,
            owner_label,
            held_ms: status.held.map(|held| held.as_millis() as f64),
        }
    }
}
