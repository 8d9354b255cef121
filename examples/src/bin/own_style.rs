//! A custom parallel style: `cargo run --release -p tpc-examples --bin own_style -- tp=2`. It shards the largest
//! embedding by rows, and linears of the same size by columns; the loss is computed from scores that stay sharded.
use burn::nn::{Embedding, EmbeddingConfig, Linear, LinearConfig, loss::CrossEntropyLossConfig};
use burn::tensor::{Device, Int, Tensor, activation::gelu};
use burn::{module::Module, optim::AdamWConfig};
use tpc::error::StyleError;
use tpc::prelude::*;
use tpc::styles::{Direction, Placements, Role};

#[derive(Debug)]
struct Vocabulary;

impl ParallelStyle for Vocabulary {
    fn name(&self) -> &str {
        "Vocabulary"
    }

    fn accepts(&self) -> &str {
        "a module with an embedding"
    }

    fn demand(&self, module: &tpc::styles::Module<'_>, to: &mut Placements) -> Result<(), StyleError> {
        let rows = |role| module.all_parameters().filter(move |w| w.role == role);
        let words = rows(Role::Embedding).map(|table| module.rows(table)).max();
        for table in rows(Role::Embedding).filter(|table| Some(module.rows(table)) == words) {
            to.cut(module, table, Direction::Rows);
        }
        for linear in rows(Role::Linear).filter(|linear| Some(module.columns(linear)) == words) {
            to.cut(module, linear, Direction::Columns);
        }
        Ok(())
    }
}

#[derive(Module, Debug)]
struct NextWord {
    words: Embedding,
    inner: Linear,
    scores: Linear,
}

#[derive(Batch, Clone, Debug)]
struct Words {
    now: Tensor<2, Int>,
    next: Tensor<2, Int>,
}

impl NextWord {
    fn new(device: &Device) -> Self {
        NextWord {
            words: EmbeddingConfig::new(100, 16).init(device),
            inner: LinearConfig::new(16, 32).init(device),
            scores: LinearConfig::new(32, 100).init(device),
        }
    }

    fn loss(&self, Words { now, next }: Words) -> Tensor<1> {
        let scores = self.scores.forward(gelu(self.inner.forward(self.words.forward(now))));
        CrossEntropyLossConfig::new().init(&next.device()).forward(scores.flatten(0, 1), next.flatten(0, 1))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (mesh, device) = (Mesh::parse(&std::env::args().nth(1).unwrap_or_else(|| "tp=2".into()))?, Device::flex());
    let plan = if mesh.axis("tp").is_some() { Plan::new().with("", Vocabulary).along("tp") } else { Plan::new() };
    let plan = if mesh.axis("dp").is_some() { plan.enable_2d_with_fsdp("dp") } else { plan };
    let now = Tensor::<1, Int>::arange(0..64, &device).reshape([8, 8]);
    let words = Words { next: (now.clone() * 3 + 1) % 100, now };
    let trainer = Trainer::new(NextWord::new, AdamWConfig::new().build()).on(mesh).plan(plan).lr(1e-2);
    let mut trainer = trainer.compile(&words, NextWord::loss)?.launch()?;
    println!("{}", trainer.explain());
    for step in 0..40 {
        println!("step {step}: loss {:.6}", trainer.step(&words)?.loss);
    }
    let mut after = trainer.evaluation(NextWord::loss, &words)?;
    println!("on the ranks: loss {:.6}", trainer.evaluate(&mut after, &words)?.into_scalar::<f32>());
    println!("on one device: loss {:.6}", trainer.into_module(&device)?.loss(words).into_scalar::<f32>());
    Ok(())
}
