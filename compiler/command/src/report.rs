//! The costs of a compiled program as JSON, and the view of one rank as text.

use petgraph::graph::NodeIndex;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use tpc_ir::program::{RankProgram, wire_bytes};
use tpc_ir::text::{is_inline, number, operation, output_name, value_text};
use tpc_ir::{AxisSet, Graph, InputId, InputKind, Mesh, ModulePath, Op, Subscripts, Type};
use tpc_passes::egraph::rules::all_rules;
use tpc_passes::egraph::{RuleWork, SearchReport};
use tpc_passes::lower::events::{Schedule, why};
use tpc_passes::planner::{AxesReport, PlannerReport};
use tpc_passes::rematerialize::report::{RecomputeReport, Recomputed};
use tpc_passes::targets::Target;

/// A group of equal collectives, and how many of them a step executes.
#[derive(Clone, Debug, PartialEq)]
pub struct Collectives {
    /// The mnemonic, `all_reduce` for example.
    pub kind: String,
    /// The axes, `tp` or `dp,tp`.
    pub axes: String,
    /// Part of the step.
    pub phase: &'static str,
    /// The dimension that is gathered or scattered; for an all-to-all, the one that is joined.
    pub dim: Option<usize>,
    /// For an all-to-all, the dimension that is split.
    pub to_dim: Option<usize>,
    /// Element type.
    pub dtype: String,
    /// Number of values that each collective carries: more than one if they share a bucket.
    pub values: usize,
    /// Total bytes of the whole values.
    pub full_bytes: usize,
    /// Ranks of the group.
    pub ranks: usize,
    /// Number of these collectives.
    pub count: usize,
    /// The reason why they exist.
    pub why: String,
}

impl Collectives {
    /// Bytes that a rank sends for all of them under the ring algorithm.
    pub fn wire_bytes(&self) -> f64 {
        wire_bytes(&self.kind, self.full_bytes, self.ranks) * self.count as f64
    }

    fn json(&self) -> Json {
        let mut row = json!({
            "kind": self.kind, "axes": self.axes, "phase": self.phase, "dim": self.dim, "dtype": self.dtype,
            "values": self.values, "full_bytes": self.full_bytes, "ranks": self.ranks, "count": self.count,
            "wire_bytes": whole_bytes(self.wire_bytes()), "why": self.why,
        });
        if let Some(to) = self.to_dim {
            row["to_dim"] = json!(to);
        }
        row
    }
}

/// The collectives of a program, in the order in which they start; equal ones are counted together.
pub fn collectives(placed: &Graph, schedule: &Schedule) -> Vec<Collectives> {
    let mut found: Vec<Collectives> = Vec::new();
    for values in schedule.collectives() {
        let one = collective(placed, values);
        match found.iter_mut().find(|c| Collectives { count: 1, ..(*c).clone() } == one) {
            Some(same) => same.count += 1,
            None => found.push(one),
        }
    }
    found
}

/// The collective that carries these values.
fn collective(placed: &Graph, values: &[NodeIndex]) -> Collectives {
    let mesh = &placed.mesh;
    let n = placed.node(values[0]);
    let dims = |op: &Op| match op {
        Op::AllGather { dim, .. } | Op::ReduceScatter { dim, .. } => (Some(*dim), None),
        Op::AllToAll { from, to, .. } => (Some(*from), Some(*to)),
        _ => (None, None),
    };
    // Values that are sharded along different dimensions have no common one.
    let (dim, to_dim) = dims(&n.op);
    let alike = values.iter().all(|&node| dims(&placed.node(node).op) == (dim, to_dim));
    let bytes = values.iter().map(|&node| {
        let (before, after) = (placed.ty(placed.operands(node)[0]), &placed.node(node).types[0]);
        before.max_local_bytes(mesh).max(after.max_local_bytes(mesh))
    });
    let axes = n.op.axes();
    Collectives {
        kind: n.op.name(),
        axes: axis_names(axes, mesh).join(","),
        phase: n.origin.phase.name(),
        dim: dim.filter(|_| alike),
        to_dim,
        dtype: n.types[0].dtype.to_string(),
        values: values.len(),
        full_bytes: bytes.sum(),
        ranks: mesh.group_size(axes),
        count: 1,
        why: why(placed, values).to_string(),
    }
}

fn axis_names(axes: AxisSet, mesh: &Mesh) -> Vec<&str> {
    axes.iter().map(|a| mesh.name(a)).collect()
}

