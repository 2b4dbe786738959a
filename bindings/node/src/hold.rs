//! One acquisition: in JavaScript its token, and the number of the mutex that it was left to.

use napi::bindgen_prelude::{BigInt, Either};
use napi_derive::napi;

use crate::error::{Result, raise};
use crate::opened;

/// What was taken from one who died, or lost it.
#[napi(object, object_from_js = false)]
pub struct Abandoned {
    pub token: u64,
}

/// A hold on its way to JavaScript, where an object stands for it. The usual one is a mere number, for that costs least.
pub type Taken = Either<u64, Abandoned>;

pub fn taken(hold: ipcmutex::Hold) -> Taken {
    let abandoned = hold.abandoned();
    let token = hold.leave();
    if abandoned { Either::B(Abandoned { token }) } else { Either::A(token) }
}

/// A hold that was left to a mutex.
pub fn left(mutex: u32, token: &BigInt) -> Result<ipcmutex::Hold> {
    let (_, token, _) = token.get_u64();
    opened::with(mutex, |mutex| Ok(mutex.left(token)))
}

#[napi]
pub fn valid_ms(mutex: u32, token: BigInt) -> Result<Option<f64>> {
    Ok(left(mutex, &token)?.valid_for().map(|left| left.as_millis() as f64))
}

#[napi]
pub fn is_live(mutex: u32, token: BigInt) -> Result<bool> {
    Ok(left(mutex, &token)?.is_live())
}

#[napi]
pub fn check(mutex: u32, token: BigInt) -> Result<()> {
    left(mutex, &token)?.check().map_err(raise)
}

/// Ends it here and now: for engines of this host.
#[napi]
pub fn release_hold(mutex: u32, token: BigInt) -> Result<()> {
    left(mutex, &token)?.release().map_err(raise)
}
