//! Tests of the two proofs of a plan: the ranks compute what the types say (`check`), and the program computes the model
//! (`denotes`). Regrouped sums are accepted; every other change is detected by one of the proofs.

use petgraph::graph::NodeIndex;
use tpc_ir::reason::Demand;
use tpc_ir::{AxisId, Graph, InputId, MapFn, Mesh, Op, Scalar, Type, Value, parse, text};
use tpc_passes::check::check;
use tpc_passes::denotes::{DenoteError, denotes};
use tpc_passes::egraph::{SearchOptions, improve};
use tpc_passes::propagate::propagate;
use tpc_passes::rebuild::rebuild;
use tpc_passes::styles::annotations::{Annotation, Annotations};
use tpc_passes::targets::Target;

/// Two column-wise products followed by row-wise products, a residual, a slice, a difference, and an update.
const MODEL: &str = "mesh <>
    %0 = input data \"x\" : f32[8, 6]
    %1 = input parameter \"u\" : f32[6, 4]
    %2 = input parameter \"v\" : f32[4, 6]
    %3 = input parameter \"w\" : f32[4, 6]
    %4 = einsum \"ab,bc->ac\" %0, %1 : f32[8, 4] ; forward in m.u
    %5 = einsum \"ab,bc->ac\" %4, %2 : f32[8, 6] ; forward in m.v
    %6 = einsum \"ab,bc->ac\" %4, %3 : f32[8, 6] ; forward in m.w
    %7 = add %5, %6, %0 : f32[8, 6] ; forward in m
    %8 = slice dim=1 start=1 step=2 %7 : f32[8, 3] ; forward in m
    %9 = mul %8, f32:0.5 : f32[8, 3] ; forward in m
    %10 = slice dim=1 start=0 step=2 %7 : f32[8, 3] ; forward in m
    %11 = sub %9, %10 : f32[8, 3] ; forward in m.difference
    %12 = mul %11, %11 : f32[8, 3]
    %13 = reduce_sum \"ab->\" %12 : f32[]
    %14 = einsum \"ab,ac->bc\" %0, %4 : f32[6, 4] ; optimizer in m.u
    %15 = sub %1, %14 : f32[6, 4] ; optimizer in m.u
    output loss %13
    output result \"y\" %11
    output update \"u\" %15";

fn model() -> Graph {
    parse::parse(MODEL).unwrap()
}

/// The model after cutting by columns and rows and optimization.
fn placed() -> Graph {
    let model = model();
    let mesh = Mesh::parse("tp=2").unwrap();
    let cut = |name: &str, dim: usize| {
        let id = InputId::Parameter(name.into());
        let node = model.inputs_by_id()[&id];
        let sharding = model.node(node).types[0].sharding.pushed(dim, AxisId(0));
        (id, Annotation { sharding, why: Demand::Note("test".into()).into() })
    };
    let inputs = [cut("u", 1), cut("v", 0), cut("w", 0)].into_iter().collect();
    let propagated = propagate(&model, &Annotations { mesh, inputs, ..Annotations::default() }, Target::cpu());
    denotes(&propagated, &model).unwrap();
    improve(&propagated, Target::cpu(), &SearchOptions::default()).0
}

/// A copy of the graph in which `change` may modify the operation and operands of each node.
fn changed(graph: &Graph, mut change: impl FnMut(NodeIndex, &mut Op, &mut Vec<Value>)) -> Graph {
    let mut changes = 0;
    let (mutant, _) = rebuild(graph, graph.mesh.clone(), |new, node, mut operands| {
        let n = graph.node(node);
        let (mut op, before) = (n.op.clone(), operands.clone());
        change(node, &mut op, &mut operands);
        changes += usize::from(op != n.op || operands != before);
        let id = new.add(op, &operands, n.types.clone(), n.origin.clone());
        (0..n.types.len() as u32).map(|result| Value { node: id, result }).collect()
    });
    assert!(changes > 0, "nothing was changed:\n{}", text::print(graph));
    mutant
}

