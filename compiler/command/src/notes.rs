//! Notes about a plan on a mesh that a user should see before waiting for a result: ranks that repeat the work of
//! others, or have no work.

use crate::columns::{bytes, seconds};
use crate::options::Chosen;
use crate::{Placement, Terminal};
use std::collections::HashSet;
use tpc_ir::quote::cut;
use tpc_ir::sharding::chunk;
use tpc_ir::{AxisId, Graph, InputKind, Mesh};
use tpc_passes::egraph::rules::RuleId;
use tpc_passes::egraph::{Extraction, FloatingPoint, SearchOptions, SearchReport, Stop};
use tpc_passes::planner::{PlannerCause, PlannerReport};
use tpc_passes::rematerialize::report::RecomputeReport;
use tpc_passes::styles::Plan;
use tpc_passes::targets::Target;

impl Placement {
    /// Notes a mesh without a plan, a plan without a mesh, and rules that are on or off anyway.
    pub(crate) fn note(&self, mesh: &Mesh, plan: &Plan, target: &Target, terminal: &mut Terminal) {
        let no_plan = plan.styles.is_empty() && plan.data.is_none() && plan.storage.is_empty();
        if no_plan && mesh.ranks() > 1 {
            terminal.note(format!(
                "--mesh {} without a plan: each of the {} ranks computes the whole model; --plan distributes the work",
                cut(&self.mesh),
                mesh.ranks()
            ));
        }
        if !no_plan && mesh.axes().is_empty() {
            terminal.note(format!(
                "--plan {} without a mesh: one rank computes the whole model; give it more ranks with --mesh, for example --mesh {}",
                cut(&self.plan),
                example(plan)
            ));
        }
        self.note_rules(mesh, target, terminal);
    }

    /// Notes rules that are on or off anyway.
    fn note_rules(&self, mesh: &Mesh, target: &Target, terminal: &mut Terminal) {
        let usual = SearchOptions { fp: self.fp.into(), ..SearchOptions::default() };
        let is_on = |number: u32| usual.rules().iter().any(|rule| rule.id.number() == number);
        for &rule in self.enable_rule.iter().filter(|&&rule| is_on(rule)) {
            terminal.note(format!("--enable-rule {rule} has no effect: the rule is already on"));
        }
        for &rule in &self.disable_rule {
            if !is_on(rule) {
                terminal.note(format!("--disable-rule {rule} has no effect: the rule is already off"));
            } else if rule == RuleId::HIERARCHICAL.number() && mesh.ranks() > 1 && !target.links.differ(mesh) {
                terminal.note(format!(
                    "--disable-rule {rule} has no effect: on the target {} all axes of the mesh have equally fast links",
                    cut(&target.name)
                ));
            }
        }
        if mesh.ranks() == 1 {
            let given = [
                ("--fp", usual.fp != FloatingPoint::default()),
                ("--enable-rule", !self.enable_rule.is_empty()),
                ("--disable-rule", !self.disable_rule.is_empty()),
                ("--placements planned", self.placements == Chosen::Planned),
            ];
            for (option, _) in given.into_iter().filter(|(_, is_given)| *is_given) {
                terminal.note(format!("{option} has no effect on one rank, which does not communicate"));
            }
        }
    }
}

/// Notes a search that reached a bound of its size. Rounds are not noted: deep programs use all of them, since a
/// collective moves through few operations in each, and `tpc dump-ir --json` says it.
pub(crate) fn note_search(report: &SearchReport, terminal: &mut Terminal) {
    let is_usual = matches!(report.stop, Stop::Rounds(_)) && report.extraction == Extraction::Settled;
    if let Some(reached) = report.unfinished().filter(|_| !is_usual) {
        terminal.note(format!("the search for fewer collectives stopped after {reached}: it might find more"));
    }
    if let Some(planner) = report.planner.as_ref().filter(|planner| !planner.steps.is_empty()) {
        note_planner(planner, terminal);
    }
    if let Some(recomputed) = &report.recomputed {
        note_recomputed(recomputed, terminal);
    }
}

/// Notes what a program computes a second time so that it fits into memory.
pub(crate) fn note_recomputed(report: &RecomputeReport, terminal: &mut Terminal) {
    let RecomputeReport { values, bytes: [more, less], seconds: [fast, slow] } = report;
    let all: usize = values.iter().map(|value| value.values).sum();
    let (nouns, verb) = if all == 1 { ("value", "is") } else { ("values", "are") };
    terminal.note(format!(
        "{all} {nouns} of the forward pass {verb} computed a second time for the backward pass: {} of memory a rank instead of \
         {}, {} a step instead of {}, as simulated",
        bytes(*less as f64),
        bytes(*more as f64),
        seconds(*slow),
        seconds(*fast)
    ));
}

