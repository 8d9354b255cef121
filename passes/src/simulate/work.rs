//! The work of a kernel: the operations of its products, the elements of its functions, and the bytes that it moves.
//!
//! A product counts two operations for each term. A function of a loop body counts one element for each iteration that
//! changes its value: `mul r0, r1` in a loop over `[64, 512]` counts 32,768 if `r0` is a row, and 64 if both are the same for
//! the whole row. Each element that a kernel reads or writes is moved once.

use crate::targets::Device;
use std::collections::BTreeSet;
use std::ops::Range;
use tpc_ir::attention::Attention;
use tpc_ir::program::{Action, Buffer, Contract, Instruction, Loop, View};
use tpc_ir::{DType, MapFn};

/// The work of a kernel.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Work {
    /// Floating-point operations of products.
    pub(super) flops: f64,
    /// The element type of the products' operands.
    dtype: DType,
    /// Bytes of the operands and the result of a product: of the blocks of an attention.
    operands: f64,
    /// Elements of additions, comparisons and the like.
    arithmetic: f64,
    /// Elements of divisions, roots, exponentials and the like.
    functions: f64,
    /// How often a function, a load or a store is applied to a piece of a row.
    dispatched: f64,
    /// What it reads and writes.
    moved: Vec<Moved>,
}

/// Bytes that a kernel reads or writes.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Moved {
    /// The bytes of the arena that contain them.
    pub(super) range: Range<usize>,
    /// Their number.
    pub(super) bytes: f64,
}

/// Elements of a row to which a function is applied at once.
const TILE: usize = 1024;

/// Rows shorter than this run along another dimension if there is a longer one.
const SHORT_ROW: usize = 32;

/// Functions of softmax for each score, which the body of an attention does not contain: the difference to the maximum, the
/// maximum and the sum; the exponential.
const SOFTMAX: (f64, f64) = (3.0, 1.0);

/// The same in the backward pass: the probability again, and its product with the difference of two gradients.
const SOFTMAX_BACKWARD: (f64, f64) = (4.0, 1.0);

impl Work {
    /// The work of an action on the arena of these buffers.
    pub(super) fn of(action: &Action, buffers: &[Buffer]) -> Self {
        let moves = |views: &[&View]| Work {
            flops: 0.0,
            dtype: DType::F32,
            operands: 0.0,
            arithmetic: 0.0,
            functions: 0.0,
            dispatched: 0.0,
            moved: views.iter().map(|view| whole(view, buffers)).collect(),
        };
        match action {
            Action::Loop(Loop { dims, body }) => {
                let mut work = Work { moved: touched(body, dims, buffers), ..moves(&[]) };
                work.add_body(body, dims);
                work
            }
            Action::Contract(contract) => {
                let dims: Vec<usize> = contract.dims().map(|dim| dim.size).collect();
                let mut work = moves(&[&contract.left, &contract.right]);
                work.moved.extend(match contract.epilogue.is_empty() {
                    true => vec![whole(&contract.out, buffers)],
                    false => touched(&contract.epilogue, &dims, buffers),
                });
                (work.flops, work.dtype) = (2.0 * terms(contract, &dims), contract.left.dtype);
                let out = size(&dims) * contract.out.dtype.bytes() as f64;
                work.operands = bytes(&contract.left) + bytes(&contract.right) + out;
                work.add_body(&contract.epilogue, &dims);
                work
            }
            Action::Attention(attention) => {
                let mut views: Vec<&View> = attention.operands().into_iter().map(|operand| &operand.view).collect();
                views.push(&attention.query.view);
                let mut work = moves(&views);
                work.add_attention(attention);
                work
            }
            Action::Take { index, out, .. } => moves(&[index, out, out]),
            Action::ScatterAdd { index, update, out, .. } => moves(&[index, update, out]),
            Action::Put { index, rows, .. } => moves(&[index, rows, rows]),
            Action::Copy { from, to } | Action::CumSum { from, to, .. } => moves(&[from, to]),
            Action::TopK { from, values, indices } => moves(&[from, values, indices]),
            Action::Start(collective) => moves(&[&collective.from, &collective.to]),
            Action::Wait { .. } => moves(&[]),
        }
    }

