//! Prepares fused loops: merges dimensions, splits the nodes of the body into stages, allocates registers and chooses
//! kernels.

use super::arena::Arena;
use super::fused::{Access, Affine, Fill, FusedLoop, Lanes, Op, Span, Stage, Steps, index_kernel, random_kernel};
use super::vector::{self, LaneType};
use crate::device::nodes::{self, Function, Kind, Node, Walk, count_uses, is_end, must_keep_order};
use crate::element::identity;
use tpc_ir::program::{ALIGNMENT, Buffer, BufferId, Instruction, Loop};
use tpc_ir::{DType, MapFn};

/// Number of lanes that are processed at a time.
const TILE: usize = 1024;
/// A tile spans several rows that are shorter than this.
const SHORT_ROW: usize = 128;
/// A dimension of at most this size stays outside of tiles if the body uses its index, which is then the same in a whole tile.
const FEW: usize = 4;
/// Rows shorter than this that do not share tiles are swapped with a longer outer dimension if that is cheaper and allowed.
const SWAPPED_ROW: usize = 32;

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Section {
    Before,
    Rows,
    After,
}

/// Dimensions and the strides of all accesses in them, which change together.
struct Nest {
    dims: Vec<usize>,
    /// Strides of accesses, then of affine integers.
    strides: Vec<Vec<isize>>,
}

impl Nest {
    fn remove(&mut self, d: usize) {
        self.dims.remove(d);
        for s in &mut self.strides {
            s.remove(d);
        }
    }

    /// Merges dimension `d` into `d + 1` if every stride nests.
    fn merge(&mut self, d: usize) -> bool {
        let inner = self.dims[d + 1] as isize;
        let nests = self.strides.iter().all(|s| s[d] == s[d + 1] * inner);
        if nests {
            self.dims[d + 1] *= self.dims[d];
            self.dims.remove(d);
            for s in &mut self.strides {
                s.remove(d);
            }
        }
        nests
    }

    /// Puts the dimensions into another order.
    fn reorder(&mut self, order: &[usize]) {
        self.dims = order.iter().map(|&d| self.dims[d]).collect();
        for s in &mut self.strides {
            *s = order.iter().map(|&d| s[d]).collect();
        }
    }
}

/// Prepares a loop.
pub(crate) fn prepare(l: &Loop, arena: &Arena, buffers: &[Buffer]) -> Result<FusedLoop, String> {
    prepare_nest(l, arena, arena.allocated_bytes(), buffers, false)
}

/// Prepares a loop of at least two dimensions that runs in parts: the last two dimensions stay as they are, the others
/// must have size 1.
pub(crate) fn prepare_rigid(l: &Loop, arena: &Arena, buffers: &[Buffer]) -> Result<FusedLoop, String> {
    prepare_nest(l, arena, arena.allocated_bytes(), buffers, true)
}

/// A buffer outside of the arena that a loop uses. It is numbered after the other buffers, at offsets beyond the
/// arena's end, and the address of accesses to it has to be set ([`FusedLoop::rebase`]).
pub(crate) struct WithScratch {
    buffers: Vec<Buffer>,
}

impl WithScratch {
    /// A buffer of this many bytes.
    pub(crate) fn new(arena: &Arena, buffers: &[Buffer], bytes: usize) -> Self {
        let offset = arena.allocated_bytes().next_multiple_of(ALIGNMENT);
        let room = Buffer { offset, bytes, persistent: false, label: "scratch".into() };
        WithScratch { buffers: buffers.iter().cloned().chain([room]).collect() }
    }

    /// The number of the buffer.
    pub(crate) fn buffer(&self) -> BufferId {
        BufferId(self.buffers.len() as u32 - 1)
    }

    /// [`prepare`], or [`prepare_rigid`], for a loop that uses the buffer.
    pub(crate) fn prepare(&self, l: &Loop, arena: &Arena, rigid: bool) -> Result<FusedLoop, String> {
        let end = self.buffers.last().map_or(0, |b| b.offset + b.bytes);
        prepare_nest(l, arena, end, &self.buffers, rigid)
    }
}

