//! Sums over rows: groups of threads share a row, and combine their partial sums in a fixed order.
//!
//! A row is the product of a part's reduced dimensions; rows are numbered by the kept dimensions. If memory is dense
//! within rows, T threads run along a row; if it is dense across rows, X threads lie across rows and T such lines run
//! along them. A chain of reductions (maximum, then sum of exponentials) is a chain of passes over the row. Values that
//! a later pass needs are kept in registers if the row is short enough, and recomputed otherwise. If there are few long
//! rows, each is split into pieces that a second kernel combines.

use super::body::{Body, Level, LoopGraph, accumulator, functor, identity, lane};
use super::kernels::Launch;
use super::part::{End, LoopPart};
use super::pointwise::{combined, masks, strides, used, weights};
use super::rank::Rank;
use super::space::{Axis, axes, bring_fastest_in, count, cut, dense_bytes, index_types, merge};
use crate::device::cpu::vector::LaneType;
use crate::device::nodes::Kind;
use std::fmt::Write as _;
use tpc_ir::ReduceOp;

/// Maximum number of threads along a row.
const MOST_THREADS: usize = 512;
/// Maximum number of elements of a row that a thread keeps, and of registers for all kept elements.
const MOST_KEPT: usize = 16;
const MOST_REGISTERS: usize = 64;
/// Number of blocks that fills a large device twice.
const FULL: usize = 264;

/// A reduction over a row.
struct Total {
    /// The node or the access that takes it.
    name: String,
    value: usize,
    op: ReduceOp,
    lane: LaneType,
}

/// How threads are arranged over rows.
#[derive(Clone, Copy)]
struct Shape {
    /// Threads across rows, and along a row.
    x: usize,
    t: usize,
    /// Rows per block.
    rows: usize,
    block: usize,
}

