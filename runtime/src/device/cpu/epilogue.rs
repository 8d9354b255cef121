//! Products with epilogues, which are applied to each element before it is written.
//!
//! ```text
//! out = gelu(left · right + bias)     as   for every block of rows and columns: product; fused loop over the block
//! out = out + left · right            as   a product whose kernels add to the result
//! ```
//!
//! The loop processes a block while it is in the cache. The block's sums are stored in the result itself if the result
//! has the product's type and the loop does not read the result's previous contents. Otherwise they are in the scratch.
//! They are also in the scratch if the whole sum is one block: the result is then written once, and only the block
//! occupies the cache. An epilogue that cannot run in parts (because stores overlap other accesses, or rows are too
//! short) is a loop after the whole product.

use super::arena::Arena;
use super::contract::{self, Block, Offsets, Target, is_narrow};
use super::fused::FusedLoop;
use super::plan::{self, WithScratch};
use crate::device::extent::{Extent, resolve};
use crate::device::nodes::{self, Walk, must_keep_order};
use tpc_ir::program::{Buffer, Contract, ContractDim, Instruction, Loop, View};
use tpc_ir::{DType, MapFn};

/// Rows of blocks that are shorter than this are better left to a loop after the product, which may merge them, compute several
/// of them together or iterate in another order.
const SHORT_ROW: usize = 32;

/// A prepared product with its epilogue.
pub(crate) struct Prepared {
    product: contract::Prepared,
    /// The product is added to the result.
    accumulate: bool,
    then: Then,
}

/// How the epilogue is applied.
enum Then {
    Nothing,
    /// A loop over every block.
    Blocks(Box<Blocks>),
    /// A loop over the whole product, which it reads from the result.
    Loop(Box<FusedLoop>),
    /// A loop over the whole product in the scratch, and the loop's accesses that read it.
    LoopOfScratch(Box<FusedLoop>, Vec<usize>),
}

/// Prepares a product and its epilogue.
pub(crate) fn prepare(c: &Contract, arena: &Arena, buffers: &[Buffer]) -> Result<Prepared, String> {
    if c.epilogue.is_empty() {
        let product = contract::prepare(c, Target::Arena, arena, buffers)?;
        return Ok(Prepared { product, accumulate: false, then: Then::Nothing });
    }
    check(c)?;
    let dtype = type_of_product(c)?;
    let mut touched = Touched::of(c, arena, buffers)?;
    let mut c = c.clone();
    let mut accumulate = false;
    if c.out.dtype == dtype
        && dtype.is_float()
        && let Some(epilogue) = added_to_result(&c)
    {
        let added = Contract { epilogue, ..c.clone() };
        let after = Touched::of(&added, arena, buffers)?;
        // Otherwise the loop also reads it elsewhere.
        if !after.strict && !after.reads_out {
            (c, touched, accumulate) = (added, after, true);
        }
    }
    let in_result = c.out.dtype == dtype && !touched.strict && !touched.reads_out;
    if touched.in_parts(&c) && dtype.is_float() {
        if in_result && writes_product_only(&c) {
            let product = contract::prepare(&c.alone(c.out.clone()), Target::Arena, arena, buffers)?;
            return Ok(Prepared { product, accumulate, then: Then::Nothing });
        }
        let one_sum = c.k.iter().map(|d| d.size).product::<usize>() <= contract::BLOCK_K;
        let in_result = in_result && (accumulate || !one_sum);
        let target = if in_result { Target::Arena } else { Target::Blocks };
        let raw = View { dtype, ..c.out.clone() };
        let product = contract::prepare(&c.alone(raw), target, arena, buffers)?;
        if let Some(blocks) = Blocks::prepare(&c, dtype, &product, in_result, arena, buffers)? {
            return Ok(Prepared { product, accumulate, then: Then::Blocks(Box::new(blocks)) });
        }
    }
    if in_result {
        let product = contract::prepare(&c.alone(c.out.clone()), Target::Arena, arena, buffers)?;
        let then = Then::Loop(Box::new(plan::prepare(&c.epilogue_loop(&c.out), arena, buffers)?));
        return Ok(Prepared { product, accumulate, then });
    }
    // The product alone is dense in the scratch.
    let sizes: Vec<usize> = c.dims().map(|d| d.size).collect();
    let with_scratch = WithScratch::new(arena, buffers, sizes.iter().product::<usize>() * dtype.bytes());
    let raw = View::dense(with_scratch.buffer(), dtype, sizes);
    let mut alone = c.alone(raw.clone());
    let dims = alone.batch.iter_mut().chain(&mut alone.m).chain(&mut alone.n);
    dims.zip(&raw.strides).for_each(|(d, &s)| d.out = s);
    let epilogue_loop = Contract { epilogue: c.epilogue.clone(), ..alone.clone() }.epilogue_loop(&raw);
    let product = contract::prepare(&alone, Target::Scratch, arena, buffers)?;
    let body = with_scratch.prepare(&epilogue_loop, arena, false)?;
    Ok(Prepared { product, accumulate, then: Then::LoopOfScratch(Box::new(body), givens(&c.epilogue)) })
}

