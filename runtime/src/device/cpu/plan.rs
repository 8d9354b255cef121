//! Prepares fused loops: merges dimensions, cuts the body into stages, gives registers their place
//! and chooses kernels.

use super::arena::{Arena, Place};
use super::fused::{Access, Affine, Fill, FusedLoop, Op, Operand, Stage, index_kernel, random_kernel};
use super::vector::{self, LaneType};
use crate::element::identity;
use tpc_ir::op::Distribution;
use tpc_ir::program::{Buffer, Instruction, Loop};
use tpc_ir::{DType, MapFn, ReduceOp, Scalar};

/// Lanes that are worked on at a time.
const TILE: usize = 1024;
/// Rows shorter than this are swapped with a longer outer dimension where nothing forbids it.
const SHORT_ROW: usize = 32;

/// A load or store before merging.
struct Walk {
    place: Place,
    dtype: DType,
    strides: Vec<isize>,
    store: bool,
    /// Index of its instruction.
    at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Function {
    Map(MapFn),
    MultiplyAdd,
    Convert,
    Round(DType),
}

#[derive(Clone, Debug, PartialEq)]
enum Kind {
    Load(usize),
    Constant([u8; 8]),
    Index(usize),
    Random { affine: usize, distribution: Distribution, stream: u64 },
    Function(Function),
    Reduce(ReduceOp),
    Store(usize),
    Accumulate(usize, ReduceOp),
}

#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    inputs: Vec<usize>,
    lane: LaneType,
    uniform: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, PartialOrd)]
enum Part {
    Before,
    Rows,
    After,
}

/// Dimensions and everything that has a stride in them, changed together.
struct Nest {
    dims: Vec<usize>,
    /// Strides of walks, then of affine integers.
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

    fn swap_with_row(&mut self, d: usize) {
        let row = self.dims.len() - 1;
        self.dims.swap(d, row);
        for s in &mut self.strides {
            s.swap(d, row);
        }
    }
}

/// Prepares a loop.
pub(crate) fn prepare(l: &Loop, arena: &Arena, buffers: &[Buffer]) -> Result<FusedLoop, String> {
    let rank = l.dims.len();
    let mut walks: Vec<Walk> = Vec::new();
    let mut affines: Vec<(i64, Vec<isize>)> = Vec::new();
    let mut fills = Vec::new();
    let mut reduces = false;
    for (at, ins) in l.body.iter().enumerate() {
        check_registers(&l.body, at)?;
        match ins {
            Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => {
                let place =
                    arena.resolve(buffers, view, &l.dims, strides).map_err(|e| format!("instruction {at}: {e}"))?;
                let store = matches!(ins, Instruction::Store { .. });
                walks.push(Walk { place, dtype: view.dtype, strides: strides.clone(), store, at });
                if let Instruction::Store { accumulate: Some(op), .. } = ins {
                    let mut dims: Vec<(usize, isize)> = l
                        .dims
                        .iter()
                        .copied()
                        .zip(strides.iter().copied())
                        .filter(|&(n, s)| s != 0 && n != 1)
                        .collect();
                    dims.sort_by_key(|&(_, s)| std::cmp::Reverse(s.unsigned_abs()));
                    if !dims.iter().any(|&(n, _)| n == 0) {
                        let lane = LaneType::of(view.dtype);
                        fills.push(Fill {
                            base: place.base,
                            dims,
                            bytes: view.dtype.bytes(),
                            kernel: vector::store_kernel(view.dtype, true),
                            value: vector::lane_bytes(lane, identity(*op, view.dtype), None),
                        });
                    }
                }
            }
            Instruction::Index { dim, offset, .. } => {
                let mut strides = vec![0; rank];
                *strides.get_mut(*dim).ok_or_else(|| format!("instruction {at}: the loop has no dimension {dim}"))? = 1;
                affines.push((*offset as i64, strides));
            }
            Instruction::Random { index, .. } => {
                let mut strides = vec![0; rank];
                let mut base = 0i64;
                for &(dim, offset, stride) in index {
                    base = base.wrapping_add((offset as i64).wrapping_mul(stride as i64));
                    *strides
                        .get_mut(dim)
                        .ok_or_else(|| format!("instruction {at}: the loop has no dimension {dim}"))? +=
                        stride as isize;
                }
                affines.push((base, strides));
            }
            Instruction::ReduceRow { .. } => reduces = true,
            _ => {}
        }
    }
    let strict = must_keep_order(&walks, &l.dims);
    let single = l.dims.last().is_none_or(|&n| n == 1);
    let reduces = reduces && !single;
    let mut nest = Nest {
        dims: l.dims.clone(),
        strides: walks.iter().map(|w| w.strides.clone()).chain(affines.iter().map(|a| a.1.clone())).collect(),
    };
    simplify(&mut nest, &l.body, &walks, strict, reduces);
    let row = nest.dims.pop().unwrap_or(1);
    let row_stride: Vec<isize> = nest.strides.iter_mut().map(|s| s.pop().unwrap_or(0)).collect();
    let accesses: Vec<Access> = walks
        .iter()
        .enumerate()
        .map(|(i, w)| Access {
            base: w.place.base,
            cursor: w.place.base,
            outer: nest.strides[i].iter().map(|s| s * w.dtype.bytes() as isize).collect(),
            row: row_stride[i],
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
            row: row_stride[walks.len() + i] as i64,
        })
        .collect();
    let mut builder = Builder { nodes: Vec::new(), accesses: &accesses, affines: &prepared_affines, walks: &walks };
    builder.build(&l.body, reduces)?;
    let mut nodes = builder.nodes;
    peephole(&mut nodes, &walks);
    let emitted = emit(&nodes, &accesses, &walks, strict, row);
    Ok(FusedLoop {
        fills,
        index: vec![0; nest.dims.len()],
        outer: nest.dims,
        row,
        tile: if strict { row.max(1) } else { TILE },
        accesses,
        affines: prepared_affines,
        uniforms: emitted.uniforms,
        stages: emitted.stages,
        scratch_bytes: emitted.scratch_bytes,
    })
}

