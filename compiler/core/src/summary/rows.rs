//! Rows of a summary: what is equal in the blocks of a list is one row.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::hash::Hash;
use std::iter::once;
use tpc_ir::{ModulePath, Segment};

/// Amounts by module, and within a module by a key.
pub type ByModule<K, V> = BTreeMap<(ModulePath, K), V>;

/// What rows add up.
pub trait Amount: Copy + Default {
    /// Whether two amounts are equal, so that their modules may share a row.
    fn alike(&self, other: &Self) -> bool;

    /// The sum.
    #[must_use]
    fn plus(&self, other: &Self) -> Self;
}

/// Bytes.
impl Amount for usize {
    fn alike(&self, other: &Self) -> bool {
        self == other
    }

    fn plus(&self, other: &Self) -> Self {
        self + other
    }
}

/// The amounts of two programs.
impl<V: Amount> Amount for [V; 2] {
    fn alike(&self, other: &Self) -> bool {
        self[0].alike(&other[0]) && self[1].alike(&other[1])
    }

    fn plus(&self, other: &Self) -> Self {
        [self[0].plus(&other[0]), self[1].plus(&other[1])]
    }
}

/// Modules that have the same place in blocks of one list, in order; at least one.
///
/// ```
/// use tpc_compiler::summary::{ByModule, rows};
/// let path = |text: &str| tpc_ir::ModulePath::from(text);
/// let bytes: ByModule<(), usize> = [("layers.0.mlp", 7), ("layers.1.mlp", 8), ("layers.2.mlp", 8), ("norm", 8)]
///     .map(|(module, bytes)| ((path(module), ()), bytes))
///     .into();
/// let shown: Vec<String> = rows(&bytes).iter().map(|row| format!("{} {}", row.modules, row.amount)).collect();
/// assert_eq!(shown, ["layers.0.mlp 7", "layers.{1..2}.mlp 16", "norm 8"]);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Modules(Vec<ModulePath>);

impl Modules {
    /// Modules that have the same place in blocks of one list, in order; at least one.
    pub(crate) fn of(paths: Vec<ModulePath>) -> Self {
        Modules(paths)
    }

    /// Their paths.
    pub fn paths(&self) -> &[ModulePath] {
        &self.0
    }

    /// Their positions in the list, as ranges.
    fn ranges(&self) -> Vec<(usize, usize)> {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for at in self.0.iter().filter_map(|path| path.indices().next()) {
            match ranges.last_mut().filter(|(_, last)| last + 1 == at) {
                Some((_, last)) => *last = at,
                None => ranges.push((at, at)),
            }
        }
        ranges
    }
}

/// The path, in which a position that differs is a list of ranges: `layers.{0,2..3}.mlp`.
impl fmt::Display for Modules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = &self.0[0];
        if path.is_root() {
            return f.write_str("(model)");
        }
        if self.0.len() == 1 {
            return path.fmt(f);
        }
        let list = path.segments().iter().position(|segment| matches!(segment, Segment::Index(_)));
        for (i, segment) in path.segments().iter().enumerate() {
            f.write_str(if i > 0 { "." } else { "" })?;
            if Some(i) != list {
                segment.fmt(f)?;
                continue;
            }
            let range = |(a, b): (usize, usize)| if a == b { a.to_string() } else { format!("{a}..{b}") };
            write!(f, "{{{}}}", self.ranges().into_iter().map(range).collect::<Vec<_>>().join(","))?;
        }
        Ok(())
    }
}

/// A row: what each of some modules has, and their sum.
#[derive(Clone, Debug, PartialEq)]
pub struct Row<K, V> {
    /// The modules.
    pub modules: Modules,
    /// What is counted.
    pub key: K,
    /// The amount of all modules together.
    pub amount: V,
}

/// The amounts as rows, ordered by their first modules. Modules at the same place of the blocks of one list share a row
/// if their amounts are alike. The list is the outermost one that they are in.
pub fn rows<K: Clone + Eq + Hash, V: Amount>(amounts: &ByModule<K, V>) -> Vec<Row<K, V>> {
    let mut rows: Vec<Row<K, V>> = Vec::new();
    // The rows of each place, with the amount that each of their modules has.
    let mut known: HashMap<(ModulePath, &K), Vec<(usize, V)>> = HashMap::new();
    for ((path, key), amount) in amounts {
        let places = known.entry((path.with_indices(&mut once(0)), key)).or_default();
        match places.iter().find(|(_, each)| each.alike(amount)) {
            Some(&(row, _)) => {
                rows[row].modules.0.push(path.clone());
                rows[row].amount = rows[row].amount.plus(amount);
            }
            None => {
                places.push((rows.len(), *amount));
                rows.push(Row { modules: Modules(vec![path.clone()]), key: key.clone(), amount: *amount });
            }
        }
    }
    rows
}
