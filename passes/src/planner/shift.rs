//! Shifts costs between the states of variables and their pairs, so that every total stays the same and the least cost
//! of each variable and of each pair, added up, grows: a lower bound on every total.
//!
//! One sweep visits the variables in order. Each takes what its pairs cost at least for each of its states, and passes
//! its costs on in equal shares to the pairs that come later (sequential tree-reweighted message passing, TRW-S:
//! Kolmogorov, 2006). The next sweep goes the other way. The bound never falls from one sweep to the next; it need not
//! reach the least total.

use super::network::{Edge, Network, Variable};

/// The direction of a sweep.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sweep {
    /// From the first variable to the last.
    Forward,
    /// From the last variable to the first.
    Backward,
}

/// Shifts the costs of a network in one sweep, and gives the bound and a solution that the sweep suggests.
pub fn sweep(network: &mut Network, direction: Sweep) -> (f64, Vec<usize>) {
    let count = network.unary.len();
    let mut states = vec![0; count];
    for i in 0..count {
        let v = if direction == Sweep::Forward { i } else { count - 1 - i };
        let is_later = |u: Variable| (u > v) == (direction == Sweep::Forward);
        let touching = network.touching[v].clone();
        touching.iter().for_each(|&edge| take(network, edge, v));
        let (later, earlier): (Vec<usize>, Vec<usize>) =
            touching.into_iter().partition(|&edge| is_later(network.other(edge, v)));
        // What is left of an earlier pair tells how well a state fits the state that its other end has.
        let fit = |s: usize| -> f64 {
            let pairs = earlier.iter().map(|&e| network.pair(e, v, s, states[network.other(e, v)]));
            network.unary[v][s] + pairs.sum::<f64>()
        };
        let best = (0..network.unary[v].len()).map(|s| (fit(s), s)).min_by(|a, b| a.0.total_cmp(&b.0));
        states[v] = best.map_or(0, |(_, s)| s);
        let least = least(&network.unary[v]);
        network.shifted += least;
        network.unary[v].iter_mut().for_each(|c| *c -= least);
        let share = 1.0 / later.len().max(earlier.len()).max(1) as f64;
        let passed: Vec<f64> = network.unary[v].iter().map(|c| c * share).collect();
        later.iter().for_each(|&edge| give(network, edge, v, &passed));
        // What is impossible stays impossible, whatever is left of it.
        let left = 1.0 - share * later.len() as f64;
        network.unary[v].iter_mut().filter(|c| c.is_finite()).for_each(|c| *c *= left);
    }
    (network.shifted, states)
}

/// Spreads the costs so that each variable holds what its pairs cost at least.
pub fn settle(network: &mut Network) {
    for v in 0..network.unary.len() {
        for edge in network.touching[v].clone() {
            take(network, edge, v);
        }
    }
}

/// The least of some costs, none of which is NaN.
pub fn least(costs: &[f64]) -> f64 {
    // Four running minima, which the processor updates at once.
    let mut lanes = [f64::INFINITY; 4];
    let (fours, rest) = costs.as_chunks::<4>();
    for four in fours {
        lanes.iter_mut().zip(four).for_each(|(least, &c)| *least = lesser(c, *least));
    }
    lanes.iter().chain(rest).copied().fold(f64::INFINITY, lesser)
}

/// The lesser of two numbers, neither of which is NaN: one instruction, unlike [`f64::min`].
pub fn lesser(a: f64, b: f64) -> f64 {
    if a < b { a } else { b }
}

/// A variable takes from a pair what the pair costs at least for each of its states.
fn take(network: &mut Network, edge: usize, v: Variable) {
    let Network { unary, edges, .. } = network;
    let Edge { ends, costs } = &mut edges[edge];
    let columns = unary[ends[1]].len();
    if ends[0] == v {
        for (own, row) in unary[v].iter_mut().zip(costs.chunks_mut(columns)) {
            let least = least(row);
            *own += least;
            // Nothing is taken from a state that no state of the other end goes with.
            if least.is_finite() {
                row.iter_mut().for_each(|c| *c -= least);
            }
        }
        return;
    }
    let mut taken = vec![f64::INFINITY; columns];
    for row in costs.chunks(columns) {
        taken.iter_mut().zip(row).for_each(|(least, &c)| *least = lesser(c, *least));
    }
    unary[v].iter_mut().zip(&taken).for_each(|(own, least)| *own += least);
    taken.iter_mut().filter(|least| least.is_infinite()).for_each(|least| *least = 0.0);
    for row in costs.chunks_mut(columns) {
        row.iter_mut().zip(&taken).for_each(|(c, least)| *c -= least);
    }
}

/// Adds a cost for each state of one end to a pair.
fn give(network: &mut Network, edge: usize, v: Variable, given: &[f64]) {
    let Network { unary, edges, .. } = network;
    let Edge { ends, costs } = &mut edges[edge];
    let rows = costs.chunks_mut(unary[ends[1]].len());
    if ends[0] == v {
        rows.zip(given).for_each(|(row, given)| row.iter_mut().for_each(|c| *c += given));
    } else {
        rows.for_each(|row| row.iter_mut().zip(given).for_each(|(c, given)| *c += given));
    }
}
