//! Names are for people: the compiled program does not depend on the names of modules, parameters and inputs.

use burn::tensor::DType;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tpc::{InputKind, scope};
use tpc_compiler::capture::{
    Captured, InputKind as In, OutputKind as Out, Spec, TrainingCapture, capture_inference_shapes,
    capture_training_shapes, named,
};
use tpc_compiler::models::{Mlp, ModelConfig};
use tpc_compiler::pretrained::{TokenBatch, capture_step};
use tpc_compiler::program::{CompileOptions, Stages, compile_inference, compile_training};
use tpc_ir::program::{Action, RankProgram};
use tpc_ir::{Graph, InputId, ModulePath, Op, OutputKind, Segment, text};
use tpc_passes::options::{Precision, StepOptions};
use tpc_passes::styles::{ColwiseParallel, Plan, RowwiseParallel, SequenceParallel};
use tpc_runtime::{LaunchOptions, RuntimeError, Session};
use tpc_tests::golden::{bert, gpt2, llama};
use tpc_tests::training::{adamw, config, mesh, plan};

// ---------------------------------------------------------------------------------------------------------------------
// Other names

/// Names that once had a meaning, or that look like something else.
const ODD: [&str; 34] = [
    "micro.0",
    "micro",
    "micro.1.model",
    "Random",
    "IntRandom",
    "copy update",
    "copy output",
    "layers",
    "layers.0",
    "0",
    "1",
    "7",
    "007",
    "",
    ".",
    "..",
    "a.b",
    "\\",
    "\\e",
    "/",
    "a/moment_1",
    " ",
    "\n",
    "\u{a0}",
    "\"",
    "{0..3}",
    "*",
    "?",
    "[!0]",
    "; rule 7",
    "x is cut (plan tp)",
    "step.seed",
    "constant.0",
    "größe",
];

/// Random choices that follow from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// A renaming of every name in the module tree and of every name of data and results.
struct Names {
    dice: Dice,
    /// The new path of each module or parameter.
    paths: BTreeMap<ModulePath, ModulePath>,
    /// Names that siblings already have.
    taken: BTreeMap<ModulePath, BTreeSet<String>>,
    texts: BTreeMap<String, String>,
}

impl Names {
    fn new(seed: u64) -> Self {
        Names { dice: Dice(seed), paths: BTreeMap::new(), taken: BTreeMap::new(), texts: BTreeMap::new() }
    }

    /// An odd name that is not taken yet: one of the list, or the name of a parameter.
    fn odd(&mut self, taken: &BTreeSet<String>) -> String {
        let known: Vec<String> = self.paths.keys().chain(self.paths.values()).map(ToString::to_string).collect();
        let at = self.dice.below(ODD.len() + known.len());
        let mut name = ODD.get(at).map_or_else(|| known[at - ODD.len()].clone(), |odd| (*odd).to_string());
        while taken.contains(&name) {
            name.push_str(ODD[self.dice.below(ODD.len())]);
            name.push('2');
        }
        name
    }

    fn path(&mut self, path: &ModulePath) -> ModulePath {
        if let Some(known) = self.paths.get(path) {
            return known.clone();
        }
        let Some(last) = path.segments().last() else { return path.clone() };
        let holder = self.path(&path.holder());
        let renamed = match last {
            Segment::Index(i) => holder.with(Segment::Index(*i)),
            Segment::Name(_) => {
                let taken = self.taken.get(&path.holder()).cloned().unwrap_or_default();
                let name = self.odd(&taken);
                self.taken.entry(path.holder()).or_default().insert(name.clone());
                holder.named(&name)
            }
        };
        self.paths.insert(path.clone(), renamed.clone());
        renamed
    }

    /// A name for data or a result, possibly that of a parameter.
    fn text(&mut self, text: &str) -> String {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        let taken: BTreeSet<String> = self.texts.values().cloned().collect();
        let name = self.odd(&taken);
        self.texts.insert(text.into(), name.clone());
        name
    }