fn check_registers(body: &[Instruction], at: usize) -> Result<(), String> {
    let check = |r: usize| match body.get(r) {
        Some(ins) if r < at && !matches!(ins, Instruction::Store { .. }) => Ok(()),
        _ => Err(format!("instruction {at} uses r{r}, which no instruction before it defines")),
    };
    match &body[at] {
        Instruction::Map { f, args, .. } => {
            if f.arity().map_or(args.len() < 2, |n| n != args.len()) {
                return Err(format!("instruction {at}: `{}` does not take {} operands", f.name(), args.len()));
            }
            args.iter().try_for_each(|&a| check(a))
        }
        Instruction::Random { seed, .. } => check(*seed),
        Instruction::ReduceRow { arg, .. } | Instruction::Store { arg, .. } => check(*arg),
        _ => Ok(()),
    }
}

/// Whether the instructions must run one after the other on whole rows, because a store touches
/// memory of another access in any other way than overwriting, element by element, what an earlier
/// load has read.
fn must_keep_order(walks: &[Walk], dims: &[usize]) -> bool {
    walks.iter().any(|s| {
        s.store
            && walks.iter().any(|w| {
                let same = w.place.base == s.place.base
                    && w.dtype.bytes() == s.dtype.bytes()
                    && dims.iter().zip(&w.strides).zip(&s.strides).all(|((&n, a), b)| n == 1 || (a == b && *a != 0));
                w.at != s.at && w.place.overlaps(&s.place) && !(same && !w.store && w.at < s.at)
            })
    })
}

fn simplify(nest: &mut Nest, body: &[Instruction], walks: &[Walk], strict: bool, reduces: bool) {
    for d in (0..nest.dims.len()).rev() {
        // A row of one stays a row if its reductions are real.
        if nest.dims[d] == 1 && !(reduces && d + 1 == nest.dims.len()) {
            nest.remove(d);
        }
    }
    if strict || nest.dims.contains(&0) {
        return;
    }
    let mut d = nest.dims.len().saturating_sub(1);
    while d > 0 {
        d -= 1;
        let into_row = d + 2 == nest.dims.len();
        if !(into_row && reduces) {
            nest.merge(d);
        }
    }
    let Some((&row, outer)) = nest.dims.split_last() else { return };
    if reduces || row >= SHORT_ROW {
        return;
    }
    let Some(longest) = (0..outer.len()).max_by_key(|&d| (outer[d], d)) else { return };
    let overwrites = |(i, w): (usize, &Walk)| {
        w.store && matches!(body[w.at], Instruction::Store { accumulate: None, .. }) && nest.strides[i][longest] == 0
    };
    if outer[longest] >= 4 * row && !walks.iter().enumerate().any(overwrites) {
        nest.swap_with_row(longest);
    }
}

