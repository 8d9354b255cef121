//! What a value is, from its operation to its causes, and what reads it.

use super::need::{Need, needs};
use super::{Explainer, Subject};
use crate::summary::Modules;
use std::collections::BTreeSet;
use std::fmt;
use tpc_ir::reason::Cause;
use tpc_ir::text::{number, operation, output_name, value_text};
use tpc_ir::{Op, Phase, Value};
use tpc_passes::cost::seconds;
use tpc_passes::egraph::rules::{Rule, all_rules};
use tpc_passes::reasons::Followed;

/// What a collective sends, and how long it takes. The amounts are those of all values of the subject together.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// The number of collectives of the placed program.
    pub count: usize,
    /// Bytes that a rank sends.
    pub sent: f64,
    /// Seconds by the cost model, where each begins alone.
    pub alone: f64,
    /// Seconds in flight in the simulated step. Values that travel together share them by their bytes.
    pub seconds: f64,
    /// Seconds that they add to the simulated step.
    pub of_step: f64,
    /// Most values that travel together, itself included.
    pub company: usize,
}

/// A part of the answer to why a value lies where it does.
#[derive(Clone, Debug)]
pub enum Because {
    /// A cause that the compiler has kept.
    Cause(Cause),
    /// A rule of the e-graph put it there.
    Rule(&'static Rule),
    /// The value is placed like other tensors along an axis.
    Follows {
        /// The axis.
        axis: String,
        /// The tensors, and why they are cut.
        cause: Cause,
    },
    /// The planner chose it.
    Planner {
        /// The share by which other placements could be cheaper, if it is known.
        gap: Option<f64>,
    },
    /// It follows from the placements of the operands and of the readers.
    Between,
    /// Nothing cuts it.
    Replicated,
}

impl fmt::Display for Because {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Because::Cause(cause) => cause.fmt(f),
            Because::Rule(rule) => write!(f, "rule {} ({}): {}", rule.id, rule.name, rule.equality),
            Because::Follows { axis, cause } => write!(f, "along {axis}: {cause}"),
            Because::Planner { gap: None } => f.write_str("the planner found no cheaper placements"),
            Because::Planner { gap: Some(gap) } => write!(
                f,
                "the planner found no cheaper placements, and others could be at most {:.2}% cheaper",
                100.0 * gap.max(0.0)
            ),
            Because::Between => f.write_str("its operands and its readers are placed so"),
            Because::Replicated => f.write_str("neither the plan nor what it is computed from cuts it"),
        }
    }
}

/// What computes the value that a collective brings elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Maker {
    /// The operation, with its operands.
    pub operation: String,
    /// The type of its result.
    pub ty: String,
    /// Its operands with their types, those that the axes of the collective cut.
    pub cut: Vec<(String, String)>,
}

/// What reads a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Reader {
    /// The operation with its operands, or the output of the program.
    pub operation: String,
    /// The type of its result.
    pub ty: String,
    /// The module, empty if it is unknown.
    pub module: String,
    /// What it needs of a value that a collective brought.
    pub needs: Vec<Need>,
}

/// A value, explained.
#[derive(Clone, Debug)]
pub struct Explained {
    /// The numbers of the values in the text form.
    pub numbers: Vec<usize>,
    /// The modules.
    pub modules: Modules,
    /// The part of the step.
    pub phase: Phase,
    /// The operation of the first value, with its operands.
    pub operation: String,
    /// The type before, if it is a redistribution.
    pub before: Option<String>,
    /// The type.
    pub ty: String,
    /// What it sends, if it is a collective.
    pub traffic: Option<Traffic>,
    /// Why it is there; at least one part.
    pub because: Vec<Because>,
    /// What computes the value that a redistribution moves.
    pub maker: Option<Maker>,
    /// What reads the first value.
    pub readers: Vec<Reader>,
}

