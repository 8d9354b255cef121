//! Language models from directories: capturing from shapes, compiling under the names in their files, loading and
//! saving.

mod error;

use crate::capture::{
    Captured, Init, Named, Spec, TrainingCapture, TrainingOptions, capture_inference_shapes, capture_training_shapes,
    named,
};
use crate::data;
use crate::error::Error;
use crate::models::{
    self, Documents, Model, ModelConfig, Saving, Targets, TokenInputs, Use, WeightEntry, WeightMap, Weights, build,
    read_box, read_strips, save_strips, tied_head, transposed, weight_map,
};
use crate::program::EVALUATION;
use burn::optim::Optimizer;
use burn::tensor::{DType, Distribution as BurnDistribution, Int, Tensor, TensorData};
use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::ops::Range;
use std::path::Path;
use tpc_ir::op::Distribution;
use tpc_ir::{InputKind, ModulePath, Scalar, random};
use tpc_runtime::{Runs, RuntimeError, Session, element};

pub use error::{InitError, LoadError};

/// The shape and contents of a batch of token sequences.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenBatch {
    /// Number of sequences.
    pub batch: usize,
    /// Number of tokens in each sequence.
    pub seq: usize,
    /// Whether there is an `attention_mask`.
    pub attention_mask: bool,
    /// Whether there are `token_type_ids`.
    pub token_type_ids: bool,
    /// Whether rows hold several documents that do not see each other; the batch then has `document_ids` and
    /// `position_ids`.
    pub documents: bool,
}

impl TokenBatch {
    /// A batch of sequences without padding or token types.
    pub fn new(batch: usize, seq: usize) -> Self {
        TokenBatch { batch, seq, attention_mask: false, token_type_ids: false, documents: false }
    }

    fn document_specs(&self) -> Option<DocumentSpecs> {
        self.documents.then(|| (named("document_ids", self.spec()), named("position_ids", self.spec())))
    }

    fn spec(&self) -> Spec<2, Int> {
        Spec::new([self.batch, self.seq], DType::I64)
    }
}

/// Captures a language model's training step: loss, and the logits as an output.
///
/// # Errors
/// An operation that cannot be recorded, or a program that exceeds the memory.
pub fn capture_step<O: Optimizer>(
    config: &ModelConfig,
    tokens: TokenBatch,
    optimizer: &O,
) -> Result<TrainingCapture, Error> {
    config.check_loss()?;
    let (classes, values) = labels(config, tokens);
    let batch = (
        named("input_ids", tokens.spec()),
        classes,
        values,
        tokens.attention_mask.then(|| named("attention_mask", tokens.spec())),
        tokens.token_type_ids.then(|| named("token_type_ids", tokens.spec())),
        tokens.document_specs(),
    );
    config.check_memory([tokens.batch, tokens.seq], Use::Plan)?;
    let build = |device: &burn::tensor::Device| build(config, device);
    let options = TrainingOptions::default();
    let mut step = capture_training_shapes(
        build,
        optimizer,
        batch,
        &options,
        |model, (input_ids, classes, values, attention_mask, token_type_ids, documents)| {
            let output =
                model.forward(TokenInputs { input_ids, attention_mask, token_type_ids, documents: apart(documents) });
            // There is exactly one kind of labels, because the loss was checked.
            match targets(classes, values) {
                Some(labels) => model.loss(output, labels),
                None => output.mean(),
            }
        },
    )?;
    for captured in [&mut step.first, &mut step.steady] {
        captured.aliases.extend(head_alias(config));
    }
    Ok(step)
}

/// The documents of a batch: their numbers, and positions within them.
type DocumentSpecs = (Named<Spec<2, Int>>, Named<Spec<2, Int>>);

fn apart(documents: Option<(Tensor<2, Int>, Tensor<2, Int>)>) -> Option<Documents> {
    documents.map(|(numbers, positions)| Documents { numbers, positions })
}

/// The labels of a batch: token numbers or label numbers, or values.
type LabelSpecs = (Option<Named<Spec<2, Int>>>, Option<Named<Spec<2>>>);

fn labels(config: &ModelConfig, tokens: TokenBatch) -> LabelSpecs {
    let head = config.head();
    let shape = head.labels_shape([tokens.batch, tokens.seq]);
    match head.takes_values() {
        false => (Some(named("labels", Spec::new(shape, DType::I64))), None),
        true => (None, Some(named("labels", Spec::new(shape, DType::F32)))),
    }
}

