//! Generation with a cache computes what forward passes over the whole text compute: the same tokens, and logits within
//! 1e-4, for prompts of different lengths in one batch, on every mesh.

use std::path::PathBuf;
use tpc_compiler::error::Error;
use tpc_compiler::generate::{Choice, Chosen, Generate, Generated, Generator, Limits, Sampling, Why};
use tpc_compiler::models::{ModelDir, TokenInputs, load};
use tpc_compiler::pretrained::load_weights;
use tpc_compiler::program::CompileOptions;
use tpc_ir::{InputKind, OutputKind};
use tpc_passes::options::{Precision, StepOptions};
use tpc_passes::planner::PlacementSource;
use tpc_tests::eager::numbers;
use tpc_tests::training::{mesh, plan};

const NEW: usize = 24;

fn dir(name: &str) -> ModelDir {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/hf").join(name);
    ModelDir::open(dir).unwrap()
}

/// Prompts of different lengths, one of them longer than a run that reads a prompt.
fn prompts(vocabulary: usize) -> Vec<Vec<i64>> {
    let prompt = |length: usize, salt: usize| (0..length).map(move |i| ((i * 7 + salt * 13 + 3) % vocabulary) as i64);
    vec![prompt(5, 0).collect(), prompt(1, 1).collect(), prompt(9, 2).collect()]
}

fn generator(dir: &ModelDir, name: &str, on: &str, limits: Limits) -> Result<Generator, Error> {
    generator_with(&CompileOptions::for_cpu(), dir, name, on, limits)
}

fn generator_with(
    options: &CompileOptions,
    dir: &ModelDir,
    name: &str,
    on: &str,
    limits: Limits,
) -> Result<Generator, Error> {
    let mut generator = Generator::launch(&dir.config, &mesh(on), &plan(name), options, Default::default(), limits)?;
    load_weights(generator.session()?, &dir.weight_map(), &dir.weights)?;
    Ok(generator)
}

fn limits(prompts: &[Vec<i64>], new_tokens: usize) -> Limits {
    let prompt = prompts.iter().map(Vec::len).max().unwrap();
    Limits { batch: prompts.len(), prompt, new_tokens }
}

/// The logits that each new token of a text was chosen by.
type Logits = Vec<Vec<f64>>;

/// Generates, and records the logits of every token.
fn generated(
    generator: &mut Generator,
    prompts: &[Vec<i64>],
    asked: &Generate,
) -> Result<(Vec<Generated>, Vec<Logits>), Error> {
    let mut logits = vec![Vec::new(); prompts.len()];
    let mut listen = |chosen: Chosen<'_>| {
        logits[chosen.prompt].push(chosen.logits.to_vec());
        true
    };
    let texts = generator.generate(prompts, asked, &mut listen)?;
    Ok((texts, logits))
}

/// The logits of the last token of a text, computed by burn itself.
fn forward(dir: &ModelDir, text: &[i64]) -> Vec<Vec<f64>> {
    let device = burn::tensor::Device::flex();
    let model = load(&dir.config, &dir.weights, &device).unwrap();
    let ids = burn::tensor::TensorData::new(text.to_vec(), [1, text.len()]);
    let ids = burn::tensor::Tensor::<2, burn::tensor::Int>::from_data(ids, (&device, burn::tensor::DType::I64));
    let logits = numbers(model.forward(TokenInputs::from(ids)).into_data());
    logits.chunks(logits.len() / text.len()).map(<[f64]>::to_vec).collect()
}

