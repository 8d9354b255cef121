//! Turns a rank program into a list of prepared actions, and runs it.

use super::arena::Arena;
use super::attention;
use super::copy::{Copy, Rows};
use super::epilogue;
use super::fused::FusedLoop;
use super::gather::Table;
use super::plan;
use crate::comm::{CollectiveId, Communicator};
use crate::counters::Counters;
use crate::error::RuntimeError;
use crate::flight::{Clock, Flight, Label, Number};
use crate::trace::Trace;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;
use tpc_ir::program::{ALIGNMENT, Action, RankProgram};

/// A prepared action.
enum Prepared {
    Loop(FusedLoop),
    Contract(Box<epilogue::Prepared>),
    Attention(Box<attention::Prepared>),
    Table(Table),
    Copy(Copy),
    Rows(Rows),
    Start { id: CollectiveId, from: *const u8, to: *mut u8, label: Box<Label> },
    Wait { id: CollectiveId },
}

/// A loaded rank program.
pub(crate) struct Executable {
    actions: Vec<Prepared>,
    scratch: Arena,
    /// For every collective, the number of its latest start in the flight record.
    noted: Vec<Number>,
}

// SAFETY: the pointers point into the arena of the rank that owns the executable.
unsafe impl Send for Executable {}

/// What a rank needs for a step in addition to its program.
pub(crate) struct Surroundings<'a> {
    pub(crate) comm: &'a mut dyn Communicator,
    pub(crate) counters: &'a Counters,
    pub(crate) flight: &'a Flight,
    /// The clock of the flight record.
    pub(crate) clock: Clock,
    pub(crate) trace: Option<&'a mut Trace>,
    /// The zero of trace times.
    pub(crate) epoch: Instant,
    /// The action being executed, for panic messages.
    pub(crate) current: &'a AtomicUsize,
}

impl Executable {
    /// Prepares every action: resolves views, chooses kernels, allocates scratch.
    pub(crate) fn load(
        program: &RankProgram,
        arena: &Arena,
        comm: &mut dyn Communicator,
    ) -> Result<Self, RuntimeError> {
        let mut actions = Vec::with_capacity(program.steps.len());
        let mut ids: Vec<(u32, CollectiveId)> = Vec::new();
        let mut waited: Vec<bool> = Vec::new();
        let mut scratch = 0;
        for (i, step) in program.steps.iter().enumerate() {
            let fail = |reason: String| RuntimeError::Load {
                rank: program.rank,
                step: i,
                label: step.label.to_string(),
                reason,
            };
            let buffers = &program.buffers;
            let prepared = match &step.action {
                Action::Loop(l) => {
                    let l = plan::prepare(l, arena, buffers).map_err(fail)?;
                    scratch = scratch.max(l.scratch_bytes);
                    Prepared::Loop(l)
                }
                Action::Contract(c) => {
                    let c = epilogue::prepare(c, arena, buffers).map_err(fail)?;
                    scratch = scratch.max(c.scratch_bytes());
                    Prepared::Contract(Box::new(c))
                }
                Action::Attention(a) => {
                    let a = attention::prepare(a, arena, buffers).map_err(fail)?;
                    scratch = scratch.max(a.scratch_bytes());
                    Prepared::Attention(Box::new(a))
                }
                Action::Take { table, index, out, first_row } => {
                    Prepared::Table(Table::take(table, index, out, *first_row, arena, buffers).map_err(fail)?)
                }
                Action::ScatterAdd { index, update, out, first_row } => {
                    Prepared::Table(Table::scatter_add(index, update, out, *first_row, arena, buffers).map_err(fail)?)
                }
                Action::Put { table, index, rows, first_row } => {
                    Prepared::Table(Table::put(table, index, rows, *first_row, arena, buffers).map_err(fail)?)
                }
                Action::Copy { from, to } => Prepared::Copy(Copy::prepare(from, to, arena, buffers).map_err(fail)?),
                Action::CumSum { from, to, dim } => {
                    let rows = Rows::cumsum(from, to, *dim, arena, buffers).map_err(fail)?;
                    scratch = scratch.max(rows.scratch_bytes());
                    Prepared::Rows(rows)
                }
                Action::TopK { from, values, indices } => {
                    let rows = Rows::top_k(from, values, indices, arena, buffers).map_err(fail)?;
                    scratch = scratch.max(rows.scratch_bytes());
                    Prepared::Rows(rows)
                }
                Action::Start(c) => {
                    let dense = |v: &tpc_ir::program::View| {
                        if v.dtype != c.dtype || !v.is_dense() {
                            return Err(format!("{} takes dense {} views", c.name(), c.dtype));
                        }
                        arena.resolve_view(buffers, v)
                    };
                    let from = dense(&c.from).map_err(fail)?;
                    let to = dense(&c.to).map_err(fail)?;
                    let in_place = matches!(c.kind, tpc_ir::program::CollectiveKind::AllReduce(_)) && from == to;
                    if from.overlaps(&to) && !in_place {
                        return Err(fail(format!("the result of {} overlaps its operand", c.name())));
                    }
                    if ids.iter().any(|x| x.0 == c.tag) {
                        return Err(fail(format!("tag #{} is used by two collectives", c.tag)));
                    }
                    let id = comm.prepare(c).map_err(|e| fail(e.to_string()))?;
                    ids.push((c.tag, id));
                    waited.push(false);
                    Prepared::Start { id, from: from.base, to: to.base, label: Box::new(Label::of(c)) }
                }
                Action::Wait { tag } => {
                    let id = ids.iter().find(|x| x.0 == *tag).map(|x| x.1);
                    let id = id.ok_or_else(|| fail(format!("no collective with tag #{tag} was started before")))?;
                    if std::mem::replace(&mut waited[id.0], true) {
                        return Err(fail(format!("the collective with tag #{tag} is waited for twice")));
                    }
                    Prepared::Wait { id }
                }
            };
            actions.push(prepared);
        }
        if let Some(c) = program.collectives().zip(&waited).find(|(_, waited)| !**waited) {
            let what = crate::comm::describe(c.0);
            return Err(RuntimeError::Launch(format!("rank {}: nothing waits for {what}", program.rank)));
        }
        let bytes = scratch.next_multiple_of(ALIGNMENT);
        let scratch = Arena::new(bytes).ok_or(RuntimeError::OutOfMemory { rank: program.rank, bytes })?;
        let noted = vec![0; waited.len()];
        Ok(Executable { actions, scratch, noted })
    }

