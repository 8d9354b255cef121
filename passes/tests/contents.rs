//! The result of lowering is proven on every compile (`lower/contents.rs`). These tests check the proof itself by
//! mutation: every rank program of a few placed programs is changed in one place at a time. Steps are removed or
//! exchanged, loops shortened, loads and stores moved, functions and constants replaced, buffers overlapped, and
//! collectives altered. The check must reject each change, unless the reference executor shows that the changed
//! programs still mean what the placed program means.

use std::collections::{BTreeMap, HashMap};
use tpc_ir::execute::execute;
use tpc_ir::interpret::{Options, Tensor, simulate};
use tpc_ir::program::{Action, BufferId, CollectiveKind, Instruction, RankProgram};
use tpc_ir::{Graph, InputId, MapFn, ReduceOp, Scalar, parse, random};
use tpc_passes::lower::check_ranks::check_ranks;
use tpc_passes::lower::{Claims, LowerOptions, claimed, contents, lower_with, schedule};
use tpc_passes::targets::Target;

/// A mask is computed in a loop over heads, and another product also reads it, so a rank without heads needs it too.
const MASK: &str = "mesh <tp=2>
    %0 = input data \"scores\" : f32[1@tp, 3, 4]
    %1 = input data \"mask\" : f32[3, 4]
    %2 = input parameter \"w\" : f32[4, 2]
    %3 = mul %1, f32:-2.0 : f32[3, 4] ; forward
    %4 = add \"abc,bc->abc\" %0, %3 : f32[1@tp, 3, 4] ; forward
    %5 = reduce_sum \"abc->ab\" %4 : f32[1@tp, 3] ; forward
    %6 = sub \"abc,ab->abc\" %4, %5 : f32[1@tp, 3, 4] ; forward
    %7 = einsum \"bc,cd->bd\" %3, %2 : f32[3, 2] ; forward
    %8 = reduce_sum \"abc->c\" %6 : f32[4] +sum@tp ; forward
    %9 = all_reduce tp sum %8 : f32[4] ; forward
    output result \"y\" %6
    output result \"z\" %7
    output result \"s\" %9";

/// Products with epilogues and sums of products, a norm, views, pieces, an update in place.
const LAYER: &str = "mesh <tp=2>
    %0 = input data \"x\" : f32[4, 6]
    %1 = input parameter \"u\" : f32[6, 8@tp]
    %2 = input parameter \"v\" : f32[8@tp, 6]
    %3 = input parameter \"w\" : f32[6, 8@tp]
    %4 = input parameter \"b\" : f32[8@tp]
    %5 = input data \"t\" : i64[4]
    %6 = input state \"c\" : f32[5@tp, 6]
    %20 = einsum \"ab,bc->ac\" %0, %1 : f32[4, 8@tp] ; forward
    %21 = add \"ab,b->ab\" %20, %4 : f32[4, 8@tp] ; forward
    %22 = tanh %21 : f32[4, 8@tp] ; forward
    %23 = einsum \"ab,bc->ac\" %22, %2 : f32[4, 6] +sum@tp ; forward
    %24 = all_reduce tp sum %23 : f32[4, 6] ; forward
    %25 = add %24, %0 : f32[4, 6] ; forward
    %26 = mul %25, %25 : f32[4, 6] ; forward
    %27 = reduce_sum \"ab->a\" %26 : f32[4] ; forward
    %28 = rsqrt %27 : f32[4] ; forward
    %29 = mul \"ab,a->ab\" %25, %28 : f32[4, 6] ; forward
    %30 = slice dim=1 start=1 step=2 %29 : f32[4, 3] ; forward
    %31 = index dim=0 index=2 %29 : f32[6] ; forward
    %32 = concat dim=1 %30, %29 : f32[4, 9] ; forward
    %33 = pad dim=0 low=1 value=3.0 %30 : f32[6, 3] ; forward
    %34 = einsum \"ab,bc->ac\" %29, %1 : f32[4, 8@tp] ; forward
    %35 = einsum \"ab,bc->ac\" %29, %3 : f32[4, 8@tp] ; forward
    %36 = add %34, %35 : f32[4, 8@tp] ; forward
    %37 = all_gather tp dim=1 %36 : f32[4, 8] ; forward
    %38 = shard_slice tp dim=0 %37 : f32[4@tp, 8] ; forward
    %39 = all_to_all tp from=0 to=1 %38 : f32[4, 8@tp] ; forward
    %40 = take %29, %5 : f32[4, 6] ; forward
    %41 = scatter_add %5, %29 : f32[5, 6] ; forward
    %42 = cumsum dim=1 %40 : f32[4, 6] ; forward
    %43 = einsum \"ab,ac->bc\" %22, %29 : f32[8@tp, 6] ; backward
    %44 = mul %43, f32:0.125 : f32[8@tp, 6] ; optimizer
    %45 = sub %2, %44 : f32[8@tp, 6] ; optimizer
    %46 = sub %1, %3 : f32[6, 8@tp] ; optimizer
    %47 = iota : f32[4]
    %48 = mul \"a,ab->ab\" %47, %29 : f32[4, 6] ; forward
    %49 = exp %39 : f32[4, 8@tp] ; forward
    %50 = to_partial tp sum %48 : f32[4, 6] +sum@tp ; forward
    %51 = reduce_scatter tp sum dim=0 %50 : f32[4@tp, 6] ; forward
    %52 = put %6, %5, %29 : f32[5@tp, 6] ; forward
    %53 = put %40, %5, %29 : f32[4, 6] ; forward
    %54 = mul %52, f32:2.0 : f32[5@tp, 6] ; forward
    output result \"a\" %31
    output result \"b\" %32
    output result \"c\" %33
    output result \"d\" %36
    output result \"e\" %49
    output result \"f\" %41
    output result \"g\" %42
    output result \"h\" %51
    output result \"i\" %53
    output result \"k\" %54
    output update \"c\" %52
    output update \"v\" %45
    output update \"u\" %46";

