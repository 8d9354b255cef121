//! The data that a run trains on, from its arguments.

use super::alphabet::{self, Kept};
use crate::data::Batch;
use crate::given::Given;
use crate::subject::check_size;
use crate::{Failure, Outcome};
use clap::{Args, ValueEnum};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tpc_compiler::models::{Alphabet, ModelConfig};
use tpc_compiler::pretrained::TokenBatch;
use tpc_data::{Corpus, Format, LossOn, Objective, Packing, Recipe, Split, Tokenizer, piece};
use tpc_ir::quote::cut;

/// Which tokens of a conversation count toward the loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Counted {
    /// The assistant's messages
    Answers,
    /// All messages
    All,
}

/// The arguments of the data.
#[derive(Debug, Args)]
pub struct DataArguments {
    /// Texts to train on: plain text (one document per file), or JSON lines (.jsonl, .ndjson) with a text in each; may
    /// be compressed (.gz, .zst)
    #[arg(long, value_name = "FILE", num_args = 1.., required_unless_present = "inputs")]
    pub data: Vec<PathBuf>,
    /// Global batch, the same in every step: input_ids, labels, attention_mask, token_type_ids
    #[arg(long, value_name = "FILE.safetensors", conflicts_with = "data")]
    pub inputs: Option<PathBuf>,
    /// The data are JSON lines with the text in this field [default: text]
    #[arg(long, value_name = "NAME", conflicts_with_all = ["inputs", "chat"])]
    field: Option<String>,
    /// The data are JSON lines with a conversation in each: `messages`, a list of objects with role and content,
    /// formatted by the model's chat template
    #[arg(long, conflicts_with = "inputs")]
    chat: bool,
    /// Treat each character as a token, for models without a tokenizer
    #[arg(long, conflicts_with_all = ["inputs", "chat"])]
    characters: bool,
    /// Which messages of a conversation count toward the loss [default: answers]
    #[arg(long, value_enum, requires = "chat")]
    loss_on: Option<Counted>,
    /// Fill rows with consecutive documents; in a causal model, a token sees its own document only [default]
    #[arg(long, conflicts_with_all = ["inputs", "pad"])]
    pack: bool,
    /// In packed rows, let a token also see the documents before its own
    #[arg(long, conflicts_with_all = ["inputs", "pad"])]
    mix_documents: bool,
    /// Put one document, or a part of one, into each row, and pad the rest of the row
    #[arg(long, conflicts_with = "inputs")]
    pad: bool,
    /// Rows per batch of --data
    #[arg(long, default_value_t = 8)]
    pub batch: usize,
    /// Tokens per row of --data [default: 128, or the number of the model's positions if that is smaller]
    #[arg(long)]
    seq: Option<usize>,
    /// Texts to evaluate on, in the format of --data
    #[arg(long, value_name = "FILE", num_args = 1.., conflicts_with = "inputs")]
    pub eval_data: Vec<PathBuf>,
    /// Share of --data to hold out for evaluation
    #[arg(long, value_name = "SHARE", value_parser = share, conflicts_with_all = ["inputs", "eval_data"])]
    held_out: Option<f64>,
}

/// Parses a number between 0 and 1.
fn share(text: &str) -> Result<f64, String> {
    let number: Option<f64> = text.parse().ok();
    number.filter(|x| *x > 0.0 && *x < 1.0).ok_or_else(|| "expected a number above 0 and below 1".into())
}

/// The data that a run trains on.
pub(super) enum Source {
    /// One batch.
    Fixed(Batch),
    /// Batches from texts.
    Texts(Box<Texts>),
}

/// Texts to train and to evaluate on.
pub(super) struct Texts {
    pub(super) train: Recipe,
    pub(super) evaluate: Option<Recipe>,
    pub(super) tokens: TokenBatch,
    /// The alphabet, if tokens are characters.
    pub(super) alphabet: Option<Alphabet>,
    /// Notes for the user.
    pub(super) notes: Vec<String>,
}

impl Source {
    pub(super) fn tokens(&self) -> TokenBatch {
        match self {
            Source::Fixed(batch) => batch.tokens,
            Source::Texts(texts) => texts.tokens,
        }
    }

    pub(super) fn texts(&self) -> Option<&Texts> {
        match self {
            Source::Fixed(_) => None,
            Source::Texts(texts) => Some(texts),
        }
    }
}

/// What the data depend on in the model.
pub(super) struct Learner<'a> {
    /// The model's directory.
    pub(super) dir: &'a Path,
    pub(super) config: &'a ModelConfig,
    /// The alphabet that the model was trained on.
    pub(super) kept: Option<&'a Kept>,
    pub(super) seed: u64,
    /// The current time for chat templates, in seconds since 1970.
    pub(super) now: u64,
}

