//! Fits a placed program into the memory of a rank by computing values of the forward pass a second time.
//!
//! Which values are dropped, and in which order, is a function of the program alone: the cheapest candidate comes first
//! ([`Prices`]), and it stays dropped if the program becomes smaller, measured exactly without overlap. The programs on
//! this way do not depend on the limit. Of the candidate with which the program first fits, only as many occurrences
//! are dropped as are needed, the first blocks of the model before the last. Dropping more leaves room in which more
//! collectives overlap, so all later programs on the way are simulated as well, and the fastest that fits is taken.
//!
//! If none fits, another way is tried on which collectives may also be merged less ([`LowerOptions::split_buckets`]): the
//! operands of a bucket are in memory until the last of them is computed.

use crate::budget::{BudgetError, Taken};
use crate::candidate::{Candidate as Found, Placed, Start, finished, proven};
use crate::compile_options::CompileOptions;
use crate::error::Error;
use tpc_ir::Graph;
use tpc_passes::egraph::SearchReport;
use tpc_passes::lower::saved::{Saved, saved};
use tpc_passes::lower::{LowerOptions, claimed, schedule};
use tpc_passes::planner::Aim;
use tpc_passes::rematerialize::candidates::{Candidate, Prices, candidates};
use tpc_passes::rematerialize::report::{RecomputeReport, Recomputed};
use tpc_passes::rematerialize::{Dropped, rematerialize};
use tpc_passes::targets::Target;

/// The share of the bytes of a candidate by which a program must become smaller.
const WORTH: f64 = 0.1;

/// What a program takes on the first rank. It is not checked: many are tried, and the one that is chosen is checked later.
fn taken(graph: &Graph, target: &Target, lower: &LowerOptions) -> Taken {
    let (program, _) = claimed(graph, &schedule(graph, target, lower), 0);
    Taken::of(&program, target)
}

/// A placed program that keeps every value.
struct Whole<'a> {
    target: &'a Target,
    graph: &'a Graph,
    saved: &'a Saved,
    lower: LowerOptions,
}

/// A program on the way to the smallest one.
struct Smaller<'c> {
    dropped: Dropped,
    /// The bytes that it takes if nothing overlaps.
    least: usize,
    /// What it drops in addition to the program before it.
    added: Vec<&'c Candidate>,
}

impl Whole<'_> {
    /// What the program takes without some values.
    fn without(&self, dropped: &Dropped, lower: &LowerOptions) -> Taken {
        taken(&rematerialize(self.graph, self.saved, dropped), self.target, lower)
    }

    /// The bytes that the program takes without some values if nothing overlaps, and nothing shares a bucket where buckets may
    /// be split.
    fn least(&self, dropped: &Dropped) -> usize {
        let bucket_bytes = if self.lower.split_buckets { 0 } else { self.lower.bucket_bytes };
        let lower = LowerOptions { overlap: false, memory: None, bucket_bytes, ..self.lower };
        self.without(dropped, &lower).bytes
    }

    /// The programs on the way to the smallest one, beginning with the one that keeps everything.
    fn way<'c>(&self, all: &'c [Candidate]) -> Vec<Smaller<'c>> {
        let prices = Prices::of(self.graph, self.saved, self.target);
        let none = Dropped::default();
        let whole = self.least(&none);
        let mut last = Smaller { dropped: none, least: whole, added: Vec::new() };
        let mut way = Vec::new();
        let mut open: Vec<&Candidate> = all.iter().collect();
        let mut refused = Vec::new();
        while let Some(at) = prices.cheapest(&open, &last.dropped) {
            let candidate = open.remove(at);
            let dropped = last.dropped.with(candidate.nodes(usize::MAX));
            let least = self.least(&dropped);
            if least + ((WORTH * candidate.bytes as f64) as usize) < last.least {
                let next = Smaller { dropped, least, added: vec![candidate] };
                way.push(std::mem::replace(&mut last, next));
            } else {
                refused.push(candidate);
            }
        }
        // Memory may be full at several steps, which only several candidates together relieve.
        let (mut dropped, mut added) = (last.dropped.clone(), Vec::new());
        while let Some(at) = prices.cheapest(&refused, &dropped) {
            let candidate = refused.remove(at);
            let more = dropped.with(candidate.nodes(usize::MAX));
            let least = self.least(&more);
            if least > whole {
                continue;
            }
            dropped = more;
            added.push(candidate);
            if least < last.least {
                let next = Smaller { dropped: dropped.clone(), least, added: std::mem::take(&mut added) };
                way.push(std::mem::replace(&mut last, next));
            }
        }
        way.push(last);
        way
    }

    /// Some dropped values, and as few occurrences of a candidate as make the program fit, given that all of them do.
    fn partly(&self, before: &Dropped, candidate: &Candidate, limit: usize) -> Dropped {
        let (mut few, mut many) = (0, candidate.occurrences.len());
        while many - few > 1 {
            let middle = few.midpoint(many);
            match self.least(&before.with(candidate.nodes(middle))) <= limit {
                true => many = middle,
                false => few = middle,
            }
        }
        before.with(candidate.nodes(many))
    }

    /// The fastest program on the way that fits into `limit` bytes: what it drops and takes, and the candidates on the way.
    ///
    /// # Errors
    /// None fits.
    fn fastest<'c>(
        &self,
        all: &'c [Candidate],
        limit: usize,
    ) -> Result<(Dropped, Taken, Vec<&'c Candidate>), BudgetError> {
        let way = self.way(all);
        let Some(first) = way.iter().position(|program| program.least <= limit) else {
            let least = way.iter().map(|program| program.least).min().unwrap_or(usize::MAX);
            return Err(BudgetError { limit, least });
        };
        let partly = match way[first].added[..] {
            [candidate] => Some(self.partly(&way[first - 1].dropped, candidate, limit)),
            _ => None,
        };
        let programs = partly.iter().chain(way[first..].iter().map(|program| &program.dropped));
        let sized = programs.map(|dropped| (dropped, self.without(dropped, &self.lower)));
        let fits = sized.filter(|(_, taken)| taken.bytes <= limit);
        let Some((dropped, best)) = fits.min_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds)) else {
            return Err(BudgetError { limit, least: way[first].least });
        };
        let dropped = dropped.clone();
        Ok((dropped, best, way.into_iter().flat_map(|program| program.added).collect()))
    }
}

