//! Model directories as they occur in practice: with options that few files use, with contradictions, and with files
//! that are not models. The command trains each directory of `data/faults`, and must compute what transformers computes
//! or report the fault.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tpc_tests::command::{Scratch, tpc};

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(path)
}

/// A tensor of a file: element type, shape, bytes.
type Raw = (Dtype, Vec<usize>, Vec<u8>);

fn raw(path: &Path) -> BTreeMap<String, Raw> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(n, t)| (n.to_string(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()))).collect()
}

fn write_raw(path: &Path, tensors: &BTreeMap<String, Raw>) {
    let views = tensors.iter().map(|(n, (d, s, b))| (n, TensorView::new(*d, s.clone(), b).unwrap()));
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

/// The f32 tensors of a file.
fn floats(path: &Path) -> BTreeMap<String, Vec<f64>> {
    let values = |(dtype, _, bytes): Raw| -> Vec<f64> {
        assert_eq!(dtype, Dtype::F32);
        bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect()
    };
    raw(path).into_iter().map(|(name, tensor)| (name, values(tensor))).collect()
}

fn json_file(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// The results of a run of `tpc train`.
struct Trained {
    losses: Vec<f64>,
    gradients: BTreeMap<String, Vec<f64>>,
    saved: BTreeMap<String, Vec<f64>>,
    config: String,
    /// The notes about the directory.
    notes: String,
}

/// Runs three steps with the optimizer of the references, on the directory's own batch.
fn train(dir: &Path, inputs: &Path, more: &[&str], scratch: &Scratch) -> Result<Trained, String> {
    let text = |path: PathBuf| path.display().to_string();
    let (save, grads, metrics) = (scratch.0.join("saved"), scratch.0.join("grads"), scratch.0.join("metrics"));
    let (dir, inputs) = (text(dir.into()), text(inputs.into()));
    let files = [text(save.clone()), text(grads.clone()), text(metrics.clone())];
    let arguments = [
        &["train", &dir, "--inputs", &inputs, "--steps", "3", "--optimizer", "adamw", "--lr", "1e-3"][..],
        &["--beta1", "0.9", "--beta2", "0.95", "--eps", "1e-8", "--weight-decay", "0.1", "--decay-all"],
        &["--save", &files[0], "--grads", &files[1], "--metrics", &files[2]],
        more,
    ]
    .concat();
    let _ = std::fs::remove_dir_all(&save);
    let (code, _, err) = tpc(&arguments);
    if code != 0 {
        return Err(err);
    }
    let notes = err.lines().filter(|line| line.contains(&dir)).map(|line| line.replace(&dir, "DIR") + "\n");
    let lines = std::fs::read_to_string(metrics).unwrap();
    let loss = |line: &str| serde_json::from_str::<Json>(line).unwrap()["loss"].as_f64().unwrap();
    Ok(Trained {
        losses: lines.lines().map(loss).collect(),
        gradients: floats(&grads),
        saved: floats(&save.join("model.safetensors")),
        config: std::fs::read_to_string(save.join("config.json")).unwrap(),
        notes: notes.collect(),
    })
}

fn largest(values: &[f64]) -> f64 {
    values.iter().fold(0.0, |m, v| m.max(v.abs()))
}

/// Compares losses to 1e-5, gradients to 1e-4 of each tensor's largest element, and saved weights to 2e-4. Adam divides
/// by the size of the gradient: where that is rounding noise, the step is noise, too; where it is exactly 0, the step
/// is 0.
fn agrees(
    found: &Trained,
    losses: &[f64],
    gradients: &BTreeMap<String, Vec<f64>>,
    saved: &BTreeMap<String, Vec<f64>>,
    what: &str,
) {
    assert_eq!(found.losses.len(), losses.len(), "{what}");
    for (i, (found, loss)) in found.losses.iter().zip(losses).enumerate() {
        assert!((found - loss).abs() <= 1e-5 * loss, "{what}: loss {i} is {found}, expected {loss}");
    }
    let names = |of: &BTreeMap<String, Vec<f64>>| of.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&found.gradients), names(gradients), "{what}: gradients");
    assert_eq!(names(&found.saved), names(saved), "{what}: saved");
    let anywhere = gradients.values().map(|g| largest(g)).fold(0.0, f64::max);
    for (name, want) in gradients {
        let own = largest(want);
        let scale = if own < 1e-6 * anywhere { anywhere } else { own };
        for (i, (f, w)) in found.gradients[name].iter().zip(want).enumerate() {
            let far = (f - w).abs() / scale;
            assert!(far <= 1e-4, "{what}: gradient {i} of {name} is {f:e}, expected {w:e}");
        }
    }
    for (name, want) in saved {
        let gradient = gradients.get(name);
        let own = gradient.map_or(0.0, |g| largest(g));
        for (i, (f, w)) in found.saved[name].iter().zip(want).enumerate() {
            let g = gradient.map_or(0.0, |g| g[i]);
            let noise = g != 0.0 && (g.abs() < 1e-6 * own || own < 1e-6 * anywhere);
            assert!(noise || (f - w).abs() <= 2e-4, "{what}: element {i} of {name} is {f}, expected {w}");
        }
    }
}

/// One rank, tensor parallelism with a sharded vocabulary, with sharded sequences, with sharded parameters, with both,
/// and micro-batches.
const PLANS: [&[&str]; 6] = [
    &[],
    &["--plan", "tp", "--mesh", "tp=2"],
    &["--plan", "tp-sp", "--mesh", "tp=2"],
    &["--plan", "fsdp", "--mesh", "dp=2"],
    &["--plan", "2d", "--mesh", "dp=2,tp=2"],
    &["--plan", "tp", "--mesh", "tp=2", "--micro-batches", "2"],
];

