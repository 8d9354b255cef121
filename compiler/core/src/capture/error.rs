//! Reasons why a program cannot be captured.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;

use super::scope;
use tpc_ir::ModulePath;

/// A model, a closure or an optimizer that cannot be turned into a graph.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CaptureError {
    /// The closure or a module reads the value of a computed tensor.
    #[error(
        "a computed value is read{within}: nothing is computed during a capture, so `into_data`, `into_scalar`, \
         `argwhere`, `one_hot` and the like cannot be recorded; compute it outside and pass it as an input",
        within = within(.scope)
    )]
    ReadsValue {
        /// The innermost enclosing region, marked with `tpc::scope`.
        scope: Option<String>,
    },
    /// An operation that burn cannot record or that has no meaning in a graph.
    #[error("{operation} cannot be captured{within}: {reason}", within = within(.scope))]
    Unsupported {
        /// The operation.
        operation: String,
        /// Why it cannot be captured, and what to do instead.
        reason: String,
        /// The innermost enclosing region, marked with `tpc::scope`.
        scope: Option<String>,
    },
    /// A norm with running statistics runs twice in one training step.
    #[error(
        "a BatchNorm in training mode ({}) runs more than once in one step: its running statistics are updated once in \
         a captured step. Use a separate norm for each call, or put the norm in evaluation mode: `norm.freeze()`",
        paths(.modules)
    )]
    NormRunsTwice {
        /// Paths of all norms in training mode; the offending norm is one of them.
        modules: Vec<ModulePath>,
    },
    /// The update of a norm's running statistics cannot be read from the model.
    #[error(
        "the running statistics of {} are updated, but their update cannot be read: a tensor that is not a parameter \
         precedes the norm in the fields of its module. Move the norm before it, or create the tensor in the forward pass",
        paths(.modules)
    )]
    StatisticsHidden {
        /// Paths of the norms.
        modules: Vec<ModulePath>,
    },
    /// The model itself panicked, for example because of a shape mismatch.
    #[error("the model panicked{within}: {message} (at {location})", within = within(.scope))]
    Panicked {
        /// The message of the panic.
        message: String,
        /// Source file, line and column of the panic.
        location: String,
        /// The innermost enclosing region, marked with `tpc::scope`.
        scope: Option<String>,
    },
    /// No trainable parameter contributes to the loss.
    #[error("no parameter receives a gradient: all are frozen, or none of them is used by the loss")]
    NothingToTrain,
    /// Two inputs or two outputs have the same name.
    #[error("two {what}s are named `{name}`: give each its own name with `tpc::named`")]
    DuplicateName {
        /// `input` or `output`.
        what: &'static str,
        /// The name that occurs twice.
        name: String,
    },
    /// The optimizer records a different update at some later step, so one compiled step cannot serve all of them.
    #[error(
        "the optimizer does not reach a steady state: its update of a parameter of shape {shape:?} at step {step} differs from that at step 2"
    )]
    OptimizerChanges {
        /// The step whose update differs.
        step: usize,
        /// Shape of the parameter being updated.
        shape: Vec<usize>,
    },
    /// A step-dependent number is used where a tensor cannot replace it.
    #[error(
        "the optimizer passes a number that changes with the step or the learning rate to `{operation}`, which does not accept a tensor instead"
    )]
    StepDependent {
        /// The operation that uses the number.
        operation: String,
    },
    /// Two states of one parameter are the same tensor, so they cannot be separate inputs of a step.
    #[error(
        "the optimizer states `{first}` and `{second}` of `{parameter}` are the same tensor and cannot be two inputs"
    )]
    SharedState {
        /// Path of the parameter.
        parameter: ModulePath,
        /// Name of one state.
        first: String,
        /// Name of the other state.
        second: String,
    },
    /// A capture was started inside another capture on the same thread.
    #[error("a capture is already running on this thread")]
    AlreadyCapturing,
    /// The recording contradicts what this module assumes about burn.
    #[error("the recording is inconsistent: {0}; this is a defect of tpc, please report it")]
    Inconsistent(String),
}

/// Formats paths for a message; the empty path stands for the whole model.
fn paths(modules: &[ModulePath]) -> String {
    let name = |path: &ModulePath| if path.is_root() { "the model itself".into() } else { format!("`{path}`") };
    modules.iter().map(name).collect::<Vec<_>>().join(", ")
}

/// The name in messages of moving a tensor that tracks gradients.
const MOVES_TRACKED: &str = "`to_device` of a tensor that tracks gradients";

