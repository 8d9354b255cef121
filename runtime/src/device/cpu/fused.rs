//! Executes fused loops on vector registers.
//!
//! The body is split into *stages* where later row instructions need a reduction of the row. A stage runs uniform
//! instructions, then its row instructions on one tile after the other (so that the registers of a tile stay in the L1
//! cache), then the uniform instructions that need the stage's reductions. Registers that live across stages hold whole
//! rows. Operands that are dense in the arena in the lane's own type are used and written in place.
//! A tile is a piece of a row or, where rows are short, several rows ([`Span`]).

use super::vector::{Grid, Kernel, LoadKernel, ReduceKernel, StoreKernel};
use crate::element::Lane;
use tpc_ir::op::Distribution;
use tpc_ir::random;

/// Where a kernel reads or writes lanes.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lanes {
    /// A slot of the uniform block.
    Uniform(usize),
    /// Offset in bytes from the start of the scratch; `scale` is the lane size if the buffer holds whole rows, and 0 if
    /// it holds the current tile.
    Scratch { offset: usize, scale: usize },
    /// Directly in the arena, dense.
    Access { index: usize, scale: usize },
}

/// What a tile spans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Span {
    /// A piece of a row.
    Row,
    /// Several whole rows: as many groups as fit, each of `group` rows of `row` elements. A loop that reduces its rows never
    /// has this span.
    Rows { group: usize, row: usize },
}

impl Span {
    /// The number of lanes of which every tile is a multiple.
    pub(crate) fn unit(self) -> usize {
        match self {
            Span::Row => 1,
            Span::Rows { group, row } => group * row,
        }
    }
}

/// How an access or an integer changes along the dimensions of a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Steps {
    /// From an element of a row to the next.
    pub(crate) row: isize,
    /// From a row of a group to the next; 0 if a tile is a piece of a row.
    pub(crate) across: isize,
    /// From a group to the next; 0 if a tile is a piece of a row.
    pub(crate) beyond: isize,
}

impl Steps {
    /// Those with these strides in the dimensions of a tile, the innermost last.
    pub(crate) fn of(strides: &[isize]) -> Self {
        match *strides {
            [] => Steps { row: 0, across: 0, beyond: 0 },
            [.., beyond, across, row] => Steps { row, across, beyond },
            // Each row is a group.
            [across, row] => Steps { row, across, beyond: across },
            [row] => Steps { row, across: 0, beyond: 0 },
        }
    }

    /// Whether nothing changes.
    pub(crate) fn are_none(self) -> bool {
        self == Steps { row: 0, across: 0, beyond: 0 }
    }

    /// Whether consecutive lanes are consecutive elements.
    pub(crate) fn are_dense(self, span: Span) -> bool {
        self.row == 1
            && match span {
                Span::Row => true,
                Span::Rows { group, row } => self.across == row as isize && self.beyond == (group * row) as isize,
            }
    }

    /// The elements or integers of the first `n` lanes of a tile as grids. Each comes with its first lane and its distance
    /// from the first element (wrapping).
    fn grids(self, span: Span, n: usize) -> impl Iterator<Item = (usize, isize, Grid)> {
        let Steps { row: stride, across, beyond } = self;
        let (count, apart, grid) = match span {
            Span::Row => (1, 0, Grid::row(n, stride)),
            Span::Rows { group, row } => {
                let groups = n / (group * row);
                let rows_continue = across == stride.wrapping_mul(row as isize);
                let groups_continue = beyond == across.wrapping_mul(group as isize);
                match (rows_continue, groups_continue) {
                    (true, true) => (1, 0, Grid::row(n, stride)),
                    (true, false) => (1, 0, Grid { rows: groups, across: beyond, n: group * row, stride }),
                    (false, true) => (1, 0, Grid { rows: groups * group, across, n: row, stride }),
                    (false, false) => (groups, beyond, Grid { rows: group, across, n: row, stride }),
                }
            }
        };
        (0..count).map(move |i| (i * grid.rows * grid.n, apart.wrapping_mul(i as isize), grid))
    }
}

