//! Characters as tokens: the alphabet of a trained model, or the alphabet of a text.

use crate::{Failure, Outcome};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tpc_compiler::models::Alphabet;
use tpc_data::source::Content;
use tpc_data::{Corpus, Tokenizer};
use tpc_ir::quote::cut;

/// The alphabet that a model was trained on.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    /// Its characters.
    pub(super) alphabet: Alphabet,
    /// The file or checkpoint that keeps it.
    pub(super) place: PathBuf,
    /// How to train on a text with other characters.
    pub(super) way_out: &'static str,
}

/// The characters of all documents.
fn of_corpus(corpus: &Corpus) -> Outcome<Alphabet> {
    let mut found: BTreeSet<char> = BTreeSet::new();
    for unit in 0..corpus.units() {
        if let Content::Text { text, .. } = corpus.read(unit)? {
            found.extend(text.chars());
        }
    }
    Ok(Alphabet::of_text(&found.into_iter().collect::<String>()))
}

/// The alphabet of a run on a corpus, for a model with this many tokens.
///
/// # Errors
/// Characters that the model was not trained on, or more characters than the model has tokens.
pub(super) fn alphabet(corpus: &Corpus, vocab: usize, kept: Option<&Kept>) -> Outcome<Alphabet> {
    let file = corpus.first_file();
    let mut alphabet = of_corpus(corpus)?;
    if let Some(kept) = kept {
        kept.check(&alphabet).map_err(|problem| Failure::at(file, problem))?;
        alphabet = kept.alphabet.clone();
    }
    if alphabet.len() > vocab {
        let (found, whose) = (alphabet.len(), if kept.is_some() { "model's alphabet" } else { "text" });
        let problem = format!("the {whose} has {found} different characters, but the vocabulary has {vocab} entries");
        return Err(Failure::at(file, problem));
    }
    Ok(alphabet)
}

/// The tokenizer of an alphabet.
pub(super) fn tokenizer(alphabet: &Alphabet) -> Outcome<Tokenizer> {
    let characters = tpc_data::tokenizer::Characters::new(alphabet.characters());
    characters.map(Tokenizer::Characters).ok_or_else(|| Failure::new("internal error: a character occurs twice"))
}

impl Kept {
    /// An error that names the characters of a text that the model was not trained on.
    fn check(&self, text: &Alphabet) -> Result<(), String> {
        let missing = self.alphabet.lacks(text);
        if missing.is_empty() {
            return Ok(());
        }
        let shown: Vec<String> = missing.iter().take(10).map(|c| format!("{c:?}")).collect();
        let more = match missing.len() - shown.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        Err(format!(
            "the model was trained on the {} characters of {}, which lack {}{more}: train on a text of those characters, or {}",
            self.alphabet.len(),
            cut(&self.place.display().to_string()),
            shown.join(", "),
            self.way_out,
        ))
    }
}