struct Builder<'a> {
    nodes: Vec<Node>,
    accesses: &'a [Access],
    affines: &'a [Affine],
    walks: &'a [Walk],
}

impl Builder<'_> {
    fn push(&mut self, kind: Kind, inputs: Vec<usize>, lane: LaneType, uniform: bool) -> usize {
        self.nodes.push(Node { kind, inputs, lane, uniform });
        self.nodes.len() - 1
    }

    fn function(&mut self, f: Function, inputs: Vec<usize>, lane: LaneType) -> usize {
        let uniform = inputs.iter().all(|&i| self.nodes[i].uniform);
        self.push(Kind::Function(f), inputs, lane, uniform)
    }

    fn convert(&mut self, node: usize, lane: LaneType) -> usize {
        if self.nodes[node].lane == lane {
            return node;
        }
        if let Kind::Constant(bytes) = self.nodes[node].kind {
            let x = constant_value(self.nodes[node].lane, bytes);
            let kind = Kind::Constant(vector::lane_bytes(lane, x, None));
            return self.push(kind, Vec::new(), lane, true);
        }
        self.function(Function::Convert, vec![node], lane)
    }

    fn round(&mut self, node: usize, dtype: DType) -> usize {
        match dtype {
            DType::BF16 | DType::F16 | DType::I32 | DType::U8 => {
                self.function(Function::Round(dtype), vec![node], LaneType::of(dtype))
            }
            _ => node,
        }
    }

    fn map(&mut self, f: MapFn, args: &[usize], dtype: DType) -> usize {
        let to = LaneType::of(dtype);
        match f {
            MapFn::Identity => {
                let x = self.convert(args[0], to);
                return self.round(x, dtype);
            }
            MapFn::Cast(d) => {
                let x = self.convert(args[0], LaneType::of(d));
                let x = self.round(x, d);
                let x = self.convert(x, to);
                return if d == dtype { x } else { self.round(x, dtype) };
            }
            MapFn::Not | MapFn::And | MapFn::Or => {
                let args = args.iter().map(|&a| self.convert(a, LaneType::Bool)).collect();
                let x = self.function(Function::Map(f), args, LaneType::Bool);
                return self.convert(x, to);
            }
            MapFn::Select => {
                let args =
                    vec![self.convert(args[0], LaneType::Bool), self.convert(args[1], to), self.convert(args[2], to)];
                let x = self.function(Function::Map(f), args, to);
                return self.round(x, dtype);
            }
            f if vector::is_comparison(f) => {
                let (a, b) = (self.nodes[args[0]].lane, self.nodes[args[1]].lane);
                let lane = widest(a, b);
                let args = args.iter().map(|&a| self.convert(a, lane)).collect();
                let x = self.function(Function::Map(f), args, LaneType::Bool);
                return self.convert(x, to);
            }
            _ => {}
        }
        let integer = matches!(to, LaneType::I64 | LaneType::Bool);
        if integer && matches!(f, MapFn::Floor | MapFn::Ceil | MapFn::Round) {
            let x = self.convert(args[0], LaneType::I64);
            let x = self.convert(x, to);
            return self.round(x, dtype);
        }
        // Integers that have no kernel of their own are computed in f64, truth values as integers.
        let natural = if to == LaneType::Bool { LaneType::I64 } else { to };
        let uniform = vec![false; 3];
        let lane = if vector::map_kernel(f, natural, &uniform).is_some() { natural } else { LaneType::F64 };
        let mut args: Vec<usize> = args.iter().map(|&a| self.convert(a, lane)).collect();
        let mut x = args.remove(0);
        if let (MapFn::Pow, Kind::Constant(bytes)) =
            (f, args.first().map_or(Kind::Load(0), |&a| self.nodes[a].kind.clone()))
        {
            let multiply = Function::Map(MapFn::Mul);
            let exponent = constant_value(lane, bytes);
            if exponent == 2.0 || exponent == 3.0 {
                let square = self.function(multiply, vec![x, x], lane);
                x = if exponent == 2.0 { square } else { self.function(multiply, vec![square, x], lane) };
                args.clear();
            }
        }
        if f.is_sum() || !args.is_empty() {
            for b in args {
                x = self.function(Function::Map(f), vec![x, b], lane);
            }
        } else if f != MapFn::Pow {
            x = self.function(Function::Map(f), vec![x], lane);
        }
        let x = self.convert(x, to);
        self.round(x, dtype)
    }

    fn build(&mut self, body: &[Instruction], reduces: bool) -> Result<(), String> {
        let mut register = vec![usize::MAX; body.len()];
        let (mut walk, mut affine) = (0, 0);
        for (at, ins) in body.iter().enumerate() {
            match ins {
                Instruction::Load { view, .. } => {
                    let uniform = self.accesses[walk].row == 0;
                    register[at] = self.push(Kind::Load(walk), Vec::new(), LaneType::of(view.dtype), uniform);
                    walk += 1;
                }
                Instruction::Constant(scalar, dtype) => {
                    let exact = match scalar {
                        Scalar::Int(i) => Some(*i),
                        _ => None,
                    };
                    let lane = LaneType::of(*dtype);
                    let x = if dtype.is_float() { dtype.round(scalar.as_f64()) } else { scalar.as_f64() };
                    let node = self.push(Kind::Constant(vector::lane_bytes(lane, x, exact)), Vec::new(), lane, true);
                    register[at] = if dtype.is_float() { node } else { self.round(node, *dtype) };
                }
                Instruction::Index { dtype, .. } => {
                    let uniform = self.affines[affine].row == 0;
                    let node = self.push(Kind::Index(affine), Vec::new(), LaneType::of(*dtype), uniform);
                    register[at] = self.round(node, *dtype);
                    affine += 1;
                }
                Instruction::Random { distribution, stream, seed, dtype, .. } => {
                    let seed = self.convert(register[*seed], LaneType::I64);
                    if !self.nodes[seed].uniform {
                        return Err(format!("instruction {at}: the seed varies along the row"));
                    }
                    let uniform = self.affines[affine].row == 0;
                    let kind = Kind::Random { affine, distribution: *distribution, stream: *stream };
                    let node = self.push(kind, vec![seed], LaneType::of(*dtype), uniform);
                    register[at] = self.round(node, *dtype);
                    affine += 1;
                }
                Instruction::Map { f, args, dtype } => {
                    let args: Vec<usize> = args.iter().map(|&a| register[a]).collect();
                    register[at] = self.map(*f, &args, *dtype);
                }
                Instruction::ReduceRow { op, arg, dtype } => {
                    let lane = LaneType::of(*dtype);
                    let x = register[*arg];
                    let reduced = if reduces {
                        let wide = if lane == LaneType::Bool { LaneType::I64 } else { lane };
                        let x = self.convert(x, wide);
                        let x = self.push(Kind::Reduce(*op), vec![x], wide, true);
                        self.convert(x, lane)
                    } else {
                        self.convert(x, lane)
                    };
                    register[at] = self.round(reduced, *dtype);
                }
                Instruction::Store { view, arg, accumulate, .. } => {
                    let x = self.convert(register[*arg], LaneType::of(view.dtype));
                    let row = self.accesses[walk].row;
                    let uniform = self.nodes[x].uniform;
                    match accumulate {
                        None if row == 0 && !uniform => {
                            return Err(format!(
                                "instruction {at} stores r{arg}, which varies along the row, in a single element; reduce it or accumulate"
                            ));
                        }
                        None => {
                            self.push(Kind::Store(walk), vec![x], self.nodes[x].lane, uniform && row == 0);
                        }
                        Some(op) => {
                            let x = if row == 0 {
                                self.push(Kind::Reduce(*op), vec![x], self.nodes[x].lane, true)
                            } else {
                                x
                            };
                            self.push(Kind::Accumulate(walk, *op), vec![x], self.nodes[x].lane, row == 0);
                        }
                    }
                    walk += 1;
                }
            }
        }
        debug_assert_eq!(walk, self.walks.len());
        Ok(())
    }
}

