//! The reference interpreter: it defines what a graph means, without regard to speed.
//!
//! [`interpret`] computes the *logical* meaning: every operation acts on whole tensors, and a redistribution is the
//! identity, because it only changes where a value is stored. [`simulate`] computes the *placed* meaning: every rank of
//! the mesh holds the box that each type assigns to it, operations act on these local tensors, and collectives exchange
//! them. A placement is correct if the two agree. Both use [`evaluate`], which executes one operation on local tensors.
//!
//! ```
//! use tpc_ir::interpret::{Options, Tensor, interpret};
//! use tpc_ir::{DType, Graph, InputId, MapFn, Mesh, Op, Origin, Output, OutputKind, Type};
//!
//! let (mut g, origin) = (Graph::new(Mesh::single()), Origin::default());
//! let op = Op::Input { id: InputId::Data("x".into()), layout: vec![2], unit: None };
//! let x = g.push(op, &[], Type::new(DType::F32, [2]), &origin);
//! let y = g.map(MapFn::Add, &[x, x], &origin);
//! g.outputs.push(Output { kind: OutputKind::Result("y".into()), value: y, layout: vec![2] });
//! let inputs = [(InputId::Data("x".into()), Tensor::new(DType::F32, [2], vec![1.0, 2.5]))].into();
//! assert_eq!(interpret(&g, &inputs, &Options::default()).unwrap()[0].data, [2.0, 5.0]);
//! ```

use crate::graph::{Graph, Node, Output, OutputKind, Value};
use crate::input::InputId;
use crate::mesh::{AxisId, Mesh};
use crate::op::{Op, ReduceOp};
use crate::random;
use crate::sharding::{Chunk, Type, chunk};
use crate::subscripts::{Letter, Subscripts};
use crate::verify::{VerifyError, verify};
use crate::{DType, MapFn};
use petgraph::graph::NodeIndex;
use std::borrow::Cow;
use std::collections::HashMap;
use std::rc::Rc;

/// A dense row-major tensor. Integers are exact up to 2^53; truth values are 0 and 1.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Element type.
    pub dtype: DType,
    /// Shape.
    pub shape: Vec<usize>,
    /// The elements, already rounded to the element type (see [`Precision`]).
    pub data: Vec<f64>,
}

impl Tensor {
    /// A tensor with the given elements.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>, data: Vec<f64>) -> Self {
        Tensor { dtype, shape: shape.into(), data }
    }

    /// A tensor of rank 0.
    pub fn scalar(dtype: DType, x: f64) -> Self {
        Tensor::new(dtype, [], vec![x])
    }

    /// A tensor whose elements are a function of their row-major index, rounded to the type.
    pub fn from_fn(dtype: DType, shape: impl Into<Vec<usize>>, f: impl FnMut(usize) -> f64) -> Self {
        let shape = shape.into();
        let data = (0..shape.iter().product()).map(f).map(|x| dtype.round(x)).collect();
        Tensor { dtype, shape, data }
    }
}

/// How results are rounded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// Every result is rounded to its element type. Sums are accumulated in f64 and rounded once.
    #[default]
    Rounded,
    /// Like `Rounded`, but f32 values are kept in f64. This is the oracle for what f32 arithmetic approximates.
    Exact,
    /// Every floating-point value is kept in f64. Two programs that compute the same real numbers then agree, even if
    /// they round in different places.
    Real,
}

impl Precision {
    /// A value as an element of the type holds it under this precision.
    pub fn round(self, dtype: DType, x: f64) -> f64 {
        let keeps = match self {
            Precision::Rounded => false,
            Precision::Exact => dtype == DType::F32,
            Precision::Real => dtype.is_float(),
        };
        if keeps { x } else { dtype.round(x) }
    }
}

/// Options of the interpreter.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Options {
    /// How results are rounded.
    pub precision: Precision,
}

impl Options {
    /// The options of the f64 oracle.
    pub fn exact() -> Self {
        Options { precision: Precision::Exact }
    }

    /// The options under which nothing is rounded.
    pub fn real() -> Self {
        Options { precision: Precision::Real }
    }
}

/// Why a graph could not be executed.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum InterpretError {
    /// The graph is not well formed.
    #[error("the graph is not well formed ({} errors): {}", .0.len(), .0.first().map(ToString::to_string).unwrap_or_default())]
    Malformed(Vec<VerifyError>),
    /// An input was not given.
    #[error("input {name:?} was not given")]
    MissingInput {
        /// Its name.
        name: String,
    },
    /// An input has the wrong shape or element type.
    #[error("input {name:?} is {found}, expected {expected} (or any shape of its row-major elements)")]
    WrongInput {
        /// Its name.
        name: String,
        /// The type that the graph declares.
        expected: String,
        /// The type that was given.
        found: String,
    },
    /// An operation cannot be executed on its operands.
    #[error("node {node} ({op}) on rank {rank}: {fault}")]
    Node {
        /// The index of the node.
        node: usize,
        /// The mnemonic of the operation.
        op: String,
        /// The rank.
        rank: usize,
        /// The fault.
        fault: Fault,
    },
    /// Two ranks hold different values of one element of an output.
    #[error(
        "output {output:?} differs between ranks at {index:?}: rank {rank} holds {found}, an earlier rank {expected}"
    )]
    Replicas {
        /// The output.
        output: OutputKind,
        /// The global index in the output's type.
        index: Vec<usize>,
        /// The element that an earlier rank holds.
        expected: f64,
        /// The element that this rank holds.
        found: f64,
        /// The rank.
        rank: usize,
    },
}

