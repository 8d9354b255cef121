//! Code that several example programs share.

pub mod quarters;
pub mod vit;
#[cfg(feature = "train")]
pub mod vit_steps;
