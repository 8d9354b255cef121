//! The brute-force validator of the factor table.
//!
//! Every row is tested with every placement of the operands over one and two axes, on small shapes with prime, uneven
//! and empty shards. The ranks are simulated with the reference interpreter and compared with the unsharded operation.
//! There are two kinds of faults:
//!
//! * **wrong**: `place` returns a placement of the result under which the ranks hold a different value;
//! * **missed**: `place` returns an error, although some placement of the result denotes the right value for //! every
//!   random input. [`excuse`] lists acceptable misses with their reasons.

mod cases;
mod ranks;

use cases::{Case, map_case};
use ranks::{Dims, Ranks, cuts, denoted, dice, local, logical, partials, placements, redistributions, same, spread};
use std::collections::BTreeMap;
use tpc_ir::interpret::Tensor;
use tpc_ir::op::Distribution;
use tpc_ir::verify::redistributed;
use tpc_ir::{AxisId, AxisSet, DType, MapFn, Mesh, Op, Partial, ReduceOp, Scalar, Sharding, Subscripts, Type};
use tpc_passes::factors::{FactorRow, Misplaced, place_redistribution, result_sharding, row_of};
use tpc_passes::redistribute::steps;

/// The row of the table for a case, restricted to one result.
fn row(case: &Case, result: usize) -> FactorRow {
    let operands: Vec<&Type> = case.operands.iter().map(|(t, _)| t).collect();
    let row = row_of(&case.op, &operands, &case.results.iter().collect::<Vec<_>>());
    FactorRow { results: vec![row.results[result].clone()], ..row }
}

/// The findings of the validator.
#[derive(Default)]
struct Report {
    /// Faults by operation and kind of placement: their number and the first of them.
    wrong: BTreeMap<String, (usize, String)>,
    missed: BTreeMap<String, (usize, String)>,
    /// The number of times that each excuse was needed.
    excused: BTreeMap<Excuse, usize>,
    /// Number of placements that the table admits and that are right.
    right: usize,
}

/// An operand under one placement: its type and, for each trial, the local tensors and the value that they denote.
struct Placed {
    ty: Type,
    trials: Vec<(Ranks, Tensor)>,
}

/// Number of random inputs per placement. In the last trial, all terms of a partial value except the first are
/// identities.
const TRIALS: usize = 16;

fn placed(case: &Case, operand: usize, mesh: &Mesh) -> Vec<Placed> {
    let (ty, values) = &case.operands[operand];
    let spread_over = |sharding: Sharding| {
        let ty = ty.placed(sharding);
        let trial = |trial: usize| {
            spread(&ty, mesh, |term, i| {
                let seed = ((trial * 4 + operand) * 8 + term) as u64;
                (trial + 1 < TRIALS || term == 0).then(|| values.element(seed, i))
            })
        };
        Placed { trials: (0..TRIALS).map(trial).collect(), ty }
    };
    placements(ty.rank(), mesh, &[ReduceOp::Sum, ReduceOp::Max]).into_iter().map(spread_over).collect()
}

/// Calls `f` with every combination of indices below the given bounds.
fn odometer(bounds: &[usize], mut f: impl FnMut(&[usize])) {
    let mut at = vec![0; bounds.len()];
    loop {
        f(&at);
        let Some(i) = (0..at.len()).rev().find(|&i| at[i] + 1 < bounds[i]) else { return };
        at[i] += 1;
        at[i + 1..].fill(0);
    }
}

const MESHES: [&str; 4] = ["a=2", "a=3", "a=2,b=2", "a=2,b=3"];

/// Validates one case on all meshes.
fn validate(case: &Case, report: &mut Report) {
    for mesh in MESHES {
        let mesh = Mesh::parse(mesh).unwrap();
        let operands: Vec<Vec<Placed>> = (0..case.operands.len()).map(|i| placed(case, i, &mesh)).collect();
        let bounds: Vec<usize> = operands.iter().map(Vec::len).collect();
        for result in 0..case.results.len() {
            let cuts = cuts(case.results[result].rank(), &mesh);
            odometer(&bounds, |at| {
                let chosen: Vec<&Placed> = operands.iter().zip(at).map(|(o, &i)| &o[i]).collect();
                Trial::new(case, result, &mesh, chosen).judge(&cuts, report);
            });
        }
    }
}

