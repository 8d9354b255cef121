//! Layouts: where one value lies along the one axis of a style, in PyTorch's words.

use std::fmt;
use tpc_ir::{AxisId, Sharding};

/// The placement of a value on a style's axis (`torch.distributed.tensor.placement_types`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Every rank holds the whole value.
    Replicate,
    /// A dimension is sharded, counted as the model counts it; negative from the end.
    Shard(isize),
}

impl Layout {
    /// Reads what `Display` writes: `Replicate` (or `Replicate()`), `Shard(0)`, `Shard(-1)`.
    pub fn parse(text: &str) -> Option<Self> {
        if matches!(text, "Replicate" | "Replicate()") {
            return Some(Layout::Replicate);
        }
        let dim = text.strip_prefix("Shard(")?.strip_suffix(')')?;
        dim.trim().strip_prefix("dim=").unwrap_or(dim.trim()).parse().ok().map(Layout::Shard)
    }

    /// The dimension that is sharded, of a value with so many; `None` for `Replicate`.
    ///
    /// # Errors
    /// The number of dimensions, if there is no such dimension.
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

/// For every dimension of a layout the dimensions of the factored shape that it became; a dimension
/// of extent 1 has none. `None` if the shape is not a factoring of the layout.
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
    // Extents of 1 that were kept belong to nobody.
    shape[at..].iter().all(|&n| n == 1).then_some(ranges)
}

/// A placement of a value on some axes, said of its (factored) dimensions. On other axes the value
/// stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OnAxes {
    /// The axes of which this speaks.
    pub axes: Vec<AxisId>,
    /// For every dimension those of the axes that cut it, major to minor.
    pub dims: Vec<Vec<AxisId>>,
}

impl OnAxes {
    /// A placement that is not partial, changed on these axes. They become minor to those that stay.
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
