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
    pub acquisitions: f64,
    pub contended: f64,
    pub gave_up: f64,
    pub losses: f64,
    pub rechecks: f64,
    pub waits: Vec<f64>,
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
            acquisitions: status.numbers.acquisitions as f64,
            contended: status.numbers.contended() as f64,
            gave_up: status.numbers.gave_up as f64,
            losses: status.numbers.losses as f64,
            rechecks: status.numbers.rechecks as f64,
            waits: status.numbers.waits.map(|waits| waits as f64).into(),
        }
    }
}