/// Softmax attention with a mask and four heads, which share keys, on three ranks; and its gradient with respect to the
/// query.
const ATTENTION: &str = "mesh <tp=3>
    %0 = input data \"q\" : f32[4@tp, 5, 2]
    %1 = input data \"k\" : f32[5, 2]
    %2 = input data \"v\" : f32[5, 3]
    %3 = input data \"mask\" : f32[5, 5]
    %4 = einsum \"hqd,kd->hqk\" %0, %1 : f32[4@tp, 5, 5] ; forward
    %5 = mul %4, f32:0.5 : f32[4@tp, 5, 5] ; forward
    %6 = add \"hqk,qk->hqk\" %5, %3 : f32[4@tp, 5, 5] ; forward
    %7 = reduce_max \"hqk->hq\" %6 : f32[4@tp, 5] ; forward
    %8 = sub \"hqk,hq->hqk\" %6, %7 : f32[4@tp, 5, 5] ; forward
    %9 = exp %8 : f32[4@tp, 5, 5] ; forward
    %10 = reduce_sum \"hqk->hq\" %9 : f32[4@tp, 5] ; forward
    %11 = div \"hqk,hq->hqk\" %9, %10 : f32[4@tp, 5, 5] ; forward
    %12 = einsum \"hqk,kd->hqd\" %11, %2 : f32[4@tp, 5, 3] ; forward
    output result \"y\" %12";

fn inputs(graph: &Graph) -> HashMap<InputId, Tensor> {
    let tensor = |(node, id): (_, &InputId)| {
        let ty = &graph.node(node).types[0];
        let seed = id.to_string().bytes().map(u64::from).sum();
        let number = |i: usize| match ty.dtype.is_float() {
            true => f64::from(random::philox(7, seed, i as u64)[0] % 64) / 32.0 - 1.0,
            false => f64::from(random::philox(7, seed, i as u64)[0] % 4),
        };
        (id.clone(), Tensor::new(ty.dtype, ty.shape.clone(), (0..ty.elements()).map(number).collect()))
    };
    graph.inputs().map(tensor).collect()
}

fn differ(a: &[Tensor], b: &[Tensor]) -> bool {
    let far = |(x, y): (&f64, &f64)| !((x - y).abs() <= 1e-9 * x.abs().max(1.0) || x.is_nan() && y.is_nan());
    a.iter().zip(b).any(|(a, b)| a.shape != b.shape || a.data.iter().zip(&b.data).any(far))
}