/// One placement of all operands.
struct Trial<'a> {
    case: &'a Case,
    result: usize,
    mesh: &'a Mesh,
    operands: Vec<&'a Placed>,
    types: Vec<&'a Type>,
    truths: Vec<Tensor>,
}

impl<'a> Trial<'a> {
    fn new(case: &'a Case, result: usize, mesh: &'a Mesh, operands: Vec<&'a Placed>) -> Self {
        let types: Vec<&Type> = operands.iter().map(|p| &p.ty).collect();
        let truth = |t: usize| {
            let tensors: Vec<&Tensor> = operands.iter().map(|p| &p.trials[t].1).collect();
            logical(&case.op, &types, &case.results, &tensors)
                .unwrap_or_else(|e| panic!("{}: {e}", case.name))
                .remove(result)
        };
        let truths = (0..TRIALS).map(truth).collect();
        Trial { case, result, mesh, types, operands, truths }
    }

    /// The local tensors that the ranks compute in a trial if the result is cut by `dims`.
    fn computed(&self, trial: usize, dims: &Dims) -> Option<Ranks> {
        let sharding = Sharding { dims: dims.clone(), partial: None };
        let results: Vec<Type> = self.case.results.iter().map(|t| t.placed(sharding.clone())).collect();
        let operands: Vec<&Ranks> = self.operands.iter().map(|p| &p.trials[trial].0).collect();
        local(&self.case.op, &self.types, &results, &operands, self.mesh).ok().map(|mut r| r.remove(self.result))
    }

    /// Whether the ranks hold the right value under the given placement of the result, in every trial.
    fn is_right(&self, sharding: &Sharding) -> bool {
        let ty = self.case.results[self.result].placed(sharding.clone());
        (0..TRIALS).all(|t| {
            let ranks = self.computed(t, &sharding.dims);
            let value = ranks.and_then(|r| denoted(&ty, &r, self.mesh));
            value.is_some_and(|v| same(&v, &self.truths[t], self.case.tolerance))
        })
    }

    /// A placement of the result, cut by `dims`, under which the ranks hold the right value.
    fn existing(&self, dims: &Dims) -> Option<Sharding> {
        let first = self.computed(0, dims)?;
        let reductions = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];
        partials(dims, self.mesh, &reductions).into_iter().find(|s| {
            let ty = self.case.results[self.result].placed(s.clone());
            let value = denoted(&ty, &first, self.mesh);
            value.is_some_and(|v| same(&v, &self.truths[0], self.case.tolerance)) && self.is_right(s)
        })
    }

    /// Records a fault under its kind.
    fn note(&self, faults: &mut BTreeMap<String, (usize, String)>, found: &str) {
        let kind = |t: &&Type| match t.sharding.partial {
            Some(p) => format!("{} {}", t.dtype, p.op.name()),
            None if t.sharding.is_replicated() => format!("{} whole", t.dtype),
            None => format!("{} cut", t.dtype),
        };
        let kinds: Vec<String> = self.types.iter().map(kind).collect();
        let text = || {
            let types: Vec<String> = self.types.iter().map(|t| t.display(self.mesh)).collect();
            format!("{} on {}: {}: {found}", self.case.name, self.mesh, types.join(", "))
        };
        let key = format!("{}({})", self.case.op.name(), kinds.join(", "));
        faults.entry(key).or_insert_with(|| (0, text())).0 += 1;
    }

    fn shown(&self, s: &Sharding) -> String {
        self.case.results[self.result].placed(s.clone()).display(self.mesh)
    }

    /// Compares the placements in the table with the values that the ranks hold.
    fn judge(&self, cuts: &[Dims], report: &mut Report) {
        let row = row(self.case, self.result);
        let free = row.results[0].iter().any(|f| !row.operands.iter().any(|o| o.contains(f)));
        if !free {
            match result_sharding(&row, &self.types, None) {
                Ok(s) => self.admitted(&s, report),
                Err(why) => {
                    let found = cuts.iter().find_map(|dims| self.existing(dims));
                    found.into_iter().for_each(|s| self.missed(&s, &why, report));
                }
            }
            return;
        }
        for dims in cuts {
            match result_sharding(&row, &self.types, Some(&Sharding { dims: dims.clone(), partial: None })) {
                Ok(s) if s.dims == *dims => self.admitted(&s, report),
                Ok(_) => {}
                Err(why) => self.existing(dims).into_iter().for_each(|s| self.missed(&s, &why, report)),
            }
        }
    }

    fn admitted(&self, s: &Sharding, report: &mut Report) {
        if self.is_right(s) {
            report.right += 1;
        } else {
            self.note(&mut report.wrong, &format!("the table says {}", self.shown(s)));
        }
    }

    fn missed(&self, s: &Sharding, why: &Misplaced, report: &mut Report) {
        match excuse(self) {
            Some(reason) => *report.excused.entry(reason).or_default() += 1,
            None => self.note(&mut report.missed, &format!("right as {}, but the table says: {why}", self.shown(s))),
        }
    }
}

