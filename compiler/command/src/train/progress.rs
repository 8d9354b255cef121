//! The progress of a run.

use super::metrics::Row;
use crate::launch::leads;
use crate::{Outcome, Terminal};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Shows progress: as a bar on a terminal, otherwise as some lines.
pub(super) struct Progress {
    bar: ProgressBar,
    begun: Instant,
    /// Steps that were done before this run.
    done: u64,
    steps: u64,
}

impl Progress {
    pub(super) fn new(done: u64, steps: u64) -> Self {
        let bar = bar(steps);
        bar.set_position(done);
        Progress { bar, begun: Instant::now(), done, steps }
    }

    /// Whether lines are printed instead of a bar.
    pub(super) fn is_lines(&self) -> bool {
        self.bar.is_hidden()
    }

    /// Reports a step.
    pub(super) fn tell(&self, row: &Row, terminal: &mut Terminal) -> Outcome {
        let Row { step, loss, rate, evaluated, .. } = *row;
        self.bar.set_message(format!("loss {loss:.4}  {rate:.0} tokens/s"));
        self.bar.inc(1);
        let evaluated = evaluated
            .map(|loss| format!("step {step}/{}  eval loss {loss:.6}  perplexity {:.4}\n", self.steps, loss.exp()));
        if !self.is_lines() {
            evaluated.iter().for_each(|line| self.bar.println(line.trim_end()));
            return Ok(());
        }
        if is_told(step, self.steps) {
            let left = match step < self.steps {
                true => format!("  {} left", shown(self.left(step))),
                false => String::new(),
            };
            terminal.print(format!("step {step}/{}  loss {loss:.6}  {rate:.0} tokens/s{left}\n", self.steps))?;
        }
        evaluated.map_or(Ok(()), |line| terminal.print(line))
    }

    /// The expected duration of the remaining steps, at the average speed so far.
    fn left(&self, step: u64) -> Duration {
        let each = self.begun.elapsed().as_secs_f64() / (step - self.done).max(1) as f64;
        Duration::try_from_secs_f64(each * (self.steps - step) as f64).unwrap_or(Duration::MAX)
    }

    /// The time since the start.
    pub(super) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(super) fn abandon(&self) {
        self.bar.abandon();
    }

    pub(super) fn finish(&self) {
        self.bar.finish();
    }
}

/// Formats a duration: `2h05m`, `3m20s`, `12s`.
fn shown(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds:02}s"),
        (hours, minutes, _) => format!("{hours}h{minutes:02}m"),
    }
}

/// Whether a step is reported: twenty steps of a long run are.
fn is_told(step: u64, steps: u64) -> bool {
    step == 1 || step == steps || step.is_multiple_of(steps.div_ceil(20))
}

/// A bar on standard error, hidden if that is not a terminal.
fn bar(steps: u64) -> ProgressBar {
    let target = match leads() && std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("{bar:30} {pos}/{len}  {msg}  {eta}");
    let bar = ProgressBar::with_draw_target(Some(steps), target);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
