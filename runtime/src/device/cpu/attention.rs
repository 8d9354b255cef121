//! Attention in blocks of rows: a block's scores stay in the L2 cache, and the whole matrix of scores is never in
//! memory.
//!
//! A block has three steps forward (product, softmax in one fused loop, product) and six backward. They use parts of
//! the same prepared products and loops as all other actions. A block contains whole rows, so the softmax needs no
//! running maximum. Columns that a mask hides from all rows of a block are skipped if they add exactly zero. If it
//! turns out that a row only has scores as small as the mask's, the block is recomputed with all columns.

use super::arena::Arena;
use super::contract::{self, Panels, SubProduct, Target};
use super::fused::FusedLoop;
use super::indices;
use super::plan;
use crate::device::visible::{self, Visible};
use crate::element::{Element, Lane, with_element};
use tpc_ir::attention::{Attention, Backward, Operand};
use tpc_ir::program::{Buffer, Contract, ContractDim, Instruction, Loop, View, dense_strides};
use tpc_ir::{DType, MapFn, ReduceOp};

/// A gradient: where its elements are stored, and where they are summed, which differs if the elements are narrower
/// than the sums.
struct Gradient {
    product: contract::Prepared,
    /// First element of the result and of the sums, as addresses in the arena; equal if the gradient is summed in
    /// place.
    base: *mut u8,
    sums: *mut u8,
    /// Extents for one index of the common batch dimensions, with strides in the result and in the sums, in elements.
    extents: Vec<(usize, isize, isize)>,
    /// Per batch dimension and for rows or columns: the strides in the result and in the sums.
    batch: Vec<(isize, isize)>,
    line: (isize, isize),
    put: unsafe fn(*mut u8, isize, f64),
    get: unsafe fn(*const u8, isize) -> f64,
    /// Bytes of an element of the sums.
    bytes: usize,
    /// Whether more than one block adds to an element.
    accumulate: bool,
}

unsafe fn put<E: Element>(base: *mut u8, offset: isize, x: f64) {
    // SAFETY: the caller addresses an element that was checked to be in the arena.
    unsafe { *base.cast::<E>().offset(offset) = E::store(Lane::from_f64(x)) }
}

unsafe fn get<E: Element>(base: *const u8, offset: isize) -> f64 {
    // SAFETY: the caller addresses an element that was checked to be in the arena.
    unsafe { (*base.cast::<E>().offset(offset)).load().to_f64() }
}

/// How the fused loop of a block moves from block to block.
struct Softmax {
    body: FusedLoop,
    /// Per access: bytes per batch dimension, per row and per column; the tile itself does not move.
    accesses: Vec<Vec<isize>>,
    /// Per affine integer: its strides.
    affines: Vec<Vec<i64>>,
}

/// A prepared attention.
pub(crate) enum Prepared {
    Blocks(Box<Blocks>),
    /// A batch dimension is empty: only gradients without that dimension exist, and they are zero.
    Zeros(Vec<Zero>),
}

/// A box of elements to set to 0.
pub(crate) struct Zero {
    base: *mut u8,
    /// Sizes and strides; the second stride applies.
    extents: Vec<(usize, isize, isize)>,
    bytes: usize,
}

/// Packed columns that are kept from block to block.
#[derive(Clone, Copy)]
struct Kept {
    /// Offset in bytes from the start of the scratch; `None` if blocks do not begin at the first column, or packing
    /// does not pay.
    at: Option<usize>,
    /// Offset of the packed operand.
    of: isize,
    columns: usize,
}

/// A prepared attention of blocks of rows.
pub(crate) struct Blocks {
    dims: Vec<usize>,
    block: usize,
    /// Batch dimensions that query, key and value all have, and the other batch dimensions.
    common: Vec<usize>,
    others: Vec<usize>,
    first: contract::Prepared,
    /// Packed keys and values, for all rows and heads that share them: their offset in the scratch, the index that they
    /// belong to, and how much is packed.
    panels: [Kept; 2],
    /// Strides of the operands: query, key, value, out, gradient of out.
    strides: [Vec<isize>; 5],
    softmax: Softmax,
    /// The second product of the forward pass.
    second: Option<contract::Prepared>,
    /// The product of the backward pass that computes the gradient of the weighted probabilities.
    incoming: Option<contract::Prepared>,
    query: Option<Gradient>,
    key: Option<Gradient>,
    value: Option<Gradient>,
    /// The columns that are visible to each block of rows.
    visible: Vec<Visible>,
    /// The saved maxima, and their strides.
    max: *const u8,
    max_strides: Vec<isize>,
    max_get: unsafe fn(*const u8, isize) -> f64,
    /// A score this much smaller than the row's largest adds nothing.
    nothing: f64,
    scratch_bytes: usize,
    index: Vec<usize>,
}

