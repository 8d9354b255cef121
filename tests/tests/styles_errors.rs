//! The messages for plans that do not fit: every `StyleError` word for word, and mistakes in plan files that must not
//! be ignored.

use burn::module::{Module, Param};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::conv::{Conv1d, Conv1dConfig};
use burn::nn::{Dropout, DropoutConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::tensor::module::conv1d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Int, Tensor, TensorData, activation};
use tpc::Mesh;
use tpc_compiler::program::CompileOptions;
use tpc_passes::styles::prepare;
use tpc_passes::styles::style::{Module as StyledModule, Placements};
use tpc_passes::styles::{
    ColwiseParallel, Layout, PairwiseParallel, PairwiseSequenceParallel, ParallelStyle, Plan, PrepareModuleInput,
    PrepareModuleInputOutput, PrepareModuleOutput, RowwiseParallel, SequenceParallel, TensorParallelMultiheadAttention,
};
use tpc_passes::styles::{StyleError, parallelize_module};
use tpc_tests::styles::{Case, floats, integers};

#[derive(Module, Debug)]
struct Mlp {
    net1: Linear,
    net2: Linear,
}

#[derive(Module, Debug)]
struct Layer {
    norm: LayerNorm,
    attn: MultiHeadAttention,
    mlp: Mlp,
}

#[derive(Module, Debug)]
struct Model {
    table: Embedding,
    layers: Vec<Layer>,
    last: Linear,
}

fn case() -> Case<Model, Tensor<2, Int>, 3> {
    let d = &Device::flex();
    let linear = |from, to| LinearConfig::new(from, to).init(d);
    let layer = || Layer {
        norm: LayerNormConfig::new(8).init(d),
        attn: MultiHeadAttentionConfig::new(8, 2).with_dropout(0.0).init(d),
        mlp: Mlp { net1: linear(8, 12), net2: linear(12, 8) },
    };
    Case {
        model: Model {
            table: EmbeddingConfig::new(9, 8).init(d),
            layers: (0..2).map(|_| layer()).collect(),
            last: linear(8, 5),
        },
        data: vec![integers("ids", &[2, 3], 9)],
        batch: |data: &[TensorData], device| Tensor::from_data(data[0].clone(), device),
        forward: |m, ids| {
            let mut x = m.table.forward(ids);
            for (i, layer) in m.layers.iter().enumerate() {
                let h = layer.norm.forward(x.clone());
                x = x + layer.attn.forward(MhaInput::self_attn(h)).context;
                let inner = layer.mlp.net2.forward(activation::relu(layer.mlp.net1.forward(x.clone())));
                x = tpc::scope(&format!("layers.{i}.join"), (x, inner), |(x, inner)| x + inner);
            }
            m.last.forward(x)
        },
    }
}

fn error(plan: &Plan, on: &str) -> String {
    match case().compiled(plan, on, &CompileOptions::for_cpu()) {
        Ok(_) => panic!("accepted on {on}: {plan:?}"),
        Err(e) => e.to_string(),
    }
}

fn refused(plan: impl Into<Plan>, on: &str, expected: &str) {
    assert_eq!(error(&plan.into(), on), expected);
}

const fn s(dim: isize) -> Option<Layout> {
    Some(Layout::Shard(dim))
}

const R: Option<Layout> = Some(Layout::Replicate);

fn inputs(declared: &[Option<Layout>], desired: &[Option<Layout>]) -> PrepareModuleInput {
    PrepareModuleInput { input_layouts: declared.into(), desired_input_layouts: desired.into() }
}

fn outputs(desired: &[Option<Layout>]) -> PrepareModuleOutput {
    PrepareModuleOutput { output_layouts: vec![], desired_output_layouts: desired.into() }
}

#[test]
fn paths_that_match_nothing() {
    refused(
        Plan::new().with("layers.*.mpl", PairwiseParallel),
        "tp=2",
        "plan entry `layers.*.mpl` matches no module; the nearest are layers.0.mlp, layers.1.mlp, layers.0",
    );
    refused(
        Plan::new().with("layers.2.attn", PairwiseParallel),
        "tp=2",
        "plan entry `layers.2.attn` matches no module; the nearest are layers.0.attn, layers.1.attn, layers.0.join",
    );
    // A glob matches within its segment, and a typo is found next to correct entries.
    for pattern in [
        "*.attn",
        "layers.*.*.*.*",
        "layers.[2-9].attn",
        "{layer,block}.0",
        "layers..attn",
        " layers.0",
        "layers.0.attn.query.weight",
    ] {
        let text = error(&Plan::new().with("last", ColwiseParallel::default()).with(pattern, PairwiseParallel), "tp=2");
        assert!(text.starts_with(&format!("plan entry `{pattern}` matches no module; the nearest are ")), "{text}");
    }
    // Also on one rank: a plan is wrong independently of the mesh.
    for on in ["", "tp=1"] {
        let text = error(&Plan::new().with("lats", ColwiseParallel::default()), on);
        assert!(text.starts_with("plan entry `lats` matches no module; the nearest are last"), "{text}");
    }
}

