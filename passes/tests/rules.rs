//! The brute-force validator of the factor table.
//!
//! Every row is tested with every placement of the operands over one and two axes, on small shapes with prime, uneven
//! and empty shards. The ranks are simulated with the reference interpreter and compared with the unsharded operation.
//! There are two kinds of faults:
//!
//! * **wrong**: `place` returns a placement of the result under which the ranks hold a different value;
//! * **missed**: `place` returns an error, although some placement of the result denotes the right value for //! every
//!   random input. [`excuse`] lists acceptable misses with their reasons.

mod ranks;

use ranks::{Dims, Ranks, cuts, denoted, dice, local, logical, partials, placements, same, spread};
use std::collections::BTreeMap;
use tpc_ir::interpret::Tensor;
use tpc_ir::op::Distribution;
use tpc_ir::verify::redistributed;
use tpc_ir::{AxisId, AxisSet, DType, MapFn, Mesh, Op, Partial, ReduceOp, Scalar, Sharding, Subscripts, Type};
use tpc_passes::redistribute::steps;
use tpc_passes::rules::{Misplaced, Rule, place, place_redistribution, rule};

/// The values that an operand is filled with.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Values {
    /// Integers from −4 to 4.
    Integers,
    /// Multiples of 1/4 from −4 to 4, for which rounding to integers is not the identity.
    Quarters,
    /// Multiples of 1/3, which every float type rounds.
    Thirds,
    /// −1, 0 and 1, which are often equal.
    Signs,
    /// ±1, ±2 and ±4, whose quotients are exact.
    Powers,
    /// 0 and 1.
    Truth,
    /// 0 to 3, for a type without negative numbers, and sometimes 200, so that sums saturate.
    Bytes,
    /// Row numbers, including one beyond each end.
    Rows(usize),
}

impl Values {
    fn element(self, seed: u64, index: usize) -> f64 {
        let below = |n: usize| dice(seed, index, n) as f64;
        match self {
            Values::Integers => below(9) - 4.0,
            Values::Quarters => (below(33) - 16.0) / 4.0,
            Values::Thirds => (below(31) - 15.0) / 3.0,
            Values::Signs => below(3) - 1.0,
            Values::Powers => [-4.0, -2.0, -1.0, 1.0, 2.0, 4.0][dice(seed, index, 6)],
            Values::Truth => below(2),
            Values::Bytes => [0.0, 1.0, 2.0, 3.0, 200.0][dice(seed, index, 5)],
            Values::Rows(n) => below(n + 2) - 1.0,
        }
    }

    /// Suitable values for an element type.
    fn of(dtype: DType) -> Self {
        match dtype {
            DType::Bool => Values::Truth,
            DType::U8 => Values::Bytes,
            _ => Values::Integers,
        }
    }
}

/// An operation with its operands and results.
#[derive(Clone)]
struct Case {
    name: String,
    op: Op,
    operands: Vec<(Type, Values)>,
    results: Vec<Type>,
    tolerance: f64,
}

impl Case {
    fn new(op: Op, operands: &[(DType, &[usize], Values)], results: &[(DType, &[usize])]) -> Self {
        let operands: Vec<_> = operands.iter().map(|&(d, s, v)| (Type::new(d, s), v)).collect();
        let results: Vec<_> = results.iter().map(|&(d, s)| Type::new(d, s)).collect();
        let mesh = Mesh::single();
        let shapes: Vec<String> = operands.iter().map(|(t, _)| t.display(&mesh)).collect();
        let to: Vec<String> = results.iter().map(|t| t.display(&mesh)).collect();
        let name = match &op {
            Op::Map { subs, .. } | Op::Einsum { subs } | Op::Reduce { subs, .. } => format!("{} {subs}", op.name()),
            op => format!("{op:?}"),
        };
        let name = format!("{name}: {} -> {}", shapes.join(", "), to.join(", "));
        Case { name, op, operands, results, tolerance: 0.0 }
    }

    /// A case of an operation with subscripts; `sizes` are the sizes of its letters.
    fn letters(
        op: impl Fn(Subscripts) -> Op,
        subs: &str,
        sizes: &[usize],
        kinds: &[(DType, Values)],
        result: DType,
    ) -> Self {
        let subs = Subscripts::parse(subs).unwrap();
        let shape = |row: &Vec<u8>| row.iter().map(|&l| sizes[l as usize]).collect::<Vec<_>>();
        let shapes: Vec<_> = subs.operands.iter().map(shape).collect();
        let operands: Vec<_> = shapes.iter().zip(kinds).map(|(s, &(d, v))| (d, s.as_slice(), v)).collect();
        let to = shape(&subs.result);
        Case::new(op(subs.clone()), &operands, &[(result, to.as_slice())])
    }