/// A fault of a single operation.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Fault {
    /// Too few or too many operands.
    #[error("takes {expected} operands, not {found}")]
    Operands {
        /// The number of operands that the operation takes.
        expected: usize,
        /// The number of operands that the node has.
        found: usize,
    },
    /// Local shapes do not fit the subscripts.
    #[error("local shapes {shapes:?} (the result's last) do not fit \"{subs}\"")]
    Subscripts {
        /// The subscripts.
        subs: String,
        /// Local shapes of the operands and the result.
        shapes: Vec<Vec<usize>>,
    },
    /// The local shape that the operation computes is not the one that the type of the result assigns to this rank.
    #[error("has a result of local shape {found:?}, but its type requires {expected:?}")]
    Shape {
        /// The shape according to the type.
        expected: Vec<usize>,
        /// The shape according to the operands.
        found: Vec<usize>,
    },
    /// A dimension that every rank must hold whole is sharded.
    #[error("dimension {dim} is cut, prefixed or sorted, so every rank must hold it whole")]
    NotWhole {
        /// The dimension.
        dim: usize,
    },
    /// An operand does not have the rank or size that the operation needs.
    #[error("operand {operand} of local shape {shape:?} does not fit")]
    Operand {
        /// The index of the operand.
        operand: usize,
        /// Its local shape.
        shape: Vec<usize>,
    },
    /// The members of a communicator hold pieces that do not fit together.
    #[error("the group {group:?} holds pieces of shapes {shapes:?}, which do not fit together")]
    Group {
        /// The ranks.
        group: Vec<usize>,
        /// Their local shapes.
        shapes: Vec<Vec<usize>>,
    },
    /// A node with the wrong number of results.
    #[error("has {found} results, not {expected}")]
    Results {
        /// The number of types that the node should have.
        expected: usize,
        /// The number of types that the node has.
        found: usize,
    },
    /// An input reached [`evaluate`], which only executes other operations.
    #[error("an input has no operation to evaluate")]
    Input,
}

/// Computes the logical meaning: the outputs in order, each in the shape that the model knows (its layout). Placements
/// are ignored, and redistributions change nothing.
///
/// # Errors
/// The graph is not well formed, or an input is missing or has the wrong shape or element type.
pub fn interpret(
    graph: &Graph,
    inputs: &HashMap<InputId, Tensor>,
    options: &Options,
) -> Result<Vec<Tensor>, InterpretError> {
    run(graph, inputs, options, World { mesh: None })
}

/// Computes the placed meaning: executes the graph on all ranks of the mesh together, each on its boxes of the global
/// inputs. At the outputs, the terms of partial values are combined, replicas are compared exactly, and the boxes are
/// assembled to whole tensors in the shape that the model knows.
///
/// # Errors
/// Those of [`interpret`]. In addition, local shapes contradict the types, or replicas differ.
pub fn simulate(
    graph: &Graph,
    inputs: &HashMap<InputId, Tensor>,
    options: &Options,
) -> Result<Vec<Tensor>, InterpretError> {
    run(graph, inputs, options, World { mesh: Some(&graph.mesh) })
}

/// The ranks that take part: those of a mesh, or one rank that holds every value whole.
#[derive(Clone, Copy)]
struct World<'a> {
    mesh: Option<&'a Mesh>,
}

impl World<'_> {
    fn ranks(&self) -> usize {
        self.mesh.map_or(1, Mesh::ranks)
    }

    /// The box of a value that a rank holds.
    fn chunks(&self, ty: &Type, rank: usize) -> Vec<Chunk> {
        match self.mesh {
            Some(mesh) => ty.local(mesh, &mesh.coords(rank)),
            None => ty.shape.iter().map(|&len| Chunk { offset: 0, len }).collect(),
        }
    }
}

/// The boxes of the global tensors that one rank holds: one per operand and per result.
#[derive(Clone, Debug, PartialEq)]
pub struct Site {
    /// The boxes of the operands.
    pub operands: Vec<Vec<Chunk>>,
    /// The boxes of the results.
    pub results: Vec<Vec<Chunk>>,
}

/// A local tensor per rank. Ranks may share equal tensors.
type Ranks = Vec<Rc<Tensor>>;

/// Results that one rank computed, kept for other ranks that would compute the same.
struct Done {
    operands: Vec<Rc<Tensor>>,
    site: Site,
    results: Vec<Rc<Tensor>>,
}

fn run(
    graph: &Graph,
    inputs: &HashMap<InputId, Tensor>,
    options: &Options,
    world: World<'_>,
) -> Result<Vec<Tensor>, InterpretError> {
    verify(graph).map_err(InterpretError::Malformed)?;
    let last_use = last_uses(graph);
    let mut values: HashMap<Value, Ranks> = HashMap::new();
    for node in graph.nodes() {
        let operands = graph.operands(node);
        let results = step(graph, node, &operands, &values, inputs, options, world)?;
        for (result, ranks) in results.into_iter().enumerate() {
            values.insert(Value { node, result: result as u32 }, ranks);
        }
        for v in operands {
            if last_use.get(&v) == Some(&node) {
                values.remove(&v);
            }
        }
    }
    graph
        .outputs
        .iter()
        .map(|o| {
            let ty = graph.ty(o.value);
            let mut whole = assemble(ty, &values[&o.value], world, options, o)?;
            whole.shape.clone_from(&o.layout);
            Ok(whole)
        })
        .collect()
}

