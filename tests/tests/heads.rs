//! Heads other than those of language models: they compute what transformers computes under every plan, follow the
//! configuration, and are initialized if the checkpoint has none.

use burn::optim::AdamWConfig;
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use tpc_compiler::models::{
    Head, HeadKind, Labels, ModelConfig, ModelDir, ModelError, Pooling, PoolingMode, Problem, TokenInputs, Weights,
};
use tpc_compiler::pretrained::{TokenBatch, capture_forward, capture_step, draw_missing, load_weights, names};
use tpc_compiler::program::{CompileOptions, compile_inference};
use tpc_ir::{Mesh, OutputKind};
use tpc_passes::styles::Plan;
use tpc_runtime::LaunchOptions;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/heads").join(path)
}

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("tpc-heads-{}-{name}", std::process::id()));
    let _ = std::fs::remove_dir_all(&dir);
    std::fs::create_dir_all(&dir).unwrap();
    dir
}

/// A copy of a directory with another configuration.
fn changed(name: &str, scratch_name: &str, change: impl FnOnce(&mut Value)) -> PathBuf {
    let dir = scratch(scratch_name);
    std::fs::write(dir.join("model.safetensors"), std::fs::read(data(name).join("model.safetensors")).unwrap())
        .unwrap();
    let mut config: Value = serde_json::from_slice(&std::fs::read(data(name).join("config.json")).unwrap()).unwrap();
    change(&mut config);
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    dir
}

/// The output of a directory on its own batch, on the ranks of a plan.
fn output(dir: &ModelDir, inputs: &Weights, plan: &str, mesh: &str) -> Vec<f64> {
    let shape = &inputs.info("input_ids").unwrap().shape;
    let tokens = TokenBatch {
        batch: shape[0],
        seq: shape[1],
        attention_mask: inputs.contains("attention_mask"),
        token_type_ids: inputs.contains("token_type_ids"),
        documents: false,
    };
    let captured = capture_forward(&dir.config, tokens, false).unwrap();
    let names = names(&dir.config);
    let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
    let options = CompileOptions::for_cpu();
    let program =
        compile_inference(&captured, &Mesh::parse(mesh).unwrap(), &Plan::built_in(plan).unwrap(), &options, &rename)
            .unwrap();
    let mut session = program.launch(LaunchOptions::default()).unwrap();
    load_weights(&mut session, &dir.weight_map(), &dir.weights).unwrap();
    for name in ["input_ids", "attention_mask", "token_type_ids"].into_iter().filter(|name| inputs.contains(name)) {
        let values: Vec<f64> = inputs.read_i64(name).unwrap().into_iter().map(|x| x as f64).collect();
        session.write_f64(name, &values).unwrap();
    }
    session.step().unwrap();
    session.read_f64(&OutputKind::Result(dir.config.head().output().into())).unwrap()
}

/// Checks that the model computes what transformers computes, to 1e-5 of the largest element, under every plan.
fn as_transformers(name: &str, expected_head: &Head) {
    let dir = ModelDir::open(data(name)).unwrap();
    assert_eq!(dir.config.head(), expected_head);
    assert_eq!(dir.warnings, []);
    let inputs = Weights::open_file(&data(name).join("inputs.safetensors")).unwrap();
    let expected = Weights::open_file(&data(name).join("expected.safetensors")).unwrap().read_f32("logits").unwrap();
    let largest = expected.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
    for (plan, mesh) in
        [("none", ""), ("tp", "tp=2"), ("tp-sp", "tp=2"), ("ddp", "dp=3"), ("fsdp", "dp=2"), ("2d", "dp=2,tp=2")]
    {
        let found = output(&dir, &inputs, plan, mesh);
        assert_eq!(found.len(), expected.len());
        let off = found.iter().zip(&expected).fold(0f64, |m, (a, b)| m.max((a - f64::from(*b)).abs()));
        assert!(off <= 1e-5 * largest, "{name} under {plan} on {mesh}: off by {off:e} of {largest}");
    }
}

#[test]
fn bare_models_give_their_hidden_states() {
    for name in ["bert-bare", "llama-bare", "gpt2-bare", "phi3-bare"] {
        as_transformers(name, &Head::Bare);
    }
}

