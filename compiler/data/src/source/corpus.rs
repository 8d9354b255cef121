//! All documents of some files.

use super::Format;
use super::compression::Compression;
use super::index::{Found, READ, Tee, index_lines, index_text};
use super::lines::{Line, Reading};
use super::spool::nameless;
use crate::error::{DataError, Location};
use serde_json::Value;
use std::fs::File;
use std::hash::Hasher;
use std::io::{BufReader, BufWriter, Cursor, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use twox_hash::XxHash3_64;

/// The documents of some files, any of which can be read at any time. Eight bytes per document stay in memory.
#[derive(Debug)]
pub struct Corpus {
    files: Vec<Source>,
    /// Number of units before each file.
    before: Vec<u64>,
    units: u64,
    fingerprint: u64,
}

/// A file.
#[derive(Debug)]
struct Source {
    path: PathBuf,
    /// The decompressed text.
    text: File,
    /// `None` for plain text.
    reading: Option<Reading>,
    /// The offset of each unit.
    starts: Vec<u64>,
    /// The end of the last unit.
    end: u64,
    /// Number of documents without text, which are left out.
    empty: u64,
}

/// The number of a document or a piece of a text in the corpus.
pub type Unit = u64;

/// The contents of a document or a piece.
#[derive(Clone, Debug, PartialEq)]
pub enum Content {
    /// A text, or a piece of one.
    Text {
        /// The text.
        text: String,
        /// Whether it begins its document.
        begins: bool,
        /// Whether it ends its document.
        ends: bool,
    },
    /// A conversation.
    Chat {
        /// A list of objects with `role` and `content`.
        messages: Value,
        /// Tools that the conversation may use, for the template.
        tools: Option<Value>,
    },
}

impl Corpus {
    /// Reads files once from front to back, to check them and to find their documents. Texts are split into pieces of
    /// at most `piece` bytes.
    ///
    /// # Errors
    /// A file that cannot be read, is empty or broken, is not UTF-8 text, or has a line without the field.
    pub fn open(files: &[PathBuf], format: &Format, piece: usize) -> Result<Self, DataError> {
        let mut hash = XxHash3_64::new();
        let mut corpus = Corpus { files: Vec::new(), before: Vec::new(), units: 0, fingerprint: 0 };
        for path in files {
            let source = Source::open(path, format, piece.max(MIN_PIECE), &mut hash)?;
            corpus.before.push(corpus.units);
            corpus.units += source.starts.len() as u64;
            corpus.files.push(source);
        }
        hash.write_u64(corpus.units);
        corpus.fingerprint = hash.finish();
        Ok(corpus)
    }

    /// Number of documents and pieces of texts.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Bytes of text in all units.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.end).sum()
    }

    /// Number of documents without text, which are left out.
    pub fn empty(&self) -> u64 {
        self.files.iter().map(|file| file.empty).sum()
    }

    /// A hash of the contents, the order of the files and the units.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// The first file.
    pub fn first_file(&self) -> &Path {
        self.files.first().map_or(Path::new(""), |file| &file.path)
    }

    /// Bytes of a document or piece; 0 if it does not exist.
    pub fn size(&self, unit: Unit) -> u64 {
        self.find(unit).map_or(0, |(file, at)| file.span(at).1 - file.span(at).0)
    }

    /// Reads a document or piece.
    ///
    /// # Errors
    /// A file that has changed.
    pub fn read(&self, unit: Unit) -> Result<Content, DataError> {
        let Some((file, at)) = self.find(unit) else { return Err(DataError::Ended) };
        file.read(at)
    }

    /// The place of a document, for messages.
    pub fn place(&self, unit: Unit) -> (PathBuf, Location) {
        let Some((file, at)) = self.find(unit) else { return (PathBuf::new(), Location::Line(0)) };
        let start = file.span(at).0;
        let place = match file.reading {
            Some(_) => Location::Line(file.line(start)),
            None => Location::Byte(start),
        };
        (file.path.clone(), place)
    }

    fn find(&self, unit: Unit) -> Option<(&Source, usize)> {
        let at = self.before.partition_point(|&before| before <= unit).checked_sub(1)?;
        let (file, before) = (self.files.get(at)?, self.before.get(at)?);
        let inside = usize::try_from(unit - before).ok()?;
        (inside < file.starts.len()).then_some((file, inside))
    }
}

