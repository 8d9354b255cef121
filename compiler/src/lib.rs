//! tpc

pub mod capture;
pub mod import;
pub mod models;
pub use capture::scope::scope;