/// Checks that a directory of `data/faults` trains as in transformers under every plan, with these notes.
fn as_transformers(name: &str, plans: &[&[&str]], notes: &str) {
    directory_as_transformers(&data("faults").join(name), name, plans, notes);
}

fn directory_as_transformers(dir: &Path, name: &str, plans: &[&[&str]], notes: &str) {
    let scratch = Scratch::new(name);
    let losses: Vec<f64> = serde_json::from_value(json_file(&dir.join("expected.json"))["losses"].clone()).unwrap();
    let expected = floats(&dir.join("expected.safetensors"));
    let part = |prefix: &str| -> BTreeMap<String, Vec<f64>> {
        expected.iter().filter_map(|(n, v)| Some((n.strip_prefix(prefix)?.to_string(), v.clone()))).collect()
    };
    for plan in plans {
        let found = train(dir, &dir.join("inputs.safetensors"), plan, &scratch).unwrap_or_else(|e| panic!("{e}"));
        agrees(&found, &losses, &part("grad."), &part("param_after."), &format!("{name} {plan:?}"));
        assert_eq!(found.notes, notes, "{name} {plan:?}");
    }
}

#[test]
fn padding_idx() {
    as_transformers("padding-idx-llama", &PLANS, "");
}

#[test]
fn untied_bert_has_two_biases() {
    as_transformers("bert-untied-two-biases", &PLANS, "");
}

#[test]
fn a_head_of_its_own_is_kept() {
    const NOTE: &str = "note: DIR/model.safetensors: tie_word_embeddings is true, but lm_head.weight and model.embed_tokens.weight \
                        differ: both are kept and trained, not tied\n";
    as_transformers("tied-flag-other-head-llama", &PLANS, NOTE);
}

#[test]
fn older_rope_scaling_comes_first() {
    const NOTE: &str =
        "note: DIR/config.json: rope_scaling and rope_parameters have different values: rope_scaling is used\n";
    as_transformers("rope-both-spellings-linear", &PLANS[..4], NOTE);
}

#[test]
fn an_index_says_which_shard() {
    let dir = data("faults/stale-copies-in-a-later-shard");
    let index = json_file(&dir.join("model.safetensors.index.json"));
    let first = "model-00001-of-00002.safetensors";
    let copies: Vec<String> = raw(&dir.join("model-00002-of-00002.safetensors"))
        .into_keys()
        .filter(|name| index["weight_map"][name] == first)
        .collect();
    assert!(copies.len() > 1, "{copies:?}");
    let note = format!(
        "note: DIR/model-00002-of-00002.safetensors: {} tensors are copies of tensors that the index assigns to another file, and ignored: {}\n",
        copies.len(),
        copies.join(", ")
    );
    as_transformers("stale-copies-in-a-later-shard", &PLANS[..4], &note);
}

#[test]
fn a_row_that_sees_no_key_is_eager() {
    as_transformers("left-padding-gradient", &PLANS, "");
}

#[test]
fn null_heads_are_as_many_as_heads() {
    as_transformers("kv-heads-null", &PLANS[..4], "");
}

#[test]
fn qwen3_has_heads_of_128() {
    as_transformers("qwen3-default-head-dim", &PLANS[..4], "");
}

#[test]
fn python_writes_infinity() {
    const NOTE: &str = "note: DIR/config.json: key unused means nothing for llama: ignored\n";
    as_transformers("infinity-in-config", &PLANS[..4], NOTE);
    let (dir, scratch) = (data("faults/infinity-in-config"), Scratch::new("infinity-saved"));
    let found = train(&dir, &dir.join("inputs.safetensors"), &[], &scratch).unwrap_or_else(|e| panic!("{e}"));
    assert!(found.config.contains("\"unused\": Infinity,"), "{}", found.config);
}

#[test]
fn tensors_that_are_not_read_are_listed() {
    let tensors: Vec<String> = (0..2)
        .flat_map(|layer| ["k", "o", "q", "v"].map(|p| format!("model.layers.{layer}.self_attn.{p}_proj.bias")))
        .collect();
    let note = format!("note: DIR/model.safetensors: 8 tensors are not used by the model: {}\n", tensors.join(", "));
    as_transformers("unused-weights-in-silence", &PLANS[..4], &note);
}

#[test]
fn what_is_saved_is_what_the_configuration_says() {
    let (dir, scratch) = (data("faults/saved-dtype"), Scratch::new("saved-dtype"));
    let own = scratch.0.join("own");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("model.safetensors"), std::fs::read(dir.join("model.safetensors")).unwrap()).unwrap();
    let inputs = dir.join("inputs.safetensors");
    let config = json_file(&dir.join("config.json"));
    for (dtype, torch_dtype) in
        [(json!("bfloat16"), None), (Json::Null, Some("bfloat16")), (json!("float16"), Some("float16"))]
    {
        let mut config = config.clone();
        config["dtype"] = dtype.clone();
        if let Some(torch_dtype) = torch_dtype {
            config["torch_dtype"] = json!(torch_dtype);
        }
        std::fs::write(own.join("config.json"), config.to_string()).unwrap();
        for plan in [PLANS[0], PLANS[1], PLANS[3]] {
            let found = train(&own, &inputs, plan, &scratch).unwrap_or_else(|e| panic!("{e}"));
            let mut expected = config.clone();
            for key in ["dtype", "torch_dtype"] {
                if !expected[key].is_null() {
                    expected[key] = json!("float32");
                }
            }
            let saved: Json = serde_json::from_str(&found.config).unwrap();
            // Indexing inserts null for an absent key.
            assert_eq!((&saved["dtype"], &saved["torch_dtype"]), (&expected["dtype"], &expected["torch_dtype"]));
            assert_eq!(saved["hidden_size"], expected["hidden_size"]);
        }
    }
}

