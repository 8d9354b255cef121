//! The brute-force validator of the e-graph's rules (`passes/src/egraph/rules/RULES.md`).
//!
//! An e-class denotes one local value per rank. After saturation, every term of every class is evaluated on simulated
//! ranks from the values of its operand classes, and all terms of a class must produce the same tensor on every rank.
//! Each rule runs alone on graphs that contain its left-hand side, where it must fire and add the promised right-hand
//! side, and on graphs that violate one of its conditions, where it must not fire. Then all rules run together on
//! random graphs.

#[path = "../../ir/tests/generator/mod.rs"]
mod generator;
mod ranks;

use egg::Id;
use proptest::prelude::*;
use ranks::{Ranks, cut, dice, local, same_ranks};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::rc::Rc;
use std::sync::LazyLock;
use tpc_ir::interpret::{Options, Tensor, interpret, simulate};
use tpc_ir::reason::Demand;
use tpc_ir::{AxisId, DType, Graph, InputId, Mesh, Op, Sharding, Type, parse, text};
use tpc_passes::check::{CheckError, check};
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::rules::RuleId;
use tpc_passes::egraph::term::Term;
use tpc_passes::egraph::{Saturated, SearchOptions, improve, saturate};
use tpc_passes::propagate::propagate;
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::targets::{Link, Target};

type Inputs = HashMap<InputId, Tensor>;

/// Options that enable only the given rules.
fn only(rules: &[u32]) -> SearchOptions {
    let disabled = RuleId::all().filter(|rule| !rules.contains(&rule.number())).collect();
    SearchOptions { disabled, node_limit: 3_000, rounds: 3, ..SearchOptions::default() }
}

/// Options that enable every rule.
fn every_rule() -> SearchOptions {
    SearchOptions { disabled: BTreeSet::new(), node_limit: 1_500, rounds: 3, ..SearchOptions::default() }
}

/// A target whose axis b is faster than all others. Rule 25 fires only on such a target.
fn uneven() -> &'static Target {
    static TARGET: LazyLock<Target> = LazyLock::new(|| {
        let mut target = Target::cpu().clone();
        let fast = Link { bandwidth: 10.0 * target.links.default.bandwidth, ..target.links.default };
        target.links.axes.insert("b".into(), fast);
        target
    });
    &TARGET
}

/// Small integers for every input. Inputs of type i64 are row numbers of a table with `rows` rows.
fn integers(graph: &Graph, salt: u64, rows: usize) -> Inputs {
    let tensor = |i: usize, ty: &Type| {
        let seed = salt * 1000 + i as u64;
        Tensor::from_fn(ty.dtype, ty.shape.clone(), |at| match ty.dtype {
            DType::I64 => dice(seed, at, rows + 2) as f64 - 1.0,
            DType::Bool => dice(seed, at, 2) as f64,
            _ => dice(seed, at, 7) as f64 - 3.0,
        })
    };
    graph.inputs().enumerate().map(|(i, (n, id))| (id.clone(), tensor(i, &graph.node(n).types[0]))).collect()
}

/// A small evaluator of e-graph terms, which computes the local tensors of every class.
struct Evaluator<'a> {
    saturated: &'a Saturated,
    mesh: &'a Mesh,
    inputs: &'a Inputs,
    values: HashMap<Id, Ranks>,
}

impl Evaluator<'_> {
    /// The local tensors of a term; `None` if an operand class has no value yet.
    fn term(&self, class: Id, term: &Term) -> Option<Result<Ranks, String>> {
        let egraph = &self.saturated.egraph;
        let (key, ty) = (egraph.analysis.key(term.key), &egraph[class].data.ty);
        if let Op::Input { id, .. } = &key.op {
            let given = Tensor { shape: ty.shape.clone(), ..self.inputs[id].clone() };
            let piece = |rank: usize| Rc::new(cut(&given, &ty.local(self.mesh, &self.mesh.coords(rank))));
            return Some(Ok((0..self.mesh.ranks()).map(piece).collect()));
        }
        let children: Vec<Id> = term.children.iter().map(|&c| egraph.find(c)).collect();
        let operands: Vec<&Ranks> = children.iter().map(|c| self.values.get(c)).collect::<Option<_>>()?;
        let types: Vec<&Type> = children.iter().map(|&c| &egraph[c].data.ty).collect();
        let results = vec![ty.clone(); if key.several { 2 } else { 1 }];
        let made = local(&key.op, &types, &results, &operands, self.mesh);
        let fits = |ranks: &Ranks| {
            ranks.iter().enumerate().all(|(r, t)| t.shape == ty.local_shape(self.mesh, &self.mesh.coords(r)))
        };
        Some(match made {
            Ok(mut ranks) => {
                let ranks = ranks.remove(key.result as usize);
                if fits(&ranks) { Ok(ranks) } else { Err("local shapes contradict the type".into()) }
            }
            Err((rank, fault)) => Err(format!("rank {rank}: {fault}")),
        })
    }

    fn shown(&self, class: Id, term: &Term) -> String {
        let egraph = &self.saturated.egraph;
        let key = egraph.analysis.key(term.key);
        let show = |id: Id| egraph[id].data.ty.display(self.mesh);
        let operands: Vec<String> = term.children.iter().map(|&c| show(egraph.find(c))).collect();
        format!(
            "{:?}({}) : {}, due to rule {:?}",
            key.op,
            operands.join("; "),
            show(class),
            egraph.analysis.rule_of(term)
        )
    }
}

/// Evaluates every term of every class, compares the terms of each class, and returns the number of terms.
fn check_classes(graph: &Graph, saturated: &Saturated, inputs: &Inputs, tolerance: f64) -> Result<usize, String> {
    let egraph = &saturated.egraph;
    let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    let mut e = Evaluator { saturated, mesh: &graph.mesh, inputs, values: HashMap::new() };
    // Some class without a value always has a term whose operands have values, so this ends with a value for every
    // class.
    while e.values.len() < ids.len() {
        let before = e.values.len();
        for &id in &ids {
            if e.values.contains_key(&id) {
                continue;
            }
            let mut terms = egraph[id].nodes.iter();
            if let Some((term, made)) = terms.find_map(|t| e.term(id, t).map(|made| (t, made))) {
                let ranks = made.map_err(|fault| format!("{}: {fault}", e.shown(id, term)))?;
                e.values.insert(id, ranks);
            }
        }
        assert!(e.values.len() > before, "classes without a finite term");
    }
    let mut count = 0;
    for &id in &ids {
        for term in &egraph[id].nodes {
            let made = e.term(id, term).expect("all classes have values");
            let ranks = made.map_err(|fault| format!("{}: {fault}", e.shown(id, term)))?;
            if !same_ranks(&ranks, &e.values[&id], tolerance) {
                let all: Vec<String> = egraph[id].nodes.iter().map(|t| e.shown(id, t)).collect();
                return Err(format!("terms of one class differ, at {}:\n  {}", e.shown(id, term), all.join("\n  ")));
            }
            count += 1;
        }
    }
    Ok(count)
}