#[test]
fn modules_of_the_wrong_type() {
    const ACCEPTS: &str = "a linear, an embedding or a convolution";
    let wrong = |path: &str, kind: &str| {
        for (plan, style) in [
            (Plan::new().with(path, ColwiseParallel::default()), "ColwiseParallel"),
            (Plan::new().with(path, RowwiseParallel::default()), "RowwiseParallel"),
            (Plan::new().with(path, ColwiseParallel { output_layouts: R, ..Default::default() }), "ColwiseParallel"),
        ] {
            let expected = format!(
                "plan entry `{path}` ({style}) finds nothing to parallelize in `{path}`, which is a {kind}: it works on {ACCEPTS}"
            );
            refused(plan, "tp=2", &expected);
        }
    };
    wrong("layers.0.norm", "LayerNorm");
    wrong("layers.0.attn", "MultiHeadAttention");
    wrong("layers.1.mlp", "Mlp");
    refused(
        Plan::new().with("last", PairwiseParallel),
        "tp=2",
        "plan entry `last` (PairwiseParallel) finds nothing to parallelize in `last`, which is a Linear: it works on pairs of linears that follow each other",
    );
    refused(
        Plan::new().with("layers.0.norm", PairwiseSequenceParallel::default()),
        "tp=2",
        "plan entry `layers.0.norm` (PairwiseSequenceParallel) finds nothing to parallelize in `layers.0.norm`, which is a LayerNorm: it works on pairs of linears that follow each other",
    );
    refused(
        Plan::new().with("last", TensorParallelMultiheadAttention),
        "tp=2",
        "plan entry `last` (TensorParallelMultiheadAttention) finds nothing to parallelize in `last`, which is a Linear: it works on an attention: query, key and value linears (or one of all three) and an output linear",
    );
    refused(
        Plan::new().with("layers.0.mlp", SequenceParallel::default()),
        "tp=2",
        "plan entry `layers.0.mlp` (SequenceParallel) finds nothing to parallelize in `layers.0.mlp`, which is a Mlp: it works on norms, dropout and other modules without linears",
    );
    for (plan, style, accepts) in [
        (
            Plan::new().with("last", PrepareModuleInput::default()),
            "PrepareModuleInput",
            "a module with tensor arguments, and at least one layout",
        ),
        (
            Plan::new().with("last", inputs(&[None], &[None, None])),
            "PrepareModuleInput",
            "a module with tensor arguments, and at least one layout",
        ),
        (
            Plan::new().with("last", PrepareModuleOutput::default()),
            "PrepareModuleOutput",
            "a module with tensor results, and at least one layout",
        ),
        (
            Plan::new().with("last", PrepareModuleInputOutput::default()),
            "PrepareModuleInputOutput",
            "a module with tensors, and at least one layout",
        ),
    ] {
        let expected = format!(
            "plan entry `last` ({style}) finds nothing to parallelize in `last`, which is a Linear: it works on {accepts}"
        );
        refused(plan, "tp=2", &expected);
    }
}

#[test]
fn boundaries_that_cannot_be_seen() {
    let shown = |module: &str, side: &str| {
        format!(
            "plan entry `{module}` places {side} of `{module}`, but its boundaries cannot be inferred from its parameters: mark them in the model with `tpc::scope(\"{module}\", inputs, |inputs| …)` around the module's call"
        )
    };
    refused(Plan::new().with("layers.0.norm", inputs(&[s(1)], &[R])), "tp=2", &shown("layers.0.norm", "arguments"));
    // The first linears of a layer read a norm's result, which is not the layer's input.
    refused(Plan::new().with("layers.0", inputs(&[], &[R])), "tp=2", &shown("layers.0", "arguments"));
    refused(Plan::new().with("layers.1", inputs(&[s(1)], &[])), "tp=2", &shown("layers.1", "arguments"));
}

#[derive(Module, Debug)]
struct Convolutions {
    plain: Conv1d,
    depthwise: Conv1d,
    scaled: Scaled,
}

/// A user-defined convolution module: its weight is computed, and it does more than the convolution.
#[derive(Module, Debug)]
struct Scaled {
    conv: Conv1d,
    gain: Gain,
    weight: Param<Tensor<3>>,
    scale: Param<Tensor<1>>,
}

#[derive(Module, Debug)]
struct Gain {
    weight: Param<Tensor<3>>,
    scale: Param<Tensor<1>>,
}

