//! One aligned block of memory per rank.

use crate::comm::shared_memory::{Growth, Handle, Region};
use crate::device::extent::{Extent, resolve};
use tpc_ir::program::{Buffer, View};

/// The memory of one rank, zeroed at first. Its size is exactly what its programs ask for: it grows, where it lies, for one that asks for
/// more.
///
/// It is only a place and a size: whoever reads or writes through [`Arena::base`] has to order the accesses (the session does so with
/// the start and end of a step, communicators with arrival and completion of a collective).
#[derive(Debug)]
pub struct Arena {
    region: Region,
    base: *mut u8,
}

// SAFETY: see above; the pointer is that of the region, which is `Send` and `Sync` for the same reason.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates memory of this process alone, which keeps its size; `None` if there is not enough.
    pub fn new(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::private(bytes, Growth::Fixed).ok()?, bytes)
    }

    /// Allocates memory of this process alone; `None` if there is not enough.
    pub fn private(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::private(bytes, Growth::InPlace).ok()?, bytes)
    }

    /// Allocates memory that other processes may map; `None` if there is not enough.
    pub fn shared(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::shared(bytes, Growth::InPlace).ok()?, bytes)
    }

    /// An arena in a region; `None` if the region has another size.
    pub fn of_region(region: Region, bytes: usize) -> Option<Self> {
        (region.bytes() == bytes).then(|| Arena { base: region.base(), region })
    }

    /// Makes the arena larger where it lies: what it holds stays, addresses stay, nothing is copied. Without effect for a smaller size.
    /// Between steps only. `false` if there is not enough memory.
    #[must_use]
    pub fn grow(&self, bytes: usize) -> bool {
        self.region.grow(bytes).is_ok()
    }

    /// Where other processes find it, if it is to be shared.
    pub fn handle(&self) -> Option<Handle> {
        self.region.handle()
    }

    /// Exactly how many bytes were allocated.
    pub fn allocated_bytes(&self) -> usize {
        self.region.bytes()
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
        let Extent { base, low, high } = resolve(self.region.bytes(), buffers, view, sizes, strides)?;
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
