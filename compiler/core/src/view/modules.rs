//! The tree of modules, in which elements of a list that compute the same are one module.
//!
//! Two elements are the same if they have the same parameters; those without parameters, if they have the same operations
//! in the forward pass. Redistributions and placements do not count, so two plans for one program have the same tree. What
//! elements of one class compute differently (the first layer also makes the masks) is in different listings.

use crate::summary::{Summary, home};
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use tpc_ir::program::RankProgram;
use tpc_ir::{DType, Graph, InputId, ModulePath, Op, Phase, Segment};

/// A module, or the equal elements of a list.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Module {
    /// The position of the module that it is in; none for the model.
    pub parent: Option<usize>,
    /// Its name there, or the positions of the elements: `mlp`, `{0..79}`.
    pub name: String,
    /// Its path, with positions in the same form; empty for the model.
    pub path: String,
    /// Whether it stands for elements of a list.
    pub element: bool,
    /// The number of modules that it stands for.
    pub count: usize,
}

/// The tree, and where each module of the program is in it.
pub(crate) struct Modules {
    pub(crate) list: Vec<Module>,
    places: HashMap<ModulePath, usize>,
}

/// One step down in the tree.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Step {
    Name(Arc<str>),
    /// Elements of one class.
    Class(usize),
}

impl Modules {
    /// The modules to which operations, steps or bytes of a program belong.
    pub(crate) fn of(placed: &Graph, program: &RankProgram, summary: &Summary) -> Self {
        let (operations, inputs): (Vec<_>, Vec<_>) =
            placed.nodes().partition(|&node| !matches!(placed.node(node).op, Op::Input { .. }));
        // The tree has the order in which the model computes.
        let nodes = operations.into_iter().map(|node| placed.node(node).origin.module.clone());
        let steps = program.steps.iter().map(|step| step.module.clone());
        let held = summary.peak.keys().map(|(module, _)| module.clone());
        let parameters: HashSet<&ModulePath> = placed.inputs().filter_map(|(_, id)| id.parameter()).collect();
        let holders = inputs.into_iter().filter_map(|node| match &placed.node(node).op {
            Op::Input { id, .. } => Some(home(id, &parameters)),
            _ => None,
        });
        let all = nodes.chain(steps).chain(held).chain(holders);
        Modules::arranged(all, &classes(placed))
    }

    fn arranged(paths: impl Iterator<Item = ModulePath>, classes: &HashMap<ModulePath, usize>) -> Self {
        let mut found = Modules { list: Vec::new(), places: HashMap::new() };
        let mut parents = vec![(None, Step::Class(0))];
        let mut members = vec![BTreeSet::from([ModulePath::default()])];
        let mut known: HashMap<(usize, Step), usize> = HashMap::new();
        for path in paths {
            if found.places.contains_key(&path) {
                continue;
            }
            let (mut at, mut prefix) = (0, ModulePath::default());
            for segment in path.segments() {
                prefix = prefix.with(segment.clone());
                let step = match segment {
                    Segment::Name(name) => Step::Name(name.clone()),
                    Segment::Index(_) => Step::Class(classes.get(&prefix).copied().unwrap_or(usize::MAX)),
                };
                at = *known.entry((at, step.clone())).or_insert_with(|| {
                    parents.push((Some(at), step));
                    members.push(BTreeSet::new());
                    parents.len() - 1
                });
                members[at].insert(prefix.clone());
            }
            found.places.insert(path, at);
        }
        for ((parent, step), members) in parents.into_iter().zip(members) {
            let name = match (&parent, step) {
                (None, _) => String::new(),
                (Some(_), Step::Name(name)) => Segment::Name(name).to_string(),
                (Some(_), Step::Class(_)) => positions(&members),
            };
            let above = parent.map_or("", |parent: usize| found.list[parent].path.as_str());
            let path = if above.is_empty() { name.clone() } else { format!("{above}.{name}") };
            let element = members.first().is_some_and(|path| matches!(path.segments().last(), Some(Segment::Index(_))));
            found.list.push(Module { parent, name, path, element, count: members.len() });
        }
        found
    }

