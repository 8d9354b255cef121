//! Solves a cost network by eliminating one variable after another (bucket elimination: Dechter, 1999).
//!
//! Eliminating a variable replaces all tables that mention it by one table over the other variables in these tables, which
//! holds the least cost over its states. The order is greedy: the next variable is the one whose table is smallest. Where
//! a table would have more entries than allowed, the tables of the variable are divided into groups that are small
//! enough, and each group takes its own minimum (mini-buckets: Dechter and Rish, 2003). Then the result is no longer
//! exact: `bound` is at most the least cost, and `states` are a solution that may cost more.

use super::network::{Edge, Network, Solved, Variable};
use super::shift::lesser;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The costs of the states of some variables.
struct Table {
    /// In the order of their numbers of states, so that the inner loop of [`minimum`] runs over the most states.
    variables: Vec<Variable>,
    /// By state, the last variable changing fastest.
    costs: Vec<f64>,
}

impl Table {
    /// The costs of a pair of variables.
    fn of(edge: &Edge, sizes: &[usize]) -> Self {
        let [a, b] = edge.ends;
        if (sizes[a], a) < (sizes[b], b) {
            return Table { variables: vec![a, b], costs: edge.costs.clone() };
        }
        let transposed = (0..sizes[b]).flat_map(|y| (0..sizes[a]).map(move |x| edge.costs[x * sizes[b] + y]));
        Table { variables: vec![b, a], costs: transposed.collect() }
    }
}

/// Solves a network with tables of at most `limit` entries.
pub fn eliminate(network: &Network, limit: usize) -> Solved {
    let sizes: Vec<usize> = network.unary.iter().map(Vec::len).collect();
    let mut tables: Vec<Option<Table>> = Vec::new();
    let mut mentions: Vec<Vec<usize>> = vec![Vec::new(); sizes.len()];
    let unary = network.unary.iter().enumerate().map(|(v, costs)| Table { variables: vec![v], costs: costs.clone() });
    let pairs = network.edges.iter().map(|edge| Table::of(edge, &sizes));
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
                all.sort_unstable_by_key(|&u| (sizes[u], u));
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

/// The least sum of some tables over the states of `v`, for all states of `rest`. All tables mention `v`, and their other
/// variables are among `rest`.
fn minimum(v: Variable, rest: Vec<Variable>, members: &[&Table], sizes: &[usize]) -> Table {
    let members: Vec<ByState> = members.iter().map(|table| ByState::of(table, v, &rest, sizes)).collect();
    // The states of the last variable are next to each other in every table, so they are added as vectors.
    let (width, outer) = rest.split_last().map_or((1, &[][..]), |(&last, outer)| (sizes[last], outer));
    let count: usize = outer.iter().map(|&u| sizes[u]).product();
    let mut costs = vec![f64::INFINITY; count * width];
    let mut sums = vec![0.0; width];
    for state in 0..sizes[v] {
        let mut at: Vec<usize> = members.iter().map(|member| member.block * state).collect();
        let mut digits = vec![0usize; outer.len()];
        for row in costs.chunks_exact_mut(width) {
            sums.fill(0.0);
            for (member, &at) in members.iter().zip(&at) {
                match member.has_last {
                    true => sums.iter_mut().zip(&member.costs[at..at + width]).for_each(|(sum, cost)| *sum += cost),
                    false => sums.iter_mut().for_each(|sum| *sum += member.costs[at]),
                }
            }
            row.iter_mut().zip(&sums).for_each(|(least, &sum)| *least = lesser(sum, *least));
            for d in (0..outer.len()).rev() {
                digits[d] += 1;
                at.iter_mut().zip(&members).for_each(|(at, member)| *at += member.strides[d]);
                if digits[d] < sizes[outer[d]] {
                    break;
                }
                digits[d] = 0;
                at.iter_mut().zip(&members).for_each(|(at, member)| *at -= member.strides[d] * sizes[outer[d]]);
            }
        }
    }
    Table { variables: rest, costs }
}

/// A table in which the variable to eliminate changes slowest.
struct ByState {
    costs: Vec<f64>,
    /// The entries for one state of that variable.
    block: usize,
    /// Whether the table mentions the last of the other variables, which then changes fastest.
    has_last: bool,
    /// By how much the position changes with the state of each of the other variables but the last.
    strides: Vec<usize>,
}

impl ByState {
    fn of(table: &Table, v: Variable, rest: &[Variable], sizes: &[usize]) -> Self {
        let at = table.variables.iter().position(|&u| u == v).expect("the table mentions the variable");
        let entries = |variables: &[Variable]| variables.iter().map(|&u| sizes[u]).product::<usize>();
        let (before, after) = (entries(&table.variables[..at]), entries(&table.variables[at + 1..]));
        let mut costs = Vec::with_capacity(table.costs.len());
        for state in 0..sizes[v] {
            for prefix in 0..before {
                let start = (prefix * sizes[v] + state) * after;
                costs.extend_from_slice(&table.costs[start..start + after]);
            }
        }
        let others: Vec<Variable> = table.variables.iter().copied().filter(|&u| u != v).collect();
        let stride = |&u: &Variable| others.iter().position(|&w| w == u).map_or(0, |at| entries(&others[at + 1..]));
        let (has_last, strides) = match rest.split_last() {
            Some((last, outer)) => (others.contains(last), outer.iter().map(stride).collect()),
            None => (true, Vec::new()),
        };
        ByState { costs, block: before * after, has_last, strides }
    }
}