impl CaptureError {
    /// Improves the error of a model with norms in training mode: a refused move is then one of statistics that were
    /// already updated.
    pub(super) fn with_norms(self, modules: &[ModulePath]) -> Self {
        match self {
            CaptureError::Unsupported { operation, .. } if operation == MOVES_TRACKED && !modules.is_empty() => {
                CaptureError::NormRunsTwice { modules: modules.to_vec() }
            }
            other => other,
        }
    }
}

fn within(scope: &Option<String>) -> String {
    match scope {
        Some(path) => format!(" in `{path}`"),
        None => "outside any marked region (mark one with `tpc::scope` to see which module)".into(),
    }
}

/// What the panic hook observed. By the time the payload arrives, unwinding has left the scopes.
#[derive(Clone, Default)]
struct Seen {
    location: String,
    scope: Option<String>,
}

thread_local! {
    static GUARDED: Cell<bool> = const { Cell::new(false) };
    static SEEN: RefCell<Option<Seen>> = const { RefCell::new(None) };
}

/// Runs `f` and turns a panic into an error, without printing it.
///
/// The hook is installed once and looks at a thread-local flag, because replacing the process-wide hook for the
/// duration of a capture would swallow the panics of other threads.
pub(super) fn guarded<R>(f: impl FnOnce() -> R) -> Result<R, CaptureError> {
    install_hook();
    let outer = GUARDED.replace(true);
    let result = panic::catch_unwind(AssertUnwindSafe(f));
    GUARDED.set(outer);
    let seen = SEEN.take().unwrap_or_default();
    result.map_err(|payload| translate(&message(&*payload), seen))
}

fn install_hook() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let previous = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !GUARDED.try_with(Cell::get).unwrap_or(false) {
                return previous(info);
            }
            let location = info.location().map(|at| portable(&at.to_string())).unwrap_or_default();
            SEEN.with_borrow_mut(|seen| {
                // A second panic while unwinding is a consequence of the first.
                seen.get_or_insert(Seen { location, scope: scope::current() });
            });
        }));
    });
}

/// Strips the path of the local registry, so that the text is the same on every machine.
fn portable(location: &str) -> String {
    match location.split_once("/registry/src/").and_then(|(_, rest)| rest.split_once('/')) {
        Some((_, path)) => path.to_owned(),
        None => location.to_owned(),
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    payload
        .downcast_ref::<String>()
        .cloned()
        .or_else(|| payload.downcast_ref::<&str>().map(ToString::to_string))
        .unwrap_or_else(|| "no message".into())
}

/// The panic message of a recorded `TrainStep` that has not declared its loss.
pub(crate) const NO_LOSS: &str = "the step has no loss";

/// Turns a panic into an error. burn panics on what it cannot record; the messages are those of burn 0.22.
fn translate(message: &str, seen: Seen) -> CaptureError {
    let Seen { location, scope } = seen;
    let unsupported = |operation: &str, reason: &str| CaptureError::Unsupported {
        operation: operation.into(),
        reason: reason.into(),
        scope: scope.clone(),
    };
    if message.contains("has no concrete value") || message.contains("has no initialized value") {
        return CaptureError::ReadsValue { scope };
    }
    if message.contains("do not support autodiff") {
        return unsupported(
            "changing the autodiff state of a tensor (`inner`, `from_inner`, `backward`)",
            "the capture differentiates the closure itself; return the loss instead, or end a `TrainStep` of burn-train with \
             `tpc::burn_train::backward(self, loss, output)`",
        );
    }
    if message.contains("Cannot move a tensor to a capture device with autodiff") {
        return unsupported(MOVES_TRACKED, "the closure must stay on the device of its arguments");
    }
    if message == NO_LOSS {
        return unsupported(
            "a `TrainStep` that does not declare its loss",
            "end it with `tpc::burn_train::backward(self, loss, output)`, which under other strategies is \
             `TrainOutput::new(self, loss.backward(), output)`",
        );
    }
    if message.contains("seeding is not supported") {
        return unsupported("`Device::seed`", "seed outside the closure");
    }
    if message.contains("Cannot move a tensor from a capture device") {
        return unsupported("`to_device`", "the closure must stay on the device of its arguments");
    }
    if location.contains("burn-router") && message.contains("not implemented")
        || message.contains("QFloat")
        || message.contains("uantiz")
    {
        return unsupported("a quantized operation", message);
    }
    CaptureError::Panicked { message: message.into(), location, scope }
}