/// The kind of the change, and a changed program with its claims.
type Mutant = (&'static str, RankProgram, Claims);

/// Adds all changes of one instruction of a body.
fn mutate_body(program: &RankProgram, claims: &Claims, step: usize, into: &mut Vec<Mutant>) {
    let count = match &program.steps[step].action {
        Action::Loop(l) => l.body.len(),
        Action::Contract(c) => c.epilogue.len(),
        _ => 0,
    };
    let buffers = program.buffers.len() as u32;
    for i in 0..count {
        let mut change = |what: &'static str, f: &dyn Fn(&mut Instruction)| {
            let mut p = program.clone();
            let body = match &mut p.steps[step].action {
                Action::Loop(l) => &mut l.body,
                Action::Contract(c) => &mut c.epilogue,
                _ => return,
            };
            let before = body[i].clone();
            f(&mut body[i]);
            if body[i] != before {
                into.push((what, p, claims.clone()));
            }
        };
        change("offset", &|ins| {
            if let Instruction::Load { view, .. } | Instruction::Store { view, .. } = ins {
                view.offset += 1;
            }
        });
        change("buffer", &|ins| {
            if let Instruction::Load { view, .. } | Instruction::Store { view, .. } = ins {
                view.buffer = BufferId((view.buffer.0 + 1) % buffers);
            }
        });
        change("stride", &|ins| {
            if let Instruction::Load { strides, .. } | Instruction::Store { strides, .. } = ins {
                strides.iter_mut().for_each(|s| *s *= 2);
            }
        });
        change("turned strides", &|ins| {
            if let Instruction::Load { strides, .. } | Instruction::Store { strides, .. } = ins {
                strides.reverse();
            }
        });
        change("constant", &|ins| {
            if let Instruction::Constant(x, dtype) = ins {
                *x = Scalar::of(*dtype, x.as_f64() + 1.0);
            }
        });
        change("function", &|ins| {
            if let Instruction::Map { f, args, .. } = ins {
                *f = match (&*f, args.len()) {
                    (MapFn::Add, 2) => MapFn::Sub,
                    (_, 2) => MapFn::Add,
                    (MapFn::Tanh, _) => MapFn::Neg,
                    _ => MapFn::Tanh,
                };
            }
        });
        change("operands", &|ins| {
            if let Instruction::Map { args, .. } = ins {
                args.reverse();
            }
        });
        change("operand", &|ins| {
            if let Instruction::Map { args, .. } = ins {
                args[0] = args[0].saturating_sub(1);
            }
        });
        change("reduction", &|ins| {
            if let Instruction::ReduceRow { op, .. } | Instruction::Store { accumulate: Some(op), .. } = ins {
                *op = if *op == ReduceOp::Sum { ReduceOp::Max } else { ReduceOp::Sum };
            }
        });
        change("no accumulation", &|ins| {
            if let Instruction::Store { accumulate, .. } = ins {
                *accumulate = None;
            }
        });
        change("index", &|ins| {
            if let Instruction::Index { offset, .. } = ins {
                *offset += 1;
            }
        });
    }
}