impl DataArguments {
    /// All files, with the options that name them.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        let inputs = self.inputs.iter().map(|file| ("--inputs", file));
        let data = self.data.iter().map(|file| ("--data", file));
        inputs.chain(data).chain(self.eval_data.iter().map(|file| ("--eval-data", file)))
    }

    /// Whether the run evaluates.
    pub(super) fn evaluates(&self) -> bool {
        self.held_out.is_some() || !self.eval_data.is_empty()
    }

    /// Reads the data.
    ///
    /// # Errors
    /// Files that are broken or empty; a model without a tokenizer, or with one that does not fit the data.
    pub(super) fn source(&self, learner: &Learner, given: &Given) -> Outcome<Source> {
        let Some(file) = &self.inputs else { return self.texts(learner).map(|texts| Source::Texts(Box::new(texts))) };
        given.refuse(&["batch", "seq"], "with --inputs, which determines the size of the batch")?;
        let batch = Batch::read(file, learner.config)?;
        if !batch.has_labels() {
            return Err(Failure::at(file, "no tensor \"labels\": training needs them"));
        }
        Ok(Source::Fixed(batch))
    }

    fn texts(&self, learner: &Learner) -> Outcome<Texts> {
        let config = learner.config;
        let seq = self.seq.unwrap_or(128.min(config.max_positions()));
        config.check_batch([self.batch, seq], 0)?;
        check_size(config, [self.batch, seq])?;
        if seq < 2 {
            return Err(Failure::new("--seq must be at least 2: a token is predicted from the ones before it"));
        }
        // Checked before the data are read, which may take long.
        let tokenizer = self.tokenizer(learner)?;
        let format = match (&self.field, self.chat) {
            (Some(field), _) => Format::Field(field.clone()),
            (None, true) => Format::Chat,
            (None, false) => Format::ByName,
        };
        let corpus = Corpus::open(&self.data, &format, piece(seq))?;
        let mut notes = Vec::new();
        let (tokenizer, alphabet) = match tokenizer {
            Some(tokenizer) => (tokenizer, None),
            None => {
                let alphabet = alphabet::alphabet(&corpus, config.vocab_size(), learner.kept)?;
                (alphabet::tokenizer(&alphabet)?, Some(alphabet))
            }
        };
        let evaluated = match &self.eval_data[..] {
            [] => None,
            files => Some(Arc::new(Corpus::open(files, &format, piece(seq))?)),
        };
        for (option, corpus) in [("--data", Some(&corpus)), ("--eval-data", evaluated.as_deref())] {
            if let Some(empty) = corpus.map(Corpus::empty).filter(|&empty| empty > 0) {
                notes.push(format!("{option}: {empty} of its documents have no text and are left out"));
            }
        }
        if tokenizer.size() > config.vocab_size() {
            notes.push(format!(
                "the tokenizer has {} tokens, but the model's embedding has {} rows: a text with a token beyond them is an error",
                tokenizer.size(),
                config.vocab_size()
            ));
        }
        let train = Recipe {
            corpus: Arc::new(corpus),
            objective: objective(&tokenizer, learner)?,
            tokenizer: Arc::new(tokenizer),
            split: self.held_out.map_or(Split::All, Split::But),
            seq,
            packing: match (self.pad, config.is_causal()) {
                (true, _) => Packing::Padded,
                (false, true) if !self.mix_documents => Packing::Apart,
                (false, _) => Packing::Packed,
            },
            loss: match (self.chat, self.loss_on) {
                (false, _) | (_, Some(Counted::All)) => LossOn::All,
                (true, _) => LossOn::Answers,
            },
            table: config.vocab_size(),
            seed: learner.seed,
            now: learner.now,
            shuffled: true,
        };
        let evaluate = match (evaluated, self.held_out) {
            (Some(corpus), _) => Some(Recipe { corpus, split: Split::All, shuffled: false, ..train.clone() }),
            (None, Some(share)) => Some(Recipe { split: Split::Only(share), shuffled: false, ..train.clone() }),
            (None, None) => None,
        };
        let mut tokens = TokenBatch::new(self.batch, seq);
        // A causal model's tokens do not see the padding after them.
        tokens.attention_mask = !config.is_causal();
        tokens.documents = train.packing == Packing::Apart;
        Ok(Texts { train, evaluate, tokens, alphabet, notes })
    }

    /// The tokenizer of the model's directory; `None` if tokens are characters.
    fn tokenizer(&self, learner: &Learner) -> Outcome<Option<Tokenizer>> {
        let found = match Tokenizer::of_dir(learner.dir, learner.now)? {
            // If the weights are not read, their characters do not matter.
            Some(Tokenizer::Characters(_)) | None => None,
            Some(found) => Some(found),
        };
        match (found, self.characters, learner.kept) {
            (Some(_), true, _) => Err(Failure::at(
                learner.dir,
                "the model has a tokenizer, which --characters would ignore: leave --characters out, or start a character model with --from-scratch in a directory that holds only a config.json",
            )),
            (Some(found), false, _) => Ok(Some(found)),
            (None, true, _) | (None, false, Some(_)) => Ok(None),
            (None, false, None) => {
                let dir = cut(&learner.dir.display().to_string()).to_string();
                Err(Failure::new(format!(
                    "{dir}: the model has no tokenizer to turn a text into tokens: copy its tokenizer.json there, train one with tpc tokenizer train {dir} FILE…, or make each character a token with --characters"
                )))
            }
        }
    }
}

/// The training objective of a model on texts.
fn objective(tokenizer: &Tokenizer, learner: &Learner) -> Outcome<Objective> {
    if learner.config.is_causal() {
        return Ok(Objective::Next);
    }
    let Some(mask) = tokenizer.mask() else {
        return Err(Failure::at(
            learner.dir,
            format!(
                "{} learns to guess masked tokens, but its tokenizer has no mask_token in tokenizer_config.json",
                learner.config.model_type()
            ),
        ));
    };
    let (before, after) = tokenizer.frame();
    let special = [before.first(), after.first(), None].map(|token| token.copied());
    let tokens = u32::try_from(tokenizer.size().min(learner.config.vocab_size())).unwrap_or(u32::MAX);
    Ok(Objective::Masked { mask, tokens, special: [special[0], special[1], tokenizer.eos()] })
}
