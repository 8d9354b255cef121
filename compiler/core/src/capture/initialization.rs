//! Operations that are recorded while a model is built and are not part of the program.

use std::collections::{HashMap, HashSet};

use burn_ir::{BaseOperationIr as Base, FloatOperationIr, NumericOperationIr as Numeric, OperationIr};

use super::captured::Init;
use super::forward::Forward;
use super::operation::{self, first_result};
use super::params::{Initialization, ParameterInfo};
use super::scope::RawScope;

/// Removes the initialization of parameters from the program and returns both.
pub(super) fn split_initialization(
    mut operations: Vec<OperationIr>,
    forward: &Forward,
    scopes: &[RawScope],
) -> (Vec<OperationIr>, HashMap<String, Init>) {
    let parameters = &forward.parameters.list;
    let recorded = |info: &ParameterInfo| match info.initialization {
        Some(Initialization::Recorded(begin, end)) => Some((begin, end)),
        _ => None,
    };
    let mut ranges: Vec<(u64, u64)> = parameters.iter().filter_map(recorded).collect();
    ranges.sort_unstable();
    let built: HashMap<u64, Init> = computed(&operations, parameters);
    // The rest, which is most of them, stays in its memory.
    let initialize: Vec<_> = operations.extract_if(.., |op| within(&ranges, first_result(op))).collect();
    let init = |info: &ParameterInfo| {
        let init = match info.initialization {
            Some(Initialization::Recorded(begin, end)) => {
                let from = initialize.partition_point(|op| first_result(op) < begin);
                let to = initialize.partition_point(|op| first_result(op) < end);
                initialization(&initialize[from..to])
            }
            // A tensor that no operation produces was made from data.
            Some(Initialization::Tensor(id)) => built.get(&id).cloned().unwrap_or_else(|| initialization(&[])),
            None => initialization(&[]),
        };
        (info.path.to_string(), init)
    };
    let init = if forward.by_shapes { parameters.iter().map(init).collect() } else { HashMap::new() };
    (drop_unread(operations, forward, scopes), init)
}

/// The initialization of the parameters that a module computed while it was built, by their tensors.
fn computed(operations: &[OperationIr], parameters: &[ParameterInfo]) -> HashMap<u64, Init> {
    let tensor = |info: &ParameterInfo| match info.initialization {
        Some(Initialization::Tensor(id)) => Some(id),
        _ => None,
    };
    let wanted: HashSet<u64> = parameters.iter().filter_map(tensor).collect();
    let produced = |op: &OperationIr| op.outputs().map(|tensor| tensor.id.value()).find(|id| wanted.contains(id));
    let init = |op: &OperationIr| Some((produced(op)?, initialization(std::slice::from_ref(op))));
    operations.iter().filter_map(init).collect()
}

/// Drops operations that were recorded while the model was built and whose results are not read, such as those that
/// compute parameters which are now inputs. The remaining ones compute tables.
fn drop_unread(mut operations: Vec<OperationIr>, forward: &Forward, scopes: &[RawScope]) -> Vec<OperationIr> {
    let inputs = forward.parameters.list.iter().map(|info| info.tensor);
    let marked = scopes.iter().flat_map(|scope| scope.arguments.iter().chain(&scope.results).copied());
    let mut read: HashSet<u64> = forward.outputs.iter().map(|(id, _)| *id).chain(inputs).chain(marked).collect();
    let mut keep = Vec::with_capacity(operations.len());
    for op in operations.iter().rev() {
        let is_read = op.outputs().any(|tensor| read.contains(&tensor.id.value()));
        let live = is_read || !within(&[forward.built], first_result(op));
        if live {
            read.extend(op.inputs().map(|tensor| tensor.id.value()));
        }
        keep.push(live);
    }
    let mut keep = keep.into_iter().rev();
    operations.retain(|_| keep.next().unwrap_or(true));
    operations
}

fn initialization(operations: &[OperationIr]) -> Init {
    match operations {
        [OperationIr::BaseFloat(Base::Zeros(_)) | OperationIr::BaseInt(Base::Zeros(_))] => Init::Constant(0.0),
        [OperationIr::BaseFloat(Base::Ones(_)) | OperationIr::BaseInt(Base::Ones(_))] => Init::Constant(1.0),
        [OperationIr::NumericFloat(_, Numeric::Full(op)) | OperationIr::NumericInt(_, Numeric::Full(op))] => {
            Init::Constant(op.value.elem())
        }
        [OperationIr::Float(_, FloatOperationIr::Random(op))] => Init::Random(op.distribution),
        several => Init::Computed(several.iter().map(operation::name).collect()),
    }
}

/// Whether an id is in one of several ranges, which are sorted and disjoint.
pub(super) fn within(ranges: &[(u64, u64)], id: u64) -> bool {
    let after = ranges.partition_point(|range| range.0 <= id);
    after > 0 && id < ranges[after - 1].1
}
