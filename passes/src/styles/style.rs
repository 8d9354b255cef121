//! What a parallel style is: a public trait, which the built-in styles implement like anyone's own.
//!
//! A style looks at a [`Module`] and makes [`Placements`]: which parameters are cut by columns or by
//! rows, and how values that cross a module's boundary are prepared. Everything else follows from
//! the factor table.

use super::error::StyleError;
use super::modules::{Role, Weight, levels};
use super::pairs::{Pair, pairs};
use super::prepare::Prepare;
use super::way::Way;
use std::collections::BTreeMap;
use std::fmt::Debug;
use tpc_ir::reason::Side;
use tpc_ir::{Graph, ModulePath};

/// A parallel style: says of one module how it is placed.
pub trait ParallelStyle: Debug + Send + Sync {
    /// The name that errors and reasons show.
    fn name(&self) -> &str;

    /// The built-in plan whose part it is, which reasons name instead of the path that the style is given to.
    fn built_in(&self) -> Option<&'static str> {
        None
    }

    /// What the style works on, for the error when a module has nothing of it.
    fn accepts(&self) -> &str;

    /// Places a module that the plan's path matches. Making no placement is an error for the user.
    ///
    /// # Errors
    /// What the style cannot place.
    fn place(&self, module: &Module<'_>, placements: &mut Placements) -> Result<(), StyleError>;
}

/// A module as the captured program shows it.
pub struct Module<'a> {
    graph: &'a Graph,
    weights: &'a BTreeMap<ModulePath, Weight>,
    path: &'a ModulePath,
}

impl<'a> Module<'a> {
    pub(super) fn new(graph: &'a Graph, weights: &'a BTreeMap<ModulePath, Weight>, path: &'a ModulePath) -> Self {
        Module { graph, weights, path }
    }

    /// Its path; the root is the whole model.
    pub fn path(&self) -> &'a ModulePath {
        self.path
    }

    /// The parameters of the module itself that the forward pass uses.
    pub fn parameters(&self) -> impl Iterator<Item = &'a Weight> + '_ {
        self.weights.values().filter(move |w| w.name.holder() == *self.path)
    }

    /// The parameters of the module and of all modules below it.
    pub fn all_parameters(&self) -> impl Iterator<Item = &'a Weight> + '_ {
        self.weights.values().filter(|w| w.name.is_below(self.path))
    }

    /// The linears of the subtree with their levels: 1 reads what comes from outside, k+1 reads
    /// results of level k.
    pub fn levels(&self) -> Vec<(&'a Weight, usize)> {
        let linears: Vec<&Weight> = self.all_parameters().filter(|w| w.role == Role::Linear).collect();
        levels(self.graph, &linears)
    }

    /// The pairs among the linears of the subtree: some that are cut by columns, and those that read their results, cut
    /// by rows. Linears that belong to no pair are not listed.
    pub fn pairs(&self) -> Vec<Pair<'a>> {
        pairs(self.graph, self.weights, self.path)
    }

    /// The weights among these linears that no result of another of them reaches.
    pub(super) fn first_of(&self, linears: &[&'a Weight]) -> Vec<&'a Weight> {
        levels(self.graph, linears).into_iter().filter(|(_, level)| *level == 1).map(|(weight, _)| weight).collect()
    }

    /// Rows of a table.
    pub fn rows(&self, weight: &Weight) -> usize {
        self.graph.node(weight.input).types[0].shape.first().copied().unwrap_or(1)
    }

    /// Output features of a linear: the product of the dimensions that its product keeps.
    pub fn columns(&self, weight: &Weight) -> usize {
        let shape = &self.graph.node(weight.input).types[0].shape;
        weight.outer.iter().map(|&dim| shape[dim]).product()
    }

    /// The vectors that are added to a weight's product: its biases.
    pub fn biases(&self, weight: &Weight) -> Vec<ModulePath> {
        super::modules::biases(self.graph, self.weights, weight)
    }
}

/// What styles say.
#[derive(Debug, Default)]
pub struct Placements {
    /// Parameters that are cut.
    pub(super) cuts: Vec<(ModulePath, Way)>,
    /// Values at module boundaries: path, side, position, preparation.
    pub(super) boundaries: Vec<(ModulePath, Side, usize, Prepare)>,
    /// Modules whose results are prepared only if they have the dimension: `(path, dimension)`.
    pub(super) sequences: Vec<(ModulePath, isize)>,
    /// Whether nothing need be placed.
    pub(super) nothing_is_fine: bool,
}

impl Placements {
    /// Cuts a weight, and with its columns the biases that are added to its product.
    pub fn cut(&mut self, module: &Module<'_>, weight: &Weight, way: Way) {
        self.cuts.push((weight.name.clone(), way));
        if way == Way::Columns {
            self.cuts.extend(module.biases(weight).into_iter().map(|b| (b, Way::Columns)));
        }
    }

    /// Prepares an argument (counted from 0) of the module of that path.
    pub fn argument(&mut self, path: &ModulePath, position: usize, prepare: Prepare) {
        self.boundaries.push((path.clone(), Side::Arguments, position, prepare));
    }

    /// Prepares a result (counted from 0) of the module of that path.
    pub fn result(&mut self, path: &ModulePath, position: usize, prepare: Prepare) {
        self.boundaries.push((path.clone(), Side::Results, position, prepare));
    }

    /// The module is left as it is on purpose: its parameters stay replicated.
    pub fn leave(&mut self) {
        self.nothing_is_fine = true;
    }

    /// Shards a result along the sequence if it has that dimension besides its features.
    pub(super) fn sequence(&mut self, path: &ModulePath, dim: isize) {
        self.sequences.push((path.clone(), dim));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.cuts.is_empty() && self.boundaries.is_empty() && self.sequences.is_empty() && !self.nothing_is_fine
    }
}
