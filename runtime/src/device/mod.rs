//! Devices that execute rank programs.

pub mod attached;
pub mod cpu;
pub mod cuda;
pub mod extent;

pub(crate) mod nodes;
