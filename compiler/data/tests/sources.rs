//! Files of every format and compression give the same documents, and bad ones are told by line and byte.

mod support;

use flate2::Compression;
use flate2::write::GzEncoder;
use proptest::prelude::*;
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use std::io::Write;
use std::path::{Path, PathBuf};
use support::Temporary;
use tpc_data::source::Content;
use tpc_data::{Corpus, Format};

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    compress_to_vec(text, CompressionLevel::Fastest)
}

/// The texts of all documents and pieces.
fn texts(corpus: &Corpus) -> Vec<String> {
    let text = |unit| match corpus.read(unit).unwrap() {
        Content::Text { text, .. } => text,
        Content::Chat { messages, .. } => messages.to_string(),
    };
    (0..corpus.units()).map(text).collect()
}

fn open(file: &Path, format: &Format) -> Result<Corpus, String> {
    let dir = file.parent().unwrap().to_str().unwrap();
    Corpus::open(&[file.into()], format, 100).map_err(|e| e.to_string().replace(dir, "$DIR"))
}

const LINES: &str = "{\"text\": \"one\"}\n\n  {\"id\": 2, \"text\": \"two\\n2\"}  \r\n{\"text\": \"\"}\n{\"text\": \"drei é\", \"x\": [1]}";

#[test]
fn every_compression_gives_the_same_documents() {
    let dir = Temporary::new();
    let (first, second) = LINES.as_bytes().split_at(30);
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3][..], &zstd(LINES.as_bytes())].concat();
    let files = [
        dir.file("a.jsonl", LINES),
        dir.file("b.jsonl.gz", gzip(LINES.as_bytes())),
        dir.file("c.jsonl.gz", [gzip(first), gzip(second)].concat()),
        dir.file("d.jsonl.zst", zstd(LINES.as_bytes())),
        dir.file("e.jsonl.zst", [zstd(first), zstd(second)].concat()),
        dir.file("f.jsonl.zst", skipped),
        dir.file("g.jsonl", ["\u{feff}".as_bytes(), LINES.as_bytes()].concat()),
    ];
    let mut fingerprints = Vec::new();
    for file in &files {
        let corpus = open(file, &Format::ByName).unwrap();
        assert_eq!(texts(&corpus), ["one", "two\n2", "drei é"], "{}", file.display());
        assert_eq!(corpus.empty(), 1);
        assert_eq!(corpus.place(1).1.to_string(), "line 3");
        assert_eq!(corpus.place(2).1.to_string(), "line 5");
        fingerprints.push(corpus.fingerprint());
    }
    assert!(fingerprints[..6].iter().all(|f| *f == fingerprints[0]), "the text counts, not its compression");
    assert_ne!(fingerprints[6], fingerprints[0]);
    let all = Corpus::open(&files[..2], &Format::ByName, 100).unwrap();
    assert_eq!((all.units(), texts(&all)[3].as_str()), (6, "one"));
    let left: Vec<_> = std::fs::read_dir(std::env::temp_dir()).unwrap().flatten().collect();
    let spool = format!("tpc-data-{}-", std::process::id());
    assert!(!left.iter().any(|e| e.file_name().to_string_lossy().starts_with(&spool)), "copies have no names");
}

#[test]
fn a_field_can_be_chosen_and_conversations_are_kept() {
    let dir = Temporary::new();
    let file = dir.file("a", "{\"body\": \"x\", \"text\": 3}\n");
    assert_eq!(texts(&open(&file, &Format::Field("body".into())).unwrap()), ["x"]);
    let chat = dir.file(
        "chat",
        "{\"messages\": [{\"role\": \"user\", \"content\": null}], \"tools\": [1]}\n{\"messages\": []}\n",
    );
    let corpus = open(&chat, &Format::Chat).unwrap();
    assert_eq!((corpus.units(), corpus.empty()), (1, 1));
    let Content::Chat { messages, tools } = corpus.read(0).unwrap() else { panic!("no conversation") };
    assert_eq!(
        (messages.to_string(), tools.unwrap().to_string()),
        ("[{\"role\":\"user\",\"content\":null}]".into(), "[1]".into())
    );
}

