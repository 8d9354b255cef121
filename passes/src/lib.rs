//! The passes of tpc. Each pass turns a graph into a graph or a rank program, is a pure function of its input and its
//! options, and shows an example of before and after in its documentation.
//!
//! | question | file |
//! |---|---|
//! | how an operation behaves under sharding | [`factors`] |
//! | how a captured graph is canonicalized | [`canonicalize`] |
//! | what a style means | [`styles`] |
//! | clipping, micro-batches, freezing, precision | [`options`] |
//! | how every value gets its first placement | [`propagate`] |
//! | where a tensor lies that a program keeps from run to run | [`kept`] |
//! | how a value is redistributed from one placement to another | [`redistribute`] |
//! | which placements cost least, if the plan does not decide; the planner, then the e-graph | [`planner`], [`optimize`](mod@optimize) |
//! | how what repeats is optimized once; a model with few of its layers | [`shorten`]; [`short_model`] |
//! | how collectives are moved, merged and removed | [`egraph`] |
//! | why a redistribution exists, and in which phase of the step | [`reasons`] |
//! | which parameters are gathered a second time for the backward pass | [`reshard`] |
//! | which values of the forward pass are computed a second time for the backward pass | [`mod@rematerialize`] |
//! | what an operation costs | [`cost`] |
//! | how fast a device and its links are | [`targets`] |
//! | which ranks run programs of the same sizes | [`mod@kinds`] |
//! | how long a rank program takes, and how much of that time the rank waits | [`simulate`](mod@simulate) |
//! | what a rank executes | [`lower`] |
//! | whether a placed program computes what its types say, and whether its plan holds | [`mod@check`] |
//! | whether a placed program computes the model | [`denotes`] |
//! | how a pass rewrites a graph node by node | [`rebuild`] |
#![warn(missing_docs)]

pub mod canonicalize;
pub mod check;
pub mod cost;
pub mod denotes;
pub mod egraph;
pub mod factors;
pub mod kept;
pub mod kinds;
pub mod lower;
pub mod optimize;
pub mod options;
pub mod planner;
pub mod propagate;
pub mod reasons;
pub mod rebuild;
pub mod redistribute;
pub mod rematerialize;
pub mod reshard;
pub mod short_model;
pub mod shorten;
pub mod simulate;
pub mod styles;
pub mod targets;
