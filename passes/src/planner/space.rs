//! What may change along some mesh axes while the other axes stay as they are, as a cost network.
//!
//! Every value has a variable: the placement at which it is kept. Every operation has one, too: its strategy. A strategy
//! costs what the operation costs with it. A value and an operation depend on each other: what is computed is brought to
//! where it is kept, and what is kept is brought to where it is read. A replicated value is also sliced for its readers.
//! That each value is kept at one placement is the only restriction, so two readers that want two collectives of the same
//! value count both.

use super::costs::Costs;
use super::logical::{Logical, Operation, OperationId, Role, ValueId};
use super::network::{Network, Variable};
use super::strategy::{Placed, Strategy, add, placements, without};
use crate::redistribute::reduced;
use crate::styles::layout::factored;
use rustc_hash::FxHashMap;
use tpc_ir::{AxisId, Mesh, Op, Sharding, Type};

/// Where every value is kept and how every operation is computed, for those that others are placed like.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Where each value is kept.
    pub kept: Vec<Sharding>,
    /// The strategy of each operation; inputs of the program have none.
    pub strategies: Vec<Option<Strategy>>,
}

impl Choice {
    /// What the placed graph does: values are kept where their last redistribution brings them.
    pub fn of(logical: &Logical) -> Choice {
        let strategy = |operation: &Operation| {
            let graph = logical.graph;
            let operands: Vec<&Type> = graph.operands(operation.node).into_iter().map(|v| graph.ty(v)).collect();
            Some(Strategy::of(operation.rule.as_ref()?, &operands, &logical.types(&operation.results)))
        };
        Choice {
            kept: logical.values.iter().map(|v| v.versions[v.versions.len() - 1].clone()).collect(),
            strategies: logical.operations.iter().map(strategy).collect(),
        }
    }
}

/// The strategies of every operation that has a choice of its own along some axes.
fn options(axes: &[AxisId], logical: &Logical, choice: &Choice) -> Vec<Vec<(Strategy, Placed)>> {
    let of = |(o, operation): (usize, &Operation)| match (&operation.rule, &choice.strategies[o]) {
        (Some(rule), Some(strategy)) if operation.like == o && !logical.is_constant(operation) => {
            strategy.along(axes, rule, &logical.types(&operation.operands), &logical.types(&operation.results))
        }
        _ => Vec::new(),
    };
    logical.operations.iter().enumerate().map(of).collect()
}

/// The choices along some axes, and what they cost.
pub struct Space {
    /// The network. Its first states are the choice that it was made from.
    pub network: Network,
    /// For every value that has a variable: its variable, and the placement of each state.
    values: FxHashMap<ValueId, (Variable, Vec<Sharding>)>,
    /// For every operation that has a variable: its variable, and the strategy of each state.
    operations: FxHashMap<OperationId, (Variable, Vec<(Strategy, Placed)>)>,
}

impl Space {
    /// The choices along some axes.
    pub fn along(axes: &[AxisId], logical: &Logical, choice: &Choice, costs: &Costs) -> Space {
        let mut space =
            Space { network: Network::default(), values: FxHashMap::default(), operations: FxHashMap::default() };
        let options = options(axes, logical, choice);
        space.add_variables(axes, logical, choice, options);
        space.price_values(logical, costs);
        space.price_operations(logical, costs);
        space.connect(logical, costs);
        space
    }

    /// Adds the variables in the order of the program, every operation before its results, so that a sweep over the variables
    /// carries what it finds along the whole program.
    fn add_variables(
        &mut self,
        axes: &[AxisId],
        logical: &Logical,
        choice: &Choice,
        options: Vec<Vec<(Strategy, Placed)>>,
    ) {
        for ((o, operation), options) in logical.operations.iter().enumerate().zip(options) {
            let own = |&&v: &&ValueId| !logical.values[v].constant && logical.like(v) == v;
            let kept = operation.results.iter().filter(own).map(|&v| (v, kept_at(axes, logical, choice, v, &options)));
            let kept: Vec<(ValueId, Vec<Sharding>)> = kept.collect();
            if !options.is_empty() {
                self.operations.insert(o, (self.network.variable(vec![0.0; options.len()]), options));
            }
            for (v, states) in kept {
                self.values.insert(v, (self.network.variable(vec![0.0; states.len()]), states));
            }
        }
    }

