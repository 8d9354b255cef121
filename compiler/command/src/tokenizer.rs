//! `tpc tokenizer train`: trains a tokenizer on texts and writes it into a model's directory.

use crate::{Failure, Outcome, Terminal};
use clap::{Args, Subcommand};
use std::path::PathBuf;
use tpc_compiler::models::{ModelConfig, tokenizer as of_dir};
use tpc_data::tokenizer::{Trained, train};
use tpc_data::{Corpus, Format};

/// Make a tokenizer for a model.
#[derive(Debug, Args)]
pub struct Tokenizer {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    Train(Train),
}

/// Train a tokenizer on texts: byte-level byte pair encoding, like GPT-2's. The directory gets tokenizer.json and
/// tokenizer_config.json, which transformers can also load.
#[derive(Debug, Args)]
struct Train {
    /// Directory of the model: at least a config.json, or nothing yet
    #[arg(value_name = "MODEL_DIR")]
    model: PathBuf,
    /// Texts to train on: plain text, or JSON lines (.jsonl, .ndjson) with a text in each; may be compressed (.gz,
    /// .zst)
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Maximum number of tokens [default: the number of rows of the model's embedding]
    #[arg(long, value_name = "N")]
    vocab: Option<usize>,
    /// A special token that is never split, such as those of a chat template; may be repeated
    #[arg(long, value_name = "TOKEN")]
    special: Vec<String>,
    /// The texts are JSON lines with the text in this field [default: text]
    #[arg(long, value_name = "NAME", conflicts_with = "chat")]
    field: Option<String>,
    /// The texts are JSON lines with a conversation in each: `messages`, a list of objects with role and content
    #[arg(long)]
    chat: bool,
    /// Replace the directory's tokenizer
    #[arg(long)]
    force: bool,
}

/// Bytes of text that are read at once.
const PIECE: usize = 1 << 20;

impl Tokenizer {
    pub(crate) fn execute(&self, terminal: &mut Terminal) -> Outcome {
        let Action::Train(arguments) = &self.action;
        arguments.execute(terminal)
    }
}

impl Train {
    fn execute(&self, terminal: &mut Terminal) -> Outcome {
        let config = match self.model.join("config.json").exists() {
            true => Some(ModelConfig::read_warned(&self.model.join("config.json"))?.0),
            false => None,
        };
        let vocab = match (self.vocab, config.as_ref().map(ModelConfig::vocab_size)) {
            (Some(vocab), Some(rows)) if vocab > rows => {
                let problem = format!("--vocab {vocab} is more than the {rows} rows of the model's embedding");
                return Err(Failure::at(&self.model, problem));
            }
            (Some(vocab), _) | (None, Some(vocab)) => vocab,
            (None, None) => {
                return Err(Failure::at(
                    &self.model,
                    "there is no config.json that gives the model's number of tokens: give --vocab",
                ));
            }
        };
        if let (Some(file), false) = (of_dir(&self.model), self.force) {
            return Err(Failure::at(&file, "the directory already has a tokenizer: --force replaces it"));
        }
        let format = match (&self.field, self.chat) {
            (Some(field), _) => Format::Field(field.clone()),
            (None, true) => Format::Chat,
            (None, false) => Format::ByName,
        };
        let corpus = Corpus::open(&self.files, &format, PIECE)?;
        let masked = config.is_some_and(|config| !config.is_causal());
        let trained = train(&corpus, vocab, &self.special, masked)?;
        trained.save(&self.model)?;
        let Trained { size, .. } = trained;
        if size < vocab {
            terminal.note(format!("the text has pairs for only {size} tokens, fewer than the {vocab} allowed"));
        }
        terminal.print(format!(
            "a tokenizer of {size} tokens from {} bytes of text\nsaved {}\n",
            corpus.bytes(),
            self.model.display()
        ))
    }
}
