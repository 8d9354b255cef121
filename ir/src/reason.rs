//! Reasons: why an operation exists, as data. The text form prints a reason as words, and only the parsers of programs
//! read these words back.
//!
//! ```
//! use tpc_ir::reason::{Cause, Demand, Entry, Reason};
//! let reason = Reason::read("mlp.down.weight is cut along the summed index (plan \"tp\"); rule 7");
//! assert_eq!(reason.causes()[1], Cause::Rule(7));
//! let entry = Demand::Plan(Entry::of("tp"));
//! assert!(matches!(&reason.causes()[0], Cause::Summed(cut) if cut.demand == entry));
//! ```

use crate::DType;
use crate::input::{InputKind, Shown};
use crate::mesh::is_name;
use crate::path::ModulePath;
use std::fmt;
use std::sync::Arc;

/// An entry of a plan.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A built-in plan, which applies to the whole model, by its name.
    BuiltIn(Arc<str>),
    /// The entry for the module at a path.
    Module(ModulePath),
    /// The entry for a pattern of paths.
    Pattern(Arc<str>),
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entry::BuiltIn(name) => write!(f, "plan {name}"),
            Entry::Module(path) => write!(f, "plan {:?}", path.to_string()),
            Entry::Pattern(pattern) => write!(f, "plan {pattern:?}"),
        }
    }
}

impl Entry {
    /// The entry of a pattern, which is a path if it has no wildcards.
    pub fn of(pattern: &str) -> Entry {
        let path = ModulePath::from(pattern);
        if path.to_string() == pattern { Entry::Module(path) } else { Entry::Pattern(pattern.into()) }
    }

    fn map_paths(&self, change: &mut impl FnMut(&ModulePath) -> ModulePath) -> Entry {
        match self {
            Entry::Module(path) => Entry::Module(change(path)),
            other => other.clone(),
        }
    }

    fn read(text: &str) -> Option<Entry> {
        let name = text.strip_prefix("plan ")?;
        match name.strip_prefix('"') {
            Some(rest) => Some(Entry::of(&unquoted(rest.strip_suffix('"')?)?)),
            None => is_word(name).then(|| Entry::BuiltIn(name.into())),
        }
    }
}

/// Whether a text can be the name of a built-in plan or of an operation.
fn is_word(text: &str) -> bool {
    !text.is_empty() && text.chars().all(|c| c.is_alphanumeric() || "_.-".contains(c))
}

/// The text with the escapes of `{:?}` undone; `None` if it has a quotation mark or an unknown escape.
fn unquoted(text: &str) -> Option<String> {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        out.push(match c {
            '"' => return None,
            '\\' => match chars.next()? {
                'n' => '\n',
                't' => '\t',
                'r' => '\r',
                '0' => '\0',
                c @ ('\\' | '"' | '\'') => c,
                'u' => {
                    let (code, rest) = chars.as_str().strip_prefix('{')?.split_once('}')?;
                    chars = rest.chars();
                    char::from_u32(u32::from_str_radix(code, 16).ok()?)?
                }
                _ => return None,
            },
            c => c,
        });
    }
    Some(out)
}

/// A data mode, by what it shards in addition to the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Mode {
    Ddp,
    Fsdp,
    Zero1,
    Hsdp,
}

impl Mode {
    /// Every mode.
    pub const ALL: [Mode; 4] = [Mode::Ddp, Mode::Fsdp, Mode::Zero1, Mode::Hsdp];

    /// The name used in plan files.
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Ddp => "ddp",
            Mode::Fsdp => "fsdp",
            Mode::Zero1 => "zero1",
            Mode::Hsdp => "hsdp",
        }
    }
}

/// A side of the boundary of a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// The tensor arguments of the module.
    Arguments,
    /// The tensor results of the module.
    Results,
}

impl Side {
    /// The word for one value on this side.
    pub const fn one(self) -> &'static str {
        match self {
            Side::Arguments => "argument",
            Side::Results => "result",
        }
    }
}

/// The names of axes in a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Axes(pub Vec<Arc<str>>);

impl fmt::Display for Axes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0.join(","))
    }
}

impl Axes {
    fn read(text: &str) -> Option<Axes> {
        let names = text.strip_prefix('`')?.strip_suffix('`')?;
        if names.is_empty() {
            return Some(Axes(Vec::new()));
        }
        names.split(',').map(|name| is_name(name).then(|| Arc::from(name))).collect::<Option<_>>().map(Axes)
    }
}

