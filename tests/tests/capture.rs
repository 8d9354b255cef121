//! Captured programs that are replayed operation by operation compute what burn computes eagerly.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId, RunningState};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig, generate_autoregressive_mask};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, RmsNorm,
    RmsNormConfig, RotaryEncoding, RotaryEncodingConfig, SwiGlu, SwiGluConfig,
};
use burn::optim::decay::WeightDecayConfig;
use burn::optim::momentum::MomentumConfig;
use burn::optim::{AdamConfig, AdamWConfig, GradientsParams, ModuleOptimizer, Optimizer, SgdConfig};
use burn::tensor::{Bool, DType, Device, Distribution, Int, Tensor, TensorData, activation};
use burn_flex::Flex;
use burn_ir::{TensorIr, TensorStatus};
use burn_router::TensorInterpreter;
use tpc_compiler::capture::{
    CaptureError, Captured, Init, InputKind, OutputKind, Spec, TrainingCapture, TrainingOptions, capture_inference,
    capture_training, capture_training_shapes, capture_training_with, named,
};
use tpc_ir::ModulePath;

// ---------------------------------------------------------------------------------------------------------------------
// The oracle

type Values = HashMap<String, TensorData>;

fn input_key(kind: &InputKind) -> String {
    match kind {
        InputKind::Parameter { path, .. } => format!("parameter {path}"),
        InputKind::State { parameter, name } => format!("state {parameter} {name}"),
        InputKind::Data { name } => format!("data {name}"),
        InputKind::StepScalar { index } => format!("scalar {index}"),
        InputKind::Constant { .. } => "constant".into(),
    }
}

fn output_key(kind: &OutputKind) -> String {
    match kind {
        OutputKind::Parameter { path } => format!("parameter {path}"),
        OutputKind::State { parameter, name } => format!("state {parameter} {name}"),
        OutputKind::Output { name } => format!("output {name}"),
        OutputKind::Loss => "loss".into(),
        OutputKind::Gradient { path } => format!("gradient {path}"),
    }
}

/// Executes a captured graph with burn's own interpreter.
fn replay(captured: &Captured, values: &Values) -> Values {
    let mut interpreter = TensorInterpreter::<Flex>::new(Default::default());
    for input in &captured.inputs {
        let data = match &input.kind {
            InputKind::Constant { data } => data.clone(),
            kind => values.get(&input_key(kind)).unwrap_or_else(|| panic!("no {}", input_key(kind))).clone(),
        };
        assert_eq!(data.shape().to_vec(), input.shape, "{:?}", input.kind);
        interpreter.register_tensor_data_id(input.id, data);
    }
    let mut types: HashMap<u64, TensorIr> = HashMap::new();
    for op in &captured.graph.operations {
        types.extend(op.nodes().into_iter().map(|tensor| (tensor.id.value(), tensor.clone())));
        interpreter.register_op(op.clone());
    }
    let mut read = |id: u64| {
        let tensor = TensorIr { status: TensorStatus::ReadOnly, ..types[&id].clone() };
        burn::tensor::read_sync(interpreter.read_tensor_async(tensor)).expect("the oracle computes")
    };
    captured.outputs.iter().map(|output| (output_key(&output.kind), read(output.id.value()))).collect()
}

fn floats(data: &TensorData) -> Vec<f32> {
    data.clone().convert_dtype(DType::F32).try_into_vec().expect("a float tensor")
}

fn close(a: &TensorData, b: &TensorData, what: &str) {
    assert_eq!(a.shape(), b.shape(), "{what}");
    for (a, b) in floats(a).iter().zip(floats(b)) {
        assert!((a - b).abs() <= 1e-6 * (1.0 + b.abs()), "{what}: {a} and {b}");
    }
}

/// The parameters of a model, by path.
fn parameters<M: Module>(model: &M) -> HashMap<String, TensorData> {
    struct Read(Vec<String>, HashMap<ParamId, ()>, HashMap<String, TensorData>);
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.1.insert(param.id, ()).is_none() {
                self.2.insert(self.0.join("."), param.val().into_data());
            }
        }
    }
    let mut read = Read(Vec::new(), HashMap::new(), HashMap::new());
    model.visit(&mut read);
    read.2
}

const RATES: [f64; 4] = [1e-2, 5e-3, 0.0, 2e-3];

