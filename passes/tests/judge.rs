//! The brute-force validator of the checker: what `judge` says of an operation is compared with what the ranks compute.
//!
//! Every case is executed on simulated ranks with every placement of the operands over one and two axes, and judged under
//! every declared placement of all its results. The factor table takes no part. There are two kinds of faults:
//!
//! * **wrong**: `judge` accepts types under which the ranks hold another value;
//! * **refused**: the ranks hold the right value for every random input, but `judge` refuses the types. [`Excuse`] lists
//!   the kinds that no program has.
//!
//! At last the factor table and the checker are compared: what the table allows, the checker accepts.

mod cases;
#[path = "../../ir/tests/generator/mod.rs"]
mod generator;
mod ranks;

use cases::Case;
use petgraph::graph::NodeIndex;
use ranks::{
    Dims, Ranks, cut, cuts, denoted, dice, local, logical, partials, placements, redistributions, same, spread,
};
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use tpc_ir::interpret::Tensor;
use tpc_ir::{DType, Graph, InputId, MapFn, Mesh, Op, Partial, ReduceOp, Sharding, Type, Value, text};
use tpc_passes::check::{CheckError, check, judge};
use tpc_passes::factors::{FactorRow, place_redistribution, result_sharding, row_of};

const REDUCTIONS: [ReduceOp; 3] = [ReduceOp::Sum, ReduceOp::Max, ReduceOp::Min];
const MESHES: [&str; 4] = ["a=2", "a=3", "a=2,b=2", "a=2,b=3"];

/// Random inputs per placement. In the last trial, all terms of a partial value but the first are identities.
const TRIALS: usize = 12;

/// An operand under one placement: its type and, for each trial, the local tensors and the value that they denote.
struct Placed {
    ty: Type,
    trials: Vec<(Ranks, Tensor)>,
}

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

/// Why no program has an operation that the ranks compute rightly and the checker refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Excuse {
    /// A dimension of size 0 or 1, of which one rank holds all however it is cut.
    SizeOne,
    /// A maximum of copies is a maximum of terms, and passes through all that is monotone.
    Maximum,
    /// Sums of truth values and of bytes saturate, so they pass through more than sums of numbers; a byte negated is 0.
    Saturating,
    /// A merged or split dimension may be cut by its major factor if the axis divides that factor.
    Major,
}

fn excuse(types: &[&Type], results: &[Type], op: &Op) -> Option<Excuse> {
    let all = || types.iter().copied().chain(results);
    if all().flat_map(|t| &t.shape).any(|&n| n < 2) {
        return Some(Excuse::SizeOne);
    }
    if all().any(|t| t.sharding.partial.is_some_and(|p| matches!(p.op, ReduceOp::Max | ReduceOp::Min))) {
        return Some(Excuse::Maximum);
    }
    if all().any(|t| t.sharding.partial.is_some() && matches!(t.dtype, DType::U8 | DType::Bool)) {
        return Some(Excuse::Saturating);
    }
    match op {
        Op::Map { f: MapFn::Neg, .. } if types[0].dtype == DType::U8 => Some(Excuse::Saturating),
        Op::Reshape if types[0].sharding.dims.iter().any(|d| !d.is_empty()) => Some(Excuse::Major),
        _ => None,
    }
}

/// The findings of the validator.
#[derive(Default)]
struct Report {
    wrong: BTreeMap<String, (usize, String)>,
    refused: BTreeMap<String, (usize, String)>,
    excused: BTreeMap<Excuse, usize>,
    /// What the table allows and the checker refuses.
    narrower: Vec<String>,
    /// Types that the checker accepts, and those of them that the table gives.
    accepted: usize,
    in_table: usize,
}

/// Calls `f` with every combination of indices below the given bounds.
fn odometer(bounds: &[usize], mut f: impl FnMut(&[usize])) {
    let mut at = vec![0; bounds.len()];
    if bounds.contains(&0) {
        return;
    }
    loop {
        f(&at);
        let Some(i) = (0..at.len()).rev().find(|&i| at[i] + 1 < bounds[i]) else { return };
        at[i] += 1;
        at[i + 1..].fill(0);
    }
}

