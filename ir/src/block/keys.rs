//! Lines without their numbers: those of operations, of module regions, of outputs and of terms of sums.

use super::label::Label;
use crate::graph::{OutputKind, Phase};
use crate::op::{Op, Scalar};
use crate::path::ModulePath;
use crate::reason::Reason;
use crate::sharding::Type;
use crate::subscripts::Letter;
use crate::{DType, MapFn};

/// The meaning of a number in a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Number<'a> {
    /// The line of a node, by its index.
    Line,
    /// A count of something.
    Label(Label<'a>),
}

/// A line without its numbers.
pub(super) trait Key {
    /// The meanings of the numbers, in order.
    fn kinds(&self) -> Vec<Number<'_>>;
}

/// An operand of a line: a result of another line, by its number among that line's results, or a scalar constant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum OperandKey {
    Line(u32),
    Scalar(DType, Scalar),
}

impl OperandKey {
    fn number<'a>(&self) -> Option<Number<'a>> {
        matches!(self, OperandKey::Line(_)).then_some(Number::Line)
    }
}

/// A line of the list of nodes. A long sum is a line without operands, whose terms are a list of their own. The numbers of a
/// line are those of its operands, then those of its input or micro-batch, of its module, of its reason, of its random stream
/// and of its unit.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct NodeKey {
    pub(super) op: Op,
    pub(super) types: Vec<Type>,
    pub(super) phase: Phase,
    pub(super) in_micro_batch: bool,
    pub(super) operands: Vec<OperandKey>,
    pub(super) module: ModulePath,
    /// Present only if lines are compared in order to be printed.
    pub(super) reason: Option<Reason>,
}

impl NodeKey {
    /// Whether this is a sum whose terms are a list of their own.
    pub(super) fn is_long_sum(&self) -> bool {
        matches!(&self.op, Op::Map { f: MapFn::Add, subs } if subs.operands.is_empty())
    }
}

impl Key for NodeKey {
    fn kinds(&self) -> Vec<Number<'_>> {
        let id = match &self.op {
            Op::Input { id, .. } => id.path(),
            _ => None,
        };
        let micro_batch = self.in_micro_batch.then_some(Label::MicroBatches);
        let before = id.into_iter().flat_map(Label::of).chain(micro_batch).chain(Label::of(&self.module));
        let reason = self.reason.iter().flat_map(Reason::paths).flat_map(Label::of);
        let stream = matches!(self.op, Op::Random { .. }).then_some(Label::Streams);
        let unit = matches!(self.op, Op::Input { unit: Some(_), .. }).then_some(Label::Units);
        let labels = before.chain(reason).chain(stream).chain(unit).map(Number::Label);
        self.operands.iter().filter_map(OperandKey::number).chain(labels).collect()
    }
}

/// A term of a sum: an operand, and the letters with which it is read. Its numbers are the line of the sum and that of the
/// operand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct TermKey {
    pub(super) operand: OperandKey,
    pub(super) letters: Vec<Letter>,
}

impl Key for TermKey {
    fn kinds(&self) -> Vec<Number<'_>> {
        std::iter::once(Number::Line).chain(self.operand.number()).collect()
    }
}

/// A value at the boundary of a module region, and its shape as the model knows it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct BoundaryKey {
    pub(super) value: OperandKey,
    pub(super) layout: Vec<usize>,
}

/// A line of the list of module regions. Its numbers are those of its values, then those of its path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RegionKey {
    pub(super) path: ModulePath,
    pub(super) arguments: Vec<BoundaryKey>,
    pub(super) results: Vec<BoundaryKey>,
}

impl Key for RegionKey {
    fn kinds(&self) -> Vec<Number<'_>> {
        let values = self.arguments.iter().chain(&self.results).filter_map(|boundary| boundary.value.number());
        values.chain(Label::of(&self.path).map(Number::Label)).collect()
    }
}

/// A line of the list of outputs. Its numbers are that of its value, then those of its path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct OutputKey {
    pub(super) kind: OutputKind,
    pub(super) layout: Vec<usize>,
    pub(super) operand: OperandKey,
}

impl Key for OutputKey {
    fn kinds(&self) -> Vec<Number<'_>> {
        let path = match &self.kind {
            OutputKind::Gradient(path) => Some(path),
            OutputKind::Update(id) => id.path(),
            OutputKind::Result(_) | OutputKind::Loss => None,
        };
        self.operand.number().into_iter().chain(path.into_iter().flat_map(Label::of).map(Number::Label)).collect()
    }
}

/// The output with its path replaced by the result of `change`; `None` if `change` returns `None`.
pub(super) fn map_path(
    kind: &OutputKind,
    change: impl FnOnce(&ModulePath) -> Option<ModulePath>,
) -> Option<OutputKind> {
    Some(match kind {
        OutputKind::Gradient(path) => OutputKind::Gradient(change(path)?),
        OutputKind::Update(id) => match id.path() {
            Some(path) => {
                let changed = change(path)?;
                OutputKind::Update(id.map_path(|_| changed))
            }
            None => kind.clone(),
        },
        OutputKind::Result(_) | OutputKind::Loss => kind.clone(),
    })
}
