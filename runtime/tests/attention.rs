//! Attention of every kind on the CPU, compared with its specification.

pub(crate) mod support;

#[path = "support/attention.rs"]
mod attention;

use tpc_runtime::{LaunchOptions, Session};

#[test]
fn cases_are_as_specified() {
    for case in attention::cases() {
        let mut session = Session::launch(vec![case.program.clone()], LaunchOptions::default())
            .unwrap_or_else(|e| panic!("{}: {e}\n{}", case.name, case.program.to_text()));
        for (input, bytes) in case.program.inputs.iter().zip(&case.inputs) {
            session.write_bytes(&input.name, bytes).unwrap();
        }
        // Twice: the first step must not affect the second.
        for step in 1..=2 {
            session.step().unwrap();
            let got: Vec<Vec<u8>> = case.program.outputs.iter().map(|o| session.read(&o.kind).unwrap()).collect();
            attention::check(&case, &got, &format!("step {step}"));
        }
    }
}