    fn capture(&mut self, captured: &mut Captured) {
        for input in &mut captured.inputs {
            match &mut input.kind {
                In::Parameter { path, .. } | In::State { parameter: path, .. } => *path = self.path(path),
                In::Data { name } => *name = self.text(name),
                In::StepScalar { .. } | In::Constant { .. } => {}
            }
        }
        for output in &mut captured.outputs {
            match &mut output.kind {
                Out::Parameter { path } | Out::Gradient { path } | Out::State { parameter: path, .. } => {
                    *path = self.path(path);
                }
                Out::Output { name } => *name = self.text(name),
                Out::Loss => {}
            }
        }
        for scope in &mut captured.scopes {
            scope.path = self.path(&scope.path);
        }
        for module in &mut captured.modules {
            module.path = self.path(&module.path);
            module.parameters = module.parameters.iter().map(|path| self.path(path)).collect();
        }
        for (alias, path) in &mut captured.aliases {
            (*alias, *path) = (self.path(alias), self.path(path));
        }
    }

    /// The pattern that matches this path and no other.
    fn pattern(&mut self, path: &str) -> String {
        self.path(&path.into()).to_string()
    }
}

/// A program with its original names, and reasons without names.
fn back(graph: &Graph, names: &Names) -> Graph {
    let paths: HashMap<&ModulePath, &ModulePath> = names.paths.iter().map(|(old, new)| (new, old)).collect();
    let texts: HashMap<&str, &str> = names.texts.iter().map(|(old, new)| (&**new, &**old)).collect();
    let path = |path: &ModulePath| paths.get(path).map_or_else(|| path.clone(), |old| (*old).clone());
    let text = |text: &str| texts.get(text).map_or_else(|| text.to_string(), |old| (*old).to_string());
    let id = |id: &InputId| match id {
        InputId::Data(name) => InputId::Data(text(name).into()),
        InputId::Scalar(_) | InputId::Seed(_) | InputId::Constant(_) => id.clone(),
        other => other.map_path(path),
    };
    let mut old = graph.clone();
    for node in graph.nodes() {
        let n = old.node_mut(node);
        n.origin.module = path(&n.origin.module);
        n.origin.reason = n.origin.reason.map_paths(|_| ModulePath::default());
        if let Op::Input { id: own, .. } = &mut n.op {
            *own = id(own);
        }
    }
    for region in &mut old.regions {
        region.path = path(&region.path);
    }
    for output in &mut old.outputs {
        output.kind = match &output.kind {
            OutputKind::Result(name) => OutputKind::Result(text(name)),
            OutputKind::Loss => OutputKind::Loss,
            OutputKind::Gradient(of) => OutputKind::Gradient(path(of)),
            OutputKind::Update(of) => OutputKind::Update(id(of)),
        };
    }
    old
}

/// A rank's program without any names.
fn bare(program: &RankProgram) -> RankProgram {
    let mut bare = program.clone();
    bare.buffers.iter_mut().for_each(|buffer| buffer.label = "".into());
    bare.inputs.iter_mut().for_each(|input| input.name.clear());
    bare.outputs.iter_mut().for_each(|output| output.kind = OutputKind::Loss);
    for step in &mut bare.steps {
        (step.label, step.module) = ("".into(), "".into());
        if let Action::Start(collective) = &mut step.action {
            collective.why = "".into();
        }
    }
    bare
}

