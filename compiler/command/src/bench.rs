//! `tpc bench`: measures the models of the comparisons.

use crate::auto::Auto;
use crate::files::Files;
use crate::given::Given;
use crate::launch::Running as Arguments;
use crate::notes::note_idle_ranks;
use crate::options::StepArguments;
use crate::report::whole_bytes;
use crate::subject::{Optimizer, Shape, Step, Subject, initial};
use crate::trace::Traced;
use crate::{Failure, Outcome, Placement, Terminal};
use clap::{Args, ValueEnum};
use serde_json::{Value as Json, json};
use std::collections::HashMap;
use std::time::Instant;
use tpc_compiler::capture::Init;
use tpc_compiler::plans::Workload;
use tpc_compiler::pretrained::initialize;
use tpc_compiler::program::{
    InferenceProgram, TrainingProgram, TrainingSession, compile_inference_together, compile_training_together,
};
use tpc_ir::op::Distribution;
use tpc_ir::program::InputBinding;
use tpc_ir::random::{element, philox};
use tpc_ir::{DType, InputKind, Scalar};
use tpc_passes::simulate::simulate;
use tpc_passes::targets::Target;
use tpc_runtime::{RuntimeError, Session};

/// The program to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The forward pass
    Fwd,
    /// A training step: for mlp, forward and backward including the input's gradient; otherwise a full step with AdamW
    Train,
}

/// Measure a model of the comparisons.
#[derive(Debug, Args)]
pub struct Bench {
    /// Model: mlp, llama, or another preset of dump-ir
    #[arg(long)]
    preset: String,
    #[command(flatten)]
    placement: Placement,
    #[command(flatten)]
    auto: Auto,
    #[command(flatten)]
    pub(crate) running: Arguments,
    #[command(flatten)]
    step: StepArguments,
    /// The program to measure
    #[arg(long, value_enum, default_value = "train")]
    mode: Mode,
    /// Number of measured steps, after two warm-up steps
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    iters: u32,
    #[command(flatten)]
    shape: Shape,
    #[command(flatten)]
    traced: Traced,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

/// Steps before the measurement; the first of them runs a different program.
const WARM_UP: u32 = 2;

/// A program that can be stepped.
enum Running {
    Training(Box<TrainingSession>),
    Inference(Box<Session>),
}

impl Running {
    fn session(&mut self) -> &mut Session {
        match self {
            Running::Training(training) => training.session(),
            Running::Inference(session) => session,
        }
    }

