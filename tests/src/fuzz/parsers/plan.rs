//! Plan files. An accepted plan is applied to a small model, which it need not fit.

use super::{Dice, Parser, check_message, data, once};
use std::sync::OnceLock;
use tpc_ir::{Graph, Mesh, parse};
use tpc_passes::styles::Plan;
use tpc_passes::styles::parallelize_module;

pub(super) const PLAN: Parser = Parser {
    name: "plan",
    corpus: || data("fuzz/plan"),
    tokens: TOKENS,
    generate,
    parse,
    // The model's own annotations.
    base: 4 << 20,
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
    "\"axis\"",
    "\"styles\"",
    "\"data\"",
    "\"loss_parallel\"",
    "\"mode\"",
    "\"replicate_axis\"",
    "\"fsdp\"",
    "\"hsdp\"",
    "\"ddp\"",
    "\"tp\"",
    "\"dp\"",
    "\"tp:2\"",
    "true",
    "null",
    "-1",
    "1",
    "\"ColwiseParallel\"",
    "\"RowwiseParallel\"",
    "\"PairwiseParallel\"",
    "\"PairwiseSequenceParallel\"",
    "\"SequenceParallel\"",
    "\"PrepareModuleInput\"",
    "\"PrepareModuleOutput\"",
    "\"PrepareModuleInputOutput\"",
    "\"TensorParallelMultiheadAttention\"",
    "\"input_layouts\"",
    "\"output_layouts\"",
    "\"desired_input_layouts\"",
    "\"prepare_output\"",
    "\"sequence_dim\"",
    "\"Replicate\"",
    "\"Shard(0)\"",
    "\"Shard(-1)\"",
    "\"Shard(9)\"",
    "\"make_output_tensor\"",
    "\"mlp\"",
    "\"mlp.up\"",
    "\"mlp.down\"",
    "\"norm\"",
    "\"table\"",
    "\"*\"",
    "\"\"",
    "\"mlp.{up,down}\"",
    "\"[!m]*\"",
    "{a,b}",
    "[",
    "*",
];

const PATHS: &[&str] =
    &["mlp", "mlp.up", "mlp.down", "norm", "table", "*", "", "mlp.*", "mlp.{up,down}", "n[!x]rm", "nope"];
const LAYOUTS: &[&str] =
    &["\"Replicate\"", "\"Shard(0)\"", "\"Shard(1)\"", "\"Shard(-1)\"", "\"Shard(7)\"", "null", "[\"Shard(1)\"]"];

fn style(dice: &mut Dice) -> String {
    let layouts = |dice: &mut Dice, names: &[&str]| {
        let chosen: Vec<&str> = names.iter().copied().filter(|_| dice.one_in(2)).collect();
        let options = chosen.into_iter().map(|name| format!("\"{name}\": {}", dice.pick(LAYOUTS)));
        options.collect::<Vec<String>>().join(", ")
    };
    let prepare = ["input_layouts", "desired_input_layouts", "output_layouts", "desired_output_layouts"];
    match dice.below(8) {
        0 => "\"ColwiseParallel\"".into(),
        1 => "\"PairwiseParallel\"".into(),
        2 => format!("{{\"ColwiseParallel\": {{{}}}}}", layouts(dice, &["input_layouts", "output_layouts"])),
        3 => format!("{{\"RowwiseParallel\": {{{}}}}}", layouts(dice, &["input_layouts", "output_layouts"])),
        4 => format!("{{\"SequenceParallel\": {{\"sequence_dim\": {}}}}}", dice.pick(&["0", "1", "-2", "9"])),
        5 => format!(
            "{{\"PairwiseSequenceParallel\": {{\"sequence_dim\": {}}}}}",
            dice.pick(&["0", "1", "-9223372036854775808"])
        ),
        6 => format!("{{\"PrepareModuleInputOutput\": {{{}}}}}", layouts(dice, &prepare)),
        _ => format!("{{\"PrepareModuleInput\": {{{}}}}}", layouts(dice, &prepare[..2])),
    }
}

fn generate(dice: &mut Dice) -> Vec<u8> {
    let entries: Vec<String> =
        (0..dice.between(0, 4)).map(|_| format!("\"{}\": {}", dice.pick(PATHS), style(dice))).collect();
    let mut keys = vec![format!("\"styles\": {{{}}}", entries.join(", "))];
    if dice.one_in(3) {
        keys.push(format!("\"axis\": {}", dice.pick(&["\"tp\"", "\"dp\"", "0", "-1", "5", "\"tp:2\""])));
    }
    if dice.one_in(3) {
        let mode = dice.pick(&["ddp", "fsdp", "zero1", "hsdp"]);
        let object = format!("{{\"mode\": \"{mode}\", \"axis\": \"{}\"}}", dice.pick(&["dp", "tp", "x"]));
        keys.push(format!("\"data\": {}", if dice.one_in(2) { format!("\"{mode}\"") } else { object }));
    }
    if dice.one_in(6) {
        keys.push("\"loss_parallel\": true".into());
    }
    format!("{{{}}}", keys.join(", ")).into_bytes()
}

/// A table, a norm and a pair of linears, with a gradient.
fn model() -> &'static Graph {
    static MODEL: OnceLock<Graph> = OnceLock::new();
    MODEL.get_or_init(|| {
        let text = "mesh <>\n\
            %0 = input parameter \"table.weight\" : f32[8, 4]\n\
            %1 = input parameter \"mlp.up.weight\" : f32[4, 6]\n\
            %2 = input parameter \"mlp.up.bias\" : f32[6]\n\
            %3 = input parameter \"mlp.down.weight\" : f32[6, 4]\n\
            %4 = input parameter \"norm.gamma\" : f32[4]\n\
            %5 = input data \"ids\" : i64[2, 3]\n\
            %6 = take %0, %5 : f32[2, 3, 4]\n\
            %7 = mul \"abc,c->abc\" %6, %4 : f32[2, 3, 4]\n\
            %8 = einsum \"abc,cd->abd\" %7, %1 : f32[2, 3, 6]\n\
            %9 = add \"abc,c->abc\" %8, %2 : f32[2, 3, 6]\n\
            %10 = tanh %9 : f32[2, 3, 6]\n\
            %11 = einsum \"abc,cd->abd\" %10, %3 : f32[2, 3, 4]\n\
            %12 = einsum \"abc,abd->cd\" %10, %11 : f32[6, 4] ; backward\n\
            output result \"y\" %11\n\
            output gradient \"mlp.down.weight\" %12\n";
        parse::parse(text).unwrap_or_else(|e| panic!("{e}"))
    })
}

fn parse(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else { return false };
    let plan = match Plan::from_json(text) {
        Ok(plan) => plan,
        Err(error) => {
            check_message(&error);
            return false;
        }
    };
    let mut paths: Vec<&String> = plan.styles.iter().map(|entry| &entry.path).collect();
    paths.sort();
    assert!(paths.windows(2).all(|pair| pair[0] != pair[1]), "two entries of one path");
    let mesh = Mesh::parse("dp=2,tp=2").unwrap_or_default();
    if let Err(error) = parallelize_module(model(), &mesh, plan, None) {
        check_message(&error);
    }
    true
}
