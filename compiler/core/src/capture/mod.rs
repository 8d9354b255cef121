//! Captures a burn module and a closure as a graph.
//!
//! [`capture_inference`] and [`capture_training`] run a closure on burn's recording backend. Nothing is computed, and
//! only the shapes of a batch matter. The `_shapes` variants also build the model without values.
//!
//! A training step is recorded once. After its backward pass, two updates of every parameter are recorded: that of the
//! first step and that of a later step. Each of the two programs keeps its own. Comparing updates shows which numbers
//! depend on the step or on the learning rate; see [`StepScalars`].
//!
//! # Invariants of a [`Captured`]
//!
//! - **Ids** are dense: inputs have the ids `0..inputs.len()` in order (`inputs[i].id == i`), then every operation's
//!   results follow in the order of operations. They depend only on the program: equal programs have equal graphs and
//!   texts in every process.
//! - **Form**: an id is produced once, before it is read. `graph.inputs[i] == inputs[i].id` and `graph.outputs[i] ==
//!   outputs[i].id`. An output may also be an input, and one tensor may be several outputs (the first velocity of SGD
//!   is the gradient).
//! - **Order of inputs**: parameters in burn's visiting order (all, used or not), states (steady step only) by
//!   parameter, data in the order of the batch (all, used or not), step scalars by index (those that this program
//!   uses), constants in the order of their first use.
//! - **Order of outputs**: loss, outputs of the closure, gradients, parameters, running states that the forward pass
//!   updates, states of the optimizer. Gradients, parameters and states are sorted by parameter and exist only for
//!   parameters that the loss depends on; running states are sorted by path, like parameters. Frozen parameters are
//!   inputs only.
//! - **Phases**: operations `..forward_end` are the forward pass (including tables that the model computes while it is
//!   built), those up to `backward_end` the backward pass, the rest clipping and optimizer. The backward pass does not
//!   depend on the optimizer, and `first` and `steady` agree up to `backward_end`, except for the ids of tensors.
//! - **Removed**: `Drop`, `Init` (its result is a constant), the operations that stood for inputs, and the
//!   initialization of parameters. Dead operations may remain (gradients of inputs, unused branches). There are no
//!   custom, distributed or quantized operations.
//! - **Status**: the operands of an operation are `ReadOnly`, its results `NotInit`. burn's own statuses reflect Rust
//!   reference counts and have no meaning here.
//! - **Step scalars** are inputs `f32[1]`. They are cast if the parameter is not f32 and reshaped to `[1, …, 1]` if its
//!   rank is not 1, once for each rank and dtype, right before their first use. `MulScalar` becomes `Mul` with the
//!   scalar on the right, and `Full` becomes `Expand`; extents of 1 are broadcast as in burn.
//! - **Tied parameters** (equal `ParamId`) are one input under their first path, whose gradient is the sum over all
//!   uses.
//! - **Scopes** hold operations of the forward pass only; an argument or a result may be any input or result.
//! - **States** that are always the same tensor are listed once, under their first name. The states that `first`
//!   creates are those that `steady` reads and updates, by parameter and name.
//! - **Booleans** have the storage dtype of burn's recording device (`Bool(U8)`), whatever the dtype in the example
//!   batch was.

mod assemble;
mod captured;
mod error;
mod forward;
mod initialization;
mod insert;
mod interface;
mod kept;
mod kind;
mod operation;
mod optimizer;
mod params;
mod position;
mod probe;
mod scalars;
pub mod scope;
mod session;
mod states;
mod statistics;
mod step;
mod substitute;
mod tensors;
mod text;
mod trace;
mod units;
mod values;

pub use captured::{Captured, Init, ModuleInfo, ScopeRecord, TrainingCapture};
pub use error::CaptureError;
#[cfg(feature = "train")]
pub(crate) use error::NO_LOSS;
pub(crate) use forward::output_names;
pub use interface::{CapturedInput, CapturedOutput, InputKind, KeptName, OutputKind};
pub use kept::{After, Before, Kept};
pub use kind::Kind;
pub use operation::name as operation_name;
pub(crate) use position::Position;
pub(crate) use probe::Number;
pub use scalars::StepScalars;
pub(crate) use session::Defaults;
pub use states::OptimizerStates;
pub(crate) use states::ParameterStates;
pub(crate) use step::{Model, parameter_values, record_inference, record_training};
pub use step::{
    TrainingOptions, capture_inference, capture_inference_shapes, capture_training, capture_training_shapes,
    capture_training_with, initial_values,
};
pub use tensors::{Batch, Inputs, Leaf, LeafKind, Loss, Named, Spec, Tensors, field_name, named};
pub(crate) use values::BatchField;
pub use values::{BatchData, BatchFields, ResultValues, Results};