/// A demand of a plan, a mode or an option.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Demand {
    /// An entry of a plan shards a parameter.
    Plan(Entry),
    /// An entry of a plan gives a layout to a value at the boundary of a module.
    Layout {
        /// The entry.
        entry: Entry,
        /// The side of the boundary.
        side: Side,
        /// The index of the value on this side.
        position: usize,
        /// The dimension that is sharded; `None` if the layout is replicated.
        dim: Option<isize>,
    },
    /// Logits stay sharded through the loss.
    LossParallel,
    /// A data mode shards over axes.
    Mode(Mode, Axes),
    /// The batch is sharded over axes.
    Batch(Axes),
    /// A tensor that a program keeps is placed like the rows that are written into it.
    Rows,
    /// The precision option makes the program compute in an element type.
    Compute(DType),
    /// An input of some kind is placed as in the training step of the same session.
    Training(InputKind),
    /// The results of several micro-batches are combined.
    MicroBatches,
    /// Gradients are clipped.
    Clipping,
    /// Any other words in the text of a program. No pass writes them.
    Note(Arc<str>),
}

const LOSS_PARALLEL: &str = "loss_parallel: logits stay sharded";
const BATCH: &str = "the batch is sharded over ";
const SHARDED: &str = ": sharded over ";
const ROWS: &str = "lies like the rows that are written into it";
const COMPUTE: &str = " compute";
const TRAINING: &str = " lies there in training";
const MICRO_BATCHES: &str = "over the micro-batches";
const CLIPPING: &str = "clipping by global norm";

impl fmt::Display for Demand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Demand::Plan(entry) => entry.fmt(f),
            Demand::Layout { entry, side, position, dim: Some(dim) } => {
                write!(f, "{entry}: {} {position} is Shard({dim})", side.one())
            }
            Demand::Layout { entry, side, position, dim: None } => {
                write!(f, "{entry}: {} {position} is Replicate", side.one())
            }
            Demand::LossParallel => f.write_str(LOSS_PARALLEL),
            Demand::Mode(mode, axes) => write!(f, "{}{SHARDED}{axes}", mode.name()),
            Demand::Batch(axes) => write!(f, "{BATCH}{axes}"),
            Demand::Rows => f.write_str(ROWS),
            Demand::Compute(dtype) => write!(f, "{dtype}{COMPUTE}"),
            Demand::Training(kind) => write!(f, "the {}{TRAINING}", kind.name()),
            Demand::MicroBatches => f.write_str(MICRO_BATCHES),
            Demand::Clipping => f.write_str(CLIPPING),
            Demand::Note(words) => f.write_str(words),
        }
    }
}

impl Demand {
    /// Reads what [`Display`](fmt::Display) writes; any other text is a note.
    fn read(text: &str) -> Demand {
        let known = [Demand::LossParallel, Demand::Rows, Demand::MicroBatches, Demand::Clipping];
        let mut found = known.into_iter().find(|demand| demand.to_string() == text);
        found = found.or_else(|| Entry::read(text).map(Demand::Plan)).or_else(|| Demand::layout(text));
        found = found.or_else(|| Axes::read(text.strip_prefix(BATCH)?).map(Demand::Batch)).or_else(|| {
            let (mode, axes) = text.split_once(SHARDED)?;
            Some(Demand::Mode(Mode::ALL.into_iter().find(|m| m.name() == mode)?, Axes::read(axes)?))
        });
        found = found.or_else(|| DType::from_name(text.strip_suffix(COMPUTE)?).map(Demand::Compute));
        found = found.or_else(|| {
            let kind = text.strip_prefix("the ")?.strip_suffix(TRAINING)?;
            InputKind::from_name(kind).map(Demand::Training)
        });
        found.filter(|demand| demand.to_string() == text).unwrap_or_else(|| Demand::Note(text.into()))
    }

    fn entry(&self) -> Option<&Entry> {
        match self {
            Demand::Plan(entry) | Demand::Layout { entry, .. } => Some(entry),
            _ => None,
        }
    }

    fn map_paths(&self, change: &mut impl FnMut(&ModulePath) -> ModulePath) -> Demand {
        match self {
            Demand::Plan(entry) => Demand::Plan(entry.map_paths(change)),
            Demand::Layout { entry, side, position, dim } => {
                Demand::Layout { entry: entry.map_paths(change), side: *side, position: *position, dim: *dim }
            }
            other => other.clone(),
        }
    }

