//! Small writes, gathered until they are needed: scalars and the batch of a step are adjacent in the arena, and are
//! copied there at once.

use super::context::failed;
use super::pinned::Pinned;
use crate::device::cuda::error::CudaError;
use cudarc::driver::{result, sys};
use tpc_ir::program::ALIGNMENT;

/// Larger writes, in bytes, are copied separately.
pub(super) const SMALL: usize = 64 << 10;
/// Maximum number of gathered bytes.
const ROOM: usize = 1 << 20;

/// Writes that are not enqueued yet, and the memory from which they are copied.
pub(super) struct Staging {
    /// Addresses on the device and bytes, in the order of the writes.
    waiting: Vec<(sys::CUdeviceptr, Vec<u8>)>,
    pinned: Option<Pinned>,
    /// Recorded after the latest copies.
    copied: sys::CUevent,
    /// Number of enqueued copies, for tests.
    copies: u64,
}

// SAFETY: the event may be used from any thread in which the context is current.
unsafe impl Send for Staging {}

/// Merges writes into copies: later writes replace earlier ones at the same address, and writes that are separated only
/// by padding between buffers are joined.
fn merged(mut writes: Vec<(u64, Vec<u8>)>) -> Vec<(u64, Vec<u8>)> {
    // Keeps only the latest of several writes to an address.
    writes.reverse();
    writes.sort_by_key(|w| w.0);
    writes.dedup_by_key(|w| w.0);
    let mut out: Vec<(u64, Vec<u8>)> = Vec::new();
    for (at, bytes) in writes {
        if let Some((first, run)) = out.last_mut() {
            let end = *first + run.len() as u64;
            // Buffers begin at multiples of the alignment, so only padding is in between.
            if end <= at && at == end.next_multiple_of(ALIGNMENT as u64) {
                run.resize((at - *first) as usize, 0);
                run.extend(bytes);
                continue;
            }
        }
        out.push((at, bytes));
    }
    out
}

impl Staging {
    /// Creates an empty staging area; the context must be current.
    pub(super) fn new() -> Result<Self, CudaError> {
        let copied = result::event::create(sys::CUevent_flags::CU_EVENT_DISABLE_TIMING);
        let copied = copied.map_err(failed("cuEventCreate"))?;
        Ok(Staging { waiting: Vec::new(), pinned: None, copied, copies: 0 })
    }

    /// Takes a small write; returns whether there was room for it.
    pub(super) fn take(&mut self, at: sys::CUdeviceptr, bytes: &[u8]) -> bool {
        let used: usize = self.waiting.iter().map(|w| w.1.len().next_multiple_of(ALIGNMENT)).sum();
        let fits = bytes.len() <= SMALL && used + bytes.len().next_multiple_of(ALIGNMENT) <= ROOM;
        if fits {
            self.waiting.push((at, bytes.to_vec()));
        }
        fits
    }

    /// The bytes that were written to an address and are not enqueued yet.
    pub(super) fn find(&self, at: sys::CUdeviceptr) -> Option<&[u8]> {
        self.waiting.iter().rev().find(|w| w.0 == at).map(|w| &*w.1)
    }

    /// Number of copies enqueued so far.
    pub(super) fn copies(&self) -> u64 {
        self.copies
    }

    /// Enqueues all writes on a stream; the context must be current.
    pub(super) fn flush(&mut self, stream: sys::CUstream) -> Result<(), CudaError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let pinned = match self.pinned.take() {
            Some(pinned) => {
                // SAFETY: the event is alive. The latest copies may still read the memory.
                unsafe { result::event::synchronize(self.copied) }.map_err(failed("cuEventSynchronize"))?;
                pinned
            }
            None => Pinned::new(ROOM)?,
        };
        let pinned = self.pinned.insert(pinned);
        let mut used = 0;
        for (at, bytes) in merged(std::mem::take(&mut self.waiting)) {
            assert!(used + bytes.len() <= pinned.bytes(), "what was taken has room");
            // SAFETY: there is room, nothing else uses it, and it stays until the copy is done: the event is waited for
            // before the memory is reused or freed. The device's owner checked that the address is in its memory.
            unsafe {
                let from = pinned.base().add(used);
                std::ptr::copy_nonoverlapping(bytes.as_ptr(), from, bytes.len());
                let from = std::slice::from_raw_parts(from, bytes.len());
                result::memcpy_htod_async(at, from, stream).map_err(failed("copying to the device"))?;
            }
            used += bytes.len().next_multiple_of(ALIGNMENT);
            self.copies += 1;
        }
        // SAFETY: both are alive.
        unsafe { result::event::record(self.copied, stream) }.map_err(failed("cuEventRecord"))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // SAFETY: alive until here; failures need no handling.
        unsafe {
            let _ = result::event::synchronize(self.copied);
            let _ = result::event::destroy(self.copied);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbors_are_one_copy_and_the_latest_write_counts() {
        let a = ALIGNMENT as u64;
        let writes = vec![(a, vec![1; 4]), (0, vec![2; 8]), (a, vec![3; 4]), (9 * a, vec![4; 4])];
        let merged = merged(writes);
        assert_eq!(merged.iter().map(|m| m.0).collect::<Vec<_>>(), [0, 9 * a]);
        assert_eq!((merged[0].1.len(), &merged[0].1[..8]), (ALIGNMENT + 4, &[2; 8][..]));
        assert_eq!((&merged[0].1[ALIGNMENT..], &*merged[1].1), (&[3; 4][..], &[4; 4][..]));
    }

    #[test]
    fn what_lies_between_is_left_alone() {
        let a = ALIGNMENT as u64;
        // A buffer whose first half alone was written, and the buffer after it.
        assert_eq!(merged(vec![(0, vec![1; ALIGNMENT]), (2 * a, vec![2; 4])]).len(), 2);
    }
}
