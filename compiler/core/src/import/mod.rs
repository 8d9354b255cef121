//! Imports a captured burn graph into tpc's IR: the `captured` stage.
//!
//! The import is nearly one to one. Broadcasts of extent 1 become subscripts (after a reshape that drops the extent),
//! composite operations become primitives, and everything that burn computes while recording (which extents repeat,
//! where a slice starts) becomes an attribute. Canonicalization is a later pass.

mod attention;
mod calls;
mod convolution;
mod elementwise;
mod index;
mod norm;
mod pooling;
mod product;
mod reduce;
mod shape;
mod window;

use crate::capture::{Captured, InputKind as CapturedKind, OutputKind as CapturedOutput, operation_name};
use burn::tensor::{DType as BurnDType, TensorData};
use burn_ir::{FloatOperationIr, NumericOperationIr, OperationIr, ScalarIr, TensorIr};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use tpc_ir::{
    Boundary, DType, Graph, InputId, InputKind, MapFn, Mesh, ModulePath, Op, Origin, Output, OutputKind, Phase, Region,
    Scalar, Segment, Subscripts, Type, UnitId, Value,
};

/// Why a captured graph cannot be imported.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// An operation has no counterpart.
    #[error("the model{} uses `{operation}`, which tpc cannot shard yet: {hint}", at(.module))]
    Unsupported {
        /// burn's name of the operation.
        operation: String,
        /// The module; the root if it is unknown.
        module: ModulePath,
        /// What is not supported about it.
        hint: String,
    },
    /// An element type has no counterpart.
    #[error("element type {dtype}{} is not supported: use f32, f64, bf16, f16, i64, i32, u8 or bool", of(.place))]
    DType {
        /// burn's name of it.
        dtype: String,
        /// The input, or the operation with its module; empty if unknown.
        place: String,
    },
}

impl ImportError {
    /// Adds the place of an element type to the error.
    fn at(self, place: String) -> Self {
        match self {
            ImportError::DType { dtype, .. } => ImportError::DType { dtype, place },
            other => other,
        }
    }
}

fn at(module: &ModulePath) -> String {
    if module.is_root() { String::new() } else { format!(" (in `{module}`)") }
}

fn of(place: &str) -> String {
    if place.is_empty() { String::new() } else { format!(" of {place}") }
}

/// A program with its captured constants.
#[derive(Clone, Debug)]
pub struct Imported {
    /// The `captured` stage.
    pub graph: Graph,
    /// Values of the constant inputs by name.
    pub constants: HashMap<String, TensorData>,
}

/// A signature shared by several programs of one session: every input of any of them, in order, so that all of them
/// keep parameters and state in the same places.
#[derive(Clone, Debug, Default)]
pub struct Signature {
    inputs: Vec<SignatureInput>,
    constants: HashMap<String, TensorData>,
}

#[derive(Clone, Debug)]
struct SignatureInput {
    id: InputId,
    ty: Type,
    unit: Option<UnitId>,
}

impl Signature {
    /// The inputs of several captures without duplicates, by kind and then in order of appearance.
    ///
    /// # Errors
    /// An element type that the IR lacks.
    pub fn of<'a>(captures: impl IntoIterator<Item = &'a Captured>) -> Result<Self, ImportError> {
        Signature::with_constants(HashMap::new(), captures)
    }

    /// [`Signature::of`] for a session that already has constants: equal constants have the same name.
    ///
    /// # Errors
    /// The errors of [`Signature::of`].
    pub fn with_constants<'a>(
        constants: HashMap<String, TensorData>,
        captures: impl IntoIterator<Item = &'a Captured>,
    ) -> Result<Self, ImportError> {
        let mut signature = Signature { constants, ..Signature::default() };
        let mut known: HashSet<InputId> = HashSet::new();
        for captured in captures {
            for input in captured.inputs.iter().filter(|i| !counts(&i.kind)) {
                let id = signature.id(&input.kind);
                let dtype = dtype(input.dtype).map_err(|e| e.at(format!("input `{id}`")))?;
                let ty = Type::new(dtype, input.shape.clone());
                let unit = match &input.kind {
                    CapturedKind::Parameter { unit, .. } => *unit,
                    _ => None,
                };
                if known.insert(id.clone()) {
                    signature.inputs.push(SignatureInput { id, ty, unit });
                }
            }
            let seed = seed();
            if captured.graph.operations.iter().any(draws) && known.insert(seed.clone()) {
                signature.inputs.push(SignatureInput { id: seed, ty: Type::new(DType::I64, []), unit: None });
            }
        }
        signature.inputs.sort_by_key(|input| input.id.kind());
        Ok(signature)
    }

    fn id(&mut self, kind: &CapturedKind) -> InputId {
        match kind {
            CapturedKind::Parameter { path, .. } => InputId::Parameter(path.clone()),
            CapturedKind::State { parameter, name } => state(parameter, name),
            CapturedKind::Data { name } => InputId::Data(name.as_str().into()),
            CapturedKind::StepScalar { index } => InputId::Scalar(step().with(Segment::Index(*index))),
            CapturedKind::Constant { data } => {
                let same = self.constants.iter().find(|(_, d)| *d == data).map(|(n, _)| n.clone());
                let name = same.unwrap_or_else(|| format!("constant.{}", self.constants.len()));
                let id = InputId::read(InputKind::Constant, &name);
                self.constants.entry(name).or_insert_with(|| data.clone());
                id
            }
        }
    }
}