/// A reason why the table may omit a right placement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    /// A dimension of size 1 or 0 is cut only formally, because one rank holds all of it.
    SizeOne,
    /// A maximum commutes with every increasing function, and with every decreasing one if it becomes a minimum. The
    /// table contains only the increasing functions of one operand; no program has a maximum before the others.
    Maximum,
    /// A product of sums over different axes is a sum over both. No program has products of two partial values.
    Bilinear,
    /// A sum of truth values is an "or", and a sum of bytes saturates, so they commute with more functions than sums of
    /// numbers. Neither are summed across ranks.
    Saturating,
    /// A merged or split dimension may be cut by its major factor if the axis divides that factor, but the table does
    /// not know the mesh. Instead, canonicalization factors such dimensions.
    Major,
}

fn excuse(trial: &Trial) -> Option<Excuse> {
    let shapes = trial.types.iter().copied().chain(&trial.case.results);
    if shapes.flat_map(|t| &t.shape).any(|&n| n < 2) {
        return Some(Excuse::SizeOne);
    }
    let partials: Vec<(&Type, Partial)> =
        trial.types.iter().filter_map(|&t| t.sharding.partial.map(|p| (t, p))).collect();
    if partials.iter().any(|(t, _)| matches!(t.dtype, DType::U8 | DType::Bool)) {
        return Some(Excuse::Saturating);
    }
    let all = |op: ReduceOp| !partials.is_empty() && partials.iter().all(|(_, p)| p.op == op);
    match &trial.case.op {
        Op::Map { f, .. } if all(ReduceOp::Max) && grows_or_falls(*f) => Some(Excuse::Maximum),
        Op::Concat { .. } | Op::Take | Op::Put | Op::Reduce { op: ReduceOp::Max, .. } if all(ReduceOp::Max) => {
            Some(Excuse::Maximum)
        }
        Op::Map { f: MapFn::Mul, .. } | Op::Einsum { .. } if all(ReduceOp::Sum) => match partials[..] {
            [(_, a), (_, b)] if a.axes.intersection(b.axes).is_empty() => Some(Excuse::Bilinear),
            _ => None,
        },
        Op::Reshape if trial.types[0].sharding.dims.iter().any(|d| !d.is_empty()) => Some(Excuse::Major),
        _ => None,
    }
}

/// Whether a function is increasing or decreasing in each operand, without being increasing according to the table.
fn grows_or_falls(f: MapFn) -> bool {
    use MapFn::{Add, Cast, Ceil, Floor, Ge, Gt, Le, Lt, Max, Min, Neg, Round, Select, Sign, Sub};
    matches!(f, Add | Sub | Neg | Max | Min | Select | Floor | Ceil | Round | Sign | Ge | Gt | Le | Lt | Cast(_))
}

/// Checks that nothing is wrong and that only excused placements are missed. Exactly the given excuses must be needed.
fn validate_all(cases: impl IntoIterator<Item = Case>, excuses: &[Excuse]) {
    let mut report = Report::default();
    for case in cases {
        validate(&case, &mut report);
    }
    let list = |faults: &BTreeMap<String, (usize, String)>| {
        faults.iter().map(|(kind, (n, first))| format!("\n  {kind}: {n}, first {first}")).collect::<String>()
    };
    println!("{} right, excused {:#?}", report.right, report.excused);
    let faults = report.wrong.len() + report.missed.len();
    assert!(faults == 0, "WRONG:{}\nMISSED:{}", list(&report.wrong), list(&report.missed));
    assert!(report.right > 0);
    let needed: Vec<Excuse> = report.excused.into_keys().collect();
    assert_eq!(needed, excuses, "excuses that were needed, and those that the test names");
}

#[test]
fn functions_of_one_operand() {
    validate_all(cases::functions_of_one_operand(), &[Excuse::SizeOne, Excuse::Maximum, Excuse::Saturating]);
}

