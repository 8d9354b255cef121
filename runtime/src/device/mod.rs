//! Devices that execute rank programs.

pub mod cpu;
