//! The tokenizer of a model directory.

use super::Encoded;
use super::config::{Config, invalid, read};
use super::error::TokenizerError;
use super::template::Template;
use std::hash::Hasher;
use std::path::Path;
use twox_hash::XxHash3_64;

pub(super) const FILE: &str = "tokenizer.json";

/// Files of other tokenizer formats.
const OTHERS: [&str; 7] = [
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
];

/// The tokenizer of a model directory.
#[derive(Debug)]
pub struct Pretrained {
    inner: tokenizers::Tokenizer,
    special: Special,
    before: Vec<u32>,
    after: Vec<u32>,
    size: usize,
    fingerprint: u64,
    template: Option<Template>,
}

/// Special tokens.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Special {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    pub(super) pad: Option<u32>,
    pub(super) mask: Option<u32>,
}

impl Pretrained {
    /// Reads `tokenizer.json` and the files next to it; `None` if the directory has no tokenizer.
    ///
    /// # Errors
    /// The errors of [`super::Tokenizer::of_dir`].
    pub(super) fn of_dir(dir: &Path, now: u64) -> Result<Option<Self>, TokenizerError> {
        let file = dir.join(FILE);
        let Some(text) = read(&file)? else {
            return match OTHERS.iter().map(|name| dir.join(name)).find(|file| file.exists()) {
                Some(file) => Err(TokenizerError::OtherFormat { file }),
                None => Ok(None),
            };
        };
        Self::new(&file, &text, Config::of_dir(dir)?, now).map(Some)
    }

    fn new(file: &Path, text: &str, config: Config, now: u64) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(text).map_err(|e| invalid(file, &e.to_string()))?;
        // tpc packs and pads batches itself.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| invalid(file, &e.to_string()))?;
        let id = |name: &str| inner.token_to_id(config.tokens.get(name)?);
        let special =
            Special { bos: id("bos_token"), eos: id("eos_token"), pad: id("pad_token"), mask: id("mask_token") };
        let framed = inner.encode_fast("a", true).map_err(|e| invalid(file, &e.to_string()))?;
        let added = framed.get_special_tokens_mask();
        let begins = added.iter().take_while(|&&added| added == 1).count();
        let ends = added.iter().rev().take_while(|&&added| added == 1).count().min(added.len() - begins);
        let ids = framed.get_ids();
        let (before, after) = (ids[..begins].to_vec(), ids[ids.len() - ends..].to_vec());
        let size = inner.get_vocab(true).into_values().max().map_or(0, |largest| largest as usize + 1);
        let mut hash = XxHash3_64::new();
        hash.write(text.as_bytes());
        for part in
            config.tokens.iter().flat_map(|(name, token)| [name, token]).chain(config.template.as_ref().map(|(_, t)| t))
        {
            hash.write_usize(part.len());
            hash.write(part.as_bytes());
        }
        let fingerprint = hash.finish();
        let template = match config.template {
            Some((file, source)) => Some(Template::new(file, &source, &config.tokens, now)?),
            None => None,
        };
        Ok(Pretrained { inner, special, before, after, size, fingerprint, template })
    }

    pub(super) fn encode(&self, text: &str, framed: bool) -> Result<Encoded, TokenizerError> {
        let encoding = self.inner.encode(text, framed).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let bytes = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), bytes })
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        if let Some(&wrong) = ids.iter().find(|&&id| id as usize >= self.size) {
            return Err(TokenizerError::NoToken(wrong, self.size));
        }
        self.inner.decode(ids, true).map_err(|e| TokenizerError::Encode(e.to_string()))
    }

    pub(super) fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    pub(super) fn size(&self) -> usize {
        self.size
    }

    pub(super) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) fn frame(&self) -> (&[u32], &[u32]) {
        (&self.before, &self.after)
    }

    pub(super) fn special(&self) -> Special {
        self.special
    }

    pub(super) fn template(&self) -> Option<&Template> {
        self.template.as_ref()
    }
}
