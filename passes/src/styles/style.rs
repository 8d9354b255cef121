//! The trait of parallel styles. It is public: built-in styles implement it like custom ones.
//!
//! A style examines a [`Module`] and adds [`Placements`]: which parameters are cut by columns or by rows, and how
//! values at the boundary of a module are prepared. Everything else follows from the factor table.

use super::direction::Direction;
use super::error::StyleError;
use super::modules::{Role, Weight, levels};
use super::pairs::{Pair, pairs};
use super::prepare::Prepare;
use std::collections::BTreeMap;
use std::fmt::Debug;
use tpc_ir::reason::Side;
use tpc_ir::{Graph, ModulePath};

/// A parallel style, which demands placements of a module's parameters and of the values at module boundaries.
pub trait ParallelStyle: Debug + Send + Sync {
    /// The name in errors and reasons.
    fn name(&self) -> &str;

    /// The built-in plan to which the style belongs. Reasons name it instead of the path of the entry.
    fn built_in(&self) -> Option<&'static str> {
        None
    }

    /// What the style works on, for the error if a module has nothing of it.
    fn accepts(&self) -> &str;

    /// Whether two modules that differ in nothing but the indices of their paths may be placed differently. A model of which
    /// a layer occurs many times is compiled faster if no style of its plan does that.
    fn may_tell_paths_apart(&self) -> bool {
        true
    }

    /// Adds the placements that the style demands of a module that the path of a plan entry matches. It is an error of
    /// the plan if the style adds none.
    ///
    /// # Errors
    /// The style does not fit the module.
    fn demand(&self, module: &Module<'_>, placements: &mut Placements) -> Result<(), StyleError>;
}

/// A module of the captured program.
pub struct Module<'a> {
    graph: &'a Graph,
    weights: &'a BTreeMap<ModulePath, Weight>,
    path: &'a ModulePath,
}

impl<'a> Module<'a> {
    pub(super) fn new(graph: &'a Graph, weights: &'a BTreeMap<ModulePath, Weight>, path: &'a ModulePath) -> Self {
        Module { graph, weights, path }
    }

    /// The path of the module; the root for the whole model.
    pub fn path(&self) -> &'a ModulePath {
        self.path
    }

    /// The parameters of the module itself, without those of inner modules, that the forward pass uses.
    pub fn parameters(&self) -> impl Iterator<Item = &'a Weight> + '_ {
        self.weights.values().filter(move |w| w.name.holder() == *self.path)
    }

    /// The parameters of the module and of all modules inside it that the forward pass uses.
    pub fn all_parameters(&self) -> impl Iterator<Item = &'a Weight> + '_ {
        self.weights.values().filter(|w| w.name.is_below(self.path))
    }

    /// The linears of the module and of all modules inside it, with their levels. Linears of level 1 read values from
    /// outside, those of level k + 1 read results of level k.
    pub fn levels(&self) -> Vec<(&'a Weight, usize)> {
        let linears: Vec<&Weight> = self.all_parameters().filter(|w| w.role == Role::Linear).collect();
        levels(self.graph, &linears)
    }

    /// The pairs among these linears: linears to cut by columns, and those that read their results, to cut by rows.
    /// Linears that belong to no pair are not listed.
    pub fn pairs(&self) -> Vec<Pair<'a>> {
        pairs(self.graph, self.weights, self.path)
    }

    /// Filters some linears: those that no result of another one of them reaches.
    pub(super) fn first_of(&self, linears: &[&'a Weight]) -> Vec<&'a Weight> {
        levels(self.graph, linears).into_iter().filter(|(_, level)| *level == 1).map(|(weight, _)| weight).collect()
    }

    /// The number of rows of a table.
    pub fn rows(&self, weight: &Weight) -> usize {
        self.graph.node(weight.input).types[0].shape.first().copied().unwrap_or(1)
    }

    /// The number of output features of a linear.
    pub fn columns(&self, weight: &Weight) -> usize {
        let shape = &self.graph.node(weight.input).types[0].shape;
        weight.outer.iter().map(|&dim| shape[dim]).product()
    }

    /// The biases of a weight, which are the vectors that are added to its product.
    pub fn biases(&self, weight: &Weight) -> Vec<ModulePath> {
        super::modules::biases(self.graph, self.weights, weight)
    }
}

/// The placements that styles add.
#[derive(Debug, Default)]
pub struct Placements {
    /// The parameters that are cut.
    pub(super) cuts: Vec<(ModulePath, Direction)>,
    /// The preparations of values at module boundaries: path, side, position, preparation.
    pub(super) boundaries: Vec<(ModulePath, Side, usize, Prepare)>,
    /// The modules whose results are sharded along the sequence, if they have this dimension: `(path, dimension)`.
    pub(super) sequences: Vec<(ModulePath, isize)>,
    /// Whether it is not an error if nothing is placed.
    pub(super) may_be_empty: bool,
}

impl Placements {
    /// Cuts a weight. If it is cut by columns, its biases are cut too.
    pub fn cut(&mut self, module: &Module<'_>, weight: &Weight, direction: Direction) {
        self.cuts.push((weight.name.clone(), direction));
        if direction == Direction::Columns {
            self.cuts.extend(module.biases(weight).into_iter().map(|b| (b, Direction::Columns)));
        }
    }

    /// Prepares an argument, counted from 0, of the module at a path.
    pub fn argument(&mut self, path: &ModulePath, position: usize, prepare: Prepare) {
        self.boundaries.push((path.clone(), Side::Arguments, position, prepare));
    }

    /// Prepares a result, counted from 0, of the module at a path.
    pub fn result(&mut self, path: &ModulePath, position: usize, prepare: Prepare) {
        self.boundaries.push((path.clone(), Side::Results, position, prepare));
    }

    /// Leaves the module as it is, so that its parameters stay replicated.
    pub fn leave(&mut self) {
        self.may_be_empty = true;
    }

    /// Shards the result of a module along the sequence, if it has this dimension in addition to its features.
    pub(super) fn sequence(&mut self, path: &ModulePath, dim: isize) {
        self.sequences.push((path.clone(), dim));
    }

    /// Whether the style has added no placement.
    pub(super) fn is_empty(&self) -> bool {
        self.cuts.is_empty() && self.boundaries.is_empty() && self.sequences.is_empty()
    }
}