/// Compares four steps with four learning rates, captured and eager.
fn check<M: Module, O: Optimizer>(
    model: &M,
    optimizer: O,
    options: &TrainingOptions,
    mut step: TrainingCapture,
    batches: &[Vec<(&str, TensorData)>],
    eager_loss: impl Fn(&M, &[(&str, TensorData)], &Device) -> Tensor<1>,
) {
    let device = Device::flex().autodiff();
    let mut eager = model.clone().train();
    let mut module_optimizer = ModuleOptimizer::from(optimizer);
    if let Some(clipping) = &options.clipping {
        module_optimizer = module_optimizer.with_grad_clipping(clipping.init());
    }
    let mut state: Values =
        step.first.values.iter().map(|(path, data)| (format!("parameter {path}"), data.clone())).collect();
    for (index, (batch, lr)) in batches.iter().zip(RATES).enumerate() {
        let scalars = step.scalars.values(index + 1, lr).expect("the optimizer settles");
        let program = if index == 0 { &step.first } else { &step.steady };
        let mut values = state.clone();
        values.extend(batch.iter().map(|(name, data)| (format!("data {name}"), data.clone())));
        values.extend(
            scalars
                .iter()
                .enumerate()
                .map(|(index, value)| (format!("scalar {index}"), TensorData::from([*value as f32]))),
        );
        let results = replay(program, &values);

        let loss = eager_loss(&eager, batch, &device);
        close(&results["loss"], &loss.clone().into_data(), &format!("loss of step {}", index + 1));
        let gradients = GradientsParams::from_grads(loss.backward(), &eager);
        eager = module_optimizer.step(lr, eager, gradients);
        let expected = parameters(&eager);
        let updated: Vec<_> = results.iter().filter(|(key, _)| key.starts_with("parameter ")).collect();
        assert!(!updated.is_empty());
        for (key, value) in updated {
            close(value, &expected[&key["parameter ".len()..]], &format!("{key} after step {}", index + 1));
        }
        state.extend(results);
    }
}

fn random<const D: usize>(shape: [usize; D]) -> TensorData {
    Tensor::<D>::random(shape, Distribution::Normal(0.0, 1.0), &Device::flex()).into_data()
}

fn integers<const D: usize>(shape: [usize; D], below: i64) -> TensorData {
    Tensor::<D, Int>::random(shape, Distribution::Uniform(0.0, below as f64), &Device::flex()).into_data()
}

// ---------------------------------------------------------------------------------------------------------------------
// Models

#[derive(Module, Debug)]
struct Mlp {
    up: Linear,
    dropout: Dropout,
    down: Linear,
}

impl Mlp {
    fn new(device: &Device) -> Self {
        Self {
            up: LinearConfig::new(6, 16).init(device),
            dropout: DropoutConfig::new(0.0).init(),
            down: LinearConfig::new(16, 3).init(device),
        }
    }

    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let x = tpc::scope("up", x, |x| self.up.forward(x));
        let x = self.dropout.forward(activation::gelu(x));
        tpc::scope("down", x, |x| self.down.forward(x))
    }

    fn loss(&self, x: Tensor<2>, y: Tensor<2>) -> Tensor<1> {
        (self.forward(x) - y).square().mean()
    }
}

fn mlp_batches() -> Vec<Vec<(&'static str, TensorData)>> {
    (0..4).map(|_| vec![("input0", random([5, 6])), ("input1", random([5, 3]))]).collect()
}

fn mlp_batch() -> (Spec<2>, Spec<2>) {
    (Spec::new([5, 6], DType::F32), Spec::new([5, 3], DType::F32))
}

fn check_mlp<O: Optimizer>(optimizer: O, options: TrainingOptions) {
    let model = Mlp::new(&Device::flex());
    let step = capture_training_with(&model, &optimizer, mlp_batch(), &options, |m: &Mlp, (x, y)| m.loss(x, y));
    let eager = |m: &Mlp, batch: &[(&str, TensorData)], device: &Device| {
        m.loss(Tensor::from_data(batch[0].1.clone(), device), Tensor::from_data(batch[1].1.clone(), device))
    };
    check(&model, optimizer, &options, step.unwrap(), &mlp_batches(), eager);
}

#[derive(Module, Debug)]
struct Transformer {
    embedding: Embedding,
    blocks: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

#[derive(Module, Debug)]
struct Block {
    attention_norm: LayerNorm,
    attention: MultiHeadAttention,
    mlp_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn forward(&self, x: Tensor<3>, mask: Tensor<3, Bool>) -> Tensor<3> {
        let attended = tpc::scope("attention", (x.clone(), mask), |(x, mask)| {
            let input = MhaInput::self_attn(self.attention_norm.forward(x)).mask_attn(mask);
            self.attention.forward(input).context
        });
        let x = x + attended;
        let inner = tpc::scope("mlp", x.clone(), |x| {
            self.down.forward(activation::silu(self.up.forward(self.mlp_norm.forward(x))))
        });
        x + inner
    }
}

impl Transformer {
    fn new(device: &Device) -> Self {
        let block = || Block {
            attention_norm: LayerNormConfig::new(8).init(device),
            attention: MultiHeadAttentionConfig::new(8, 2).with_dropout(0.0).init(device),
            mlp_norm: LayerNormConfig::new(8).init(device),
            up: LinearConfig::new(8, 12).with_bias(false).init(device),
            down: LinearConfig::new(12, 8).init(device),
        };
        Self {
            embedding: EmbeddingConfig::new(11, 8).init(device),
            blocks: vec![block(), block()],
            norm: LayerNormConfig::new(8).init(device),
            head: LinearConfig::new(8, 11).with_bias(false).init(device),
        }
    }

