//! Reading a step's gradients.

use crate::Outcome;
use std::collections::HashMap;
use tpc_compiler::models::{ModelError, WeightEntry, WeightMap, write_weights};
use tpc_compiler::pretrained::LoadError;
use tpc_ir::OutputKind;
use tpc_passes::options::clip::GRAD_NORM;
use tpc_runtime::Session;
use tpc_runtime::output::Output;

/// The norm of all gradients before clipping, if gradients are clipped.
pub(super) fn norm(session: &Session) -> Outcome<Option<f64>> {
    let kind = OutputKind::Result(GRAD_NORM.into());
    let clipped = session.interface().outputs.iter().any(|o| o.kind == kind);
    Ok(if clipped { session.read_f64(&kind)?.first().copied() } else { None })
}

/// Writes the gradients of the latest step; of several processes, one has the output.
pub(super) fn write_gradients(session: &Session, map: &WeightMap, output: Option<Output>) -> Outcome {
    let mut values: HashMap<String, Vec<f32>> = HashMap::new();
    for output in &session.interface().outputs {
        if let OutputKind::Gradient(name) = &output.kind {
            let gradient = session.read_f64(&output.kind)?.into_iter().map(|v| v as f32).collect();
            values.insert(name.to_string(), gradient);
        }
    }
    let has_gradient = |entry: &&WeightEntry| values.contains_key(entry.name());
    let entries = map.entries.iter().filter(has_gradient).cloned().collect();
    let mut value = |entry: &WeightEntry| Ok::<_, ModelError>(values.remove(entry.name()).unwrap_or_default());
    let write = |output| write_weights(output, &WeightMap { entries }, &mut value).map_err(LoadError::from);
    let written = output.map_or(Ok(()), write);
    session.agree("write gradients", written, |()| Vec::new())?;
    Ok(())
}
