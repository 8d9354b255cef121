//! Solves a cost network: shifted costs give a bound, the bound rules states out, and what is left is eliminated exactly
//! where it is small enough.

use super::eliminate::eliminate;
use super::network::{Network, Solved};
use super::shift::{Sweep, least, settle, sweep};

/// Entries of the largest table that elimination makes.
const ENTRIES: usize = 1 << 18;

/// Sweeps in both directions before what is left is eliminated.
const SWEEPS: usize = 40;

/// Sweeps in both directions before states are ruled out. The time of a sweep grows with the pairs of states that are left, so
/// it pays to rule some out early.
const RULE_OUT: usize = 4;

/// Differences below this share of the cost are rounding noise.
const EPSILON: f64 = 1e-9;

/// How long a network is worked on.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Most times that states are ruled out and the rest is eliminated.
    pub rounds: usize,
    /// A solution this near to the bound, as a share of its cost, is good enough.
    pub gap: f64,
}

/// Solves a network. Its first states are a solution to begin with.
pub fn solve(network: &Network, effort: Effort) -> Solved {
    let first = vec![0; network.unary.len()];
    let mut best = Solved { cost: network.total(&first), states: first, bound: f64::NEG_INFINITY };
    let mut kept: Vec<Vec<usize>> = network.unary.iter().map(|costs| (0..costs.len()).collect()).collect();
    let mut rest = network.clone();
    for _ in 0..effort.rounds {
        let before = best.bound;
        let states = |network: &Network| network.unary.iter().map(Vec::len).sum::<usize>();
        let count = states(&rest);
        for turn in 1..=SWEEPS {
            for direction in [Sweep::Forward, Sweep::Backward] {
                let (bound, states) = sweep(&mut rest, direction);
                best.bound = best.bound.max(bound.min(best.cost));
                best.offer(network, &kept, &states);
            }
            if best.is_within(effort.gap) {
                return best;
            }
            if turn % RULE_OUT > 0 {
                continue;
            }
            let Some(stays) = possible(&rest, best.cost) else {
                best.bound = best.cost;
                return best;
            };
            if rest.unary.iter().zip(&stays).any(|(states, stays)| stays.len() < states.len()) {
                rest = rest.restricted(&stays);
                kept = kept.iter().zip(&stays).map(|(kept, stays)| stays.iter().map(|&s| kept[s]).collect()).collect();
            }
        }
        let ruled_out = states(&rest) < count;
        let eliminated = eliminate(&rest, ENTRIES);
        best.offer(network, &kept, &eliminated.states);
        best.bound = best.bound.max(eliminated.bound.min(best.cost));
        let improves = best.bound - before > effort.gap * best.cost;
        if best.is_within(effort.gap) || !ruled_out && !improves {
            break;
        }
    }
    best
}

impl Solved {
    /// Takes a solution with only some of the states if it costs less.
    fn offer(&mut self, network: &Network, kept: &[Vec<usize>], states: &[usize]) {
        let states: Vec<usize> = states.iter().zip(kept).map(|(&s, kept)| kept[s]).collect();
        let cost = network.total(&states);
        if cost < self.cost {
            (self.cost, self.states) = (cost, states);
        }
    }

    /// Whether the solution is this near to the bound, as a share of its cost.
    fn is_within(&self, gap: f64) -> bool {
        self.cost.is_finite() && self.cost - self.bound <= gap * self.cost
    }
}

/// The states of every variable that a solution cheaper than `cost` can have; `None` if there is none.
fn possible(network: &Network, cost: f64) -> Option<Vec<Vec<usize>>> {
    let mut settled = network.clone();
    settle(&mut settled);
    let bound = settled.shifted + settled.unary.iter().map(|costs| least(costs)).sum::<f64>();
    let mut all = Vec::with_capacity(settled.unary.len());
    for costs in &settled.unary {
        let margin = cost * (1.0 - EPSILON) - (bound - least(costs));
        let stays: Vec<usize> = (0..costs.len()).filter(|&s| costs[s] < margin).collect();
        if stays.is_empty() {
            return None;
        }
        all.push(stays);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A network of at most seven variables with at most four states; a cost of nine stands for what is impossible.
    fn networks() -> impl Strategy<Value = Network> {
        let variables = prop::collection::vec(prop::collection::vec(0..9u8, 1..5), 1..8);
        let edges =
            prop::collection::vec((any::<[prop::sample::Index; 2]>(), prop::collection::vec(0..10u8, 16)), 0..14);
        (variables, edges).prop_map(|(variables, edges)| {
            let mut network = Network::default();
            for costs in variables {
                network.variable(costs.into_iter().map(f64::from).collect());
            }
            for (ends, costs) in edges {
                let [a, b] = ends.map(|end| end.index(network.unary.len()));
                let cost = |x: usize, y: usize| match costs[4 * x + y] {
                    // The first states are a solution.
                    9 if (x, y) != (0, 0) => f64::INFINITY,
                    cost => cost.into(),
                };
                if a != b {
                    network.add(a, b, cost);
                }
            }
            network
        })
    }

    /// The least total of all combinations of states.
    fn least(network: &Network) -> f64 {
        let mut states = vec![0; network.unary.len()];
        let mut least = f64::INFINITY;
        loop {
            least = least.min(network.total(&states));
            let Some(next) = (0..states.len()).find(|&v| states[v] + 1 < network.unary[v].len()) else { return least };
            states[..next].fill(0);
            states[next] += 1;
        }
    }

    proptest! {
        #[test]
        fn the_solution_costs_least(network in networks()) {
            let (solved, least) = (solve(&network, Effort { rounds: 20, gap: 1e-6 }), least(&network));
            prop_assert_eq!(solved.cost, network.total(&solved.states));
            prop_assert!((solved.cost - least).abs() <= 1e-6 * least, "{} instead of {least}", solved.cost);
            prop_assert!(solved.bound <= least + 1e-6, "bound {} over {least}", solved.bound);
        }

        /// With small tables elimination still gives a solution and a bound.
        #[test]
        fn small_tables_give_a_bound(network in networks(), entries in 1..30usize) {
            let (solved, least) = (eliminate(&network, entries), least(&network));
            prop_assert!(solved.bound <= least + 1e-6, "bound {} over {least}", solved.bound);
            prop_assert!(solved.cost >= least - 1e-6 && solved.cost == network.total(&solved.states));
            let exact = eliminate(&network, usize::MAX);
            prop_assert!((exact.cost - least).abs() < 1e-6 && (exact.bound - least).abs() < 1e-6);
        }

        /// Sweeps change no total, and the bound never falls.
        #[test]
        fn sweeps_keep_every_total(network in networks()) {
            let mut shifted = network.clone();
            let mut before = f64::NEG_INFINITY;
            for direction in [Sweep::Forward, Sweep::Backward, Sweep::Forward, Sweep::Backward] {
                let (bound, states) = sweep(&mut shifted, direction);
                prop_assert!(bound >= before - 1e-9);
                before = bound;
                let (now, then) = (shifted.total(&states), network.total(&states));
                prop_assert!(now == then || (now - then).abs() < 1e-6, "{now} instead of {then}");
            }
            prop_assert!(before <= least(&network) + 1e-6);
        }
    }
}
