//! The inputs and results of a run of a generating program.

use crate::capture::{Captured, Spec, capture_inference_shapes, named};
use crate::error::Error;
use crate::models::{CachedInputs, ModelConfig, Use, build};
use burn::tensor::{DType, Device, Int};

/// The names of a run's inputs.
pub(super) const TOKENS: &str = "input_ids";
pub(super) const POSITIONS: &str = "position_ids";
pub(super) const SLOTS: &str = "slots";
pub(super) const FIRST: &str = "first_slots";
/// The name of its result: the logits of the last token of each sequence, `[b, vocab]`.
pub(super) const LOGITS: &str = "logits";

/// Sizes that both programs share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Room {
    /// Number of sequences.
    pub(super) batch: usize,
    /// Number of slots in the cache.
    pub(super) slots: usize,
}

/// Captures a run on this many tokens of each sequence, which sees the first `seen` slots.
pub(super) fn capture(config: &ModelConfig, room: Room, tokens: usize, seen: usize) -> Result<Captured, Error> {
    let Room { batch, slots } = room;
    config.check_memory([batch, tokens], Use::Plan)?;
    let integers = |name: &str, shape: [usize; 2]| named(name, Spec::<2, Int>::new(shape, DType::I64));
    let list = |name: &str, length: usize| named(name, Spec::<1, Int>::new([length], DType::I64));
    let caches: Vec<_> = config.caches().into_iter().map(|cache| cache.kept(batch, slots)).collect();
    let inputs = (
        integers(TOKENS, [batch, tokens]),
        integers(POSITIONS, [batch, tokens]),
        list(SLOTS, tokens),
        list(FIRST, batch),
        caches,
    );
    let make = |device: &Device| build(config, device);
    let captured = capture_inference_shapes(make, inputs, |model, (input_ids, position_ids, slots, first, caches)| {
        let inputs = CachedInputs { input_ids, position_ids, slots, first, seen };
        let (logits, caches) = model.next(inputs, caches);
        (named(LOGITS, logits), caches)
    })?;
    Ok(captured)
}