fn read(mesh: &str, body: &str) -> Graph {
    let last = body.trim().lines().last().unwrap().trim();
    let target = last.split(" =").next().unwrap();
    let source = format!("mesh <{mesh}>\n{}\noutput result \"y\" {target}\n", body.trim());
    let graph = parse::parse(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    tpc_ir::verify::verify(&graph).unwrap_or_else(|e| panic!("{e:?}\n{source}"));
    match check(&graph) {
        // The output is often partial.
        Ok(()) | Err(CheckError::Output { .. }) => graph,
        Err(e) => panic!("{e}\n{source}"),
    }
}

/// The operations in the class of a graph's output, without one occurrence of the original operation.
fn added(graph: &Graph, saturated: &Saturated) -> Vec<String> {
    let root = graph.outputs[0].value;
    let egraph = &saturated.egraph;
    let mut names: Vec<String> =
        egraph[saturated.class_of[&root]].nodes.iter().map(|t| egraph.analysis.key(t.key).op.name()).collect();
    let own = names.iter().position(|n| *n == graph.op(root).name()).expect("the program's own term stays");
    names.remove(own);
    names
}

/// Checks that on every mesh, the rule alone finds a term with the operation `gives` that equals the last line of
/// `body`, and that all equalities it finds are true.
fn fires(rule: u32, gives: &str, meshes: &[&str], body: &str) {
    for mesh in meshes {
        let graph = read(mesh, body);
        let saturated = saturate(&graph, uneven(), &only(&[rule]));
        for salt in 0..3 {
            let checked = check_classes(&graph, &saturated, &integers(&graph, salt, 5), 1e-12);
            checked.unwrap_or_else(|e| panic!("rule {rule} is wrong on <{mesh}>: {e}\n{body}"));
        }
        let names = added(&graph, &saturated);
        assert!(names.iter().any(|n| n == gives), "rule {rule} on <{mesh}> adds {names:?}, not {gives}:{body}");
    }
}

/// Checks that the rule alone finds no term that equals the last line of `body`.
fn silent(rule: u32, meshes: &[&str], body: &str) {
    for mesh in meshes {
        let graph = read(mesh, body);
        let names = added(&graph, &saturate(&graph, uneven(), &only(&[rule])));
        assert!(names.is_empty(), "rule {rule} on <{mesh}> should not add {names:?}:{body}");
    }
}

const ONE: &[&str] = &["a=2", "a=3"];
const TWO: &[&str] = &["a=2, b=2", "a=2, b=3", "a=3, b=2"];

#[test]
fn rule_1_splits_an_all_reduce_where_the_axes_divide_a_dimension() {
    for op in ["sum", "max"] {
        let body = |reduced: &str, axes: &str, first: &str, rest: &str| {
            format!(
                "
            %0 = input data \"x\" : f64[{first}, {rest}]
            %1 = reduce_{op} \"abc->bc\" %0 : f64[{rest}] +{op}@{axes}
            %2 = all_reduce {axes} {op} %1 : f64[{reduced}]"
            )
        };
        fires(1, "all_gather", ONE, &body("12, 5", "a", "7@a", "12, 5"));
        fires(1, "all_gather", TWO, &body("12, 5", "(a,b)", "7@(b,a)", "12, 5"));
        fires(1, "all_gather", TWO, &body("12@b, 5", "a", "7@a", "12@b, 5"));
        fires(1, "all_gather", TWO, &body("7, 12@b", "a", "7@a", "7, 12@b"));
        // The axes divide no dimension.
        silent(1, ONE, &body("5, 7", "a", "7@a", "5, 7"));
        silent(1, TWO, &body("10, 9", "(a,b)", "7@(a,b)", "10, 9"));
        silent(1, &["a=2, b=2"], &body("6@b, 5", "a", "7@a", "6@b, 5"));
    }
}

#[test]
fn rule_25_reduces_a_part_over_the_other_axes() {
    let body = |reduced: &str| {
        format!(
            "
            %0 = input data \"x\" : f64[7@(a,b), {reduced}]
            %1 = reduce_sum \"abc->bc\" %0 : f64[{reduced}] +sum@(a,b)
            %2 = all_reduce (a,b) sum %1 : f64[{reduced}]"
        )
    };
    fires(25, "all_gather", TWO, &body("12, 5"));
    // The fast axis divides no dimension; there is only one axis.
    silent(25, TWO, &body("5, 7"));
    silent(25, &["a=2, b=3"], &body("4, 5"));
    silent(
        25,
        ONE,
        "
        %0 = input data \"x\" : f64[7@a, 12]
        %1 = reduce_sum \"ab->b\" %0 : f64[12] +sum@a
        %2 = all_reduce a sum %1 : f64[12]",
    );
}

/// Only the fast axis is split off from a reduction, and no axis if all links are equal.
#[test]
fn rule_25_needs_an_axis_that_is_faster_than_another() {
    let graph = read(
        "a=2, b=2",
        "
        %0 = input data \"x\" : f64[7@(a,b), 12]
        %1 = reduce_sum \"ab->b\" %0 : f64[12] +sum@(a,b)
        %2 = all_reduce (a,b) sum %1 : f64[12]",
    );
    let gathers = |target: &Target| -> Vec<Op> {
        let saturated = saturate(&graph, target, &only(&[25]));
        let egraph = &saturated.egraph;
        let ops = egraph.classes().flat_map(|c| &c.nodes).map(|t| egraph.analysis.key(t.key).op.clone());
        ops.filter(|op| matches!(op, Op::AllGather { .. })).collect()
    };
    assert_eq!(gathers(uneven()), [Op::AllGather { dim: 0, axes: vec![AxisId(1)] }]);
    assert_eq!(gathers(Target::cpu()), []);
}

#[test]
fn rule_22_looks_up_on_a_shard_of_the_rows() {
    let body = |rows: &str, index: &str| {
        format!(
            "
            %0 = input parameter \"w\" : f64[{rows}@a, 3]
            %1 = all_gather a dim=0 %0 : f64[{rows}, 3]
            %2 = input data \"i\" : i64[{index}]
            %3 = take %1, %2 : f64[{index}, 3]"
        )
    };
    fires(22, "all_reduce", ONE, &body("5", "4"));
    fires(22, "all_reduce", ONE, &body("1", "4"));
    // Every rank looks up different rows.
    silent(
        22,
        TWO,
        "
        %0 = input parameter \"w\" : f64[5@a, 3]
        %1 = all_gather a dim=0 %0 : f64[5, 3]
        %2 = input data \"i\" : i64[4@a]
        %3 = take %1, %2 : f64[4@a, 3]",
    );
}

#[test]
fn rule_2_slices_what_it_reduces() {
    let body = |first: &str, axes: &str, list: &str, dims: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[{first}, 5, 3]
        %1 = reduce_sum \"abc->bc\" %0 : f64[5, 3] +sum@{axes}
        %2 = all_reduce {axes} sum %1 : f64[5, 3]
        %3 = shard_slice {list} dim=0 %2 : f64[{dims}]"
        )
    };
    fires(2, "reduce_scatter", ONE, &body("7@a", "a", "a", "5@a, 3"));
    fires(2, "reduce_scatter", TWO, &body("7@(a,b)", "(a,b)", "(a,b)", "5@(a,b), 3"));
    fires(2, "reduce_scatter", TWO, &body("7@(a,b)", "(a,b)", "(b,a)", "5@(b,a), 3"));
    // If only some of the reduced axes are sliced, the others are reduced afterward.
    fires(2, "all_reduce", TWO, &body("7@(a,b)", "(a,b)", "a", "5@a, 3"));
    // The sliced axes are not those that were reduced.
    silent(2, TWO, &body("7@a", "a", "b", "5@b, 3"));
}

#[test]
fn rule_3_slices_what_was_gathered() {
    let body = |from: &str, gathered: &str, whole: &str, sliced: &str, dim: usize, to: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[{from}]
        %1 = all_gather {gathered} dim=0 %0 : f64[{whole}]
        %2 = shard_slice {sliced} dim={dim} %1 : f64[{to}]"
        )
    };
    fires(3, "input", ONE, &body("5@a, 4", "a", "5, 4", "a", 0, "5@a, 4"));
    fires(3, "input", TWO, &body("5@(a,b), 4", "(a,b)", "5, 4", "(a,b)", 0, "5@(a,b), 4"));
    fires(3, "input", TWO, &body("10@(b,a), 4", "a", "10@b, 4", "a", 0, "10@(b,a), 4"));
    fires(3, "input", TWO, &body("1@(b,a), 4", "(b,a)", "1, 4", "(b,a)", 0, "1@(b,a), 4"));
    // Another order, another axis, another dimension.
    silent(3, TWO, &body("5@(a,b), 4", "(a,b)", "5, 4", "(b,a)", 0, "5@(b,a), 4"));
    silent(3, TWO, &body("5@a, 4", "a", "5, 4", "b", 0, "5@b, 4"));
    silent(3, ONE, &body("5@a, 4", "a", "5, 4", "a", 1, "5, 4@a"));
}

#[test]
fn rule_4_gathers_what_was_sliced() {
    let body = |from: &str, sliced: &str, part: &str, gathered: &str, to: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[{from}]
        %1 = shard_slice {sliced} dim=0 %0 : f64[{part}]
        %2 = all_gather {gathered} dim=0 %1 : f64[{to}]"
        )
    };
    fires(4, "input", ONE, &body("5, 4", "a", "5@a, 4", "a", "5, 4"));
    fires(4, "input", TWO, &body("5, 4@b", "a", "5@a, 4@b", "a", "5, 4@b"));
    fires(4, "input", TWO, &body("7, 4", "(b,a)", "7@(b,a), 4", "(b,a)", "7, 4"));
    fires(4, "input", TWO, &body("7@b, 4", "a", "7@(b,a), 4", "a", "7@b, 4"));
    // Only some of the sliced axes are gathered.
    silent(4, TWO, &body("7, 4", "(a,b)", "7@(a,b), 4", "b", "7@a, 4"));
}