#[test]
fn sentences_are_embedded() {
    let head = |mode, normalize| Head::SentenceEmbedding(Pooling { mode, normalize });
    as_transformers("embedding-mean", &head(PoolingMode::Mean, true));
    as_transformers("embedding-cls", &head(PoolingMode::Cls, false));
    as_transformers("embedding-max", &head(PoolingMode::Max, true));
}

#[test]
fn classifications_give_scores() {
    let labels = |names: [&str; 3], problem| Labels { names: names.map(String::from).to_vec(), problem };
    let named = labels(["person", "place", "none of these"], Problem::SingleLabel);
    as_transformers("bert-sequence", &Head::SequenceClassification(named.clone()));
    as_transformers("bert-token", &Head::TokenClassification(named));
    as_transformers("bert-regression", &Head::SequenceClassification(Labels::numbered(1)));
    let any = labels(["LABEL_0", "LABEL_1", "LABEL_2"], Problem::MultiLabel);
    as_transformers("bert-multi-label", &Head::SequenceClassification(any));
    for name in ["llama-sequence", "gemma3-sequence", "gpt2-sequence"] {
        as_transformers(name, &Head::SequenceClassification(Labels::numbered(3)));
    }
    as_transformers("gpt2-token", &Head::TokenClassification(Labels::numbered(3)));
    as_transformers("phi3-token", &Head::TokenClassification(Labels::numbered(4)));
}

/// The text of an error, without the directory.
fn text(error: ModelError, dir: &Path) -> String {
    error.to_string().replace(&format!("{}/", dir.display()), "")
}

#[test]
fn what_configurations_say_of_heads() {
    let refused = |name: &str, change: &dyn Fn(&mut Value)| {
        let dir = changed(name, "refused", change);
        text(ModelDir::open(&dir).unwrap_err(), &dir)
    };
    assert_eq!(
        refused("bert-sequence", &|config| config["architectures"] = json!(["BertForQuestionAnswering"])),
        "config.json: unknown architecture \"BertForQuestionAnswering\"; supported are BertForMaskedLM, BertModel, \
         BertForSequenceClassification, BertForTokenClassification"
    );
    assert_eq!(
        refused("gemma3-sequence", &|config| config["architectures"] = json!(["Gemma3ForConditionalGeneration"])),
        "config.json: unknown architecture \"Gemma3ForConditionalGeneration\"; supported are Gemma3ForCausalLM, Gemma3TextModel, \
         Gemma3TextForSequenceClassification"
    );
    assert_eq!(
        refused("bert-sequence", &|config| config["problem_type"] = json!("ranking")),
        "config.json: key \"problem_type\" should be null or one of single_label_classification, regression, \
         multi_label_classification, but is \"ranking\""
    );
    assert_eq!(
        refused("bert-sequence", &|config| config["num_labels"] = json!(4)),
        "config.json: inconsistent configuration: num_labels = 4, but id2label has 3 entries"
    );
    assert_eq!(
        refused("bert-sequence", &|config| config["id2label"] = json!({ "0": "yes", "2": "no" })),
        "config.json: key \"id2label\" should be the names of the labels 0 to 1, but is {\"0\":\"yes\",\"2\":\"no\"}"
    );
    assert_eq!(
        refused("bert-sequence", &|config| config["id2label"] = json!({ "0": "yes", "1": "no" })),
        "model.safetensors: tensor \"classifier.weight\" has shape [3, 16], but the configuration says [2, 16]"
    );
    assert_eq!(
        refused("bert-sequence", &|config| config["architectures"] = json!("BertModel")),
        "config.json: key \"architectures\" should be a list of strings, but is \"BertModel\""
    );
    // Without a class the model is a language model.
    let config = |json: Value| ModelConfig::from_json(&json, Path::new("config.json")).unwrap();
    assert_eq!(config(json!({ "model_type": "bert" })).head(), &Head::MaskedLm);
    assert_eq!(config(json!({ "model_type": "qwen3", "architectures": [] })).head(), &Head::CausalLm);
    // transformers assumes two labels if the configuration names none.
    let two = config(json!({ "model_type": "gpt2", "architectures": ["GPT2ForSequenceClassification"] }));
    assert_eq!(two.head(), &Head::SequenceClassification(Labels::numbered(2)));
    // Saving and loading keep the head, for every class of every family.
    for (family, class, kind) in [
        ("llama", "LlamaModel", HeadKind::Bare),
        ("gemma3_text", "Gemma3TextModel", HeadKind::Bare),
        ("olmo2", "Olmo2ForSequenceClassification", HeadKind::SequenceClassification),
        ("phi3", "Phi3ForTokenClassification", HeadKind::TokenClassification),
        ("gpt2", "GPT2Model", HeadKind::Bare),
        ("bert", "BertForTokenClassification", HeadKind::TokenClassification),
    ] {
        let given = config(json!({
            "model_type": family, "architectures": [class], "id2label": { "0": "no", "1": "yes", "2": "neither" },
        }));
        assert_eq!(given.head().kind(), kind);
        let written = given.to_json();
        assert_eq!(written["architectures"], json!([class]));
        assert_eq!(config(written), given);
    }
}

