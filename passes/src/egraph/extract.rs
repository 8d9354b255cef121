//! Chooses one term per class so that the whole program costs least.
//!
//! The cost of a program is the sum over the *distinct* classes that it uses. (egg's own extractor adds up trees: it counts
//! a shared residual once for each reader, and what sharing saves is lost.) The search starts from the program that came
//! in. Each class outside of it gets the term with the least *marginal* cost, which is what the term needs beyond the
//! current program. Then one class at a time changes its term if the exact total falls, until no change helps. A collective
//! with several readers prevents that, since no single reader gains by a term without it, so all its readers change to
//! such terms in one step if the total falls then. Where links differ, a reduction is also taken apart by one change of three classes.
//! Then the marginal costs are computed again, and so on. The total never rises, so the result costs at most what the
//! program that came in costs.
//!
//! Every look at a class counts as a move. Once the moves that the search may make are used up, the result is the best
//! program so far.

use super::heads::Heads;
use super::stop::Extraction;
use super::term::{ClassData, Term, Typing, canonical};
use egg::{EClass, EGraph, Id};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap, VecDeque};
use tpc_ir::{Op, Type};

/// The chosen program: classes with their terms, operands first.
pub struct Solution {
    /// Terms in an order in which operands come first.
    pub order: Vec<(Id, Term)>,
    /// Total predicted seconds.
    pub seconds: f64,
    /// How many classes were looked at.
    pub moves: usize,
    /// How many collectives have too many readers to be left by all of them at once.
    pub crowded: usize,
    /// Why no more changes were made.
    pub end: Extraction,
}

/// Improvements below this are rounding noise.
const EPSILON: f64 = 1e-13;

/// Readers of a collective that are looked at together.
const MOST_READERS: usize = 8;

/// Most times that marginal costs are computed.
const ROUNDS: usize = 8;

/// Seconds of an operation with operands and a result of these classes and types.
pub type Seconds<'a> = dyn Fn(&Op, &[(Id, &Type)], (Id, &Type)) -> f64 + 'a;

/// Extracts the cheapest program for `roots` that so many moves find; `first` is the program that came in.
pub fn extract(
    egraph: &EGraph<Term, Typing>,
    roots: &[Id],
    first: &HashMap<Id, Term>,
    seconds: &Seconds<'_>,
    moves: usize,
) -> Solution {
    let mut search = Search::new(egraph, roots, first, seconds, moves);
    let mut end = Extraction::Rounds(ROUNDS);
    for _ in 0..ROUNDS {
        let before = search.total;
        search.complete();
        if egraph.analysis.links_differ() {
            search.take_apart();
        }
        search.improve();
        search.desert();
        if search.is_over() {
            end = Extraction::Moves(moves);
            break;
        }
        if search.total >= before - EPSILON {
            end = Extraction::Settled;
            break;
        }
    }
    let chosen = |&class: &Place| {
        let Class { id, terms, .. } = &search.classes[class];
        (*id, terms[search.choice[class]].clone())
    };
    let order = search.order().iter().map(chosen).collect();
    Solution { order, seconds: search.total, moves: search.moves.get(), crowded: search.crowded(), end }
}

/// A class: its position in the list of classes.
type Place = usize;

/// Stands for no position.
const NONE: usize = usize::MAX;

/// A class with canonical terms and what each costs.
struct Class {
    id: Id,
    terms: Vec<Term>,
    /// The operands of each term.
    children: Vec<Vec<Place>>,
    costs: Vec<f64>,
    /// The kind of each term.
    heads: Vec<Heads>,
}

struct Search {
    roots: Vec<Place>,
    /// Sorted by id.
    classes: Vec<Class>,
    parents: Vec<Vec<Place>>,
    /// The chosen term of every class, or [`NONE`] while no term of it can be computed.
    choice: Vec<usize>,
    /// How often the current program uses a class.
    uses: Vec<u32>,
    /// The position of every class in a topological order of the current program.
    position: Vec<usize>,
    total: f64,
    /// How many classes were looked at, and how many may be.
    moves: Cell<usize>,
    most: usize,
    /// The number of walks, and for every class the last walk that visited it.
    seen: RefCell<(u32, Vec<u32>)>,
}

