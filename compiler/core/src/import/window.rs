//! Kernels that slide over spatial dimensions, as one strided slice per tap.
//!
//! Shared by convolutions and poolings. For each tap of the kernel, [`Builder::windowed`] reads the element of every
//! window under the tap; [`Builder::overlapped`] is its transpose and adds every element back to where it was read.
//! Batch and channel dimensions only pass through, so everything composed of the two is sharded over them without
//! further rules.

use super::Builder;
use tpc_ir::{MapFn, Value};

/// How a kernel slides, per spatial dimension. The spatial dimensions are the last of a tensor.
pub(super) struct Window {
    /// Taps of the kernel.
    pub(super) kernel: Vec<usize>,
    /// Distance between windows.
    pub(super) stride: Vec<usize>,
    /// Distance between taps.
    pub(super) dilation: Vec<usize>,
    /// Elements of padding before the first index.
    pub(super) low: Vec<usize>,
    /// Extents of the dimensions that the kernel slides over.
    pub(super) extent: Vec<usize>,
    /// Number of windows.
    pub(super) count: Vec<usize>,
}

impl Window {
    /// Number of spatial dimensions.
    pub(super) fn rank(&self) -> usize {
        self.kernel.len()
    }

    /// The taps in row-major order, as offsets from a window's first element.
    pub(super) fn offsets(&self) -> Vec<Vec<usize>> {
        let mut all = vec![Vec::new()];
        for (&n, &d) in self.kernel.iter().zip(&self.dilation) {
            all = all.iter().flat_map(|row| (0..n).map(move |k| [&row[..], &[k * d]].concat())).collect();
        }
        all
    }
}

impl Builder {
    /// For each tap, in row-major order, the elements under it: `[…, windows]`.
    pub(super) fn windowed(&mut self, v: Value, w: &Window, fill: f64) -> Vec<Value> {
        let lead = self.shape(v).len() - w.rank();
        let mut taps = vec![v];
        for s in 0..w.rank() {
            let reach = (w.count[s] - 1) * w.stride[s] + (w.kernel[s] - 1) * w.dilation[s] + 1;
            let high = reach.saturating_sub(w.low[s] + w.extent[s]);
            let mut next = Vec::new();
            for v in taps {
                let v = self.padded(v, lead + s, w.low[s], high, fill);
                for k in 0..w.kernel[s] {
                    next.push(self.sliced(v, lead + s, k * w.dilation[s], w.count[s], w.stride[s]));
                }
            }
            taps = next;
        }
        taps
    }

    /// The transpose of [`windowed`](Self::windowed): the sum of the taps' elements, each added where it was read;
    /// elements read from the padding are dropped.
    pub(super) fn overlapped(&mut self, mut taps: Vec<Value>, w: &Window) -> Value {
        let lead = self.shape(taps[0]).len() - w.rank();
        for s in (0..w.rank()).rev() {
            let dim = lead + s;
            let spread = w.count[s] * w.stride[s];
            let total = (w.low[s] + w.extent[s]).max((w.kernel[s] - 1) * w.dilation[s] + spread);
            let mut sums = Vec::new();
            for row in taps.chunks(w.kernel[s]) {
                let mut terms = Vec::new();
                for (k, &v) in row.iter().enumerate() {
                    let v = self.spread(v, dim, w.stride[s]);
                    let low = k * w.dilation[s];
                    terms.push(self.padded(v, dim, low, total - low - spread, 0.0));
                }
                let sum = self.total(&terms);
                sums.push(self.sliced(sum, dim, w.low[s], w.extent[s], 1));
            }
            taps = sums;
        }
        taps[0]
    }

    /// Inserts zeros after every index of a dimension, so that its indices are `stride` apart.
    pub(super) fn spread(&mut self, v: Value, dim: usize, stride: usize) -> Value {
        if stride == 1 {
            return v;
        }
        let mut shape = self.shape(v);
        let mut split = shape.clone();
        split.insert(dim + 1, 1);
        let v = self.reshaped(v, &split);
        let v = self.padded(v, dim + 1, 0, stride - 1, 0.0);
        shape[dim] *= stride;
        self.reshaped(v, &shape)
    }

    /// The sum of values of one shape.
    pub(super) fn total(&mut self, terms: &[Value]) -> Value {
        match terms {
            [one] => *one,
            _ => self.map(MapFn::Add, terms),
        }
    }
}
