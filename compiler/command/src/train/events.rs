//! TensorBoard's event files. They only use a few fields of two protocol buffers, which are written by hand.
//!
//! A file is a sequence of records: the length in 8 bytes, the masked CRC-32C of these, the data, and their masked CRC-32C
//! (`tensorflow/core/lib/io/record_writer.h`). The data are an `Event` (`tensorflow/core/util/event.proto`):
//!
//! ```text
//! Event      1 wall_time: double   2 step: int64   3 file_version: string   5 summary: Summary   7 session_log: SessionLog
//! Summary    1 value: repeated { 1 tag: string   2 simple_value: float }
//! SessionLog 1 status: enum, START = 1
//! ```

use crate::Outcome;
use crate::files::unwritable;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// An event file.
pub(super) struct Events {
    path: PathBuf,
    file: File,
}

impl Events {
    /// Creates a file in a directory for the steps after `done`. TensorBoard drops later steps of earlier files in the
    /// directory.
    ///
    /// # Errors
    /// A directory that rejects the file.
    pub(super) fn new(dir: &Path, done: u64) -> Outcome<Self> {
        let now = now();
        let name = format!("events.out.tfevents.{:010}.tpc.{}", now as u64, std::process::id());
        let path = dir.join(name);
        fs::create_dir_all(dir).map_err(|e| unwritable(dir, e))?;
        let file = File::create(&path).map_err(|e| unwritable(&path, e))?;
        let mut events = Events { path, file };
        events.put(&beginning(now, done))?;
        Ok(events)
    }

    pub(super) fn write(&mut self, step: u64, values: &[(&'static str, f64)]) -> Outcome {
        self.put(&record(&summary(now(), step, values)))
    }

    fn put(&mut self, bytes: &[u8]) -> Outcome {
        self.file.write_all(bytes).map_err(|e| unwritable(&self.path, e))
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The first records of a file: its version and, if a run resumes, the step that it resumes from.
fn beginning(now: f64, done: u64) -> Vec<u8> {
    const VERSION: &str = "brain.Event:2";
    let mut event = Message::default();
    event.double(1, now);
    event.bytes(3, VERSION.as_bytes());
    let mut records = record(&event.0);
    if done > 0 {
        let (mut event, mut log) = (Message::default(), Message::default());
        log.integer(1, 1);
        event.double(1, now);
        event.integer(2, done + 1);
        event.bytes(7, &log.0);
        records.extend(record(&event.0));
    }
    records
}

fn summary(now: f64, step: u64, values: &[(&'static str, f64)]) -> Vec<u8> {
    let (mut event, mut summary) = (Message::default(), Message::default());
    for (tag, number) in values {
        let mut value = Message::default();
        value.bytes(1, tag.as_bytes());
        value.float(2, *number as f32);
        summary.bytes(1, &value.0);
    }
    event.double(1, now);
    event.integer(2, step);
    event.bytes(5, &summary.0);
    event.0
}

/// A protocol buffer under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    /// Writes a field's number with its wire type.
    fn field(&mut self, number: u64, wire: u64) {
        self.varint(number << 3 | wire);
    }

    fn integer(&mut self, number: u64, value: u64) {
        self.field(number, 0);
        self.varint(value);
    }

    fn double(&mut self, number: u64, value: f64) {
        self.field(number, 1);
        self.0.extend(value.to_le_bytes());
    }

    fn float(&mut self, number: u64, value: f32) {
        self.field(number, 5);
        self.0.extend(value.to_le_bytes());
    }

    fn bytes(&mut self, number: u64, value: &[u8]) {
        self.field(number, 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
    }
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

fn masked(data: &[u8]) -> [u8; 4] {
    const DELTA: u32 = 0xa282_ead8;
    crc32c(data).rotate_right(15).wrapping_add(DELTA).to_le_bytes()
}

/// CRC-32C (Castagnoli), computed bit by bit because events are short.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    let byte = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ POLYNOMIAL } else { crc >> 1 })
    };
    !data.iter().fold(!0, byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_are_the_published_ones() {
        // RFC 3720, appendix B.4.
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&(0..32).collect::<Vec<u8>>()), 0x46dd_794e);
    }

    /// A file that `tests/reference/events.py` wrote with TensorBoard's own classes and read with its own reader.
    #[test]
    fn files_are_those_of_tensorboard() {
        let values = [("loss", 2.5), ("lr", 0.001), ("eval_loss", f64::INFINITY)];
        let mut bytes = beginning(1_700_000_000.25, 6);
        bytes.extend(record(&summary(1_700_000_001.5, 7, &values)));
        bytes.extend(record(&summary(1_700_000_002.5, 300, &values[..1])));
        assert_eq!(bytes, include_bytes!("../../tests/data/events.tfevents"));
    }
}
