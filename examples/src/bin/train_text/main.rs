//! The main job: a language model from a text, on two ranks of this process.
//!
//! `cargo run --release -p tpc-examples` goes the whole way on the King James New Testament: it trains a tokenizer, shards a
//! small decoder with the plan `tp`, trains it with a schedule and a validation loss, says what the ranks exchanged and hold,
//! trains the same model on one rank, whose loss curve must be equal, and writes text with the trained model and its cache.
//!
//! | what | file |
//! |---|---|
//! | the tokenizer, and the batches | `text.rs` |
//! | the model, and its training | `training.rs` |
//! | what the ranks exchanged and hold | `ranks.rs` |
//! | one loss curve beside another | `curves.rs` |
//! | text from the trained model | `writing.rs` |

mod curves;
mod ranks;
mod text;
mod training;
mod writing;

use clap::Parser;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use text::Text;
use tpc::prelude::*;
use training::Run;

/// Trains a tokenizer and a small language model on ranks of this process, compares with one rank, and lets it write.
#[derive(Parser)]
struct Options {
    /// Training steps.
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(2..))]
    steps: u64,
    /// Ranks of the mesh axis `tp`.
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// Directory for the trained model and its tokenizer, which `tpc generate` and transformers read [default: they are not kept].
    #[arg(long)]
    save: Option<PathBuf>,
}

/// Goes the whole way, with the model in this directory. Gives whether the two curves are equal.
fn run(options: &Options, dir: &Path) -> Result<bool, Box<dyn Error>> {
    let text = Text::new(dir)?;
    let (mesh, plan) = (Mesh::new([("tp", options.ranks)])?, Plan::built_in("tp")?);
    let Run { mut trainer, losses } = training::train(&text, (mesh.clone(), plan.clone()), options.steps)?;
    ranks::print_collectives(trainer.training_session()?, options.steps - 1);
    ranks::print_memory(trainer.session());
    trainer.save_with_config(&training::config(&text), dir)?;
    drop(trainer);

    println!();
    let alone = training::train(&text, (Mesh::single(), Plan::built_in("none")?), options.steps)?.losses;
    let equal = curves::compare(&losses, &alone, options.ranks);
    writing::write(dir, &text, &mesh, &plan)?;
    Ok(equal)
}

fn main() -> ExitCode {
    let options = Options::parse();
    let kept = options.save.clone();
    let dir = kept.unwrap_or_else(|| std::env::temp_dir().join(format!("tpc-main-job-{}", std::process::id())));
    let done = run(&options, &dir);
    match &options.save {
        Some(dir) => println!("the model is in {}", dir.display()),
        // What is left there is temporary, and the run's own result counts.
        None => _ = std::fs::remove_dir_all(&dir),
    }
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}
