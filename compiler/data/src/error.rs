//! The errors of data. Every error names the file, and the line or the byte.

use std::path::PathBuf;
use tpc_ir::quote::{cut, quoted};

/// An error of reading, tokenizing or packing text.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file could not be read.
    #[error("{}: {source}", shown(.file))]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The decompressed text of a compressed file could not be stored.
    #[error("{}: its decompressed text cannot be kept in {}: {source}; set TMPDIR to a directory with more room", shown(.file), shown(.dir))]
    Spool {
        /// The file.
        file: PathBuf,
        /// The directory of temporary files.
        dir: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A compressed file is damaged or ends early.
    #[error("{}: broken {compression} data after {after} bytes of text: {problem}", shown(.file))]
    Broken {
        /// The file.
        file: PathBuf,
        /// The format.
        compression: &'static str,
        /// Bytes of text that could be read.
        after: u64,
        /// The decoder's error.
        problem: String,
    },
    /// A file's name says that it is compressed, but its contents are not.
    #[error("{}: the name ends in .{extension}, but the contents are not {compression} data", shown(.file))]
    NotCompressed {
        /// The file.
        file: PathBuf,
        /// The extension of its name.
        extension: &'static str,
        /// The format according to the name.
        compression: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("{}: not UTF-8 text: byte {byte}{} is 0x{value:02x}", shown(.file), on_line(.line))]
    NotUtf8 {
        /// The file.
        file: PathBuf,
        /// The first invalid byte, counted from 0, after decompression.
        byte: u64,
        /// Its value.
        value: u8,
        /// Its line, counted from 1, if the file is read by lines.
        line: Option<u64>,
    },
    /// A file without documents.
    #[error("{}: no text to train on: {problem}", shown(.file))]
    Empty {
        /// The file.
        file: PathBuf,
        /// What the file contains instead.
        problem: &'static str,
    },
    /// A line that is not the expected JSON.
    #[error("{}: line {line}: {problem}", shown(.file))]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with the line.
        problem: LineProblem,
    },
    /// A document that the tokenizer, the template or the model rejects.
    #[error("{}: {place}: {problem}", shown(.file))]
    Document {
        /// The file.
        file: PathBuf,
        /// The place of the document.
        place: Location,
        /// What is wrong with the document.
        problem: DocumentProblem,
    },
    /// A file that changed after it was first read.
    #[error("{}: the file changed while it was in use: {problem}; start again with the current file", shown(.file))]
    Changed {
        /// The file.
        file: PathBuf,
        /// How the change was noticed.
        problem: String,
    },
    /// A held-out share that leaves nothing to train on, or nothing to hold out.
    #[error(
        "a held-out share of {share} leaves nothing to train on: the data has {units} {}; give a smaller share, or other data to evaluate on",
        if *.units == 1 { "part" } else { "parts" }
    )]
    HeldOut {
        /// The share.
        share: f64,
        /// Number of documents and pieces of texts.
        units: u64,
    },
    /// No token counts toward the loss.
    #[error("{}: no token of the data counts toward the loss: {problem}", shown(.file))]
    NoLoss {
        /// The first file.
        file: PathBuf,
        /// The reason.
        problem: &'static str,
    },
    /// A position that belongs to other data or other options.
    #[error(
        "the checkpoint was written with other data: {what} was {kept}, but is {now}; give the same data and options, or start with another --checkpoint"
    )]
    OtherData {
        /// What differs.
        what: &'static str,
        /// The earlier value.
        kept: String,
        /// The current value.
        now: String,
    },
    /// The background thread ended without a result.
    #[error("internal error: the thread that reads the data ended early; please report it")]
    Ended,
}

/// What is wrong with a line of JSON.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// The line is not JSON.
    #[error("not valid JSON: {0}")]
    Json(String),
    /// The line is JSON, but not an object.
    #[error("expected a JSON object")]
    NoObject,
    /// An object without the field.
    #[error("no field {}; {}", quoted(.field), others(.found))]
    NoField {
        /// The field.
        field: String,
        /// The existing fields.
        found: Vec<String>,
    },
    /// A field of another type.
    #[error("field {} should be {expected}, but is {}", quoted(.field), cut(.found))]
    WrongField {
        /// The field.
        field: String,
        /// The accepted values.
        expected: &'static str,
        /// The value found.
        found: String,
    },
}

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentProblem {
    /// The tokenizer fails.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A token that the model has no embedding for.
    #[error(
        "token {} is {id}, but the model's embedding has {table} rows: the tokenizer does not belong to the model",
        quoted(.token)
    )]
    OutsideTable {
        /// The token's text.
        token: String,
        /// Its number.
        id: u32,
        /// Number of rows of the embedding.
        table: usize,
    },
}

/// The place of a document in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Location {
    /// A line, counted from 1.
    #[error("line {0}")]
    Line(u64),
    /// A piece of a text: its first byte, counted from 0, after decompression.
    #[error("the text from byte {0}")]
    Byte(u64),
}

pub(crate) fn shown(path: &std::path::Path) -> String {
    cut(&path.display().to_string()).to_string()
}

fn on_line(line: &Option<u64>) -> String {
    line.map_or_else(String::new, |line| format!(" (line {line})"))
}

fn others(found: &[String]) -> String {
    const MOST: usize = 8;
    if found.is_empty() {
        return "the object has none".into();
    }
    let shown: Vec<String> = found.iter().take(MOST).map(|name| quoted(name).to_string()).collect();
    let more = if found.len() > MOST { ", …" } else { "" };
    format!("its fields are {}{more}; --field selects another", shown.join(", "))
}
