//! Training on texts has the losses of a plain PyTorch loop, on any mesh and across any interruptions.

mod support;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use support::{Scratch, Told, Tpc, losses, model, signal, tpc, until};

fn crate_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// The tokens of the stored tokenizer.
const VOCAB: usize = 400;

/// A tiny model with the stored tokenizer. Its embedding gets more rows: copies of the first rows at half the size.
fn extended(name: &str, scratch: &Scratch) -> String {
    let (from, to) = (model(name), scratch.path(name));
    fs::create_dir_all(&to).unwrap();
    let mut config: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    let old = config["vocab_size"].as_u64().unwrap() as usize;
    config["vocab_size"] = VOCAB.into();
    fs::write(format!("{to}/config.json"), config.to_string()).unwrap();
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> = Vec::new();
    for (name, tensor) in file.iter() {
        let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().to_vec());
        let of_tokens =
            ["embed_tokens.weight", "lm_head.weight", "wte.weight", "word_embeddings.weight", "predictions.bias"];
        if of_tokens.iter().any(|end| name.ends_with(end)) {
            assert_eq!(shape[0], old, "{name}");
            let row = data.len() / old;
            let half = |bytes: &[u8; 4]| (0.5 * f32::from_le_bytes(*bytes)).to_le_bytes();
            let more: Vec<u8> = data[..(VOCAB - old) * row].as_chunks::<4>().0.iter().flat_map(half).collect();
            data.extend(more);
            shape[0] = VOCAB;
        }
        tensors.push((name.to_string(), shape, data));
    }
    let views = tensors.iter().map(|(n, s, d)| (n.clone(), TensorView::new(Dtype::F32, s.clone(), d).unwrap()));
    let views: HashMap<String, TensorView> = views.collect();
    fs::write(format!("{to}/model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    let tokenizer = crate_dir().join("../data/tests/data/tokenizer");
    fs::copy(tokenizer.join("tokenizer.json"), format!("{to}/tokenizer.json")).unwrap();
    let text = fs::read(tokenizer.join("tokenizer_config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    // As in `tests/reference/finetune.py`.
    config["mask_token"] = json!("<|start_header_id|>");
    fs::write(format!("{to}/tokenizer_config.json"), config.to_string()).unwrap();
    to
}

fn verses() -> String {
    crate_dir().join("tests/data/verses.jsonl").display().to_string()
}

fn reference() -> Value {
    serde_json::from_slice(&fs::read(crate_dir().join("tests/data/finetune.json")).unwrap()).unwrap()
}

/// The options of the loop in `tests/reference/finetune.py`.
const LOOP: &str = "--field verse --seq 32 --batch 4 --seed 11 --lr 2e-3 --warmup 5 --schedule cosine --beta2 0.95 \
                    --weight-decay 0.1 --clip-norm 1";

fn succeeds(arguments: &[&str]) -> Told {
    let told = tpc(arguments);
    assert_eq!(told.code, 0, "{arguments:?}: {}", told.err);
    told
}

fn compares(metrics: &str, name: &str, steps: usize, context: &str) {
    let expected = reference()[name].clone();
    let found = losses(metrics);
    assert_eq!(found.len(), steps);
    for (step, loss) in found {
        let want = expected[step as usize - 1].as_f64().unwrap();
        assert!((loss - want).abs() <= 1e-4, "{name} {context}: step {step}: {loss}, PyTorch has {want}");
    }
}

/// On one rank, on two, on four, and started on one mesh and finished on another.
fn fine_tunes(model: &str, rows: &str, more: &[&str]) {
    let scratch = Scratch::new(&format!("finetune-{model}-{rows}"));
    let (dir, text) = (extended(model, &scratch), verses());
    let base: Vec<&str> = ["train", &dir, "--data", &text]
        .into_iter()
        .chain(LOOP.split_whitespace())
        .chain(more.iter().copied())
        .collect();
    let name = &*format!("{model} {rows}");
    let meshes: [(&str, &[&str]); 3] = [
        ("one", &[]),
        ("two", &["--plan", "tp", "--mesh", "tp=2"]),
        ("four", &["--plan", "2d", "--mesh", "dp=2,tp=2"]),
    ];
    for (context, mesh) in meshes {
        let metrics = scratch.path(&format!("{context}.jsonl"));
        succeeds(&[&base[..], &["--steps", "50", "--metrics", &metrics], mesh].concat());
        compares(&metrics, name, 50, context);
    }
    let (run, metrics) = (scratch.path("run"), scratch.path("resumed.jsonl"));
    let kept = ["--steps", "50", "--checkpoint", &run, "--save-every", "23", "--metrics", &metrics];
    let first = [&base[..], &kept, meshes[2].1].concat();
    succeeds(&first);
    // As if it had been interrupted after its first checkpoint, within an epoch.
    for step in ["46", "50"] {
        fs::remove_dir_all(format!("{run}/step-0000{step}")).unwrap();
    }
    let told = succeeds(&[&base[..], &kept, meshes[1].1, &["--resume"]].concat());
    assert!(
        !told.out.contains("step 23/") && told.out.contains("step 24/50") || told.out.contains("step 50/50"),
        "{}",
        told.out
    );
    compares(&metrics, name, 50, "resumed");
}

#[test]
fn llama_learns_as_in_pytorch() {
    fine_tunes("llama-tiny", "apart", &[]);
}

#[test]
fn gpt2_learns_as_in_pytorch() {
    fine_tunes("gpt2-tiny", "apart", &[]);
}

#[test]
fn tokens_may_see_the_documents_before_their_own() {
    fine_tunes("llama-tiny", "mixed", &["--mix-documents"]);
    fine_tunes("gpt2-tiny", "mixed", &["--mix-documents"]);
}

#[test]
fn bert_learns_as_in_pytorch() {
    fine_tunes("bert-tiny", "guessed", &[]);
}

/// A run that is interrupted at twenty random moments has the curve of an uninterrupted one.
#[test]
fn a_run_that_is_told_to_end_twenty_times_has_the_same_curve() {
    let scratch = Scratch::new("told");
    let (dir, text) = (extended("llama-tiny", &scratch), verses());
    let (whole, told, run) = (scratch.path("whole.jsonl"), scratch.path("told.jsonl"), scratch.path("run"));
    let base: Vec<&str> =
        ["train", &dir, "--data", &text, "--steps", "1500"].into_iter().chain(LOOP.split_whitespace()).collect();
    succeeds(&[&base[..], &["--metrics", &whole]].concat());
    let more = ["--checkpoint", &run, "--keep", "1", "--resume", "--metrics", &told];
    let mut seed = 12345u64;
    for attempt in 0..20 {
        let lines = || fs::read_to_string(&told).unwrap_or_default().lines().count();
        let before = lines();
        let process = Tpc::start(&[&base[..], &more].concat());
        until("steps", Duration::from_secs(100), || lines() > before + 1);
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        std::thread::sleep(Duration::from_micros(seed >> 33 & 0xffff));
        signal(process.pid(), "TERM");
        let said = process.end(Duration::from_secs(100));
        assert_eq!(said.code, 143, "{attempt}: {}", said.err);
        let kept = lines();
        let note = format!("SIGTERM ended the run after step {kept} of 1500, which is kept in {run}/step-{kept:06}");
        assert!(said.err.contains(&note), "{}, {note}", said.err);
    }
    assert!(losses(&told).len() < 1500, "all twenty came before the end");
    succeeds(&[&base[..], &more].concat());
    assert_eq!(losses(&told), losses(&whole), "to the last bit");
}

#[test]
fn the_exact_command_to_go_on_is_told() {
    let scratch = Scratch::new("again");
    let (dir, text) = (extended("llama-tiny", &scratch), verses());
    let (run, metrics) = (scratch.path("run"), scratch.path("m.jsonl"));
    let arguments = [
        "train",
        &dir,
        "--data",
        &text,
        "--field",
        "verse",
        "--steps",
        "1000000",
        "--checkpoint",
        &run,
        "--metrics",
        &metrics,
    ];
    let process = Tpc::start(&arguments);
    until("a step", Duration::from_secs(100), || fs::read_to_string(&metrics).unwrap_or_default().lines().count() > 1);
    signal(process.pid(), "INT");
    let told = process.end(Duration::from_secs(100));
    assert_eq!(told.code, 130);
    let line = told.err.trim_end().rsplit("; to continue: ").next().unwrap();
    assert_eq!(line, format!("{} {} --resume", env!("CARGO_BIN_EXE_tpc"), arguments.join(" ")));
}

#[test]
fn evaluations_are_made_and_the_best_is_kept() {
    let scratch = Scratch::new("evaluation");
    let (dir, text) = (extended("llama-tiny", &scratch), verses());
    let (run, metrics) = (scratch.path("run"), scratch.path("m.jsonl"));
    let base: Vec<&str> =
        ["train", &dir, "--data", &text, "--held-out", "0.2"].into_iter().chain(LOOP.split_whitespace()).collect();
    let kept = ["--steps", "30", "--eval-every", "10", "--checkpoint", &run, "--metrics", &metrics];
    let told = succeeds(&[&base[..], &kept].concat());
    let evaluated = |metrics: &str| -> Vec<(u64, f64, f64)> {
        let lines = fs::read_to_string(metrics).unwrap();
        let rows = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let of =
            |row: Value| Some((row["step"].as_u64()?, row["eval_loss"].as_f64()?, row["eval_perplexity"].as_f64()?));
        rows.filter_map(of).collect()
    };
    let found = evaluated(&metrics);
    assert_eq!(found.iter().map(|(step, ..)| *step).collect::<Vec<_>>(), [10, 20, 30]);
    assert!(found.iter().all(|(_, loss, perplexity)| (loss.exp() - perplexity).abs() < 1e-9));
    assert!(found[2].1 < found[0].1, "{found:?}");
    assert!(
        told.out.contains(&format!("step 10/30  eval loss {:.6}  perplexity {:.4}\n", found[0].1, found[0].2)),
        "{}",
        told.out
    );
    let names = |dir: &str| -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = entries.collect();
        names.sort();
        names
    };
    assert_eq!(names(&run), ["best", "step-000030"]);
    let best = found.iter().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
    assert_eq!(names(&format!("{run}/best")), [format!("step-{:06}", best.0)]);
    // Evaluating does not affect the training, and other meshes give the same evaluation.
    let without = scratch.path("without.jsonl");
    succeeds(&[&base[..], &["--steps", "30", "--metrics", &without]].concat());
    assert_eq!(losses(&without), losses(&metrics));
    assert_eq!(evaluated(&without), found[2..], "after the last step");
    let four = scratch.path("four.jsonl");
    succeeds(
        &[
            &base[..],
            &["--steps", "30", "--eval-every", "10", "--metrics", &four, "--plan", "2d", "--mesh", "dp=2,tp=2"],
        ]
        .concat(),
    );
    for (a, b) in evaluated(&four).iter().zip(&found) {
        assert!((a.1 - b.1).abs() < 1e-4, "{a:?} {b:?}");
    }
    // As launched processes, which share one compilation.
    let two = scratch.path("two.jsonl");
    let launched = [
        &["launch", "--ranks", "2", "--"],
        &base[..],
        &["--steps", "10", "--metrics", &two, "--plan", "tp", "--mesh", "tp=2"],
    ]
    .concat();
    succeeds(&launched);
    let ten = scratch.path("ten.jsonl");
    succeeds(&[&base[..], &["--steps", "10", "--metrics", &ten]].concat());
    assert!((evaluated(&two)[0].1 - evaluated(&ten)[0].1).abs() < 1e-4);
}

#[test]
fn epochs_are_counted_in_steps() {
    let scratch = Scratch::new("epochs");
    let (dir, text) = (extended("llama-tiny", &scratch), verses());
    let metrics = scratch.path("m.jsonl");
    let base =
        ["train", &dir, "--data", &text, "--field", "verse", "--seq", "64", "--batch", "8", "--metrics", &metrics];
    let told = succeeds(&[&base[..], &["--epochs", "2", "--pad"]].concat());
    let lines = fs::read_to_string(&metrics).unwrap();
    let epochs: Vec<u64> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["epoch"].as_u64().unwrap()).collect();
    let steps = epochs.len();
    assert!(epochs.is_sorted() && epochs[0] == 0 && epochs[steps - 1] == 1, "{epochs:?}");
    assert!(told.out.contains(&format!("step {steps}/{steps}")), "{}", told.out);
    // The speed and memory of the run, in one line at the end.
    let last = told.out.lines().last().unwrap();
    for part in
        [" tokens in ", " tokens/s, ", "% of the time waiting for data, ", " MB per rank, MFU ", " GFLOP/s measured"]
    {
        assert!(last.contains(part), "{last}");
    }
}

#[test]
fn conversations_count_what_is_answered() {
    let scratch = Scratch::new("chat");
    let dir = extended("llama-tiny", &scratch);
    fs::write(
        format!("{dir}/chat_template.jinja"),
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}",
    )
    .unwrap();
    let talk = |answer: &str| json!({"messages": [{"role": "user", "content": "Who begat Isaac?"}, {"role": "assistant", "content": answer}]});
    let text = scratch.path("talk.jsonl");
    fs::write(&text, format!("{}\n", talk("Abraham begat Isaac.")).repeat(8)).unwrap();
    let first = |more: &[&str]| {
        let metrics = scratch.path("m.jsonl");
        let base = [
            "train",
            &dir,
            "--data",
            &text,
            "--chat",
            "--pad",
            "--seq",
            "48",
            "--batch",
            "4",
            "--steps",
            "1",
            "--metrics",
            &metrics,
        ];
        succeeds(&[&base[..], more].concat());
        losses(&metrics)[0].1
    };
    let (answers, all) = (first(&[]), first(&["--loss-on", "all"]));
    assert_eq!(first(&["--loss-on", "answers"]), answers);
    assert!((answers - all).abs() > 1e-3, "{answers} {all}");
    let told = tpc(&["train", &dir, "--data", &verses(), "--chat", "--steps", "1"]);
    assert_eq!(told.code, 1);
    assert!(
        told.err
            .contains("verses.jsonl: line 1: no field \"messages\"; its fields are \"verse\"; --field selects another"),
        "{}",
        told.err
    );
    fs::write(format!("{dir}/chat_template.jinja"), "{{ raise_exception('no talk') }}").unwrap();
    fs::write(&text, format!("{}\n", talk("Abraham."))).unwrap();
    let told = tpc(&["train", &dir, "--data", &text, "--chat", "--steps", "1"]);
    assert_eq!(
        (told.code, told.said()),
        (
            1,
            vec![&*format!(
                "error: {text}: line 1: {dir}/chat_template.jinja: line 1: the chat template fails: no talk"
            )]
        )
    );
}

