//! Collectives between ranks whose memory is one allocation, as kernels, for several ranks on one device. Terms are
//! combined in the order of the ranks, as on the CPU, so results are bitwise equal everywhere.

use super::body::{element, functor};
use super::copy::raw;
use super::kernels::{Kernels, Launch};
use std::fmt::Write as _;
use tpc_ir::program::{Collective, CollectiveKind, Part};

const BLOCK: usize = 256;
const GRID: usize = 132 * 16;

/// A statement that sets `target` to one of the arguments from `a{first}` on, selected by the condition that holds.
fn pick(target: &str, conditions: &[String], first: usize) -> String {
    let mut text = format!("const i64 {target} = ");
    for (i, c) in conditions.iter().enumerate().take(conditions.len() - 1) {
        let _ = write!(text, "{c} ? a{} : ", first + i);
    }
    let _ = write!(text, "a{};", first + conditions.len() - 1);
    text
}

/// Running sums, and the conditions `x < end` of each piece.
fn pieces(lens: &[usize], x: &str) -> (Vec<usize>, Vec<String>) {
    let mut start = 0;
    let starts: Vec<usize> = lens.iter().map(|&l| (start, start += l).0).collect();
    let conditions = lens.iter().zip(&starts).map(|(l, s)| format!("{x} < {}", s + l)).collect();
    (starts, conditions)
}

/// A nested conditional expression of numbers.
fn choose(values: &[usize], conditions: &[String]) -> String {
    let mut text = String::new();
    for (v, c) in values.iter().zip(conditions).take(values.len() - 1) {
        let _ = write!(text, "{c} ? {v} : ");
    }
    let _ = write!(text, "{}", values[values.len() - 1]);
    format!("({text})")
}

fn add(kernels: &mut Kernels, what: &str, points: usize, args: Vec<i64>, body: &str) -> Launch {
    let text = format!(
        "    for (u64 q = blockIdx.x * (u64){BLOCK} + threadIdx.x; q < {points}u; q += gridDim.x * (u64){BLOCK}) {{\n{body}    }}\n"
    );
    let kernel = kernels.add(what, args.len(), BLOCK as u32, false, &text);
    Launch { kernel, grid: points.div_ceil(BLOCK).min(GRID) as u32, args }
}

/// Statements that combine element `at` of the sources `a0…` in order, as `sum`.
fn combine(ranks: usize, dtype: tpc_ir::DType, op: tpc_ir::ReduceOp, at: &str) -> String {
    let (e, f) = (element(dtype), functor(op));
    let mut text = format!("        auto sum = lane(((const {e}*)(A + a0))[{at}]);\n");
    for r in 1..ranks {
        let _ = writeln!(text, "        sum = {f}::of(sum, lane(((const {e}*)(A + a{r}))[{at}]));");
    }
    text
}

