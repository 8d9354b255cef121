//! Mixed precision: computation and communication in bf16, master parameters in f32.
//!
//! Parameters and optimizer state stay f32, unless a program only reads them and should hold them in bf16 ([`Held`]).
//! Forward and backward read a bf16 copy of each parameter, so that gathers of parameters send bf16 (rule 26). The
//! policy is that of `torch.autocast`:
//!
//! | operation of forward or backward | element type |
//! |---|---|
//! | products, lookups | bf16 (products accumulate in f32) |
//! | exp, log, pow, sqrt, rsqrt, recip; sums, products and prefix sums along dimensions; scatters | f32 |
//! | products of elements that are only summed (the squares of a norm) | f32 |
//! | everything else | f32 if an operand that is not a scalar is f32, otherwise bf16 |
//! | the optimizer, clipping; every output | as captured |
//!
//! Matrix products, residual streams and their all-reduces are thus bf16; statistics of norms, softmax and losses are
//! f32; the gradient of a parameter is converted to f32 before the optimizer reads it. Buffers that the forward pass
//! updates are read in their own type.
//!
//! Before: `%2 = einsum "ab,bc->ac" %0, %1 : f32[16, 64]`, `%3 = exp %2 : f32[16, 64]`.
//! After: `%2 = cast.bf16 %0`, `%3 = cast.bf16 %1`, `%4 = einsum "ab,bc->ac" %2, %3 : bf16[16, 64]`,
//! `%5 = cast.f32 %4`, `%6 = exp %5 : f32[16, 64]`.

use crate::rebuild::rebuild;
use crate::styles::annotations::Annotations;
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use tpc_ir::op::Distribution;
use tpc_ir::reason::Demand;
use tpc_ir::{DType, Graph, InputId, InputKind, MapFn, Op, Origin, OutputKind, Phase, ReduceOp, Scalar, Type, Value};

/// The policy of a program in bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Precision {
    /// The element type in which gradients of the weights of products are reduced over ranks.
    pub reduce: Reduction,
    /// The element type in which parameters and tensors that are kept from run to run are held.
    pub held: Held,
}

/// The element type in which a program holds tensors that it does not train.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Held {
    /// As captured: parameters are f32, and the program computes with bf16 copies.
    #[default]
    Masters,
    /// In bf16, which takes half of the memory and half of the time to read it. This applies to parameters that nothing
    /// updates, and to tensors whose rows are replaced, such as a cache of keys.
    Compute,
}

/// The element type of gradient reductions. (Gradients that are sums along dimensions, such as those of biases, gains
/// and tables, are always reduced in f32.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reduction {
    /// The compute type, which is also the default of PyTorch's FSDP.
    #[default]
    Compute,
    /// f32, which takes twice the bytes and keeps the terms exact. It is always used with micro-batches, whose terms
    /// are added up before they are reduced once per step.
    F32,
}

const SHORT: DType = DType::BF16;
const LONG: DType = DType::F32;

/// Rewrites forward and backward to compute in bf16.
pub fn mixed(graph: &Graph, annotations: &Annotations, precision: Precision) -> (Graph, Annotations) {
    let buffers = buffers(graph);
    let held = match precision.held {
        Held::Masters => HashSet::new(),
        Held::Compute => held(graph),
    };
    let mut pass = Pass { graph, precision, buffers, held, casts: HashMap::new() };
    let (mut new, map) = rebuild(graph, graph.mesh.clone(), |new, node, operands| pass.node(new, node, &operands));
    for i in 0..new.outputs.len() {
        let output = &graph.outputs[i];
        let origin = graph.node(output.value.node).origin.clone();
        let dtype = match &output.kind {
            OutputKind::Update(id) if pass.held.contains(id) => SHORT,
            _ => graph.ty(output.value).dtype,
        };
        new.outputs[i].value = pass.cast(&mut new, map[&output.value], dtype, &origin);
    }
    let mut carried = annotations.clone();
    carried.results =
        annotations.results.iter().filter_map(|(&node, a)| Some((map.get(&node.into())?.node, a.clone()))).collect();
    let used =
        |(&(node, operand), a): (&(_, u32), &Vec<_>)| Some(((map.get(&Value::from(node))?.node, operand), a.clone()));
    carried.uses = annotations.uses.iter().filter_map(used).collect();
    (new, carried)
}

