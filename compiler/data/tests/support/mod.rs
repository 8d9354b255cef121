//! What the tests share: temporary directories, stored data, corpora.
#![allow(dead_code)] // each test binary uses some of it

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tpc_data::{Corpus, Format, LossOn, Objective, Packing, Recipe, Split, Tokenizer};

/// A directory that is removed at the end of its test.
pub struct Temporary(pub PathBuf);

impl Temporary {
    pub fn new() -> Self {
        static MADE: AtomicU64 = AtomicU64::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let dir = std::env::temp_dir().join(format!("tpc-data-test-{}-{number}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Temporary(dir)
    }

    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let file = self.0.join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, contents).unwrap();
        file
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// 2024-02-29 12:34:56, the day on which `tests/reference/make.py` renders.
pub const NOW: u64 = 1_709_210_096;

pub fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

pub fn json(name: &str) -> serde_json::Value {
    serde_json::from_slice(&fs::read(data().join(name)).unwrap()).unwrap()
}

/// The stored tokenizer.
pub fn tokenizer() -> Tokenizer {
    Tokenizer::of_dir(&data().join("tokenizer"), NOW).unwrap().unwrap()
}

/// The stored tokenizer with a chat template.
pub fn with_template(template: &str) -> (Temporary, Result<Tokenizer, tpc_data::TokenizerError>) {
    let dir = Temporary::new();
    for name in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(data().join("tokenizer").join(name), dir.0.join(name)).unwrap();
    }
    dir.file("chat_template.jinja", template);
    let tokenizer = Tokenizer::of_dir(&dir.0, NOW).map(Option::unwrap);
    (dir, tokenizer)
}

/// The characters `a` to `z`, space and new line as tokens.
pub fn letters() -> Tokenizer {
    Tokenizer::Characters(tpc_data::tokenizer::Characters::new("\n abcdefghijklmnopqrstuvwxyz").unwrap())
}

/// Reads files as the tests' recipes do.
pub fn corpus(files: &[PathBuf], piece: usize) -> Corpus {
    Corpus::open(files, &Format::ByName, piece).unwrap()
}

/// All of a corpus in its own order, packed.
pub fn recipe(corpus: Corpus, tokenizer: Tokenizer, seq: usize) -> Recipe {
    Recipe {
        corpus: Arc::new(corpus),
        tokenizer: Arc::new(tokenizer),
        split: Split::All,
        seq,
        packing: Packing::Packed,
        objective: Objective::Next,
        loss: LossOn::All,
        table: 1 << 20,
        seed: 0,
        now: NOW,
        shuffled: false,
    }
}