/// The launches of a collective of a group. `members` are the offsets of each member's operand and result in the device
/// allocation, in the order of the group.
pub(super) fn emit(
    kernels: &mut Kernels,
    c: &Collective,
    members: &[(i64, i64)],
    joined: &[Collective],
) -> Vec<Launch> {
    let ranks = members.len();
    let e = element(c.dtype);
    let size = c.dtype.bytes() as i64;
    let from = || members.iter().map(|m| m.0);
    let to = || members.iter().map(|m| m.1);
    match &c.kind {
        CollectiveKind::AllReduce(op) => {
            let n = c.from.elements();
            if n == 0 {
                return Vec::new();
            }
            let mut body = combine(ranks, c.dtype, *op, "q");
            let _ = writeln!(body, "        const {e} r = To<{e}>::of(sum);");
            (0..ranks).for_each(|r| _ = writeln!(body, "        (({e}*)(A + a{}))[q] = r;", ranks + r));
            vec![add(kernels, "all_reduce", n, from().chain(to()).collect(), &body)]
        }
        CollectiveKind::AllGather { parts } => {
            let mut launches = Vec::new();
            let mut result = 0;
            let t = raw(c.dtype.bytes());
            for (p, part) in parts.iter().enumerate() {
                let Part { outer: _, lens, inner } = part;
                let total: usize = lens.iter().sum();
                if part.whole() > 0 {
                    let shard = |r: usize| parts[..p].iter().map(|before| before.shard(r)).sum::<usize>() as i64;
                    let args = from().enumerate().map(|(r, f)| f + shard(r) * size);
                    let args = args.chain(to().map(|t| t + result * size)).collect();
                    let (starts, conditions) = pieces(lens, "l");
                    let mut body = format!(
                        "        const u64 i = q % {inner}u, l = q / {inner}u % {total}u, o = q / {}u;\n        {}\n        \
                         const u64 len = {}, start = {};\n        \
                         const {t} x = ((const {t}*)(A + at))[(o * len + l - start) * {inner} + i];\n",
                        inner * total,
                        pick("at", &conditions, 0),
                        choose(lens, &conditions),
                        choose(&starts, &conditions),
                    );
                    (0..ranks).for_each(|r| _ = writeln!(body, "        (({t}*)(A + a{}))[q] = x;", ranks + r));
                    launches.push(add(kernels, "all_gather", part.whole(), args, &body));
                }
                result += part.whole() as i64;
            }
            launches
        }
        CollectiveKind::ReduceScatter { op, parts } => {
            let mut launches = Vec::new();
            let mut operand = 0;
            for (p, part) in parts.iter().enumerate() {
                let Part { outer: _, lens, inner } = part;
                let total: usize = lens.iter().sum();
                if part.whole() > 0 {
                    let shard = |r: usize| parts[..p].iter().map(|before| before.shard(r)).sum::<usize>() as i64;
                    let args = from().map(|f| f + operand * size);
                    let args = args.chain(to().enumerate().map(|(r, t)| t + shard(r) * size)).collect();
                    let (starts, conditions) = pieces(lens, "l");
                    let mut body = format!(
                        "        const u64 i = q % {inner}u, l = q / {inner}u % {total}u, o = q / {}u;\n        {}\n        \
                         const u64 len = {}, start = {};\n",
                        inner * total,
                        pick("at", &conditions, ranks),
                        choose(lens, &conditions),
                        choose(&starts, &conditions),
                    );
                    body.push_str(&combine(ranks, c.dtype, *op, "q"));
                    let _ = writeln!(
                        body,
                        "        (({e}*)(A + at))[(o * len + l - start) * {inner} + i] = To<{e}>::of(sum);"
                    );
                    launches.push(add(kernels, "reduce_scatter", part.whole(), args, &body));
                }
                operand += part.whole() as i64;
            }
            launches
        }
        CollectiveKind::AllToAll { .. } => joined.iter().flat_map(|c| all_to_all(kernels, c, members)).collect(),
    }
}

/// The part of an all-to-all that one rank sends.
fn all_to_all(kernels: &mut Kernels, c: &Collective, members: &[(i64, i64)]) -> Option<Launch> {
    let CollectiveKind::AllToAll { shape, cut, join, cut_lens, join_lens } = &c.kind else { return None };
    let points: usize = shape.iter().product();
    if points == 0 {
        return None;
    }
    let t = raw(c.dtype.bytes());
    let mut body = String::new();
    let mut rest = "q".to_string();
    for d in (0..shape.len()).rev() {
        let _ = writeln!(body, "        const u64 i{d} = {rest} % {}u;", shape[d]);
        rest = format!("{rest} / {}u", shape[d]);
    }
    let (starts, conditions) = pieces(cut_lens, &format!("i{cut}"));
    let before: usize = join_lens[..c.position].iter().sum();
    let joined: usize = join_lens.iter().sum();
    let _ = writeln!(body, "        {}", pick("at", &conditions, 1));
    let _ = writeln!(
        body,
        "        const u64 len = {}, start = {};",
        choose(cut_lens, &conditions),
        choose(&starts, &conditions)
    );
    let mut at = String::from("0ull");
    for (d, n) in shape.iter().enumerate() {
        let (size, index) = if d == *cut {
            ("len".to_string(), format!("(i{d} - start)"))
        } else if d == *join {
            (joined.to_string(), format!("(i{d} + {before})"))
        } else {
            (n.to_string(), format!("i{d}"))
        };
        at = format!("({at} * {size} + {index})");
    }
    let _ = writeln!(body, "        (({t}*)(A + at))[{at}] = ((const {t}*)(A + a0))[q];");
    let args = std::iter::once(members[c.position].0).chain(members.iter().map(|m| m.1)).collect();
    Some(add(kernels, "all_to_all", points, args, &body))
}