/// One placement of all operands.
struct Trial<'a> {
    case: &'a Case,
    mesh: &'a Mesh,
    operands: Vec<&'a Placed>,
    types: Vec<&'a Type>,
    /// For each trial, the results.
    truths: Vec<Vec<Tensor>>,
}

impl<'a> Trial<'a> {
    fn new(case: &'a Case, mesh: &'a Mesh, operands: Vec<&'a Placed>) -> Self {
        let types: Vec<&Type> = operands.iter().map(|p| &p.ty).collect();
        let truth = |t: usize| {
            let tensors: Vec<&Tensor> = operands.iter().map(|p| &p.trials[t].1).collect();
            logical(&case.op, &types, &case.results, &tensors).unwrap_or_else(|e| panic!("{}: {e}", case.name))
        };
        let truths = (0..TRIALS).map(truth).collect();
        Trial { case, mesh, types, operands, truths }
    }

    /// The local tensors that the ranks compute if the results are cut so.
    fn computed(&self, trial: usize, dims: &[&Dims]) -> Option<Vec<Ranks>> {
        let cut = |(ty, dims): (&Type, &&Dims)| ty.placed(Sharding { dims: (*dims).clone(), partial: None });
        let results: Vec<Type> = self.case.results.iter().zip(dims).map(cut).collect();
        let operands: Vec<&Ranks> = self.operands.iter().map(|p| &p.trials[trial].0).collect();
        local(&self.case.op, &self.types, &results, &operands, self.mesh).ok()
    }

    fn denotes(&self, trial: usize, computed: &[Ranks], results: &[Type]) -> bool {
        results.iter().zip(computed).zip(&self.truths[trial]).all(|((ty, ranks), truth)| {
            denoted(ty, ranks, self.mesh).is_some_and(|v| same(&v, truth, self.case.tolerance))
        })
    }

    /// Judges all placements of the results that are cut so.
    fn judge(&self, dims: &[&Dims], report: &mut Report) {
        let first = self.computed(0, dims);
        let choices: Vec<Vec<Sharding>> = dims.iter().map(|d| partials(d, self.mesh, &REDUCTIONS)).collect();
        odometer(&choices.iter().map(Vec::len).collect::<Vec<_>>(), |at| {
            let placed = |((ty, all), &i): ((&Type, &Vec<Sharding>), &usize)| ty.placed(all[i].clone());
            let results: Vec<Type> = self.case.results.iter().zip(&choices).zip(at).map(placed).collect();
            let accepts = judge(&self.case.op, &self.types, &results, self.mesh);
            let maybe = first.as_ref().is_some_and(|computed| self.denotes(0, computed, &results));
            let is_right = || {
                maybe
                    && (1..TRIALS)
                        .all(|t| self.computed(t, dims).is_some_and(|ranks| self.denotes(t, &ranks, &results)))
            };
            match accepts {
                Ok(()) => {
                    report.accepted += 1;
                    if !is_right() {
                        self.note(&mut report.wrong, &results, "accepted");
                    }
                }
                Err(flaw) if maybe && is_right() => match excuse(&self.types, &results, &self.case.op) {
                    Some(excuse) => *report.excused.entry(excuse).or_default() += 1,
                    None => self.note(&mut report.refused, &results, &flaw.to_string()),
                },
                Err(_) => {}
            }
        });
    }

