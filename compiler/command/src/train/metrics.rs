//! The metrics of every step, as JSON lines and as TensorBoard's events.

use super::events::Events;
use crate::Outcome;
use crate::files::unwritable;
use serde_json::{Map, Value};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use tpc_passes::options::clip::GRAD_NORM;
use tpc_runtime::output::Output;

/// The metrics of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Row {
    /// The step, counted from 1.
    pub(super) step: u64,
    pub(super) loss: f64,
    /// Duration in milliseconds.
    pub(super) ms: f64,
    /// Tokens per second.
    pub(super) rate: f64,
    /// Learning rate.
    pub(super) lr: f64,
    /// Norm of all gradients before clipping, if gradients are clipped.
    pub(super) norm: Option<f64>,
    /// The epoch of its batch, counted from 0, in a run on texts.
    pub(super) epoch: Option<u64>,
    /// Loss on the evaluation data, if the step was followed by an evaluation.
    pub(super) evaluated: Option<f64>,
}

impl Row {
    /// Names and values, the same in both formats.
    fn values(&self) -> Vec<(&'static str, f64)> {
        let mut values = vec![("loss", self.loss), ("ms", self.ms), ("tokens_per_s", self.rate), ("lr", self.lr)];
        values.extend(self.norm.map(|norm| (GRAD_NORM, norm)));
        values.extend(self.epoch.map(|epoch| ("epoch", epoch as f64)));
        values.extend(self.evaluated.iter().flat_map(|loss| [("eval_loss", *loss), ("eval_perplexity", loss.exp())]));
        values
    }
}

/// Where metrics are written.
#[derive(Default)]
pub(super) struct Metrics {
    pub(super) lines: Option<Lines>,
    pub(super) events: Option<Events>,
}

impl Metrics {
    /// Writes the metrics of a step; they are in the files when this returns.
    pub(super) fn write(&mut self, row: &Row) -> Outcome {
        let values = row.values();
        if let Some(lines) = &mut self.lines {
            lines.write(row.step, &values)?;
        }
        match &mut self.events {
            Some(events) => events.write(row.step, &values),
            None => Ok(()),
        }
    }
}

/// A file with a line of JSON per step.
pub(super) struct Lines {
    path: PathBuf,
    file: File,
}

impl Lines {
    /// Creates a file, or continues one after the steps that are done.
    pub(super) fn new(output: Output, done: u64) -> Outcome<Self> {
        let earlier = match (done, output.replaced()) {
            (0, _) | (_, None) => String::new(),
            (_, Some(file)) => fs::read_to_string(file).unwrap_or_default(),
        };
        // Steps after the checkpoint run a second time, and an interrupted line does not count.
        let step = |line: &str| serde_json::from_str::<Value>(line).ok()?.get("step")?.as_u64();
        let kept = earlier.lines().filter(|line| step(line).is_some_and(|s| s <= done)).map(|line| format!("{line}\n"));
        let (path, kept) = (output.path().to_path_buf(), kept.collect::<String>());
        let begun = || {
            let mut writing = output.begin()?;
            writing.write_all(kept.as_bytes())?;
            writing.commit()
        };
        let file = begun().map_err(|e| unwritable(&path, e))?;
        Ok(Lines { path, file })
    }

    fn write(&mut self, step: u64, values: &[(&'static str, f64)]) -> Outcome {
        let mut line = Map::new();
        line.insert("step".into(), step.into());
        let number = |name: &str, value: f64| if name == "epoch" { Value::from(value as u64) } else { value.into() };
        line.extend(values.iter().map(|(name, value)| ((*name).to_string(), number(name, *value))));
        self.file.write_all(format!("{}\n", Value::Object(line)).as_bytes()).map_err(|e| unwritable(&self.path, e))
    }
}