    fn layout(text: &str) -> Option<Demand> {
        let (entry, rest) = text.rsplit_once(": ")?;
        let (value, layout) = rest.split_once(" is ")?;
        let (side, position) = value.split_once(' ')?;
        let side = [Side::Arguments, Side::Results].into_iter().find(|s| s.one() == side)?;
        let dim = match layout {
            "Replicate" => None,
            layout => Some(layout.strip_prefix("Shard(")?.strip_suffix(')')?.parse().ok()?),
        };
        Some(Demand::Layout { entry: Entry::read(entry)?, side, position: position.parse().ok()?, dim })
    }
}

/// Tensors that are sharded because of one demand.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// The first [`Cut::NAMED`] of them. Each is an input of the program, or the module whose result is sharded.
    pub tensors: Vec<Shown>,
    /// The number of the other tensors.
    pub others: usize,
    /// Why they are sharded.
    pub demand: Demand,
}

impl Cut {
    /// The maximum number of tensors that are named.
    pub const NAMED: usize = 4;

    fn print(&self, f: &mut fmt::Formatter<'_>, how: &str) -> fmt::Result {
        let names = |all: &[Shown]| all.iter().map(Shown::to_string).collect::<Vec<_>>().join(", ");
        match (&self.tensors[..], self.others) {
            ([one], 0) => write!(f, "{one} is {how} ({})", self.demand),
            ([before @ .., last], 0) => write!(f, "{} and {last} are {how} ({})", names(before), self.demand),
            (all, others) => write!(f, "{} and {others} more are {how} ({})", names(all), self.demand),
        }
    }

    fn read(text: &str, how: &str) -> Option<Cut> {
        let text = text.strip_suffix(')')?;
        let cut = |tensors: Vec<&str>, others, demand: &str| {
            let tensors = tensors.into_iter().map(Shown::read).collect();
            Some(Cut { tensors, others, demand: Demand::read(demand) })
        };
        // Names of tensors have no spaces.
        let (first, rest) = text.split_once(' ')?;
        if let Some(demand) = rest.strip_prefix(&format!("is {how} (")) {
            return cut(vec![first], 0, demand);
        }
        let (tensors, demand) = text.split_once(&format!(" are {how} ("))?;
        let (before, last) = tensors.rsplit_once(" and ")?;
        let mut tensors: Vec<&str> = before.split(", ").collect();
        match last.strip_suffix(" more").and_then(|n| n.parse().ok()) {
            Some(others) => cut(tensors, others, demand),
            None => {
                tensors.push(last);
                cut(tensors, 0, demand)
            }
        }
    }
}

/// One cause in a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// These tensors are sharded along a summed index, so each rank computes only a term of the sum.
    Summed(Cut),
    /// These tensors are sharded, but they are needed whole or sharded differently.
    Elsewhere(Cut),
    /// An operation, given by its name, needs its operands placed alike.
    Together(Arc<str>),
    /// The value is placed like a parameter.
    Like(ModulePath),
    /// A rule of the e-graph put it there (`passes/src/egraph/rules/RULES.md`).
    Rule(u32),
    /// A parameter is gathered a second time, for a later phase of the step.
    SecondGather,
    /// A value of the forward pass is computed a second time, for the backward pass.
    Recomputed,
    /// A plan, a data mode or an option asks for it.
    Demanded(Demand),
    /// A demand that concerns one axis, for a tensor that several demands shard.
    On {
        /// The name that the user gave the axis.
        axis: Arc<str>,
        /// Why the tensor is sharded along it.
        demand: Demand,
    },
}

const SUMMED: &str = "cut along the summed index";
const ELSEWHERE: &str = "cut";
const TOGETHER: &str = " wants its operands together";
const LIKE: &str = "lies like ";
const RULE: &str = "rule ";
const SECOND_GATHER: &str = "gathered again";
const RECOMPUTED: &str = "recomputed";

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Summed(cut) => cut.print(f, SUMMED),
            Cause::Elsewhere(cut) => cut.print(f, ELSEWHERE),
            Cause::Together(operation) => write!(f, "{operation}{TOGETHER}"),
            Cause::Like(parameter) => write!(f, "{LIKE}{parameter}"),
            Cause::Rule(number) => write!(f, "{RULE}{number}"),
            Cause::SecondGather => f.write_str(SECOND_GATHER),
            Cause::Recomputed => f.write_str(RECOMPUTED),
            Cause::Demanded(demand) => demand.fmt(f),
            Cause::On { axis, demand } => write!(f, "`{axis}`: {demand}"),
        }
    }
}

impl From<Demand> for Cause {
    fn from(demand: Demand) -> Self {
        Cause::Demanded(demand)
    }
}

