//! Devices that execute rank programs.

pub mod cpu;
pub mod cuda;
pub mod extent;
pub mod session;
pub mod visible;

pub(crate) mod nodes;
