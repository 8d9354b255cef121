//! What can go wrong with a tokenizer.

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
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is not what it should be.
    #[error("{}: {}", shown(.file), cut(.problem))]
    Invalid {
        /// The file.
        file: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// A tokenizer in another format.
    #[error("{}: the tokenizer is in a format that is not read, and there is no tokenizer.json beside it; in Python, AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes one", shown(.file))]
    OtherFormat {
        /// The file.
        file: PathBuf,
    },
    /// A text that the tokenizer does not take.
    #[error("the tokenizer fails: {}", cut(.0))]
    Encode(String),
    /// A number that is no token.
    #[error("{0} is no token: the tokenizer has {1}")]
    NoToken(u32, usize),
    /// A character that the alphabet lacks.
    #[error("the alphabet of the model lacks {0:?}")]
    NoCharacter(char),
    /// A conversation for a model without a chat template.
    #[error(
        "the model has no chat template, neither chat_template.jinja nor chat_template in tokenizer_config.json: it cannot be given conversations"
    )]
    NoTemplate,
    /// A template that is broken, or that refuses a conversation.
    #[error("{}{}: the chat template fails: {}", shown(.file), at_line(.line), cut(.problem))]
    Template {
        /// The file with the template.
        file: PathBuf,
        /// The template's line, counted from 1, if it is known.
        line: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// A template that does not show which of the text are answers.
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
    #[error("the conversation has no message of the role \"assistant\", so there is nothing to learn from it")]
    NothingToLearn,
    /// A conversation that holds the characters that mark answers.
    #[error(
        "the conversation holds the character U+{0:04X}, which marks answers: it is no character of any text, remove it"
    )]
    Marker(u32),
    /// A vocabulary that has no room for every byte.
    #[error(
        "a byte-level vocabulary needs {least} tokens or more, one for each byte and one for each special token; --vocab is {asked}"
    )]
    SmallVocabulary {
        /// What was asked for.
        asked: usize,
        /// The least that there can be.
        least: usize,
    },
    /// A special token that is none.
    #[error("{} cannot be a special token: {problem}", quoted(.token))]
    Special {
        /// The token.
        token: String,
        /// Why.
        problem: &'static str,
    },
}

fn at_line(line: &Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(": line {line}"))
}
