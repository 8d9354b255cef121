//! The tests of this package as one program: its parts share what the compiler generates for burn's types, and the last
//! tests of one file run beside the first of the next. `cargo test -p tpc-tests --test suite golden_ir::` runs one file.
//!
//! Tests that count what the whole process allocates are programs of their own: `trainer`, `sharded_loading` and
//! `fuzz_parsers`.

mod ablation;
mod allowance;
mod attention;
mod attention_models;
mod attention_random;
mod blocks;
#[cfg(feature = "train")]
mod burn_train;
mod capture;
mod checkpoints;
mod cnn;
mod collectives;
mod command;
mod conformance;
mod corruptions;
mod cuda;
mod documents;
mod epilogues;
mod errors;
mod fusion;
mod fuzz;
mod generation;
mod golden_ir;
mod goldens;
mod heads;
mod identity;
mod import;
mod imports;
mod initialization;
mod kept;
mod lowering_random;
mod model_dirs;
mod models;
mod options;
mod pipeline;
mod planner;
mod planning;
mod plans;
mod public_api;
mod reasons;
mod recompute;
mod rematerialize;
mod schedule;
mod short;
mod simulate;
mod strings;
mod styles_attention;
mod styles_data;
mod styles_errors;
mod styles_layouts;
mod styles_modules;
mod styles_units;
mod styles_whole_model;
mod summary;
mod targets;
mod uneven;
mod unknown_models;
mod verify;
mod view;
mod why;
mod worlds;