/// Emits the kernels of a part with sums; `None` if it must run in order.
pub(super) fn emit(rank: &mut Rank<'_>, graph: &LoopGraph, part: &LoopPart) -> Result<Option<Vec<Launch>>, String> {
    let used = used(graph, part);
    let bits =
        |set: bool| -> Vec<usize> { (0..graph.dims.len()).filter(|d| (part.reduced >> d & 1 == 1) == set).collect() };
    let mut kept = axes(&graph.dims, &bits(false), &strides(graph), &used);
    let mut reduced = axes(&graph.dims, &bits(true), &strides(graph), &used);
    let (m, n) = (count(&kept), count(&reduced));
    if m == 0 {
        return Ok(Some(Vec::new()));
    }
    let weights = weights(graph, &used);
    let best = |axes: &[Axis]| axes.iter().map(|a| dense_bytes(a, &weights)).max().unwrap_or(0);
    let across = best(&kept) > best(&reduced);
    bring_fastest_in(&mut reduced, &weights);
    if across {
        bring_fastest_in(&mut kept, &weights);
    } else {
        merge(&mut kept);
    }
    let stage = stages(graph, part);
    let passes = part.ends.iter().map(|e| stage[e.value] + 1).max().unwrap_or(1);
    let only_totals = passes == 1 && part.ends.iter().all(|e| is_total(graph, part, e));

    let mut body = Body::new(graph, kept, reduced, rank.base);
    body.stands_for = part.stands_for.clone();
    for (w, walk) in graph.walks.iter().enumerate() {
        body.read_only[w] = !part.ends.iter().any(|e| graph.walks[e.walk].extent.overlaps(&walk.extent));
    }
    for (level, mask) in body.level.iter_mut().zip(masks(graph, part)) {
        *level = if mask & part.reduced == 0 { Level::Row } else { Level::Element };
    }
    if !across && n > 0 {
        let walks: Vec<usize> = (0..graph.walks.len()).filter(|&w| used[w]).collect();
        body.choose_vector(&walks, if graph.nodes.len() > 64 { 2 } else { 4 });
    }
    let shape = shape(&body, m, n, across, only_totals);
    let blocks = m.div_ceil(shape.rows);
    let per_pass = shape.t * body.vector;
    let cuts = if only_totals && blocks < FULL { (n / (per_pass * 8)).min(FULL / blocks).max(1) } else { 1 };
    let piece = n.div_ceil(cuts).next_multiple_of(body.vector);
    let cuts = if n == 0 { 1 } else { n.div_ceil(piece) };
    let each = piece.div_ceil(per_pass);

    let elements = each * body.vector;
    let crossing = crossing(graph, part, &body, &stage, passes);
    let keep = n > 0 && elements <= MOST_KEPT && crossing.len() * elements <= MOST_REGISTERS;
    if overwrites_early(graph, part, &stage) {
        return Ok(None);
    }

    let mut text = String::from(index_types([&body.kept, &body.reduced]));
    let mut main = format!("    const int tid = threadIdx.x;\n    const int t = tid / {} % {};\n", shape.x, shape.t);
    let block = if cuts > 1 {
        let _ = writeln!(main, "    const int piece = blockIdx.x % {cuts};");
        format!("(blockIdx.x / {cuts})")
    } else {
        "blockIdx.x".into()
    };
    let within = if shape.x > 1 { format!("tid % {}", shape.x) } else { format!("tid / {}", shape.t) };
    let _ = writeln!(main, "    const uq row = {block} * (uq){} + {within};", shape.rows);
    let whole = m.is_multiple_of(shape.rows);
    if whole {
        main.push_str("    const uq q = row;\n");
    } else {
        let _ = writeln!(main, "    const bool live = row < {m}u;\n    const uq q = live ? row : {}u;", m - 1);
    }
    let live = if whole { "" } else { "live && " };
    main.push_str("    __shared__ __align__(16) char shared[4096];\n");
    main.push_str(&cut("q", "k", &body.kept, 1, "    "));

    let mut computed = vec![false; graph.nodes.len()];
    let mut partials = Vec::new();
    for pass in 0..passes {
        let totals = totals(graph, part, &stage, pass);
        let element_ends: Vec<&End> = part
            .ends
            .iter()
            .filter(|e| stage[e.value] == pass && !is_total(graph, part, e) && !is_of_row(graph, part, e))
            .collect();
        for total in &totals {
            let (acc, id) = (accumulator(total.op, total.lane), identity(total.op, total.lane));
            let _ = writeln!(body.row, "    {acc} t{} = {id};", total.name);
        }
        body.next_element();
        body.cached.clear();
        if keep {
            let mut fresh = Vec::new();
            let roots = totals.iter().map(|t| t.value).chain(element_ends.iter().map(|e| e.value));
            roots.for_each(|r| {
                visit(graph, part, &body.level, r, &mut computed, &mut |n, is_new| {
                    if crossing.contains(&n) {
                        fresh.push((n, is_new));
                    }
                })
            });
            for (n, is_new) in fresh {
                // The first use decides: later uses in this pass are names.
                body.cached.entry(n).or_insert(is_new);
            }
            // In the order of the nodes, so that equal loops have equal texts.
            let mut kept: Vec<(usize, bool)> = body.cached.iter().map(|(&n, &is_new)| (n, is_new)).collect();
            kept.sort_unstable();
            for (n, is_new) in kept {
                if is_new {
                    let _ = writeln!(body.head, "    {} c{n}[{elements}];", lane(graph.nodes[n].lane));
                }
            }
            body.cache_place = if body.vector > 1 { format!("j * {} + v", body.vector) } else { "j".into() };
        }
        if n > 0 && !(totals.is_empty() && element_ends.is_empty()) {
            for total in &totals {
                let value = body.value(total.value);
                let (acc, name) = (accumulator(total.op, total.lane), &total.name);
                let _ = writeln!(body.lanes, "t{name} = {}::of(t{name}, ({acc}){value});", functor(total.op));
            }
            for end in element_ends {
                let value = combined(&mut body, graph, end);
                let mut stored = std::mem::take(&mut body.stores);
                let lanes_before = body.lanes.len();
                body.store(end.walk, &value, Level::Element);
                // Threads without a row repeat the last row and must not write.
                if !whole {
                    if body.packed[end.walk] {
                        body.stores = format!("if (live) {}", body.stores);
                    } else {
                        body.lanes.insert_str(lanes_before, "if (live) ");
                    }
                }
                stored.push_str(&body.stores);
                body.stores = stored;
            }
            let unroll = if keep && cuts == 1 { "#pragma unroll" } else { "#pragma unroll 4" };
            let _ = writeln!(body.row, "    {unroll}\n    for (int j = 0; j < {each}; j++) {{");
            let first = if cuts > 1 { format!("piece * (uq){piece} + ") } else { String::new() };
            let _ = writeln!(body.row, "        const uq e = {first}(j * (uq){} + t) * {};", shape.t, body.vector);
            let exact = n.is_multiple_of(per_pass) && cuts == 1;
            let indent = if exact { "        " } else { "            " };
            if !exact {
                let end = if cuts > 1 {
                    format!(" && j * (uq){per_pass} + t * {} < {piece}u", body.vector)
                } else {
                    String::new()
                };
                let _ = writeln!(body.row, "        if (e < {n}u{end}) {{");
            }
            let lines = cut_elements(&body.reduced, body.vector, indent);
            body.row.push_str(&lines);
            let element = body.element_text(indent);
            body.row.push_str(&element);
            body.row.push_str(if exact { "    }\n" } else { "        }\n    }\n" });
        }
        for total in &totals {
            let name = &total.name;
            let _ = writeln!(
                body.row,
                "    t{name} = together<{}, {}, {}>(t{name}, shared, tid);",
                functor(total.op),
                shape.x,
                shape.t
            );
        }
        for (node, kind) in graph.nodes.iter().enumerate() {
            if matches!(kind.kind, Kind::Reduce(_)) && totals.iter().any(|t| t.name == format!("n{node}")) {
                let l = lane(kind.lane);
                let _ = writeln!(body.row, "    const {l} r{node} = ({l})tn{node};");
                body.rows.insert(node, format!("r{node}"));
            }
        }
    }
    // Stores that write once per row.
    for end in &part.ends {
        let total = is_total(graph, part, end);
        if !total && !is_of_row(graph, part, end) {
            continue;
        }
        if cuts > 1 {
            let op = end.accumulate.unwrap_or(ReduceOp::Sum);
            let acc = accumulator(op, graph.nodes[end.value].lane);
            let at = rank.scratch(cuts * m * 8);
            let arg = body.args.push(rank.at(at));
            let _ = writeln!(
                body.row,
                "    if ({live}t == 0) (({acc}*)(A + a{arg}))[piece * (uq){m} + q] = tw{};",
                end.walk
            );
            partials.push((end.clone(), at));
            continue;
        }
        let value = if total {
            format!("({})tw{}", lane(graph.nodes[end.value].lane), end.walk)
        } else {
            combined(&mut body, graph, end)
        };
        let before = body.row.len();
        body.store(end.walk, &value, Level::Row);
        let statement = body.row.split_off(before);
        let _ = write!(body.row, "    if ({live}t == 0) {{\n    {statement}    }}\n");
    }
    text.push_str(&body.head);
    text.push_str(&main);
    text.push_str(&body.row);
    let cooperative = shape.t > 1;
    let args = std::mem::take(&mut body.args.values);
    let mut launches = vec![rank.launch("rows", (blocks * cuts, shape.block), cooperative, args, &text)?];
    if !partials.is_empty() {
        launches.push(finish(rank, graph, &body, &partials, m, cuts)?);
    }
    Ok(Some(launches))
}