    /// Compares with the table: what it gives, the checker accepts.
    fn compare(&self, dims: &[&Dims], report: &mut Report) {
        let row = row_of(&self.case.op, &self.types, &self.case.results.iter().collect::<Vec<_>>());
        let given = |(result, dims): (usize, &&Dims)| {
            let given = Sharding { dims: (*dims).clone(), partial: None };
            let of_result = FactorRow { results: vec![row.results[result].clone()], ..row.clone() };
            result_sharding(&of_result, &self.types, Some(&given)).ok().filter(|s| s.dims == **dims)
        };
        let Some(shardings) = dims.iter().enumerate().map(given).collect::<Option<Vec<_>>>() else {
            return;
        };
        report.in_table += 1;
        let results: Vec<Type> = self.case.results.iter().zip(shardings).map(|(t, s)| t.placed(s)).collect();
        if let Err(flaw) = judge(&self.case.op, &self.types, &results, self.mesh) {
            report.narrower.push(format!("{}: {flaw}", self.shown(&results)));
        }
    }

    fn shown(&self, results: &[Type]) -> String {
        let show =
            |types: &mut dyn Iterator<Item = &Type>| types.map(|t| t.display(self.mesh)).collect::<Vec<_>>().join(", ");
        let (from, to) = (show(&mut self.types.iter().copied()), show(&mut results.iter()));
        format!("{} on {}: {from} -> {to}", self.case.name, self.mesh)
    }

    /// Records a fault under its kind.
    fn note(&self, faults: &mut BTreeMap<String, (usize, String)>, results: &[Type], why: &str) {
        let kind = |t: &Type| match t.sharding.partial {
            Some(p) => format!("{} {}", t.dtype, p.op.name()),
            None if t.sharding.is_replicated() => format!("{} whole", t.dtype),
            None => format!("{} cut", t.dtype),
        };
        let kinds: Vec<String> = self.types.iter().copied().chain(results).map(kind).collect();
        let key = format!("{}({})", self.case.op.name(), kinds.join(", "));
        faults.entry(key).or_insert_with(|| (0, format!("{}: {why}", self.shown(results)))).0 += 1;
    }
}

fn validate(case: &Case, report: &mut Report) {
    for mesh in MESHES {
        let mesh = Mesh::parse(mesh).unwrap();
        let operands: Vec<Vec<Placed>> = (0..case.operands.len()).map(|i| placed(case, i, &mesh)).collect();
        let all_cuts: Vec<Vec<Dims>> = case.results.iter().map(|t| cuts(t.rank(), &mesh)).collect();
        let declared: Vec<usize> = all_cuts.iter().map(Vec::len).collect();
        let mut each = |at: &[usize]| {
            let chosen: Vec<&Placed> = operands.iter().zip(at).map(|(o, &i)| &o[i]).collect();
            let trial = Trial::new(case, &mesh, chosen);
            odometer(&declared, |at| {
                let dims: Vec<&Dims> = all_cuts.iter().zip(at).map(|(cuts, &i)| &cuts[i]).collect();
                trial.judge(&dims, report);
                trial.compare(&dims, report);
            });
        };
        odometer(&operands.iter().map(Vec::len).collect::<Vec<_>>(), &mut each);
    }
}

/// Checks that nothing is wrong and that only excused types are refused. Exactly the given excuses must be needed.
fn validate_all(cases: impl IntoIterator<Item = Case>, excuses: &[Excuse]) {
    let mut report = Report::default();
    for case in cases {
        validate(&case, &mut report);
    }
    let list = |faults: &BTreeMap<String, (usize, String)>| {
        faults.iter().map(|(kind, (n, first))| format!("\n  {kind}: {n}, first {first}")).collect::<String>()
    };
    println!("{} accepted, {} of them in the table, excused {:#?}", report.accepted, report.in_table, report.excused);
    let faults = report.wrong.len() + report.refused.len() + report.narrower.len();
    assert!(
        faults == 0,
        "WRONG:{}\nREFUSED:{}\nNARROWER:\n{}",
        list(&report.wrong),
        list(&report.refused),
        report.narrower.join("\n")
    );
    assert!(report.accepted > 0 && report.in_table > 0);
    let needed: Vec<Excuse> = report.excused.into_keys().collect();
    assert_eq!(needed, excuses, "excuses that were needed, and those that the test names");
}

