//! Chooses one term per class so that the whole program costs least.
//!
//! The cost of a program is the sum over the *distinct* classes it uses (a DAG cost: egg's own tree
//! extractor counts a shared residual once per reader and loses all the gain). The search starts
//! from the program that came in. Classes outside of it get the term with the least *marginal* cost,
//! what it needs beyond the current program; then one class at a time changes its term whenever the
//! exact total falls, until nothing helps. A collective with several readers is in the way of that: no
//! reader gains by leaving it alone. So all readers of one leave it together, if the total falls then.
//! Then the marginal costs are taken anew. Cost never rises, so the result is at most that of the program
//! that came in.

use super::term::{ClassData, Term, Typing, canonical};
use egg::{EClass, EGraph, Id};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use tpc_ir::{Op, Type};

/// The chosen program: classes with their terms, operands first.
pub struct Solution {
    /// Terms in an order in which operands come first.
    pub order: Vec<(Id, Term)>,
    /// Total predicted seconds.
    pub seconds: f64,
}

/// Improvements below this are rounding noise.
const EPSILON: f64 = 1e-13;

/// Readers of a collective that are looked at together.
const MOST_READERS: usize = 8;

/// Most times that marginal costs are taken anew.
const ROUNDS: usize = 8;

/// Seconds of an operation with operands and a result of these classes and types.
pub type Seconds<'a> = dyn Fn(&Op, &[(Id, &Type)], (Id, &Type)) -> f64 + 'a;

/// Extracts the cheapest program found for `roots`; `first` is the program that came in.
pub fn extract(
    egraph: &EGraph<Term, Typing>,
    roots: &[Id],
    first: &HashMap<Id, Term>,
    seconds: &Seconds<'_>,
) -> Solution {
    let mut search = Search::new(egraph, roots, first, seconds);
    for _ in 0..ROUNDS {
        let before = search.total;
        search.complete();
        search.improve();
        search.desert();
        if search.total >= before - EPSILON {
            break;
        }
    }
    let order = search.order();
    let terms = order.iter().map(|&id| (id, search.classes[&id].terms[search.choice[&id]].clone())).collect();
    Solution { order: terms, seconds: search.total }
}

/// A class with canonical terms and what each costs.
struct Class {
    terms: Vec<Term>,
    costs: Vec<f64>,
    /// Whether each term is a collective.
    collective: Vec<bool>,
}

struct Search<'a> {
    egraph: &'a EGraph<Term, Typing>,
    roots: &'a [Id],
    classes: HashMap<Id, Class>,
    parents: HashMap<Id, Vec<Id>>,
    /// Chosen term of every class that could be used.
    choice: HashMap<Id, usize>,
    /// How often the current program uses a class; absent if not.
    uses: HashMap<Id, usize>,
    /// Position in a topological order of the current program.
    position: HashMap<Id, usize>,
    total: f64,
}

impl<'a> Search<'a> {
    fn new(
        egraph: &'a EGraph<Term, Typing>,
        roots: &'a [Id],
        first: &HashMap<Id, Term>,
        seconds: &Seconds<'_>,
    ) -> Self {
        let class = |c: &EClass<Term, ClassData>| {
            let mut terms: Vec<Term> = c.nodes.iter().map(|t| canonical(egraph, t.clone())).collect();
            terms.sort_unstable();
            terms.dedup();
            terms.retain(|t| !t.children.contains(&c.id));
            let cost = |t: &Term| {
                let operands: Vec<(Id, &Type)> = t.children.iter().map(|&c| (c, &egraph[c].data.ty)).collect();
                // A tie goes to fewer operations.
                seconds(&egraph.analysis.key(t.key).op, &operands, (c.id, &c.data.ty)) + 1e-12
            };
            let costs = terms.iter().map(cost).collect();
            let collective = terms.iter().map(|t| egraph.analysis.key(t.key).op.is_collective()).collect();
            Class { terms, costs, collective }
        };
        let classes: HashMap<Id, Class> = egraph.classes().map(|c| (c.id, class(c))).collect();
        let mut parents: HashMap<Id, Vec<Id>> = HashMap::new();
        let mut ids: Vec<Id> = classes.keys().copied().collect();
        ids.sort_unstable();
        for &id in &ids {
            for child in classes[&id].terms.iter().flat_map(|t| &t.children) {
                parents.entry(*child).or_default().push(id);
            }
        }
        let mut search = Search {
            egraph,
            roots,
            classes,
            parents,
            choice: HashMap::new(),
            uses: HashMap::new(),
            position: HashMap::new(),
            total: 0.0,
        };
        for (id, term) in first {
            if let Some(i) = search.classes[id].terms.iter().position(|t| t == term) {
                search.choice.insert(*id, i);
            }
        }
        for &root in roots {
            search.acquire(egraph.find(root));
        }
        search.reorder();
        search
    }