/// The fastest program that fits into `limit` bytes, and what it takes: the placed program, or one that computes values
/// of it a second time.
///
/// # Errors
/// None fits; a program that fails its check.
pub(crate) fn fitted(start: &Start<'_>, placed: Placed, limit: usize) -> Result<(Placed, Taken), Error> {
    let CompileOptions { target, lower, .. } = start.options;
    let graph = &placed.placed;
    let free = taken(graph, target, &LowerOptions { memory: None, ..*lower });
    if free.bytes <= limit {
        let taken = taken(graph, target, lower);
        return Ok((placed, taken));
    }
    let saved = saved(graph, lower);
    let all = candidates(graph, &saved);
    let fastest = |split_buckets| {
        let lower = LowerOptions { split_buckets, ..*lower };
        Whole { target, graph, saved: &saved, lower }.fastest(&all, limit)
    };
    let (dropped, best, order) = match fastest(false) {
        Err(whole) if lower.split_buckets => {
            fastest(true).map_err(|split| BudgetError { limit, least: whole.least.min(split.least) })?
        }
        found => found?,
    };
    let values = order.into_iter().filter_map(|candidate| Recomputed::of(graph, candidate, &dropped)).collect();
    let recomputed = RecomputeReport { values, bytes: [free.bytes, best.bytes], seconds: [free.seconds, best.seconds] };
    let graph = rematerialize(graph, &saved, &dropped);
    let report =
        SearchReport { recomputed: Some(recomputed).filter(|report| !report.values.is_empty()), ..placed.report };
    Ok((proven(start, graph, report)?, best))
}

/// Of what was found to fit, and of programs that fit if they compute values a second time, the fastest. Of the latter,
/// the fastest and the smallest of `whole` are tried.
///
/// # Errors
/// None fits; the errors of [`fitted`].
pub(crate) fn or_fitted(
    start: &Start<'_>,
    found: Result<((Placed, Aim), Taken), Error>,
    whole: Vec<(Found, Taken)>,
    limit: usize,
) -> Result<((Placed, Aim), Taken), Error> {
    let all = || whole.iter().enumerate().map(|(i, (_, taken))| (i, taken));
    let fastest = all().min_by(|(_, a), (_, b)| a.seconds.total_cmp(&b.seconds)).map(|(i, _)| i);
    let smallest = all().min_by_key(|(_, taken)| taken.bytes).map(|(i, _)| i);
    let mut best = found;
    for (i, (candidate, _)) in whole.into_iter().enumerate() {
        if Some(i) != fastest && Some(i) != smallest {
            continue;
        }
        let aim = candidate.aim;
        best = match (best, fitted(start, finished(start, candidate)?, limit)) {
            (Err(Error::Budget(a)), Err(Error::Budget(b))) => {
                Err(BudgetError { limit, least: a.least.min(b.least) }.into())
            }
            (Err(Error::Budget(_)), Ok((placed, taken))) => Ok(((placed, aim), taken)),
            (Ok((_, known)), Ok((placed, taken))) if taken.seconds < known.seconds => Ok(((placed, aim), taken)),
            (best @ Ok(_), Ok(_) | Err(Error::Budget(_))) | (best @ Err(_), _) => best,
            (_, Err(error)) => Err(error),
        };
    }
    best
}