/// `bytes` is the end of all buffers, relative to the arena's start.
fn prepare_nest(l: &Loop, arena: &Arena, bytes: usize, buffers: &[Buffer], rigid: bool) -> Result<FusedLoop, String> {
    let mut scan = nodes::scan(l, bytes, buffers)?;
    // A row of one element is still a row there.
    scan.reduces |= rigid && l.body.iter().any(|ins| matches!(ins, Instruction::ReduceRow { .. }));
    let (walks, affines, reduces) = (&scan.walks, &scan.affines, scan.reduces);
    let fills = walks.iter().filter_map(|w| fill(w, l, arena)).collect();
    let strict = must_keep_order(walks, &l.dims);
    let mut nest = Nest {
        dims: l.dims.clone(),
        strides: walks.iter().map(|w| w.strides.clone()).chain(affines.iter().map(|a| a.1.clone())).collect(),
    };
    let spanned = if rigid {
        (0..l.dims.len() - 2).for_each(|_| nest.remove(0));
        1
    } else {
        simplify(&mut nest, &l.body, walks, strict, reduces)
    };
    let outside = nest.dims.len().saturating_sub(spanned);
    let inside = nest.dims.split_off(outside);
    let lanes: usize = inside.iter().product();
    let span = match inside[..] {
        [_, group, row] => Span::Rows { group, row },
        [_, row] => Span::Rows { group: 1, row },
        _ => Span::Row,
    };
    let steps: Vec<Steps> = nest.strides.iter_mut().map(|s| Steps::of(&s.split_off(outside))).collect();
    let accesses: Vec<Access> = walks
        .iter()
        .enumerate()
        .map(|(i, w)| Access {
            base: at(arena, w),
            cursor: at(arena, w),
            outer: nest.strides[i].iter().map(|s| s * w.dtype.bytes() as isize).collect(),
            steps: steps[i],
            bytes: w.dtype.bytes(),
        })
        .collect();
    let prepared_affines: Vec<Affine> = affines
        .iter()
        .enumerate()
        .map(|(i, (base, _))| Affine {
            base: *base,
            cursor: *base,
            outer: nest.strides[walks.len() + i].iter().map(|&s| s as i64).collect(),
            steps: steps[walks.len() + i],
        })
        .collect();
    let varies: Vec<bool> = steps.iter().map(|steps| !steps.are_none()).collect();
    let (walks_vary, affines_vary) = varies.split_at(walks.len());
    let nodes = nodes::build(&l.body, &scan, walks_vary, affines_vary)?;
    let tile = match span {
        Span::Row if strict => lanes.max(1),
        Span::Row => TILE,
        Span::Rows { .. } => TILE / span.unit() * span.unit(),
    };
    let emitted = emit(&nodes, &accesses, walks, strict, (lanes, span));
    Ok(FusedLoop {
        fills,
        index: vec![0; nest.dims.len()],
        outer: nest.dims,
        lanes,
        span,
        tile,
        accesses,
        affines: prepared_affines,
        uniforms: emitted.uniforms,
        stages: emitted.stages,
        scratch_bytes: emitted.scratch_bytes,
    })
}

/// The first address of an access.
fn at(arena: &Arena, walk: &Walk) -> *mut u8 {
    arena.base().wrapping_add(walk.extent.base)
}

/// The fill that sets the target of an accumulating store.
fn fill(walk: &Walk, l: &Loop, arena: &Arena) -> Option<Fill> {
    let Instruction::Store { accumulate: Some(op), .. } = &l.body[walk.at] else { return None };
    let sized = l.dims.iter().copied().zip(walk.strides.iter().copied());
    let mut dims: Vec<(usize, isize)> = sized.filter(|&(n, s)| s != 0 && n != 1).collect();
    dims.sort_by_key(|&(_, s)| std::cmp::Reverse(s.unsigned_abs()));
    (!dims.iter().any(|&(n, _)| n == 0)).then(|| Fill {
        base: at(arena, walk),
        dims,
        bytes: walk.dtype.bytes(),
        kernel: vector::store_kernel(walk.dtype, true),
        value: vector::lane_bytes(LaneType::of(walk.dtype), identity(*op, walk.dtype), None),
    })
}

