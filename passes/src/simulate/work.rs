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
    /// Elements of divisions and square roots.
    divisions: f64,
    /// Elements of exponentials and the like.
    functions: f64,
    /// Elements that are read from short rows or written to them, where several rows share a tile.
    copies: f64,
    /// How often a function, a load or a store is applied to a tile.
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

/// Rows shorter than this share a tile.
const SHORT_ROW: usize = 128;

/// A dimension of at most this size stays outside of tiles if a body uses its index.
const FEW: usize = 4;

/// Products whose results have rows shorter than this apply their epilogue after the product, in a loop.
const SHORT_RESULT: usize = 32;

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
            divisions: 0.0,
            functions: 0.0,
            copies: 0.0,
            dispatched: 0.0,
            moved: views.iter().map(|view| whole(view, buffers)).collect(),
        };
        match action {
            Action::Loop(Loop { dims, body }) => {
                let mut work = Work { moved: touched(body, dims, buffers), ..moves(&[]) };
                work.add_body(body, dims, &Tiles::of(body, dims, SHORT_ROW));
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
                work.add_body(&contract.epilogue, &dims, &Tiles::of(&contract.epilogue, &dims, SHORT_RESULT));
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
        // Its blocks keep their rows.
        let tiles = Tiles::of_rows(&attention.dims);
        self.dispatched += (arithmetic + functions) * tiles.count;
        let gradient = attention.backward.as_ref().map(|backward| &backward.gradient);
        for body in [&attention.score, &attention.weight].into_iter().chain(gradient) {
            self.add_body(body, &attention.dims, &tiles);
        }
    }

    /// Adds the functions of a body that runs once for each index of `dims`, the last of which is the row.
    fn add_body(&mut self, body: &[Instruction], dims: &[usize], tiles: &Tiles) {
        let elements = size(dims);
        // Whether a register is the same for a whole tile or row.
        let mut uniform: Vec<bool> = Vec::with_capacity(body.len());
        for instruction in body {
            let of = |args: &[usize]| args.iter().all(|&arg| uniform[arg]);
            let of_access = |strides: &[isize]| tiles.inside.iter().all(|&d| strides[d] == 0);
            let (is_uniform, kind) = match instruction {
                Instruction::Load { strides, .. } => (of_access(strides), Kind::Access(strides)),
                Instruction::Constant(..) => (true, Kind::Nothing),
                Instruction::Given { .. } => (false, Kind::Nothing),
                Instruction::Index { dim, .. } => (!tiles.inside.contains(dim), Kind::Arithmetic(1)),
                Instruction::Random { .. } => (false, Kind::Function),
                Instruction::Map { f, args, .. } => (of(args), Kind::of(*f, args.len())),
                Instruction::ReduceRow { arg, .. } => (uniform[*arg], Kind::Arithmetic(1)),
                Instruction::Store { strides, accumulate: None, .. } => (of_access(strides), Kind::Access(strides)),
                Instruction::Store { strides, .. } => (of_access(strides), Kind::Arithmetic(1)),
            };
            let count = if is_uniform { tiles.uniform } else { elements };
            match kind {
                Kind::Arithmetic(operations) => self.arithmetic += operations as f64 * count,
                Kind::Division => self.divisions += count,
                Kind::Function => self.functions += count,
                Kind::Access(strides) if tiles.are_of_rows && !is_uniform && !tiles.are_dense(strides) => {
                    self.copies += count;
                }
                Kind::Access(_) | Kind::Nothing => {}
            }
            if !matches!(instruction, Instruction::Constant(..)) {
                self.dispatched += if is_uniform { tiles.uniform.min(tiles.count) } else { tiles.count };
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
            self.arithmetic / loops.arithmetic
                + self.divisions / loops.divisions
                + self.functions / loops.functions
                + self.copies / loops.copies
                + self.dispatched * loops.dispatch
        });
        device.launch + products.max(moving) + loops
    }
}

/// What an instruction does to an element.
enum Kind<'a> {
    /// So many additions, comparisons or the like.
    Arithmetic(usize),
    Division,
    Function,
    /// A load or a store with these strides.
    Access(&'a [isize]),
    Nothing,
}

