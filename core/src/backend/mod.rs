//! The engines. `contract` says what each promises; `open` is the only place that names them all.

pub(crate) mod contract;
#[cfg(target_os = "linux")]
pub(crate) mod mpm;
pub(crate) mod open;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod spm;