/// Checks that a body is an epilogue, and that its last store writes the result.
fn check(c: &Contract) -> Result<(), String> {
    for (at, ins) in c.epilogue.iter().enumerate() {
        let wrong = match ins {
            Instruction::ReduceRow { .. } => "reduces",
            Instruction::Store { accumulate: Some(_), .. } => "accumulates",
            Instruction::Given { index: 1.., .. } => "is given a value that products do not have",
            _ => continue,
        };
        return Err(format!("instruction {at} of an epilogue {wrong}"));
    }
    let fills = |i: &Instruction| matches!(i, Instruction::Store { view, strides, .. } if is_result(c, view, strides));
    match c.epilogue.iter().rfind(|i| matches!(i, Instruction::Store { .. })) {
        Some(last) if fills(last) => {}
        _ => return Err("the last store of an epilogue does not write the result".into()),
    }
    let repeated = |d: &ContractDim| d.out == 0 && d.size > 1;
    if c.dims().all(|d| d.size > 0) && c.dims().any(repeated) {
        return Err("a dimension of the result has stride 0".into());
    }
    Ok(())
}

/// Whether an access of an epilogue is the result, element by element.
fn is_result(c: &Contract, view: &View, strides: &[isize]) -> bool {
    (view.buffer, view.offset, view.dtype) == (c.out.buffer, c.out.offset, c.out.dtype)
        && strides.len() == c.dims().count()
        && c.dims().zip(strides).all(|(d, &s)| d.size == 1 || d.out == s)
}

/// The positions of the given values among the loads and stores of a loop after the product.
fn givens(epilogue: &[Instruction]) -> Vec<usize> {
    let accesses = epilogue
        .iter()
        .filter(|i| matches!(i, Instruction::Load { .. } | Instruction::Store { .. } | Instruction::Given { .. }));
    accesses.enumerate().filter(|(_, i)| matches!(i, Instruction::Given { .. })).map(|(at, _)| at).collect()
}

/// The type in which the epilogue receives the product: the compute type, or the epilogue's type if that is not a
/// float.
fn type_of_product(c: &Contract) -> Result<DType, String> {
    let given = c.epilogue.iter().filter_map(|i| match i {
        Instruction::Given { dtype, .. } => Some(*dtype),
        _ => None,
    });
    let types: Vec<DType> = given.collect();
    if types.iter().all(|d| d.is_float()) {
        let narrow = types.iter().chain([&c.left.dtype, &c.right.dtype]).all(|&d| is_narrow(d));
        return Ok(if narrow { DType::F32 } else { DType::F64 });
    }
    if types.iter().any(|&d| d != types[0]) {
        return Err("the product is given in several types".into());
    }
    Ok(types[0])
}

/// The memory accesses of an epilogue.
struct Touched {
    /// Its instructions must run one after the other on whole rows.
    strict: bool,
    /// It loads elements of the result's memory.
    reads_out: bool,
    /// It writes elements of an operand's memory.
    writes_operand: bool,
}

impl Touched {
    fn of(c: &Contract, arena: &Arena, buffers: &[Buffer]) -> Result<Self, String> {
        let bytes = arena.allocated_bytes();
        let epilogue_loop = c.epilogue_loop(&c.out);
        let scan = nodes::scan(&epilogue_loop, bytes, buffers)?;
        let given = |w: &Walk| matches!(c.epilogue[w.at], Instruction::Given { .. });
        let walks: Vec<Walk> = scan.walks.into_iter().filter(|w| !given(w)).collect();
        let of = |view: &View, name: &str, dims: Vec<&ContractDim>, stride: fn(&ContractDim) -> isize| {
            let sizes: Vec<usize> = dims.iter().map(|d| d.size).collect();
            let strides: Vec<isize> = dims.iter().map(|&d| stride(d)).collect();
            resolve(bytes, buffers, view, &sizes, &strides).map_err(|e| format!("{name}: {e}"))
        };
        let out: Extent = of(&c.out, "out", c.dims().collect(), |d| d.out)?;
        let left = of(&c.left, "left", c.batch.iter().chain(&c.m).chain(&c.k).collect(), |d| d.left)?;
        let right = of(&c.right, "right", c.batch.iter().chain(&c.k).chain(&c.n).collect(), |d| d.right)?;
        if out.overlaps(&left) || out.overlaps(&right) {
            return Err("the result overlaps an operand".into());
        }
        Ok(Touched {
            strict: must_keep_order(&walks, &epilogue_loop.dims),
            reads_out: walks.iter().any(|w| !w.store && w.extent.overlaps(&out)),
            writes_operand: walks.iter().any(|w| w.store && (w.extent.overlaps(&left) || w.extent.overlaps(&right))),
        })
    }

