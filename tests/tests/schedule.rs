//! Bucketing, overlap and the order of collectives: programs before and after, random programs on real ranks, and
//! programs that must be rejected.

#[path = "../../ir/tests/generator/mod.rs"]
mod generator;

use proptest::prelude::*;
use std::fmt::Write as _;
use tpc_ir::interpret::Tensor;
use tpc_ir::program::{Action, RankProgram};
use tpc_ir::{Graph, InputId, MapFn, Op, Origin, Output, Type, parse, random, text};
use tpc_passes::check::check;
use tpc_passes::lower::check_ranks::{RankError, check_ranks};
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::targets::Target;
use tpc_tests::{difference, executed_programs, on_ranks, wrong};

// ---------------------------------------------------------------------------------------------------------------------
// Before and after

fn graph(source: &str) -> Graph {
    let graph = parse::parse(source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    check(&graph).unwrap_or_else(|e| panic!("{e}\n{source}"));
    graph
}

/// One line per step of a rank.
fn outline(program: &RankProgram) -> String {
    let mut out = String::new();
    for step in &program.steps {
        let _ = match &step.action {
            Action::Start(c) => writeln!(out, "start #{} {} of {} bytes: {}", c.tag, step.label, c.full_bytes, c.why),
            Action::Wait { tag } => writeln!(out, "wait #{tag}"),
            _ => writeln!(out, "{}", step.label),
        };
    }
    out
}

fn outlines(source: &str) -> [String; 2] {
    let graph = graph(source);
    let bucketed = LowerOptions { overlap: false, ..LowerOptions::default() };
    let (a, b) = (
        lower_with(&graph, Target::cpu(), &bucketed).unwrap(),
        lower_with(&graph, Target::cpu(), &generous()).unwrap(),
    );
    agrees(&graph, &inputs(&graph));
    [outline(&a[0]), outline(&b[0])]
}

/// Options that leave memory unbounded.
fn generous() -> LowerOptions {
    LowerOptions { memory_growth: 10.0, ..LowerOptions::default() }
}

/// Small integers for every input.
fn inputs(graph: &Graph) -> std::collections::HashMap<InputId, Tensor> {
    let tensor = |(node, id): (_, &InputId)| {
        let ty = &graph.node(node).types[0];
        let count: usize = ty.shape.iter().product();
        let data = (0..count)
            .map(|i| f64::from(random::philox(7, id.to_string().len() as u64, i as u64)[0] % 5) - 2.0)
            .collect();
        (id.clone(), Tensor::new(ty.dtype, ty.shape.clone(), data))
    };
    graph.inputs().map(tensor).collect()
}

/// Whether an output is exact on both sides: the interpreter computes in f64, and the results of functions that are not
/// integers are undefined for integers.
fn is_exact(graph: &Graph, output: &Output) -> bool {
    use tpc_ir::MapFn::*;
    let inexact = |f: &MapFn| {
        matches!(f, Div | Pow | Rem | Exp | Log | Sqrt | Rsqrt | Recip | Tanh | Erf | Sin | Cos | Sigmoid | Cast(_))
    };
    match graph.op(output.value) {
        Op::Map { f, .. } => !inexact(f),
        Op::Random { .. } => false,
        _ => true,
    }
}

/// Checks that every way of lowering gives the exact meaning of the graph, and that the ranks' programs match.
fn agrees(graph: &Graph, inputs: &std::collections::HashMap<InputId, Tensor>) -> [usize; 2] {
    let want = on_ranks(graph, inputs);
    let default = generous();
    let ways = [
        LowerOptions::plain(),
        default,
        LowerOptions { bucket_bytes: 64, window: 4, ..default },
        LowerOptions { in_flight: 1, ..default },
        LowerOptions { window: 1000, bucket_bytes: usize::MAX, ..default },
        LowerOptions { bucket_bytes: 64, memory: Some(0), ..default },
    ];
    let mut counts = Vec::new();
    let mut plain: Option<Vec<Tensor>> = None;
    for options in ways {
        let programs = lower_with(graph, Target::cpu(), &options).unwrap();
        check_ranks(&programs).unwrap_or_else(|e| panic!("{e}\n{}", text::print(graph)));
        counts.push(programs[0].collectives().count());
        for p in &programs {
            let mut flying = 0usize;
            for step in &p.steps {
                match step.action {
                    Action::Start(_) => flying += 1,
                    Action::Wait { .. } => flying -= 1,
                    _ => {}
                }
                assert!(flying <= options.in_flight);
            }
        }
        let got = executed_programs(graph, programs, inputs);
        let plain = plain.get_or_insert_with(|| got.clone());
        let changed = wrong(graph, &got, plain, 0.0);
        assert!(changed.is_empty(), "{options:?}\n{changed:?}\n{}", text::print(graph));
        for (i, output) in graph.outputs.iter().enumerate().filter(|(_, o)| is_exact(graph, o)) {
            let d = difference(&got[i..=i], &want[i..=i]);
            assert!(d == 0.0, "{options:?}\n{:?}: {d:e}\n{}", output.kind, text::print(graph));
        }
    }
    let bucketed =
        lower_with(graph, Target::cpu(), &LowerOptions { overlap: false, ..LowerOptions::default() }).unwrap();
    let overlapped = lower_with(graph, Target::cpu(), &LowerOptions::default()).unwrap();
    let bound = bucketed[0].arena_bytes as f64 * (1.0 + LowerOptions::default().memory_growth);
    assert!(overlapped[0].arena_bytes as f64 <= bound, "{} of {bound}", overlapped[0].arena_bytes);
    [counts[0], counts[1]]
}

/// The weight gradient precedes the reduction in the program, and is computed after the reduction starts.
#[test]
fn a_weight_gradient_is_computed_while_the_input_gradient_is_reduced() {
    let [before, after] = outlines(
        "mesh <tp=2>
%0 = input parameter \"w\" : f32[64, 64@tp]
%1 = input data \"x\" : f32[64, 64]
%2 = input data \"g\" : f32[64, 64@tp]
%3 = einsum \"ab,ac->bc\" %1, %2 : f32[64, 64@tp] ; backward
%4 = einsum \"ab,cb->ac\" %2, %0 : f32[64, 64] +sum@tp ; backward
%5 = all_reduce tp sum %4 : f32[64, 64] ; backward why: w
%6 = mul %5, %1 : f32[64, 64] ; backward
%7 = sub %0, %3 : f32[64, 64@tp] ; optimizer
output result \"y\" %6
output update \"w\" %7
",
    );
    assert_eq!(before, "einsum\neinsum\nstart #0 all_reduce of 16384 bytes: w\nwait #0\nmul\nsub\n");
    assert_eq!(after, "einsum\nstart #0 all_reduce of 16384 bytes: w\neinsum\nsub\nwait #0\nmul\n");
}

/// Both sums over one axis share a bucket; the maximum that one of them needs does not.
#[test]
fn sums_that_do_not_depend_on_each_other_are_one() {
    let [before, after] = outlines(
        "mesh <tp=2>
%0 = input data \"x\" : f32[5, 6@tp]
%1 = reduce_max \"ab->a\" %0 : f32[5] +max@tp
%2 = all_reduce tp max %1 : f32[5] ; why: largest
%3 = sub \"ab,a->ab\" %0, %2 : f32[5, 6@tp]
%4 = reduce_sum \"ab->a\" %3 : f32[5] +sum@tp
%5 = all_reduce tp sum %4 : f32[5] ; why: sum
%6 = mul %3, %3 : f32[5, 6@tp]
%7 = reduce_sum \"ab->a\" %6 : f32[5] +sum@tp
%8 = all_reduce tp sum %7 : f32[5] ; why: squares
%9 = mul %5, %8 : f32[5]
output result \"y\" %9
",
    );
    let want = "reduce_max
start #0 all_reduce of 20 bytes: largest
wait #0
fused reduce (4)
start #1 all_reduce ×2 of 40 bytes: sum (and 1 more)
wait #1
mul
";
    assert_eq!((&*before, &*after), (want, want));
}

/// Clipping by the global norm under a sequence-parallel plan: the partial gradients of the gains and the squares of
/// the sharded gradients share a bucket, and the clipped updates follow.
#[test]
fn clipping_by_the_global_norm_is_one_reduction() {
    let mut s = String::from("mesh <tp=2>\n");
    for i in 0..3 {
        let _ = writeln!(s, "%{i} = input parameter \"gain{i}\" : f32[4]");
    }
    s += "%3 = input parameter \"w\" : f32[4, 6@tp]
%4 = input data \"x\" : f32[6@tp, 4]
%5 = reduce_sum \"ab->b\" %4 : f32[4] +sum@tp ; backward
%6 = all_reduce tp sum %5 : f32[4] ; backward why: gain0
%7 = mul %4, f32:2.0 : f32[6@tp, 4] ; backward
%8 = reduce_sum \"ab->b\" %7 : f32[4] +sum@tp ; backward
%9 = all_reduce tp sum %8 : f32[4] ; backward why: gain1
%10 = neg %4 : f32[6@tp, 4] ; backward
%11 = reduce_sum \"ab->b\" %10 : f32[4] +sum@tp ; backward
%12 = all_reduce tp sum %11 : f32[4] ; backward why: gain2
%13 = add \"ab,ba->ab\" %3, %4 : f32[4, 6@tp] ; backward
%14 = mul %13, %13 : f32[4, 6@tp] ; optimizer
%15 = reduce_sum \"ab->\" %14 : f32[] +sum@tp ; optimizer
%16 = all_reduce tp sum %15 : f32[] ; optimizer why: norm
";
    let mut squares = Vec::new();
    for (i, g) in [6, 9, 12].into_iter().enumerate() {
        let n = 17 + 2 * i;
        let _ = writeln!(s, "%{n} = mul %{g}, %{g} : f32[4] ; optimizer");
        let _ = writeln!(s, "%{} = reduce_sum \"a->\" %{n} : f32[] ; optimizer", n + 1);
        squares.push(n + 1);
    }
    let _ = writeln!(s, "%23 = add %16, %{}, %{}, %{} : f32[] ; optimizer", squares[0], squares[1], squares[2]);
    s += "%24 = min %23, f32:1.0 : f32[] ; optimizer
%25 = mul \"ab,->ab\" %13, %24 : f32[4, 6@tp] ; optimizer
%26 = sub %3, %25 : f32[4, 6@tp] ; optimizer
%27 = mul \"a,->a\" %6, %24 : f32[4] ; optimizer
%28 = sub %0, %27 : f32[4] ; optimizer
%29 = mul \"a,->a\" %9, %24 : f32[4] ; optimizer
%30 = sub %1, %29 : f32[4] ; optimizer
%31 = mul \"a,->a\" %12, %24 : f32[4] ; optimizer
%32 = sub %2, %31 : f32[4] ; optimizer
output update \"w\" %26
output update \"gain0\" %28
output update \"gain1\" %30
output update \"gain2\" %32
";
    let [before, after] = outlines(&s);
    for outline in [before, after] {
        let starts: Vec<_> = outline.lines().filter(|l| l.starts_with("start")).collect();
        assert_eq!(starts, ["start #0 all_reduce ×4 of 52 bytes: gain0 (and 3 more)"], "{outline}");
    }
}

/// A sum that depends on another one cannot share its bucket.
#[test]
fn sums_that_depend_on_each_other_stay_apart() {
    let [before, _] = outlines(
        "mesh <tp=2>
%0 = input data \"x\" : f32[5, 6@tp]
%1 = reduce_sum \"ab->a\" %0 : f32[5] +sum@tp
%2 = all_reduce tp sum %1 : f32[5] ; why: first
%3 = mul \"ab,a->ab\" %0, %2 : f32[5, 6@tp]
%4 = reduce_sum \"ab->a\" %3 : f32[5] +sum@tp
%5 = all_reduce tp sum %4 : f32[5] ; why: second
output result \"y\" %5
",
    );
    assert_eq!(before.matches("×").count(), 0, "{before}");
    assert_eq!(before.matches("start").count(), 2, "{before}");
}

/// Parameters sharded over dp (FSDP), two for each block and one outside of the blocks, uneven, one of them empty on
/// the last rank. The gradients are not mathematically correct, but they are computed, scattered and read like real
/// ones.
fn fsdp(layers: usize, ranks: usize) -> String {
    let (b, d, h) = (2 * ranks, 5, 4);
    let mut s = format!("mesh <dp={ranks}>\n");
    let mut n = 0;
    let mut line = |s: &mut String, body: String| {
        let _ = writeln!(s, "%{n} = {body}");
        n += 1;
        n - 1
    };
    let mut weights = Vec::new();
    for l in 0..layers {
        let up = line(&mut s, format!("input parameter \"layers.{l}.up\" : f64[{d}@dp, {h}] unit {l}"));
        let down = line(&mut s, format!("input parameter \"layers.{l}.down\" : f64[{h}, {d}@dp] unit {l}"));
        weights.push((up, down));
    }
    let head = line(&mut s, format!("input parameter \"head\" : f64[{d}@dp, 3]"));
    let mut x = line(&mut s, format!("input data \"x\" : f64[{b}@dp, {d}]"));
    let gather =
        |s: &mut String, line: &mut dyn FnMut(&mut String, String) -> usize, v, dim, shape: &str, why: &str| {
            line(s, format!("all_gather dp dim={dim} %{v} : f64[{shape}] ; {why}"))
        };
    let mut saved = Vec::new();
    for (l, &(up, down)) in weights.iter().enumerate() {
        let u = gather(&mut s, &mut line, up, 0, &format!("{d}, {h}"), &format!("forward why: layers.{l}.up"));
        let a = line(&mut s, format!("einsum \"ab,bc->ac\" %{x}, %{u} : f64[{b}@dp, {h}] ; forward"));
        let r =
            line(&mut s, format!("clamp_min %{a}, f64:0.0 : f64[{b}@dp, {h}] ; forward").replace("clamp_min", "max"));
        let w = gather(&mut s, &mut line, down, 1, &format!("{h}, {d}"), &format!("forward why: layers.{l}.down"));
        let y = line(&mut s, format!("einsum \"ab,bc->ac\" %{r}, %{w} : f64[{b}@dp, {d}] ; forward"));
        let y = line(&mut s, format!("min %{y}, f64:3.0 : f64[{b}@dp, {d}] ; forward"));
        saved.push((x, r, u, w));
        x = y;
    }
    let g = gather(&mut s, &mut line, head, 0, &format!("{d}, 3"), "forward why: head");
    let logits = line(&mut s, format!("einsum \"ab,bc->ac\" %{x}, %{g} : f64[{b}@dp, 3] ; forward"));
    let mut dy = line(&mut s, format!("einsum \"ac,bc->ab\" %{logits}, %{g} : f64[{b}@dp, {d}] ; backward"));
    dy = line(&mut s, format!("min %{dy}, f64:3.0 : f64[{b}@dp, {d}] ; backward"));
    let head_grad = line(&mut s, format!("einsum \"ab,ac->bc\" %{x}, %{logits} : f64[{d}, 3] +sum@dp ; backward"));
    let mut grads = vec![(
        head,
        line(&mut s, format!("reduce_scatter dp sum dim=0 %{head_grad} : f64[{d}@dp, 3] ; backward why: head")),
        format!("{d}@dp, 3"),
        "head".to_string(),
    )];
    for (l, &(x, r, u, w)) in saved.iter().enumerate().rev() {
        let (up, down) = weights[l];
        // The parameters of the last block are still gathered.
        let (u, w) = if l + 1 == layers {
            (u, w)
        } else {
            let w = gather(&mut s, &mut line, down, 1, &format!("{h}, {d}"), &format!("backward why: layers.{l}.down"));
            (gather(&mut s, &mut line, up, 0, &format!("{d}, {h}"), &format!("backward why: layers.{l}.up")), w)
        };
        let dr = line(&mut s, format!("einsum \"ac,bc->ab\" %{dy}, %{w} : f64[{b}@dp, {h}] ; backward"));
        let dr = line(&mut s, format!("min %{dr}, f64:3.0 : f64[{b}@dp, {h}] ; backward"));
        let gw = line(&mut s, format!("einsum \"ab,ac->bc\" %{r}, %{dy} : f64[{h}, {d}] +sum@dp ; backward"));
        let gw = line(
            &mut s,
            format!("reduce_scatter dp sum dim=1 %{gw} : f64[{h}, {d}@dp] ; backward why: layers.{l}.down"),
        );
        let gu = line(&mut s, format!("einsum \"ab,ac->bc\" %{x}, %{dr} : f64[{d}, {h}] +sum@dp ; backward"));
        let gu =
            line(&mut s, format!("reduce_scatter dp sum dim=0 %{gu} : f64[{d}@dp, {h}] ; backward why: layers.{l}.up"));
        dy = line(&mut s, format!("einsum \"ab,cb->ac\" %{dr}, %{u} : f64[{b}@dp, {d}] ; backward"));
        dy = line(&mut s, format!("min %{dy}, f64:3.0 : f64[{b}@dp, {d}] ; backward"));
        grads.push((down, gw, format!("{h}, {d}@dp"), format!("layers.{l}.down")));
        grads.push((up, gu, format!("{d}@dp, {h}"), format!("layers.{l}.up")));
    }
    let mut outputs = format!("output result \"y\" %{logits}\n");
    for (p, g, shape, name) in grads {
        let new = line(&mut s, format!("sub %{p}, %{g} : f64[{shape}] ; optimizer"));
        let _ = writeln!(outputs, "output update \"{name}\" %{new}");
    }
    s + &outputs
}

/// One gather for each block and one for the head in the forward pass; one for each block but the last in the backward
/// pass, and one scatter of gradients for each.
#[test]
fn the_parameters_of_a_block_are_gathered_together_and_one_block_ahead() {
    for (layers, ranks) in [(2, 2), (4, 2), (3, 4)] {
        let graph = graph(&fsdp(layers, ranks));
        let [alone, together] = agrees(&graph, &inputs(&graph));
        assert_eq!(alone, (2 * layers + 1) + 2 * (layers - 1) + (2 * layers + 1));
        assert_eq!(together, (layers + 1) + (layers - 1) + (layers + 1), "layers of {layers}");
    }
    // The session chose the places of the parameters' shards: they are copied next to each other.
    let copies = |outline: String| outline.replace("copy operand\n", "");
    let [before, after] = outlines(&fsdp(3, 2)).map(copies);
    let want = "start #0 all_gather ×2 of 320 bytes: layers.0.up (and 1 more)
wait #0
einsum + max
einsum + min
start #1 all_gather ×2 of 320 bytes: layers.1.up (and 1 more)
";
    assert!(before.starts_with(want), "{before}");
    let want = "start #0 all_gather ×2 of 320 bytes: layers.0.up (and 1 more)
wait #0
start #1 all_gather ×2 of 320 bytes: layers.1.up (and 1 more)
einsum + max
einsum + min
wait #1
start #2 all_gather ×2 of 320 bytes: layers.2.up (and 1 more)
";
    assert!(after.starts_with(want), "{after}");
    // At most two gathers at once.
    let mut held = 0;
    for line in after.lines().filter(|l| !l.contains("reduce_scatter")) {
        held += i32::from(line.starts_with("start"));
        held -= i32::from(line.starts_with("wait"));
        assert!(held <= 1, "{after}");
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Memory

/// An overlap that needs too much memory is rejected.
#[test]
fn the_bound_on_memory_is_kept() {
    let graph = graph(&fsdp(6, 2));
    let arena = |options: LowerOptions| lower_with(&graph, Target::cpu(), &options).unwrap()[0].arena_bytes;
    let alone = arena(LowerOptions { overlap: false, ..LowerOptions::default() });
    for memory_growth in [0.0, 0.05, 0.2, 1.0] {
        let overlapped = arena(LowerOptions { memory_growth, ..LowerOptions::default() });
        assert!(overlapped as f64 <= alone as f64 * (1.0 + memory_growth), "{overlapped} of {alone}, {memory_growth}");
    }
}

/// More collectives than the communicator keeps, while an early one is waited for at the end.
#[test]
fn a_long_chain_of_collectives_stays_within_the_depth_of_a_group() {
    let mut s = String::from(
        "mesh <tp=2>\n%0 = input data \"x\" : f32[4, 2@tp]\n%1 = reduce_sum \"ab->b\" %0 : f32[2@tp]\n%2 = all_gather tp dim=0 %1 : f32[2]\n",
    );
    let mut x = 0;
    for i in 0..100 {
        let n = 3 + 3 * i;
        let _ = writeln!(s, "%{n} = reduce_sum \"ab->a\" %{x} : f32[4] +sum@tp");
        let _ = writeln!(s, "%{} = all_reduce tp sum %{n} : f32[4]", n + 1);
        let _ = writeln!(s, "%{} = min \"ab,a->ab\" %0, %{} : f32[4, 2@tp]", n + 2, n + 1);
        x = n + 2;
    }
    let _ = writeln!(s, "output result \"y\" %{x}\noutput result \"z\" %2");
    let graph = graph(&s);
    agrees(&graph, &inputs(&graph));
    let programs = lower_with(&graph, Target::cpu(), &generous()).unwrap();
    assert_eq!(programs[0].collectives().count(), 101);
}

// ---------------------------------------------------------------------------------------------------------------------
// Random programs

/// A random graph. Values that would remain partial at its end are reduced, since otherwise no output could read them.
fn random_case(choices: &[u16]) -> generator::Case {
    let mut case = generator::build(choices);
    for i in 0..case.graph.outputs.len() {
        let value = case.graph.outputs[i].value;
        let ty = case.graph.ty(value).clone();
        if let Some(partial) = ty.sharding.partial {
            let sharding = ty.sharding.reduced(partial.axes);
            let op = Op::AllReduce { op: partial.op, axes: partial.axes };
            case.graph.outputs[i].value = case.graph.push(op, &[value], Type { sharding, ..ty }, &Origin::default());
        }
    }
    case
}

/// The random programs do contain buckets, which the property below relies on.
#[test]
fn random_programs_hold_buckets_and_overlap() {
    let (mut buckets, mut overlapped) = (0, 0);
    for seed in 0..60u64 {
        let choices: Vec<u16> = (0..400).map(|i| random::philox(seed, 0, i)[0] as u16).collect();
        let graph = random_case(&choices).graph;
        let program = lower_with(&graph, Target::cpu(), &generous()).unwrap().swap_remove(0);
        buckets += program.collectives().filter(|c| c.values > 1).count();
        let starts = program
            .steps
            .windows(2)
            .filter(|w| matches!(w[0].action, Action::Start(_)) && !matches!(w[1].action, Action::Wait { .. }));
        overlapped += starts.count();
    }
    assert!(buckets >= 20 && overlapped >= 20, "{buckets} buckets, {overlapped} overlapped");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Real ranks give exactly the interpreter's results, however the program is bucketed and ordered.
    #[test]
    fn scheduled_programs_mean_the_same(choices in prop::collection::vec(any::<u16>(), 100..400)) {
        let case = random_case(&choices);
        agrees(&case.graph, &case.inputs);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Programs that must be refused

fn two_groups() -> Vec<RankProgram> {
    let graph = graph(
        "mesh <dp=2, tp=2>
%0 = input data \"x\" : f32[6@dp, 4@tp]
%1 = reduce_sum \"ab->a\" %0 : f32[6@dp] +sum@tp
%2 = all_reduce tp sum %1 : f32[6@dp] ; why: rows
%3 = reduce_sum \"ab->b\" %0 : f32[4@tp] +sum@dp
%4 = all_reduce dp sum %3 : f32[4@tp] ; why: columns
output result \"a\" %2
output result \"b\" %4
",
    );
    lower_with(&graph, Target::cpu(), &LowerOptions::plain()).unwrap()
}

fn steps(program: &RankProgram, want: impl Fn(&Action) -> bool) -> Vec<usize> {
    (0..program.steps.len()).filter(|&i| want(&program.steps[i].action)).collect()
}

#[test]
fn ranks_that_do_not_fit_together_are_refused() {
    let good = two_groups();
    check_ranks(&good).unwrap();
    let is_wait = |a: &Action| matches!(a, Action::Wait { .. });
    let is_start = |a: &Action| matches!(a, Action::Start(_));
    let refused = |change: &dyn Fn(&mut Vec<RankProgram>)| {
        let mut programs = good.clone();
        change(&mut programs);
        check_ranks(&programs).unwrap_err()
    };

    let e = refused(&|p| drop(p.pop()));
    assert_eq!(e.to_string(), "program 0 of 3 is that of rank 0 of a mesh of 4");

    let e = refused(&|p| {
        let at = steps(&p[1], is_wait)[0];
        p[1].steps.remove(at);
    });
    assert!(matches!(e, RankError::Unpaired { rank: 1, .. }), "{e}");
    assert!(e.to_string().contains("nothing waits for `all_reduce tp` #0 (f32 12 bytes, why: rows)"), "{e}");

    let e = refused(&|p| {
        let (start, wait) = (steps(&p[2], is_start)[0], steps(&p[2], is_wait)[0]);
        p[2].steps.swap(start, wait);
    });
    assert!(e.to_string().contains("tag #0 is waited for, but was not started"), "{e}");

    // Rank 3 reduces half as much.
    let e = refused(&|p| {
        let at = steps(&p[3], is_start)[1];
        if let Action::Start(c) = &mut p[3].steps[at].action {
            c.from.shape = vec![1];
            c.full_bytes = 4;
        }
    });
    assert_eq!(
        e.to_string(),
        "group [1, 3], collective 0: rank 1 starts `all_reduce dp` #1 (f32 8 bytes, why: columns), \
         rank 3 starts `all_reduce dp` #1 (f32 4 bytes, why: columns)"
    );

    // Rank 0 omits its second collective.
    let e = refused(&|p| {
        p[0].steps.retain(|s| {
            !matches!(&s.action, Action::Start(c) if c.tag == 1) && !matches!(s.action, Action::Wait { tag: 1 })
        })
    });
    assert!(e.to_string().contains("rank 0 starts nothing, rank 2 starts `all_reduce dp` #1"), "{e}");

    // A result is read before it exists.
    let e = refused(&|p| {
        let at = steps(&p[0], is_wait)[0];
        let wait = p[0].steps.remove(at);
        let read = p[0].steps[at - 1].clone();
        let Action::Start(c) = &read.action else { panic!() };
        let (from, to) = (c.to.clone(), p[0].inputs[0].binding.view.clone());
        let step = tpc_ir::program::Step { action: Action::Copy { from, to }, ..read.clone() };
        p[0].steps.insert(at, step);
        p[0].steps.insert(at + 1, wait);
    });
    assert!(matches!(e, RankError::InFlight { rank: 0, access: "reads", .. }), "{e}");
}

/// Ranks 0 and 3 start rows first, ranks 1 and 2 columns: each pair waits for the other.
#[test]
fn orders_across_groups_that_contradict_each_other_are_refused() {
    let mut programs = two_groups();
    for rank in [1, 2] {
        let p = &mut programs[rank];
        let is_collective = |a: &Action| matches!(a, Action::Start(_) | Action::Wait { .. });
        let [a, b, c, d] = steps(p, is_collective)[..] else { panic!() };
        // Both operands first, then the collectives in the other order.
        let mut all = p.steps.clone();
        let collectives = [all[c].clone(), all[d].clone(), all[a].clone(), all[b].clone()];
        all.retain(|s| !is_collective(&s.action));
        all.extend(collectives);
        p.steps = all;
    }
    let e = check_ranks(&programs).unwrap_err();
    let RankError::Cycle(path) = &e else { panic!("{e}") };
    assert_eq!(path.len(), 4, "{e}");
    assert!(e.to_string().starts_with("no order of the collectives suits every rank"), "{e}");
}