pub(super) fn explain(why: &Explainer, subject: &Subject) -> Explained {
    let graph = &why.graph;
    let (names, value) = (number(graph), subject.values[0]);
    let followed = Followed::of(graph);
    let n = graph.node(value.node);
    let name = |value: Value| value_text(graph, value, &names);
    let shown = |value: Value| {
        let operands = graph.operands(value.node).into_iter().map(name);
        let operands: Vec<String> = operands.collect();
        let text = format!("{} {}", operation(graph.node(value.node), &graph.mesh), operands.join(", "));
        format!("{} = {}", name(value), text.trim_end())
    };
    let display = |value: Value| graph.ty(value).display(&graph.mesh);
    let moved = n.op.is_redistribution().then(|| graph.operands(value.node)[0]);
    let maker = moved.map(|source| {
        let operands: BTreeSet<Value> = graph.operands(source.node).into_iter().collect();
        let over = n.op.axes();
        let cut = operands.into_iter().filter(|&v| over.iter().any(|axis| !graph.ty(v).sharding.is_invariant(axis)));
        Maker { operation: shown(source), ty: display(source), cut: cut.map(|v| (name(v), display(v))).collect() }
    });
    let mut readers: Vec<Value> = Vec::new();
    for (user, _) in graph.users(value.node).filter(|&(user, _)| graph.operands(user).contains(&value)) {
        if !readers.contains(&user.into()) {
            readers.push(user.into());
        }
    }
    readers.sort();
    let computed = readers.into_iter().map(|reader| Reader {
        operation: shown(reader),
        ty: display(reader),
        module: graph.node(reader.node).origin.location(),
        needs: match moved {
            Some(_) if !graph.op(reader).is_redistribution() => needs(graph, &followed, &name, value, reader),
            _ => Vec::new(),
        },
    });
    let outputs = graph.outputs.iter().filter(|output| output.value == value).map(|output| Reader {
        operation: format!("output {}", output_name(&output.kind)),
        ty: display(value),
        module: String::new(),
        needs: Vec::new(),
    });
    Explained {
        numbers: subject.values.iter().filter_map(|v| names.get(&v.node).copied()).collect(),
        modules: subject.modules.clone(),
        phase: n.origin.phase,
        operation: shown(value),
        before: moved.map(display),
        ty: display(value),
        traffic: n.op.is_collective().then(|| traffic(why, subject)),
        because: because(why, value, &followed),
        maker,
        readers: computed.chain(outputs).collect(),
    }
}

fn traffic(why: &Explainer, subject: &Subject) -> Traffic {
    let graph = &why.graph;
    let mut all = Traffic::default();
    for value in &subject.values {
        let (op, operand) = (graph.op(*value), graph.operands(value.node)[0]);
        let flight = why.flights.get(value).copied().unwrap_or_default();
        all.count += 1;
        all.sent += super::without::sent(graph, *value);
        all.alone += seconds(&why.options.target, op, &[graph.ty(operand)], graph.ty(*value), &graph.mesh);
        all.seconds += flight.seconds;
        all.of_step += flight.of_step;
        all.company = all.company.max(flight.company);
    }
    all
}

/// Why a value is where it is. For a redistribution these are the causes that the compiler has kept, for an input its
/// entry of the plan, and for any other value the tensors that it is placed like.
fn because(why: &Explainer, value: Value, followed: &Followed) -> Vec<Because> {
    let graph = &why.graph;
    let n = graph.node(value.node);
    let causes = n.origin.reason.causes().iter().map(|cause| match cause {
        Cause::Rule(number) => {
            let rule = all_rules().iter().find(|rule| rule.id.number() == *number);
            rule.map_or_else(|| Because::Cause(cause.clone()), Because::Rule)
        }
        other => Because::Cause(other.clone()),
    });
    let mut because: Vec<Because> = causes.collect();
    let is_input = matches!(n.op, Op::Input { .. });
    if !is_input && !n.op.is_redistribution() {
        let follows = followed.value(value).into_iter().filter_map(|(axis, cause)| {
            Some(Because::Follows { axis: graph.mesh.name(axis).to_string(), cause: cause? })
        });
        because.extend(follows);
    }
    let regathers = n.origin.reason.causes().contains(&Cause::SecondGather);
    let planner = why.report.planner.as_ref().filter(|planner| planner.taken && !is_input && !regathers);
    because.extend(planner.map(|planner| Because::Planner { gap: planner.gap() }));
    if because.is_empty() {
        let replicated = graph.ty(value).sharding.is_replicated() && !n.op.is_redistribution();
        because.push(if replicated { Because::Replicated } else { Because::Between });
    }
    because
}
