//! Reduces a case with a fault to a simpler one with the same kind of fault.

use super::case::Case;
use super::examine::examine_alone;
use super::verdict::{Fault, Verdict};
use std::time::{Duration, Instant};

/// Repeatedly replaces the case by the first simpler one whose fault has the same signature, until no such case exists
/// or the time is up. Returns the last case and its fault.
pub fn shrink(case: &Case, fault: &Fault, time: Duration) -> (Case, Fault) {
    let (signature, end) = (fault.signature(), Instant::now() + time);
    let (mut best, mut seen) = (case.clone(), fault.clone());
    'simpler: loop {
        for simpler in best.simpler() {
            if Instant::now() >= end {
                return (best, seen);
            }
            if let Verdict::Fault(fault) = examine_alone(&simpler)
                && fault.signature() == signature
            {
                (best, seen) = (simpler, fault);
                continue 'simpler;
            }
        }
        return (best, seen);
    }
}
