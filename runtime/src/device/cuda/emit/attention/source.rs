//! A kernel of attention under construction: its arguments, and lambdas for what it reads, writes and computes from
//! each score.

use super::super::body::{Body, LoopGraph, element, lane};
use super::super::rank::Rank;
use super::super::space::{Axis, cut, merge, offset};
use super::clear::{self, Owners};
use crate::device::extent::{self, Extent};
use crate::device::nodes::{self, Kind, Walk};
use std::fmt::Write as _;
use tpc_ir::attention::{Attention, Operand};
use tpc_ir::program::{BufferId, Instruction, Loop, View};
use tpc_ir::{DType, Scalar};

/// The source of a kernel of attention.
pub(super) struct Source<'a> {
    pub(super) a: &'a Attention,
    /// The compute type of scores and probabilities.
    pub(super) real: DType,
    pub(super) args: Vec<i64>,
    pub(super) text: String,
}

/// The memory layout of an operand's rows.
pub(super) struct Reach {
    pub(super) dtype: DType,
    /// Elements per row.
    pub(super) count: usize,
    /// Distance between consecutive elements, if it is constant.
    step: Option<isize>,
    /// First byte in the device allocation.
    base: usize,
    /// Strides of the dimensions of the scores that the operand has.
    strides: Vec<isize>,
    /// Stride of its rows.
    row: isize,
}

impl Reach {
    /// Elements that can be moved at once to a tile with this element type.
    pub(super) fn vector(&self, of: DType) -> usize {
        let n = 16 / self.dtype.bytes();
        if self.dtype == of && self.packs(n) { n } else { 1 }
    }

    /// Whether packs of n consecutive elements are aligned to their size.
    pub(super) fn packs(&self, n: usize) -> bool {
        self.step == Some(1)
            && self.count.is_multiple_of(n)
            && self.base.is_multiple_of(n * self.dtype.bytes())
            && self.strides.iter().all(|s| s % n as isize == 0)
    }

    /// Whether consecutive elements are in consecutive rows.
    pub(super) fn across(&self) -> bool {
        self.row == 1 && self.step != Some(1)
    }
}

/// The memory that the elements of an operand occupy.
pub(super) fn extent(rank: &Rank<'_>, a: &Attention, o: &Operand, own: &[usize]) -> Result<Extent, String> {
    let p = rank.program;
    let sizes = [&a.dims[..], own].concat();
    extent::resolve(p.arena_bytes, &p.buffers, &o.view, &sizes, &[&o.dims[..], &o.own].concat())
}

/// The axes of an operand's own dimensions.
fn own_axes(o: &Operand, own: &[usize]) -> Vec<Axis> {
    let all = own.iter().zip(&o.own).filter(|(n, _)| **n != 1);
    let mut axes: Vec<Axis> = all.map(|(&size, &s)| Axis { size, strides: vec![s] }).collect();
    merge(&mut axes);
    axes
}

impl<'a> Source<'a> {
    /// Begins a kernel of an attention.
    pub(super) fn new(a: &'a Attention, real: DType) -> Self {
        Source { a, real, args: Vec::new(), text: String::new() }
    }

    /// Appends a line to the kernel.
    pub(super) fn line(&mut self, line: &str) {
        let _ = writeln!(self.text, "    {line}");
    }

    /// Declares the index types and the batch indices, all 0.
    pub(super) fn begin(&mut self, wide: bool) {
        self.line(if wide { "typedef i64 ix; typedef u32 uq;" } else { "typedef int ix; typedef u32 uq;" });
        self.line(&format!("typedef {} R;", element(self.real)));
        (0..self.a.batch()).for_each(|d| self.line(&format!("ix k{d} = 0;")));
    }

    /// Statements that split a number `from` into the indices of some batch dimensions.
    pub(super) fn batch(&self, from: &str, which: &[usize]) -> String {
        let mut text = format!("u32 rest = {from}; ");
        for (i, d) in which.iter().enumerate().rev() {
            let n = self.a.dims[*d];
            let _ = match i {
                0 => write!(text, "k{d} = (ix)rest; "),
                _ => write!(text, "k{d} = (ix)(rest % {n}u); rest /= {n}u; "),
            };
        }
        text
    }

    /// Emits the rows or columns that a thread block owns: `first`, among `blocks` blocks of `own` for each index of
    /// the batch dimensions, and sets these indices. If later blocks have more work, they run first.
    pub(super) fn own_block(&mut self, blocks: usize, own: usize, grows: bool, batch: &[usize]) {
        let block = format!("(int)(blockIdx.x % {blocks}u)");
        let block = if grows { format!("{} - {block}", blocks - 1) } else { block };
        self.line(&format!("const int first = ({block}) * {own};"));
        let batch = self.batch(&format!("blockIdx.x / {blocks}u"), batch);
        self.line(&format!("{{ {batch}}}"));
    }