    fn add_attention(&mut self, attention: &Attention) {
        let (scores, inner, width) = (size(&attention.dims), size(&attention.inner), size(&attention.width));
        // Forward: the scores and the result. Backward: the scores again, and the gradients of scores, query, key and value.
        let (products, (arithmetic, functions)) = match &attention.backward {
            None => (inner + width, SOFTMAX),
            Some(_) => (3.0 * inner + 2.0 * width, SOFTMAX_BACKWARD),
        };
        let dtype = attention.query.view.dtype;
        (self.flops, self.dtype) = (2.0 * scores * products, dtype);
        let (rows, columns) =
            (attention.tile.shape.get(1).map_or(1.0, |&rows| rows as f64), attention.columns() as f64);
        self.operands = (rows * columns + (rows + columns) * inner) * dtype.bytes() as f64;
        self.arithmetic += arithmetic * scores;
        self.functions += functions * scores;
        self.dispatched += (arithmetic + functions) * pieces(&attention.dims);
        self.add_body(&attention.score, &attention.dims);
        self.add_body(&attention.weight, &attention.dims);
        if let Some(backward) = &attention.backward {
            self.add_body(&backward.gradient, &attention.dims);
        }
    }

    /// Adds the functions of a body that runs once for each index of `dims`, the last of which is the row.
    fn add_body(&mut self, body: &[Instruction], dims: &[usize]) {
        let elements = size(dims);
        let pieces = pieces(&merged(body, dims));
        let rows = dims.last().map_or(1.0, |&row| if row == 0 { 0.0 } else { elements / row as f64 });
        // Whether a register is the same for the whole row.
        let mut uniform: Vec<bool> = Vec::with_capacity(body.len());
        for instruction in body {
            let along = |strides: &[isize]| strides.last().is_some_and(|&stride| stride != 0);
            let of = |args: &[usize]| args.iter().all(|&arg| uniform[arg]);
            let (is_uniform, arithmetic, functions) = match instruction {
                Instruction::Load { strides, .. } => (!along(strides), 0.0, 0.0),
                Instruction::Constant(..) => (true, 0.0, 0.0),
                Instruction::Given { .. } => (false, 0.0, 0.0),
                Instruction::Index { dim, .. } => (dim + 1 != dims.len(), 1.0, 0.0),
                Instruction::Random { .. } => (false, 0.0, 1.0),
                Instruction::Map { f, args, .. } if is_slow(*f) => (of(args), 0.0, 1.0),
                Instruction::Map { args, .. } => (of(args), args.len().saturating_sub(1).max(1) as f64, 0.0),
                Instruction::ReduceRow { arg, .. } => (uniform[*arg], 1.0, 0.0),
                Instruction::Store { strides, accumulate, .. } => {
                    (!along(strides), if accumulate.is_some() { 1.0 } else { 0.0 }, 0.0)
                }
            };
            let count = if is_uniform { rows } else { elements };
            self.arithmetic += arithmetic * count;
            self.functions += functions * count;
            if !matches!(instruction, Instruction::Constant(..)) {
                self.dispatched += if is_uniform { rows.min(pieces) } else { pieces };
            }
            uniform.push(is_uniform || matches!(instruction, Instruction::ReduceRow { .. }));
        }
    }

    /// What it reads and writes.
    pub(super) fn moved(&self) -> &[Moved] {
        &self.moved
    }

    /// Duration of a kernel with this work in seconds, if what it moves takes so many.
    pub(super) fn seconds(&self, device: &Device, moving: f64) -> f64 {
        let products = self.flops / (device.products.rate(self.dtype) * device.product_share(self.operands));
        let loops = device.loops.map_or(0.0, |loops| {
            self.arithmetic / loops.arithmetic + self.functions / loops.functions + self.dispatched * loops.dispatch
        });
        device.launch + products.max(moving) + loops
    }
}

/// Whether a function takes several times as long as an addition.
fn is_slow(f: MapFn) -> bool {
    match f {
        MapFn::Div | MapFn::Pow | MapFn::Rem | MapFn::Exp | MapFn::Log | MapFn::Sqrt | MapFn::Rsqrt => true,
        MapFn::Recip | MapFn::Tanh | MapFn::Erf | MapFn::Sin | MapFn::Cos | MapFn::Sigmoid => true,
        MapFn::Identity | MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Max | MapFn::Min | MapFn::Neg => false,
        MapFn::Abs | MapFn::Sign | MapFn::Floor | MapFn::Ceil | MapFn::Round | MapFn::Not => false,
        MapFn::Eq | MapFn::Ne | MapFn::Lt | MapFn::Le | MapFn::Gt | MapFn::Ge => false,
        MapFn::And | MapFn::Or | MapFn::Select | MapFn::Cast(_) => false,
    }
}

