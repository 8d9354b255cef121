//! One aligned block of memory per rank.

use crate::device::extent::{Extent, resolve};
use std::alloc::{Layout, alloc_zeroed, dealloc};
use tpc_ir::program::{ALIGNMENT, Buffer, View};

/// The memory of one rank, zeroed at first. Its size is exactly what the program asks for.
#[derive(Debug)]
pub struct Arena {
    base: *mut u8,
    bytes: usize,
}

// SAFETY: the arena owns its memory, and is only a pointer and a size: whoever reads or writes
// through `base` has to order the accesses (the session does so with the start and end of a step,
// communicators with arrival and completion of a collective).
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates; `None` if there is not enough memory.
    pub fn new(bytes: usize) -> Option<Self> {
        if bytes == 0 {
            return Some(Arena { base: std::ptr::without_provenance_mut(ALIGNMENT), bytes });
        }
        let layout = Layout::from_size_align(bytes, ALIGNMENT).ok()?;
        // SAFETY: the layout has a size that is not 0.
        let base = unsafe { alloc_zeroed(layout) };
        if base.is_null() { None } else { Some(Arena { base, bytes }) }
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
        let Extent { base, low, high } = resolve(self.bytes, buffers, view, sizes, strides)?;
        // SAFETY: the element lies in the arena, as was found.
        let base = unsafe { self.base.add(base) };
        Ok(Place { base, low, high })
    }

    /// [`Arena::resolve`] with the view's own shape and strides.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn resolve_view(&self, buffers: &[Buffer], view: &View) -> Result<Place, String> {
        self.resolve(buffers, view, &view.shape, &view.strides)
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.bytes > 0 {
            // SAFETY: allocated with this layout in `new`.
            unsafe { dealloc(self.base, Layout::from_size_align_unchecked(self.bytes, ALIGNMENT)) }
        }
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