/// A strided access to the arena.
#[derive(Clone, Debug)]
pub(crate) struct Access {
    /// Address at the first index.
    pub(crate) base: *mut u8,
    /// Address at the current outer index.
    pub(crate) cursor: *mut u8,
    /// Bytes per outer dimension.
    pub(crate) outer: Vec<isize>,
    /// Elements per step within a tile.
    pub(crate) steps: Steps,
    /// Element size.
    pub(crate) bytes: usize,
}

/// An integer that is an affine function of the loop index (wrapping).
#[derive(Clone, Debug)]
pub(crate) struct Affine {
    pub(crate) base: i64,
    pub(crate) cursor: i64,
    pub(crate) outer: Vec<i64>,
    pub(crate) steps: Steps,
}

/// Fills lanes with the integers of a grid whose first one is given.
pub(crate) type IndexKernel = unsafe fn(grid: Grid, out: *mut u8, first: i64);

/// Fills lanes with the random elements at the integers of a grid whose first one is given.
pub(crate) type RandomKernel = unsafe fn(grid: Grid, out: *mut u8, what: (Distribution, u64, u64), first: i64);

/// A prepared instruction.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Map {
        kernel: Kernel,
        out: Lanes,
        args: [Lanes; 3],
    },
    /// `lane` is the size of a lane in bytes.
    Load {
        kernel: LoadKernel,
        access: usize,
        out: Lanes,
        lane: usize,
    },
    /// `lane` is the distance of consecutive lanes in bytes: 0 if the value is uniform.
    Store {
        kernel: StoreKernel,
        access: usize,
        arg: Lanes,
        lane: usize,
    },
    Reduce {
        kernel: ReduceKernel,
        arg: Lanes,
        slot: usize,
    },
    Repeat {
        kernel: ReduceKernel,
        arg: Lanes,
        slot: usize,
        identity: [u8; 8],
    },
    Index {
        kernel: IndexKernel,
        affine: usize,
        out: Lanes,
        lane: usize,
    },
    Random {
        kernel: RandomKernel,
        affine: usize,
        out: Lanes,
        lane: usize,
        seed: Lanes,
        distribution: Distribution,
        stream: u64,
    },
}

/// Instructions between two points that need a row reduction.
#[derive(Clone, Debug, Default)]
pub(crate) struct Stage {
    /// Instructions on single lanes before the tiles.
    pub(crate) before: Vec<Op>,
    /// Accumulators and their initial values.
    pub(crate) reset: Vec<(usize, [u8; 8])>,
    /// Instructions on tiles.
    pub(crate) rows: Vec<Op>,
    /// Instructions on single lanes after the tiles.
    pub(crate) after: Vec<Op>,
}

/// Sets the target of an accumulating store.
#[derive(Clone, Debug)]
pub(crate) struct Fill {
    pub(crate) base: *mut u8,
    /// `(size, stride in elements)` of the addressed dimensions, outermost first.
    pub(crate) dims: Vec<(usize, isize)>,
    pub(crate) bytes: usize,
    pub(crate) kernel: StoreKernel,
    pub(crate) value: [u8; 8],
}

/// A prepared loop nest.
#[derive(Clone, Debug)]
pub(crate) struct FusedLoop {
    pub(crate) fills: Vec<Fill>,
    pub(crate) outer: Vec<usize>,
    pub(crate) index: Vec<usize>,
    /// Lanes for each index of the outer dimensions.
    pub(crate) lanes: usize,
    pub(crate) span: Span,
    /// Lanes of a tile, a multiple of [`Span::unit`].
    pub(crate) tile: usize,
    pub(crate) accesses: Vec<Access>,
    pub(crate) affines: Vec<Affine>,
    pub(crate) uniforms: Vec<u64>,
    pub(crate) stages: Vec<Stage>,
    pub(crate) scratch_bytes: usize,
}

// SAFETY: the pointers point into the arena of the rank that runs the loop.
unsafe impl Send for FusedLoop {}

