//! Random input for what users write and what files say. The command is `src/bin/fuzz`.

pub mod parsers;
