//! A model with few elements of the list that occurs most often in it, usually its layers, which stands for the deep model.
//!
//! Before: a captured model of 80 layers. After: the same model with [`KEPT`] layers, and what it takes to insert the others
//! into every program that is made from it.

use crate::shorten::{Cut, KEPT, Shortened};
use std::collections::{BTreeMap, BTreeSet};
use tpc_ir::block::{Block, Lines, Resized};
use tpc_ir::{Graph, ModulePath, Op};

/// A model of which a list has few elements: a captured program, or one that was made from it.
#[derive(Clone, Debug)]
pub struct ShortModel {
    /// The program.
    pub graph: Graph,
    /// The block of which it has few occurrences.
    cut: Cut,
    /// How many elements the lists of the block have in the deep model, at most.
    elements: usize,
}

impl ShortModel {
    /// Shortens a captured program by its largest block. `None` if nothing repeats often enough, or if the short program does
    /// not determine the long one.
    pub fn captured(graph: &Graph) -> Option<ShortModel> {
        let lines = Lines::of(graph);
        let (short, cut) = Cut::of(&lines)?;
        let elements = paths(graph).iter().filter_map(|path| cut.block.element(path)).max()? + 1;
        let model = ShortModel { graph: short, cut, elements };
        model.lengthen(&model.graph, |long| lines.are_those_of(&long.graph))?.then_some(model)
    }

    /// The captured program of a model that has [`KEPT`] layers and stands for one with `layers`. `None` if it has no list of
    /// that many elements.
    pub fn family(graph: Graph, layers: usize) -> Option<ShortModel> {
        let left_out = layers.checked_sub(KEPT).filter(|&left_out| left_out > 0)?;
        let paths = paths(&graph);
        let is_list = |block: &Block| {
            let last = paths.iter().filter_map(|path| block.element(path)).max();
            block.count == KEPT && block.lists() == 1 && last == Some(KEPT - 1)
        };
        let block = Lines::of(&graph).blocks().into_iter().find(is_list)?;
        Some(ShortModel { graph, cut: Cut { block, left_out }, elements: layers })
    }

    /// A program that was made from this one, and stands for the same model.
    #[must_use]
    pub fn with(&self, graph: Graph) -> ShortModel {
        ShortModel { graph, ..self.clone() }
    }

    /// The model with one more occurrence. `None` if the occurrences of the program are not alike.
    pub fn grown(&self) -> Option<ShortModel> {
        let graph = self.longer(&self.graph, |grown| grown.graph)?;
        let cut = Cut { left_out: self.cut.left_out - 1, ..self.cut.clone() };
        Some(ShortModel { graph, cut, elements: self.elements })
    }

    /// The program as one that stands for the whole one.
    pub fn short(&self) -> Shortened {
        Shortened { graph: self.graph.clone(), cuts: vec![self.cut.clone()] }
    }

    /// How many occurrences the program lacks.
    pub fn left_out(&self) -> usize {
        self.cut.left_out
    }

    /// The paths of modules and tensors, with those of all elements of the lists. What belongs to the same part of an element
    /// is in one group.
    pub fn paths(&self) -> Vec<Vec<ModulePath>> {
        self.with_block(|block| {
            let mut groups: BTreeMap<ModulePath, Vec<ModulePath>> = BTreeMap::new();
            for path in paths(&self.graph) {
                match block.in_element(&path, 0) {
                    Some(first) => groups.entry(first).or_insert_with_key(|first| self.in_elements(block, first)),
                    None => groups.entry(path.clone()).or_insert(vec![path]),
                };
            }
            groups.into_values().collect()
        })
        .unwrap_or_default()
    }

    /// The parameters of the model, with the shapes that it knows.
    pub fn parameters(&self) -> BTreeMap<ModulePath, Vec<usize>> {
        self.with_block(|block| {
            let mut found = BTreeMap::new();
            for (node, id) in self.graph.inputs() {
                let (Some(path), Op::Input { layout, .. }) = (id.parameter(), &self.graph.node(node).op) else {
                    continue;
                };
                let all = self.in_elements(block, path).into_iter().chain([path.clone()]);
                found.extend(all.map(|path| (path, layout.clone())));
            }
            found
        })
        .unwrap_or_default()
    }

    /// The path of the same thing in all elements; none if it does not belong to one.
    fn in_elements(&self, block: &Block, path: &ModulePath) -> Vec<ModulePath> {
        (0..self.elements).filter_map(|element| block.in_element(path, element)).collect()
    }

    fn with_block<T>(&self, look: impl FnOnce(&Block) -> T) -> Option<T> {
        Some(look(self.cut.find(&Lines::of(&self.graph).blocks())?))
    }

    /// Calls `make` with what makes a program as long as the model. `None` if its occurrences are not alike.
    pub fn lengthen<T>(&self, graph: &Graph, make: impl FnOnce(Resized) -> T) -> Option<T> {
        self.cut.inserted(graph, self.left_out(), make)
    }

    /// Calls `make` with what makes a program longer by one occurrence. `None` if its occurrences are not alike.
    pub fn longer<T>(&self, graph: &Graph, make: impl FnOnce(Resized) -> T) -> Option<T> {
        self.cut.inserted(graph, 1, make)
    }
}

/// The paths of all modules and tensors of a program.
fn paths(graph: &Graph) -> BTreeSet<ModulePath> {
    let tensors = graph.inputs().filter_map(|(_, id)| id.path());
    let modules = graph.nodes().map(|node| &graph.node(node).origin.module);
    let mut found = BTreeSet::new();
    for path in tensors.chain(modules).chain(graph.regions.iter().map(|region| &region.path)) {
        // A path is found with all that contain it.
        let mut next = Some(path.clone());
        while let Some(path) = next.filter(|path| !found.contains(path)) {
            next = (!path.is_root()).then(|| path.holder());
            found.insert(path);
        }
    }
    found
}
