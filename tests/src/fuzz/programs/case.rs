//! A case: everything that a run depends on, as data that can be drawn, made simpler, printed and kept.

use super::batch::Batch;
use super::dice::Dice;
use super::model::Model;
use super::modules::Modules;
use super::options::{Descent, Meaning, Types, Ways};
use super::plan::{Axes, PlanChoice, mesh_text};
use serde::{Deserialize, Serialize};
use std::fmt;

/// What is computed: everything that determines the result. Plan, mesh and [`Ways`] must not change it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Subject {
    /// The model.
    pub model: Model,
    /// The batch.
    pub batch: Batch,
    /// The optimizer of a training step; without one, a forward pass.
    pub descent: Option<Descent>,
    /// Which steps of a training run are compared.
    #[serde(default)]
    pub steps: Steps,
    /// Options that change the result.
    pub meaning: Meaning,
    /// The seed of parameters and tokens.
    pub values: u64,
}

/// Steps of a training run. The first step creates the optimizer's state, so its program differs from that of all later steps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Steps {
    /// The first.
    First,
    /// A later step, which starts from a random optimizer state.
    Later,
    /// The first two.
    #[default]
    Both,
}

/// A subject and a way to compute it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Case {
    /// What is computed.
    pub subject: Subject,
    /// The plan.
    pub plan: PlanChoice,
    /// The axes of the mesh with their sizes.
    pub mesh: Axes,
    /// Options that must not change the result.
    pub ways: Ways,
    /// How the case reaches the compiler.
    #[serde(default)]
    pub through: Through,
}

/// How a case reaches the compiler: every case through the API, and some through a second route afterwards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Through {
    /// The API only.
    #[default]
    Api,
    /// Flags and files, in this process.
    Command,
    /// Flags and files, with the ranks as threads of one process.
    Process,
    /// Flags and files, with each rank as a process of `tpc launch`.
    Launch,
    /// Programs that are dumped as text, and executed from the text.
    Dumps,
    /// Flags and files, in this process: the first step runs on one rank, and the second resumes from its checkpoint.
    Resumed,
}

impl Through {
    fn draw(dice: &mut Dice) -> Self {
        match dice.below(100) {
            0..=5 => Through::Command,
            6 | 7 => Through::Process,
            8 => Through::Launch,
            9..=12 => Through::Dumps,
            13..=15 => Through::Resumed,
            _ => Through::Api,
        }
    }
}

/// Number of consecutive cases that share a subject, and therefore a reference.
pub const CASES_OF_A_SUBJECT: u64 = 12;

impl Subject {
    /// Draws the subject of the case with this number under this seed.
    pub fn draw(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new(seed, 1, number);
        let model = Model::draw(&mut dice);
        let training = dice.percent(70);
        let labels = training || dice.percent(60);
        let batch = Batch::draw(&mut dice, &model, labels);
        let descent = training.then(|| Descent::draw(&mut dice));
        let meaning = match model.config() {
            Ok(config) => Meaning::draw(&mut dice, &Modules::of(&config), training),
            Err(error) => panic!("a model that was drawn has a configuration: {error}"),
        };
        // Rounding to bf16 changes the parameters so much that the second steps of two runs are not comparable.
        let steps = match meaning.types {
            Types::F32 => dice.pick(&[Steps::First, Steps::Later, Steps::Both]),
            _ => dice.pick(&[Steps::First, Steps::Later]),
        };
        Subject { model, batch, descent, steps, meaning, values: dice.below(1 << 30) as u64 }
    }
}

impl Case {
    /// Draws the case with this number under this seed, given the subject of its group.
    pub fn draw(seed: u64, number: u64, subject: &Subject, modules: &Modules) -> Self {
        let mut dice = Dice::new(seed, 2, number);
        let (plan, mesh) = PlanChoice::draw(&mut dice, modules);
        let ways = Ways::draw(&mut dice, subject.descent.is_some(), subject.batch.rows);
        Case { subject: subject.clone(), plan, mesh, ways, through: Through::draw(&mut dice) }
    }