    fn step(&mut self) -> Outcome {
        match self {
            Running::Training(training) => training.step(3e-4).map(drop)?,
            Running::Inference(session) => session.step().map(drop)?,
        }
        Ok(())
    }
}

impl Bench {
    pub(crate) fn execute(&self, given: &Given, terminal: &mut Terminal) -> Outcome {
        if self.mode == Mode::Fwd {
            given.refuse(&["reduce"], "with --mode fwd, which has no gradients")?;
        }
        self.traced.writes(self.placement.read(Files::default())).check()?;
        let trace = self.traced.output()?;
        let subject = Subject::preset(&self.preset, self.shape)?;
        let mut running = self.launch(&subject, given, terminal)?;
        let mut milliseconds = Vec::new();
        for i in 0..WARM_UP + self.iters {
            if i == WARM_UP {
                running.session().reset_counters();
            }
            let start = Instant::now();
            running.step()?;
            if i >= WARM_UP {
                milliseconds.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        let target = self.placement.target(self.running.backend())?;
        let row = self.row(&subject, milliseconds, running.session(), &target)?;
        self.traced.write(running.session(), trace, terminal)?;
        terminal.print(if self.json { format!("{row}\n") } else { table(&row) })
    }

    fn launch(&self, subject: &Subject, given: &Given, terminal: &mut Terminal) -> Outcome<Running> {
        self.auto.executed_ranks(&self.placement)?;
        // The gradients of the MLP's step are its results.
        let gradients = matches!(subject, Subject::Mlp(_));
        let mut options = self.placement.options(self.running.backend(), gradients, 0)?;
        options.step = self.step.options(self.mode == Mode::Train && !matches!(subject, Subject::Mlp(_)), given)?;
        let (rename, launch) = (subject.rename(), self.traced.options(self.running.options()?));
        let step = match self.mode {
            Mode::Fwd => Step::Backward(Box::new(subject.forward()?)),
            Mode::Train => subject.step(&Optimizer::compared())?,
        };
        let workload = || {
            Ok(match &step {
                Step::Training(capture) => Workload::of_training(capture, &rename)?,
                Step::Backward(captured) => Workload::of_inference(captured, &rename)?,
            })
        };
        let (mesh, plan) = self.auto.chosen(&self.placement, workload, &options, terminal)?;
        self.placement.note(&mesh, &plan, &options.target, terminal);
        self.running.note(mesh.ranks(), terminal);
        let (mut running, init) = match step {
            Step::Training(capture) => {
                let note = |program: &TrainingProgram| {
                    note_idle_ranks(&program.steady.placed, &plan, self.step.micro_batches, terminal);
                };
                let program =
                    compile_training_together((*capture, None), &mesh, &plan, &options, &rename, &launch, note)
                        .map_err(|e| self.placement.failure(e))?;
                let init = program.init.clone();
                (Running::Training(Box::new(program.launch(launch)?)), init)
            }
            Step::Backward(captured) => {
                let init = initial(&captured, &rename);
                let note = |program: &InferenceProgram| {
                    note_idle_ranks(&program.stages.placed, &plan, 1, terminal);
                };
                let program = compile_inference_together(&captured, &mesh, &plan, &options, &rename, &launch, note)
                    .map_err(|e| self.placement.failure(e))?;
                (Running::Inference(Box::new(program.launch(launch)?)), init)
            }
        };
        fill(running.session(), &init, subject)?;
        Ok(running)
    }

    fn row(&self, subject: &Subject, mut milliseconds: Vec<f64>, session: &Session, target: &Target) -> Outcome<Json> {
        milliseconds.sort_by(f64::total_cmp);
        let n = milliseconds.len();
        let median = (milliseconds[(n - 1) / 2] + milliseconds[n / 2]) / 2.0;
        let steps = f64::from(self.iters);
        let collectives = session.collectives(0).into_iter().map(|c| {
            json!({
                "kind": c.name, "axes": &*c.axes, "phase": c.phase.name(), "dtype": c.dtype.to_string(),
                "full_bytes": c.full_bytes, "ranks": c.group, "count": c.count / u64::from(self.iters),
                "wire_bytes": whole_bytes(c.wire_bytes / steps), "ms": round(c.seconds * 1e3 / steps),
            })
        });
        let [predicted, wire, peak] = largest_of_all(session, |rank| {
            let seconds = simulate(session.program(rank), target).seconds;
            [seconds * 1e3, session.wire_bytes(rank) / steps, session.allocated_bytes(rank) as f64]
        })?;
        Ok(json!({
            "bench": "tpc", "model": self.preset, "plan": self.placement.plan, "mesh": self.placement.mesh,
            "ranks": session.ranks(), "mode": if self.mode == Mode::Fwd { "fwd" } else { "train" },
            "iters": self.iters, "median_ms": round(median), "min_ms": round(milliseconds[0]),
            "tokens_per_s": round(subject.tokens() as f64 / median * 1e3),
            "target": target.name, "predicted_ms": round(predicted), "measured_over_predicted": round(median / predicted),
            "collectives": collectives.collect::<Vec<_>>(),
            "wire_bytes": whole_bytes(wire),
            "peak_bytes_per_rank": whole_bytes(peak),
        }))
    }
}

/// The largest of each of some numbers over the ranks of all processes.
fn largest_of_all<const N: usize>(session: &Session, of: impl Fn(usize) -> [f64; N]) -> Outcome<[f64; N]> {
    let largest = |all: &mut dyn Iterator<Item = [f64; N]>| {
        all.fold([0.0; N], |a: [f64; N], b| std::array::from_fn(|i| a[i].max(b[i])))
    };
    let mine = largest(&mut session.local_ranks().map(of));
    let to_bytes = |mine: &[f64; N]| mine.iter().flat_map(|x| x.to_le_bytes()).collect();
    let (_, all) = session.agree("bench", Ok::<_, RuntimeError>(mine), to_bytes)?;
    let read = |bytes: &Vec<u8>| {
        let mut numbers = bytes.chunks_exact(8).map(|x| f64::from_le_bytes(x.try_into().unwrap_or_default()));
        std::array::from_fn(|_| numbers.next().unwrap_or_default())
    };
    Ok(largest(&mut all.iter().map(read)))
}

/// Rounds milliseconds to microseconds.
fn round(x: f64) -> f64 {
    (x * 1e3).round() / 1e3
}

/// Formats the row as text.
fn table(row: &Json) -> String {
    let text = |key: &str| row[key].as_str().map_or_else(|| row[key].to_string(), str::to_string);
    let mut out = format!(
        "{} {} on {} rank(s), plan {}: median {} ms, min {} ms, {} tokens/s\npredicted on the target {}: {} ms; measured / predicted: {}\nper rank: {} bytes of memory, {} bytes sent per step\n",
        text("model"),
        text("mode"),
        text("ranks"),
        text("plan"),
        text("median_ms"),
        text("min_ms"),
        text("tokens_per_s"),
        text("target"),
        text("predicted_ms"),
        text("measured_over_predicted"),
        text("peak_bytes_per_rank"),
        text("wire_bytes"),
    );
    for c in row["collectives"].as_array().into_iter().flatten() {
        let (kind, axes, phase) = (&c["kind"], &c["axes"], &c["phase"]);
        let line = format!("{} x {kind} {axes} {phase} of {} bytes, {} ms\n", c["count"], c["full_bytes"], c["ms"]);
        out.push_str(&line.replace('"', ""));
    }
    out
}

/// Initializes the parameters and fills the other inputs with random values.
fn fill(session: &mut Session, init: &HashMap<String, Init>, subject: &Subject) -> Outcome {
    initialize(session, init, 0)?;
    let (vocab, labels) = match subject {
        Subject::Tokens(config, _) => {
            let vocab = config.vocab_size();
            (vocab, config.head().labels().map_or(vocab, |labels| labels.names.len()))
        }
        Subject::Mlp(_) => (1, 1),
    };
    let data = session.interface().inputs.iter().filter(|i| i.kind == InputKind::Data).cloned();
    for (stream, input) in data.collect::<Vec<_>>().into_iter().enumerate() {
        let values = random(&input, [vocab, labels], stream as u64);
        session.write_f64(&input, &values).map_err(Failure::new)?;
    }
    Ok(())
}

/// Random elements of an input: numbers around 0, tokens, labels, or ones for a mask.
fn random(input: &InputBinding, [vocab, labels]: [usize; 2], stream: u64) -> Vec<f64> {
    let count: usize = input.binding.global.iter().product();
    let normal = Distribution::Normal(Scalar::float(0.0), Scalar::float(1.0));
    let draw = |i: usize| {
        let words = philox(1, stream, i as u64);
        match (input.binding.view.dtype, input.name.as_str()) {
            (DType::F32, _) => element(normal, words),
            (_, "attention_mask") => 1.0,
            (_, "token_type_ids") => 0.0,
            (_, "labels") => f64::from(words[0] % labels as u32),
            _ => f64::from(words[0] % vocab as u32),
        }
    };
    (0..count).map(draw).collect()
}