/// Checks that both are the same program, and that the text of the one with odd names parses to it.
fn same(plain: &Stages, odd: &Stages, names: &Names, what: &str) {
    let unnamed = Names::new(0);
    for (stage, a, b) in [
        ("captured", &plain.captured, &odd.captured),
        ("logical", &plain.logical, &odd.logical),
        ("propagated", &plain.propagated, &odd.propagated),
        ("placed", &plain.placed, &odd.placed),
    ] {
        let (a, b_named) = (text::print(&back(a, &unnamed)), text::print(&back(b, names)));
        if let Some((x, y)) = a.lines().zip(b_named.lines()).find(|(x, y)| x != y) {
            panic!("{what}: {stage} differs\n{x}\n{y}");
        }
        assert_eq!(a.lines().count(), b_named.lines().count(), "{what}: {stage}");
        let read = tpc_ir::parse::parse(&text::print(b)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(text::print(&read), text::print(b), "{what}: {stage}");
        let folded = tpc_ir::parse::parse(&tpc_ir::fold::print(b)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(folded, read, "{what}: {stage}");
        let json = tpc_ir::json::parse(&tpc_ir::json::print(b)).unwrap_or_else(|e| panic!("{what}: {e}"));
        assert_eq!(json, *b, "{what}: {stage}");
    }
    let programs = |stages: &Stages| stages.ranks.iter().map(bare).collect::<Vec<_>>();
    assert!(programs(plain) == programs(odd), "{what}: the rank programs differ");
}

// ---------------------------------------------------------------------------------------------------------------------
// Models, plans, options

const MODELS: [&str; 5] = ["mlp", "llama", "gpt2", "bert", "deep"];

fn language(name: &str) -> ModelConfig {
    match name {
        "llama" => llama(2),
        "gpt2" => gpt2(),
        "bert" => bert(),
        // More layers than a search keeps of a block.
        _ => config(serde_json::json!({
            "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_attention_heads": 4,
            "num_key_value_heads": 2, "num_hidden_layers": 8, "vocab_size": 10, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 64, "hidden_act": "silu", "tie_word_embeddings": false, "rope_theta": 10000.0,
        })),
    }
}

fn captured(model: &str) -> TrainingCapture {
    if model != "mlp" {
        return capture_step(&language(model), TokenBatch::new(2, 6), &adamw()).unwrap();
    }
    let x = || Spec::<2>::new([4, 6], DType::F32);
    let loss = |m: &Mlp, (x, y)| scope("loss", (x, y), |(x, y)| m.loss(m.forward(x), y));
    let batch = (named("x", x()), named("target", x()));
    capture_training_shapes(|d| Mlp::new(6, 8, d), &adamw(), batch, &Default::default(), loss).unwrap()
}

/// Plans and meshes: built-in plans, and one with entries for single modules.
const PLANS: [(&str, &str); 8] = [
    ("tp", "tp=2"),
    ("tp-sp", "tp=2"),
    ("ddp", "dp=2"),
    ("fsdp", "dp=2"),
    ("2d", "dp=2,tp=2"),
    ("zero1", "dp=2"),
    ("hsdp", "rep=2,dp=2"),
    ("entries", "tp=2"),
];

/// The modules of a model that the plan with entries names.
fn entries(capture: &TrainingCapture) -> Vec<ModulePath> {
    let modules = &capture.first.modules;
    modules
        .iter()
        .filter(|m| m.container == "Linear" || m.container.ends_with("Norm"))
        .map(|m| m.path.clone())
        .collect()
}

fn planned(name: &str, entries: &[(ModulePath, bool)]) -> Plan {
    if name != "entries" {
        return plan(name);
    }
    let mut plan = Plan::new();
    for (i, (path, is_norm)) in entries.iter().enumerate() {
        let path = path.to_string();
        plan = match (is_norm, i % 2) {
            (true, _) => plan.with(path, SequenceParallel::default()),
            (false, 0) => plan.with(path, ColwiseParallel::default()),
            (false, _) => plan.with(path, RowwiseParallel::default()),
        };
    }
    plan
}

const OPTIONS: [&str; 5] = ["plain", "micro-batches", "bf16", "freeze", "all"];

fn options(name: &str, frozen: &str) -> CompileOptions {
    let mut options = CompileOptions { gradients: name == "plain", ..CompileOptions::for_cpu() };
    let all = name == "all";
    options.step = StepOptions {
        clip_norm: all.then_some(0.5),
        micro_batches: if all || name == "micro-batches" { 2 } else { 1 },
        freeze: if all || name == "freeze" { vec![frozen.into()] } else { Vec::new() },
        precision: (all || name == "bf16").then(Precision::default),
    };
    options
}

/// The module that is frozen: one in the middle.
fn frozen(capture: &TrainingCapture) -> ModulePath {
    let holders: Vec<ModulePath> =
        capture.first.modules.iter().filter(|m| !m.parameters.is_empty()).map(|m| m.path.clone()).collect();
    holders[holders.len() / 2].clone()
}

/// Compiles a model with its own names and with others, and compares the programs of both steps.
fn check(model: &str, (plan, on): (&str, &str), option: &str, seed: u64) {
    let what = format!("{model} under {plan} on {on}, {option}, seed {seed}");
    let compiled = |names: Option<&mut Names>| {
        let mut capture = captured(model);
        let (mut linears, mut frozen) = (entries(&capture), frozen(&capture));
        let norms: Vec<bool> = linears
            .iter()
            .map(|path| capture.first.modules.iter().any(|m| m.path == *path && m.container != "Linear"))
            .collect();
        if let Some(names) = names {
            names.capture(&mut capture.first);
            names.capture(&mut capture.steady);
            linears.iter_mut().for_each(|path| *path = names.path(path));
            frozen = names.pattern(&frozen.to_string()).as_str().into();
        }
        let entries: Vec<(ModulePath, bool)> = linears.into_iter().zip(norms).collect();
        let options = options(option, &frozen.to_string());
        compile_training(capture, &mesh(on), &planned(plan, &entries), &options, &|path| path.to_string())
    };
    let mut names = Names::new(seed);
    match (compiled(None), compiled(Some(&mut names))) {
        (Ok(plain), Ok(odd)) => {
            same(&plain.first, &odd.first, &names, &format!("{what}, first step"));
            same(&plain.steady, &odd.steady, &names, &format!("{what}, later steps"));
        }
        (Err(_), Err(_)) => {}
        (Err(e), Ok(_)) | (Ok(_), Err(e)) => panic!("{what}: only one compiles: {e}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_names_give_the_same_program(
        model in 0..MODELS.len(), plan in 0..PLANS.len(), option in 0..OPTIONS.len(), seed in any::<u64>()
    ) {
        check(MODELS[model], PLANS[plan], OPTIONS[option], seed);
    }
}

/// A top-level module may have an empty name, which is not the whole model.
#[test]
fn an_empty_name_is_not_the_whole_model() {
    for plan in PLANS {
        check("mlp", plan, "freeze", 8_361_707_421_913_266_166);
    }
}

/// Every plan and every option at least once.
#[test]
fn every_plan_and_option_under_other_names() {
    for (i, plan) in PLANS.into_iter().enumerate() {
        check(MODELS[i % MODELS.len()], plan, OPTIONS[i % OPTIONS.len()], 11 + i as u64);
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Single names

/// A tensor of the batch may have the name of a parameter and is still another input, from the capture to the session.
#[test]
fn data_may_be_called_like_a_parameter() {
    let run = |name: &str| {
        let x = named(name, Spec::<2>::new([4, 6], DType::F32));
        let captured = capture_inference_shapes(|d| Mlp::new(6, 8, d), x, |m, x| named("y", m.forward(x))).unwrap();
        let parameter = captured.inputs.iter().find_map(|input| match &input.kind {
            In::Parameter { path, .. } => Some(path.to_string()),
            _ => None,
        });
        let options = CompileOptions::for_cpu();
        let program = compile_inference(&captured, &mesh("tp=2"), &plan("tp"), &options, &|p| p.to_string()).unwrap();
        let mut session = Session::launch(program.stages.ranks, LaunchOptions::default()).unwrap();
        let inputs = session.program(0).inputs.clone();
        for input in &inputs {
            let count: usize = input.binding.global.iter().product();
            let scale = if input.kind == InputKind::Data { 0.25 } else { 0.5 };
            let values: Vec<f64> = (0..count).map(|i| scale * ((i % 7) as f64 - 3.0)).collect();
            session.write_f64(input, &values).unwrap();
        }
        session.step().unwrap();
        let y = session.read_f64(&OutputKind::Result("y".into())).unwrap();
        (parameter.unwrap(), y, session)
    };
    let (parameter, expected, _) = run("x");
    let (_, found, mut session) = run(&parameter);
    assert_eq!(found, expected);
    let ambiguous = session.write_f64(&parameter, &[0.0]).unwrap_err();
    assert!(matches!(ambiguous, RuntimeError::Ambiguous { .. }), "{ambiguous}");
    let says = format!(
        "the program has a parameter and a data named `{parameter}`: give the kind, too, as `(InputKind, name)`"
    );
    assert_eq!(ambiguous.to_string(), says);
    session.write_f64((InputKind::Data, parameter.as_str()), &[0.5; 24]).unwrap();
    assert_eq!(session.read_input_f64((InputKind::Data, parameter.as_str())).unwrap(), [0.5; 24]);
}

/// A name with dots or digits is one segment of a path.
#[test]
fn scopes_are_paths() {
    let x = named("x", Spec::<2>::new([4, 6], DType::F32));
    let forward = |m: &Mlp, x| scope(r"a\.b.3", x, |x| scope(r"\0", x, |x| named("y", m.forward(x))));
    let captured = capture_inference_shapes(|d| Mlp::new(6, 8, d), x, forward).unwrap();
    let root = ModulePath::default();
    let outer = root.named("a.b").with(Segment::Index(3));
    let paths: Vec<ModulePath> = captured.scopes.iter().map(|scope| scope.path.clone()).collect();
    assert_eq!(paths, [outer.clone(), outer.named("0")]);
}