#[test]
fn tokens_and_logits_are_those_of_whole_texts() {
    for name in ["llama-tiny", "gpt2-tiny"] {
        let dir = dir(name);
        let prompts = prompts(dir.config.vocab_size());
        let asked = Generate { new_tokens: NEW, ..Generate::default() };
        let mut first: Option<Vec<Generated>> = None;
        for (plan, on) in
            [("none", ""), ("tp", "tp=2"), ("tp", "tp=4"), ("ddp", "dp=3"), ("2d", "dp=2,tp=2"), ("fsdp", "dp=2")]
        {
            let context = format!("{name}, {plan} on {on}");
            let mut generator =
                generator(&dir, plan, on, limits(&prompts, NEW)).unwrap_or_else(|e| panic!("{context}: {e}"));
            let (texts, logits) = generated(&mut generator, &prompts, &asked).unwrap();
            for (at, prompt) in prompts.iter().enumerate() {
                assert_eq!((texts[at].tokens.len(), texts[at].why), (NEW, Why::Length), "{context}");
                let text = [&prompt[..], &texts[at].tokens].concat();
                let whole = forward(&dir, &text[..text.len() - 1]);
                for (i, found) in logits[at].iter().enumerate() {
                    let expected = &whole[prompt.len() - 1 + i];
                    let far = found.iter().zip(expected).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
                    assert!(far < 1e-4, "{context}: logits of token {i} of prompt {at} are {far} away");
                    let best = expected.iter().cloned().fold(f64::NEG_INFINITY, f64::max);
                    let token = texts[at].tokens[i] as usize;
                    assert!(expected[token] >= best - 1e-4, "{context}: token {i} of prompt {at}");
                }
            }
            assert_eq!(first.get_or_insert_with(|| texts.clone()), &texts, "{context}");
        }
    }
}

/// Greedy generation of 64 tokens from a batch of prompts of different lengths gives transformers' tokens, for every
/// family on one, two and four ranks. (`tests/reference/families.py` made the tokens. The logits of the two best tokens
/// differ by at least the gap that the file states.)
#[test]
fn tokens_are_those_of_transformers() {
    #[derive(serde::Deserialize)]
    struct Reference {
        model: PathBuf,
        smallest_gap: f64,
        prompts: Vec<Vec<i64>>,
        expected: Vec<Vec<i64>>,
    }
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data");
    for family in ["llama", "mistral", "qwen3", "gemma3", "gpt2", "phi3"] {
        let file = std::fs::read(data.join("generation").join(family).with_extension("json")).unwrap();
        let Reference { model, smallest_gap, prompts, expected } = serde_json::from_slice(&file).unwrap();
        assert!(smallest_gap > 1e-4 && expected.iter().all(|tokens| tokens.len() == 64), "{family}");
        let dir = ModelDir::open(data.join(model)).unwrap();
        for (plan, on, placements) in [
            ("none", "", PlacementSource::Given),
            ("tp", "tp=2", PlacementSource::Given),
            ("tp", "tp=4", PlacementSource::Given),
            ("2d", "dp=2,tp=2", PlacementSource::Given),
            ("tp", "tp=2", PlacementSource::Planned),
            ("2d", "dp=2,tp=2", PlacementSource::Planned),
        ] {
            let mut options = CompileOptions::for_cpu();
            options.search.placements = placements;
            let mut generator = generator_with(&options, &dir, plan, on, limits(&prompts, 64)).unwrap();
            let asked = Generate { new_tokens: 64, ..Generate::default() };
            let texts = generator.generate(&prompts, &asked, &mut |_| true).unwrap();
            let found: Vec<Vec<i64>> = texts.into_iter().map(|text| text.tokens).collect();
            assert_eq!(found, expected, "{family}, {plan} on {on}, placements {placements:?}");
        }
    }
}

/// A second call reuses nothing from the first, and fewer prompts than the programs' batch size change nothing.
#[test]
fn calls_are_independent() {
    let dir = dir("llama-tiny");
    let prompts = prompts(dir.config.vocab_size());
    let asked = Generate { new_tokens: 6, ..Generate::default() };
    let mut generator = generator(&dir, "tp", "tp=2", limits(&prompts, NEW)).unwrap();
    let (all, _) = generated(&mut generator, &prompts, &asked).unwrap();
    for (prompt, expected) in prompts.iter().zip(&all) {
        let (alone, _) = generated(&mut generator, std::slice::from_ref(prompt), &asked).unwrap();
        assert_eq!(&alone[0], expected);
    }
}

