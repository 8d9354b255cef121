//! The alphabet of a character model, in `alphabet.json` next to its weights.

use super::error::ModelError;
use super::keys::read_json;
use serde_json::json;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tpc_runtime::output::{self, Output};

/// Characters in the order of their tokens: the first is token 0.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Alphabet(String);

/// The file's name, and its only key.
const FILE: &str = "alphabet.json";
const KEY: &str = "characters";

/// Files of a model directory that define its tokenizer.
const TOKENIZERS: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
];

impl Alphabet {
    /// The distinct characters of a text, sorted.
    pub fn of_text(text: &str) -> Self {
        let mut characters: Vec<char> = text.chars().collect();
        characters.sort_unstable();
        characters.dedup();
        Alphabet(characters.into_iter().collect())
    }

    /// The alphabet of stored characters; `None` if one occurs twice.
    pub fn kept(characters: &str) -> Option<Self> {
        let alphabet = Alphabet(characters.into());
        (alphabet.numbers().len() == alphabet.len()).then_some(alphabet)
    }

    /// Reads the alphabet of a model directory, if it has one.
    ///
    /// # Errors
    /// A file that cannot be read, or is not an alphabet.
    pub fn read(dir: &Path) -> Result<Option<Self>, ModelError> {
        let file = Self::file(dir);
        if !file.exists() {
            return Ok(None);
        }
        let json = read_json(&file)?;
        match json.get(KEY).and_then(|characters| Self::kept(characters.as_str()?)) {
            Some(alphabet) => Ok(Some(alphabet)),
            None => Err(ModelError::WrongValue {
                file,
                key: KEY.into(),
                expected: "a text in which no character occurs twice".into(),
                found: json.get(KEY).map_or_else(|| "absent".into(), ToString::to_string),
            }),
        }
    }

    /// Writes the alphabet of a model directory. If there is none, the file of an earlier model is removed.
    ///
    /// # Errors
    /// A directory that rejects it.
    pub fn save(alphabet: Option<&Self>, dir: &Path) -> Result<(), ModelError> {
        let file = Self::file(dir);
        let written = match alphabet {
            Some(alphabet) => {
                let json = json!({ KEY: alphabet.0 });
                output::make_dir(dir)
                    .and_then(|()| Output::at(&file))
                    .and_then(|output| output.write(format!("{json:#}\n").as_bytes()))
            }
            None if file.exists() => std::fs::remove_file(&file),
            None => Ok(()),
        };
        written.map_err(|source| ModelError::Io { file, source })
    }

    /// The file of a model directory.
    pub fn file(dir: &Path) -> PathBuf {
        dir.join(FILE)
    }

    /// Number of characters.
    pub fn len(&self) -> usize {
        self.0.chars().count()
    }

    /// Whether there are no characters.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The characters, starting with token 0.
    pub fn characters(&self) -> &str {
        &self.0
    }

    /// The token of every character.
    pub fn numbers(&self) -> HashMap<char, i64> {
        self.0.chars().zip(0..).collect()
    }

    /// The characters that another alphabet has and this one lacks.
    pub fn lacks(&self, other: &Self) -> Vec<char> {
        let mine = self.numbers();
        other.0.chars().filter(|c| !mine.contains_key(c)).collect()
    }
}

/// The first file of a directory that defines a tokenizer.
pub fn tokenizer(dir: &Path) -> Option<PathBuf> {
    TOKENIZERS.iter().map(|name| dir.join(name)).find(|file| file.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_keeps_its_alphabet() {
        let dir = std::env::temp_dir().join(format!("tpc-alphabet-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        let alphabet = Alphabet::of_text("größe\n\"長\"");
        assert_eq!(alphabet.characters(), "\n\"egrßö長");
        assert_eq!(Alphabet::read(&dir).unwrap(), None);
        Alphabet::save(Some(&alphabet), &dir).unwrap();
        assert_eq!(Alphabet::read(&dir).unwrap(), Some(alphabet.clone()));
        assert_eq!(alphabet.numbers()[&'長'], alphabet.len() as i64 - 1);
        assert_eq!(alphabet.lacks(&Alphabet::of_text("lang")), ['a', 'l', 'n']);
        Alphabet::save(None, &dir).unwrap();
        assert!(!Alphabet::file(&dir).exists());
        for broken in ["{", "{}", "{\"characters\": 3}", "{\"characters\": \"aba\"}"] {
            std::fs::write(Alphabet::file(&dir), broken).unwrap();
            assert!(Alphabet::read(&dir).is_err(), "{broken}");
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