/// The last node that uses each value. Outputs of the program are not listed.
fn last_uses(graph: &Graph) -> HashMap<Value, NodeIndex> {
    let mut last: HashMap<Value, NodeIndex> =
        graph.nodes().flat_map(|n| graph.operands(n).into_iter().map(move |v| (v, n))).collect();
    for output in &graph.outputs {
        last.remove(&output.value);
    }
    last
}

/// Executes one node on all ranks. Returns the local tensors of each result.
fn step(
    graph: &Graph,
    index: NodeIndex,
    operands: &[Value],
    values: &HashMap<Value, Ranks>,
    inputs: &HashMap<InputId, Tensor>,
    options: &Options,
    world: World<'_>,
) -> Result<Vec<Ranks>, InterpretError> {
    let node = graph.node(index);
    let failed =
        |rank: usize, fault: Fault| InterpretError::Node { node: index.index(), op: node.op.name(), rank, fault };
    if let Op::Input { id, layout, .. } = &node.op {
        return Ok(vec![feed(id, layout, &node.types[0], inputs, options, world)?]);
    }
    let types: Vec<&Type> = operands.iter().map(|&v| graph.ty(v)).collect();
    if let (Some(mesh), true) = (world.mesh, node.op.is_redistribution()) {
        let [operand] = operands else {
            return Err(failed(0, Fault::Operands { expected: 1, found: operands.len() }));
        };
        let moved =
            redistribute(&node.op, mesh, &values[operand], options).map_err(|(rank, fault)| failed(rank, fault))?;
        for (rank, t) in moved.iter().enumerate() {
            expect_shape(&shape_of(&world.chunks(&node.types[0], rank)), &t.shape).map_err(|f| failed(rank, f))?;
        }
        return Ok(vec![moved]);
    }
    // Ranks that share their operands and hold the same boxes compute the same results, so these are computed once.
    let mut done: Vec<Done> = Vec::new();
    let mut results: Vec<Ranks> = vec![Vec::new(); node.types.len()];
    let held: Vec<&Ranks> = operands.iter().map(|v| &values[v]).collect();
    for rank in 0..world.ranks() {
        let local: Ranks = held.iter().map(|ranks| Rc::clone(&ranks[rank])).collect();
        let site = Site {
            operands: types.iter().map(|t| world.chunks(t, rank)).collect(),
            results: node.types.iter().map(|t| world.chunks(t, rank)).collect(),
        };
        let same = |d: &&Done| d.site == site && d.operands.iter().zip(&local).all(|(a, b)| Rc::ptr_eq(a, b));
        let made = match done.iter().find(same) {
            Some(d) => d.results.clone(),
            None => {
                let tensors: Vec<&Tensor> = local.iter().map(|t| &**t).collect();
                let made = evaluate(node, &types, &tensors, &site, options).map_err(|f| failed(rank, f))?;
                let made: Vec<Rc<Tensor>> = made.into_iter().map(Rc::new).collect();
                done.push(Done { operands: local, site, results: made.clone() });
                made
            }
        };
        results.iter_mut().zip(made).for_each(|(r, t)| r.push(t));
    }
    Ok(results)
}

/// The boxes of a global input that the ranks hold.
fn feed(
    id: &InputId,
    layout: &[usize],
    ty: &Type,
    inputs: &HashMap<InputId, Tensor>,
    options: &Options,
    world: World<'_>,
) -> Result<Ranks, InterpretError> {
    let given = inputs.get(id).ok_or_else(|| InterpretError::MissingInput { name: id.to_string() })?;
    let elements = ty.elements();
    if given.dtype != ty.dtype || given.data.len() != elements || count(&given.shape) != Some(elements) {
        return Err(InterpretError::WrongInput {
            name: id.to_string(),
            expected: format!("{}{layout:?}", ty.dtype),
            found: format!("{}{:?} of {} elements", given.dtype, given.shape, given.data.len()),
        });
    }
    let data = given.data.iter().map(|&x| options.precision.round(ty.dtype, x)).collect();
    let whole = Tensor { dtype: ty.dtype, shape: ty.shape.clone(), data };
    let mut cut: HashMap<Vec<(usize, usize)>, Rc<Tensor>> = HashMap::new();
    let boxes = (0..world.ranks()).map(|rank| world.chunks(ty, rank));
    Ok(boxes
        .map(|chunks| {
            let key = chunks.iter().map(|c| (c.offset, c.len)).collect();
            let piece = || chunks.iter().enumerate().fold(whole.clone(), |t, (dim, &c)| cut_dim(&t, dim, c));
            Rc::clone(cut.entry(key).or_insert_with(|| Rc::new(piece())))
        })
        .collect())
}

fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