    /// The subject computed on one rank.
    pub fn alone(subject: &Subject) -> Self {
        let ways = Ways { gradients: subject.descent.is_some(), ..Ways::plain() };
        let plan = PlanChoice::BuiltIn("none".into());
        Case { subject: subject.clone(), plan, mesh: Vec::new(), ways, through: Through::Api }
    }

    /// The mesh as a command-line argument.
    pub fn mesh_text(&self) -> String {
        mesh_text(&self.mesh)
    }

    /// Simpler cases, the largest simplifications first.
    pub fn simpler(&self) -> Vec<Case> {
        let mut all: Vec<Case> = Vec::new();
        let mut push = |change: &dyn Fn(&mut Case)| {
            let mut case = self.clone();
            change(&mut case);
            let subject = &mut case.subject;
            subject.batch.settle(&subject.model);
            case.ways.micro_batches = case.ways.micro_batches.min(case.subject.batch.rows);
            case.ways.gradients &= case.subject.descent.is_some();
            if case != *self && !all.contains(&case) {
                all.push(case);
            }
        };
        push(&|c| c.through = Through::Api);
        for plan in self.plan.simpler() {
            push(&|c| {
                c.plan = plan.clone();
                // A mesh axis that nothing uses is an error.
                let PlanChoice::File(file) = &c.plan else { return };
                if file.data.is_none() {
                    c.mesh.retain(|(name, _)| name != "dp" && name != "rep");
                }
            });
        }
        if let PlanChoice::BuiltIn(name) = &self.plan {
            for simple in ["tp", "tp-sp", "ddp", "fsdp"].into_iter().filter(|s| s != name) {
                push(&|c| {
                    c.plan = PlanChoice::BuiltIn(simple.into());
                    c.mesh.retain(|(axis, _)| (axis == "tp") == simple.starts_with("tp") && axis != "rep");
                });
            }
        }
        for ways in self.ways.simpler() {
            push(&|c| c.ways = ways.clone());
        }
        for (at, (_, size)) in self.mesh.iter().enumerate() {
            for smaller in [2, 3, size / 2, size - 1].into_iter().filter(|n| *n > 0 && n < size) {
                push(&|c| c.mesh[at].1 = smaller);
            }
        }
        for model in self.subject.model.simpler() {
            push(&|c| c.subject.model = model.clone());
        }
        for batch in self.subject.batch.simpler() {
            push(&|c| c.subject.batch = batch.clone());
        }
        for meaning in self.subject.meaning.simpler() {
            push(&|c| c.subject.meaning = meaning.clone());
        }
        if self.subject.descent.is_some() {
            push(&|c| {
                c.subject.descent = None;
                (c.subject.meaning.clip, c.subject.meaning.freeze) = (None, Vec::new());
                (c.ways.micro_batches, c.ways.gradients) = (1, false);
            });
            push(&|c| c.subject.steps = Steps::First);
            push(&|c| c.subject.steps = Steps::Later);
            push(&|c| c.subject.descent = Some(Descent::Sgd));
        } else {
            push(&|c| c.subject.batch.labels = false);
        }
        all
    }
}

impl fmt::Display for Case {
    /// Prints configuration, plan, mesh and flags as a user would write them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Subject { model, batch, descent, steps, meaning, values } = &self.subject;
        writeln!(f, "config.json: {}", model.json())?;
        match &self.plan {
            PlanChoice::BuiltIn(name) => writeln!(f, "--plan {name} --mesh {}", self.mesh_text())?,
            PlanChoice::File(file) => writeln!(f, "plan.json: {}\n--mesh {}", file.text(), self.mesh_text())?,
        }
        writeln!(f, "batch: {batch:?}, values of seed {values}")?;
        writeln!(f, "step: {descent:?} {steps:?} {meaning:?}")?;
        if self.through != Through::Api {
            writeln!(f, "through: {:?}", self.through)?;
        }
        let usual = Ways::usual(self.ways.gradients);
        match self.ways == usual {
            true => write!(f, "options: as usual, gradients: {}", self.ways.gradients),
            false => write!(f, "options: {:?}", self.ways),
        }
    }
}