#[test]
fn rule_5_exchanges() {
    let slice_of_gather = |from: &str, axes: &str, whole: &str, to: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[{from}]
        %1 = all_gather {axes} dim=0 %0 : f64[{whole}]
        %2 = shard_slice {axes} dim=1 %1 : f64[{to}]"
        )
    };
    fires(5, "all_to_all", ONE, &slice_of_gather("5@a, 7", "a", "5, 7", "5, 7@a"));
    fires(5, "all_to_all", TWO, &slice_of_gather("5@(b,a), 7", "(b,a)", "5, 7", "5, 7@(b,a)"));
    fires(5, "all_to_all", TWO, &slice_of_gather("5@a, 7@b", "a", "5, 7@b", "5, 7@(b,a)"));
    fires(5, "all_to_all", TWO, &slice_of_gather("9@(b,a), 2", "a", "9@b, 2", "9@b, 2@a"));
    silent(
        5,
        TWO,
        "
        %0 = input data \"x\" : f64[5@(a,b), 7]
        %1 = all_gather (a,b) dim=0 %0 : f64[5, 7]
        %2 = shard_slice (b,a) dim=1 %1 : f64[5, 7@(b,a)]",
    );
    fires(
        5,
        "input",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 7]
        %1 = all_to_all (b,a) from=0 to=1 %0 : f64[5, 7@(b,a)]
        %2 = all_to_all (b,a) from=1 to=0 %1 : f64[5@(b,a), 7]",
    );
    fires(
        5,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[5@a, 7@b, 2]
        %1 = all_to_all a from=0 to=1 %0 : f64[5, 7@(b,a), 2]
        %2 = all_gather a dim=1 %1 : f64[5, 7@b, 2]",
    );
    silent(
        5,
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 7, 2]
        %1 = all_to_all a from=0 to=1 %0 : f64[5, 7@a, 2]
        %2 = all_to_all a from=1 to=2 %1 : f64[5, 7, 2@a]",
    );
}

#[test]
fn rule_6_reduces_what_was_invariant() {
    for op in ["sum", "max", "min"] {
        fires(
            6,
            "input",
            TWO,
            &format!(
                "
            %0 = input data \"x\" : f64[5@b, 4]
            %1 = to_partial a {op} %0 : f64[5@b, 4] +{op}@a
            %2 = all_reduce a {op} %1 : f64[5@b, 4]"
            ),
        );
        fires(
            6,
            "shard_slice",
            TWO,
            &format!(
                "
            %0 = input data \"x\" : f64[5, 4]
            %1 = to_partial (a,b) {op} %0 : f64[5, 4] +{op}@(a,b)
            %2 = reduce_scatter (b,a) {op} dim=0 %1 : f64[5@(b,a), 4]"
            ),
        );
        // Only some of the axes are reduced; the term comes from another rank.
        silent(
            6,
            TWO,
            &format!(
                "
            %0 = input data \"x\" : f64[5, 4]
            %1 = to_partial (a,b) {op} %0 : f64[5, 4] +{op}@(a,b)
            %2 = all_reduce a {op} %1 : f64[5, 4] +{op}@b"
            ),
        );
        silent(
            6,
            ONE,
            &format!(
                "
            %0 = input data \"x\" : f64[5@a, 4]
            %1 = reduce_{op} \"ab->b\" %0 : f64[4] +{op}@a
            %2 = all_reduce a {op} %1 : f64[4]"
            ),
        );
    }
}

/// Two values of type `f64[5, 3]` that are partial sums over `a`, %2 and %3, and their all-reduces, %4 and %5.
fn two_sums() -> String {
    "%0 = input data \"x\" : f64[7@a, 5, 3]
    %1 = input data \"y\" : f64[2@a, 5, 3]
    %2 = reduce_sum \"abc->bc\" %0 : f64[5, 3] +sum@a
    %3 = reduce_sum \"abc->bc\" %1 : f64[5, 3] +sum@a
    %4 = all_reduce a sum %2 : f64[5, 3]
    %5 = all_reduce a sum %3 : f64[5, 3]
    "
    .into()
}

#[test]
fn rule_7_adds_before_it_reduces() {
    let with = |line: &str| format!("{}{line}", two_sums());
    fires(7, "all_reduce", ONE, &with("%6 = add %4, %5 : f64[5, 3]"));
    fires(7, "all_reduce", ONE, &with("%6 = sub %4, %5 : f64[5, 3]"));
    fires(7, "all_reduce", ONE, &with("%6 = add \"ab,ab->ba\" %4, %5 : f64[3, 5]"));
    fires(7, "all_reduce", ONE, &with("%6 = concat dim=1 %4, %5 : f64[5, 6]"));
    fires(7, "all_reduce", ONE, &with("%6 = input data \"c\" : bool[5, 3]\n%7 = select %6, %4, %5 : f64[5, 3]"));
    fires(7, "add", ONE, &with("%6 = input data \"z\" : f64[3]\n%7 = add \"ab,b,ab->ab\" %4, %6, %5 : f64[5, 3]"));
    fires(
        7,
        "reduce_scatter",
        TWO,
        &with(
            "
        %6 = reduce_scatter a sum dim=1 %2 : f64[5, 3@a]
        %7 = reduce_scatter a sum dim=1 %3 : f64[5, 3@a]
        %8 = add %6, %7 : f64[5, 3@a]",
        ),
    );
    fires(
        7,
        "reduce_scatter",
        ONE,
        &with(
            "
        %6 = reduce_scatter a sum dim=1 %2 : f64[5, 3@a]
        %7 = reduce_scatter a sum dim=1 %3 : f64[5, 3@a]
        %8 = concat dim=0 %6, %7 : f64[10, 3@a]",
        ),
    );
    // The function is not linear in both operands, only one is reduced, or the dimension differs.
    silent(7, ONE, &with("%6 = mul %4, %5 : f64[5, 3]"));
    silent(7, ONE, &with("%6 = max %4, %5 : f64[5, 3]"));
    silent(7, ONE, &with("%6 = input data \"z\" : f64[5, 3]\n%7 = add %4, %6 : f64[5, 3]"));
    silent(
        7,
        ONE,
        &with(
            "
        %6 = reduce_scatter a sum dim=1 %2 : f64[5, 3@a]
        %7 = reduce_scatter a sum dim=1 %3 : f64[5, 3@a]
        %8 = add \"ab,ab->ba\" %6, %7 : f64[3@a, 5]",
        ),
    );
    // A maximum is not a sum; the axes differ.
    silent(
        7,
        ONE,
        "
        %0 = input data \"x\" : f64[7@a, 5]
        %1 = reduce_max \"ab->b\" %0 : f64[5] +max@a
        %2 = reduce_min \"ab->b\" %0 : f64[5] +min@a
        %3 = all_reduce a max %1 : f64[5]
        %4 = all_reduce a min %2 : f64[5]
        %5 = add %3, %4 : f64[5]",
    );
    silent(
        7,
        TWO,
        "
        %0 = input data \"x\" : f64[7@a, 5]
        %1 = input data \"y\" : f64[3@b, 5]
        %2 = reduce_sum \"ab->b\" %0 : f64[5] +sum@a
        %3 = reduce_sum \"ab->b\" %1 : f64[5] +sum@b
        %4 = all_reduce a sum %2 : f64[5]
        %5 = all_reduce b sum %3 : f64[5]
        %6 = add %4, %5 : f64[5]",
    );
}

/// A difference of bytes saturates, so it is not linear, unlike that of other numbers.
#[test]
fn rule_7_leaves_bytes_alone() {
    silent(
        7,
        ONE,
        "
        %0 = input data \"x\" : u8[7@a, 5]
        %1 = input data \"y\" : u8[3@a, 5]
        %2 = reduce_sum \"ab->b\" %0 : u8[5] +sum@a
        %3 = reduce_sum \"ab->b\" %1 : u8[5] +sum@a
        %4 = all_reduce a sum %2 : u8[5]
        %5 = all_reduce a sum %3 : u8[5]
        %6 = sub %4, %5 : u8[5]",
    );
}

#[test]
fn rule_8_adds_what_is_invariant_once() {
    let with = |line: &str| format!("{}{line}", two_sums());
    fires(8, "all_reduce", ONE, &with("%6 = input data \"z\" : f64[3]\n%7 = add \"ab,b->ab\" %4, %6 : f64[5, 3]"));
    fires(8, "all_reduce", TWO, &with("%6 = input data \"z\" : f64[5, 3]\n%7 = add %6, %4 : f64[5, 3]"));
    fires(
        8,
        "all_reduce",
        TWO,
        &with("%6 = input data \"z\" : f64[3]\n%7 = add \"ab,b,b->ab\" %4, %6, %6 : f64[5, 3]"),
    );
    // The function is not a sum; both operands are reduced, which is rule 7.
    silent(8, ONE, &with("%6 = input data \"z\" : f64[5, 3]\n%7 = sub %4, %6 : f64[5, 3]"));
    silent(8, ONE, &with("%6 = input data \"z\" : f64[5, 3]\n%7 = max %4, %6 : f64[5, 3]"));
    silent(8, ONE, &with("%6 = add %4, %5 : f64[5, 3]"));
    // The reduction is a maximum.
    silent(
        8,
        ONE,
        "
        %0 = input data \"x\" : f64[7@a, 5]
        %1 = reduce_max \"ab->b\" %0 : f64[5] +max@a
        %2 = all_reduce a max %1 : f64[5]
        %3 = input data \"y\" : f64[5]
        %4 = add %2, %3 : f64[5]",
    );
    // Both operands remain partial over another axis, including the invariant one.
    fires(
        8,
        "all_reduce",
        &["a=2, b=2", "a=3, b=2"],
        "
        %0 = input data \"x\" : f64[7@a, 4@b, 5]
        %1 = reduce_sum \"abc->c\" %0 : f64[5] +sum@(a,b)
        %2 = all_reduce a sum %1 : f64[5] +sum@b
        %3 = input data \"y\" : f64[5@b, 5]
        %4 = reduce_sum \"ab->b\" %3 : f64[5] +sum@b
        %5 = add %2, %4 : f64[5] +sum@b",
    );
}

