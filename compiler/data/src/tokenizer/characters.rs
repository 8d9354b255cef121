//! Characters as tokens.

use super::Encoded;
use super::error::TokenizerError;
use std::collections::HashMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use twox_hash::XxHash3_64;

/// An alphabet: characters and their numbers.
#[derive(Clone, Debug)]
pub struct Characters {
    characters: Vec<char>,
    numbers: HashMap<char, u32>,
}

/// The file of a model directory, and its only key.
const FILE: &str = "alphabet.json";
const KEY: &str = "characters";

impl Characters {
    /// Characters in the order of their tokens, the first being token 0; `None` if one occurs twice.
    pub fn new(characters: &str) -> Option<Self> {
        let numbers: HashMap<char, u32> = characters.chars().zip(0..).collect();
        let characters: Vec<char> = characters.chars().collect();
        (numbers.len() == characters.len()).then_some(Characters { characters, numbers })
    }

    /// The alphabet of a model directory, if it has an `alphabet.json`.
    ///
    /// # Errors
    /// A file that cannot be read, or is not an alphabet.
    pub(super) fn of_dir(dir: &Path) -> Result<Option<Self>, TokenizerError> {
        let file = dir.join(FILE);
        let text = match fs::read_to_string(&file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            other => other.map_err(|source| TokenizerError::Io { file: file.clone(), source })?,
        };
        let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
        let kept = json.and_then(|json| Self::new(json.get(KEY)?.as_str()?));
        let problem = || format!("expected {{\"{KEY}\": …}} with a text in which no character occurs twice");
        kept.map(Some).ok_or_else(|| TokenizerError::Invalid { file, problem: problem() })
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.characters.len()
    }

    /// Whether there are no characters.
    pub fn is_empty(&self) -> bool {
        self.characters.is_empty()
    }

    /// The character of a token.
    pub fn character(&self, id: u32) -> Option<char> {
        self.characters.get(id as usize).copied()
    }

    pub(super) fn fingerprint(&self) -> u64 {
        XxHash3_64::oneshot(self.characters.iter().collect::<String>().as_bytes())
    }

    pub(super) fn encode(&self, text: &str) -> Result<Encoded, TokenizerError> {
        let mut encoded = Encoded::default();
        for (at, c) in text.char_indices() {
            encoded.ids.push(*self.numbers.get(&c).ok_or(TokenizerError::NoCharacter(c))?);
            encoded.bytes.push(at..at + c.len_utf8());
        }
        Ok(encoded)
    }

    pub(super) fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        ids.iter().map(|&id| self.character(id).ok_or(TokenizerError::NoToken(id, self.len()))).collect()
    }
}