#[test]
fn inputs_of_any_integer_type() {
    let (dir, scratch) = (data("faults/bool-mask"), Scratch::new("bool-mask"));
    let given = raw(&dir.join("inputs.safetensors"));
    let numbers = |(dtype, _, bytes): &Raw| -> Vec<i64> {
        match dtype {
            Dtype::BOOL => bytes.iter().map(|b| i64::from(*b)).collect(),
            _ => bytes.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        }
    };
    let as_type = |raw: &Raw, dtype: Dtype| -> Raw {
        let bytes = |n: i64| match dtype {
            Dtype::I64 | Dtype::U64 => n.to_le_bytes().to_vec(),
            Dtype::I32 | Dtype::U32 => (n as i32).to_le_bytes().to_vec(),
            Dtype::I16 | Dtype::U16 => (n as i16).to_le_bytes().to_vec(),
            _ => vec![n as u8],
        };
        (dtype, raw.1.clone(), numbers(raw).into_iter().flat_map(bytes).collect())
    };
    let file = scratch.0.join("inputs.safetensors");
    let write = |name: &str, dtype: Dtype| {
        let mut tensors = given.clone();
        tensors.insert("attention_mask".into(), as_type(&given["attention_mask"], Dtype::I64));
        tensors.insert(name.into(), as_type(&given[name], dtype));
        write_raw(&file, &tensors);
    };
    write("attention_mask", Dtype::I64);
    let expected = train(&dir, &file, &[], &scratch).unwrap_or_else(|e| panic!("{e}"));
    for plan in &PLANS[..4] {
        let found = train(&dir, &dir.join("inputs.safetensors"), plan, &scratch).unwrap_or_else(|e| panic!("{e}"));
        agrees(&found, &expected.losses, &expected.gradients, &expected.saved, &format!("bool {plan:?}"));
    }
    let types = [Dtype::BOOL, Dtype::I8, Dtype::U8, Dtype::I16, Dtype::U16, Dtype::I32, Dtype::U32, Dtype::U64];
    for dtype in types {
        write("attention_mask", dtype);
        let found = train(&dir, &file, &[], &scratch).unwrap_or_else(|e| panic!("{dtype:?}: {e}"));
        assert_eq!(found.losses, expected.losses, "{dtype:?}");
    }
    for dtype in [Dtype::I8, Dtype::U8, Dtype::U16, Dtype::I32] {
        write("input_ids", dtype);
        let found = train(&dir, &file, &[], &scratch).unwrap_or_else(|e| panic!("{dtype:?}: {e}"));
        assert_eq!(found.losses, expected.losses, "{dtype:?}");
    }
    let mut tensors = given.clone();
    let (_, shape, bytes) = &given["attention_mask"];
    let floats = bytes.iter().flat_map(|b| f32::from(*b).to_le_bytes()).collect();
    tensors.insert("attention_mask".into(), (Dtype::F32, shape.clone(), floats));
    write_raw(&file, &tensors);
    let refused = train(&dir, &file, &[], &scratch).err().unwrap();
    assert!(
        refused.ends_with(
            "tensor \"attention_mask\" has element type F32, expected BOOL, or an integer of 8 to 64 bits\n"
        ),
        "{refused}"
    );
}

/// The error of `tpc train` for a directory that it rejects, with file paths replaced.
fn refused(dir: &Path, inputs: &Path, more: &[&str], scratch: &Scratch) -> String {
    let text = train(dir, inputs, more, scratch).err().unwrap_or_else(|| panic!("{} is not refused", dir.display()));
    let text = text.replace(&dir.display().to_string(), "DIR");
    text.strip_prefix("error: ").and_then(|text| text.strip_suffix('\n')).unwrap_or(&text).to_string()
}

#[test]
fn broken_weights_are_refused() {
    let (dir, scratch) = (data("faults/overlapping-tensors"), Scratch::new("broken"));
    let inputs = dir.join("inputs.safetensors");
    for plan in [PLANS[0], PLANS[1]] {
        assert_eq!(
            refused(&dir, &inputs, plan, &scratch),
            "DIR/model.safetensors: not a valid safetensors file: tensor \"model.layers.0.post_attention_layernorm.weight\" at bytes 0 to \
             128 overlaps tensor \"model.layers.0.input_layernorm.weight\" at bytes 0 to 128"
        );
    }
    let good = data("faults/padding-idx-llama");
    let own = scratch.0.join("own");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("config.json"), std::fs::read(good.join("config.json")).unwrap()).unwrap();
    let whole = std::fs::read(good.join("model.safetensors")).unwrap();
    let case = |bytes: Vec<u8>, expected: &str| {
        std::fs::write(own.join("model.safetensors"), bytes).unwrap();
        assert_eq!(refused(&own, &inputs, &[], &scratch), format!("DIR/model.safetensors: {expected}"));
    };
    case(
        [&whole[..], &[0; 12]].concat(),
        "not a valid safetensors file: 12 bytes after the last tensor belong to no tensor",
    );
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 80560\n";
    case(pointer.into(), "is a git-lfs pointer, not the file itself; fetch it with `git lfs pull` in its directory");
    std::fs::write(own.join("config.json"), pointer).unwrap();
    assert_eq!(
        refused(&own, &inputs, &[], &scratch),
        "DIR/config.json: is a git-lfs pointer, not the file itself; fetch it with `git lfs pull` in its directory"
    );
    std::fs::write(own.join("config.json"), std::fs::read(good.join("config.json")).unwrap()).unwrap();
    std::fs::remove_file(own.join("model.safetensors")).unwrap();
    std::fs::write(own.join("pytorch_model.bin"), "PK").unwrap();
    assert_eq!(
        refused(&own, &inputs, &[], &scratch),
        "DIR: no weights: neither model.safetensors nor model.safetensors.index.json; pytorch_model.bin is not read: save the model \
         as safetensors (transformers: `save_pretrained`)"
    );
}