/// Emits the kernel that combines the pieces of split rows, with a warp per row.
fn finish(
    rank: &mut Rank<'_>,
    graph: &LoopGraph,
    body: &Body<'_>,
    partials: &[(End, usize)],
    m: usize,
    cuts: usize,
) -> Result<Launch, String> {
    let mut out = Body::new(graph, body.kept.clone(), Vec::new(), rank.base);
    let mut main = String::from("    const int tid = threadIdx.x;\n    const int t = tid % 32;\n");
    let _ = writeln!(
        main,
        "    const uq row = blockIdx.x * (uq)4 + tid / 32;\n    const uq q = row < {m}u ? row : {}u;",
        m - 1
    );
    main.push_str(&cut("q", "k", &out.kept, 1, "    "));
    for (i, (end, at)) in partials.iter().enumerate() {
        let (op, of) = (end.accumulate.unwrap_or(ReduceOp::Sum), graph.nodes[end.value].lane);
        let (acc, f) = (accumulator(op, of), functor(op));
        let arg = out.args.push(rank.at(*at));
        let _ = writeln!(out.row, "    {acc} t{i} = {};", identity(op, of));
        let _ = writeln!(
            out.row,
            "    for (int s = t; s < {cuts}; s += 32) t{i} = {f}::of(t{i}, ((const {acc}*)(A + a{arg}))[s * (uq){m} + q]);"
        );
        let _ = writeln!(out.row, "    t{i} = together<{f}, 1, 32>(t{i}, nullptr, tid);");
        out.row.push_str("    if (row == q && t == 0) {\n    ");
        out.store(end.walk, &format!("({})t{i}", lane(of)), Level::Row);
        out.row.push_str("    }\n");
    }
    let text = format!("{}{}{main}{}", index_types([&body.kept, &body.reduced]), out.head, out.row);
    rank.launch("finish", (m.div_ceil(4), 128), true, out.args.values, &text)
}

