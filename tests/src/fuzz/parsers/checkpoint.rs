//! The index of a checkpoint. Its hash is made to match, so that the code after the hash check is reached. An accepted
//! index is written and read back as the same index.

use super::{Dice, Parser, check_text, data, once};
use std::path::Path;
use tpc_runtime::checkpoint::hash::{hash, text};
use tpc_runtime::checkpoint::index::Index;

pub(super) const INDEX: Parser = Parser {
    name: "checkpoint",
    corpus: || data("fuzz/checkpoint"),
    tokens: TOKENS,
    generate,
    parse,
    base: 1 << 20,
    per_byte: 1000,
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
    "\"format\"",
    "\"tpc-checkpoint\"",
    "\"version\"",
    "\"step\"",
    "\"seed\"",
    "\"mesh\"",
    "\"files\"",
    "\"tensors\"",
    "\"name\"",
    "\"bytes\"",
    "\"head\"",
    "\"hash\"",
    "\"kind\"",
    "\"parameter\"",
    "\"state\"",
    "\"dtype\"",
    "\"f32\"",
    "\"bf16\"",
    "\"u8\"",
    "\"shape\"",
    "\"factors\"",
    "\"boxes\"",
    "\"file\"",
    "\"place\"",
    "\"start\"",
    "\"hashes\"",
    "[0]",
    "[]",
    "null",
    "\n",
];

fn generate(dice: &mut Dice) -> Vec<u8> {
    let size = |dice: &mut Dice| dice.pick(&["0", "1", "2", "4", "1048576", "4294967296", "18446744073709551615"]);
    let list = |dice: &mut Dice, n: usize| (0..n).map(|_| size(dice)).collect::<Vec<_>>().join(",");
    let tensors: Vec<String> = (0..dice.between(0, 2))
        .map(|i| {
            let rank = dice.below(4);
            let shape = list(dice, rank);
            let boxes: Vec<String> = (0..dice.between(0, 3))
                .map(|_| {
                    let (start, extent) = (list(dice, rank), if dice.one_in(2) { shape.clone() } else { list(dice, rank) });
                    format!("{{\"file\":0,\"place\":{},\"start\":[{start}],\"shape\":[{extent}],\"hashes\":[\"a\"]}}", size(dice))
                })
                .collect();
            let dtype = dice.pick(&["f32", "u8", "f64", "x"]);
            format!("{{\"name\":\"t{i}\",\"kind\":\"parameter\",\"dtype\":\"{dtype}\",\"shape\":[{shape}],\"factors\":[{shape}],\"boxes\":[{}]}}", boxes.join(","))
        })
        .collect();
    let file =
        format!("{{\"name\":\"r\",\"bytes\":{},\"head\":{},\"hash\":\"a\"}}", size(dice), dice.pick(&["0", "8"]));
    format!(
        "{{\"format\":\"tpc-checkpoint\",\"version\":1,\"step\":{},\"seed\":0,\"mesh\":[[\"tp\",2]],\"files\":[{file}],\"tensors\":[{}]}}",
        size(dice),
        tensors.join(",")
    )
    .into_bytes()
}

fn parse(input: &[u8]) -> bool {
    let path = Path::new("index.json");
    let whole = input.starts_with(b"{\"hash\"");
    let framed = [format!("{{\"hash\":\"{}\",\"index\":\n", text(hash(input))).as_bytes(), input, b"\n}\n"].concat();
    match Index::from_text(path, if whole { input } else { &framed }) {
        Ok(index) => {
            let again = Index::from_text(path, index.to_text().as_bytes());
            let again = again.unwrap_or_else(|e| panic!("written and not read back: {e}"));
            assert_eq!(again, index, "written and read back as another index");
            true
        }
        Err(error) => {
            check_text(&error);
            false
        }
    }
}