fn targets(classes: Option<Tensor<2, Int>>, values: Option<Tensor<2>>) -> Option<Targets> {
    classes.map(Targets::from).or(values.map(Targets::from))
}

/// A tied head has no module in the model, but plans and options may still name it.
fn head_alias(config: &ModelConfig) -> Option<(ModulePath, ModulePath)> {
    tied_head(config).map(|(head, table)| (head.into(), table.into()))
}

/// Captures a model's forward pass: its output under the name of [`Head::output`](crate::models::Head::output), and the
/// loss if there are labels.
///
/// # Errors
/// The errors of [`capture_step`].
pub fn capture_forward(config: &ModelConfig, tokens: TokenBatch, with_labels: bool) -> Result<Captured, Error> {
    if with_labels {
        config.check_loss()?;
    }
    let (classes, values) = labels(config, tokens);
    let batch = (
        named("input_ids", tokens.spec()),
        classes.filter(|_| with_labels),
        values.filter(|_| with_labels),
        tokens.attention_mask.then(|| named("attention_mask", tokens.spec())),
        tokens.token_type_ids.then(|| named("token_type_ids", tokens.spec())),
        tokens.document_specs(),
    );
    config.check_memory([tokens.batch, tokens.seq], Use::Plan)?;
    let build = |device: &burn::tensor::Device| build(config, device);
    let forward = |model: &Model, (input_ids, classes, values, attention_mask, token_type_ids, documents)| {
        let output =
            model.forward(TokenInputs { input_ids, attention_mask, token_type_ids, documents: apart(documents) });
        let loss = targets(classes, values).map(|labels| named("loss", model.loss(output.clone(), labels)));
        (named(model.head().output(), output), loss)
    };
    let mut captured = capture_inference_shapes(build, batch, forward)?;
    captured.aliases.extend(head_alias(config));
    Ok(captured)
}

/// Captures only the loss of a language model on a batch, which a run computes on other data between its steps.
///
/// # Errors
/// The errors of [`capture_step`].
pub fn capture_evaluation(config: &ModelConfig, tokens: TokenBatch) -> Result<Captured, Error> {
    let batch = (
        named("input_ids", tokens.spec()),
        named("labels", tokens.spec()),
        tokens.attention_mask.then(|| named("attention_mask", tokens.spec())),
        tokens.token_type_ids.then(|| named("token_type_ids", tokens.spec())),
        tokens.document_specs(),
    );
    config.check_memory([tokens.batch, tokens.seq], Use::Plan)?;
    let build = |device: &burn::tensor::Device| build(config, device);
    let mut captured = capture_inference_shapes(
        build,
        batch,
        |model, (input_ids, labels, attention_mask, token_type_ids, documents)| {
            let logits =
                model.forward(TokenInputs { input_ids, attention_mask, token_type_ids, documents: apart(documents) });
            named(EVALUATION, model.loss(logits, labels))
        },
    )?;
    captured.aliases.extend(head_alias(config));
    Ok(captured)
}

/// Maps burn's module paths to the parameters' names in programs and plans: see [`WeightEntry::name`].
pub fn names(config: &ModelConfig) -> HashMap<String, String> {
    let map = weight_map(config);
    map.entries.iter().map(|e| (e.burn_path.clone(), e.name().to_string())).collect()
}

/// Loads every parameter of a session from weight files, on all ranks at once: each rank reads only its own box of each
/// tensor, in strips of [`crate::models::STRIP`] bytes, directly into its place.
///
/// # Errors
/// A tensor that is missing, truncated or has the wrong shape, unless it may be initialized ([`draw_missing`]).
pub fn load_weights(session: &mut Session, map: &WeightMap, weights: &Weights) -> Result<(), LoadError> {
    load(session, map, weights, Called::AsInFiles)
}

/// The naming scheme of a session's parameters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Called {
    /// By the names in the weight files, as in the command.
    AsInFiles,
    /// By the paths of burn's modules, as in a trainer.
    AsInModules,
}

impl Called {
    fn name(self, entry: &WeightEntry) -> &str {
        match self {
            Called::AsInFiles => entry.name(),
            Called::AsInModules => &entry.burn_path,
        }
    }
}