/// Merges dimensions, and moves those that a tile spans to the end. Returns their number, which is 1 if a tile is a piece of a
/// row.
fn simplify(nest: &mut Nest, body: &[Instruction], walks: &[Walk], strict: bool, reduces: bool) -> usize {
    for d in (0..nest.dims.len()).rev() {
        // A row of one element stays a row if its reductions are real.
        if nest.dims[d] == 1 && !(reduces && d + 1 == nest.dims.len()) {
            nest.remove(d);
        }
    }
    if strict || nest.dims.contains(&0) {
        return 1;
    }
    let mut d = nest.dims.len().saturating_sub(1);
    while d > 0 {
        d -= 1;
        let into_row = d + 2 == nest.dims.len();
        if !(into_row && reduces) {
            nest.merge(d);
        }
    }
    if reduces {
        return 1;
    }
    if let Some(inside) = inside_of_tiles(nest, body, walks) {
        let outside = (0..nest.dims.len()).filter(|d| !inside.contains(d));
        let order: Vec<usize> = outside.chain(inside.iter().copied()).collect();
        nest.reorder(&order);
        return inside.len();
    }
    swap_short_row(nest, body, walks);
    1
}

/// The dimensions that a tile spans, the innermost last, where rows are short.
///
/// The row is the dimension along which most accesses are dense. The next two are those along which most of the others are
/// dense, so that both sides of a transposition use whole cache lines; among equals, the inner one comes first. If the row
/// alone is long, a tile is a piece of it.
fn inside_of_tiles(nest: &Nest, body: &[Instruction], walks: &[Walk]) -> Option<Vec<usize>> {
    let last = nest.dims.len().checked_sub(1)?;
    let (accesses, affines) = nest.strides.split_at(walks.len());
    let stores = || accesses.iter().zip(walks).filter(|(_, walk)| walk.store).map(|(strides, _)| strides);
    // A sum over the row keeps its row, and a seed is the same for a whole tile.
    let sums = stores().any(|s| s[last] == 0);
    if nest.dims[last] >= SHORT_ROW || sums || !seeds_are_fixed(body) {
        return None;
    }
    let dense = |d: usize| accesses.iter().filter(|s| s[d].unsigned_abs() == 1).count();
    let indices = body.iter().filter(|ins| matches!(ins, Instruction::Index { .. } | Instruction::Random { .. }));
    let is_indexed = |d: usize| {
        affines.iter().zip(indices.clone()).any(|(s, ins)| s[d] != 0 && matches!(ins, Instruction::Index { .. }))
    };
    let is_written_once = |d: usize| stores().all(|s| s[d] != 0);
    let stays_outside = |d: usize| nest.dims[d] <= FEW && is_indexed(d) || !is_written_once(d);
    let mut candidates: Vec<usize> = (0..nest.dims.len()).filter(|&d| !stays_outside(d)).rev().collect();
    candidates.sort_by_key(|&d| std::cmp::Reverse(dense(d)));
    let mut lanes = 1;
    let mut inside = Vec::new();
    for d in candidates.into_iter().take(3) {
        if lanes >= TILE / 2 {
            break;
        }
        lanes *= nest.dims[d];
        inside.insert(0, d);
    }
    // A tile reads all its operands before it writes, so no two lanes may be stored in one element.
    let elements_differ = |s: &Vec<isize>| {
        let mut dims: Vec<(usize, usize)> = inside.iter().map(|&d| (s[d].unsigned_abs(), nest.dims[d])).collect();
        dims.sort_unstable();
        dims.windows(2).all(|pair| pair[1].0 >= pair[0].0 * pair[0].1)
    };
    let pays = inside.len() > 1 || lanes >= TILE / 2;
    (pays && stores().all(elements_differ)).then_some(inside)
}

/// Whether the seeds of all random numbers are the same in the whole loop.
fn seeds_are_fixed(body: &[Instruction]) -> bool {
    body.iter().all(|instruction| match instruction {
        Instruction::Random { seed, .. } => match &body[*seed] {
            Instruction::Constant(..) => true,
            Instruction::Load { strides, .. } => strides.iter().all(|&s| s == 0),
            _ => false,
        },
        _ => true,
    })
}