#[test]
fn rule_9_moves_a_sum_through_what_is_linear() {
    let with = |line: &str| format!("{}{line}", two_sums());
    for line in [
        "%6 = mul %4, f64:3.0 : f64[5, 3]",
        "%6 = neg %4 : f64[5, 3]",
        "%6 = identity \"ab->ba\" %4 : f64[3, 5]",
        "%6 = div %4, f64:2.0 : f64[5, 3]",
        "%6 = reduce_sum \"ab->a\" %4 : f64[5]",
        "%6 = cumsum dim=0 %4 : f64[5, 3]",
        "%6 = slice dim=0 start=1 step=2 %4 : f64[2, 3]",
        "%6 = index dim=1 index=2 %4 : f64[5]",
        "%6 = pad dim=0 low=1 value=0.0 %4 : f64[7, 3]",
        "%6 = reshape %4 : f64[15]",
        "%6 = concat dim=0 %4 : f64[5, 3]",
        "%6 = input data \"w\" : f64[3, 2]\n%7 = einsum \"ab,bc->ac\" %4, %6 : f64[5, 2]",
        "%6 = input data \"w\" : f64[2, 5]\n%7 = einsum \"ab,bc->ac\" %6, %4 : f64[2, 3]",
        "%6 = input data \"i\" : i64[4]\n%7 = take %4, %6 : f64[4, 3]",
        "%6 = input data \"i\" : i64[5]\n%7 = scatter_add %6, %4 : f64[4, 3]",
    ] {
        fires(9, "all_reduce", ONE, &with(line));
    }
    // In the other direction, a reduction of the result becomes a reduction of the operand.
    fires(
        9,
        "mul",
        ONE,
        &with(
            "
        %6 = input data \"w\" : f64[5, 3]
        %7 = mul %2, %6 : f64[5, 3] +sum@a
        %8 = all_reduce a sum %7 : f64[5, 3]",
        ),
    );
    fires(
        9,
        "einsum",
        TWO,
        "
        %0 = input data \"x\" : f64[7@a, 5, 3@b]
        %1 = reduce_sum \"abc->bc\" %0 : f64[5, 3@b] +sum@a
        %2 = input data \"w\" : f64[3@b, 2]
        %3 = einsum \"ab,bc->ac\" %1, %2 : f64[5, 2] +sum@(a,b)
        %4 = all_reduce a sum %3 : f64[5, 2] +sum@b",
    );
    // In a product of two sums, one factor may be left partial, but a product of two partial values is not a sum.
    fires(9, "all_reduce", ONE, &with("%6 = mul %4, %5 : f64[5, 3]"));
    for line in [
        // In a square, the other factor needs the reduction anyway.
        "%6 = mul %4, %4 : f64[5, 3]",
        "%6 = einsum \"ab,cb->ac\" %4, %4 : f64[5, 5]",
        "%6 = exp %4 : f64[5, 3]",
        "%6 = div f64:1.0, %4 : f64[5, 3]",
        "%6 = reduce_max \"ab->a\" %4 : f64[5]",
        "%6 = pad dim=0 low=1 value=1.0 %4 : f64[7, 3]",
        "%6 = cast.f32 %4 : f32[5, 3]",
        "%6 = add %4, f64:1.0 : f64[5, 3]",
    ] {
        silent(9, ONE, &with(line));
    }
    // The product is partial because its summed index is cut, not because an operand is partial.
    silent(
        9,
        ONE,
        "
        %0 = input data \"x\" : f64[5, 4@a]
        %1 = input data \"w\" : f64[4@a, 3]
        %2 = einsum \"ab,bc->ac\" %0, %1 : f64[5, 3] +sum@a
        %3 = all_reduce a sum %2 : f64[5, 3]",
    );
    // Quotients of integers round.
    silent(
        9,
        ONE,
        "
        %0 = input data \"x\" : i64[7@a, 5]
        %1 = reduce_sum \"ab->b\" %0 : i64[5] +sum@a
        %2 = all_reduce a sum %1 : i64[5]
        %3 = div %2, i64:2 : i64[5]",
    );
}

#[test]
fn rule_10_moves_a_maximum_through_what_grows() {
    let with = |op: &str, line: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[5@a, 4, 3]
        %1 = reduce_{op} \"abc->bc\" %0 : f64[4, 3] +{op}@a
        %2 = all_reduce a {op} %1 : f64[4, 3]
        {line}"
        )
    };
    for op in ["max", "min"] {
        for line in [
            "%3 = exp %2 : f64[4, 3]",
            "%3 = tanh %2 : f64[4, 3]",
            "%3 = sigmoid %2 : f64[4, 3]",
            "%3 = identity \"ab->ba\" %2 : f64[3, 4]",
            "%3 = index dim=0 index=1 %2 : f64[3]",
            "%3 = reshape %2 : f64[12]",
            "%3 = pad dim=0 low=1 value=7.0 %2 : f64[6, 3]",
        ] {
            // On a=4 there are empty shards, whose maximum is −∞.
            fires(10, "all_reduce", &["a=2", "a=3", "a=4"], &with(op, line));
        }
        // The function is not increasing, or is not defined on all numbers.
        for line in ["neg", "abs", "sin", "recip", "log", "sqrt"] {
            silent(10, ONE, &with(op, &format!("%3 = {line} %2 : f64[4, 3]")));
        }
    }
    silent(10, ONE, &with("sum", "%3 = exp %2 : f64[4, 3]"));
    silent(10, ONE, &with("prod", "%3 = exp %2 : f64[4, 3]"));
}

#[test]
fn rule_11_gathers_after_elementwise_operations() {
    fires(
        11,
        "all_gather",
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 3]
        %1 = input data \"y\" : f64[5@a]
        %2 = all_gather a dim=0 %0 : f64[5, 3]
        %3 = all_gather a dim=0 %1 : f64[5]
        %4 = mul \"ab,a->ba\" %2, %3 : f64[3, 5]",
    );
    fires(
        11,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[7@(b,a), 3]
        %1 = all_gather (b,a) dim=0 %0 : f64[7, 3]
        %2 = exp %1 : f64[7, 3]",
    );
    // In the other direction: a gather of the result.
    fires(
        11,
        "max",
        TWO,
        "
        %0 = input data \"x\" : f64[7@(b,a), 3]
        %1 = input data \"y\" : f64[3]
        %2 = max \"ab,b->ab\" %0, %1 : f64[7@(b,a), 3]
        %3 = all_gather a dim=0 %2 : f64[7@b, 3]",
    );
    // The axes of the two operands are in different orders, which do not match.
    silent(
        11,
        TWO,
        "
        %0 = input data \"x\" : f64[7@(a,b)]
        %1 = input data \"y\" : f64[7@(b,a)]
        %2 = all_gather (a,b) dim=0 %0 : f64[7]
        %3 = all_gather (b,a) dim=0 %1 : f64[7]
        %4 = mul %2, %3 : f64[7]",
    );
}

#[test]
fn rule_12_slices_the_operand_that_was_whole() {
    fires(
        12,
        "all_gather",
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 3]
        %1 = input data \"y\" : f64[5]
        %2 = all_gather a dim=0 %0 : f64[5, 3]
        %3 = add \"ab,a->ab\" %2, %1 : f64[5, 3]",
    );
    fires(
        12,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[7@(a,b), 3]
        %1 = input data \"y\" : f64[7@(b,a), 3]
        %2 = all_gather (a,b) dim=0 %0 : f64[7, 3]
        %3 = all_gather (b,a) dim=0 %1 : f64[7, 3]
        %4 = add %2, %3 : f64[7, 3]",
    );
    // There is nothing to slice, which is rule 11.
    silent(
        12,
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 3]
        %1 = input data \"y\" : f64[3]
        %2 = all_gather a dim=0 %0 : f64[5, 3]
        %3 = add \"ab,b->ab\" %2, %1 : f64[5, 3]",
    );
}

