//! What a checkpoint keeps of a run beside its tensors.

use crate::{Failure, Outcome};
use serde::{Deserialize, Serialize};
use tpc_data::Position;
use tpc_runtime::checkpoint::Checkpoint;

/// What a checkpoint keeps of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The place in the data, of a run on texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Position>,
    /// The best evaluation so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) best: Option<Best>,
    /// Steps in all, if the learning rate depends on them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) steps: Option<u64>,
}

/// An evaluation that was better than all before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Best {
    /// After which step.
    pub(super) step: u64,
    /// The loss.
    pub(super) loss: f64,
}

impl State {
    /// That of a checkpoint; the default for one that was written by something else.
    ///
    /// # Errors
    /// A text that is no state.
    pub(super) fn of(checkpoint: Option<&Checkpoint>) -> Outcome<Self> {
        let Some((checkpoint, text)) = checkpoint.and_then(|c| Some((c, c.run()?))) else {
            return Ok(State::default());
        };
        serde_json::from_str(text).map_err(|e| {
            Failure::at(
                checkpoint.dir(),
                format!("what it keeps of its run cannot be read: {e}; it was written by another version of tpc"),
            )
        })
    }

    /// The text that a checkpoint keeps.
    ///
    /// # Errors
    /// None: numbers and texts always have a JSON form.
    pub(super) fn text(&self) -> Outcome<String> {
        Ok(serde_json::to_string(self)?)
    }
}
