//! Runs every parser on several thousand inputs that are nearly valid. The longer search is `src/bin/fuzz`.

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use tpc_tests::fuzz::parsers::{Finding, PARSERS, Parser, clean, quiet_panics};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const EXECUTIONS: u64 = 20_000;
const SEED: u64 = 20_260_730;

/// This is one test, because the allocator counts for the whole process.
#[test]
fn no_input_makes_a_parser_panic_or_allocate_without_bound() {
    quiet_panics();
    let run = |parser: &&Parser| parser.run(SEED, 0..EXECUTIONS, &|| ALLOCATOR.stats().bytes_allocated);
    let results: Vec<_> = PARSERS.iter().map(|parser| (parser.name, run(parser))).collect();
    clean();
    let _ = std::panic::take_hook();
    let mut problems = Vec::new();
    for (name, result) in results {
        let show = |f: Box<Finding>| {
            format!("{name} {}: {}\n{}", f.execution, f.problem, String::from_utf8_lossy(&f.input).escape_debug())
        };
        match result {
            Err(finding) => problems.push(show(finding)),
            // Inputs that a parser never accepts would only test its first lines.
            Ok(seen) if seen.accepted < EXECUTIONS / 100 || seen.longest < 10_000 => {
                problems.push(format!("{name} is not reached: {seen:?}"));
            }
            Ok(_) => {}
        }
    }
    assert!(problems.is_empty(), "{}", problems.join("\n\n"));
}
