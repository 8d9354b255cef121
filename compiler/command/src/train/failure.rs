//! Explains why a loss is not finite.

use crate::{Failure, Outcome};
use tpc_compiler::models::WeightMap;
use tpc_compiler::pretrained::condition;
use tpc_compiler::program::TrainingSession;

/// Explains why the loss of a session's first step is not finite, by restoring and inspecting the initial weights. The
/// learning rate cannot be the cause.
pub(super) fn no_number(
    training: &mut TrainingSession,
    map: &WeightMap,
    step: u64,
    loss: f64,
    begin: &dyn Fn(&mut TrainingSession) -> Outcome,
) -> Outcome<Failure> {
    begin(training)?;
    let found = condition(training.session(), map)?;
    Ok(Failure::new(match (found.not_finite, found.largest) {
        (Some((tensor, value)), _) => {
            format!("the loss of step {step} is {loss} because the weights are not finite: {tensor} holds {value}")
        }
        (None, Some((tensor, largest))) => format!(
            "the loss of step {step} is {loss} although all weights are finite: an intermediate value is too large \
             for its element type; the largest weight is {largest:e}, in {tensor}"
        ),
        (None, None) => format!("the loss of step {step} is {loss}"),
    }))
}

pub(super) fn diverged(step: u64, loss: f64) -> Failure {
    Failure::new(format!("the loss of step {step} is {loss}; a lower --lr may help"))
}
