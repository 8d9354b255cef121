//! The rules of the e-graph: a record for each of them, and the functions that apply them.
//!
//! A rule looks at one term of a class and gives classes that equal it. What it needs to know of operations it reads in
//! the factor table, so an operation that gets a row there takes part in every rule without being named here.
#![doc = ""]
#![doc = include_str!("RULES.md")]

mod cancel;
mod condition;
mod dispatch;
mod gather;
mod id;
mod merge;
mod reduction;
mod site;
mod slice;
mod table;

pub(super) use dispatch::Dispatched;
pub use id::{RuleId, UnknownRule};
pub(super) use site::left_out;
pub use table::{Rule, Tag, all_rules};
