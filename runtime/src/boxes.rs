//! The box of a tensor that a rank holds, as contiguous runs of the whole tensor's row-major elements.
//!
//! Programs may split the same tensor into different dimensions (`[d, heads·size]` or `[d, heads, size]`). They agree
//! on the row-major order of the elements, so boxes of different programs are intersected as runs: [`meet`].

use std::convert::Infallible;
use tpc_ir::DType;
use tpc_ir::program::{Binding, HeldBox, dense_strides};

/// The box of a tensor that a rank holds.
#[derive(Clone, Debug, PartialEq)]
pub struct BoxRequest {
    /// Element type.
    pub dtype: DType,
    /// Shape of the whole tensor, in the program's dimensions.
    pub global: Vec<usize>,
    /// First index of the box in every dimension.
    pub start: Vec<usize>,
    /// Shape of the box.
    pub shape: Vec<usize>,
    /// Shape in the model, with the same row-major elements as `global`.
    pub layout: Vec<usize>,
}

impl BoxRequest {
    /// The box of a binding.
    pub(crate) fn of(b: &Binding) -> Self {
        BoxRequest::at(b, HeldBox { start: b.start.clone(), shape: b.view.shape.clone() })
    }

    /// The box that another rank holds of the tensor of a binding.
    pub(crate) fn at(b: &Binding, HeldBox { start, shape }: HeldBox) -> Self {
        BoxRequest { dtype: b.view.dtype, global: b.global.clone(), start, shape, layout: b.layout.clone() }
    }

    /// Number of elements in the box.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The box as runs of elements, in order.
    pub fn element_runs(&self) -> Runs {
        Runs::new(&self.global, &self.start, &self.shape)
    }

    /// Calls `f` with `(first byte in the dense whole, first byte in the dense box, bytes)` for every contiguous run,
    /// in order. A loader reads these runs from a file.
    pub fn runs(&self, f: &mut dyn FnMut(usize, usize, usize)) {
        let size = self.dtype.bytes();
        self.element_runs().for_each(|r| f(r.first * size, r.at * size, r.len * size));
    }
}

/// Elements of a tensor that are consecutive in the tensor and in the box.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// First element in the dense whole tensor.
    pub first: usize,
    /// First element in the dense box.
    pub at: usize,
    /// Number of elements.
    pub len: usize,
}

impl Run {
    /// The end of the run in the whole tensor, exclusive.
    pub fn end(&self) -> usize {
        self.first + self.len
    }
}

/// The runs of a box, ascending both in the whole tensor and in the box.
#[derive(Clone, Debug)]
pub struct Runs {
    /// Dimensions that select a run, outermost first.
    dims: Vec<Outer>,
    /// Index of the next run in these dimensions; `None` after the last run.
    index: Option<Vec<usize>>,
    /// First element of the run at index 0, and the number of elements in each run.
    base: usize,
    len: usize,
}

#[derive(Clone, Debug)]
struct Outer {
    global: usize,
    start: usize,
    size: usize,
    stride: usize,
}

impl Runs {
    /// The runs of the box of `shape` at `start` in a tensor of shape `global`.
    pub fn new(global: &[usize], start: &[usize], shape: &[usize]) -> Self {
        // Trailing dimensions that the box covers completely belong to the run.
        let mut inner = shape.len();
        let mut len = 1;
        while inner > 0 {
            inner -= 1;
            len *= shape[inner];
            if shape[inner] != global[inner] {
                break;
            }
        }
        let strides = dense_strides(global);
        let base = start.iter().zip(&strides).map(|(&s, &d)| s * d as usize).sum();
        let outer =
            |d: usize| Outer { global: global[d], start: start[d], size: shape[d], stride: strides[d] as usize };
        let index = (!shape.contains(&0)).then(|| vec![0; inner]);
        Runs { dims: (0..inner).map(outer).collect(), index, base, len }
    }

    /// The consecutive elements `first..end` of a tensor.
    pub fn range(first: usize, end: usize) -> Self {
        Runs::new(&[end], &[first], &[end - first])
    }

    /// Number of elements in all runs, before any was taken.
    pub fn elements(&self) -> usize {
        match self.index {
            Some(_) => self.dims.iter().map(|d| d.size).product::<usize>() * self.len,
            None => 0,
        }
    }

    /// Advances to the first run that ends after `element`, unless the next run is already further.
    pub fn skip_to(&mut self, element: usize) {
        let Some(index) = &mut self.index else { return };
        let next: usize = self.base + index.iter().zip(&self.dims).map(|(i, d)| i * d.stride).sum::<usize>();
        if next + self.len > element {
            return;
        }
        for (d, dim) in self.dims.iter().enumerate() {
            // The outermost dimension does not wrap around: the runs end there.
            let coordinate = element / dim.stride % if d == 0 { usize::MAX } else { dim.global };
            if coordinate < dim.start {
                index[d..].fill(0);
                return;
            }
            if coordinate >= dim.start + dim.size {
                index[d..].fill(0);
                self.advance(d);
                return;
            }
            index[d] = coordinate - dim.start;
        }
        let next: usize = self.base + index.iter().zip(&self.dims).map(|(i, d)| i * d.stride).sum::<usize>();
        if next + self.len <= element {
            self.advance(self.dims.len());
        }
    }

    /// Increments the index in the first `dims` dimensions.
    fn advance(&mut self, dims: usize) {
        let Some(index) = &mut self.index else { return };
        for d in (0..dims).rev() {
            index[d] += 1;
            if index[d] < self.dims[d].size {
                return;
            }
            index[d] = 0;
        }
        self.index = None;
    }
}

impl Iterator for Runs {
    type Item = Run;

    fn next(&mut self) -> Option<Run> {
        let index = self.index.as_ref()?;
        let (mut first, mut at) = (self.base, 0);
        for (i, d) in index.iter().zip(&self.dims) {
            first += i * d.stride;
            at = at * d.size + i;
        }
        self.advance(self.dims.len());
        Some(Run { first, at: at * self.len, len: self.len })
    }
}

/// Calls `f` with `(first element in the box of a, first element in the box of b, elements)` for each part of the
/// intersection of two boxes of one tensor, in order.
///
/// # Errors
/// The errors of `f`.
pub fn meet<E>(mut a: Runs, mut b: Runs, f: &mut dyn FnMut(usize, usize, usize) -> Result<(), E>) -> Result<(), E> {
    let (Some(mut x), Some(mut y)) = (a.next(), b.next()) else { return Ok(()) };
    loop {
        let (low, high) = (x.first.max(y.first), x.end().min(y.end()));
        if low < high {
            f(x.at + low - x.first, y.at + low - y.first, high - low)?;
        }
        let next = if x.end() <= y.end() {
            a.skip_to(x.end().max(y.first));
            a.next().map(|run| x = run)
        } else {
            b.skip_to(y.end().max(x.first));
            b.next().map(|run| y = run)
        };
        if next.is_none() {
            return Ok(());
        }
    }
}

/// [`meet`] with a function that cannot fail.
pub fn meet_all(a: Runs, b: Runs, f: &mut dyn FnMut(usize, usize, usize)) {
    let done: Result<(), Infallible> = meet(a, b, &mut |x, y, n| {
        f(x, y, n);
        Ok(())
    });
    done.unwrap_or_else(|never| match never {});
}