unsafe fn fill(f: &Fill, base: *mut u8, dims: &[(usize, isize)]) {
    match dims {
        // SAFETY: the addressed elements were checked to be in the arena when the loop was prepared.
        [] => unsafe { (f.kernel)(Grid::row(1, 1), f.value.as_ptr(), base) },
        // SAFETY: as above.
        [(n, stride)] => unsafe { (f.kernel)(Grid::row(*n, *stride), f.value.as_ptr(), base) },
        [(n, stride), rest @ ..] => {
            for i in 0..*n {
                // SAFETY: as above.
                unsafe { fill(f, base.wrapping_offset(i as isize * stride * f.bytes as isize), rest) }
            }
        }
    }
}

impl FusedLoop {
    /// Sets the address where an access begins. Loads and stores are counted in the order of the body.
    pub(crate) fn rebase(&mut self, access: usize, base: *mut u8) {
        self.accesses[access].base = base;
    }

    /// Runs the loop.
    ///
    /// # Safety
    /// `scratch` must be `scratch_bytes` long and aligned to 64 bytes, and nothing else may use it or the buffers of
    /// the loop during the call.
    pub(crate) unsafe fn run(&mut self, scratch: *mut u8) {
        for f in &self.fills {
            // SAFETY: the fill's elements are in the arena.
            unsafe { fill(f, f.base, &f.dims) }
        }
        for a in &mut self.accesses {
            a.cursor = a.base;
        }
        for a in &mut self.affines {
            a.cursor = a.base;
        }
        // SAFETY: passed on to the caller.
        unsafe { self.iterate(scratch) }
    }

    /// Runs a part of a loop that was prepared as rigid and has no fills: the given numbers of rows and elements, with
    /// every access moved by bytes and every affine integer by a number.
    ///
    /// # Safety
    /// The conditions of [`FusedLoop::run`]; the part must be no larger than the loop, and the moved accesses must be in the
    /// arena.
    pub(crate) unsafe fn run_part(
        &mut self,
        scratch: *mut u8,
        (rows, row): (usize, usize),
        moves: impl Iterator<Item = isize>,
        shifts: impl Iterator<Item = i64>,
    ) {
        debug_assert!(self.fills.is_empty() && self.outer.len() == 1 && self.span == Span::Row);
        for (a, by) in self.accesses.iter_mut().zip(moves) {
            a.cursor = a.base.wrapping_offset(by);
        }
        for (a, by) in self.affines.iter_mut().zip(shifts) {
            a.cursor = a.base.wrapping_add(by);
        }
        (self.outer[0], self.lanes) = (rows, row);
        // SAFETY: passed on to the caller.
        unsafe { self.iterate(scratch) }
    }

    unsafe fn iterate(&mut self, scratch: *mut u8) {
        if self.outer.contains(&0) {
            return;
        }
        self.index.fill(0);
        let uniforms = self.uniforms.as_mut_ptr();
        loop {
            let machine = Machine {
                scratch,
                uniforms,
                accesses: &self.accesses,
                affines: &self.affines,
                lanes: self.lanes,
                span: self.span,
            };
            for stage in &self.stages {
                // SAFETY: operands were planned for this row length, tile and scratch.
                unsafe { machine.stage(stage, self.tile) }
            }
            let mut d = self.outer.len();
            loop {
                if d == 0 {
                    return;
                }
                d -= 1;
                self.index[d] += 1;
                if self.index[d] < self.outer[d] {
                    for a in &mut self.accesses {
                        a.cursor = a.cursor.wrapping_offset(a.outer[d]);
                    }
                    for a in &mut self.affines {
                        a.cursor = a.cursor.wrapping_add(a.outer[d]);
                    }
                    break;
                }
                let back = self.outer[d] - 1;
                for a in &mut self.accesses {
                    a.cursor = a.cursor.wrapping_offset(-(a.outer[d] * back as isize));
                }
                for a in &mut self.affines {
                    a.cursor = a.cursor.wrapping_sub(a.outer[d].wrapping_mul(back as i64));
                }
                self.index[d] = 0;
            }
        }
    }
}

