//! Random searches for faults. CI runs a fixed number of cases with a fixed seed; the command `src/bin/fuzz` runs as
//! long as requested.
//!
//! | random input | module |
//! |---|---|
//! | models, plans, meshes, options and flags, whose programs must equal one rank | [`programs`] |
//! | texts of users and files | [`parsers`] |

pub mod parsers;
pub mod programs;
