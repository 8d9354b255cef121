//! The two directions in which a style can cut a weight.

use std::fmt;

/// How a weight is cut.
///
/// A burn linear weight is `[in, out]`: `Columns` cuts `out` ([`Weight::outer`](super::modules::Weight::outer)), and
/// `Rows` cuts `in` ([`Weight::inner`](super::modules::Weight::inner)). PyTorch stores `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// A linear's output features, an embedding's hidden dimension, a convolution's output channels.
    Columns,
    /// A linear's input features, an embedding's rows, a convolution's input channels.
    Rows,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::Columns => "by columns",
            Direction::Rows => "by rows",
        })
    }
}