fn size(dims: &[usize]) -> f64 {
    dims.iter().map(|&n| n as f64).product()
}

fn terms(contract: &Contract, dims: &[usize]) -> f64 {
    dims.iter().chain(contract.k.iter().map(|dim| &dim.size)).map(|&n| n as f64).product()
}

/// The number of pieces of rows in a loop over these dimensions.
fn pieces(dims: &[usize]) -> f64 {
    let Some((&row, outer)) = dims.split_last() else { return 1.0 };
    match outer.iter().max() {
        Some(&longest) if row < SHORT_ROW && longest > row => {
            size(dims) / longest as f64 * longest.div_ceil(TILE) as f64
        }
        _ => size(outer) * row.div_ceil(TILE) as f64,
    }
}

/// The dimensions of a loop, where those along which all accesses continue each other are one.
fn merged(body: &[Instruction], dims: &[usize]) -> Vec<usize> {
    let strides: Vec<&[isize]> = body
        .iter()
        .filter_map(|instruction| match instruction {
            Instruction::Load { strides, .. } | Instruction::Store { strides, .. } => Some(&strides[..]),
            _ => None,
        })
        .collect();
    let indexed = |d: usize| body.iter().any(|ins| matches!(ins, Instruction::Index { dim, .. } if *dim == d));
    let mut kept: Vec<usize> = (0..dims.len()).filter(|&d| dims[d] != 1).collect();
    let mut sizes: Vec<usize> = kept.iter().map(|&d| dims[d]).collect();
    for at in (0..kept.len().saturating_sub(1)).rev() {
        let (outer, inner) = (kept[at], kept[at + 1]);
        let nests = strides.iter().all(|s| s[outer] == s[inner] * sizes[at + 1] as isize);
        if nests && !indexed(outer) && !indexed(inner) {
            sizes[at + 1] *= sizes[at];
            sizes.remove(at);
            kept.remove(at);
        }
    }
    sizes
}

/// Bytes of the elements of a view.
fn bytes(view: &View) -> f64 {
    (view.elements() * view.dtype.bytes()) as f64
}

/// All elements of a view.
fn whole(view: &View, buffers: &[Buffer]) -> Moved {
    Moved { range: range(view, &view.shape, &view.strides, buffers), bytes: bytes(view) }
}

/// The bytes of the arena between the first and the last element of an access.
fn range(view: &View, dims: &[usize], strides: &[isize], buffers: &[Buffer]) -> Range<usize> {
    let buffer = &buffers[view.buffer.0 as usize];
    if dims.contains(&0) {
        return buffer.offset..buffer.offset;
    }
    let ends = dims.iter().zip(strides).map(|(&n, &stride)| stride * (n - 1) as isize);
    let (low, high) = ends.fold((0, 0), |(low, high), end| (low + end.min(0), high + end.max(0)));
    let at = |element: isize| buffer.offset + view.offset.saturating_add_signed(element) * view.dtype.bytes();
    at(low)..at(high) + view.dtype.bytes()
}

/// What a loop body reads and writes, where each element of each view counts once.
fn touched(body: &[Instruction], dims: &[usize], buffers: &[Buffer]) -> Vec<Moved> {
    let mut seen = BTreeSet::new();
    let mut moved = Vec::new();
    for instruction in body {
        let (Instruction::Load { view, strides } | Instruction::Store { view, strides, .. }) = instruction else {
            continue;
        };
        let is_store = matches!(instruction, Instruction::Store { .. });
        if seen.insert((view.buffer, view.offset, strides, is_store)) {
            let extents = dims.iter().zip(strides).filter(|(_, stride)| **stride != 0).map(|(&n, _)| n as f64);
            let bytes = extents.product::<f64>() * view.dtype.bytes() as f64;
            moved.push(Moved { range: range(view, dims, strides, buffers), bytes });
        }
    }
    moved
}
