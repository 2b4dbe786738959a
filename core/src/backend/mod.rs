//! The engines. `contract` says what each promises; `open` names them all, and `crate::list` those whose locks can be listed.

pub(crate) mod contract;
#[cfg(target_os = "linux")]
pub(crate) mod mpm;
pub(crate) mod open;
#[cfg(feature = "redis")]
pub(crate) mod redis;
pub(crate) mod spm;
