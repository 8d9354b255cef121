//! Plans the arena of a rank: buffers whose lifetimes overlap get disjoint bytes.
//!
//! Persistent buffers come first. Temporary buffers are placed in order of decreasing size, each at the lowest offset
//! that is free during its whole lifetime (the greedy-by-size planner of Pisarchyk and Lee, "Efficient memory
//! management for deep neural net inference"). Outputs live until the end of the step.
//!
//! Several programs may be executed in turn over one arena. Inputs that they share (parameters, state, constants) have
//! the same offsets in all of them. Inputs that only the new program has come after the arenas of all others, so that
//! no other program overwrites them between two runs. Its temporary buffers are where no program keeps a value, mostly
//! in the bytes of the temporary buffers of the others.

use std::ops::Range;
use tpc_ir::program::{ALIGNMENT, Action, BufferId, Instruction, RankProgram, View};

/// The first and the last step that uses a buffer; the last one is the number of steps if the buffer is an output.
pub type Life = (usize, usize);

/// Assigns an offset to every buffer and the size of the arena. `others` are programs of the same rank that are
/// executed over the same arena.
pub fn plan(program: &mut RankProgram, others: &[&RankProgram]) {
    let lives = lives(program);
    let round = |n: usize| n.next_multiple_of(ALIGNMENT);
    let mut end = others.iter().map(|other| round(other.arena_bytes)).max().unwrap_or(0);
    let shared = shared(program, others);
    for (i, b) in program.buffers.iter_mut().enumerate().filter(|(_, b)| b.persistent) {
        match shared[i] {
            Some(offset) => b.offset = offset,
            None => {
                b.offset = end;
                end += round(b.bytes);
            }
        }
    }
    let kept = kept(program, others);
    let floor = kept.first().filter(|first| first.start == 0).map_or(0, |first| first.end);
    let mut order: Vec<usize> = (0..program.buffers.len()).filter(|&i| !program.buffers[i].persistent).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(program.buffers[i].bytes), i));
    let always = (0, usize::MAX);
    let mut placed: Vec<(usize, usize, Life)> = kept.iter().map(|p| (p.start, p.end, always)).collect(); // (start, end, life)
    let mut arena = end;
    for i in order {
        let Some(life) = lives[i] else {
            program.buffers[i].bytes = 0; // It is never used.
            continue;
        };
        let size = round(program.buffers[i].bytes);
        let mut offset = floor;
        for &(start, stop, other) in placed.iter().filter(|p| overlaps(p.2, life)) {
            debug_assert!(overlaps(other, life));
            if offset + size <= start {
                break;
            }
            offset = offset.max(stop);
        }
        program.buffers[i].offset = offset;
        let at = placed.partition_point(|p| p.0 <= offset);
        placed.insert(at, (offset, offset + size, life));
        arena = arena.max(offset + size);
    }
    program.arena_bytes = arena;
}

/// For each buffer, the offset at which another program already has this input.
fn shared(program: &RankProgram, others: &[&RankProgram]) -> Vec<Option<usize>> {
    let mut offsets = vec![None; program.buffers.len()];
    for input in &program.inputs {
        let found = others.iter().find_map(|other| Some(other.bytes_of(other.same_input(input)?).start));
        offsets[input.binding.view.buffer.0 as usize] = found;
    }
    offsets
}

/// The bytes that are always in use, in order: the inputs of all programs. Adjacent offsets are merged.
fn kept(program: &RankProgram, others: &[&RankProgram]) -> Vec<Range<usize>> {
    let programs = others.iter().copied().chain(std::iter::once(program));
    let ranges = programs.flat_map(|p| p.inputs.iter().map(|input| p.bytes_of(input)));
    let mut ranges: Vec<Range<usize>> = ranges.filter(|range| !range.is_empty()).collect();
    ranges.sort_by_key(|range| (range.start, range.end));
    let mut kept: Vec<Range<usize>> = Vec::new();
    for range in ranges {
        let end = range.end.next_multiple_of(ALIGNMENT);
        match kept.last_mut().filter(|last| range.start <= last.end) {
            Some(last) => last.end = last.end.max(end),
            None => kept.push(range.start..end),
        }
    }
    kept
}

fn overlaps(a: Life, b: Life) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

/// The life of each buffer in a run; none of one that the program does not touch. A buffer that is not persistent has its bytes in the
/// arena for as long.
pub fn lives(program: &RankProgram) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; program.buffers.len()];
    let mut touch = |b: BufferId, at: usize| {
        let life = lives[b.0 as usize].get_or_insert((at, at));
        life.1 = at;
    };
    let mut in_flight: Vec<(u32, [BufferId; 2])> = Vec::new();
    for (at, step) in program.steps.iter().enumerate() {
        each_view(&step.action, &mut |v, _| touch(v.buffer, at));
        match &step.action {
            Action::Start(c) => in_flight.push((c.tag, [c.from.buffer, c.to.buffer])),
            // The buffers of a collective are in use until its wait.
            Action::Wait { tag } => {
                for (_, buffers) in in_flight.iter().filter(|f| f.0 == *tag) {
                    buffers.iter().for_each(|&b| touch(b, at));
                }
                in_flight.retain(|f| f.0 != *tag);
            }
            _ => {}
        }
    }
    for output in &program.outputs {
        touch(output.binding.view.buffer, program.steps.len());
    }
    lives
}

/// Calls `visit` with every view that an action reads or writes, and whether it writes it.
pub(super) fn each_view<'a>(action: &'a Action, visit: &mut impl FnMut(&'a View, bool)) {
    match action {
        Action::Loop(l) => each_view_of(&l.body, visit),
        Action::Contract(c) => {
            [(&c.left, false), (&c.right, false), (&c.out, true)].into_iter().for_each(|(v, w)| visit(v, w));
            each_view_of(&c.epilogue, visit);
        }
        Action::Attention(a) => a.each_view(visit),
        Action::Take { table, index, out, .. } => {
            [(table, false), (index, false), (out, true)].into_iter().for_each(|(v, w)| visit(v, w));
        }
        Action::ScatterAdd { index, update, out, .. } => {
            [(index, false), (update, false), (out, true)].into_iter().for_each(|(v, w)| visit(v, w));
        }
        Action::Put { table, index, rows, .. } => {
            [(index, false), (rows, false), (table, true)].into_iter().for_each(|(v, w)| visit(v, w));
        }
        Action::Copy { from, to } | Action::CumSum { from, to, .. } => {
            visit(from, false);
            visit(to, true);
        }
        Action::TopK { from, values, indices } => {
            [(from, false), (values, true), (indices, true)].into_iter().for_each(|(v, w)| visit(v, w));
        }
        Action::Start(c) => {
            visit(&c.from, false);
            visit(&c.to, true);
        }
        Action::Wait { .. } => {}
    }
}

fn each_view_of<'a>(body: &'a [Instruction], visit: &mut impl FnMut(&'a View, bool)) {
    for ins in body {
        match ins {
            Instruction::Load { view, .. } => visit(view, false),
            Instruction::Store { view, .. } => visit(view, true),
            _ => {}
        }
    }
}