#[test]
fn a_tokenizer_is_trained_and_saved_with_the_model() {
    let scratch = Scratch::new("tokenizer");
    let dir = extended("gpt2-tiny", &scratch);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::remove_file(format!("{dir}/{name}")).unwrap();
    }
    let text = verses();
    let train = ["tokenizer", "train", &dir, &text, "--field", "verse"];
    let fails = |arguments: &[&str]| {
        let told = tpc(arguments);
        assert_eq!((told.code, &*told.out), (1, ""));
        told.err
    };
    assert_eq!(
        fails(&[&train[..], &["--vocab", "401"]].concat()),
        format!("error: {dir}: --vocab 401 is more than the 400 rows of the model's embedding\n")
    );
    let bytes = fs::metadata(&text).unwrap().len();
    let told = succeeds(&[&train[..], &["--special", "<|im_end|>", "--vocab", "300"]].concat());
    assert_eq!(told.out, format!("a tokenizer of 300 tokens from {bytes} bytes of text\nsaved {dir}\n"));
    assert_eq!(
        fails(&train),
        format!("error: {dir}/tokenizer.json: the directory already has a tokenizer: --force replaces it\n")
    );
    succeeds(&[&train[..], &["--force"]].concat());
    let saved = scratch.path("saved");
    succeeds(&["train", &dir, "--data", &text, "--field", "verse", "--seq", "16", "--steps", "2", "--save", &saved]);
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        assert_eq!(fs::read(format!("{saved}/{name}")).unwrap(), fs::read(format!("{dir}/{name}")).unwrap());
    }
    assert!(!Path::new(&saved).join("alphabet.json").exists());
    // The saved model can be trained further.
    succeeds(&["train", &saved, "--data", &text, "--field", "verse", "--seq", "16", "--steps", "1"]);
    let empty = scratch.path("empty");
    assert_eq!(
        fails(&["tokenizer", "train", &empty, &text, "--field", "verse"]),
        format!("error: {empty}: there is no config.json that gives the model's number of tokens: give --vocab\n")
    );
}