/// A pipe can be read once only.
#[test]
fn a_pipe_is_read() {
    let dir = Temporary::new();
    let pipe = dir.0.join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let writer = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, "some words of a text\n".repeat(20)).unwrap()
    });
    let corpus = open(&pipe, &Format::ByName).unwrap();
    writer.join().unwrap();
    assert_eq!(texts(&corpus).concat(), "some words of a text\n".repeat(20));
}

#[test]
fn bad_files_are_told_by_line_and_byte() {
    let dir = Temporary::new();
    let says = |name: &str, contents: &[u8], format: &Format| open(&dir.file(name, contents), format).unwrap_err();
    let by_name = &Format::ByName;
    assert_eq!(says("a", b"", by_name), "$DIR/a: no text to train on: the file is empty");
    assert_eq!(says("a.jsonl", b"", by_name), "$DIR/a.jsonl: no text to train on: the file is empty");
    assert_eq!(says("a", b" \n\n", by_name), "$DIR/a: no text to train on: the file holds only white space");
    assert_eq!(
        says("a.jsonl", b" \n\n", by_name),
        "$DIR/a.jsonl: no text to train on: the file holds only blank lines"
    );
    let empty = b"{\"text\": \"\"}\n";
    assert_eq!(says("a.jsonl", empty, by_name), "$DIR/a.jsonl: no text to train on: all its documents are empty");

    assert_eq!(says("a", b"ab\xffcd", by_name), "$DIR/a: not UTF-8 text: byte 2 is 0xff");
    let late = ["é".repeat(100_000).as_bytes(), b"\xc3"].concat();
    assert_eq!(says("a", &late, by_name), "$DIR/a: not UTF-8 text: byte 200000 is 0xc3");
    assert_eq!(says("a.gz", &gzip(&late), by_name), "$DIR/a.gz: not UTF-8 text: byte 200000 is 0xc3");
    let line = b"{\"text\": \"a\"}\n{\"text\": \"\x80\"}\n";
    assert_eq!(says("a.jsonl", line, by_name), "$DIR/a.jsonl: not UTF-8 text: byte 24 (line 2) is 0x80");

    let second = |line: &str| format!("{{\"text\": \"a\"}}\n{line}\n").into_bytes();
    assert_eq!(
        says("a.jsonl", &second("{\"id\": 1, \"body\": \"b\"}"), by_name),
        "$DIR/a.jsonl: line 2: no field \"text\"; its fields are \"id\", \"body\"; --field selects another"
    );
    assert_eq!(says("a.jsonl", &second("{}"), by_name), "$DIR/a.jsonl: line 2: no field \"text\"; the object has none");
    assert_eq!(
        says("a.jsonl", &second("{\"text\": [1]}"), by_name),
        "$DIR/a.jsonl: line 2: field \"text\" should be a text, but is [1]"
    );
    assert_eq!(says("a.jsonl", &second("[]"), by_name), "$DIR/a.jsonl: line 2: expected a JSON object");
    assert_eq!(
        says("a.jsonl", &second("{\"text\": \"b}"), by_name),
        "$DIR/a.jsonl: line 2: not valid JSON: EOF while parsing a string at column 12"
    );
    assert_eq!(
        says("a.jsonl", b"{\"messages\": [{\"content\": 1}]}", &Format::Chat),
        "$DIR/a.jsonl: line 1: field \"messages\" should be a list of objects with \"role\" and \"content\", but is {\"content\":1}"
    );
    assert_eq!(
        says("a.jsonl", b"{\"text\": \"b\"}", &Format::Chat),
        "$DIR/a.jsonl: line 1: no field \"messages\"; its fields are \"text\"; --field selects another"
    );
    assert_eq!(open(&dir.0.join("none"), by_name).unwrap_err(), "$DIR/none: No such file or directory (os error 2)");
    assert_eq!(open(&dir.0.join("."), by_name).unwrap_err().rsplit(": ").next(), Some("is a directory"));
}

