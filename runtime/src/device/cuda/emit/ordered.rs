//! Loops whose stores overlap their other accesses: one block runs instruction by instruction on whole rows, as the
//! program says. Correct but slow.

use super::body::{Body, Level, LoopGraph, accumulator, element, functor, identity, lane};
use super::kernels::Launch;
use super::pointwise::strides;
use super::rank::Rank;
use super::space::{axes, count, cut, offset};
use crate::device::cpu::vector::LaneType;
use crate::device::nodes::{Kind, count_uses, is_end};
use std::fmt::Write as _;

const BLOCK: usize = 256;

/// Emits the kernel of a loop that must keep its order.
pub(super) fn emit(rank: &mut Rank<'_>, graph: &LoopGraph, walks_vary: &[bool]) -> Result<Vec<Launch>, String> {
    let row = graph.dims.len() - 1;
    let n = graph.dims[row];
    let outer: Vec<usize> = (0..row).collect();
    let used = vec![true; graph.walks.len() + graph.affines.len()];
    let kept = axes(&graph.dims, &outer, &strides(graph), &used);
    let reduced = axes(&graph.dims, &[row], &strides(graph), &used);
    let rows = count(&kept);
    let mut body = Body::new(graph, kept, reduced, rank.base);
    let uses = count_uses(&graph.nodes);
    let mut fills = String::new();
    let mut steps = String::new();
    let along = "for (uq e = tid; e < LEN; e += 256)".replace("LEN", &n.to_string());
    let index = if n == 1 { "" } else { "const ix n0 = (ix)e; " };
    let mut names: Vec<String> = vec![String::new(); graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        if uses[i] == 0 && !is_end(&node.kind) {
            continue;
        }
        if let Kind::Constant(_) = node.kind {
            names[i] = body.value(i);
            continue;
        }
        let x: Vec<String> = node.inputs.iter().map(|&x| names[x].clone()).collect();
        let at_row = |text: &str| format!("        if (tid == 0) {{ const uq e = 0; {index}{text} }}\n");
        let on_row = |text: &str| format!("        {along} {{ {index}{text} }}\n");
        match node.kind {
            Kind::Store(w) => {
                let p = body.pointer(w);
                let text =
                    format!("p{p}[{}] = To<{}>::of({});", body.offset(w, false), element(graph.walks[w].dtype), x[0]);
                let once = !walks_vary[w];
                steps.push_str(&if once { at_row(&text) } else { on_row(&text) });
            }
            Kind::Accumulate(w, op) => {
                let (p, at) = (body.pointer(w), body.offset(w, false));
                let t = element(graph.walks[w].dtype);
                let text = format!("p{p}[{at}] = To<{t}>::of({}::of(lane(p{p}[{at}]), {}));", functor(op), x[0]);
                steps.push_str(&if walks_vary[w] { on_row(&text) } else { at_row(&text) });
                fills.push_str(&fill(&mut body, w, op));
            }
            Kind::Reduce(op) => {
                let of = graph.nodes[node.inputs[0]].lane;
                let (acc, l) = (accumulator(op, of), lane(node.lane));
                let slot = slot(rank, &mut body, l, 1);
                let text = format!(
                    "        if (tid == 0) {{ {acc} t = {}; for (uq e = 0; e < {n}; e++) t = {}::of(t, ({acc}){}); {slot}[0] = ({l})t; }}\n",
                    identity(op, of),
                    functor(op),
                    x[0]
                );
                steps.push_str(&text);
                names[i] = format!("{slot}[0]");
            }
            _ => {
                let l = lane(node.lane);
                let slot = slot(rank, &mut body, l, if node.uniform { 1 } else { n });
                let value = body.expression(i, &x, Level::Element);
                names[i] = if node.uniform { format!("{slot}[0]") } else { format!("{slot}[e]") };
                let text = format!("{} = {value};", names[i]);
                steps.push_str(&if node.uniform { at_row(&text) } else { on_row(&text) });
            }
        }
        steps.push_str("        __syncthreads();\n");
    }
    let mut text = String::from("    typedef i64 ix; typedef u64 uq;\n    const int tid = threadIdx.x;\n");
    text.push_str(&body.head);
    if !fills.is_empty() {
        text.push_str(&fills);
        text.push_str("    __syncthreads();\n");
    }
    if rows > 0 {
        let _ = writeln!(text, "    for (uq q = 0; q < {rows}; q++) {{");
        text.push_str(&cut("q", "k", &body.kept, 1, "        "));
        text.push_str(&steps);
        text.push_str("    }\n");
    }
    let args = std::mem::take(&mut body.args.values);
    Ok(vec![rank.launch("ordered", (1, BLOCK), true, args, &text)?])
}

/// Allocates memory for a register, and returns the name of a pointer to it.
fn slot(rank: &mut Rank<'_>, body: &mut Body<'_>, lane: &str, len: usize) -> String {
    let at = rank.scratch(len * 8);
    let arg = body.args.push(rank.at(at));
    let _ = writeln!(body.head, "    {lane}* const s{arg} = ({lane}*)(A + a{arg});");
    format!("s{arg}")
}

/// Emits the fill of the target of an accumulating store.
fn fill(body: &mut Body<'_>, w: usize, op: tpc_ir::ReduceOp) -> String {
    let walk = &body.graph.walks[w];
    let moving: Vec<usize> = (0..body.graph.dims.len()).filter(|&d| walk.strides[d] != 0).collect();
    let used: Vec<bool> = (0..body.graph.walks.len() + body.graph.affines.len()).map(|i| i == w).collect();
    let space = axes(&body.graph.dims, &moving, &strides(body.graph), &used);
    let points = count(&space);
    if points == 0 {
        return String::new();
    }
    let p = body.pointer(w);
    let (t, lane_type) = (element(walk.dtype), LaneType::of(walk.dtype));
    let at = offset(w, [("k", &space), ("n", &[])], "");
    let value = identity(op, lane_type);
    let l = lane(lane_type);
    format!(
        "    for (uq q = tid; q < {points}; q += 256) {{\n{}        p{p}[{at}] = To<{t}>::of(({l})({value}));\n    }}\n",
        cut("q", "k", &space, 1, "        ")
    )
}
