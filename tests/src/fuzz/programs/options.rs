//! Random options of a step, of the search and of lowering, and a random optimizer.

use super::dice::Dice;
use super::modules::Modules;
use serde::{Deserialize, Serialize};
use tpc_command::subject::{Optimizer, OptimizerName};
use tpc_ir::Mesh;
use tpc_passes::egraph::SearchOptions;
use tpc_passes::egraph::rules::RuleId;
use tpc_passes::lower::LowerOptions;
use tpc_passes::options::{Precision, Reduction, StepOptions};
use tpc_passes::planner::PlacementSource;
use tpc_passes::targets::{Link, Target};

/// The optimizer of a training step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Descent {
    /// Gradient descent.
    Sgd,
    /// SGD with momentum.
    Momentum,
    /// SGD with Nesterov momentum.
    Nesterov,
    /// Adam with weight decay added to gradients.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
}

impl Descent {
    /// Draws an optimizer.
    pub fn draw(dice: &mut Dice) -> Self {
        dice.pick(&[Descent::Sgd, Descent::Sgd, Descent::Momentum, Descent::Nesterov, Descent::Adam, Descent::Adamw])
    }

    /// The optimizer. Adam's epsilon is large, because with a small one a gradient that is nearly zero, whose sign
    /// depends on rounding, would move its parameter as far as any other gradient does.
    pub fn optimizer(self) -> Optimizer {
        let adam = matches!(self, Descent::Adam | Descent::Adamw);
        Optimizer {
            optimizer: match self {
                Descent::Adam => OptimizerName::Adam,
                Descent::Adamw => OptimizerName::Adamw,
                _ => OptimizerName::Sgd,
            },
            eps: 1e-2,
            weight_decay: adam.then_some(0.1),
            momentum: matches!(self, Descent::Momentum | Descent::Nesterov).then_some(0.5),
            nesterov: self == Descent::Nesterov,
            ..Optimizer::compared()
        }
    }

    /// The learning rate.
    pub fn rate(self) -> f64 {
        match self {
            Descent::Adam | Descent::Adamw => 0.0625,
            _ => 0.5,
        }
    }
}

/// Element types of the computation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Types {
    /// The captured types.
    F32,
    /// bf16, gradients reduced in bf16.
    Bf16,
    /// bf16, gradients reduced in f32.
    Bf16ReducedInF32,
}

/// The options that change what a step computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Meaning {
    /// The gradient norm to clip to.
    pub clip: Option<f64>,
    /// Patterns of the parameters that are not trained.
    pub freeze: Vec<String>,
    /// The element types.
    pub types: Types,
}

impl Meaning {
    /// Draws them.
    pub fn draw(dice: &mut Dice, modules: &Modules, training: bool) -> Self {
        let types = dice.pick(&[Types::F32, Types::F32, Types::F32, Types::F32, Types::F32, Types::Bf16]);
        let types = if types == Types::Bf16 && dice.percent(50) { Types::Bf16ReducedInF32 } else { types };
        let mut meaning = Meaning { clip: None, freeze: Vec::new(), types };
        if training {
            meaning.clip = dice.percent(20).then(|| dice.pick(&[0.01, 0.5, 100.0]));
            if dice.percent(25) {
                meaning.freeze = freeze(dice, modules);
            }
        }
        meaning
    }

    /// Simpler options.
    pub fn simpler(&self) -> Vec<Meaning> {
        let plain = Meaning { clip: None, freeze: Vec::new(), types: Types::F32 };
        let mut all = vec![
            Meaning { clip: None, ..self.clone() },
            Meaning { freeze: Vec::new(), ..self.clone() },
            Meaning { types: Types::F32, ..self.clone() },
        ];
        for at in 0..self.freeze.len() {
            let mut fewer = self.clone();
            fewer.freeze.remove(at);
            all.push(fewer);
        }
        all.push(plain);
        all.retain(|m| m != self);
        all
    }
}

fn freeze(dice: &mut Dice, modules: &Modules) -> Vec<String> {
    let any = |dice: &mut Dice| match dice.below(3) {
        0 => dice.pick(&modules.parameters),
        1 => dice.pick(&modules.leaves).0,
        _ => {
            let named: Vec<&String> = modules.containers.iter().filter(|c| c.contains('.')).collect();
            if named.is_empty() { dice.pick(&modules.leaves).0 } else { dice.pick(&named).clone() }
        }
    };
    if dice.percent(30) {
        return vec!["*".into(), format!("!{}", any(dice))];
    }
    (0..dice.between(1, 2)).map(|_| any(dice)).collect()
}

/// The options that must not change what a step computes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Ways {
    /// Whether gradients are outputs.
    pub gradients: bool,
    /// The number of micro-batches.
    pub micro_batches: usize,
    /// The rules that are switched off.
    pub disabled: Vec<u32>,
    /// Whether repeated blocks are searched once.
    pub blocks: bool,
    /// Whether the planner chooses placements; cases that were found before it existed do not say.
    #[serde(default)]
    pub planned: bool,
    /// The size of a bucket in bytes.
    pub bucket_bytes: usize,
    /// Whether collectives overlap with other work.
    pub overlap: bool,
    /// How many kernels ahead the scheduler looks.
    pub window: usize,
    /// Whether attention becomes one kernel.
    pub attention: bool,
    /// Whether values are recomputed.
    pub recompute: bool,
    /// Whether elementwise work becomes an epilogue of a product.
    pub epilogues: bool,
    /// The number of collectives in flight at once.
    pub in_flight: usize,
    /// How much the arena may grow for overlap.
    pub memory_growth: f64,
}

/// The rules that are off by default.
const OFF: [u32; 2] = [1, 25];

