//! Long random searches: `cargo run --release -p tpc-tests --bin fuzz -- programs --seed 1 --minutes 60`.

mod programs;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Searches for faults at random.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    search: Search,
}

#[derive(Subcommand)]
enum Search {
    Programs(programs::Programs),
}

fn main() -> ExitCode {
    match Cli::parse().search {
        Search::Programs(arguments) => arguments.execute(),
    }
}
