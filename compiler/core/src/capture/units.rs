//! The units of a model: the groups of parameters that are gathered together if they are sharded over a data axis.
//!
//! A unit is what a user of PyTorch passes to `fully_shard`: a block of the model, small enough that several fit in
//! memory at once, and large enough for a collective of its own. Units follow from the module tree, independently of
//! the names of modules:
//!
//! - If the model has lists of blocks (elements of a `Vec`, an array or a tuple that contain modules), each element is
//!   a unit, such as a layer of a transformer. An element that consists only of such lists, such as a stage of a
//!   ResNet, is divided in turn. An element that contains anything else, such as a layer with attention, a router and a
//!   list of experts, is one unit.
//! - Otherwise, the outermost modules that contain modules are units, such as the encoders of a model with two
//!   encoders. If there is only one such module, it is divided in turn. Elements of a list of plain layers are also
//!   units.
//! - Everything else belongs to the model as a whole: embeddings, the last norm, heads. These parameters are gathered
//!   once and kept.
//!
//! A `Param` in a list belongs to the module that contains the list, the parameters of an adapter belong to the module
//! that contains the adapted parameter, and a variant of an enum stands for the module inside.
//!
//! ```text
//! { embedding, layers: [{ attn, mlp }, { attn, mlp }], norm, head }    layers.0, layers.1
//! { stages: [{ blocks: [b, b] }, { blocks: [b] }], head }              stages.0.blocks.0, stages.0.blocks.1, stages.1.blocks.0
//! { patches, encoder_a: { attn, mlp }, encoder_b: { attn, mlp } }      encoder_a, encoder_b
//! ```

use super::position::{container, is_list};

/// The kind of a module, which burn reports when a visitor enters a field of the module.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    /// A parameter, or an empty module.
    #[default]
    Single,
    Structure,
    List,
    /// An enum, which contains the module of its variant.
    Choice,
    /// A parameter with an adapter.
    Adapted,
}

impl Kind {
    fn of(container_type: &str) -> Self {
        match container(container_type).0 {
            _ if is_list(container_type) => Kind::List,
            "Enum" => Kind::Choice,
            "Reparameterization" => Kind::Adapted,
            _ => Kind::Structure,
        }
    }
}

/// A module with the parameters that it holds directly, by number, and the modules in it that contain parameters.
#[derive(Debug, Default)]
struct Node {
    kind: Kind,
    parameters: Vec<usize>,
    modules: Vec<Node>,
}

/// The module tree of a model, as built by a visitor.
#[derive(Debug)]
pub(super) struct ModuleTree {
    /// The model, and the modules that have been entered and not left.
    open: Vec<Node>,
}

impl Default for ModuleTree {
    fn default() -> Self {
        ModuleTree { open: vec![Node::default()] }
    }
}

impl ModuleTree {
    /// Enters a field of a module of the given type.
    pub(super) fn enter(&mut self, container_type: &str) {
        if let Some(holder) = self.open.last_mut() {
            holder.kind = Kind::of(container_type);
        }
        self.open.push(Node::default());
    }

    /// Leaves the field that was entered last.
    pub(super) fn exit(&mut self) {
        if let Some(held) = self.open.pop()
            && let Some(holder) = self.open.last_mut()
        {
            holder.add(held);
        }
    }

    /// Adds a parameter, given by its number, to the current module.
    pub(super) fn parameter(&mut self, number: usize) {
        if let Some(module) = self.open.last_mut() {
            module.parameters.push(number);
        }
    }

    /// The parameters of each unit, in the order of the tree.
    pub(super) fn units(self) -> Vec<Vec<usize>> {
        let mut units = Vec::new();
        if let Some(model) = self.open.first() {
            model.divide(&mut units);
        }
        units
    }
}

impl Node {
    fn add(&mut self, mut held: Node) {
        let joins_holder = match held.kind {
            Kind::Single | Kind::Adapted => true,
            Kind::List => held.modules.is_empty(),
            Kind::Structure | Kind::Choice => false,
        };
        if joins_holder {
            self.parameters.extend(held.all());
        } else if held.kind == Kind::Choice && held.parameters.is_empty() {
            self.modules.append(&mut held.modules);
        } else if !held.all().is_empty() {
            self.modules.push(held);
        }
    }

    /// The parameters of the module and of all modules in it.
    fn all(&self) -> Vec<usize> {
        let inner = self.modules.iter().flat_map(Node::all);
        self.parameters.iter().copied().chain(inner).collect()
    }

    fn holds_modules(&self) -> bool {
        !self.modules.is_empty()
    }

    fn is_list_of_blocks(&self) -> bool {
        self.kind == Kind::List && self.modules.iter().any(Node::holds_modules)
    }

    fn has_list_of_blocks(&self) -> bool {
        self.is_list_of_blocks() || self.modules.iter().any(Node::has_list_of_blocks)
    }

    /// Whether all parameters belong to blocks in lists.
    fn consists_of_lists(&self) -> bool {
        let inside = || self.holds_modules() && self.modules.iter().all(Node::consists_of_lists);
        self.parameters.is_empty() && (self.is_list_of_blocks() || inside())
    }