#[test]
fn linear_functions_of_two_operands() {
    validate_all(cases::linear_functions_of_two_operands(), &[Excuse::SizeOne, Excuse::Maximum, Excuse::Bilinear]);
}

#[test]
fn other_functions_of_two_operands() {
    validate_all(cases::other_functions_of_two_operands(), &[Excuse::Maximum, Excuse::Saturating]);
}

#[test]
fn functions_of_three_operands() {
    validate_all(cases::functions_of_three_operands(), &[Excuse::Maximum]);
}

/// Quotients of integers are rounded, and bytes and truth values saturate, so fewer functions are linear in them.
#[test]
fn functions_of_other_element_types() {
    validate_all(cases::functions_of_other_element_types(), &[Excuse::Maximum, Excuse::Bilinear, Excuse::Saturating]);
}

#[test]
fn products() {
    validate_all(cases::products(), &[Excuse::SizeOne, Excuse::Bilinear]);
}

#[test]
fn batched_products() {
    validate_all(cases::batched_products(), &[Excuse::Bilinear]);
}

#[test]
fn reductions() {
    validate_all(cases::reductions(), &[Excuse::SizeOne, Excuse::Maximum]);
}

#[test]
fn cutting_and_joining() {
    validate_all(cases::cutting_and_joining(), &[Excuse::Maximum]);
}

#[test]
fn sorting() {
    validate_all(cases::sorting(), &[]);
}

#[test]
fn tables() {
    validate_all(cases::tables(), &[Excuse::Maximum]);
}

#[test]
fn reshapes() {
    validate_all(cases::reshapes(), &[Excuse::SizeOne, Excuse::Major]);
}

/// Values without elements, and empty sums.
#[test]
fn empty_dimensions() {
    validate_all(cases::empty_dimensions(), &[Excuse::SizeOne]);
}

#[test]
fn results_determined_only_by_their_type() {
    validate_all(cases::results_determined_only_by_their_type(), &[]);
}

/// A value with random terms under every placement.
fn values(shape: &[usize], mesh: &Mesh, ops: &[ReduceOp]) -> Vec<(Type, Ranks, Tensor)> {
    let spread_over = |sharding: Sharding| {
        let ty = Type::new(DType::F64, shape).placed(sharding);
        let (ranks, whole) = spread(&ty, mesh, |term, i| Some(dice(term as u64 + 5, i, 9) as f64 - 4.0));
        (ty, ranks, whole)
    };
    placements(shape.len(), mesh, ops).into_iter().map(spread_over).collect()
}

/// A redistribution that the table admits changes only the placement of the value, also for uneven and empty shards.
/// The verifier of the IR admits the same redistributions.
#[test]
fn redistributions_keep_the_value() {
    for mesh in MESHES {
        let mesh = Mesh::parse(mesh).unwrap();
        let mut admitted = 0;
        for shape in [[5, 2], [1, 3], [10, 4]] {
            for (ty, ranks, whole) in values(&shape, &mesh, &[ReduceOp::Sum, ReduceOp::Max]) {
                for op in redistributions(&mesh) {
                    let says = || format!("{op:?} of {} on {mesh}", ty.display(&mesh));
                    let placed = place_redistribution(&op, &ty);
                    assert_eq!(
                        placed.as_ref().ok(),
                        redistributed(&op, &ty, &mesh).ok().map(|t| t.sharding).as_ref(),
                        "{}",
                        says()
                    );
                    let Ok(sharding) = placed else { continue };
                    let to = ty.placed(sharding);
                    let moved = local(&op, &[&ty], std::slice::from_ref(&to), &[&ranks], &mesh).unwrap().remove(0);
                    let value = denoted(&to, &moved, &mesh);
                    assert!(value.is_some_and(|v| same(&v, &whole, 0.0)), "{} gives {}", says(), to.display(&mesh));
                    admitted += 1;
                }
            }
        }
        assert!(admitted > 20);
    }
}

