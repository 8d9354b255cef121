//! Programs lowered with and without values computed again and with and without epilogues: that they mean the same, and
//! what they move and hold.

use crate::{executed_programs, on_ranks};
use std::collections::HashMap;
use tpc_ir::interpret::Tensor;
use tpc_ir::program::{Action, Instruction, RankProgram, View};
use tpc_ir::{Graph, MapFn, Op, random, text};
use tpc_passes::lower::check_ranks::check_ranks;
use tpc_passes::lower::{LowerOptions, lower_with};

/// The settings of the two switches: computing again, and epilogues.
pub const WAYS: [(bool, bool); 4] = [(false, false), (false, true), (true, false), (true, true)];

/// The programs of all ranks for one setting of the switches.
#[must_use]
pub fn lowered(graph: &Graph, (recompute, epilogues): (bool, bool), base: &LowerOptions) -> Vec<RankProgram> {
    let programs = lower_with(graph, &LowerOptions { recompute, epilogues, ..*base });
    check_ranks(&programs).unwrap_or_else(|e| panic!("{e}\n{}", text::print(graph)));
    programs
}

/// Small integers for every input; truth values for what is one.
#[must_use]
pub fn integers(graph: &Graph) -> HashMap<String, Tensor> {
    let tensor = |(node, _, name): (_, _, &str)| {
        let ty = &graph.node(node).types[0];
        let count: usize = ty.shape.iter().product();
        let seed = name.bytes().fold(7, |h: u64, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
        let number = |i: usize| f64::from(random::philox(7, seed, i as u64)[0] % 5);
        let data = (0..count).map(|i| match ty.dtype {
            tpc_ir::DType::Bool => f64::from(number(i) > 2.0),
            tpc_ir::DType::I64 => number(i),
            _ => number(i) - 2.0,
        });
        (name.to_string(), Tensor::new(ty.dtype, ty.shape.clone(), data.collect()))
    };
    graph.inputs().map(tensor).collect()
}

/// The programs of all ranks for every one of [`WAYS`]. Each is executed on small integers and means what the program
/// means: exactly, unless it has functions that are not exact.
///
/// # Panics
/// If one does not.
#[must_use]
pub fn agree(graph: &Graph) -> [Vec<RankProgram>; 4] {
    let inputs = integers(graph);
    let want = on_ranks(graph, &inputs);
    use MapFn::{Cos, Div, Erf, Exp, Log, Pow, Recip, Rem, Rsqrt, Sigmoid, Sin, Sqrt, Tanh};
    let inexact = |f: &MapFn| {
        matches!(f, Cos | Div | Erf | Exp | Log | Pow | Recip | Rem | Rsqrt | Sigmoid | Sin | Sqrt | Tanh)
    };
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

/// Bytes of memory that a rank's loops, epilogues, products and copies read and write in a step. An element that a loop
/// meets several times counts once. What collectives move does not count.
#[must_use]
pub fn moved_bytes(program: &RankProgram) -> usize {
    let body = |dims: &[usize], body: &[Instruction]| -> usize {
        let accesses = body.iter().filter_map(|i| match i {
            Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => Some((view, strides)),
            _ => None,
        });
        let elements = |strides: &[isize]| -> usize {
            dims.iter().zip(strides).filter(|(_, s)| **s != 0).map(|(&n, _)| n).product()
        };
        accesses.map(|(view, strides)| elements(strides) * view.dtype.bytes()).sum()
    };
    let whole = |v: &View| v.elements() * v.dtype.bytes();
    let of = |action: &Action| match action {
        Action::Loop(l) => body(&l.dims, &l.body),
        Action::Contract(c) => {
            let dims: Vec<usize> = c.dims().map(|d| d.size).collect();
            let out = if c.epilogue.is_empty() { whole(&c.out) } else { body(&dims, &c.epilogue) };
            whole(&c.left) + whole(&c.right) + out
        }
        Action::Attention(a) => {
            let mut sum = 0;
            a.each_view(&mut |v, _| sum += whole(v));
            sum
        }
        Action::Take { table: _, index, out, .. } => whole(index) + 2 * whole(out),
        Action::ScatterAdd { index, update, out, .. } => whole(index) + whole(update) + whole(out),
        Action::Copy { from, to } | Action::CumSum { from, to, .. } => whole(from) + whole(to),
        Action::TopK { from, values, indices } => whole(from) + whole(values) + whole(indices),
        Action::Start(_) | Action::Wait { .. } => 0,
    };
    program.steps.iter().map(|s| of(&s.action)).sum()
}

/// One line for every step of a rank but waits: its label, and behind an arrow the buffers that its loop or epilogue
/// writes, by what they hold; in front of it those that it reads.
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

/// Loops of a rank that write nothing.
#[must_use]
pub fn idle_loops(program: &RankProgram) -> usize {
    let is_store = |i: &Instruction| matches!(i, Instruction::Store { .. });
    let of = |a: &Action| matches!(a, Action::Loop(l) if !l.body.iter().any(is_store));
    program.steps.iter().filter(|s| of(&s.action)).count()
}