    /// Whether parts may run in any order, while later parts of the product are still to be computed.
    fn in_parts(&self, c: &Contract) -> bool {
        // An element that is written more than once keeps the value of the last index.
        let once = |i: &Instruction| match i {
            Instruction::Store { strides, .. } => c.dims().zip(strides).all(|(d, &s)| s != 0 || d.size == 1),
            _ => true,
        };
        !self.strict && !self.writes_operand && c.epilogue.iter().all(once)
    }
}

/// Whether the epilogue of a result in the product's type only writes the product.
fn writes_product_only(c: &Contract) -> bool {
    let epilogue = &c.epilogue;
    let mut stores = epilogue.iter().filter_map(|i| match i {
        Instruction::Store { arg, .. } => Some(*arg),
        _ => None,
    });
    let (Some(mut at), None) = (stores.next(), stores.next()) else { return false };
    while let Instruction::Map { f: MapFn::Identity, args, dtype } = &epilogue[at] {
        if *dtype != c.out.dtype {
            return false;
        }
        at = args[0];
    }
    matches!(epilogue[at], Instruction::Given { .. })
}

/// The rest of an epilogue if the product is added to the result. Only exists for an epilogue that adds the two.
///
/// ```text
/// r0 = load out            r0 = 0
/// r1 = given 0             r1 = given 0
/// r2 = load bias           r2 = load bias
/// r3 = add r1, r2          r3 = add r1, r2
/// r4 = add r0, r3          r4 = identity r3
/// store r4 -> out          store r4 -> out
/// ```
fn added_to_result(c: &Contract) -> Option<Vec<Instruction>> {
    let dtype = c.out.dtype;
    let body = &c.epilogue;
    let only = |is: &dyn Fn(&Instruction) -> bool| {
        let mut found = (0..body.len()).filter(|&at| is(&body[at]));
        found.next().filter(|_| found.next().is_none())
    };
    let held = only(&|i| matches!(i, Instruction::Load { view, strides } if is_result(c, view, strides)))?;
    let given = only(&|i| matches!(i, Instruction::Given { .. }))?;
    let reads = |at: usize| -> &[usize] {
        match &body[at] {
            Instruction::Map { args, .. } => args,
            Instruction::ReduceRow { arg, .. } | Instruction::Store { arg, .. } => std::slice::from_ref(arg),
            Instruction::Random { seed, .. } => std::slice::from_ref(seed),
            _ => &[],
        }
    };
    // The sum that is the only reader of a register.
    let sum_of = |register: usize| {
        let mut readers = (0..body.len()).flat_map(|at| reads(at).iter().filter(|&&x| x == register).map(move |_| at));
        let (reader, None) = (readers.next()?, readers.next()) else { return None };
        let sum = matches!(&body[reader], Instruction::Map { f: MapFn::Add, dtype: d, .. } if *d == dtype);
        sum.then_some(reader)
    };
    let root = |mut register: usize| {
        while let Some(sum) = sum_of(register) {
            register = sum;
        }
        register
    };
    let adds = sum_of(held)?;
    if root(held) != root(given) {
        return None;
    }
    let mut rest = body.clone();
    rest[held] = Instruction::Constant(tpc_ir::Scalar::float(0.0), dtype);
    if let Instruction::Map { f, args, .. } = &mut rest[adds] {
        args.retain(|&x| x != held);
        if args.len() == 1 {
            *f = MapFn::Identity;
        }
    }
    Some(rest)
}

/// How an access with a stride in every dimension moves from block to block.
struct Walked {
    batch: Offsets,
    rows: Offsets,
    columns: Offsets,
    /// The unit of its offsets.
    unit: isize,
}

