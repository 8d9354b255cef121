//! The instructions of loops, epilogues and the bodies of attention.

use crate::DType;
use crate::memory::View;
use crate::op::{Distribution, MapFn, ReduceOp, Scalar};
use serde::{Deserialize, Serialize};

/// An instruction of a fused loop. It defines the register of its own index.
///
/// A register holds one value per iteration of the innermost dimension (a *row*), or one value for
/// the whole row (*uniform*): loads with innermost stride 0, constants, reductions, and functions of
/// uniform registers are uniform.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Instruction {
    /// Elements of a view; `strides` has one entry per loop dimension (in elements, 0 repeats).
    Load {
        /// Buffer, element offset and element type; its own shape is not used.
        view: View,
        /// Element stride per loop dimension.
        strides: Vec<isize>,
    },
    /// A constant of a type.
    Constant(Scalar, DType),
    /// A value that the action around the body provides: a product or a gradient of attention, or the product before an
    /// epilogue. A loop has none.
    Given {
        /// Which of these values.
        index: usize,
        /// Element type.
        dtype: DType,
    },
    /// `index of loop dimension dim + offset`, as an integer of the given type.
    Index {
        /// The loop dimension.
        dim: usize,
        /// The global index of this rank's first element.
        offset: usize,
        /// Element type of the result.
        dtype: DType,
    },
    /// Random elements: a function ([`crate::random`]) of the seed, the stream and the global element index `Σ (index
    /// of dim + offset) · stride`.
    Random {
        /// The distribution.
        distribution: Distribution,
        /// The stream of this tensor.
        stream: u64,
        /// Register that holds the seed (uniform).
        seed: usize,
        /// `(loop dimension, global offset, global stride)`.
        index: Vec<(usize, usize, usize)>,
        /// Element type of the result.
        dtype: DType,
    },
    /// A function of registers. Arithmetic on bf16 and f16 is done in f32 and rounded to `dtype`.
    Map {
        /// The function.
        f: MapFn,
        /// Operand registers.
        args: Vec<usize>,
        /// Element type of the result.
        dtype: DType,
    },
    /// Reduces a row to one uniform value. A uniform operand counts once per iteration of the row.
    ReduceRow {
        /// How elements combine.
        op: ReduceOp,
        /// Operand register.
        arg: usize,
        /// Element type of the result.
        dtype: DType,
    },
    /// Writes a register to memory. Its own register holds no value.
    Store {
        /// Buffer, element offset and element type of the target.
        view: View,
        /// Element stride per loop dimension. With innermost stride 0 the register must be uniform,
        /// unless `accumulate` is set.
        strides: Vec<isize>,
        /// Register to write.
        arg: usize,
        /// Combine with what is there instead of overwriting it. The loop first sets the target (all elements that the
        /// loop addresses) to the reduction's identity, even if it then has no iterations because a dimension of stride
        /// 0 is empty. For truth values, `sum` and `max` mean *or* (identity false), `prod` and `min` mean *and*
        /// (identity true).
        accumulate: Option<ReduceOp>,
    },
}
