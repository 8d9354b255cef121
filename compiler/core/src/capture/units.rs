//! Which parameters are gathered together where they are sharded over a data axis: the units of a model.
//!
//! A unit is what a user of PyTorch gives to `fully_shard`: a block of the model, small enough that few of them fit beside
//! each other, and large enough for one collective. It follows from the module tree, whatever its modules are called:
//!
//! - Where the model has lists of blocks (elements of a `Vec`, an array or a tuple that hold modules themselves), each
//!   element is a unit: a layer of a transformer. An element that consists of nothing but such lists, a stage of a ResNet,
//!   is divided in turn. One that holds anything beside its list, such as the attention and the router of a layer with a
//!   list of experts, is one unit.
//! - Where it has none, the outermost modules that hold modules are units: the encoders of a model of two. If there is
//!   only one of them it is divided in turn. Elements of a list of plain layers are also units.
//! - Everything else belongs to the model as a whole: embeddings, the last norm, heads. It is gathered once and kept.
//!
//! A `Param` in a list is a part of the module that holds the list, what an adapter adds to a parameter is a part of the
//! module that holds the parameter, and a variant of an enumeration is the module inside.
//!
//! ```text
//! { embedding, layers: [{ attn, mlp }, { attn, mlp }], norm, head }    layers.0, layers.1
//! { stages: [{ blocks: [b, b] }, { blocks: [b] }], head }              stages.0.blocks.0, stages.0.blocks.1, stages.1.blocks.0
//! { patches, encoder_a: { attn, mlp }, encoder_b: { attn, mlp } }      encoder_a, encoder_b
//! ```

use super::position::{container, is_list};

/// The kind of a module, which burn names when it enters something that the module holds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Kind {
    /// A parameter, or a module that holds nothing.
    #[default]
    Single,
    Structure,
    List,
    /// An enumeration: it holds the module of its variant.
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

/// A module with the parameters that it holds itself, by number, and the modules in it that hold any.
#[derive(Debug, Default)]
struct Node {
    kind: Kind,
    parameters: Vec<usize>,
    modules: Vec<Node>,
}

/// The modules of a model, as a visitor meets them.
#[derive(Debug)]
pub(super) struct ModuleTree {
    /// The model, and the modules that were entered and not left.
    open: Vec<Node>,
}

impl Default for ModuleTree {
    fn default() -> Self {
        ModuleTree { open: vec![Node::default()] }
    }
}

impl ModuleTree {
    /// Enters something that a module of that type holds.
    pub(super) fn enter(&mut self, container_type: &str) {
        if let Some(holder) = self.open.last_mut() {
            holder.kind = Kind::of(container_type);
        }
        self.open.push(Node::default());
    }

    /// Leaves what was entered last.
    pub(super) fn exit(&mut self) {
        if let Some(held) = self.open.pop()
            && let Some(holder) = self.open.last_mut()
        {
            holder.takes(held);
        }
    }

    /// Meets a parameter of that number.
    pub(super) fn parameter(&mut self, number: usize) {
        if let Some(place) = self.open.last_mut() {
            place.parameters.push(number);
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
    fn takes(&mut self, mut held: Node) {
        let is_part = match held.kind {
            Kind::Single | Kind::Adapted => true,
            Kind::List => held.modules.is_empty(),
            Kind::Structure | Kind::Choice => false,
        };
        if is_part {
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

    /// Whether all parameters are those of blocks in lists.
    fn consists_of_lists(&self) -> bool {
        let inside = || self.holds_modules() && self.modules.iter().all(Node::consists_of_lists);
        self.parameters.is_empty() && (self.is_list_of_blocks() || inside())
    }

    /// Adds the units of a module that is none itself.
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

    /// A model in short: a letter is a parameter, `{}` a structure, `[]` a list, `<>` an enumeration, `()` a parameter with
    /// an adapter.
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
        // Embedding, layers, norm, head; the list in a module of the model, beside others that hold modules.
        assert_eq!(units("{ {a} [ {{b}{cd}} {{e}{fg}} ] {h} {i} }"), ["bcd", "efg"]);
        assert_eq!(units("{ { {{a}{b}{c}} { [ {{d}{e}} {{f}{g}} ] } } { {{h}{i}} j } }"), ["de", "fg"]);
        // Two lists; an element of another kind; parameters of an element itself.
        assert_eq!(units("{ [ {{a}b} {{c}d} ] {e} { [ {{f}} {g} ] } }"), ["ab", "cd", "f", "g"]);
    }

    #[test]
    fn lists_in_elements_of_lists() {
        // Stages of blocks; a stage with a layer of its own; layers with experts; lists of lists.
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
        // In a module around them; a single one; plain layers alone.
        assert_eq!(units("{ { {{a}{b}} {{c}{d}} e } {f} }"), ["ab", "cd"]);
        assert_eq!(units("{ {{a}{b}} {c} }"), ["ab"]);
        assert_eq!(units("{ { {{a}{b}} } {c} }"), ["ab"]);
        assert_eq!(units("{ {a} {b} c }"), Vec::<String>::new());
        // Lists of plain layers, also beside other modules.
        assert_eq!(units("{ [ {ab} {cd} ] {e} }"), ["ab", "cd"]);
        assert_eq!(units("{ [ {a} {b} ] {{c}{d}} {e} }"), ["a", "b", "cd"]);
        // A list inside of a module is a part of it where there are several.
        assert_eq!(units("{ { [ {a} {b} ] {c} } { [ {d} {e} ] } }"), ["abc", "de"]);
    }

    #[test]
    fn what_is_no_module_of_its_own() {
        // Parameters in a list; adapters; variants.
        assert_eq!(units("{ [ a b ] {c} }"), Vec::<String>::new());
        assert_eq!(units("{ { [ab] c {d} } { {e} } }"), ["abcd", "e"]);
        assert_eq!(units("{ [ <{{a}{b}}> <{c}> ] }"), ["ab", "c"]);
        assert_eq!(units("{ <{{a}{b}}> <{c}> }"), ["ab"]);
        // Modules without parameters.
        assert_eq!(units("{ [ {{a}{}} {{}b} ] {{}} }"), ["a", "b"]);
    }
}
