//! Decodes tokens that arrive one by one.

use super::Tokenizer;
use super::error::TokenizerError;

/// The decoder's output for bytes that do not form a character, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Maximum number of tokens that are held back because they may still form a character. A character has at most four
/// bytes.
const MOST_HELD: usize = 8;

/// Decodes tokens that arrive one by one. It returns complete characters only: a character whose bytes are several
/// tokens is returned with the last of them.
///
/// A token's text may depend on the one before it (for example, a space at the beginning of a text), so each piece is
/// the difference of two texts that begin some tokens earlier.
#[derive(Debug)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that were not returned yet, after the tokens that they depend on.
    ids: Vec<u32>,
    /// How many of these tokens were returned.
    given: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Decoder { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// The text that is certain after a further token; may be empty.
    ///
    /// # Errors
    /// A number that is not a token, after which the decoder is unchanged.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        let text = self.rest().inspect_err(|_| _ = self.ids.pop())?;
        if text.ends_with(REPLACEMENT) && self.ids.len() - self.given < MOST_HELD {
            return Ok(String::new());
        }
        if !text.is_empty() {
            self.ids.drain(..self.given);
            self.given = self.ids.len();
        }
        Ok(text)
    }

    /// The remaining text: bytes that never formed a character, as U+FFFD.
    ///
    /// # Errors
    /// None beyond those of [`Decoder::push`].
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.rest()
    }

    /// The text of the tokens that were not returned.
    fn rest(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(match all.strip_prefix(&before) {
            Some(rest) => rest.to_string(),
            // A text that changes with later tokens: decodes the tokens separately.
            None => self.tokenizer.decode(&self.ids[self.given..])?,
        })
    }
}
