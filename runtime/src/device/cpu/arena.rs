//! One aligned block of memory per rank.

use crate::comm::shared_memory::{Handle, Region};
use tpc_ir::program::{ALIGNMENT, Buffer, View};

/// The memory of one rank, zeroed at first. Its size is exactly what the program asks for.
///
/// It is only a place and a size: whoever reads or writes through [`Arena::base`] has to order the accesses (the session does so with
/// the start and end of a step, communicators with arrival and completion of a collective).
#[derive(Debug)]
pub struct Arena {
    region: Region,
    base: *mut u8,
    bytes: usize,
}

// SAFETY: see above; the pointer is that of the region, which is `Send` and `Sync` for the same reason.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates memory of this process alone; `None` if there is not enough.
    pub fn new(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::private(bytes).ok()?, bytes)
    }

    /// Allocates memory that other processes may map; `None` if there is not enough.
    pub fn shared(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::shared(bytes).ok()?, bytes)
    }

    /// An arena in a region; `None` if the region has another size.
    pub fn of_region(region: Region, bytes: usize) -> Option<Self> {
        (region.bytes() == bytes).then(|| Arena { base: region.base(), region, bytes })
    }

    /// Where other processes find it, if it is to be shared.
    pub fn handle(&self) -> Option<Handle> {
        self.region.handle()
    }

    /// Exactly how many bytes were allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.bytes
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Where element `[0, 0, …]` of a view lies, if all elements that the sizes and strides address
    /// lie in its buffer and the buffer in the arena. A dimension of size 0 makes a view that
    /// addresses nothing, unless its stride is 0.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn resolve(
        &self,
        buffers: &[Buffer],
        view: &View,
        sizes: &[usize],
        strides: &[isize],
    ) -> Result<Place, String> {
        let id = view.buffer.0 as usize;
        let buffer = buffers.get(id).ok_or_else(|| format!("there is no buffer b{id}"))?;
        if buffer.offset % ALIGNMENT != 0 {
            return Err(format!("buffer b{id} starts at byte {}, which is no multiple of {ALIGNMENT}", buffer.offset));
        }
        if buffer.offset.checked_add(buffer.bytes).is_none_or(|end| end > self.bytes) {
            return Err(format!("buffer b{id} ends behind the arena of {} bytes", self.bytes));
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
            return Ok(Place { base: self.base, low: 0, high: 0 });
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
        // SAFETY: the element lies in the arena, as checked above.
        let base = unsafe { self.base.add(byte(view.offset as i128)) };
        Ok(Place { base, low: byte(low), high: byte(high + 1) })
    }

    /// [`Arena::resolve`] with the view's own shape and strides.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn resolve_view(&self, buffers: &[Buffer], view: &View) -> Result<Place, String> {
        self.resolve(buffers, view, &view.shape, &view.strides)
    }
}

/// A view that was found to lie in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Element `[0, 0, …]`.
    pub base: *mut u8,
    /// First byte of the arena that the view reaches.
    pub low: usize,
    /// The byte behind the last.
    pub high: usize,
}

impl Place {
    /// Whether the views may have bytes in common.
    pub fn overlaps(&self, other: &Place) -> bool {
        self.low < other.high && other.low < self.high
    }
}