// SAFETY: the pointers point into the arena of the rank that runs the attention.
unsafe impl Send for Blocks {}
// SAFETY: as above.
unsafe impl Send for Zero {}

/// Sizes and strides of the dimensions that a product sums over or keeps.
fn dims(sizes: &[usize], left: &[isize], right: &[isize], out: &[isize]) -> Vec<ContractDim> {
    let of = |s: &[isize], i: usize| s.get(i).copied().unwrap_or(0);
    let dim =
        |(i, &size): (usize, &usize)| ContractDim { size, left: of(left, i), right: of(right, i), out: of(out, i) };
    sizes.iter().enumerate().map(dim).collect()
}

/// The context of the preparation.
struct Shop<'a> {
    a: &'a Attention,
    arena: &'a Arena,
    buffers: &'a [Buffer],
    /// The columns that are visible to each block of rows.
    visible: &'a [Visible],
    /// Number of rows per block, and of columns.
    block: usize,
    columns: usize,
    real: DType,
}

impl Shop<'_> {
    fn tile(&self, which: usize) -> View {
        let mut view = View::dense(self.a.tile.buffer, self.real, vec![self.block, self.columns]);
        view.offset = self.a.tile.offset + which * self.block * self.columns;
        view
    }

    /// Checks that an operand is in the arena.
    fn check(&self, name: &str, o: &Operand, own: &[usize]) -> Result<*mut u8, String> {
        let sizes: Vec<usize> = self.a.dims.iter().chain(own).copied().collect();
        let strides: Vec<isize> = o.dims.iter().chain(&o.own).copied().collect();
        let place = self.arena.resolve(self.buffers, &o.view, &sizes, &strides).map_err(|e| format!("{name}: {e}"))?;
        Ok(place.base)
    }

    fn product(
        &self,
        views: [&View; 3],
        m: Vec<ContractDim>,
        n: Vec<ContractDim>,
        k: Vec<ContractDim>,
    ) -> Result<contract::Prepared, String> {
        let [left, right, out] = views.map(Clone::clone);
        let c = Contract { left, right, out, batch: Vec::new(), m, n, k, scale: 1.0, epilogue: Vec::new() };
        contract::prepare(&c, Target::Arena, self.arena, self.buffers)
    }

    /// `out[r, c] = Σ rows · columns`, summed over the operand's own dimensions, into a tile.
    fn scores(
        &self,
        rows: &Operand,
        columns: &Operand,
        own: &[usize],
        tile: usize,
    ) -> Result<contract::Prepared, String> {
        let [r, c] = self.last();
        self.product(
            [&rows.view, &columns.view, &self.tile(tile)],
            dims(&[self.block], &[rows.dims[r]], &[], &[self.columns as isize]),
            dims(&[self.columns], &[], &[columns.dims[c]], &[1]),
            dims(own, &rows.own, &columns.own, &[]),
        )
    }

    /// `out[r, own] = Σ_c tile · columns`.
    fn over_columns(
        &self,
        tile: usize,
        columns: &Operand,
        out: &Operand,
        own: &[usize],
    ) -> Result<contract::Prepared, String> {
        let [r, c] = self.last();
        self.product(
            [&self.tile(tile), &columns.view, &out.view],
            dims(&[self.block], &[self.columns as isize], &[], &[out.dims[r]]),
            dims(own, &[], &columns.own, &out.own),
            dims(&[self.columns], &[1], &[columns.dims[c]], &[]),
        )
    }

    /// `out[c, own] = Σ_r tile · rows`.
    fn over_rows(
        &self,
        tile: usize,
        rows: &Operand,
        out: &Operand,
        own: &[usize],
    ) -> Result<contract::Prepared, String> {
        let [r, c] = self.last();
        self.product(
            [&self.tile(tile), &rows.view, &out.view],
            dims(&[self.columns], &[1], &[], &[out.dims[c]]),
            dims(own, &[], &rows.own, &out.own),
            dims(&[self.block], &[self.columns as isize], &[rows.dims[r]], &[]),
        )
    }

    /// The gradients that lack the empty batch dimensions.
    fn zeros(&self) -> Result<Vec<Zero>, String> {
        let a = self.a;
        let Some(b) = &a.backward else { return Ok(Vec::new()) };
        let mut zeros = Vec::new();
        let [rows, columns] = self.last();
        for (operand, line, own) in
            [(&b.grad_query, rows, &a.inner), (&b.grad_key, columns, &a.inner), (&b.grad_value, columns, &a.width)]
        {
            let Some(o) = operand.as_ref().filter(|o| (0..a.batch()).all(|d| a.dims[d] > 0 || o.dims[d] == 0)) else {
                continue;
            };
            let has = (0..a.batch()).filter(|&d| o.dims[d] != 0).chain([line]);
            let mut extents: Vec<(usize, isize, isize)> = has.map(|d| (a.dims[d], 0, o.dims[d])).collect();
            extents.extend(own.iter().zip(&o.own).map(|(&n, &s)| (n, 0, s)));
            let sizes: Vec<usize> = extents.iter().map(|e| e.0).collect();
            let strides: Vec<isize> = extents.iter().map(|e| e.2).collect();
            let base = self.arena.resolve(self.buffers, &o.view, &sizes, &strides)?.base;
            zeros.push(Zero { base, extents, bytes: o.view.dtype.bytes() });
        }
        Ok(zeros)
    }

    /// The positions of rows and columns among the dimensions.
    fn last(&self) -> [usize; 2] {
        [self.a.batch(), self.a.batch() + 1]
    }

    /// A gradient whose lines are rows or columns. `taken` elements of the room for sums are in use.
    fn gradient(
        &self,
        operand: &Operand,
        own: &[usize],
        line: usize,
        sums: &View,
        taken: &mut usize,
        product: &dyn Fn(&Operand) -> Result<contract::Prepared, String>,
    ) -> Result<Gradient, String> {
        let a = self.a;
        let base = self.check("gradient", operand, own)?;
        let has = |d: usize| a.dims[d] == 1 || operand.dims[d] != 0;
        let lacks = (0..a.batch()).any(|d| !has(d));
        // A single block of rows that sees all columns writes each of them.
        let once = matches!(self.visible, [all] if all.seen == (0..a.columns()));
        let accumulate = lacks || line != a.batch() && !once;
        let narrow = operand.view.dtype != self.real;
        // The box of one index of the common batch dimensions.
        let mut kept: Vec<(Option<usize>, usize, isize)> = Vec::new();
        kept.extend(
            (0..a.batch()).filter(|&d| !a.is_common(d) && has(d)).map(|d| (Some(d), a.dims[d], operand.dims[d])),
        );
        kept.push((Some(line), a.dims[line], operand.dims[line]));
        kept.extend(own.iter().zip(&operand.own).map(|(&n, &s)| (None, n, s)));
        let dense = dense_strides(&kept.iter().map(|k| k.1).collect::<Vec<_>>());
        let dense_of = |d: usize| kept.iter().position(|k| k.0 == Some(d)).map_or(0, |i| dense[i]);
        let whole: usize = kept.iter().map(|k| k.1).product();
        let in_room = narrow && accumulate;
        let target = if in_room {
            let mut to = Operand {
                view: sums.clone(),
                dims: vec![0; a.dims.len()],
                own: dense[kept.len() - own.len()..].to_vec(),
            };
            to.view.offset += *taken;
            kept.iter().zip(&dense).for_each(|(k, &s)| k.0.into_iter().for_each(|d| to.dims[d] = s));
            to
        } else {
            operand.clone()
        };
        let sums = if in_room { self.check_room(&target.view, whole)? } else { base };
        if narrow {
            *taken += whole;
        }
        let at = |d: usize| (operand.dims[d], if in_room { dense_of(d) } else { operand.dims[d] });
        let (of_result, of_sums) = (operand.view.dtype, target.view.dtype);
        let put = with_element!(of_result, E => put::<E> as unsafe fn(*mut u8, isize, f64));
        let get = with_element!(of_sums, E => get::<E> as unsafe fn(*const u8, isize) -> f64);
        let extents = kept.iter().zip(&dense).map(|(k, &s)| (k.1, k.2, if in_room { s } else { k.2 })).collect();
        Ok(Gradient {
            product: product(&target)?,
            base,
            sums,
            extents,
            batch: (0..a.batch()).map(at).collect(),
            line: at(line),
            put,
            get,
            bytes: of_sums.bytes(),
            accumulate,
        })
    }

    fn check_room(&self, view: &View, elements: usize) -> Result<*mut u8, String> {
        Ok(self.arena.resolve(self.buffers, view, &[elements], &[1]).map_err(|e| format!("sums: {e}"))?.base)
    }

    fn softmax(&self, backward: Option<&Backward>) -> Result<Softmax, String> {
        let a = self.a;
        let rank = a.dims.len();
        let mut body = Body { list: Vec::new(), real: self.real };
        let tile_strides = {
            let mut s = vec![0; rank];
            (s[rank - 2], s[rank - 1]) = (self.columns as isize, 1);
            s
        };
        let stat_strides: Vec<isize> = a.max.strides.iter().copied().chain([0]).collect();
        let load = |view: &View, strides: &[isize]| Instruction::Load { view: view.clone(), strides: strides.to_vec() };
        let store = |view: View, strides: &[isize], arg: usize| Instruction::Store {
            view,
            strides: strides.to_vec(),
            arg,
            accumulate: None,
        };
        let product = body.push(load(&self.tile(0), &tile_strides));
        let score = body.append(&a.score, &[product]).unwrap_or(product);
        let probability = match backward {
            None => {
                let max = body.push(Instruction::ReduceRow { op: ReduceOp::Max, arg: score, dtype: self.real });
                let shifted = body.map(MapFn::Sub, &[score, max]);
                let exp = body.map(MapFn::Exp, &[shifted]);
                let sum = body.push(Instruction::ReduceRow { op: ReduceOp::Sum, arg: exp, dtype: self.real });
                body.list.push(store(a.max.clone(), &stat_strides, max));
                body.list.push(store(a.sum.clone(), &stat_strides, sum));
                let over = body.map(MapFn::Recip, &[sum]);
                body.map(MapFn::Mul, &[exp, over])
            }
            Some(_) => {
                let max = body.push(load(&a.max, &stat_strides));
                let sum = body.push(load(&a.sum, &stat_strides));
                let shifted = body.map(MapFn::Sub, &[score, max]);
                let exp = body.map(MapFn::Exp, &[shifted]);
                let over = body.map(MapFn::Recip, &[sum]);
                body.map(MapFn::Mul, &[exp, over])
            }
        };
        let weight = body.append(&a.weight, &[]);
        let weighted = weight.map_or(probability, |w| body.map(MapFn::Mul, &[probability, w]));
        match backward {
            None => body.list.push(store(self.tile(0), &tile_strides, weighted)),
            Some(b) => {
                if b.grad_query.is_some() || b.grad_key.is_some() {
                    let incoming = body.push(load(&self.tile(1), &tile_strides));
                    let g = weight.map_or(incoming, |w| body.map(MapFn::Mul, &[incoming, w]));
                    let terms = body.map(MapFn::Mul, &[probability, g]);
                    let inner = body.push(Instruction::ReduceRow { op: ReduceOp::Sum, arg: terms, dtype: self.real });
                    let apart = body.map(MapFn::Sub, &[g, inner]);
                    let of_score = body.map(MapFn::Mul, &[probability, apart]);
                    let of_product = body.append(&b.gradient, &[of_score, product]).unwrap_or(of_score);
                    body.list.push(store(self.tile(1), &tile_strides, of_product));
                }
                body.list.push(store(self.tile(0), &tile_strides, weighted));
            }
        }
        let (mut accesses, mut affines) = (Vec::new(), Vec::new());
        for instruction in &body.list {
            match instruction {
                Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => {
                    let size = if view.buffer == a.tile.buffer { 0 } else { view.dtype.bytes() as isize };
                    if size != 0 {
                        self.arena.resolve(self.buffers, view, &a.dims, strides)?;
                    }
                    accesses.push(strides.iter().map(|s| s * size).collect());
                }
                Instruction::Index { dim, .. } => {
                    let mut strides = vec![0; rank];
                    *strides.get_mut(*dim).ok_or("an index of a missing dimension")? = 1;
                    affines.push(strides);
                }
                Instruction::Random { index, .. } => {
                    let mut strides = vec![0; rank];
                    for &(dim, _, stride) in index {
                        *strides.get_mut(dim).ok_or("an index of a missing dimension")? += stride as i64;
                    }
                    affines.push(strides);
                }
                _ => {}
            }
        }
        let list = indices::as_floats(&body.list, &a.dims);
        let mut sizes = vec![1; rank];
        (sizes[rank - 2], sizes[rank - 1]) = (self.block, self.columns);
        let body = plan::prepare_rigid(&Loop { dims: sizes, body: list }, self.arena, self.buffers)?;
        Ok(Softmax { body, accesses, affines })
    }
}