#[test]
fn rule_13_gathers_after_a_product() {
    fires(
        13,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 3]
        %1 = input data \"w\" : f64[3, 2]
        %2 = all_gather (b,a) dim=0 %0 : f64[5, 3]
        %3 = einsum \"ab,bc->ac\" %2, %1 : f64[5, 2]",
    );
    // For a batch index, the other operand is sliced or gathered too.
    fires(
        13,
        "all_gather",
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 3, 2]
        %1 = input data \"w\" : f64[5, 2, 4]
        %2 = all_gather a dim=0 %0 : f64[5, 3, 2]
        %3 = einsum \"abc,acd->abd\" %2, %1 : f64[5, 3, 4]",
    );
    fires(
        13,
        "einsum",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 3, 2]
        %1 = input data \"w\" : f64[5@(b,a), 2, 4]
        %2 = einsum \"abc,acd->dab\" %0, %1 : f64[4, 5@(b,a), 3]
        %3 = all_gather a dim=1 %2 : f64[4, 5@b, 3]",
    );
    silent(
        13,
        ONE,
        "
        %0 = input data \"x\" : f64[5, 3@a]
        %1 = input data \"w\" : f64[3, 2]
        %2 = all_gather a dim=1 %0 : f64[5, 3]
        %3 = einsum \"ab,bc->ac\" %2, %1 : f64[5, 2]",
    );
}

#[test]
fn rules_14_and_15_sum_after_a_product() {
    let both = |x: &str, xs: &str, w: &str, ws: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[5, {x}]
        %1 = input data \"w\" : f64[{w}, 2]
        %2 = all_gather {xs} dim=1 %0 : f64[5, 7]
        %3 = all_gather {ws} dim=0 %1 : f64[7, 2]
        %4 = einsum \"ab,bc->ac\" %2, %3 : f64[5, 2]"
        )
    };
    fires(14, "all_reduce", ONE, &both("7@a", "a", "7@a", "a"));
    fires(14, "all_reduce", TWO, &both("7@(b,a)", "(b,a)", "7@(b,a)", "(b,a)"));
    // pytorch 166598: the same axes in a different order.
    silent(14, TWO, &both("7@(a,b)", "(a,b)", "7@(b,a)", "(b,a)"));
    silent(14, TWO, &both("7@a", "a", "7@b", "b"));
    let one = "
        %0 = input data \"x\" : f64[5, 7]
        %1 = input data \"w\" : f64[7@(b,a), 2]
        %2 = all_gather (b,a) dim=0 %1 : f64[7, 2]
        %3 = einsum \"ab,bc->ac\" %0, %2 : f64[5, 2]";
    fires(15, "all_reduce", TWO, one);
    silent(14, TWO, one);
    fires(15, "all_reduce", TWO, &both("7@(a,b)", "(a,b)", "7@(b,a)", "(b,a)"));
    // x is not the same on every rank of b: it cannot be sliced there.
    silent(
        15,
        TWO,
        "
        %0 = input data \"x\" : f64[5@b, 7]
        %1 = input data \"w\" : f64[7@b, 2]
        %2 = all_gather b dim=0 %1 : f64[7, 2]
        %3 = einsum \"ab,bc->ac\" %0, %2 : f64[5@b, 2]",
    );
}

#[test]
fn rule_16_scatters_the_operand() {
    let body = |x: &str, w: &str, op: &str, y: &str, axes: &str, to: &str| {
        format!(
            "
        %0 = input data \"x\" : f64[7@(a,b), {x}]
        %1 = reduce_sum \"abc->bc\" %0 : f64[{x}] +sum@(a,b)
        %2 = input data \"w\" : f64[{w}]
        %3 = {op} %1, %2 : f64[{y}] +sum@(a,b)
        %4 = reduce_scatter {axes} sum dim=0 %3 : f64[{to}]"
        )
    };
    fires(16, "einsum", TWO, &body("5, 3", "3, 2", "einsum \"ab,bc->ac\"", "5, 2", "(b,a)", "5@(b,a), 2"));
    fires(16, "mul", TWO, &body("5, 3", "5, 3", "mul", "5, 3", "(a,b)", "5@(a,b), 3"));
    // The scattered index is not in the partial operand.
    silent(16, TWO, &body("5, 3", "5, 2", "einsum \"ab,ac->cb\"", "2, 3", "(a,b)", "2@(a,b), 3"));
    // The product is partial because the summed index is cut, not because an operand is partial.
    silent(
        16,
        ONE,
        "
        %0 = input data \"x\" : f64[5, 4@a]
        %1 = input data \"w\" : f64[4@a, 3]
        %2 = einsum \"ab,bc->ac\" %0, %1 : f64[5, 3] +sum@a
        %3 = reduce_scatter a sum dim=0 %2 : f64[5@a, 3]",
    );
}

#[test]
fn rule_17_slices_operands() {
    let slice = |line: &str, whole: &str, part: &str, dim: usize| {
        format!(
            "
        %0 = input data \"x\" : f64[5, 3]
        %1 = input data \"y\" : f64[3, 5]
        %2 = {line} : f64[{whole}]
        %3 = shard_slice (b,a) dim={dim} %2 : f64[{part}]"
        )
    };
    fires(17, "mul", TWO, &slice("mul \"ab,ba->ab\" %0, %1", "5, 3", "5@(b,a), 3", 0));
    fires(17, "add", TWO, &slice("add %0, f64:2.0", "5, 3", "5, 3@(b,a)", 1));
    fires(17, "einsum", TWO, &slice("einsum \"ab,bc->ac\" %0, %1", "5, 5", "5, 5@(b,a)", 1));
    fires(17, "reduce_max", TWO, &slice("reduce_max \"ab->b\" %0", "3", "3@(b,a)", 0));
    fires(17, "fill", TWO, &slice("fill 2.0", "5", "5@(b,a)", 0));
    fires(17, "concat", TWO, &slice("concat dim=1 %0, %0", "5, 6", "5@(b,a), 6", 0));
    fires(17, "random", TWO, &slice("random normal(0.0, 1.0) stream=3 i64:9", "5, 3", "5, 3@(b,a)", 1));
    fires(17, "identity", TWO, &slice("identity \"ab->acb\" %0", "5, 7, 3", "5, 7@(b,a), 3", 1));
    // Dimensions that must be whole.
    silent(17, TWO, &slice("concat dim=0 %0, %0", "10, 3", "10@(b,a), 3", 0));
    silent(17, TWO, &slice("cumsum dim=0 %0", "5, 3", "5@(b,a), 3", 0));
    silent(17, TWO, &slice("reshape %0", "15", "15@(b,a)", 0));
    fires(
        17,
        "iota",
        TWO,
        "
        %0 = iota : i64[7]
        %1 = shard_slice (b,a) dim=0 %0 : i64[7@(b,a)]",
    );
    fires(
        17,
        "take",
        TWO,
        "
        %0 = input data \"x\" : f64[5, 3]
        %1 = input data \"i\" : i64[4]
        %2 = take %0, %1 : f64[4, 3]
        %3 = shard_slice (b,a) dim=0 %2 : f64[4@(b,a), 3]",
    );
    // The rows of a scatter: every rank applies the updates of its own rows.
    fires(
        17,
        "scatter_add",
        TWO,
        "
        %0 = input data \"i\" : i64[4]
        %1 = input data \"x\" : f64[4, 3]
        %2 = scatter_add %0, %1 : f64[5, 3]
        %3 = shard_slice (b,a) dim=0 %2 : f64[5@(b,a), 3]",
    );
    // The seed of random numbers; a broadcast that is already cut.
    fires(
        17,
        "identity",
        TWO,
        "
        %0 = input data \"x\" : f64[3]
        %1 = identity \"a->ba\" %0 : f64[5@b, 3]
        %2 = shard_slice a dim=0 %1 : f64[5@(b,a), 3]",
    );
}

#[test]
fn rule_18_transposes() {
    fires(
        18,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 3]
        %1 = all_gather (b,a) dim=0 %0 : f64[5, 3]
        %2 = identity \"ab->ba\" %1 : f64[3, 5]",
    );
    fires(
        18,
        "identity",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 3]
        %1 = identity \"ab->ba\" %0 : f64[3, 5@(b,a)]
        %2 = all_gather a dim=1 %1 : f64[3, 5@b]",
    );
    silent(
        18,
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 3]
        %1 = all_gather a dim=0 %0 : f64[5, 3]
        %2 = neg \"ab->ba\" %1 : f64[3, 5]",
    );
}

/// The cut of a dimension that only the result has is kept, while the others change.
#[test]
fn broadcasts_and_scatters_move_too() {
    fires(
        18,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[5@b]
        %1 = all_gather b dim=0 %0 : f64[5]
        %2 = identity \"a->ba\" %1 : f64[3@a, 5]",
    );
    fires(
        12,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[5@b]
        %1 = input data \"y\" : f64[5]
        %2 = all_gather b dim=0 %0 : f64[5]
        %3 = mul \"a,a->ba\" %2, %1 : f64[3@a, 5]",
    );
    fires(
        17,
        "identity",
        TWO,
        "
        %0 = input data \"x\" : f64[5]
        %1 = identity \"a->ba\" %0 : f64[3@a, 5]
        %2 = shard_slice b dim=1 %1 : f64[3@a, 5@b]",
    );
    fires(
        20,
        "all_gather",
        TWO,
        "
        %0 = input data \"i\" : i64[4]
        %1 = input data \"x\" : f64[4, 5@b]
        %2 = all_gather b dim=1 %1 : f64[4, 5]
        %3 = scatter_add %0, %2 : f64[3@a, 5]",
    );
    fires(
        16,
        "scatter_add",
        TWO,
        "
        %0 = input data \"i\" : i64[4]
        %1 = input data \"x\" : f64[7@b, 4, 5]
        %2 = reduce_sum \"abc->bc\" %1 : f64[4, 5] +sum@b
        %3 = scatter_add %0, %2 : f64[3@a, 5] +sum@b
        %4 = reduce_scatter b sum dim=1 %3 : f64[3@a, 5@b]",
    );
    // The axis of the gather cuts the new dimension, and the result cannot be cut by it twice.
    silent(
        18,
        ONE,
        "
        %0 = input data \"x\" : f64[5@a]
        %1 = all_gather a dim=0 %0 : f64[5]
        %2 = identity \"a->ba\" %1 : f64[3@a, 5]",
    );
}