/// Bytes that a rank keeps of inputs of one kind.
fn kept_bytes(program: &RankProgram, kind: InputKind) -> usize {
    let inputs = program.inputs.iter().filter(|i| i.kind == kind);
    inputs.map(|i| i.binding.view.elements() * i.binding.view.dtype.bytes()).sum()
}

/// Every parameter of which some ranks hold the same elements, with its state.
fn replicated(placed: &Graph) -> Vec<Json> {
    let mesh = &placed.mesh;
    let mut states: BTreeMap<&ModulePath, usize> = BTreeMap::new();
    for (node, id) in placed.inputs() {
        if let InputId::State { owner, .. } = id {
            *states.entry(owner).or_default() += placed.node(node).types[0].max_local_bytes(mesh);
        }
    }
    let parameters = placed.inputs().filter_map(|(node, id)| Some((node, id.parameter()?)));
    let rows = parameters.filter_map(|(node, name)| {
        let ty = &placed.node(node).types[0];
        let over: Vec<&str> = mesh
            .axis_ids()
            .filter(|&a| mesh.size(a) > 1 && ty.sharding.is_invariant(a))
            .map(|a| mesh.name(a))
            .collect();
        (!over.is_empty()).then(|| {
            json!({
                "name": name.to_string(), "type": ty.display(mesh), "over": over,
                "bytes": ty.max_local_bytes(mesh), "state_bytes": states.get(name).copied().unwrap_or(0),
            })
        })
    });
    rows.collect()
}

/// Number of collectives by phase and kind.
fn counts(rows: &[Collectives]) -> Json {
    let mut counts: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
    for row in rows {
        *counts.entry(row.phase).or_default().entry(&row.kind).or_default() += row.count;
    }
    json!(counts)
}

/// The report of `dump-ir --json`: the communication of a step, and what each rank holds.
///
/// Scalars are of the rank for which they are largest; `ranks` has all of them. `search` is null for a program that came
/// placed.
pub fn json(
    placed: &Graph,
    target: &Target,
    schedule: &Schedule,
    programs: &[RankProgram],
    report: Option<&SearchReport>,
) -> Json {
    let rows = collectives(placed, schedule);
    let wire = |p: &RankProgram| whole_bytes(p.collectives().map(|c| c.wire_bytes()).sum::<f64>());
    let ranks: Vec<Json> = programs
        .iter()
        .map(|p| {
            json!({
                "rank": p.rank, "wire_bytes": wire(p), "peak_bytes": p.arena_bytes,
                "parameter_bytes": kept_bytes(p, InputKind::Parameter), "state_bytes": kept_bytes(p, InputKind::State),
            })
        })
        .collect();
    let most = |key: &str| ranks.iter().map(|r| r[key].clone()).max_by(|a, b| number_of(a).total_cmp(&number_of(b)));
    let replicated = replicated(placed);
    let total = |key: &str| replicated.iter().map(|r| r[key].as_u64().unwrap_or(0)).sum::<u64>();
    let axes = placed.mesh.axes().iter().map(|a| json!({"name": a.name, "size": a.size}));
    json!({
        "target": target.name,
        "mesh": axes.collect::<Vec<_>>(),
        "collectives": rows.iter().map(Collectives::json).collect::<Vec<_>>(),
        "totals": {
            "counts": counts(&rows),
            "wire_bytes": most("wire_bytes"),
            "peak_bytes": most("peak_bytes"),
            "parameter_bytes": most("parameter_bytes"),
            "state_bytes": most("state_bytes"),
            "replicated_bytes": total("bytes") + total("state_bytes"),
        },
        "replicated_parameters": replicated,
        "ranks": ranks,
        "search": report.map(|report| search(report, &placed.mesh)),
    })
}

/// What the search did and what it bought.
fn search(report: &SearchReport, mesh: &Mesh) -> Json {
    let SearchReport { before, after, work, .. } = report;
    let rules = all_rules().iter().filter_map(|rule| {
        let RuleWork { applied, added, unions, paid } = report.rules.get(&rule.id)?;
        Some(json!({
            "rule": rule.id.number(), "name": rule.name, "applied": applied, "added": added, "unions": unions,
            "paid": paid,
        }))
    });
    json!({
        "stop": report.stop.name(), "extraction": report.extraction.name(), "rounds": work.rounds,
        "nodes": work.nodes, "left_out": work.left_out, "applications": work.applications,
        "crowded": work.crowded,
        "seconds_before": before, "seconds": after, "declined": report.declined, "rules": rules.collect::<Vec<_>>(),
        "planner": report.planner.as_ref().map(|planner| planned(planner, mesh)),
        "recomputed": report.recomputed.as_ref().map(recomputed),
    })
}