/// Splits the number of an element, which is a multiple of the pack, into indices.
fn cut_elements(reduced: &[Axis], vector: usize, indent: &str) -> String {
    if vector == 1 {
        return cut("e", "n", reduced, 1, indent);
    }
    format!("{indent}const uq g = e / {vector};\n{}", cut("g", "n", reduced, vector, indent))
}

fn shape(body: &Body<'_>, m: usize, n: usize, across: bool, only_totals: bool) -> Shape {
    if across {
        let inner = body.kept.last().map_or(1, |a| a.size);
        let x = inner.next_power_of_two().min(32);
        let t = n.max(1).next_power_of_two().clamp(32 / x, 256 / x);
        return Shape { x, t, rows: x, block: x * t };
    }
    let packs = (n / body.vector).max(1);
    // Elements per thread: enough to keep loads in flight, few enough to keep them in registers.
    let each = (if only_totals { 16 } else { 8 } / body.vector).max(1);
    let t = packs.div_ceil(each).next_power_of_two().clamp(packs.next_power_of_two().min(32), MOST_THREADS);
    let groups = (128 / t).min(m.next_power_of_two()).max(1).max(32 / t);
    Shape { x: 1, t, rows: groups, block: groups * t }
}

/// The first pass over the row in which each node can be computed.
fn stages(graph: &LoopGraph, part: &LoopPart) -> Vec<usize> {
    let mut stage = vec![0; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        if part.stands_for.contains_key(&i) {
            continue;
        }
        let inputs = node.inputs.iter().map(|&x| stage[x]).max().unwrap_or(0);
        stage[i] = inputs + usize::from(part.reduces && matches!(node.kind, Kind::Reduce(_)));
    }
    stage
}

/// Whether a store takes a sum over the part's rows.
fn is_total(graph: &LoopGraph, part: &LoopPart, end: &End) -> bool {
    let walk = &graph.walks[end.walk];
    let still = |d: usize| part.reduced >> d & 1 == 1 && walk.strides[d] == 0 && graph.dims[d] != 1;
    end.accumulate.is_some() && (0..graph.dims.len()).any(still)
}