/// Assembles an output from the local tensors of all ranks.
fn assemble(
    ty: &Type,
    ranks: &Ranks,
    world: World<'_>,
    options: &Options,
    output: &Output,
) -> Result<Tensor, InterpretError> {
    let Some(mesh) = world.mesh else {
        return Ok((*ranks[0]).clone());
    };
    let reduced = match ty.sharding.partial {
        Some(p) => {
            let op = Op::AllReduce { op: p.op, axes: p.axes };
            redistribute(&op, mesh, ranks, options).map_err(|(rank, fault)| InterpretError::Node {
                node: output.value.node.index(),
                op: "output".into(),
                rank,
                fault,
            })?
        }
        None => ranks.clone(),
    };
    let mut whole = vec![None; ty.elements()];
    let global = strides(&ty.shape);
    for (rank, local) in reduced.iter().enumerate() {
        let chunks = world.chunks(ty, rank);
        let start: usize = chunks.iter().zip(&global).map(|(c, s)| c.offset * s).sum();
        let mut read = local.data.iter();
        let mut conflict = None;
        rows(&shape_of(&chunks), &[&global], |offsets, n| {
            let step = global.last().copied().unwrap_or(0);
            for (j, &x) in read.by_ref().take(n).enumerate() {
                let at = start + offsets[0] + j * step;
                let seen: f64 = *whole[at].get_or_insert(x);
                if conflict.is_none() && !(seen == x || seen.is_nan() && x.is_nan()) {
                    conflict = Some((at, seen, x));
                }
            }
        });
        if let Some((at, expected, found)) = conflict {
            let index = global.iter().zip(&ty.shape).map(|(s, n)| at / s % n).collect();
            return Err(InterpretError::Replicas { output: output.kind.clone(), index, expected, found, rank });
        }
    }
    let data = whole.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Tensor { dtype: ty.dtype, shape: ty.shape.clone(), data })
}

/// Executes a redistribution on one local tensor per rank.
///
/// # Errors
/// The pieces of a group do not fit together: the rank and the fault.
pub fn redistribute(
    op: &Op,
    mesh: &Mesh,
    ranks: &[Rc<Tensor>],
    options: &Options,
) -> Result<Vec<Rc<Tensor>>, (usize, Fault)> {
    let mut shared: HashMap<usize, Rc<Tensor>> = HashMap::new();
    let mut moved = Vec::with_capacity(ranks.len());
    for (rank, own) in ranks.iter().enumerate() {
        let coords = mesh.coords(rank);
        let group_of = |axes: &[AxisId]| -> (Vec<usize>, Vec<&Tensor>) {
            let group = mesh.group(rank, axes);
            let pieces = group.iter().map(|&r| &*ranks[r]).collect();
            (group, pieces)
        };
        let at = |fault: Fault| (rank, fault);
        let outside = |dim: usize| if dim < own.shape.len() { Ok(()) } else { Err(at(misfit(0, own))) };
        let own_chunk = |n: usize, axes: &[AxisId]| chunk(n, axes, mesh, &coords);
        // A tensor that all members of a group receive is computed once and stored under the first rank of the group.
        let mut once =
            |group: &[usize], make: &dyn Fn() -> Result<Tensor, Fault>| -> Result<Rc<Tensor>, (usize, Fault)> {
                if let Some(t) = shared.get(&group[0]) {
                    return Ok(Rc::clone(t));
                }
                let t = Rc::new(make().map_err(at)?);
                shared.insert(group[0], Rc::clone(&t));
                Ok(t)
            };
        moved.push(match op {
            Op::AllReduce { op, axes } => {
                let (group, pieces) = group_of(&axes.iter().collect::<Vec<_>>());
                once(&group, &|| combine(*op, &group, &pieces, options))?
            }
            Op::AllGather { dim, axes } => {
                outside(*dim)?;
                let (group, pieces) = group_of(axes);
                once(&group, &|| join(*dim, &pieces).ok_or_else(|| mismatched(&group, &pieces)))?
            }
            Op::ReduceScatter { op, dim, axes } => {
                outside(*dim)?;
                let (group, pieces) = group_of(axes);
                let sum = once(&group, &|| combine(*op, &group, &pieces, options))?;
                Rc::new(cut_dim(&sum, *dim, own_chunk(sum.shape[*dim], axes)))
            }
            Op::AllToAll { from, to, axes } => {
                outside(*from)?;
                outside(*to)?;
                let (group, pieces) = group_of(axes);
                if pieces.iter().any(|p| p.shape.len() != own.shape.len() || p.shape[*to] != own.shape[*to]) {
                    return Err(at(mismatched(&group, &pieces)));
                }
                let mine = own_chunk(own.shape[*to], axes);
                let arrived: Vec<Tensor> = pieces.iter().map(|p| cut_dim(p, *to, mine)).collect();
                let joined = join(*from, &arrived.iter().collect::<Vec<_>>());
                Rc::new(joined.ok_or_else(|| at(mismatched(&group, &pieces)))?)
            }
            Op::ShardSlice { dim, axes } => {
                outside(*dim)?;
                Rc::new(cut_dim(own, *dim, own_chunk(own.shape[*dim], axes)))
            }
            Op::ToPartial { op, axes } => {
                if axes.iter().all(|a| coords[a.0 as usize] == 0) {
                    Rc::clone(own)
                } else {
                    let x = op.identity_of(own.dtype);
                    Rc::new(Tensor { data: vec![x; own.data.len()], ..(**own).clone() })
                }
            }
            _ => Rc::clone(own),
        });
    }
    Ok(moved)
}

