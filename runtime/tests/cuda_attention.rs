//! Attention as generated CUDA kernels, executed on the CPU, against the specification.
#![cfg(unix)]

#[path = "support/attention.rs"]
mod attention;
#[path = "support/mod.rs"]
mod support;

#[test]
fn the_reference_runs() {
    for case in attention::cases() {
        let start = std::time::Instant::now();
        let want = case.want();
        attention::check(&case, &want, "itself");
        println!("{:.2} s {}", start.elapsed().as_secs_f64(), case.name);
    }
}