fn convolutions() -> Case<Convolutions, Tensor<3>, 3> {
    let d = &Device::flex();
    let conv = |groups| Conv1dConfig::new(4, 4, 3).with_groups(groups).init(d);
    let weight = || Param::from_tensor(Tensor::ones([4, 4, 3], d));
    let scale = || Param::from_tensor(Tensor::ones([4], d));
    let scaled =
        Scaled { conv: conv(1), gain: Gain { weight: weight(), scale: scale() }, weight: weight(), scale: scale() };
    Case {
        model: Convolutions { plain: conv(1), depthwise: conv(4), scaled },
        data: vec![floats("x", &[2, 4, 11])],
        batch: |data: &[TensorData], device| Tensor::from_data(data[0].clone(), device),
        forward: |m, x| {
            let options = || ConvOptions::new([1], [1], [1], 1);
            let x = m.scaled.conv.forward(m.depthwise.forward(m.plain.forward(x)));
            // The weight is computed from two parameters.
            let weight = m.scaled.weight.val() * m.scaled.scale.val().reshape([4, 1, 1]);
            let x = conv1d(x, weight, None, options());
            // The module does more than its convolution.
            conv1d(x, m.scaled.gain.weight.val(), None, options()) * m.scaled.gain.scale.val().reshape([1, 4, 1])
        },
    }
}

/// The boundary of a module that consists of one convolution is known; it is unknown if the module does more, or
/// computes the weight.
#[test]
fn convolutions_that_cannot_be_seen() {
    let found = |plan: &Plan| convolutions().compiled(plan, "tp=2", &CompileOptions::for_cpu()).map(|_| ());
    for module in ["plain", "depthwise", "scaled.conv"] {
        for plan in [Plan::new().with(module, inputs(&[s(0)], &[])), Plan::new().with(module, outputs(&[s(0)]))] {
            found(&plan).unwrap_or_else(|e| panic!("{module}: {e}"));
        }
    }
    for module in ["scaled", "scaled.gain"] {
        for (plan, side) in [
            (Plan::new().with(module, inputs(&[s(0)], &[])), "arguments"),
            (Plan::new().with(module, outputs(&[s(0)])), "results"),
        ] {
            let expected = format!(
                "plan entry `{module}` places {side} of `{module}`, but its boundaries cannot be inferred from its parameters: mark them in the model with `tpc::scope(\"{module}\", inputs, |inputs| …)` around the module's call"
            );
            match found(&plan) {
                Ok(()) => panic!("accepted: {plan:?}"),
                Err(e) => assert_eq!(e.to_string(), expected),
            }
        }
    }
    // One input channel for each output channel: nothing can be cut by rows.
    let rows = Plan::new().with("depthwise", RowwiseParallel::default());
    assert_eq!(
        found(&rows).unwrap_err().to_string(),
        "plan entry `depthwise` (RowwiseParallel) finds nothing to parallelize in `depthwise`, which is a Conv1d: each of its output channels has one input channel, so there are no input channels to cut; ColwiseParallel cuts its output channels"
    );
    // Without linears, channels are sharded by the other styles.
    assert_eq!(
        found(&PairwiseParallel.into()).unwrap_err().to_string(),
        "plan entry `` (PairwiseParallel) finds nothing to parallelize in ``, which is a Convolutions: it works on pairs of linears that follow each other"
    );
}

