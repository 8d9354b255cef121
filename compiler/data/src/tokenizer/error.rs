//! The errors of tokenizers.

use crate::error::shown;
use std::path::PathBuf;
use tpc_ir::quote::{cut, quoted};

/// An error of reading, training or using a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file could not be read or written.
    #[error("{}: {source}", shown(.file))]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// An invalid file.
    #[error("{}: {}", shown(.file), cut(.problem))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tokenizer in an unsupported format.
    #[error("{}: the tokenizer is in an unsupported format, and there is no tokenizer.json next to it; in Python, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one", shown(.file))]
    OtherFormat {
        /// The file.
        file: PathBuf,
    },
    /// A text that the tokenizer rejects.
    #[error("the tokenizer fails: {}", cut(.0))]
    Encode(String),
    /// A number that is not a token.
    #[error("{0} is not a token: the tokenizer has {1}")]
    NoToken(u32, usize),
    /// A character that the alphabet lacks.
    #[error("the alphabet of the model lacks {0:?}")]
    NoCharacter(char),
    /// A conversation for a model without a chat template.
    #[error(
        "the model has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json: it does not accept conversations"
    )]
    NoTemplate,
    /// A template that is broken, or that rejects a conversation.
    #[error("{}{}: the chat template fails: {}", shown(.file), at_line(.line), cut(.problem))]
    Template {
        /// The file with the template.
        file: PathBuf,
        /// The template's line, counted from 1, if known.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// A template that does not show which parts of the text are answers.
    #[error(
        "{}: the chat template does not show where the answer of message {} is: it has no {{% generation %}} blocks, and the text up to a message is not the beginning of the text with it; train on everything with --loss-on all",
        shown(.file), .message + 1
    )]
    NoAnswers {
        /// The file with the template.
        file: PathBuf,
        /// The message, counted from 0.
        message: usize,
    },
    /// A conversation without an answer.
    #[error("the conversation has no message with the role \"assistant\", so there is nothing to learn from it")]
    NothingToLearn,
    /// A conversation that contains the characters that mark answers.
    #[error(
        "the conversation contains the character U+{0:04X}, which marks answers and is not a valid character of a text: remove it"
    )]
    Marker(u32),
    /// A vocabulary that is too small for all bytes.
    #[error(
        "a byte-level vocabulary needs at least {least} tokens, one for each byte and one for each special token; --vocab is {asked}"
    )]
    SmallVocabulary {
        /// The requested size.
        asked: usize,
        /// The minimum size.
        least: usize,
    },
    /// An invalid special token.
    #[error("{} cannot be a special token: {problem}", quoted(.token))]
    Special {
        /// The token.
        token: String,
        /// The reason.
        problem: &'static str,
    },
}

fn at_line(line: &Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(": line {line}"))
}
