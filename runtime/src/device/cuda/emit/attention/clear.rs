//! Blocks of scores in which every `select` of a positional mask has a known result, so that their bodies are shorter:
//! most of the blocks that a causal mask leaves visible.

use crate::device::visible;
use std::ops::Range;
use tpc_ir::MapFn;
use tpc_ir::attention::Attention;
use tpc_ir::program::Instruction;

/// The owners of blocks: rows or columns.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Owners {
    pub(super) rows: bool,
    pub(super) count: usize,
    pub(super) block: usize,
    pub(super) streamed: usize,
}

/// One end of the clear range of a block of owners.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Fixed(usize),
    /// At this distance from the block's other end.
    Shifted(i64),
}

/// The clear range of streamed indices for each block of owners.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Clear {
    from: End,
    to: End,
    streamed: usize,
    /// The bodies in the clear range.
    pub(super) score: Vec<Instruction>,
    pub(super) gradient: Vec<Instruction>,
}

/// The result of every `select` of a body for some rows and columns; `None` if it varies.
type Decisions = Vec<Option<bool>>;

/// The decisions of both bodies.
fn decisions(a: &Attention, owners: Owners, own: &Range<usize>, streamed: &Range<usize>) -> Decisions {
    let (rows, columns) = if owners.rows { (own, streamed) } else { (streamed, own) };
    let gradient = a.backward.iter().map(|b| &b.gradient);
    let of = |body: &Vec<Instruction>| visible::decided(a, body, rows.clone(), columns.clone());
    std::iter::once(&a.score).chain(gradient).flat_map(of).collect()
}

/// Finds the clear ranges, if they are worth it.
pub(super) fn find(a: &Attention, owners: Owners) -> Option<Clear> {
    let blocks: Vec<Range<usize>> =
        (0..owners.count).step_by(owners.block).map(|i| i..(i + owners.block).min(owners.count)).collect();
    let wanted = wanted(a, owners, &blocks)?;
    let all: Vec<Range<usize>> = blocks.iter().map(|b| longest(a, owners, b, &wanted)).collect();
    let some: Vec<_> = blocks.iter().zip(&all).filter(|(_, s)| !s.is_empty()).collect();
    let n = owners.streamed;
    // Within the clear range of every block: from the later end of the owners up to the earlier.
    let start = some.iter().filter(|(_, s)| s.start > 0).map(|(b, s)| s.start as i64 - b.end as i64).max();
    let end = some.iter().filter(|(_, s)| s.end < n).map(|(b, s)| s.end as i64 - b.start as i64).min();
    let first = some.iter().map(|(_, s)| s.start).max()?;
    let last = some.iter().map(|(_, s)| s.end).min()?;
    let ends = [(start.map(End::Shifted), End::Fixed(first)), (end.map(End::Shifted), End::Fixed(last))];
    let [froms, tos] = ends.map(|(shifted, fixed)| [shifted, Some(fixed)]);
    let of = |from: End, to: End| Clear { from, to, streamed: n, score: Vec::new(), gradient: Vec::new() };
    let pairs = froms.iter().flatten().flat_map(|&f| tos.iter().flatten().map(move |&t| of(f, t)));
    let holds = |c: &Clear| {
        blocks.iter().zip(&all).all(|(b, s)| {
            let at = c.at(b);
            at.is_empty() || (s.start <= at.start && at.end <= s.end)
        })
    };
    let size = |c: &Clear| blocks.iter().map(|b| c.at(b).len()).sum::<usize>();
    let best = pairs.filter(holds).max_by_key(size).filter(|c| size(c) > 0)?;
    let (of_score, of_gradient) = wanted.split_at(a.score.len());
    let gradient = a.backward.as_ref().map_or(Vec::new(), |b| shortened(&b.gradient, of_gradient));
    Some(Clear { score: shortened(&a.score, of_score), gradient, ..best })
}

/// The decisions of the block in which most are made, among some blocks of owners.
fn wanted(a: &Attention, owners: Owners, blocks: &[Range<usize>]) -> Option<Decisions> {
    let some = [blocks.len().checked_sub(1)?, blocks.len() / 2, 0];
    let step = 16;
    let all = some.iter().flat_map(|&i| (0..owners.streamed).step_by(step).map(move |s| (i, s)));
    let of = |(i, first): (usize, usize)| {
        let (own, streamed) = (&blocks[i], first..(first + step).min(owners.streamed));
        let (rows, columns) = if owners.rows { (own, &streamed) } else { (&streamed, own) };
        let hidden = visible::constant(a, rows.clone(), columns.clone()).is_some();
        let made = decisions(a, owners, own, &streamed);
        let count = made.iter().flatten().count();
        Some((count, made)).filter(|_| count > 0 && !hidden)
    };
    all.filter_map(of).max_by_key(|(count, _)| *count).map(|(_, made)| made)
}

/// The longest clear range of a block of owners.
fn longest(a: &Attention, owners: Owners, own: &Range<usize>, wanted: &Decisions) -> Range<usize> {
    let mut found = Vec::new();
    search(a, owners, own, 0..owners.streamed, wanted, &mut found);
    found.into_iter().max_by_key(Range::len).unwrap_or(0..0)
}

