//! A program becomes an e-graph, and rules find what is equal in it.
//!
//! Each round applies the rules by number to the classes in which there is something to move. Each class stores which
//! kinds of operations it contains. A rule whose left side has none of them is skipped after one set comparison. Rules
//! look at the terms of a class and of its operands, so a rule is not applied to a class a second time as long as neither
//! change. The bounds of [`limits`](super::limits) end the search between two applications; what was found until then is
//! an e-graph of equal programs like any other.

use super::heads::Heads;
use super::limits::Bounds;
use super::options::SearchOptions;
use super::report::{RuleWork, Tally, Work};
use super::rules::{Dispatched, Rule, RuleId, left_out};
use super::stop::Stop;
use super::term::{self, Key, Term, Typing};
use crate::targets::Target;
use egg::{EGraph, Id};
use std::collections::{BTreeMap, HashMap};
use tpc_ir::{Graph, Value};

/// The e-graph of a program after the search: everything that the rules found equal.
pub struct Saturated {
    /// The e-graph.
    pub egraph: EGraph<Term, Typing>,
    /// The canonical class of every value of the program.
    pub class_of: HashMap<Value, Id>,
    /// The program that came in: one of its terms for every class that has one. Of several terms that became equal it is
    /// the earliest, whose operands are earlier still, so this program has no cycle.
    pub first: HashMap<Id, Term>,
    /// What was counted.
    pub work: Work,
    /// What might have been counted at most.
    pub bounds: Bounds,
    /// Why it stopped.
    pub stop: Stop,
    /// What each rule did.
    pub rules: BTreeMap<RuleId, RuleWork>,
}

/// Puts a placed graph into an e-graph and applies the rules. The target says which axes are faster than others.
pub fn saturate(graph: &Graph, target: &Target, options: &SearchOptions) -> Saturated {
    saturate_by(&options.rules(), graph, target, options)
}

fn saturate_by(rules: &[&'static Rule], graph: &Graph, target: &Target, options: &SearchOptions) -> Saturated {
    let bandwidths = target.links.bandwidths(&graph.mesh);
    let mut egraph = EGraph::<Term, Typing>::new(Typing::new(graph.mesh.clone(), bandwidths));
    let mut class_of: HashMap<Value, Id> = HashMap::new();
    let mut program: Vec<(Id, Term)> = Vec::new();
    for node in graph.nodes() {
        let n = graph.node(node);
        let children: Vec<Id> = graph.operands(node).iter().map(|v| class_of[v]).collect();
        for (result, ty) in n.types.iter().enumerate() {
            let origin = egraph.analysis.origin(&n.origin);
            let key = Key::new(&n.op, result as u32, ty, n.types.len() > 1);
            let id = term::add(&mut egraph, key, children.clone(), origin);
            class_of.insert(Value { node, result: result as u32 }, id);
            program.push((id, egraph[id].nodes[0].clone()));
        }
    }
    let bounds = Bounds::of(graph, options);
    egraph.analysis.most = bounds.nodes;
    let links_differ = egraph.analysis.links_differ();
    let rules = rules.iter().copied().filter(|rule| rule.id != RuleId::HIERARCHICAL || links_differ);
    let rules: Vec<Dispatched> = rules.map(Dispatched::new).collect();
    let mut tally = Tally::default();
    let (rounds, stop) = search(&mut egraph, &rules, options.rounds, &bounds, &mut tally);
    egraph.analysis.derivations.conclude();
    let left_out = egraph.classes().map(|class| left_out(&egraph, class)).sum();
    let nodes = egraph.nodes().len();
    let work = Work { rounds, nodes, applications: tally.applications, left_out, ..Work::default() };
    class_of.values_mut().for_each(|id| *id = egraph.find(*id));
    let mut first: HashMap<Id, Term> = HashMap::new();
    for (id, term) in program {
        first.entry(egraph.find(id)).or_insert_with(|| term::canonical(&egraph, term));
    }
    Saturated { egraph, class_of, first, work, bounds, stop, rules: tally.rules }
}

/// Applies the rules until nothing changes or a bound is reached. The number of rounds and why it stopped.
fn search(
    egraph: &mut EGraph<Term, Typing>,
    rules: &[Dispatched],
    most_rounds: usize,
    bounds: &Bounds,
    tally: &mut Tally,
) -> (usize, Stop) {
    // By rule and class: when the rule was applied to it, counted in changes.
    let mut applied: Vec<Vec<u32>> = vec![Vec::new(); rules.len()];
    egraph.rebuild();
    for round in 1..=most_rounds {
        let start = tally.changes();
        let classes: Vec<Id> = egraph.classes().map(|c| c.id).filter(|&id| is_worth_a_look(egraph, id)).collect();
        let mut reached = None;
        'round: for (rule, applied) in rules.iter().zip(&mut applied) {
            for &class in &classes {
                let class = egraph.find(class);
                applied.resize(egraph.nodes().len(), 0);
                let last = &mut applied[usize::from(class)];
                if !rule.concerns(egraph, class) || *last > egraph.analysis.changed(class) {
                    continue;
                }
                *last = egraph.analysis.now() + 1;
                rule.apply(egraph, class, tally);
                reached = bounds.reached(egraph.nodes().len(), tally.applications);
                if reached.is_some() {
                    break 'round;
                }
            }
        }
        egraph.rebuild();
        term::settle(egraph);
        if reached.is_some() || tally.changes() == start {
            return (round, reached.unwrap_or_default());
        }
    }
    (most_rounds, Stop::Rounds(most_rounds))
}