/// Combines the terms of a group, in the order of its ranks.
fn combine(op: ReduceOp, group: &[usize], pieces: &[&Tensor], options: &Options) -> Result<Tensor, Fault> {
    let Some((first, rest)) = pieces.split_first() else {
        return Err(mismatched(group, pieces));
    };
    if rest.iter().any(|p| p.shape != first.shape) {
        return Err(mismatched(group, pieces));
    }
    let mut out = (*first).clone();
    for piece in rest {
        out.data.iter_mut().zip(&piece.data).for_each(|(a, &b)| *a = op.combine(*a, b));
    }
    out.data.iter_mut().for_each(|x| *x = options.precision.round(first.dtype, *x));
    Ok(out)
}

/// The fault of a group whose pieces do not fit together.
fn mismatched(group: &[usize], pieces: &[&Tensor]) -> Fault {
    Fault::Group { group: group.to_vec(), shapes: pieces.iter().map(|p| p.shape.clone()).collect() }
}

fn misfit(operand: usize, t: &Tensor) -> Fault {
    Fault::Operand { operand, shape: t.shape.clone() }
}

fn shape_of(chunks: &[Chunk]) -> Vec<usize> {
    chunks.iter().map(|c| c.len).collect()
}

fn expect_shape(expected: &[usize], found: &[usize]) -> Result<(), Fault> {
    if expected == found {
        return Ok(());
    }
    Err(Fault::Shape { expected: expected.to_vec(), found: found.to_vec() })
}

