//! Measures how fast a corpus becomes batches, and in how much memory: writes JSON lines of the given size to a
//! temporary file and reads an epoch.
//!
//! ```text
//! cargo run --release -p tpc-data --example throughput -- compiler/data/tests/data/tokenizer examples/data/kjv-new-testament.txt 2048
//! ```

use std::error::Error;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tpc_data::{Corpus, Format, LossOn, Objective, Packing, Recipe, Split, Stream, Tokenizer, piece};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [tokenizer, text, megabytes] = &arguments[..] else {
        return Err("expected: TOKENIZER_DIR TEXT MEGABYTES [BATCHES]".into());
    };
    let tokenizer = Tokenizer::of_dir(Path::new(tokenizer), 0)?.ok_or("no tokenizer there")?;
    let lines: Vec<String> = std::fs::read_to_string(text)?.lines().map(String::from).collect();
    let file = Generated::new(&lines, megabytes.parse::<u64>()? << 20)?;
    let memory = |what: &str| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let of = |key: &str| status.lines().find_map(|line| Some(line.strip_prefix(key)?.trim().to_string()));
        println!("{what}: {} now, {} at most", of("VmRSS:").unwrap_or_default(), of("VmHWM:").unwrap_or_default());
    };
    memory("before");
    let begun = Instant::now();
    let corpus = Corpus::open(std::slice::from_ref(&file.0), &Format::ByName, piece(512))?;
    let seconds = begun.elapsed().as_secs_f64();
    let megabytes = corpus.bytes() as f64 / 1e6;
    println!(
        "{} documents of {megabytes:.0} MB found in {seconds:.1} s, {:.0} MB/s",
        corpus.units(),
        megabytes / seconds
    );
    memory("after that");
    let recipe = Recipe {
        corpus: Arc::new(corpus),
        table: tokenizer.size(),
        tokenizer: Arc::new(tokenizer),
        split: Split::All,
        seq: 512,
        packing: Packing::Packed,
        objective: Objective::Next,
        loss: LossOn::All,
        seed: 0,
        now: 0,
        shuffled: true,
    };
    let (begun, mut tokens, mut batches) = (Instant::now(), 0, 0u64);
    let mut stream = Stream::start(recipe, None, Some(1))?;
    while let Some(batch) = stream.next(32)? {
        tokens += batch.tokens;
        batches += 1;
        if batches.is_multiple_of(4096) {
            memory(&format!("batch {batches}"));
        }
    }
    let seconds = begun.elapsed().as_secs_f64();
    println!(
        "{tokens} tokens in {batches} batches in {seconds:.1} s: {:.0} tokens/s, {:.1} MB/s",
        tokens as f64 / seconds,
        megabytes / seconds
    );
    memory("at the end");
    Ok(())
}

/// A file that is removed when this is dropped.
struct Generated(PathBuf);

impl Generated {
    /// Writes JSON lines, each with some lines of a text.
    fn new(lines: &[String], bytes: u64) -> Result<Self, Box<dyn Error>> {
        let path = std::env::temp_dir().join(format!("tpc-data-throughput-{}.jsonl", std::process::id()));
        let mut file = BufWriter::new(std::fs::File::create(&path)?);
        let (mut written, mut at) = (0, 0usize);
        while written < bytes {
            let count = 1 + at % 9;
            let text: Vec<&str> = (at..at + count).map(|i| lines[i * 7919 % lines.len()].as_str()).collect();
            let line = format!("{}\n", serde_json::json!({"text": text.join("\n")}));
            file.write_all(line.as_bytes())?;
            written += line.len() as u64;
            at += count;
        }
        file.flush()?;
        Ok(Generated(path))
    }
}

impl Drop for Generated {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}