#[test]
fn rule_19_reduces_chunks() {
    for op in ["sum", "max", "min", "prod"] {
        fires(
            19,
            "all_reduce",
            &["a=2, b=2", "a=2, b=3", "a=3, b=2"],
            &format!(
                "
            %0 = input data \"x\" : f64[5@(b,a), 3]
            %1 = all_gather (b,a) dim=0 %0 : f64[5, 3]
            %2 = reduce_{op} \"ab->b\" %1 : f64[3]"
            ),
        );
        // A gather of another dimension moves outward, which is rule 20.
        silent(
            19,
            ONE,
            &format!(
                "
            %0 = input data \"x\" : f64[5@a, 3]
            %1 = all_gather a dim=0 %0 : f64[5, 3]
            %2 = reduce_{op} \"ab->a\" %1 : f64[5]"
            ),
        );
        // A sum of maxima is not a maximum of sums: the result would be partial under two operators.
        if op != "sum" {
            silent(
                19,
                TWO,
                &format!(
                    "
                %0 = input data \"x\" : f64[5@a, 3@b, 2]
                %1 = all_gather a dim=0 %0 : f64[5, 3@b, 2]
                %2 = reduce_sum \"abc->ac\" %1 : f64[5, 2] +sum@b
                %3 = all_reduce b sum %2 : f64[5, 2]
                %4 = reduce_{op} \"ab->b\" %3 : f64[2]"
                ),
            );
        }
    }
}

/// A scatter-add sums gathered values in a different order, so this is rule 19 and not the exact rule 20.
#[test]
fn rule_19_scatters_chunks() {
    let body = "
        %0 = input data \"i\" : i64[5@(b,a)]
        %1 = input data \"x\" : f64[5@(b,a), 3]
        %2 = all_gather (b,a) dim=0 %0 : i64[5]
        %3 = all_gather (b,a) dim=0 %1 : f64[5, 3]
        %4 = scatter_add %2, %3 : f64[4, 3]";
    fires(19, "all_reduce", TWO, body);
    silent(20, TWO, body);
}

#[test]
fn rule_20_gathers_after_row_wise_operations() {
    for line in [
        "reduce_max \"ab->a\" %1 : f64[5]",
        "cumsum dim=1 %1 : f64[5, 4]",
        "slice dim=1 start=1 step=2 %1 : f64[5, 2]",
        "index dim=1 index=2 %1 : f64[5]",
        "concat dim=1 %1, %1 : f64[5, 8]",
        "pad dim=1 low=1 value=3.0 %1 : f64[5, 6]",
        "reshape %1 : f64[5, 2, 2]",
    ] {
        fires(
            20,
            "all_gather",
            TWO,
            &format!(
                "
            %0 = input data \"x\" : f64[5@(b,a), 4]
            %1 = all_gather (b,a) dim=0 %0 : f64[5, 4]
            %2 = {line}"
            ),
        );
        // The operation needs the gathered dimension whole.
        if !line.starts_with("reduce") {
            silent(
                20,
                TWO,
                &format!(
                    "
                %0 = input data \"x\" : f64[5, 4@(b,a)]
                %1 = all_gather (b,a) dim=1 %0 : f64[5, 4]
                %2 = {line}"
                ),
            );
        }
    }
    fires(
        20,
        "cumsum",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 4]
        %1 = cumsum dim=1 %0 : f64[5@(b,a), 4]
        %2 = all_gather (b,a) dim=0 %1 : f64[5, 4]",
    );
    // Rows of other ranks read as zeros, so the gather of the table becomes a sum.
    fires(
        22,
        "all_reduce",
        TWO,
        "
        %0 = input data \"w\" : f64[5@(b,a), 4]
        %1 = input data \"i\" : i64[3]
        %2 = all_gather (b,a) dim=0 %0 : f64[5, 4]
        %3 = take %2, %1 : f64[3, 4]",
    );
}

#[test]
fn rule_23_flattens() {
    fires(
        23,
        "all_reduce",
        TWO,
        "
        %0 = input data \"x\" : f64[7@(a,b), 5]
        %1 = reduce_sum \"ab->b\" %0 : f64[5] +sum@(a,b)
        %2 = all_reduce b sum %1 : f64[5] +sum@a
        %3 = all_reduce a sum %2 : f64[5]",
    );
    // Uneven chunks (pytorch 194457): 5 and 10 over 2×2 are split into 2,1,1,1 and 3,2,3,2.
    for n in [1, 5, 10, 12] {
        fires(
            23,
            "all_gather",
            TWO,
            &format!(
                "
            %0 = input data \"x\" : f64[3, {n}@(b,a)]
            %1 = all_gather a dim=1 %0 : f64[3, {n}@b]
            %2 = all_gather b dim=1 %1 : f64[3, {n}]"
            ),
        );
    }
    silent(
        23,
        TWO,
        "
        %0 = input data \"x\" : f64[3@a, 5@b]
        %1 = all_gather a dim=0 %0 : f64[3, 5@b]
        %2 = all_gather b dim=1 %1 : f64[3, 5]",
    );
    silent(
        23,
        TWO,
        "
        %0 = input data \"x\" : f64[7@a, 5]
        %1 = reduce_sum \"ab->b\" %0 : f64[5] +sum@a
        %2 = all_reduce a sum %1 : f64[5]
        %3 = to_partial b sum %2 : f64[5] +sum@b
        %4 = reduce_scatter b sum dim=0 %3 : f64[5@b]",
    );
}

#[test]
fn rule_24_exchanges_collectives() {
    let last = |x: &str, lines: &str| format!("%0 = input data \"x\" : f64[{x}]\n{lines}");
    fires(
        24,
        "all_gather",
        TWO,
        &last(
            "5@a, 7@b",
            "
        %1 = all_gather a dim=0 %0 : f64[5, 7@b]
        %2 = shard_slice a dim=0 %1 : f64[5@a, 7@b]
        %3 = all_gather b dim=1 %2 : f64[5@a, 7]
        %4 = all_gather a dim=0 %3 : f64[5, 7]",
        ),
    );
    fires(
        24,
        "all_reduce",
        TWO,
        &last(
            "7@b, 5@a, 3",
            "
        %1 = reduce_sum \"abc->bc\" %0 : f64[5@a, 3] +sum@b
        %2 = all_reduce b sum %1 : f64[5@a, 3]
        %3 = all_gather a dim=0 %2 : f64[5, 3]",
        )
        .replace("all_gather a", "all_to_all a")
        .replace("dim=0 %2 : f64[5, 3]", "from=0 to=1 %2 : f64[5, 3@a]"),
    );
    fires(
        24,
        "shard_slice",
        TWO,
        &last(
            "5@a, 7",
            "
        %1 = shard_slice b dim=1 %0 : f64[5@a, 7@b]
        %2 = all_gather a dim=0 %1 : f64[5, 7@b]",
        ),
    );
    fires(
        24,
        "to_partial",
        TWO,
        &last(
            "5@a, 7",
            "
        %1 = to_partial b sum %0 : f64[5@a, 7] +sum@b
        %2 = all_gather a dim=0 %1 : f64[5, 7] +sum@b",
        ),
    );
    // Both act on one dimension, whose order of axes matters; both use the same axis.
    silent(
        24,
        TWO,
        &last(
            "5@a, 7",
            "
        %1 = shard_slice b dim=0 %0 : f64[5@(a,b), 7]
        %2 = all_to_all b from=0 to=1 %1 : f64[5@a, 7@b]",
        ),
    );
    silent(
        24,
        ONE,
        &last(
            "5@a, 7",
            "
        %1 = all_gather a dim=0 %0 : f64[5, 7]
        %2 = shard_slice a dim=1 %1 : f64[5, 7@a]",
        ),
    );
    // Two different reduction operators.
    silent(
        24,
        TWO,
        &last(
            "7@b, 5",
            "
        %1 = reduce_sum \"ab->b\" %0 : f64[5] +sum@b
        %2 = all_reduce b sum %1 : f64[5]
        %3 = to_partial a max %2 : f64[5] +max@a",
        ),
    );
}