#[test]
fn broken_compression_is_told() {
    let dir = Temporary::new();
    let text = "some words that repeat ".repeat(2000);
    let says = |name: &str, contents: &[u8]| open(&dir.file(name, contents), &Format::ByName).unwrap_err();
    assert_eq!(says("a.gz", b"plain"), "$DIR/a.gz: the name ends in .gz, but the contents are not gzip data");
    assert_eq!(says("a.zst", &gzip(b"x")), "$DIR/a.zst: the name ends in .zst, but the contents are not zstd data");
    for (name, compression, whole) in
        [("a.gz", "gzip", gzip(text.as_bytes())), ("a.zst", "zstd", zstd(text.as_bytes()))]
    {
        let broken = format!("$DIR/{name}: broken {compression} data after ");
        let cut = says(name, &whole[..whole.len() - 3]);
        assert!(cut.starts_with(&broken), "{cut}");
        let mut flipped = whole.clone();
        let last = flipped.len() - 6;
        flipped[last] ^= 0x55;
        let error = says(name, &flipped);
        assert!(error.starts_with(&broken), "{error}");
        // What follows the end is no further member.
        let more = says(name, &[&whole[..], b"garbage"].concat());
        assert!(more.starts_with(&broken), "{more}");
    }
}

#[test]
fn a_file_that_changes_is_told() {
    let dir = Temporary::new();
    let file = dir.file("a.jsonl", LINES);
    let corpus = open(&file, &Format::ByName).unwrap();
    let says = || corpus.read(2).unwrap_err().to_string().replace(dir.0.to_str().unwrap(), "$DIR");
    std::fs::write(&file, &LINES[..60]).unwrap();
    assert_eq!(
        says(),
        format!(
            "$DIR/a.jsonl: the file changed while it was in use: it had {} bytes and is shorter now; start again with the current file",
            LINES.len()
        )
    );
    std::fs::write(&file, "x".repeat(LINES.len())).unwrap();
    assert!(says().contains("the file changed while it was in use: the line at byte"), "{}", says());
}

fn paragraphs() -> impl Strategy<Value = String> {
    prop::collection::vec("[a-zé😀]{1,12}[ \n]{0,3}", 1..200).prop_map(|words| words.concat())
}

proptest! {
    /// The pieces of a document concatenate to its text. None exceeds the limit, and only the first is marked as the beginning.
    #[test]
    fn pieces_are_the_text(text in paragraphs(), piece in 64usize..300) {
        let dir = Temporary::new();
        let file = dir.file("text", &text);
        let corpus = Corpus::open(&[file], &Format::ByName, piece).unwrap();
        let mut all = String::new();
        for unit in 0..corpus.units() {
            let Content::Text { text, begins, ends } = corpus.read(unit).unwrap() else { panic!("no text") };
            prop_assert!(text.len() <= piece && !text.is_empty());
            prop_assert_eq!((begins, ends), (unit == 0, unit + 1 == corpus.units()));
            prop_assert_eq!(corpus.size(unit), text.len() as u64);
            prop_assert_eq!(corpus.place(unit).1.to_string(), format!("the text from byte {}", all.len()));
            all.push_str(&text);
        }
        prop_assert_eq!(all, text);
    }
}

#[test]
fn texts_of_several_reads_are_cut_alike() {
    let dir = Temporary::new();
    let text = "Wörter und Wörter\n\n".repeat(20_000);
    let plain = dir.file("a", &text);
    let packed: Vec<PathBuf> = vec![dir.file("a.gz", gzip(text.as_bytes())), dir.file("a.zst", zstd(text.as_bytes()))];
    let corpus = Corpus::open(std::slice::from_ref(&plain), &Format::ByName, 5000).unwrap();
    assert_eq!(texts(&corpus).concat(), text);
    for file in packed {
        let other = Corpus::open(&[file], &Format::ByName, 5000).unwrap();
        assert_eq!((texts(&other), other.fingerprint()), (texts(&corpus), corpus.fingerprint()));
    }
}
