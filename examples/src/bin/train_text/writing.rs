//! Generates text with the trained model.

use crate::text::{SEED, SEQ, Text};
use std::error::Error;
use std::io::{Write, stdout};
use std::path::Path;
use std::time::Instant;
use tpc::generate::{Choice, Chosen, Generate, Generator, Limits, Sampling};
use tpc::models::ModelDir;
use tpc::prelude::*;

const PROMPT: &str = "And Jesus said unto them,";

/// Continues a prompt with the model of a directory. Each new token is computed from the cache of earlier tokens, which
/// is sharded like the attention that reads it.
pub fn write(dir: &Path, text: &Text, mesh: &Mesh, plan: &Plan) -> Result<(), Box<dyn Error>> {
    let prompt: Vec<i64> = text.tokenizer.encode(PROMPT)?.into_iter().map(i64::from).collect();
    let limits = Limits { batch: 1, prompt: prompt.len(), new_tokens: SEQ - prompt.len() };
    let mut generator = Generator::pretrained(&ModelDir::open(dir)?, mesh, plan, limits)?;
    let asked = Generate {
        sampling: Sampling {
            choice: Choice::Draw { temperature: 0.7, top_k: None, top_p: 0.95, seed: SEED },
            repetition_penalty: 1.0,
        },
        new_tokens: limits.new_tokens,
        ends: Vec::new(),
    };
    println!("\nThe model writes, on {} ranks:\n---", mesh.ranks());
    print!("{PROMPT}");
    let (mut decoder, mut failed, begin) = (text.tokenizer.decoder(), None, Instant::now());
    let mut show = |chosen: Chosen<'_>| {
        let shown = u32::try_from(chosen.token).map(|token| decoder.push(token).map(|new| print!("{new}")));
        failed = shown.ok().and_then(Result::err);
        failed.is_none() && stdout().flush().is_ok()
    };
    let generated = generator.generate(&[prompt], &asked, &mut show)?;
    let (tokens, seconds) = (generated[0].tokens.len(), begin.elapsed().as_secs_f64());
    if let Some(failed) = failed {
        return Err(failed.into());
    }
    println!("{}\n---\n{tokens} tokens in {seconds:.2} s", decoder.finish()?);
    Ok(())
}
