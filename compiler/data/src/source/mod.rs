//! Text from files: the documents are found in one pass, and any of them can be read later.
//!
//! | file | its documents |
//! |---|---|
//! | plain text | one, the whole file, read in pieces of some kilobytes that end at a paragraph, a line or a word |
//! | JSON lines (`.jsonl`, `.ndjson`) | one per line: the text of a field, or the messages of a conversation |
//!
//! Each may be compressed with gzip or zstd. [`Corpus::open`] reads every file once from front to back: it finds
//! faults, and records the offset of each document or piece, which is all that stays in memory: eight bytes each.
//! Documents are read again in the order of training, so a file must be readable at any offset. A compressed file or a
//! pipe is therefore first written to a temporary file without a name, which disappears with the process.

mod compression;
mod corpus;
mod index;
mod lines;
mod spool;
mod text;

pub use compression::Compression;
pub use corpus::{Content, Corpus, Unit};

/// How to find the documents of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// By the extension of the file's name, before `.gz` and `.zst`: `.jsonl` and `.ndjson` are JSON lines with the
    /// field `text`, any other file is a text.
    ByName,
    /// JSON lines with the text in this field.
    Field(String),
    /// JSON lines; the field `messages` holds a conversation: a list of objects with `role` and `content`.
    Chat,
}

/// The field of a text in JSON lines.
pub const TEXT: &str = "text";

/// The field of a conversation.
pub const MESSAGES: &str = "messages";