/// Whether a store writes once per row.
fn is_of_row(graph: &LoopGraph, part: &LoopPart, end: &End) -> bool {
    let walk = &graph.walks[end.walk];
    (0..graph.dims.len()).all(|d| part.reduced >> d & 1 == 0 || walk.strides[d] == 0 || graph.dims[d] == 1)
}

/// The reductions of a pass.
fn totals(graph: &LoopGraph, part: &LoopPart, stage: &[usize], pass: usize) -> Vec<Total> {
    let mut totals = Vec::new();
    if part.reduces {
        let mut needed = vec![false; graph.nodes.len()];
        let mut open: Vec<usize> = part.ends.iter().map(|e| e.value).collect();
        while let Some(n) = open.pop() {
            if !std::mem::replace(&mut needed[n], true) {
                open.extend(&graph.nodes[n].inputs);
            }
        }
        for (i, node) in graph.nodes.iter().enumerate().filter(|(i, _)| needed[*i]) {
            if let Kind::Reduce(op) = node.kind
                && stage[node.inputs[0]] == pass
            {
                let value = node.inputs[0];
                totals.push(Total { name: format!("n{i}"), value, op, lane: graph.nodes[value].lane });
            }
        }
    }
    for end in part.ends.iter().filter(|e| stage[e.value] == pass && is_total(graph, part, e)) {
        let op = end.accumulate.unwrap_or(ReduceOp::Sum);
        let lane = graph.nodes[end.value].lane;
        totals.push(Total { name: format!("w{}", end.walk), value: end.value, op, lane });
    }
    totals
}

/// Calls `f` with the element nodes that computing `node` needs and whether they are new, without visiting the operands
/// of nodes that are not new.
fn visit(
    graph: &LoopGraph,
    part: &LoopPart,
    level: &[Level],
    node: usize,
    computed: &mut [bool],
    f: &mut dyn FnMut(usize, bool),
) {
    if level[node] == Level::Row || matches!(graph.nodes[node].kind, Kind::Constant(_)) {
        return;
    }
    let is_new = !std::mem::replace(&mut computed[node], true);
    f(node, is_new);
    if is_new && !part.stands_for.contains_key(&node) {
        graph.nodes[node].inputs.iter().for_each(|&x| visit(graph, part, level, x, computed, f));
    }
}

/// The element nodes of an earlier pass that a pass needs.
fn crossing(graph: &LoopGraph, part: &LoopPart, body: &Body<'_>, stage: &[usize], passes: usize) -> Vec<usize> {
    let mut computed = vec![false; graph.nodes.len()];
    let mut found = Vec::new();
    for pass in 0..passes {
        let before = computed.clone();
        let ends = part
            .ends
            .iter()
            .filter(|e| stage[e.value] == pass && !is_total(graph, part, e) && !is_of_row(graph, part, e));
        let roots: Vec<usize> =
            totals(graph, part, stage, pass).iter().map(|t| t.value).chain(ends.map(|e| e.value)).collect();
        for r in roots {
            visit(graph, part, &body.level, r, &mut computed, &mut |n, is_new| {
                if !is_new && before[n] && !found.contains(&n) {
                    found.push(n);
                }
            });
        }
    }
    found
}

/// Whether a pass overwrites elements that a later pass reads.
fn overwrites_early(graph: &LoopGraph, part: &LoopPart, stage: &[usize]) -> bool {
    let passes = part.ends.iter().map(|e| stage[e.value]).max().unwrap_or(0);
    part.ends.iter().any(|e| {
        let early = stage[e.value] < passes && e.accumulate.is_none();
        early && graph.walks.iter().any(|w| !w.store && w.extent.overlaps(&graph.walks[e.walk].extent))
    })
}
