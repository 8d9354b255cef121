//! Proves that the collectives of the programs of all ranks fit together, or those of some ranks ([`check_some`]).
//!
//! 1. On each rank, every collective is started once and then waited for once.
//! 2. While a collective is in flight, nothing writes its operand, and nothing reads or writes its result. This is
//!    checked by bytes of the arena, so that mistakes of the memory plan are found too.
//! 3. In every group, all ranks start the same sequence of collectives, with the same kinds, sizes and element types.
//! 4. All ranks start their collectives in one common order. A rank therefore only waits for collectives that come
//!    before all those that it has not started, so no rank waits forever. The same holds for a device that runs
//!    collectives one after the other in the order in which they are started (NCCL).
//!
//! The check uses rank programs only. It shares no code with the passes that create them, except the traversal of the
//! views of an action.

use super::memory::each_view;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use tpc_ir::program::{Action, BufferId, Collective, CollectiveKind, Instruction, RankProgram, View};

/// Why rank programs do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RankError {
    /// The list does not have one program for each rank.
    #[error("program {position} of {programs} is that of rank {rank} of a mesh of {ranks}")]
    Ranks {
        /// The position of the program in the list.
        position: usize,
        /// The length of the list.
        programs: usize,
        /// The rank of the program.
        rank: usize,
        /// The number of ranks of its mesh.
        ranks: usize,
    },
    /// The rank is not at its position in the group, or the group has a rank that does not exist.
    #[error("rank {rank}: {collective} has group {group:?} and position {position}")]
    Group {
        /// The rank.
        rank: usize,
        /// The collective.
        collective: String,
        /// The ranks of the group.
        group: Vec<usize>,
        /// The position of the rank according to its program.
        position: usize,
    },
    /// A collective is started or waited for without the other, or twice.
    #[error("rank {rank}, step {step}: {what}")]
    Unpaired {
        /// The rank.
        rank: usize,
        /// Index of the step.
        step: usize,
        /// A description of the fault.
        what: String,
    },
    /// A buffer is accessed while a collective uses it.
    #[error("rank {rank}, step {step} (`{label}`): {access} {buffer} while {collective} is in flight")]
    InFlight {
        /// The rank.
        rank: usize,
        /// Index of the step.
        step: usize,
        /// A description of the step.
        label: String,
        /// `reads` or `writes`.
        access: &'static str,
        /// The buffer.
        buffer: String,
        /// The collective.
        collective: String,
    },
    /// Two ranks of a group do not start the same collective.
    #[error(
        "group {group:?}, collective {position}: rank {first} starts {first_starts}, rank {second} starts {second_starts}"
    )]
    Mismatch {
        /// The ranks of the group.
        group: Vec<usize>,
        /// The number of the collective in the group, counted from 0.
        position: usize,
        /// A rank.
        first: usize,
        /// The collective that it starts.
        first_starts: String,
        /// Another rank.
        second: usize,
        /// The collective that it starts.
        second_starts: String,
    },
    /// Ranks start collectives of several groups in orders that contradict each other.
    #[error(
        "no order of the collectives suits every rank; each of these comes before the next, and the last before the \
         first: {}",
        .0.join("; ")
    )]
    Cycle(Vec<String>),
}

/// Checks the programs of all ranks of a mesh.
///
/// # Errors
/// The first fault, with ranks, steps and reasons.
pub fn check_ranks(programs: &[RankProgram]) -> Result<(), RankError> {
    for (position, p) in programs.iter().enumerate() {
        if p.rank != position || p.mesh.ranks() != programs.len() {
            let (programs, rank, ranks) = (programs.len(), p.rank, p.mesh.ranks());
            return Err(RankError::Ranks { position, programs, rank, ranks });
        }
        check_rank(p, programs.len())?;
    }
    check_groups(programs)?;
    check_order(programs)
}

/// Checks the programs of some ranks of a mesh. Ranks of a group that are not among them are not compared, so the common
/// order of point 4 is checked as the order of the tags, which are numbered alike on all ranks.
///
/// # Errors
/// The first fault, with ranks, steps and reasons.
pub fn check_some(programs: &[RankProgram]) -> Result<(), RankError> {
    for program in programs {
        check_rank(program, program.mesh.ranks())?;
        check_tags(program)?;
    }
    check_groups(programs)
}

/// Checks that a rank starts its collectives in the order of their tags.
fn check_tags(program: &RankProgram) -> Result<(), RankError> {
    let starts = program.steps.iter().enumerate().filter_map(|(step, s)| match &s.action {
        Action::Start(c) => Some((step, c.tag)),
        _ => None,
    });
    let mut before: Option<u32> = None;
    for (step, tag) in starts {
        if let Some(before) = before.filter(|before| *before >= tag) {
            let what = format!("tag #{tag} is started after tag #{before}");
            return Err(RankError::Unpaired { rank: program.rank, step, what });
        }
        before = Some(tag);
    }
    Ok(())
}

