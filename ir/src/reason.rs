//! Why an operation is there, as data. The text form prints a reason as words and reads it back.
//!
//! ```
//! use tpc_ir::reason::{Cause, Reason};
//! let reason = Reason::from("mlp.down.weight is cut along the summed index (plan \"tp\"); rule 7");
//! assert_eq!(reason.causes()[1], Cause::Rule(7));
//! assert!(matches!(&reason.causes()[0], Cause::Summed(cut) if *cut.entry == *"plan \"tp\""));
//! ```

use crate::mesh::is_name;
use std::fmt;
use std::sync::Arc;

/// Tensors that one plan entry or data mode cuts.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cut {
    /// Their names, the first [`Cut::NAMED`] of them: inputs of the program, or the module that cuts its result.
    pub tensors: Vec<Arc<str>>,
    /// How many more there are.
    pub others: usize,
    /// The plan entry or data mode.
    pub entry: Arc<str>,
}

impl Cut {
    /// How many tensors are named.
    pub const NAMED: usize = 4;

    fn print(&self, f: &mut fmt::Formatter<'_>, how: &str) -> fmt::Result {
        let (last, before) = match (&self.tensors[..], self.others) {
            ([one], 0) => return write!(f, "{one} is {how} ({})", self.entry),
            ([before @ .., last], 0) => (last.to_string(), before),
            (all, others) => (format!("{others} more"), all),
        };
        write!(f, "{} and {last} are {how} ({})", before.join(", "), self.entry)
    }

    fn read(text: &str, how: &str) -> Option<Cut> {
        let text = text.strip_suffix(')')?;
        let cut = |tensors: Vec<&str>, others, entry: &str| {
            Some(Cut { tensors: tensors.into_iter().map(Arc::from).collect(), others, entry: entry.into() })
        };
        if let Some((one, entry)) = text.split_once(&format!(" is {how} (")) {
            return cut(vec![one], 0, entry);
        }
        let (tensors, entry) = text.split_once(&format!(" are {how} ("))?;
        let (before, last) = tensors.rsplit_once(" and ")?;
        let mut tensors: Vec<&str> = before.split(", ").collect();
        match last.strip_suffix(" more").and_then(|n| n.parse().ok()) {
            Some(others) => cut(tensors, others, entry),
            None => {
                tensors.push(last);
                cut(tensors, 0, entry)
            }
        }
    }
}

/// A part of a reason.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// These tensors are cut along an index that is summed: what is summed of it is a part of the sum.
    Summed(Cut),
    /// These tensors are cut where the whole is wanted, or another cut.
    Elsewhere(Cut),
    /// The operation of that name combines operands that lie alike.
    Together(Arc<str>),
    /// It lies where the parameter of that name lies.
    Like(Arc<str>),
    /// A rule of the e-graph put it where it is (`passes/src/egraph/rules/RULES.md`).
    Rule(u32),
    /// A parameter is gathered a second time, for a later part of the step.
    Again,
    /// A plan entry, a data mode or an option, in its own words.
    Stated(Arc<str>),
    /// The same, about the cut along one axis of a tensor that several entries cut.
    On {
        /// The axis, by the name that the user gave it.
        axis: Arc<str>,
        /// The words.
        words: Arc<str>,
    },
}

const SUMMED: &str = "cut along the summed index";
const ELSEWHERE: &str = "cut";
const TOGETHER: &str = " wants its operands together";
const LIKE: &str = "lies like ";
const RULE: &str = "rule ";
const AGAIN: &str = "gathered again";

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Cause::Summed(cut) => cut.print(f, SUMMED),
            Cause::Elsewhere(cut) => cut.print(f, ELSEWHERE),
            Cause::Together(operation) => write!(f, "{operation}{TOGETHER}"),
            Cause::Like(parameter) => write!(f, "{LIKE}{parameter}"),
            Cause::Rule(number) => write!(f, "{RULE}{number}"),
            Cause::Again => f.write_str(AGAIN),
            Cause::Stated(words) => f.write_str(words),
            Cause::On { axis, words } => write!(f, "`{axis}`: {words}"),
        }
    }
}