    /// Adds the units in a module that is not itself a unit.
    fn divide(&self, units: &mut Vec<Vec<usize>>) {
        if self.is_list_of_blocks() {
            for element in &self.modules {
                if element.consists_of_lists() { element.divide(units) } else { units.push(element.all()) }
            }
        } else if self.has_list_of_blocks() {
            self.modules.iter().filter(|module| module.has_list_of_blocks()).for_each(|module| module.divide(units));
        } else if self.kind == Kind::List {
            units.extend(self.modules.iter().map(Node::all));
        } else {
            let blocks: Vec<&Node> = self.modules.iter().filter(|module| module.holds_modules()).collect();
            let before = units.len();
            if let [only] = blocks[..] {
                only.divide(units);
            }
            if units.len() == before {
                for block in blocks {
                    if block.kind == Kind::List { block.divide(units) } else { units.push(block.all()) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The units of a model in a short notation: a letter is a parameter, `{}` a struct, `[]` a list, `<>` an enum,
    /// `()` a parameter with an adapter.
    fn units(model: &str) -> Vec<String> {
        let letters: Vec<char> = model.chars().filter(|c| c.is_alphabetic()).collect();
        let mut tree = ModuleTree::default();
        let (mut types, mut number) = (Vec::new(), 0);
        for c in model.chars().skip(1) {
            match c {
                '}' | ']' | '>' | ')' => {
                    if types.pop().is_some() {
                        tree.exit();
                    }
                }
                _ if c.is_whitespace() => {}
                _ => {
                    tree.enter(types.last().copied().unwrap_or("Struct:Model"));
                    let of = |open: char| match open {
                        '[' => "Vec",
                        '<' => "Enum:Kind",
                        '(' => "Reparameterization",
                        _ => "Struct:Part",
                    };
                    if c.is_alphabetic() {
                        tree.parameter(number);
                        number += 1;
                        tree.exit();
                    } else {
                        types.push(of(c));
                    }
                }
            }
        }
        let named = |mut unit: Vec<usize>| {
            unit.sort_unstable();
            unit.into_iter().map(|parameter| letters[parameter]).collect()
        };
        tree.units().into_iter().map(named).collect()
    }

    #[test]
    fn blocks_of_a_list() {
        // Embedding, layers, norm, head; then a list in an inner module, next to other modules that contain modules.
        assert_eq!(units("{ {a} [ {{b}{cd}} {{e}{fg}} ] {h} {i} }"), ["bcd", "efg"]);
        assert_eq!(units("{ { {{a}{b}{c}} { [ {{d}{e}} {{f}{g}} ] } } { {{h}{i}} j } }"), ["de", "fg"]);
        // Two lists, a different element, and parameters directly in an element.
        assert_eq!(units("{ [ {{a}b} {{c}d} ] {e} { [ {{f}} {g} ] } }"), ["ab", "cd", "f", "g"]);
    }

    #[test]
    fn lists_in_elements_of_lists() {
        // Stages of blocks, a stage with a layer of its own, layers with experts, lists of lists.
        assert_eq!(units("{ {a} [ { [ {{b}{c}} {{d}{e}} ] } { [ {{f}} ] } ] {g} }"), ["bc", "de", "f"]);
        assert_eq!(units("{ {a} [ { {x} [ {{b}{c}} {{d}{e}} ] } { [ {{f}} ] } ] {g} }"), ["xbcde", "f"]);
        assert_eq!(units("{ [ { {a} {r} [ {{b}{c}} {{d}{e}} ] } { {f} {s} [ {{g}} {{h}} ] } ] }"), ["arbcde", "fsgh"]);
        assert_eq!(units("{ [ [ {{a}} {{b}} ] [ {{c}} {{d}} ] ] }"), ["a", "b", "c", "d"]);
        // A block of plain layers in a list.
        assert_eq!(units("{ [ { [ {a} {b} ] } { [ {c} {d} ] } ] }"), ["ab", "cd"]);
    }

    #[test]
    fn models_without_lists_of_blocks() {
        assert_eq!(units("{ {a} {{b}{c}} {{d}{e}} {f} }"), ["bc", "de"]);
        // Inside another module, a single block, and only plain layers.
        assert_eq!(units("{ { {{a}{b}} {{c}{d}} e } {f} }"), ["ab", "cd"]);
        assert_eq!(units("{ {{a}{b}} {c} }"), ["ab"]);
        assert_eq!(units("{ { {{a}{b}} } {c} }"), ["ab"]);
        assert_eq!(units("{ {a} {b} c }"), Vec::<String>::new());
        // Lists of plain layers, also next to other modules.
        assert_eq!(units("{ [ {ab} {cd} ] {e} }"), ["ab", "cd"]);
        assert_eq!(units("{ [ {a} {b} ] {{c}{d}} {e} }"), ["a", "b", "cd"]);
        // A list inside one of several modules belongs to that module.
        assert_eq!(units("{ { [ {a} {b} ] {c} } { [ {d} {e} ] } }"), ["abc", "de"]);
    }

    #[test]
    fn modules_that_do_not_count() {
        // Parameters in a list, adapters, and variants.
        assert_eq!(units("{ [ a b ] {c} }"), Vec::<String>::new());
        assert_eq!(units("{ { [ab] c {d} } { {e} } }"), ["abcd", "e"]);
        assert_eq!(units("{ [ <{{a}{b}}> <{c}> ] }"), ["ab", "c"]);
        assert_eq!(units("{ <{{a}{b}}> <{c}> }"), ["ab"]);
        // Modules without parameters.
        assert_eq!(units("{ [ {{a}{}} {{}b} ] {{}} }"), ["a", "b"]);
    }
}