/// Whether there is something to move in a class: a redistribution, or a term with an operand that is one.
fn is_worth_a_look(egraph: &EGraph<Term, Typing>, class: Id) -> bool {
    let moves = |id: Id| egraph[id].data.heads.meets(Heads::MOVES);
    moves(class) || egraph[class].nodes.iter().any(|t| t.children.iter().any(|&c| moves(c)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egraph::rules::all_rules;
    use tpc_ir::parse;

    /// Two layers whose input gradients are sums of reductions, with a bias, a transpose, a slice and gathers.
    fn program() -> Graph {
        let source = "mesh <a=2, b=2>
            %0 = input data \"x\" : f64[4@b, 6]
            %1 = input parameter \"q\" : f64[6, 8@a]
            %2 = input parameter \"k\" : f64[6, 8@a]
            %3 = input parameter \"bias\" : f64[6]
            %4 = einsum \"ab,bc->ac\" %0, %1 : f64[4@b, 8@a]
            %5 = einsum \"ab,bc->ac\" %0, %2 : f64[4@b, 8@a]
            %6 = einsum \"ab,cb->ac\" %4, %1 : f64[4@b, 6] +sum@a
            %7 = einsum \"ab,cb->ac\" %5, %2 : f64[4@b, 6] +sum@a
            %8 = all_reduce a sum %6 : f64[4@b, 6]
            %9 = all_reduce a sum %7 : f64[4@b, 6]
            %10 = add \"ab,ab,b->ab\" %8, %9, %3 : f64[4@b, 6]
            %11 = mul %10, f64:0.5 : f64[4@b, 6]
            %12 = all_gather b dim=0 %11 : f64[4, 6]
            %13 = identity \"ab->ba\" %12 : f64[6, 4]
            %14 = shard_slice a dim=0 %13 : f64[6@a, 4]
            %15 = exp %14 : f64[6@a, 4]
            %16 = all_gather a dim=0 %15 : f64[6, 4]
            %17 = reduce_max \"ab->b\" %16 : f64[4]
            output result \"y\" %17
            output result \"z\" %16";
        parse::parse(source).unwrap()
    }

    fn search(rules: &[&'static Rule], graph: &Graph) -> Saturated {
        let options = SearchOptions { rounds: 50, ..SearchOptions::default() };
        let saturated = saturate_by(rules, graph, Target::cpu(), &options);
        assert_eq!((saturated.stop, saturated.work.left_out), (Stop::Saturated, 0));
        saturated
    }

    /// Every term with the rule that it is due to, in a form that is the same in every e-graph of the program: classes are
    /// told apart by their cheapest terms.
    fn attributed(saturated: &Saturated) -> Vec<(String, Option<RuleId>)> {
        let egraph = &saturated.egraph;
        let mut names: HashMap<Id, String> = HashMap::new();
        let text = |term: &Term, names: &HashMap<Id, String>| {
            let operands: Option<Vec<&str>> =
                term.children.iter().map(|&c| names.get(&egraph.find(c)).map(String::as_str)).collect();
            Some(format!("{:?}({})", egraph.analysis.key(term.key).op, operands?.join(",")))
        };
        // The name of a class is the shortest text of a term of it, and of several the first.
        loop {
            let mut changed = false;
            for class in egraph.classes() {
                let texts = class.nodes.iter().filter_map(|t| text(t, &names));
                let Some(best) = texts.min_by(|a, b| (a.len(), a).cmp(&(b.len(), b))) else { continue };
                if names.get(&class.id).is_none_or(|name| (best.len(), &best) < (name.len(), name)) {
                    names.insert(class.id, best);
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        let terms = egraph.classes().flat_map(|class| &class.nodes);
        let mut all: Vec<_> = terms.map(|t| (text(t, &names).unwrap(), egraph.analysis.rule_of(t))).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn what_a_term_is_due_to_does_not_depend_on_unrelated_rules() {
        let graph = program();
        let rules = SearchOptions::default().rules();
        let whole = search(&rules, &graph);
        let expected = attributed(&whole);
        assert!(expected.iter().filter(|(_, rule)| rule.is_some()).count() > 100);
        // A rule that added nothing and found nothing equal.
        let idle = |rule: &Rule| whole.rules.get(&rule.id).is_none_or(|work| work.added + work.unions == 0);
        let related: Vec<&Rule> = rules.iter().copied().filter(|rule| !idle(rule)).collect();
        assert!(related.len() < rules.len());
        assert_eq!(attributed(&search(&related, &graph)), expected);
    }

    #[test]
    fn terms_of_the_program_are_due_to_no_rule() {
        let graph = program();
        let saturated = search(&SearchOptions::default().rules(), &graph);
        for node in graph.nodes() {
            let id = saturated.class_of[&Value { node, result: 0 }];
            let children: Vec<Id> = graph.operands(node).iter().map(|v| saturated.class_of[v]).collect();
            let is_given =
                |t: &&Term| saturated.egraph.analysis.key(t.key).op == graph.node(node).op && t.children == children;
            let term = saturated.egraph[id].nodes.iter().find(is_given).unwrap();
            assert_eq!(saturated.egraph.analysis.rule_of(term), None, "{:?}", graph.node(node).op);
        }
    }

    #[test]
    fn nothing_is_due_to_a_rule_that_is_off() {
        let graph = program();
        let rules = SearchOptions::default().rules();
        for off in all_rules() {
            let others: Vec<&Rule> = rules.iter().copied().filter(|rule| rule.id != off.id).collect();
            let saturated = search(&others, &graph);
            let egraph = &saturated.egraph;
            assert!(!saturated.rules.contains_key(&off.id));
            assert!(egraph.classes().flat_map(|c| &c.nodes).all(|t| egraph.analysis.rule_of(t) != Some(off.id)));
        }
    }
}
