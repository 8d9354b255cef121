//! Simulates one rank's program on a target: the time of a step, and the part of it in which the rank waits for collectives.
//!
//! A kernel takes the time of its launch and then the longer of two times: its products at the device's rate, or one pass of
//! its operands through memory (the roofline model of Williams, Waterman and Patterson, 2009). A collective takes the latency
//! of its link plus the time for the bytes that a rank sends.
//!
//! On a GPU, collectives run on a separate stream, one after the other, while kernels run. On a CPU, the rank itself adds and
//! copies when it waits for a collective, so nothing overlaps.
//!
//! All ranks are assumed to be equally fast. Blocks of attention that a mask hides are counted like the others.

use crate::targets::Target;
use std::collections::{BTreeSet, HashMap};
use tpc_ir::attention::Attention;
use tpc_ir::program::{Action, Collective, Contract, Instruction, Loop, RankProgram, Step, View};
use tpc_ir::{DType, Mesh};

/// One of the activities of a rank that may overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// A kernel computes.
    Compute,
    /// A collective is in flight, or the rank itself executes it.
    Communication,
    /// No kernel can run until a collective is complete.
    Waiting,
}

/// An interval in which a lane is busy.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    /// Index of the step in the program. For a collective it is the step that starts it.
    pub step: usize,
    /// The lane.
    pub lane: Lane,
    /// Start, in seconds from the start of the program.
    pub start: f64,
    /// Duration in seconds.
    pub seconds: f64,
}

/// The simulated execution of one rank's program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// The slices, ordered by start within each lane. Slices of zero length are left out.
    pub slices: Vec<Slice>,
    /// Duration of the program in seconds.
    pub seconds: f64,
    /// Bytes that the rank sends with ring algorithms.
    pub sent: f64,
    /// Floating-point operations of its products.
    pub flops: f64,
}

impl Timeline {
    /// Seconds in which a lane is busy.
    pub fn busy(&self, lane: Lane) -> f64 {
        self.slices.iter().filter(|slice| slice.lane == lane).map(|slice| slice.seconds).sum()
    }

    /// Seconds in which no kernel runs.
    pub fn exposed(&self) -> f64 {
        self.seconds - self.busy(Lane::Compute)
    }
}

/// Simulates a rank's program on a target.
pub fn simulate(program: &RankProgram, target: &Target) -> Timeline {
    let mut timeline = Timeline::default();
    // The times at which the program continues and at which the communication stream is free. For each collective in
    // flight: the step that starts it, its duration, and the time at which it is complete.
    let (mut now, mut free): (f64, f64) = (0.0, 0.0);
    let mut in_flight: HashMap<u32, (usize, f64, f64)> = HashMap::new();
    let overlaps = target.device.kind.overlaps();
    for (step, Step { action, .. }) in program.steps.iter().enumerate() {
        match action {
            Action::Start(collective) => {
                let seconds = travel(collective, &program.mesh, target);
                timeline.sent += collective.wire_bytes();
                if overlaps {
                    let start = now.max(free);
                    free = start + seconds;
                    timeline.add(step, Lane::Communication, start, seconds);
                }
                in_flight.insert(collective.tag, (step, seconds, free));
            }
            Action::Wait { tag } => {
                let Some((start, seconds, arrival)) = in_flight.remove(tag) else { continue };
                if overlaps {
                    timeline.add(step, Lane::Waiting, now, (arrival - now).max(0.0));
                    now = now.max(arrival);
                } else {
                    timeline.add(start, Lane::Communication, now, seconds);
                    now += seconds;
                }
            }
            action => {
                let work = Work::of(action);
                let seconds = work.seconds(target);
                timeline.flops += work.flops;
                timeline.add(step, Lane::Compute, now, seconds);
                now += seconds;
            }
        }
    }
    timeline.seconds = now.max(free);
    timeline
}

impl Timeline {
    fn add(&mut self, step: usize, lane: Lane, start: f64, seconds: f64) {
        if seconds > 0.0 {
            self.slices.push(Slice { step, lane, start, seconds });
        }
    }
}

