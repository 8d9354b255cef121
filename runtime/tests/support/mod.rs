//! Small rank programs, built by hand.
#![allow(dead_code)]

pub mod recorded;
pub mod sharing;

pub use recorded::Recorded;
use std::sync::Arc;
use tpc_ir::program::*;
use tpc_ir::{DType, InputKind, Mesh, ModulePath, OutputKind, Phase};

/// Builds the program of one rank.
pub struct Builder {
    pub program: RankProgram,
}

impl Builder {
    pub fn new() -> Self {
        Builder::of(Mesh::single(), 0)
    }

    pub fn of(mesh: Mesh, rank: usize) -> Self {
        Builder { program: RankProgram { mesh, rank, ..Default::default() } }
    }

    pub fn buffer(&mut self, dtype: DType, shape: &[usize]) -> View {
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let p = &mut self.program;
        let id = BufferId(p.buffers.len() as u32);
        p.buffers.push(Buffer { offset: p.arena_bytes, bytes, persistent: true, label: format!("b{}", id.0).into() });
        p.arena_bytes += bytes.next_multiple_of(ALIGNMENT);
        View::dense(id, dtype, shape.to_vec())
    }

    pub fn input(&mut self, name: &str, dtype: DType, shape: &[usize]) -> View {
        let view = self.buffer(dtype, shape);
        self.bind_input(name, &view, shape.to_vec(), vec![0; shape.len()]);
        view
    }

    pub fn bind_input(&mut self, name: &str, view: &View, global: Vec<usize>, start: Vec<usize>) {
        let binding = Binding { view: view.clone(), layout: global.clone(), global, start };
        // State may start as zeros; a step requires that parameters and data are written first.
        self.program.inputs.push(InputBinding { name: name.into(), kind: InputKind::State, binding });
    }

    pub fn output(&mut self, name: &str, view: &View) {
        let (global, start) = (view.shape.clone(), vec![0; view.shape.len()]);
        self.bind_output(name, view, global, start);
    }

    pub fn bind_output(&mut self, name: &str, view: &View, global: Vec<usize>, start: Vec<usize>) {
        let binding = Binding { view: view.clone(), layout: global.clone(), global, start };
        self.program.outputs.push(OutputBinding { kind: result(name), binding });
    }

    pub fn step(&mut self, action: Action) {
        let label: Arc<str> = format!("step {}", self.program.steps.len()).into();
        self.program.steps.push(Step {
            action,
            phase: Phase::Forward,
            label,
            micro_batch: None,
            module: ModulePath::default(),
        });
    }

    pub fn collective(&mut self, kind: CollectiveKind, group: Vec<usize>, from: &View, to: &View, tag: u32) {
        let position = group.iter().position(|&r| r == self.program.rank).unwrap();
        let c = Collective {
            kind,
            position,
            dtype: from.dtype,
            from: from.clone(),
            to: to.clone(),
            tag,
            axes: "tp".into(),
            phase: Phase::Forward,
            values: 1,
            full_bytes: from.elements().max(to.elements()) * from.dtype.bytes(),
            why: format!("plan line {tag}").into(),
            group,
        };
        self.step(Action::Start(Box::new(c)));
        self.step(Action::Wait { tag });
    }

    pub fn launch(self) -> Recorded {
        Recorded::launch(vec![self.program])
    }
}

pub fn result(name: &str) -> OutputKind {
    OutputKind::Result(name.into())
}

/// A load with the strides of a dense view whose dimensions are those of the loop.
pub fn load(view: &View) -> Instruction {
    Instruction::Load { view: view.clone(), strides: view.strides.clone() }
}

pub fn store(view: &View, arg: usize) -> Instruction {
    Instruction::Store { view: view.clone(), strides: view.strides.clone(), arg, accumulate: None }
}

pub fn map(f: tpc_ir::MapFn, args: &[usize], dtype: DType) -> Instruction {
    Instruction::Map { f, args: args.to_vec(), dtype }
}

/// A small generator for test data.
pub struct Lcg(pub u64);

impl Lcg {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }

    /// Small integers, so that sums are exact.
    pub fn integers(&mut self, n: usize) -> Vec<f64> {
        (0..n).map(|_| self.below(7) as f64 - 3.0).collect()
    }
}