impl Walked {
    fn at(&self, batch: usize, row: usize, column: usize) -> isize {
        (self.batch.at(batch) + self.rows.at(row) + self.columns.at(column)) * self.unit
    }
}

/// A fused loop whose parts run on blocks of a product.
struct Blocks {
    body: FusedLoop,
    /// Numbers of rows and columns within which everything moves by constant strides, from a multiple on.
    run: (usize, usize),
    accesses: Vec<Walked>,
    affines: Vec<Walked>,
    /// Accesses that read the product if it is in the scratch, and the distance between its rows in elements.
    reads: Vec<usize>,
    sum_stride: usize,
    /// Bytes of a sum.
    bytes: usize,
}

/// The dimensions over which blocks iterate as batches, rows and columns, as positions in the contraction.
struct Order {
    dims: Vec<usize>,
    batch: Vec<usize>,
    rows: Vec<usize>,
    columns: Vec<usize>,
}

impl Order {
    fn of(c: &Contract, swapped: bool) -> Self {
        let from = |first: usize, dims: &[ContractDim]| contract::by_stride(dims).iter().map(|d| first + d).collect();
        let (nb, nm) = (c.batch.len(), c.m.len());
        let (mut rows, mut columns) = (from(nb, &c.m), from(nb + nm, &c.n));
        if swapped {
            std::mem::swap(&mut rows, &mut columns);
        }
        Order { dims: c.dims().map(|d| d.size).collect(), batch: from(0, &c.batch), rows, columns }
    }

    fn walked(&self, strides: &[isize], unit: usize) -> Walked {
        let along =
            |dims: &[usize]| Offsets::new(&dims.iter().map(|&d| (self.dims[d], strides[d])).collect::<Vec<_>>());
        Walked {
            batch: along(&self.batch),
            rows: along(&self.rows),
            columns: along(&self.columns),
            unit: unit as isize,
        }
    }

    /// How many indices of the last of these dimensions, merged with the ones before, have one stride in every access.
    fn run(&self, dims: &[usize], all: &[Vec<isize>]) -> usize {
        let Some((&last, outer)) = dims.split_last() else { return 1 };
        let (mut n, mut inner) = (self.dims[last], last);
        for &d in outer.iter().rev() {
            if !all.iter().all(|s| s[d] == s[inner] * self.dims[inner] as isize) {
                break;
            }
            n *= self.dims[d];
            inner = d;
        }
        n
    }

    /// The stride along rows and columns.
    fn strides(&self, strides: &[isize]) -> [isize; 2] {
        [&self.rows, &self.columns].map(|dims| dims.last().map_or(0, |&d| strides[d]))
    }
}

impl Blocks {
    /// `None` if a block's rows are too short, or there are no rows.
    fn prepare(
        c: &Contract,
        dtype: DType,
        product: &contract::Prepared,
        in_result: bool,
        arena: &Arena,
        buffers: &[Buffer],
    ) -> Result<Option<Self>, String> {
        let order = Order::of(c, product.swapped());
        let rank = order.dims.len();
        let epilogue_loop = c.epilogue_loop(&View { dtype, ..c.out.clone() });
        let reads = if in_result { Vec::new() } else { givens(&c.epilogue) };
        // Strides of accesses and of affine integers, in the order of their instructions.
        let (mut of_accesses, mut of_affines) = (Vec::new(), Vec::new());
        for ins in &epilogue_loop.body {
            match ins {
                Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => {
                    of_accesses.push((strides.clone(), view.dtype.bytes()));
                }
                Instruction::Index { dim, .. } => {
                    let mut strides = vec![0; rank];
                    strides[*dim] = 1;
                    of_affines.push(strides);
                }
                Instruction::Random { index, .. } => {
                    let mut strides = vec![0; rank];
                    index.iter().for_each(|&(dim, _, stride)| strides[dim] += stride as isize);
                    of_affines.push(strides);
                }
                _ => {}
            }
        }
        // Sums in the scratch do not move with the block.
        reads.iter().for_each(|&r| of_accesses[r] = (vec![0; rank], 0));
        let all: Vec<Vec<isize>> = of_accesses.iter().map(|a| a.0.clone()).chain(of_affines.iter().cloned()).collect();
        let run = (order.run(&order.rows, &all), order.run(&order.columns, &all));
        let (rows, columns) = (run.0.min(contract::BLOCK_M), run.1.min(contract::BLOCK_N));
        if columns < SHORT_ROW || order.dims.contains(&0) {
            return Ok(None);
        }
        // The loop of a part has the dimensions of the product with one index each, followed by rows and columns.
        let place = |dim: usize| match dim {
            d if order.columns.last() == Some(&d) => rank + 1,
            d if order.rows.last() == Some(&d) => rank,
            d => d,
        };
        let sum_stride = product.sum_stride();
        let room = ((rows - 1) * sum_stride + columns) * dtype.bytes();
        let with_scratch = WithScratch::new(arena, buffers, room);
        let sums = View::dense(with_scratch.buffer(), dtype, vec![room / dtype.bytes()]);
        let mut access = 0;
        let mut moved = |view: &mut View, strides: &mut Vec<isize>| {
            let [row, column] = if reads.contains(&access) {
                *view = sums.clone();
                [sum_stride as isize, 1]
            } else {
                order.strides(strides)
            };
            *strides = vec![0; rank];
            strides.extend([row, column]);
            access += 1;
        };
        let mut body = epilogue_loop.body.clone();
        for ins in &mut body {
            match ins {
                Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => moved(view, strides),
                Instruction::Index { dim, .. } => *dim = place(*dim),
                Instruction::Random { index, .. } => index.iter_mut().for_each(|i| i.0 = place(i.0)),
                _ => {}
            }
        }
        let mut dims = vec![1; rank];
        dims.extend([rows, columns]);
        let body = with_scratch.prepare(&Loop { dims, body }, arena, true)?;
        Ok(Some(Blocks {
            body,
            run,
            accesses: of_accesses.iter().map(|(strides, bytes)| order.walked(strides, *bytes)).collect(),
            affines: of_affines.iter().map(|strides| order.walked(strides, 1)).collect(),
            reads,
            sum_stride,
            bytes: dtype.bytes(),
        }))
    }