/// The parameters that the model itself updates.
fn buffers(graph: &Graph) -> HashSet<InputId> {
    let own = |v: Value| graph.node(v.node).origin.phase != Phase::Optimizer;
    let updated = graph.outputs.iter().filter(|o| own(o.value)).filter_map(|o| match &o.kind {
        OutputKind::Update(id) => Some(id.clone()),
        _ => None,
    });
    updated.collect()
}

/// The inputs that a program holds in bf16: f32 parameters without an update, and f32 states whose rows are replaced.
fn held(graph: &Graph) -> HashSet<InputId> {
    let updates: HashMap<&InputId, NodeIndex> = graph
        .outputs
        .iter()
        .filter_map(|o| match &o.kind {
            OutputKind::Update(id) => Some((id, o.value.node)),
            _ => None,
        })
        .collect();
    let short = graph.inputs().filter(|(node, id)| {
        let update = updates.get(id);
        graph.node(*node).types[0].dtype == LONG
            && match id.kind() {
                InputKind::Parameter => update.is_none(),
                InputKind::State => update.is_some_and(|update| matches!(graph.node(*update).op, Op::Put)),
                _ => false,
            }
    });
    short.map(|(_, id)| id.clone()).collect()
}

struct Pass<'a> {
    graph: &'a Graph,
    precision: Precision,
    buffers: HashSet<InputId>,
    /// Inputs that are held in bf16.
    held: HashSet<InputId>,
    casts: HashMap<(Value, DType), Value>,
}