#[test]
fn what_does_not_fit_a_checkpoint_is_refused() {
    let scratch = Scratch::new("other");
    let (dir, text) = (extended("llama-tiny", &scratch), verses());
    let run = scratch.path("run");
    let base = ["train", &dir, "--data", &text, "--field", "verse", "--batch", "2", "--checkpoint", &run];
    succeeds(&[&base[..], &["--seq", "16", "--steps", "2", "--schedule", "linear"]].concat());
    let told = tpc(&[&base[..], &["--seq", "8", "--steps", "4", "--resume"]].concat());
    assert_eq!(
        (told.code, told.said()),
        (
            1,
            vec![
                "error: the checkpoint was written with other data: the length of a sequence was 16, but is 8; give the same data and options, or start with another --checkpoint"
            ]
        )
    );
    let told = succeeds(&[&base[..], &["--seq", "16", "--steps", "4", "--schedule", "linear", "--resume"]].concat());
    assert_eq!(told.said(), ["note: the learning rate now ends at step 4; so far the run was scheduled for 2 steps"]);
    let fails = |more: &str| {
        let told = tpc(&[
            &["train", &dir, "--data", &text, "--field", "verse", "--steps", "2"],
            &more.split(' ').collect::<Vec<_>>()[..],
        ]
        .concat());
        assert_eq!(told.code, 1, "{}", told.err);
        told.err
    };
    assert_eq!(
        fails("--min-lr 1"),
        "error: --min-lr has no effect with --schedule constant, whose rate does not decay; leave it out\n"
    );
    assert_eq!(fails("--schedule cosine --min-lr 1"), "error: --min-lr 1 is above --lr 0.001\n");
    assert_eq!(fails("--warmup 3"), "error: --warmup 3 is longer than the run of 2 steps\n");
    assert_eq!(
        fails("--schedule wsd --warmup 1 --decay-steps 2"),
        "error: --decay-steps 2 and --warmup 1 together exceed the 2 steps of the run\n"
    );
    assert_eq!(
        fails("--eval-every 1"),
        "error: --eval-every has no effect without data to evaluate on: --eval-data FILE or --held-out SHARE; leave it out\n"
    );
    // A text with tokens that the model does not have.
    let mut config: Value = serde_json::from_slice(&fs::read(format!("{dir}/config.json")).unwrap()).unwrap();
    config["vocab_size"] = 256.into();
    fs::write(format!("{dir}/config.json"), config.to_string()).unwrap();
    let told =
        tpc(&["train", &dir, "--from-scratch", "--data", &text, "--field", "verse", "--steps", "1", "--seq", "8"]);
    assert_eq!(told.code, 1);
    let [note, error] = told.said()[..] else { panic!("{}", told.err) };
    assert_eq!(
        note,
        "note: the tokenizer has 400 tokens, but the model's embedding has 256 rows: a text with a token beyond them is an error"
    );
    assert!(
        error.starts_with(&format!("error: {text}: line "))
            && error.ends_with(", but the model's embedding has 256 rows: the tokenizer does not belong to the model"),
        "{error}"
    );
}

