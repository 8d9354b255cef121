//! The loss on held-out data.

use super::state::{Best, State};
use crate::data::feed;
use crate::launch::leads;
use crate::{Failure, Outcome};
use std::fs;
use std::path::{Path, PathBuf};
use tpc_compiler::program::TrainingSession;
use tpc_data::batch::IGNORE;
use tpc_data::{Batch, Recipe, Stream};
use tpc_runtime::checkpoint::SaveOptions;
use tpc_runtime::checkpoint::directory::saved;
use tpc_runtime::{RuntimeError, Session};

/// The directory of the best evaluation's checkpoint, in the directory of checkpoints.
pub(super) const BEST: &str = "best";

/// Writes the tensors of a batch that the program reads.
pub(super) fn feed_batch(session: &mut Session, batch: &Batch) -> Result<(), RuntimeError> {
    feed(session, "input_ids", &batch.input_ids)?;
    feed(session, "labels", &batch.labels)?;
    feed(session, "attention_mask", &batch.attention_mask)?;
    feed(session, "document_ids", &batch.document_ids)?;
    feed(session, "position_ids", &batch.position_ids)
}

/// The mean loss over all counted tokens of a recipe, or of its first `most` batches.
///
/// # Errors
/// Data that cannot be read, a rank that fails.
pub(super) fn evaluate(
    training: &mut TrainingSession,
    recipe: &Recipe,
    rows: usize,
    most: Option<u64>,
) -> Outcome<f64> {
    let mut stream = Stream::start(recipe.clone(), None, Some(1))?;
    let (mut sum, mut counted, mut batches) = (0.0, 0, 0);
    while most.is_none_or(|most| batches < most) {
        let Some(batch) = stream.next(rows)? else { break };
        sum += training.evaluate(|session| feed_batch(session, &batch))? * batch.counted as f64;
        counted += batch.counted;
        batches += 1;
    }
    debug_assert!(counted > 0, "a row has at least one label that is not {IGNORE}");
    Ok(sum / counted.max(1) as f64)
}

/// Removes checkpoints of the best evaluation from steps after `done`: these steps will run a second time.
///
/// # Errors
/// A directory that cannot be changed.
pub(super) fn forget_later(dir: &Path, done: u64) -> Outcome {
    let dir = dir.join(BEST);
    if !leads() || !dir.is_dir() {
        return Ok(());
    }
    for later in saved(&dir)?.into_iter().filter(|saved| saved.step > done) {
        fs::remove_dir_all(&later.path).map_err(|e| Failure::at(&later.path, e))?;
    }
    Ok(())
}

/// Reports an evaluation that is better than all before it, and keeps the current model. Returns the checkpoint.
///
/// # Errors
/// A disk that rejects it.
pub(super) fn keep_best(
    training: &TrainingSession,
    dir: Option<&Path>,
    state: &mut State,
    (step, loss): (u64, f64),
    options: &SaveOptions,
) -> Outcome<Option<PathBuf>> {
    if state.best.is_some_and(|best| best.loss <= loss) || loss.is_nan() {
        return Ok(None);
    }
    state.best = Some(Best { step, loss });
    let Some(dir) = dir else { return Ok(None) };
    let keep = std::num::NonZeroUsize::new(1);
    let options = SaveOptions { keep, run: Some(state.text()?), ..options.clone() };
    Ok(Some(training.save_checkpoint_with(&dir.join(BEST), &options)?))
}