    fn roughly(self) -> Self {
        Case { tolerance: 1e-9, ..self }
    }

    /// The row of the table, restricted to one result.
    fn row(&self, result: usize) -> Rule {
        let operands: Vec<&Type> = self.operands.iter().map(|(t, _)| t).collect();
        let row = rule(&self.op, &operands, &self.results.iter().collect::<Vec<_>>());
        Rule { results: vec![row.results[result].clone()], ..row }
    }
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
        let row = self.case.row(self.result);
        let free = row.results[0].iter().any(|f| !row.operands.iter().any(|o| o.contains(f)));
        if !free {
            match place(&row, &self.types, None) {
                Ok(s) => self.admitted(&s, report),
                Err(why) => {
                    let found = cuts.iter().find_map(|dims| self.existing(dims));
                    found.into_iter().for_each(|s| self.missed(&s, &why, report));
                }
            }
            return;
        }
        for dims in cuts {
            match place(&row, &self.types, Some(&Sharding { dims: dims.clone(), partial: None })) {
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

const F: (DType, Values) = (DType::F64, Values::Integers);

fn map(f: MapFn) -> impl Fn(Subscripts) -> Op {
    move |subs| Op::Map { f, subs }
}

/// The element types and values of the `n` operands of a function.
fn kinds(f: MapFn, n: usize, dtype: DType) -> Vec<(DType, Values)> {
    let mut kinds = vec![(dtype, Values::of(dtype)); n];
    match f {
        MapFn::Select => kinds[0] = (DType::Bool, Values::Truth),
        MapFn::Div | MapFn::Rem if dtype.is_float() => kinds[1].1 = Values::Powers,
        MapFn::Floor | MapFn::Ceil | MapFn::Round | MapFn::Cast(DType::I32) => kinds[0].1 = Values::Quarters,
        MapFn::Cast(DType::Bool) => kinds[0].1 = Values::Signs,
        MapFn::Cast(_) => kinds[0].1 = Values::Thirds,
        MapFn::Eq | MapFn::Ne => kinds.fill((dtype, Values::Signs)),
        _ => {}
    }
    kinds
}

fn map_case(f: MapFn, subs: &str, sizes: &[usize], dtype: DType) -> Case {
    let n = subs.split("->").next().unwrap().split(',').count();
    let kinds = kinds(f, n, dtype);
    let dtypes: Vec<DType> = kinds.iter().map(|k| k.0).collect();
    let case = Case::letters(map(f), subs, sizes, &kinds, f.result_dtype(&dtypes));
    let exact = matches!(f, MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Max | MapFn::Min | MapFn::Select);
    if exact { case } else { case.roughly() }
}

#[test]
fn functions_of_one_operand() {
    let casts = [DType::F32, DType::BF16, DType::I32, DType::Bool].map(MapFn::Cast);
    let logical = |f: &MapFn| *f == MapFn::Not;
    let unary = MapFn::ALL.iter().copied().filter(|f| f.arity() == Some(1)).chain(casts);
    validate_all(
        unary.flat_map(|f| {
            let dtype = if logical(&f) { DType::Bool } else { DType::F64 };
            [
                map_case(f, "ab->ab", &[5, 3], dtype),
                map_case(f, "ab->ba", &[2, 3], dtype),
                map_case(f, "a->ba", &[5, 2], dtype),
                map_case(f, "a->a", &[1], dtype),
            ]
        }),
        &[Excuse::SizeOne, Excuse::Maximum, Excuse::Saturating],
    );
}

#[test]
fn linear_functions_of_two_operands() {
    let functions = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Div];
    validate_all(
        functions.into_iter().flat_map(|f| {
            let case = |subs: &str, sizes: &[usize]| map_case(f, subs, sizes, DType::F64);
            [
                case("ab,ab->ab", &[5, 2]),
                case("ab,ba->ab", &[2, 3]),
                case("ab,b->ab", &[3, 5]),
                case("a,ab->ba", &[2, 5]),
                case("ab,->ab", &[5, 3]),
                case("a,b->ab", &[3, 2]),
                case("a,a->ab", &[5, 2]),
                case("a,a->a", &[1]),
            ]
        }),
        &[Excuse::SizeOne, Excuse::Maximum, Excuse::Bilinear],
    );
}

#[test]
fn other_functions_of_two_operands() {
    let linear = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Div];
    let binary = MapFn::ALL.iter().copied().filter(|f| f.arity() == Some(2) && !linear.contains(f));
    validate_all(
        binary.flat_map(|f| {
            let dtype = if matches!(f, MapFn::And | MapFn::Or) { DType::Bool } else { DType::F64 };
            [
                map_case(f, "a,a->a", &[5], dtype),
                map_case(f, "a,ab->ab", &[2, 3], dtype),
                map_case(f, "a,->a", &[3], dtype),
            ]
        }),
        &[Excuse::Maximum, Excuse::Saturating],
    );
}

#[test]
fn functions_of_three_operands() {
    let cases = [
        map_case(MapFn::Add, "a,a,a->a", &[5], DType::F64),
        map_case(MapFn::Add, "ab,,b->ab", &[3, 2], DType::F64),
        map_case(MapFn::Select, "a,a,a->a", &[5], DType::F64),
        map_case(MapFn::Select, "a,ab,->ab", &[2, 3], DType::F64),
        map_case(MapFn::Select, "b,a,->ab", &[2, 3], DType::F64),
    ];
    validate_all(cases, &[Excuse::Maximum]);
}

/// Quotients of integers are rounded, and bytes and truth values saturate, so fewer functions are linear in them.
#[test]
fn functions_of_other_element_types() {
    let arithmetic = [MapFn::Add, MapFn::Sub, MapFn::Mul, MapFn::Neg, MapFn::Identity];
    let types = [DType::I64, DType::I32, DType::U8, DType::Bool];
    let cases = types.into_iter().flat_map(|dtype| {
        arithmetic.into_iter().map(move |f| {
            let subs = if f.arity() == Some(1) { "a->a" } else { "a,a->a" };
            map_case(f, subs, &[5], dtype)
        })
    });
    let quotients = [DType::I64, DType::I32].map(|dtype| {
        let kinds = [(dtype, Values::Integers), (dtype, Values::Powers)];
        Case::letters(map(MapFn::Div), "a,a->a", &[5], &kinds, dtype)
    });
    let sums = types.into_iter().flat_map(|dtype| {
        let kind = (dtype, Values::of(dtype));
        let product = Case::letters(|subs| Op::Einsum { subs }, "ab,b->a", &[2, 5], &[kind, kind], dtype);
        let reduction = |op| Case::letters(move |subs| Op::Reduce { op, subs }, "ab->a", &[2, 5], &[kind], dtype);
        std::iter::once(product).chain(ReduceOp::ALL.map(reduction))
    });
    validate_all(cases.chain(quotients).chain(sums), &[Excuse::Maximum, Excuse::Bilinear, Excuse::Saturating]);
}

#[test]
fn products() {
    let case =
        |subs: &str, sizes: &[usize]| Case::letters(|subs| Op::Einsum { subs }, subs, sizes, &[F, F], DType::F64);
    validate_all(
        [
            case("ab,bc->ac", &[2, 5, 3]),
            case("ab,bc->ca", &[5, 2, 2]),
            case("ab,ac->bc", &[3, 2, 5]),
            case("ab,ab->", &[5, 2]),
            case("ab,b->a", &[3, 5]),
            case("a,b->ab", &[5, 3]),
            case("a,b->b", &[5, 3]),
            case("a,a->a", &[5]),
            case("ab,bc->ac", &[1, 2, 1]),
        ],
        &[Excuse::SizeOne, Excuse::Bilinear],
    );
}

#[test]
fn batched_products() {
    let case =
        |subs: &str, sizes: &[usize]| Case::letters(|subs| Op::Einsum { subs }, subs, sizes, &[F, F], DType::F64);
    validate_all([case("abc,acd->abd", &[2, 3, 2, 2]), case("abc,bc->ab", &[2, 3, 5])], &[Excuse::Bilinear]);
}

#[test]
fn reductions() {
    let reduce = |op: ReduceOp| move |subs: Subscripts| Op::Reduce { op, subs };
    validate_all(
        ReduceOp::ALL.into_iter().flat_map(|op| {
            let kind = if op == ReduceOp::Prod { (DType::F64, Values::Powers) } else { F };
            let case = |subs: &str, sizes: &[usize]| Case::letters(reduce(op), subs, sizes, &[kind], DType::F64);
            [
                case("ab->a", &[3, 5]),
                case("ab->b", &[2, 3]),
                case("ab->", &[5, 2]),
                case("abc->ca", &[2, 3, 5]),
                case("ab->a", &[2, 1]),
            ]
        }),
        &[Excuse::SizeOne, Excuse::Maximum],
    );
}

fn float(shape: &[usize]) -> (DType, &[usize], Values) {
    (DType::F64, shape, Values::Integers)
}

#[test]
fn cutting_and_joining() {
    let slice = |dim, start, step| Op::Slice { dim, start, step };
    let pad = |dim, low, value: f64| Op::Pad { dim, low, value: Scalar::float(value) };
    let one = |op: Op, from: &[usize], to: &[usize]| Case::new(op, &[float(from)], &[(DType::F64, to)]);
    let concat = |dim, from: &[&[usize]], to: &[usize]| {
        let operands: Vec<_> = from.iter().map(|s| float(s)).collect();
        Case::new(Op::Concat { dim }, &operands, &[(DType::F64, to)])
    };
    validate_all(
        [
            one(slice(0, 1, 2), &[5, 3], &[2, 3]),
            one(slice(1, 0, 1), &[5, 3], &[5, 2]),
            one(Op::Index { dim: 0, index: 1 }, &[3, 5], &[5]),
            one(Op::Index { dim: 1, index: 4 }, &[3, 5], &[3]),
            one(Op::Index { dim: 1, index: 1 }, &[2, 3, 5], &[2, 5]),
            one(pad(0, 1, 0.0), &[3, 5], &[5, 5]),
            one(pad(1, 0, 7.0), &[3, 2], &[3, 5]),
            one(Op::CumSum { dim: 0 }, &[5, 3], &[5, 3]),
            one(Op::CumSum { dim: 1 }, &[2, 3], &[2, 3]),
            concat(0, &[&[3], &[2]], &[5]),
            concat(1, &[&[3, 2], &[3, 3]], &[3, 5]),
            concat(0, &[&[2], &[3], &[2]], &[7]),
        ],
        &[Excuse::Maximum],
    );
}

#[test]
fn sorting() {
    let case =
        |from: &[usize], to: &[usize]| Case::new(Op::TopK, &[float(from)], &[(DType::F64, to), (DType::I64, to)]);
    validate_all([case(&[5], &[2]), case(&[3, 5], &[3, 2])], &[]);
}

#[test]
fn tables() {
    let take = |table: &[usize], index: &[usize]| {
        let to = [index, &table[1..]].concat();
        let index = (DType::I64, index, Values::Rows(table[0]));
        Case::new(Op::Take, &[float(table), index], &[(DType::F64, to.as_slice())])
    };
    let scatter = |rows: usize, index: &[usize], rest: &[usize]| {
        let (update, to) = ([index, rest].concat(), [&[rows], rest].concat());
        let index = (DType::I64, index, Values::Rows(rows));
        Case::new(Op::ScatterAdd, &[index, float(&update)], &[(DType::F64, to.as_slice())])
    };
    let put = |table: &[usize], index: &[usize]| {
        let rows = [index, &table[1..]].concat();
        let index = (DType::I64, index, Values::Rows(table[0]));
        Case::new(Op::Put, &[float(table), index, float(&rows)], &[(DType::F64, table)])
    };
    validate_all(
        [
            take(&[5, 2], &[3]),
            take(&[3, 5], &[2]),
            take(&[5], &[3, 2]),
            take(&[3], &[]),
            scatter(3, &[5], &[2]),
            scatter(5, &[3], &[]),
            scatter(2, &[5, 3], &[]),
            put(&[5, 2], &[3]),
            put(&[3, 5], &[2]),
            put(&[5], &[3, 2]),
            put(&[3, 2], &[]),
        ],
        &[Excuse::Maximum],
    );
}

#[test]
fn reshapes() {
    let case = |from: &[usize], to: &[usize]| Case::new(Op::Reshape, &[float(from)], &[(DType::F64, to)]);
    validate_all(
        [
            case(&[5, 3], &[5, 3]),
            case(&[3, 2, 5], &[3, 10]),
            case(&[2, 3], &[6]),
            case(&[6], &[2, 3]),
            case(&[3, 5, 2], &[15, 2]),
            case(&[10, 3], &[5, 2, 3]),
            case(&[2, 6], &[4, 3]),
            case(&[5], &[1, 5]),
            case(&[5, 1], &[5]),
            case(&[3, 1, 2], &[1, 3, 2]),
        ],
        &[Excuse::SizeOne, Excuse::Major],
    );
}

/// Values without elements, and empty sums.
#[test]
fn empty_dimensions() {
    let sum = |op: ReduceOp| move |subs: Subscripts| Op::Reduce { op, subs };
    let take = Op::Take;
    let cases = [
        map_case(MapFn::Add, "a,a->a", &[0], DType::F64),
        map_case(MapFn::Mul, "ab,b->ab", &[3, 0], DType::F64),
        Case::letters(|subs| Op::Einsum { subs }, "ab,bc->ac", &[3, 0, 2], &[F, F], DType::F64),
        Case::letters(sum(ReduceOp::Sum), "ab->a", &[3, 0], &[F], DType::F64),
        Case::letters(sum(ReduceOp::Max), "ab->a", &[3, 0], &[F], DType::F64),
        Case::new(take, &[float(&[0, 3]), (DType::I64, &[2], Values::Rows(0))], &[(DType::F64, &[2, 3])]),
        Case::new(Op::Reshape, &[float(&[0, 3])], &[(DType::F64, &[3, 0])]),
    ];
    validate_all(cases, &[Excuse::SizeOne]);
}

#[test]
fn results_determined_only_by_their_type() {
    let fill = |shape: &[usize]| Case::new(Op::Fill(Scalar::float(3.0)), &[], &[(DType::F64, shape)]);
    let iota = |n: usize| Case::new(Op::Iota, &[], &[(DType::I64, &[n])]);
    let s = Scalar::float;
    let all =
        [Distribution::Bernoulli(s(0.4)), Distribution::Uniform(s(-1.0), s(2.0)), Distribution::Normal(s(0.0), s(1.0))];
    let random = all.map(|distribution| {
        let op = Op::Random { distribution, stream: 3 };
        Case::new(op, &[(DType::I64, &[], Values::Integers)], &[(DType::F64, &[5, 3])])
    });
    validate_all([fill(&[5, 3]), fill(&[]), iota(5), iota(3), iota(2)].into_iter().chain(random), &[]);
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

/// All redistributions of a value with two dimensions.
fn redistributions(mesh: &Mesh) -> Vec<Op> {
    let lists: Vec<Vec<AxisId>> =
        cuts(1, mesh).into_iter().map(|mut d| d.remove(0)).filter(|l| !l.is_empty()).collect();
    let mut all = Vec::new();
    for list in lists {
        let set: AxisSet = list.iter().copied().collect();
        for op in [ReduceOp::Sum, ReduceOp::Max] {
            all.extend([Op::AllReduce { op, axes: set }, Op::ToPartial { op, axes: set }]);
            all.extend((0..2).map(|dim| Op::ReduceScatter { op, dim, axes: list.clone() }));
        }
        for dim in 0..2 {
            all.push(Op::AllGather { dim, axes: list.clone() });
            all.push(Op::ShardSlice { dim, axes: list.clone() });
            all.push(Op::AllToAll { from: dim, to: 1 - dim, axes: list.clone() });
        }
    }
    all
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
        place(&rule(op, operands, &[&Type::new(DType::F64, shape)]), operands, None)
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
        let row = rule(&Op::TopK, &[&x], &[&results[0], &results[1]]);
        assert_eq!(place(&row, &[&x], None), Err(Whole));
    }

    /// xla 42481: the rows of a scatter-add that is still partial cannot be sliced along the same axis.
    #[test]
    fn a_slice_before_the_reduction_of_a_scatter_add() {
        let (index, update) = (ty(&[6], &[&[A]], &[]), ty(&[6, 2], &[&[A], &[]], &[]));
        let to = Type::new(DType::F64, [4, 2]);
        let row = rule(&Op::ScatterAdd, &[&index, &update], &[&to]);
        let cut = ty(&[4, 2], &[&[A], &[]], &[]);
        assert_eq!(place(&row, &[&index, &update], Some(&cut.sharding)), Err(AxisTwice));
        let sum = to.placed(place(&row, &[&index, &update], None).unwrap());
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
