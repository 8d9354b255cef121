//! Measures single kernels: loops that move memory, and matrix products.

use std::time::Instant;
use tpc_ir::program::{
    ALIGNMENT, Action, Binding, Buffer, BufferId, Contract, ContractDim, InputBinding, Instruction, Loop, RankProgram,
    Step, View,
};
use tpc_ir::{DType, InputKind, MapFn, Mesh, ModulePath, Phase, ReduceOp};
use tpc_runtime::RuntimeError;
use tpc_runtime::device::attached::Device;
use tpc_runtime::device::cuda::gpu::{Gpu, GpuOptions};

/// A program of one rank with some buffers.
pub(super) struct Small {
    pub(super) program: RankProgram,
}

impl Small {
    pub(super) fn new() -> Self {
        Small { program: RankProgram { mesh: Mesh::single(), ..RankProgram::default() } }
    }

    pub(super) fn buffer(&mut self, dtype: DType, shape: &[usize]) -> View {
        let bytes = shape.iter().product::<usize>() * dtype.bytes();
        let p = &mut self.program;
        let id = BufferId(p.buffers.len() as u32);
        p.buffers.push(Buffer { offset: p.arena_bytes, bytes, persistent: true, label: "x".into() });
        p.arena_bytes += bytes.next_multiple_of(ALIGNMENT);
        View::dense(id, dtype, shape.to_vec())
    }

    /// Makes a buffer readable and writable.
    pub(super) fn input(&mut self, name: &str, view: &View) {
        let (global, start) = (view.shape.clone(), vec![0; view.shape.len()]);
        let binding = Binding { view: view.clone(), layout: global.clone(), global, start };
        self.program.inputs.push(InputBinding { name: name.into(), kind: InputKind::State, binding });
    }

    pub(super) fn action(&mut self, action: Action) {
        self.program.steps.push(Step {
            action,
            phase: Phase::Forward,
            label: "step".into(),
            micro_batch: None,
            module: ModulePath::default(),
        });
    }

    /// Seconds per step, as a graph, over many steps.
    pub(super) fn seconds(self, options: &GpuOptions) -> Result<f64, RuntimeError> {
        let mut gpu = Gpu::new(vec![self.program], options.clone())?;
        (0..3).try_for_each(|_| gpu.step().map(drop))?;
        let mut steps = 4;
        loop {
            let start = Instant::now();
            for _ in 0..steps {
                gpu.enqueue_step()?;
            }
            gpu.finish()?;
            let taken = start.elapsed().as_secs_f64();
            if taken > 0.2 {
                return Ok(taken / steps as f64);
            }
            steps *= 2;
        }
    }
}

pub(super) fn load(v: &View) -> Instruction {
    Instruction::Load { view: v.clone(), strides: v.strides.clone() }
}

pub(super) fn store(v: &View, arg: usize) -> Instruction {
    Instruction::Store { view: v.clone(), strides: v.strides.clone(), arg, accumulate: None }
}

pub(super) fn map(f: MapFn, args: &[usize]) -> Instruction {
    Instruction::Map { f, args: args.to_vec(), dtype: DType::F32 }
}

/// Measures loops and products.
pub fn speed(small: bool) -> Result<(), RuntimeError> {
    let options = GpuOptions::default();
    let size = |n: usize| if small { n.div_ceil(64) } else { n };
    println!("| loop | shape | GB/s |\n|---|---|---|");
    for dtype in [DType::F32, DType::BF16] {
        let (rows, n) = (size(8192), size(4096));
        let bytes = (rows * n * dtype.bytes()) as f64;
        let mut add = Small::new();
        let (x, y, z) = (add.buffer(dtype, &[rows, n]), add.buffer(dtype, &[rows, n]), add.buffer(dtype, &[rows, n]));
        let body = vec![load(&x), load(&y), map(MapFn::Add, &[0, 1]), store(&z, 2)];
        add.action(Action::Loop(Loop { dims: vec![rows, n], body }));
        println!("| add | {dtype}[{rows}, {n}] | {:.0} |", 3.0 * bytes / add.seconds(&options)? / 1e9);
        let mut softmax = Small::new();
        let (x, y) = (softmax.buffer(dtype, &[rows, n]), softmax.buffer(dtype, &[rows, n]));
        let reduce = |op, arg| Instruction::ReduceRow { op, arg, dtype: DType::F32 };
        let body = vec![
            load(&x),
            reduce(ReduceOp::Max, 0),
            map(MapFn::Sub, &[0, 1]),
            map(MapFn::Exp, &[2]),
            reduce(ReduceOp::Sum, 3),
            map(MapFn::Div, &[3, 4]),
            store(&y, 5),
        ];
        softmax.action(Action::Loop(Loop { dims: vec![rows, n], body }));
        println!("| softmax | {dtype}[{rows}, {n}] | {:.0} |", 2.0 * bytes / softmax.seconds(&options)? / 1e9);
        let mut columns = Small::new();
        let (x, y) = (columns.buffer(dtype, &[rows, n]), columns.buffer(DType::F32, &[n]));
        let accumulate = Instruction::Store { view: y, strides: vec![0, 1], arg: 0, accumulate: Some(ReduceOp::Sum) };
        columns.action(Action::Loop(Loop { dims: vec![rows, n], body: vec![load(&x), accumulate] }));
        println!("| sum over rows | {dtype}[{rows}, {n}] | {:.0} |", bytes / columns.seconds(&options)? / 1e9);
        let mut transpose = Small::new();
        let (x, y) = (transpose.buffer(dtype, &[rows, n]), transpose.buffer(dtype, &[n, rows]));
        let from = View { shape: vec![n, rows], strides: vec![1, n as isize], ..x };
        transpose.action(Action::Copy { from, to: y });
        println!("| transpose | {dtype}[{rows}, {n}] | {:.0} |", 2.0 * bytes / transpose.seconds(&options)? / 1e9);
    }
    println!("\n| product | types | TFLOP/s cublasLt | TFLOP/s generated |\n|---|---|---|---|");
    for (m, n, k) in [(4096, 4096, 4096), (8192, 8192, 8192), (16, 4096, 4096)] {
        let (m, n, k) = (size(m), size(n), size(k));
        for dtype in [DType::BF16, DType::F32] {
            let product = || {
                let mut p = Small::new();
                let (left, right, out) = (p.buffer(dtype, &[m, k]), p.buffer(dtype, &[k, n]), p.buffer(dtype, &[m, n]));
                let dim = |size: usize, left: usize, right: usize, out: usize| ContractDim {
                    size,
                    left: left as isize,
                    right: right as isize,
                    out: out as isize,
                };
                let (m, k, n) = (vec![dim(m, k, 0, n)], vec![dim(k, 1, n, 0)], vec![dim(n, 0, 1, 1)]);
                p.action(Action::Contract(Contract {
                    left,
                    right,
                    out,
                    batch: vec![],
                    m,
                    n,
                    k,
                    scale: 1.0,
                    epilogue: Vec::new(),
                }));
                p
            };
            let work = 2.0 * m as f64 * n as f64 * k as f64 / 1e12;
            let library = work / product().seconds(&options)?;
            let generated = work / product().seconds(&GpuOptions { library: false, ..options.clone() })?;
            println!("| {m} × {n} × {k} | {dtype} | {library:.1} | {generated:.1} |");
        }
    }
    Ok(())
}