    fn logits(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = tokens.dims();
        let mask = generate_autoregressive_mask(batch, length, &tokens.device());
        let mut x = self.embedding.forward(tokens);
        for (index, block) in self.blocks.iter().enumerate() {
            x = tpc::scope(&format!("blocks.{index}"), x, |x| block.forward(x, mask.clone()));
        }
        self.head.forward(self.norm.forward(x))
    }

    fn loss(&self, tokens: Tensor<2, Int>, targets: Tensor<2, Int>) -> (Tensor<1>, Tensor<3>) {
        let logits = self.logits(tokens);
        let loss = CrossEntropyLossConfig::new()
            .init(&targets.device())
            .forward(logits.clone().flatten::<2>(0, 1), targets.flatten::<1>(0, 1));
        (loss, logits)
    }
}

fn transformer_batch() -> (tpc_compiler::capture::Named<Spec<2, Int>>, tpc_compiler::capture::Named<Spec<2, Int>>) {
    (named("tokens", Spec::new([2, 5], DType::I64)), named("targets", Spec::new([2, 5], DType::I64)))
}

fn capture_transformer<O: Optimizer>(model: &Transformer, optimizer: &O) -> TrainingCapture {
    capture_training(model, optimizer, transformer_batch(), |model: &Transformer, (tokens, targets)| {
        let (loss, logits) = model.loss(tokens, targets);
        (loss, named("logits", logits))
    })
    .unwrap()
}

fn check_transformer<O: Optimizer>(optimizer: O) {
    let model = Transformer::new(&Device::flex());
    let step = capture_transformer(&model, &optimizer);
    let batch = |_| vec![("tokens", integers([2, 5], 11)), ("targets", integers([2, 5], 11))];
    let batches: Vec<_> = (0..4).map(batch).collect();
    check(&model, optimizer, &TrainingOptions::default(), step, &batches, |model, batch, device| {
        let tensor = |index: usize| Tensor::<2, Int>::from_data(batch[index].1.clone(), device);
        model.loss(tensor(0), tensor(1)).0
    });
}

// ---------------------------------------------------------------------------------------------------------------------
// Numbers

fn adamw() -> burn::optim::AdamW {
    AdamWConfig::new().with_weight_decay(0.1).build()
}

fn momentum() -> burn::optim::Sgd {
    let momentum = MomentumConfig { momentum: 0.9, dampening: 0.2, nesterov: true };
    SgdConfig::new().with_momentum(Some(momentum)).with_weight_decay(Some(WeightDecayConfig { penalty: 0.01 })).build()
}

#[test]
fn mlp_with_adamw() {
    check_mlp(adamw(), TrainingOptions::default());
}

#[test]
fn mlp_with_amsgrad_and_clipping() {
    let clipping = Some(burn::grad_clipping::GradientClippingConfig::Norm(0.1));
    check_mlp(AdamWConfig::new().with_amsgrad(true).build(), TrainingOptions { clipping });
}

#[test]
fn mlp_with_adam() {
    check_mlp(AdamConfig::new().build(), TrainingOptions::default());
}

#[test]
fn mlp_with_plain_sgd() {
    check_mlp(SgdConfig::new().build(), TrainingOptions::default());
}

#[test]
fn mlp_with_sgd_and_momentum() {
    check_mlp(momentum(), TrainingOptions::default());
}

#[test]
fn mlp_with_other_optimizers() {
    use burn::optim::{AdaGradConfig, AdanConfig, LambConfig, LionConfig, RmsPropConfig};
    check_mlp(LionConfig::new().build(), TrainingOptions::default());
    check_mlp(RmsPropConfig::new().build(), TrainingOptions::default());
    check_mlp(AdaGradConfig::new().build(), TrainingOptions::default());
    check_mlp(LambConfig::new().build(), TrainingOptions::default());
    check_mlp(AdanConfig::new().build(), TrainingOptions::default());
}

#[test]
fn transformer_with_adamw() {
    check_transformer(adamw());
}

#[test]
fn transformer_with_adam() {
    check_transformer(AdamConfig::new().build());
}

#[test]
fn transformer_with_sgd_and_momentum() {
    check_transformer(momentum());
}

#[test]
fn inference_gives_what_the_model_gives() {
    let model = Transformer::new(&Device::flex());
    let tokens = integers([2, 5], 11);
    let example = Tensor::<2, Int>::from_data(tokens.clone(), &Device::flex());
    let captured = capture_inference(&model, named("tokens", example.clone()), |model: &Transformer, tokens| {
        named("logits", model.logits(tokens))
    })
    .unwrap();
    let mut values: Values =
        captured.values.iter().map(|(path, data)| (format!("parameter {path}"), data.clone())).collect();
    values.insert("data tokens".into(), tokens);
    let results = replay(&captured, &values);
    close(&results["output logits"], &model.logits(example).into_data(), "logits");
}

// ---------------------------------------------------------------------------------------------------------------------
// Structure

#[test]
fn step_scalars_are_few_and_shared() {
    let model = Transformer::new(&Device::flex());
    let mut step = capture_transformer(&model, &adamw());
    assert_eq!(step.scalars.len(), 4, "{:?}", step.scalars);
    let values = step.scalars.values(1000, 0.5).unwrap();
    let expected = [1.0 - 0.9f32.powi(1000), 1.0 - 0.999f32.powi(1000), 1.0 - 0.5 * 0.1, 0.5];
    for (value, expected) in values.iter().zip(expected) {
        assert!((*value as f32 - expected).abs() < 1e-5, "{values:?}");
    }
    // Going back is allowed; it only costs time.
    let again = step.scalars.values(2, 0.25).unwrap();
    assert!((again[0] - 0.19).abs() < 1e-6 && again[3] == 0.25, "{again:?}");
    let scalars = |captured: &Captured| {
        let is_scalar = |kind: &InputKind| matches!(kind, InputKind::StepScalar { .. });
        captured.inputs.iter().filter(|input| is_scalar(&input.kind)).count()
    };
    assert_eq!((scalars(&step.first), scalars(&step.steady)), (4, 4));
}

#[test]
fn ids_are_dense_and_captures_equal() {
    let model = Transformer::new(&Device::flex());
    let first = capture_transformer(&model, &adamw());
    let other = std::thread::spawn({
        let model = model.clone();
        move || {
            let step = capture_transformer(&model, &adamw());
            (step.first.to_text(), step.steady.to_text())
        }
    });
    let (other_first, other_steady) = other.join().unwrap();
    assert_eq!(first.first.to_text(), other_first);
    assert_eq!(first.steady.to_text(), other_steady);
    for captured in [&first.first, &first.steady] {
        let mut next = 0;
        for (index, input) in captured.inputs.iter().enumerate() {
            assert_eq!(input.id.value(), index as u64);
            next += 1;
        }
        for op in &captured.graph.operations {
            assert!(op.inputs().all(|tensor| tensor.id.value() < next));
            for tensor in op.outputs() {
                assert_eq!(tensor.id.value(), next);
                next += 1;
            }
        }
        assert!(0 < captured.forward_end && captured.forward_end < captured.backward_end);
        assert!(captured.backward_end < captured.graph.operations.len());
    }
    assert_eq!(first.first.forward_end, first.steady.forward_end);
    assert_eq!(first.first.backward_end, first.steady.backward_end);
}

#[test]
fn scopes_hold_their_arguments_results_and_operations() {
    let model = Transformer::new(&Device::flex());
    let step = capture_transformer(&model, &adamw());
    let paths: Vec<_> = step.steady.scopes.iter().map(|scope| scope.path.to_string()).collect();
    let expected = ["blocks.0", "blocks.0.attention", "blocks.0.mlp", "blocks.1", "blocks.1.attention", "blocks.1.mlp"];
    assert_eq!(paths, expected);
    for scope in &step.steady.scopes {
        assert!(scope.operations.end <= step.steady.forward_end);
        let produced: Vec<_> = step.steady.graph.operations[scope.operations.clone()]
            .iter()
            .flat_map(|op| op.outputs().map(|tensor| tensor.id.value()))
            .collect();
        assert_eq!(produced, scope.tensors.clone().collect::<Vec<_>>());
        assert_eq!(scope.results.len(), 1);
        assert_eq!(scope.results[0].value(), scope.tensors.end - 1);
        assert_eq!(scope.arguments.len(), if scope.path.to_string().ends_with("attention") { 2 } else { 1 });
        assert!(scope.arguments.iter().all(|id| id.value() < scope.tensors.start));
    }
    assert_eq!(step.steady.scopes[0].results, step.steady.scopes[3].arguments);
}

#[test]
fn a_scope_outside_of_a_capture_only_calls() {
    let x = Tensor::<1>::from_floats([1.0, 2.0], &Device::flex());
    let y = tpc::scope("anything", x, |x| x * 2.0);
    assert_eq!(floats(&y.into_data()), [2.0, 4.0]);
}

#[test]
fn modules_are_listed() {
    let model = Mlp::new(&Device::flex());
    let step = capture_training(&model, &adamw(), mlp_batch(), |m: &Mlp, (x, y)| m.loss(x, y)).unwrap();
    let list = |paths: &[ModulePath]| paths.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
    let modules: Vec<_> =
        step.first.modules.iter().map(|m| (m.path.to_string(), m.container.as_str(), list(&m.parameters))).collect();
    assert_eq!(
        modules,
        [
            ("", "Mlp", ""),
            ("up", "Linear", "up.weight,up.bias"),
            ("dropout", "Dropout", ""),
            ("down", "Linear", "down.weight,down.bias")
        ]
        .map(|(path, container, parameters)| (path.into(), container, parameters.into()))
    );
}

#[test]
fn frozen_parameters_have_no_gradient() {
    let mut model = Mlp::new(&Device::flex());
    model.up = model.up.no_grad();
    let step = capture_training(&model, &adamw(), mlp_batch(), |m: &Mlp, (x, y)| m.loss(x, y)).unwrap();
    let gradients: Vec<_> = step.first.outputs.iter().map(|output| output_key(&output.kind)).collect();
    let expected =
        ["loss", "gradient down.weight", "gradient down.bias", "parameter down.weight", "parameter down.bias"];
    assert_eq!(gradients[..5], expected);
    assert_eq!(step.first.inputs.iter().filter(|input| matches!(input.kind, InputKind::Parameter { .. })).count(), 4);
    let eager = |m: &Mlp, batch: &[(&str, TensorData)], device: &Device| {
        m.loss(Tensor::from_data(batch[0].1.clone(), device), Tensor::from_data(batch[1].1.clone(), device))
    };
    check(&model, adamw(), &TrainingOptions::default(), step, &mlp_batches(), eager);
    let frozen = Mlp::new(&Device::flex()).no_grad();
    let error = capture_training(&frozen, &adamw(), mlp_batch(), |m: &Mlp, (x, y)| m.loss(x, y)).unwrap_err();
    assert_eq!(error, CaptureError::NothingToTrain);
}

#[derive(Module, Debug)]
struct Tied {
    embedding: Embedding,
    head: Param<Tensor<2>>,
}

#[test]
fn tied_weights_are_one_parameter() {
    // On the autodiff device from the start, because burn's `train` would turn the two uses into two leaves.
    let embedding = EmbeddingConfig::new(7, 4).init(&Device::flex().autodiff());
    let model = Tied { head: embedding.weight.clone(), embedding };
    let loss = |model: &Tied, tokens: Tensor<2, Int>| {
        let x = model.embedding.forward(tokens);
        x.matmul(model.head.val().transpose().unsqueeze()).square().mean()
    };
    let optimizer = adamw();
    let step = capture_training(&model, &optimizer, Spec::<2, Int>::new([2, 3], DType::I64), loss).unwrap();
    assert_eq!(step.steady.aliases, [("head".into(), "embedding.weight".into())]);
    let of_kind = |prefix: &str| {
        let keys = step.steady.inputs.iter().map(|input| input_key(&input.kind));
        keys.filter(|key| key.starts_with(prefix)).count()
    };
    assert_eq!((of_kind("parameter"), of_kind("state")), (1, 2));

    let tokens = integers([2, 3], 7);
    let mut step = step;
    let mut values: Values =
        step.first.values.iter().map(|(path, data)| (format!("parameter {path}"), data.clone())).collect();
    values.insert("data input0".into(), tokens.clone());
    for (index, value) in step.scalars.values(1, 0.01).unwrap().into_iter().enumerate() {
        values.insert(format!("scalar {index}"), TensorData::from([value as f32]));
    }
    let results = replay(&step.first, &values);
    let eager = model;
    let tokens = Tensor::from_data(tokens, &Device::flex().autodiff());
    let gradients = GradientsParams::from_grads(loss(&eager, tokens).backward(), &eager);
    let eager = ModuleOptimizer::from(optimizer).step(0.01, eager, gradients);
    close(&results["parameter embedding.weight"], &eager.embedding.weight.val().into_data(), "tied weight");
}

#[derive(Module, Debug)]
struct WithTable {
    table: Tensor<2>,
    rope: RotaryEncoding,
    linear: Linear,
}

#[test]
fn tables_are_constants() {
    let device = Device::flex();
    let model = WithTable {
        table: Tensor::from_data(random([5, 8]), &device),
        rope: RotaryEncodingConfig::new(5, 8).init(&device),
        linear: LinearConfig::new(8, 8).init(&device),
    };
    let loss = |m: &WithTable, x: Tensor<2>| {
        let x = m.linear.forward(x + m.table.clone());
        m.rope.forward(x.unsqueeze::<4>()).square().mean()
    };
    let step = capture_training(&model, &momentum(), Spec::<2>::new([5, 8], DType::F32), loss).unwrap();
    let constants: Vec<_> =
        step.first.inputs.iter().filter(|i| input_key(&i.kind) == "constant").map(|i| i.shape.clone()).collect();
    assert!(constants.contains(&vec![5, 8]), "{constants:?}");
    let batches: Vec<_> = (0..4).map(|_| vec![("input0", random([5, 8]))]).collect();
    check(&model, momentum(), &TrainingOptions::default(), step, &batches, |m, batch, device| {
        loss(m, Tensor::from_data(batch[0].1.clone(), device))
    });
}

#[test]
fn shapes_only_is_the_same_program() {
    let model = Transformer::new(&Device::flex());
    let by_value = capture_transformer(&model, &adamw());
    let by_shape = capture_training_shapes(
        Transformer::new,
        &adamw(),
        transformer_batch(),
        &TrainingOptions::default(),
        |model: &Transformer, (tokens, targets)| {
            let (loss, logits) = model.loss(tokens, targets);
            (loss, named("logits", logits))
        },
    )
    .unwrap();
    assert!(by_shape.first.values.is_empty());
    assert_eq!(by_shape.first.to_text(), by_value.first.to_text());
    assert_eq!(by_shape.steady.to_text(), by_value.steady.to_text());
    assert_eq!(by_shape.first.init["norm.gamma"], Init::Constant(1.0));
    assert!(matches!(by_shape.first.init["head.weight"], Init::Random(_)), "{:?}", by_shape.first.init);
}

#[derive(Module, Debug)]
struct Llama {
    embedding: Embedding,
    layers: Vec<LlamaLayer>,
    norm: RmsNorm,
    head: Linear,
}

#[derive(Module, Debug)]
struct LlamaLayer {
    attention_norm: RmsNorm,
    wq: Linear,
    wk: Linear,
    wv: Linear,
    wo: Linear,
    mlp_norm: RmsNorm,
    mlp: SwiGlu,
    down: Linear,
}

impl Llama {
    /// The shapes of Llama 2 7B.
    fn new(device: &Device) -> Self {
        let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(device);
        let norm = || RmsNormConfig::new(4096).init(device);
        let layer = |_| LlamaLayer {
            attention_norm: norm(),
            wq: linear(4096, 4096),
            wk: linear(4096, 4096),
            wv: linear(4096, 4096),
            wo: linear(4096, 4096),
            mlp_norm: norm(),
            mlp: SwiGluConfig::new(4096, 11008).init(device),
            down: linear(11008, 4096),
        };
        Self {
            embedding: EmbeddingConfig::new(32000, 4096).init(device),
            layers: (0..32).map(layer).collect(),
            norm: norm(),
            head: linear(4096, 32000),
        }
    }