#[test]
fn events_are_written_beside_the_lines() {
    let scratch = Scratch::new("events");
    let (dir, text) = (extended("llama-tiny", &scratch), verses());
    let (events, run) = (scratch.path("events"), scratch.path("run"));
    let base = [
        "train",
        &dir,
        "--data",
        &text,
        "--field",
        "verse",
        "--seq",
        "16",
        "--checkpoint",
        &run,
        "--tensorboard",
        &events,
    ];
    succeeds(&[&base[..], &["--steps", "2"]].concat());
    let begun = Instant::now();
    succeeds(&[&base[..], &["--steps", "3", "--resume"]].concat());
    assert!(begun.elapsed() < Duration::from_secs(100));
    let mut files: Vec<PathBuf> = fs::read_dir(&events).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let count =
        |file: &Path, text: &str| fs::read(file).unwrap().windows(text.len()).filter(|w| *w == text.as_bytes()).count();
    let counts: Vec<(usize, usize)> =
        files.iter().map(|file| (count(file, "brain.Event:2"), count(file, "tokens_per_s"))).collect();
    assert_eq!(counts.iter().map(|c| c.0).collect::<Vec<_>>(), [1, 1]);
    assert_eq!(counts.iter().map(|c| c.1).sum::<usize>(), 3);
}