impl Cause {
    /// Reads one cause. A text that is no other cause is a demand.
    fn read(text: &str) -> Cause {
        let found = Cut::read(text, SUMMED)
            .map(Cause::Summed)
            .or_else(|| Cut::read(text, ELSEWHERE).map(Cause::Elsewhere))
            .or_else(|| text.strip_suffix(TOGETHER).filter(|op| is_word(op)).map(|op| Cause::Together(op.into())))
            .or_else(|| {
                let path = text.strip_prefix(LIKE)?;
                (!path.contains(' ')).then(|| Cause::Like(path.into()))
            })
            .or_else(|| text.strip_prefix(RULE)?.parse().ok().map(Cause::Rule))
            .or_else(|| (text == SECOND_GATHER).then_some(Cause::SecondGather))
            .or_else(|| (text == RECOMPUTED).then_some(Cause::Recomputed))
            .or_else(|| {
                let (axis, words) = text.strip_prefix('`')?.split_once("`: ")?;
                is_name(axis).then(|| Cause::On { axis: axis.into(), demand: Demand::read(words) })
            });
        found.filter(|cause| cause.to_string() == text).unwrap_or_else(|| Demand::read(text).into())
    }

    /// The same cause with every path in it replaced by the result of `change`.
    fn map_paths(&self, change: &mut impl FnMut(&ModulePath) -> ModulePath) -> Cause {
        let mut cut = |cut: &Cut| {
            let tensors = cut.tensors.iter().map(|t| Shown { of: change(&t.of), state: t.state.clone() }).collect();
            Cut { tensors, others: cut.others, demand: cut.demand.map_paths(change) }
        };
        match self {
            Cause::Summed(c) => Cause::Summed(cut(c)),
            Cause::Elsewhere(c) => Cause::Elsewhere(cut(c)),
            Cause::Like(path) => Cause::Like(change(path)),
            Cause::Demanded(demand) => Cause::Demanded(demand.map_paths(change)),
            Cause::On { axis, demand } => Cause::On { axis: axis.clone(), demand: demand.map_paths(change) },
            other => other.clone(),
        }
    }

    /// The paths in the cause, in the order in which [`Cause::map_paths`] visits them.
    fn paths(&self) -> Vec<&ModulePath> {
        let (mut paths, demand): (Vec<&ModulePath>, _) = match self {
            Cause::Summed(cut) | Cause::Elsewhere(cut) => {
                (cut.tensors.iter().map(|tensor| &tensor.of).collect(), Some(&cut.demand))
            }
            Cause::Like(path) => (vec![path], None),
            Cause::Demanded(demand) | Cause::On { demand, .. } => (Vec::new(), Some(demand)),
            Cause::Together(_) | Cause::Rule(_) | Cause::SecondGather | Cause::Recomputed => (Vec::new(), None),
        };
        if let Some(Entry::Module(path)) = demand.and_then(Demand::entry) {
            paths.push(path);
        }
        paths
    }
}

/// The separator of the causes of a reason.
const BETWEEN: &str = "; ";

/// Why a pass added an operation or chose its placement; empty for the operations of the model.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reason(Arc<[Cause]>);

impl Reason {
    /// The causes, in the order in which they are printed.
    pub fn causes(&self) -> &[Cause] {
        &self.0
    }

    /// Whether there are no causes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Given the reason of a tensor, why it is sharded along an axis: the demand that concerns this axis, otherwise the
    /// first demand.
    pub fn demand(&self, axis: &str) -> Option<&Demand> {
        let about = self.0.iter().find_map(|cause| match cause {
            Cause::On { axis: about, demand } if **about == *axis => Some(demand),
            _ => None,
        });
        about.or_else(|| {
            self.0.iter().find_map(|cause| match cause {
                Cause::Demanded(demand) => Some(demand),
                _ => None,
            })
        })
    }

    /// The same reason with one more cause, unless it has this cause already.
    #[must_use]
    pub fn and(&self, cause: Cause) -> Reason {
        if self.0.contains(&cause) { self.clone() } else { self.0.iter().cloned().chain([cause]).collect() }
    }

    /// The paths in the reason, in order.
    pub fn paths(&self) -> impl Iterator<Item = &ModulePath> {
        self.0.iter().flat_map(Cause::paths)
    }

    /// The same reason with every path in it replaced by the result of `change`.
    #[must_use]
    pub fn map_paths(&self, mut change: impl FnMut(&ModulePath) -> ModulePath) -> Reason {
        self.0.iter().map(|cause| cause.map_paths(&mut change)).collect()
    }

    /// Reads what [`Display`](fmt::Display) writes; any other text becomes notes. Only the parsers of programs use it.
    pub fn read(text: &str) -> Reason {
        if text.is_empty() { Reason::default() } else { separate(text).into_iter().map(Cause::read).collect() }
    }
}