#[test]
fn what_modules_say_of_pooling() {
    let refused = |modules: Value, pooling: Value| {
        let dir = changed("embedding-mean", "pooling", |_| {});
        std::fs::create_dir_all(dir.join("1_Pooling")).unwrap();
        std::fs::write(dir.join("modules.json"), modules.to_string()).unwrap();
        std::fs::write(dir.join("1_Pooling/config.json"), pooling.to_string()).unwrap();
        text(ModelDir::open(&dir).unwrap_err(), &dir)
    };
    let module = |kind: &str| json!({ "path": "1_Pooling", "type": format!("sentence_transformers.models.{kind}") });
    let (transformer, pooling) = (module("Transformer"), module("Pooling"));
    let mean = json!({ "pooling_mode_mean_tokens": true });
    assert_eq!(
        refused(json!([transformer, pooling, module("Dense")]), mean.clone()),
        "modules.json: key \"type\" should be Transformer, Pooling or Normalize, but is sentence_transformers.models.Dense"
    );
    assert_eq!(
        refused(json!([pooling, transformer]), mean.clone()),
        "modules.json: key \"type\" should be in the order Transformer, Pooling, Normalize, but is \
         sentence_transformers.models.Pooling"
    );
    assert_eq!(
        refused(json!([transformer]), mean),
        "modules.json: key \"type\" should be a list with a Pooling, but is none"
    );
    let both = json!({ "pooling_mode_mean_tokens": true, "pooling_mode_max_tokens": true });
    assert_eq!(
        refused(json!([transformer, pooling]), both),
        "1_Pooling/config.json: inconsistent configuration: it selects pooling_mode_mean_tokens and pooling_mode_max_tokens, but exactly \
         one of mean, cls, max is supported"
    );
    assert_eq!(
        refused(json!([transformer, pooling]), json!({ "pooling_mode": "lasttoken" })),
        "1_Pooling/config.json: key \"pooling_mode\" should be one of mean, cls, max, but is \"lasttoken\""
    );
}

#[test]
fn a_model_without_a_loss_says_so() {
    let dir = ModelDir::open(data("bert-bare")).unwrap();
    let error = capture_step(&dir.config, TokenBatch::new(1, 4), &AdamWConfig::new().build()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "this bert gives its last_hidden_state and has no loss to train with; \"architectures\" in config.json selects a head: \
         BertForMaskedLM, BertForSequenceClassification, BertForTokenClassification"
    );
}

#[test]
fn sequences_without_padding_are_classified_one_at_a_time() {
    let dir = changed("llama-sequence", "unpadded", |config| config["pad_token_id"] = Value::Null);
    let config = ModelDir::open(&dir).unwrap().config;
    assert_eq!(
        config.check_batch([2, 4], 1).unwrap_err().to_string(),
        "batch: 2 sequences, but the configuration has no pad_token_id, so the end of each one is unknown; set it, or \
         classify one sequence at a time"
    );
    config.check_batch([1, 4], 1).unwrap();
}

