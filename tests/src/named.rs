//! Programs as text whose values have names.

use std::collections::HashMap;
use tpc_ir::interpret::Tensor;
use tpc_ir::{DType, Graph, InputId, parse, random, verify};
use tpc_passes::check::check;

/// Parses a program whose lines name their values, as in `%q = …`; outputs come last.
///
/// # Panics
/// If the text is not a program.
#[must_use]
pub fn program(lines: &str) -> Graph {
    let mut names: Vec<&str> = Vec::new();
    let mut source = String::new();
    for line in lines.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut numbered = String::new();
        let mut parts = line.split('%');
        numbered.push_str(parts.next().unwrap_or_default());
        for (i, part) in parts.enumerate() {
            let end = part.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(part.len());
            let name = &part[..end];
            if i == 0 && line.starts_with('%') {
                names.push(name);
            }
            let at = names.iter().rposition(|n| *n == name).unwrap_or_else(|| panic!("no %{name} before `{line}`"));
            numbered.push_str(&format!("%{at}{}", &part[end..]));
        }
        source.push_str(&numbered);
        source.push('\n');
    }
    let graph = parse::parse(&source).unwrap_or_else(|e| panic!("{e}\n{source}"));
    verify::verify(&graph).unwrap_or_else(|e| panic!("{e:?}\n{source}"));
    check(&graph).unwrap_or_else(|e| panic!("{e}\n{source}"));
    graph
}

/// Reproducible inputs: integers, truth values, and numbers between −2 and 2.
#[must_use]
pub fn inputs(graph: &Graph) -> HashMap<InputId, Tensor> {
    let tensor = |(node, id): (_, &InputId)| {
        let ty = &graph.node(node).types[0];
        let count: usize = ty.shape.iter().product();
        let seed = id.to_string().bytes().map(u64::from).sum();
        let number = |i: usize| random::philox(7, seed, i as u64)[0];
        let data = (0..count).map(|i| match ty.dtype {
            DType::Bool => f64::from(number(i).is_multiple_of(3)),
            DType::I64 => f64::from(number(i) % 5),
            _ => f64::from(number(i) % 1000) / 250.0 - 2.0,
        });
        (id.clone(), Tensor::new(ty.dtype, ty.shape.clone(), data.collect()))
    };
    graph.inputs().map(tensor).collect()
}