/// A body under construction.
struct Body {
    list: Vec<Instruction>,
    real: DType,
}

impl Body {
    fn push(&mut self, instruction: Instruction) -> usize {
        self.list.push(instruction);
        self.list.len() - 1
    }

    fn map(&mut self, f: MapFn, args: &[usize]) -> usize {
        let dtype = self.real;
        self.push(Instruction::Map { f, args: args.to_vec(), dtype })
    }

    /// Appends another body, whose given values are registers. Returns its result, if it has instructions.
    fn append(&mut self, part: &[Instruction], given: &[usize]) -> Option<usize> {
        let mut at: Vec<usize> = Vec::with_capacity(part.len());
        for instruction in part {
            let moved = match instruction {
                Instruction::Given { index, .. } => {
                    at.push(given[*index]);
                    continue;
                }
                Instruction::Map { f, args, dtype } => {
                    Instruction::Map { f: *f, args: args.iter().map(|&x| at[x]).collect(), dtype: *dtype }
                }
                Instruction::Random { distribution, stream, seed, index, dtype } => Instruction::Random {
                    distribution: *distribution,
                    stream: *stream,
                    seed: at[*seed],
                    index: index.clone(),
                    dtype: *dtype,
                },
                other => other.clone(),
            };
            at.push(self.push(moved));
        }
        at.last().copied()
    }
}

