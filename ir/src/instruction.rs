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
    /// A constant.
    Constant(Scalar, DType),
    /// A value that the action around the body computes (attention, an epilogue). Not in loops.
    Given {
        /// Which one.
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
    /// Random elements: a function ([`crate::random`]) of seed, stream and the global element index
    /// `Σ (index of dim + offset) · stride`.
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
    /// A function of registers. `dtype` is the result's element type; arithmetic on bf16 and f16 is
    /// done in f32 and rounded to the type.
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
    /// Writes a register. Defines nothing.
    Store {
        /// Buffer, element offset and element type of the target.
        view: View,
        /// Element stride per loop dimension. With innermost stride 0 the register must be uniform,
        /// unless `accumulate` is set.
        strides: Vec<isize>,
        /// Register to write.
        arg: usize,
        /// Combine with what is there instead of overwriting. The loop first sets the target (all
        /// elements that the loop addresses) to the reduction's identity, even if it then runs over
        /// nothing because a dimension of stride 0 is empty. For truth values `sum` and `max` mean
        /// *or* (identity false), `prod` and `min` *and* (identity true).
        accumulate: Option<ReduceOp>,
    },
}