/// The canonical steps from any placement to any other lead to that placement and keep the value.
#[test]
fn steps_keep_the_value() {
    for mesh in MESHES {
        let mesh = Mesh::parse(mesh).unwrap();
        for shape in [[5, 2], [1, 7]] {
            let all = values(&shape, &mesh, &[ReduceOp::Sum]);
            for (from, ranks, whole) in &all {
                for (to, _, _) in &all {
                    let reachable =
                        to.sharding.partial_axes().iter().all(|a| !from.sharding.sharded_axes().contains(a));
                    if !reachable {
                        continue;
                    }
                    let (mut at, mut held) = (from.clone(), ranks.clone());
                    for op in steps(&from.sharding, &to.sharding) {
                        let next = at.placed(place_redistribution(&op, &at).unwrap());
                        held = local(&op, &[&at], std::slice::from_ref(&next), &[&held], &mesh).unwrap().remove(0);
                        at = next;
                    }
                    let value = denoted(to, &held, &mesh);
                    let says = || format!("{} to {} on {mesh}", from.display(&mesh), to.display(&mesh));
                    assert!(at == *to && value.is_some_and(|v| same(&v, whole, 0.0)), "{}", says());
                }
            }
        }
    }
}

/// The validator detects both a wrong table and an incomplete one.
#[test]
fn faults_are_detected() {
    let case = map_case(MapFn::Exp, "a->a", &[5], DType::F64);
    let mesh = Mesh::parse("a=2").unwrap();
    let operands = placed(&case, 0, &mesh);
    let find = |op: ReduceOp| operands.iter().find(|p| p.ty.sharding.partial.is_some_and(|q| q.op == op)).unwrap();
    let sum = Trial::new(&case, 0, &mesh, vec![find(ReduceOp::Sum)]);
    assert!(cuts(1, &mesh).iter().all(|dims| sum.existing(dims).is_none()));
    let max = Trial::new(&case, 0, &mesh, vec![find(ReduceOp::Max)]);
    assert_eq!(max.existing(&vec![vec![]]), Some(find(ReduceOp::Max).ty.sharding.clone()));
    let mut report = Report::default();
    sum.admitted(&find(ReduceOp::Sum).ty.sharding, &mut report);
    max.missed(&find(ReduceOp::Max).ty.sharding, &Misplaced::Partial, &mut report);
    assert_eq!((report.wrong.len(), report.missed.len()), (1, 1));
}

/// Cases in which other systems have silently computed wrong numbers.
mod traps {
    use super::*;
    use Misplaced::{AxisTwice, Disagree, Redistribution, TwoReductions, Whole};

    const A: AxisId = AxisId(0);
    const B: AxisId = AxisId(1);

    fn ty(shape: &[usize], dims: &[&[AxisId]], partial: &[AxisId]) -> Type {
        let sharding = Sharding { dims: dims.iter().map(|d| d.to_vec()).collect(), partial: None };
        let sharding = sharding.with_partial(ReduceOp::Sum, partial.iter().copied().collect()).unwrap();
        Type::new(DType::F64, shape).placed(sharding)
    }

    /// The placement that the table gives the result of an operation.
    fn placed(op: &Op, operands: &[&Type], shape: &[usize]) -> Result<Sharding, Misplaced> {
        result_sharding(&row_of(op, operands, &[&Type::new(DType::F64, shape)]), operands, None)
    }

    fn subs(text: &str) -> Subscripts {
        Subscripts::parse(text).unwrap()
    }

    /// pytorch 166598.
    #[test]
    fn a_contraction_with_another_order_of_axes() {
        let op = Op::Einsum { subs: subs("ab,bc->ac") };
        let (x, w, v) =
            (ty(&[4, 8], &[&[], &[A, B]], &[]), ty(&[8, 2], &[&[B, A], &[]], &[]), ty(&[8, 2], &[&[A, B], &[]], &[]));
        assert_eq!(placed(&op, &[&x, &w], &[4, 2]), Err(Disagree));
        assert_eq!(placed(&op, &[&x, &v], &[4, 2]), Ok(ty(&[4, 2], &[&[], &[]], &[A, B]).sharding));
    }

    /// pytorch 179502.
    #[test]
    fn a_view_that_needs_a_redistribution() {
        let op = Op::Reshape;
        assert_eq!(placed(&op, &[&ty(&[8, 3], &[&[A], &[]], &[])], &[4, 6]), Err(Whole));
    }

    #[test]
    fn merging_heads_with_the_minor_factor_sharded() {
        assert_eq!(placed(&Op::Reshape, &[&ty(&[2, 4], &[&[], &[A]], &[])], &[8]), Err(Whole));
        assert_eq!(placed(&Op::Reshape, &[&ty(&[3, 2, 4], &[&[], &[], &[A]], &[])], &[3, 8]), Err(Whole));
        // Cuts of other dimensions are admitted.
        assert_eq!(
            placed(&Op::Reshape, &[&ty(&[3, 2, 4], &[&[A], &[], &[]], &[])], &[3, 8]),
            Ok(ty(&[3, 8], &[&[A], &[]], &[]).sharding)
        );
    }

