//! Trains a tokenizer on a text: byte-level byte pair encoding (Sennrich, Haddow, Birch, 2016; over bytes as in GPT-2),
//! which has a token for every byte and can therefore encode every text.

use super::config;
use super::error::TokenizerError;
use super::pretrained;
use crate::error::DataError;
use crate::source::{Content, Corpus};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use std::sync::Mutex;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, TokenizerBuilder};

/// The special token that ends a text, token 0; it also begins a text and is the padding token.
pub const END_OF_TEXT: &str = "<|endoftext|>";

/// The special token that replaces a word to predict; token 1 if it exists.
pub const MASK: &str = "<|mask|>";

/// A pair of tokens that occurs less often does not become a token.
const LEAST: u64 = 2;

/// Number of byte values.
const BYTES: usize = 256;

/// A trained tokenizer, as the contents of its files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trained {
    /// The contents of `tokenizer.json`.
    pub tokenizer: String,
    /// The contents of `tokenizer_config.json`.
    pub config: String,
    /// Number of tokens: fewer than requested if the text has no more pairs that occur twice.
    pub size: usize,
}

/// Trains a tokenizer with at most `vocab` tokens on all documents of a corpus; of conversations, on the messages.
/// Token 0 is [`END_OF_TEXT`]; `special` are further tokens that are never split, such as those of a chat template; a
/// tokenizer for a model that predicts `masked` tokens has [`MASK`].
///
/// The text is streamed: each distinct word is in memory once.
///
/// # Errors
/// A vocabulary that is too small for the bytes; special tokens that are empty or repeated; a file that can no longer
/// be read.
pub fn train(corpus: &Corpus, vocab: usize, special: &[String], masked: bool) -> Result<Trained, TrainError> {
    let own = [Some(END_OF_TEXT), masked.then_some(MASK)];
    let all: Vec<&str> = own.into_iter().flatten().chain(special.iter().map(String::as_str)).collect();
    for (at, token) in all.iter().enumerate() {
        let problem = if token.is_empty() { "it is empty" } else { "it is given twice" };
        if token.is_empty() || all[..at].contains(token) {
            return Err(TokenizerError::Special { token: (*token).into(), problem }.into());
        }
    }
    let least = BYTES + all.len();
    if vocab < least {
        return Err(TokenizerError::SmallVocabulary { asked: vocab, least }.into());
    }
    let failed = |e: tokenizers::Error| TokenizerError::Encode(e.to_string());
    let bytes = ByteLevel::new(false, false, true);
    let mut tokenizer = TokenizerBuilder::<BPE, NormalizerWrapper, ByteLevel, ByteLevel, ByteLevel>::new()
        .with_model(BPE::default())
        .with_normalizer(None)
        .with_pre_tokenizer(Some(bytes))
        .with_post_processor(Some(bytes))
        .with_decoder(Some(bytes))
        .build()
        .map_err(failed)?;
    let mut trainer = BpeTrainer::builder()
        .vocab_size(vocab)
        .min_frequency(LEAST)
        .special_tokens(all.iter().map(|token| AddedToken::from(*token, true)).collect())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .show_progress(false)
        .build();
    let problem = Mutex::new(None);
    let texts = (0..corpus.units()).map_while(|unit| match corpus.read(unit) {
        Ok(content) => Some(text(content)),
        Err(error) => {
            *problem.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
            None
        }
    });
    tokenizer.train(&mut trainer, texts).map_err(failed)?;
    if let Some(error) = problem.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error.into());
    }
    let size = tokenizer.get_vocab_size(true);
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "additional_special_tokens": special,
        "clean_up_tokenization_spaces": false,
    });
    if masked {
        config["mask_token"] = MASK.into();
    }
    Ok(Trained { tokenizer: tokenizer.to_string(true).map_err(failed)?, config: format!("{config:#}\n"), size })
}

/// Why a tokenizer could not be trained.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// An error of the options.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// An error of the text.
    #[error(transparent)]
    Data(#[from] DataError),
}

/// The text of a document; for a conversation, its messages.
fn text(content: Content) -> String {
    match content {
        Content::Text { text, .. } => text,
        Content::Chat { messages, .. } => {
            let said = |message: &Value| Some(message.get("content")?.as_str()?.to_string());
            let all: Vec<String> = messages.as_array().into_iter().flatten().filter_map(said).collect();
            all.join("\n")
        }
    }
}

impl Trained {
    /// Writes both files into a directory, which is created if needed.
    ///
    /// # Errors
    /// A directory that rejects them.
    pub fn save(&self, dir: &Path) -> Result<(), TokenizerError> {
        let io = |file: &Path| {
            let file = file.to_path_buf();
            move |source| TokenizerError::Io { file, source }
        };
        fs::create_dir_all(dir).map_err(io(dir))?;
        for (name, text) in [(pretrained::FILE, &self.tokenizer), (config::FILE, &self.config)] {
            // Replaced atomically, because a reader may exist already.
            let (file, temporary) = (dir.join(name), dir.join(format!(".{name}.{}.partial", std::process::id())));
            let written = fs::write(&temporary, text).and_then(|()| fs::rename(&temporary, &file));
            if written.is_err() {
                let _ = fs::remove_file(&temporary);
            }
            written.map_err(io(&file))?;
        }
        Ok(())
    }
}