/// Prepares an attention.
pub(crate) fn prepare(a: &Attention, arena: &Arena, buffers: &[Buffer]) -> Result<Prepared, String> {
    let real = a.tile.dtype;
    let (block, columns) = (a.tile.shape[1], a.columns());
    let starts = (0..a.rows()).step_by(block.max(1));
    let visible: Vec<Visible> = starts.map(|r| visible::columns(a, r..(r + block).min(a.rows()))).collect();
    let shop = Shop { a, arena, buffers, visible: &visible, block, columns, real };
    for (name, o, own) in [
        ("query", &a.query, &a.inner),
        ("key", &a.key, &a.inner),
        ("value", &a.value, &a.width),
        ("out", &a.out, &a.width),
    ] {
        shop.check(name, o, own)?;
    }
    if a.dims[..a.batch()].contains(&0) {
        return shop.zeros().map(Prepared::Zeros);
    }
    let place = arena.resolve(buffers, &a.max, &a.dims[..a.dims.len() - 1], &a.max.strides)?;
    let first = shop.scores(&a.query, &a.key, &a.inner, 0)?;
    let b = a.backward.as_ref();
    let softmax = shop.softmax(b)?;
    let second = b.is_none().then(|| shop.over_columns(0, &a.value, &a.out, &a.width)).transpose()?;
    let (mut incoming, mut query, mut key, mut value) = (None, None, None, None);
    let mut grad_out = vec![0; a.dims.len()];
    if let Some(b) = b {
        shop.check("gradient of out", &b.grad_out, &a.width)?;
        grad_out.clone_from(&b.grad_out.dims);
        if b.grad_query.is_some() || b.grad_key.is_some() {
            incoming = Some(shop.scores(&b.grad_out, &a.value, &a.width, 1)?);
        }
        let [rows, cols] = shop.last();
        let mut taken = 0;
        if let Some(g) = &b.grad_query {
            let product = |to: &Operand| shop.over_columns(1, &a.key, to, &a.inner);
            query = Some(shop.gradient(g, &a.inner, rows, &b.sums, &mut taken, &product)?);
        }
        if let Some(g) = &b.grad_key {
            let product = |to: &Operand| shop.over_rows(1, &a.query, to, &a.inner);
            key = Some(shop.gradient(g, &a.inner, cols, &b.sums, &mut taken, &product)?);
        }
        if let Some(g) = &b.grad_value {
            let product = |to: &Operand| shop.over_rows(0, &b.grad_out, to, &a.width);
            value = Some(shop.gradient(g, &a.width, cols, &b.sums, &mut taken, &product)?);
        }
    }
    let products = [second.as_ref(), incoming.as_ref()].into_iter().flatten();
    let products = products.chain([&query, &key, &value].into_iter().flatten().map(|g| &g.product)).chain([&first]);
    let work = products.map(contract::Prepared::scratch_bytes).max().unwrap_or(0).max(softmax.body.scratch_bytes);
    let mut scratch_bytes = work;
    let from_first = visible.iter().all(|v| v.seen.start == 0);
    let panels = [Some(&first), incoming.as_ref()].map(|product| {
        let bytes = product.map_or(0, contract::Prepared::panel_bytes);
        let start = scratch_bytes.next_multiple_of(64);
        let at = (from_first && visible.len() > 1 && bytes > 0).then_some(start);
        scratch_bytes = at.map_or(scratch_bytes, |at| at + bytes);
        Kept { at, of: 0, columns: 0 }
    });
    let (common, others) = (0..a.batch()).partition(|&d| a.is_common(d));
    Ok(Prepared::Blocks(Box::new(Blocks {
        dims: a.dims.clone(),
        block,
        common,
        others,
        first,
        panels,
        strides: [&a.query.dims, &a.key.dims, &a.value.dims, &a.out.dims, &grad_out].map(Clone::clone),
        softmax,
        second,
        incoming,
        query,
        key,
        value,
        visible,
        max: place.base,
        max_strides: a.max.strides.clone(),
        max_get: with_element!(a.max.dtype, E => get::<E> as unsafe fn(*const u8, isize) -> f64),
        nothing: if real == DType::F64 { 746.0 } else { 104.0 },
        scratch_bytes,
        index: vec![0; a.batch()],
    })))
}