struct Machine<'a> {
    scratch: *mut u8,
    uniforms: *mut u64,
    accesses: &'a [Access],
    affines: &'a [Affine],
    lanes: usize,
    span: Span,
}

impl Machine<'_> {
    #[inline(always)]
    fn pointer(&self, operand: Lanes, t: usize) -> *mut u8 {
        match operand {
            Lanes::Uniform(slot) => self.uniforms.wrapping_add(slot).cast(),
            Lanes::Scratch { offset, scale } => self.scratch.wrapping_add(offset + t * scale),
            Lanes::Access { index, scale } => self.accesses[index].cursor.wrapping_add(t * scale),
        }
    }

    unsafe fn stage(&self, stage: &Stage, tile: usize) {
        for op in &stage.before {
            // SAFETY: passed on to the caller.
            unsafe { self.execute(op, 0, 1) }
        }
        if !stage.rows.is_empty() {
            for &(slot, identity) in &stage.reset {
                // SAFETY: the slot is in the uniform block, whose slots are 8 bytes.
                unsafe { *self.uniforms.add(slot) = u64::from_ne_bytes(identity) }
            }
            let mut t = 0;
            while t < self.lanes {
                let n = tile.min(self.lanes - t);
                for op in &stage.rows {
                    // SAFETY: passed on to the caller.
                    unsafe { self.execute(op, t, n) }
                }
                t += n;
            }
        }
        for op in &stage.after {
            // SAFETY: passed on to the caller.
            unsafe { self.execute(op, 0, 1) }
        }
    }

    #[inline(always)]
    unsafe fn execute(&self, op: &Op, t: usize, n: usize) {
        // SAFETY: the plan chose kernels for the operands' types, gave every register room for a tile or a row,
        // resolved every access within the arena, and lets no kernel write where it reads.
        unsafe {
            match op {
                Op::Map { kernel, out, args } => {
                    let args = [
                        self.pointer(args[0], t).cast_const(),
                        self.pointer(args[1], t).cast_const(),
                        self.pointer(args[2], t).cast_const(),
                    ];
                    kernel(n, self.pointer(*out, t), &args);
                }
                Op::Load { kernel, access, out, lane } => {
                    let (a, out) = (&self.accesses[*access], self.pointer(*out, t));
                    let from = a.cursor.wrapping_offset(self.distance(a.steps, t) * a.bytes as isize);
                    for (first, apart, grid) in a.steps.grids(self.span, n) {
                        kernel(grid, from.wrapping_offset(apart * a.bytes as isize), out.wrapping_add(first * lane));
                    }
                }
                Op::Store { kernel, access, arg, lane } => {
                    let (a, arg) = (&self.accesses[*access], self.pointer(*arg, t));
                    let to = a.cursor.wrapping_offset(self.distance(a.steps, t) * a.bytes as isize);
                    for (first, apart, grid) in a.steps.grids(self.span, n) {
                        kernel(grid, arg.wrapping_add(first * lane), to.wrapping_offset(apart * a.bytes as isize));
                    }
                }
                Op::Reduce { kernel, arg, slot } => {
                    kernel(n, self.pointer(*arg, t), self.uniforms.add(*slot).cast());
                }
                Op::Repeat { kernel, arg, slot, identity } => {
                    let slot = self.uniforms.add(*slot);
                    *slot = u64::from_ne_bytes(*identity);
                    kernel(self.lanes, self.pointer(*arg, t), slot.cast());
                }
                Op::Index { kernel, affine, out, lane } => {
                    let (a, out) = (&self.affines[*affine], self.pointer(*out, t));
                    let first = a.cursor.wrapping_add(self.distance(a.steps, t) as i64);
                    for (lane_at, apart, grid) in a.steps.grids(self.span, n) {
                        kernel(grid, out.wrapping_add(lane_at * lane), first.wrapping_add(apart as i64));
                    }
                }
                Op::Random { kernel, affine, out, lane, seed, distribution, stream } => {
                    let (a, out) = (&self.affines[*affine], self.pointer(*out, t));
                    let first = a.cursor.wrapping_add(self.distance(a.steps, t) as i64);
                    let what = (*distribution, *self.pointer(*seed, 0).cast::<i64>() as u64, *stream);
                    for (lane_at, apart, grid) in a.steps.grids(self.span, n) {
                        kernel(grid, out.wrapping_add(lane_at * lane), what, first.wrapping_add(apart as i64));
                    }
                }
            }
        }
    }

    /// Elements or integers from the first tile to the one at lane `t` (wrapping).
    fn distance(&self, steps: Steps, t: usize) -> isize {
        match self.span {
            Span::Row => steps.row.wrapping_mul(t as isize),
            Span::Rows { group, row } => steps.beyond.wrapping_mul((t / (group * row)) as isize),
        }
    }
}