fn denote_error(mutant: &Graph) -> String {
    check(mutant).unwrap();
    denotes(mutant, &model()).unwrap_err().to_string()
}

#[test]
fn the_optimized_program_denotes_the_model_with_its_sum_regrouped() {
    let placed = placed();
    check(&placed).unwrap();
    denotes(&placed, &model()).unwrap();
    // One reduction serves both products, so there is no longer a sum of three terms.
    let sums: Vec<usize> = placed
        .nodes()
        .filter(|&n| matches!(placed.node(n).op, Op::Map { f: MapFn::Add, .. }))
        .map(|n| placed.operands(n).len())
        .collect();
    assert_eq!(sums, [2, 2], "{}", text::print(&placed));
}

#[test]
fn swapped_operands_of_a_difference_are_detected() {
    let mutant = changed(&placed(), |_, op, operands| {
        if matches!(op, Op::Map { f: MapFn::Sub, .. }) && operands.len() == 2 {
            operands.swap(0, 1);
        }
    });
    let error = denote_error(&mutant);
    assert!(error.starts_with("output loss does not denote that of the model"), "{error}");
    assert!(error.contains("sub in `m.difference`"), "{error}");
    assert!(error.contains("(%11 of the model)"), "{error}");
}

#[test]
fn another_constant_is_detected() {
    let mutant = changed(&placed(), |_, op, _| {
        if let Op::Fill(s) = op
            && s.as_f64() == 0.5
        {
            *s = Scalar::float(0.25);
        }
    });
    let error = denote_error(&mutant);
    assert!(error.contains("fill 0.25") && error.contains("fill 0.5"), "{error}");
}

#[test]
fn another_slice_is_detected() {
    let mutant = changed(&placed(), |_, op, _| {
        if let Op::Slice { start, .. } = op {
            *start = 1 - *start;
        }
    });
    assert!(denote_error(&mutant).contains("slice"), "{}", denote_error(&mutant));
}

#[test]
fn a_term_that_is_missing_or_counted_twice_is_detected() {
    for twice in [false, true] {
        let mutant = changed(&placed(), |_, op, operands| {
            if let Op::Map { f: MapFn::Add, subs } = op {
                if twice {
                    operands[1] = operands[0];
                } else {
                    operands.push(operands[0]);
                    subs.operands.push(subs.operands[0].clone());
                }
            }
        });
        // A partial and an invariant term cannot be added, so either proof may fail.
        let error = check(&mutant).err().map(|e| e.to_string());
        let error = error.or_else(|| denotes(&mutant, &model()).err().map(|e| e.to_string())).unwrap();
        assert!(error.contains("add") && error.contains("`m`"), "{error}");
    }
}

/// Redistributions are identities only if the ranks hold what they need; `check` detects wrong ones.
#[test]
fn a_redistribution_left_out_or_of_something_else_is_detected() {
    let placed = placed();
    let dropped = |skip: usize| {
        let (mutant, _) = rebuild(&placed, placed.mesh.clone(), |new, node, operands| {
            let n = placed.node(node);
            if node.index() == skip {
                return vec![operands[0]];
            }
            vec![new.push(n.op.clone(), &operands, n.types[0].clone(), &n.origin)]
        });
        mutant
    };
    let moves: Vec<usize> =
        placed.nodes().filter(|&n| placed.node(n).op.is_redistribution()).map(NodeIndex::index).collect();
    assert!(!moves.is_empty());
    for skip in moves {
        let mutant = dropped(skip);
        denotes(&mutant, &model()).unwrap();
        check(&mutant).unwrap_err();
    }
    // An all-reduce of a different partial value of the same type is detected only by the second proof.
    let mut seen: Vec<(Value, Type)> = Vec::new();
    let mutant = changed(&placed, |node, op, operands| {
        let types = placed.operands(node).into_iter().map(|v| placed.ty(v).clone());
        let of_now: Vec<(Value, Type)> = operands.iter().copied().zip(types).collect();
        if let Op::AllReduce { .. } = op {
            let is_other = |(v, ty): &&(Value, Type)| *ty == of_now[0].1 && *v != of_now[0].0;
            operands[0] = seen.iter().rev().find(is_other).map_or(operands[0], |other| other.0);
        }
        seen.extend(of_now);
    });
    assert!(denote_error(&mutant).contains("does not denote that of the model"));
}