impl Search {
    fn new(
        egraph: &EGraph<Term, Typing>,
        roots: &[Id],
        first: &HashMap<Id, Term>,
        seconds: &Seconds<'_>,
        most: usize,
    ) -> Self {
        let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        let mut number = vec![NONE; ids.last().map_or(0, |&last| usize::from(last) + 1)];
        ids.iter().enumerate().for_each(|(i, &id)| number[usize::from(id)] = i);
        let class = |c: &EClass<Term, ClassData>| {
            let mut terms: Vec<Term> = c.nodes.iter().map(|t| canonical(egraph, t.clone())).collect();
            terms.sort_unstable();
            terms.dedup();
            terms.retain(|t| !t.children.contains(&c.id));
            let cost = |t: &Term| {
                let operands: Vec<(Id, &Type)> = t.children.iter().map(|&c| (c, &egraph[c].data.ty)).collect();
                // Of programs that cost the same, the one with fewer operations is taken.
                seconds(&egraph.analysis.key(t.key).op, &operands, (c.id, &c.data.ty)) + 1e-12
            };
            let children = |t: &Term| t.children.iter().map(|&c| number[usize::from(c)]).collect();
            Class {
                id: c.id,
                children: terms.iter().map(children).collect(),
                costs: terms.iter().map(cost).collect(),
                heads: terms.iter().map(|t| egraph.analysis.head(t.key)).collect(),
                terms,
            }
        };
        let classes: Vec<Class> = ids.iter().map(|&id| class(&egraph[id])).collect();
        let mut parents: Vec<Vec<Place>> = vec![Vec::new(); classes.len()];
        for (i, class) in classes.iter().enumerate() {
            class.children.iter().flatten().for_each(|&child| parents[child].push(i));
        }
        let count = classes.len();
        let mut search = Search {
            roots: roots.iter().map(|&root| number[usize::from(egraph.find(root))]).collect(),
            classes,
            parents,
            choice: vec![NONE; count],
            uses: vec![0; count],
            position: vec![NONE; count],
            total: 0.0,
            moves: Cell::new(0),
            most,
            seen: RefCell::new((0, vec![0; count])),
        };
        for (id, term) in first {
            let class = number[usize::from(*id)];
            if let Some(i) = search.classes[class].terms.iter().position(|t| t == term) {
                search.choice[class] = i;
            }
        }
        for root in search.roots.clone() {
            search.acquire(root);
        }
        search.reorder();
        search
    }

    /// Counts a look at a class.
    fn look(&self) {
        self.moves.set(self.moves.get() + 1);
    }

    fn is_over(&self) -> bool {
        self.moves.get() >= self.most
    }

    fn is_used(&self, class: Place) -> bool {
        self.uses[class] > 0
    }

    /// Gives every class outside the program the term that needs least beyond the program.
    fn complete(&mut self) {
        let outside = |s: &Self, class: Place| !s.is_used(class);
        let of = |class: Place| if self.is_used(class) { 0.0 } else { f64::INFINITY };
        let mut marginal: Vec<f64> = (0..self.classes.len()).map(of).collect();
        let mut pending: VecDeque<Place> = (0..self.classes.len()).filter(|&c| outside(self, c)).collect();
        let mut queued: Vec<bool> = (0..self.classes.len()).map(|c| outside(self, c)).collect();
        pending.iter().for_each(|&c| self.choice[c] = NONE);
        while let Some(id) = pending.pop_front().filter(|_| !self.is_over()) {
            self.look();
            queued[id] = false;
            let class = &self.classes[id];
            let before = marginal[id];
            let mut best = before;
            for (i, children) in class.children.iter().enumerate() {
                let needed = class.costs[i] + children.iter().map(|&c| marginal[c]).sum::<f64>();
                if needed < best - EPSILON * 0.01 {
                    best = needed;
                    self.choice[id] = i;
                }
            }
            if best < before {
                marginal[id] = best;
                for &p in &self.parents[id] {
                    if outside(self, p) && !queued[p] {
                        queued[p] = true;
                        pending.push_back(p);
                    }
                }
            }
        }
    }