/// Notes what the planner gained, and how far from the best placements it can be.
fn note_planner(report: &PlannerReport, terminal: &mut Terminal) {
    let PlannerReport { before, after, .. } = report;
    let gained = match (report.taken, report.simulated) {
        (true, Some([given, taken])) => {
            format!("placements planned: {} a step instead of {}, as simulated", seconds(taken), seconds(given))
        }
        (true, None) => {
            format!("placements planned: {} instead of {}", seconds(*after), seconds(*before))
        }
        (false, _) => {
            "the placements that follow from the plan stay: the planner found none that take less time".into()
        }
    };
    if report.cause == PlannerCause::UnlikeLayers {
        terminal.note(format!(
            "{gained}: the rules alone place equal layers differently (--placements planned also says how much cheaper others \
             could be)"
        ));
        return;
    }
    terminal.note(match report.gap() {
        // A bound is rounded up.
        Some(gap) => format!(
            "{gained}; others could be at most {:.2}% cheaper by the cost model",
            (1e4 * gap).ceil().max(1.0) / 100.0
        ),
        None => format!("{gained}; how much cheaper others could be is not known for a mesh of more than two axes"),
    });
}

/// A mesh that fits a plan.
fn example(plan: &Plan) -> String {
    let mut axes: Vec<String> = plan.data_axes().into_iter().map(|axis| format!("{axis}=2")).collect();
    if !plan.styles.is_empty() {
        axes.push(plan.axis.as_ref().map_or_else(|| "tp=2".into(), |axis| format!("{axis}=2")));
    }
    axes.join(",")
}

/// Notes which ranks have no rows of the batch, or no part of weights that the plan shards, for example no heads.
pub(crate) fn note_idle_ranks(placed: &Graph, plan: &Plan, micro_batches: usize, terminal: &mut Terminal) {
    for (idle, names) in idle_ranks(placed, plan) {
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        terminal.note(idle.text(&names, micro_batches, &placed.mesh));
    }
}

/// Whether there are such ranks.
pub(crate) fn has_idle_ranks(placed: &Graph, plan: &Plan) -> bool {
    !idle_ranks(placed, plan).is_empty()
}

/// What leaves ranks idle, each with the names of the inputs that do.
fn idle_ranks(placed: &Graph, plan: &Plan) -> Vec<(Idle, Vec<String>)> {
    let mesh = &placed.mesh;
    let data: HashSet<AxisId> = plan.data_axes().into_iter().flat_map(|axis| mesh.parts(axis)).collect();
    // Groups of equal shardings: the axes, the size of the sharded dimension and whether it is the batch; and the
    // inputs that have them.
    let mut found: Vec<(Idle, Vec<String>)> = Vec::new();
    for (node, id) in placed.inputs() {
        let ty = &placed.node(node).types[0];
        for (&size, axes) in ty.shape.iter().zip(&ty.sharding.dims) {
            let batch = match id.kind() {
                InputKind::Data => true,
                InputKind::Parameter => false,
                _ => continue,
            };
            // A parameter that is only stored in parts, as under FSDP, leaves no rank idle.
            let axes: Vec<AxisId> = axes.iter().copied().filter(|axis| batch || !data.contains(axis)).collect();
            let Some(idle) = Idle::of(size, axes, batch, mesh) else { continue };
            match found.iter_mut().find(|(known, _)| *known == idle) {
                Some((_, names)) => names.push(id.to_string()),
                None => found.push((idle, vec![id.to_string()])),
            }
        }
    }
    found
}

/// A dimension with fewer pieces than ranks to shard it over.
#[derive(PartialEq)]
struct Idle {
    size: usize,
    axes: Vec<AxisId>,
    batch: bool,
    ranks: usize,
    without: usize,
}

impl Idle {
    fn of(size: usize, axes: Vec<AxisId>, batch: bool, mesh: &Mesh) -> Option<Self> {
        let ranks: usize = axes.iter().map(|&axis| mesh.size(axis)).product();
        let mut coords = vec![0; mesh.axes().len()];
        let empty = (0..ranks).filter(|&rank| {
            let mut rest = rank;
            for axis in axes.iter().rev() {
                coords[axis.0 as usize] = rest % mesh.size(*axis);
                rest /= mesh.size(*axis);
            }
            chunk(size, &axes, mesh, &coords).len == 0
        });
        let without = empty.count();
        (without > 0).then_some(Idle { size, axes, batch, ranks, without })
    }

    fn text(&self, names: &[&str], micro_batches: usize, mesh: &Mesh) -> String {
        let axes: Vec<String> = self.axes.iter().map(|&a| format!("{}={}", mesh.name(a), mesh.size(a))).collect();
        let (axes, Idle { size, ranks, without, .. }) = (axes.join(","), self);
        if self.batch {
            let batch = if micro_batches > 1 { "each micro-batch" } else { "the batch" };
            return format!("{without} of {ranks} ranks along {axes} have no rows: {batch} has only {size}");
        }
        let more = match names.len() - 1 {
            0 => String::new(),
            1 => " and one more weight".into(),
            more => format!(" and {more} more weights"),
        };
        let have = if names.len() == 1 { "it has" } else { "they have" };
        format!(
            "{without} of {ranks} ranks along {axes} have no part of `{}`{more}: {have} only {size} to distribute",
            names[0]
        )
    }
}