impl Pass<'_> {
    fn node(&mut self, new: &mut Graph, node: NodeIndex, operands: &[Value]) -> Vec<Value> {
        let n = self.graph.node(node);
        let sources = self.graph.operands(node);
        if n.origin.phase == Phase::Optimizer {
            let wanted: Vec<DType> = sources.iter().map(|&v| self.graph.ty(v).dtype).collect();
            return self.typed(new, node, operands, &wanted, None);
        }
        match &n.op {
            Op::Input { id, .. } if self.held.contains(id) => {
                return self.typed(new, node, operands, &[], Some(SHORT));
            }
            Op::Input { .. } | Op::Fill(_) | Op::Iota => return self.typed(new, node, operands, &[], None),
            Op::Random { distribution, .. } => {
                let made = self.typed(new, node, operands, &[DType::I64], None);
                // Zeros and ones are exact in any type.
                let exact = matches!(distribution, Distribution::Bernoulli(_)) && n.types[0].dtype == LONG;
                return if exact { vec![self.cast(new, made[0], SHORT, &n.origin)] } else { made };
            }
            _ => {}
        }
        let floats: Vec<bool> = sources.iter().map(|&v| self.graph.ty(v).dtype == LONG).collect();
        let to = self.compute_type(new, node, operands, &floats);
        let wanted: Vec<DType> =
            sources.iter().zip(&floats).map(|(&v, &f)| if f { to } else { self.graph.ty(v).dtype }).collect();
        if self.reduced_in_f32(node) {
            // The product of the bf16 values, without rounding the sum to bf16.
            let rounded: Vec<Value> = operands
                .iter()
                .zip(&wanted)
                .map(|(&v, &d)| {
                    let short = self.cast(new, v, d, &n.origin);
                    if d == SHORT { self.cast(new, short, LONG, &n.origin) } else { short }
                })
                .collect();
            let types: Vec<DType> = rounded.iter().map(|&v| new.ty(v).dtype).collect();
            return self.typed(new, node, &rounded, &types, None);
        }
        self.typed(new, node, operands, &wanted, Some(to))
    }

    /// Adds a node with operands of the wanted types. Results that were f32 become `to`.
    fn typed(
        &mut self,
        new: &mut Graph,
        node: NodeIndex,
        operands: &[Value],
        wanted: &[DType],
        to: Option<DType>,
    ) -> Vec<Value> {
        let n = self.graph.node(node);
        let operands: Vec<Value> =
            operands.iter().zip(wanted).map(|(&v, &d)| self.cast(new, v, d, &n.origin)).collect();
        let converts = matches!(n.op, Op::Map { f: MapFn::Cast(_), .. });
        let types: Vec<Type> = n
            .types
            .iter()
            .map(|t| match to {
                Some(to) if t.dtype == LONG && !converts => Type { dtype: to, ..t.clone() },
                _ => t.clone(),
            })
            .collect();
        let made = new.add(n.op.clone(), &operands, types, n.origin.clone());
        (0..n.types.len() as u32).map(|result| Value { node: made, result }).collect()
    }

    /// The type in which an operation of forward or backward computes its f32 operands.
    fn compute_type(&self, new: &Graph, node: NodeIndex, operands: &[Value], floats: &[bool]) -> DType {
        let n = self.graph.node(node);
        match &n.op {
            Op::Einsum { .. } | Op::Take => return SHORT,
            // Rows have the type of the table that they are written into.
            Op::Put => return new.ty(operands[0]).dtype,
            Op::Reduce { op: ReduceOp::Sum | ReduceOp::Prod, .. } | Op::CumSum { .. } | Op::ScatterAdd => return LONG,
            Op::Map { f, .. } if wants_range(*f) => return LONG,
            Op::Map { f: MapFn::Mul, .. } if self.is_only_summed(node) => return LONG,
            _ => {}
        }
        let values = || operands.iter().zip(floats).filter(|(_, f)| **f).map(|(&v, _)| v);
        let tensors = values().any(|v| new.ty(v).rank() > 0);
        let long = |v: Value| {
            let read_short = matches!(new.op(v), Op::Fill(_)) || self.is_weight(new, v);
            new.ty(v).dtype == LONG && !read_short && (new.ty(v).rank() > 0 || !tensors)
        };
        if values().any(long) { LONG } else { SHORT }
    }

    /// Whether a value is a parameter that is read as bf16.
    fn is_weight(&self, new: &Graph, v: Value) -> bool {
        matches!(new.op(v), Op::Input { id, .. } if id.is_parameter() && !self.buffers.contains(id))
    }

    /// Whether only sums read a product of elements.
    fn is_only_summed(&self, node: NodeIndex) -> bool {
        let sum = |user: NodeIndex| matches!(self.graph.node(user).op, Op::Reduce { op: ReduceOp::Sum, .. });
        self.graph.users(node).all(|(user, _)| sum(user)) && !self.is_output(node)
    }

    fn is_output(&self, node: NodeIndex) -> bool {
        self.graph.outputs.iter().any(|o| o.value.node == node)
    }

    /// Whether a node is the gradient of the weight of a product and should be reduced in f32.
    fn reduced_in_f32(&self, node: NodeIndex) -> bool {
        let n = self.graph.node(node);
        let is_product = matches!(n.op, Op::Einsum { .. }) && n.types[0].dtype == LONG;
        let ends = self.graph.users(node).all(|(u, _)| self.graph.node(u).origin.phase == Phase::Optimizer);
        self.precision.reduce == Reduction::F32 && is_product && n.origin.phase == Phase::Backward && ends
    }

    /// A value cast to another float type. For a constant, it is a new constant.
    fn cast(&mut self, new: &mut Graph, v: Value, to: DType, origin: &Origin) -> Value {
        if new.ty(v).dtype == to {
            return v;
        }
        *self.casts.entry((v, to)).or_insert_with(|| {
            let origin = Origin { reason: Demand::Compute(to).into(), ..origin.clone() };
            match new.op(v) {
                Op::Fill(x) => {
                    let (x, ty) = (x.as_f64(), Type { dtype: to, ..new.ty(v).clone() });
                    new.push(Op::Fill(Scalar::of(to, x)), &[], ty, &origin)
                }
                _ => new.map(MapFn::Cast(to), &[v], &origin),
            }
        })
    }
}

/// Whether `torch.autocast` computes a function in f32.
fn wants_range(f: MapFn) -> bool {
    matches!(f, MapFn::Exp | MapFn::Log | MapFn::Pow | MapFn::Sqrt | MapFn::Rsqrt | MapFn::Recip)
}
