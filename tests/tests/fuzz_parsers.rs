//! Every parser on some thousand inputs that are nearly right. The longer search is `src/bin/fuzz`.

use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use std::alloc::System;
use tpc_tests::fuzz::parsers::{Finding, PARSERS, Parser, clean};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const EXECUTIONS: u64 = 20_000;
const SEED: u64 = 20_260_730;

/// One test, because the allocator counts for the whole process.
#[test]
fn no_input_makes_a_parser_panic_or_allocate_without_bound() {
    // A panic is a finding, which is shown with its input.
    std::panic::set_hook(Box::new(|_| {}));
    let run = |parser: &&Parser| parser.run(SEED, 0..EXECUTIONS, &|| ALLOCATOR.stats().bytes_allocated);
    let results: Vec<_> = PARSERS.iter().map(|parser| (parser.name, run(parser))).collect();
    clean();
    let _ = std::panic::take_hook();
    for (name, result) in results {
        let show = |f: Box<Finding>| {
            format!("{name} {}: {}\n{}", f.execution, f.problem, String::from_utf8_lossy(&f.input).escape_debug())
        };
        let seen = result.unwrap_or_else(|finding| panic!("{}", show(finding)));
        // Inputs that nothing accepts would test the first lines of a parser only.
        assert!(seen.accepted > EXECUTIONS / 50, "{name}: {seen:?}");
        assert!(seen.longest > 20_000, "{name}: {seen:?}");
    }
}
