//! Lowers programs with and without recomputation and with and without epilogues, checks that they mean the same, and
//! measures how much memory they move and hold.

use crate::{executed_programs, on_ranks};
use std::collections::HashMap;
use tpc_ir::interpret::Tensor;
use tpc_ir::program::{Action, Instruction, RankProgram, View};
use tpc_ir::{Graph, InputId, MapFn, Op, random, text};
use tpc_passes::lower::check_ranks::check_ranks;
use tpc_passes::lower::{LowerOptions, lower_with};
use tpc_passes::targets::Target;

/// The settings of the two switches: recomputation, and epilogues.
pub const WAYS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// The programs of all ranks for one setting of the switches.
#[must_use]
pub fn lowered(graph: &Graph, (recompute, epilogues): (bool, bool), base: &LowerOptions) -> Vec<RankProgram> {
    let programs = lower_with(graph, Target::cpu(), &LowerOptions { recompute, epilogues, ..*base })
        .unwrap_or_else(|e| panic!("{e}\n{}", text::print(graph)));
    check_ranks(&programs).unwrap_or_else(|e| panic!("{e}\n{}", text::print(graph)));
    programs
}

/// Small integers for every input, or truth values for a boolean input.
#[must_use]
pub fn integers(graph: &Graph) -> HashMap<InputId, Tensor> {
    let tensor = |(node, id): (_, &InputId)| {
        let ty = &graph.node(node).types[0];
        let count: usize = ty.shape.iter().product();
        let seed = id.to_string().bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let number = |i: usize| f64::from(random::philox(7, seed, i as u64)[0] % 5);
        let data = (0..count).map(|i| match ty.dtype {
            tpc_ir::DType::Bool => f64::from(number(i) > 2.0),
            tpc_ir::DType::I64 => number(i),
            _ => number(i) - 2.0,
        });
        (id.clone(), Tensor::new(ty.dtype, ty.shape.clone(), data.collect()))
    };
    graph.inputs().map(tensor).collect()
}

/// The programs of all ranks for each of [`WAYS`]. Each is executed on small integers and must give the same results as
/// the graph: exactly, unless it contains functions that are not exact.
///
/// # Panics
/// If the results differ.
#[must_use]
pub fn agree(graph: &Graph) -> [Vec<RankProgram>; 4] {
    let inputs = integers(graph);
    let want = on_ranks(graph, &inputs);
    use MapFn::{Cos, Div, Erf, Exp, Log, Pow, Recip, Rem, Rsqrt, Sigmoid, Sin, Sqrt, Tanh};
    let inexact =
        |f: &MapFn| matches!(f, Cos | Div | Erf | Exp | Log | Pow | Recip | Rem | Rsqrt | Sigmoid | Sin | Sqrt | Tanh);
    let exact = !graph.nodes().any(|n| matches!(&graph.node(n).op, Op::Map { f, .. } if inexact(f)));
    WAYS.map(|way| {
        for base in [LowerOptions::plain(), LowerOptions { memory_growth: 10.0, ..LowerOptions::default() }] {
            let got = executed_programs(graph, lowered(graph, way, &base), &inputs);
            let wrong = crate::wrong(graph, &got, &want, if exact { 0.0 } else { 1e-5 });
            assert!(wrong.is_empty(), "{way:?}: {wrong:?}\n{}", text::print(graph));
        }
        lowered(graph, way, &LowerOptions::plain())
    })
}