/// The text of a collective in a message.
fn name(c: &Collective) -> String {
    let why = if c.why.is_empty() { String::new() } else { format!(", why: {}", c.why) };
    format!("`{} {}` #{} ({} {} bytes{why})", c.name(), c.axes, c.tag, c.dtype, c.full_bytes)
}

/// A collective in flight, and the bytes of the arena that it uses.
struct Flight<'a> {
    collective: &'a Collective,
    from: Range<usize>,
    to: Range<usize>,
}

/// The bytes of the arena from the first to the last element that a view addresses with the given sizes and strides.
pub(super) fn span(program: &RankProgram, view: &View, sizes: &[usize], strides: &[isize]) -> Range<usize> {
    let start = program.buffers.get(view.buffer.0 as usize).map_or(0, |b| b.offset);
    if sizes.contains(&0) {
        return start..start;
    }
    let (mut low, mut high) = (view.offset as isize, view.offset as isize);
    for (&n, &stride) in sizes.iter().zip(strides) {
        let reach = (n as isize - 1) * stride;
        low += reach.min(0);
        high += reach.max(0);
    }
    let size = view.dtype.bytes();
    start + low.max(0) as usize * size..start + (high.max(0) as usize + 1) * size
}

/// Calls `visit` with every range of bytes that an action reads or writes, and whether it writes it.
fn touched(program: &RankProgram, action: &Action, visit: &mut dyn FnMut(BufferId, Range<usize>, bool)) {
    let mut body = |dims: &[usize], body: &[Instruction]| {
        for instruction in body {
            if let Instruction::Load { view, strides } | Instruction::Store { view, strides, .. } = instruction {
                // An accumulating store sets its target even if the loop has no iterations, so dimensions in which the
                // target does not move count as 1.
                let sizes: Vec<usize> =
                    dims.iter().zip(strides).map(|(&n, &stride)| if stride == 0 { 1 } else { n }).collect();
                let writes = matches!(instruction, Instruction::Store { .. });
                visit(view.buffer, span(program, view, &sizes, strides), writes);
            }
        }
    };
    match action {
        Action::Loop(l) => return body(&l.dims, &l.body),
        Action::Contract(c) => body(&c.dims().map(|d| d.size).collect::<Vec<_>>(), &c.epilogue),
        _ => {}
    }
    each_view(action, &mut |view, writes| {
        visit(view.buffer, span(program, view, &view.shape, &view.strides), writes);
    });
}

/// Checks points 1 and 2, and that groups are valid.
fn check_rank(program: &RankProgram, ranks: usize) -> Result<(), RankError> {
    let rank = program.rank;
    let overlap = |a: &Range<usize>, b: &Range<usize>| a.start < b.end && b.start < a.end;
    let mut tags: BTreeMap<u32, bool> = BTreeMap::new();
    let mut in_flight: Vec<Flight<'_>> = Vec::new();
    for (step, s) in program.steps.iter().enumerate() {
        let unpaired = |what: String| RankError::Unpaired { rank, step, what };
        let mut conflict = None;
        if !in_flight.is_empty() {
            touched(program, &s.action, &mut |buffer, bytes, writes| {
                let conflicting =
                    in_flight.iter().find(|f| overlap(&bytes, &f.to) || writes && overlap(&bytes, &f.from));
                if let (Some(f), None) = (conflicting, &conflict) {
                    conflict = Some((buffer, writes, f.collective));
                }
            });
        }
        if let Some((buffer, writes, c)) = conflict {
            return Err(RankError::InFlight {
                rank,
                step,
                label: s.label.to_string(),
                access: if writes { "writes" } else { "reads" },
                buffer: format!("b{} ({})", buffer.0, program.buffers[buffer.0 as usize].label),
                collective: name(c),
            });
        }
        match &s.action {
            Action::Start(c) => {
                if c.group.get(c.position) != Some(&rank) || c.group.iter().any(|&r| r >= ranks) {
                    let (collective, group, position) = (name(c), c.group.clone(), c.position);
                    return Err(RankError::Group { rank, collective, group, position });
                }
                if tags.insert(c.tag, false).is_some() {
                    return Err(unpaired(format!("tag #{} is started twice", c.tag)));
                }
                let [from, to] = [&c.from, &c.to].map(|v| span(program, v, &v.shape, &v.strides));
                in_flight.push(Flight { collective: c, from, to });
            }
            Action::Wait { tag } => {
                match tags.get_mut(tag) {
                    None => return Err(unpaired(format!("tag #{tag} is waited for, but was not started"))),
                    Some(true) => return Err(unpaired(format!("tag #{tag} is waited for twice"))),
                    Some(waited) => *waited = true,
                }
                in_flight.retain(|f| f.collective.tag != *tag);
            }
            _ => {}
        }
    }
    match in_flight.first() {
        Some(f) => {
            let what = format!("nothing waits for {}", name(f.collective));
            Err(RankError::Unpaired { rank, step: program.steps.len(), what })
        }
        None => Ok(()),
    }
}