/// Increments an index in some dimensions; `false` after the last index.
fn advance(index: &mut [usize], which: &[usize], dims: &[usize]) -> bool {
    for &d in which.iter().rev() {
        index[d] += 1;
        if index[d] < dims[d] {
            return true;
        }
        index[d] = 0;
    }
    false
}

fn dot(index: &[usize], strides: &[isize]) -> isize {
    index.iter().zip(strides).map(|(&i, &s)| i as isize * s).sum()
}

/// Sets a box to 0, which is all zero bits for every float type; the second stride of the extents applies.
unsafe fn clear(base: *mut u8, bytes: usize, extents: &[(usize, isize, isize)], at: (isize, isize)) {
    // SAFETY: passed on to the caller.
    let run =
        |first: isize, n: usize| unsafe { base.wrapping_offset(first * bytes as isize).write_bytes(0, n * bytes) };
    match extents.split_last() {
        Some((&(n, _, 1), outer)) => Gradient::each(outer, at, &mut |_, first| run(first, n)),
        _ => Gradient::each(extents, at, &mut |_, first| run(first, 1)),
    }
}

impl Gradient {
    /// First elements of result and sums at an index of the batch.
    fn at(&self, index: &[usize], which: &[usize]) -> (isize, isize) {
        let sum = |(a, b): (isize, isize), &d: &usize| {
            (a + index[d] as isize * self.batch[d].0, b + index[d] as isize * self.batch[d].1)
        };
        which.iter().fold((0, 0), sum)
    }