#[test]
fn weights_that_are_no_numbers_are_named() {
    let (dir, scratch) = (data("faults/nan-weights-message"), Scratch::new("nan"));
    let inputs = dir.join("inputs.safetensors");
    for plan in PLANS {
        assert_eq!(
            refused(&dir, &inputs, plan, &scratch),
            "the loss of step 1 is NaN because the weights are not finite: model.norm.weight holds NaN",
            "{plan:?}"
        );
    }
    // Weights that are numbers, but too large.
    let own = scratch.0.join("own");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("config.json"), std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    let mut tensors = raw(&dir.join("model.safetensors"));
    let norm = tensors.get_mut("model.norm.weight").unwrap();
    norm.2 = norm.2.as_chunks::<4>().0.iter().flat_map(|_| 3e38f32.to_le_bytes()).collect();
    write_raw(&own.join("model.safetensors"), &tensors);
    let said = refused(&own, &inputs, PLANS[1], &scratch);
    assert!(said.ends_with("the largest weight is 3e38, in model.norm.weight"), "{said}");
    assert!(said.starts_with("the loss of step 1 is ") && !said.contains("--lr"), "{said}");
}

/// A copy of a directory of reference models with another configuration and other weights.
fn changed(
    name: &str,
    scratch: &Scratch,
    config: impl FnOnce(&mut Json),
    weights: impl FnOnce(&mut BTreeMap<String, Raw>),
) -> PathBuf {
    let (from, to) = (data("hf").join(name), scratch.0.join("changed"));
    let _ = std::fs::remove_dir_all(&to);
    std::fs::create_dir_all(&to).unwrap();
    let mut json = json_file(&from.join("config.json"));
    config(&mut json);
    std::fs::write(to.join("config.json"), json.to_string()).unwrap();
    let mut tensors = raw(&from.join("model.safetensors"));
    weights(&mut tensors);
    write_raw(&to.join("model.safetensors"), &tensors);
    to
}

/// A tensor with every element moved a little.
fn moved((dtype, shape, bytes): &Raw) -> Raw {
    let values = bytes.as_chunks::<4>().0.iter().enumerate();
    let bytes = values.flat_map(|(i, b)| (f32::from_le_bytes(*b) + 0.01 * (i as f32).sin()).to_le_bytes()).collect();
    (*dtype, shape.clone(), bytes)
}

/// The reference models with tied weights: the names of their output weights and of the tied tensor.
const TIED: [(&str, &str, &str); 2] = [
    ("gpt2-tiny", "lm_head.weight", "transformer.wte.weight"),
    ("bert-tiny", "cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight"),
];

#[test]
fn files_decide_what_is_tied() {
    let scratch = Scratch::new("tied");
    for (name, head, source) in TIED {
        let inputs = data("hf").join(name).join("inputs.safetensors");
        let run = |dir: &Path, plan: &[&str]| train(dir, &inputs, plan, &scratch).unwrap_or_else(|e| panic!("{e}"));
        let tied = run(&data("hf").join(name), &[]);
        // An equal copy counts as the same tensor, and so does a single tensor under either name.
        let dir = changed(name, &scratch, |_| {}, |tensors| drop(tensors.insert(head.into(), tensors[source].clone())));
        let found = run(&dir, PLANS[1]);
        assert_eq!(found.notes, "");
        agrees(&found, &tied.losses, &tied.gradients, &tied.saved, &format!("{name}, an equal head"));
        let dir = changed(
            name,
            &scratch,
            |_| {},
            |tensors| {
                let only = tensors.remove(source).unwrap();
                tensors.insert(head.into(), only);
            },
        );
        let found = run(&dir, PLANS[1]);
        assert_eq!(found.notes, "");
        agrees(&found, &tied.losses, &tied.gradients, &tied.saved, &format!("{name}, only a head"));
        // A different tensor is a separate parameter, as in an untied model.
        let other = |tensors: &mut BTreeMap<String, Raw>| drop(tensors.insert(head.into(), moved(&tensors[source])));
        let untied = |config: &mut Json| config["tie_word_embeddings"] = json!(false);
        let dir = changed(name, &scratch, |_| {}, other);
        for plan in &PLANS[..4] {
            let found = run(&dir, plan);
            assert!(
                found.notes.contains(&format!("{head} and {source} differ: both are kept and trained")),
                "{}",
                found.notes
            );
            assert!(found.gradients.contains_key(head) && found.saved.contains_key(head));
            assert!((found.losses[0] - tied.losses[0]).abs() > 1e-4, "{name}: the other head has another loss");
            if name == "gpt2-tiny" {
                assert!(found.config.contains("\"tie_word_embeddings\": false"), "{}", found.config);
                let dir = changed(name, &scratch, untied, other);
                let expected = run(&dir, &[]);
                agrees(&found, &expected.losses, &expected.gradients, &expected.saved, name);
                changed(name, &scratch, |_| {}, other);
            } else {
                // The biases are still tied: only a configuration with tied weights says so.
                assert!(found.config.contains("\"tie_word_embeddings\": true"), "{}", found.config);
                assert!(!found.saved.contains_key("cls.predictions.decoder.bias"));
            }
        }
        // The saved model is read as what it was.
        let saved = scratch.0.join("again");
        let _ = std::fs::remove_dir_all(&saved);
        std::fs::rename(scratch.0.join("saved"), &saved).unwrap();
        let again = run(&saved, &[]);
        assert!(again.saved.contains_key(head));
    }
}