/// Whether two ranks start the same collective. Only their positions and the lengths of their own shards may differ.
fn same(a: &Collective, b: &Collective) -> bool {
    let kinds = match (&a.kind, &b.kind) {
        (CollectiveKind::AllReduce(x), CollectiveKind::AllReduce(y)) => {
            x == y && a.from.elements() == b.from.elements()
        }
        (
            CollectiveKind::AllToAll { shape: s, cut: c, join: j, cut_lens: cl, join_lens: jl },
            CollectiveKind::AllToAll { shape: t, cut: d, join: k, cut_lens: dl, join_lens: kl },
        ) => {
            let others = |shape: &[usize], join: usize| {
                shape.iter().enumerate().filter(|&(i, _)| i != join).map(|(_, &n)| n).collect::<Vec<_>>()
            };
            (c, j, cl, jl) == (d, k, dl, kl) && s.len() == t.len() && others(s, *j) == others(t, *k)
        }
        (x, y) => x == y,
    };
    kinds && (a.tag, a.dtype, a.phase, a.values, &a.group) == (b.tag, b.dtype, b.phase, b.values, &b.group)
}

/// Checks point 3 for the ranks whose programs these are.
fn check_groups(programs: &[RankProgram]) -> Result<(), RankError> {
    type Sequence<'a> = Vec<&'a Collective>;
    let mut groups: BTreeMap<&[usize], BTreeMap<usize, Sequence<'_>>> = BTreeMap::new();
    for p in programs {
        for c in p.collectives() {
            groups.entry(&c.group).or_default().entry(p.rank).or_default().push(c);
        }
    }
    let here: BTreeSet<usize> = programs.iter().map(|p| p.rank).collect();
    for (group, sequences) in groups {
        let none = Vec::new();
        let of = |rank: usize| sequences.get(&rank).unwrap_or(&none);
        let mut members = group.iter().copied().filter(|rank| here.contains(rank));
        let Some(first) = members.next() else { continue };
        for second in members {
            let (a, b) = (of(first), of(second));
            let differs = (0..a.len().max(b.len())).find(|&i| match (a.get(i), b.get(i)) {
                (Some(x), Some(y)) => !same(x, y),
                _ => true,
            });
            if let Some(position) = differs {
                let starts = |s: &Sequence<'_>| s.get(position).map_or("nothing".into(), |c| name(c));
                let (first_starts, second_starts) = (starts(a), starts(b));
                return Err(RankError::Mismatch {
                    group: group.to_vec(),
                    position,
                    first,
                    first_starts,
                    second,
                    second_starts,
                });
            }
        }
    }
    Ok(())
}

/// Checks point 4, given point 3. A collective is identified by its group and its number there, and each rank orders
/// the collectives that it starts.
fn check_order(programs: &[RankProgram]) -> Result<(), RankError> {
    let mut ids: BTreeMap<(&[usize], usize), usize> = BTreeMap::new();
    let mut names: Vec<String> = Vec::new();
    let mut next: Vec<Vec<usize>> = Vec::new();
    let mut missing: Vec<usize> = Vec::new();
    for p in programs {
        let mut counts: BTreeMap<&[usize], usize> = BTreeMap::new();
        let mut before: Option<usize> = None;
        for c in p.collectives() {
            let count = counts.entry(&c.group).or_default();
            let id = *ids.entry((&c.group, *count)).or_insert_with(|| {
                names.push(format!("{} of ranks {:?}", name(c), c.group));
                next.push(Vec::new());
                missing.push(0);
                names.len() - 1
            });
            *count += 1;
            if let Some(before) = before {
                next[before].push(id);
                missing[id] += 1;
            }
            before = Some(id);
        }
    }
    let mut free: Vec<usize> = (0..names.len()).filter(|&i| missing[i] == 0).collect();
    let mut ordered = 0;
    while let Some(i) = free.pop() {
        ordered += 1;
        for &j in &next[i] {
            missing[j] -= 1;
            if missing[j] == 0 {
                free.push(j);
            }
        }
    }
    if ordered == names.len() {
        return Ok(());
    }
    // Every remaining collective has a remaining predecessor, so following predecessors finds a cycle.
    let left = |i: usize| missing[i] > 0;
    let mut path: Vec<usize> = (0..names.len()).filter(|&i| left(i)).take(1).collect();
    loop {
        let last = path[path.len() - 1];
        let Some(before) = (0..names.len()).find(|&i| left(i) && next[i].contains(&last)) else { break };
        if let Some(at) = path.iter().position(|&i| i == before) {
            path.drain(..at);
            break;
        }
        path.push(before);
    }
    Err(RankError::Cycle(path.into_iter().rev().map(|i| names[i].clone()).collect()))
}
