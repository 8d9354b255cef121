//! Index spaces: dimensions that are merged, reordered and split into indices.

use std::fmt::Write as _;

/// One dimension and the stride of each access in it, in elements.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Axis {
    pub(super) size: usize,
    pub(super) strides: Vec<isize>,
}

/// The axes of some dimensions, without those of size 1. Unused accesses count as having stride 0.
pub(super) fn axes(dims: &[usize], which: &[usize], strides: &[&[isize]], used: &[bool]) -> Vec<Axis> {
    let of = |d: usize| strides.iter().zip(used).map(|(s, &used)| if used { s[d] } else { 0 }).collect();
    which.iter().filter(|&&d| dims[d] != 1).map(|&d| Axis { size: dims[d], strides: of(d) }).collect()
}

/// The number of indices.
pub(super) fn count(axes: &[Axis]) -> usize {
    axes.iter().map(|a| a.size).product()
}

/// Merges adjacent axes whose strides nest in every access.
pub(super) fn merge(axes: &mut Vec<Axis>) {
    let mut d = axes.len().saturating_sub(1);
    while d > 0 {
        d -= 1;
        let inner = &axes[d + 1];
        let nests = axes[d].strides.iter().zip(&inner.strides).all(|(&o, &i)| o == i * inner.size as isize);
        if nests {
            axes[d + 1].size *= axes[d].size;
            axes.remove(d);
        }
    }
}

/// Number of bytes that move in contiguous elements if threads run along an axis.
pub(super) fn dense_bytes(axis: &Axis, bytes: &[usize]) -> usize {
    axis.strides.iter().zip(bytes).filter(|(s, _)| **s == 1).map(|(_, b)| b).sum()
}

/// Moves the axis with the most contiguous bytes innermost; of equal axes, the last.
pub(super) fn bring_fastest_in(axes: &mut Vec<Axis>, bytes: &[usize]) {
    let best = (0..axes.len()).max_by_key(|&d| (dense_bytes(&axes[d], bytes), d));
    if let Some(best) = best {
        let axis = axes.remove(best);
        axes.push(axis);
    }
    merge(axes);
}

/// Statements that split a linear index `from` (of type `uq`) into one index per axis, with `name0` the outermost. The
/// innermost index counts in steps of `step`.
pub(super) fn cut(from: &str, name: &str, axes: &[Axis], step: usize, indent: &str) -> String {
    let mut text = String::new();
    let last = axes.len().wrapping_sub(1);
    let mut rest = from.to_string();
    for (i, axis) in axes.iter().enumerate().rev() {
        let size = if i == last { axis.size / step } else { axis.size };
        let scale = if i == last && step > 1 { format!(" * {step}") } else { String::new() };
        if i == 0 {
            let _ = writeln!(text, "{indent}const ix {name}0 = (ix){rest}{scale};");
        } else {
            let next = format!("{from}_{i}");
            let _ = writeln!(text, "{indent}const ix {name}{i} = (ix)({rest} % {size}u){scale};");
            let _ = writeln!(text, "{indent}const uq {next} = {rest} / {size}u;");
            rest = next;
        }
    }
    text
}

/// The offset of an access, as a sum over the indices of both groups of axes.
pub(super) fn offset(access: usize, groups: [(&str, &[Axis]); 2], cast: &str) -> String {
    let mut text = String::new();
    for (name, axes) in groups {
        for (i, axis) in axes.iter().enumerate() {
            let s = axis.strides[access];
            let plus = if text.is_empty() { "" } else { " + " };
            match s {
                0 => {}
                1 => _ = write!(text, "{plus}{cast}{name}{i}"),
                _ => _ = write!(text, "{plus}{cast}{name}{i} * {s}"),
            }
        }
    }
    if text.is_empty() { "0".into() } else { text }
}

/// The type of indices: 32 bits if everything fits.
pub(super) fn index_types(groups: [&[Axis]; 2]) -> &'static str {
    let points: u128 = groups.iter().map(|g| g.iter().map(|a| a.size as u128).product::<u128>()).product();
    let accesses = groups.iter().flat_map(|g| g.first()).map(|a| a.strides.len()).max().unwrap_or(0);
    let reach = |access: usize| -> u128 {
        let of = |a: &Axis| (a.size as u128).saturating_sub(1) * a.strides[access].unsigned_abs() as u128;
        groups.iter().flat_map(|g| g.iter()).map(of).sum()
    };
    // After the last point, a grid's stride is added once more.
    let fits = points < 1 << 30 && (0..accesses).all(|a| reach(a) < 1 << 30);
    if fits { "    typedef int ix; typedef u32 uq;\n" } else { "    typedef i64 ix; typedef u64 uq;\n" }
}