#[test]
fn biases_of_bert() {
    let scratch = Scratch::new("biases");
    let inputs = data("hf/bert-tiny/inputs.safetensors");
    let run = |dir: &Path, plan: &[&str]| train(dir, &inputs, plan, &scratch).unwrap_or_else(|e| panic!("{e}"));
    let (bias, own) = ("cls.predictions.bias", "cls.predictions.decoder.bias");
    let (head, words) = ("cls.predictions.decoder.weight", "bert.embeddings.word_embeddings.weight");
    let untied = |config: &mut Json| config["tie_word_embeddings"] = json!(false);
    // The weights are one parameter and the biases are two, of which only the decoder's is used.
    let dir = changed("bert-tiny", &scratch, |_| {}, |tensors| drop(tensors.insert(own.into(), moved(&tensors[bias]))));
    let kept = floats(&dir.join("model.safetensors"))[bias].clone();
    let two = run(&dir, &[]);
    assert!(two.notes.contains(&format!("{own} and {bias} differ: both are kept and trained")), "{}", two.notes);
    assert!(two.gradients.contains_key(own) && !two.gradients.contains_key(bias) && !two.gradients.contains_key(head));
    assert_eq!(two.saved[bias], kept);
    let sharded = run(&dir, PLANS[1]);
    agrees(&sharded, &two.losses, &two.gradients, &two.saved, "two biases, tp");
    // The same values as in an untied model.
    let dir = changed("bert-tiny", &scratch, untied, |tensors| {
        tensors.insert(own.into(), moved(&tensors[bias]));
        tensors.insert(head.into(), tensors[words].clone());
    });
    let untied_two = run(&dir, &[]);
    assert_eq!(untied_two.notes, "");
    assert!((untied_two.losses[0] - two.losses[0]).abs() <= 1e-6 * two.losses[0]);
    let far = untied_two.gradients[own].iter().zip(&two.gradients[own]).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far <= 1e-5 * largest(&two.gradients[own]), "{far:e}");
    // Files of transformers 4 have one bias: it is the decoder's.
    let dir =
        changed("bert-tiny", &scratch, untied, |tensors| drop(tensors.insert(head.into(), tensors[words].clone())));
    let one = run(&dir, &[]);
    assert!(one.notes.contains(&format!("{own} is missing: {bias} takes its place")), "{}", one.notes);
    let tied = run(&data("hf/bert-tiny"), &[]);
    assert!((one.losses[0] - tied.losses[0]).abs() < 1e-5 * tied.losses[0]);
    assert!(one.saved.contains_key(own) && one.saved.contains_key(bias));
}

/// One row of a table with `width` columns.
fn row(values: &[f64], row: usize, width: usize) -> &[f64] {
    &values[row * width..(row + 1) * width]
}

#[test]
fn padding_rows_of_every_family() {
    let scratch = Scratch::new("padding");
    for (name, head, source) in [TIED[1], ("llama-tiny", "lm_head.weight", "model.embed_tokens.weight")] {
        let inputs = data("hf").join(name).join("inputs.safetensors");
        let ids: Vec<i64> =
            raw(&inputs)["input_ids"].2.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect();
        let (pad, width, vocab) = (ids[3], 64, 256);
        // Two equal tensors: one gets the gradient of the lookup, the other that of the head.
        let run = |family: Option<&str>, tie: bool, pad: Json, plan: &[&str]| {
            let dir = changed(
                name,
                &scratch,
                |config| {
                    config["tie_word_embeddings"] = json!(tie);
                    config["pad_token_id"] = pad;
                    if let Some(family) = family {
                        config["model_type"] = json!(family);
                        config.as_object_mut().unwrap().remove("architectures");
                        config["sliding_window"] = Json::Null;
                        config.as_object_mut().unwrap().remove("attention_bias");
                        config.as_object_mut().unwrap().remove("mlp_bias");
                        config.as_object_mut().unwrap().remove("pretraining_tp");
                    }
                },
                |tensors| {
                    tensors.remove(head);
                    if !tie {
                        tensors.insert(head.into(), tensors[source].clone());
                        if name == "bert-tiny" {
                            let bias = tensors["cls.predictions.bias"].clone();
                            tensors.insert("cls.predictions.decoder.bias".into(), bias);
                        }
                    }
                },
            );
            train(&dir, &inputs, plan, &scratch).unwrap_or_else(|e| panic!("{e}"))
        };
        let families: &[Option<&str>] = if name == "llama-tiny" { &[None, Some("mistral")] } else { &[None] };
        for family in families {
            let apart = run(*family, false, Json::Null, &[]);
            let (look_up, of_head) = (&apart.gradients[source], &apart.gradients[head]);
            let padded = pad as usize;
            assert!(largest(row(look_up, padded, width)) > 1e-4, "the row is looked up");
            // A negative number counts from the end, as in PyTorch.
            for (given, plan) in
                [(pad, PLANS[0]), (pad - vocab, PLANS[0]), (pad, PLANS[1]), (pad, PLANS[3]), (pad, PLANS[5])]
            {
                let together = run(*family, true, json!(given), plan);
                let unpadded = run(*family, true, Json::Null, plan).losses[0];
                assert!((together.losses[0] - unpadded).abs() <= 1e-6 * unpadded, "values do not change");
                let found = &together.gradients[source];
                let scale = largest(found);
                for at in 0..vocab as usize {
                    let both = row(look_up, at, width).iter().zip(row(of_head, at, width));
                    for ((l, h), f) in both.zip(row(found, at, width)) {
                        let expected = if at == padded { *h } else { l + h };
                        let what = format!("{name} {family:?} {plan:?}: row {at} is {f}, expected {expected}");
                        assert!((f - expected).abs() <= 1e-4 * scale, "{what}");
                    }
                }
                let found = run(*family, false, json!(given), plan);
                assert_eq!(largest(row(&found.gradients[source], padded, width)), 0.0);
            }
        }
    }
    // BERT has a padding row unless the configuration says null; an id outside of the vocabulary is rejected, as in
    // PyTorch.
    let inputs = data("hf/bert-tiny/inputs.safetensors");
    let run = |pad: Option<Json>| {
        let dir = changed(
            "bert-tiny",
            &scratch,
            |config| match pad {
                Some(pad) => config["pad_token_id"] = pad,
                None => drop(config.as_object_mut().unwrap().remove("pad_token_id")),
            },
            |_| {},
        );
        train(&dir, &inputs, &[], &scratch)
    };
    let gradients = |run: Result<Trained, String>| run.unwrap_or_else(|e| panic!("{e}")).gradients;
    assert_eq!(gradients(run(None)), gradients(run(Some(json!(0)))));
    for pad in [json!(256), json!(-257), json!("0"), json!(1.5)] {
        let said = run(Some(pad)).err().unwrap();
        assert!(said.contains("key \"pad_token_id\" should be "), "{said}");
    }
}