    fn price_values(&mut self, logical: &Logical, costs: &Costs) {
        for (v, value) in logical.values.iter().enumerate() {
            let like = logical.like(v);
            let Some((variable, states)) = self.values.get(&like) else { continue };
            let ty = logical.ty(like);
            let unary = &mut self.network.unary[*variable];
            let maker = logical.graph.node(value.source.node);
            let stored = matches!(maker.op, Op::Input { .. }).then_some(&maker.types[0].sharding);
            let stored = stored.filter(|_| !value.free);
            let times = logical.times(value.source.node);
            for (cost, at) in unary.iter_mut().zip(states) {
                *cost += times * stored.map_or(0.0, |stored| costs.at_end(like, stored, at, value.role));
                if value.free || value.saved && stored != Some(at) {
                    *cost += times * costs.saved(&ty.placed(at.clone()));
                }
                *cost += times * value.outputs.iter().map(|goal| costs.output(like, at, goal, value.role)).sum::<f64>();
            }
        }
    }

    fn price_operations(&mut self, logical: &Logical, costs: &Costs) {
        let mut counts = vec![0.0; logical.operations.len()];
        logical.operations.iter().for_each(|operation| counts[operation.like] += logical.times(operation.node));
        for (o, operation) in logical.operations.iter().enumerate() {
            let Some((variable, options)) = self.operations.get(&o) else { continue };
            let (operands, results) = (logical.types(&operation.operands), logical.types(&operation.results));
            let work = |(_, placed): &(Strategy, Placed)| {
                let at = |(ty, to): (&&Type, &Sharding)| ty.placed(to.clone());
                let read: Vec<Type> = operands.iter().zip(&placed.operands).map(at).collect();
                let made: Vec<Type> = results.iter().zip(&placed.results).map(at).collect();
                // A constant is made where it is read, as a partial term on all ranks but one.
                let constants = operation.operands.iter().zip(&read).filter(|(v, _)| logical.values[**v].constant);
                let terms =
                    constants.map(|(_, ty)| costs.moved(ty, &reduced(&ty.sharding), &ty.sharding, Role::Activation));
                let work = costs.operation(o, &read.iter().collect::<Vec<_>>(), &made.iter().collect::<Vec<_>>());
                counts[o] * (work + terms.sum::<f64>())
            };
            self.network.unary[*variable] = options.iter().map(work).collect();
        }
    }