    /// Gives every class outside the program the term that needs least beyond the program.
    fn complete(&mut self) {
        let mut marginal: HashMap<Id, f64> = self.uses.keys().map(|&id| (id, 0.0)).collect();
        let mut pending: VecDeque<Id> = VecDeque::new();
        let mut queued: HashSet<Id> = HashSet::new();
        let mut start: Vec<Id> = self.classes.keys().copied().filter(|id| !self.uses.contains_key(id)).collect();
        start.sort_unstable();
        pending.extend(&start);
        queued.extend(&start);
        let mut chosen: HashMap<Id, usize> = HashMap::new();
        while let Some(id) = pending.pop_front() {
            queued.remove(&id);
            let class = &self.classes[&id];
            let mut best = marginal.get(&id).copied().unwrap_or(f64::INFINITY);
            let before = best;
            for (i, term) in class.terms.iter().enumerate() {
                let below: f64 = term.children.iter().map(|c| marginal.get(c).copied().unwrap_or(f64::INFINITY)).sum();
                if class.costs[i] + below < best - EPSILON * 0.01 {
                    best = class.costs[i] + below;
                    chosen.insert(id, i);
                }
            }
            if best < before {
                marginal.insert(id, best);
                for &p in self.parents.get(&id).into_iter().flatten() {
                    if !self.uses.contains_key(&p) && queued.insert(p) {
                        pending.push_back(p);
                    }
                }
            }
        }
        self.choice.retain(|id, _| self.uses.contains_key(id));
        self.choice.extend(chosen);
    }

