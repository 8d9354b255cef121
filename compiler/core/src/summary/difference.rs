//! Where the programs of two plans differ.

use super::rows::{Amount, ByModule, Row, rows};
use super::{Content, Cost, Part, Summary};
use std::collections::BTreeSet;
use std::hash::Hash;

/// The rows in which two summaries differ, the largest difference first.
#[derive(Clone, Debug, PartialEq)]
pub struct Difference {
    /// Parts of a step, by how much longer or shorter they make it.
    pub parts: Vec<Row<Part, [Cost; 2]>>,
    /// Contents of the arena at its peak.
    pub peak: Vec<Row<Content, [usize; 2]>>,
}

impl Difference {
    /// The difference between two summaries.
    pub fn of(a: &Summary, b: &Summary) -> Self {
        let mut parts = differing(&a.parts, &b.parts, |[a, b]| a.differs(b));
        // The sort is stable: rows of one size keep the order of their modules.
        let change = |row: &Row<Part, [Cost; 2]>, of: fn(&Cost) -> f64| (of(&row.amount[1]) - of(&row.amount[0])).abs();
        parts.sort_by(|x, y| {
            let by = |of| change(y, of).total_cmp(&change(x, of));
            by(|cost| cost.of_step).then_with(|| by(|cost| cost.sent))
        });
        let mut peak = differing(&a.peak, &b.peak, |[a, b]| a != b);
        peak.sort_by_key(|row| std::cmp::Reverse(row.amount[0].abs_diff(row.amount[1])));
        Difference { parts, peak }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty() && self.peak.is_empty()
    }
}

/// The rows of what two programs have in different amounts.
fn differing<K: Clone + Ord + Hash, V: Amount>(
    a: &ByModule<K, V>,
    b: &ByModule<K, V>,
    differ: impl Fn(&[V; 2]) -> bool,
) -> Vec<Row<K, [V; 2]>> {
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    let amount = |of: &ByModule<K, V>, key| of.get(key).copied().unwrap_or_default();
    let both = keys.into_iter().map(|key| (key.clone(), [amount(a, key), amount(b, key)]));
    rows(&both.filter(|(_, amounts)| differ(amounts)).collect())
}
