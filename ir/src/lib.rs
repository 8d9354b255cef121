//! The intermediate representation of tpc: a dataflow graph in which every value has a placement on a device mesh.
//!
//! | question | file |
//! |---|---|
//! | which element types exist | [`dtype`] |
//! | what a mesh is, and how an axis is split in two | [`mesh`] |
//! | how a value is placed on the mesh, which box of it a rank holds | [`sharding`] |
//! | what `"ab,bc->ac"` means | [`subscripts`] |
//! | which operations exist | [`op`] |
//! | module paths; how an input of a program is identified | [`path`], [`input`] |
//! | how operations form a program | [`graph`] |
//! | why an operation exists | [`reason`] |
//! | how a graph is printed and parsed | [`text`], [`parse`], [`json`] |
//! | which parts of a program repeat; making it longer or shorter | [`block`], [`fold`] |
//! | what makes a graph well formed; whether its sizes fit into integers | [`verify`], [`size`] |
//! | what a graph means | [`interpret`] |
//! | how a user's text is shown in a message | [`quote`] |
//! | JSON without repeated keys | [`unique`] |
//! | which random number an element gets | [`random`] |
//! | what a rank executes; attention as one action | [`program`], [`attention`] |
//! | the instructions of loops; buffers and views | [`instruction`], [`memory`] |
//! | which rank programs a process holds, and what it knows of the others | [`rank_programs`] |
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
pub mod rank_programs;
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