#[test]
fn sequences_end() {
    let dir = dir("llama-tiny");
    let prompts = prompts(dir.config.vocab_size());
    let mut generator = generator(&dir, "none", "", limits(&prompts, NEW)).unwrap();
    let asked = Generate { new_tokens: NEW, ..Generate::default() };
    let (all, _) = generated(&mut generator, &prompts, &asked).unwrap();
    // A token of the second text ends it, and is its last.
    let end = all[1].tokens[3];
    let position = |tokens: &[i64]| tokens.iter().position(|token| *token == end);
    let ends = Generate { ends: vec![end], ..asked.clone() };
    let (ended, _) = generated(&mut generator, &prompts, &ends).unwrap();
    for (ended, all) in ended.iter().zip(&all) {
        let (length, why) = position(&all.tokens).map_or((NEW, Why::Length), |at| (at + 1, Why::End));
        assert_eq!((&ended.tokens[..], ended.why), (&all.tokens[..length], why));
    }
    // A listener that stops one text still gets all tokens of the others.
    let mut heard = vec![0; prompts.len()];
    let mut listen = |chosen: Chosen<'_>| {
        heard[chosen.prompt] += 1;
        chosen.prompt != 0 || heard[0] < 2
    };
    let stopped = generator.generate(&prompts, &asked, &mut listen).unwrap();
    assert_eq!(heard, [2, NEW, NEW]);
    assert_eq!((&stopped[0].tokens[..], stopped[0].why), (&all[0].tokens[..2], Why::Stopped));
    assert_eq!(stopped[1..], all[1..]);
}

/// Sampling gives the same tokens on every mesh, and others with another seed.
#[test]
fn draws_are_the_same_on_every_mesh() {
    let dir = dir("llama-tiny");
    let prompts = prompts(dir.config.vocab_size());
    let mut texts = Vec::new();
    for (seed, plan, on) in [(1, "none", ""), (1, "tp", "tp=2"), (1, "2d", "dp=2,tp=2"), (2, "none", "")] {
        let choice = Choice::Draw { temperature: 0.9, top_k: Some(20), top_p: 0.95, seed };
        let sampling = Sampling { choice, repetition_penalty: 1.1 };
        let asked = Generate { sampling, new_tokens: NEW, ends: Vec::new() };
        let mut generator = generator(&dir, plan, on, limits(&prompts, NEW)).unwrap();
        texts.push(generated(&mut generator, &prompts, &asked).unwrap().0);
    }
    assert_eq!(texts[0], texts[1]);
    assert_eq!(texts[0], texts[2]);
    assert_ne!(texts[0], texts[3]);
}

/// The cache is sharded by heads and by sequences, and the ranks allocate the memory that the plan states.
#[test]
fn the_cache_is_part_of_the_plan() {
    let dir = dir("llama-tiny");
    let prompts = vec![vec![1, 2, 3], vec![4]];
    // The directory has 4 heads and 2 kv heads of 16 elements; 3 + 7 slots.
    let cases = [
        ("none", "", 10 * 2 * 2 * 16),
        ("tp", "tp=2", 10 * 2 * 16),
        ("tp", "tp=4", 10 * 2 * 16),
        ("2d", "dp=2,tp=2", 10 * 16),
    ];
    for (plan, on, elements) in cases {
        let mut generator = generator(&dir, plan, on, limits(&prompts, 8)).unwrap();
        let asked = Generate { new_tokens: 8, ..Generate::default() };
        generated(&mut generator, &prompts, &asked).unwrap();
        let session = generator.session().unwrap();
        for rank in 0..session.ranks() {
            let programs: Vec<_> = session.programs().map(|ranks| ranks[rank].clone()).collect();
            assert_eq!(programs.len(), 2);
            let largest = programs.iter().map(|program| program.arena_bytes).max().unwrap();
            assert_eq!(session.allocated_bytes(rank), largest, "{plan} on {on}");
            for program in &programs {
                let caches = program.inputs.iter().filter(|i| i.kind == InputKind::State);
                let caches: Vec<usize> = caches.map(|i| i.binding.view.elements()).collect();
                assert_eq!(caches, vec![elements; 2 * dir.config.layers()], "{plan} on {on}");
                let update = |o: &&tpc_ir::program::OutputBinding| matches!(o.kind, OutputKind::Update(_));
                assert_eq!(program.outputs.iter().filter(update).count(), caches.len());
                // No run copies a cache.
                let copies = program.steps.iter().filter(|s| s.label.contains("table") || s.label.contains("update"));
                assert_eq!(copies.count(), 0, "{plan} on {on}");
            }
        }
    }
}

