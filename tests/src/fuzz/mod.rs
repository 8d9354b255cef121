//! Random searches for faults. CI runs a fixed number of cases under a fixed seed; `--bin fuzz` runs for as many minutes
//! as it is given.
//!
//! | what is random | module |
//! |---|---|
//! | models, plans, meshes, options and flags, whose programs must equal one rank | [`programs`] |

pub mod programs;