macro_rules! validated {
    ($($name:ident: [$($excuse:ident),*];)+) => { $(
        #[test]
        fn $name() {
            validate_all(cases::$name(), &[$(Excuse::$excuse),*]);
        }
    )+ };
}

validated! {
    functions_of_one_operand: [SizeOne, Maximum, Saturating];
    linear_functions_of_two_operands: [SizeOne, Maximum];
    other_functions_of_two_operands: [Maximum, Saturating];
    functions_of_three_operands: [Maximum];
    functions_of_other_element_types: [Maximum, Saturating];
    products: [SizeOne, Maximum];
    batched_products: [Maximum];
    reductions: [SizeOne, Maximum];
    cutting_and_joining: [Maximum];
    sorting: [Maximum];
    tables: [Maximum];
    reshapes: [SizeOne, Maximum, Major];
    empty_dimensions: [SizeOne];
    results_determined_only_by_their_type: [];
}

/// A value with random terms under every placement.
fn values(shape: &[usize], mesh: &Mesh) -> Vec<(Type, Ranks, Tensor)> {
    let spread_over = |sharding: Sharding| {
        let ty = Type::new(DType::F64, shape).placed(sharding);
        let (ranks, whole) = spread(&ty, mesh, |term, i| Some(dice(term as u64 + 5, i, 97) as f64 - 48.0));
        (ty, ranks, whole)
    };
    placements(shape.len(), mesh, &[ReduceOp::Sum, ReduceOp::Max]).into_iter().map(spread_over).collect()
}

/// Every redistribution of every placement, declared as every placement: what is accepted keeps the value, and what keeps
/// it is accepted, except maxima of copies. The table of the passes allows nothing else.
#[test]
fn redistributions_that_are_accepted_keep_the_value() {
    let (mut accepted, mut refused, mut maxima) = (0, 0, 0);
    for mesh in MESHES {
        let mesh = Mesh::parse(mesh).unwrap();
        for shape in [[5, 2], [10, 4], [3, 7]] {
            let declared = placements(2, &mesh, &[ReduceOp::Sum, ReduceOp::Max]);
            for (ty, ranks, whole) in values(&shape, &mesh) {
                for op in redistributions(&mesh) {
                    let table = place_redistribution(&op, &ty).ok();
                    let moved = local(&op, &[&ty], std::slice::from_ref(&ty), &[&ranks], &mesh).ok();
                    for sharding in &declared {
                        let to = ty.placed(sharding.clone());
                        let verdict = judge(&op, &[&ty], std::slice::from_ref(&to), &mesh);
                        let says = || format!("{op:?} of {} to {} on {mesh}", ty.display(&mesh), to.display(&mesh));
                        let value = moved.as_ref().and_then(|moved| denoted(&to, &moved[0], &mesh));
                        let keeps = value.is_some_and(|v| same(&v, &whole, 0.0));
                        if table.as_ref() == Some(sharding) {
                            assert!(verdict.is_ok(), "{}: {verdict:?}", says());
                        }
                        let is_maximum = |p: Option<Partial>| p.is_some_and(|p| p.op == ReduceOp::Max);
                        let of_maximum = matches!(
                            op,
                            Op::AllReduce { op: ReduceOp::Max, .. }
                                | Op::ReduceScatter { op: ReduceOp::Max, .. }
                                | Op::ToPartial { op: ReduceOp::Max, .. }
                        );
                        match (verdict.is_ok(), keeps) {
                            (true, true) => accepted += 1,
                            (true, false) => panic!("{} changes the value", says()),
                            (false, false) => refused += 1,
                            (false, true) => {
                                let any = of_maximum || is_maximum(ty.sharding.partial) || is_maximum(sharding.partial);
                                let unmoved = ty.sharding == *sharding;
                                assert!(any || unmoved, "{}: {verdict:?}, but it keeps the value", says());
                                maxima += 1;
                            }
                        }
                    }
                }
            }
        }
    }
    println!("{accepted} accepted, {refused} refused, {maxima} maxima of copies");
    assert!(accepted > 1000 && refused > 100_000);
}