/// In bf16, weights and cache take half of the memory, and logits are close to those in f32, on every mesh.
#[test]
fn weights_and_cache_are_held_in_bf16() {
    let dir = dir("llama-tiny");
    let prompts = prompts(dir.config.vocab_size());
    let asked = Generate { new_tokens: 4, ..Generate::default() };
    let (_, expected) =
        generated(&mut generator(&dir, "none", "", limits(&prompts, 4)).unwrap(), &prompts, &asked).unwrap();
    for (name, on) in [("none", ""), ("tp", "tp=2"), ("2d", "dp=2,tp=2")] {
        let step = StepOptions { precision: Some(Precision::default()), ..StepOptions::default() };
        let options = CompileOptions { step, ..CompileOptions::for_cpu() };
        let mut generator =
            Generator::launch(&dir.config, &mesh(on), &plan(name), &options, Default::default(), limits(&prompts, 4))
                .unwrap();
        load_weights(generator.session().unwrap(), &dir.weight_map(), &dir.weights).unwrap();
        let (_, logits) = generated(&mut generator, &prompts, &asked).unwrap();
        for (found, expected) in logits.iter().zip(&expected) {
            let largest = expected[0].iter().fold(0f64, |most, x| most.max(x.abs()));
            let far = found[0].iter().zip(&expected[0]).fold(0f64, |most, (a, b)| most.max((a - b).abs()));
            assert!(far < 0.03 * largest && far > 0.0, "{name} on {on}: {far} of {largest}");
        }
        let session = generator.session().unwrap();
        for rank in session.programs().flatten() {
            let kept = rank.inputs.iter().filter(|i| matches!(i.kind, InputKind::Parameter | InputKind::State));
            for input in kept {
                assert_eq!(input.binding.view.dtype, tpc_ir::DType::BF16, "{name} on {on}: {}", input.name);
            }
            assert!(!rank.steps.iter().any(|s| s.label.contains("table") || s.label.contains("update")));
        }
    }
}

#[test]
fn what_cannot_be_generated_says_why() {
    let llama = dir("llama-tiny");
    let told = |dir: &ModelDir, limits: Limits| match generator(dir, "none", "", limits) {
        Ok(_) => panic!("{limits:?}"),
        Err(error) => error.to_string(),
    };
    let small = Limits { batch: 2, prompt: 4, new_tokens: 3 };
    assert_eq!(
        told(&dir("bert-tiny"), small),
        "bert does not predict the next token: only causal language models generate"
    );
    assert_eq!(
        told(&llama, Limits { new_tokens: 0, ..small }),
        "generation needs room for at least one sequence and one new token; there is room for 2 and 0"
    );
    let gpt2 = dir("gpt2-tiny");
    let positions = gpt2.config.max_positions();
    assert_eq!(
        told(&gpt2, Limits { prompt: positions, new_tokens: 2, ..small }),
        format!(
            "prompts of {positions} tokens with 2 new ones need {} positions, but gpt2 has {positions} learned positions: \
             shorten the prompt or generate fewer tokens",
            positions + 1
        )
    );
    // As many as exist.
    assert!(generator(&gpt2, "none", "", Limits { prompt: positions - 1, new_tokens: 2, ..small }).is_ok());
    let mut generator = generator(&llama, "none", "", small).unwrap();
    let vocabulary = llama.config.vocab_size() as i64;
    let mut refused = |prompts: &[Vec<i64>]| {
        let asked = Generate { new_tokens: 3, ..Generate::default() };
        generator.generate(prompts, &asked, &mut |_| true).unwrap_err().to_string()
    };
    assert_eq!(refused(&[vec![1], vec![]]), "prompt 1 has no tokens");
    assert_eq!(refused(&[vec![1; 5]]), "prompt 0 has 5 tokens, but the programs are compiled for prompts of 4");
    assert_eq!(refused(&[vec![1], vec![1], vec![1]]), "3 prompts at a time, but the programs are compiled for 2");
    assert_eq!(
        refused(&[vec![1, vocabulary]]),
        format!("prompt 0 has token {vocabulary} at position 1, but the vocabulary has {vocabulary} entries")
    );
    assert_eq!(
        refused(&[vec![-1]]),
        format!("prompt 0 has token -1 at position 0, but the vocabulary has {vocabulary} entries")
    );
}