/// A checkpoint without a head gets an initialized one that is named in a note and is the same on every mesh; a saved
/// model contains it.
#[test]
fn a_head_is_drawn() {
    let labels = Labels { names: ["a", "b", "c"].map(String::from).to_vec(), problem: Problem::SingleLabel };
    for (name, missing) in [
        (
            "bert-bare",
            "model.safetensors: 2 tensors are missing and initialized, as for a head that has yet to be trained: classifier.weight, classifier.bias",
        ),
        (
            "llama-bare",
            "model.safetensors: 1 tensor is missing and initialized, as for a head that has yet to be trained: score.weight",
        ),
        (
            "gpt2-bare",
            "model.safetensors: 1 tensor is missing and initialized, as for a head that has yet to be trained: score.weight",
        ),
    ] {
        let dir = ModelDir::open_with_head(data(name), Head::SequenceClassification(labels.clone())).unwrap();
        let warnings: Vec<String> = dir.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].ends_with(missing), "{warnings:?}");
        let drawn = |plan: &str, mesh: &str| {
            let captured = capture_forward(&dir.config, TokenBatch::new(2, 4), true).unwrap();
            let names = names(&dir.config);
            let rename = |path: &str| names.get(path).cloned().unwrap_or_else(|| path.to_string());
            let init = captured.init.iter().map(|(path, init)| (rename(path), init.clone())).collect();
            let (mesh, plan) = (Mesh::parse(mesh).unwrap(), Plan::built_in(plan).unwrap());
            let program = compile_inference(&captured, &mesh, &plan, &CompileOptions::for_cpu(), &rename).unwrap();
            let mut session = program.launch(LaunchOptions::default()).unwrap();
            load_weights(&mut session, &dir.weight_map(), &dir.weights).unwrap();
            draw_missing(&mut session, &init, 5, &dir.weight_map(), &dir.weights).unwrap();
            let all = dir.weight_map().entries;
            all.iter().map(|e| (e.hf_name.clone(), session.read_input_f64(e.name()).unwrap())).collect::<Vec<_>>()
        };
        let (one, two) = (drawn("none", ""), drawn("tp", "tp=2"));
        assert_eq!(one, two);
        for (tensor, values) in one {
            let entry = dir.weight_map().by_hf_name(&tensor).unwrap().clone();
            if entry.is_drawn(&dir.weights) {
                let zero = tensor.ends_with("bias");
                assert!(values.iter().all(|x| (*x == 0.0) == zero && x.abs() < 0.5), "{tensor}: {values:?}");
            } else {
                let read: Vec<f64> = entry.read(&dir.weights).unwrap().into_iter().map(f64::from).collect();
                assert_eq!(values, read, "{tensor}");
            }
        }
    }
    // The family must have such a head.
    let error = ModelDir::open_with_head(data("llama-bare"), Head::MaskedLm).err().unwrap().to_string();
    assert_eq!(
        error,
        "llama has no head for masked language modeling; its heads are LlamaForCausalLM, LlamaModel, LlamaForSequenceClassification, \
         LlamaForTokenClassification"
    );
}

#[test]
fn a_drawn_head_is_saved() {
    let labels = Labels { names: ["a", "b", "c"].map(String::from).to_vec(), problem: Problem::SingleLabel };
    let dir = ModelDir::open_with_head(data("bert-bare"), Head::SequenceClassification(labels.clone())).unwrap();
    let device = Device::flex();
    let model = dir.load(&device).unwrap();
    let to = scratch("drawn");
    let mut found = std::collections::BTreeMap::new();
    struct Values<'a>(Vec<String>, &'a mut std::collections::BTreeMap<String, Vec<f32>>);
    impl burn::module::ModuleVisitor for Values<'_> {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &burn::module::Param<Tensor<D>>) {
            self.1.insert(self.0.join("."), param.val().into_data().try_to_vec::<f32>().unwrap());
        }
    }
    burn::module::Module::visit(&model, &mut Values(Vec::new(), &mut found));
    tpc_compiler::models::save_pretrained(
        &to,
        &dir.config_json,
        &dir.weight_map(),
        |e| Ok(found[&e.burn_path].clone()),
    )
    .unwrap();
    let saved = ModelDir::open(&to).unwrap();
    assert_eq!(saved.warnings, []);
    assert_eq!(saved.config.head(), &Head::SequenceClassification(labels));
    assert_eq!(saved.config_json["architectures"], json!(["BertForSequenceClassification"]));
    assert_eq!(saved.config_json["label2id"], json!({ "a": 0, "b": 1, "c": 2 }));
    let ids = Tensor::<2, Int>::from_data(TensorData::new(vec![1i64, 2, 3], [1, 3]), (&device, DType::I64));
    let logits = |model: &tpc_compiler::models::Model| {
        model.forward(TokenInputs::from(ids.clone())).into_data().try_to_vec::<f32>().unwrap()
    };
    assert_eq!(logits(&model), logits(&saved.load(&device).unwrap()));
}