impl Ways {
    /// The defaults of the command.
    pub fn usual(gradients: bool) -> Self {
        let lower = LowerOptions::default();
        Ways {
            gradients,
            micro_batches: 1,
            disabled: OFF.to_vec(),
            blocks: true,
            planned: false,
            bucket_bytes: lower.bucket_bytes,
            overlap: lower.overlap,
            window: lower.window,
            attention: lower.attention,
            recompute: lower.recompute,
            epilogues: lower.epilogues,
            in_flight: lower.in_flight,
            memory_growth: lower.memory_growth,
        }
    }

    /// The plainest options: every operation and collective on its own.
    pub fn plain() -> Self {
        Ways {
            bucket_bytes: 0,
            overlap: false,
            attention: false,
            recompute: false,
            epilogues: false,
            ..Ways::usual(true)
        }
    }

    /// Draws the options; most of them keep their defaults.
    pub fn draw(dice: &mut Dice, training: bool, rows: usize) -> Self {
        let mut ways = Ways::usual(training && dice.percent(50));
        if training && rows > 1 && dice.percent(20) {
            ways.micro_batches = dice.between(2, rows);
        }
        // The search dominates the time of a case. Without rules it is short, and more cases reach the passes that
        // follow.
        if dice.percent(50) {
            let share = dice.pick(&[5, 30, 100, 100]);
            let numbers = RuleId::all().map(RuleId::number).filter(|n| !OFF.contains(n));
            ways.disabled.extend(numbers.filter(|_| dice.percent(share)));
        }
        if dice.percent(4) {
            ways.disabled.retain(|n| *n != 1);
        }
        if dice.percent(4) {
            ways.disabled.retain(|n| *n != 25);
        }
        ways.blocks = !dice.percent(10);
        ways.planned = dice.percent(10);
        if dice.percent(40) {
            ways.bucket_bytes = dice.pick(&[0, 64, 1024, 25 << 20]);
            ways.overlap = dice.percent(60);
            ways.window = dice.pick(&[0, 3, 32]);
            ways.attention = dice.percent(60);
            ways.recompute = dice.percent(60);
            ways.epilogues = dice.percent(60);
            ways.in_flight = dice.pick(&[1, 2, 32]);
            ways.memory_growth = dice.pick(&[0.0, 0.1, 10.0]);
        }
        ways
    }

    /// The options of a step.
    pub fn step(&self, meaning: &Meaning) -> StepOptions {
        let precision = |reduce| Some(Precision { reduce, ..Precision::default() });
        StepOptions {
            clip_norm: meaning.clip,
            micro_batches: self.micro_batches,
            freeze: meaning.freeze.clone(),
            precision: match meaning.types {
                Types::F32 => None,
                Types::Bf16 => precision(Reduction::Compute),
                Types::Bf16ReducedInF32 => precision(Reduction::F32),
            },
        }
    }

    /// The target: if rule 25 is on, a machine whose first axis is slower than the others.
    pub fn target(&self, mesh: &Mesh) -> Target {
        let mut target = Target::cpu().clone();
        let link = target.links.default;
        if let Some(axis) = mesh.axes().first().filter(|_| !self.disabled.contains(&25)) {
            target.links.axes.insert(axis.name.clone(), Link { bandwidth: link.bandwidth / 10.0, ..link });
        }
        target
    }

    /// The options of the search.
    pub fn search(&self) -> SearchOptions {
        SearchOptions {
            disabled: RuleId::all().filter(|rule| self.disabled.contains(&rule.number())).collect(),
            blocks: self.blocks,
            placements: if self.planned { PlacementSource::Planned } else { PlacementSource::Given },
            ..SearchOptions::default()
        }
    }

    /// The options of lowering.
    pub fn lower(&self) -> LowerOptions {
        LowerOptions {
            bucket_bytes: self.bucket_bytes,
            overlap: self.overlap,
            window: self.window,
            attention: self.attention,
            recompute: self.recompute,
            epilogues: self.epilogues,
            in_flight: self.in_flight,
            memory_growth: self.memory_growth,
            memory: None,
            split_buckets: true,
        }
    }

    /// Simpler options.
    pub fn simpler(&self) -> Vec<Ways> {
        let usual = Ways::usual(self.gradients);
        let mut all = vec![
            usual.clone(),
            Ways { micro_batches: self.micro_batches, ..usual.clone() },
            Ways { disabled: self.disabled.clone(), ..usual.clone() },
            Ways { micro_batches: 1, ..self.clone() },
            Ways { disabled: OFF.to_vec(), ..self.clone() },
            Ways { blocks: true, ..self.clone() },
            Ways { planned: false, ..self.clone() },
            Ways { bucket_bytes: usual.bucket_bytes, ..self.clone() },
            Ways { overlap: true, ..self.clone() },
            Ways { window: usual.window, ..self.clone() },
            Ways { attention: true, ..self.clone() },
            Ways { recompute: true, ..self.clone() },
            Ways { epilogues: true, ..self.clone() },
            Ways { in_flight: usual.in_flight, ..self.clone() },
            Ways { memory_growth: usual.memory_growth, ..self.clone() },
            Ways { gradients: false, ..self.clone() },
        ];
        for number in self.disabled.iter().filter(|n| !OFF.contains(n)) {
            let disabled = self.disabled.iter().copied().filter(|n| n != number).collect();
            all.push(Ways { disabled, ..self.clone() });
        }
        for number in OFF.iter().filter(|n| !self.disabled.contains(n)) {
            let disabled = self.disabled.iter().chain([number]).copied().collect();
            all.push(Ways { disabled, ..self.clone() });
        }
        all.retain(|w| w != self);
        all
    }
}