fn search(
    a: &Attention,
    owners: Owners,
    own: &Range<usize>,
    streamed: Range<usize>,
    wanted: &Decisions,
    found: &mut Vec<Range<usize>>,
) {
    let made = decisions(a, owners, own, &streamed);
    let mut pairs = made.iter().zip(wanted).filter(|(_, w)| w.is_some());
    if pairs.clone().any(|(m, w)| m.is_some() && m != w) {
        return;
    }
    if pairs.all(|(m, w)| m == w) {
        match found.last_mut() {
            Some(last) if last.end == streamed.start => last.end = streamed.end,
            _ => found.push(streamed),
        }
        return;
    }
    if streamed.len() > 1 {
        let middle = streamed.start + streamed.len() / 2;
        search(a, owners, own, streamed.start..middle, wanted, found);
        search(a, owners, own, middle..streamed.end, wanted, found);
    }
}

/// Replaces the decided `select`s of a body by their results.
fn shortened(body: &[Instruction], decisions: &[Option<bool>]) -> Vec<Instruction> {
    let of = |(instruction, decision): (&Instruction, &Option<bool>)| match (instruction, decision) {
        (Instruction::Map { f: MapFn::Select, args, dtype }, Some(yes)) => {
            let chosen = args[if *yes { 1 } else { 2 }];
            Instruction::Map { f: MapFn::Identity, args: vec![chosen], dtype: *dtype }
        }
        _ => instruction.clone(),
    };
    body.iter().zip(decisions).map(of).collect()
}

impl Clear {
    /// The clear range of a block of owners.
    fn at(&self, block: &Range<usize>) -> Range<usize> {
        let at = |end: End, of: usize| match end {
            End::Fixed(i) => i,
            End::Shifted(shift) => (of as i64 + shift).clamp(0, self.streamed as i64) as usize,
        };
        let range = at(self.from, block.end)..at(self.to, block.start);
        if range.is_empty() { 0..0 } else { range }
    }

    /// The ends as expressions of the block's `first` and `last`.
    pub(super) fn text(&self) -> [String; 2] {
        let of = |end: End, name: &str| match end {
            End::Fixed(i) => format!("{i}"),
            End::Shifted(shift) => format!("clamped((i64){name} + {shift}ll, {})", self.streamed),
        };
        [of(self.from, "last"), of(self.to, "first")]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tpc_ir::attention::Operand;
    use tpc_ir::program::{BufferId, View};
    use tpc_ir::{DType, Scalar};

    /// `select(column > row or column < row − window, constant, product)`.
    fn attention(rows: usize, columns: usize, window: i64) -> Attention {
        let view = View::dense(BufferId(0), DType::F32, vec![]);
        let operand = Operand { view: view.clone(), dims: vec![0; 2], own: vec![] };
        let [query, key, value, out] = [0; 4].map(|_| operand.clone());
        let index = |dim: usize| Instruction::Index { dim, offset: 0, dtype: DType::I64 };
        let map = |f: MapFn, args: &[usize], dtype: DType| Instruction::Map { f, args: args.to_vec(), dtype };
        let score = vec![
            Instruction::Given { index: 0, dtype: DType::F32 },
            index(1),
            index(0),
            map(MapFn::Gt, &[1, 2], DType::Bool),
            Instruction::Constant(Scalar::Int(window), DType::I64),
            map(MapFn::Sub, &[2, 4], DType::I64),
            map(MapFn::Lt, &[1, 5], DType::Bool),
            map(MapFn::Or, &[3, 6], DType::Bool),
            Instruction::Constant(Scalar::float(-1e30), DType::F32),
            map(MapFn::Select, &[7, 8, 0], DType::F32),
        ];
        let dims = vec![rows, columns];
        let (inner, width, weight, backward) = (vec![], vec![], vec![], None);
        let (max, sum, tile, keep) = (view.clone(), view.clone(), view, false);
        Attention { dims, inner, width, query, key, value, out, max, sum, keep, score, weight, tile, backward }
    }

    #[test]
    fn what_is_clear_is_clear() {
        for (n, window) in [(300, 1000), (300, 100), (1000, 200)] {
            let a = attention(n, n, window);
            for rows in [true, false] {
                let owners = Owners { rows, count: n, block: 32, streamed: n };
                let clear = find(&a, owners).unwrap();
                let mut cleared = 0;
                for first in (0..n).step_by(32) {
                    let block = first..(first + 32).min(n);
                    let at = clear.at(&block);
                    cleared += at.len();
                    for (own, s) in block.clone().flat_map(|o| at.clone().map(move |s| (o, s))) {
                        let (r, c) = if rows { (own as i64, s as i64) } else { (s as i64, own as i64) };
                        assert!(c <= r && c >= r - window, "{n} {window} {rows}: row {r}, column {c}");
                    }
                }
                // Only the edges of the blocks are not clear.
                let seen: usize = (0..n).map(|r| r.min(window as usize) + 1).sum();
                assert!(cleared * 32 + 2 * 64 * n >= seen, "{n} {window} {rows}: {cleared} of {seen}");
                assert!(clear.score.iter().all(|i| !matches!(i, Instruction::Map { f: MapFn::Select, .. })));
            }
        }
        let plain = Attention { score: attention(9, 9, 9).score[..1].to_vec(), ..attention(90, 90, 9) };
        assert_eq!(find(&plain, Owners { rows: true, count: 90, block: 32, streamed: 90 }), None);
    }
}
