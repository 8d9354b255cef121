//! The first pass through a file, which finds its documents and their faults.

use super::compression::Compression;
use super::lines::Reading;
use super::text::{end_of_piece, wrong_byte};
use crate::error::DataError;
use std::fs::File;
use std::hash::Hasher;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::Path;
use twox_hash::XxHash3_64;

/// Bytes that are read at once.
pub(super) const READ: usize = 1 << 16;

/// The byte order mark that some editors put before a UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = &[0xef, 0xbb, 0xbf];

/// Reads a text from front to back, hashes it, and copies it if it can only be read once.
pub(super) struct Tee<'a> {
    pub(super) path: &'a Path,
    pub(super) compression: Compression,
    pub(super) text: Box<dyn Read + Send + 'a>,
    pub(super) copy: Option<BufWriter<&'a File>>,
    pub(super) hash: &'a mut XxHash3_64,
    pub(super) read: u64,
}

impl Tee<'_> {
    /// Appends up to [`READ`] bytes; 0 at the end.
    fn more(&mut self, to: &mut Vec<u8>) -> Result<usize, DataError> {
        let old = to.len();
        to.resize(old + READ, 0);
        let read = loop {
            match self.text.read(&mut to[old..]) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        to.truncate(old + *read.as_ref().unwrap_or(&0));
        let read = read.map_err(|source| match self.compression {
            Compression::Plain => DataError::Io { file: self.path.into(), source },
            compression => DataError::Broken {
                file: self.path.into(),
                compression: compression.name(),
                after: self.read,
                problem: source.to_string(),
            },
        })?;
        let new = &to[old..];
        self.hash.write(new);
        if let Some(copy) = &mut self.copy {
            copy.write_all(new).map_err(|source| DataError::Spool {
                file: self.path.into(),
                dir: std::env::temp_dir(),
                source,
            })?;
        }
        self.read += read as u64;
        Ok(read)
    }
}

/// The units of a file.
pub(super) struct Found {
    /// The offset of each unit.
    pub(super) starts: Vec<u64>,
    /// The end of the last unit.
    pub(super) end: u64,
    /// Number of documents without text, which are left out.
    pub(super) empty: u64,
}

/// Finds the pieces of a plain text.
pub(super) fn index_text(tee: &mut Tee<'_>, piece: usize) -> Result<Found, DataError> {
    let (mut starts, mut pending, mut at, mut is_blank) = (Vec::new(), Vec::new(), 0u64, true);
    let enough = piece.max(READ);
    let mut is_end = false;
    while !is_end {
        while pending.len() <= enough && !is_end {
            is_end = tee.more(&mut pending)? == 0;
        }
        if at == 0 && pending.starts_with(BYTE_ORDER_MARK) {
            pending.drain(..BYTE_ORDER_MARK.len());
            at = BYTE_ORDER_MARK.len() as u64;
        }
        if let Some(wrong) = wrong_byte(&pending, is_end) {
            let value = pending.get(wrong).copied().unwrap_or_default();
            return Err(DataError::NotUtf8 { file: tee.path.into(), byte: at + wrong as u64, value, line: None });
        }
        is_blank &= pending.iter().all(u8::is_ascii_whitespace);
        let mut cut = 0;
        while pending.len() - cut > piece {
            let end = end_of_piece(&pending[cut..], piece);
            starts.push(at + cut as u64);
            cut += end;
        }
        pending.drain(..cut);
        at += cut as u64;
    }
    if !pending.is_empty() {
        starts.push(at);
    }
    if is_blank {
        let problem = if tee.read == 0 { "the file is empty" } else { "the file holds only white space" };
        return Err(DataError::Empty { file: tee.path.into(), problem });
    }
    Ok(Found { starts, end: at + pending.len() as u64, empty: 0 })
}

/// Finds the documents of JSON lines.
pub(super) fn index_lines(tee: &mut Tee<'_>, reading: &Reading) -> Result<Found, DataError> {
    let path = tee.path.to_path_buf();
    let (mut starts, mut empty, mut number, mut at) = (Vec::new(), 0, 0u64, 0u64);
    let mut lines = BufReader::with_capacity(READ, ByLine { tee, failed: None, buffer: Vec::new(), at: 0 });
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = lines.read_until(b'\n', &mut line);
        if let Some(error) = lines.get_mut().failed.take() {
            return Err(error);
        }
        let length = read.map_err(|source| DataError::Io { file: path.clone(), source })?;
        if length == 0 {
            break;
        }
        number += 1;
        let mark = if at == 0 && line.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len() } else { 0 };
        let start = at + mark as u64;
        at += length as u64;
        let content = line.get(mark..).unwrap_or_default();
        let text = std::str::from_utf8(content).map_err(|e| {
            let wrong = e.valid_up_to();
            let value = content.get(wrong).copied().unwrap_or_default();
            DataError::NotUtf8 { file: path.clone(), byte: start + wrong as u64, value, line: Some(number) }
        })?;
        let text = text.trim();
        if text.is_empty() {
            continue;
        }
        let found =
            reading.text(text).map_err(|problem| DataError::Line { file: path.clone(), line: number, problem })?;
        if found.is_empty() {
            empty += 1;
        } else {
            starts.push(start);
        }
    }
    if starts.is_empty() {
        let problem = match (at, empty) {
            (0, _) => "the file is empty",
            (_, 0) => "the file holds only blank lines",
            _ => "all its documents are empty",
        };
        return Err(DataError::Empty { file: path, problem });
    }
    Ok(Found { starts, end: at, empty })
}

/// A [`Tee`] as a reader of the standard library, which keeps the original error.
struct ByLine<'a, 'b> {
    tee: &'a mut Tee<'b>,
    failed: Option<DataError>,
    buffer: Vec<u8>,
    at: usize,
}

impl Read for ByLine<'_, '_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.at = 0;
            if let Err(error) = self.tee.more(&mut self.buffer) {
                self.failed = Some(error);
                return Err(std::io::ErrorKind::Other.into());
            }
        }
        let read = (&self.buffer[self.at..]).read(to)?;
        self.at += read;
        Ok(read)
    }
}