/// Splits a text into its causes, at semicolons that are not between quotation marks.
fn separate(text: &str) -> Vec<&str> {
    let (mut parts, mut start) = (Vec::new(), 0);
    let (mut quoted, mut escaped) = (false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ';' if !quoted && at >= start && text[at..].starts_with(BETWEEN) => {
                parts.push(&text[start..at]);
                start = at + BETWEEN.len();
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

impl FromIterator<Cause> for Reason {
    fn from_iter<I: IntoIterator<Item = Cause>>(causes: I) -> Self {
        Reason(causes.into_iter().collect())
    }
}

impl From<Cause> for Reason {
    fn from(cause: Cause) -> Self {
        Reason::from_iter([cause])
    }
}

impl From<Demand> for Reason {
    fn from(demand: Demand) -> Self {
        Cause::from(demand).into()
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, cause) in self.0.iter().enumerate() {
            f.write_str(if i > 0 { BETWEEN } else { "" })?;
            cause.fmt(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_read_back() {
        let axes = || Axes(vec!["dp".into(), "rep".into()]);
        let odd = Entry::of("a; \"b\"\n(c) is cut");
        let demands = [
            Demand::Plan(Entry::BuiltIn("tp-sp".into())),
            Demand::Plan(odd.clone()),
            Demand::Plan(Entry::of("layers.*.mlp")),
            Demand::Plan(Entry::of("layers.0.mlp")),
            Demand::Layout { entry: odd.clone(), side: Side::Arguments, position: 3, dim: None },
            Demand::Layout { entry: odd, side: Side::Results, position: 0, dim: Some(-1) },
            Demand::LossParallel,
            Demand::Mode(Mode::Hsdp, axes()),
            Demand::Batch(axes()),
            Demand::Rows,
            Demand::Compute(DType::BF16),
            Demand::Training(InputKind::State),
            Demand::MicroBatches,
            Demand::Clipping,
        ];
        let odd = ModulePath::default().named("a, b and c are cut (x); rule 7").named("0").named("/");
        for demand in demands {
            let cut = |tensors: &[&str], others| Cut {
                tensors: tensors.iter().map(|t| Shown::read(t)).collect(),
                others,
                demand: demand.clone(),
            };
            let causes = [
                Cause::Summed(cut(&["a.weight"], 0)),
                Cause::Summed(cut(&["a/moment_1", "b.0"], 0)),
                Cause::Elsewhere(cut(&["a", "b", "c", &odd.to_string()], 17)),
                Cause::Together("einsum".into()),
                Cause::Like(odd.clone()),
                Cause::Rule(24),
                Cause::SecondGather,
                Cause::Recomputed,
                demand.clone().into(),
                Cause::On { axis: "dp".into(), demand: demand.clone() },
            ];
            for cause in &causes {
                assert_eq!(Reason::read(&cause.to_string()), Reason::from(cause.clone()), "{cause}");
            }
            let all: Reason = causes.into_iter().collect();
            assert_eq!(Reason::read(&all.to_string()), all, "{all}");
        }
    }

    #[test]
    fn other_words_stay_as_they_are() {
        let texts = [
            "",
            " ",
            "; ",
            "a; b; ",
            "rule",
            "rule 07",
            "a are cut (b)",
            "x and y is cut (z)",
            "; why: in x",
            "\"a; b",
        ];
        for text in texts {
            let read = Reason::read(text);
            assert_eq!(read.to_string(), text);
            assert_eq!(Reason::read(&read.to_string()), read);
        }
        assert_eq!(Reason::read("rule 07").causes(), [Demand::Note("rule 07".into()).into()]);
    }

    #[test]
    fn demands_are_found_by_axis() {
        let said = |text: &str, axis: &str| Reason::read(text).demand(axis).map(ToString::to_string);
        let reason = "`tp`: plan \"tp\"; `dp`: fsdp: sharded over `dp`";
        assert_eq!(said(reason, "tp").as_deref(), Some("plan \"tp\""));
        assert_eq!(said(reason, "dp").as_deref(), Some("fsdp: sharded over `dp`"));
        assert_eq!(said("plan \"tp\"", "tp").as_deref(), Some("plan \"tp\""));
        assert_eq!(said("rule 7", "tp"), None);
    }

    #[test]
    fn a_cause_is_added_once() {
        let reason = Reason::read("rule 7").and(Cause::Rule(7)).and(Cause::Rule(9));
        assert_eq!(reason.to_string(), "rule 7; rule 9");
    }
}
