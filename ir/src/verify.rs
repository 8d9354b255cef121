//! Checks that a graph is well formed: every operation fits its operands and its result types.
//!
//! Whether the *placement* of a result follows from those of the operands is not checked here but against the rule
//! table of the passes. The exceptions are redistributions, which do nothing but change placements: [`redistributed`]
//! is their whole rule.

use crate::graph::{Graph, OutputKind, Value};
use crate::input::{InputId, InputKind};
use crate::mesh::{AxisId, AxisSet, Mesh};
use crate::op::{MapFn, Op, ReduceOp, Scalar};
use crate::parse::MOST_DIMS;
use crate::path::ModulePath;
use crate::quote::{cut, quoted};
use crate::sharding::{Type, axes_text};
use crate::subscripts::{Letter, Subscripts, letter_name};
use crate::{DType, text};
use petgraph::graph::NodeIndex;
use std::collections::{HashMap, HashSet};
use std::fmt;

/// The greatest number of faults of one graph that are reported.
pub const MOST_FAULTS: usize = 100;
/// The greatest number of operands, and of results, of a node whose types a message shows.
pub const MOST_SHOWN: usize = 16;

/// A fault of a graph, and where it is.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{location}: {fault}")]
pub struct VerifyError {
    /// The location of the fault.
    pub location: Location,
    /// The fault.
    pub fault: Malformed,
}

/// The part of a graph that an error is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A node.
    Node {
        /// Its index in the graph.
        index: usize,
        /// Its number in the text form, if it has a line there.
        line: Option<usize>,
        /// Mnemonic and attributes.
        op: String,
        /// The types of the first operands. `…` stands for those after the first [`MOST_SHOWN`].
        operands: Vec<String>,
        /// The types of the first results, shortened in the same way.
        results: Vec<String>,
    },
    /// An output.
    Output(OutputKind),
    /// A module region.
    Region(ModulePath),
    /// The graph as a whole.
    Program,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Location::Node { index, line, op, operands, results } => {
                let name = line.map_or_else(|| format!("node {index}"), |l| format!("%{l}"));
                write!(f, "{name} = {}: ({}) -> ({})", cut(op), operands.join(", "), results.join(", "))
            }
            Location::Output(kind) => write!(f, "output {}", cut(&text::output_name(kind))),
            Location::Region(path) => write!(f, "region {}", quoted(&path.to_string())),
            Location::Program => write!(f, "the program"),
        }
    }
}