#[test]
fn rule_26_casts_what_is_gathered() {
    fires(
        26,
        "all_gather",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 3]
        %1 = all_gather (b,a) dim=0 %0 : f64[5, 3]
        %2 = cast.bf16 %1 : bf16[5, 3]",
    );
    fires(
        26,
        "cast.f32",
        TWO,
        "
        %0 = input data \"x\" : f64[5@(b,a), 3]
        %1 = cast.f32 %0 : f32[5@(b,a), 3]
        %2 = all_gather (b,a) dim=0 %1 : f32[5, 3]",
    );
    // A reduction in a different precision has a different value.
    silent(
        26,
        ONE,
        "
        %0 = input data \"x\" : f64[5@a, 3]
        %1 = reduce_sum \"ab->b\" %0 : f64[3] +sum@a
        %2 = all_reduce a sum %1 : f64[3]
        %3 = cast.bf16 %2 : bf16[3]",
    );
}

/// Programs whose last line has a gather in an operand, by the instance of the theorem of gathers that applies to it.
const GATHERED: [(u32, &str, &str); 10] = [
    (11, "all_gather", "%2 = exp %1 : f64[6, 4]"),
    (12, "all_gather", "%2 = input data \"y\" : f64[6]\n%3 = mul \"ab,a->ab\" %1, %2 : f64[6, 4]"),
    (13, "all_gather", "%2 = input data \"w\" : f64[4, 2]\n%3 = einsum \"ab,bc->ac\" %1, %2 : f64[6, 2]"),
    (
        14,
        "all_reduce",
        "%2 = input data \"w\" : f64[6@a, 2]\n%3 = all_gather a dim=0 %2 : f64[6, 2]
        %4 = einsum \"ab,ac->bc\" %1, %3 : f64[4, 2]",
    ),
    (15, "all_reduce", "%2 = input data \"w\" : f64[6, 2]\n%3 = einsum \"ab,ac->bc\" %1, %2 : f64[4, 2]"),
    (18, "all_gather", "%2 = identity \"ab->ba\" %1 : f64[4, 6]"),
    (19, "all_reduce", "%2 = reduce_sum \"ab->b\" %1 : f64[4]"),
    (20, "all_gather", "%2 = reduce_sum \"ab->a\" %1 : f64[6]"),
    (22, "all_reduce", "%2 = input data \"i\" : i64[3]\n%3 = take %1, %2 : f64[3, 4]"),
    (26, "all_gather", "%2 = cast.f32 %1 : f32[6, 4]"),
];

/// Among the instances of the theorem of gathers, exactly the one that applies to a program finds a term in it.
#[test]
fn disabling_an_instance_disables_only_that_instance() {
    let family: Vec<u32> = GATHERED.iter().map(|instance| instance.0).collect();
    for (rule, gives, line) in GATHERED {
        let body = format!("%0 = input data \"x\" : f64[6@a, 4]\n%1 = all_gather a dim=0 %0 : f64[6, 4]\n{line}");
        let graph = read("a=2", &body);
        for off in &family {
            let others: Vec<u32> = family.iter().copied().filter(|other| other != off).collect();
            let names = added(&graph, &saturate(&graph, uneven(), &only(&others)));
            let finds = names.iter().any(|name| name == gives);
            assert_eq!(finds, *off != rule, "without rule {off}, {names:?} in the program of rule {rule}: {line}");
            assert!(finds || names.is_empty(), "without rule {off}, {names:?} in the program of rule {rule}: {line}");
        }
        fires(rule, gives, ONE, &body);
    }
}

/// A top-k of which only the indices are read, and two different ones of the same operand.
#[test]
fn results_of_one_operation_are_distinguished() {
    let source = "mesh <a=2>
        %0 = input data \"x\" : f64[3, 5@a]
        %1 = all_gather a dim=1 %0 : f64[3, 5]
        %2 = top_k %1 : f64[3, 1], i64[3, 1]
        %3 = top_k %1 : f64[3, 2], i64[3, 2]
        output result \"best\" %2.1
        output result \"two\" %3.1";
    let graph = parse::parse(source).unwrap();
    agrees(&graph, &integers(&graph, 1, 5), &every_rule(), 0.0).unwrap();
}

/// Checks that the optimized graph passes the checker, denotes the original graph, computes the same values, costs no
/// more, and is the same every time.
fn agrees(graph: &Graph, inputs: &Inputs, options: &SearchOptions, tolerance: f64) -> Result<(), String> {
    let (optimized, report) = improve(graph, uneven(), options);
    let shown = || format!("{}\nbecame\n{}", text::print(graph), text::print(&optimized));
    match check(&optimized) {
        // A partial output remains partial.
        Err(CheckError::Output { .. }) if check(graph).is_err() => {}
        checked => checked.map_err(|e| format!("{e}\n{}", shown()))?,
    }
    denotes(&optimized, graph).map_err(|e| format!("{e}\n{}", shown()))?;
    if report.after > report.before * (1.0 + 1e-9) {
        return Err(format!("costs {} instead of {}: {}", report.after, report.before, shown()));
    }
    let second = text::print(&improve(graph, uneven(), options).0);
    if second != text::print(&optimized) {
        return Err(format!("two different programs: {}\nand\n{second}", shown()));
    }
    let wanted = interpret(graph, inputs, &Options::default()).map_err(|e| format!("{e}\n{}", shown()))?;
    let found = simulate(&optimized, inputs, &Options::default()).map_err(|e| format!("{e}\n{}", shown()))?;
    let equal = wanted.len() == found.len() && wanted.iter().zip(&found).all(|(a, b)| ranks::same(a, b, tolerance));
    if equal { Ok(()) } else { Err(format!("a different value\n{}", shown())) }
}

/// Annotations that cut every input randomly.
fn annotations(graph: &Graph, mesh: &Mesh, choices: &[u16]) -> Annotations {
    let mut next = choices.iter().copied().cycle();
    let mut below = |n: usize| next.next().map_or(0, |c| c as usize % n);
    let place = |(n, id): (_, &InputId)| {
        let rank = graph.node(n).types[0].rank();
        let mut sharding = Sharding::replicated(rank);
        let mut axes: Vec<AxisId> = mesh.axis_ids().collect();
        if below(2) == 1 {
            axes.reverse();
        }
        for axis in axes {
            let d = below(rank + 1);
            if d < rank {
                sharding.dims[d].push(axis);
            }
        }
        (id.clone(), Annotation { sharding, why: Demand::Note("at random".into()).into() })
    };
    Annotations { mesh: mesh.clone(), inputs: graph.inputs().map(place).collect(), ..Annotations::default() }
}

/// A perceptron with biases, and its gradients derived by hand.
fn perceptron(b: usize, i: usize, h: usize, o: usize) -> String {
    format!(
        "mesh <>
        %0 = input data \"x\" : f64[{b}, {i}]
        %1 = input parameter \"w1\" : f64[{i}, {h}]
        %2 = input parameter \"b1\" : f64[{h}]
        %3 = input parameter \"w2\" : f64[{h}, {o}]
        %4 = input parameter \"b2\" : f64[{o}]
        %5 = einsum \"ab,bc->ac\" %0, %1 : f64[{b}, {h}]
        %6 = add \"ab,b->ab\" %5, %2 : f64[{b}, {h}]
        %7 = max %6, f64:0.0 : f64[{b}, {h}]
        %8 = einsum \"ab,bc->ac\" %7, %3 : f64[{b}, {o}]
        %9 = add \"ab,b->ab\" %8, %4 : f64[{b}, {o}]
        %10 = einsum \"ab,cb->ac\" %9, %3 : f64[{b}, {h}]
        %11 = gt %6, f64:0.0 : bool[{b}, {h}]
        %12 = select %11, %10, f64:0.0 : f64[{b}, {h}]
        %13 = einsum \"ab,ac->bc\" %7, %9 : f64[{h}, {o}]
        %14 = einsum \"ab,ac->bc\" %0, %12 : f64[{i}, {h}]
        %15 = reduce_sum \"ab->b\" %12 : f64[{h}]
        %16 = mul %14, f64:0.5 : f64[{i}, {h}]
        %17 = sub %1, %16 : f64[{i}, {h}]
        %18 = mul %9, %9 : f64[{b}, {o}]
        %19 = reduce_sum \"ab->\" %18 : f64[]
        output loss %19
        output gradient \"w2\" %13
        output gradient \"b1\" %15
        output update \"w1\" %17"
    )
}

