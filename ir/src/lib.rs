//! The intermediate representation of tpc: one dataflow graph whose every value has a home on a
//! device mesh.
//!
//! | question | file |
//! |---|---|
//! | which element types exist | [`dtype`] |
//! | what a mesh is, and a part of an axis | [`mesh`] |
//! | how a value lies on the mesh, what each rank holds | [`sharding`] |
//! | what `"ab,bc->ac"` means | [`subscripts`] |
//! | which operations exist, and the shape of their results | [`op`] |
//! | where something is in the module tree; which input of a program is which | [`path`], [`input`] |
//! | how operations form a program | [`graph`] |
//! | why an operation is there | [`reason`] |
//! | how a graph is printed and parsed | [`text`], [`parse`], [`json`] |
//! | what repeats in a program, how it gets longer or shorter | [`block`], [`fold`] |
//! | what makes a graph well formed; whether its bytes can be counted | [`verify`], [`size`] |
//! | what a graph means | [`interpret`] |
//! | how a user's text is shown in a message | [`quote`] |
//! | JSON whose keys stand once | [`unique`] |
//! | which random numbers an element is made of | [`random`] |
//! | what a rank executes; attention in it | [`program`], [`attention`] |
//! | the instructions of its loops; where its values lie | [`instruction`], [`memory`] |
//! | what rank programs mean | [`execute`] |
#![doc = ""]
#![doc = include_str!("../LAWS.md")]
#![warn(missing_docs)]

pub mod attention;
pub mod block;
pub mod dtype;
pub mod execute;
pub mod fold;
pub mod graph;
pub mod input;
pub mod instruction;
pub mod interpret;
pub mod json;
pub mod memory;
pub mod mesh;
pub mod op;
pub mod parse;
pub mod path;
pub mod program;
pub mod quote;
pub mod random;
pub mod reason;
pub mod sharding;
pub mod size;
pub mod subscripts;
pub mod text;
pub mod unique;
pub mod verify;

pub use dtype::DType;
pub use graph::{Boundary, Graph, Node, Origin, Output, OutputKind, Phase, Region, Value};
pub use input::{InputId, InputKind};
pub use mesh::{AxisId, AxisSet, Mesh};
pub use op::{MapFn, Op, ReduceOp, Scalar, UnitId};
pub use path::{ModulePath, Segment};
pub use reason::Reason;
pub use sharding::{Partial, Sharding, Type};
pub use subscripts::Subscripts;