impl Kind<'_> {
    /// The kind of a function of so many operands.
    fn of(f: MapFn, operands: usize) -> Self {
        let arithmetic = Kind::Arithmetic(operands.saturating_sub(1).max(1));
        match f {
            MapFn::Div | MapFn::Recip | MapFn::Sqrt | MapFn::Rsqrt => Kind::Division,
            MapFn::Pow | MapFn::Rem | MapFn::Exp | MapFn::Log | MapFn::Tanh | MapFn::Erf => Kind::Function,
            MapFn::Sin | MapFn::Cos | MapFn::Sigmoid => Kind::Function,
            MapFn::Identity | MapFn::Add | MapFn::Sub | MapFn::Mul | MapFn::Max | MapFn::Min => arithmetic,
            MapFn::Neg | MapFn::Abs | MapFn::Sign | MapFn::Floor | MapFn::Ceil | MapFn::Round => arithmetic,
            MapFn::Eq | MapFn::Ne | MapFn::Lt | MapFn::Le | MapFn::Gt | MapFn::Ge => arithmetic,
            MapFn::Not | MapFn::And | MapFn::Or | MapFn::Select | MapFn::Cast(_) => arithmetic,
        }
    }
}

/// The tiles of a loop, to which a function is applied at once: pieces of rows or, where rows are short, several rows.
struct Tiles {
    /// The row, the last of at most two dimensions. A tile of several rows may span a third dimension, which changes neither
    /// what is dense nor, as a rule, what is uniform.
    inside: Vec<usize>,
    /// The size of the row.
    row: usize,
    /// Whether a tile has several rows.
    are_of_rows: bool,
    /// The number of tiles.
    count: f64,
    /// How often a function is computed that is the same for a whole tile, or for all tiles of a row.
    uniform: f64,
}

impl Tiles {
    /// Those of a body that runs once for each index of `dims`, where rows of fewer elements than `short` may share a tile. The
    /// runtime decides by the same lengths.
    fn of(body: &[Instruction], dims: &[usize], short: usize) -> Self {
        let (kept, sizes) = merged(body, dims);
        let Some((&last, &row)) = kept.last().zip(sizes.last()) else { return Tiles::of_rows(&[]) };
        let elements = size(dims);
        let stores = || {
            body.iter().filter_map(|instruction| match instruction {
                Instruction::Store { strides, .. } => Some(strides),
                _ => None,
            })
        };
        let reduces = body.iter().any(|instruction| matches!(instruction, Instruction::ReduceRow { .. }));
        if !reduces && row < short && stores().all(|strides| strides[last] != 0) {
            let mut inside: Vec<(usize, usize)> = kept.into_iter().zip(sizes).rev().collect();
            inside.retain(|&(d, size)| size > FEW || !is_indexed(body, d));
            inside.retain(|&(d, _)| stores().all(|strides| strides[d] != 0));
            let dense = |d: usize| accesses(body).filter(|strides| strides[d].unsigned_abs() == 1).count();
            inside.sort_by_key(|&(d, _)| std::cmp::Reverse(dense(d)));
            match inside[..] {
                [(d, long), ..] if long >= TILE / 2 => {
                    return Tiles { inside: vec![d], ..Tiles::of_pieces(elements, long) };
                }
                [(d, row), (across, _), ..] => {
                    let lanes: usize = inside.iter().take(3).map(|(_, size)| size).product();
                    let count = (elements / lanes.clamp(1, TILE) as f64).ceil();
                    return Tiles { inside: vec![across, d], row, are_of_rows: true, count, uniform: count };
                }
                _ => {}
            }
        }
        Tiles { inside: vec![last], ..Tiles::of_pieces(elements, row) }
    }

    /// Pieces of the rows of a loop over these dimensions, none of which are merged.
    fn of_rows(dims: &[usize]) -> Self {
        let inside = dims.len().checked_sub(1).into_iter().collect();
        Tiles { inside, ..Tiles::of_pieces(size(dims), dims.last().copied().unwrap_or(1)) }
    }

    /// Pieces of rows of this size.
    fn of_pieces(elements: f64, row: usize) -> Self {
        let rows = if row == 0 { 0.0 } else { elements / row as f64 };
        Tiles { inside: Vec::new(), row, are_of_rows: false, count: rows * row.div_ceil(TILE) as f64, uniform: rows }
    }

    /// Whether consecutive elements of a tile of several rows are next to each other.
    fn are_dense(&self, strides: &[isize]) -> bool {
        matches!(self.inside[..], [across, row] if strides[row] == 1 && strides[across] == self.row as isize)
    }
}

/// The strides of all loads and stores.
fn accesses(body: &[Instruction]) -> impl Iterator<Item = &[isize]> {
    body.iter().filter_map(|instruction| match instruction {
        Instruction::Load { strides, .. } | Instruction::Store { strides, .. } => Some(&strides[..]),
        _ => None,
    })
}

/// Whether a body uses the index of a dimension.
fn is_indexed(body: &[Instruction], d: usize) -> bool {
    body.iter().any(|instruction| matches!(instruction, Instruction::Index { dim, .. } if *dim == d))
}

