//! Devices that execute rank programs.

pub mod attached;
pub mod cpu;
pub mod cuda;
pub mod extent;
pub mod visible;

pub(crate) mod nodes;