#[test]
fn inputs_and_outputs_are_the_models() {
    let (placed, model) = (placed(), model());
    let mut other = placed.clone();
    other.outputs.swap(0, 1);
    assert!(matches!(denotes(&other, &model), Err(DenoteError::Output { position: 0, .. })));
    other.outputs.pop();
    other.outputs.swap(0, 1);
    assert!(matches!(denotes(&other, &model), Err(DenoteError::Output { position: 2, .. })));
    let renamed = changed(&placed, |_, op, _| {
        if let Op::Input { id, .. } = op
            && *id == InputId::Parameter("v".into())
        {
            *id = InputId::Parameter("z".into());
        }
    });
    let error = denotes(&renamed, &model).unwrap_err().to_string();
    assert_eq!(
        error,
        "input 2 is input parameter \"z\" f32[4, 6] layout [4, 6], but the model has input parameter \"v\" f32[4, 6] layout [4, 6]"
    );
}

/// Sums under other letters, with a broadcast term and a repeated term.
#[test]
fn sums_are_flattened_through_their_subscripts() {
    let read = |body: &str| {
        let text = format!(
            "mesh <>
            %0 = input data \"x\" : f32[2, 3]
            %1 = input data \"y\" : f32[3]
            %2 = input data \"z\" : f32[3, 2]
            {body}"
        );
        parse::parse(&text).unwrap()
    };
    let flat = read("%3 = add \"ab,b,ba,ab->ba\" %0, %1, %2, %0 : f32[3, 2]\noutput loss %3");
    let nested = read(
        "%3 = add \"ab,b->ab\" %0, %1 : f32[2, 3]
        %4 = add \"ab,ab->ab\" %3, %0 : f32[2, 3]
        %5 = add \"ba,ab->ab\" %4, %2 : f32[3, 2]\noutput loss %5",
    );
    denotes(&nested, &flat).unwrap();
    let transposed = read(
        "%3 = add \"ab,b->ab\" %0, %1 : f32[2, 3]
        %4 = add \"ab,ba->ab\" %3, %2 : f32[2, 3]
        %5 = add \"ba,ba->ab\" %4, %0 : f32[3, 2]\noutput loss %5",
    );
    denotes(&transposed, &flat).unwrap();
    let once = read("%3 = add \"ab,b,ba->ba\" %0, %1, %2 : f32[3, 2]\noutput loss %3");
    denotes(&once, &flat).unwrap_err();
    // With square values, transposed terms are different terms.
    let square = |subs: &str| {
        let text = format!(
            "mesh <>\n%0 = input data \"x\" : f32[2, 2]\n%1 = add \"{subs}\" %0, %0 : f32[2, 2]\noutput loss %1"
        );
        parse::parse(&text).unwrap()
    };
    denotes(&square("ab,ba->ab"), &square("ba,ab->ab")).unwrap();
    denotes(&square("ab,ba->ab"), &square("ab,ab->ab")).unwrap_err();
    // A sum of another element type rounds differently, so it is not flattened into this one.
    let cast = |inner: &str| {
        let text = format!(
            "mesh <>\n%0 = input data \"x\" : bf16[2]\n%1 = input data \"y\" : f32[2]\n{inner}\noutput loss %4"
        );
        parse::parse(&text).unwrap()
    };
    let before = cast("%2 = add %0, %0 : bf16[2]\n%3 = cast.f32 %2 : f32[2]\n%4 = add %3, %1 : f32[2]");
    let after = cast("%2 = cast.f32 %0 : f32[2]\n%3 = add %2, %2 : f32[2]\n%4 = add %3, %1 : f32[2]");
    denotes(&before, &after).unwrap_err();
}
