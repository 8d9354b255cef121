//! Records the updates of all parameters, for the first step and for a later one.

use std::collections::{HashMap, HashSet};

use burn::backend::AutodiffBackend;
use burn::grad_clipping::GradientClipping;
use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::optim::Optimizer;
use burn::tensor::{DType, Tensor};

use super::kind::{self, Tracked, Untracked};
use super::probe::{self, Gradients, Prober};
use super::scalars::{Probed, RATES};
use super::session::Session;

/// The tensors of an optimizer state, by name.
pub(super) type State = Vec<(String, u64)>;

/// The updates of one parameter.
pub(super) struct Update {
    pub(super) param: ParamId,
    pub(super) gradient: u64,
    /// Index of its probe.
    pub(super) class: usize,
    pub(super) first: Recorded,
    pub(super) steady: Recorded,
    /// The state that the steady update reads.
    pub(super) before: State,
    /// Ids of the updates that were recorded only to create that state.
    pub(super) scaffold: (u64, u64),
}

/// One recorded update.
pub(super) struct Recorded {
    pub(super) ids: (u64, u64),
    pub(super) parameter: u64,
    pub(super) state: State,
}

/// Records the update of every parameter that has a gradient, in burn's visiting order.
///
/// Both updates use the same forward and backward pass. The state that the later update reads comes from two updates of
/// placeholder parameters with placeholder gradients. Their operations are dropped, so that the state becomes an input.
/// Two updates are necessary because after the first one, several states may be the same tensor (AMSGrad), or a state
/// may be the gradient itself (SGD).
pub(super) fn record<M: Module, O: Optimizer>(
    model: &M,
    optimizer: &O,
    Choices { clipping, groups }: Choices<'_>,
    gradients: &mut Gradients,
    session: &Session,
    begin: u64,
) -> (Vec<Update>, Vec<Probed>) {
    let mut visitor = Optimize {
        optimizer,
        clipping,
        groups,
        path: Vec::new(),
        gradients,
        session,
        done: HashSet::new(),
        pending: Vec::new(),
        classes: HashMap::new(),
        probes: Vec::new(),
    };
    model.visit(&mut visitor);
    let Optimize { pending, probes, .. } = visitor;
    session.label(begin..session.mark());
    (pending.into_iter().map(|named| named()).collect(), probes)
}

/// The clipping of gradients, and the groups of parameters that share a learning rate.
pub(super) struct Choices<'a> {
    pub(super) clipping: Option<&'a GradientClipping>,
    pub(super) groups: Groups<'a>,
}

/// Maps a parameter to its group. The parameters of a group share a learning rate.
pub(crate) type Groups<'a> = &'a dyn Fn(ParamId, &str) -> usize;

/// An update whose states are not named yet, because names are read at the very end of the recording.
type Pending = Box<dyn FnOnce() -> Update>;

struct Optimize<'a, O> {
    optimizer: &'a O,
    clipping: Option<&'a GradientClipping>,
    groups: Groups<'a>,
    path: Vec<String>,
    gradients: &'a mut Gradients,
    session: &'a Session,
    done: HashSet<ParamId>,
    pending: Vec<Pending>,
    classes: HashMap<(usize, Vec<usize>, DType), usize>,
    probes: Vec<Probed>,
}

impl<O: Optimizer> Optimize<'_, O> {
    /// The class of a parameter. Updates may depend on shapes (Adafactor, Muon), so every shape has its own class.
    fn class<const D: usize>(&mut self, group: usize, shape: [usize; D], dtype: DType) -> usize {
        *self.classes.entry((group, shape.to_vec(), dtype)).or_insert_with(|| {
            let probe = Box::new(Prober::new(self.optimizer.clone(), shape, dtype));
            self.probes.push(Probed { group, probe });
            self.probes.len() - 1
        })
    }
}

impl<O: Optimizer> ModuleVisitor for Optimize<'_, O> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if !self.done.insert(param.id) {
            return;
        }
        let value = param.base();
        let Ok(tracked) = value.clone().try_into_primitive::<Tracked>() else {
            return;
        };
        let Some(gradient) = Tracked::grad_remove(&tracked, self.gradients) else {
            return;
        };
        let gradient = Tensor::<D>::from_primitive::<Untracked>(gradient);
        let value = kind::untrack(value);
        let (shape, dtype) = (value.dims(), value.dtype());
        let class = self.class((self.groups)(param.id, &self.path.join(".")), shape, dtype);
        let clipped = match self.clipping {
            Some(clipping) => clipping.clip_gradient(gradient.clone()),
            None => gradient.clone(),
        };

        let (optimizer, session, lr) = (self.optimizer, self.session, RATES[0]);
        let step = |value, gradient, state| {
            let begin = session.mark();
            let (value, state) = optimizer.step(lr, value, gradient, state);
            (value, state, (begin, session.mark()))
        };
        let fresh = || kind::placeholder::<D, burn::tensor::Float>(shape, dtype, &session.device);
        let first = step(value.clone(), clipped.clone(), None);
        let begin = session.mark();
        let state = step(fresh(), fresh(), None).1;
        let state = step(fresh(), fresh(), state).1;
        let scaffold = (begin, session.mark());
        let steady = step(value, clipped, state.clone());
        let param = param.id;
        self.pending.push(Box::new(move || {
            let recorded = |(value, state, ids): &(Tensor<D>, Option<O::State<D>>, (u64, u64))| Recorded {
                ids: *ids,
                parameter: kind::id(value),
                state: probe::names(state),
            };
            Update {
                param,
                gradient: kind::id(&gradient),
                class,
                first: recorded(&first),
                steady: recorded(&steady),
                before: probe::names(&state),
                scaffold,
            }
        }));
    }
}
