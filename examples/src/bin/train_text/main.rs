//! The main job: trains a language model on a text, on two ranks of this process.
//!
//! `cargo run --release -p tpc-examples` runs all steps on the King James New Testament: it trains a tokenizer, shards
//! a small decoder with the plan `tp`, trains it with a schedule and a validation loss, and reports what the ranks
//! exchanged and hold. It then trains the same model on one rank, whose loss curve must be equal, and generates text
//! with the trained model and its cache.
//!
//! | what | file |
//! |---|---|
//! | the tokenizer, and the batches | `text.rs` |
//! | the model and its training | `training.rs` |
//! | what the ranks exchanged and hold | `ranks.rs` |
//! | comparing two loss curves | `curves.rs` |
//! | generating text with the trained model | `writing.rs` |

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

/// Train a tokenizer and a small language model on ranks of this process, compare with one rank, and generate text
#[derive(Parser)]
struct Options {
    /// Number of training steps
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(2..))]
    steps: u64,
    /// Number of ranks along the mesh axis `tp`
    #[arg(long, default_value_t = 2)]
    ranks: usize,
    /// Directory for the trained model and its tokenizer, which `tpc generate` and transformers can read [default: they
    /// are not kept]
    #[arg(long)]
    save: Option<PathBuf>,
}

/// Runs all steps, with the model in this directory. Returns whether the two curves are equal.
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
        // A leftover directory is temporary, and the result of the run matters more.
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