/// Executes one operation on local tensors. Redistributions return their operand, which is correct for a single rank
/// that holds everything; on a mesh, [`redistribute`] executes them.
///
/// `site` has the boxes of the local tensors. Operations that depend on global indices (iota, random, take,
/// scatter-add, put) take their offsets from it.
///
/// # Errors
/// Local shapes do not fit the operation or the type of the result.
pub fn evaluate(
    node: &Node,
    types: &[&Type],
    operands: &[&Tensor],
    site: &Site,
    options: &Options,
) -> Result<Vec<Tensor>, Fault> {
    if let Some(expected) = node.op.arity().filter(|&n| n != operands.len()) {
        return Err(Fault::Operands { expected, found: operands.len() });
    }
    let expected = node.op.results();
    if node.types.len() != expected {
        return Err(Fault::Results { expected, found: node.types.len() });
    }
    let ty = &node.types[0];
    let shape = shape_of(&site.results[0]);
    let round = |x: f64| options.precision.round(ty.dtype, x);
    let whole = |dim: usize| {
        let cut = |t: &Type, chunks: &[Chunk]| chunks.get(dim).is_none_or(|c| c.len != t.shape[dim]);
        let operands = types.iter().zip(&site.operands).any(|(t, c)| cut(t, c));
        let results = node.types.iter().zip(&site.results).any(|(t, c)| cut(t, c));
        if operands || results { Err(Fault::NotWhole { dim }) } else { Ok(()) }
    };
    let data = match &node.op {
        Op::Input { .. } => return Err(Fault::Input),
        Op::Fill(s) => vec![round(s.as_f64()); shape.iter().product()],
        Op::Iota => {
            let [c] = site.results[0][..] else {
                return Err(Fault::Shape { expected: shape, found: vec![0] });
            };
            (c.offset..c.offset + c.len).map(|i| round(i as f64)).collect()
        }
        Op::Random { distribution, stream } => {
            let seed = *operands[0].data.first().ok_or_else(|| misfit(0, operands[0]))? as i64 as u64;
            let global = strides(&ty.shape);
            let start: usize = site.results[0].iter().zip(&global).map(|(c, s)| c.offset * s).sum();
            let mut out = Vec::with_capacity(shape.iter().product());
            let step = global.last().copied().unwrap_or(0);
            rows(&shape, &[&global], |at, n| {
                let counters = (0..n).map(|j| (start + at[0] + j * step) as u64);
                out.extend(counters.map(|i| round(random::element(*distribution, random::philox(seed, *stream, i)))));
            });
            out
        }
        Op::Map { f, subs } => map(*f, subs, operands, &shape, ty.dtype, options.precision)?,
        Op::Einsum { subs } => einsum(subs, operands, &shape)?.into_iter().map(round).collect(),
        Op::Reduce { op, subs } => reduce(*op, subs, operands, &shape)?.into_iter().map(round).collect(),
        Op::Reshape => {
            if operands[0].data.len() != shape.iter().product::<usize>() {
                return Err(Fault::Shape { expected: shape, found: operands[0].shape.clone() });
            }
            operands[0].data.clone()
        }
        Op::Slice { dim, start, step } => {
            whole(*dim)?;
            let (t, n) = (operands[0], shape[*dim]);
            if t.shape.len() != shape.len()
                || n > 0 && start.saturating_add((n - 1).saturating_mul(*step)) >= t.shape[*dim]
            {
                return Err(misfit(0, t));
            }
            let picked = pick(t, *dim, n, |i| Some(start + i * step), 0.0);
            expect_shape(&shape, &picked.shape)?;
            picked.data
        }
        Op::Index { dim, index } => {
            let t = operands[0];
            if t.shape.get(*dim).is_none_or(|&n| n != types[0].shape[*dim]) {
                return Err(Fault::NotWhole { dim: *dim });
            }
            if *index >= t.shape[*dim] {
                return Err(misfit(0, t));
            }
            let mut picked = pick(t, *dim, 1, |_| Some(*index), 0.0);
            picked.shape.remove(*dim);
            expect_shape(&shape, &picked.shape)?;
            picked.data
        }
        Op::Concat { dim } => {
            whole(*dim)?;
            let joined = join(*dim, operands).ok_or_else(|| misfit(0, operands.first().copied().unwrap_or(&EMPTY)))?;
            expect_shape(&shape, &joined.shape)?;
            joined.data
        }
        Op::Pad { dim, low, value } => {
            whole(*dim)?;
            let (t, n) = (operands[0], shape[*dim]);
            if t.shape.len() != shape.len() || n < low.saturating_add(t.shape[*dim]) {
                return Err(misfit(0, t));
            }
            let inside = |i: usize| i.checked_sub(*low).filter(|&i| i < t.shape[*dim]);
            let padded = pick(t, *dim, n, inside, round(value.as_f64()));
            expect_shape(&shape, &padded.shape)?;
            padded.data
        }
        Op::Take => {
            let (table, index) = (operands[0], operands[1]);
            let (Some(&count), Some(first)) = (table.shape.first(), site.operands[0].first()) else {
                return Err(misfit(0, table));
            };
            expect_shape(&shape, &[&index.shape[..], &table.shape[1..]].concat())?;
            let width: usize = table.shape[1..].iter().product();
            let mut out = Vec::with_capacity(index.data.len() * width);
            for &i in &index.data {
                match local_row(i, first.offset, count) {
                    Some(row) => out.extend_from_slice(&table.data[row * width..(row + 1) * width]),
                    None => out.resize(out.len() + width, 0.0),
                }
            }
            out
        }
        Op::ScatterAdd => {
            let (index, update) = (operands[0], operands[1]);
            let (Some(&count), Some(first)) = (shape.first(), site.results[0].first()) else {
                return Err(Fault::Shape { expected: shape, found: update.shape.clone() });
            };
            if update.shape != [&index.shape[..], &shape[1..]].concat() {
                return Err(misfit(1, update));
            }
            let width: usize = shape[1..].iter().product();
            let mut out = vec![0.0; count * width];
            for (t, &i) in index.data.iter().enumerate() {
                if let Some(row) = local_row(i, first.offset, count) {
                    let added = &update.data[t * width..(t + 1) * width];
                    out[row * width..(row + 1) * width].iter_mut().zip(added).for_each(|(o, u)| *o += u);
                }
            }
            out.into_iter().map(round).collect()
        }
        Op::Put => {
            let (table, index, rows) = (operands[0], operands[1], operands[2]);
            let (Some(&count), Some(first)) = (table.shape.first(), site.operands[0].first()) else {
                return Err(misfit(0, table));
            };
            expect_shape(&shape, &table.shape)?;
            if rows.shape != [&index.shape[..], &table.shape[1..]].concat() {
                return Err(misfit(2, rows));
            }
            let width: usize = table.shape[1..].iter().product();
            let mut out = table.data.clone();
            for (t, &i) in index.data.iter().enumerate() {
                if let Some(row) = local_row(i, first.offset, count) {
                    out[row * width..(row + 1) * width].copy_from_slice(&rows.data[t * width..(t + 1) * width]);
                }
            }
            out
        }
        Op::CumSum { dim } => {
            whole(*dim)?;
            expect_shape(&shape, &operands[0].shape)?;
            let inner: usize = shape[dim + 1..].iter().product();
            let mut out = operands[0].data.clone();
            for block in out.chunks_mut((shape[*dim] * inner).max(1)) {
                for i in inner..block.len() {
                    block[i] += block[i - inner];
                }
            }
            out.into_iter().map(round).collect()
        }
        Op::TopK => {
            let t = operands[0];
            let last = t.shape.len().checked_sub(1).ok_or_else(|| misfit(0, t))?;
            whole_rows(t, types[0], &shape, &node.types[0], last)?;
            return Ok(top_k(t, &shape, [node.types[0].dtype, node.types[1].dtype]));
        }
        op if op.is_redistribution() => {
            expect_shape(&shape, &operands[0].shape)?;
            operands[0].data.clone()
        }
        _ => return Err(Fault::Input),
    };
    Ok(vec![Tensor { dtype: ty.dtype, shape, data }])
}

static EMPTY: Tensor = Tensor { dtype: DType::F32, shape: Vec::new(), data: Vec::new() };

/// The local number of a global row, if this rank holds the row. A row that no rank holds is read as zeros and ignores
/// updates.
fn local_row(index: f64, first: usize, count: usize) -> Option<usize> {
    let row = index - first as f64;
    (row >= 0.0 && row < count as f64).then_some(row as usize)
}

/// Row-major strides.
fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i];
    }
    strides
}

/// Calls `f(offsets, n)` for every row of `shape`, in row-major order. A row runs along the last dimension; `offsets`
/// has the offset of its first element under each of the stride lists, and `n` is its length.
fn rows(shape: &[usize], stride_lists: &[&[usize]], mut f: impl FnMut(&[usize], usize)) {
    let mut offsets = vec![0; stride_lists.len()];
    if shape.contains(&0) {
        return;
    }
    let Some((&n, outer)) = shape.split_last() else {
        return f(&offsets, 1);
    };
    let mut index = vec![0; outer.len()];
    loop {
        f(&offsets, n);
        let mut dim = outer.len();
        loop {
            if dim == 0 {
                return;
            }
            dim -= 1;
            index[dim] += 1;
            if index[dim] < outer[dim] {
                offsets.iter_mut().zip(stride_lists).for_each(|(o, s)| *o += s[dim]);
                break;
            }
            offsets.iter_mut().zip(stride_lists).for_each(|(o, s)| *o -= s[dim] * (outer[dim] - 1));
            index[dim] = 0;
        }
    }
}