/// Whether an operation draws random elements.
fn draws(op: &OperationIr) -> bool {
    let is_drawn = |op: &NumericOperationIr| matches!(op, NumericOperationIr::IntRandom(_));
    match op {
        OperationIr::NumericFloat(_, op) | OperationIr::NumericInt(_, op) => is_drawn(op),
        OperationIr::Float(_, op) => matches!(op, FloatOperationIr::Random(_)),
        _ => false,
    }
}

/// The path of the scalars of a step.
fn step() -> ModulePath {
    ModulePath::default().named("step")
}

/// The input that seeds random operations; its value is the step number.
pub fn seed() -> InputId {
    InputId::Seed(step().named("seed"))
}

/// A step scalar's position in the result of [`StepScalars::values`](crate::capture::StepScalars::values).
pub(crate) fn step_scalar(id: &InputId) -> Option<usize> {
    match id {
        InputId::Scalar(path) => path.indices().next(),
        _ => None,
    }
}

/// Whether a constant is `0, 1, 2, …`, that is, positions. They are computed where they are read, so they take no
/// memory, and the elements that a positional mask hides are known at compile time.
fn counts(kind: &CapturedKind) -> bool {
    let CapturedKind::Constant { data } = kind else { return false };
    let long = |data: &[i64]| data.iter().zip(0..).all(|(&x, i)| x == i);
    let short = |data: &[i32]| data.iter().zip(0..).all(|(&x, i)| x == i);
    let counted = data.as_slice::<i64>().is_ok_and(long) || data.as_slice::<i32>().is_ok_and(short);
    data.shape().len() == 1 && data.num_elements() > 1 && counted
}

/// The input of an optimizer state, in text `layer.weight/momentum.moment_1`.
pub fn state(parameter: &ModulePath, name: &str) -> InputId {
    InputId::State { owner: parameter.clone(), name: name.into() }
}

/// Imports one captured program with a signature of its own inputs.
///
/// # Errors
/// An operation or element type that the IR lacks.
pub fn import(captured: &Captured) -> Result<Imported, ImportError> {
    import_with(captured, &Signature::of([captured])?)
}

/// Imports a captured program with a signature that it shares with others.
///
/// # Errors
/// An operation or element type that the IR lacks.
pub fn import_with(captured: &Captured, signature: &Signature) -> Result<Imported, ImportError> {
    let mut signature = signature.clone();
    let mut b = Builder {
        graph: Graph::new(Mesh::single()),
        values: HashMap::new(),
        origin: Origin::default(),
        seed: None,
        streams: 0,
        operation: String::new(),
        calls: Vec::new(),
    };
    let mut given = HashMap::new();
    for SignatureInput { id, ty, unit } in &signature.inputs {
        let op = Op::Input { id: id.clone(), layout: ty.shape.clone(), unit: *unit };
        let value = b.graph.push(op, &[], ty.clone(), &Origin::default());
        given.insert(id.clone(), value);
    }
    b.seed = given.get(&seed()).copied();
    for input in &captured.inputs {
        let value = if counts(&input.kind) {
            let ty = Type::new(dtype(input.dtype)?, input.shape.clone());
            b.graph.push(Op::Iota, &[], ty, &Origin::default())
        } else {
            given[&signature.id(&input.kind)]
        };
        b.values.insert(input.id.value(), value);
    }
    let modules = modules(captured);
    for (i, op) in captured.graph.operations.iter().enumerate() {
        let module = modules[i].map(|scope| captured.scopes[scope].path.clone()).unwrap_or_default();
        b.origin = Origin { phase: phase(captured, i), module, ..Origin::default() };
        b.operation = operation_name(op).to_string();
        b.operation(op)?;
    }
    outputs(captured, &mut b);
    let marked: Vec<Region> = captured
        .scopes
        .iter()
        .map(|s| {
            let boundary = |id: &burn_ir::TensorId| Some(Boundary::of(&b.graph, *b.values.get(&id.value())?));
            let values = |ids: &[burn_ir::TensorId]| ids.iter().filter_map(boundary).collect();
            Region { path: s.path.clone(), arguments: values(&s.arguments), results: values(&s.results) }
        })
        .collect();
    let unmarked = b.regions_of_calls(&marked);
    b.graph.regions = marked.into_iter().chain(unmarked).collect();
    Ok(Imported { graph: b.graph, constants: signature.constants })
}