    fn loss(&self, tokens: Tensor<2, Int>, targets: Tensor<2, Int>) -> Tensor<1> {
        let [batch, length] = tokens.dims();
        let device = tokens.device();
        let rope = RotaryEncodingConfig::new(length, 128).init(&device);
        let mask = Tensor::<2, Bool>::tril_mask([length, length], 0, &device).unsqueeze::<4>();
        let mut x = self.embedding.forward(tokens);
        for layer in &self.layers {
            let h = layer.attention_norm.forward(x.clone());
            let heads = |x: Tensor<3>| x.reshape([batch, length, 32, 128]).swap_dims(1, 2);
            let (q, k, v) =
                (heads(layer.wq.forward(h.clone())), heads(layer.wk.forward(h.clone())), heads(layer.wv.forward(h)));
            let scores = rope.forward(q).matmul(rope.forward(k).swap_dims(2, 3)) / 128f32.sqrt();
            let scores = scores.mask_fill(mask.clone(), -1e9);
            let context = activation::softmax(scores, 3).matmul(v).swap_dims(1, 2).reshape([batch, length, 4096]);
            x = x + layer.wo.forward(context);
            let h = layer.mlp_norm.forward(x.clone());
            x = x + layer.down.forward(layer.mlp.forward(h));
        }
        let logits = self.head.forward(self.norm.forward(x)).flatten::<2>(0, 1);
        CrossEntropyLossConfig::new().init(&device).forward(logits, targets.flatten::<1>(0, 1))
    }
}

#[test]
fn a_large_model_is_captured_by_its_shapes() {
    let start = std::time::Instant::now();
    let data = || Spec::<2, Int>::new([8, 2048], DType::I64);
    let step = capture_training_shapes(
        Llama::new,
        &adamw(),
        (data(), data()),
        &TrainingOptions::default(),
        |model: &Llama, (tokens, targets)| model.loss(tokens, targets),
    )
    .unwrap();
    // It takes a quarter of a second. If burn initialized one parameter by mistake, it would take far longer.
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
    let elements = |kind: fn(&InputKind) -> bool| -> usize {
        step.steady.inputs.iter().filter(|i| kind(&i.kind)).map(|i| i.shape.iter().product::<usize>()).sum()
    };
    let parameters = elements(|kind| matches!(kind, InputKind::Parameter { .. }));
    assert_eq!(parameters, 6_738_415_616);
    assert_eq!(elements(|kind| matches!(kind, InputKind::State { .. })), 2 * parameters);
    // No value as large as a parameter is held.
    assert!(elements(|kind| matches!(kind, InputKind::Constant { .. })) < 10_000);
    assert_eq!(step.steady.init.len(), 291);
}

struct Half;

impl burn::module::ModuleMapper for Half {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(burn::tensor::FloatDType::BF16))
    }
}

