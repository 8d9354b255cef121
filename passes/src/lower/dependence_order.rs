//! A dependence graph whose nodes are merged, with a topological order that is kept up to date.
//!
//! Before grouping and bucketing merge two nodes, they must know whether one depends on the other. A search through all
//! dependences would take time proportional to the program. Here every node has a position after the nodes that it
//! needs, so a search from one node for another visits only nodes between the two, and nodes that are merged are
//! usually close to each other (Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic graphs",
//! 2007).
//!
//! ```text
//! order: a b c d, where c needs b, and d needs a
//! after `need(b, d)`:   a d b c      only the nodes from b to d move
//! after `merge(c, b)`:  a d c        c now needs d
//! ```

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};

/// Numbered nodes and the nodes that each of them needs. There is no cycle: callers ask [`DependenceOrder::reaches`] before
/// they add a need.
#[derive(Default)]
pub(super) struct DependenceOrder {
    /// The node that each node was merged into, perhaps over several hops; the node itself if it was not merged.
    into: Vec<usize>,
    /// The needs of each node, with the numbers that these nodes had when the need was added.
    needs: Vec<Vec<usize>>,
    /// All nodes, each after its needs. A node that was merged into another keeps a position, which has no meaning.
    order: Vec<usize>,
    /// The position of each node in the order.
    position: Vec<usize>,
}

impl DependenceOrder {
    /// Nodes numbered from 0, each with its needs, which have smaller numbers.
    pub(super) fn of(needs: &[Vec<usize>]) -> Self {
        let all = || (0..needs.len()).collect();
        DependenceOrder { into: all(), needs: needs.to_vec(), order: all(), position: all() }
    }

    /// Adds a node with its needs, and returns its number.
    pub(super) fn push(&mut self, needs: Vec<usize>) -> usize {
        let number = self.into.len();
        self.into.push(number);
        self.needs.push(needs);
        self.position.push(self.order.len());
        self.order.push(number);
        number
    }

    /// Number of nodes that were added, including those that were merged into others.
    pub(super) fn len(&self) -> usize {
        self.into.len()
    }

    /// The node that a number stands for after all merges.
    pub(super) fn current(&self, mut number: usize) -> usize {
        while self.into[number] != number {
            number = self.into[number];
        }
        number
    }

    /// The needs of a node. A need may occur several times.
    pub(super) fn needs(&self, node: usize) -> impl Iterator<Item = usize> {
        self.needs[node].iter().map(|&need| self.current(need)).filter(move |&need| need != node)
    }

    /// Whether `from` is `target` or depends on it.
    pub(super) fn reaches(&self, from: usize, target: usize) -> bool {
        from == target || self.below(from, self.position[target]).contains(&target)
    }

    /// Adds needs to a node. None of them depends on the node.
    pub(super) fn need(&mut self, node: usize, needs: impl IntoIterator<Item = usize>) {
        for need in needs {
            let need = self.current(need);
            if need != node {
                self.needs[node].push(need);
                self.put_before(need, node);
            }
        }
    }

    /// Merges `part` into `node`. Neither depends on the other through a third node.
    pub(super) fn merge(&mut self, node: usize, part: usize) {
        self.into[part] = node;
        // The merged node takes the earlier of the two positions, which is before every node that needs one of them.
        if self.position[part] < self.position[node] {
            let (earlier, later) = (self.position[part], self.position[node]);
            self.order.swap(earlier, later);
            (self.position[node], self.position[part]) = (earlier, later);
        }
        let mut needs = std::mem::take(&mut self.needs[node]);
        needs.append(&mut self.needs[part]);
        needs.iter_mut().for_each(|need| *need = self.current(*need));
        needs.sort_unstable();
        needs.dedup();
        self.need(node, needs);
    }

    /// All nodes after their needs. Among the nodes whose needs are done, the one with the smallest key comes next, then the one
    /// with the smallest number.
    pub(super) fn ordered<K: Ord>(&self, key: impl Fn(usize) -> K) -> Vec<usize> {
        let mut users: Vec<Vec<usize>> = vec![Vec::new(); self.len()];
        let mut missing: Vec<usize> = vec![0; self.len()];
        let nodes = || (0..self.len()).filter(|&node| self.current(node) == node);
        for node in nodes() {
            let needs: BTreeSet<usize> = self.needs(node).collect();
            missing[node] = needs.len();
            needs.into_iter().for_each(|need| users[need].push(node));
        }
        let entry = |node: usize| Reverse((key(node), node));
        let mut ready: BinaryHeap<_> = nodes().filter(|&node| missing[node] == 0).map(entry).collect();
        let mut order = Vec::new();
        while let Some(Reverse((_, node))) = ready.pop() {
            order.push(node);
            for &user in &users[node] {
                missing[user] -= 1;
                if missing[user] == 0 {
                    ready.push(entry(user));
                }
            }
        }
        debug_assert_eq!(order.len(), nodes().count(), "the dependences form a cycle");
        order
    }

    /// The node and all nodes that it depends on, from a position on.
    fn below(&self, node: usize, position: usize) -> HashSet<usize> {
        let mut found = HashSet::from([node]);
        let mut open = vec![node];
        while let Some(next) = open.pop() {
            for need in self.needs(next).filter(|&need| self.position[need] >= position) {
                if found.insert(need) {
                    open.push(need);
                }
            }
        }
        found
    }

    /// Moves a node, and the nodes that it depends on, before another node.
    fn put_before(&mut self, node: usize, other: usize) {
        let (from, to) = (self.position[other], self.position[node]);
        if to < from {
            return;
        }
        let moved = self.below(node, from);
        debug_assert!(!moved.contains(&other), "{node} depends on {other}");
        let between = self.order[from..=to].to_vec();
        let (first, last): (Vec<usize>, Vec<usize>) = between.into_iter().partition(|next| moved.contains(next));
        for (at, next) in (from..).zip(first.into_iter().chain(last)) {
            self.order[at] = next;
            self.position[next] = at;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DependenceOrder;
    use std::collections::HashSet;

    /// Reachability by a search through everything.
    fn searched(order: &DependenceOrder, from: usize, target: usize) -> bool {
        let (mut seen, mut open) = (HashSet::from([from]), vec![from]);
        while let Some(next) = open.pop() {
            open.extend(order.needs(next).filter(|&need| seen.insert(need)));
        }
        seen.contains(&target)
    }

    #[test]
    fn reachability_is_that_of_a_search_after_any_changes() {
        let mut state = 1u64;
        let mut draw = move |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        for _ in 0..200 {
            let mut order = DependenceOrder::default();
            for number in 0..30 {
                let needs = (0..if number > 0 { draw(3) } else { 0 }).map(|_| draw(number)).collect();
                order.push(needs);
                let (a, b) = (order.current(draw(number + 1)), order.current(draw(number + 1)));
                let direct =
                    |from: usize, to: usize| order.needs(from).any(|need| need != to && order.reaches(need, to));
                if draw(2) == 0 && !order.reaches(b, a) {
                    order.need(a, [b]);
                } else if a != b && !direct(a, b) && !direct(b, a) {
                    order.merge(a, b);
                }
            }
            let nodes: Vec<usize> = (0..order.len()).filter(|&node| order.current(node) == node).collect();
            for &from in &nodes {
                for need in order.needs(from) {
                    assert!(order.position[need] < order.position[from]);
                }
                for &target in &nodes {
                    assert_eq!(order.reaches(from, target), searched(&order, from, target), "{from} to {target}");
                }
            }
        }
    }
}
