//! Collects what the styles of a plan demand in the modules that its entries match: which parameters are cut, and
//! layouts at module boundaries.

use super::direction::Direction;
use super::error::{Obstacle, StyleError};
use super::modules::{Role, Weight, paths};
use super::pattern::{Pattern, nearest};
use super::plan::{Entry, Plan};
use super::prepare::Prepare;
use super::style::{Module, Placements};
use std::collections::{BTreeMap, HashMap};
use tpc_ir::reason::{self, Side};
use tpc_ir::{Graph, ModulePath, Op, Region};

/// The demand of a plan entry for a value at a boundary.
#[derive(Clone, Copy)]
pub(super) enum Want {
    /// The layouts of a preparation, in order.
    Layouts(Prepare),
    /// Sharding along this dimension, or along the second-to-last one if the value has too few dimensions. A value of one
    /// dimension is left alone.
    Sequence(isize),
}

/// A value at a boundary, and what a plan entry wants for it.
pub(super) struct Wanted {
    /// The module.
    pub path: ModulePath,
    /// Whether it is an argument or a result of the module.
    pub side: Side,
    /// The index of the argument or result.
    pub position: usize,
    /// The demand.
    pub want: Want,
    /// The plan entry, for reasons.
    pub entry: reason::Entry,
    /// The path pattern of the entry.
    pub pattern: String,
}

impl Wanted {
    /// The error for a boundary that cannot be inferred.
    pub fn unmarked(&self) -> StyleError {
        StyleError::Boundary {
            entry: self.pattern.clone(),
            side: if self.side == Side::Arguments { "arguments" } else { "results" },
            module: self.path.clone(),
            scope: self.path.clone(),
        }
    }
}

/// Everything that the styles of a plan demand.
#[derive(Default)]
pub(super) struct Demands {
    /// By the path of each parameter that is cut: its direction, and the entry that demands it.
    pub directions: BTreeMap<ModulePath, (Direction, reason::Entry)>,
    /// The demands for values at boundaries.
    pub boundaries: Vec<Wanted>,
}

impl Demands {
    /// Collects the demands of the styles of a plan. `weights` are those of the graph. The modules are those that
    /// have parameters, and those of `regions`.
    pub fn of(
        graph: &Graph,
        plan: &Plan,
        weights: &BTreeMap<ModulePath, Weight>,
        regions: &[Region],
    ) -> Result<Self, StyleError> {
        let holders = paths(graph);
        let mut modules = holders.clone();
        for region in regions {
            if !modules.contains(&region.path) {
                modules.push(region.path.clone());
            }
        }
        let mut demands = Demands::default();
        // The index of the entry that cuts each parameter. Two entries may have the same path.
        let mut cut_by: HashMap<ModulePath, usize> = HashMap::new();
        for (index, entry) in plan.styles.iter().enumerate() {
            let Entry { path: pattern, style } = entry;
            let matches =
                Pattern::new(pattern).map_err(|problem| StyleError::Pattern { path: pattern.clone(), problem })?;
            let matched: Vec<&ModulePath> = modules.iter().filter(|m| matches.matches(m)).collect();
            if matched.is_empty() {
                let nearest = nearest(pattern, &modules);
                return Err(StyleError::NoModule { path: pattern.clone(), nearest });
            }
            let name = entry_name(entry);
            let several = matched.len() > 1;
            for module in matched {
                let mut placements = Placements::default();
                style.demand(&Module::new(graph, weights, module), &mut placements)?;
                if placements.is_empty() && !placements.may_be_empty {
                    if several && !holders.contains(module) {
                        continue; // A wildcard may match a region without parameters, of which it asks nothing.
                    }
                    return Err(StyleError::Nothing {
                        path: pattern.clone(),
                        style: style.name().into(),
                        module: module.clone(),
                        kind: None,
                        because: Box::new(obstacle(graph, weights, module, style.accepts())),
                    });
                }
                for (parameter, direction) in placements.cuts {
                    let other = cut_by.insert(parameter.clone(), index).filter(|&other| other != index);
                    let before = demands.directions.insert(parameter.clone(), (direction, name.clone()));
                    if let (Some(_), Some((earlier, first))) = (other, before) {
                        let (first, second) = (first.to_string(), name.to_string());
                        return Err(StyleError::Twice { parameter, first, second, directions: [earlier, direction] });
                    }
                }
                let boundaries =
                    placements.boundaries.into_iter().map(|(p, s, i, prepare)| (p, s, i, Want::Layouts(prepare)));
                let sequences =
                    placements.sequences.into_iter().map(|(p, dim)| (p, Side::Results, 0, Want::Sequence(dim)));
                demands.boundaries.extend(boundaries.chain(sequences).map(|(path, side, position, want)| Wanted {
                    path,
                    side,
                    position,
                    want,
                    entry: name.clone(),
                    pattern: pattern.clone(),
                }));
            }
        }
        Ok(demands)
    }
}

/// The name of a plan entry in reasons and errors.
fn entry_name(entry: &Entry) -> reason::Entry {
    match entry.style.built_in() {
        Some(name) => reason::Entry::BuiltIn(name.into()),
        None => reason::Entry::of(&entry.path),
    }
}

/// Why a style finds nothing that it accepts in a module.
fn obstacle(graph: &Graph, weights: &BTreeMap<ModulePath, Weight>, module: &ModulePath, accepts: &str) -> Obstacle {
    let parameters = graph.inputs().filter_map(|(_, id)| id.parameter()).filter(|name| name.is_below(module));
    let parameters: Vec<ModulePath> = parameters.cloned().collect();
    if !parameters.is_empty() && !parameters.iter().any(|name| weights.contains_key(name)) {
        return Obstacle::Unused(parameters);
    }
    let own = || weights.values().filter(|w| w.name.holder() == *module);
    let is_matrix = |w: &&Weight| matches!(graph.op(w.input.into()), Op::Input { layout, .. } if layout.len() > 1);
    if let Some(matrix) = own().filter(|w| w.role == Role::Vector).find(is_matrix) {
        let operation = graph.node(matrix.user).op.name();
        return Obstacle::NoProduct { parameter: matrix.name.clone(), operation };
    }
    if own().any(|w| w.role == Role::Convolution && w.inner.is_empty()) {
        return Obstacle::Depthwise;
    }
    Obstacle::WorksOn(accepts.into())
}
