//! The memory of a rank: buffers in its arena, and views of them.

use crate::DType;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The index of a buffer in [`RankProgram::buffers`](crate::program::RankProgram::buffers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BufferId(pub u32);

/// A range of bytes of the arena. Buffers whose lifetimes do not overlap may share bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Buffer {
    /// First byte in the arena; a multiple of [`ALIGNMENT`].
    pub offset: usize,
    /// Size in bytes.
    pub bytes: usize,
    /// Whether the buffer keeps its contents between steps (parameters, state, constants).
    pub persistent: bool,
    /// A description of the contents, for people who read the program.
    pub label: Arc<str>,
}

/// Alignment of every buffer in bytes: one cache line, and enough for any vector unit.
pub const ALIGNMENT: usize = 64;

/// A strided view of a buffer. Strides and offset count elements of `dtype`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The buffer.
    pub buffer: BufferId,
    /// Offset of element `[0, 0, …]` from the start of the buffer, in elements.
    pub offset: usize,
    /// Element type.
    pub dtype: DType,
    /// Local shape, in elements.
    pub shape: Vec<usize>,
    /// The distance between neighbors in each dimension, in elements; 0 repeats one element.
    pub strides: Vec<isize>,
}

impl View {
    /// A dense row-major view of a whole buffer.
    pub fn dense(buffer: BufferId, dtype: DType, shape: Vec<usize>) -> Self {
        let strides = dense_strides(&shape);
        View { buffer, offset: 0, dtype, shape, strides }
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the elements lie in row-major order without gaps.
    pub fn is_dense(&self) -> bool {
        let mut expected = 1;
        for (&n, &s) in self.shape.iter().zip(&self.strides).rev() {
            if n != 1 && s != expected {
                return self.elements() == 0;
            }
            expected *= n as isize;
        }
        true
    }
}

/// The row-major strides of a shape. Every stride is at least 1, even if the shape has no elements, because a stride of
/// 0 means that the dimension is absent.
pub fn dense_strides(shape: &[usize]) -> Vec<isize> {
    let mut strides = vec![1; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i] * shape[i].max(1) as isize;
    }
    strides
}
