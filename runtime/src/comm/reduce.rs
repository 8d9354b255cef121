//! Combining the contributions of several ranks, element by element, in the order of the ranks.

use crate::device::cpu::has_avx2;
use crate::element::{Element, Lane, with_element, with_reduce};
use tpc_ir::{DType, ReduceOp};

/// Combines `n` elements of every source and writes the result to every target.
///
/// # Safety
/// Sources must be readable and targets writable for `n` elements at byte `offset`; a target may be one of the sources,
/// but must not overlap a source partially.
pub(crate) type Combine = unsafe fn(n: usize, sources: &[*const u8], targets: &[*mut u8], from: usize, to: usize);

/// Elements that are combined at a time, on the stack.
const BLOCK: usize = 1024;

#[inline(always)]
unsafe fn combine<E: Element, const OP: u8>(
    n: usize,
    sources: &[*const u8],
    targets: &[*mut u8],
    from: usize,
    to: usize,
) {
    let mut sum = [E::Lane::default(); BLOCK];
    let mut i = 0;
    while i < n {
        let len = BLOCK.min(n - i);
        let sum = &mut sum[..len];
        for (r, s) in sources.iter().enumerate() {
            // SAFETY: the caller guarantees readable sources. Only the writes below may change them, and their elements
            // have been read before.
            let source = unsafe { std::slice::from_raw_parts(s.add(from).cast::<E>().add(i), len) };
            if r == 0 {
                for (a, e) in sum.iter_mut().zip(source) {
                    *a = e.load();
                }
            } else {
                for (a, e) in sum.iter_mut().zip(source) {
                    *a = a.combine::<OP>(e.load());
                }
            }
        }
        let Some((first, others)) = targets.split_first() else { return };
        // SAFETY: the caller guarantees writable targets.
        unsafe {
            let first = first.add(to).cast::<E>().add(i);
            for (o, &a) in std::slice::from_raw_parts_mut(first, len).iter_mut().zip(&*sum) {
                *o = E::store(a);
            }
            for other in others {
                std::ptr::copy(first, other.add(to).cast::<E>().add(i), len);
            }
        }
        i += len;
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn combine_avx2<E: Element, const OP: u8>(
    n: usize,
    sources: &[*const u8],
    targets: &[*mut u8],
    from: usize,
    to: usize,
) {
    // SAFETY: passed on to the caller.
    unsafe { combine::<E, OP>(n, sources, targets, from, to) }
}

fn pick<E: Element, const OP: u8>() -> Combine {
    #[cfg(target_arch = "x86_64")]
    if has_avx2() {
        return combine_avx2::<E, OP>;
    }
    combine::<E, OP>
}

/// The kernel of a reduction and an element type.
pub(crate) fn kernel(op: ReduceOp, dtype: DType) -> Combine {
    with_element!(dtype, E => with_reduce!(op, OP => pick::<E, OP>()))
}