    /// Calls `visit` with the offset of every element of a box, in result and sums.
    fn each(extents: &[(usize, isize, isize)], at: (isize, isize), visit: &mut impl FnMut(isize, isize)) {
        match extents {
            [] => visit(at.0, at.1),
            [(n, result, sums), rest @ ..] => {
                for i in 0..*n as isize {
                    Self::each(rest, (at.0 + i * result, at.1 + i * sums), visit);
                }
            }
        }
    }

    unsafe fn begin(&self, index: &[usize], common: &[usize]) {
        if self.accumulate {
            // SAFETY: the elements were checked to be in the arena.
            unsafe { clear(self.sums, self.bytes, &self.extents, self.at(index, common)) }
        }
    }

    unsafe fn end(&self, index: &[usize], common: &[usize]) {
        if self.sums != self.base {
            let at = self.at(index, common);
            Self::each(&self.extents, at, &mut |result, sum| {
                // SAFETY: as above.
                unsafe { (self.put)(self.base, result, (self.get)(self.sums, sum)) }
            });
        }
    }
}

impl Prepared {
    /// Bytes of scratch that a run needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        match self {
            Prepared::Blocks(b) => b.scratch_bytes,
            Prepared::Zeros(_) => 0,
        }
    }

    /// Computes the attention.
    ///
    /// # Safety
    /// `scratch` must be `scratch_bytes` long and aligned to 64 bytes, and nothing else may use it or the operands
    /// during the call.
    pub(crate) unsafe fn run(&mut self, scratch: *mut u8) {
        match self {
            // SAFETY: passed on to the caller.
            Prepared::Blocks(b) => unsafe { b.run(scratch) },
            Prepared::Zeros(zeros) => {
                for z in zeros {
                    // SAFETY: the elements were checked to be in the arena.
                    unsafe { clear(z.base, z.bytes, &z.extents, (0, 0)) }
                }
            }
        }
    }
}

