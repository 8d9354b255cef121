//! Layouts: the placement of a value along the axis of a style, in PyTorch's terms.

use std::fmt;
use tpc_ir::{AxisId, Sharding};

/// The placement of a value along the axis of a style (`torch.distributed.tensor.placement_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Every rank holds the whole value.
    Replicate,
    /// A dimension of the shape that the model knows is sharded. Negative numbers count from the end.
    Shard(isize),
}

impl Layout {
    /// Parses what `Display` writes: `Replicate` (or `Replicate()`), `Shard(0)`, `Shard(-1)`.
    pub fn parse(text: &str) -> Option<Self> {
        if matches!(text, "Replicate" | "Replicate()") {
            return Some(Layout::Replicate);
        }
        let dim = text.strip_prefix("Shard(")?.strip_suffix(')')?;
        dim.trim().strip_prefix("dim=").unwrap_or(dim.trim()).parse().ok().map(Layout::Shard)
    }

    /// The sharded dimension of a value with `rank` dimensions; `None` for `Replicate`.
    ///
    /// # Errors
    /// There is no such dimension: the number of dimensions.
    pub fn dim(self, rank: usize) -> Result<Option<usize>, usize> {
        let Layout::Shard(dim) = self else { return Ok(None) };
        let dim = if dim < 0 { dim + rank as isize } else { dim };
        if (0..rank as isize).contains(&dim) { Ok(Some(dim as usize)) } else { Err(rank) }
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Layout::Replicate => write!(f, "Replicate"),
            Layout::Shard(dim) => write!(f, "Shard({dim})"),
        }
    }
}

/// For each dimension of the shape that the model knows, the dimensions of the factored shape that it became; a
/// dimension of extent 1 has none. `None` if the shape is not a factoring of `layout`.
pub fn factored(layout: &[usize], shape: &[usize]) -> Option<Vec<std::ops::Range<usize>>> {
    let mut at = 0;
    let mut ranges = Vec::new();
    for &extent in layout {
        let start = at;
        let mut product = 1;
        while product < extent || (extent == 0 && at == start) {
            product *= shape.get(at)?;
            at += 1;
            if product == 0 {
                break;
            }
        }
        if product != extent {
            return None;
        }
        ranges.push(start..at);
    }
    // The remaining dimensions, of extent 1, belong to none.
    shape[at..].iter().all(|&n| n == 1).then_some(ranges)
}

/// A placement of a value on some axes, in terms of its factored dimensions. On other axes, the placement is not
/// changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnAxes {
    /// The axes that are concerned.
    pub axes: Vec<AxisId>,
    /// For each dimension, those of the axes that shard it, major to minor.
    pub dims: Vec<Vec<AxisId>>,
}

impl OnAxes {
    /// A placement changed on these axes, which become minor to the remaining ones.
    pub fn applied(&self, from: &Sharding) -> Sharding {
        let mut to = from.clone();
        for (dim, want) in to.dims.iter_mut().zip(&self.dims) {
            dim.retain(|a| !self.axes.contains(a));
            dim.extend(want);
        }
        to
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_read_and_print_as_in_pytorch() {
        for text in ["Replicate", "Shard(0)", "Shard(-1)"] {
            assert_eq!(Layout::parse(text).unwrap().to_string(), text);
        }
        assert_eq!(Layout::parse("Shard(dim=1)"), Some(Layout::Shard(1)));
        assert_eq!(Layout::parse("Partial"), None);
        assert_eq!(Layout::Shard(-1).dim(3), Ok(Some(2)));
        assert_eq!(Layout::Shard(3).dim(3), Err(3));
    }

    #[test]
    fn a_layouts_dimensions_are_runs_of_factors() {
        assert_eq!(factored(&[2, 1, 12], &[2, 3, 4]), Some(vec![0..1, 1..1, 1..3]));
        assert_eq!(factored(&[0, 4], &[0, 4]), Some(vec![0..1, 1..2]));
        assert_eq!(factored(&[6], &[4]), None);
    }
}
