//! Parallel styles: what a plan says becomes placements of inputs, and nothing else.
//!
//! | question | file |
//! |---|---|
//! | what a plan is, and its JSON form | [`plan`] |
//! | which modules a path pattern means | [`pattern`] |
//! | which linears and embeddings a module holds, and in which order data meets them | `modules` |
//! | which index of a weight is cut, by whole heads | `cut` |
//! | from plan to placements | [`annotate()`] |

mod annotate;
mod cut;
mod modules;
pub mod pattern;
pub mod plan;

pub use annotate::{StyleError, annotate};
pub use plan::{DataMode, Plan, PlanError, Style};
