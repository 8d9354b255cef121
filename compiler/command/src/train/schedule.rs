//! The learning rate of every step, as a function of the step's number alone, so that a resumed run continues with the
//! same rates.

use crate::given::Given;
use crate::subject::not_negative;
use crate::{Failure, Outcome};
use clap::{Args, ValueEnum};

/// How the learning rate changes after the warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Shape {
    /// It stays constant
    Constant,
    /// It decays to --min-lr in a straight line
    Linear,
    /// It decays to --min-lr along half a cosine
    Cosine,
    /// It stays constant and decays to --min-lr along half a cosine at the end (warm-up, stable, decay)
    Wsd,
}

/// A number of steps, absolute or relative to the length of the run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Span {
    /// Steps.
    Steps(u64),
    /// Percent of all steps.
    Percent(f64),
}

/// Parses `100` or `3%`.
fn span(text: &str) -> Result<Span, String> {
    let wrong = || "expected a number of steps, or a percentage of all steps such as 3%".to_string();
    match text.strip_suffix('%') {
        None => text.parse().map(Span::Steps).map_err(|_| wrong()),
        Some(percent) => {
            let percent: f64 = percent.parse().map_err(|_| wrong())?;
            if (0.0..=100.0).contains(&percent) { Ok(Span::Percent(percent)) } else { Err(wrong()) }
        }
    }
}

impl Span {
    fn of(self, steps: u64) -> u64 {
        match self {
            Span::Steps(n) => n,
            Span::Percent(percent) => (steps as f64 * percent / 100.0).round() as u64,
        }
    }
}

/// The learning rate's arguments.
#[derive(Debug, Args)]
pub struct ScheduleArguments {
    /// Learning rate; with a schedule, its peak
    #[arg(long, value_parser = not_negative, default_value = "1e-3")]
    pub lr: f32,
    /// How the learning rate changes after the warm-up
    #[arg(long, value_enum, default_value = "constant")]
    schedule: Shape,
    /// Steps in which the learning rate rises from 0 in a straight line: a number, or a percentage of all steps
    #[arg(long, value_name = "N|P%", value_parser = span, default_value = "0", hide_default_value = true)]
    warmup: Span,
    /// Learning rate at the end of the schedule
    #[arg(long, value_name = "LR", value_parser = not_negative, default_value = "0")]
    min_lr: f32,
    /// Steps in which the learning rate decays: a number, or a percentage of all steps [default: all after the warm-up;
    /// with wsd the last 10%]
    #[arg(long, value_name = "N|P%", value_parser = span)]
    decay_steps: Option<Span>,
}

/// The learning rate of every step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    shape: Shape,
    peak: f64,
    least: f64,
    warmup: u64,
    /// The step where the decay begins, and its number of steps.
    decay: (u64, u64),
}

impl ScheduleArguments {
    /// The schedule of a run with this many steps.
    ///
    /// # Errors
    /// Options that have no effect, or contradict each other.
    pub fn of(&self, steps: u64, given: &Given) -> Outcome<Schedule> {
        if self.schedule == Shape::Constant {
            given.refuse(&["min_lr", "decay_steps"], "with --schedule constant, whose rate does not decay")?;
        }
        if self.min_lr > self.lr {
            return Err(Failure::new(format!("--min-lr {} is above --lr {}", self.min_lr, self.lr)));
        }
        let warmup = self.warmup.of(steps);
        if warmup > steps {
            return Err(Failure::new(format!("--warmup {warmup} is longer than the run of {steps} steps")));
        }
        let rest = steps - warmup;
        let decay = match (self.schedule, self.decay_steps) {
            (_, Some(span)) => span.of(steps),
            (Shape::Wsd, None) => Span::Percent(10.0).of(steps).max(1).min(rest),
            (_, None) => rest,
        };
        if decay > rest {
            return Err(Failure::new(format!(
                "--decay-steps {decay} and --warmup {warmup} together exceed the {steps} steps of the run"
            )));
        }
        let begin = if self.schedule == Shape::Wsd { steps - decay } else { warmup };
        let (peak, least) = (f64::from(self.lr), f64::from(self.min_lr));
        Ok(Schedule { shape: self.schedule, peak, least, warmup, decay: (begin, decay) })
    }
}

impl Schedule {
    /// The rate of a step, counted from 0. As in PyTorch's schedulers, the first step of a warm-up has the rate 0.
    pub fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let (begin, steps) = self.decay;
        let done = (step.saturating_sub(begin) as f64 / steps.max(1) as f64).min(1.0);
        let left = match self.shape {
            Shape::Constant => 1.0,
            Shape::Linear => 1.0 - done,
            Shape::Cosine | Shape::Wsd => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
        };
        self.least + (self.peak - self.least) * left
    }

    /// Whether the rate depends on the total number of steps.
    pub fn has_end(&self) -> bool {
        self.shape != Shape::Constant
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Compares with the schedules of transformers (`get_linear_schedule_with_warmup` and related functions), from
    /// `tests/reference/schedules.py`.
    #[test]
    fn rates_are_those_of_transformers() {
        let stored: Value = serde_json::from_str(include_str!("../../tests/data/schedules.json")).unwrap();
        let mut compared = 0;
        for case in stored.as_array().unwrap() {
            let number = |key: &str| case[key].as_f64().unwrap();
            let shape = Shape::from_str(case["schedule"].as_str().unwrap(), false).unwrap();
            let arguments = ScheduleArguments {
                lr: number("lr") as f32,
                schedule: shape,
                warmup: Span::Steps(number("warmup") as u64),
                min_lr: number("min_lr") as f32,
                decay_steps: case["decay"].as_u64().map(Span::Steps),
            };
            let schedule = arguments.of(number("steps") as u64, &Given::default()).unwrap();
            // A run has no step after its end, where transformers' cosine rises again.
            let of_run = number("steps") as usize + 1;
            for (step, rate) in case["rates"].as_array().unwrap().iter().take(of_run).enumerate() {
                let (found, rate) = (schedule.rate(step as u64), rate.as_f64().unwrap());
                assert!((found - rate).abs() <= 1e-9, "{case}: step {step}: {found}, expected {rate}");
                compared += 1;
            }
        }
        assert!(compared > 500, "{compared}");
    }

    #[test]
    fn percentages_are_of_all_steps() {
        assert_eq!((span("3%"), span("7")), (Ok(Span::Percent(3.0)), Ok(Span::Steps(7))));
        assert_eq!(Span::Percent(2.5).of(300), 8);
        for wrong in ["x", "3 %%", "-1", "101%", "NaN%"] {
            assert!(span(wrong).is_err(), "{wrong}");
        }
    }
}
