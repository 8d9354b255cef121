//! A cost network: variables with finitely many states, a cost for each state, and a cost for each pair of states of two
//! variables that depend on each other. The planner asks for the states whose costs add up to the least.
//!
//! The name follows the literature on weighted constraint satisfaction; in graphical models the same thing is the energy
//! of a pairwise Markov random field.

use rustc_hash::FxHashMap;

/// Index of a variable.
pub type Variable = usize;

/// The cost of two variables for each pair of their states.
#[derive(Clone, Debug)]
pub struct Edge {
    /// The variables; the first one comes before the second.
    pub ends: [Variable; 2],
    /// For each state of the first, the costs for each state of the second.
    pub costs: Vec<f64>,
}

/// A solution of a network.
#[derive(Clone, Debug)]
pub struct Solved {
    /// A state of every variable.
    pub states: Vec<usize>,
    /// What the states cost.
    pub cost: f64,
    /// No states cost less.
    pub bound: f64,
}

/// Variables with states and costs.
#[derive(Clone, Debug, Default)]
pub struct Network {
    /// For every variable the cost of each state; infinite if the state is not allowed.
    pub unary: Vec<Vec<f64>>,
    /// The pairs of variables that depend on each other, each pair once.
    pub edges: Vec<Edge>,
    /// For every variable the edges that it is an end of.
    pub touching: Vec<Vec<usize>>,
    /// What every total has in addition to the costs of states and pairs.
    pub shifted: f64,
    index: FxHashMap<[Variable; 2], usize>,
}

impl Network {
    /// Adds a variable with the cost of each of its states.
    pub fn variable(&mut self, unary: Vec<f64>) -> Variable {
        self.unary.push(unary);
        self.touching.push(Vec::new());
        self.unary.len() - 1
    }

    /// Adds a cost that depends on the states of two different variables.
    pub fn add(&mut self, a: Variable, b: Variable, cost: impl Fn(usize, usize) -> f64) {
        let ends = [a.min(b), a.max(b)];
        let [rows, columns] = ends.map(|v| self.unary[v].len());
        let at = |i: usize| if a < b { cost(i / columns, i % columns) } else { cost(i % columns, i / columns) };
        let edge = *self.index.entry(ends).or_insert_with(|| {
            ends.iter().for_each(|&v| self.touching[v].push(self.edges.len()));
            self.edges.push(Edge { ends, costs: vec![0.0; rows * columns] });
            self.edges.len() - 1
        });
        self.edges[edge].costs.iter_mut().enumerate().for_each(|(i, c)| *c += at(i));
    }

    /// The cost of a pair of states, the first one that of `from`.
    pub fn pair(&self, edge: usize, from: Variable, state: usize, other: usize) -> f64 {
        let Edge { ends, costs } = &self.edges[edge];
        let columns = self.unary[ends[1]].len();
        if ends[0] == from { costs[state * columns + other] } else { costs[other * columns + state] }
    }

    /// The other end of an edge.
    pub fn other(&self, edge: usize, from: Variable) -> Variable {
        let [a, b] = self.edges[edge].ends;
        if a == from { b } else { a }
    }

    /// The sum of all costs when every variable has a state.
    pub fn total(&self, states: &[usize]) -> f64 {
        let unary: f64 = self.unary.iter().zip(states).map(|(costs, &s)| costs[s]).sum();
        let pairs =
            self.edges.iter().enumerate().map(|(i, e)| self.pair(i, e.ends[0], states[e.ends[0]], states[e.ends[1]]));
        self.shifted + unary + pairs.sum::<f64>()
    }

    /// The network in which every variable has only some of its states.
    pub fn restricted(&self, kept: &[Vec<usize>]) -> Network {
        let mut network = Network { shifted: self.shifted, ..Network::default() };
        for (costs, kept) in self.unary.iter().zip(kept) {
            network.variable(kept.iter().map(|&s| costs[s]).collect());
        }
        for (i, edge) in self.edges.iter().enumerate() {
            let [a, b] = edge.ends;
            network.add(a, b, |x, y| self.pair(i, a, kept[a][x], kept[b][y]));
        }
        network
    }
}