    /// Runs the loop on a block.
    ///
    /// # Safety
    /// The conditions of [`Prepared::run`]; the block must be one of the product.
    unsafe fn run(&mut self, scratch: *mut u8, block: Block) {
        let (rows, columns) =
            (block.rows.0..block.rows.0 + block.rows.1, block.columns.0..block.columns.0 + block.columns.1);
        let mut i = rows.start;
        while i < rows.end {
            let m = (self.run.0 - i % self.run.0).min(rows.end - i);
            let mut j = columns.start;
            while j < columns.end {
                let n = (self.run.1 - j % self.run.1).min(columns.end - j);
                let sum = ((i - rows.start) * self.sum_stride + j - columns.start) * self.bytes;
                self.reads.iter().for_each(|&r| self.body.rebase(r, block.sums.wrapping_add(sum)));
                let moves = self.accesses.iter().map(|w| w.at(block.batch, i, j));
                let shifts = self.affines.iter().map(|w| w.at(block.batch, i, j) as i64);
                // SAFETY: passed on to the caller; the part is no larger than the loop, and moves by constant strides.
                unsafe { self.body.run_part(scratch, (m, n), moves, shifts) }
                j += n;
            }
            i += m;
        }
    }
}

impl Prepared {
    /// Bytes of scratch that a run needs.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.product.scratch_bytes().next_multiple_of(64)
            + match &self.then {
                Then::Nothing => 0,
                Then::Blocks(b) => b.body.scratch_bytes,
                Then::Loop(l) | Then::LoopOfScratch(l, _) => l.scratch_bytes,
            }
    }

    /// Computes the product and applies its epilogue.
    ///
    /// # Safety
    /// `scratch` must be `scratch_bytes` long and aligned to 64 bytes, and nothing else may use it or the operands
    /// during the call.
    pub(crate) unsafe fn run(&mut self, scratch: *mut u8) {
        let after_product = scratch.wrapping_add(self.product.scratch_bytes().next_multiple_of(64));
        // SAFETY: passed on to the caller; the loop's scratch follows the product's.
        unsafe {
            match &mut self.then {
                Then::Nothing => self.product.run(scratch, self.accumulate, &mut |_| ()),
                Then::Blocks(b) => {
                    self.product.run(scratch, self.accumulate, &mut |block| b.run(after_product, block));
                }
                Then::Loop(l) => {
                    self.product.run(scratch, self.accumulate, &mut |_| ());
                    l.run(after_product);
                }
                Then::LoopOfScratch(l, reads) => {
                    self.product.run(scratch, self.accumulate, &mut |_| ());
                    reads.iter().for_each(|&access| l.rebase(access, self.product.whole(scratch)));
                    l.run(after_product);
                }
            }
        }
    }
}
