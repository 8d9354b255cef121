//! `fuzz parsers`: every parser on almost correct inputs.

use clap::Args;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use std::process::ExitCode;
use tpc_tests::fuzz::parsers::{Finding, PARSERS, clean, quiet_panics};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Executions between two progress messages.
const PIECE: u64 = 1_000_000;

/// Feed every parser with almost correct inputs.
#[derive(Args)]
pub struct Parsers {
    /// Only the parser with this name; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Inputs for each parser
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// Seed of the inputs
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Number of the first input; with the number of a finding, --executions 1 runs it alone
    #[arg(long, default_value_t = 0)]
    from: u64,
}

impl Parsers {
    pub fn execute(&self) -> ExitCode {
        quiet_panics();
        let meter = || ALLOCATOR.stats().bytes_allocated;
        let mut code = ExitCode::SUCCESS;
        let known = |name: &String| PARSERS.iter().any(|parser| parser.name == name);
        if let Some(unknown) = self.only.iter().find(|name| !known(name)) {
            let names = PARSERS.map(|parser| parser.name).join(", ");
            eprintln!("error: there is no parser {unknown:?}; the parsers are {names}");
            return ExitCode::FAILURE;
        }
        for parser in PARSERS.iter().filter(|p| self.only.is_empty() || self.only.iter().any(|name| name == p.name)) {
            let end = self.from.saturating_add(self.executions);
            let mut at = self.from;
            while at < end {
                let next = at.saturating_add(PIECE).min(end);
                match parser.run(self.seed, at..next, &meter) {
                    Ok(seen) => println!(
                        "{} {at}..{next}: {} accepted, longest {} bytes, at most {} bytes allocated for a byte",
                        parser.name, seen.accepted, seen.longest, seen.most_per_byte
                    ),
                    Err(finding) => {
                        self.show(&finding);
                        code = ExitCode::FAILURE;
                        break;
                    }
                }
                at = next;
            }
        }
        clean();
        code
    }

    fn show(&self, finding: &Finding) {
        let Finding { parser, execution, input, problem } = finding;
        println!("{parser}: --only {parser} --seed {} --from {execution} --executions 1: {problem}", self.seed);
        println!("{}", String::from_utf8_lossy(input).escape_debug());
    }
}