#[test]
fn a_model_in_half_precision_casts_its_step_scalars() {
    let batch = || (Spec::<2>::new([5, 6], DType::BF16), Spec::<2>::new([5, 3], DType::BF16));
    let loss = |m: &Mlp, (x, y)| m.loss(x, y);
    // The parameters are cast while the model is built: they are results of operations then, and nevertheless inputs.
    let build = |device: &Device| Mlp::new(device).map(&mut Half);
    let by_shape = capture_training_shapes(build, &adamw(), batch(), &TrainingOptions::default(), loss).unwrap();
    let by_value = capture_training(&build(&Device::flex()), &adamw(), batch(), loss).unwrap();
    assert_eq!(by_shape.steady.to_text(), by_value.steady.to_text());
    assert_eq!(by_value.steady.to_text().matches("BaseFloat.Cast").count(), 8, "once for each rank");
    let scalars = by_value.steady.inputs.iter().filter(|i| matches!(i.kind, InputKind::StepScalar { .. }));
    assert!(scalars.clone().all(|input| input.dtype == DType::F32 && input.shape == [1]));
    assert_eq!(scalars.count(), 4);
}

#[test]
fn dropout_is_recorded_in_training_only() {
    let mut model = Mlp::new(&Device::flex());
    model.dropout = DropoutConfig::new(0.5).init();
    let random = |captured: &Captured| captured.to_text().matches("Float.Random").count();
    let step = capture_training(&model, &adamw(), mlp_batch(), |m: &Mlp, (x, y)| m.loss(x, y)).unwrap();
    let inference = capture_inference(&model, Spec::<2>::new([5, 6], DType::F32), |m: &Mlp, x| m.forward(x)).unwrap();
    assert_eq!((random(&step.first), random(&step.steady), random(&inference)), (1, 1, 0));
    // A model in evaluation mode still trains with its dropout.
    let step = capture_training(&model.valid(), &adamw(), mlp_batch(), |m: &Mlp, (x, y)| m.loss(x, y)).unwrap();
    assert_eq!(random(&step.first), 1);
}

