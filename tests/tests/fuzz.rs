//! Bounded random searches for faults; `cargo run --release -p tpc-tests --bin fuzz` runs longer ones.

use tpc_tests::fuzz::programs::{corpus, examine::examine_alone, search::search, verdict::Verdict};

/// Cases that longer searches have found.
#[test]
fn cases_that_once_had_a_fault_are_right() {
    let kept = corpus::kept();
    assert!(!kept.is_empty(), "{} has cases", corpus::directory().display());
    let wrong: Vec<String> = kept
        .iter()
        .filter_map(|(file, kept)| match examine_alone(&kept.case) {
            Verdict::Fault(fault) => Some(format!("{file}\n{}\nwas: {}\nis: {fault}", kept.case, kept.fault)),
            _ => None,
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

#[test]
fn random_programs_equal_one_rank() {
    const SEED: u64 = 31;
    let mut faults = Vec::new();
    let summary = search(
        SEED,
        0..100,
        |_| true,
        |found| {
            let line = format!("cargo run -p tpc-tests --bin fuzz -- programs --seed {SEED} --case {}", found.number);
            faults.push(format!("{line}\n{}\n{}", found.case, found.fault));
        },
    );
    assert!(faults.is_empty(), "{}", faults.join("\n\n"));
    // A search whose plans mostly do not fit their models would find little.
    assert!(summary.refused_percent() <= 20, "{summary:?}");
}
