//! The text form of deep programs: a block that occurs L times is printed once.
//!
//! Lines are compared without their numbers and with numeric path segments replaced (`layers.*.mlp`),
//! together with those of their operands; a run of equal periods is a block. Nothing is assumed about
//! the model: forward, backward, optimizer and parameter lists are found alike. The folded text is for
//! reading; [`text::print`] and the JSON form have every line.
//!
//! ```text
//! repeat x80 model.layers.{0..79} {
//!   %2 = input parameter "model.layers.0.input_layernorm.weight" : f32[8192]
//! }
//! ```

use crate::graph::{Graph, Value};
use crate::op::Op;
use crate::text;
use std::collections::HashMap;
use std::fmt::Write as _;

/// Longest block, in lines.
const LONGEST_PERIOD: usize = 2_000;

/// Prints a graph with repeated blocks folded.
pub fn print(graph: &Graph) -> String {
    let names = text::number(graph);
    let nodes: Vec<_> = graph.nodes().filter(|n| names.contains_key(n)).collect();
    let mut out = format!("{}\n", graph.mesh);
    let own: Vec<usize> = {
        let mut known = HashMap::new();
        nodes.iter().map(|&n| number(&mut known, line_shape(graph, n.into()))).collect()
    };
    let position: HashMap<_, usize> = nodes.iter().enumerate().map(|(i, &n)| (n, i)).collect();
    let signatures: Vec<usize> = {
        let mut known = HashMap::new();
        let operand = |v: &Value| position.get(&v.node).map_or(usize::MAX, |&i| own[i]);
        let full = |i: usize| (own[i], graph.operands(nodes[i]).iter().map(operand).collect::<Vec<_>>());
        (0..nodes.len()).map(|i| number(&mut known, full(i))).collect()
    };
    for run in runs(&signatures) {
        let lines = (run.start..run.start + run.period).map(|i| text::line(graph, nodes[i], &names));
        if run.count == 1 {
            lines.for_each(|l| out.push_str(&format!("{l}\n")));
            continue;
        }
        let last = run.start + run.period * (run.count - 1);
        let which = varying(&line_name(graph, nodes[run.start].into()), &line_name(graph, nodes[last].into()));
        let _ = writeln!(out, "repeat x{}{which} {{", run.count);
        lines.for_each(|l| out.push_str(&format!("  {l}\n")));
        out.push_str("}\n");
    }
    let outputs: Vec<String> = graph.outputs.iter().map(|o| text::output_name(&o.kind)).collect();
    let shapes: Vec<usize> = {
        let mut known = HashMap::new();
        outputs.iter().map(|o| number(&mut known, pattern(o))).collect()
    };
    for run in runs(&shapes) {
        let line =
            |i: usize| format!("output {} {}\n", outputs[i], text::value_text(graph, graph.outputs[i].value, &names));
        if run.count > 1 {
            let last = run.start + run.period * (run.count - 1);
            let _ = writeln!(out, "repeat x{}{} {{", run.count, varying(&outputs[run.start], &outputs[last]));
        }
        let indent = if run.count > 1 { "  " } else { "" };
        (run.start..run.start + run.period).for_each(|i| out.push_str(&format!("{indent}{}", line(i))));
        if run.count > 1 {
            out.push_str("}\n");
        }
    }
    out
}

fn number<K: std::hash::Hash + Eq>(known: &mut HashMap<K, usize>, key: K) -> usize {
    let next = known.len();
    *known.entry(key).or_insert(next)
}

/// What a line says apart from numbers.
fn line_shape(graph: &Graph, v: Value) -> String {
    let n = graph.node(v.node);
    let types: Vec<_> = n.types.iter().map(|t| t.display(&graph.mesh)).collect();
    let scalars: Vec<String> =
        graph.operands(v.node).iter().filter_map(|&o| graph.fill_of(o)).map(|x| x.to_string()).collect();
    format!(
        "{} {} {} {} {}",
        pattern(&text::operation(n, &graph.mesh)),
        types.join(","),
        scalars.join(","),
        n.origin.phase.name(),
        pattern(&n.origin.module)
    )
}

/// The path that a line belongs to.
fn line_name(graph: &Graph, v: Value) -> String {
    match &graph.node(v.node).op {
        Op::Input { name, .. } => name.clone(),
        _ => graph.node(v.node).origin.module.to_string(),
    }
}

/// A text with numeric path segments replaced by `*`.
fn pattern(text: &str) -> String {
    let numeric = |s: &&str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    text.split('.').map(|s| if numeric(&s) { "*" } else { s }).collect::<Vec<_>>().join(".")
}

/// ` model.layers.{0..79}` from the names of the first and last occurrence.
fn varying(first: &str, last: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (first.split('.').collect(), last.split('.').collect());
    match a.iter().zip(&b).position(|(x, y)| x != y) {
        Some(i) if a.len() == b.len() => {
            format!(" {}", [&a[..i], &[&*format!("{{{}..{}}}", a[i], b[i])]].concat().join("."))
        }
        _ => String::new(),
    }
}

/// A stretch of lines that occurs `count` times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    start: usize,
    period: usize,
    count: usize,
}

/// Splits a sequence into runs, the widest first found from the left.
fn runs(items: &[usize]) -> Vec<Run> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < items.len() {
        let longest = LONGEST_PERIOD.min((items.len() - at) / 2);
        let matching = |p: usize| (at..items.len() - p).take_while(|&i| items[i] == items[i + p]).count();
        let best = (1..=longest)
            .filter(|&p| items[at] == items[at + p])
            .map(|p| Run { start: at, period: p, count: matching(p) / p + 1 })
            .filter(|r| r.count > 1)
            .max_by_key(|r| (r.period * r.count, std::cmp::Reverse(r.period)));
        // A repeated single line says little; a block has to be worth its braces.
        let run = best.filter(|r| r.period * r.count >= 4).unwrap_or(Run { start: at, period: 1, count: 1 });
        at += run.period * run.count;
        found.push(run);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_widest_run_wins() {
        let found = runs(&[9, 1, 1, 2, 1, 1, 2, 1, 1, 2, 7]);
        assert_eq!(found[1], Run { start: 1, period: 3, count: 3 });
        assert_eq!(found.len(), 3);
        assert_eq!(varying("a.0.b", "a.3.b"), " a.{0..3}");
    }
}
