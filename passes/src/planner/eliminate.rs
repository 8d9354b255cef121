//! Solves a cost network by eliminating one variable after another (bucket elimination: Dechter, 1999).
//!
//! Eliminating a variable replaces all tables that mention it by one table over the other variables in these tables, which
//! holds the least cost over its states. The order is greedy: the next variable is the one whose table is smallest. Where
//! a table would have more entries than allowed, the tables of the variable are divided into groups that are small
//! enough, and each group takes its own minimum (mini-buckets: Dechter and Rish, 2003). Then the result is no longer
//! exact: `bound` is at most the least cost, and `states` are a solution that may cost more.

use super::network::{Network, Solved, Variable};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The costs of the states of some variables.
struct Table {
    variables: Vec<Variable>,
    /// By state, the last variable changing fastest.
    costs: Vec<f64>,
}

/// Solves a network with tables of at most `limit` entries.
pub fn eliminate(network: &Network, limit: usize) -> Solved {
    let sizes: Vec<usize> = network.unary.iter().map(Vec::len).collect();
    let mut tables: Vec<Option<Table>> = Vec::new();
    let mut mentions: Vec<Vec<usize>> = vec![Vec::new(); sizes.len()];
    let unary = network.unary.iter().enumerate().map(|(v, costs)| Table { variables: vec![v], costs: costs.clone() });
    let pairs = network.edges.iter().map(|e| Table { variables: e.ends.to_vec(), costs: e.costs.clone() });
    for table in unary.chain(pairs) {
        table.variables.iter().for_each(|&v| mentions[v].push(tables.len()));
        tables.push(Some(table));
    }
    let mut bound = network.shifted;
    // For every eliminated variable the tables that mentioned it then.
    let mut order: Vec<(Variable, Vec<Table>)> = Vec::new();
    let entries = |variables: &[Variable]| variables.iter().fold(1usize, |n, &v| n.saturating_mul(sizes[v]));
    let neighbors = |tables: &[Option<Table>], mentions: &[Vec<usize>], v: Variable| -> Vec<Variable> {
        let found = mentions[v].iter().filter_map(|&t| tables[t].as_ref()).flat_map(|t| t.variables.iter().copied());
        let mut found: Vec<Variable> = found.collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let mut pending: BinaryHeap<Reverse<(usize, Variable)>> =
        (0..sizes.len()).map(|v| Reverse((entries(&neighbors(&tables, &mentions, v)), v))).collect();
    let mut eliminated = vec![false; sizes.len()];
    while let Some(Reverse((size, v))) = pending.pop() {
        if eliminated[v] {
            continue;
        }
        let now = entries(&neighbors(&tables, &mentions, v));
        if now > size {
            pending.push(Reverse((now, v)));
            continue;
        }
        eliminated[v] = true;
        let mut bucket: Vec<Table> = mentions[v].iter().filter_map(|&t| tables[t].take()).collect();
        bucket.sort_by_key(|t| Reverse(t.costs.len()));
        let mut groups: Vec<(Vec<Variable>, Vec<&Table>)> = Vec::new();
        for table in &bucket {
            let joined = |with: &[Variable]| {
                let mut all = [with, &table.variables].concat();
                all.sort_unstable();
                all.dedup();
                all
            };
            match groups.iter_mut().find(|(with, _)| entries(&joined(with)) <= limit) {
                Some((with, members)) => {
                    *with = joined(with);
                    members.push(table);
                }
                None => groups.push((table.variables.clone(), vec![table])),
            }
        }
        for (variables, members) in groups {
            let rest: Vec<Variable> = variables.into_iter().filter(|&u| u != v).collect();
            let table = minimum(v, rest, &members, &sizes);
            if table.variables.is_empty() {
                bound += table.costs[0];
                continue;
            }
            table.variables.iter().for_each(|&u| mentions[u].push(tables.len()));
            for &u in &table.variables {
                // Its table may have become smaller as well as larger.
                pending.push(Reverse((0, u)));
            }
            tables.push(Some(table));
        }
        mentions[v].clear();
        order.push((v, bucket));
    }
    let mut states = vec![usize::MAX; sizes.len()];
    for (v, bucket) in order.into_iter().rev() {
        let cost = |state: usize| -> f64 {
            let one = |table: &Table| {
                let at =
                    table.variables.iter().fold(0, |at, &u| at * sizes[u] + if u == v { state } else { states[u] });
                table.costs[at]
            };
            bucket.iter().map(one).sum()
        };
        let best = (0..sizes[v]).map(|s| (cost(s), s)).min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        states[v] = best.map_or(0, |(_, s)| s);
    }
    let cost = network.total(&states);
    Solved { states, cost, bound: bound.min(cost) }
}

/// The least sum of some tables over the states of `v`, for all states of `rest`.
fn minimum(v: Variable, rest: Vec<Variable>, members: &[&Table], sizes: &[usize]) -> Table {
    let count: usize = rest.iter().map(|&u| sizes[u]).product();
    // By how much the position in a table changes with the state of a variable.
    let stride = |table: &Table, u: Variable| -> usize {
        let Some(at) = table.variables.iter().position(|&w| w == u) else { return 0 };
        table.variables[at + 1..].iter().map(|&w| sizes[w]).product()
    };
    let strides: Vec<Vec<usize>> = members.iter().map(|t| rest.iter().map(|&u| stride(t, u)).collect()).collect();
    let own: Vec<usize> = members.iter().map(|t| stride(t, v)).collect();
    let mut at = vec![0usize; members.len()];
    let mut digits = vec![0usize; rest.len()];
    let mut costs = Vec::with_capacity(count);
    for _ in 0..count {
        let sum = |s: usize| -> f64 { members.iter().enumerate().map(|(m, t)| t.costs[at[m] + s * own[m]]).sum() };
        costs.push((0..sizes[v]).map(sum).fold(f64::INFINITY, f64::min));
        for d in (0..rest.len()).rev() {
            digits[d] += 1;
            at.iter_mut().zip(&strides).for_each(|(at, s)| *at += s[d]);
            if digits[d] < sizes[rest[d]] {
                break;
            }
            digits[d] = 0;
            at.iter_mut().zip(&strides).for_each(|(at, s)| *at -= s[d] * sizes[rest[d]]);
        }
    }
    Table { variables: rest, costs }
}
