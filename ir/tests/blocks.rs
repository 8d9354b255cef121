//! Tests of repetition: deep programs can be folded, read back, lengthened and shortened, whatever their layers
//! compute.

use proptest::prelude::*;
use std::fmt::Write as _;
use tpc_ir::block::{Block, Lines};
use tpc_ir::{Graph, Op, fold, parse, text, verify};

/// A training step of `layers` layers of `kinds` alternating kinds. The choices determine the operations of each kind,
/// which use their own weights and constants. The step has dropout, saved values, gradients, updates, a sum over all
/// gradients, and a region for each layer.
fn step(choices: &[u8], kinds: usize, layers: usize) -> Graph {
    let mut out = String::from("mesh <tp=2>\n");
    let mut line = 0;
    let mut add = |out: &mut String, text: String| {
        let _ = writeln!(out, "%{line} = {text}");
        line += 1;
        line - 1
    };
    let pick = |kind: usize, i: usize| choices[(kind * 31 + i) % choices.len()] as usize;
    let weights = |l: usize| 1 + pick(l % kinds, 0) % 3;
    let ops = |l: usize| 1 + pick(l % kinds, 1) % 6;
    let head = add(&mut out, "input parameter \"head\" : f32[4]".into());
    let mut w = Vec::new();
    for l in 0..layers {
        let names = ["a", "b.1", "c"].iter().take(weights(l));
        let one = |n: &&str| add(&mut out, format!("input parameter \"net.{l}.{n}.weight\" : f32[4] unit {}", l + 2));
        w.push(names.map(one).collect::<Vec<_>>());
    }
    let mut m = Vec::new();
    for (l, own) in w.iter().enumerate() {
        m.push(add(&mut out, format!("input state \"net.{l}.a.weight/moment_1\" : f32[4]")));
        let _ = own;
    }
    let x = add(&mut out, "input data \"x\" : f32[4]".into());
    let seed = add(&mut out, "input scalar \"seed\" : i64[]".into());
    let tables: Vec<_> =
        (0..layers).map(|l| add(&mut out, format!("input constant \"constant.{l}\" : f32[4]"))).collect();
    let mut at = add(&mut out, format!("mul %{x}, %{head} : f32[4] ; forward in head"));
    let mut saved = Vec::new();
    let mut regions = vec![format!("region \"head\" (%{x}, %{head}) -> (%{at})")];
    for l in 0..layers {
        let (start, kind) = (at, l % kinds);
        let mut own = vec![at];
        for i in 0..ops(l) {
            let other = match pick(kind, 10 + i) % 5 {
                _ if i == 0 => tables[l],
                0 => w[l][i % w[l].len()],
                1 => own[pick(kind, 20 + i) % own.len()],
                2 => tables[l],
                3 => x,
                _ => {
                    let random = format!("random bernoulli(0.9) stream={} %{seed}", l * 7 + i);
                    add(&mut out, format!("{random} : f32[4] ; forward in net.{l}.dropout"))
                }
            };
            let f = ["add", "mul", "sub", "max"][pick(kind, 30 + i) % 4];
            at = add(&mut out, format!("{f} %{at}, %{other} : f32[4] ; forward in net.{l}.m why: lies like net.{l}"));
            own.push(at);
        }
        at = add(&mut out, format!("add %{start}, %{at} : f32[4] ; forward in net.{l}"));
        regions.push(format!("region \"net.{l}\" (%{start}) -> (%{at})"));
        regions.push(format!("region \"net.{l}.m\" (%{start}, f32:1.0) -> (%{})", own[1]));
        saved.push(own);
    }
    let loss = add(&mut out, format!("reduce_sum \"a->\" %{at} : f32[] ; forward in loss"));
    let mut g = add(&mut out, format!("mul %{at}, f32:2.0 : f32[4] ; backward"));
    let mut grads = vec![Vec::new(); layers];
    for l in (0..layers).rev() {
        let start = g;
        for (i, value) in saved[l].iter().enumerate() {
            g = add(
                &mut out,
                format!("mul %{g}, %{value} : f32[4] ; backward why: net.{l}.a is cut (plan \"net.*\"); rule 7"),
            );
            if i < w[l].len() {
                grads[l].push(add(&mut out, format!("mul %{g}, f32:0.5 : f32[4] ; backward")));
            }
        }
        g = add(&mut out, format!("add %{start}, %{g} : f32[4] ; backward"));
    }
    let mut outputs = vec!["loss %".to_string() + &loss.to_string()];
    let mut moments = Vec::new();
    for l in 0..layers {
        for (own, gradient) in w[l].iter().zip(&grads[l]) {
            let step = add(&mut out, format!("add %{gradient}, %{} : f32[4] ; optimizer", m[l]));
            let new = add(&mut out, format!("sub %{own}, %{step} : f32[4] ; optimizer"));
            let name = ["a", "b.1", "c"][w[l].iter().position(|x| x == own).unwrap()];
            outputs.push(format!("update \"net.{l}.{name}.weight\" %{new}"));
            if name == "a" {
                moments.push(format!("update \"net.{l}.a.weight/moment_1\" %{step}"));
            }
        }
    }
    let all: Vec<String> = grads.iter().flatten().map(|gradient| format!("%{gradient}")).collect();
    if all.len() > 1 {
        let sum = add(&mut out, format!("add {} : f32[4] ; optimizer", all.join(", ")));
        outputs.push(format!("result \"sum\" %{sum}"));
    }
    regions.iter().for_each(|region| out.push_str(&format!("{region}\n")));
    for o in outputs.iter().chain(&moments) {
        let _ = writeln!(out, "output {o}");
    }
    let graph = parse::parse(&out).unwrap_or_else(|e| panic!("{e}\n{out}"));
    assert_eq!(verify::verify(&graph), Ok(()), "{out}");
    graph
}

