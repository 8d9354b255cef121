//! Pooling: averages and maxima over the taps of a window.

use super::window::Window;
use super::{Builder, Imports};
use burn_ir::{ModuleOperationIr as M, TensorIr};
use tpc_ir::{DType, MapFn, ReduceOp, Type, Value};

/// An average over windows.
struct Average {
    window: Window,
    padding: Vec<usize>,
    /// Whether padded elements count.
    padded: bool,
}

/// The extents of the spatial dimensions of `[n, c, …]`.
fn spatial(t: &TensorIr) -> Vec<usize> {
    t.shape.to_vec()[2..].to_vec()
}

macro_rules! average {
    ($o:ident, $wide:expr, $narrow:expr, $list:expr) => {
        Average {
            window: Window {
                kernel: $list($o.kernel_size).to_vec(),
                stride: $list($o.stride).to_vec(),
                dilation: vec![1; spatial($wide).len()],
                low: $list($o.padding).to_vec(),
                extent: spatial($wide),
                count: spatial($narrow),
            },
            padding: $list($o.padding).to_vec(),
            padded: $o.count_include_pad,
        }
    };
}

macro_rules! maximum {
    ($o:ident, $wide:expr, $narrow:expr, $list:expr) => {
        Window {
            kernel: $list($o.kernel_size).to_vec(),
            stride: $list($o.stride).to_vec(),
            dilation: $list($o.dilation).to_vec(),
            low: $list($o.padding).to_vec(),
            extent: spatial($wide),
            count: spatial($narrow),
        }
    };
}

fn one(n: usize) -> [usize; 1] {
    [n]
}

fn two(n: [usize; 2]) -> [usize; 2] {
    n
}

impl Builder {
    pub(super) fn pooling(&mut self, op: &M) -> Imports {
        match op {
            M::AvgPool1d(o) => self.average(&o.x, &o.out, average!(o, &o.x, &o.out, one)),
            M::AvgPool2d(o) => self.average(&o.x, &o.out, average!(o, &o.x, &o.out, two)),
            M::AvgPool1dBackward(o) => self.average_gradient(&o.grad, &o.out, average!(o, &o.out, &o.grad, one)),
            M::AvgPool2dBackward(o) => self.average_gradient(&o.grad, &o.out, average!(o, &o.out, &o.grad, two)),
            M::AdaptiveAvgPool1d(o) => self.adaptive(&o.x, &o.out),
            M::AdaptiveAvgPool2d(o) => self.adaptive(&o.x, &o.out),
            M::AdaptiveAvgPool3d(o) => self.adaptive(&o.x, &o.out),
            M::AdaptiveAvgPool1dBackward(o) => self.adaptive_gradient(&o.grad, &o.out),
            M::AdaptiveAvgPool2dBackward(o) => self.adaptive_gradient(&o.grad, &o.out),
            M::AdaptiveAvgPool3dBackward(o) => self.adaptive_gradient(&o.grad, &o.out),
            M::MaxPool1d(o) => self.maximum(&o.x, &o.out, None, &maximum!(o, &o.x, &o.out, one)),
            M::MaxPool2d(o) => self.maximum(&o.x, &o.out, None, &maximum!(o, &o.x, &o.out, two)),
            M::MaxPool1dWithIndices(o) => {
                self.maximum(&o.x, &o.out, Some(&o.out_indices), &maximum!(o, &o.x, &o.out, one))
            }
            M::MaxPool2dWithIndices(o) => {
                self.maximum(&o.x, &o.out, Some(&o.out_indices), &maximum!(o, &o.x, &o.out, two))
            }
            M::MaxPool1dWithIndicesBackward(o) => {
                self.maximum_gradient([&o.grad, &o.indices], &o.out, &maximum!(o, &o.out, &o.grad, one))
            }
            M::MaxPool2dWithIndicesBackward(o) => {
                self.maximum_gradient([&o.grad, &o.indices], &o.out, &maximum!(o, &o.out, &o.grad, two))
            }
            M::DeformableConv2d(_) | M::DeformableConv2dBackward(_) => {
                Err(self.unsupported("a deformable convolution reads at positions given by data"))
            }
            M::Interpolate(_) | M::InterpolateBackward(_) => {
                Err(self.unsupported("interpolation has no rule; repeat elements or use a transposed convolution"))
            }
            _ => Err(self.unsupported("there is no rule for it")),
        }
    }

    fn average(&mut self, x: &TensorIr, out: &TensorIr, a: Average) -> Imports {
        let x = self.get(x);
        let taps = self.windowed(x, &a.window, 0.0);
        let sum = self.total(&taps);
        let v = self.over_counts(sum, &a);
        self.set(out, v)
    }

    fn average_gradient(&mut self, grad: &TensorIr, out: &TensorIr, a: Average) -> Imports {
        let grad = self.get(grad);
        let share = self.over_counts(grad, &a);
        let taps = vec![share; a.window.kernel.iter().product()];
        let v = self.overlapped(taps, &a.window);
        self.set(out, v)
    }

    /// Divides by the number of counted elements in each window. If the windows differ in that, the numbers along a
    /// dimension are the sums of the windows over ones.
    fn over_counts(&mut self, mut v: Value, a: &Average) -> Value {
        let w = &a.window;
        let mut all = 1;
        for s in 0..w.rank() {
            let (low, extent) = match a.padded {
                true => (0, w.extent[s] + 2 * a.padding[s]),
                false => (w.low[s], w.extent[s]),
            };
            let reach = (w.count[s] - 1) * w.stride[s] + w.kernel[s];
            if low == 0 && reach <= extent {
                all *= w.kernel[s];
                continue;
            }
            let ones = self.filled(Type::new(self.graph.ty(v).dtype, [extent]), 1.0);
            let along = Window {
                kernel: vec![w.kernel[s]],
                stride: vec![w.stride[s]],
                dilation: vec![1],
                low: vec![low],
                extent: vec![extent],
                count: vec![w.count[s]],
            };
            let taps = self.windowed(ones, &along, 0.0);
            let counts = self.total(&taps);
            let mut wide = vec![1; w.rank() - s];
            wide[0] = w.count[s];
            let counts = self.reshaped(counts, &wide);
            let shape = self.shape(v);
            v = self.broadcast(MapFn::Div, &[v, counts], &shape);
        }
        if all == 1 { v } else { self.with(MapFn::Div, v, all as f64) }
    }

