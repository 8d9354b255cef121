//! The text form of a graph: one operation per line, always with types.
//!
//! ```text
//! mesh <dp=2, tp=4>
//! %0 = input parameter "mlp.w"                 : f32[512, 4, 128@tp] layout [512, 512]  ; in mlp
//! %1 = input data "x"                          : f32[8@dp, 512]
//! %2 = einsum "ab,bcd->acd" %1, %0             : f32[8@dp, 4, 128@tp]  ; forward in mlp why: column-wise
//! %3 = mul %2, f32:0.5                         : f32[8@dp, 4, 128@tp]  ; forward in mlp
//! region "mlp" (%1) -> (%3)
//! output result "y" %3 layout [8, 512]
//! ```
//!
//! A line is `%number = operation attributes operands : types ; phase micro 2 in module why: reason`, where `micro 2`
//! is the micro-batch, if there is one. The type of an input is followed by the shape that the model knows (`layout`),
//! if it differs, and by the unit of a parameter (`unit 3`), if it has one. An elementwise operation shows its
//! subscripts only if an operand has letters that differ from those of the result. Scalar constants (a `fill` of rank
//! 0) have no line; they are printed where they are used, as `f32:0.5`, without their provenance. `%3.1` is the second
//! result of `%3`. [`crate::parse`] reads the text form.

use crate::graph::{Boundary, Graph, Node, OutputKind, Phase, Value};
use crate::mesh::{AxisId, Mesh};
use crate::op::{Distribution, Op, UnitId};
use crate::sharding::axes_text;
use crate::subscripts::Subscripts;
use petgraph::graph::NodeIndex;
use std::collections::HashMap;
use std::fmt::Write as _;

/// The column in which types are aligned. Types of longer lines are further to the right.
pub(crate) const TYPE_COLUMN: usize = 44;

/// Prints a graph in the text form.
pub fn print(graph: &Graph) -> String {
    let mut out = format!("{}\n", graph.mesh);
    let names = number(graph);
    for node in graph.nodes() {
        if !is_inline(graph, node) {
            let _ = writeln!(out, "{}", line(graph, node, &names));
        }
    }
    let list = |values: &[Boundary]| {
        let one = |b: &Boundary| value_text(graph, b.value, &names) + &layout_text(&b.layout, &graph.ty(b.value).shape);
        values.iter().map(one).collect::<Vec<_>>().join(", ")
    };
    for region in &graph.regions {
        let _ = writeln!(
            out,
            "region {:?} ({}) -> ({})",
            region.path.to_string(),
            list(&region.arguments),
            list(&region.results)
        );
    }
    for output in &graph.outputs {
        let _ = writeln!(
            out,
            "output {} {}{}",
            output_name(&output.kind),
            value_text(graph, output.value, &names),
            layout_text(&output.layout, &graph.ty(output.value).shape)
        );
    }
    out
}

/// The number of every node that has a line.
pub fn number(graph: &Graph) -> HashMap<NodeIndex, usize> {
    graph.nodes().filter(|&n| !is_inline(graph, n)).enumerate().map(|(i, n)| (n, i)).collect()
}

/// Whether a node has no line because it is a scalar constant, which is printed where it is used.
pub fn is_inline(graph: &Graph, node: NodeIndex) -> bool {
    let n = graph.node(node);
    matches!(n.op, Op::Fill(_)) && n.types.len() == 1 && n.types[0].rank() == 0 && n.types[0].sharding.is_replicated()
}

/// One line of the text form.
pub fn line(graph: &Graph, node: NodeIndex, names: &HashMap<NodeIndex, usize>) -> String {
    let n = graph.node(node);
    let operands = graph.operands(node);
    let mut text = match names.get(&node) {
        Some(i) => format!("%{i} = "),
        None => String::new(),
    };
    let ranks: Vec<usize> = operands.iter().map(|&v| graph.ty(v).rank()).collect();
    text.push_str(&match &n.op {
        Op::Map { f, subs } if Subscripts::implied(&ranks, subs.result.len()).as_ref() == Some(subs) => f.name(),
        _ => operation(n, &graph.mesh),
    });
    for (i, v) in operands.into_iter().enumerate() {
        text.push_str(if i == 0 { " " } else { ", " });
        text.push_str(&value_text(graph, v, names));
    }
    let types: Vec<_> = n.types.iter().map(|t| t.display(&graph.mesh)).collect();
    let mut text = format!("{text:<TYPE_COLUMN$} : {}", types.join(", "));
    if let Op::Input { layout, unit, .. } = &n.op {
        text.push_str(&layout_text(layout, n.types.first().map_or(&[], |t| &t.shape)));
        if let Some(UnitId(unit)) = unit {
            let _ = write!(text, " unit {unit}");
        }
    }
    let note = note(n);
    if !note.is_empty() {
        let _ = write!(text, "  ; {note}");
    }
    text
}