/// What is computed a second time.
pub(crate) fn recomputed(report: &RecomputeReport) -> Json {
    let value = |value: &Recomputed| {
        json!({
            "module": value.module.to_string(), "operation": value.operation, "values": value.values,
            "bytes": value.bytes,
        })
    };
    let RecomputeReport { values, bytes: [bytes_before, bytes], seconds: [seconds_before, seconds] } = report;
    json!({
        "bytes_before": bytes_before, "bytes": bytes, "seconds_before": seconds_before, "seconds": seconds,
        "values": values.iter().map(value).collect::<Vec<_>>(),
    })
}

/// What the planner did.
fn planned(report: &PlannerReport, mesh: &Mesh) -> Json {
    let step = |step: &AxesReport| {
        let axes: Vec<&str> = step.axes.iter().map(|&axis| mesh.name(axis)).collect();
        json!({
            "axes": axes, "variables": step.variables, "states": step.states, "seconds": step.seconds,
            "bound": step.bound, "gap": step.gap(),
        })
    };
    json!({
        "cause": report.cause.name(), "seconds_before": report.before, "seconds": report.after, "taken": report.taken,
        "gap": report.gap(),
        "simulated": report.simulated,
        "steps": report.steps.iter().map(step).collect::<Vec<_>>(),
    })
}

/// Rounds bytes of the ring formula to a whole number; they are fractional if the ranks do not divide a value.
pub fn whole_bytes(bytes: f64) -> u64 {
    bytes.round() as u64
}

fn number_of(json: &Json) -> f64 {
    json.as_f64().unwrap_or(0.0)
}

/// Prints a placed graph from the view of one rank: every value with its local shape and the offset of that piece in
/// the whole value.
///
/// ```text
/// mesh <tp=2> rank 1 at tp=1
/// %0 = input parameter "net1.weight"           : f32[64, 32] at [0, 32] of [64, 64@tp]
/// %2 = einsum "ab,bc->ac" %1, %0               : f32[8, 32] at [0, 32] of [8, 64@tp]  ; forward
/// ```
pub fn rank_text(placed: &Graph, rank: usize) -> String {
    let mesh = &placed.mesh;
    let coords = mesh.coords(rank);
    let places: Vec<String> = mesh.axes().iter().zip(&coords).map(|(a, c)| format!("{}={c}", a.name)).collect();
    let mut out = format!("{mesh} rank {rank}");
    if !places.is_empty() {
        let _ = write!(out, " at {}", places.join(", "));
    }
    out.push('\n');
    let names = number(placed);
    for node in placed.nodes().filter(|&n| !is_inline(placed, n)) {
        let n = placed.node(node);
        let operands = placed.operands(node);
        let ranks: Vec<usize> = operands.iter().map(|&v| placed.ty(v).rank()).collect();
        let mut text = format!("%{} = ", names[&node]);
        text.push_str(&match &n.op {
            Op::Map { f, subs } if Subscripts::implied(&ranks, subs.result.len()).as_ref() == Some(subs) => f.name(),
            _ => operation(n, mesh),
        });
        for (i, v) in operands.into_iter().enumerate() {
            let _ = write!(text, "{}{}", if i == 0 { " " } else { ", " }, value_text(placed, v, &names));
        }
        let types: Vec<String> = n.types.iter().map(|t| local_type(t, mesh, &coords)).collect();
        let _ = write!(out, "{text:<44} : {}", types.join(", "));
        if !matches!(n.op, Op::Input { .. }) {
            let _ = write!(out, "  ; {}", n.origin.phase.name());
        }
        if n.op.is_redistribution() && !n.origin.reason.is_empty() {
            let _ = write!(out, " why: {}", n.origin.reason);
        }
        out.push('\n');
    }
    for output in &placed.outputs {
        let _ = writeln!(out, "output {} {}", output_name(&output.kind), value_text(placed, output.value, &names));
    }
    out
}

/// A local shape, its offset if it is only a part, and the whole shape.
fn local_type(ty: &Type, mesh: &Mesh, coords: &[usize]) -> String {
    let whole = ty.display(mesh);
    if ty.sharding.sharded_axes().is_empty() {
        return whole;
    }
    let pieces = ty.local(mesh, coords);
    let shape: Vec<usize> = pieces.iter().map(|p| p.len).collect();
    let start: Vec<usize> = pieces.iter().map(|p| p.offset).collect();
    format!("{}{shape:?} at {start:?} of {}", ty.dtype, whole.trim_start_matches(|c| c != '['))
}