/// The phase of an operation.
fn phase(captured: &Captured, operation: usize) -> Phase {
    match operation {
        i if i < captured.forward_end => Phase::Forward,
        i if i < captured.backward_end => Phase::Backward,
        _ => Phase::Optimizer,
    }
}

/// For each operation, the innermost marked region around it. Of regions with the same operations, the one that was
/// entered first is taken.
fn modules(captured: &Captured) -> Vec<Option<usize>> {
    let mut modules = vec![None; captured.graph.operations.len()];
    let mut outer_first: Vec<usize> = (0..captured.scopes.len()).collect();
    outer_first.sort_by_key(|&scope| Reverse((captured.scopes[scope].operations.len(), scope)));
    for scope in outer_first {
        modules[captured.scopes[scope].operations.clone()].fill(Some(scope));
    }
    modules
}

fn outputs(captured: &Captured, b: &mut Builder) {
    for output in &captured.outputs {
        let kind = match &output.kind {
            CapturedOutput::Output { name } => OutputKind::Result(name.clone()),
            CapturedOutput::Loss => OutputKind::Loss,
            CapturedOutput::Parameter { path } => OutputKind::Update(InputId::Parameter(path.clone())),
            CapturedOutput::State { parameter, name } => OutputKind::Update(state(parameter, name)),
            CapturedOutput::Gradient { path } => OutputKind::Gradient(path.clone()),
        };
        let value = b.values[&output.id.value()];
        let layout = b.graph.ty(value).shape.clone();
        b.graph.outputs.push(Output { kind, value, layout });
    }
}

/// The IR's element type for burn's.
pub fn dtype(dtype: BurnDType) -> Result<DType, ImportError> {
    Ok(match dtype {
        BurnDType::F64 => DType::F64,
        BurnDType::F32 | BurnDType::Flex32 => DType::F32,
        BurnDType::BF16 => DType::BF16,
        BurnDType::F16 => DType::F16,
        BurnDType::I64 => DType::I64,
        BurnDType::I32 => DType::I32,
        BurnDType::U8 => DType::U8,
        BurnDType::Bool(_) => DType::Bool,
        other => return Err(ImportError::DType { dtype: format!("{other:?}"), place: String::new() }),
    })
}

struct Builder {
    graph: Graph,
    values: HashMap<u64, Value>,
    origin: Origin,
    seed: Option<Value>,
    streams: u64,
    operation: String,
    /// Convolutions of the forward pass.
    calls: Vec<calls::Call>,
}

type Imports = Result<(), ImportError>;

impl Builder {
    fn operation(&mut self, op: &OperationIr) -> Imports {
        match op {
            OperationIr::BaseFloat(op) | OperationIr::BaseInt(op) | OperationIr::BaseBool(op) => self.base(op),
            OperationIr::NumericFloat(_, op) | OperationIr::NumericInt(_, op) => self.numeric(op),
            OperationIr::Float(_, op) => self.float(op),
            OperationIr::Int(op) => self.int(op),
            OperationIr::Bool(op) => self.bool(op),
            OperationIr::Activation(op) => self.activation(op),
            OperationIr::Module(op) => self.module(op),
            OperationIr::Drop(_) => Ok(()),
            OperationIr::Init(_) | OperationIr::Custom(_) | OperationIr::Distributed(_) => {
                Err(self.unsupported("it runs outside of the graph"))
            }
        }
    }

    fn unsupported(&self, hint: &str) -> ImportError {
        ImportError::Unsupported {
            operation: self.operation.clone(),
            module: self.origin.module.clone(),
            hint: hint.into(),
        }
    }

    fn get(&self, t: &TensorIr) -> Value {
        self.values[&t.id.value()]
    }

    fn ty(&self, t: &TensorIr) -> Result<Type, ImportError> {
        let place = |e: ImportError| e.at(format!("a result of `{}`{}", self.operation, at(&self.origin.module)));
        Ok(Type::new(dtype(t.dtype).map_err(place)?, t.shape.to_vec()))
    }

