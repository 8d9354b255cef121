//! The body of a fused loop as nodes: conversions between element types, roundings and functions of lanes are explicit.
//! Every device prepares its loops from these.

use super::cpu::vector::{self, LaneType};
use super::extent::{Extent, resolve};
use tpc_ir::op::Distribution;
use tpc_ir::program::{Buffer, Instruction, Loop};
use tpc_ir::{DType, MapFn, ReduceOp, Scalar};

/// A load or store, before dimensions are merged.
pub(crate) struct Walk {
    pub(crate) extent: Extent,
    pub(crate) dtype: DType,
    pub(crate) strides: Vec<isize>,
    pub(crate) store: bool,
    /// Index of its instruction.
    pub(crate) at: usize,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Function {
    Map(MapFn),
    MultiplyAdd,
    Convert,
    Round(DType),
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Kind {
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
pub(crate) struct Node {
    pub(crate) kind: Kind,
    pub(crate) inputs: Vec<usize>,
    pub(crate) lane: LaneType,
    pub(crate) uniform: bool,
}

fn check_registers(body: &[Instruction], at: usize) -> Result<(), String> {
    let check = |r: usize| match body.get(r) {
        Some(ins) if r < at && !matches!(ins, Instruction::Store { .. }) => Ok(()),
        _ => Err(format!("instruction {at} uses r{r}, which no earlier instruction defines")),
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

/// Whether the instructions must run one after the other on whole rows, because a store overlaps another access in any
/// other way than overwriting, element by element, what an earlier load has read.
pub(crate) fn must_keep_order(walks: &[Walk], dims: &[usize]) -> bool {
    walks.iter().any(|s| {
        s.store
            && walks.iter().any(|w| {
                let same = w.extent.base == s.extent.base
                    && w.dtype.bytes() == s.dtype.bytes()
                    && dims.iter().zip(&w.strides).zip(&s.strides).all(|((&n, a), b)| n == 1 || (a == b && *a != 0));
                w.at != s.at && w.extent.overlaps(&s.extent) && !(same && !w.store && w.at < s.at)
            })
    })
}

/// The memory accesses and integers of a loop's body.
pub(crate) struct Scan {
    /// Loads and stores, in the order of their instructions.
    pub(crate) walks: Vec<Walk>,
    /// Integers that are affine functions of the loop index: their value at index 0 and their strides,
    /// in the order of their instructions.
    pub(crate) affines: Vec<(i64, Vec<isize>)>,
    /// Whether there are reductions over rows of more than one element.
    pub(crate) reduces: bool,
}

/// Scans a loop, and checks that all its accesses are in their buffers.
pub(crate) fn scan(l: &Loop, arena_bytes: usize, buffers: &[Buffer]) -> Result<Scan, String> {
    let rank = l.dims.len();
    let mut scan = Scan { walks: Vec::new(), affines: Vec::new(), reduces: false };
    let no_dim = |at: usize, dim: usize| format!("instruction {at}: the loop has no dimension {dim}");
    for (at, ins) in l.body.iter().enumerate() {
        check_registers(&l.body, at)?;
        match ins {
            Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } => {
                let extent = resolve(arena_bytes, buffers, view, &l.dims, strides)
                    .map_err(|e| format!("instruction {at}: {e}"))?;
                let store = matches!(ins, Instruction::Store { .. });
                scan.walks.push(Walk { extent, dtype: view.dtype, strides: strides.clone(), store, at });
            }
            Instruction::Index { dim, offset, .. } => {
                let mut strides = vec![0; rank];
                *strides.get_mut(*dim).ok_or_else(|| no_dim(at, *dim))? = 1;
                scan.affines.push((*offset as i64, strides));
            }
            Instruction::Random { index, .. } => {
                let mut strides = vec![0; rank];
                let mut base = 0i64;
                for &(dim, offset, stride) in index {
                    base = base.wrapping_add((offset as i64).wrapping_mul(stride as i64));
                    *strides.get_mut(dim).ok_or_else(|| no_dim(at, dim))? += stride as isize;
                }
                scan.affines.push((base, strides));
            }
            Instruction::Given { index, .. } => {
                return Err(format!("instruction {at}: a loop has no given value {index}"));
            }
            Instruction::ReduceRow { .. } => scan.reduces = l.dims.last().is_some_and(|&n| n != 1),
            _ => {}
        }
    }
    Ok(scan)
}

/// The nodes of a loop's body. `walks_vary` and `affines_vary` say which accesses and affine integers are not the same for
/// all lanes that are computed together.
pub(crate) fn build(
    body: &[Instruction],
    scan: &Scan,
    walks_vary: &[bool],
    affines_vary: &[bool],
) -> Result<Vec<Node>, String> {
    let mut builder = Builder { nodes: Vec::new(), walks_vary, affines_vary };
    builder.build(body, scan.reduces)?;
    peephole(&mut builder.nodes, &scan.walks);
    Ok(builder.nodes)
}

struct Builder<'a> {
    nodes: Vec<Node>,
    walks_vary: &'a [bool],
    affines_vary: &'a [bool],
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
        // Integers without a kernel are computed in f64, truth values as integers.
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
                    let uniform = !self.walks_vary[walk];
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
                Instruction::Given { .. } => unreachable!("refused when the loop was scanned"),
                Instruction::Index { dtype, .. } => {
                    let uniform = !self.affines_vary[affine];
                    let node = self.push(Kind::Index(affine), Vec::new(), LaneType::of(*dtype), uniform);
                    register[at] = self.round(node, *dtype);
                    affine += 1;
                }
                Instruction::Random { distribution, stream, seed, dtype, .. } => {
                    let seed = self.convert(register[*seed], LaneType::I64);
                    if !self.nodes[seed].uniform {
                        return Err(format!("instruction {at}: the seed varies along the row"));
                    }
                    let uniform = !self.affines_vary[affine];
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
                    let varies = self.walks_vary[walk];
                    let uniform = self.nodes[x].uniform;
                    match accumulate {
                        None if !varies && !uniform => {
                            return Err(format!(
                                "instruction {at} stores r{arg}, which varies along the row, in a single element; reduce it or accumulate"
                            ));
                        }
                        None => {
                            self.push(Kind::Store(walk), vec![x], self.nodes[x].lane, uniform && !varies);
                        }
                        Some(op) => {
                            let x = if !varies {
                                self.push(Kind::Reduce(*op), vec![x], self.nodes[x].lane, true)
                            } else {
                                x
                            };
                            self.push(Kind::Accumulate(walk, *op), vec![x], self.nodes[x].lane, !varies);
                        }
                    }
                    walk += 1;
                }
            }
        }
        debug_assert_eq!(walk, self.walks_vary.len());
        Ok(())
    }
}

fn widest(a: LaneType, b: LaneType) -> LaneType {
    let order = [LaneType::F64, LaneType::F32, LaneType::I64, LaneType::Bool];
    *order.iter().find(|&&l| l == a || l == b).unwrap_or(&a)
}

pub(crate) fn constant_value(lane: LaneType, bytes: [u8; 8]) -> f64 {
    match lane {
        LaneType::F32 => f64::from(f32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])),
        LaneType::F64 => f64::from_ne_bytes(bytes),
        LaneType::I64 => i64::from_ne_bytes(bytes) as f64,
        LaneType::Bool => f64::from(bytes[0]),
    }
}

pub(crate) fn is_end(kind: &Kind) -> bool {
    matches!(kind, Kind::Store(_) | Kind::Accumulate(..))
}

pub(crate) fn count_uses(nodes: &[Node]) -> Vec<usize> {
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

/// Leaves the rounding before a store of the same type to the store, and turns a product that only feeds a sum into one
/// multiply-add.
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