/// Whether every value of a program is on every rank what its type says.
fn is_right(graph: &Graph, inputs: &HashMap<InputId, Tensor>) -> bool {
    let mesh = &graph.mesh;
    let mut values: HashMap<Value, (Tensor, Ranks)> = HashMap::new();
    for node in graph.nodes() {
        let n = graph.node(node);
        let operands = graph.operands(node);
        let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
        let made = if let Op::Input { id, .. } = &n.op {
            let whole = Tensor { shape: n.types[0].shape.clone(), ..inputs[id].clone() };
            let part = |rank| Rc::new(cut(&whole, &n.types[0].local(mesh, &mesh.coords(rank))));
            let parts = (0..mesh.ranks()).map(part).collect();
            vec![(whole, parts)]
        } else {
            let (wholes, parts): (Vec<&Tensor>, Vec<&Ranks>) =
                operands.iter().map(|v| (&values[v].0, &values[v].1)).unzip();
            let truths = match n.op.is_redistribution() {
                true => vec![wholes[0].clone()],
                false => logical(&n.op, &types, &n.types, &wholes).unwrap(),
            };
            let Ok(made) = local(&n.op, &types, &n.types, &parts, mesh) else { return false };
            truths.into_iter().zip(made).collect()
        };
        for (result, (truth, ranks)) in made.into_iter().enumerate() {
            let found = denoted(&n.types[result], &ranks, mesh);
            if !found.is_some_and(|found| same(&found, &truth, 1e-6)) {
                return false;
            }
            values.insert(Value { node, result: result as u32 }, (truth, ranks));
        }
    }
    true
}

/// Random programs of all operations, and each of them with another declared placement of one value: what is accepted is
/// right.
#[test]
fn random_programs_that_are_accepted_are_right() {
    let (mut accepted, mut refused, mut strict) = (0, 0, 0);
    for seed in 0..400 {
        let choices: Vec<u16> = (0..160).map(|i| dice(seed, i, 1 << 16) as u16).collect();
        let case = generator::build(&choices);
        let mut graph = case.graph;
        for change in 0..3 {
            if change > 0 {
                let node = NodeIndex::new(dice(seed, 200 + change, graph.len()));
                let types = &mut graph.node_mut(node).types;
                let result = dice(seed, 300 + change, types.len());
                let all = placements(types[result].rank(), &graph.mesh.clone(), &REDUCTIONS[..1]);
                let types = &mut graph.node_mut(node).types;
                types[result].sharding = all[dice(seed, 400 + change, all.len())].clone();
            }
            // The outputs of random programs may be partial.
            let verdict = check(&graph);
            let accepts = matches!(verdict, Ok(()) | Err(CheckError::Output { .. }));
            match (accepts, is_right(&graph, &case.inputs)) {
                (true, true) => accepted += 1,
                (true, false) => panic!("{seed}: accepted, but wrong\n{}", text::print(&graph)),
                (false, false) => refused += 1,
                (false, true) => strict += 1,
            }
        }
    }
    println!("{accepted} accepted, {refused} refused, {strict} refused although these inputs give the right values");
    assert!(accepted > 300 && refused > 200);
}

/// The validator detects a checker that accepts too much.
#[test]
fn faults_are_detected() {
    let case = cases::map_case(MapFn::Exp, "a->a", &[5], DType::F64);
    let mesh = Mesh::parse("a=2").unwrap();
    let operands = placed(&case, 0, &mesh);
    let of = |op: ReduceOp| operands.iter().find(|p| p.ty.sharding.partial.is_some_and(|q| q.op == op)).unwrap();
    for (op, right) in [(ReduceOp::Sum, false), (ReduceOp::Max, true)] {
        let trial = Trial::new(&case, &mesh, vec![of(op)]);
        let whole: Dims = vec![vec![]];
        let computed = trial.computed(0, &[&whole]).unwrap();
        assert_eq!(trial.denotes(0, &computed, &[of(op).ty.clone()]), right);
    }
}