fn widest(a: LaneType, b: LaneType) -> LaneType {
    let order = [LaneType::F64, LaneType::F32, LaneType::I64, LaneType::Bool];
    *order.iter().find(|&&l| l == a || l == b).unwrap_or(&a)
}

fn constant_value(lane: LaneType, bytes: [u8; 8]) -> f64 {
    match lane {
        LaneType::F32 => f64::from(f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        LaneType::F64 => f64::from_ne_bytes(bytes),
        LaneType::I64 => i64::from_ne_bytes(bytes) as f64,
        LaneType::Bool => f64::from(bytes[0]),
    }
}

fn is_end(kind: &Kind) -> bool {
    matches!(kind, Kind::Store(_) | Kind::Accumulate(..))
}

fn count_uses(nodes: &[Node]) -> Vec<usize> {
    let mut uses = vec![0; nodes.len()];
    for i in (0..nodes.len()).rev() {
        if uses[i] > 0 || is_end(&nodes[i].kind) {
            for &x in &nodes[i].inputs {
                uses[x] += 1;
            }
        }
    }
    uses
}

/// The rounding before a store of the same type is left to the store; a product that only feeds a
/// sum becomes one multiply-add.
fn peephole(nodes: &mut [Node], walks: &[Walk]) {
    for i in 0..nodes.len() {
        if let Kind::Store(w) = nodes[i].kind {
            let x = nodes[i].inputs[0];
            if nodes[x].kind == Kind::Function(Function::Round(walks[w].dtype)) {
                nodes[i].inputs[0] = nodes[x].inputs[0];
            }
        }
    }
    let uses = count_uses(nodes);
    for i in 0..nodes.len() {
        let float = matches!(nodes[i].lane, LaneType::F32 | LaneType::F64);
        if nodes[i].kind != Kind::Function(Function::Map(MapFn::Add)) || !float || nodes[i].uniform {
            continue;
        }
        let product =
            |x: usize| nodes[x].kind == Kind::Function(Function::Map(MapFn::Mul)) && uses[x] == 1 && !nodes[x].uniform;
        let (a, b) = (nodes[i].inputs[0], nodes[i].inputs[1]);
        let (x, other) = if product(b) {
            (b, a)
        } else if product(a) {
            (a, b)
        } else {
            continue;
        };
        let mut inputs = nodes[x].inputs.clone();
        inputs.push(other);
        nodes[i].kind = Kind::Function(Function::MultiplyAdd);
        nodes[i].inputs = inputs;
    }
}

struct Emitted {
    stages: Vec<Stage>,
    uniforms: Vec<u64>,
    scratch_bytes: usize,
}

/// Pieces of the scratch. A piece that holds the current tile is written again by every tile, so it
/// never becomes one that holds whole rows, or the other way round.
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

/// Orders nodes into stages: `(stage, part)` of every node.
fn schedule(nodes: &[Node], live: &[bool], strict: bool) -> Vec<(usize, Part)> {
    let mut at: Vec<(usize, Part)> = vec![(0, Part::Before); nodes.len()];
    let mut stage = 0;
    for (i, node) in nodes.iter().enumerate() {
        if !live[i] {
            continue;
        }
        let pending = |x: usize, stage: usize| {
            at[x].0 == stage
                && (at[x].1 == Part::After || matches!(nodes[x].kind, Kind::Reduce(_)) && at[x].1 == Part::Rows)
        };
        let waits = node.inputs.iter().any(|&x| pending(x, stage));
        let on_rows = !node.uniform || (matches!(node.kind, Kind::Reduce(_)) && !nodes[node.inputs[0]].uniform);
        if strict || (on_rows && waits) {
            stage += 1;
        }
        at[i] = match (on_rows, waits && !strict) {
            (true, _) => (stage, Part::Rows),
            (false, true) => (stage, Part::After),
            (false, false) => (stage, Part::Before),
        };
    }
    at
}

fn emit(nodes: &[Node], accesses: &[Access], walks: &[Walk], strict: bool, row: usize) -> Emitted {
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
    let mut place: Vec<Operand> = vec![Operand::Uniform(0); nodes.len()];
    let mut written_in_place = vec![false; nodes.len()]; // stores that their operand's kernel does
    let mut scratch = Scratch::default();
    let mut expires: Vec<Vec<usize>> = vec![Vec::new(); nodes.len()];
    let mut held: Vec<Option<Piece>> = vec![None; nodes.len()];
    let stage_count = at.iter().zip(&live).filter(|(_, l)| **l).map(|(a, _)| a.0 + 1).max().unwrap_or(0);
    let mut stages = vec![Stage::default(); stage_count];
    // In the order of execution: stage by stage, and within a stage by part.
    let mut order: Vec<usize> = (0..nodes.len()).filter(|&i| live[i]).collect();
    let part = |i: usize| match at[i].1 {
        Part::Before => 0,
        Part::Rows => 1,
        Part::After => 2,
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
        // Where the result goes.
        if !is_end(&node.kind) && node.uniform {
            uniforms.push(0);
            place[i] = Operand::Uniform(uniforms.len() - 1);
        } else if row_value {
            let size = node.lane.bytes();
            if let Kind::Load(w) = node.kind
                && !strict
                && is_direct_load(i, w, node, accesses, walks, nodes, &users[i], &at)
            {
                place[i] = Operand::Access { index: w, scale: size };
                continue;
            }
            let target = users[i].iter().copied().find(|&u| match nodes[u].kind {
                Kind::Store(w) => {
                    !strict
                        && at[u] == at[i]
                        && accesses[w].row == 1
                        && is_native(walks[w].dtype)
                        && !walks.iter().any(|other| other.at != walks[w].at && other.place.overlaps(&walks[w].place))
                }
                _ => false,
            });
            if let (Some(u), Some(Kind::Store(w))) = (target, target.map(|u| nodes[u].kind.clone())) {
                written_in_place[u] = true;
                place[i] = Operand::Access { index: w, scale: size };
            } else {
                let within = !strict && users[i].iter().all(|&u| at[u].0 == stage);
                let bytes = if within { TILE.min(row) * size } else { row * size };
                let piece = scratch.take(bytes, !within);
                place[i] = Operand::Scratch { offset: piece.offset, scale: if within { 0 } else { size } };
                held[i] = Some(piece);
                let last = users[i].iter().copied().max_by_key(|&u| position[u]).unwrap_or(i);
                // A register that lives on into another stage is needed by all tiles of its last.
                let last = if within { last } else { last_of_stage(&order, &at, at[last].0) };
                expires[last].push(i);
            }
        }
        let ops = match part {
            Part::Before => &mut stages[stage].before,
            Part::Rows => &mut stages[stage].rows,
            Part::After => &mut stages[stage].after,
        };
        let input = |k: usize| place[node.inputs[k]];
        match &node.kind {
            Kind::Constant(bytes) => {
                let Operand::Uniform(slot) = place[i] else { unreachable!("constants are uniform") };
                uniforms[slot] = u64::from_ne_bytes(*bytes);
            }
            Kind::Load(w) => {
                ops.push(Op::Load { kernel: vector::load_kernel(walks[*w].dtype), access: *w, out: place[i] });
            }
            Kind::Index(a) => ops.push(Op::Index { kernel: index_kernel(node.lane), affine: *a, out: place[i] }),
            Kind::Random { affine, distribution, stream } => ops.push(Op::Random {
                kernel: random_kernel(node.lane),
                affine: *affine,
                out: place[i],
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
                let arg = |k: usize| node.inputs.get(k).map_or(Operand::Uniform(0), |&x| place[x]);
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
                    args: [Operand::Uniform(slot), Operand::Uniform(0), Operand::Uniform(0)],
                };
                if part == Part::Rows {
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
                    let uniform = nodes[node.inputs[0]].uniform;
                    ops.push(Op::Store {
                        kernel: vector::store_kernel(walks[*w].dtype, uniform),
                        access: *w,
                        arg: input(0),
                    });
                }
            }
            Kind::Accumulate(w, op) => {
                let uniform = nodes[node.inputs[0]].uniform;
                let kernel = vector::accumulate_kernel(*op, walks[*w].dtype, uniform);
                ops.push(Op::Store { kernel, access: *w, arg: input(0) });
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

fn last_of_stage(order: &[usize], at: &[(usize, Part)], stage: usize) -> usize {
    order.iter().copied().rfind(|&i| at[i].0 == stage).expect("the stage has the node")
}

fn is_native(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::I64)
}

/// Whether kernels can read a load's elements where they lie until its last use.
#[allow(clippy::too_many_arguments)]
fn is_direct_load(
    i: usize,
    w: usize,
    node: &Node,
    accesses: &[Access],
    walks: &[Walk],
    nodes: &[Node],
    users: &[usize],
    at: &[(usize, Part)],
) -> bool {
    if node.uniform || accesses[w].row != 1 || !is_native(walks[w].dtype) {
        return false;
    }
    let last = users.iter().copied().max().unwrap_or(i);
    let after = |s: usize| s > last && at[s].0 >= at[last].0 && users.iter().all(|&u| at[u].0 <= at[s].0);
    nodes.iter().enumerate().all(|(s, n)| match n.kind {
        Kind::Store(t) | Kind::Accumulate(t, _) => !walks[t].place.overlaps(&walks[w].place) || after(s),
        _ => true,
    })
}