fn lines(text: &str) -> usize {
    text.lines().count()
}

fn largest(graph: &Graph) -> Block {
    let blocks = Lines::of(graph).blocks();
    blocks.into_iter().find(|b| b.path == "net").unwrap_or_else(|| panic!("no block:\n{}", text::print(graph)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Two alternating kinds of layers form one block with half as many occurrences.
    #[test]
    fn deep_programs_fold_and_read_back(choices in prop::collection::vec(any::<u8>(), 62), kinds in 1usize..3, layers in 0usize..15) {
        let graph = step(&choices, kinds, layers);
        let folded = fold::print(&graph);
        let read = parse::parse(&folded);
        prop_assert!(read.is_ok(), "{}\n{folded}", read.unwrap_err());
        prop_assert_eq!(text::print(&read.unwrap()), text::print(&graph), "{}", folded);
        let more = fold::print(&step(&choices, kinds, layers + 2 * kinds));
        if layers >= 6 * kinds {
            prop_assert_eq!(lines(&more), lines(&folded), "{}\n{}", folded, more);
        }
    }

    /// Adding or removing layers yields the program that was built with that many layers.
    #[test]
    fn deep_programs_get_longer_and_shorter(choices in prop::collection::vec(any::<u8>(), 62), kinds in 1usize..3, more in 1usize..9) {
        let (short, long) = (6 * kinds, (6 + more) * kinds);
        let (few, many) = (step(&choices, kinds, short), step(&choices, kinds, long));
        for (from, to, layers, added) in [
            (&few, &many, short, (more * kinds) as i64),
            (&many, &few, long, -((more * kinds) as i64)),
        ] {
            // If both kinds are drawn equal, an occurrence is one layer instead of two.
            let block = largest(from);
            let by = added * block.count as i64 / layers as i64;
            let lines = Lines::of(from);
            let resized = lines.resized(&block, by);
            prop_assert!(resized.is_some(), "{}", fold::print(from));
            let resized = resized.unwrap();
            prop_assert_eq!(text::print(&resized.graph), text::print(to), "{}", fold::print(from));
            for (node, source) in resized.graph.nodes().zip(&resized.source) {
                let node = resized.graph.node(node);
                match source {
                    Some(source) => prop_assert_eq!(node.op.name(), from.node(*source).op.name()),
                    None => prop_assert!(matches!(node.op, Op::Fill(_))),
                }
            }
        }
    }
}

#[test]
fn a_block_has_its_regions_and_what_crosses_their_borders() {
    // Every layer is %m = mul %x, %w (saved for the backward pass); %y = add %x, %m.
    let graph =
        step(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1], 1, 8);
    let found = Lines::of(&graph);
    let blocks = found.blocks();
    assert_eq!(blocks.len(), 1, "{}", fold::print(&graph));
    let block = &blocks[0];
    assert_eq!((block.path.as_str(), block.count), ("net", 8));
    let parts: Vec<(bool, &str)> = block.regions.iter().map(|r| (r.inputs, r.phase.name())).collect();
    let inputs = (true, "forward");
    assert_eq!(parts, [inputs, inputs, inputs, (false, "forward"), (false, "backward"), (false, "optimizer")]);
    let run = |phase: &str| block.regions.iter().find(|r| !r.inputs && r.phase.name() == phase).unwrap().run;
    let forward = found.boundary(&run("forward"), 3);
    assert_eq!((forward.arguments.len(), forward.owned.len(), forward.results.len()), (1, 1, 1));
    assert!(!forward.saved.is_empty(), "{}", fold::print(&graph));
    // The backward pass reads the incoming gradient and what the forward pass saves.
    let backward = found.boundary(&run("backward"), 3);
    assert!(backward.arguments.len() > 1 && !backward.saved.is_empty());
    for which in 0..run("forward").count {
        let nodes = found.occurrence(&run("forward"), which);
        assert!(nodes.iter().all(|&n| graph.node(n).origin.module.is_in(&format!("net.{which}").into())));
    }
}

#[test]
fn errors_in_blocks_have_a_location() {
    let read = |body: &str| parse::parse(&format!("mesh <>\n{body}")).unwrap_err().to_string();
    assert_eq!(read("block @a ×0 {\n}"), "line 2, column 11: expected a number from 1 to 100000, found `0`");
    assert_eq!(
        read("block @a ×3 {\n"),
        "line 2, column 14: expected lines and a closing `}` on later lines, found the end of the line"
    );
    assert_eq!(
        read("block @a ×3 {\n  %{0..1} = input data \"x.{0..2}\" : f32[]\n}"),
        "line 3, column 3: expected ranges like {3..8} that consist of equal steps, found `%`"
    );
    assert_eq!(read("block @a {\n}"), "line 2, column 10: expected `x`, found `{`");
    let error = read("block @a ×2 {\n  %{0..1} = neg %{7..8} : f32[]\n}");
    assert!(error.starts_with("line 3, ") && error.contains("a value defined above"), "{error}");
    let one =
        parse::parse("mesh <>\nblock @\"a b\" x2 forward {\n  %{0..1} = input data \"x.{5..4}\" : f32[]\n}").unwrap();
    assert_eq!(one.inputs().map(|(_, id)| id.to_string()).collect::<Vec<_>>(), ["x.5", "x.4"]);
}