/// The text after the semicolon: phase, micro-batch, module and reason.
fn note(node: &Node) -> String {
    let mut parts = Vec::new();
    if !matches!(node.op, Op::Input { .. }) || node.origin.phase != Phase::Forward {
        parts.push(node.origin.phase.name().to_string());
    }
    if let Some(n) = node.origin.micro_batch {
        parts.push(format!("micro {n}"));
    }
    if !node.origin.module.is_root() {
        parts.push(format!("in {}", node.origin.module));
    }
    let why = node.origin.reason.to_string();
    if !why.is_empty() {
        parts.push(format!("why: {}", bare(&why, why.trim() != why)));
    }
    parts.join(" ")
}

/// A text as it is, or quoted if the parser would misread it.
fn bare(text: &str, misread: bool) -> String {
    if misread || text.starts_with('"') || text.contains(char::is_control) { format!("{text:?}") } else { text.into() }
}

/// ` layout [64, 64]` if the shape that the model knows differs from that of the type.
fn layout_text(layout: &[usize], shape: &[usize]) -> String {
    if layout == shape { String::new() } else { format!(" layout {layout:?}") }
}

/// The text of a value where it is used: `%3`, `%3.1` or `f32:0.5`.
pub fn value_text(graph: &Graph, value: Value, names: &HashMap<NodeIndex, usize>) -> String {
    match (names.get(&value.node), &graph.node(value.node).op) {
        (Some(i), _) if graph.node(value.node).types.len() > 1 => format!("%{i}.{}", value.result),
        (Some(i), _) => format!("%{i}"),
        (None, Op::Fill(s)) => format!("{}:{s}", graph.ty(value).dtype),
        (None, _) => format!("%?{}", value.node.index()),
    }
}

/// A list of axes without the `@`.
fn axes(list: &[AxisId], mesh: &Mesh) -> String {
    if list.is_empty() { "()".into() } else { axes_text(list, mesh).trim_start_matches('@').to_string() }
}

/// The mnemonic and the attributes of an operation.
pub fn operation(node: &Node, mesh: &Mesh) -> String {
    let name = node.op.name();
    match &node.op {
        Op::Input { id, .. } => format!("{name} {} {:?}", id.kind().name(), id.to_string()),
        Op::Fill(s) => format!("{name} {s}"),
        Op::Random { distribution, stream } => match distribution {
            Distribution::Bernoulli(p) => format!("{name} bernoulli({p}) stream={stream}"),
            Distribution::Uniform(a, b) => format!("{name} uniform({a}, {b}) stream={stream}"),
            Distribution::Normal(a, b) => format!("{name} normal({a}, {b}) stream={stream}"),
        },
        Op::Map { subs, .. } if subs.is_elementwise() => name,
        Op::Map { subs, .. } | Op::Einsum { subs } | Op::Reduce { subs, .. } => format!("{name} \"{subs}\""),
        Op::Slice { dim, start, step } => format!("{name} dim={dim} start={start} step={step}"),
        Op::Index { dim, index } => format!("{name} dim={dim} index={index}"),
        Op::Concat { dim } | Op::CumSum { dim } => format!("{name} dim={dim}"),
        Op::Pad { dim, low, value } => format!("{name} dim={dim} low={low} value={value}"),
        Op::AllReduce { op, axes: a } | Op::ToPartial { op, axes: a } => {
            format!("{name} {} {}", axes(&a.iter().collect::<Vec<_>>(), mesh), op.name())
        }
        Op::AllGather { dim, axes: a } | Op::ShardSlice { dim, axes: a } => {
            format!("{name} {} dim={dim}", axes(a, mesh))
        }
        Op::ReduceScatter { op, dim, axes: a } => format!("{name} {} {} dim={dim}", axes(a, mesh), op.name()),
        Op::AllToAll { from, to, axes: a } => format!("{name} {} from={from} to={to}", axes(a, mesh)),
        Op::Iota | Op::Reshape | Op::Take | Op::ScatterAdd | Op::Put | Op::TopK => name,
    }
}

/// The text of the kind of an output: `update "w"`.
pub fn output_name(kind: &OutputKind) -> String {
    match kind {
        OutputKind::Result(name) => format!("result {name:?}"),
        OutputKind::Loss => "loss".into(),
        OutputKind::Gradient(name) => format!("gradient {:?}", name.to_string()),
        OutputKind::Update(name) => format!("update {:?}", name.to_string()),
    }
}