/// Swaps a short row with a longer dimension if that is cheaper and allowed.
fn swap_short_row(nest: &mut Nest, body: &[Instruction], walks: &[Walk]) {
    let Some((&row, outer)) = nest.dims.split_last() else { return };
    if row >= SWAPPED_ROW {
        return;
    }
    let overwrites = |d: usize| {
        walks.iter().enumerate().any(|(i, w)| {
            w.store && matches!(body[w.at], Instruction::Store { accumulate: None, .. }) && nest.strides[i][d] == 0
        })
    };
    // Approximate cost of an element in a row along a dimension, in nanoseconds: the part of a cache line that each
    // access moves on by, plus the cost of each row.
    let cost = |d: usize, n: usize| {
        let moved = |(w, s): (&Walk, &Vec<isize>)| (s[d].unsigned_abs() * w.dtype.bytes()).min(64) as f64 / 16.0;
        walks.iter().zip(&nest.strides).map(moved).sum::<f64>() + 10.0 * walks.len() as f64 / n as f64
    };
    let better = (0..outer.len()).filter(|&d| outer[d] >= 4 * row && !overwrites(d)).map(|d| (cost(d, outer[d]), d));
    let best = better.min_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((_, d)) = best.filter(|b| b.0 < cost(outer.len(), row)) {
        let mut order: Vec<usize> = (0..nest.dims.len()).collect();
        order.swap(d, outer.len());
        nest.reorder(&order);
    }
}

struct Emitted {
    stages: Vec<Stage>,
    uniforms: Vec<u64>,
    scratch_bytes: usize,
}

/// Pieces of the scratch. Every tile overwrites a piece that holds the current tile, so such a piece never becomes one
/// that holds whole rows, or the reverse.
#[derive(Default)]
struct Scratch {
    end: usize,
    free: Vec<Piece>,
}

#[derive(Clone, Copy, PartialEq)]
struct Piece {
    offset: usize,
    bytes: usize,
    whole_row: bool,
}

impl Scratch {
    fn take(&mut self, bytes: usize, whole_row: bool) -> Piece {
        let bytes = bytes.next_multiple_of(64);
        if let Some(i) = self.free.iter().position(|f| (f.bytes, f.whole_row) == (bytes, whole_row)) {
            return self.free.swap_remove(i);
        }
        self.end += bytes;
        Piece { offset: self.end - bytes, bytes, whole_row }
    }
}

/// Orders nodes into stages: the `(stage, part)` of every node.
fn schedule(nodes: &[Node], live: &[bool], strict: bool) -> Vec<(usize, Section)> {
    let mut at: Vec<(usize, Section)> = vec![(0, Section::Before); nodes.len()];
    let mut stage = 0;
    for (i, node) in nodes.iter().enumerate() {
        if !live[i] {
            continue;
        }
        let pending = |x: usize, stage: usize| {
            at[x].0 == stage
                && (at[x].1 == Section::After || matches!(nodes[x].kind, Kind::Reduce(_)) && at[x].1 == Section::Rows)
        };
        let waits = node.inputs.iter().any(|&x| pending(x, stage));
        let on_rows = !node.uniform || (matches!(node.kind, Kind::Reduce(_)) && !nodes[node.inputs[0]].uniform);
        if strict || (on_rows && waits) {
            stage += 1;
        }
        at[i] = match (on_rows, waits && !strict) {
            (true, _) => (stage, Section::Rows),
            (false, true) => (stage, Section::After),
            (false, false) => (stage, Section::Before),
        };
    }
    at
}

