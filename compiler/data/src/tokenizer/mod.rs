//! Encoding text as tokens and decoding it: the tokenizer of a model directory.
//!
//! | question | file |
//! |---|---|
//! | a directory's `tokenizer.json`, its special tokens | `pretrained` |
//! | a conversation as text, and which parts of it are answers | `template`, `python` |
//! | decoding tokens one by one | `stream` |
//! | training a tokenizer | `train` |
//! | a tokenizer from a text | `train` |

mod characters;
mod config;
mod error;
mod pretrained;
mod python;
mod stream;
mod template;
mod train;

pub use characters::Characters;
pub use error::TokenizerError;
pub use pretrained::Pretrained;
pub use stream::Decoder;
pub use template::{Rendered, Template};
pub use train::{END_OF_TEXT, MASK, TrainError, Trained, train};

use std::ops::Range;
use std::path::Path;

/// How text becomes tokens.
#[derive(Debug)]
pub enum Tokenizer {
    /// The `tokenizer.json` of a model directory.
    Pretrained(Box<Pretrained>),
    /// Each character is a token, with its number in an alphabet.
    Characters(Characters),
}

/// Tokens, and the bytes of the text that each token covers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token numbers.
    pub ids: Vec<u32>,
    /// The byte ranges in the text; empty for tokens that were added to it.
    pub bytes: Vec<Range<usize>>,
}

/// The files of a model directory that define a tokenizer; a saved directory gets copies of them.
pub const FILES: [&str; 4] = [pretrained::FILE, config::FILE, config::SPECIAL_TOKENS, config::TEMPLATE];

impl Tokenizer {
    /// The tokenizer of a model directory: its `tokenizer.json` with special tokens and chat template, otherwise its
    /// `alphabet.json`; `None` if it has neither. `now` is the current time for templates, in seconds since 1970.
    /// # Errors
    /// Files that cannot be read or are broken; a directory whose tokenizer only exists in another format.
    pub fn of_dir(dir: &Path, now: u64) -> Result<Option<Self>, TokenizerError> {
        if let Some(pretrained) = Pretrained::of_dir(dir, now)? {
            return Ok(Some(Tokenizer::Pretrained(Box::new(pretrained))));
        }
        Ok(Characters::of_dir(dir)?.map(Tokenizer::Characters))
    }

    /// Encodes a text in the form that the model expects, with the tokens that the tokenizer puts around it.
    ///
    /// # Errors
    /// A text that the tokenizer rejects.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        match self {
            Tokenizer::Pretrained(pretrained) => Ok(pretrained.encode(text, true)?.ids),
            Tokenizer::Characters(characters) => Ok(characters.encode(text)?.ids),
        }
    }

    /// Encodes only the text itself, with the byte ranges of the tokens.
    ///
    /// # Errors
    /// The errors of [`Tokenizer::encode`].
    pub fn encode_bare(&self, text: &str) -> Result<Encoded, TokenizerError> {
        match self {
            Tokenizer::Pretrained(pretrained) => pretrained.encode(text, false),
            Tokenizer::Characters(characters) => characters.encode(text),
        }
    }

    /// Decodes tokens without special tokens. Bytes that do not form a character become U+FFFD.
    ///
    /// # Errors
    /// A number that is not a token.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        match self {
            Tokenizer::Pretrained(pretrained) => pretrained.decode(ids),
            Tokenizer::Characters(characters) => characters.decode(ids),
        }
    }

    /// A decoder for tokens that arrive one by one, which returns complete characters.
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    /// The text of one token, for messages.
    pub fn token(&self, id: u32) -> Option<String> {
        match self {
            Tokenizer::Pretrained(pretrained) => pretrained.token(id),
            Tokenizer::Characters(characters) => characters.character(id).map(String::from),
        }
    }

    /// One more than the largest token: the number of rows that a model's embedding needs.
    pub fn size(&self) -> usize {
        match self {
            Tokenizer::Pretrained(pretrained) => pretrained.size(),
            Tokenizer::Characters(characters) => characters.len(),
        }
    }

    /// The tokens before and after every text.
    pub fn frame(&self) -> (&[u32], &[u32]) {
        match self {
            Tokenizer::Pretrained(pretrained) => pretrained.frame(),
            Tokenizer::Characters(_) => (&[], &[]),
        }
    }

    /// The token that begins a text, if there is one.
    pub fn bos(&self) -> Option<u32> {
        self.pretrained()?.special().bos
    }

    /// The token that ends a text, if there is one.
    pub fn eos(&self) -> Option<u32> {
        self.pretrained()?.special().eos
    }

    /// The padding token: that of the tokenizer, otherwise the token that ends a text, otherwise 0.
    pub fn pad(&self) -> u32 {
        let special = self.pretrained().map(Pretrained::special);
        special.and_then(|special| special.pad.or(special.eos)).unwrap_or(0)
    }

    /// The token that replaces a word to predict, if there is one.
    pub fn mask(&self) -> Option<u32> {
        self.pretrained()?.special().mask
    }

    /// The template for conversations, if the directory has one.
    pub fn template(&self) -> Option<&Template> {
        self.pretrained()?.template()
    }

    /// A hash of the tokenizer and its chat template.
    pub fn fingerprint(&self) -> u64 {
        match self {
            Tokenizer::Pretrained(pretrained) => pretrained.fingerprint(),
            Tokenizer::Characters(characters) => characters.fingerprint(),
        }
    }

    fn pretrained(&self) -> Option<&Pretrained> {
        match self {
            Tokenizer::Pretrained(pretrained) => Some(pretrained),
            Tokenizer::Characters(_) => None,
        }
    }
}
