//! When one rank's program does what on a target: how long a step takes, and how much of that is waiting for collectives.
//!
//! A kernel takes its launch and then the longer of two times: that of its products at the device's rate, and that of reading
//! and writing each of its operands once (the roofline of Williams, Waterman and Patterson, 2009). A collective takes the
//! latency of its link and the time of the bytes that a rank sends.
//!
//! On a GPU collectives travel on a stream of their own, one after the other, while kernels run. On a CPU a rank itself adds
//! and copies once all others have come, so that every collective takes its whole time at its wait.
//!
//! All ranks are taken to be as fast as this one: what a rank waits for is its own slowest link and never a slower rank. Of
//! attention under a mask, blocks that the mask hides are counted like the others.

use crate::targets::{DeviceKind, Target};
use std::collections::{BTreeSet, HashMap};
use tpc_ir::attention::Attention;
use tpc_ir::program::{Action, Collective, Contract, Instruction, Loop, RankProgram, Step, View};
use tpc_ir::{AxisSet, DType, Mesh};

/// Where something happens on a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// A kernel computes.
    Compute,
    /// A collective travels, or is carried out by the rank itself.
    Communication,
    /// Nothing can run until a collective has arrived.
    Waiting,
}

/// Something that a rank does for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slice {
    /// The step of the program: of a collective that which starts it, of waiting that which waits.
    pub step: usize,
    /// Where it happens.
    pub lane: Lane,
    /// Seconds after the beginning of the program.
    pub start: f64,
    /// Seconds that it takes.
    pub seconds: f64,
}

/// What one rank does when.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timeline {
    /// What it does, in the order in which it begins on each lane. What takes no time is left out.
    pub slices: Vec<Slice>,
    /// Seconds of the whole program.
    pub seconds: f64,
    /// Bytes that the rank sends under the ring algorithm.
    pub sent: f64,
    /// Floating-point operations of its products.
    pub flops: f64,
}

impl Timeline {
    /// Seconds that a lane is in use.
    pub fn busy(&self, lane: Lane) -> f64 {
        self.slices.iter().filter(|slice| slice.lane == lane).map(|slice| slice.seconds).sum()
    }

    /// Seconds of the program during which no kernel computes.
    pub fn exposed(&self) -> f64 {
        self.seconds - self.busy(Lane::Compute)
    }
}

/// What a rank does when, if it executes its program on a target.
pub fn simulate(program: &RankProgram, target: &Target) -> Timeline {
    let mut timeline = Timeline::default();
    // Seconds at which the program goes on, at which the communication stream is free, and at which collectives have arrived.
    let (mut now, mut free): (f64, f64) = (0.0, 0.0);
    let mut flying: HashMap<u32, (usize, f64, f64)> = HashMap::new();
    let overlaps = target.device.kind == DeviceKind::Cuda;
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
                flying.insert(collective.tag, (step, seconds, free));
            }
            Action::Wait { tag } => {
                let Some((start, seconds, arrival)) = flying.remove(tag) else { continue };
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

/// Seconds that a collective travels.
fn travel(collective: &Collective, mesh: &Mesh, target: &Target) -> f64 {
    let link = target.links.group(mesh, axes(&collective.group, mesh));
    link.latency + collective.wire_bytes() / link.bandwidth
}

/// The axes along which the ranks of a group differ.
fn axes(group: &[usize], mesh: &Mesh) -> AxisSet {
    let coordinates: Vec<Vec<usize>> = group.iter().map(|&rank| mesh.coords(rank)).collect();
    let differs = |at: usize| coordinates.iter().any(|c| c[at] != coordinates[0][at]);
    mesh.axis_ids().filter(|axis| differs(axis.0 as usize)).collect()
}

/// What a kernel computes and moves.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Work {
    /// Floating-point operations of products.
    flops: f64,
    /// The element type of the products' operands.
    dtype: DType,
    /// Bytes that are read and written.
    bytes: f64,
}

impl Work {
    fn of(action: &Action) -> Self {
        let moves = |views: &[&View]| Work {
            flops: 0.0,
            dtype: DType::F32,
            bytes: views.iter().map(|view| (view.elements() * view.dtype.bytes()) as f64).sum(),
        };
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
        let operands = [&contract.left, &contract.right].map(|view| (view.elements() * view.dtype.bytes()) as f64);
        let written = match contract.epilogue.is_empty() {
            true => (contract.out.elements() * contract.out.dtype.bytes()) as f64,
            false => touched(&contract.epilogue, &dims),
        };
        let bytes = operands.iter().sum::<f64>() + written;
        Work { flops: 2.0 * terms, dtype: contract.left.dtype, bytes }
    }

    fn of_attention(attention: &Attention) -> Self {
        let size = |dims: &[usize]| dims.iter().map(|&n| n as f64).product::<f64>();
        let (scores, inner, width) = (size(&attention.dims), size(&attention.inner), size(&attention.width));
        // Forward: scores and the result. Backward: scores a second time, and the gradients of scores, query, key and value.
        let products = match &attention.backward {
            None => inner + width,
            Some(_) => 3.0 * inner + 2.0 * width,
        };
        let views = attention.operands().into_iter().map(|operand| &operand.view);
        let bytes: f64 = views.map(|view| (view.elements() * view.dtype.bytes()) as f64).sum();
        let written = (attention.query.view.elements() * attention.query.view.dtype.bytes()) as f64;
        Work { flops: 2.0 * scores * products, dtype: attention.query.view.dtype, bytes: bytes + written }
    }

    /// Seconds of a kernel that does this.
    fn seconds(&self, target: &Target) -> f64 {
        let device = &target.device;
        device.launch + (self.flops / device.products.rate(self.dtype)).max(self.bytes / device.memory)
    }
}

/// Bytes that a loop body reads and writes: each element of each view once.
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
