//! Text from files: which documents there are, found in one pass, and any of them again later.
//!
//! | the file | its documents |
//! |---|---|
//! | plain text | one, the whole file, read in pieces of some kilobytes that end at a paragraph, a line or a word |
//! | JSON lines (`.jsonl`, `.ndjson`) | one a line: the text of a field, or the messages of a conversation |
//!
//! Each may be compressed with gzip or zstd. [`Corpus::open`] reads every file once from front to back: it finds what is wrong with it, and
//! notes where each document or piece begins. That is all that stays in memory, eight bytes for each. Documents are read again in the
//! order of training, so a file has to be one that can be read at any place; a compressed file, or a pipe, is first written to a temporary
//! file that has no name and vanishes with the process.

mod compression;
mod corpus;
mod index;
mod lines;
mod spool;
mod text;

pub use compression::Compression;
pub use corpus::{Content, Corpus, Unit};

/// How the documents of a file are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// By the end of the file's name, before `.gz` and `.zst`: `.jsonl` and `.ndjson` are JSON lines whose field is `text`, everything
    /// else is a text.
    ByName,
    /// JSON lines; the text is in this field.
    Field(String),
    /// JSON lines; the field `messages` holds a conversation: a list of objects with `role` and `content`.
    Chat,
}

/// The field of a text in JSON lines.
pub const TEXT: &str = "text";

/// The field of a conversation.
pub const MESSAGES: &str = "messages";
