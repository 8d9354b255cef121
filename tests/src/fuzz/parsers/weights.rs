//! Safetensors, and the index of a directory with several files. Every tensor of an accepted file is read.

use super::{Dice, Parser, check_text, data, once};
use std::path::PathBuf;
use std::sync::OnceLock;
use tpc_compiler::models::Weights;

pub(super) const FILE: Parser = Parser {
    name: "safetensors",
    corpus: files,
    tokens: TOKENS,
    generate,
    parse: parse_file,
    base: 1 << 20,
    per_byte: 1000,
    repeats: once,
};

pub(super) const INDEX: Parser = Parser {
    name: "weight-index",
    corpus: || data("fuzz/weight-index"),
    tokens: TOKENS,
    generate: |dice| {
        let entries: Vec<String> = (0..dice.between(0, 4))
            .map(|_| {
                let tensor = dice.pick(&["a", "b", "c.d", "missing"]);
                format!("\"{tensor}\": \"{}\"", dice.pick(&["0.safetensors", "1.safetensors", "no", "../x", ""]))
            })
            .collect();
        format!("{{\"metadata\": {{}}, \"weight_map\": {{{}}}}}", entries.join(", ")).into_bytes()
    },
    parse: parse_index,
    base: 1 << 20,
    per_byte: 3000,
    repeats: once,
};

const TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\"dtype\"",
    "\"shape\"",
    "\"data_offsets\"",
    "\"F32\"",
    "\"BF16\"",
    "\"F16\"",
    "\"F64\"",
    "\"I64\"",
    "\"U8\"",
    "\"__metadata__\"",
    "\"format\"",
    "\"pt\"",
    "[0,4]",
    "[4,0]",
    "[]",
    "\"a\"",
    "\"b\"",
    "\"weight_map\"",
    "\"0.safetensors\"",
    "\"1.safetensors\"",
    "\0\0\0\0\0\0\0\0",
    "\u{8}\0\0\0\0\0\0\0",
];

/// A file with this header, its length, and this many bytes of data.
fn file(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend((0..data).map(|i| i as u8));
    bytes
}

fn files() -> Vec<Vec<u8>> {
    vec![
        file(
            r#"{"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]}}"#,
            32,
        ),
        file(
            r#"{"__metadata__":{"format":"pt"},"c.d":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#,
            11,
        ),
        file(
            r#"{"f":{"dtype":"F64","shape":[1,0],"data_offsets":[0,0]},"g":{"dtype":"F16","shape":[1,1],"data_offsets":[0,2]}}   "#,
            2,
        ),
    ]
}

fn generate(dice: &mut Dice) -> Vec<u8> {
    let mut at = 0usize;
    let tensors: Vec<String> = (0..dice.between(0, 5))
        .map(|i| {
            let (dtype, width) = *dice.of(&[("F32", 4), ("BF16", 2), ("F64", 8), ("I32", 4), ("U8", 1), ("X", 3)]);
            let shape: Vec<usize> = (0..dice.below(4)).map(|_| *dice.of(&[0, 1, 2, 3, 1 << 32, usize::MAX])).collect();
            let bytes = shape.iter().fold(width, |n: usize, &d| n.wrapping_mul(d));
            let (from, to) = (at, if dice.one_in(8) { dice.number() as usize } else { at.wrapping_add(bytes) });
            if !dice.one_in(8) {
                at = to;
            }
            format!("\"t{i}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data_offsets\":[{from},{to}]}}")
        })
        .collect();
    file(&format!("{{{}}}", tensors.join(",")), at.min(512))
}

/// A directory of this process, in memory if the system supports that.
fn directory() -> &'static PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(|| {
        let memory = PathBuf::from("/dev/shm");
        let root = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let dir = root.join(format!("tpc-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        for (name, bytes) in ["0.safetensors", "1.safetensors"].iter().zip(files()) {
            std::fs::write(dir.join(name), bytes).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        dir
    })
}

/// Removes the files that the parsers wrote.
pub fn clean() {
    let _ = std::fs::remove_dir_all(directory());
}

fn read_all(weights: &Weights) {
    for name in weights.names() {
        if let Err(error) = weights.read_f64(name).map(drop).or_else(|_| weights.read_i64(name).map(drop)) {
            check_text(&error);
        }
    }
}

fn parse_file(input: &[u8]) -> bool {
    let path = directory().join("input");
    std::fs::write(&path, input).unwrap_or_else(|e| panic!("{e}"));
    match Weights::open_file(&path) {
        Ok(weights) => {
            read_all(&weights);
            true
        }
        Err(error) => {
            check_text(&error);
            false
        }
    }
}

fn parse_index(input: &[u8]) -> bool {
    let path = directory().join("model.safetensors.index.json");
    std::fs::write(&path, input).unwrap_or_else(|e| panic!("{e}"));
    match Weights::open_dir(directory()) {
        Ok(weights) => {
            read_all(&weights);
            true
        }
        Err(error) => {
            check_text(&error);
            false
        }
    }
}