    /// Changes one class at a time while the total falls; readers first, since a change near the
    /// outputs can make whole branches unused.
    fn improve(&mut self) {
        let mut pending: BTreeSet<(usize, Id)> = self.position.iter().map(|(&id, &p)| (p, id)).collect();
        while let Some((_, id)) = pending.pop_last() {
            if !self.uses.contains_key(&id) {
                continue;
            }
            for i in 0..self.classes[&id].terms.len() {
                let now = self.choice[&id];
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

    /// Lets all readers of a collective change to terms that do without it, where the total falls.
    fn desert(&mut self) {
        let mut collectives: Vec<(usize, Id)> = self.position.iter().map(|(&id, &p)| (p, id)).collect();
        collectives.retain(|(_, id)| self.classes[id].collective[self.choice[id]]);
        collectives.sort_unstable();
        for (_, id) in collectives.into_iter().rev() {
            let reads = |s: &Self, p: &Id| s.uses.contains_key(p) && s.term(*p).children.contains(&id);
            let mut readers: Vec<Id> = self.parents.get(&id).into_iter().flatten().copied().collect();
            readers.retain(|p| reads(self, p));
            readers.sort_unstable_by_key(|p| (self.position[p], *p));
            readers.dedup();
            if !self.uses.contains_key(&id) || !(2..=MOST_READERS).contains(&readers.len()) {
                continue;
            }
            let before = self.total;
            let mut done: Vec<(Id, usize)> = Vec::new();
            for reader in readers {
                let now = self.choice[&reader];
                let others = (0..self.classes[&reader].terms.len()).filter(|&i| i != now);
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
                for (reader, now) in done.into_iter().rev() {
                    self.switch(reader, now);
                }
                self.total = before;
                self.reorder();
            }
        }
    }

    fn term(&self, id: Id) -> &Term {
        &self.classes[&id].terms[self.choice[&id]]
    }

    /// Whether a class can change to a term: all that it needs has a term, and none of it depends on the
    /// `targets`.
    fn can_take(&self, id: Id, to: usize, targets: &[Id]) -> bool {
        let children = &self.classes[&id].terms[to].children;
        children.iter().all(|c| self.choice.contains_key(c)) && !targets.iter().any(|&t| self.reaches(children, t))
    }

    fn switch(&mut self, id: Id, to: usize) {
        let class = &self.classes[&id];
        let from = self.choice[&id];
        let (old, new) = (class.terms[from].children.clone(), class.terms[to].children.clone());
        self.total += class.costs[to] - class.costs[from];
        self.choice.insert(id, to);
        new.into_iter().for_each(|c| self.acquire(c));
        old.into_iter().for_each(|c| self.release(c));
    }

    fn acquire(&mut self, id: Id) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let uses = self.uses.entry(id).or_insert(0);
            *uses += 1;
            if *uses == 1 {
                let class = &self.classes[&id];
                let term = self.choice[&id];
                self.total += class.costs[term];
                stack.extend(&class.terms[term].children);
            }
        }
    }

    fn release(&mut self, id: Id) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let Some(uses) = self.uses.get_mut(&id) else { continue };
            *uses -= 1;
            if *uses == 0 {
                self.uses.remove(&id);
                self.position.remove(&id);
                let class = &self.classes[&id];
                let term = self.choice[&id];
                self.total -= class.costs[term];
                stack.extend(&class.terms[term].children);
            }
        }
    }

    /// Whether some of `from` depend on `target` under the current choices.
    fn reaches(&self, from: &[Id], target: Id) -> bool {
        let limit = self.position.get(&target).copied().unwrap_or(0);
        let mut seen = HashSet::new();
        let mut stack = from.to_vec();
        while let Some(id) = stack.pop() {
            if id == target {
                return true;
            }
            // Whatever stands before the target in the program's order cannot depend on it.
            let before = self.position.get(&id).is_some_and(|&p| p < limit) && self.uses.contains_key(&id);
            if before || !seen.insert(id) {
                continue;
            }
            let Some(&term) = self.choice.get(&id) else { return true };
            stack.extend(&self.classes[&id].terms[term].children);
        }
        false
    }

    /// Gives what the new term of a class brought into the program the class's own position, which
    /// keeps the order valid for [`Search::reaches`], unless it reads something that stood later.
    fn insert_order(&mut self, id: Id) {
        let at = self.position[&id];
        let mut stack = self.classes[&id].terms[self.choice[&id]].children.clone();
        while let Some(c) = stack.pop() {
            match self.position.get(&c) {
                Some(&p) if p > at => return self.reorder(),
                Some(_) => {}
                None => {
                    self.position.insert(c, at);
                    stack.extend(&self.classes[&c].terms[self.choice[&c]].children);
                }
            }
        }
    }

    fn reorder(&mut self) {
        self.position = self.order().into_iter().enumerate().map(|(i, id)| (id, i)).collect();
    }

    /// The classes of the program, operands first.
    fn order(&self) -> Vec<Id> {
        let (mut order, mut done) = (Vec::new(), HashSet::new());
        for &root in self.roots {
            let mut stack = vec![(self.egraph.find(root), 0usize)];
            while let Some((id, next)) = stack.pop() {
                if done.contains(&id) {
                    continue;
                }
                match self.classes[&id].terms[self.choice[&id]].children.get(next) {
                    Some(&c) => {
                        stack.push((id, next + 1));
                        if !done.contains(&c) {
                            stack.push((c, 0));
                        }
                    }
                    None => {
                        done.insert(id);
                        order.push(id);
                    }
                }
            }
        }
        order
    }
}
