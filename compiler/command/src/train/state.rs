//! The state of a run that a checkpoint keeps in addition to its tensors.

use crate::{Failure, Outcome};
use serde::{Deserialize, Serialize};
use tpc_data::Position;
use tpc_runtime::checkpoint::Checkpoint;

/// The state of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct State {
    /// The position in the data, in a run on texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) data: Option<Position>,
    /// The best evaluation so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) best: Option<Best>,
    /// Total number of steps, if the learning rate depends on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) steps: Option<u64>,
}

/// An evaluation that was better than all before it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Best {
    /// The step that it followed.
    pub(super) step: u64,
    /// The loss.
    pub(super) loss: f64,
}

impl State {
    /// The state in a checkpoint; the default if another program wrote the checkpoint.
    ///
    /// # Errors
    /// A text that is not a state.
    pub(super) fn of(checkpoint: Option<&Checkpoint>) -> Outcome<Self> {
        let Some((checkpoint, text)) = checkpoint.and_then(|c| Some((c, c.run()?))) else {
            return Ok(State::default());
        };
        serde_json::from_str(text).map_err(|e| {
            Failure::at(
                checkpoint.dir(),
                format!("the state of its run cannot be read: {e}; it was written by another version of tpc"),
            )
        })
    }

    /// The state as the text that a checkpoint keeps.
    ///
    /// # Errors
    /// None: numbers and texts always have a JSON form.
    pub(super) fn text(&self) -> Outcome<String> {
        Ok(serde_json::to_string(self)?)
    }
}
