//! Properties of every graph: it verifies, both written forms can be read back, and its placed meaning equals its
//! logical meaning.

mod generator;

use generator::build;
use proptest::prelude::*;
use tpc_ir::interpret::{Options, interpret, simulate};
use tpc_ir::{Boundary, Graph, Op, Value, json, parse, text, verify};

/// Whether two graphs are equal except for the nodes of scalar constants, which the text form writes inline.
fn same(a: &Graph, b: &Graph) -> bool {
    #[derive(PartialEq, Debug)]
    enum Name {
        Line(usize, u32),
        Scalar(Op, tpc_ir::DType),
    }
    let name = |g: &Graph, v: Value| match text::number(g).get(&v.node) {
        Some(&line) => Name::Line(line, v.result),
        None => Name::Scalar(g.op(v).clone(), g.ty(v).dtype),
    };
    let names = |g: &Graph, vs: &[Value]| vs.iter().map(|&v| name(g, v)).collect::<Vec<_>>();
    let lines = |g: &Graph| -> Vec<_> {
        let own = g.nodes().filter(|&n| !text::is_inline(g, n));
        own.map(|n| (g.node(n).clone(), names(g, &g.operands(n)))).collect()
    };
    let boundaries =
        |g: &Graph, all: &[Boundary]| -> Vec<_> { all.iter().map(|b| (name(g, b.value), b.layout.clone())).collect() };
    let regions = |g: &Graph| -> Vec<_> {
        g.regions.iter().map(|r| (r.path.clone(), boundaries(g, &r.arguments), boundaries(g, &r.results))).collect()
    };
    let outputs = |g: &Graph| -> Vec<_> {
        g.outputs.iter().map(|o| (o.kind.clone(), name(g, o.value), o.layout.clone())).collect()
    };
    a.mesh == b.mesh && lines(a) == lines(b) && regions(a) == regions(b) && outputs(a) == outputs(b)
}

fn choices() -> impl Strategy<Value = Vec<u16>> {
    prop::collection::vec(any::<u16>(), 20..300)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn generated_graphs_verify(choices in choices()) {
        let case = build(&choices);
        prop_assert_eq!(verify::verify(&case.graph), Ok(()), "{}", text::print(&case.graph));
    }

    #[test]
    fn the_text_form_reads_back(choices in choices()) {
        let graph = build(&choices).graph;
        let printed = text::print(&graph);
        let read = parse::parse(&printed);
        prop_assert!(read.is_ok(), "{}\n{printed}", read.unwrap_err());
        let read = read.unwrap();
        prop_assert_eq!(&text::print(&read), &printed);
        prop_assert!(same(&read, &graph), "{printed}");
        prop_assert!(parse::parse(&text::print(&read)).unwrap() == read);
    }

    #[test]
    fn the_json_form_reads_back(choices in choices()) {
        let graph = build(&choices).graph;
        let printed = json::print(&graph);
        let read = json::parse(&printed);
        prop_assert!(read.is_ok(), "{}\n{printed}", read.unwrap_err());
        prop_assert!(read.unwrap() == graph, "{printed}");
    }

    #[test]
    fn the_placed_meaning_is_the_logical_meaning(choices in choices()) {
        let case = build(&choices);
        let logical = interpret(&case.graph, &case.inputs, &Options::default());
        let placed = simulate(&case.graph, &case.inputs, &Options::default());
        let (logical, placed) = match (logical, placed) {
            (Ok(l), Ok(p)) => (l, p),
            (l, p) => return Err(TestCaseError::fail(format!("{:?} {:?}\n{}", l.err(), p.err(), text::print(&case.graph)))),
        };
        for ((l, p), o) in logical.iter().zip(&placed).zip(&case.graph.outputs) {
            let equal = l.shape == p.shape && l.data.iter().zip(&p.data).all(|(a, b)| a == b || a.is_nan() && b.is_nan());
            prop_assert!(equal, "{:?}: {l:?} != {p:?}\n{}", o.kind, text::print(&case.graph));
        }
    }

    #[test]
    fn broken_texts_are_errors_and_never_panics(choices in choices(), at in any::<prop::sample::Index>(), with in "[%a-z0-9@,()\\[\\]\"=:;+ .-]{0,3}") {
        let mut printed = text::print(&build(&choices).graph);
        let at = at.index(printed.len());
        if printed.is_char_boundary(at) && printed.is_char_boundary(at + 1) {
            printed.replace_range(at..=at, &with);
        }
        if let Ok(graph) = parse::parse(&printed) {
            let _ = verify::verify(&graph);
            let _ = text::print(&graph);
            prop_assert!(json::from_json(&json::to_json(&graph)).unwrap() == graph);
        }
    }
}

#[test]
fn the_generator_reaches_every_operation_uneven_and_empty_chunks() {
    let (mut seen, mut uneven, mut empty) = (std::collections::BTreeSet::new(), 0, 0);
    for seed in 0..200u64 {
        let choices: Vec<u16> = (0..300).map(|i| tpc_ir::random::philox(seed, 0, i)[0] as u16).collect();
        let graph = build(&choices).graph;
        for n in graph.nodes() {
            seen.insert(graph.node(n).op.name());
            for ty in &graph.node(n).types {
                let lens = |d: usize| (0..graph.mesh.ranks()).map(move |r| (r, d));
                for (r, d) in (0..ty.rank()).flat_map(lens) {
                    let len = ty.local_shape(&graph.mesh, &graph.mesh.coords(r))[d];
                    uneven += usize::from(len != ty.max_local_shape(&graph.mesh)[d]);
                    empty += usize::from(len == 0);
                }
            }
        }
    }
    for op in [
        "input",
        "fill",
        "iota",
        "random",
        "add",
        "select",
        "einsum",
        "reduce_sum",
        "reduce_max",
        "reduce_min",
        "reshape",
        "slice",
        "index",
        "concat",
        "pad",
        "take",
        "scatter_add",
        "cumsum",
        "top_k",
        "all_reduce",
        "all_gather",
        "reduce_scatter",
        "all_to_all",
        "shard_slice",
        "to_partial",
        "cast.bf16",
    ] {
        assert!(seen.contains(op), "{op} is not in {seen:?}");
    }
    assert!(uneven > 1000 && empty > 1000, "{uneven} uneven, {empty} empty");
}