fn emit(nodes: &[Node], accesses: &[Access], walks: &[Walk], strict: bool, (lanes, span): (usize, Span)) -> Emitted {
    let uses = count_uses(nodes);
    let live: Vec<bool> = nodes.iter().enumerate().map(|(i, n)| uses[i] > 0 || is_end(&n.kind)).collect();
    let at = schedule(nodes, &live, strict);
    let users: Vec<Vec<usize>> = {
        let mut users = vec![Vec::new(); nodes.len()];
        for (i, n) in nodes.iter().enumerate().filter(|&(i, _)| live[i]) {
            for &x in &n.inputs {
                users[x].push(i);
            }
        }
        users
    };
    let mut uniforms: Vec<u64> = Vec::new();
    let mut place: Vec<Lanes> = vec![Lanes::Uniform(0); nodes.len()];
    let mut written_in_place = vec![false; nodes.len()]; // stores that the operand's kernel performs
    let mut scratch = Scratch::default();
    let mut expires: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut held: Vec<Option<Piece>> = vec![None; nodes.len()];
    let stage_count = at.iter().zip(&live).filter(|(_, l)| **l).map(|(a, _)| a.0 + 1).max().unwrap_or(0);
    let mut stages = vec![Stage::default(); stage_count];
    // In the order of execution: by stage, and within a stage by part.
    let mut order: Vec<usize> = (0..nodes.len()).filter(|&i| live[i]).collect();
    let part = |i: usize| match at[i].1 {
        Section::Before => 0,
        Section::Rows => 1,
        Section::After => 2,
    };
    order.sort_by_key(|&i| (at[i].0, part(i), i));
    let position: Vec<usize> = {
        let mut position = vec![usize::MAX; nodes.len()];
        for (p, &i) in order.iter().enumerate() {
            position[i] = p;
        }
        position
    };
    for &i in &order {
        let node = &nodes[i];
        let (stage, part) = at[i];
        let row_value = !node.uniform && !is_end(&node.kind);
        // Where the result is written.
        if !is_end(&node.kind) && node.uniform {
            uniforms.push(0);
            place[i] = Lanes::Uniform(uniforms.len() - 1);
        } else if row_value {
            let size = node.lane.bytes();
            if let Kind::Load(w) = node.kind
                && !strict
                && is_direct_load(i, w, node, (accesses, span), walks, nodes, &users[i], &at)
            {
                place[i] = Lanes::Access { index: w, scale: size };
                continue;
            }
            let target = users[i].iter().copied().find(|&u| match nodes[u].kind {
                Kind::Store(w) => {
                    !strict
                        && at[u] == at[i]
                        && accesses[w].steps.are_dense(span)
                        && is_native(walks[w].dtype)
                        && !walks.iter().any(|other| other.at != walks[w].at && other.extent.overlaps(&walks[w].extent))
                }
                _ => false,
            });
            if let (Some(u), Some(Kind::Store(w))) = (target, target.map(|u| nodes[u].kind.clone())) {
                written_in_place[u] = true;
                place[i] = Lanes::Access { index: w, scale: size };
            } else {
                let within = !strict && users[i].iter().all(|&u| at[u].0 == stage);
                let bytes = if within { TILE.min(lanes) * size } else { lanes * size };
                let piece = scratch.take(bytes, !within);
                place[i] = Lanes::Scratch { offset: piece.offset, scale: if within { 0 } else { size } };
                held[i] = Some(piece);
                let last = users[i].iter().copied().max_by_key(|&u| position[u]).unwrap_or(i);
                // All tiles of a register's last stage need a register that lives on into another stage.
                let last = if within { last } else { last_of_stage(&order, &at, at[last].0) };
                expires[last].push(i);
            }
        }
        let ops = match part {
            Section::Before => &mut stages[stage].before,
            Section::Rows => &mut stages[stage].rows,
            Section::After => &mut stages[stage].after,
        };
        let input = |k: usize| place[node.inputs[k]];
        match &node.kind {
            Kind::Constant(bytes) => {
                let Lanes::Uniform(slot) = place[i] else { unreachable!("constants are uniform") };
                uniforms[slot] = u64::from_ne_bytes(*bytes);
            }
            Kind::Load(w) => {
                let kernel = vector::load_kernel(walks[*w].dtype);
                ops.push(Op::Load { kernel, access: *w, out: place[i], lane: node.lane.bytes() });
            }
            Kind::Index(a) => {
                let kernel = index_kernel(node.lane);
                ops.push(Op::Index { kernel, affine: *a, out: place[i], lane: node.lane.bytes() });
            }
            Kind::Random { affine, distribution, stream } => ops.push(Op::Random {
                kernel: random_kernel(node.lane),
                affine: *affine,
                out: place[i],
                lane: node.lane.bytes(),
                seed: input(0),
                distribution: *distribution,
                stream: *stream,
            }),
            Kind::Function(f) => {
                let uniform: Vec<bool> = (0..3)
                    .map(|k| node.inputs.get(k).is_some_and(|&x| nodes[x].uniform))
                    .map(|u| u && !node.uniform)
                    .collect();
                let from = nodes[node.inputs[0]].lane;
                let kernel = match f {
                    Function::Convert => vector::convert_kernel(from, node.lane),
                    Function::Round(dtype) => vector::round_kernel(*dtype),
                    Function::MultiplyAdd => vector::multiply_add(node.lane, &uniform),
                    Function::Map(f) => {
                        let lane = if *f == MapFn::Select { node.lane } else { from };
                        vector::map_kernel(*f, lane, &uniform).expect("the lane was chosen so that a kernel exists")
                    }
                };
                let arg = |k: usize| node.inputs.get(k).map_or(Lanes::Uniform(0), |&x| place[x]);
                ops.push(Op::Map { kernel, out: place[i], args: [arg(0), arg(1), arg(2)] });
            }
            Kind::Reduce(op) => {
                uniforms.push(0);
                let slot = uniforms.len() - 1;
                let lane = nodes[node.inputs[0]].lane;
                let identity = vector::accumulator_identity(*op, lane);
                let arg = input(0);
                let finish = Op::Map {
                    kernel: vector::finish_kernel(lane, node.lane),
                    out: place[i],
                    args: [Lanes::Uniform(slot), Lanes::Uniform(0), Lanes::Uniform(0)],
                };
                if part == Section::Rows {
                    ops.push(Op::Reduce { kernel: vector::reduce_kernel(*op, lane), arg, slot });
                    stages[stage].reset.push((slot, identity));
                    stages[stage].after.push(finish);
                } else {
                    ops.push(Op::Repeat { kernel: vector::repeat_kernel(*op, lane), arg, slot, identity });
                    ops.push(finish);
                }
            }
            Kind::Store(w) => {
                if !written_in_place[i] {
                    let arg = &nodes[node.inputs[0]];
                    let kernel = vector::store_kernel(walks[*w].dtype, arg.uniform);
                    ops.push(Op::Store { kernel, access: *w, arg: input(0), lane: lane_step(arg) });
                }
            }
            Kind::Accumulate(w, op) => {
                let arg = &nodes[node.inputs[0]];
                let kernel = vector::accumulate_kernel(*op, walks[*w].dtype, arg.uniform);
                ops.push(Op::Store { kernel, access: *w, arg: input(0), lane: lane_step(arg) });
            }
        }
        for x in std::mem::take(&mut expires[i]) {
            scratch.free.extend(held[x]);
        }
    }
    if uniforms.is_empty() {
        uniforms.push(0);
    }
    Emitted { stages, uniforms, scratch_bytes: scratch.end }
}