/// Embeddings from a table, followed by self-attention with a residual and a normalizing division.
fn attention(t: usize, heads: usize, d: usize, v: usize) -> String {
    let m = heads * d;
    format!(
        "mesh <>
        %0 = input data \"i\" : i64[{t}]
        %1 = input parameter \"table\" : f64[{v}, {m}]
        %2 = input parameter \"q\" : f64[{m}, {heads}, {d}]
        %3 = input parameter \"k\" : f64[{m}, {heads}, {d}]
        %4 = input parameter \"o\" : f64[{heads}, {d}, {m}]
        %5 = take %1, %0 : f64[{t}, {m}]
        %6 = einsum \"ab,bcd->acd\" %5, %2 : f64[{t}, {heads}, {d}]
        %7 = einsum \"ab,bcd->acd\" %5, %3 : f64[{t}, {heads}, {d}]
        %8 = einsum \"abc,dbc->bad\" %6, %7 : f64[{heads}, {t}, {t}]
        %9 = reduce_max \"abc->ab\" %8 : f64[{heads}, {t}]
        %10 = sub \"abc,ab->abc\" %8, %9 : f64[{heads}, {t}, {t}]
        %11 = exp %10 : f64[{heads}, {t}, {t}]
        %12 = reduce_sum \"abc->ab\" %11 : f64[{heads}, {t}]
        %13 = div \"abc,ab->abc\" %11, %12 : f64[{heads}, {t}, {t}]
        %14 = einsum \"abc,cad->bad\" %13, %6 : f64[{t}, {heads}, {d}]
        %15 = einsum \"abc,bcd->ad\" %14, %4 : f64[{t}, {m}]
        %16 = add %15, %5 : f64[{t}, {m}]
        %17 = einsum \"ab,cb->ac\" %16, %1 : f64[{t}, {v}]
        %18 = scatter_add %0, %16 : f64[{v}, {m}]
        %19 = identity \"ab->acb\" %16 : f64[{t}, 3, {m}]
        %20 = reduce_sum \"abc->b\" %19 : f64[3]
        output result \"logits\" %17
        output gradient \"table\" %18
        output loss %20"
    )
}

/// Meshes of one and two axes, even and uneven.
const MESHES: [&str; 5] = ["a=2", "a=3", "a=2,b=2", "a=2,b=3", "a=3,b=2"];

/// Propagates a model under random annotations and checks the result of all rules on it.
fn propagated(source: &str, mesh: usize, choices: &[u16], tolerance: f64) -> Result<(), String> {
    let model = parse::parse(source).map_err(|e| format!("{e}\n{source}"))?;
    let mesh = Mesh::parse(MESHES[mesh % MESHES.len()]).unwrap();
    let placed = propagate(&model, &annotations(&model, &mesh, choices), uneven());
    check(&placed).map_err(|e| format!("propagate: {e}\n{}", text::print(&placed)))?;
    denotes(&placed, &model).map_err(|e| format!("propagate: {e}\n{}", text::print(&placed)))?;
    let inputs = integers(&model, u64::from(choices[0]), 4);
    agrees(&placed, &inputs, &every_rule(), tolerance)?;
    let saturated = saturate(&placed, uneven(), &every_rule());
    check_classes(&placed, &saturated, &inputs, tolerance)?;
    Ok(())
}

/// Counts the terms that each rule adds to random graphs, to ensure that the random tests cover every rule.
#[test]
fn every_rule_takes_part_in_random_graphs() {
    let mut terms: BTreeMap<RuleId, usize> = BTreeMap::new();
    let mut tally = |graph: &Graph| {
        for (rule, work) in saturate(graph, uneven(), &every_rule()).rules {
            *terms.entry(rule).or_default() += work.added;
        }
    };
    let draw = |seed: u64, n: usize| (0..n).map(|i| dice(seed, i, 1 << 16) as u16).collect::<Vec<u16>>();
    let mut fit = 0;
    for seed in 0..150 {
        let graph = generator::build(&draw(seed, 160)).graph;
        if !matches!(check(&graph), Err(CheckError::Misplaced { .. } | CheckError::Declared { .. })) {
            fit += 1;
            tally(&graph);
        }
        let (source, mesh) = (perceptron(4, 3, 6, 2), Mesh::parse(MESHES[seed as usize % MESHES.len()]).unwrap());
        let model = parse::parse(&source).unwrap();
        tally(&propagate(&model, &annotations(&model, &mesh, &draw(seed, 20)), uneven()));
    }
    println!("{fit} generated graphs fit; terms by rule: {terms:?}");
    assert!(fit > 100);
    // Rules 3, 4 and the inverse pairs of 5 do not add terms but merge classes.
    let adds = |rule: &RuleId| terms.get(rule).is_some_and(|&added| added > 0);
    let idle: Vec<RuleId> = RuleId::all().filter(|rule| ![3, 4].contains(&rule.number()) && !adds(rule)).collect();
    assert!(idle.is_empty(), "rules {idle:?} never fire");
}

/// Counts the random programs for which disabling a rule makes the result more expensive. `RULES.md` lists these
/// numbers.
#[test]
fn what_each_rule_buys_on_random_programs() {
    let draw = |seed: u64, n: usize| (0..n).map(|i| dice(seed, i, 1 << 16) as u16).collect::<Vec<u16>>();
    let (mut searches, mut pays, mut hurts) = (0, BTreeMap::new(), BTreeMap::new());
    for seed in 0..40 {
        // Small programs, in which latency dominates the cost of collectives, and large ones, in which bandwidth does.
        let sources = [
            perceptron(4, 3, 6, 2),
            attention(4, 2, 3, 5),
            perceptron(4096, 512, 2048, 512),
            attention(512, 8, 64, 4096),
        ];
        let mesh = Mesh::parse(MESHES[seed as usize % MESHES.len()]).unwrap();
        for source in sources {
            let model = parse::parse(&source).unwrap();
            let graph = propagate(&model, &annotations(&model, &mesh, &draw(seed, 20)), uneven());
            let all = SearchOptions { disabled: BTreeSet::new(), ..SearchOptions::default() };
            let (_, report) = improve(&graph, uneven(), &all);
            searches += 1;
            for (&rule, _) in report.rules.iter().filter(|(_, work)| work.added + work.unions > 0) {
                let options = SearchOptions { disabled: BTreeSet::from([rule]), ..SearchOptions::default() };
                let change = improve(&graph, uneven(), &options).1.after / report.after;
                if change > 1.0 + 1e-9 {
                    *pays.entry(rule.number()).or_insert(0) += 1;
                } else if change < 1.0 - 1e-9 {
                    *hurts.entry(rule.number()).or_insert(0) += 1;
                }
            }
        }
    }
    println!("{searches} searches; cheaper with a rule: {pays:?}; cheaper without it: {hurts:?}");
    assert!(pays.len() > 5);
}

/// The evaluator detects two different values in one class.
#[test]
fn a_wrong_union_is_detected() {
    let graph = read(
        "a=2",
        "
        %0 = input data \"x\" : f64[5@a]
        %1 = neg %0 : f64[5@a]
        %2 = add %0, %1 : f64[5@a]",
    );
    let mut saturated = saturate(&graph, uneven(), &only(&[]));
    assert_eq!(check_classes(&graph, &saturated, &integers(&graph, 0, 5), 0.0), Ok(3));
    let values: Vec<Id> = graph.nodes().map(|n| saturated.class_of[&n.into()]).collect();
    saturated.egraph.union(values[0], values[1]);
    saturated.egraph.rebuild();
    let error = check_classes(&graph, &saturated, &integers(&graph, 0, 5), 0.0).unwrap_err();
    assert!(error.starts_with("terms of one class differ"), "{error}");
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() }
}

fn choices() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), 12..24)
}

proptest! {
    #![proptest_config(config(250))]

    #[test]
    fn optimized_perceptrons_keep_their_values(sizes in prop::array::uniform4(1usize..6), mesh in 0usize..5, choices in choices()) {
        let [b, i, h, o] = sizes;
        let checked = propagated(&perceptron(b, i, h, o), mesh, &choices, 1e-12);
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }

    #[test]
    fn optimized_attentions_keep_their_values(sizes in prop::array::uniform4(1usize..5), mesh in 0usize..5, choices in choices()) {
        let [t, heads, d, v] = sizes;
        let checked = propagated(&attention(t, heads, d, v), mesh, &choices, 1e-9);
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
    }
}

proptest! {
    #![proptest_config(config(1500))]

    /// All operations, from the generator of the tests of the IR.
    #[test]
    fn terms_of_a_class_are_equal(choices in prop::collection::vec(any::<u16>(), 40..160)) {
        let case = generator::build(&choices);
        if let Err(e @ (CheckError::Misplaced { .. } | CheckError::Declared { .. })) = check(&case.graph) {
            return Err(TestCaseError::reject(e.to_string()));
        }
        let options = SearchOptions { rounds: 2, ..every_rule() };
        let saturated = saturate(&case.graph, uneven(), &options);
        let checked = check_classes(&case.graph, &saturated, &case.inputs, 1e-9);
        prop_assert!(checked.is_ok(), "{}\n{}", checked.unwrap_err(), text::print(&case.graph));
        let optimized = agrees(&case.graph, &case.inputs, &options, 1e-9);
        prop_assert!(optimized.is_ok(), "{}", optimized.unwrap_err());
    }
}