/// Duration of a collective in seconds.
fn travel(collective: &Collective, mesh: &Mesh, target: &Target) -> f64 {
    let link = target.links.group(mesh, mesh.spanned(&collective.group));
    link.latency + collective.wire_bytes() / link.bandwidth
}

/// The work of a kernel.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    /// Floating-point operations of products.
    flops: f64,
    /// The element type of the products' operands.
    dtype: DType,
    /// Bytes read and written.
    bytes: f64,
}

impl Work {
    fn of(action: &Action) -> Self {
        let moves =
            |views: &[&View]| Work { flops: 0.0, dtype: DType::F32, bytes: views.iter().map(|view| bytes(view)).sum() };
        match action {
            Action::Loop(Loop { dims, body }) => Work { bytes: touched(body, dims), ..moves(&[]) },
            Action::Contract(contract) => Work::of_product(contract),
            Action::Attention(attention) => Work::of_attention(attention),
            Action::Take { index, out, .. } => moves(&[index, out, out]),
            Action::ScatterAdd { index, update, out, .. } => moves(&[index, update, out]),
            Action::Put { index, rows, .. } => moves(&[index, rows, rows]),
            Action::Copy { from, to } | Action::CumSum { from, to, .. } => moves(&[from, to]),
            Action::TopK { from, values, indices } => moves(&[from, values, indices]),
            Action::Start(_) | Action::Wait { .. } => moves(&[]),
        }
    }

    fn of_product(contract: &Contract) -> Self {
        let dims: Vec<usize> = contract.dims().map(|dim| dim.size).collect();
        let terms = dims.iter().chain(contract.k.iter().map(|dim| &dim.size)).map(|&n| n as f64).product::<f64>();
        let written = match contract.epilogue.is_empty() {
            true => bytes(&contract.out),
            false => touched(&contract.epilogue, &dims),
        };
        let bytes = bytes(&contract.left) + bytes(&contract.right) + written;
        Work { flops: 2.0 * terms, dtype: contract.left.dtype, bytes }
    }

    fn of_attention(attention: &Attention) -> Self {
        let size = |dims: &[usize]| dims.iter().map(|&n| n as f64).product::<f64>();
        let (scores, inner, width) = (size(&attention.dims), size(&attention.inner), size(&attention.width));
        // Forward: the scores and the result. Backward: the scores again, and the gradients of scores, query, key and value.
        let products = match &attention.backward {
            None => inner + width,
            Some(_) => 3.0 * inner + 2.0 * width,
        };
        let read: f64 = attention.operands().into_iter().map(|operand| bytes(&operand.view)).sum();
        let query = &attention.query.view;
        Work { flops: 2.0 * scores * products, dtype: query.dtype, bytes: read + bytes(query) }
    }

    /// Duration of a kernel with this work in seconds.
    fn seconds(&self, target: &Target) -> f64 {
        let device = &target.device;
        device.launch + (self.flops / device.products.rate(self.dtype)).max(self.bytes / device.memory)
    }
}

/// Bytes of the elements of a view.
fn bytes(view: &View) -> f64 {
    (view.elements() * view.dtype.bytes()) as f64
}

/// Bytes that a loop body reads and writes, where each element of each view counts once.
fn touched(body: &[Instruction], dims: &[usize]) -> f64 {
    let mut seen = BTreeSet::new();
    let mut bytes = 0.0;
    for instruction in body {
        let (Instruction::Load { view, strides } | Instruction::Store { view, strides, .. }) = instruction else {
            continue;
        };
        let is_store = matches!(instruction, Instruction::Store { .. });
        if seen.insert((view.buffer, view.offset, strides, is_store)) {
            let extents = dims.iter().zip(strides).filter(|(_, stride)| **stride != 0).map(|(&n, _)| n as f64);
            bytes += extents.product::<f64>() * view.dtype.bytes() as f64;
        }
    }
    bytes
}