    /// The position of a module in the list; of the model, if the module is not known.
    pub(crate) fn at(&self, path: &ModulePath) -> usize {
        self.places.get(path).copied().unwrap_or(0)
    }
}

/// The positions of elements as ranges: `7`, `{0..79}`, `{0,2..3}`.
fn positions(members: &BTreeSet<ModulePath>) -> String {
    let positions: BTreeSet<usize> = members.iter().filter_map(|path| path.indices().last()).collect();
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for at in positions {
        match ranges.last_mut().filter(|(_, last)| last + 1 == at) {
            Some((_, last)) => *last = at,
            None => ranges.push((at, at)),
        }
    }
    let range = |&(a, b): &(usize, usize)| if a == b { a.to_string() } else { format!("{a}..{b}") };
    match &ranges[..] {
        [one] if one.0 == one.1 => range(one),
        _ => format!("{{{}}}", ranges.iter().map(range).collect::<Vec<_>>().join(",")),
    }
}

/// What tells elements apart: a parameter of so many elements, or an operation of the forward pass.
#[derive(PartialEq, Eq, Hash)]
enum Part<'a> {
    Parameter(DType, &'a [usize]),
    Operation(&'a Op, DType, &'a [usize]),
}

/// The class of every element of a list: elements of equal number have equal parts.
fn classes(graph: &Graph) -> HashMap<ModulePath, usize> {
    let mut kinds: HashMap<Part<'_>, usize> = HashMap::new();
    let mut parameters: HashMap<ModulePath, Vec<(ModulePath, usize)>> = HashMap::new();
    let mut operations = parameters.clone();
    for node in graph.nodes() {
        let n = graph.node(node);
        let ty = &n.types[0];
        let (path, part, contents) = match &n.op {
            Op::Input { id: InputId::Parameter(path), layout, .. } => {
                (path, Part::Parameter(ty.dtype, layout), &mut parameters)
            }
            Op::Input { .. } | Op::Random { .. } => continue,
            op if op.is_redistribution() || n.origin.phase != Phase::Forward => continue,
            op => (&n.origin.module, Part::Operation(op, ty.dtype, &ty.shape), &mut operations),
        };
        let next = kinds.len();
        let kind = *kinds.entry(part).or_insert(next);
        let segments = path.segments();
        for at in (0..segments.len()).filter(|&at| matches!(segments[at], Segment::Index(_))) {
            let element: ModulePath = segments[..=at].iter().cloned().collect();
            let inside: ModulePath = segments[at + 1..].iter().cloned().collect();
            contents.entry(element).or_default().push((inside, kind));
        }
    }
    operations.extend(parameters);
    let mut known: HashMap<Vec<(ModulePath, usize)>, usize> = HashMap::new();
    let class = |(element, mut content): (ModulePath, Vec<_>)| {
        content.sort_unstable();
        let next = known.len();
        (element, *known.entry(content).or_insert(next))
    };
    operations.into_iter().map(class).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_elements_are_one_module() {
        let path = |text: &str| ModulePath::from(text);
        let paths = ["embed", "layers.0.mlp", "layers.1.mlp", "layers.2.mlp", "layers.4.mlp", "layers", "norm"];
        let classes = [("layers.0", 3), ("layers.1", 7), ("layers.2", 3), ("layers.4", 3)];
        let classes = classes.map(|(element, class)| (path(element), class)).into();
        let modules = Modules::arranged(paths.into_iter().map(path), &classes);
        let shown: Vec<(&str, usize)> = modules.list.iter().map(|m| (m.path.as_str(), m.count)).collect();
        let expected = [
            ("", 1),
            ("embed", 1),
            ("layers", 1),
            ("layers.{0,2,4}", 3),
            ("layers.{0,2,4}.mlp", 3),
            ("layers.1", 1),
            ("layers.1.mlp", 1),
            ("norm", 1),
        ];
        assert_eq!(shown, expected);
        assert_eq!(modules.at(&path("layers.2.mlp")), modules.at(&path("layers.4.mlp")));
        assert_eq!(modules.list[modules.at(&path("layers.1.mlp"))].parent, Some(5));
    }
}