impl Blocks {
    unsafe fn run(&mut self, scratch: *mut u8) {
        self.index.fill(0);
        self.panels.iter_mut().for_each(|p| p.columns = 0);
        loop {
            // SAFETY: passed on to the caller.
            unsafe {
                for g in [&self.query, &self.key, &self.value].into_iter().flatten() {
                    g.begin(&self.index, &self.common);
                }
                loop {
                    for at in 0..self.visible.len() {
                        self.rows(at, scratch);
                    }
                    if !advance(&mut self.index, &self.others, &self.dims) {
                        break;
                    }
                }
                for g in [&self.query, &self.key, &self.value].into_iter().flatten() {
                    g.end(&self.index, &self.common);
                }
            }
            if !advance(&mut self.index, &self.common, &self.dims) {
                return;
            }
        }
    }

    /// Computes a block of rows with the columns that it sees, or with all columns if the others contribute.
    unsafe fn rows(&mut self, at: usize, scratch: *mut u8) {
        let batch = self.dims.len() - 2;
        let rows = at * self.block..((at + 1) * self.block).min(self.dims[batch]);
        let (all, seen) = (0..self.dims[batch + 1], self.visible[at].seen.clone());
        let masked = self.visible[at].masked;
        // SAFETY: passed on to the caller; the maxima are in the arena.
        unsafe {
            let add_nothing = |p: &Blocks| {
                let start = dot(&p.index, &p.max_strides);
                let max = |r: usize| (p.max_get)(p.max, start + r as isize * p.max_strides[batch]);
                // False for NaN as well.
                rows.clone().all(|r| max(r) - masked > p.nothing)
            };
            if self.second.is_none() {
                let columns = if seen != all && add_nothing(self) { seen } else { all };
                return self.backward(&rows, &columns, scratch);
            }
            if seen == all || seen.is_empty() {
                return self.forward(&rows, &all, scratch);
            }
            self.forward(&rows, &seen, scratch);
            if !add_nothing(self) {
                self.forward(&rows, &all, scratch);
            }
        }
    }

    /// The first element of an operand's block.
    fn shift(&self, operand: usize, row: usize, column: usize) -> isize {
        let (strides, batch) = (&self.strides[operand], self.index.len());
        dot(&self.index, strides) + row as isize * strides[batch] + column as isize * strides[batch + 1]
    }

