//! The outcome of a case.

use std::fmt;
use tpc_compiler::error::Error;
use tpc_passes::options::OptionError;
use tpc_passes::styles::StyleError;

/// The outcome of a case.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It computes what one rank does.
    Equal,
    /// It was rejected with an error that is right for such a plan. The text names the kind of error.
    Refused(&'static str),
    /// It failed in any other way.
    Fault(Fault),
}

/// A fault of the compiler or the runtime.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// The kind of fault.
    pub kind: FaultKind,
    /// What was observed.
    pub text: String,
}

/// Kinds of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// The results differ from those of one rank.
    Numbers,
    /// The results of one rank differ from those of the interpreter.
    OneRank,
    /// An error that asks the user to report it.
    Internal,
    /// An error that the plan, options and files of the case do not explain.
    Unexplained,
    /// A rank failed, or the ranks disagreed.
    Ranks,
    /// A panic.
    Panic,
    /// It did not finish within the time limit.
    Hang,
    /// A printed program parses to another program.
    Text,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: FaultKind, text: impl fmt::Display) -> Self {
        Fault { kind, text: text.to_string() }
    }

    /// The kind and the beginning of the text without its numbers: groups faults that probably share a cause.
    pub fn signature(&self) -> String {
        // An internal error describes the problem after its first line.
        let mut lines = self.text.lines().filter(|line| !line.is_empty());
        let telling = if self.kind == FaultKind::Internal { lines.nth(1) } else { lines.next() };
        let plain: String = telling.unwrap_or(&self.text).chars().filter(|c| !c.is_ascii_digit()).take(60).collect();
        match self.kind {
            FaultKind::Numbers | FaultKind::OneRank | FaultKind::Ranks | FaultKind::Hang => format!("{:?}", self.kind),
            kind => format!("{kind:?}: {plain}"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.text)
    }
}

/// The verdict on an error of the compiler or the runtime.
pub fn judge(error: &Error) -> Verdict {
    let fault = |kind| Verdict::Fault(Fault::new(kind, error));
    match error {
        Error::Style(error) => match **error {
            StyleError::Nothing { .. } => Verdict::Refused("nothing to parallelize"),
            StyleError::LossParallel => Verdict::Refused("no sharded logits"),
            StyleError::Boundary { .. } => Verdict::Refused("a boundary that cannot be seen"),
            StyleError::Position { .. } => Verdict::Refused("no such argument"),
            StyleError::Dimension { .. } => Verdict::Refused("no such dimension"),
            StyleError::Twice { .. } => Verdict::Refused("a parameter claimed twice"),
            _ => fault(FaultKind::Unexplained),
        },
        Error::Option(OptionError::AllFrozen) => Verdict::Refused("everything is frozen"),
        Error::Option(OptionError::NoEffect { .. }) => Verdict::Refused("a pattern that freezes nothing"),
        Error::Check(_) | Error::Denote(_) | Error::Lower(_) => fault(FaultKind::Internal),
        Error::Runtime(_) => fault(FaultKind::Ranks),
        _ => fault(FaultKind::Unexplained),
    }
}