#[test]
fn positions_and_dimensions_that_do_not_exist() {
    refused(
        Plan::new().with("layers.0.mlp.net1", inputs(&[None, s(0)], &[])),
        "tp=2",
        "plan entry `layers.0.mlp.net1` gives a layout to argument 1 of `layers.0.mlp.net1`, which has 1: leave that layout out",
    );
    refused(
        Plan::new().with("layers.1.join", inputs(&[None, None, R], &[])),
        "tp=2",
        "plan entry `layers.1.join` gives a layout to argument 2 of `layers.1.join`, which has 2: leave that layout out",
    );
    refused(
        Plan::new().with("layers.*.join", outputs(&[None, R])),
        "tp=2",
        "plan entry `layers.*.join` gives a layout to result 1 of `layers.0.join`, which has 1: leave that layout out",
    );
    refused(
        Plan::new().with("last", ColwiseParallel { output_layouts: s(3), ..Default::default() }),
        "tp=2",
        "plan entry `last` wants Shard(3) for result 0 of `last`, which has the shape [2, 3, 5]: there is no such dimension, use Shard(0) to Shard(2) or Replicate",
    );
    refused(
        Plan::new().with("last", RowwiseParallel { input_layouts: s(-4), ..Default::default() }),
        "tp=2",
        "plan entry `last` wants Shard(-4) for argument 0 of `last`, which has the shape [2, 3, 8]: there is no such dimension, use Shard(0) to Shard(2) or Replicate",
    );
    refused(
        Plan::new().with("table", ColwiseParallel { input_layouts: s(2), ..Default::default() }),
        "tp=2",
        "plan entry `table` wants Shard(2) for argument 0 of `table`, which has the shape [2, 3]: there is no such dimension, use Shard(0) to Shard(1) or Replicate",
    );
    refused(
        Plan::new().with("layers.{0,1}.join", inputs(&[], &[None, s(5)])),
        "tp=2",
        "plan entry `layers.{0,1}.join` wants Shard(5) for argument 1 of `layers.0.join`, which has the shape [2, 3, 8]: there is no such dimension, use Shard(0) to Shard(2) or Replicate",
    );
    refused(
        Plan::new().with("layers.1.norm", SequenceParallel { sequence_dim: 3 }),
        "tp=2",
        "plan entry `layers.1.norm` wants Shard(3) for result 0 of `layers.1.norm`, which has the shape [2, 3, 8]: there is no such dimension, use Shard(0) to Shard(2) or Replicate",
    );
    refused(
        Plan::new().with("layers.0.mlp", PairwiseSequenceParallel { sequence_dim: 7 }),
        "tp=2",
        "plan entry `layers.0.mlp` wants Shard(7) for argument 0 of `layers.0.mlp.net1`, which has the shape [2, 3, 8]: there is no such dimension, use Shard(0) to Shard(2) or Replicate",
    );
}

#[test]
fn parameters_that_are_claimed_twice() {
    let twice = |parameter: &str, first: &str, second: &str| {
        let ((first, one), (second, other)) = (first.split_once(' ').unwrap(), second.split_once(' ').unwrap());
        format!(
            "parameter `{parameter}` is claimed by two plan entries, `plan \"{first}\"` ({one}) and `plan \"{second}\"` ({other}): remove one of them"
        )
    };
    refused(
        Plan::new().with("layers.*.attn", PairwiseParallel).with("layers.0.attn.output", ColwiseParallel::default()),
        "tp=2",
        &twice("layers.0.attn.output.weight", "layers.*.attn by rows", "layers.0.attn.output by columns"),
    );
    refused(
        Plan::new().with("", PairwiseParallel).with("layers.1.mlp", PairwiseParallel),
        "tp=2",
        &twice("layers.1.mlp.net1.weight", " by columns", "layers.1.mlp by columns"),
    );
    // Also if two entries have the same path.
    refused(
        Plan::new().with("last", ColwiseParallel::default()).with("last", RowwiseParallel::default()),
        "tp=2",
        &twice("last.weight", "last by columns", "last by rows"),
    );
    refused(
        Plan::new().with("layers.0.mlp", PairwiseParallel).with("layers.0.mlp", PairwiseSequenceParallel::default()),
        "tp=2",
        &twice("layers.0.mlp.net1.weight", "layers.0.mlp by columns", "layers.0.mlp by columns"),
    );
}

#[test]
fn axes() {
    let last = || Plan::new().with("last", ColwiseParallel::default());
    let missing = |axis: &str, mesh: &str| {
        format!(
            "the plan shards along the axis `{axis}`, but the mesh has no such axis (mesh <{mesh}>): add `{axis}=N` to the mesh or change the plan's axis"
        )
    };
    refused(last(), "a=2,b=2", &missing("tp", "a=2, b=2"));
    refused(last().along("model"), "tp=2", &missing("model", "tp=2"));
    refused(last().ddp("dp"), "tp=2", &missing("dp", "tp=2"));
    refused(last().hsdp("rep", "dp"), "dp=2,tp=2", &missing("rep", "dp=2, tp=2"));
    let unused = |axis: &str| {
        format!(
            "the mesh axis `{axis}` is not used by the plan: every rank along it would compute the same; remove it from the mesh or give it a data mode"
        )
    };
    refused(last(), "dp=2,tp=2", &unused("dp"));
    refused(last().ddp("dp"), "pp=2,dp=2,tp=2", &unused("pp"));
    refused(Plan::new(), "tp=2", &unused("tp"));
    // A number is not a valid axis name, so the message does not suggest adding it to the mesh.
    for (index, on, has) in [
        (1, "tp=2", "1 (mesh <tp=2>)"),
        (-2, "tp=2", "1 (mesh <tp=2>)"),
        (2, "a=2,b=2", "2 (mesh <a=2, b=2>)"),
        (-3, "a=2,b=2", "2 (mesh <a=2, b=2>)"),
    ] {
        let expected = format!("the plan shards along dimension `{index}` of the mesh, which has {has}");
        refused(last().along(index), on, &expected);
    }
}