/// Calls `visit` with every view that an action reads or writes, and with the bytes that it moves. An element that a
/// loop reads several times counts once; an element of a table counts once for each time that its row is read.
fn each_access(action: &Action, visit: &mut dyn FnMut(&View, usize)) {
    let body = |dims: &[usize], body: &[Instruction], visit: &mut dyn FnMut(&View, usize)| {
        for instruction in body {
            if let Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } = instruction {
                let moves = dims.iter().zip(strides).filter(|(_, s)| **s != 0);
                visit(view, moves.map(|(&n, _)| n).product::<usize>() * view.dtype.bytes());
            }
        }
    };
    let whole = |v: &View| v.elements() * v.dtype.bytes();
    let all = |views: &[&View], visit: &mut dyn FnMut(&View, usize)| views.iter().for_each(|v| visit(v, whole(v)));
    match action {
        Action::Loop(l) => body(&l.dims, &l.body, visit),
        Action::Contract(c) => {
            all(&[&c.left, &c.right], visit);
            if c.epilogue.is_empty() {
                all(&[&c.out], visit);
            }
            body(&c.dims().map(|d| d.size).collect::<Vec<_>>(), &c.epilogue, visit);
        }
        Action::Attention(a) => a.each_view(&mut |v, _| visit(v, whole(v))),
        Action::Take { table, index, out, .. } => {
            visit(table, whole(out));
            all(&[index, out], visit);
        }
        Action::ScatterAdd { index, update, out, .. } => all(&[index, update, out], visit),
        Action::Put { table, index, rows, .. } => {
            visit(table, whole(rows));
            all(&[index, rows], visit);
        }
        Action::Copy { from, to } | Action::CumSum { from, to, .. } => all(&[from, to], visit),
        Action::TopK { from, values, indices } => all(&[from, values, indices], visit),
        Action::Start(c) => all(&[&c.from, &c.to], visit),
        Action::Wait { .. } => {}
    }
}

/// The bytes of memory that an action reads and writes.
#[must_use]
pub fn touched_bytes(action: &Action) -> usize {
    let mut sum = 0;
    each_access(action, &mut |_, bytes| sum += bytes);
    sum
}

/// The bytes of memory that the steps of a rank read and write, except for its collectives.
#[must_use]
pub fn moved_bytes(program: &RankProgram) -> usize {
    let local = program.steps.iter().map(|s| &s.action).filter(|a| !matches!(a, Action::Start(_)));
    local.map(touched_bytes).sum()
}

/// The largest number of bytes in buffers that are in use at once, if every collective is waited for where it starts. A
/// memory plan may need more, since buffers never move.
#[must_use]
pub fn most_bytes(program: &RankProgram) -> usize {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; program.buffers.len()];
    let mut touch = |v: &View, at: usize| {
        let life = lives[v.buffer.0 as usize].get_or_insert((at, at));
        life.1 = at;
    };
    for (at, step) in program.steps.iter().enumerate() {
        each_access(&step.action, &mut |v, _| touch(v, at));
    }
    program.outputs.iter().for_each(|o| touch(&o.binding.view, program.steps.len()));
    let temporary = program.buffers.iter().zip(&lives).filter(|(b, _)| !b.persistent);
    let alive: Vec<(usize, (usize, usize))> = temporary.filter_map(|(b, life)| Some((b.bytes, (*life)?))).collect();
    let at = |step: usize| -> usize {
        alive.iter().filter(|(_, life)| (life.0..=life.1).contains(&step)).map(|(bytes, _)| bytes).sum()
    };
    (0..program.steps.len()).map(at).max().unwrap_or(0)
}

/// One line for every step of a rank except waits: the buffers that the step reads, its label, and after an arrow the
/// buffers that its loop or epilogue writes, each named by its contents.
#[must_use]
pub fn outline(program: &RankProgram) -> String {
    let name = |v: &View| program.buffers[v.buffer.0 as usize].label.to_string();
    let list = |body: &[Instruction], stores: bool| {
        let of = body.iter().filter_map(|i| match i {
            Instruction::Load { view, .. } if !stores => Some(name(view)),
            Instruction::Store { view, .. } if stores => Some(name(view)),
            _ => None,
        });
        of.collect::<Vec<_>>().join(", ")
    };
    let line = |label: &str, body: &[Instruction]| format!("{label}: {} -> {}\n", list(body, false), list(body, true));
    let of = |s: &tpc_ir::program::Step| match &s.action {
        Action::Loop(l) => line(&s.label, &l.body),
        Action::Contract(c) if !c.epilogue.is_empty() => line(&s.label, &c.epilogue),
        Action::Wait { .. } => String::new(),
        _ => format!("{}\n", s.label),
    };
    program.steps.iter().map(of).collect()
}

/// The number of loops of a rank that write nothing.
#[must_use]
pub fn idle_loops(program: &RankProgram) -> usize {
    let is_store = |i: &Instruction| matches!(i, Instruction::Store { .. });
    let of = |a: &Action| matches!(a, Action::Loop(l) if !l.body.iter().any(is_store));
    program.steps.iter().filter(|s| of(&s.action)).count()
}
