//! Tokens that arrive one by one, as text.

use super::Tokenizer;
use super::error::TokenizerError;

/// What a decoder writes for bytes that are no character, or not yet.
const REPLACEMENT: char = '\u{fffd}';

/// Most tokens that are held back in the hope that they become a character. A character has at most four bytes.
const MOST_HELD: usize = 8;

/// The text of tokens that arrive one by one. What it gives is whole characters only: a character whose bytes are several tokens comes with
/// the last of them.
///
/// A token's text may depend on the one before it (a space at the beginning of a text, for example), so each piece is the difference of
/// two texts that begin some tokens earlier.
#[derive(Debug)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    /// Tokens that are not yet given, after those that they depend on.
    ids: Vec<u32>,
    /// How many of them have been given.
    given: usize,
}

impl<'a> Decoder<'a> {
    pub(super) fn new(tokenizer: &'a Tokenizer) -> Self {
        Decoder { tokenizer, ids: Vec::new(), given: 0 }
    }

    /// The text that a further token makes certain; may be empty.
    ///
    /// # Errors
    /// A number that is no token, after which the decoder is as it was.
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

    /// What is left: bytes that never became a character, as U+FFFD.
    ///
    /// # Errors
    /// None that [`Decoder::push`] has not told.
    pub fn finish(self) -> Result<String, TokenizerError> {
        self.rest()
    }

    /// The text of the tokens that have not been given.
    fn rest(&self) -> Result<String, TokenizerError> {
        let before = self.tokenizer.decode(&self.ids[..self.given])?;
        let all = self.tokenizer.decode(&self.ids)?;
        Ok(match all.strip_prefix(&before) {
            Some(rest) => rest.to_string(),
            // A text that changes with what follows: the tokens by themselves.
            None => self.tokenizer.decode(&self.ids[self.given..])?,
        })
    }
}