/// An axis has one purpose: it cannot cut the same dimension twice.
#[test]
fn an_axis_for_two_purposes() {
    let last = || Plan::new().with("last", ColwiseParallel::default());
    let twice = |axis: &str, first: &str, second: &str| {
        format!(
            "the plan uses the mesh axis `{axis}` twice, for {first} and for {second}: give each an axis of its own"
        )
    };
    for plan in [last().ddp("tp"), last().enable_2d_with_fsdp("tp"), last().zero1("tp")] {
        refused(plan, "tp=2", &twice("tp", "its styles", "its data mode"));
    }
    refused(last().along("x").ddp("x"), "x=2", &twice("x", "its styles", "its data mode"));
    refused(last().along(0).hsdp("rep", "dp"), "rep=2,dp=2", &twice("rep", "its styles", "its data mode"));
    refused(Plan::new().hsdp("dp", "dp"), "dp=2", &twice("dp", "its replicas", "its shards"));
}

#[test]
fn prepare_functions_on_meshes_of_two_dimensions() {
    let two = Mesh::parse("dp=2,tp=2").unwrap();
    let three = Mesh::parse("rep=2,dp=2,tp=2").unwrap();
    let input = "device_mesh has dims 2 but expected to be 1 for input.";
    let output = "device_mesh has dims 2 but expected to be 1 for output.";
    for (found, expected) in [
        (prepare::make_input_replicate_1d(&two), input),
        (prepare::make_input_reshard_replicate(&two), input),
        (prepare::make_input_shard_1d(&two, 0), input),
        (prepare::make_input_shard_1d_last_dim(&two), input),
        (prepare::make_output_replicate_1d(&two), output),
        (prepare::make_output_reshard_tensor(&two), output),
        (prepare::make_output_shard_1d(&two, 1), output),
        (prepare::make_output_tensor(&two), output),
        (prepare::make_input_shard_1d(&three, 0), "device_mesh has dims 3 but expected to be 1 for input."),
    ] {
        assert_eq!(found.unwrap_err().to_string(), expected);
    }
    let dims = |text: &str| prepare::make_input_replicate_1d(&Mesh::parse(text).unwrap()).is_ok();
    assert!(dims("tp=2") && dims("tp=1") && dims(""));
}

/// A user-defined style with its own name and its own refusal.
#[derive(Debug)]
struct Picky {
    refuses: bool,
}

impl ParallelStyle for Picky {
    fn name(&self) -> &str {
        "Picky"
    }

    fn accepts(&self) -> &str {
        "nothing at all"
    }

    fn demand(&self, module: &StyledModule<'_>, _: &mut Placements) -> Result<(), StyleError> {
        if self.refuses {
            return Err(StyleError::NoModule { path: module.path().to_string(), nearest: vec!["elsewhere".into()] });
        }
        Ok(())
    }
}

#[test]
fn styles_of_ones_own() {
    refused(
        Plan::new().with("last", Picky { refuses: false }),
        "tp=2",
        "plan entry `last` (Picky) finds nothing to parallelize in `last`, which is a Linear: it works on nothing at all",
    );
    refused(
        Plan::new().with("last", Picky { refuses: true }),
        "tp=2",
        "plan entry `last` matches no module; the nearest are elsewhere",
    );
}

