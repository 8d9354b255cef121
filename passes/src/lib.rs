//! The passes of tpc: each turns a graph into a graph (or a rank program), is a pure function of its
//! input and options, and has before and after in its documentation.
//!
//! | question | file |
//! |---|---|
//! | how does an operation behave under sharding | [`rules`] |
//! | how does a captured graph become readable | [`canonicalize`] |
//! | what does a style mean | [`styles`] |
//! | clipping, micro-batches, freezing, precision | [`options`] |
//! | how does every value get its first placement | [`propagate`] |
//! | how does a value move from one placement to another | [`redistribute`] |
//! | how are collectives moved, merged and removed | [`egraph`] |
//! | why is a redistribution there, in which part of the step | [`reasons`] |
//! | which parameters are gathered again for the backward pass | [`reshard`] |
//! | what does a plan cost | [`cost`] |
//! | how fast are the device and its links | [`targets`] |
//! | how long does a rank's program take, and how much of that does it wait | [`simulate`](mod@simulate) |
//! | what does a rank execute | [`lower`] |
//! | is a placed program right | [`mod@check`] |
//! | does it compute the model | [`denotes`] |
#![warn(missing_docs)]

pub mod canonicalize;
pub mod check;
pub mod cost;
pub mod denotes;
pub mod egraph;
pub mod kept;
pub mod lower;
pub mod optimize;
pub mod options;
pub mod planner;
pub mod propagate;
pub mod reasons;
pub mod rebuild;
pub mod redistribute;
pub mod reshard;
pub mod rules;
pub mod simulate;
pub mod styles;
pub mod targets;