    fn set(&mut self, out: &TensorIr, value: Value) -> Imports {
        let value = self.reshaped(value, &out.shape.to_vec());
        debug_assert_eq!(self.graph.ty(value).shape, out.shape.to_vec());
        self.values.insert(out.id.value(), value);
        Ok(())
    }

    fn shape(&self, v: Value) -> Vec<usize> {
        self.graph.ty(v).shape.clone()
    }

    fn push(&mut self, op: Op, operands: &[Value], ty: Type) -> Value {
        let origin = self.origin.clone();
        self.graph.push(op, operands, ty, &origin)
    }

    fn reshaped(&mut self, v: Value, shape: &[usize]) -> Value {
        if self.shape(v) == shape {
            return v;
        }
        let ty = Type::new(self.graph.ty(v).dtype, shape);
        self.push(Op::Reshape, &[v], ty)
    }

    fn constant(&mut self, dtype: DType, x: f64) -> Value {
        let origin = self.origin.clone();
        self.graph.scalar(dtype, x, &origin)
    }

    fn filled(&mut self, ty: Type, x: f64) -> Value {
        self.push(Op::Fill(Scalar::of(ty.dtype, x)), &[], ty)
    }

    /// Applies a function to values that burn broadcasts to `shape`: repeated extents of 1 are dropped.
    fn broadcast(&mut self, f: MapFn, operands: &[Value], shape: &[usize]) -> Value {
        let mut rows = Vec::new();
        let mut values = Vec::new();
        for &v in operands {
            let from = self.shape(v);
            let lead = shape.len() - from.len();
            let kept: Vec<usize> = (0..from.len()).filter(|&d| from[d] == shape[lead + d]).collect();
            let narrow: Vec<usize> = kept.iter().map(|&d| from[d]).collect();
            values.push(self.reshaped(v, &narrow));
            rows.push(kept.iter().map(|&d| (lead + d) as u8).collect::<Vec<u8>>());
        }
        let letters: Vec<u8> = (0..shape.len() as u8).collect();
        let dtypes: Vec<DType> = values.iter().map(|&v| self.graph.ty(v).dtype).collect();
        let ty = Type::new(f.result_dtype(&dtypes), shape);
        self.push(Op::Map { f, subs: Subscripts::new(&rows, &letters) }, &values, ty)
    }

    /// Applies a function to a value and a constant of its element type.
    fn with(&mut self, f: MapFn, v: Value, x: f64) -> Value {
        let c = self.constant(self.graph.ty(v).dtype, x);
        let origin = self.origin.clone();
        self.graph.map(f, &[v, c], &origin)
    }

    fn map(&mut self, f: MapFn, operands: &[Value]) -> Value {
        let origin = self.origin.clone();
        self.graph.map(f, operands, &origin)
    }

    /// Permutes dimensions: the operand's dimension `order[i]` becomes dimension i.
    fn transposed(&mut self, v: Value, order: &[usize]) -> Value {
        let from = self.graph.ty(v).clone();
        let all: Vec<u8> = (0..from.rank() as u8).collect();
        let result: Vec<u8> = order.iter().map(|&d| d as u8).collect();
        let shape: Vec<usize> = order.iter().map(|&d| from.shape[d]).collect();
        let subs = Subscripts::new(&[all], &result);
        self.push(Op::Map { f: MapFn::Identity, subs }, &[v], Type::new(from.dtype, shape))
    }

    /// Slices one dimension.
    fn sliced(&mut self, v: Value, dim: usize, start: usize, len: usize, step: usize) -> Value {
        let mut ty = self.graph.ty(v).clone();
        if start == 0 && len == ty.shape[dim] && step == 1 {
            return v;
        }
        ty.shape[dim] = len;
        let ty = Type::new(ty.dtype, ty.shape);
        self.push(Op::Slice { dim, start, step }, &[v], ty)
    }

    /// Pads one dimension with a constant.
    fn padded(&mut self, v: Value, dim: usize, low: usize, high: usize, x: f64) -> Value {
        if low + high == 0 {
            return v;
        }
        let mut ty = self.graph.ty(v).clone();
        ty.shape[dim] += low + high;
        let ty = Type::new(ty.dtype, ty.shape);
        self.push(Op::Pad { dim, low, value: Scalar::of(ty.dtype, x) }, &[v], ty)
    }
}

fn scalar(s: &ScalarIr) -> f64 {
    match s {
        ScalarIr::Float(x) => *x,
        ScalarIr::Int(x) => *x as f64,
        ScalarIr::UInt(x) => *x as f64,
        ScalarIr::Bool(x) => f64::from(*x),
    }
}
