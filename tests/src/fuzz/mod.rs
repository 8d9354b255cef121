//! Random searches for faults, each bounded by a seed and a number of cases in CI and by minutes in `--bin fuzz`.
//!
//! | what is random | module |
//! |---|---|
//! | models, plans, meshes, options and flags; the programs they give equal one rank | [`programs`] |

pub mod programs;
