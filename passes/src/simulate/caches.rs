//! How long a kernel takes to read and write, given what the caches still hold.
//!
//! A byte is in a cache if the rank has touched less than the size of the cache since it touched the byte (the reuse distance
//! of Mattson et al., "Evaluation techniques for storage hierarchies", 1970, counted in bytes with repetitions). The arena is
//! divided into pages for that.

use super::work::Moved;
use crate::targets::Device;
use std::ops::Range;

/// Bytes of a page.
const PAGE: usize = 1 << 14;

/// When each page of an arena was touched last.
pub(super) struct Caches<'a> {
    device: &'a Device,
    /// The bytes that had been touched before, by page. None are recorded if the device has no caches.
    pages: Vec<f64>,
    /// The bytes that have been touched.
    touched: f64,
}

impl<'a> Caches<'a> {
    /// Nothing of an arena of this size is in a cache.
    pub(super) fn new(device: &'a Device, arena: usize) -> Self {
        let pages = if device.caches.is_empty() { 0 } else { arena.div_ceil(PAGE) };
        Caches { device, pages: vec![f64::NEG_INFINITY; pages], touched: 0.0 }
    }

    /// Seconds that it takes to move these bytes, which are in the caches afterwards.
    pub(super) fn seconds(&mut self, moved: &[Moved]) -> f64 {
        if self.pages.is_empty() {
            return moved.iter().map(|moved| moved.bytes).sum::<f64>() / self.device.memory;
        }
        let mut seconds = 0.0;
        for Moved { range, bytes } in moved {
            let pages = &self.pages[pages(range, self.pages.len())];
            let each = bytes / pages.len().max(1) as f64;
            seconds += pages.iter().map(|last| each / self.device.bandwidth(self.touched - last)).sum::<f64>();
        }
        self.touch(moved);
        seconds
    }

    /// Moves these bytes.
    pub(super) fn touch(&mut self, moved: &[Moved]) {
        for Moved { range, .. } in moved {
            let pages = pages(range, self.pages.len());
            self.pages[pages].fill(self.touched);
        }
        self.touched += moved.iter().map(|moved| moved.bytes).sum::<f64>();
    }
}

/// The pages that contain some bytes, of so many.
fn pages(range: &Range<usize>, count: usize) -> Range<usize> {
    let end = range.end.div_ceil(PAGE).min(count);
    (range.start / PAGE).min(end)..end
}
