//! Things that depend on each other, some of which become one: whether one reaches another, answered from an order that is
//! kept up to date.
//!
//! Grouping and bucketing ask for every pair that they would put together whether one depends on the other. A search
//! through all dependences takes as long as the program is. Here each thing has a position after everything that it
//! needs, so a search from one thing for another looks only at what lies between the two, and what is put together lies
//! close together (Pearce and Kelly, "A dynamic topological sort algorithm for directed acyclic graphs", 2007).
//!
//! ```text
//! order: a b c d, where c needs b and d needs a
//! after `need(b, d)`, b needs d:  a d b c      only what lies from b to d is moved
//! after `merge(a, b)`:            d a c        a is now what b was, too, and needs d
//! ```

use std::collections::HashSet;

/// Numbered things and what each of them needs. No thing needs itself, also not through others: callers ask before they add a need.
#[derive(Default)]
pub(super) struct DependenceOrder {
    /// The thing that each one has become a part of, perhaps over several hops; itself if it is none.
    into: Vec<usize>,
    /// What each thing needs, by the numbers that these things had when the need was added.
    needs: Vec<Vec<usize>>,
    /// All things, each after what it needs. What has become a part of another keeps a place, which means nothing.
    order: Vec<usize>,
    /// Where each thing stands in the order.
    position: Vec<usize>,
}

impl DependenceOrder {
    /// Things numbered from 0 with what each of them needs, which has a smaller number.
    pub(super) fn of(needs: &[Vec<usize>]) -> Self {
        let all = || (0..needs.len()).collect();
        DependenceOrder { into: all(), needs: needs.to_vec(), order: all(), position: all() }
    }

    /// Adds a thing that needs others, and gives its number.
    pub(super) fn push(&mut self, needs: Vec<usize>) -> usize {
        let number = self.into.len();
        self.into.push(number);
        self.needs.push(needs);
        self.position.push(self.order.len());
        self.order.push(number);
        number
    }

    /// How many things were added, those included that have become parts of others.
    pub(super) fn len(&self) -> usize {
        self.into.len()
    }

    /// The thing that a number means now.
    pub(super) fn current(&self, mut number: usize) -> usize {
        while self.into[number] != number {
            number = self.into[number];
        }
        number
    }

    /// What a thing needs. A need may occur several times.
    pub(super) fn needs(&self, thing: usize) -> impl Iterator<Item = usize> {
        self.needs[thing].iter().map(|&need| self.current(need)).filter(move |&need| need != thing)
    }

    /// Whether `from` is `target` or depends on it.
    pub(super) fn reaches(&self, from: usize, target: usize) -> bool {
        from == target || self.below(from, self.position[target]).contains(&target)
    }

    /// Makes a thing need others, none of which depends on it.
    pub(super) fn need(&mut self, thing: usize, needs: impl IntoIterator<Item = usize>) {
        for need in needs {
            let need = self.current(need);
            if need != thing {
                self.needs[thing].push(need);
                self.put_before(need, thing);
            }
        }
    }

    /// Makes `part` a part of `thing`; neither depends on the other but directly.
    pub(super) fn merge(&mut self, thing: usize, part: usize) {
        self.into[part] = thing;
        // The whole stands at the earlier of the two places, before all that needs one of them.
        if self.position[part] < self.position[thing] {
            let (earlier, later) = (self.position[part], self.position[thing]);
            self.order.swap(earlier, later);
            (self.position[thing], self.position[part]) = (earlier, later);
        }
        let mut needs = std::mem::take(&mut self.needs[thing]);
        needs.append(&mut self.needs[part]);
        needs.iter_mut().for_each(|need| *need = self.current(*need));
        needs.sort_unstable();
        needs.dedup();
        self.need(thing, needs);
    }

    /// All that a thing depends on from a position on, itself included.
    fn below(&self, thing: usize, position: usize) -> HashSet<usize> {
        let mut found = HashSet::from([thing]);
        let mut open = vec![thing];
        while let Some(next) = open.pop() {
            for need in self.needs(next).filter(|&need| self.position[need] >= position) {
                if found.insert(need) {
                    open.push(need);
                }
            }
        }
        found
    }

    /// Moves one thing, with what it depends on, before another.
    fn put_before(&mut self, thing: usize, other: usize) {
        let (from, to) = (self.position[other], self.position[thing]);
        if to < from {
            return;
        }
        let moved = self.below(thing, from);
        debug_assert!(!moved.contains(&other), "{thing} depends on {other}");
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
                let needs = (0..draw(3)).filter_map(|_| (number > 0).then(|| draw(number))).collect();
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
            let things: Vec<usize> = (0..order.len()).filter(|&thing| order.current(thing) == thing).collect();
            for &from in &things {
                for need in order.needs(from) {
                    assert!(order.position[need] < order.position[from]);
                }
                for &target in &things {
                    assert_eq!(order.reaches(from, target), searched(&order, from, target), "{from} to {target}");
                }
            }
        }
    }
}
