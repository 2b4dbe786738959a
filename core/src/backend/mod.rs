//! The engines. `contract` says what each promises; `open` is the only place that names them all.

pub(crate) mod contract;
pub(crate) mod mpm;
pub(crate) mod open;
pub(crate) mod spm;