/// [`load_weights`] for a session with either naming scheme.
pub(crate) fn load(session: &mut Session, map: &WeightMap, weights: &Weights, called: Called) -> Result<(), LoadError> {
    let inputs = parameters(session);
    let position = |name: &str| inputs.iter().find(|(_, n)| n == name).map(|(input, _)| *input);
    let entries: Vec<(usize, &WeightEntry)> = map
        .entries
        .iter()
        .filter(|e| !e.is_drawn(weights))
        .filter_map(|e| Some((position(called.name(e))?, e)))
        .collect();
    session.fill_ranks(&|rank| {
        entries.iter().try_for_each(|(input, entry)| {
            rank.write(*input, |wanted, to| Ok::<_, LoadError>(read_box(entry, weights, wanted, to)?))
        })
    })
}

/// Positions and names of the parameters among a session's inputs.
fn parameters(session: &Session) -> Vec<(usize, String)> {
    let inputs = session.interface().inputs.iter().enumerate();
    inputs.filter(|(_, i)| i.kind == InputKind::Parameter).map(|(at, i)| (at, i.name.clone())).collect()
}

/// Number of elements that are drawn at once.
const DRAWN: usize = 1 << 12;

/// Draws initial values as the model's modules would, each element from its global index, so that they are the same on
/// every mesh. All ranks draw at once, and only the elements of their own boxes.
///
/// # Errors
/// Parameters that are not drawn element by element: [`initialize_with`] takes their values.
pub fn initialize(session: &mut Session, init: &HashMap<String, Init>, seed: u64) -> Result<(), InitError> {
    initialize_with(session, init, &HashMap::new(), seed)
}

/// Like [`initialize`], with given values for some parameters that are not drawn;
/// [`initial_values`](crate::capture::initial_values) computes them.
///
/// # Errors
/// Parameters that are neither drawn element by element nor given.
pub fn initialize_with(
    session: &mut Session,
    init: &HashMap<String, Init>,
    values: &HashMap<String, TensorData>,
    seed: u64,
) -> Result<(), InitError> {
    draw(session, init, values, seed, None, &|_| true)
}

/// [`initialize`] for a language model: the padding row of its embedding is 0, as in PyTorch.
///
/// # Errors
/// The errors of [`initialize`].
pub fn initialize_model(
    session: &mut Session,
    init: &HashMap<String, Init>,
    seed: u64,
    config: &ModelConfig,
) -> Result<(), InitError> {
    draw(session, init, &HashMap::new(), seed, config.padding_row(), &|_| true)
}

/// Draws the parameters that [`load_weights`] leaves alone because the files do not have them, for example those of a
/// head before training. They get the same numbers as from [`initialize`].
///
/// # Errors
/// The errors of [`initialize`].
pub fn draw_missing(
    session: &mut Session,
    init: &HashMap<String, Init>,
    seed: u64,
    map: &WeightMap,
    weights: &Weights,
) -> Result<(), InitError> {
    draw_missing_called(session, init, seed, map, weights, Called::AsInFiles)
}

/// [`draw_missing`] for a session with either naming scheme.
pub(crate) fn draw_missing_called(
    session: &mut Session,
    init: &HashMap<String, Init>,
    seed: u64,
    map: &WeightMap,
    weights: &Weights,
    called: Called,
) -> Result<(), InitError> {
    let missing = map.entries.iter().filter(|entry| entry.is_drawn(weights)).map(|entry| called.name(entry));
    let missing: BTreeSet<&str> = missing.collect();
    match missing.is_empty() {
        true => Ok(()),
        false => draw(session, init, &HashMap::new(), seed, None, &|name| missing.contains(name)),
    }
}

/// The initial elements of a parameter.
enum Elements {
    /// Each is drawn from a distribution.
    Drawn(Distribution),
    /// All are this number.
    Constant(f64),
}

/// A parameter whose elements are drawn one by one.
struct Draw {
    /// Its position among the inputs.
    input: usize,
    /// Its stream of random numbers.
    stream: u64,
    of: Elements,
    /// Elements that are always 0: a padding row.
    zeros: Range<usize>,
}