impl Cause {
    /// Reads one cause; what is none of the others is stated.
    fn read(text: &str) -> Cause {
        let found = Cut::read(text, SUMMED)
            .map(Cause::Summed)
            .or_else(|| Cut::read(text, ELSEWHERE).map(Cause::Elsewhere))
            .or_else(|| text.strip_suffix(TOGETHER).map(|op| Cause::Together(op.into())))
            .or_else(|| text.strip_prefix(LIKE).map(|name| Cause::Like(name.into())))
            .or_else(|| text.strip_prefix(RULE)?.parse().ok().map(Cause::Rule))
            .or_else(|| (text == AGAIN).then_some(Cause::Again))
            .or_else(|| {
                let (axis, words) = text.strip_prefix('`')?.split_once("`: ")?;
                is_name(axis).then(|| Cause::On { axis: axis.into(), words: words.into() })
            });
        // Words that would print differently are a statement.
        found.filter(|cause| cause.to_string() == text).unwrap_or_else(|| Cause::Stated(text.into()))
    }
}

/// Between the causes of a reason.
const BETWEEN: &str = "; ";

/// Why a pass put an operation where it is; empty for what the model itself says.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Reason(Arc<[Cause]>);

impl Reason {
    /// Its parts, in the order in which they are printed.
    pub fn causes(&self) -> &[Cause] {
        &self.0
    }

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entry that cuts a tensor along an axis, of the reason of a tensor: the words about that axis, otherwise all.
    pub fn entry(&self, axis: &str) -> Arc<str> {
        let about = self.0.iter().find_map(|cause| match cause {
            Cause::On { axis: about, words } if **about == *axis => Some(words.clone()),
            _ => None,
        });
        about.unwrap_or_else(|| self.to_string().into())
    }

    /// The same reason with one more cause, if it does not have that one yet.
    #[must_use]
    pub fn and(&self, cause: Cause) -> Reason {
        if self.0.contains(&cause) { self.clone() } else { self.0.iter().cloned().chain([cause]).collect() }
    }
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

/// Reads what [`Display`](fmt::Display) writes, and everything else as statements.
impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        if text.is_empty() { Reason::default() } else { text.split(BETWEEN).map(Cause::read).collect() }
    }
}

impl From<String> for Reason {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl From<&Arc<str>> for Reason {
    fn from(text: &Arc<str>) -> Self {
        Reason::from(&**text)
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
        let cut = |tensors: &[&str], others| Cut {
            tensors: tensors.iter().map(|t| Arc::from(*t)).collect(),
            others,
            entry: "plan \"2d\" (dp)".into(),
        };
        let causes = [
            Cause::Summed(cut(&["a.weight"], 0)),
            Cause::Summed(cut(&["a", "b"], 0)),
            Cause::Elsewhere(cut(&["a", "b", "c", "d"], 17)),
            Cause::Together("einsum".into()),
            Cause::Like("a.weight".into()),
            Cause::Rule(24),
            Cause::Again,
            Cause::Stated("fsdp: sharded over `dp`".into()),
            Cause::On { axis: "dp".into(), words: "fsdp: sharded over `dp`".into() },
        ];
        for cause in &causes {
            assert_eq!(Reason::from(cause.to_string()), Reason::from(cause.clone()), "{cause}");
        }
        let all: Reason = causes.into_iter().collect();
        assert_eq!(Reason::from(all.to_string()), all);
    }

    #[test]
    fn other_words_stay_as_they_are() {
        for text in ["", " ", "; ", "a; b; ", "rule", "rule 07", "a are cut (b)", "x and y is cut (z)", "; why: in x"] {
            assert_eq!(Reason::from(text).to_string(), text);
        }
        assert_eq!(Reason::from("rule 07").causes(), [Cause::Stated("rule 07".into())]);
    }

    #[test]
    fn each_axis_has_its_entry() {
        let reason = Reason::from("`tp`: plan \"tp\"; `dp`: fsdp: sharded over `dp`");
        assert_eq!(*reason.entry("tp"), *"plan \"tp\"");
        assert_eq!(*reason.entry("dp"), *"fsdp: sharded over `dp`");
        assert_eq!(*Reason::from("plan \"tp\"").entry("tp"), *"plan \"tp\"");
    }

    #[test]
    fn a_cause_is_said_once() {
        let reason = Reason::from("rule 7").and(Cause::Rule(7)).and(Cause::Rule(9));
        assert_eq!(reason.to_string(), "rule 7; rule 9");
    }
}
