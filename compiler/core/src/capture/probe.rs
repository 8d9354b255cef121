//! Records updates of a single parameter at any step and learning rate.

use std::collections::HashMap;

use burn::optim::{Optimizer, RecordState, StateSink, StateSource};
use burn::tensor::{DType, TensorData};
use burn_pack::Scalar;

use super::error::CaptureError;
use super::kind;
use super::operation::first_result;
use super::session::{self, Defaults, Recorded, Session};
use super::trace::Trace;

/// The largest number of steps that one recording covers.
const MAX_STEPS: usize = 256;

/// Records updates of a parameter of one shape.
pub(super) trait Probe: Send {
    fn shape(&self) -> Vec<usize>;
    /// The same probe for a parameter whose extents are all 1.
    fn unit(&self) -> Box<dyn Probe>;
    /// Records the updates of steps 1 to `steps`.
    fn first_steps(&self, steps: usize, lr: f64) -> Result<Vec<Trace>, CaptureError>;
    /// Records the update of one step. This is cheap if steps are requested in order.
    fn step(&mut self, step: usize, lr: f64) -> Result<Trace, CaptureError>;
    /// The numbers in the state after `steps` steps, at least one, under their names in burn's records. This is cheap
    /// if steps are requested in order.
    fn numbers(&mut self, steps: usize, lr: f64) -> Result<Vec<Number>, CaptureError>;
}

/// A number in an optimizer state (such as the time of Adam), with its name.
pub(crate) type Number = (String, Scalar);

pub(super) struct Prober<O: Optimizer, const D: usize> {
    optimizer: O,
    shape: [usize; D],
    dtype: DType,
    /// The state before the last step that was requested.
    reached: Snapshot,
}

/// An optimizer state between two recordings. A tensor does not outlive its recording, but the numbers in a state (such
/// as the time of Adam) determine what is recorded next.
#[derive(Clone, Default)]
struct Snapshot {
    steps: usize,
    tensors: Vec<(String, Vec<usize>, DType)>,
    numbers: Vec<Number>,
}

impl<O: Optimizer, const D: usize> Prober<O, D> {
    pub(super) fn new(optimizer: O, shape: [usize; D], dtype: DType) -> Self {
        Self { optimizer, shape, dtype, reached: Snapshot::default() }
    }

    /// Records the steps after `from` up to `to`, and returns them with the state before the last one.
    fn run(&self, from: &Snapshot, to: usize, lr: f64) -> Result<(Vec<Trace>, Snapshot), CaptureError> {
        let ((marks, labels), recorded) = session::record(Defaults::default(), |session| {
            let begin = session.mark();
            let mut state = from.restore::<O, D>(session);
            let mut before = None;
            let mut marks = Vec::new();
            for _ in from.steps..to {
                let fresh = || kind::placeholder(self.shape, self.dtype, &session.device);
                let (parameter, gradient) = (fresh(), fresh());
                before.clone_from(&state);
                let start = session.mark();
                state = self.optimizer.step(lr, parameter, gradient, state).1;
                marks.push((start, session.mark()));
            }
            session.label(begin..session.mark());
            let mut labels = StateSink::default();
            if let Some(before) = &before {
                before.state_flatten("", &mut labels);
            }
            (marks, labels)
        })?;
        let trace = |(start, end): &(u64, u64)| {
            let from = recorded.operations.partition_point(|op| first_result(op) < *start);
            let to = recorded.operations.partition_point(|op| first_result(op) < *end);
            Trace::of(&recorded.operations[from..to])
        };
        let traces = marks.iter().map(trace).collect();
        Ok((traces, Snapshot::take(to - 1, labels, &recorded)?))
    }
}

impl Snapshot {
    fn restore<O: Optimizer, const D: usize>(&self, session: &Session) -> Option<O::State<D>> {
        if self.tensors.is_empty() && self.numbers.is_empty() {
            return None;
        }
        let mut source = StateSource::new(self.numbers.iter().cloned().collect());
        for (name, shape, dtype) in &self.tensors {
            let zeros = TensorData::zeros::<f32, _>(shape.clone()).convert_dtype(*dtype);
            source.insert_tensor(name.clone(), zeros);
        }
        O::State::<D>::state_unflatten("", &mut source, &session.device)
    }

    fn take(steps: usize, labels: StateSink, recorded: &Recorded) -> Result<Self, CaptureError> {
        let types: HashMap<u64, (Vec<usize>, DType)> = recorded
            .operations
            .iter()
            .flat_map(|op| op.outputs().chain(op.inputs()))
            .map(|tensor| (tensor.id.value(), (tensor.shape.to_vec(), tensor.dtype)))
            .chain(recorded.values.iter().map(|(id, data)| (*id, (data.shape().to_vec(), data.dtype()))))
            .collect();
        let typed = |(name, data): (String, TensorData)| {
            let (shape, dtype) = session::read_label(&data).and_then(|id| types.get(&id).cloned())?;
            Some((name, shape, dtype))
        };
        let tensors = labels.tensors.into_iter().map(typed).collect::<Option<_>>();
        let tensors =
            tensors.ok_or_else(|| CaptureError::Inconsistent("an optimizer state was not recorded".into()))?;
        Ok(Self { steps, tensors, numbers: labels.scalars })
    }
}

impl<O: Optimizer, const D: usize> Probe for Prober<O, D> {
    fn shape(&self) -> Vec<usize> {
        self.shape.to_vec()
    }

    fn unit(&self) -> Box<dyn Probe> {
        Box::new(Self::new(self.optimizer.clone(), [1; D], self.dtype))
    }

    fn first_steps(&self, steps: usize, lr: f64) -> Result<Vec<Trace>, CaptureError> {
        Ok(self.run(&Snapshot::default(), steps, lr)?.0)
    }

    fn step(&mut self, step: usize, lr: f64) -> Result<Trace, CaptureError> {
        let step = step.max(1);
        if self.reached.steps >= step {
            self.reached = Snapshot::default();
        }
        // A distant step is reached in several recordings, to limit the length of each.
        while self.reached.steps + MAX_STEPS < step {
            self.reached = self.run(&self.reached, self.reached.steps + MAX_STEPS, lr)?.1;
        }
        let (mut traces, reached) = self.run(&self.reached, step, lr)?;
        self.reached = reached;
        traces.pop().ok_or_else(|| CaptureError::Inconsistent("no update was recorded".into()))
    }

    fn numbers(&mut self, steps: usize, lr: f64) -> Result<Vec<Number>, CaptureError> {
        let steps = steps.max(1);
        if self.reached.steps != steps {
            self.step(steps + 1, lr)?;
        }
        Ok(self.reached.numbers.clone())
    }
}

/// The tensors of an optimizer state, by name. [`Session::label`] must have been called.
pub(super) fn names<S: RecordState>(state: &Option<S>) -> Vec<(String, u64)> {
    let mut labels = StateSink::default();
    if let Some(state) = state {
        state.state_flatten("", &mut labels);
    }
    let read = |(name, data)| (name, session::read_label(&data).expect("every recorded tensor is labeled"));
    labels.tensors.into_iter().map(read).collect()
}

/// The gradients that a backward pass returns.
pub(super) type Gradients = <super::kind::Tracked as burn::backend::AutodiffBackend>::Gradients;