#[test]
fn the_padding_row_is_drawn_as_zeros() {
    let scratch = Scratch::new("drawn");
    let inputs = data("hf/llama-tiny/inputs.safetensors");
    let dir = changed("llama-tiny", &scratch, |config| config["pad_token_id"] = json!(7), |_| {});
    for plan in [PLANS[0], PLANS[1], PLANS[3]] {
        let more = [plan, &["--from-scratch", "--freeze", "model.embed_tokens"]].concat();
        let drawn = train(&dir, &inputs, &more, &scratch).unwrap_or_else(|e| panic!("{e}")).saved;
        let rows = &drawn["model.embed_tokens.weight"];
        let zeros: Vec<usize> = (0..256).filter(|at| largest(row(rows, *at, 64)) == 0.0).collect();
        assert_eq!(zeros, [7], "{plan:?}");
        assert!(largest(row(&drawn["lm_head.weight"], 7, 64)) > 0.0);
    }
}

#[test]
fn rows_that_see_no_key() {
    // A sequence that consists of padding, and one that begins with it, in every family that takes a mask.
    let scratch = Scratch::new("blind");
    for name in ["llama-tiny", "gpt2-tiny", "bert-tiny"] {
        let mut tensors = raw(&data("hf").join(name).join("inputs.safetensors"));
        let (shape, seq) = (tensors["input_ids"].1.clone(), tensors["input_ids"].1[1]);
        let mask = (0..shape[0] * seq).flat_map(|i| i64::from(i / seq > 0 && i % seq >= 3).to_le_bytes()).collect();
        tensors.insert("attention_mask".into(), (Dtype::I64, shape, mask));
        let inputs = scratch.0.join("inputs.safetensors");
        write_raw(&inputs, &tensors);
        let run =
            |plan: &[&str]| train(&data("hf").join(name), &inputs, plan, &scratch).unwrap_or_else(|e| panic!("{e}"));
        let expected = run(&[]);
        assert!(expected.losses.iter().all(|loss| loss.is_finite()));
        assert!(expected.gradients.values().flatten().all(|g| g.is_finite()));
        for plan in &PLANS[1..] {
            agrees(&run(plan), &expected.losses, &expected.gradients, &expected.saved, &format!("{name} {plan:?}"));
        }
    }
}

/// The notes and the outcome of `tpc dump-ir` for a configuration.
fn dumped(config: &Json, more: &[&str], scratch: &Scratch) -> (u8, String) {
    let dir = scratch.0.join("config");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let dir = dir.display().to_string();
    let arguments = [&["dump-ir", &dir, "--seq", "8"][..], more].concat();
    let (code, _, err) = tpc(&arguments);
    (code, err.replace(&dir, "DIR"))
}

