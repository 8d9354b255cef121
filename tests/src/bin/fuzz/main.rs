//! Searches that take longer than the tests do:
//!
//! ```sh
//! cargo run --release -p tpc-tests --bin fuzz -- programs --seed 1 --minutes 60
//! cargo run --release -p tpc-tests --bin fuzz -- parsers --executions 10000000
//! ```

mod parsers;
mod programs;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Search for faults at random, for the requested time.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    search: Search,
}

#[derive(Subcommand)]
enum Search {
    Parsers(parsers::Parsers),
    Programs(programs::Programs),
}

fn main() -> ExitCode {
    match Cli::parse().search {
        Search::Parsers(arguments) => arguments.execute(),
        Search::Programs(arguments) => arguments.execute(),
    }
}
