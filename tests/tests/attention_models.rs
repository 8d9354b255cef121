//! The attention of models of every family is found under every plan: one forward and one backward kernel for every
//! layer and micro-batch.

use std::path::PathBuf;
use tpc_compiler::models::ModelDir;
use tpc_compiler::pretrained::TokenBatch;
use tpc_compiler::program::CompileOptions;
use tpc_ir::program::Action;
use tpc_passes::options::{Precision, StepOptions};
use tpc_tests::training::{language_model, plan};

/// The numbers of forward and backward attention kernels, which are the same on every rank.
fn counted(model: &str, (name, mesh): (&str, &str), step: &StepOptions, attention_mask: bool) -> [usize; 2] {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/hf").join(model);
    let config = ModelDir::open(dir).unwrap().config;
    let options = CompileOptions { step: step.clone(), ..CompileOptions::for_cpu() };
    let tokens = TokenBatch { attention_mask, ..TokenBatch::new(8, 16) };
    let program = language_model(&config, tokens, &plan(name), mesh, &options);
    let count = |rank: &tpc_ir::program::RankProgram| {
        let of = |backward: bool| {
            let is = |a: &Action| matches!(a, Action::Attention(a) if a.backward.is_some() == backward);
            rank.steps.iter().filter(|s| is(&s.action)).count()
        };
        [of(false), of(true)]
    };
    let all: Vec<[usize; 2]> = program.first.ranks.iter().chain(&program.steady.ranks).map(count).collect();
    assert!(all.iter().all(|n| *n == all[0]), "{model} {name}: {all:?}");
    all[0]
}

#[test]
fn one_forward_and_one_backward_in_every_layer() {
    const LAYERS: usize = 2;
    let places = [
        ("none", ""),
        ("tp", "tp=2"),
        ("tp-sp", "tp=2"),
        ("ddp", "dp=2"),
        ("fsdp", "dp=2"),
        ("2d", "dp=2,tp=2"),
        ("zero1", "dp=2"),
    ];
    let plain = StepOptions::default();
    let steps = [
        ("plain", plain.clone()),
        ("clipped", StepOptions { clip_norm: Some(1.0), ..plain.clone() }),
        ("in micro-batches", StepOptions { micro_batches: 2, ..plain.clone() }),
        ("in bf16", StepOptions { precision: Some(Precision::default()), ..plain.clone() }),
        (
            "all of that",
            StepOptions { clip_norm: Some(1.0), micro_batches: 2, precision: Some(Precision::default()), ..plain },
        ),
    ];
    let mut wrong = Vec::new();
    for model in ["llama-tiny", "gpt2-tiny", "bert-tiny"] {
        for place in places {
            for (how, step) in &steps {
                // Every plan runs with all options together, and the plan with all features also runs with each option
                // alone.
                if !["plain", "all of that"].contains(how) && place.0 != "2d" {
                    continue;
                }
                for mask in [false, true].into_iter().filter(|mask| *mask || *how == "plain") {
                    let found = counted(model, place, step, mask);
                    if found != [LAYERS * step.micro_batches; 2] {
                        wrong.push(format!("{model} {} {how}, padding mask {mask}: {found:?}", place.0));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