    /// Bytes that kernels use in addition to the arena.
    pub(crate) fn scratch_bytes(&self) -> usize {
        self.scratch.allocated_bytes()
    }

    /// Runs all actions once.
    ///
    /// # Safety
    /// Only the rank's peers, in collectives, may use its arena during the call.
    pub(crate) unsafe fn step(&mut self, around: &mut Surroundings<'_>) -> Result<(), RuntimeError> {
        let scratch = self.scratch.base();
        let number = around.flight.begin_step();
        for (i, action) in self.actions.iter_mut().enumerate() {
            around.current.store(i, Ordering::Relaxed);
            let traced = around.trace.is_some() || matches!(action, Prepared::Start { .. } | Prepared::Wait { .. });
            let start = traced.then(Instant::now);
            // SAFETY: every action was prepared for this arena, and the scratch is large enough for each action.
            unsafe {
                match action {
                    Prepared::Loop(l) => l.run(scratch),
                    Prepared::Contract(c) => c.run(scratch),
                    Prepared::Attention(a) => a.run(scratch),
                    Prepared::Table(t) => t.run(),
                    Prepared::Copy(c) => c.run(),
                    Prepared::Rows(r) => r.run(scratch),
                    Prepared::Start { id, from, to, label } => {
                        let now = start.map_or(0, |start| around.clock.nanoseconds(start));
                        self.noted[id.0] = around.flight.start(number, now, label);
                        around.comm.start(*id, *from, *to)?;
                    }
                    Prepared::Wait { id } => {
                        around.flight.wait(self.noted[id.0]);
                        around.comm.wait(*id)?;
                        around.counters.count(id.0);
                    }
                }
            }
            let Some(start) = start else { continue };
            let end = Instant::now();
            if let Prepared::Wait { id } = action {
                around.flight.finish(self.noted[id.0], around.clock.nanoseconds(end));
            }
            if let Prepared::Start { id, .. } | Prepared::Wait { id } = action {
                around.counters.add_time(id.0, (end - start).as_nanos() as u64);
            }
            if let Some(trace) = &mut around.trace {
                let at = |t: Instant| (t - around.epoch).as_nanos() as u64;
                trace.record(i, number, at(start), at(end));
            }
        }
        Ok(())
    }
}