fn llama() -> Json {
    json!({
        "model_type": "llama", "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    })
}

#[test]
fn keys_that_mean_nothing_are_named() {
    let scratch = Scratch::new("keys");
    let with = |family: &str, key: &str, value: Json| {
        let mut config = llama();
        config["model_type"] = json!(family);
        if family == "mistral" {
            config["sliding_window"] = Json::Null;
        }
        config[key] = value;
        dumped(&config, &[], &scratch)
    };
    let nothing = |keys: &str, family: &str| {
        (0u8, format!("note: DIR/config.json: key {keys} means nothing for {family}: ignored\n"))
    };
    assert_eq!(with("llama", "hidden_dim", json!(7)), nothing("hidden_dim", "llama"));
    // Keys of other families.
    assert_eq!(with("llama", "sliding_window", json!(4)), nothing("sliding_window", "llama"));
    assert_eq!(with("mistral", "attention_bias", json!(true)), nothing("attention_bias", "mistral"));
    assert_eq!(
        with("mistral", "layer_types", json!(["full_attention", "full_attention"])),
        nothing("layer_types", "mistral")
    );
    assert_eq!(with("qwen2", "mlp_bias", json!(true)), nothing("mlp_bias", "qwen2"));
    assert_eq!(
        with("llama", "rope_parameters", json!({ "rope_type": "default", "factor": 2.0, "beta_fast": 1 })),
        (0, "note: DIR/config.json: keys rope_parameters.factor, rope_parameters.beta_fast mean nothing for rope_type \"default\": ignored\n".into())
    );
    for key in ["torch_dtype", "eos_token_id", "temperature", "use_cache", "_name_or_path", "pretraining_tp"] {
        assert_eq!(with("llama", key, json!(1)), (0, String::new()), "{key}");
    }
    let refused = |config: (u8, String), what: &str| {
        assert_eq!(config, (1, format!("error: DIR/config.json: {what}\n")));
    };
    refused(with("llama", "is_causal", json!(false)), "key \"is_causal\" should be true, but is false");
    refused(
        with("qwen3", "per_layer_config", json!({"0": {}})),
        "key \"per_layer_config\" should be absent (layers that differ from each other are not supported), but is {\"0\":{}}",
    );
    refused(
        with("qwen2", "layer_types", json!(["full_attention", "sliding_attention"])),
        "inconsistent configuration: layer_types has sliding_attention, but use_sliding_window and sliding_window give no window",
    );
    refused(
        with("llama", "rope_scaling", json!({ "type": "axial", "factor": 2.0 })),
        "key \"rope_scaling.type\" should be one of default, linear, dynamic, yarn, longrope, llama3, but is \"axial\"",
    );
    refused(
        with("llama", "rope_parameters", json!({ "rope_type": "long" })),
        "key \"rope_parameters.rope_type\" should be one of default, linear, dynamic, yarn, longrope, llama3, but is \"long\"",
    );
    refused(with("llama", "rms_norm_eps", json!("x")), "key \"rms_norm_eps\" should be a number, but is \"x\"");
}

#[test]
fn absurd_sizes_are_refused_before_anything_is_allocated() {
    let scratch = Scratch::new("absurd");
    let with = |key: &str, value: Json, more: &[&str]| {
        let mut config = llama();
        config[key] = value;
        dumped(&config, more, &scratch)
    };
    let too_large = |(code, text): (u8, String), beginning: &str| {
        assert_eq!(code, 1, "{text}");
        assert!(text.contains(&format!("error: {beginning}")), "{text}");
        assert!(
            text.contains(" needs at least ") && text.ends_with(" is available\n") || text.contains("can be addressed"),
            "{text}"
        );
    };
    for train in [&[][..], &["--train"]] {
        too_large(
            with("num_hidden_layers", json!(1_000_000_000), train),
            "DIR/config.json: the program of num_hidden_layers = 1000000000 needs at least 100 TB, but ",
        );
        too_large(with("hidden_size", json!(1_000_000_000), train), "llama of ");
        too_large(
            with("vocab_size", json!(2_000_000_000), &[train, &["--batch", "4611686018427387904"]].concat()),
            "--batch 4611686018427387904 --seq 8: the batch of shape ",
        );
        for size in ["4611686018427387904", "9223372036854775807", "18446744073709551615"] {
            let beginning = format!("--batch {size} --seq 8: the batch of shape ");
            too_large(with("hidden_size", json!(32), &[train, &["--batch", size]].concat()), &beginning);
        }
    }
    let (code, text) = with("hidden_size", json!(1u64 << 40), &[]);
    assert_eq!(
        (code, text.as_str()),
        (
            1,
            "error: DIR/config.json: key \"hidden_size\" should be a whole number up to 2147483648, but is 1099511627776\n"
        )
    );
    let dir = scratch.0.join("config").display().to_string();
    for seq in ["4611686018427387904", "9223372036854775807"] {
        std::fs::write(scratch.0.join("config/config.json"), llama().to_string()).unwrap();
        let (code, _, err) = tpc(&["dump-ir", &dir, "--seq", seq]);
        too_large((code, err), &format!("--batch 4 --seq {seq}: the batch of shape "));
        let (code, _, err) = tpc(&["dump-ir", "--preset", "mlp", "--batch", seq]);
        too_large((code, err), "--batch times --seq: the tokens would have ");
        let (code, _, err) = tpc(&["bench", "--preset", "llama", "--batch", seq, "--iters", "1"]);
        too_large((code, err), &format!("--batch {seq} --seq "));
    }
    // A model that is too large for any machine here can still be planned.
    let large = json!({
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 2,
        "num_attention_heads": 128, "num_key_value_heads": 8, "max_position_embeddings": 131072,
    });
    assert_eq!(dumped(&large, &["--plan", "tp", "--mesh", "tp=8"], &scratch), (0, String::new()));
    // It cannot be executed, however.
    let text = scratch.0.join("text");
    std::fs::write(&text, "abcdefghijklmnop".repeat(20)).unwrap();
    let mut large = large;
    large["num_hidden_layers"] = json!(126);
    std::fs::write(scratch.0.join("config/config.json"), large.to_string()).unwrap();
    let text = text.display().to_string();
    let (code, _, err) = tpc(&["train", &dir, "--from-scratch", "--data", &text, "--characters", "--steps", "1"]);
    too_large((code, err), "llama of 405");
}

#[test]
fn defaults_are_those_of_transformers() {
    use tpc_compiler::models::{ModelConfig, ModelDir};
    let config = |json: Json| ModelConfig::from_json(&json, Path::new("config.json")).unwrap_or_else(|e| panic!("{e}"));
    let llama = |json: Json| match config(json) {
        ModelConfig::Decoder(c) => c,
        other => panic!("{other:?}"),
    };
    // (family, vocabulary, width of the MLP, positions, kv heads, width of a head, biases of q, k and v)
    let families = [
        ("llama", 32000, 11008, 2048, 32, 128, false),
        ("mistral", 32000, 14336, 131_072, 8, 128, false),
        ("qwen2", 151_936, 22016, 32768, 32, 128, true),
        ("qwen3", 151_936, 22016, 32768, 32, 128, false),
    ];
    for (family, vocab, inner, positions, kv, head_dim, bias) in families {
        let c = llama(json!({ "model_type": family }));
        let found = (
            c.vocab_size,
            c.intermediate_size,
            c.max_position_embeddings,
            c.num_key_value_heads,
            c.head_dim,
            c.qkv_bias,
        );
        assert_eq!(found, (vocab, inner, positions, kv, head_dim, bias), "{family}");
        assert_eq!((c.hidden_size, c.num_hidden_layers, c.num_attention_heads), (4096, 32, 32));
        assert_eq!((c.rms_norm_eps, c.rope.theta, c.tie_word_embeddings, c.padding_idx), (1e-6, 10000.0, false, None));
        assert_eq!(c.sliding_window(), (family == "mistral").then_some(4096));
        // In every family, null heads mean as many kv heads as query heads.
        assert_eq!(llama(json!({ "model_type": family, "num_key_value_heads": null })).num_key_value_heads, 32);
    }
    // Only Llama requires a width that is a multiple of the heads.
    let odd = |family: &str| json!({ "model_type": family, "hidden_size": 74, "num_attention_heads": 4, "num_key_value_heads": 4 });
    assert_eq!(llama(odd("mistral")).head_dim, 18);
    ModelConfig::from_json(&odd("llama"), Path::new("config.json")).unwrap_err();
    let qwen = |json: Json| llama(json).windows;
    assert_eq!(
        qwen(json!({ "model_type": "qwen2", "num_hidden_layers": 30, "use_sliding_window": true }))[27..],
        [None, Some(4096), Some(4096)]
    );
    assert_eq!(
        qwen(
            json!({ "model_type": "qwen2", "num_hidden_layers": 1, "use_sliding_window": true, "sliding_window": null })
        ),
        [None]
    );
    let ModelConfig::Gpt2(c) = config(json!({ "model_type": "gpt2" })) else { panic!() };
    assert_eq!(
        (c.vocab_size, c.n_positions, c.n_embd, c.n_layer, c.n_head, c.n_inner),
        (50257, 1024, 768, 12, 12, 3072)
    );
    assert_eq!((c.tie_word_embeddings, c.dropout), (true, 0.1));
    // The general names of GPT-2's sizes are set last.
    let ModelConfig::Gpt2(c) =
        config(json!({ "model_type": "gpt2", "n_embd": 64, "hidden_size": 96, "num_hidden_layers": 3 }))
    else {
        panic!()
    };
    assert_eq!((c.n_embd, c.n_layer), (96, 3));
    let ModelConfig::Bert(c) = config(json!({ "model_type": "bert" })) else { panic!() };
    assert_eq!((c.vocab_size, c.hidden_size, c.num_hidden_layers, c.intermediate_size), (30522, 768, 12, 3072));
    assert_eq!((c.max_position_embeddings, c.type_vocab_size, c.padding_idx, c.dropout), (512, 2, Some(0), 0.1));
    assert_eq!(c.layer_norm_eps, 1e-12);
    // Invalid values of a size: null where transformers does not accept null.
    let null = json!({ "model_type": "llama", "hidden_size": null });
    assert_eq!(
        ModelConfig::from_json(&null, Path::new("config.json")).unwrap_err().to_string(),
        "config.json: key \"hidden_size\" should be a whole number from 1 up, but is null"
    );
    assert!(ModelDir::open(data("hf/llama-tiny")).unwrap().warnings.is_empty());
}

/// Fused tensors are written whole, gradients and weights alike, and labels have the type and shape that the head
/// expects.
#[test]
fn fused_tensors_and_heads_are_trained_by_the_command() {
    for name in [
        "families/phi3",
        "heads/phi3-token",
        "heads/llama-sequence",
        "heads/bert-multi-label",
        "heads/qwen3-regression",
    ] {
        directory_as_transformers(&data(name), &name.replace('/', "-"), &PLANS[..3], "");
    }
}

#[test]
fn labels_that_a_head_does_not_take_are_refused() {
    let scratch = Scratch::new("labels");
    let of = |name: &str, labels: Raw| {
        let mut tensors = raw(&data(name).join("inputs.safetensors"));
        tensors.insert("labels".into(), labels);
        let inputs = scratch.0.join("inputs.safetensors");
        write_raw(&inputs, &tensors);
        let said = train(&data(name), &inputs, &[], &scratch).err().unwrap();
        said.replace(&format!("{}: ", inputs.display()), "")
    };
    let integers = |shape: &[usize], values: &[i64]| -> Raw {
        (Dtype::I64, shape.to_vec(), values.iter().flat_map(|v| v.to_le_bytes()).collect())
    };
    assert_eq!(
        of("heads/bert-sequence", integers(&[3], &[0, 3, 1])),
        "error: labels has 3, but the sequence classification has 3 labels (and -100 ignores one)\n"
    );
    assert_eq!(
        of("heads/bert-sequence", integers(&[3, 2], &[0, 1, 0, 1, 0, 1])),
        "error: tensor \"labels\" has shape [3, 2], expected [3, 1]\n"
    );
    assert_eq!(
        of("heads/bert-sequence", integers(&[3], &[-100, -100, -100])),
        "error: labels: all are -100 (ignored), so there is no loss\n"
    );
    assert_eq!(
        of("heads/bert-multi-label", integers(&[3, 3], &[0; 9])),
        "error: tensor \"labels\" has element type I64, expected F32, F16, BF16 or F64\n"
    );
}