/// A fault of a graph or of one of its nodes.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    /// An axis that the mesh lacks.
    #[error("axis number {0} is not in the mesh")]
    UnknownAxis(u8),
    /// A value that does not exist.
    #[error("refers to result {result} of node {node}, which does not exist")]
    NoSuchValue {
        /// The node.
        node: usize,
        /// The result.
        result: u32,
    },
    /// The wrong number of result types.
    #[error("has {found} result types but needs {expected}")]
    Results {
        /// The number of results that the operation has.
        expected: usize,
        /// The number of types that the node has.
        found: usize,
    },
    /// The wrong number of operands.
    #[error("has {found} operands but needs {expected}")]
    Operands {
        /// The number of operands that the operation takes.
        expected: String,
        /// The number of operands that the node has.
        found: usize,
    },
    /// A type whose sharding has another rank than its shape.
    #[error("the type {ty} has {found} lists of axes instead of one per dimension")]
    Dims {
        /// The type.
        ty: String,
        /// The number of lists of axes.
        found: usize,
    },
    /// A type with more dimensions than there are letters.
    #[error("the type has {} dimensions, more than {}", .0, MOST_DIMS)]
    TooManyDims(usize),
    /// An axis occurs twice.
    #[error("axis {axis} occurs twice in {within}")]
    RepeatedAxis {
        /// Name of the axis.
        axis: String,
        /// The type, or the axes of the operation.
        within: String,
    },
    /// A type that is partial over no axes.
    #[error("the type {0} is partial over no axes")]
    EmptyPartial(String),
    /// A value with more bytes than can be addressed.
    #[error("the type {0} has more bytes than can be addressed")]
    TooLarge(String),
    /// Values that together have more bytes than can be addressed, although each alone does not.
    #[error("its values together have more bytes than can be addressed")]
    AllTooLarge,
    /// Subscripts for another number of operands.
    #[error("\"{}\" is for {expected} operands, but the node has {found}", cut(.subs))]
    SubscriptRows {
        /// The subscripts.
        subs: String,
        /// The number of operands that they describe.
        expected: usize,
        /// The number of operands of the node.
        found: usize,
    },
    /// Subscripts that do not have one letter per dimension.
    #[error("\"{}\" gives {tensor} {letters} letters, but its rank is {rank}", cut(.subs))]
    SubscriptRank {
        /// The subscripts.
        subs: String,
        /// Which tensor.
        tensor: Tensor,
        /// Number of letters.
        letters: usize,
        /// Number of dimensions.
        rank: usize,
    },
    /// Two dimensions with the same letter differ in size.
    #[error("letter {letter} of \"{}\" is {first} and {second}", cut(.subs))]
    LetterSize {
        /// The subscripts.
        subs: String,
        /// The letter.
        letter: char,
        /// One of the sizes.
        first: usize,
        /// Another size.
        second: usize,
    },
    /// A letter occurs twice in one tensor.
    #[error("letter {letter} of \"{}\" occurs twice in {tensor}", cut(.subs))]
    RepeatedLetter {
        /// The subscripts.
        subs: String,
        /// The letter.
        letter: char,
        /// Which tensor.
        tensor: Tensor,
    },
    /// A map drops a letter of an operand, or a product or a reduction has a letter only in its result.
    #[error("letter {letter} of \"{}\" occurs only in {tensor}", cut(.subs))]
    LoneLetter {
        /// The subscripts.
        subs: String,
        /// The letter.
        letter: char,
        /// Which tensor.
        tensor: Tensor,
    },
    /// Letters that are not numbered in order of first appearance, or that are too many to print.
    #[error("\"{}\" is not numbered in order of first appearance (use Subscripts::new), or has more than 52 letters", cut(.0))]
    NotCanonical(String),
    /// The result has the wrong shape.
    #[error("the result's shape should be {expected:?}, not {found:?}")]
    Shape {
        /// The shape according to the operands.
        expected: Vec<usize>,
        /// The shape according to the type.
        found: Vec<usize>,
    },
    /// A tensor has the wrong rank.
    #[error("{tensor} should be of rank {expected}, not {found}")]
    Rank {
        /// Which tensor.
        tensor: Tensor,
        /// The expected rank.
        expected: String,
        /// The actual rank.
        found: usize,
    },
    /// A tensor has the wrong element type.
    #[error("{tensor} should be {expected}, not {found}")]
    DType {
        /// Which tensor.
        tensor: Tensor,
        /// The expected element type.
        expected: String,
        /// The actual element type.
        found: DType,
    },
    /// A dimension that does not exist.
    #[error("dimension {dim} does not exist in rank {rank}")]
    NoSuchDim {
        /// The dimension.
        dim: usize,
        /// The rank.
        rank: usize,
    },
    /// Indices outside the operand.
    #[error("{what} does not fit the {size} indices of dimension {dim}")]
    Bounds {
        /// The indices.
        what: String,
        /// The dimension.
        dim: usize,
        /// Its size.
        size: usize,
    },
    /// Two shapes that must have the same elements (of a reshape, or of a type and its layout) differ in their number
    /// of elements.
    #[error("the shapes {first:?} and {second:?} differ in their number of elements")]
    Elements {
        /// One of the shapes: the layout, or the result of the reshape.
        first: Vec<usize>,
        /// The other shape: that of the type, or the operand of the reshape.
        second: Vec<usize>,
    },
    /// Updates whose shape does not match that of the indices.
    #[error("the update's shape {update:?} does not start with the shape of the index, {index:?}")]
    Leading {
        /// Shape of the index.
        index: Vec<usize>,
        /// Shape of the update.
        update: Vec<usize>,
    },
    /// An input of a partial type.
    #[error("an input is a whole value, so its type cannot be partial")]
    PartialInput,
    /// A unit of an input that is not a parameter.
    #[error("only a parameter can belong to a unit, not an input of kind {}", .0.name())]
    Unit(InputKind),
    /// A constant that changes when its terms are combined.
    #[error("the {op} of one copy per rank differs from this constant: use to_partial")]
    PartialConstant {
        /// The reduction.
        op: &'static str,
    },
    /// A redistribution over no axes.
    #[error("a redistribution needs at least one axis")]
    NoAxes,
    /// Axes that are not the last in the list of the dimension.
    #[error("dimension {dim} does not end with the axes {axes}: gather its minor-most axes, listed major to minor")]
    NotMinorMost {
        /// The dimension.
        dim: usize,
        /// The axes.
        axes: String,
    },
    /// A reduction of a value that is not partial in this way.
    #[error("the operand is not partial {op} over {axes}")]
    NotPartial {
        /// The reduction.
        op: &'static str,
        /// The axes.
        axes: String,
    },
    /// An axis along which the operand is not the same on every rank.
    #[error("the operand already varies over axis {0}")]
    NotInvariant(String),
    /// A second reduction operator in one type.
    #[error("the operand is partial {found} and cannot become partial {wanted} too")]
    OtherPartial {
        /// The operator under which the operand is partial.
        found: &'static str,
        /// The operator under which the result should be partial.
        wanted: &'static str,
    },
    /// An all-to-all within one dimension.
    #[error("an all_to_all moves axes to another dimension, not from {0} to {0}")]
    SameDim(usize),
    /// A redistribution whose result type is not the redistributed type of the operand.
    #[error("the result's type should be {expected}, not {found}")]
    Placement {
        /// The type of the operand, redistributed.
        expected: String,
        /// The result's type.
        found: String,
    },
    /// Two inputs of the same kind and name, or a parameter and a state of the same name.
    #[error("another input has the name {}", quoted(&.0.to_string()))]
    DuplicateInput(InputId),
    /// Two equal outputs.
    #[error("is defined more than once")]
    DuplicateOutput,
    /// An update of something that is not an input.
    #[error("there is no parameter or state of the name {} to update", quoted(&.0.to_string()))]
    NoSuchInput(InputId),
    /// An update whose type is not that of its input.
    #[error("the update is {found}, but its input is {expected}")]
    Update {
        /// The input's type.
        expected: String,
        /// The update's type.
        found: String,
    },
}