/// Fills lanes with a function of the integers of a grid, which wrap.
#[inline(always)]
unsafe fn fill_lanes<L: Lane>(grid: Grid, out: *mut u8, first: i64, of: impl Fn(i64) -> L) {
    // SAFETY: the caller guarantees `rows * n` writable lanes.
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<L>(), grid.rows * grid.n) };
    for (r, row) in out.chunks_mut(grid.n.max(1)).enumerate() {
        let mut i = first.wrapping_add(grid.across.wrapping_mul(r as isize) as i64);
        for o in row {
            *o = of(i);
            i = i.wrapping_add(grid.stride as i64);
        }
    }
}

unsafe fn index_body<L: Lane>(grid: Grid, out: *mut u8, first: i64) {
    // SAFETY: passed on to the caller.
    unsafe { fill_lanes(grid, out, first, L::from_i64) }
}

/// Like [`index_body`], for numbers that are exact in f32, with 32-bit conversions that are vectorized.
#[inline(always)]
unsafe fn small_index_body(grid: Grid, out: *mut u8, first: i64) {
    let along = |step: isize, n: usize| (step.unsigned_abs() as u64).saturating_mul(n as u64);
    let most = along(grid.across, grid.rows).saturating_add(along(grid.stride, grid.n));
    if first.unsigned_abs().saturating_add(most) >= 1 << 24 {
        // SAFETY: passed on to the caller.
        return unsafe { index_body::<f32>(grid, out, first) };
    }
    // SAFETY: the caller guarantees `rows * n` writable lanes.
    let out = unsafe { std::slice::from_raw_parts_mut(out.cast::<f32>(), grid.rows * grid.n) };
    for (r, row) in out.chunks_mut(grid.n.max(1)).enumerate() {
        let (first, step) = (first as i32 + grid.across as i32 * r as i32, grid.stride as i32);
        for (i, o) in row.iter_mut().enumerate() {
            *o = first.wrapping_add((i as i32).wrapping_mul(step)) as f32;
        }
    }
}

unsafe fn small_index(grid: Grid, out: *mut u8, first: i64) {
    // SAFETY: passed on to the caller.
    unsafe { small_index_body(grid, out, first) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn small_index_avx2(grid: Grid, out: *mut u8, first: i64) {
    // SAFETY: passed on to the caller.
    unsafe { small_index_body(grid, out, first) }
}

unsafe fn random_body<L: Lane>(
    grid: Grid,
    out: *mut u8,
    (distribution, seed, stream): (Distribution, u64, u64),
    first: i64,
) {
    let element = |i: i64| random::element(distribution, random::philox(seed, stream, i as u64));
    // SAFETY: passed on to the caller.
    unsafe { fill_lanes(grid, out, first, |i| L::from_f64(element(i))) }
}

/// The index kernel of a lane type.
pub(crate) fn index_kernel(lane: super::vector::LaneType) -> IndexKernel {
    use super::vector::LaneType;
    if lane == LaneType::F32 {
        #[cfg(target_arch = "x86_64")]
        if super::has_avx2() {
            return small_index_avx2;
        }
        return small_index;
    }
    super::vector::with_lane!(lane, L => index_body::<L>)
}

/// The random kernel of a lane type.
pub(crate) fn random_kernel(lane: super::vector::LaneType) -> RandomKernel {
    use super::vector::LaneType;
    super::vector::with_lane!(lane, L => random_body::<L>)
}