/// The entry point finds the boundaries that a plan's layouts need.
#[test]
fn parallelize_module_takes_layouts() {
    let program = case().compiled(&Plan::new(), "", &CompileOptions::for_cpu()).unwrap();
    let plan = Plan::new().with("last", ColwiseParallel { output_layouts: R, ..Default::default() });
    let mesh = Mesh::parse("tp=2").unwrap();
    for graph in [&program.first.captured, &program.first.logical] {
        let found = parallelize_module(graph, &mesh, plan.clone(), None);
        assert!(found.is_ok(), "{}", found.unwrap_err());
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Plan files

/// A misspelled style with options, or an empty map, would otherwise train unsharded without any message.
#[test]
fn plan_files_that_say_nothing() {
    for (style, at) in [
        ("{}", "last"),
        (r#"{"ColumnParallel": {}}"#, "last.ColumnParallel"),
        (r#"{"ColwiseParallel": {}, "RowwiseParallel": {}}"#, "last.ColwiseParallel"),
        (r#"{"ColwiseParallel": {}, "input_layouts": "Replicate"}"#, "last.ColwiseParallel"),
    ] {
        let text = format!(r#"{{"styles": {{"last": {style}}}}}"#);
        let expected = format!("`{at}` in the plan must be a style or a map of styles, found {{}}");
        match Plan::from_json(&text) {
            Ok(plan) => panic!("{text}: {:?}", plan.styles),
            Err(e) => assert_eq!(e.to_string(), expected, "{text}"),
        }
    }
}

#[test]
fn plan_files_with_values_of_the_wrong_kind() {
    let one = |style: &str| format!(r#"{{"styles": {{"last": {style}}}}}"#);
    for (style, expected) in [
        (
            r#"{"ColwiseParallel": {"input_layouts": "Partial"}}"#,
            "plan entry `last`: `input_layouts` in the plan must be \"Replicate\" or \"Shard(DIM)\", found \"Partial\"",
        ),
        (
            r#"{"ColwiseParallel": {"input_layouts": "Shard(x)"}}"#,
            "plan entry `last`: `input_layouts` in the plan must be \"Replicate\" or \"Shard(DIM)\", found \"Shard(x)\"",
        ),
        (
            r#"{"ColwiseParallel": {"input_layouts": ["Shard(0)"]}}"#,
            "plan entry `last`: `input_layouts` in the plan must be \"Replicate\" or \"Shard(DIM)\", found [\"Shard(0)\"]",
        ),
        (
            r#"{"SequenceParallel": {"sequence_dim": "1"}}"#,
            "plan entry `last`: `sequence_dim` in the plan must be a dimension number, found \"1\"",
        ),
        (
            r#"{"SequenceParallel": {"sequence_dim": 1.5}}"#,
            "plan entry `last`: `sequence_dim` in the plan must be a dimension number, found 1.5",
        ),
        (
            r#"{"PairwiseParallel": {"sequence_dim": 1}}"#,
            "the plan has an unknown key `sequence_dim` in `last`: known are none",
        ),
        (
            r#"{"PairwiseSequenceParallel": {"dim": 1}}"#,
            "the plan has an unknown key `dim` in `last`: known are sequence_dim",
        ),
        (
            r#"{"PrepareModuleInput": {"output_layouts": "Replicate"}}"#,
            "the plan has an unknown key `output_layouts` in `last`: known are input_layouts, desired_input_layouts",
        ),
        (
            r#"{"RowwiseParallel": {"prepare_output": "make_output"}}"#,
            "plan entry `last`: `prepare_output` in the plan must be the name of a prepare function, such as \"make_output_tensor\", found \"make_output\"",
        ),
        (
            r#"{"RowwiseParallel": {"prepare_output": "make_output_tensor:1"}}"#,
            "plan entry `last`: `prepare_output` in the plan must be the name of a prepare function, such as \"make_output_tensor\", found \"make_output_tensor:1\"",
        ),
        ("true", "`last` in the plan must be a style or a map of styles, found true"),
    ] {
        assert_eq!(Plan::from_json(&one(style)).unwrap_err().to_string(), expected, "{style}");
    }
    for (text, expected) in [
        (r#"{"axis": 1.5}"#, "`axis` in the plan must be the name or number of a mesh axis, found 1.5"),
        (r#"{"loss_parallel": "yes"}"#, "`loss_parallel` in the plan must be true or false, found \"yes\""),
        (
            r#"{"data": {"mode": "fsdp", "replicate_axis": "rep"}}"#,
            "`data.replicate_axis` in the plan must be given with the mode \"hsdp\" only, found rep",
        ),
        (r#"{"styles": []}"#, "`styles` in the plan must be an object, found []"),
        (r#"{"data": "fdsp"}"#, "`data` in the plan must be \"ddp\", \"fsdp\", \"zero1\" or \"hsdp\", found fdsp"),
        (
            r#"{"data": 3}"#,
            "`data` in the plan must be a mode or an object with the keys mode, axis, replicate_axis, found 3",
        ),
    ] {
        assert_eq!(Plan::from_json(text).unwrap_err().to_string(), expected, "{text}");
    }
}

/// A plan file may consist of the data mode alone, which then uses the default axes.
#[test]
fn a_data_mode_alone_has_the_usual_axes() {
    for (short, long) in [
        (r#"{"data": "ddp"}"#, r#"{"data": {"mode": "ddp", "axis": "dp"}}"#),
        (r#"{"data": "fsdp"}"#, r#"{"data": {"mode": "fsdp", "axis": "dp"}}"#),
        (r#"{"data": "zero1"}"#, r#"{"data": {"mode": "zero1", "axis": "dp"}}"#),
        (r#"{"data": "hsdp"}"#, r#"{"data": {"mode": "hsdp", "axis": "dp", "replicate_axis": "rep"}}"#),
    ] {
        let data = |text| Plan::from_json(text).unwrap_or_else(|e| panic!("{e}")).data;
        assert!(data(short).is_some());
        assert_eq!(data(short), data(long), "{short}");
    }
}

/// JSON readers keep one of two equal keys: half of the plan would be ignored.
#[test]
fn plan_files_that_say_something_twice() {
    let ambiguous = |what: &str| format!("the plan is ambiguous: {what}; merge both values under one key");
    let path = |path: &str| format!("the plan has two entries for the path `{path}`: merge them");
    for (text, expected) in [
        (
            r#"{"styles": {"last": "ColwiseParallel"}, "styles": {"table": "RowwiseParallel"}}"#,
            ambiguous("the key \"styles\" occurs twice in the outermost object (line 1, column 48)"),
        ),
        (
            "{\"styles\": {\n  \"last\": \"ColwiseParallel\",\n  \"last\": \"RowwiseParallel\"}}",
            ambiguous("the key \"last\" occurs twice in `styles` (line 3, column 8)"),
        ),
        (
            r#"{"styles": {"last": {"ColwiseParallel": {"input_layouts": "Replicate", "input_layouts": "Shard(1)"}}}}"#,
            ambiguous("the key \"input_layouts\" occurs twice in `styles.last.ColwiseParallel` (line 1, column 86)"),
        ),
        (
            r#"{"data": {"mode": "ddp", "mode": "fsdp"}}"#,
            ambiguous("the key \"mode\" occurs twice in `data` (line 1, column 31)"),
        ),
        (
            r#"{"axis": "tp", "\u0061xis": "dp"}"#,
            ambiguous("the key \"axis\" occurs twice in the outermost object (line 1, column 26)"),
        ),
        (r#"{"styles": {"a": {"b": "ColwiseParallel"}, "a.b": "ColwiseParallel"}}"#, path("a.b")),
        (r#"{"styles": {"a": {"": "ColwiseParallel"}, "": {"a": "RowwiseParallel"}}}"#, path("a")),
        (r#"{"styles": {"a.b": {"c": "ColwiseParallel"}, "a": {"b.c": {"ColwiseParallel": {}}}}}"#, path("a.b.c")),
    ] {
        match Plan::from_json(text) {
            Ok(plan) => panic!("{text}: {:?}", plan.styles),
            Err(e) => assert_eq!(e.to_string(), expected, "{text}"),
        }
    }
}

/// Names of axes and patterns are checked where they are read.
#[test]
fn plan_files_with_names_that_nothing_can_have() {
    const NAME: &str =
        "a name has letters, digits, `_` and `-`, begins with a letter or `_`, and has at most 64 characters";
    for (text, expected) in [
        (r#"{"axis": "tp:2"}"#, format!("`axis` in the plan: `tp:2` cannot name a mesh axis: {NAME}")),
        (
            r#"{"data": {"mode": "fsdp", "axis": "tp:x"}}"#,
            format!("`data.axis` in the plan: `tp:x` cannot name a mesh axis: {NAME}"),
        ),
        (
            r#"{"data": {"mode": "hsdp", "replicate_axis": "a b"}}"#,
            format!("`data.replicate_axis` in the plan: `a b` cannot name a mesh axis: {NAME}"),
        ),
        (
            r#"{"styles": {"layers.[0.attn": "ColwiseParallel"}}"#,
            "plan entry `layers.[0.attn` is not a path pattern: the `[` at character 8 is never closed".into(),
        ),
        (
            r#"{"styles": {"layers": {"{0,1": {"attn": "ColwiseParallel"}}}}"#,
            "plan entry `layers.{0,1.attn` is not a path pattern: the `{` at character 8 is never closed".into(),
        ),
        (
            r#"{"styles": {"last": {"ColumnParallel": {"output_layouts": "Replicate"}}}}"#,
            "plan entry `last` names the style `ColumnParallel`, which does not exist: use ColwiseParallel, RowwiseParallel, PairwiseParallel, PairwiseSequenceParallel, SequenceParallel, PrepareModuleInput, PrepareModuleOutput, PrepareModuleInputOutput, TensorParallelMultiheadAttention".into(),
        ),
    ] {
        assert_eq!(Plan::from_json(text).unwrap_err().to_string(), expected, "{text}");
    }
    let last = || Plan::new().with("last", ColwiseParallel::default());
    let named = |name: &str| format!("the plan: `{name}` cannot name a mesh axis: {NAME}");
    refused(last().along("tp:2"), "tp=2", &named("tp:2"));
    refused(last().ddp("tp:/2"), "dp=2,tp=2", &named("tp:/2"));
    refused(
        Plan::new().with("layers.[9-0].mlp", PairwiseParallel),
        "tp=2",
        "plan entry `layers.[9-0].mlp` is not a path pattern: the range `9-0` holds no character: write `0-9`",
    );
}

/// A message quotes only a limited part of a plan's text.
#[test]
fn long_texts_are_cut() {
    let long = "x".repeat(100_000);
    for text in [
        long.clone(),
        format!("{{\"{long}\": 1}}"),
        format!("{{\"{long}\": 1, \"{long}\": 1}}"),
        format!("{{\"axis\": \"{long}\"}}"),
        format!("{{\"axis\": {{\"{long}\": 1}}}}"),
        format!("{{\"data\": \"{long}\"}}"),
        format!("{{\"styles\": {{\"{long}\": \"{long}\"}}}}"),
        format!("{{\"styles\": {{\"{long}\": {{\"ColwiseParallel\": {{\"{long}\": 1}}}}}}}}"),
        format!("{{\"styles\": {{\"{long}\": {{\"ColwiseParallel\": {{\"input_layouts\": \"{long}\"}}}}}}}}"),
        format!("{{\"styles\": {{\"a\": {{\"{long}\": \"ColwiseParallel\"}}, \"a.{long}\": \"ColwiseParallel\"}}}}"),
    ] {
        let message = Plan::from_json(&text).unwrap_err().to_string();
        assert!(message.chars().count() < 1200, "{} characters", message.chars().count());
    }
    let message = error(&Plan::new().with(&*long, PairwiseParallel), "tp=2");
    assert!(message.chars().count() < 500, "{} characters", message.chars().count());
    assert_eq!(
        Plan::from_json("{\"a\u{1b}[2J\\u001b\": 1}").unwrap_err().to_string(),
        "the plan is not JSON: control character (\\u0000-\\u001F) found while parsing a string at line 1 column 4"
    );
    assert_eq!(
        Plan::from_json("{\"a\\u001b[2J\": 1}").unwrap_err().to_string(),
        "the plan has an unknown key `a\\u{1b}[2J` in the plan: known are extends, axis, styles, data, loss_parallel, placements"
    );
}

#[derive(Module, Debug)]
struct Shared {
    table: Embedding,
    first: Linear,
    second: Linear,
    head: Linear,
    unused: Linear,
    merged: Linear,
    narrow: Linear,
    drop: Dropout,
}

/// A linear that another module shares, a head that shares the embedding table, and linears that no product reads.
fn shared() -> Case<Shared, Tensor<2, Int>, 3> {
    let d = &Device::flex();
    let linear = |from, to| LinearConfig::new(from, to).with_bias(false).init(d);
    let first = linear(8, 8);
    let table = EmbeddingConfig::new(8, 8).init(d);
    let head = Linear { weight: table.weight.clone(), bias: None };
    Case {
        model: Shared {
            second: first.clone(),
            first,
            table,
            head,
            unused: linear(8, 4),
            merged: linear(8, 8),
            narrow: linear(1, 8),
            drop: DropoutConfig::new(0.0).init(),
        },
        data: vec![integers("ids", &[2, 3], 8)],
        batch: |data: &[TensorData], device| Tensor::from_data(data[0].clone(), device),
        forward: |m, ids| {
            let x = m.drop.forward(m.table.forward(ids));
            let x = m.second.forward(activation::relu(m.first.forward(x)));
            // Only the sum of two weights enters a product.
            let x = x.matmul((m.merged.weight.val() + 1.0).unsqueeze());
            let [b, s, _] = x.dims();
            let x = m.narrow.forward(x.sum_dim(2)).reshape([b, s, 8]);
            m.head.forward(x)
        },
    }
}

/// The message says what the module is rather than what the style applies to.
#[test]
fn modules_that_are_shared_or_unused() {
    let refused = |module: &str, expected: &str| {
        let plan = Plan::new().with(module, ColwiseParallel::default());
        match shared().compiled(&plan, "tp=2", &CompileOptions::for_cpu()) {
            Ok(_) => panic!("accepted: {module}"),
            Err(e) => assert_eq!(e.to_string(), expected),
        }
    };
    refused(
        "head",
        "plan entry `head` names `head`, a Linear, which shares its weights: `head.weight` is `table.weight` under another name (tied), and one style places both; remove this entry and name `table`: RowwiseParallel there cuts the rows of the embedding, which are the outputs of the head",
    );
    refused(
        "second",
        "plan entry `second` names `second`, a Linear, which shares its weights: `second.weight` is `first.weight` under another name (tied), and one style places both; remove this entry and name `first`",
    );
    refused(
        "unused",
        "plan entry `unused` (ColwiseParallel) finds nothing to parallelize in `unused`, which is a Linear: the forward pass does not use its parameters (`unused.weight`); remove the entry",
    );
    refused(
        "merged",
        "plan entry `merged` (ColwiseParallel) finds nothing to parallelize in `merged`, which is a Linear: `merged.weight` is read by `add`, but the style cuts only weights that a product reads directly; remove the entry to keep it whole on every rank",
    );
}
