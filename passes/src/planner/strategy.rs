//! The strategies by which the ranks can compute an operation, and the placements at which they can keep a value, as the
//! factor table allows.
//!
//! Before: `einsum "ab,bc->ac"` on a mesh with one axis `tp`.
//! After: every rank computes everything; `tp` cuts a, c, or b, which leaves a partial sum; a partial sum passes through
//! from either operand while the other is whole.

use crate::factors::{FactorKind, FactorRow, result_sharding};
use tpc_ir::{AxisId, AxisSet, Partial, ReduceOp, Sharding, Type};

/// Operands that are partial, and so is the result.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Passing {
    /// Which operands.
    operands: Vec<usize>,
    partial: Partial,
}

/// Which axes cut which factors of an operation, and over which axes partial terms pass through it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// For every factor the axes that cut it, major to minor.
    cuts: Vec<Vec<AxisId>>,
    passing: Option<Passing>,
}

/// The placements that a strategy gives operands and results.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Of every operand.
    pub operands: Vec<Sharding>,
    /// Of every result.
    pub results: Vec<Sharding>,
}

impl Strategy {
    /// The strategy of a placed operation.
    pub fn of(rule: &FactorRow, operands: &[&Type], results: &[&Type]) -> Strategy {
        let mut cuts = vec![Vec::new(); rule.factors.len()];
        let dims = operands.iter().zip(&rule.operands).chain(results.iter().zip(&rule.results));
        for (ty, factors) in dims {
            for (axes, &factor) in ty.sharding.dims.iter().zip(factors) {
                cuts[factor].clone_from(axes);
            }
        }
        let partial: Vec<usize> = (0..operands.len()).filter(|&i| operands[i].sharding.partial.is_some()).collect();
        let passing = partial
            .first()
            .and_then(|&first| Some(Passing { operands: partial.clone(), partial: operands[first].sharding.partial? }));
        Strategy { cuts, passing }
    }

    /// The strategy without an axis.
    fn without(&self, axis: AxisId) -> Strategy {
        let cuts = self.cuts.iter().map(|axes| axes.iter().copied().filter(|&a| a != axis).collect()).collect();
        let passing = self.passing.clone().and_then(|p| {
            let axes = p.partial.axes.minus(AxisSet::one(axis));
            (!axes.is_empty()).then_some(Passing { partial: Partial { axes, ..p.partial }, ..p })
        });
        Strategy { cuts, passing }
    }

    /// The strategies that differ from this one in what some axes do, with the placements that they give; this one comes
    /// first.
    pub fn along(
        &self,
        axes: &[AxisId],
        rule: &FactorRow,
        operands: &[&Type],
        results: &[&Type],
    ) -> Vec<(Strategy, Placed)> {
        let mut found = vec![self.clone()];
        for &axis in axes {
            let others = found.iter().flat_map(|strategy| strategy.changed(axis, rule)).collect::<Vec<_>>();
            others.into_iter().for_each(|strategy| add(&mut found, strategy));
        }
        let placed = |strategy: Strategy| {
            let placed = strategy.placed(rule, operands, results)?;
            Some((strategy, placed))
        };
        found.into_iter().filter_map(placed).collect()
    }

    /// The strategies that differ from this one in what an axis does, whether the factor table allows them or not.
    fn changed(&self, axis: AxisId, rule: &FactorRow) -> Vec<Strategy> {
        let base = self.without(axis);
        let mut found = vec![base.clone()];
        for (f, factor) in rule.factors.iter().enumerate() {
            if factor.kind == FactorKind::Whole || factor.size < 2 {
                continue;
            }
            found.extend(inserted(&base.cuts[f], axis).into_iter().map(|axes| {
                let mut cuts = base.cuts.clone();
                cuts[f] = axes;
                Strategy { cuts, ..base.clone() }
            }));
        }
        let one = AxisSet::one(axis);
        let mut passes = |operands: &[usize], op: ReduceOp| {
            let axes = match &base.passing {
                None => one,
                Some(p) if p.operands == operands && p.partial.op == op => p.partial.axes.union(one),
                Some(_) => return,
            };
            let passing = Some(Passing { operands: operands.to_vec(), partial: Partial { op, axes } });
            found.push(Strategy { passing, ..base.clone() });
        };
        rule.linear.iter().for_each(|set| passes(set, ReduceOp::Sum));
        if rule.increasing && rule.operands.len() == 1 {
            passes(&[0], ReduceOp::Max);
        }
        found
    }

    /// The placements of operands and results; `None` if the factor table does not allow them.
    pub fn placed(&self, rule: &FactorRow, operands: &[&Type], results: &[&Type]) -> Option<Placed> {
        let at = |factors: &[usize], partial: Option<Partial>| Sharding {
            dims: factors.iter().map(|&f| self.cuts[f].clone()).collect(),
            partial,
        };
        let partial = |i: usize| self.passing.as_ref().filter(|p| p.operands.contains(&i)).map(|p| p.partial);
        let shardings: Vec<Sharding> = rule.operands.iter().enumerate().map(|(i, f)| at(f, partial(i))).collect();
        let types: Vec<Type> = operands.iter().zip(&shardings).map(|(ty, s)| ty.placed(s.clone())).collect();
        let types: Vec<&Type> = types.iter().collect();
        let result = |r: usize| result_sharding(&rule.of_result(r), &types, Some(&at(&rule.results[r], None))).ok();
        let results = (0..results.len()).map(result).collect::<Option<_>>()?;
        Some(Placed { operands: shardings, results })
    }
}

/// The axes of a dimension with another axis inserted, once at every position.
fn inserted(axes: &[AxisId], axis: AxisId) -> Vec<Vec<AxisId>> {
    let at = |i: usize| [&axes[..i], &[axis], &axes[i..]].concat();
    (0..=axes.len()).rev().map(at).collect()
}

/// The placements of a value that differ from this one in what some axes do, apart from partial ones. This one comes
/// first.
pub fn placements(ty: &Type, at: &Sharding, axes: &[AxisId]) -> Vec<Sharding> {
    let mut found = vec![at.clone()];
    for &axis in axes {
        for at in found.clone() {
            let base = without(&at, axis);
            for (dim, present) in base.dims.iter().enumerate().filter(|&(dim, _)| ty.shape[dim] > 1) {
                for axes in inserted(present, axis) {
                    let mut placed = base.clone();
                    placed.dims[dim] = axes;
                    add(&mut found, placed);
                }
            }
            add(&mut found, base);
        }
    }
    found
}

/// Adds an element to a list that does not have it yet.
pub fn add<T: PartialEq>(list: &mut Vec<T>, one: T) {
    if !list.contains(&one) {
        list.push(one);
    }
}

/// The placement without an axis.
pub fn without(at: &Sharding, axis: AxisId) -> Sharding {
    let rest = |axes: &Vec<AxisId>| axes.iter().copied().filter(|&a| a != axis).collect();
    Sharding { dims: at.dims.iter().map(rest).collect(), ..at.reduced(AxisSet::one(axis)) }
}