    /// `[n, c, windows, window, …]` of a tensor whose extents are multiples of the number of windows, and the number of
    /// elements in a window.
    fn even_windows(&self, wide: &TensorIr, narrow: &TensorIr) -> Result<(Vec<usize>, usize), super::ImportError> {
        let (from, to) = (spatial(wide), spatial(narrow));
        if from.iter().zip(&to).any(|(n, m)| n % m != 0) {
            let hint = format!("the windows of an adaptive pooling of {from:?} to {to:?} are not all of one size");
            return Err(self.unsupported(&hint));
        }
        let mut shape = wide.shape.to_vec()[..2].to_vec();
        from.iter().zip(&to).for_each(|(n, m)| shape.extend([*m, n / m]));
        let count = from.iter().zip(&to).map(|(n, m)| n / m).product();
        Ok((shape, count))
    }

    fn adaptive(&mut self, x: &TensorIr, out: &TensorIr) -> Imports {
        let (shape, count) = self.even_windows(x, out)?;
        let x = self.get(x);
        let x = self.reshaped(x, &shape);
        let dims: Vec<usize> = (3..shape.len()).step_by(2).collect();
        let sum = self.reduced(x, ReduceOp::Sum, &dims);
        let v = self.with(MapFn::Div, sum, count as f64);
        self.set(out, v)
    }

    fn adaptive_gradient(&mut self, grad: &TensorIr, out: &TensorIr) -> Imports {
        let (shape, count) = self.even_windows(out, grad)?;
        let grad = self.get(grad);
        let share = self.with(MapFn::Div, grad, count as f64);
        let narrow: Vec<usize> =
            shape.iter().enumerate().map(|(d, &n)| if d > 2 && d % 2 == 1 { 1 } else { n }).collect();
        let share = self.reshaped(share, &narrow);
        let v = self.broadcast(MapFn::Identity, &[share], &shape);
        self.set(out, v)
    }

    /// The maxima and, if requested, the row-major position of the first maximum in each window.
    fn maximum(&mut self, x: &TensorIr, out: &TensorIr, indices: Option<&TensorIr>, w: &Window) -> Imports {
        let x = self.get(x);
        let taps = self.windowed(x, w, f64::NEG_INFINITY);
        let max = taps[1..].iter().fold(taps[0], |max, &tap| self.map(MapFn::Max, &[max, tap]));
        self.set(out, max)?;
        let Some(indices) = indices else { return Ok(()) };
        let dtype = self.ty(indices)?.dtype;
        let shape = indices.shape.to_vec();
        let distances = distances(w);
        let mut distance = self.constant(dtype, distances[distances.len() - 1]);
        for (&tap, &d) in taps.iter().zip(&distances).rev().skip(1) {
            let here = self.map(MapFn::Eq, &[tap, max]);
            let d = self.constant(dtype, d);
            distance = self.broadcast(MapFn::Select, &[here, d, distance], &shape);
        }
        let corner = self.corners(dtype, w);
        let v = self.broadcast(MapFn::Add, &[corner, distance], &shape);
        self.set(indices, v)
    }

    /// Adds each gradient to the element at the stored position.
    fn maximum_gradient(&mut self, [grad, indices]: [&TensorIr; 2], out: &TensorIr, w: &Window) -> Imports {
        let (grad, indices) = (self.get(grad), self.get(indices));
        let shape = self.shape(grad);
        let zero = self.constant(self.graph.ty(grad).dtype, 0.0);
        let corner = self.corners(self.graph.ty(indices).dtype, w);
        let mut taps = Vec::new();
        for distance in distances(w) {
            let position = self.with(MapFn::Add, corner, distance);
            let here = self.broadcast(MapFn::Eq, &[indices, position], &shape);
            taps.push(self.map(MapFn::Select, &[here, grad, zero]));
        }
        let v = self.overlapped(taps, w);
        self.set(out, v)
    }

    /// Row-major position of every window's first element, ignoring the padding: `[windows…]`.
    fn corners(&mut self, dtype: DType, w: &Window) -> Value {
        let mut sum: Option<Value> = None;
        for s in 0..w.rank() {
            let number = self.iota(dtype, &w.count, s);
            let step = w.stride[s] * w.extent[s + 1..].iter().product::<usize>();
            let position = self.with(MapFn::Mul, number, step as f64);
            sum = Some(match sum {
                Some(sum) => self.broadcast(MapFn::Add, &[sum, position], &w.count),
                None => self.broadcast(MapFn::Identity, &[position], &w.count),
            });
        }
        sum.unwrap_or_else(|| self.constant(dtype, 0.0))
    }
}

/// Row-major distance of every tap from its window's corner, accounting for the padding.
fn distances(w: &Window) -> Vec<f64> {
    let along = |offsets: &Vec<usize>| {
        let dims = offsets.iter().zip(&w.extent).zip(&w.low);
        dims.fold(0.0, |distance, ((&o, &n), &low)| distance * n as f64 + o as f64 - low as f64)
    };
    w.offsets().iter().map(along).collect()
}