    fn pointer(&mut self, base: i64, dtype: DType, written: bool) -> usize {
        let p = self.args.len();
        self.args.push(base);
        let (t, constant) = (element(dtype), if written { "" } else { "const " });
        self.line(&format!("{constant}{t}* const o{p} = ({constant}{t}*)(A + a{p});"));
        p
    }

    /// Emits a lambda from a row (or column) and an index within it to an address.
    pub(super) fn operand(
        &mut self,
        rank: &Rank<'_>,
        name: &str,
        o: &Operand,
        own: &[usize],
        written: bool,
    ) -> Result<Reach, String> {
        let nb = self.a.batch();
        let place = extent(rank, self.a, o, own)?;
        let base = rank.at(place.base);
        let p = self.pointer(base, o.view.dtype, written);
        let axes = own_axes(o, own);
        let row = o.dims[nb] + o.dims[nb + 1];
        let batch: String =
            (0..nb).filter(|&d| o.dims[d] != 0).map(|d| format!(" + (i64)k{d} * {}", o.dims[d])).collect();
        let (cutting, within) = match &axes[..] {
            [] => (String::new(), "0".to_string()),
            [one] if one.strides[0] == 1 => (String::new(), "i".to_string()),
            [one] => (String::new(), format!("(i64)i * {}", one.strides[0])),
            axes => {
                let cutting = format!("const uq q = (uq)i; {}", cut("q", "n", axes, 1, "").replace('\n', " "));
                (cutting, offset(0, [("n", axes), ("", &[])], "(i64)"))
            }
        };
        self.line(&format!(
            "const auto {name} = [&](int s, int i) {{ {cutting}return o{p}{batch} + (i64)s * {row} + ({within}); }};"
        ));
        let moving = self.a.dims.iter().zip(&o.dims).filter(|(n, _)| **n > 1).map(|(_, s)| *s).collect();
        Ok(Reach {
            dtype: o.view.dtype,
            count: own.iter().product(),
            step: match &axes[..] {
                [] => Some(1),
                [one] => Some(one.strides[0]),
                _ => None,
            },
            base: base as usize,
            strides: moving,
            row,
        })
    }

    /// Emits a lambda from a row to the address of a row statistic, stored densely as `[batch…, rows]`.
    pub(super) fn figure(&mut self, rank: &Rank<'_>, name: &str, view: &View, written: bool) -> Result<(), String> {
        let nb = self.a.batch();
        let count: usize = self.a.dims[..nb + 1].iter().product();
        let p = rank.program;
        let place = extent::resolve(p.arena_bytes, &p.buffers, view, &[count], &[1])?;
        let p = self.pointer(rank.at(place.base), view.dtype, written);
        let linear = (0..nb).fold("0ll".to_string(), |text, d| format!("({text} * {} + k{d})", self.a.dims[d]));
        self.line(&format!("const auto {name} = [&](int r) {{ return o{p} + {linear} * {} + r; }};", self.a.rows()));
        Ok(())
    }

    /// Emits a lambda with this head and a body, which takes the product (and the gradient of the score), the row and
    /// the column.
    pub(super) fn body(
        &mut self,
        rank: &Rank<'_>,
        head: &str,
        body: &[Instruction],
        result: &dyn Fn(&str) -> String,
    ) -> Result<(), String> {
        let nb = self.a.batch();
        let graph = graph(rank, self.a, body, self.real)?;
        let end = graph.nodes.iter().position(|n| matches!(n.kind, Kind::Store(_)));
        let value = graph.nodes[end.ok_or("a body without a result")?].inputs[0];
        let strides = |d: usize| -> Vec<isize> {
            graph.walks.iter().map(|w| w.strides[d]).chain(graph.affines.iter().map(|a| a.1[d])).collect()
        };
        let kept = (0..nb + 2).map(|d| Axis { size: self.a.dims[d], strides: strides(d) }).collect();
        let mut made = Body::new(&graph, kept, Vec::new(), rank.base);
        made.literal = true;
        made.args.values = std::mem::take(&mut self.args);
        for (i, node) in graph.nodes.iter().enumerate() {
            if let Kind::Load(w) = node.kind
                && let Some(Instruction::Given { index, .. }) = body.get(graph.walks[w].at)
            {
                made.elements.insert(i, format!("As<{}>::of(g{index})", lane(node.lane)));
            }
        }
        let value = made.value(value);
        self.text.push_str(&made.head);
        self.line(&format!("const auto {head} -> R {{"));
        self.line(&format!("    const ix k{nb} = row_, k{} = column_;", nb + 1));
        made.lanes.lines().for_each(|l| self.line(&format!("    {l}")));
        self.line(&format!("    return {};", result(&value)));
        self.line("};");
        self.args = made.args.values;
        Ok(())
    }

