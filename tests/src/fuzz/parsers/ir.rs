//! The IR's text and JSON. An accepted, well-formed graph prints and parses as the same graph, in the full and in the
//! folded form.

use super::{Dice, Parser, check_message, data, once};
use tpc_ir::verify::verify;
use tpc_ir::{Graph, fold, json, parse, text};

pub(super) const TEXT: Parser = Parser {
    name: "ir",
    corpus: || data("fuzz/ir"),
    tokens: TOKENS,
    generate,
    parse: parse_text,
    base: 1 << 20,
    per_byte: 3000,
    repeats: occurrences,
};

pub(super) const JSON: Parser = Parser {
    name: "ir-json",
    corpus: || {
        let graphs = data("fuzz/ir").into_iter().filter_map(|text| parse::parse(std::str::from_utf8(&text).ok()?).ok());
        graphs.map(|graph| json::print(&graph).into_bytes()).collect()
    },
    tokens: JSON_TOKENS,
    generate: |dice| {
        let text = generate(dice);
        let graph = std::str::from_utf8(&text).ok().and_then(|text| parse::parse(text).ok());
        graph.map_or(text, |graph| json::print(&graph).into_bytes())
    },
    parse: parse_json,
    base: 1 << 20,
    per_byte: 3000,
    repeats: once,
};

const TOKENS: &[&str] = &[
    "mesh <tp=2>\n",
    "mesh <dp=2, tp:2=2, tp:/2=2>\n",
    "%0",
    "%1",
    "%2",
    "%3.1",
    " = ",
    " : ",
    "f32[4]",
    "f32[4@tp, 8]",
    "i64[]",
    "bf16[2, 3]",
    "bool[4]",
    "@tp",
    "@(dp,tp)",
    "+sum@tp",
    "input data \"x\"",
    "input parameter \"w\"",
    "einsum \"ab,bc->ac\"",
    "reduce_sum \"ab->a\"",
    "mul",
    "add",
    "select",
    "cast.bf16",
    "fill 0.0",
    "iota",
    "reshape",
    "slice dim=0 start=0 step=1",
    "index dim=0 index=1",
    "concat dim=0",
    "pad dim=0 low=1 value=0.0",
    "take",
    "scatter_add",
    "cumsum dim=0",
    "top_k",
    "random uniform(0.0, 1.0) stream=3",
    "all_reduce tp sum",
    "all_gather tp dim=0",
    "reduce_scatter tp sum dim=0",
    "all_to_all tp from=0 to=1",
    "shard_slice tp dim=0",
    "to_partial tp sum",
    "f32:0.5",
    "layout [4]",
    "; forward in a.b why: c",
    "region \"m\" (%0) -> (%1)\n",
    "output loss %1\n",
    "output update \"w\" %1",
    "block @a ×3 forward {\n",
    "}\n",
    "%{1..3}",
    "{0..2}",
    "NaN#7ff8000000000001",
    "\\u{e9}",
    "#",
];

const JSON_TOKENS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"mesh\"",
    "\"nodes\"",
    "\"regions\"",
    "\"outputs\"",
    "\"op\"",
    "\"operands\"",
    "\"types\"",
    "\"dtype\"",
    "\"shape\"",
    "\"sharding\"",
    "\"partial\"",
    "\"phase\"",
    "\"name\"",
    "\"size\"",
    "\"dim\"",
    "\"axes\"",
    "\"subscripts\"",
    "\"einsum\"",
    "\"all_gather\"",
    "\"tp\"",
    "\"f32\"",
    "\"ab,bc->ac\"",
    "\"layout\"",
    "\"value\"",
    "\"kind\"",
    "\"input\"",
    "[0, 0]",
    "null",
    "true",
    "-1",
    "\"tp:2\"",
    "\"forward\"",
];

/// A program of some lines, most of them well formed.
fn generate(dice: &mut Dice) -> Vec<u8> {
    let mut text =
        String::from(dice.pick(&["mesh <>\n", "mesh <tp=2>\n", "mesh <dp=2, tp:2=2, tp:/2=2>\n", "mesh <a=65536>\n"]));
    let shape = |dice: &mut Dice| dice.pick(&["f32[4, 6]", "f32[4]", "f32[]", "i64[4]", "bool[4, 6]", "f32[4@tp, 6]"]);
    let lines = dice.between(1, 12);
    for i in 0..lines {
        let operand = |dice: &mut Dice| {
            if i == 0 || dice.one_in(5) { "f32:0.5".to_string() } else { format!("%{}", dice.below(i)) }
        };
        let (a, b) = (operand(dice), operand(dice));
        let line = match dice.below(9) {
            0 | 1 => format!("input {} \"n{i}\"", dice.pick(&["data", "parameter", "state"])),
            2 => format!("{} {a}, {b}", dice.pick(&["add", "mul", "lt", "concat dim=0", "take"])),
            3 => format!("{} {a}", dice.pick(&["exp", "neg", "cast.f32", "cumsum dim=0", "reshape"])),
            4 => format!("einsum \"ab,ac->bc\" {a}, {b}"),
            5 => format!("reduce_max \"ab->b\" {a}"),
            6 => format!("add {}", vec![a; dice.between(2, 60)].join(", ")),
            7 => format!("{} {a}", dice.pick(&["all_reduce tp sum", "all_gather tp dim=0", "shard_slice tp dim=1"])),
            _ => format!("fill {}", dice.pick(&["1.0", "3", "true", "inf", "NaN"])),
        };
        text.push_str(&format!("%{i} = {line} : {}\n", shape(dice)));
    }
    if dice.one_in(3) {
        let count = dice.pick(&["0", "1", "3", "7", "100000", "99999999999"]);
        text.push_str(&format!(
            "block @m ×{count} forward {{\n  %{{{}..{}}} = iota : i64[{{1..9}}]\n}}\n",
            lines,
            lines + dice.below(9)
        ));
    }
    text.push_str(&format!("output result \"r\" %{}\n", dice.below(lines)));
    text.into_bytes()
}

/// The largest number of occurrences that a block may have.
fn occurrences(input: &[u8]) -> usize {
    let text = String::from_utf8_lossy(input);
    let counts = text.split(['×', 'x']).skip(1).filter_map(|rest| {
        let rest = rest.trim_start();
        rest[..rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len())].parse::<usize>().ok()
    });
    counts.filter(|&n| n <= 100_000).max().unwrap_or(1).max(1)
}

/// Larger programs are only parsed and verified.
const MOST_PRINTED: usize = 2000;

fn check(graph: &Graph) {
    if let Err(faults) = verify(graph) {
        faults.iter().for_each(|fault| check_message(fault));
        return;
    }
    if graph.len() > MOST_PRINTED {
        return;
    }
    let printed = text::print(graph);
    for form in [printed.clone(), fold::print(graph)] {
        let again = parse::parse(&form).unwrap_or_else(|e| panic!("printed and not read back: {e}\n{form}"));
        assert_eq!(text::print(&again), printed, "printed and read back as another program");
    }
}

fn parse_text(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    match parse::parse(text) {
        Ok(graph) => {
            check(&graph);
            true
        }
        Err(error) => {
            check_message(&error);
            false
        }
    }
}

fn parse_json(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    match json::parse(text) {
        Ok(graph) => {
            check(&graph);
            true
        }
        Err(error) => {
            check_message(&error);
            false
        }
    }
}