    /// The classes of the program with their positions.
    fn used(&self) -> impl Iterator<Item = (usize, Place)> + '_ {
        (0..self.classes.len()).filter(|&c| self.is_used(c)).map(|c| (self.position[c], c))
    }

    /// Takes reductions apart where the total falls: an all-reduce becomes the gather of a reduction of a scatter (rule 25).
    /// Changing one class at a time does not find that: the cheapest term of the class below the gather is a slice of the
    /// all-reduce itself, and with that term the program would have a cycle.
    fn take_apart(&mut self) {
        let mut sums: Vec<(usize, Place)> = self.used().collect();
        sums.retain(|&(_, id)| self.classes[id].heads[self.choice[id]] == Heads::ALL_REDUCE);
        sums.sort_unstable();
        for (_, id) in sums.into_iter().rev() {
            for (gather, reduced) in self.moves_of(id, Heads::ALL_GATHER) {
                for (reduction, scattered) in self.moves_of(reduced, Heads::ALL_REDUCE) {
                    for (scatter, term) in self.moves_of(scattered, Heads::REDUCE_SCATTER) {
                        self.try_apart(id, gather, [(reduced, reduction), (scattered, scatter)], term);
                    }
                }
            }
        }
    }

    /// The terms of a class that are of one kind and have one operand, with their operands.
    fn moves_of(&self, id: Place, head: Heads) -> Vec<(usize, Place)> {
        let class = &self.classes[id];
        let terms = class.heads.iter().zip(&class.children).enumerate();
        terms.filter(|(_, (h, children))| **h == head && children.len() == 1).map(|(i, (_, c))| (i, c[0])).collect()
    }

    /// Gives a class a term whose operands get the terms `below`, down to `last`, if the total falls.
    fn try_apart(&mut self, id: Place, to: usize, below: [(Place, usize); 2], last: Place) {
        let is_free = |&(class, term): &(Place, usize)| !self.is_used(class) || self.choice[class] == term;
        let now = self.choice[id];
        if self.is_over() || !self.is_used(id) || to == now || !below.iter().all(is_free) || self.reaches(&[last], id) {
            return;
        }
        let (before, choices) = (self.total, below.map(|(class, _)| self.choice[class]));
        below.iter().for_each(|&(class, term)| self.choice[class] = term);
        self.switch(id, to);
        if self.total >= before - EPSILON {
            self.switch(id, now);
            self.total = before;
            below.iter().zip(choices).for_each(|(&(class, _), choice)| self.choice[class] = choice);
        }
        self.reorder();
    }

    /// Changes one class at a time while the total falls. Readers come before what they read, since a change near the
    /// outputs can make whole branches unused.
    fn improve(&mut self) {
        let pending: BTreeSet<(usize, Place)> = self.used().collect();
        for (_, id) in pending.into_iter().rev() {
            if !self.is_used(id) {
                continue;
            }
            for i in 0..self.classes[id].terms.len() {
                let now = self.choice[id];
                if self.is_over() {
                    return;
                }
                if i == now || !self.can_take(id, i, &[id]) {
                    continue;
                }
                let before = self.total;
                self.switch(id, i);
                if self.total >= before - EPSILON {
                    self.switch(id, now);
                    self.total = before;
                }
                self.insert_order(id);
            }
        }
    }

    /// Changes all readers of a collective to terms without it, where the total falls.
    fn desert(&mut self) {
        let mut collectives: Vec<(usize, Place)> = self.used().collect();
        collectives.retain(|&(_, id)| self.classes[id].heads[self.choice[id]].meets(Heads::COLLECTIVES));
        collectives.sort_unstable();
        for (_, id) in collectives.into_iter().rev() {
            if self.is_over() {
                return;
            }
            let readers = self.readers(id);
            if !self.is_used(id) || !(2..=MOST_READERS).contains(&readers.len()) {
                continue;
            }
            let before = self.total;
            let mut done: Vec<(Place, usize)> = Vec::new();
            for reader in readers {
                // A reader that only an earlier reader read is no longer in the program.
                if !self.is_used(reader) {
                    continue;
                }
                let now = self.choice[reader];
                let others = (0..self.classes[reader].terms.len()).filter(|&i| i != now);
                let without: Vec<usize> = others.filter(|&i| self.can_take(reader, i, &[reader, id])).collect();
                let mut best: Option<(f64, usize)> = None;
                for i in without {
                    let start = self.total;
                    self.switch(reader, i);
                    if best.is_none_or(|(total, _)| self.total < total) {
                        best = Some((self.total, i));
                    }
                    self.switch(reader, now);
                    self.total = start;
                }
                let Some((_, i)) = best else { break };
                self.switch(reader, i);
                self.reorder();
                done.push((reader, now));
            }
            if self.total >= before - EPSILON {
                let changed = !done.is_empty();
                for (reader, now) in done.into_iter().rev() {
                    self.switch(reader, now);
                }
                self.total = before;
                if changed {
                    self.reorder();
                }
            }
        }
    }

    /// The classes of the program that read a class, in its order.
    fn readers(&self, id: Place) -> Vec<Place> {
        let mut readers: Vec<Place> = self.parents[id].clone();
        readers.retain(|&p| self.is_used(p) && self.operands(p).contains(&id));
        readers.sort_unstable_by_key(|&p| (self.position[p], p));
        readers.dedup();
        readers
    }

    /// How many collectives have more readers than are looked at together.
    fn crowded(&self) -> usize {
        let is_collective = |id: Place| self.classes[id].heads[self.choice[id]].meets(Heads::COLLECTIVES);
        self.used().filter(|&(_, id)| is_collective(id) && self.readers(id).len() > MOST_READERS).count()
    }

    /// The operands of the chosen term of a class.
    fn operands(&self, class: Place) -> &[Place] {
        &self.classes[class].children[self.choice[class]]
    }

    /// Whether a class can change to a term: all operands of the term have terms and do not depend on the `targets`.
    fn can_take(&self, id: Place, to: usize, targets: &[Place]) -> bool {
        let children = &self.classes[id].children[to];
        children.iter().all(|&c| self.choice[c] != NONE) && !targets.iter().any(|&t| self.reaches(children, t))
    }

    fn switch(&mut self, id: Place, to: usize) {
        let from = self.choice[id];
        let class = &self.classes[id];
        self.total += class.costs[to] - class.costs[from];
        self.choice[id] = to;
        for i in 0..self.classes[id].children[to].len() {
            self.acquire(self.classes[id].children[to][i]);
        }
        for i in 0..self.classes[id].children[from].len() {
            self.release(self.classes[id].children[from][i]);
        }
    }

    fn acquire(&mut self, id: Place) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            self.look();
            self.uses[id] += 1;
            if self.uses[id] == 1 {
                let class = &self.classes[id];
                let term = self.choice[id];
                self.total += class.costs[term];
                stack.extend(&class.children[term]);
            }
        }
    }

    fn release(&mut self, id: Place) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            self.look();
            if self.uses[id] == 0 {
                continue;
            }
            self.uses[id] -= 1;
            if self.uses[id] == 0 {
                self.position[id] = NONE;
                let class = &self.classes[id];
                let term = self.choice[id];
                self.total -= class.costs[term];
                stack.extend(&class.children[term]);
            }
        }
    }

    /// Begins a walk over classes.
    fn walk(&self) -> std::cell::RefMut<'_, (u32, Vec<u32>)> {
        let mut seen = self.seen.borrow_mut();
        seen.0 += 1;
        seen
    }

    /// Whether some of `from` depend on `target` under the current choices.
    fn reaches(&self, from: &[Place], target: Place) -> bool {
        let limit = if self.position[target] == NONE { 0 } else { self.position[target] };
        let mut walk = self.walk();
        let (now, seen) = &mut *walk;
        let mut stack = from.to_vec();
        while let Some(id) = stack.pop() {
            self.look();
            if id == target {
                return true;
            }
            // What stands before the target in the order of the program cannot depend on it.
            let before = self.position[id] != NONE && self.position[id] < limit && self.is_used(id);
            if before || std::mem::replace(&mut seen[id], *now) == *now {
                continue;
            }
            if self.choice[id] == NONE {
                return true;
            }
            stack.extend(self.operands(id));
        }
        false
    }

    /// Gives what the new term of a class brought into the program the position of the class. The order stays valid for
    /// [`Search::reaches`], unless the term reads something at a later position; then all positions are computed again.
    fn insert_order(&mut self, id: Place) {
        let at = self.position[id];
        let mut stack = self.operands(id).to_vec();
        while let Some(c) = stack.pop() {
            self.look();
            match self.position[c] {
                NONE => {
                    self.position[c] = at;
                    stack.extend(self.operands(c));
                }
                p if p > at => return self.reorder(),
                _ => {}
            }
        }
    }

    fn reorder(&mut self) {
        self.position.fill(NONE);
        for (i, class) in self.order().into_iter().enumerate() {
            self.position[class] = i;
        }
    }

    /// The classes of the program, operands first.
    fn order(&self) -> Vec<Place> {
        let mut order = Vec::new();
        let mut walk = self.walk();
        let (now, done) = &mut *walk;
        for &root in &self.roots {
            let mut stack = vec![(root, 0usize)];
            while let Some((id, next)) = stack.pop() {
                if done[id] == *now {
                    continue;
                }
                match self.operands(id).get(next) {
                    Some(&c) => {
                        stack.push((id, next + 1));
                        if done[c] != *now {
                            stack.push((c, 0));
                        }
                    }
                    None => {
                        self.look();
                        done[id] = *now;
                        order.push(id);
                    }
                }
            }
        }
        order
    }
}
