//! Examines many cases under one seed and counts their verdicts.

use super::case::{CASES_OF_A_SUBJECT, Case, Subject};
use super::examine::{examine, reference};
use super::reference::Reference;
use super::verdict::{Fault, Verdict};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// A fault, and the case that has it.
#[derive(Clone, Debug)]
pub struct Found {
    /// The number of the case.
    pub number: u64,
    /// The case.
    pub case: Case,
    /// The fault.
    pub fault: Fault,
}

/// The counts of a search.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// How many cases were examined.
    pub cases: usize,
    /// How many compute what one rank computes.
    pub equal: usize,
    /// How many were rejected, by reason.
    pub refused: BTreeMap<&'static str, usize>,
    /// How many faults were found, by signature.
    pub faults: BTreeMap<String, usize>,
    /// The number of the slowest case, and its duration.
    pub slowest: (u64, Duration),
}

impl Summary {
    /// The percentage of cases that were rejected.
    pub fn refused_percent(&self) -> usize {
        100 * self.refused.values().sum::<usize>() / self.cases.max(1)
    }
}

/// A subject and its reference.
type Group = (Subject, Result<Arc<Reference>, Verdict>);

/// Examines the cases with these numbers as long as `goes_on` returns true, and passes each fault to `on_fault`.
pub fn search(
    seed: u64,
    numbers: Range<u64>,
    mut goes_on: impl FnMut(&Summary) -> bool,
    mut on_fault: impl FnMut(Found),
) -> Summary {
    let mut summary = Summary::default();
    let mut held: Option<(u64, Group)> = None;
    for number in numbers {
        if !goes_on(&summary) {
            break;
        }
        let began = Instant::now();
        let group = number / CASES_OF_A_SUBJECT;
        let subject = match held.take() {
            Some((of, subject)) if of == group => {
                // A subject without a reference counts as one case.
                if subject.1.is_err() {
                    held = Some((of, subject));
                    continue;
                }
                subject
            }
            _ => {
                let subject = Subject::draw(seed, group);
                let reference = reference(&subject);
                (subject, reference)
            }
        };
        summary.cases += 1;
        let (case, verdict) = match &subject.1 {
            Ok(reference) => {
                let case = Case::draw(seed, number, &subject.0, &reference.modules);
                let verdict = examine(reference, &case);
                (case, verdict)
            }
            Err(verdict) => (Case::alone(&subject.0), verdict.clone()),
        };
        held = Some((group, subject));
        match verdict {
            Verdict::Equal => summary.equal += 1,
            Verdict::Refused(why) => *summary.refused.entry(why).or_default() += 1,
            Verdict::Fault(fault) => {
                *summary.faults.entry(fault.signature()).or_default() += 1;
                on_fault(Found { number, case, fault });
            }
        }
        if began.elapsed() > summary.slowest.1 {
            summary.slowest = (number, began.elapsed());
        }
    }
    summary
}