/// All changes of one step or of one buffer.
fn mutants(program: &RankProgram, claims: &Claims) -> Vec<Mutant> {
    let mut all = Vec::new();
    for step in 0..program.steps.len() {
        let (mut p, mut c) = (program.clone(), claims.clone());
        p.steps.remove(step);
        c.remove(step);
        all.push(("left out", p, c));
        if step > 0 {
            let (mut p, mut c) = (program.clone(), claims.clone());
            p.steps.swap(step - 1, step);
            c.swap(step - 1, step);
            all.push(("exchanged", p, c));
        }
        let mut change = |what: &'static str, f: &dyn Fn(&mut Action)| {
            let mut p = program.clone();
            f(&mut p.steps[step].action);
            if p.steps[step] != program.steps[step] {
                all.push((what, p, claims.clone()));
            }
        };
        for d in 0..4 {
            change("empty loop", &|a| {
                if let Action::Loop(l) = a
                    && d < l.dims.len()
                {
                    l.dims[d] = 0;
                }
            });
            change("short loop", &|a| {
                if let Action::Loop(l) = a
                    && d < l.dims.len()
                {
                    l.dims[d] = l.dims[d].saturating_sub(1);
                }
            });
        }
        change("short product", &|a| {
            if let Action::Contract(c) = a {
                c.k.iter_mut().for_each(|d| d.size -= 1);
            }
        });
        change("operand of a product", &|a| {
            if let Action::Contract(c) = a {
                c.left.offset += 1;
            }
        });
        change("stride of a product", &|a| {
            if let Action::Contract(c) = a {
                c.n.iter_mut().for_each(|d| d.right *= 2);
            }
        });
        change("rows of a table", &|a| {
            if let Action::Take { first_row, .. }
            | Action::ScatterAdd { first_row, .. }
            | Action::Put { first_row, .. } = a
            {
                *first_row += 1;
            }
        });
        change("copy", &|a| {
            if let Action::Copy { from, .. } = a {
                from.offset += 1;
            }
        });
        change("dimension of a prefix sum", &|a| {
            if let Action::CumSum { dim, .. } = a {
                *dim = 0;
            }
        });
        change("mask of an attention", &|a| {
            if let Action::Attention(a) = a {
                for ins in &mut a.score {
                    if let Instruction::Load { view, .. } = ins {
                        view.offset += 1;
                    }
                }
            }
        });
        change("key of an attention", &|a| {
            if let Action::Attention(a) = a {
                a.key.view = a.value.view.clone();
            }
        });
        change("reduction of a collective", &|a| {
            if let Action::Start(c) = a
                && let CollectiveKind::AllReduce(op) | CollectiveKind::ReduceScatter { op, .. } = &mut c.kind
            {
                *op = ReduceOp::Max;
            }
        });
        change("group of a collective", &|a| {
            if let Action::Start(c) = a {
                c.group.reverse();
            }
        });
        change("operand of a collective", &|a| {
            if let Action::Start(c) = a {
                c.from.offset += 1;
            }
        });
        mutate_body(program, claims, step, &mut all);
    }
    for b in 1..program.buffers.len() {
        let mut p = program.clone();
        p.buffers[b].offset = p.buffers[b - 1].offset;
        if p != *program {
            all.push(("buffer over another", p, claims.clone()));
        }
    }
    all
}

/// For each kind of change, how many were rejected, and how many were accepted and make no difference.
type Tally = BTreeMap<&'static str, [usize; 2]>;

fn check_mutants(source: &str, options: &LowerOptions, tally: &mut Tally) {
    let graph = parse::parse(source).unwrap_or_else(|e| panic!("{e}"));
    let programs = lower_with(&graph, Target::cpu(), options).unwrap_or_else(|e| panic!("{e}"));
    let inputs = inputs(&graph);
    let expected = simulate(&graph, &inputs, &Options::real()).unwrap();
    let found = execute(&programs, &inputs, &Options::real()).unwrap_or_else(|e| panic!("{e}"));
    assert!(!differ(&expected, &found));
    let schedule = schedule(&graph, Target::cpu(), options);
    for rank in 0..programs.len() {
        let (program, claims) = claimed(&graph, &schedule, rank);
        assert_eq!(program, programs[rank]);
        for (what, mutant, claims) in mutants(&program, &claims) {
            let mut changed = programs.clone();
            changed[rank] = mutant;
            // `check_ranks` is responsible for operands and results of collectives in flight.
            let rejected = contents::check(&graph, &changed[rank], &claims).is_err() || check_ranks(&changed).is_err();
            tally.entry(what).or_default()[usize::from(!rejected)] += 1;
            if rejected {
                continue;
            }
            let found = execute(&changed, &inputs, &Options::real());
            let same = found.as_ref().is_ok_and(|found| !differ(&expected, found));
            assert!(same, "{what} on rank {rank} is accepted: {found:?}\n{}", changed[rank].to_text());
        }
    }
}

#[test]
fn a_changed_program_is_rejected_or_has_the_same_meaning() {
    let mut tally = Tally::new();
    for source in [MASK, LAYER, ATTENTION] {
        for options in [LowerOptions::default(), LowerOptions::plain()] {
            check_mutants(source, &options, &mut tally);
            let bare = LowerOptions { attention: false, recompute: false, epilogues: false, ..options };
            check_mutants(source, &bare, &mut tally);
        }
    }
    // Changes of every kind occur and are rejected.
    let never: Vec<_> = tally.iter().filter(|(_, n)| n[0] == 0).collect();
    assert!(never.is_empty() && tally.len() >= 25, "{tally:#?}");
    let rejected: usize = tally.values().map(|n| n[0]).sum();
    assert!(rejected > 2_000, "{rejected} changes were rejected: {tally:#?}");
}
