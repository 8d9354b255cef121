//! The arena of a rank: one aligned block of memory.

use crate::comm::shared_memory::{Growth, Handle, Region};
use crate::device::extent::{Extent, resolve};
use tpc_ir::program::{Buffer, View};

/// The memory of one rank, initially zero. Its size is exactly the size that its programs ask for: it grows in place
/// for a program that needs more.
///
/// An arena only consists of an address and a size. Code that accesses memory through [`Arena::base`] has to order the
/// accesses: the session does so with the start and end of a step, communicators with arrival and completion of a
/// collective.
#[derive(Debug)]
pub struct Arena {
    region: Region,
    base: *mut u8,
}

// SAFETY: see above; the pointer belongs to the region, which is `Send` and `Sync` for the same reason.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Allocates memory of this process alone, with a fixed size; `None` if there is not enough.
    pub fn new(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::private(bytes, Growth::Fixed).ok()?, bytes)
    }

    /// Allocates memory of this process alone; `None` if there is not enough.
    pub fn private(bytes: usize) -> Option<Self> {
        Arena::of_region(Region::private(bytes, Growth::of_one_in(1)).ok()?, bytes)
    }

    /// Allocates memory that the other processes of so many may map; `None` if there is not enough.
    pub fn shared(bytes: usize, processes: usize) -> Option<Self> {
        Arena::of_region(Region::shared(bytes, Growth::of_one_in(processes)).ok()?, bytes)
    }

    /// An arena in a region; `None` if the region has another size.
    pub fn of_region(region: Region, bytes: usize) -> Option<Self> {
        (region.bytes() == bytes).then(|| Arena { base: region.base(), region })
    }

    /// Grows the arena in place: contents and addresses stay, and nothing is copied. Has no effect for a smaller size.
    /// Only allowed between steps. `false` if there is not enough memory.
    #[must_use]
    pub fn grow(&self, bytes: usize) -> bool {
        self.region.grow(bytes).is_ok()
    }

    /// The handle for other processes, if the arena is shared.
    pub fn handle(&self) -> Option<Handle> {
        self.region.handle()
    }

    /// Exact number of allocated bytes.
    pub fn allocated_bytes(&self) -> usize {
        self.region.bytes()
    }

    /// The first byte.
    pub fn base(&self) -> *mut u8 {
        self.base
    }

    /// Resolves element `[0, 0, …]` of a view, after checking that all elements that the sizes and strides address are
    /// in its buffer and that the buffer is in the arena. A dimension of size 0 makes a view that addresses nothing,
    /// unless its stride is 0.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn resolve(
        &self,
        buffers: &[Buffer],
        view: &View,
        sizes: &[usize],
        strides: &[isize],
    ) -> Result<ResolvedView, String> {
        let Extent { base, low, high } = resolve(self.region.bytes(), buffers, view, sizes, strides)?;
        // SAFETY: the element is in the arena, as checked.
        let base = unsafe { self.base.add(base) };
        Ok(ResolvedView { base, low, high })
    }

    /// [`Arena::resolve`] with the view's own shape and strides.
    ///
    /// # Errors
    /// What is out of bounds.
    pub fn resolve_view(&self, buffers: &[Buffer], view: &View) -> Result<ResolvedView, String> {
        self.resolve(buffers, view, &view.shape, &view.strides)
    }
}

/// A view that was checked to be in the arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResolvedView {
    /// Address of element `[0, 0, …]`.
    pub base: *mut u8,
    /// Offset of the first byte that the view accesses.
    pub low: usize,
    /// End of the bytes that the view accesses, exclusive.
    pub high: usize,
}

impl ResolvedView {
    /// Whether the views may share bytes.
    pub fn overlaps(&self, other: &ResolvedView) -> bool {
        self.low < other.high && other.low < self.high
    }
}
