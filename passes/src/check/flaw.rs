//! Why a placed operation does not compute what its types say.

/// Why a placed operation does not compute what its types say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Two operands shard one index differently.
    #[error("operands {first} and {second} cut the same index differently: order and chunks must agree")]
    Apart {
        /// The first of the operands.
        first: usize,
        /// The other one.
        second: usize,
    },
    /// An operand is sharded along a dimension of which the operation needs all positions.
    #[error("dimension {dim} of operand {operand} is sharded, but the operation needs it whole")]
    Whole {
        /// The operand.
        operand: usize,
        /// Its dimension.
        dim: usize,
    },
    /// One axis shards two indices, so no rank has all combinations of their values.
    #[error("mesh axis {axis} cuts two different indices")]
    AxisTwice {
        /// The name of the axis.
        axis: String,
    },
    /// An operand is partial where the results of its terms do not combine to the result.
    #[error(
        "operand {operand} is partial over {axis}, but a partial operand may pass only where the operation is linear and all \
         else is invariant"
    )]
    Partial {
        /// The operand.
        operand: usize,
        /// The name of the axis.
        axis: String,
    },
    /// The result would be partial under two reductions.
    #[error("the result would be partial under two reductions")]
    TwoReductions,
    /// What a redistribution moves does not arrive as the type of its result says.
    #[error("{0}")]
    Moved(Moved),
    /// The declared placement is not the one that follows from the operands.
    #[error("result {result} is declared as {declared}, but its operands imply {implied}")]
    Declared {
        /// The index of the result.
        result: usize,
        /// Its type in the program.
        declared: String,
        /// The type that follows from the operands.
        implied: String,
    },
}

/// Why a redistribution does not give the value that its type says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Moved {
    /// Another shape or element type than that of the value.
    #[error("the value is not {0}")]
    OtherValue(String),
    /// A dimension that the value lacks.
    #[error("the value has no dimension {0}")]
    NoDimension(usize),
    /// What is combined along an axis are not terms of this reduction.
    #[error("the ranks along {axis} do not hold terms of a {op}")]
    NoTerms {
        /// The name of the axis.
        axis: String,
        /// The reduction.
        op: &'static str,
    },
    /// What is moved along an axis are terms, which have to be combined.
    #[error("the ranks along {axis} hold terms, not parts")]
    Terms {
        /// The name of the axis.
        axis: String,
    },
    /// The value would be partial under two reductions.
    #[error("the value is partial under another reduction")]
    OtherReduction,
    /// The parts that a rank receives are not adjacent in its order, or belong to different rows.
    #[error("the parts that a rank gets do not join")]
    NotAdjacent,
    /// The members of a group hold different parts of the value.
    #[error("the ranks of a group hold different parts of the value")]
    DifferentParts,
    /// A rank gets another part of the value than its type says.
    #[error("a rank gets another part than {0} says")]
    OtherPart(String),
    /// The result is declared partial otherwise than it is.
    #[error("{0} declares other terms than there are")]
    OtherTerms(String),
}
