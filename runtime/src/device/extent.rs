//! The bytes of an arena that a strided view accesses.

use tpc_ir::program::{ALIGNMENT, Buffer, View};

/// The bytes of an arena that a view accesses, checked to be in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Offset of element `[0, 0, …]`.
    pub base: usize,
    /// Offset of the first byte that the view accesses.
    pub low: usize,
    /// End of the bytes that the view accesses, exclusive.
    pub high: usize,
}

impl Extent {
    /// Whether the views may share bytes.
    pub fn overlaps(&self, other: &Extent) -> bool {
        self.low < other.high && other.low < self.high
    }
}

/// The extent of a view, after checking that all elements that the sizes and strides address are in its buffer and that
/// the buffer is in the arena. A dimension of size 0 makes a view that addresses nothing, unless its stride is 0.
///
/// # Errors
/// What is out of bounds.
pub fn resolve(
    arena_bytes: usize,
    buffers: &[Buffer],
    view: &View,
    sizes: &[usize],
    strides: &[isize],
) -> Result<Extent, String> {
    let id = view.buffer.0 as usize;
    let buffer = buffers.get(id).ok_or_else(|| format!("there is no buffer b{id}"))?;
    if buffer.offset % ALIGNMENT != 0 {
        return Err(format!("buffer b{id} starts at byte {}, which is not a multiple of {ALIGNMENT}", buffer.offset));
    }
    if buffer.offset.checked_add(buffer.bytes).is_none_or(|end| end > arena_bytes) {
        return Err(format!("buffer b{id} ends after the arena of {arena_bytes} bytes"));
    }
    if sizes.len() != strides.len() {
        return Err(format!("view of b{id}: {} sizes but {} strides", sizes.len(), strides.len()));
    }
    let size = view.dtype.bytes() as i128;
    let empty = sizes.iter().zip(strides).any(|(&n, &s)| n == 0 && s != 0);
    let (mut low, mut high) = (view.offset as i128, view.offset as i128);
    for (&n, &s) in sizes.iter().zip(strides) {
        let reach = (n.max(1) as i128 - 1) * s as i128;
        low += reach.min(0);
        high += reach.max(0);
    }
    if empty {
        return Ok(Extent { base: 0, low: 0, high: 0 });
    }
    if low < 0 || (high + 1) * size > buffer.bytes as i128 {
        return Err(format!(
            "a view of b{id} reaches elements {low}..={high} of {}, but the buffer holds {} ({} bytes, `{}`)",
            view.dtype,
            buffer.bytes as i128 / size,
            buffer.bytes,
            buffer.label
        ));
    }
    let byte = |element: i128| buffer.offset + (element * size) as usize;
    Ok(Extent { base: byte(view.offset as i128), low: byte(low), high: byte(high + 1) })
}