    /// Emits the bodies of scores and weights, and of gradients if there are any.
    pub(super) fn bodies(&mut self, rank: &Rank<'_>) -> Result<(), String> {
        let a = self.a;
        if a.weight.is_empty() {
            self.line("const auto weight = [](R x, int, int) { return x; };");
        } else {
            self.body(rank, "weight = [&](R x, int row_, int column_)", &a.weight, &|w| format!("x * {w}"))?;
        }
        let gradient = a.backward.as_ref().map(|b| &b.gradient[..]);
        self.scores(rank, "score", &a.score, "gradient", gradient)
    }

    /// Emits the bodies of scores and of gradients.
    fn scores(
        &mut self,
        rank: &Rank<'_>,
        score: &str,
        body: &[Instruction],
        gradient: &str,
        of_gradient: Option<&[Instruction]>,
    ) -> Result<(), String> {
        self.body(rank, &format!("{score} = [&](R g0, int row_, int column_)"), body, &str::to_string)?;
        match of_gradient {
            None => Ok(()),
            // No kernel uses it.
            Some([]) => {
                self.line(&format!("const auto {gradient} = [](R g0, R, int, int) {{ return g0; }};"));
                Ok(())
            }
            Some(body) => {
                let head = format!("{gradient} = [&](R g0, R g1, int row_, int column_)");
                self.body(rank, &head, body, &str::to_string)
            }
        }
    }

    /// Declares `clear`, `clear_score` and `clear_gradient`: where bodies are shorter, and these shorter bodies.
    pub(super) fn clear(&mut self, rank: &Rank<'_>, owners: Owners) -> Result<(), String> {
        let Some(clear) = clear::find(self.a, owners) else {
            self.line("const Never clear;");
            self.line("const auto clear_score = score;");
            if self.a.backward.is_some() {
                self.line("const auto clear_gradient = gradient;");
            }
            return Ok(());
        };
        let [from, to] = clear.text();
        self.line(&format!("const Within clear = {{{from}, {to}}};"));
        let gradient = self.a.backward.as_ref().map(|_| &clear.gradient[..]);
        self.scores(rank, "clear_score", &clear.score, "clear_gradient", gradient)
    }
}

/// Whether the indices of a body's loads or random numbers need 64 bits.
pub(super) fn is_wide(a: &Attention) -> bool {
    let bodies = a.score.iter().chain(&a.weight).chain(a.backward.iter().flat_map(|b| &b.gradient));
    let reach = |strides: &[isize]| -> u128 {
        a.dims.iter().zip(strides).map(|(&n, &s)| n as u128 * s.unsigned_abs() as u128).sum()
    };
    bodies.into_iter().any(|ins| matches!(ins, Instruction::Load { strides, .. } if reach(strides) >= 1 << 31))
}

/// The nodes of a body. Its given values become loads without an address, and its result becomes a store without one.
fn graph(rank: &Rank<'_>, a: &Attention, body: &[Instruction], real: DType) -> Result<LoopGraph, String> {
    let row = a.dims.len() - 1;
    let with = |given: &dyn Fn(DType) -> Instruction| -> Vec<Instruction> {
        let of = |ins: &Instruction| match ins {
            Instruction::Given { dtype, .. } => given(*dtype),
            other => other.clone(),
        };
        body.iter().map(of).collect()
    };
    if let Some(at) = body.iter().position(|i| matches!(i, Instruction::ReduceRow { .. } | Instruction::Store { .. })) {
        return Err(format!("instruction {at} of a body of attention reduces or stores"));
    }
    let nowhere = Extent { base: 0, low: 0, high: 0 };
    let l = Loop { dims: a.dims.clone(), body: with(&|dtype| Instruction::Constant(Scalar::of(dtype, 0.0), dtype)) };
    let mut scan = rank.scan(&l)?;
    let mut imagined = |at: usize, dtype: DType, store: bool| {
        let mut strides = vec![0; a.dims.len()];
        strides[row] = 1;
        let place = scan.walks.partition_point(|w| w.at < at);
        scan.walks.insert(place, Walk { extent: nowhere, dtype, strides, store, at });
    };
    for (at, ins) in body.iter().enumerate() {
        if let Instruction::Given { dtype, .. } = ins {
            imagined(at, *dtype, false);
        }
    }
    imagined(body.len(), real, true);
    let view = |dtype: DType| View::dense(BufferId(0), dtype, Vec::new());
    let mut whole = with(&|dtype| Instruction::Load { view: view(dtype), strides: Vec::new() });
    let arg = body.len().checked_sub(1).ok_or("an empty body of attention")?;
    whole.push(Instruction::Store { view: view(real), strides: Vec::new(), arg, accumulate: None });
    let walks_vary: Vec<bool> = scan.walks.iter().map(|w| w.strides[row] != 0).collect();
    let affines_vary: Vec<bool> = scan.affines.iter().map(|a| a.1[row] != 0).collect();
    let nodes = nodes::build(&whole, &scan, &walks_vary, &affines_vary)?;
    Ok(LoopGraph { dims: a.dims.clone(), nodes, walks: scan.walks, affines: scan.affines })
}
