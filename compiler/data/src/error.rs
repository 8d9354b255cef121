//! What can go wrong with data, and where: every error names the file, and the line or the byte.

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
        /// What the system said.
        source: std::io::Error,
    },
    /// The decompressed text of a compressed file found no room.
    #[error("{}: its decompressed text cannot be kept in {}: {source}; set TMPDIR to a directory with more room", shown(.file), shown(.dir))]
    Spool {
        /// The file.
        file: PathBuf,
        /// The directory of temporary files.
        dir: PathBuf,
        /// What the system said.
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
        /// What the decoder said.
        problem: String,
    },
    /// The name says that a file is compressed, the contents do not.
    #[error("{}: the name ends in .{extension}, but the contents are not {compression} data", shown(.file))]
    NotCompressed {
        /// The file.
        file: PathBuf,
        /// The end of its name.
        extension: &'static str,
        /// The format that the name promises.
        compression: &'static str,
    },
    /// A text that is not UTF-8.
    #[error("{}: not UTF-8 text: byte {byte}{} is 0x{value:02x}", shown(.file), on_line(.line))]
    NotUtf8 {
        /// The file.
        file: PathBuf,
        /// The first byte that is wrong, counted from 0, after decompression.
        byte: u64,
        /// Its value.
        value: u8,
        /// Its line, counted from 1, where the file is read by lines.
        line: Option<u64>,
    },
    /// A file without any document.
    #[error("{}: no text to train on: {problem}", shown(.file))]
    Empty {
        /// The file.
        file: PathBuf,
        /// What it is instead.
        problem: &'static str,
    },
    /// A line that is not the JSON that it should be.
    #[error("{}: line {line}: {problem}", shown(.file))]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, counted from 1.
        line: u64,
        /// What is wrong with it.
        problem: LineProblem,
    },
    /// A document that the tokenizer, the template or the model does not take.
    #[error("{}: {place}: {problem}", shown(.file))]
    Document {
        /// The file.
        file: PathBuf,
        /// Where the document is.
        place: Place,
        /// What is wrong with it.
        problem: DocumentProblem,
    },
    /// A file that changed after it was first read.
    #[error("{}: the file changed while it was in use: {problem}; start again with the file as it is now", shown(.file))]
    Changed {
        /// The file.
        file: PathBuf,
        /// How that was noticed.
        problem: String,
    },
    /// A share to hold out that leaves nothing to train on, or nothing to hold out.
    #[error(
        "a held-out share of {share} leaves nothing to train on: the data has {units} {}; give a smaller share, or other data to evaluate on",
        if *.units == 1 { "part" } else { "parts" }
    )]
    HeldOut {
        /// The share.
        share: f64,
        /// Documents and pieces of texts.
        units: u64,
    },
    /// All tokens are left out of the loss.
    #[error("{}: no token of the data counts in the loss: {problem}", shown(.file))]
    NoLoss {
        /// The first file.
        file: PathBuf,
        /// Why.
        problem: &'static str,
    },
    /// A position that was kept for other data or another way of reading it.
    #[error(
        "the checkpoint was written with other data: {what} was {kept}, but is {now}; give the same data and options, or begin with another --checkpoint"
    )]
    OtherData {
        /// What differs.
        what: &'static str,
        /// What it was.
        kept: String,
        /// What it is.
        now: String,
    },
    /// The background thread ended without a result.
    #[error("internal error: the thread that reads the data ended early; please report it")]
    Ended,
}

/// What is wrong with a line of JSON.
#[derive(Debug, thiserror::Error)]
pub enum LineProblem {
    /// No JSON.
    #[error("not valid JSON: {0}")]
    Json(String),
    /// JSON, but no object.
    #[error("expected a JSON object")]
    NoObject,
    /// An object without the field.
    #[error("no field {}; {}", quoted(.field), others(.found))]
    NoField {
        /// The field.
        field: String,
        /// The fields that there are.
        found: Vec<String>,
    },
    /// A field of another type.
    #[error("field {} should be {expected}, but is {}", quoted(.field), cut(.found))]
    WrongField {
        /// The field.
        field: String,
        /// What is accepted.
        expected: &'static str,
        /// What it is.
        found: String,
    },
}

/// What is wrong with a document.
#[derive(Debug, thiserror::Error)]
pub enum DocumentProblem {
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] crate::tokenizer::TokenizerError),
    /// A token that the model has no embedding for.
    #[error(
        "token {} is {id}, but the model's table has {table} rows: the tokenizer is not that of the model",
        quoted(.token)
    )]
    OutsideTable {
        /// The token's text.
        token: String,
        /// Its number.
        id: u32,
        /// Rows of the table.
        table: usize,
    },
}

/// Where a document is in its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Place {
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
    format!("there are {}{more}; --field chooses another", shown.join(", "))
}