fn size(dims: &[usize]) -> f64 {
    dims.iter().map(|&n| n as f64).product()
}

fn terms(contract: &Contract, dims: &[usize]) -> f64 {
    dims.iter().chain(contract.k.iter().map(|dim| &dim.size)).map(|&n| n as f64).product()
}

/// The dimensions of a loop, where those along which all accesses continue each other are one, and their sizes.
fn merged(body: &[Instruction], dims: &[usize]) -> (Vec<usize>, Vec<usize>) {
    let strides: Vec<&[isize]> = accesses(body).collect();
    let mut kept: Vec<usize> = (0..dims.len()).filter(|&d| dims[d] != 1).collect();
    let mut sizes: Vec<usize> = kept.iter().map(|&d| dims[d]).collect();
    for at in (0..kept.len().saturating_sub(1)).rev() {
        let (outer, inner) = (kept[at], kept[at + 1]);
        let nests = strides.iter().all(|s| s[outer] == s[inner] * sizes[at + 1] as isize);
        if nests && !is_indexed(body, outer) && !is_indexed(body, inner) {
            sizes[at + 1] *= sizes[at];
            sizes.remove(at);
            kept.remove(at);
        }
    }
    (kept, sizes)
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

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::ReduceOp;
    use tpc_ir::program::BufferId;

    fn view() -> View {
        View::dense(BufferId(0), DType::F32, vec![1 << 20])
    }

    fn load(strides: &[isize]) -> Instruction {
        Instruction::Load { view: view(), strides: strides.to_vec() }
    }

    fn store(strides: &[isize], accumulate: Option<ReduceOp>) -> Instruction {
        Instruction::Store { view: view(), strides: strides.to_vec(), arg: 0, accumulate }
    }

    /// What the model says of a loop: whether tiles have several rows, their number, and the elements that are copied.
    fn of(dims: &[usize], body: &[Instruction]) -> (bool, f64, f64) {
        let tiles = Tiles::of(body, dims, SHORT_ROW);
        let buffer = Buffer { offset: 0, bytes: 4 << 20, persistent: false, label: "".into() };
        let action = Action::Loop(Loop { dims: dims.to_vec(), body: body.to_vec() });
        (tiles.are_of_rows, tiles.count, Work::of(&action, &[buffer]).copies)
    }

    #[test]
    fn short_rows_share_tiles() {
        // A rotary embedding of 6 heads in halves of 16. The body uses the index of the halves, so a tile is within one half,
        // whose rows are apart in the operands and in the result.
        let index = Instruction::Index { dim: 2, offset: 0, dtype: DType::I64 };
        let (own, other, table) = ([192, 32, 16, 1], [192, 32, 0, 1], [32, 0, 16, 1]);
        let body = [load(&own), load(&other), load(&table), index, store(&own, None)];
        assert_eq!(of(&[256, 6, 2, 16], &body), (true, 48.0, 4.0 * 49_152.0));
        // A transposition copies one of its sides. Each of its dimensions is dense in one.
        let body = [load(&[1, 64]), store(&[64, 1], None)];
        assert_eq!(of(&[64, 64], &body), (true, 4.0, 4096.0));
    }

    #[test]
    fn other_rows_do_not() {
        // Dense accesses are one long row.
        let body = [load(&[64, 1]), store(&[64, 1], None)];
        assert_eq!(of(&[64, 64], &body), (false, 4.0, 0.0));
        // The gradient of a bias, and a sum over rows.
        assert_eq!(of(&[1024, 64], &[load(&[64, 1]), store(&[0, 1], Some(ReduceOp::Sum))]), (false, 1024.0, 0.0));
        assert_eq!(of(&[1024, 64], &[load(&[64, 1]), store(&[1, 0], Some(ReduceOp::Sum))]), (false, 1024.0, 0.0));
        // Pairs whose first elements are next to each other, and so are the second ones: the other dimension is the row.
        assert_eq!(of(&[2048, 2], &[load(&[1, 4096]), store(&[1, 4096], None)]), (false, 4.0, 0.0));
        // Rows that are long enough.
        assert_eq!(of(&[8, 128], &[load(&[0, 1]), store(&[128, 1], None)]), (false, 8.0, 0.0));
        // The rows of an epilogue, unless they are very short.
        let bias = [load(&[0, 1]), store(&[64, 1], None)];
        assert!(!Tiles::of(&bias, &[1024, 64], SHORT_RESULT).are_of_rows);
        assert!(Tiles::of(&bias, &[1024, 16], SHORT_RESULT).are_of_rows);
    }
}