/// The stride of each of `letters` in an operand; 0 if the operand lacks the letter.
fn letter_strides(operand: &[Letter], shape: &[usize], letters: &[Letter]) -> Vec<usize> {
    let own = strides(shape);
    let stride = |l: &Letter| operand.iter().zip(&own).filter(|(o, _)| *o == l).map(|(_, s)| s).sum();
    letters.iter().map(stride).collect()
}

/// The elements of an operand with its dimensions in the order of `letters`, repeated along letters that it lacks.
fn arranged<'a>(t: &'a Tensor, operand: &[Letter], letters: &[Letter], sizes: &[usize]) -> Cow<'a, [f64]> {
    if operand == letters {
        return Cow::Borrowed(&t.data);
    }
    let shape: Vec<usize> = letters.iter().map(|&l| sizes[l as usize]).collect();
    let from = letter_strides(operand, &t.shape, letters);
    let step = from.last().copied().unwrap_or(0);
    let mut out = Vec::with_capacity(shape.iter().product());
    rows(&shape, &[&from], |at, n| {
        for j in 0..n {
            out.push(t.data[at[0] + j * step]);
        }
    });
    Cow::Owned(out)
}

/// The size of every letter. Fails if the operands and the result do not fit the subscripts.
fn letter_sizes(subs: &Subscripts, operands: &[&Tensor], result: &[usize]) -> Result<Vec<usize>, Fault> {
    let shapes: Vec<&[usize]> = operands.iter().map(|t| &t.shape[..]).collect();
    let distinct = |ls: &[Letter]| ls.iter().enumerate().all(|(i, l)| !ls[..i].contains(l));
    let fits = subs.operands.len() == operands.len() && distinct(&subs.result);
    subs.sizes(&shapes, Some(result)).filter(|_| fits).ok_or_else(|| Fault::Subscripts {
        subs: subs.to_string(),
        shapes: shapes.iter().map(|s| s.to_vec()).chain([result.to_vec()]).collect(),
    })
}

fn map(
    f: MapFn,
    subs: &Subscripts,
    operands: &[&Tensor],
    shape: &[usize],
    dtype: DType,
    precision: Precision,
) -> Result<Vec<f64>, Fault> {
    letter_sizes(subs, operands, shape)?;
    if subs.operands.iter().flatten().any(|l| !subs.result.contains(l)) || operands.is_empty() {
        let shapes = operands.iter().map(|t| t.shape.clone()).chain([shape.to_vec()]).collect();
        return Err(Fault::Subscripts { subs: subs.to_string(), shapes });
    }
    // A cast is the identity here, because every result is rounded anyway. Under `Exact`, a cast to f32 therefore keeps
    // f64.
    let f = if matches!(f, MapFn::Cast(_)) { MapFn::Identity } else { f };
    let from: Vec<Vec<usize>> =
        operands.iter().zip(&subs.operands).map(|(t, ls)| letter_strides(ls, &t.shape, &subs.result)).collect();
    let steps: Vec<usize> = from.iter().map(|s| s.last().copied().unwrap_or(0)).collect();
    let lists: Vec<&[usize]> = from.iter().map(Vec::as_slice).collect();
    let mut args = vec![0.0; operands.len()];
    let mut out = Vec::with_capacity(shape.iter().product());
    rows(shape, &lists, |at, n| {
        for j in 0..n {
            for (i, arg) in args.iter_mut().enumerate() {
                *arg = operands[i].data[at[i] + j * steps[i]];
            }
            out.push(precision.round(dtype, f.eval(&args)));
        }
    });
    Ok(out)
}

fn einsum(subs: &Subscripts, operands: &[&Tensor], shape: &[usize]) -> Result<Vec<f64>, Fault> {
    let sizes = letter_sizes(subs, operands, shape)?;
    let summed = subs.contracted();
    let depth: usize = summed.iter().map(|&l| sizes[l as usize]).product();
    // Both operands are arranged with the summed letters innermost, so that every element of the result is a dot
    // product of two contiguous rows.
    let packed = |i: usize| {
        let kept: Vec<Letter> = subs.result.iter().copied().filter(|l| subs.operands[i].contains(l)).collect();
        let data = arranged(operands[i], &subs.operands[i], &[&kept[..], &summed].concat(), &sizes);
        let kept_shape: Vec<usize> = kept.iter().map(|&l| sizes[l as usize]).collect();
        let strides: Vec<usize> = letter_strides(&kept, &kept_shape, &subs.result).iter().map(|s| s * depth).collect();
        (data, strides)
    };
    let ((left, ls), (right, rs)) = (packed(0), packed(1));
    let (lstep, rstep) = (ls.last().copied().unwrap_or(0), rs.last().copied().unwrap_or(0));
    let mut out = Vec::with_capacity(shape.iter().product());
    rows(shape, &[&ls, &rs], |at, n| {
        for j in 0..n {
            let (l, r) = (at[0] + j * lstep, at[1] + j * rstep);
            let mut sum = 0.0;
            for (a, b) in left[l..l + depth].iter().zip(&right[r..r + depth]) {
                sum += a * b;
            }
            out.push(sum);
        }
    });
    Ok(out)
}

