//! tpc

pub mod capture;
pub mod import;
pub mod models;
pub mod pretrained;
pub mod program;
pub use capture::scope::scope;
