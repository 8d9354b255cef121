//! The two ways in which a style cuts a weight.

use std::fmt;

/// How a weight is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// A linear's output features, an embedding's hidden dimension, a convolution's output channels.
    Columns,
    /// A linear's input features, an embedding's rows, a convolution's input channels.
    Rows,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Way::Columns => "by columns",
            Way::Rows => "by rows",
        })
    }
}