fn reduce(op: ReduceOp, subs: &Subscripts, operands: &[&Tensor], shape: &[usize]) -> Result<Vec<f64>, Fault> {
    let sizes = letter_sizes(subs, operands, shape)?;
    let summed = subs.contracted();
    let depth: usize = summed.iter().map(|&l| sizes[l as usize]).product();
    let elements: usize = shape.iter().product();
    if depth == 0 {
        return Ok(vec![op.identity_of(operands[0].dtype); elements]);
    }
    let data = arranged(operands[0], &subs.operands[0], &[&subs.result[..], &summed].concat(), &sizes);
    Ok(data.chunks(depth).map(|row| row.iter().fold(op.identity(), |a, &b| op.combine(a, b))).collect())
}

/// The tensor with size `n` along `dim` whose slice `i` is slice `source(i)` of `t`, or `fill` where that is `None`.
fn pick(t: &Tensor, dim: usize, n: usize, source: impl Fn(usize) -> Option<usize>, fill: f64) -> Tensor {
    let inner: usize = t.shape[dim + 1..].iter().product();
    let outer: usize = t.shape[..dim].iter().product();
    let mut shape = t.shape.clone();
    shape[dim] = n;
    let mut data = Vec::with_capacity(outer * n * inner);
    for o in 0..outer {
        for i in 0..n {
            match source(i) {
                Some(s) => {
                    let at = (o * t.shape[dim] + s) * inner;
                    data.extend_from_slice(&t.data[at..at + inner]);
                }
                None => data.resize(data.len() + inner, fill),
            }
        }
    }
    Tensor { dtype: t.dtype, shape, data }
}

/// The part of a tensor in a chunk of one dimension.
fn cut_dim(t: &Tensor, dim: usize, c: Chunk) -> Tensor {
    if c.len == t.shape[dim] {
        return t.clone();
    }
    pick(t, dim, c.len, |i| Some(c.offset + i), 0.0)
}

/// Concatenates tensors along `dim`. `None` if their other dimensions differ.
fn join(dim: usize, pieces: &[&Tensor]) -> Option<Tensor> {
    let first = pieces.first()?;
    let fits = |p: &&Tensor| {
        p.shape.len() == first.shape.len() && (0..p.shape.len()).all(|d| d == dim || p.shape[d] == first.shape[d])
    };
    if dim >= first.shape.len() || !pieces.iter().all(fits) {
        return None;
    }
    let mut shape = first.shape.clone();
    shape[dim] = pieces.iter().map(|p| p.shape[dim]).sum();
    let inner: usize = shape[dim + 1..].iter().product();
    let outer: usize = shape[..dim].iter().product();
    let mut data = Vec::with_capacity(shape.iter().product());
    for o in 0..outer {
        for p in pieces {
            let n = p.shape[dim] * inner;
            data.extend_from_slice(&p.data[o * n..(o + 1) * n]);
        }
    }
    Some(Tensor { dtype: first.dtype, shape, data })
}

/// Checks that the rank holds whole rows, and that the result of a top-k fits them.
fn whole_rows(t: &Tensor, from: &Type, shape: &[usize], to: &Type, last: usize) -> Result<(), Fault> {
    let fits = shape.len() == t.shape.len() && shape[..last] == t.shape[..last] && shape[last] <= t.shape[last];
    if t.shape[last] != from.shape[last] || shape.get(last) != to.shape.get(last) {
        return Err(Fault::NotWhole { dim: last });
    }
    if fits { Ok(()) } else { Err(misfit(0, t)) }
}

/// The indices of the `k` largest elements of a row in descending order. Of equal elements the first comes first, and NaN
/// counts as larger than every number. The two zeros are equal.
pub(crate) fn largest(row: &[f64], k: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| match (row[a].is_nan(), row[b].is_nan()) {
        (false, false) => row[b].partial_cmp(&row[a]).unwrap_or(std::cmp::Ordering::Equal),
        (a, b) => b.cmp(&a),
    });
    order.truncate(k);
    order
}

/// The [`largest`] elements of every row, and their indices.
fn top_k(t: &Tensor, shape: &[usize], dtypes: [DType; 2]) -> Vec<Tensor> {
    let (k, n) = (shape[shape.len() - 1], t.shape[shape.len() - 1]);
    let (mut values, mut indices) = (Vec::new(), Vec::new());
    for row in t.data.chunks(n.max(1)) {
        let order = largest(row, k);
        values.extend(order.iter().map(|&i| row[i]));
        indices.extend(order.iter().map(|&i| i as f64));
    }
    let tensor = |dtype, data| Tensor { dtype, shape: shape.to_vec(), data };
    vec![tensor(dtypes[0], values), tensor(dtypes[1], indices)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_elements_comes_first() {
        assert_eq!(largest(&[0.0, -0.0, 3.0, 0.0, f64::NAN, -1.0], 6), [4, 2, 0, 1, 3, 5]);
        assert_eq!(largest(&[-0.0, 0.0, -2.0], 2), [0, 1]);
    }
}