#[test]
fn capturing_leaves_the_model_alone() {
    let model = burn::nn::BatchNormConfig::new(3).init(&Device::flex());
    let before = model.running_mean.value().into_data();
    let captured =
        capture_inference(&model, Spec::<3>::new([2, 3, 4], DType::F32), |m: &burn::nn::BatchNorm, x| m.forward(x));
    assert_eq!(model.running_mean.value().into_data(), before);
    let paths: Vec<_> = captured.unwrap().inputs.iter().map(|input| input_key(&input.kind)).collect();
    assert!(paths.contains(&"parameter running_mean".to_owned()), "{paths:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Errors

fn error_of<R: tpc_compiler::capture::Tensors>(f: impl FnOnce(Tensor<2>) -> R) -> CaptureError {
    let model = Mlp::new(&Device::flex());
    capture_inference(&model, Spec::<2>::new([5, 6], DType::F32), |_: &Mlp, x| f(x)).unwrap_err()
}

#[test]
fn reading_a_value_is_an_error_that_names_the_scope() {
    let error = error_of(|x| tpc::scope("router", x, |x| x.clone() * x.sum().into_scalar::<f32>()));
    assert_eq!(error, CaptureError::ReadsValue { scope: Some("router".into()) });
    insta::assert_snapshot!(error.to_string(), @"a computed value is read in `router`: nothing is computed during a capture, so `into_data`, `into_scalar`, `argwhere`, `one_hot` and the like cannot be recorded; compute it outside and pass it as an input");
}

#[test]
fn a_panic_of_the_model_is_an_error() {
    let error = error_of(|x| tpc::scope("outer", x, |x| tpc::scope("inner", x, |x| x.clone().matmul(x))));
    let CaptureError::Panicked { message, scope, .. } = &error else { panic!("{error:?}") };
    assert_eq!(scope.as_deref(), Some("outer.inner"));
    assert!(message.contains("inner dimension of matmul"), "{message}");
}

#[test]
fn errors_of_what_burn_cannot_record() {
    let one_hot = error_of(|x| tpc::scope("loss", x, |x| x.one_hot::<3>(4)));
    assert_eq!(one_hot, CaptureError::ReadsValue { scope: Some("loss".into()) });
    let argwhere = error_of(|x| x.greater_scalar(0.0).argwhere());
    insta::assert_snapshot!(argwhere, @"a computed value is readoutside any marked region (mark one with `tpc::scope` to see which module): nothing is computed during a capture, so `into_data`, `into_scalar`, `argwhere`, `one_hot` and the like cannot be recorded; compute it outside and pass it as an input");
    let inner = error_of(|x| tpc::scope("head", x, Tensor::<2>::from_inner));
    insta::assert_snapshot!(inner, @"changing the autodiff state of a tensor (`inner`, `from_inner`, `backward`) cannot be captured in `head`: the capture differentiates the closure itself; return the loss instead, or end a `TrainStep` of burn-train with `tpc::burn_train::backward(self, loss, output)`");
    let error = capture_training(&Mlp::new(&Device::flex()), &adamw(), mlp_batch(), |m: &Mlp, (x, y)| {
        let loss = m.loss(x, y);
        let device = loss.device();
        tpc::scope("move", loss, |loss| loss.to_device(&device))
    });
    insta::assert_snapshot!(error.unwrap_err(), @"`to_device` of a tensor that tracks gradients cannot be captured in `move`: the closure must stay on the device of its arguments");
}

/// A module with a user-defined running state, which it updates without reading the value back.
#[derive(Module, Debug)]
struct Averaged {
    linear: Linear,
    average: RunningState<Tensor<1>>,
    rope: RotaryEncoding,
}

/// The update is an output of both steps, and the caller's model is unchanged.
#[test]
fn a_running_state_of_the_users_own() {
    let build = |d: &Device| Averaged {
        linear: LinearConfig::new(6, 3).init(d),
        average: RunningState::new(Tensor::zeros([3], d)),
        rope: RotaryEncodingConfig::new(4, 4).init(d),
    };
    let reads = |m: &Averaged, x: Tensor<2>| (m.linear.forward(x) - m.average.value().unsqueeze()).square().mean();
    let updates = |m: &Averaged, x: Tensor<2>| {
        let y = m.linear.forward(x);
        let mean = y.clone().mean_dim(0).squeeze_dim::<1>(0);
        m.average.update(m.average.value_sync() * 0.9 + mean.detach() * 0.1);
        y.square().mean()
    };
    let (batch, options) = (|| Spec::<2>::new([5, 6], DType::F32), TrainingOptions::default());
    let model = build(&Device::flex());
    let is_output =
        |captured: &Captured| captured.outputs.iter().filter(|o| output_key(&o.kind) == "parameter average").count();
    for (step, outputs) in [
        (capture_training(&model, &adamw(), batch(), updates).unwrap(), 1),
        (capture_training_shapes(build, &adamw(), batch(), &options, updates).unwrap(), 1),
        // A state that is only read keeps its value.
        (capture_training(&model, &adamw(), batch(), reads).unwrap(), 0),
        (capture_training_shapes(build, &adamw(), batch(), &options, reads).unwrap(), 0),
    ] {
        assert_eq!((is_output(&step.first), is_output(&step.steady)), (outputs, outputs));
    }
    assert_eq!(model.average.value_sync().into_data(), TensorData::from([0f32; 3]));
}

#[test]
fn a_capture_works_after_a_failed_one() {
    let _ = error_of(|x| x.clone() * x.sum().into_scalar::<f32>());
    let model = Mlp::new(&Device::flex());
    assert!(capture_inference(&model, Spec::<2>::new([5, 6], DType::F32), |m: &Mlp, x| m.forward(x)).is_ok());
}

#[test]
fn names_are_unique() {
    let error = capture_inference(
        &Mlp::new(&Device::flex()),
        (named("x", Spec::<2>::new([5, 6], DType::F32)), named("x", Spec::<2>::new([5, 6], DType::F32))),
        |m: &Mlp, (x, _)| m.forward(x),
    );
    assert_eq!(error.unwrap_err(), CaptureError::DuplicateName { what: "input", name: "x".into() });
}
