//! Reaches the verdict on a case.

use super::case::{Case, Subject};
use super::command;
use super::compare::differences;
use super::guard::{Ended, guarded};
use super::options::Types;
use super::reference::Reference;
use super::run::run;
use super::verdict::{Fault, FaultKind, Verdict};
use std::sync::Arc;
use std::time::Duration;

/// A case that takes longer than this hangs, even on a busy machine. The deadline of a collective is shorter.
const LIMIT: Duration = Duration::from_secs(600);

impl From<Ended> for Verdict {
    fn from(ended: Ended) -> Self {
        Verdict::Fault(match ended {
            Ended::Panicked(text) => Fault::new(FaultKind::Panic, text),
            Ended::Hung(limit) => Fault::new(FaultKind::Hang, format!("not done after {limit:?}")),
        })
    }
}

/// The reference that all cases of a subject are compared with.
///
/// # Errors
/// The verdict on a subject that has no reference.
pub fn reference(subject: &Subject) -> Result<Arc<Reference>, Verdict> {
    let subject = subject.clone();
    guarded(LIMIT, move || Reference::of(&subject).map(Arc::new)).unwrap_or_else(|ended| Err(ended.into()))
}

/// The verdict on a case, given the reference of its subject.
pub fn examine(reference: &Arc<Reference>, case: &Case) -> Verdict {
    let (reference, case) = (reference.clone(), case.clone());
    let verdict = guarded(LIMIT, move || match run(&reference, &case) {
        Err(verdict) => verdict,
        Ok(found) => {
            let mut wrong = differences(&reference, &case, &found);
            if !wrong.is_empty() && reference.subject.meaning.types != Types::F32 {
                // Options change where bf16 rounds. How much that matters is measured on one rank with the same
                // options.
                match reference.with_ways(&case.ways) {
                    Ok(same) => wrong = differences(&same, &case, &found),
                    Err(verdict) => return verdict,
                }
            }
            match wrong.first() {
                None => command::through(&reference, &case),
                Some(first) => {
                    Verdict::Fault(Fault::new(FaultKind::Numbers, format!("{first} ({} outputs wrong)", wrong.len())))
                }
            }
        }
    });
    verdict.unwrap_or_else(Verdict::from)
}

/// The verdict on a single case, including the computation of its reference.
pub fn examine_alone(case: &Case) -> Verdict {
    match reference(&case.subject) {
        Ok(reference) => examine(&reference, case),
        Err(verdict) => verdict,
    }
}