    fn connect(&mut self, logical: &Logical, costs: &Costs) {
        // How often a value is an operand, or a result, of an operation, for those that others are placed like.
        let mut counts: Vec<((ValueId, OperationId, Slot), f64)> = Vec::new();
        let mut index: FxHashMap<(ValueId, OperationId, Slot), usize> = FxHashMap::default();
        for operation in &logical.operations {
            let operands = operation.operands.iter().enumerate().map(|(i, &v)| (v, Slot::Operand(i)));
            let results = operation.results.iter().enumerate().map(|(i, &v)| (v, Slot::Result(i)));
            for (v, slot) in operands.chain(results) {
                let key = (logical.like(v), operation.like, slot);
                let at = *index.entry(key).or_insert_with(|| {
                    counts.push((key, 0.0));
                    counts.len() - 1
                });
                counts[at].1 += logical.times(operation.node);
            }
        }
        for (v, value) in logical.values.iter().enumerate() {
            for &input in &value.updates {
                let (like, stored) = (logical.like(v), logical.like(input));
                let (Some((next, from)), Some((now, to))) = (self.values.get(&like), self.values.get(&stored)) else {
                    continue;
                };
                let times = logical.times(value.source.node);
                if next != now {
                    let [from, to] = [from, to].map(|states| states.iter().collect::<Vec<_>>());
                    let replaced = costs.replaced(like, &from, &to);
                    self.network.add(*next, *now, |a, b| times * replaced[a * to.len() + b]);
                }
            }
        }
        for ((v, o, slot), count) in counts {
            let (Some((value, kept)), Some((operation, options))) = (self.values.get(&v), self.operations.get(&o))
            else {
                continue;
            };
            // Many strategies agree on where they have a value, so each move is priced once.
            let mut ends: Vec<&Sharding> = Vec::new();
            let mut end_of: Vec<usize> = Vec::with_capacity(options.len());
            for (_, placed) in options {
                let end = slot.of(placed);
                let at = ends.iter().position(|known| *known == end).unwrap_or(ends.len());
                if at == ends.len() {
                    ends.push(end);
                }
                end_of.push(at);
            }
            let kept: Vec<&Sharding> = kept.iter().collect();
            let (kept_count, end_count) = (kept.len(), ends.len());
            let moves = match slot {
                Slot::Operand(_) => costs.brought(v, &kept, &ends),
                Slot::Result(_) if logical.values[v].is_update() => costs.replaced(v, &ends, &kept),
                Slot::Result(_) => costs.brought(v, &ends, &kept),
            };
            let cost = |at: usize, strategy: usize| match slot {
                Slot::Operand(_) => count * moves[at * end_count + end_of[strategy]],
                Slot::Result(_) => count * moves[end_of[strategy] * kept_count + at],
            };
            self.network.add(*value, *operation, cost);
        }
    }

    /// The choice that the states of the network stand for.
    pub fn chosen(&self, states: &[usize], choice: &Choice) -> Choice {
        let mut chosen = choice.clone();
        for (&v, (variable, placements)) in &self.values {
            chosen.kept[v].clone_from(&placements[states[*variable]]);
        }
        for (&o, (variable, options)) in &self.operations {
            chosen.strategies[o] = Some(options[states[*variable]].0.clone());
        }
        chosen
    }
}

/// Where a value can be kept that an operation with these strategies computes. The first placement is its present one.
fn kept_at(
    axes: &[AxisId],
    logical: &Logical,
    choice: &Choice,
    v: ValueId,
    options: &[(Strategy, Placed)],
) -> Vec<Sharding> {
    let others = |at: &Sharding| axes.iter().fold(at.clone(), |at, &axis| without(&at, axis));
    let (value, now) = (&logical.values[v], &choice.kept[v]);
    let mut states = placements(logical.ty(v), now, axes);
    let versions = value.versions.iter().filter(|at| others(at) == others(now));
    versions.for_each(|at| add(&mut states, at.clone()));
    let (_, result) = logical.makers[v];
    options.iter().for_each(|(_, placed)| add(&mut states, placed.results[result].clone()));
    if let (true, Op::Input { layout, .. }) = (value.free, &logical.graph.node(value.source.node).op) {
        states.retain(|at| is_storage(layout, &logical.ty(v).placed(at.clone()), &logical.graph.mesh));
    }
    states
}

/// Whether an input can be stored so: whole dimensions of the shape that the model knows are cut, in as many parts as there
/// are ranks.
fn is_storage(layout: &[usize], ty: &Type, mesh: &Mesh) -> bool {
    let Some(ranges) = factored(layout, &ty.shape) else { return ty.sharding.is_replicated() };
    let begins = |dim: usize| ranges.iter().any(|range| range.start == dim && !range.is_empty());
    let cut = ty.sharding.dims.iter().enumerate().filter(|(_, axes)| !axes.is_empty());
    ty.sharding.partial.is_none()
        && cut.into_iter().all(|(dim, axes)| {
            begins(dim) && axes.iter().map(|&axis| mesh.size(axis)).product::<usize>() <= ty.shape[dim]
        })
}

/// Where a value meets an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slot {
    Operand(usize),
    Result(usize),
}

impl Slot {
    /// Where a strategy has the value.
    fn of(self, placed: &Placed) -> &Sharding {
        match self {
            Slot::Operand(i) => &placed.operands[i],
            Slot::Result(i) => &placed.results[i],
        }
    }
}