/// Shorter pieces would split words.
const MIN_PIECE: usize = 64;

impl Source {
    fn open(path: &Path, format: &Format, piece: usize, hash: &mut XxHash3_64) -> Result<Self, DataError> {
        let io = |source| DataError::Io { file: path.into(), source };
        let mut file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.is_dir() {
            return Err(io(std::io::ErrorKind::IsADirectory.into()));
        }
        let is_regular = file.metadata().map_err(io)?.is_file();
        let mut beginning = Vec::new();
        (&mut file).take(4).read_to_end(&mut beginning).map_err(io)?;
        let compression = Compression::of(path, &beginning)?;
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let reading = Reading::of(format, &name);
        let spooled = compression != Compression::Plain || !is_regular;
        let spool_error = |source| DataError::Spool { file: path.into(), dir: std::env::temp_dir(), source };
        let copy = if spooled { Some(nameless().map_err(spool_error)?) } else { None };
        let compressed = Cursor::new(beginning).chain(file.try_clone().map_err(io)?);
        let text = compression.reader(BufReader::with_capacity(READ, compressed));
        let mut tee = Tee {
            path,
            compression,
            text,
            copy: copy.as_ref().map(|copy| BufWriter::with_capacity(READ, copy)),
            hash,
            read: 0,
        };
        let found = match &reading {
            Some(reading) => index_lines(&mut tee, reading)?,
            None => index_text(&mut tee, piece)?,
        };
        if let Some(mut copy) = tee.copy.take() {
            copy.flush().map_err(spool_error)?;
        }
        drop(tee);
        let Found { starts, end, empty } = found;
        Ok(Source { path: path.into(), text: copy.unwrap_or(file), reading, starts, end, empty })
    }

    /// The first byte of a unit and its end.
    fn span(&self, at: usize) -> (u64, u64) {
        let start = self.starts.get(at).copied().unwrap_or(self.end);
        (start, self.starts.get(at + 1).copied().unwrap_or(self.end))
    }

    fn read(&self, at: usize) -> Result<Content, DataError> {
        let changed = |problem: String| DataError::Changed { file: self.path.clone(), problem };
        let (start, end) = self.span(at);
        let mut bytes = vec![0; (end - start) as usize];
        self.text.read_exact_at(&mut bytes, start).map_err(|e| match e.kind() {
            std::io::ErrorKind::UnexpectedEof => changed(format!("it had {} bytes and is shorter now", self.end)),
            _ => DataError::Io { file: self.path.clone(), source: e },
        })?;
        let text = String::from_utf8(bytes).map_err(|e| {
            changed(format!("byte {} is not UTF-8 any more", start + e.utf8_error().valid_up_to() as u64))
        })?;
        let Some(reading) = &self.reading else {
            return Ok(Content::Text { text, begins: at == 0, ends: at + 1 == self.starts.len() });
        };
        // Blank lines and lines without text may follow.
        let line = text.split('\n').next().unwrap_or_default().trim();
        match reading.text(line) {
            Ok(Line::Text(text)) => Ok(Content::Text { text, begins: true, ends: true }),
            Ok(Line::Chat { messages, tools }) => Ok(Content::Chat { messages, tools }),
            Err(problem) => Err(changed(format!("the line at byte {start}: {problem}"))),
        }
    }

    /// The number of the line that begins at a byte. This reads the preceding text a second time, because only errors
    /// need it.
    fn line(&self, start: u64) -> u64 {
        let (mut line, mut at, mut buffer) = (1, 0, vec![0; READ]);
        while at < start {
            let wanted = (start - at).min(READ as u64) as usize;
            match self.text.read_at(&mut buffer[..wanted], at) {
                Ok(0) | Err(_) => break,
                Ok(read) => {
                    line += buffer[..read].iter().filter(|&&b| b == b'\n').count() as u64;
                    at += read as u64;
                }
            }
        }
        line
    }
}