/// Writes the wanted parameters: the given values, and drawn values for the others; the padding elements are 0.
fn draw(
    session: &mut Session,
    init: &HashMap<String, Init>,
    given: &HashMap<String, TensorData>,
    seed: u64,
    zero: Option<(&str, Range<usize>)>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<(), InitError> {
    let missing = |name: &str| match init.get(name) {
        Some(Init::Computed(operations)) if wanted(name) && !given.contains_key(name) => Some(operations.clone()),
        _ => None,
    };
    let all = parameters(session);
    let missing: Vec<(String, Vec<String>)> =
        all.iter().filter_map(|(_, name)| Some((name.clone(), missing(name)?))).collect();
    if let Some((_, operations)) = missing.first() {
        let operations = operations.clone();
        return Err(InitError::Computed {
            parameters: missing.into_iter().map(|(name, _)| name).collect(),
            operations,
        });
    }
    for (input, name) in &all {
        if let Some(value) = given.get(name).filter(|_| wanted(name)) {
            let dtype = session.interface().inputs[*input].binding.view.dtype;
            session.write_bytes((InputKind::Parameter, name.as_str()), &data::to_bytes(value, dtype))?;
        }
    }
    let float = Scalar::float;
    let of = |name: &str| match init.get(name) {
        Some(Init::Constant(x)) => Elements::Constant(*x),
        Some(Init::Random(BurnDistribution::Uniform(a, b))) => {
            Elements::Drawn(Distribution::Uniform(float(*a), float(*b)))
        }
        Some(Init::Random(BurnDistribution::Normal(m, s))) => {
            Elements::Drawn(Distribution::Normal(float(*m), float(*s)))
        }
        Some(Init::Random(BurnDistribution::Default)) => Elements::Drawn(Distribution::Uniform(float(0.0), float(1.0))),
        _ => Elements::Drawn(Distribution::Normal(float(0.0), float(0.02))),
    };
    let zeros = |name: &str| match &zero {
        Some((padded, elements)) if *padded == name => elements.clone(),
        _ => 0..0,
    };
    // A parameter's stream is its position among all parameters.
    let drawn = all.into_iter().zip(0..).filter(|((_, name), _)| wanted(name) && !given.contains_key(name));
    let drawn = drawn.map(|((input, name), stream)| Draw { input, stream, of: of(&name), zeros: zeros(&name) });
    let draws: Vec<Draw> = drawn.collect();
    session.fill_ranks(&|rank| {
        for Draw { input, stream, of, zeros } in &draws {
            let draw = |i: usize| match of {
                _ if zeros.contains(&i) => 0.0,
                Elements::Drawn(from) => random::element(*from, random::philox(seed, *stream, i as u64)),
                Elements::Constant(x) => *x,
            };
            rank.write(*input, |wanted, to| {
                let size = wanted.dtype.bytes();
                for run in wanted.element_runs() {
                    for from in (0..run.len).step_by(DRAWN) {
                        let len = DRAWN.min(run.len - from);
                        let values: Vec<f64> = (0..len).map(|i| draw(run.first + from + i)).collect();
                        let at = (run.at + from) * size;
                        to[at..at + len * size].copy_from_slice(&element::encode(wanted.dtype, &values));
                    }
                }
                Ok::<_, RuntimeError>(())
            })?;
        }
        Ok(())
    })
}

/// Writes a model directory: `config.json` and whole tensors under the model's names, in several files if they are
/// large. Tensors are assembled from the ranks' boxes in strips of [`crate::models::STRIP`] bytes, so that no process
/// holds a whole tensor. Of several processes, the first writes.
///
/// # Errors
/// A directory that cannot be written, on every process; no partial files remain.
pub fn save(session: &Session, map: &WeightMap, config: &serde_json::Value, dir: &Path) -> Result<(), LoadError> {
    save_as(session, map, config, dir, Saving::default())
}

/// [`save`] with an element type and a maximum file size.
///
/// # Errors
/// The errors of [`save`].
pub fn save_as(
    session: &Session,
    map: &WeightMap,
    config: &serde_json::Value,
    dir: &Path,
    saving: Saving,
) -> Result<(), LoadError> {
    save_called(session, map, config, dir, saving, Called::AsInFiles)
}

/// [`save`] for a session with either naming scheme.
pub(crate) fn save_called(
    session: &Session,
    map: &WeightMap,
    config: &serde_json::Value,
    dir: &Path,
    saving: Saving,
    called: Called,
) -> Result<(), LoadError> {
    // Before anything is written: a session that cannot be read leaves nothing behind.
    for entry in &map.entries {
        session.read_range((InputKind::Parameter, called.name(entry)), 0, 0, &mut [])?;
    }
    let mut bytes = Vec::new();
    // Strips that this process has read: all processes read all strips, because each holds parts of them.
    let done = Cell::new(0);
    let mut strip = |entry: &WeightEntry, strip: Range<usize>, into: &mut [f32]| -> Result<(), LoadError> {
        done.set(done.get() + 1);
        Ok(read_strip(session, (entry, called), strip, &mut bytes, into)?)
    };
    if session.processes().count() == 1 {
        return save_strips(dir, config, map, saving, strip);
    }
    let written = match session.processes().process() {
        0 => save_strips(dir, config, map, saving, &mut strip),
        _ => read_strips(map, &mut strip),
    };
    if let Err(LoadError::Model(_)) = &written {
        // The disk is full, but the others still need this process's parts.
        let (before, mut seen) = (done.get(), 0);
        read_strips(map, |entry, range, into| {
            seen += 1;
            if seen > before { strip(entry, range, into) } else { Ok(()) }
        })?;
    }
    session.agree("save the model", written, |()| Vec::new()).map(drop)
}

/// Copies the tokenizer and other companion files of a model ([`models::copy_companions`]). Of several processes, the
/// first copies.
///
/// # Errors
/// A file that cannot be read or written, on every process.
pub fn copy_companions(session: &Session, from: &Path, to: &Path) -> Result<(), LoadError> {
    let copied = match session.processes().process() {
        0 => models::copy_companions(from, to).map_err(LoadError::from),
        _ => Ok(Vec::new()),
    };
    session.agree("copy the tokenizer", copied, |_| Vec::new()).map(drop)
}

/// Reads a strip of a parameter in the layout of the files into `bytes`.
fn read_strip(
    session: &Session,
    (entry, called): (&WeightEntry, Called),
    strip: Range<usize>,
    bytes: &mut Vec<u8>,
    into: &mut [f32],
) -> Result<(), RuntimeError> {
    let parameter = called.name(entry);
    let Some((_, dtype)) = types(session).find(|(name, _)| *name == parameter) else { return Ok(()) };
    bytes.resize(strip.len() * dtype.bytes(), 0);
    match (entry.transpose, &entry.shape[..]) {
        (true, &[rows, columns]) => {
            // Rows of the file are columns of the parameter.
            let taken = strip.start / rows.max(1)..strip.end / rows.max(1);
            let runs = Runs::new(&[rows, columns], &[0, taken.start], &[rows, taken.len()]);
            session.read_runs((InputKind::Parameter, parameter), &runs, bytes)?;
            into.copy_from_slice(&transposed(&floats(dtype, bytes), rows, taken.len()));
        }
        _ => {
            session.read_range((InputKind::Parameter, parameter), strip.start, strip.end, bytes)?;
            into.copy_from_slice(&floats(dtype, bytes));
        }
    }
    Ok(())
}

/// Facts about the weights of a session that explain why a loss is not finite.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Condition {
    /// The first tensor with a non-finite element, and that element.
    pub not_finite: Option<(String, f32)>,
    /// The tensor with the largest finite element, and that element's magnitude.
    pub largest: Option<(String, f32)>,
}

/// Inspects every parameter of a session, in the order of the model's modules. Every process must call this.
///
/// # Errors
/// A session that failed.
pub fn condition(session: &Session, map: &WeightMap) -> Result<Condition, LoadError> {
    let mut found = Condition::default();
    let mut bytes = Vec::new();
    read_strips(map, |entry, strip, values| {
        read_strip(session, (entry, Called::AsInFiles), strip, &mut bytes, values)?;
        for value in values.iter() {
            if !value.is_finite() {
                found.not_finite.get_or_insert_with(|| (entry.name().to_string(), *value));
            } else if found.largest.as_ref().is_none_or(|(_, largest)| value.abs() > *largest) {
                found.largest = Some((entry.name().to_string(), value.abs()));
            }
        }
        Ok::<_, LoadError>(())
    })?;
    Ok(found)
}

fn types(session: &Session) -> impl Iterator<Item = (&str, tpc_ir::DType)> {
    session.interface().inputs.iter().map(|i| (i.name.as_str(), i.binding.view.dtype))
}

fn floats(dtype: tpc_ir::DType, bytes: &[u8]) -> Vec<f32> {
    element::decode(dtype, bytes).into_iter().map(|v| v as f32).collect()
}