    /// pytorch 163193: adding a bias that every rank has to a partial value.
    #[test]
    fn a_partial_plus_what_every_rank_has() {
        let op = Op::Map { f: MapFn::Add, subs: subs("ab,->ab") };
        let partial = ty(&[4, 3], &[&[], &[]], &[A]);
        assert_eq!(placed(&op, &[&partial, &ty(&[], &[], &[])], &[4, 3]), Err(Misplaced::Partial));
        let op = Op::Map { f: MapFn::Add, subs: subs("ab,b->ab") };
        assert_eq!(placed(&op, &[&partial, &ty(&[3], &[&[]], &[])], &[4, 3]), Err(Misplaced::Partial));
        assert_eq!(placed(&op, &[&partial, &ty(&[3], &[&[]], &[A])], &[4, 3]), Ok(partial.sharding));
    }

    /// pytorch 162692: a mean is a sum divided by the global count, so uneven shards are weighted correctly.
    #[test]
    fn a_mean_over_uneven_shards() {
        let mesh = Mesh::parse("a=2").unwrap();
        let x = ty(&[5], &[&[A]], &[]);
        let sum = Op::Reduce { op: ReduceOp::Sum, subs: subs("a->") };
        let part = ty(&[], &[], &[A]);
        assert_eq!(placed(&sum, &[&x], &[]), Ok(part.sharding.clone()));
        let (ranks, _) = spread(&x, &mesh, |_, i| Some(i as f64));
        let sums = local(&sum, &[&x], std::slice::from_ref(&part), &[&ranks], &mesh).unwrap().remove(0);
        let mean = denoted(&part, &sums, &mesh).unwrap().data[0] / 5.0;
        assert_eq!(mean, 2.0);
        // The mean of the ranks' means would be a different number.
        assert_eq!((sums[0].data[0] / 3.0 + sums[1].data[0] / 2.0) / 2.0, 2.25);
    }

    /// pytorch 159856.
    #[test]
    fn a_norm_of_a_partial() {
        for f in [MapFn::Sqrt, MapFn::Abs] {
            let op = Op::Map { f, subs: subs("a->a") };
            assert_eq!(placed(&op, &[&ty(&[3], &[&[]], &[A])], &[3]), Err(Misplaced::Partial));
        }
        let square = Op::Map { f: MapFn::Mul, subs: subs("a,a->a") };
        let x = ty(&[3], &[&[]], &[A]);
        assert_eq!(placed(&square, &[&x, &x], &[3]), Err(Misplaced::Partial));
    }

    /// pytorch 194457: nested chunks of 5 over 2×2 are 2, 1, 1, 1, and a flattened gather joins exactly these.
    #[test]
    fn a_flattened_gather_of_an_uneven_dimension() {
        let mesh = Mesh::parse("a=2,b=2").unwrap();
        for axes in [vec![A, B], vec![B, A]] {
            let x = ty(&[5], &[&axes], &[]);
            let (ranks, whole) = spread(&x, &mesh, |_, i| Some(i as f64));
            let gather = |axes: &[AxisId]| Op::AllGather { dim: 0, axes: axes.to_vec() };
            let to = ty(&[5], &[&[]], &[]);
            assert_eq!(place_redistribution(&gather(&axes), &x), Ok(to.sharding.clone()));
            let moved = local(&gather(&axes), &[&x], &[to], &[&ranks], &mesh).unwrap().remove(0);
            assert!(moved.iter().all(|t| **t == whole));
            // The axes in a different order, or the major axis first.
            assert_eq!(place_redistribution(&gather(&[axes[1], axes[0]]), &x), Err(Redistribution));
            assert_eq!(place_redistribution(&gather(&axes[..1]), &x), Err(Redistribution));
        }
    }

    /// pytorch 175776: the index of a local maximum is not an index of the whole value.
    #[test]
    fn an_index_of_the_maximum_of_a_sharded_row() {
        let x = ty(&[3, 5], &[&[], &[A]], &[]);
        let results = [Type::new(DType::F64, [3, 1]), Type::new(DType::I64, [3, 1])];
        let row = row_of(&Op::TopK, &[&x], &[&results[0], &results[1]]);
        assert_eq!(result_sharding(&row, &[&x], None), Err(Whole));
    }