/// An operand or a result of an operation, by its index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tensor {
    /// An operand.
    Operand(usize),
    /// A result.
    Result(usize),
}

impl fmt::Display for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tensor::Operand(i) => write!(f, "operand {i}"),
            Tensor::Result(0) => write!(f, "the result"),
            Tensor::Result(i) => write!(f, "result {i}"),
        }
    }
}

type Check = Result<(), Malformed>;

/// Checks a whole graph.
///
/// # Errors
/// At most one fault per node, output and region, in this order. After [`MOST_FAULTS`] faults, no further nodes are
/// checked. Faults that would make others meaningless (a value or an axis that does not exist, a sharding of another
/// rank than its shape) are reported alone.
pub fn verify(graph: &Graph) -> Result<(), Vec<VerifyError>> {
    report(graph, &|n| references(graph, n), &|v| value_exists(graph, v))?;
    let mut inputs: HashMap<&InputId, NodeIndex> = HashMap::new();
    let mut duplicates: HashSet<NodeIndex> = HashSet::new();
    // A checkpoint identifies a tensor by its text alone.
    let mut kept: HashSet<String> = HashSet::new();
    for (node, id) in graph.inputs() {
        let repeated = id.is_kept() && !kept.insert(id.to_string());
        if inputs.insert(id, node).is_some() || repeated {
            duplicates.insert(node);
        }
    }
    let mut errors = report(
        graph,
        &|n| {
            let node = graph.node(n);
            node.types.iter().try_for_each(|t| check_type(t, &graph.mesh))?;
            match &node.op {
                Op::Input { id, .. } if duplicates.contains(&n) => Err(Malformed::DuplicateInput(id.clone())),
                _ => check_node(graph, n),
            }
        },
        &|_| Ok(()),
    )
    .err()
    .unwrap_or_default();
    let mut kinds: HashSet<&OutputKind> = HashSet::new();
    for output in &graph.outputs {
        let ty = graph.ty(output.value);
        let first = kinds.insert(&output.kind);
        let check = || {
            if !first {
                return Err(Malformed::DuplicateOutput);
            }
            same_elements(&output.layout, &ty.shape)?;
            let OutputKind::Update(id) = &output.kind else {
                return Ok(());
            };
            let input = inputs.get(id).filter(|_| id.is_kept()).ok_or_else(|| Malformed::NoSuchInput(id.clone()))?;
            let expected = &graph.node(*input).types[0];
            if (expected.dtype, &expected.shape) == (ty.dtype, &ty.shape) {
                return Ok(());
            }
            Err(Malformed::Update { expected: expected.display(&graph.mesh), found: ty.display(&graph.mesh) })
        };
        errors
            .extend(check().err().map(|fault| VerifyError { location: Location::Output(output.kind.clone()), fault }));
    }
    if errors.is_empty() && bytes_of_all(graph).is_none() {
        errors.push(VerifyError { location: Location::Program, fault: Malformed::AllTooLarge });
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

/// The bytes of all whole values of a graph whose types are well formed; `None` if they exceed half of what can be
/// addressed. Otherwise, the sums of aligned sizes that later passes compute do not overflow.
pub fn bytes_of_all(graph: &Graph) -> Option<usize> {
    let types = graph.nodes().flat_map(|n| &graph.node(n).types);
    let all = types.map(Type::bytes).try_fold(0usize, usize::checked_add)?;
    (all <= isize::MAX as usize / 2).then_some(all)
}

/// Runs one check on every node, and another on every value of an output or a region.
fn report(
    graph: &Graph,
    node: &dyn Fn(NodeIndex) -> Check,
    value: &dyn Fn(Value) -> Check,
) -> Result<(), Vec<VerifyError>> {
    let mut errors = Vec::new();
    for n in graph.nodes() {
        errors.extend(node(n).err().map(|fault| VerifyError { location: location(graph, n), fault }));
        if errors.len() == MOST_FAULTS {
            return Err(errors);
        }
    }
    for o in &graph.outputs {
        errors.extend(
            value(o.value).err().map(|fault| VerifyError { location: Location::Output(o.kind.clone()), fault }),
        );
    }
    for r in &graph.regions {
        let fault = r.values().find_map(|v| value(v).err());
        errors.extend(fault.map(|fault| VerifyError { location: Location::Region(r.path.clone()), fault }));
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn location(graph: &Graph, n: NodeIndex) -> Location {
    let node = graph.node(n);
    let show = |t: &Type| t.display(&graph.mesh);
    let operand = |v: &Value| graph.node(v.node).types.get(v.result as usize).map_or("?".into(), show);
    let operands = graph.operands(n);
    let more =
        |shown: Vec<String>, all: usize| [shown, if all > MOST_SHOWN { vec!["…".into()] } else { vec![] }].concat();
    let inline = |n: NodeIndex| !graph.node(n).types.is_empty() && text::is_inline(graph, n);
    Location::Node {
        index: n.index(),
        line: (!inline(n)).then(|| graph.nodes().take(n.index()).filter(|&m| !inline(m)).count()),
        op: text::operation(node, &graph.mesh),
        operands: more(operands.iter().take(MOST_SHOWN).map(operand).collect(), operands.len()),
        results: more(node.types.iter().take(MOST_SHOWN).map(show).collect(), node.types.len()),
    }
}

fn value_exists(graph: &Graph, v: Value) -> Check {
    let missing = Malformed::NoSuchValue { node: v.node.index(), result: v.result };
    let results = graph.dag().node_weight(v.node).map_or(0, |n| n.types.len());
    if (v.result as usize) < results { Ok(()) } else { Err(missing) }
}

/// Checks that everything that a node refers to exists and that its types can be printed.
fn references(graph: &Graph, n: NodeIndex) -> Check {
    let node = graph.node(n);
    let expected = node.op.results();
    if node.types.len() != expected {
        return Err(Malformed::Results { expected, found: node.types.len() });
    }
    graph.operands(n).into_iter().try_for_each(|v| value_exists(graph, v))?;
    let known = |a: AxisId| {
        if (a.0 as usize) < graph.mesh.axes().len() { Ok(()) } else { Err(Malformed::UnknownAxis(a.0)) }
    };
    for t in &node.types {
        if t.sharding.dims.len() != t.shape.len() {
            return Err(Malformed::Dims { ty: t.display(&graph.mesh), found: t.sharding.dims.len() });
        }
        t.sharding.dims.iter().flatten().copied().try_for_each(known)?;
        t.sharding.partial.iter().flat_map(|p| p.axes.iter()).try_for_each(known)?;
    }
    match &node.op {
        Op::AllReduce { axes, .. } | Op::ToPartial { axes, .. } => axes.iter().try_for_each(known),
        Op::AllGather { axes, .. }
        | Op::ReduceScatter { axes, .. }
        | Op::AllToAll { axes, .. }
        | Op::ShardSlice { axes, .. } => axes.iter().copied().try_for_each(known),
        _ => Ok(()),
    }
}

/// Checks a type on its own: it has one list of axes per dimension, each axis at most once, a partial over at least one
/// axis, and a size that can be addressed. The axes must exist.
///
/// # Errors
/// The first of these conditions that does not hold.
pub fn check_type(ty: &Type, mesh: &Mesh) -> Result<(), Malformed> {
    let show = || ty.display(mesh);
    if ty.sharding.dims.len() != ty.shape.len() {
        return Err(Malformed::Dims { ty: show(), found: ty.sharding.dims.len() });
    }
    if ty.shape.len() > MOST_DIMS {
        return Err(Malformed::TooManyDims(ty.shape.len()));
    }
    let partial = ty.sharding.partial_axes();
    let axes: Vec<AxisId> = ty.sharding.dims.iter().flatten().copied().chain(partial.iter()).collect();
    distinct(&axes, mesh, show)?;
    if ty.sharding.partial.is_some() && partial.is_empty() {
        return Err(Malformed::EmptyPartial(show()));
    }
    // A dimension of size 0 counts as 1, because products of the other dimensions are computed, too.
    let bytes = ty.shape.iter().try_fold(ty.dtype.bytes(), |n, &d| n.checked_mul(d.max(1)));
    if bytes.is_none_or(|b| b > isize::MAX as usize) {
        return Err(Malformed::TooLarge(show()));
    }
    Ok(())
}

fn distinct(axes: &[AxisId], mesh: &Mesh, within: impl Fn() -> String) -> Check {
    match axes.iter().enumerate().find(|(i, a)| axes[..*i].contains(a)) {
        Some((_, &a)) => Err(Malformed::RepeatedAxis { axis: mesh.name(a).into(), within: within() }),
        None => Ok(()),
    }
}

fn same_elements(layout: &[usize], shape: &[usize]) -> Check {
    let count = |s: &[usize]| s.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if count(layout).is_some() && count(layout) == count(shape) {
        return Ok(());
    }
    Err(Malformed::Elements { first: layout.into(), second: shape.into() })
}

fn expect_shape(expected: &[usize], ty: &Type) -> Check {
    if ty.shape == expected {
        return Ok(());
    }
    Err(Malformed::Shape { expected: expected.into(), found: ty.shape.clone() })
}

fn expect_dtype(tensor: Tensor, expected: DType, ty: &Type) -> Check {
    if ty.dtype == expected {
        return Ok(());
    }
    Err(Malformed::DType { tensor, expected: expected.to_string(), found: ty.dtype })
}

fn expect_integer(tensor: Tensor, ty: &Type) -> Check {
    if matches!(ty.dtype, DType::I64 | DType::I32 | DType::U8) {
        return Ok(());
    }
    Err(Malformed::DType { tensor, expected: "an integer".into(), found: ty.dtype })
}

fn expect_rank(tensor: Tensor, ty: &Type, expected: &str, holds: bool) -> Check {
    if holds { Ok(()) } else { Err(Malformed::Rank { tensor, expected: expected.into(), found: ty.rank() }) }
}

fn expect_dim(dim: usize, ty: &Type) -> Check {
    if dim < ty.rank() { Ok(()) } else { Err(Malformed::NoSuchDim { dim, rank: ty.rank() }) }
}

fn bounds(holds: bool, what: String, dim: usize, size: usize) -> Check {
    if holds { Ok(()) } else { Err(Malformed::Bounds { what, dim, size }) }
}

/// The shape with another size in one dimension.
fn resized(shape: &[usize], dim: usize, size: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    shape[dim] = size;
    shape
}

fn check_node(graph: &Graph, n: NodeIndex) -> Check {
    let node = graph.node(n);
    let operands: Vec<&Type> = graph.operands(n).into_iter().map(|v| graph.ty(v)).collect();
    let (least, expected) = match (&node.op, node.op.arity()) {
        (_, Some(n)) => (n, n.to_string()),
        (Op::Map { .. }, None) => (2, "2 or more".into()),
        (_, None) => (1, "1 or more".into()),
    };
    if operands.len() < least || node.op.arity().is_some() && operands.len() > least {
        return Err(Malformed::Operands { expected, found: operands.len() });
    }
    let ty = &node.types[0];
    let same_dtype = || expect_dtype(Tensor::Result(0), operands[0].dtype, ty);
    match &node.op {
        Op::Input { id, layout, unit } => {
            if ty.sharding.partial.is_some() {
                return Err(Malformed::PartialInput);
            }
            if unit.is_some() && !id.is_parameter() {
                return Err(Malformed::Unit(id.kind()));
            }
            same_elements(layout, &ty.shape)
        }
        Op::Fill(s) => check_constant(ty, Some(*s)),
        Op::Iota => {
            expect_rank(Tensor::Result(0), ty, "1", ty.rank() == 1)?;
            check_constant(ty, None)
        }
        Op::Random { .. } => {
            expect_rank(Tensor::Operand(0), operands[0], "0", operands[0].rank() == 0)?;
            check_constant(ty, None)
        }
        Op::Map { f, subs } => {
            check_map_dtypes(*f, &operands, ty)?;
            check_subscripts(subs, &operands, ty)?;
            lone(subs, false)
        }
        Op::Einsum { subs } => {
            expect_dtype(Tensor::Operand(1), operands[0].dtype, operands[1])?;
            same_dtype()?;
            check_subscripts(subs, &operands, ty)?;
            lone(subs, true)
        }
        Op::Reduce { subs, .. } => {
            same_dtype()?;
            check_subscripts(subs, &operands, ty)?;
            lone(subs, true)
        }
        Op::Reshape => {
            same_dtype()?;
            same_elements(&ty.shape, &operands[0].shape)
        }
        Op::Slice { dim, start, step } => {
            same_dtype()?;
            expect_dim(*dim, operands[0])?;
            expect_dim(*dim, ty)?;
            let (size, n) = (operands[0].shape[*dim], ty.shape[*dim]);
            expect_shape(&resized(&operands[0].shape, *dim, n), ty)?;
            let last = n.checked_sub(1).map(|n| n.saturating_mul(*step).saturating_add(*start));
            let fits = last.is_none_or(|l| l < size) && *step > 0;
            bounds(fits, format!("{n} indices from {start} by {step}"), *dim, size)
        }
        Op::Index { dim, index } => {
            same_dtype()?;
            expect_dim(*dim, operands[0])?;
            let mut shape = operands[0].shape.clone();
            let size = shape.remove(*dim);
            expect_shape(&shape, ty)?;
            bounds(*index < size, format!("index {index}"), *dim, size)
        }
        Op::Concat { dim } => {
            same_dtype()?;
            expect_dim(*dim, operands[0])?;
            for (i, t) in operands.iter().enumerate() {
                expect_dtype(Tensor::Operand(i), ty.dtype, t)?;
                expect_rank(Tensor::Operand(i), t, &ty.rank().to_string(), t.rank() == operands[0].rank())?;
            }
            let sum = operands.iter().fold(0usize, |n, t| n.saturating_add(t.shape[*dim]));
            operands.iter().try_for_each(|t| expect_shape(&resized(&t.shape, *dim, sum), ty))
        }
        Op::Pad { dim, low, .. } => {
            same_dtype()?;
            expect_dim(*dim, operands[0])?;
            expect_dim(*dim, ty)?;
            let (size, n) = (operands[0].shape[*dim], ty.shape[*dim]);
            expect_shape(&resized(&operands[0].shape, *dim, n), ty)?;
            bounds(low.saturating_add(size) <= n, format!("{low} copies before {size} indices"), *dim, n)
        }
        Op::Take => {
            let (table, index) = (operands[0], operands[1]);
            same_dtype()?;
            expect_integer(Tensor::Operand(1), index)?;
            expect_rank(Tensor::Operand(0), table, "1 or more", table.rank() > 0)?;
            expect_shape(&[&index.shape[..], &table.shape[1..]].concat(), ty)
        }
        Op::ScatterAdd => {
            let (index, update) = (operands[0], operands[1]);
            expect_dtype(Tensor::Result(0), update.dtype, ty)?;
            expect_integer(Tensor::Operand(0), index)?;
            expect_rank(Tensor::Result(0), ty, "1 or more", ty.rank() > 0)?;
            if !update.shape.starts_with(&index.shape) {
                return Err(Malformed::Leading { index: index.shape.clone(), update: update.shape.clone() });
            }
            expect_shape(&[&ty.shape[..1], &update.shape[index.rank()..]].concat(), ty)
        }
        Op::Put => {
            let (table, index, rows) = (operands[0], operands[1], operands[2]);
            same_dtype()?;
            expect_integer(Tensor::Operand(1), index)?;
            expect_dtype(Tensor::Operand(2), table.dtype, rows)?;
            expect_rank(Tensor::Operand(0), table, "1 or more", table.rank() > 0)?;
            expect_shape(&table.shape, ty)?;
            if !rows.shape.starts_with(&index.shape) {
                return Err(Malformed::Leading { index: index.shape.clone(), update: rows.shape.clone() });
            }
            expect_shape(&[&table.shape[..1], &rows.shape[index.rank()..]].concat(), ty)
        }
        Op::CumSum { dim } => {
            same_dtype()?;
            expect_dim(*dim, operands[0])?;
            expect_shape(&operands[0].shape, ty)
        }
        Op::TopK => {
            same_dtype()?;
            expect_integer(Tensor::Result(1), &node.types[1])?;
            expect_rank(Tensor::Operand(0), operands[0], "1 or more", operands[0].rank() > 0)?;
            let last = operands[0].rank() - 1;
            expect_dim(last, ty)?;
            let (size, k) = (operands[0].shape[last], ty.shape[last]);
            expect_shape(&resized(&operands[0].shape, last, k), ty)?;
            expect_shape(&ty.shape, &node.types[1])?;
            bounds(k <= size, format!("top {k}"), last, size)
        }
        Op::AllReduce { .. }
        | Op::AllGather { .. }
        | Op::ReduceScatter { .. }
        | Op::AllToAll { .. }
        | Op::ShardSlice { .. }
        | Op::ToPartial { .. } => {
            let expected = redistributed(&node.op, operands[0], &graph.mesh)?;
            if expected == *ty {
                return Ok(());
            }
            Err(Malformed::Placement { expected: expected.display(&graph.mesh), found: ty.display(&graph.mesh) })
        }
    }
}

/// Checks that a constant is partial only if combining one copy per rank gives the same constant.
fn check_constant(ty: &Type, value: Option<Scalar>) -> Check {
    let Some(p) = ty.sharding.partial else {
        return Ok(());
    };
    let idempotent = match (p.op, value.map(Scalar::as_f64)) {
        (ReduceOp::Max | ReduceOp::Min, _) => true,
        (ReduceOp::Sum, x) => x == Some(0.0),
        (ReduceOp::Prod, x) => x == Some(0.0) || x == Some(1.0),
    };
    if idempotent { Ok(()) } else { Err(Malformed::PartialConstant { op: p.op.name() }) }
}

fn check_map_dtypes(f: MapFn, operands: &[&Type], ty: &Type) -> Check {
    let like = |from: usize, rows: &[usize]| {
        rows.iter().try_for_each(|&i| expect_dtype(Tensor::Operand(i), operands[from].dtype, operands[i]))
    };
    match f {
        MapFn::Select => {
            expect_dtype(Tensor::Operand(0), DType::Bool, operands[0])?;
            like(1, &[2])?;
        }
        MapFn::Not | MapFn::And | MapFn::Or => {
            operands.iter().enumerate().try_for_each(|(i, t)| expect_dtype(Tensor::Operand(i), DType::Bool, t))?;
        }
        _ => like(0, &(1..operands.len()).collect::<Vec<_>>())?,
    }
    let dtypes: Vec<DType> = operands.iter().map(|t| t.dtype).collect();
    expect_dtype(Tensor::Result(0), f.result_dtype(&dtypes), ty)
}

fn check_subscripts(subs: &Subscripts, operands: &[&Type], ty: &Type) -> Check {
    if !subs.is_canonical() || subs.letters() > 52 {
        return Err(Malformed::NotCanonical(subs.to_string()));
    }
    if subs.operands.len() != operands.len() {
        let (expected, found) = (subs.operands.len(), operands.len());
        return Err(Malformed::SubscriptRows { subs: subs.to_string(), expected, found });
    }
    let mut sizes: HashMap<Letter, usize> = HashMap::new();
    let tensors =
        subs.operands.iter().zip(operands.iter().copied()).enumerate().map(|(i, (l, t))| (Tensor::Operand(i), l, t));
    for (tensor, letters, t) in tensors.chain([(Tensor::Result(0), &subs.result, ty)]) {
        if letters.len() != t.rank() {
            return Err(Malformed::SubscriptRank {
                subs: subs.to_string(),
                tensor,
                letters: letters.len(),
                rank: t.rank(),
            });
        }
        for (i, (&l, &n)) in letters.iter().zip(&t.shape).enumerate() {
            let (subs, letter) = (|| subs.to_string(), letter_name(l));
            if letters[..i].contains(&l) {
                return Err(Malformed::RepeatedLetter { subs: subs(), letter, tensor });
            }
            let first = *sizes.entry(l).or_insert(n);
            if first != n {
                return Err(Malformed::LetterSize { subs: subs(), letter, first, second: n });
            }
        }
    }
    Ok(())
}

/// Checks that the result of a map has all letters of the operands, and that a product or a reduction (`sums`) has no
/// letter only in its result.
fn lone(subs: &Subscripts, sums: bool) -> Check {
    let error = |l: Letter, tensor| Malformed::LoneLetter { subs: subs.to_string(), letter: letter_name(l), tensor };
    if sums {
        let invented = subs.result.iter().find(|l| !subs.operands.iter().any(|o| o.contains(l)));
        return invented.map_or(Ok(()), |&l| Err(error(l, Tensor::Result(0))));
    }
    for (i, o) in subs.operands.iter().enumerate() {
        if let Some(&l) = o.iter().find(|l| !subs.result.contains(l)) {
            return Err(error(l, Tensor::Operand(i)));
        }
    }
    Ok(())
}

/// The type of the result of a redistribution, which is the whole rule of that operation. Other operations give the
/// type of the operand.
///
/// # Errors
/// The type of the operand does not allow the redistribution.
pub fn redistributed(op: &Op, operand: &Type, mesh: &Mesh) -> Result<Type, Malformed> {
    let s = &operand.sharding;
    let list = |axes: &[AxisId]| axes_text(axes, mesh).trim_start_matches('@').to_string();
    let listed = |axes: &[AxisId]| {
        if axes.is_empty() { Err(Malformed::NoAxes) } else { distinct(axes, mesh, || list(axes)) }
    };
    let reducible = |op: ReduceOp, axes: AxisSet| {
        if s.partial.is_some_and(|p| p.op == op && p.axes.is_superset(axes)) {
            return Ok(());
        }
        Err(Malformed::NotPartial { op: op.name(), axes: list(&axes.iter().collect::<Vec<_>>()) })
    };
    let invariant = |axes: &[AxisId]| match axes.iter().find(|&&a| !s.is_invariant(a)) {
        Some(&a) => Err(Malformed::NotInvariant(mesh.name(a).into())),
        None => Ok(()),
    };
    // The sharding with the minor-most `axes` of a dimension removed.
    let stripped = |dim: usize, axes: &[AxisId]| {
        expect_dim(dim, operand)?;
        let mut s = s.clone();
        match s.dims[dim].strip_suffix(axes) {
            Some(rest) => s.dims[dim] = rest.to_vec(),
            None => return Err(Malformed::NotMinorMost { dim, axes: list(axes) }),
        }
        Ok(s)
    };
    let sharding = match op {
        Op::AllReduce { op, axes } => {
            listed(&axes.iter().collect::<Vec<_>>())?;
            reducible(*op, *axes)?;
            s.reduced(*axes)
        }
        Op::AllGather { dim, axes } => {
            listed(axes)?;
            stripped(*dim, axes)?
        }
        Op::ReduceScatter { op, dim, axes } => {
            listed(axes)?;
            expect_dim(*dim, operand)?;
            let set = axes.iter().copied().collect();
            reducible(*op, set)?;
            let mut s = s.reduced(set);
            s.dims[*dim].extend(axes);
            s
        }
        Op::AllToAll { from, to, axes } => {
            listed(axes)?;
            expect_dim(*to, operand)?;
            if from == to {
                return Err(Malformed::SameDim(*from));
            }
            let mut s = stripped(*from, axes)?;
            s.dims[*to].extend(axes);
            s
        }
        Op::ShardSlice { dim, axes } => {
            listed(axes)?;
            expect_dim(*dim, operand)?;
            invariant(axes)?;
            let mut s = s.clone();
            s.dims[*dim].extend(axes);
            s
        }
        Op::ToPartial { op, axes } => {
            let axes: Vec<AxisId> = axes.iter().collect();
            listed(&axes)?;
            invariant(&axes)?;
            let found = s.partial.map_or("", |p| p.op.name());
            s.with_partial(*op, axes.iter().copied().collect())
                .ok_or(Malformed::OtherPartial { found, wanted: op.name() })?
        }
        _ => s.clone(),
    };
    Ok(operand.placed(sharding))
}
