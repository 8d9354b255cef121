//! Random searches for faults. CI runs a fixed number of cases under a fixed seed; the command `src/bin/fuzz` runs for as
//! long as it is asked to.
//!
//! | what is random | module |
//! |---|---|
//! | models, plans, meshes, options and flags, whose programs must equal one rank | [`programs`] |
//! | what users write and what files say | [`parsers`] |

pub mod parsers;
pub mod programs;
