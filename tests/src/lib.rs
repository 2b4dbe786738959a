//! What ipcmutex promises (`CONTRACT.md`), proved once for every engine and language.

pub mod agent;
pub mod artifacts;
pub mod asking;
pub mod broken;
pub mod cell;
pub mod certificates;
pub mod cgroup;
pub mod chaos;
pub mod clock;
pub mod cluster;
pub mod figures;
pub mod fuzz;
pub mod impossible;
pub mod occupancy;
pub mod place;
pub mod privilege;
pub mod proxy;
pub mod scenarios;
pub mod secrets;
pub mod servers;
pub mod surface;