fn last_of_stage(order: &[usize], at: &[(usize, Section)], stage: usize) -> usize {
    order.iter().copied().rfind(|&i| at[i].0 == stage).expect("the stage has the node")
}

/// Bytes from one lane of a stored value to the next.
fn lane_step(node: &Node) -> usize {
    if node.uniform { 0 } else { node.lane.bytes() }
}

fn is_native(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::I64)
}

/// Whether kernels can read a load's elements in place until its last use.
#[allow(clippy::too_many_arguments)]
fn is_direct_load(
    i: usize,
    w: usize,
    node: &Node,
    (accesses, span): (&[Access], Span),
    walks: &[Walk],
    nodes: &[Node],
    users: &[usize],
    at: &[(usize, Section)],
) -> bool {
    if node.uniform || !accesses[w].steps.are_dense(span) || !is_native(walks[w].dtype) {
        return false;
    }
    let last = users.iter().copied().max().unwrap_or(i);
    let after = |s: usize| s > last && at[s].0 >= at[last].0 && users.iter().all(|&u| at[u].0 <= at[s].0);
    nodes.iter().enumerate().all(|(s, n)| match n.kind {
        Kind::Store(t) | Kind::Accumulate(t, _) => !walks[t].extent.overlaps(&walks[w].extent) || after(s),
        _ => true,
    })
}
