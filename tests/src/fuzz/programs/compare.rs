//! Equality of results within the bounds that rounding explains.
//!
//! Every tensor has an exact value, computed in double precision, and the value that one rank computes. The distance
//! between the two is the effect of rounding, which grows with the condition number of the subject; many ranks may be
//! off by a multiple of it. They may also be off by some units in the last place of the tensor's largest element,
//! because they add in another order, and by fewer units of the largest element of all tensors of the same kind,
//! because a gradient that is zero in theory consists of rounding errors of the others.
//! theory consists of rounding errors of the others.

use super::case::Case;
use super::options::Types;
use super::reference::{Outputs, Reference};
use tpc_ir::{InputId, OutputKind};

/// One unit in the last place of an f32, relative to the largest element of a tensor.
const ULP: f64 = 1.0 / (1u64 << 23) as f64;
/// How many times the rounding error of one rank many ranks may be off by.
const TIMES: f64 = 32.0;
/// Units in the last place of a tensor's largest element that it may be off by.
const OWN: f64 = 256.0;
/// Units in the last place of the largest element of all tensors of its kind that a tensor may be off by.
const OTHERS: f64 = 16.0;

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// The largest difference. NaN equals NaN, and infinity equals infinity.
fn apart(a: &[f64], b: &[f64]) -> f64 {
    let same = |x: f64, y: f64| x == y || x.is_nan() && y.is_nan();
    let apart = |(x, y): (&f64, &f64)| if same(*x, *y) { 0.0 } else { (x - y).abs() };
    a.iter().zip(b).map(apart).fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) })
}

/// The root mean square of the differences.
fn mean_apart(a: &[f64], b: &[f64]) -> f64 {
    let squares = a.iter().zip(b).map(|(x, y)| if x == y { 0.0 } else { (x - y) * (x - y) });
    let mean = (squares.sum::<f64>() / a.len().max(1) as f64).sqrt();
    if mean.is_nan() { f64::INFINITY } else { mean }
}

/// The kind of an output. Outputs of one kind are measured in the same unit.
fn kind(output: &OutputKind) -> &str {
    match output {
        OutputKind::Result(name) => name,
        OutputKind::Loss => "loss",
        OutputKind::Gradient(_) => "gradient",
        OutputKind::Update(InputId::State { name, .. }) => name,
        OutputKind::Update(_) => "parameter",
    }
}

/// The largest element of all outputs of a kind.
fn anywhere(outputs: &Outputs, of: &str) -> f64 {
    outputs.iter().filter(|(o, _)| kind(o) == of).map(|(_, v)| largest(v)).fold(0.0, f64::max)
}

fn find<'a>(outputs: &'a Outputs, wanted: &OutputKind) -> Option<&'a [f64]> {
    outputs.iter().find(|(output, _)| output == wanted).map(|(_, values)| values.as_slice())
}

/// The first output of one rank that is far from its exact value.
pub fn one_rank(reference: &Reference) -> Option<String> {
    let bf16 = reference.subject.meaning.types != Types::F32;
    for (step, (exact, one)) in reference.exact.iter().zip(&reference.one).enumerate() {
        for (output, e) in exact {
            let Some(o) = find(one, output) else { return Some(format!("step {step}: no {output:?}")) };
            let scale = largest(e).max(0.1 * anywhere(exact, kind(output)));
            // This is loose enough for a badly conditioned program; a fault is off by more.
            let allowed = if bf16 { 0.5 } else { 0.01 } * scale;
            let off = apart(o, e);
            if o.len() != e.len() || !(off <= allowed) {
                return Some(format!("step {step}: {output:?} is off by {off:e} of {scale:e}"));
            }
        }
    }
    None
}

/// Describes what is wrong with one output of a step, if anything is.
pub fn difference(reference: &Reference, step: usize, output: &OutputKind, found: &[f64]) -> Option<String> {
    let (exact, one) = (reference.exact.get(step)?, reference.one.get(step)?);
    let (Some(e), Some(o)) = (find(exact, output), find(one, output)) else {
        return Some(format!("step {step}: {output:?} is no output of one rank"));
    };
    if found.len() != e.len() {
        return Some(format!("step {step}: {output:?} has {} elements, not {}", found.len(), e.len()));
    }
    let (own, others) = (largest(e), anywhere(exact, kind(output)));
    let (off, allowed) = if reference.subject.meaning.types != Types::F32 {
        // One rank may happen to compute one tensor much more precisely than the others of its kind. 2^-8 is a unit in
        // the last place of bf16.
        let of_kind = exact.iter().filter(|(other, _)| kind(other) == kind(output));
        let rounding = of_kind.filter_map(|(other, e)| Some(mean_apart(find(one, other)?, e))).fold(0.0, f64::max);
        (mean_apart(found, e), 6.0 * rounding + (4.0 * own + others) / 256.0)
    } else {
        (apart(found, e), TIMES * apart(o, e) + ULP * (OWN * own + OTHERS * others))
    };
    let right = off <= allowed;
    (!right).then(|| format!("step {step}: {output:?} is off by {off:.2e}, allowed {allowed:.2e}, of {own:.2e}"))
}

/// Describes everything that is wrong with the results of a case; empty if nothing is.
pub fn differences(reference: &Reference, case: &Case, found: &[Outputs]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (step, exact) in reference.exact.iter().enumerate() {
        let Some(found) = found.get(step) else {
            wrong.push(format!("step {step} has no results"));
            continue;
        };
        let wanted = |o: &OutputKind| case.ways.gradients || !matches!(o, OutputKind::Gradient(_));
        let wanted: Vec<&OutputKind> = exact.iter().map(|(o, _)| o).filter(|o| wanted(o)).collect();
        for output in &wanted {
            match find(found, output) {
                Some(values) => wrong.extend(difference(reference, step, output, values)),
                None => wrong.push(format!("step {step}: no {output:?}")),
            }
        }
        if found.len() != wanted.len() {
            wrong.push(format!("step {step} has {} outputs, not {}", found.len(), wanted.len()));
        }
    }
    wrong
}