    unsafe fn softmax(&mut self, rows: &std::ops::Range<usize>, columns: &std::ops::Range<usize>, scratch: *mut u8) {
        let at = |i: usize| match i.checked_sub(self.index.len()) {
            None => self.index[i],
            Some(0) => rows.start,
            Some(_) => columns.start,
        };
        let moves = self.softmax.accesses.iter().map(|s| s.iter().enumerate().map(|(i, s)| at(i) as isize * s).sum());
        let shifts = self.softmax.affines.iter().map(|s| s.iter().enumerate().map(|(i, s)| at(i) as i64 * s).sum());
        // SAFETY: passed on to the caller; blocks are no larger than the loop.
        unsafe { self.softmax.body.run_part(scratch, (rows.len(), columns.len()), moves, shifts) }
    }

    /// A product of a block of rows with keys or values whose panels are kept: the first or the incoming product.
    unsafe fn scores(
        product: &contract::Prepared,
        kept: &mut Kept,
        scratch: *mut u8,
        shift: [isize; 3],
        (rows, columns): (usize, usize),
    ) {
        let part = SubProduct { shift, size: [rows, columns, usize::MAX], accumulate: false };
        let Some(at) = kept.at else {
            // SAFETY: passed on to the caller.
            return unsafe { product.run_part(scratch, part) };
        };
        if kept.of != shift[1] {
            (kept.of, kept.columns) = (shift[1], 0);
        }
        let mut panels = Panels { at: scratch.wrapping_add(at), columns: kept.columns };
        // SAFETY: passed on to the caller; the panels belong to this operand.
        unsafe { product.run_part_with(scratch, part, &mut panels) }
        kept.columns = panels.columns;
    }

    unsafe fn forward(&mut self, rows: &std::ops::Range<usize>, columns: &std::ops::Range<usize>, scratch: *mut u8) {
        let (r, c, own) = (rows.len(), columns.len(), usize::MAX);
        let scores = [self.shift(0, rows.start, 0), self.shift(1, 0, columns.start), 0];
        let out = [0, self.shift(2, 0, columns.start), self.shift(3, rows.start, 0)];
        // SAFETY: passed on to the caller.
        unsafe {
            Self::scores(&self.first, &mut self.panels[0], scratch, scores, (r, c));
            self.softmax(rows, columns, scratch);
            if let Some(second) = &self.second {
                second.run_part(scratch, SubProduct { shift: out, size: [r, own, c], accumulate: false });
            }
        }
    }

    unsafe fn backward(&mut self, rows: &std::ops::Range<usize>, columns: &std::ops::Range<usize>, scratch: *mut u8) {
        let (r, c, own) = (rows.len(), columns.len(), usize::MAX);
        // SAFETY: passed on to the caller.
        unsafe {
            let scores = [self.shift(0, rows.start, 0), self.shift(1, 0, columns.start), 0];
            Self::scores(&self.first, &mut self.panels[0], scratch, scores, (r, c));
            if let Some(incoming) = &self.incoming {
                let shift = [self.shift(4, rows.start, 0), self.shift(2, 0, columns.start), 0];
                Self::scores(incoming, &mut self.panels[1], scratch, shift, (r, c));
            }
            self.softmax(rows, columns, scratch);
            if let Some(g) = &self.query {
                let shift = [0, self.shift(1, 0, columns.start), self.line(g, rows.start)];
                g.product.run_part(scratch, SubProduct { shift, size: [r, own, c], accumulate: g.accumulate });
            }
            if let Some(g) = &self.key {
                let shift = [0, self.shift(0, rows.start, 0), self.line(g, columns.start)];
                g.product.run_part(scratch, SubProduct { shift, size: [c, own, r], accumulate: g.accumulate });
            }
            if let Some(g) = &self.value {
                let shift = [0, self.shift(4, rows.start, 0), self.line(g, columns.start)];
                g.product.run_part(scratch, SubProduct { shift, size: [c, own, r], accumulate: g.accumulate });
            }
        }
    }

    /// The offset of a gradient's line where products write it.
    fn line(&self, g: &Gradient, line: usize) -> isize {
        let batch = self.index.iter().zip(&g.batch).map(|(&i, s)| i as isize * s.1);
        batch.sum::<isize>() + line as isize * g.line.1
    }
}
