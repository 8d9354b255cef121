//! Places buffers in one arena so that buffers whose lives overlap do not.
//!
//! Persistent buffers come first. Temporaries are placed by decreasing size at the lowest offset
//! free during their whole life (the greedy-by-size planner of Pisarchyk and Lee, "Efficient memory
//! management for deep neural net inference"). Outputs live to the end of the step.

use tpc_ir::program::{ALIGNMENT, Action, BufferId, Instruction, RankProgram, View};

/// First and last step that touches a buffer.
type Life = (usize, usize);

/// Gives every buffer its offset and the program its arena size.
pub fn plan(program: &mut RankProgram) {
    let lives = lives(program);
    let round = |n: usize| n.next_multiple_of(ALIGNMENT);
    let mut end = 0;
    for b in program.buffers.iter_mut().filter(|b| b.persistent) {
        b.offset = end;
        end += round(b.bytes);
    }
    let mut order: Vec<usize> = (0..program.buffers.len()).filter(|&i| !program.buffers[i].persistent).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(program.buffers[i].bytes), i));
    let mut placed: Vec<(usize, usize, Life)> = Vec::new(); // start, end, life
    let mut arena = end;
    for i in order {
        let Some(life) = lives[i] else {
            program.buffers[i].bytes = 0; // never touched
            continue;
        };
        let size = round(program.buffers[i].bytes);
        let mut offset = end;
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

fn overlaps(a: Life, b: Life) -> bool {
    a.0 <= b.1 && b.0 <= a.1
}

fn lives(program: &RankProgram) -> Vec<Option<Life>> {
    let mut lives: Vec<Option<Life>> = vec![None; program.buffers.len()];
    let mut touch = |b: BufferId, at: usize| {
        let life = lives[b.0 as usize].get_or_insert((at, at));
        life.1 = at;
    };
    let mut flying: Vec<(u32, [BufferId; 2])> = Vec::new();
    for (at, step) in program.steps.iter().enumerate() {
        each_view(&step.action, &mut |v, _| touch(v.buffer, at));
        match &step.action {
            Action::Start(c) => flying.push((c.tag, [c.from.buffer, c.to.buffer])),
            // Buffers of a collective are in use until its wait.
            Action::Wait { tag } => {
                for (_, buffers) in flying.iter().filter(|f| f.0 == *tag) {
                    buffers.iter().for_each(|&b| touch(b, at));
                }
                flying.retain(|f| f.0 != *tag);
            }
            _ => {}
        }
    }
    for output in &program.outputs {
        touch(output.binding.view.buffer, program.steps.len());
    }
    lives
}

/// Calls `visit` with every view that an action touches, and whether it writes it.
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