    /// xla 42481: the rows of a scatter-add that is still partial cannot be sliced along the same axis.
    #[test]
    fn a_slice_before_the_reduction_of_a_scatter_add() {
        let (index, update) = (ty(&[6], &[&[A]], &[]), ty(&[6, 2], &[&[A], &[]], &[]));
        let to = Type::new(DType::F64, [4, 2]);
        let row = row_of(&Op::ScatterAdd, &[&index, &update], &[&to]);
        let cut = ty(&[4, 2], &[&[A], &[]], &[]);
        assert_eq!(result_sharding(&row, &[&index, &update], Some(&cut.sharding)), Err(AxisTwice));
        let sum = to.placed(result_sharding(&row, &[&index, &update], None).unwrap());
        assert_eq!(sum, ty(&[4, 2], &[&[], &[]], &[A]));
        assert_eq!(place_redistribution(&Op::ShardSlice { dim: 0, axes: vec![A] }, &sum), Err(Redistribution));
        let scatter = Op::ReduceScatter { op: ReduceOp::Sum, dim: 0, axes: vec![A] };
        assert_eq!(place_redistribution(&scatter, &sum), Ok(cut.sharding));
    }

    /// pytorch 168058: every rank draws the random numbers of its own global indices.
    #[test]
    fn random_values_that_depend_on_the_placement() {
        let mesh = Mesh::parse("a=2,b=3").unwrap();
        let seed = Type::new(DType::I64, []);
        let op = Op::Random { distribution: Distribution::Uniform(Scalar::float(0.0), Scalar::float(1.0)), stream: 1 };
        let (seeds, _) = spread(&seed, &mesh, |_, _| Some(7.0));
        let mut seen: Option<Tensor> = None;
        for dims in cuts(2, &mesh) {
            let to = Type::new(DType::F64, [5, 7]).placed(Sharding { dims, partial: None });
            let made = local(&op, &[&seed], std::slice::from_ref(&to), &[&seeds], &mesh).unwrap().remove(0);
            let whole = denoted(&to, &made, &mesh).unwrap();
            assert_eq!(*seen.get_or_insert(whole.clone()), whole);
        }
    }

    /// A third of a fused q|k|v projection that is sharded across the thirds.
    #[test]
    fn a_slice_of_a_sharded_dimension() {
        let qkv = ty(&[4, 6], &[&[], &[A]], &[]);
        assert_eq!(placed(&Op::Slice { dim: 1, start: 2, step: 1 }, &[&qkv], &[4, 2]), Err(Whole));
    }

    #[test]
    fn a_product_of_two_partials() {
        let op = Op::Einsum { subs: subs("ab,bc->ac") };
        let (x, w) = (ty(&[2, 3], &[&[], &[]], &[A]), ty(&[3, 2], &[&[], &[]], &[A]));
        assert_eq!(placed(&op, &[&x, &w], &[2, 2]), Err(Misplaced::Partial));
    }

    #[test]
    fn a_maximum_of_partial_sums() {
        let op = Op::Reduce { op: ReduceOp::Max, subs: subs("ab->a") };
        assert_eq!(placed(&op, &[&ty(&[2, 4], &[&[], &[B]], &[A])], &[2]), Err(Misplaced::Partial));
        let max = Sharding::replicated(2).with_partial(ReduceOp::Max, AxisSet::one(A)).unwrap().pushed(1, B);
        let sum = Op::Reduce { op: ReduceOp::Sum, subs: subs("ab->a") };
        let x = Type::new(DType::F64, [2, 4]).placed(max);
        assert!(matches!(placed(&sum, &[&x], &[2]), Err(Misplaced::Partial | TwoReductions)));
    }

    /// The maximum of an empty shard is −∞, and the logarithm of that is NaN.
    #[test]
    fn a_logarithm_of_a_partial_maximum() {
        let max = Sharding::replicated(1).with_partial(ReduceOp::Max, AxisSet::one(A)).unwrap();
        let x = Type::new(DType::F64, [3]).placed(max.clone());
        for (f, right) in [(MapFn::Log, false), (MapFn::Sqrt, false), (MapFn::Exp, true)] {
            let found = placed(&Op::Map { f, subs: subs("a->a") }, &[&x], &[3]);
            assert_eq!(found, if right { Ok(max.clone()) } else { Err(Misplaced::Partial) });
        }
    }
}
