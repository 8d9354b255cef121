//! Searches that take longer than the tests do: `cargo run --release -p tpc-tests --bin fuzz -- parsers --executions 10000000`.

mod parsers;

use clap::{Parser, Subcommand};

/// Random input, for as long as is asked for.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    search: Search,
}

#[derive(Subcommand)]
enum Search {
    Parsers(parsers::Parsers),
}

fn main() -> std::process::ExitCode {
    match Cli::parse().search {
        Search::Parsers(arguments) => arguments.execute(),
    }
}
