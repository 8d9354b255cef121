//! Takes a model to where every value is placed with few elements of the list that occurs most often in it, usually its
//! layers.
//!
//! Canonicalizing, annotating, propagating, searching and proving see [`KEPT`] layers, however many the model has. The other
//! layers are inserted into the result, if two lengths agree: with one more layer, canonicalizing and annotating must give what
//! inserting one more layer into their results gives, and both checkers must accept the placed program with one more layer.
//! A program that is executed, stored or lowered is checked once more, as long as it is.
//!
//! The following is compiled as a whole: a plan that tells layers apart, a limit on memory, planned placements, layers that
//! come out different, and whatever fails, so that errors are about the model as it is.
//!
//! Before: a captured model of 80 layers. After: the placed program of 6 of them, which [`ShortPlan::placed`] makes 80.

use crate::candidate::{Placed, placed_short};
use crate::compile_options::CompileOptions;
use crate::models::{ModelConfig, weight_map};
use crate::prepare::{Planned, Prepared, prepare};
use crate::shared_session::SharedSession;
use std::collections::{BTreeMap, BTreeSet};
use tpc_ir::block::{Lines, Resized};
use tpc_ir::size::addressable;
use tpc_ir::{Graph, Mesh, ModulePath, fold};
use tpc_passes::check::check;
use tpc_passes::check::obligations::Obligations;
use tpc_passes::denotes::denotes;
use tpc_passes::egraph::SearchReport;
use tpc_passes::options::freeze;
use tpc_passes::planner::PlacementSource;
use tpc_passes::reasons::{explain, explain_short};
use tpc_passes::short_model::ShortModel;
use tpc_passes::shorten::KEPT;
use tpc_passes::styles::{Annotations, Plan};

/// The captured program of a family's model with [`KEPT`] layers, as one that stands for a deep model of the family. `None` if
/// the parameters of the deep model are not those that it has with more of these layers.
pub fn of_family(deep: &ModelConfig, captured: Graph) -> Option<ShortModel> {
    let named = |config: &ModelConfig| -> BTreeMap<ModulePath, Vec<usize>> {
        let entries = weight_map(config).entries.into_iter();
        entries.map(|entry| (ModulePath::from(entry.name()), entry.shape)).collect()
    };
    let few = named(&deep.with_layers(KEPT)?);
    let model = ShortModel::family(captured, deep.layers())?;
    // A head that is tied to the embedding has a name, but no parameter of its own.
    let own = model.graph.inputs().filter_map(|(_, id)| id.parameter()).collect::<BTreeSet<_>>();
    let others = few.into_iter().filter(|(path, _)| !own.contains(path));
    let expected = model.parameters().into_iter().chain(others).collect::<BTreeMap<_, _>>();
    (named(deep) == expected).then_some(model)
}

/// Whether options allow that a model is compiled with few of its layers.
pub fn is_possible(options: &CompileOptions) -> bool {
    let CompileOptions { search, lower, .. } = options;
    search.blocks && search.placements == PlacementSource::Given && lower.memory.is_none()
}

/// A placed program that stands for one of a deeper model.
pub struct ShortPlan {
    /// The captured program, with what the options of a step change in it.
    model: ShortModel,
    logical: Graph,
    annotations: Annotations,
    placed: Placed,
}

impl ShortPlan {
    /// Places a captured model. `None` if it must be compiled as a whole.
    pub fn of(model: &ShortModel, mesh: &Mesh, plan: &Plan, options: &CompileOptions) -> Option<ShortPlan> {
        if !is_possible(options) || !plan.treats_alike(&freeze::paths(&options.step.freeze), &model.paths()) {
            return None;
        }
        let prepared = |captured: Graph| prepare(captured, mesh, plan, options, &SharedSession::default()).ok();
        let short = prepared(model.graph.clone())?;
        let longer = prepared(model.grown()?.graph)?;
        if !grows_into(model, &short, &longer) {
            return None;
        }
        let Prepared { captured, logical, annotations } = short;
        let placed = placed_short(&model.with(logical.clone()), &annotations, options)?;
        Some(ShortPlan { model: model.with(captured), logical, annotations, placed })
    }

    /// The report of the search, which counts what the whole model has.
    pub fn report(&self) -> &SearchReport {
        &self.placed.report
    }

    /// The placed program with few elements.
    pub fn short(&self) -> &Graph {
        &self.placed.placed
    }

    /// The folded text of the placed program of the whole model, which takes no longer than that of the short one. `None` if a
    /// line of it has more text in a deeper model.
    pub fn to_text(&self) -> Option<String> {
        let mut longer = self.model.with(self.short().clone()).grown()?;
        let short = longer.short();
        explain_short(&mut longer.graph, &short)?;
        fold::extrapolated(&fold::print(self.short()), &fold::print(&longer.graph), self.model.left_out())
    }

    /// The placed program of the whole model, and what the plan obliges it to. `None` if it must be compiled as a whole.
    pub fn placed(self) -> Option<(Graph, Obligations)> {
        self.checked().map(|(_, _, placed, obligations)| (placed, obligations))
    }

    /// All programs of the whole model. `None` if it must be compiled as a whole.
    pub(crate) fn whole(self) -> Option<Planned> {
        let (logical, annotations, placed, obligations) = self.checked()?;
        let lengthened = |graph: &Graph| self.model.lengthen(graph, |long| long.graph);
        let (captured, mut propagated) = (lengthened(&self.model.graph)?, lengthened(&self.placed.propagated)?);
        explain(&mut propagated);
        let placed = Placed { propagated, placed, obligations, report: self.placed.report };
        Some(Planned { captured, logical, annotations, placed })
    }

    /// The logical program of the whole model with the demands on it, and the placed one with both proofs and what it is
    /// obliged to.
    fn checked(&self) -> Option<(Graph, Annotations, Graph, Obligations)> {
        let demands = |long: Resized| (self.annotations.lengthened(&self.logical, &long), long.graph);
        let (annotations, logical) = self.model.lengthen(&self.logical, demands)?;
        let obliged = |long: Resized| {
            let obligations = self.placed.obligations.lengthened(&logical, &annotations, &long);
            (obligations, long.graph)
        };
        let (obligations, mut placed) = self.model.lengthen(self.short(), obliged)?;
        explain(&mut placed);
        addressable(&placed).ok()?;
        check(&placed).ok()?;
        denotes(&placed, &logical).ok()?;
        obligations.check(&placed).ok()?;
        Some((logical, annotations, placed, obligations))
    }
}

/// Whether one more element makes a program the same one as the model with one more element gives.
fn grows_into(model: &ShortModel, short: &Prepared, longer: &Prepared) -> bool {
    let is_captured = |grown: Resized| Lines::of(&grown.graph).are_those_of(&longer.captured);
    let is_logical = |grown: Resized| {
        let demands = || short.annotations.lengthened(&short.logical, &grown).by_line(&grown.graph);
        Lines::of(&grown.graph).are_those_of(&longer.logical)
            && demands() == longer.annotations.by_line(&longer.logical)
    };
    model.longer(&short.captured, is_captured) == Some(true) && model.longer(&short.logical, is_logical) == Some(true)
}
