//! What several example programs share.

pub mod quarters;
pub mod vit;
